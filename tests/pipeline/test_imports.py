"""Rows of foreign files as columns."""

from itertools import chain

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import imports
from pipeline.errors import FormError
from pipeline.imports import Lists
from pipeline.provenance import identity

FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=4)


@given(st.lists(st.none() | FLOATS, max_size=6))
def test_a_column_of_lists_holds_what_the_rows_held(rows):
    arrays = [None if row is None else np.array(row, dtype=np.float32) for row in rows]
    column = imports._column("a", arrays, pl.List(pl.Float32))
    assert (column.name, column.dtype, column.to_list()) == ("a", pl.List(pl.Float32), rows)


@given(st.lists(st.none() | st.lists(FLOATS, min_size=1, max_size=3), max_size=5))
def test_a_column_of_lists_of_lists_holds_what_the_rows_held(rows):
    kind = pl.List(pl.List(pl.Float32))
    given_as = [
        None
        if row is None
        else Lists(np.array(list(chain.from_iterable(row)), dtype=np.float32), np.array([len(one) for one in row]))
        for row in rows
    ]
    column = imports._column("a", given_as, kind)
    assert (column.dtype, column.to_list()) == (kind, rows)


@given(st.lists(st.lists(st.text(alphabet="ab\0é ", max_size=3), min_size=1, max_size=4), max_size=5, unique_by=tuple))
def test_sequences_come_with_their_tokens(sequences):
    found = imports.Found("f")
    for tokens in sequences:
        found.sequence(tokens)
    rows = imports.batch([found], [], source="s").sequences
    assert sorted(rows.get_column("tokens").to_list()) == sorted(sequences)
    assert rows.get_column("sequence_id").n_unique() == len(sequences)


@pytest.mark.parametrize("tokens", [[], None, ["a", 1], "ab", ["a", None]])
def test_what_is_no_list_of_texts_is_named_among_good_ones(tokens):
    with pytest.raises(FormError, match="of the second"):
        imports.token_lists([["a"], tokens], ["of the first", "of the second"])


@pytest.mark.parametrize("path", ["explanations/0/1.jsonl", 'odd "name" \\ é.csv'])
@pytest.mark.parametrize("reason", [None, "no JSON"])
def test_a_file_has_the_identity_of_what_is_known_of_it(path, reason):
    file = {
        "path": path,
        "sha256": "sha256:ab",
        "size": 5,
        "status": "imported",
        "reason": reason,
        "offset_in_file": None,
    }
    batch = imports.batch([], [file, file], source="s")
    assert batch.file_identities == [identity("imported_file", **file)] * 2
