"""Likeness: which neurons are alike, by what the lake keeps of them.

together    they have strongest windows in common, and peak there at the same token. The lake keeps no joint activations,
            so this is co-activation where both are strongest, and says nothing of the rest
by weights  cosine of the strengths with which they are joined to tokens, input and output apart, over the tokens
            that `connections` keeps of each (at most 50 of each sign); what is not kept counts as 0
"""

import polars as pl

AT = ["layer", "neuron", "polarity"]


def together(records: pl.DataFrame, mine: pl.DataFrame) -> pl.DataFrame:
    """Neurons whose strongest windows are those of `mine`: a row for each and side, with `windows` and `peaks` in common.

    Both are rows of stratum `top` with `sequence_id` and `peak_token`, `records` also with layer, neuron and polarity;
    `mine` is one neuron's on one side. Sorted by peaks, then windows in common.
    """
    theirs = records.select(*AT, "sequence_id", "peak_token").unique([*AT, "sequence_id"], maintain_order=True)
    own = mine.select("sequence_id", pl.col("peak_token").alias("own")).unique("sequence_id", maintain_order=True)
    found = theirs.join(own, on="sequence_id", how="inner")
    return (
        found.group_by(AT)
        .agg(pl.len().cast(pl.Int32).alias("windows"), (pl.col("peak_token") == pl.col("own")).sum().cast(pl.Int32).alias("peaks"))
        .sort("peaks", "windows", *AT, descending=[True, True, False, False, False])
    )  # fmt: skip


def by_weights(connections: pl.DataFrame, mine: pl.DataFrame, side: str) -> pl.DataFrame | None:
    """Neurons joined to the same tokens: layer, neuron and `cosine`, the likest first; None if `mine` has no such joints.

    `side` is `input` or `output`. Both frames are rows of `connections`; `mine` is one.
    """
    own = _joints(mine, side)
    if own.is_empty():
        return None
    known = _joints(connections, side)
    lengths = known.group_by("layer", "neuron").agg((pl.col("strength") ** 2).sum().sqrt().alias("length"))
    mine_length = float((own.get_column("strength") ** 2).sum()) ** 0.5
    found = known.join(own.select("token", pl.col("strength").alias("own")), on="token", how="inner")
    return (
        found.group_by("layer", "neuron")
        .agg((pl.col("strength") * pl.col("own")).sum().alias("product"))
        .join(lengths, on=["layer", "neuron"])
        .with_columns((pl.col("product") / (pl.col("length") * mine_length)).alias("cosine"))
        .select("layer", "neuron", "cosine")
        .sort("cosine", "layer", "neuron", descending=[True, False, False])
    )


def _joints(connections: pl.DataFrame, side: str) -> pl.DataFrame:
    """A row for each token that each neuron is joined to, with the strength."""
    parts = []
    for sign in ("positive", "negative"):
        tokens, strengths = f"{side}_{sign}_token_ids", f"{side}_{sign}_strengths"
        rows = connections.select("layer", "neuron", tokens, strengths).drop_nulls()
        rows = rows.filter(pl.col(tokens).list.len() > 0).explode(tokens, strengths)
        parts.append(rows.rename({tokens: "token", strengths: "strength"}).cast({"strength": pl.Float64}))
    return pl.concat(parts)
