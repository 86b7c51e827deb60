"""Activations: the records worth keeping of each neuron, and its statistics, as tables.

`pipeline.capture` decides what survives the stream; here it becomes rows. A record is one neuron on one sequence:

    top       the strongest windows of the corpus (rank 0 to 19), then those that complete five for each split
    random    five windows of each split, drawn before the run
    q0 .. q4  windows whose maximum lies between two quantiles of the window maxima of that neuron
"""

import math
from collections.abc import Iterable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.capture import LayerCapture, Plan, Records
from pipeline.provenance import identities, list_hashes
from pipeline.tables import SPLITS

QUANTILES = (0.5, 0.9, 0.99, 0.999)
"""Where the strata q0 to q4 meet (Bills et al. 2023, neuron viewer)."""

PER_STRATUM = 4
"""Records kept of each of q0 to q4."""


def activations(capture: LayerCapture, plan: Plan, sequences: pl.DataFrame, *, fingerprint: str) -> pl.DataFrame:
    """The `activations` rows of one layer, without `run_id`. `sequences` is the table that the plan was made from."""
    frames: list[pl.DataFrame] = []
    boundaries = quantile_boundaries(capture)
    random = _concatenated([capture.random[split].records(plan) for split in SPLITS])
    for polarity, groups in capture.strongest.items():
        kept = {name: slots.records(plan) for name, slots in groups.items()}
        frames.append(_rows(_top(kept["top"], [kept[split] for split in SPLITS]), polarity, "top", plan))
        drawn = random
        if polarity == "-":
            drawn = Records(random.neuron, random.window, _lowest(random, plan), random.activations)
        frames.append(_rows(drawn, polarity, "random", plan))
        frames.extend(
            _rows(stratum, polarity, f"q{index}", plan)
            for index, stratum in enumerate(_strata(capture, plan, kept, boundaries[polarity]))
        )
    ids = sequences.sort("sequence_id").select("sequence_id", "identity").with_row_index("window")
    rows = (
        pl.concat(frames)
        .sort("neuron", "polarity", "stratum", "peak", "window", descending=[False, False, False, True, False])
        .with_columns(
            pl.lit(capture.layer, pl.Int32).alias("layer"),
            pl.int_range(pl.len(), dtype=pl.Int32).over("neuron", "polarity", "stratum").alias("rank"),
        )
        .join(ids.with_columns(pl.col("window").cast(pl.Int64)), on="window", how="left", maintain_order="left")
    )
    made_from = rows.select(
        "layer", "neuron", "polarity", "stratum", "rank", pl.col("identity").alias("sequence")
    ).with_columns(pl.Series("activations", list_hashes(rows.get_column("activations"))))
    return rows.drop("window").with_columns(
        pl.when(pl.col("polarity") == "-").then(-pl.col("peak")).otherwise(pl.col("peak")).alias("peak"),
        pl.Series("identity", identities("activations", made_from, fingerprint=fingerprint)),
    )


def statistics(capture: LayerCapture, plan: Plan, *, fingerprint: str, corpus: str) -> pl.DataFrame:
    """The `neuron_statistics` rows of one layer, without `run_id`. `corpus` is the content hash of `sequences`.

    Moments are population moments over every token of every window. Skewness is m3 / m2**1.5 and kurtosis
    m4 / m2**2 with m the mean central powers, as scipy.stats gives them with `bias=True` and `fisher=False`.
    The histogram counts the tokens of a sample of the windows, all of them in a small corpus; its bins lie between
    `pipeline.capture.HISTOGRAM_EDGES`.
    """
    n = capture.count
    mean, variance, third, fourth = capture.moments()
    # A constant neuron's variance is rounding noise, not a number to divide by.
    constant = capture.maximum == capture.minimum
    size = np.maximum(np.abs(capture.minimum), np.abs(capture.maximum)).astype(np.float64)
    # So far from zero, what the sums about zero leave of the higher moments is rounding noise.
    hidden = constant | (variance <= np.ldexp(size**2, -24))
    safe = np.where(hidden, 1.0, variance)
    silent = (capture.maximum <= 0) & ((capture.minimum >= 0) | (not capture.signed))
    neurons = capture.n_neurons
    frame = pl.DataFrame(
        {
            "layer": np.full(neurons, capture.layer, dtype=np.int32),
            "neuron": np.arange(neurons, dtype=np.int32),
            "count": np.full(neurons, n, dtype=np.int64),
            "mean": mean,
            "variance": np.where(constant, 0.0, np.maximum(variance, 0.0)),
            "skewness": third / safe**1.5,
            "kurtosis": fourth / safe**2,
            "minimum": capture.minimum,
            "maximum": capture.maximum,
            "fraction_positive": capture.positive / n,
            "histogram": pl.Series(capture.histogram.sum(axis=0)).arr.to_list(),
            "quantile_boundaries": pl.Series(quantile_boundaries(capture)["+"]).arr.to_list(),
            "dead": silent,
            "n_sequences": np.full(neurons, plan.n_windows, dtype=np.int32),
            "n_tokens": np.full(neurons, n, dtype=np.int64),
        }
    ).with_columns(
        pl.when(pl.Series(hidden)).then(None).otherwise(pl.col(name)).alias(name) for name in ("skewness", "kurtosis")
    )
    made_from = frame.select("layer", "neuron")
    return frame.with_columns(
        pl.Series("identity", identities("neuron_statistics", made_from, fingerprint=fingerprint, corpus=corpus))
    )


def quantile_boundaries(capture: LayerCapture) -> dict[str, NDArray[np.float32]]:
    """For each polarity, the QUANTILES of the window maxima: (neuron, quantile), by linear interpolation.

    Exact for a corpus of at most MAXIMA windows. Of a larger one, a quantile is that of the largest sample of its
    windows whose kept ones reach down to it: all windows, a nested sample, or the thousand whose maxima are all kept.
    """
    return {
        polarity: np.stack(
            [_quantile(capture, polarity, quantile) for quantile in QUANTILES],
            axis=1,
        )
        for polarity in capture.maxima
    }


def _quantile(capture: LayerCapture, polarity: str, quantile: float) -> NDArray[np.float32]:
    groups = capture.strongest[polarity]
    samples = {0: groups["top"].peaks, **{level: groups[str(level)].peaks for level in capture.levels}}
    reaching = {
        size: peaks
        for level, peaks in samples.items()
        if (1 - quantile) * ((size := capture.sample_size(level)) - 1) <= peaks.shape[1] - 1
    }
    largest = max(reaching, default=0)
    if len(capture.maxima_ids) >= min(largest, len(capture.ids)):
        return np.asarray(np.quantile(capture.maxima[polarity], (quantile,), axis=0)[0], dtype=np.float32)
    rank = (1 - quantile) * (largest - 1)
    above, below = (reaching[largest][:, index].astype(np.float64) for index in (int(rank), math.ceil(rank)))
    return np.asarray(above + (below - above) * (rank - int(rank)), dtype=np.float32)


def _top(overall: Records, by_split: Iterable[Records]) -> Records:
    """The strongest of the corpus and of each split, each window once."""
    everything = _concatenated([overall, *by_split])
    pairs = np.stack([everything.neuron, everything.window])
    _, first = np.unique(pairs, axis=1, return_index=True)
    return _chosen(everything, np.sort(first))


def _strata(
    capture: LayerCapture, plan: Plan, kept: dict[str, Records], boundaries: NDArray[np.float32]
) -> list[Records]:
    """Up to PER_STRATUM windows of each neuron between each two neighbouring quantiles.

    `kept` holds the strongest windows of all windows (`top`), and of one in 4, one in 16, ... (`1`, `2`). A stratum is
    read from the largest sample whose kept windows reach down to its lower boundary: there every window of the stratum
    that the sample holds was kept, so a draw among them is a fair one.
    """
    neurons = len(boundaries)
    lower = np.concatenate([np.full((neurons, 1), -np.inf), boundaries], axis=1)
    upper = np.concatenate([boundaries, np.full((neurons, 1), np.inf)], axis=1)
    nested = [kept["top"], *(kept[str(level)] for level in capture.levels)]
    reach = np.full((len(nested), neurons), np.inf)
    for sample, (level, records) in enumerate(zip((0, *capture.levels), nested, strict=True)):
        np.minimum.at(reach[sample], records.neuron, records.peak)
        if capture.sample_size(level) * neurons == len(records.neuron):
            reach[sample] = -np.inf
    strata: list[Records] = []
    for index in range(lower.shape[1]):
        # Of windows equal to the weakest that was kept, some were not.
        covered = (reach < lower[:, index]) | (reach == -np.inf)
        sample_of = np.where(covered.any(axis=0), covered.argmax(axis=0), len(nested) - 1)
        pieces: list[Records] = []
        for sample, records in enumerate(nested):
            at = records.neuron
            inside = (sample_of[at] == sample) & (records.peak >= lower[at, index]) & (records.peak < upper[at, index])
            pieces.append(_chosen(records, np.flatnonzero(inside)))
        candidates = _concatenated(pieces)
        order = np.lexsort((capture.priorities(plan.ids[candidates.window], candidates.neuron), candidates.neuron))
        drawn = _position_in_group(candidates.neuron[order]) < PER_STRATUM
        strata.append(_chosen(candidates, order[drawn]))
    return strata


def _rows(records: Records, polarity: str, stratum: str, plan: Plan) -> pl.DataFrame:
    lengths = np.asarray([len(tokens) for tokens in plan.tokens], dtype=np.int64)[records.window]
    activations = pl.Series(records.activations, dtype=pl.Array(pl.Float32, records.activations.shape[1])).arr.to_list()
    signed = records.activations if polarity == "+" else -records.activations
    position = np.arange(records.activations.shape[1])
    shown = np.where(position < lengths[:, None], signed, -np.inf)
    return pl.DataFrame(
        {
            "neuron": records.neuron.astype(np.int32),
            "window": records.window,
            "peak": records.peak,
            "peak_token": shown.argmax(axis=1).astype(np.int32) if len(shown) else np.empty(0, np.int32),
            "activations": activations,
        }
    ).with_columns(
        pl.lit(polarity).alias("polarity"),
        pl.lit(stratum).alias("stratum"),
        pl.col("activations").list.head(pl.lit(pl.Series(lengths))),
    )


def _lowest(records: Records, plan: Plan) -> NDArray[np.float32]:
    """The peak of each record in polarity `-`: the maximum of -x over the window."""
    lengths = np.asarray([len(tokens) for tokens in plan.tokens])[records.window]
    position = np.arange(records.activations.shape[1])
    shown = np.where(position < lengths[:, None], -records.activations, -np.inf)
    return np.asarray(shown.max(axis=1), dtype=np.float32)


def _chosen(records: Records, index: NDArray[np.int64]) -> Records:
    return Records(records.neuron[index], records.window[index], records.peak[index], records.activations[index])


def _concatenated(pieces: list[Records]) -> Records:
    width = max(piece.activations.shape[1] for piece in pieces)
    return Records(
        neuron=np.concatenate([piece.neuron for piece in pieces]),
        window=np.concatenate([piece.window for piece in pieces]),
        peak=np.concatenate([piece.peak for piece in pieces]),
        activations=np.concatenate(
            [np.pad(piece.activations, ((0, 0), (0, width - piece.activations.shape[1]))) for piece in pieces]
        ),
    )


def _position_in_group(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each entry of a sorted array, how many equal entries stand before it."""
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]])) if len(groups) else groups
    return np.arange(len(groups)) - np.repeat(starts, np.diff([*starts, len(groups)]))
