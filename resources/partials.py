"""Partial captures: what a forward pass has found so far, kept as files so that a killed pass goes on.

    {folder}/{key}/0003/layer-05.safetensors

Each time all layers are written anew beside the last time's, into a folder that gets its number when they are all on
the disk. So there is always one whole set, or none.
"""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from pipeline.provenance import TAG


class PartialFiles:
    """Partial captures in a local folder, which is made when something is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, key: str, captures: Iterable[tuple[int, Mapping[str, NDArray[Any]]]]) -> None:
        """Write the arrays of each layer, in place of what was kept under this key."""
        from safetensors.numpy import save_file

        home = self._home(key)
        new = home / f"new-{uuid4().hex}"
        new.mkdir(parents=True)
        for layer, arrays in captures:
            path = new / f"layer-{layer:02d}.safetensors"
            # A number without axes is contiguous, and would be given one by numpy.
            save_file(
                {name: a if a.flags.c_contiguous else np.ascontiguousarray(a) for name, a in arrays.items()}, path
            )
            _to_disk(path)
        before = self._sets(key)
        new.rename(home / f"{int(before[-1].name) + 1 if before else 1:04d}")
        _to_disk(home)
        for old in home.iterdir():
            if old in before or old.name.startswith("new-"):
                shutil.rmtree(old)

    def found(self, key: str, layers: Sequence[int]) -> Mapping[int, Mapping[str, NDArray[Any]]]:
        """The arrays of each of these layers that were kept last; none if nothing was, or not all of them."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        for kept in reversed(self._sets(key)):
            paths = {layer: kept / f"layer-{layer:02d}.safetensors" for layer in layers}
            if all(path.is_file() for path in paths.values()):
                try:
                    return {layer: load_file(path) for layer, path in paths.items()}
                except (SafetensorError, OSError):
                    # A damaged set costs the work that went into it, never a wrong number.
                    continue
        return {}

    def drop(self, key: str) -> None:
        """Remove what was kept under this key."""
        shutil.rmtree(self._home(key), ignore_errors=True)

    def _home(self, key: str) -> Path:
        return self._folder / key.removeprefix(TAG)

    def _sets(self, key: str) -> list[Path]:
        home = self._home(key)
        return sorted(path for path in home.iterdir() if path.name.isdigit()) if home.is_dir() else []


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
