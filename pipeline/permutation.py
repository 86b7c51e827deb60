"""Permutation: how often chance alone would make a simulation agree so well with its neuron.

If an explanation said nothing, its simulation of one sequence would fit any other as well. So the simulations change
places among the sequences, whole ones, as the tokens of one are not independent, and

    p = (1 + those that correlate at least as much) / (1 + permutations)

(Phipson and Smyth 2010: never zero, and valid for permutations drawn at random). One-sided: a simulation that runs
against its neuron has a p near 1. What is the same in every sequence, such as a neuron that fires on first tokens,
stays the same under permutation and is no evidence. Five sequences have 120 orders, so p is about 0.008 or more.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PERMUTATIONS = 999
ROUNDING = 1e-10
"""Correlations that differ by less are the same."""


def p_values(y: Floats, s: Floats, lengths: NDArray[np.int64], n_sequences: NDArray[np.int32], *, seed: int) -> Floats:
    """The p of the correlation of `y` and `s`, for each explanation.

    The arrays are those of `pipeline.percentiles.on_percentiles`. NaN with fewer than two sequences, and where they
    differ in length, as then they cannot change places. `seed` draws the permutations, the same for every neuron.
    """
    found = np.full(len(n_sequences), np.nan)
    if not len(lengths):
        return found
    starts = np.cumsum(lengths) - lengths
    first = np.minimum(np.cumsum(n_sequences) - n_sequences, len(lengths) - 1)
    owner = np.repeat(np.arange(len(n_sequences)), n_sequences)
    uneven = np.zeros(len(n_sequences), dtype=bool)
    uneven[owner[lengths != lengths[first[owner]]]] = True
    shapes = np.stack([n_sequences, lengths[first]], axis=1)
    for n, length in np.unique(shapes[(n_sequences >= 2) & ~uneven], axis=0).tolist():
        orders = np.random.default_rng([seed, n, PERMUTATIONS]).permuted(
            np.tile(np.arange(n), (PERMUTATIONS, 1)), axis=1
        )
        members = np.flatnonzero((shapes == (n, length)).all(axis=1) & ~uneven)
        for block in np.array_split(members, max(1, len(members) // 32)):
            at = starts[first[block]][:, None] + np.arange(n * length)
            found[block] = _p(y[at].reshape(-1, n, length), s[at].reshape(-1, n, length), orders)
    return found


def _p(y: Floats, s: Floats, orders: NDArray[np.int64]) -> Floats:
    """The p for each explanation from activations (explanation, sequence, token)."""
    y = y - y.mean(axis=(1, 2), keepdims=True)
    s = s - s.mean(axis=(1, 2), keepdims=True)
    # How well each simulation fits each sequence. A matrix product may round differently for one neuron than for many.
    fits = (y[:, :, None, :] * s[:, None, :, :]).sum(axis=-1)
    sequences = np.arange(orders.shape[1])
    truly = fits[:, sequences, sequences].sum(axis=-1)
    permuted = fits[:, sequences, orders].sum(axis=-1)
    slack = ROUNDING * np.sqrt((y * y).sum(axis=(1, 2)) * (s * s).sum(axis=(1, 2)))
    as_much = (permuted >= (truly - slack)[:, None]).sum(axis=1)
    return np.asarray((1 + as_much) / (1 + len(orders)), dtype=np.float64)
