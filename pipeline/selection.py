"""Selection: which neurons of a layer a language model is asked about, a choice that is recorded with the rows.

    all                every neuron that fires
    random:50          fifty of them, drawn by a seed
    top:50:kurtosis    the fifty with the largest value of a statistic

A neuron that never fires is never chosen. `context` is what tokens alone do not tell: 1 - r**2 between a neuron's
activations on the exemplars that are shown and the mean activations of their tokens.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.errors import SettingsError

STATISTICS = ("context", "maximum", "variance", "skewness", "kurtosis", "fraction_positive")
"""What `top` may rank by: `context`, or a column of `neuron_statistics`."""


@dataclass(frozen=True)
class Selection:
    """`count` neurons of each layer: at random, or those with the largest `statistic`; all of them without a count."""

    count: int | None = None
    statistic: str | None = None


def parse(text: str) -> Selection:
    """A selection as users write it.

    Raises:
        SettingsError: the text is of none of the three forms.
    """
    match text.split(":"):
        case ["all"]:
            return Selection()
        case ["random", count] if count.isascii() and count.isdecimal() and int(count):
            return Selection(int(count))
        case ["top", count, statistic] if count.isascii() and count.isdecimal() and int(count):
            if statistic in STATISTICS:
                return Selection(int(count), statistic)
    raise SettingsError(
        f"--select (={text!r}) must be `all`, `random:50`, or `top:50:` with one of {', '.join(STATISTICS)}"
    )


def selected(
    selection: Selection,
    statistics: pl.DataFrame,
    exemplars: pl.DataFrame,
    associations: pl.DataFrame,
    *,
    layer: int,
    seed: int,
) -> set[int]:
    """The neurons of a layer that are chosen, by their index.

    `statistics`, `exemplars` and `associations` are rows of the tables `neuron_statistics`, `exemplars` and
    `token_associations`. Of equal values the lower index goes first; a neuron without the statistic is not chosen.
    """
    alive = statistics.filter(~pl.col("dead")).sort("neuron")
    neurons = alive.get_column("neuron").to_numpy()
    if selection.count is None:
        return set(neurons.tolist())
    if selection.statistic is None:
        drawn = np.random.default_rng([seed, layer]).permutation(neurons)[: selection.count]
        return set(drawn.tolist())
    if selection.statistic == "context":
        of = context(exemplars, associations)
        values = np.array([of.get(neuron, np.nan) for neuron in neurons.tolist()], dtype=np.float64)
    else:
        values = alive.get_column(selection.statistic).cast(pl.Float64).fill_null(np.nan).to_numpy()
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(-values[known], kind="stable")]
    return set(neurons[order[: selection.count]].tolist())


def context(exemplars: pl.DataFrame, associations: pl.DataFrame) -> dict[int, float]:
    """For each neuron, the share of its activations' variance that the mean activation of the token does not tell.

    Over the exemplars of split `explain`, so that no scored text takes part. Of a neuron with two sides the side that
    tokens tell least of counts. A token that the table does not hold, which is a weak one, stands at the neuron's mean.
    """
    means = (
        associations.select("neuron", "polarity", pl.col("token_ids").alias("token_id"), pl.col("means").alias("told"))
        .explode("token_id", "told", empty_as_null=False, keep_nulls=False)
        .with_columns(pl.col("token_id").cast(pl.Int32))
    )
    shown = (
        exemplars.filter(pl.col("split") == "explain")
        .select("neuron", "polarity", pl.col("token_ids").alias("token_id"), pl.col("activations").alias("true"))
        .explode("token_id", "true", empty_as_null=False, keep_nulls=False)
        .join(means, on=["neuron", "polarity", "token_id"], how="left")
        .join(associations.select("neuron", "polarity", "fallback"), on=["neuron", "polarity"], how="left")
        .with_columns(told=pl.coalesce("told", "fallback"))
    )
    sides = shown.group_by("neuron", "polarity").agg(
        pl.corr("told", "true").alias("r"), pl.col("told").std().alias("spread")
    )
    missed = sides.with_columns(
        # Where tokens tell all neurons the same, they tell nothing.
        missed=pl.when(pl.col("spread").fill_null(0) == 0).then(1.0).otherwise(1 - pl.col("r") ** 2)
    ).filter(pl.col("missed").is_finite())
    by_neuron = missed.group_by("neuron").agg(pl.col("missed").max()).sort("neuron")
    return dict(by_neuron.iter_rows())
