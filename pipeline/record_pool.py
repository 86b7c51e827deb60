"""A record pool: the activations of the windows that neurons keep, once for each neuron, however many of its slots keep it.

A window among the strongest of the corpus is often among those of its split and of a sample too. Of the 88 slots that a
neuron has for a large corpus about 59 hold different windows, and activations are most of what a slot takes.

Neurons share a pool by POOLED, so that what one has no use for another has, and a thread works on a pool alone.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline import kernels

POOLED = 256
"""Neurons that share a pool. A record's number then fits 16 bits for up to 255 slots of a neuron."""

SPARE = 32
"""A pool that is full grows by what is needed, and by one part in this many."""


class _Pool:
    """Records of some neurons, in places that are used again."""

    def __init__(self, length: int) -> None:
        self.steps = np.empty((0, length), np.int16)
        self.exponents = np.empty(0, np.int16)
        self.uses = np.empty(0, np.uint8)
        """How many slots have each record."""
        self.free = np.empty(0, np.uint16)
        """The records without a use are the first `n_free` of these."""
        self.n_free = 0

    def make_room(self, needed: int) -> None:
        """Let at least so many records be free."""
        if (lacking := needed - self.n_free) <= 0:
            return
        size = len(self.uses)
        more = lacking + size // SPARE
        # One at a time, so that only one is there twice.
        self.steps = np.concatenate([self.steps, np.zeros((more, self.steps.shape[1]), np.int16)])
        self.exponents = np.append(self.exponents, np.zeros(more, np.int16))
        self.uses = np.append(self.uses, np.zeros(more, np.uint8))
        new = np.arange(size, size + more, dtype=np.uint16)
        self.free = np.concatenate([self.free[: self.n_free], new, np.empty(size - self.n_free, np.uint16)])
        self.n_free += more


class RecordPool:
    """The activations behind slots (neuron, slot), in whole steps of a power of two, `length` tokens each."""

    def __init__(self, n_neurons: int, n_slots: int, length: int) -> None:
        self._records = np.full((n_neurons, n_slots), kernels.NO_RECORD, dtype=np.uint16)
        self._pools = [_Pool(length) for _ in range(0, n_neurons, POOLED)]

    def __len__(self) -> int:
        """How many records there are: one for each neuron and each window in its slots."""
        return sum(len(pool.uses) - pool.n_free for pool in self._pools)

    def store(
        self, x: NDArray[np.float32], lengths: NDArray[np.int64], start: int, stop: int, fresh: NDArray[np.int8]
    ) -> None:
        """Store the activations of those windows of a batch (window, token, neuron) that came into a slot.

        `fresh` (neuron, slot) has the place in the batch of each such slot, else -1, which all are then. Of the neurons
        from `start`, a multiple of POOLED, to `stop`.
        """
        for first in range(start, stop, POOLED):
            last = min(first + POOLED, stop)
            pool, records = self._pools[first // POOLED], self._records[first:last]
            pool.n_free, needed = kernels.release(fresh[first:last], records, pool.uses, pool.free, pool.n_free)
            if needed:
                pool.make_room(needed)
                kernels.store(
                    x, lengths, first, last, fresh[first:last], records,
                    pool.steps, pool.exponents, pool.uses, pool.free, pool.n_free,
                )  # fmt: skip
                pool.n_free -= needed

    def put(self, windows: NDArray[np.int32], steps: NDArray[np.int16], exponents: NDArray[np.int16]) -> None:
        """Fill an empty pool: `windows` (neuron, slot), -1 for an empty slot, and what is in each slot.

        `steps` (neuron, slot, token) may have fewer tokens than records have.
        """
        for pool, first in zip(self._pools, range(0, len(windows), POOLED), strict=True):
            part = slice(first, first + POOLED)
            neuron, slot = np.nonzero(windows[part] >= 0)
            pairs = neuron * (int(windows.max(initial=0)) + 1) + windows[part][neuron, slot]
            _, at, record = np.unique(pairs, return_index=True, return_inverse=True)
            pool.make_room(len(at))
            pool.n_free -= len(at)
            names = pool.free[pool.n_free : pool.n_free + len(at)]
            pool.steps[names, : steps.shape[2]] = steps[part][neuron[at], slot[at]]
            pool.exponents[names] = exponents[part][neuron[at], slot[at]]
            pool.uses[names] = np.bincount(record, minlength=len(at))
            self._records[part][neuron, slot] = names[record]

    def behind(self, slots: NDArray[np.intp]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """Steps (neuron, k, token) and exponents (neuron, k) of k filled slots of each neuron."""
        length = self._pools[0].steps.shape[1] if self._pools else 0
        steps, exponents = np.empty((*slots.shape, length), np.int16), np.empty(slots.shape, np.int16)
        for pool, first in zip(self._pools, range(0, len(slots), POOLED), strict=True):
            part = slice(first, first + POOLED)
            records = np.take_along_axis(self._records[part], slots[part], axis=1)
            steps[part], exponents[part] = pool.steps[records], pool.exponents[records]
        return steps, exponents
