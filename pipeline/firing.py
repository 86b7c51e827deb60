"""Firing: how strongly neurons act on one text, against what they did on the corpus.

    share    strongest activation on the text over the strongest on the corpus, on one side of zero; 1 is as much
    z        strongest activation on the text less the mean over all tokens of the corpus, in standard deviations
    rarity   which share of the corpus's windows reach as much: at most 0.5, 0.1, 0.01 or 0.001; positive side only

A longer text reaches more of all three by chance: `z` is about single tokens, `rarity` about windows of the corpus.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.activations import QUANTILES

HALF = 0.5
"""From this share on a neuron counts as firing at a token."""
EACH = 3
"""Neurons named at each token."""
SORTS = ("share", "z")


@dataclass(frozen=True)
class Fired:
    """What one layer did on one text."""

    neurons: pl.DataFrame
    """A row for each neuron and side: `neuron`, `polarity`, `peak`, `token`, and `share`, `z`, `rarity`, null where undefined."""
    counts: NDArray[np.int64]
    """For each token, how many neurons reach half of the strongest that they did on the corpus."""
    strongest: NDArray[np.int32]
    """(token, EACH): rows of `neurons` with the largest share at the token, the largest first; -1 where there is none."""
    shares: NDArray[np.float32]
    """(token, EACH): their shares."""


def fired(values: NDArray[np.float32], statistics: pl.DataFrame, *, signed: bool) -> Fired:
    """How one layer's `values`, (token, neuron) in units of the neuron, stand to the `neuron_statistics` of its neurons.

    `statistics` may lack neurons; those are left out. A neuron that was silent on the corpus on a side has no share there.
    """
    known = statistics.sort("neuron")
    places = known.get_column("neuron").to_numpy()
    values = values[:, places]
    sides, shares = [], []
    for polarity, sign in (("+", 1.0), ("-", -1.0)) if signed else (("+", 1.0),):
        most = np.maximum(0.0, sign * _column(known, "maximum" if polarity == "+" else "minimum"))
        at = np.argmax(sign * values, axis=0)
        peak = values[at, np.arange(values.shape[1])].astype(np.float64)
        alive, varies = most > 0, _column(known, "variance") > 0
        share = np.divide(sign * peak, most, out=np.full(len(most), np.nan), where=alive)
        spread = np.sqrt(np.where(varies, _column(known, "variance"), 1.0))
        z = np.where(varies, sign * (peak - _column(known, "mean")) / spread, np.nan)
        sides.append(pl.DataFrame({
            "neuron": places.astype(np.int32), "polarity": [polarity] * len(places), "peak": peak, "token": at.astype(np.int32),
            "share": share, "z": z, "rarity": _rarity(peak, known) if polarity == "+" else np.full(len(most), np.nan),
        }))  # fmt: skip
        each = np.full(values.shape, -np.inf, dtype=np.float32)
        np.divide(sign * values, most.astype(np.float32), out=each, where=alive)
        shares.append(each)
    every = np.concatenate(shares, axis=1)
    order = np.argsort(-every, axis=1, kind="stable")[:, :EACH].astype(np.int32)
    best = np.take_along_axis(every, order, axis=1)
    return Fired(
        pl.concat(sides).with_columns(pl.col("share", "z", "rarity").fill_nan(None)),
        (every >= HALF).sum(axis=1),
        np.where(best > 0, order, -1),
        best,
    )


def _column(statistics: pl.DataFrame, name: str) -> NDArray[np.float64]:
    return statistics.get_column(name).cast(pl.Float64).to_numpy()


def _rarity(peak: NDArray[np.float64], statistics: pl.DataFrame) -> NDArray[np.float64]:
    bounds = statistics.get_column("quantile_boundaries").to_list()
    found = np.full(len(peak), np.nan)
    for place, quantile in enumerate(QUANTILES):
        bound = np.array([row[place] if len(row) > place else np.inf for row in bounds], dtype=np.float64)
        found[peak > bound] = round(1 - quantile, 3)
    return found
