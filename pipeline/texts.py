"""Texts: how tokens look to people and to language models. The truth stays with token ids and bytes.

A piece of text covers one token, white space in front of it included. Bytes that are no whole character (a token may
end inside one) show as U+FFFD.
"""

import polars as pl


def display(sequences: pl.DataFrame) -> dict[str, list[str]]:
    """The display string of each token, by sequence id."""
    return {
        sequence_id: [piece.decode("utf-8", errors="replace") for piece in pieces]
        for sequence_id, pieces in sequences.select("sequence_id", "token_bytes").iter_rows()
    }


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
