"""Meaning: explanations as vectors, so that those that mean alike are near each other, whatever words they use.

The vectors are an encoder's, brought to length 1, so that the cosine of two is their product. An embedding is made from its
text and its encoder alone: the same text has the same identity wherever it stands, and is embedded once.
"""

import json
from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.ports import Vector
from pipeline.provenance import content_hash, identities
from pipeline.tables import explanation_embeddings as table

AT = ["layer", "neuron", "polarity", "explanation_id"]


def wanted(explanations: pl.DataFrame, *, fingerprint: str) -> pl.DataFrame:
    """A row for each explanation that says something: its place, `text`, and the `identity` of its embedding."""
    said = explanations.filter(pl.col("text").is_not_null() & (pl.col("text").str.strip_chars() != ""))
    rows = said.select(*AT, "text")
    hashes = {text: content_hash(text) for text in rows.get_column("text").unique()}
    made_from = pl.DataFrame({"text": [hashes[text] for text in rows.get_column("text")]}, schema={"text": pl.String})
    named = identities("explanation_embedding", made_from, encoder=fingerprint)
    return rows.with_columns(pl.Series("identity", named, dtype=pl.String))


def unknown(rows: pl.DataFrame, known: pl.DataFrame) -> list[str]:
    """The texts of `wanted` rows whose embedding is not among the `known` rows of the table, each once, in their order."""
    have = known.filter(pl.col("vector").is_not_null()).select("identity").unique()
    return (
        rows.join(have, on="identity", how="anti", maintain_order="left")
        .get_column("text")
        .unique(maintain_order=True)
        .to_list()
    )


def rows(
    said: pl.DataFrame, known: pl.DataFrame, found: Mapping[str, Vector], *, encoder: str, fingerprint: str
) -> pl.DataFrame:
    """Rows of `explanation_embeddings`, without `run_id`: those `known`, and for the other texts what was `found`."""
    have = (
        known.filter(pl.col("vector").is_not_null())
        .select("identity", "vector", "request_id")
        .unique("identity", keep="first")
    )
    made = said.join(have, on="identity", how="left", maintain_order="left")
    vectors, reasons, asked = [], [], []
    for text, vector, request_id in made.select("text", "vector", "request_id").iter_rows():
        if vector is None:
            one = found[text]
            vectors.append(None if one.values is None else one.values.tolist())
            reasons.append(one.missing_because)
            asked.append(one.request_id)
        else:
            vectors.append(vector)
            reasons.append(None)
            asked.append(request_id)
    schema = {name: kind for name, kind in table.schema.items() if name != "run_id"}
    return made.select(*AT, "identity").with_columns(
        pl.lit(encoder, pl.String).alias("encoder"),
        pl.lit(fingerprint, pl.String).alias("fingerprint"),
        pl.Series("vector", vectors, dtype=pl.List(pl.Float32)),
        pl.Series("missing_because", reasons, dtype=pl.String),
        pl.Series("request_id", asked, dtype=pl.String),
    ).select(list(schema))  # fmt: skip


def unit(values: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """A vector of length 1 in the same direction, float32; None for one that has none."""
    wide = values.astype(np.float64)
    length = float(np.sqrt((wide * wide).sum()))
    if not np.isfinite(length) or length == 0.0:
        return None
    return np.asarray(wide / length, dtype=np.float32)


def unpacked(text: str) -> NDArray[np.float32] | None:
    """The vector of a kept reply, a JSON list of numbers; None if it is none."""
    try:
        found = np.asarray(json.loads(text), dtype=np.float32)
    except (ValueError, TypeError):
        return None
    return unit(found) if found.ndim == 1 and len(found) else None


def nearest(
    vectors: NDArray[np.float32], one: NDArray[np.float32], *, most: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of `vectors`, (row, width), with the largest cosine with `one`, the largest first, and these; ties by row."""
    cosines = vectors @ one
    n = min(most, len(cosines))
    if n < len(cosines):
        # Whatever ties with the last one that fits is looked at too, so that ties are cut by row.
        bound = np.partition(cosines, len(cosines) - n)[len(cosines) - n] if n else np.float32(np.inf)
        places = np.flatnonzero(cosines >= bound)
    else:
        places = np.arange(len(cosines))
    order = places[np.lexsort((places, -cosines[places]))][:n]
    return order, cosines[order]
