"""Pieces of a layer have every row once, and all tables of a piece are of the same neurons."""

import polars as pl
import pytest

from assets import pieces as cut
from assets.pieces import pieces


def test_pieces_have_every_row_once_and_the_tables_of_their_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "NEURONS", 2)
    rows = pl.DataFrame({"neuron": [0, 0, 3, 5, 9], "text": list("abcde")})
    tables = {"exemplars": pl.DataFrame({"neuron": [0, 1, 3, 5, 5, 9]}), "sequences": pl.DataFrame({"id": ["s"]})}
    found = list(pieces(rows, tables))
    assert [some["text"].to_list() for some, _ in found] == [["a", "b", "c"], ["d", "e"]]
    assert [some["exemplars"]["neuron"].to_list() for _, some in found] == [[0, 1, 3], [5, 5, 9]]
    assert [some["sequences"]["id"].to_list() for _, some in found] == [["s"], ["s"]]


def test_no_neurons_are_one_piece_without_rows() -> None:
    rows = pl.DataFrame(schema={"neuron": pl.Int32})
    ((some, tables),) = pieces(rows, {"exemplars": pl.DataFrame({"neuron": [1]})})
    assert (len(some), len(tables["exemplars"])) == (0, 0)
