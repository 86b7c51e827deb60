"""Known keys name every file that holds one of the keys sought, and read each file once."""

from collections.abc import Sequence

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.known_keys import KnownKeys

KEYS = st.lists(st.text(max_size=2), max_size=6)


def frame(keys: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame({"id": keys}, schema={"id": pl.String})


class Files:
    """Files by name, and how often each was read."""

    def __init__(self, contents: dict[str, list[str]]) -> None:
        self.contents = contents
        self.read: list[str] = []

    def keys(self, names: Sequence[str]) -> pl.DataFrame:
        self.read.extend(names)
        return frame([key for name in names for key in self.contents[name]])


@settings(deadline=None, max_examples=30)
@given(st.lists(KEYS, max_size=9), KEYS, st.data())
def test_every_file_with_a_sought_key_is_named_whenever_it_came(
    contents: list[list[str]], sought: list[str], data: st.DataObject
) -> None:
    files = Files({f"file {place}": keys for place, keys in enumerate(contents)})
    known = KnownKeys(["id"], files.keys)
    first = data.draw(st.integers(0, len(contents)))
    for names in (list(files.contents)[:first], list(files.contents)):
        holding = [name for name in names if set(files.contents[name]) & set(sought)]
        assert known.files_with(frame(sought), names) == holding
    assert files.read == list(files.contents)


def test_where_a_file_is_gone_its_keys_are_forgotten() -> None:
    files = Files({"one": ["a", "b"], "other": ["c"]})
    known = KnownKeys(["id"], files.keys)
    assert known.files_with(frame(["a", "c"]), ["one", "other"]) == ["one", "other"]
    assert known.files_with(frame(["a", "c"]), ["other"]) == ["other"]
