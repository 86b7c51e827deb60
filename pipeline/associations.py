"""Token associations: what one neuron does on each token, by its mean activation and by its weights.

The mean is taken over documents that are never scored. The full table (every token x every neuron) would outgrow
everything else in the lake, so a neuron keeps its strongest tokens and those of records that may be scored: enough
to show the association, and to simulate from the whole of it.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.capture import LayerCapture, Plan
from pipeline.provenance import identities, list_hashes
from pipeline.tables import SPLITS

STRONGEST = 50
"""Tokens kept for their mean activation, and for their weight (Bills et al. 2023 show 50)."""

MEAN_BITS = 14
"""Significant bits kept of a mean on a token. A mean of few occurrences is not known to one part in 16,384, and the bits
below that are what a neuron's row would mostly consist of. Which tokens are strongest is decided before."""

WEIGHT_BITS = 12
"""Significant bits kept of a weight: as near as the activations of a record are."""

_CELLS = 4_000_000
"""Tokens times neurons worked on at a time."""

SEEN_OFTEN = 5
"""Occurrences below which a mean says more about one text than about the token."""


def corpus_tokens(plan: Plan) -> NDArray[np.int32]:
    """Every token of the corpus, ascending: those whose weights are asked of the subject."""
    return np.unique(np.concatenate([*plan.tokens, np.empty(0, np.int32)]))


def associations(
    capture: LayerCapture,
    plan: Plan,
    records: pl.DataFrame,
    sequences: pl.DataFrame,
    *,
    embeddings: NDArray[np.float32] | None,
    reading: NDArray[np.float32] | None,
    fingerprint: str,
    corpus: str,
) -> pl.DataFrame:
    """The `token_associations` rows of one layer, without `run_id`.

    `records` are the layer's `activations`. A weight is `embeddings[token] @ reading[:, neuron]` with shapes
    (vocabulary, width) and (width, neuron); None where the neurons have no linear form. `corpus` is the content hash of
    `sequences`. Worked in blocks of neurons, so that memory does not grow with tokens times neurons.
    """
    tokens = corpus_tokens(plan)
    counts = np.zeros(len(tokens), dtype=np.int64)
    place = np.searchsorted(tokens, capture.lookup)
    counts[place] = capture.lookup_counts
    of_lookup, fallback = capture.token_means(), capture.open_mean().astype(np.float32)
    vectors = None if embeddings is None or reading is None else embeddings[tokens]
    scored = {polarity: _scored(records, polarity, sequences, tokens) for polarity in capture.strongest}
    block = max(_CELLS // max(len(tokens), 1), 1)
    frames: dict[str, list[pl.DataFrame]] = {polarity: [] for polarity in capture.strongest}
    for first in range(0, capture.n_neurons, block):
        part = slice(first, min(first + block, capture.n_neurons))
        means = np.tile(np.nan_to_num(fallback[part]), (len(tokens), 1))
        means[place] = np.where(counts[place, None] > 0, of_lookup[:, part], means[place])
        weights = None if vectors is None or reading is None else vectors @ reading[:, part]
        for polarity, found in frames.items():
            kept = _kept(scored[polarity], means, weights, counts, part, sign=1 if polarity == "+" else -1)
            rows = _rows(kept, tokens, counts, means, weights, polarity)
            found.append(rows.with_columns((pl.col("neuron") + first).cast(pl.Int32)))
    frame = pl.concat([rows for found in frames.values() for rows in found]).with_columns(
        pl.lit(capture.layer, pl.Int32).alias("layer")
    )
    frame = frame.with_columns(
        pl.Series(fallback).fill_nan(None).gather(frame.get_column("neuron")).alias("fallback"),
    )
    made_from = frame.select("layer", "neuron", "polarity").with_columns(
        pl.Series("tokens", list_hashes(frame.get_column("token_ids")))
    )
    made = identities("token_associations", made_from, fingerprint=fingerprint, corpus=corpus)
    return frame.with_columns(pl.Series("identity", made))


def _kept(
    scored: NDArray[np.int64],
    means: NDArray[np.float32],
    weights: NDArray[np.float32] | None,
    counts: NDArray[np.int64],
    part: slice,
    *,
    sign: int,
) -> NDArray[np.int64]:
    """Codes (neuron of the block * number of tokens + token), ascending, of the tokens to keep."""
    if not counts.any():
        # No document may be read for a mean: no tokens and no fallback, rather than zeros.
        return np.empty(0, np.int64)
    size = len(counts)
    often = (counts >= min(SEEN_OFTEN, counts.max())) & (counts > 0)
    inside = scored[np.searchsorted(scored, part.start * size) : np.searchsorted(scored, part.stop * size)]
    kept = [inside - part.start * size, _highest(means, often, sign=sign)]
    if weights is not None:
        kept.append(_highest(weights, counts > 0, sign=sign))
    return _distinct(np.concatenate(kept))


def _scored(
    records: pl.DataFrame, polarity: str, sequences: pl.DataFrame, tokens: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Codes (neuron * number of tokens + token), ascending, of all tokens in records that may be scored."""
    scored = sequences.filter(pl.col("split") == SPLITS[2]).select("sequence_id", "token_ids")
    pairs = (
        records.filter((pl.col("polarity") == polarity) & pl.col("stratum").is_in(["top", "random"]))
        .select("neuron", "sequence_id")
        .unique()
        .join(scored, on="sequence_id", how="inner")
        .explode("token_ids")
    )
    at = np.searchsorted(tokens, pairs.get_column("token_ids").to_numpy())
    return _distinct(pairs.get_column("neuron").to_numpy().astype(np.int64) * len(tokens) + at)


def _distinct(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """These codes once each, ascending; `numpy.unique` takes five times as long."""
    codes = np.sort(codes)
    first: NDArray[np.bool_] = np.append(True, codes[1:] != codes[:-1])[: len(codes)]
    return codes[first]


def _highest(values: NDArray[np.float32], allowed: NDArray[np.bool_], *, sign: int) -> NDArray[np.int64]:
    """Codes of the STRONGEST tokens of each neuron by `sign * values` (token, neuron), of those that are `allowed`.

    Of equally strong ones the lower tokens are kept.
    """
    # Not at the top: whoever only reads the definitions needs no compiled kernels.
    from pipeline.kernels import highest

    found = np.full((values.shape[1], STRONGEST), -1, dtype=np.int32)
    highest(values, allowed, sign, found)
    neuron, slot = np.nonzero(found >= 0)
    return neuron * len(values) + found[neuron, slot]


def _rounded(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """The nearest numbers of so many significant bits, of two equally near ones the even one."""
    mantissas, exponents = np.frexp(values)
    rounded: NDArray[np.float32] = np.ldexp(np.rint(np.ldexp(mantissas, bits)), exponents - bits)
    return rounded


def _rows(  # noqa: PLR0917 (private, and each is another kind of array)
    codes: NDArray[np.int64],
    tokens: NDArray[np.int32],
    counts: NDArray[np.int64],
    means: NDArray[np.float32],
    weights: NDArray[np.float32] | None,
    polarity: str,
) -> pl.DataFrame:
    """One row for each neuron of a block."""
    neuron, token = np.divmod(codes, len(tokens))
    rows = pl.DataFrame(
        {
            "neuron": neuron.astype(np.int32),
            "token_ids": tokens[token],
            "counts": counts[token].astype(np.int32),
            # The mean of an unseen token is the one beside the list, and equal to it.
            "means": np.where(counts[token] > 0, _rounded(means[token, neuron], MEAN_BITS), means[token, neuron]),
            "weights": np.zeros(len(codes), np.float32)
            if weights is None
            else _rounded(weights[token, neuron], WEIGHT_BITS),
        }
    )
    lists = (
        pl.DataFrame({"neuron": np.arange(means.shape[1], dtype=np.int32)})
        .join(
            rows.group_by("neuron", maintain_order=True).agg(pl.all()), on="neuron", how="left", maintain_order="left"
        )
        .with_columns(pl.exclude("neuron").fill_null([]))
    )
    if weights is None:
        lists = lists.with_columns(pl.lit(None, pl.List(pl.Float32)).alias("weights"))
    return lists.with_columns(pl.lit(polarity).alias("polarity"))
