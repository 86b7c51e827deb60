"""Summary: how far each layer has come, how well its neurons are explained, and what could not be said of them."""

from collections.abc import Mapping, Sequence

import polars as pl

REASONED = ("explanations", "simulations", "judgements", "ablations", "scores")
"""Tables of whose rows some have no value, and say why."""

MAIN = (pl.col("scorer") == "ev_correlation") & (pl.col("split") == "top_and_random")
"""The score that is meant when nothing else is said: correlation over the strongest and the random sequences."""


def by_layer(statistics: pl.DataFrame, explanations: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """One row for each layer: neurons captured, dead, explained, scored, and the median score of each method."""
    main = scores.filter(MAIN)
    frame = (
        statistics.group_by("layer")
        .agg(pl.len().alias("captured"), pl.col("dead").sum().alias("dead"))
        .join(_neurons(explanations.filter(pl.col("text").is_not_null()), "explained"), on="layer", how="left")
        .join(_neurons(main.filter(pl.col("value").is_not_null()), "scored"), on="layer", how="left")
        .with_columns(pl.col("explained", "scored").fill_null(0))
    )
    for method in main.get_column("method").unique().sort():
        medians = (
            main.filter(pl.col("method") == method)
            .group_by("layer")
            .agg(pl.col("value").median().alias(f"{method} median"))
        )
        frame = frame.join(medians, on="layer", how="left")
    return frame.sort("layer")


def without_value(tables: Mapping[str, pl.LazyFrame], *, layers: Sequence[int]) -> pl.DataFrame:
    """Of each table of `REASONED` and each of these layers, how many rows have no value for each reason, of how many.

    Columns `table`, `layer`, `missing_because`, `rows`, `of`; nothing where every row has its value.
    """
    counts = [
        rows.filter(pl.col("layer").is_in(layers))
        .group_by("layer", "missing_because")
        .agg(pl.len().cast(pl.Int64).alias("rows"))
        .with_columns(pl.lit(table).alias("table"), pl.col("rows").sum().over("layer").alias("of"))
        for table, rows in tables.items()
    ]
    return (
        pl.concat(counts)
        .filter(pl.col("missing_because").is_not_null())
        .select("table", "layer", "missing_because", "rows", "of")
        .collect()
        .sort("table", "layer", "rows", "missing_because", descending=[False, False, True, False])
    )


def distribution(scores: pl.DataFrame, method: str, *, bins: int = 20) -> tuple[list[int], int]:
    """How many neurons of one method have a main score in each of `bins` equal bins from 0 to 1, and how many below 0."""
    values = scores.filter(MAIN & (pl.col("method") == method)).get_column("value").drop_nulls()
    at = (values.filter(values >= 0) * bins).floor().clip(0, bins - 1).cast(pl.Int32)
    counts = dict(at.value_counts().iter_rows())
    return [counts.get(index, 0) for index in range(bins)], int((values < 0).sum())


def best(scores: pl.DataFrame, explanations: pl.DataFrame, *, count: int = 3) -> pl.DataFrame:
    """The best-explained neurons by the main score, each once, with their explanation."""
    return (
        scores.filter(MAIN & pl.col("value").is_not_null())
        .sort("value", "layer", "neuron", descending=[True, False, False])
        .unique(["layer", "neuron", "polarity"], keep="first", maintain_order=True)
        .head(count)
        .join(
            explanations.select("layer", "explanation_id", "text"),
            on=["layer", "explanation_id"],
            how="left",
            maintain_order="left",
        )
    )


def _neurons(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    return rows.group_by("layer").agg(pl.col("neuron").n_unique().alias(name))
