"""Texts: how tokens look to people and to language models. The truth stays with token ids and bytes.

A piece of text covers one token, white space in front of it included. Bytes that are no whole character (a token may
end inside one) show as U+FFFD.
"""

from collections.abc import Iterator, Mapping

import polars as pl


class Texts(Mapping[str, list[str]]):
    """The display string of each token, by sequence id, made when it is asked for: as strings a corpus takes much room."""

    def __init__(self, sequences: pl.DataFrame) -> None:
        self._pieces = sequences.get_column("token_bytes")
        self._places = {sequence: place for place, sequence in enumerate(sequences.get_column("sequence_id"))}

    def __getitem__(self, sequence_id: str) -> list[str]:
        return [piece.decode("utf-8", errors="replace") for piece in self._pieces[self._places[sequence_id]]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def display(sequences: pl.DataFrame) -> Texts:
    """The display string of each token, by sequence id."""
    return Texts(sequences)


def token_texts(sequences: pl.DataFrame) -> dict[int, str]:
    """How each token of the corpus looks where it first occurs, in the order of sequence ids."""
    first = (
        sequences.sort("sequence_id")
        .select("token_ids", "token_bytes")
        .explode("token_ids", "token_bytes")
        .unique("token_ids", keep="first", maintain_order=True)
    )
    return {token: piece.decode("utf-8", errors="replace") for token, piece in first.iter_rows() if token is not None}


def spelled(vocabulary: pl.DataFrame) -> dict[int, str]:
    """How each token of the vocabulary looks by itself; "" for one that the tokenizer does not know."""
    return {
        token: piece.decode("utf-8", errors="replace")
        for token, piece in vocabulary.select("token_id", "bytes").iter_rows()
    }
