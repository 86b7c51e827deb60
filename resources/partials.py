"""Partial captures: what a forward pass has found so far, kept as files so that a killed pass goes on.

    {folder}/{key}/0003/layer-05.safetensors
    {folder}/{key}/0003/hashes.json

Each time all layers are written anew beside the last time's, into a folder that gets its number when they are all on
the disk. So there is always one whole set, or none; and a file that changed since is as good as none.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CaptureError
from pipeline.provenance import TAG

HASHES = "hashes.json"
FORGOTTEN = 7 * 24 * 3600.0
"""Seconds after which what was kept under another key, and nobody came back for, is removed."""


class PartialFiles:
    """Partial captures in a local folder, which is made when something is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, key: str, captures: Iterable[tuple[int, Mapping[str, NDArray[Any]]]]) -> None:
        """Write the arrays of each layer, in place of what was kept under this key.

        Raises:
            CaptureError: they cannot be written. What was kept before is still there.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        # The number of the process tells a set that is being written from one whose writer was killed.
        new = self._home(key) / f"new-{os.getpid()}-{uuid4().hex}"
        try:
            new.mkdir(parents=True)
            for layer, arrays in captures:
                # A number without axes is contiguous, and would be given one by numpy.
                contiguous = {
                    name: array if array.flags.c_contiguous else np.ascontiguousarray(array)
                    for name, array in arrays.items()
                }
                save_file(contiguous, new / _file(layer))
                _to_disk(new / _file(layer))
            (new / HASHES).write_text(json.dumps({path.name: _hash(path) for path in sorted(new.iterdir())}))
            _to_disk(new / HASHES)
            _to_disk(new)
            before = self._sets(key)
            new.rename(new.parent / f"{int(before[-1].name) + 1 if before else 1:04d}")
            _to_disk(new.parent)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(new, ignore_errors=True)
            raise CaptureError(
                f"what was captured so far cannot be kept in {self._folder} ({error}); see to its space and permissions"
            ) from error
        for old in before + [path for path in new.parent.glob("new-*") if _is_abandoned(path)]:
            shutil.rmtree(old, ignore_errors=True)

    def found(self, key: str, layers: Sequence[int]) -> Mapping[int, Mapping[str, NDArray[Any]]]:
        """The arrays of each of these layers that were kept last; none if nothing was, or it was damaged since."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        for kept in reversed(self._sets(key)):
            try:
                hashes = json.loads((kept / HASHES).read_text())
                if all(hashes[_file(layer)] == _hash(kept / _file(layer)) for layer in layers):
                    return {layer: load_file(kept / _file(layer)) for layer in layers}
            except (SafetensorError, OSError, ValueError, KeyError, TypeError):
                # A damaged set costs the work that went into it, never a wrong number.
                continue
        return {}

    def drop(self, key: str) -> None:
        """Remove what was kept under this key, and what was forgotten under others."""
        shutil.rmtree(self._home(key), ignore_errors=True)
        for other in self._folder.iterdir() if self._folder.is_dir() else ():
            if time.time() - other.stat().st_mtime > FORGOTTEN:
                shutil.rmtree(other, ignore_errors=True)

    def _home(self, key: str) -> Path:
        return self._folder / key.removeprefix(TAG)

    def _sets(self, key: str) -> list[Path]:
        home = self._home(key)
        return sorted(path for path in home.iterdir() if path.name.isdigit() and path.is_dir()) if home.is_dir() else []


def _file(layer: int) -> str:
    return f"layer-{layer:02d}.safetensors"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_abandoned(new: Path) -> bool:
    """Whether the process that wrote an unfinished set is gone."""
    process = new.name.split("-")[1]
    return process.isdigit() and int(process) != os.getpid() and not Path(f"/proc/{process}").exists()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
