"""Percentiles: a simulation brought to the neuron's units by rank, each sequence by what all others show.

Percentile matching (OpenAI's code, `calibrated_simulator.py`): the tenth smallest simulated value is taken for the tenth
smallest true one, with straight lines between. Where we differ: no sequence is fitted to itself, and simulated values
that are equal share the mean of the true ones beside them, where OpenAI's takes the last. Simulators say 0 at most
tokens, and the last would be the largest of hundreds.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring_kernels import matched

Floats = NDArray[np.float64]


def on_percentiles(y: Floats, s: Floats, lengths: NDArray[np.int64], n_sequences: NDArray[np.int32]) -> Floats:
    """What stands for `s` in units of `y` at each token.

    `y` and `s` are the true and expected activations of all sequences one after the other, `lengths` the tokens of each
    sequence, `n_sequences` the sequences of each explanation. Beyond the others' smallest and largest value theirs
    stands. An only sequence has no others: NaN.
    """
    return matched(y, s, lengths, n_sequences.astype(np.int64))
