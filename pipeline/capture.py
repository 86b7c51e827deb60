"""Capture: what is kept of one layer's activations while the corpus streams past.

A batch of activations has shape (window, token, neuron) and is reduced at once; nothing of that size outlives its
step. What stays per neuron is bounded whatever the corpus:

    moments      count, mean and central sums of powers
    strongest    the windows with the highest maximum, with their activations: of the corpus, of each split, and of
                 nested samples of the windows (one in 4, one in 16, ...) that reach down to ordinary windows
    random       pairs of neuron and window drawn before the run
    maxima       the maximum in each of the first few thousand windows, for the quantiles
    token sums   sum of activations at each of the commonest tokens, over the documents that are not scored

`pipeline.reduction` does it, on the device where the activations are. Here is what is decided before the run, and what
comes out. A *window* is the position of a sequence in the order of sequence ids. Ties between equal maxima go to the lower one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.tables import SPLITS

TOP = 20
"""Strongest windows kept of the whole corpus (Bills et al. 2023 keep 20 of 50,000)."""

PER_SPLIT = 5
"""Strongest windows kept of each split, and windows drawn at random from each split."""

QUANTILE_WINDOWS = 4_096
"""Windows whose maxima the quantile boundaries are taken from, those with the lowest ids (ids are hashes, so this is
a random sample). The boundaries are exact for a corpus of at most this many windows."""

LOOKUP_TOKENS = 16_384
"""Tokens whose mean activation is kept, the commonest first; rarer ones count as unseen. Bounds the memory."""

NOT_SCORED = ("explain", "calibrate")
"""Splits that the token-lookup table may be read from."""


@dataclass(frozen=True)
class Plan:
    """What will be read, decided before the run so that nothing depends on the order of batches."""

    tokens: list[NDArray[np.int32]]
    """Token ids of each window."""
    split: NDArray[np.int8]
    """Index into SPLITS of each window's document."""
    level: NDArray[np.int8]
    """How many times a window survives a one-in-four draw: sample j holds the windows with level >= j."""
    lookup: NDArray[np.int32]
    """Token ids with a row in the lookup table, ascending."""
    counts: NDArray[np.int64]
    """Occurrences of each of them in documents that are not scored."""

    @property
    def n_windows(self) -> int:
        return len(self.tokens)

    @property
    def levels(self) -> list[int]:
        """The nested samples still larger than what is kept of them, and the first that is not."""
        sizes = [int((self.level >= j).sum()) for j in range(1, int(self.level.max(initial=0)) + 1)]
        large = sum(size > TOP for size in sizes)
        return list(range(1, min(large + 1, len(sizes)) + 1)) if self.n_windows > TOP else []

    def batches(self, size: int) -> Iterator[NDArray[np.int64]]:
        """Windows in batches of at most `size`, those of like length together so that little is padding."""
        order = np.argsort([-len(tokens) for tokens in self.tokens], kind="stable")
        for start in range(0, len(order), size):
            yield np.sort(order[start : start + size])

    def random_windows(self, *, layer: int, n_neurons: int, seed: int) -> NDArray[np.int64]:
        """For each neuron, PER_SPLIT windows of each split drawn without replacement: (neuron, draw), -1 if too few.

        Floyd's method, one step for all neurons at once. Seeded by `seed` and `layer` alone, so that one layer
        draws the same windows whichever layers run beside it.
        """
        columns: list[NDArray[np.int64]] = []
        for split in range(len(SPLITS)):
            members = np.flatnonzero(self.split == split)
            generator = np.random.default_rng([seed, layer, split])
            drawn = min(PER_SPLIT, len(members))
            chosen = np.full((n_neurons, PER_SPLIT), -1, dtype=np.int64)
            for step, last in enumerate(range(len(members) - drawn, len(members))):
                pick = generator.integers(0, last + 1, size=n_neurons)
                taken = (chosen[:, :step] == pick[:, None]).any(axis=1)
                chosen[:, step] = np.where(taken, last, pick)
            columns.append(np.where(chosen >= 0, members[chosen] if len(members) else -1, -1))
        return np.concatenate(columns, axis=1)


def plan(sequences: pl.DataFrame) -> Plan:
    """The plan for a table of sequences, taken in the order of their ids."""
    rows = sequences.sort("sequence_id")
    tokens = [np.asarray(ids, dtype=np.int32) for ids in rows.get_column("token_ids").to_list()]
    split = np.asarray([SPLITS.index(name) for name in rows.get_column("split")], dtype=np.int8)
    level = np.asarray([_level(sequence_id) for sequence_id in rows.get_column("sequence_id")], dtype=np.int8)
    open_windows = [ids for ids, index in zip(tokens, split, strict=True) if SPLITS[index] in NOT_SCORED]
    seen, counts = np.unique(np.concatenate([*open_windows, np.empty(0, np.int32)]), return_counts=True)
    commonest = np.sort(np.lexsort((seen, -counts))[:LOOKUP_TOKENS])
    return Plan(tokens=tokens, split=split, level=level, lookup=seen[commonest], counts=counts[commonest])


def _level(sequence_id: str) -> int:
    """Half the number of trailing zero bits of the id, so that one id in 4**j has level j or more."""
    bits = int(sequence_id, 16)
    return ((bits & -bits).bit_length() - 1) // 2 if bits else 31


@dataclass(frozen=True)
class Records:
    """Windows of neurons, with their activations. All arrays have one entry per record."""

    neuron: NDArray[np.int64]
    window: NDArray[np.int64]
    peak: NDArray[np.float32]
    """Strongest activation in the polarity asked for: the maximum of x for `+`, of -x for `-`."""
    activations: NDArray[np.float32]
    """(record, token), units of the neuron; positions past the window's end are meaningless."""


@dataclass(frozen=True)
class LayerCapture:
    """All that was kept of one layer."""

    layer: int
    signed: bool
    count: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    """Sums over tokens of (x - mean) to the powers 2, 3 and 4."""
    m3: NDArray[np.float64]
    m4: NDArray[np.float64]
    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    positive: NDArray[np.int64]
    strongest: dict[str, dict[str, Records]]
    """For each polarity: records of `top`, of `explain` ... `test`, and of the nested samples `1`, `2`, ..."""
    maxima: dict[str, NDArray[np.float32]]
    """For each polarity, the peak in each of the first QUANTILE_WINDOWS windows: (window, neuron)."""
    random: Records
    """Peak taken in polarity `+`."""
    token_sums: NDArray[np.float32]
    """(lookup token, neuron)."""
    open_mean: NDArray[np.float64]
    """Mean over all tokens of the documents that are not scored; NaN if there are none."""
