"""Blocks: rows of neurons that stand beside each other, read together and kept for a while.

Of a table with few and small rows for a neuron, what takes time is to find them: to open the file and read what its row
groups are. So those of some hundred neurons are read at once, and whoever goes on to the next neuron finds them here.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

import polars as pl

ROWS = 8_192
"""Of a block, about."""
WIDEST = 512
"""Neurons of a block."""
MOST_BYTES = 96 * 2**20
"""Of all blocks together."""


class Blocks:
    """The blocks that were asked for last, sorted by neuron."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, tuple[pl.DataFrame, int]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def rows(self, key: Hashable, neuron: int, wide: int, read: Callable[[range], pl.DataFrame]) -> pl.DataFrame:
        """The rows of one neuron, from its block of `wide` neurons; `key` holds all else that they depend on."""
        start = neuron // wide * wide
        at = key, start, wide
        with self._lock:
            known = self._kept.get(at)
            if known is not None:
                self._kept.move_to_end(at)
        block = read(range(start, start + wide)).sort("neuron", maintain_order=True) if known is None else known[0]
        if known is None:
            self._keep(at, block)
        neurons = block.get_column("neuron")
        first, last = neurons.search_sorted(neuron, "left"), neurons.search_sorted(neuron, "right")
        return block.slice(first, last - first)

    def _keep(self, at: Hashable, block: pl.DataFrame) -> None:
        size = int(block.estimated_size())
        with self._lock:
            if at in self._kept or size > self._most:
                return
            self._kept[at] = block, size
            self._bytes += size
            while self._bytes > self._most:
                _, (_, oldest) = self._kept.popitem(last=False)
                self._bytes -= oldest


def width(rows: int, neurons: int) -> int:
    """How many neurons a block of a table with so many rows for so many neurons has: a power of two."""
    wide = WIDEST
    while wide > 1 and wide * rows > ROWS * max(neurons, 1):
        wide //= 2
    return wide
