"""Contrast: quiet records, texts on which a neuron is nowhere clearly active although they hold tokens that it likes.

They show an explainer what its neuron does not follow. Delphi's hard negatives are texts of neurons alike; ours are the
neuron's own, from records that were kept anyway (the random ones and those of low quantiles), so that they cost no pass.
Only documents of split `explain` are looked at: those may be shown.
"""

import polars as pl

from pipeline.scale import scale

QUIET = 5
"""Quiet records chosen for a neuron."""

AT = ["layer", "neuron", "polarity"]


def quiet(records: pl.DataFrame, exemplars: pl.DataFrame, sequences: pl.DataFrame, *, clearly: int) -> pl.DataFrame:
    """At most five quiet records of each neuron that has exemplars: `AT`, `sequence_id` and `identity`, hardest first.

    `records`, `exemplars` and `sequences` are rows of `activations`, `exemplars` and `sequences`. A record is quiet if
    its peak is below `clearly` on the scale of the exemplars that are shown. The hardest holds the tokens on which these
    are most active, each counted by its strongest activation; of equally hard ones the lower sequence goes first.
    """
    shown = exemplars.filter(pl.col("split") == "explain")
    maxima = shown.group_by(AT).agg(pl.col("scale_maximum").first())
    texts = sequences.filter(pl.col("split") == "explain").select("sequence_id", "token_ids")
    unshown = (
        records.join(maxima, on=AT)
        .join(texts, on="sequence_id")
        .join(shown, on=[*AT, "sequence_id"], how="anti")
        # One sequence can be in several strata.
        .sort(*AT, "sequence_id", "stratum")
        .unique([*AT, "sequence_id"], keep="first", maintain_order=True)
        .with_columns(strength=pl.when(pl.col("polarity") == "-").then(-pl.col("peak")).otherwise(pl.col("peak")))
    )
    peaks = scale(
        unshown.get_column("strength").cast(pl.Float64).to_numpy(),
        unshown.get_column("scale_maximum").cast(pl.Float64).to_numpy(),
    )
    found = unshown.filter(pl.Series(peaks < clearly, dtype=pl.Boolean))
    liked = (
        shown.select(*AT, "token_ids", "scaled_activations")
        .explode("token_ids", "scaled_activations")
        .filter(pl.col("scaled_activations") >= clearly)
        .group_by(*AT, pl.col("token_ids").alias("token"))
        .agg(pl.col("scaled_activations").max().cast(pl.Int64))
    )
    shared = (
        found.select(*AT, "sequence_id", pl.col("token_ids").alias("token"))
        .explode("token")
        .unique()
        .join(liked, on=[*AT, "token"])
        .group_by(*AT, "sequence_id")
        .agg(shared=pl.col("scaled_activations").sum())
    )
    return (
        found.join(shared, on=[*AT, "sequence_id"], how="left")
        .with_columns(pl.col("shared").fill_null(0))
        .sort(*AT, "shared", "sequence_id", descending=[False, False, False, True, False])
        .group_by(AT, maintain_order=True)
        .head(QUIET)
        .select(*AT, "sequence_id", "identity")
    )
