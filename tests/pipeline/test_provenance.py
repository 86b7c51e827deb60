"""Provenance: one text form for every value, and hashes that change with content and with nothing else."""

import hashlib
import json
import math
import random
import struct

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.provenance import (
    TAG,
    canonical_json,
    content_hash,
    fingerprint_chain,
    frame_hash,
    identities,
    identity,
    list_hashes,
    short,
    step_key,
)

TEXT = st.text(st.characters(exclude_categories=()), max_size=5)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=10
)
PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), max_size=6)


def test_keys_are_sorted_and_nothing_is_spaced():
    assert canonical_json({"b": [1, None, True], "a": {"d": "é", "c": 2}}) == (
        '{"a":{"c":2,"d":"\\u00e9"},"b":[1,null,true]}'
    )


@given(st.floats())
def test_a_float_is_its_eight_bytes(x):
    assert canonical_json(x) == f'{{"f64":"{struct.pack(">d", x).hex()}"}}'


def test_zeros_of_both_signs_whole_floats_and_whole_numbers_differ():
    assert len({canonical_json(value) for value in (0.0, -0.0, 0, False, "0", b"\0", None)}) == 7
    assert canonical_json(1.0) != canonical_json(math.nextafter(1.0, 2.0))


@given(VALUES)
def test_any_value_has_one_ascii_form_which_is_json(value):
    text = canonical_json(value)
    assert text.isascii()
    assert text == canonical_json(value)
    json.loads(text)
    assert content_hash(value) == TAG + hashlib.sha256(text.encode()).hexdigest()


@given(st.dictionaries(TEXT, SCALARS, max_size=6), st.randoms())
def test_the_order_of_keys_is_nothing(value, shuffle):
    items = list(value.items())
    shuffle.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)


def test_a_tuple_is_a_list():
    assert canonical_json((1, (2,))) == canonical_json([1, [2]])


@pytest.mark.parametrize("value", [{1, 2}, np.float32(1), np.int64(1), np.zeros(2), object(), 1j, [{"a": {1}}]])
def test_what_has_no_canonical_form_is_refused_by_name(value):
    with pytest.raises(TypeError, match=r"a (set|float32|int64|ndarray|object|complex) has no canonical form; pass"):
        canonical_json(value)


@given(
    st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), PLAIN, st.integers(0, 2**63 - 1)), max_size=5),
    st.dictionaries(st.sampled_from(["a", "m", "zz", "é"]), SCALARS | st.lists(st.integers(), max_size=2)),
    PLAIN,
)
def test_identities_are_the_identity_of_each_row(rows, made_from, kind):
    frame = pl.DataFrame(rows, schema={"layer": pl.Int32, "name": pl.String, "n": pl.Int64}, orient="row")

    made = identities(kind, frame, **made_from)

    assert made == [identity(kind, **row, **made_from) for row in frame.iter_rows(named=True)]


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([1.0]),
        pl.Series([None], dtype=pl.Int32),
        pl.Series([None], dtype=pl.String),
        pl.Series(['"']),
        pl.Series(["\\"]),
        pl.Series(["a\n"]),
        pl.Series(["é"]),
        pl.Series(["\x7f"]),
        pl.Series([True]),
        pl.Series([[1]]),
    ],
)
def test_a_column_that_cannot_enter_an_identity_as_it_is_is_refused(column):
    with pytest.raises(TypeError, match="column `x` must hold whole numbers or plain text without nulls"):
        identities("k", pl.DataFrame({"x": column}))


@given(st.lists(st.none() | st.lists(st.floats(width=32), max_size=4), min_size=1, max_size=6))
def test_a_list_hash_is_that_of_its_own_bytes(lists):
    assert list_hashes(pl.Series(lists, dtype=pl.List(pl.Float32))) == [
        hashlib.sha256(struct.pack(f"<{len(values or [])}f", *(values or []))).hexdigest() for values in lists
    ]


def test_no_lists_have_no_hashes():
    assert list_hashes(pl.Series([], dtype=pl.List(pl.Float32))) == []


def test_a_short_identity_is_sixteen_digits_without_the_tag():
    assert short(content_hash(1)) == content_hash(1).removeprefix(TAG)[:16]


def table(**columns):
    return pl.DataFrame(
        {
            "key": pl.Series([1, 2, 3], dtype=pl.Int32),
            "x": pl.Series([0.5, 1.5, 2.5], dtype=pl.Float32),
            "name": pl.Series(["a", None, "é"]),
            "list": pl.Series([[1.0], [], None], dtype=pl.List(pl.Float32)),
            "nested": pl.Series([[[1.0], []], [[]], []], dtype=pl.List(pl.List(pl.Float32))),
            "bytes": pl.Series([[b"a", b""], [b"\xff"], []], dtype=pl.List(pl.Binary)),
            "flag": pl.Series([True, False, None]),
            "run_id": pl.Series(["r1", "r1", "r2"]),
            **columns,
        }
    )


def hashed(frame):
    return frame_hash(frame, key=["key"])


@given(st.permutations(range(3)), st.permutations(range(8)), st.text(max_size=3))
def test_a_table_hashes_alike_in_any_order_and_from_any_run(rows, columns, run):
    shuffled = table()[rows].select(table().columns[place] for place in columns)
    assert hashed(shuffled.with_columns(run_id=pl.lit(run))) == hashed(table())
    assert hashed(shuffled.drop("run_id")) == hashed(table())
    assert hashed(pl.concat([shuffled[:1], shuffled[1:]], rechunk=False)) == hashed(table())


@pytest.mark.parametrize(
    "changed",
    [
        pl.Series("x", [0.5, 1.5, np.nextafter(np.float32(2.5), np.float32(3))], dtype=pl.Float32),
        pl.Series("x", [0.5, 1.5, 2.5], dtype=pl.Float64),
        pl.Series("x", [0.5, 1.5, None], dtype=pl.Float32),
        pl.Series("x", [0.5, 1.5, math.nan], dtype=pl.Float32),
        pl.Series("name", ["a", "", "é"]),
        pl.Series("name", ["aé", None, ""]),
        pl.Series("name", [None, "a", "é"]),
        pl.Series("list", [[1.0], None, []], dtype=pl.List(pl.Float32)),
        pl.Series("list", [[1.0], [], []], dtype=pl.List(pl.Float32)),
        pl.Series("list", [[], [1.0], None], dtype=pl.List(pl.Float32)),
        pl.Series("list", [[None], [], None], dtype=pl.List(pl.Float32)),
        pl.Series("list", [[-1.0], [], None], dtype=pl.List(pl.Float32)),
        pl.Series("nested", [[[1.0]], [[]], [[]]], dtype=pl.List(pl.List(pl.Float32))),
        pl.Series("nested", [[[], [1.0]], [[]], []], dtype=pl.List(pl.List(pl.Float32))),
        pl.Series("nested", [[[1.0], None], [[]], []], dtype=pl.List(pl.List(pl.Float32))),
        pl.Series("bytes", [[b"", b"a"], [b"\xff"], []], dtype=pl.List(pl.Binary)),
        pl.Series("bytes", [[b"a"], [b"", b"\xff"], []], dtype=pl.List(pl.Binary)),
        pl.Series("flag", [True, None, False]),
    ],
)
def test_any_change_of_content_changes_the_hash(changed):
    assert hashed(table(**{changed.name: changed})) != hashed(table())


def test_a_column_by_another_name_and_a_row_more_change_the_hash():
    assert hashed(table().rename({"x": "y"})) != hashed(table())
    assert hashed(table().head(2)) != hashed(table())
    assert hashed(table().head(0)) != hashed(table())
    assert frame_hash(table(), key=["key"], ignore=()) != hashed(table())


def test_no_text_can_be_made_that_reads_as_a_row_more():
    # One text of 31,744 bytes whose beginning is where the null mark and the two lengths of two rows would stand.
    first, second = "a" * 124, "b" * 31_615
    one = pl.DataFrame({"k": ["\0" + struct.pack("<I", len(second)).decode("ascii") + first + second]})
    two = pl.DataFrame({"k": [first, second]})
    assert frame_hash(one, key=["k"]) != frame_hash(two, key=["k"])


@given(st.integers(1, 6), st.integers(0, 5), st.sampled_from(["own", "carried", "base"]))
def test_a_changed_tensor_reaches_its_layer_and_later_ones_and_no_other(layers, place, which):
    place %= layers
    own, carried = [f"own {layer}" for layer in range(layers)], [f"carried {layer}" for layer in range(layers)]
    before = fingerprint_chain("base", own, carried)

    match which:
        case "own":
            own[place] = "changed"
        case "carried":
            carried[place] = "changed"
    after = fingerprint_chain("changed" if which == "base" else "base", own, carried)

    first = {"own": place, "carried": place + 1, "base": 0}[which]
    assert [a == b for a, b in zip(before, after, strict=True)] == [layer < first for layer in range(layers)]
    assert len(set(after)) == layers


def test_a_step_is_known_by_everything_that_can_change_its_result():
    base = {"asset": "a", "code_version": "1", "settings": {"seed": 1}, "inputs": {"t": "h"}}
    keys = [step_key(**base)] + [
        step_key(**{**base, **change})
        for change in (
            {"asset": "b"},
            {"code_version": "2"},
            {"settings": {"seed": 2}},
            {"settings": {}},
            {"inputs": {"t": "i"}},
            {"inputs": {"u": "h"}},
        )
    ]
    assert len(set(keys)) == 7
    settings = dict.fromkeys(random.Random(0).sample("abcdef", 6), 1)
    assert step_key(**{**base, "settings": settings}) == step_key(
        **{**base, "settings": dict(sorted(settings.items()))}
    )
