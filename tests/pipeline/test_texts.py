"""Texts: tokens as people see them."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from pipeline.texts import display, token_texts


def windows(*rows):
    return pl.DataFrame(
        rows,
        schema={"sequence_id": pl.String, "token_ids": pl.List(pl.Int32), "token_bytes": pl.List(pl.Binary)},
        orient="row",
    )


@given(st.lists(st.text(max_size=4), min_size=1, max_size=5))
def test_whole_characters_show_as_they_are(texts):
    pieces = [text.encode() for text in texts]
    assert display(windows(("s", list(range(len(texts))), pieces))) == {"s": texts}


def test_half_a_character_shows_as_a_replacement_in_its_own_token():
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert display(windows(("s", [1, 2], [b"caf" + first, second + b"\n"]))) == {"s": ["caf\ufffd", "\ufffd\n"]}


def test_a_token_looks_as_it_does_in_the_lowest_sequence_that_has_it():
    rows = (("b", [1, 2], [b"B1", b"B2"]), ("a", [2, 2, 3], [b"A2", b"other", b"\xff"]))
    assert token_texts(windows(*rows)) == token_texts(windows(*rows[::-1])) == {1: "B1", 2: "A2", 3: "\ufffd"}


def test_no_sequences_have_no_texts():
    assert display(windows()) == token_texts(windows()) == {}
