"""Known keys: which keys a table that only grows holds, so that neither a write nor a look reads all of them again.

A table of replies grows by a few thousand rows at a time to millions. To read its keys before each write would take time
that grows with its square. So the keys of each data file are read once, and kept as hashes of 64 bits with the number of
their file. A hash that is there says where to look for the key itself; one that is not there says that the key is not.
"""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


class KnownKeys:
    """The keys of one table, as of the files that it had when it was last asked. `read` gives those of some files."""

    def __init__(self, key: Sequence[str], read: Callable[[Sequence[str]], pl.DataFrame]) -> None:
        self._key = list(key)
        self._read = read
        self._files: list[str] = []
        self._parts: list[tuple[Hashes, NDArray[np.int32]]] = []
        """Ascending hashes, and the place of the file of each; every part at least twice as long as the next."""

    def files_with(self, keys: pl.DataFrame, files: Sequence[str]) -> list[str]:
        """Those of the table's `files` in which some of these keys may be; no other file holds any of them."""
        self._catch_up(files)
        sought = self._hashes(keys)
        found: set[int] = set()
        for hashes, owner in self._parts:
            # One key is in one file, unless others have written to the table too.
            first, last = np.searchsorted(hashes, sought, "left"), np.searchsorted(hashes, sought, "right")
            for at in np.flatnonzero(last > first).tolist():
                found.update(owner[first[at] : last[at]].tolist())
        return [self._files[place] for place in sorted(found)]

    def _catch_up(self, files: Sequence[str]) -> None:
        """Read the keys of files that are new. Where one is gone, all begins anew: nobody takes rows out of such a table."""
        if not set(self._files) <= set(files):
            self._files, self._parts = [], []
        known = set(self._files)
        for file in files:
            if file in known:
                continue
            hashes = self._hashes(self._read([file]))
            order = np.argsort(hashes)
            owner = np.full(len(order), len(self._files), dtype=np.int32)
            self._files.append(file)
            self._parts.append((hashes[order], owner))
            while len(self._parts) > 1 and len(self._parts[-2][0]) < 2 * len(self._parts[-1][0]):
                self._parts[-2:] = [_merged(*self._parts[-2:])]

    def _hashes(self, rows: pl.DataFrame) -> Hashes:
        return rows.select(self._key).hash_rows(seed=0).to_numpy()


def _merged(
    one: tuple[Hashes, NDArray[np.int32]], other: tuple[Hashes, NDArray[np.int32]]
) -> tuple[Hashes, NDArray[np.int32]]:
    hashes, owner = np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])
    order = np.argsort(hashes, kind="stable")
    return hashes[order], owner[order]
