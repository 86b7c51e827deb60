"""Exemplars: the records to show to an explainer, and those to score its explanation on, from different documents.

Bills et al. 2023 take 20 top records in turn for four splits, which puts text of one document on both sides. Here a
document belongs to one split, and each split has its own strongest records: five to explain; five top and five
random ones to score.
"""

from collections.abc import Collection

import polars as pl

from pipeline.capture import PER_SPLIT
from pipeline.provenance import identities, list_hashes, short
from pipeline.scale import scale

SHOWN = ("explain",)
SCORED = ("score",)


def exemplars(records: pl.DataFrame, sequences: pl.DataFrame, *, scored: Collection[str] = SCORED) -> pl.DataFrame:
    """The `exemplars` rows for the neurons in `records` (rows of `activations`), without `run_id`.

    `scored` are the splits of which top and random records are taken beside those that are shown.

    `scale_maximum` is the strongest activation among the records shown to the explainer, so that 10 on the scale is
    what the explainer sees as 10 (Bills et al. 2023, code; the paper says the strongest ever observed). Scored
    records use the same maximum, and cannot exceed 10.
    """
    texts = sequences.select("sequence_id", "split", "token_ids", pl.col("identity").alias("sequence"))
    rows = (
        records.filter(pl.col("stratum").is_in(["top", "random"]))
        .select("layer", "neuron", "polarity", "stratum", "sequence_id", "peak", "activations")
        .join(texts, on="sequence_id", how="inner")
        .filter((pl.col("split").is_in(SHOWN) & (pl.col("stratum") == "top")) | pl.col("split").is_in(scored))
        .with_columns(pl.when(pl.col("polarity") == "-").then(-pl.col("peak")).otherwise(pl.col("peak")).alias("peak"))
        .sort(
            "neuron",
            "polarity",
            "split",
            "stratum",
            "peak",
            "sequence_id",
            descending=[False, False, False, False, True, False],
        )
        .with_columns(
            pl.int_range(pl.len(), dtype=pl.Int32).over("layer", "neuron", "polarity", "split", "stratum").alias("rank")
        )
        .filter(pl.col("rank") < PER_SPLIT)
    )
    # Of the activations as they are shown, so that the strongest of them is 10.
    strongest = (
        pl.when(pl.col("polarity") == "-")
        .then(-pl.col("activations").list.min())
        .otherwise(pl.col("activations").list.max())
    )
    shown = pl.when(pl.col("split").is_in(SHOWN)).then(strongest).max().clip(0.0)
    rows = rows.with_columns(
        shown.over("layer", "neuron", "polarity").fill_null(0.0).cast(pl.Float32).alias("scale_maximum")
    )
    rows = rows.with_columns(_scaled(rows).alias("scaled_activations"))
    made_from = rows.select("layer", "neuron", "polarity", "split", "stratum", "rank", "sequence").with_columns(
        pl.Series("activations", list_hashes(rows.get_column("activations")), dtype=pl.String),
        pl.Series("scaled", list_hashes(rows.get_column("scaled_activations")), dtype=pl.String),
    )
    made = identities("exemplar", made_from)
    return rows.drop("sequence", "peak").with_columns(
        pl.Series("exemplar_id", [short(identity) for identity in made], dtype=pl.String),
        pl.Series("identity", made, dtype=pl.String),
    )


def _scaled(rows: pl.DataFrame) -> pl.Series:
    lengths = rows.get_column("activations").list.len()
    flat = rows.select(
        pl.int_range(pl.len()).alias("row"),
        pl.when(pl.col("polarity") == "-").then(-1.0).otherwise(1.0).alias("sign"),
        pl.col("scale_maximum"),
        "activations",
    ).explode("activations")
    steps = scale(
        flat.get_column("activations").cast(pl.Float64).to_numpy() * flat.get_column("sign").to_numpy(),
        flat.get_column("scale_maximum").cast(pl.Float64).to_numpy(),
    )
    return relisted(pl.Series(steps), lengths)


def relisted(flat: pl.Series, lengths: pl.Series) -> pl.Series:
    """A flat column cut into lists of the given lengths, all of them at least 1."""
    row = pl.select(pl.int_range(len(lengths)).repeat_by(pl.lit(lengths)).explode()).to_series()
    return (
        pl.DataFrame({"row": row, "value": flat}).group_by("row", maintain_order=True).agg("value").get_column("value")
    )
