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
    weights: NDArray[np.float32] | None,
    fingerprint: str,
    corpus: str,
) -> pl.DataFrame:
    """The `token_associations` rows of one layer, without `run_id`.

    `records` are the layer's `activations`; `weights` has shape (token of `corpus_tokens`, neuron), None where the
    neurons have no linear form. `corpus` is the content hash of `sequences`.
    """
    tokens = corpus_tokens(plan)
    neurons = len(capture.mean)
    counts = np.zeros(len(tokens), dtype=np.int64)
    place = np.searchsorted(tokens, plan.lookup)
    counts[place] = plan.counts
    means = np.tile(np.nan_to_num(capture.open_mean).astype(np.float32), (len(tokens), 1))
    means[place] = capture.token_sums / plan.counts[:, None]

    frames: list[pl.DataFrame] = []
    for polarity, sign in (("+", 1.0), ("-", -1.0))[: 2 if capture.signed else 1]:
        often = counts >= min(SEEN_OFTEN, counts.max(initial=0))
        kept = [
            _scored(records.filter(pl.col("polarity") == polarity), sequences, tokens, neurons),
            _highest(np.where(often[:, None] & (counts > 0)[:, None], sign * means, -np.inf)),
        ]
        if not counts.any():
            # No document may be read for a mean: no tokens and no fallback, rather than zeros.
            kept = [np.empty(0, np.int64)]
        elif weights is not None:
            kept.append(_highest(np.where((counts > 0)[:, None], sign * weights, -np.inf)))
        frames.append(_rows(np.unique(np.concatenate(kept)), tokens, counts, means, weights, polarity, neurons))
    frame = pl.concat(frames).with_columns(
        pl.lit(capture.layer, pl.Int32).alias("layer"),
        pl.Series(capture.open_mean.astype(np.float32))
        .fill_nan(None)
        .gather(pl.concat(frames)["neuron"])
        .alias("fallback"),
    )
    made_from = frame.select("layer", "neuron", "polarity").with_columns(
        pl.Series("tokens", list_hashes(frame.get_column("token_ids")))
    )
    made = identities("token_associations", made_from, fingerprint=fingerprint, corpus=corpus)
    return frame.with_columns(pl.Series("identity", made))


def _scored(
    records: pl.DataFrame, sequences: pl.DataFrame, tokens: NDArray[np.int32], neurons: int
) -> NDArray[np.int64]:
    """Codes (neuron * number of tokens + token) of all tokens in records that may be scored."""
    scored = sequences.filter(pl.col("split") == SPLITS[2]).select("sequence_id", "token_ids")
    pairs = (
        records.filter(pl.col("stratum").is_in(["top", "random"]))
        .select("neuron", "sequence_id")
        .join(scored, on="sequence_id", how="inner")
        .explode("token_ids")
    )
    if pairs.is_empty():
        return np.empty(0, np.int64)
    at = np.searchsorted(tokens, pairs.get_column("token_ids").to_numpy())
    codes = pairs.get_column("neuron").to_numpy().astype(np.int64) * len(tokens) + at
    seen = np.zeros(neurons * len(tokens), dtype=bool)
    seen[codes] = True
    return np.flatnonzero(seen)


def _highest(strength: NDArray[np.float32]) -> NDArray[np.int64]:
    """Codes of the STRONGEST tokens of each neuron in an array (token, neuron), leaving out minus infinity."""
    k = min(STRONGEST, len(strength))
    if not k:
        return np.empty(0, np.int64)
    weakest = np.partition(strength, len(strength) - k, axis=0)[len(strength) - k]
    above, equal = strength > weakest, strength == weakest
    # Of equals the lower tokens: which ones a partition keeps differs between processors.
    first = np.cumsum(equal, axis=0, dtype=np.int32) <= k - above.sum(axis=0)
    token, neuron = np.nonzero((above | (equal & first)) & np.isfinite(strength))
    return neuron * len(strength) + token


def _rows(  # noqa: PLR0917 (private, and each is another kind of array)
    codes: NDArray[np.int64],
    tokens: NDArray[np.int32],
    counts: NDArray[np.int64],
    means: NDArray[np.float32],
    weights: NDArray[np.float32] | None,
    polarity: str,
    neurons: int,
) -> pl.DataFrame:
    neuron, token = np.divmod(codes, len(tokens))
    rows = pl.DataFrame(
        {
            "neuron": neuron.astype(np.int32),
            "token_ids": tokens[token],
            "counts": counts[token].astype(np.int32),
            "means": means[token, neuron],
            "weights": np.zeros(len(codes), np.float32) if weights is None else weights[token, neuron],
        }
    )
    lists = (
        pl.DataFrame({"neuron": np.arange(neurons, dtype=np.int32)})
        .join(
            rows.group_by("neuron", maintain_order=True).agg(pl.all()), on="neuron", how="left", maintain_order="left"
        )
        .with_columns(pl.exclude("neuron").fill_null([]))
    )
    if weights is None:
        lists = lists.with_columns(pl.lit(None, pl.List(pl.Float32)).alias("weights"))
    return lists.with_columns(pl.lit(polarity).alias("polarity"))
