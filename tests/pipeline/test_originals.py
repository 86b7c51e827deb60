"""Originals: files in parts, and rows held against what the files say."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import originals
from pipeline.errors import LakeError
from pipeline.imports import file_hash
from pipeline.tables import TABLES


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(1, 9))
def test_files_come_back_from_their_parts_in_any_order_each_once(files, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(originals, "PART", size)
        parts = [part for data in files for part in originals.parts(file_hash(data), data)]
        assert [originals.n_parts(len(data)) for data in set(files)] == [
            sum(part[0] == file_hash(data) for part in set(parts)) for data in set(files)
        ]
    rows = originals.frame(parts).reverse()
    assert originals.whole(rows) == {file_hash(data): data for data in files}


def test_a_file_that_lacks_a_part_or_has_another_byte_is_none(monkeypatch):
    monkeypatch.setattr(originals, "PART", 2)
    rows = originals.frame(list(originals.parts(file_hash(b"abcde"), b"abcde")))
    assert originals.whole(rows.filter(pl.col("part") != 1)) == {}
    assert originals.whole(rows.with_columns(pl.lit(b"ab", pl.Binary).alias("content"))) == {}


def test_the_list_of_files_is_known_by_its_hash_whatever_their_order():
    files = [("b.csv", "sha256:1"), ("a/é.csv", "sha256:2")]
    name, data = originals.listing(files)
    assert originals.listing(files[::-1]) == (name, data)
    assert name == file_hash(data)
    assert originals.listed(data) == sorted(files)


@pytest.mark.parametrize("path", ["../a", "/etc/passwd", "a/../../b", "a\0b"])
def test_a_list_with_a_path_that_leaves_the_folder_is_refused(path):
    with pytest.raises(LakeError, match="leaves its folder"):
        originals.listed(originals.listing([(path, "sha256:1")])[1])


def test_what_is_no_list_is_refused():
    with pytest.raises(LakeError, match="cannot be read"):
        originals.listed(b'[["a"]]')


def sequences(**tokens):
    return pl.DataFrame(
        [{"sequence_id": name, "tokens": list(said), "identity": f"i{name}"} for name, said in tokens.items()],
        schema={name: TABLES["imported_sequences"].schema[name] for name in ("sequence_id", "tokens", "identity")},
    )


@pytest.mark.parametrize(
    ("stored", "again", "found"),
    [
        ({"a": "xy", "b": "z"}, {"a": "xy"}, {}),
        ({"a": "xy"}, {"a": "xy", "b": "z"}, {"are missing": 1}),
        ({"a": "xy", "b": "z"}, {"b": "y", "a": "xy"}, {"have other values": 1}),
        ({}, {"a": "x", "b": "x"}, {"are missing": 2}),
    ],
)
def test_rows_are_told_that_are_missing_or_have_other_values(stored, again, found):
    assert originals.differences("imported_sequences", sequences(**stored), sequences(**again)) == found
