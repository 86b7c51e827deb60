"""Percentiles: a simulation brought to the neuron's units by rank, each sequence by what all others show.

Percentile matching (OpenAI's code, `calibrated_simulator.py`): the tenth smallest simulated value is taken for the tenth
smallest true one, with straight lines between. Where we differ: no sequence is fitted to itself, and simulated values
that are equal share the mean of the true ones beside them, where OpenAI's takes the last. Simulators say 0 at most
tokens, and the last would be the largest of hundreds.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def on_percentiles(y: Floats, s: Floats, lengths: NDArray[np.int64], n_sequences: NDArray[np.int32]) -> Floats:
    """What stands for `s` in units of `y` at each token.

    `y` and `s` are the true and expected activations of all sequences one after the other, `lengths` the tokens of each
    sequence, `n_sequences` the sequences of each explanation. Beyond the others' smallest and largest value theirs
    stands. An only sequence has no others: NaN.
    """
    found = np.full(len(s), np.nan)
    ends = np.cumsum(lengths)
    last = np.cumsum(n_sequences)
    for n, end in zip(n_sequences.tolist(), last.tolist(), strict=True):
        if n < 2:
            continue
        sequences = range(end - n, end)
        begin = int(ends[sequences[0]] - lengths[sequences[0]])
        here = slice(begin, int(ends[sequences[-1]]))
        whose = np.repeat(np.arange(n), lengths[sequences[0] : end])
        # Sorted once: what is left without one sequence is still in order.
        by_s, by_y = np.argsort(s[here], kind="stable"), np.argsort(y[here], kind="stable")
        ordered_s, ordered_y, whose_s, whose_y = s[here][by_s], y[here][by_y], whose[by_s], whose[by_y]
        for place, sequence in enumerate(sequences):
            values = ordered_s[whose_s != place]
            first = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
            counts = np.diff(np.append(first, len(values)))
            means = np.add.reduceat(ordered_y[whose_y != place], first) / counts
            own = slice(int(ends[sequence] - lengths[sequence]), int(ends[sequence]))
            found[own] = np.interp(s[own], values[first], means)
    return found
