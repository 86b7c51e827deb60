"""Activations: the records worth keeping of each neuron, and its statistics, as tables.

`pipeline.capture` decides what survives the stream; here it becomes rows. A record is one neuron on one sequence:

    top       the strongest windows of the corpus (rank 0 to 19), then those that complete five for each split
    random    five windows of each split, drawn before the run
    q0 .. q4  windows whose maximum lies between two quantiles of the window maxima of that neuron
"""

from collections.abc import Iterable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.capture import TOP, LayerCapture, Plan, Records
from pipeline.provenance import identities, list_hashes
from pipeline.tables import SPLITS

QUANTILES = (0.5, 0.9, 0.99, 0.999)
"""Where the strata q0 to q4 meet (Bills et al. 2023, neuron viewer)."""

PER_STRATUM = 4
"""Records kept of each of q0 to q4."""


def activations(
    capture: LayerCapture, plan: Plan, sequences: pl.DataFrame, *, fingerprint: str, seed: int
) -> pl.DataFrame:
    """The `activations` rows of one layer, without `run_id`.

    `sequences` is the table that the plan was made from. `seed` chooses among windows of a quantile stratum.
    """
    frames: list[pl.DataFrame] = []
    boundaries = quantile_boundaries(capture)
    shuffled = np.random.default_rng([seed, capture.layer]).permutation(plan.n_windows)
    for polarity, groups in capture.strongest.items():
        top = _top(groups["top"], [groups[name] for name in SPLITS])
        frames.append(_rows(top, polarity, "top", plan))
        random = capture.random
        if polarity == "-":
            random = Records(random.neuron, random.window, _lowest(random, plan), random.activations)
        frames.append(_rows(random, polarity, "random", plan))
        nested = [groups["top"], *(groups[str(level)] for level in plan.levels)]
        frames.extend(
            _rows(stratum, polarity, f"q{index}", plan)
            for index, stratum in enumerate(_strata(nested, boundaries[polarity], plan, shuffled))
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
    """
    n = capture.count
    variance = capture.m2 / n
    # A constant neuron's variance is rounding noise, not a number to divide by.
    constant = capture.maximum == capture.minimum
    safe = np.where(constant | (variance <= 0), 1.0, variance)
    silent = (capture.maximum <= 0) & ((capture.minimum >= 0) | (not capture.signed))
    neurons = len(capture.mean)
    frame = pl.DataFrame(
        {
            "layer": np.full(neurons, capture.layer, dtype=np.int32),
            "neuron": np.arange(neurons, dtype=np.int32),
            "count": np.full(neurons, n, dtype=np.int64),
            "mean": capture.mean,
            "variance": np.where(constant, 0.0, variance),
            "skewness": capture.m3 / n / safe**1.5,
            "kurtosis": capture.m4 / n / safe**2,
            "minimum": capture.minimum,
            "maximum": capture.maximum,
            "fraction_positive": capture.positive / n,
            "quantile_boundaries": pl.Series(quantile_boundaries(capture)["+"]).arr.to_list(),
            "dead": silent,
            "n_sequences": np.full(neurons, plan.n_windows, dtype=np.int32),
            "n_tokens": np.full(neurons, n, dtype=np.int64),
        }
    ).with_columns(
        pl.when(pl.Series(constant)).then(None).otherwise(pl.col(name)).alias(name) for name in ("skewness", "kurtosis")
    )
    made_from = frame.select("layer", "neuron")
    return frame.with_columns(
        pl.Series("identity", identities("neuron_statistics", made_from, fingerprint=fingerprint, corpus=corpus))
    )


def quantile_boundaries(capture: LayerCapture) -> dict[str, NDArray[np.float32]]:
    """For each polarity, the QUANTILES of the window maxima: (neuron, quantile), by linear interpolation."""
    return {
        polarity: np.quantile(maxima, QUANTILES, axis=0).astype(np.float32).T.copy()
        for polarity, maxima in capture.maxima.items()
    }


def _top(overall: Records, by_split: Iterable[Records]) -> Records:
    """The strongest of the corpus and of each split, each window once."""
    everything = _concatenated([overall, *by_split])
    pairs = np.stack([everything.neuron, everything.window])
    _, first = np.unique(pairs, axis=1, return_index=True)
    return _chosen(everything, np.sort(first))


def _strata(
    nested: list[Records], boundaries: NDArray[np.float32], plan: Plan, shuffled: NDArray[np.int64]
) -> list[Records]:
    """Up to PER_STRATUM windows of each neuron between each two neighbouring quantiles.

    `nested` holds the strongest windows of all windows, then of one in 4, one in 16, ... A stratum is read from the
    largest sample whose kept windows reach down to its lower boundary: there every window of the stratum that the
    sample holds was kept, so a draw among them is a fair one.
    """
    neurons = len(boundaries)
    lower = np.concatenate([np.full((neurons, 1), -np.inf), boundaries], axis=1)
    upper = np.concatenate([boundaries, np.full((neurons, 1), np.inf)], axis=1)
    sizes = [plan.n_windows, *(int((plan.level >= level).sum()) for level in plan.levels)]
    reach = np.full((len(nested), neurons), np.inf)
    for sample, (records, size) in enumerate(zip(nested, sizes, strict=True)):
        np.minimum.at(reach[sample], records.neuron, records.peak)
        if size <= TOP:
            reach[sample] = -np.inf
    strata: list[Records] = []
    for index in range(lower.shape[1]):
        covered = reach <= lower[:, index]
        sample_of = np.where(covered.any(axis=0), covered.argmax(axis=0), len(nested) - 1)
        pieces: list[Records] = []
        for sample, records in enumerate(nested):
            at = records.neuron
            inside = (sample_of[at] == sample) & (records.peak >= lower[at, index]) & (records.peak < upper[at, index])
            pieces.append(_chosen(records, np.flatnonzero(inside)))
        candidates = _concatenated(pieces)
        order = np.lexsort((shuffled[candidates.window], candidates.neuron))
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
