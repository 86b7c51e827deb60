"""Places: where the rows of each neuron stand in a data file, so that a neuron is read by its place in it.

A data file is sorted by neuron and never changes. To find a neuron by the statistics of the file's row groups, polars
decodes those groups whole; where its rows begin and end, it decodes them alone, for half the work.
"""

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np
import polars as pl
from numpy.typing import NDArray

MOST = 512
"""Files whose places are kept: of a layer of 6,400 neurons about 100 KB each."""

_Found = tuple[NDArray[np.int32], NDArray[np.int64]]


class Places:
    """The places in the files that were asked for last. A file that is asked for once is not worth the look."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: OrderedDict[str, _Found | None] = OrderedDict()
        """None for a file that was asked for once, or is not sorted."""
        self._unsorted: set[str] = set()
        self._lock = Lock()

    def rows(self, files: Sequence[str], first: int, last: int) -> list[tuple[str, int, int]] | None:
        """Of each file that has any of these neurons, where their rows begin, and how many they are; None if not known.

        Raises:
            polars.exceptions.PolarsError, OSError: a file cannot be read.
        """
        found = []
        for file in files:
            known = self._of(file)
            if known is None:
                return None
            neurons, starts = known
            low, high = neurons.searchsorted(first), neurons.searchsorted(last, side="right")
            if low < high:
                found.append((file, int(starts[low]), int(starts[high] - starts[low])))
        return found

    def _of(self, file: str) -> _Found | None:
        with self._lock:
            is_new, known = file not in self._known, self._known.get(file)
            self._known[file] = known
            self._known.move_to_end(file)
            while len(self._known) > self._most:
                self._unsorted.discard(self._known.popitem(last=False)[0])
            if is_new or known is not None or file in self._unsorted:
                return known
        found = _places(file)
        with self._lock:
            if found is None:
                self._unsorted.add(file)
            elif file in self._known:
                self._known[file] = found
        return found


def _places(file: str) -> _Found | None:
    """The neurons of a file, each once, and where the rows of each begin, with the end of the last; None if unsorted."""
    rows = pl.scan_parquet(file, glob=False, hive_partitioning=False).select("neuron").collect().to_series()
    if rows.null_count() or not rows.is_sorted():
        return None
    runs = rows.rle().struct.unnest()
    starts = np.concatenate(([0], np.cumsum(runs.get_column("len").to_numpy(), dtype=np.int64)))
    return runs.get_column("value").to_numpy().astype(np.int32), starts
