"""A folder that is written whole or not at all: files go into a hidden folder beside it, which then takes its name.

    with ExportFolder(Path("release")) as folder:
        folder.write("explanations/0/0.jsonl", b"...")

After an error or Ctrl-C nothing is left; after a kill, a folder `.release.unfinished`, which the next export removes. An
earlier export that was put aside to be replaced comes back then.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from types import TracebackType

from pipeline.errors import SettingsError
from pipeline.ports import Folder, Releases

UNFINISHED = ".{}.unfinished"
MARK = ".neuronledger-export"
"""An empty file by which an export knows what it may replace."""


class ExportFolder(Folder):
    """A new folder at `path`, or one in place of an earlier export if `replace`.

    Raises:
        SettingsError: something is at `path` that is no export, or `replace` was not asked for.
    """

    def __init__(self, path: Path, *, replace: bool = False) -> None:
        self.path = path.expanduser().resolve()
        self._unfinished = self.path.with_name(UNFINISHED.format(self.path.name))
        self._before = self.path.with_name(f"{self._unfinished.name}.replaced")
        if self._before.exists() and not self.path.exists():
            self._before.rename(self.path)
        if self.path.exists():
            is_export = self.path.is_dir() and (self.path / MARK).exists()
            is_empty = self.path.is_dir() and not any(self.path.iterdir())
            if not is_export and not is_empty:
                raise SettingsError(f"{self.path} is there already and is no export; give another folder")
            if is_export and not replace:
                raise SettingsError(f"{self.path} holds an earlier export; give --replace to replace it")
        self._made: set[PurePosixPath] = set()
        self.files = 0
        self.bytes = 0

    def write(self, name: str, data: bytes) -> None:
        """Write one file under a relative name with `/` between its parts.

        Raises:
            ValueError: the name leaves the folder.
        """
        self.stream(name, (data,))

    def stream(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write one file piece by piece.

        Raises:
            ValueError: the name leaves the folder.
        """
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise ValueError(f"{name!r} must lie within the export")
        if parts.parent not in self._made:
            (self._unfinished / parts.parent).mkdir(parents=True, exist_ok=True)
            self._made.add(parts.parent)
        with (self._unfinished / parts).open("xb") as file:
            for piece in pieces:
                file.write(piece)
                self.bytes += len(piece)
        self.files += 1

    def place(self, name: str) -> Path:
        """Where to write a file by other means, such as Parquet."""
        path = self._unfinished / PurePosixPath(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def __enter__(self) -> "ExportFolder":
        for old in (self._unfinished, self._before):
            if old.exists():
                shutil.rmtree(old)
        self._unfinished.mkdir(parents=True)
        (self._unfinished / MARK).touch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            shutil.rmtree(self._unfinished, ignore_errors=True)
            return
        if self.path.exists():
            self.path.rename(self._before)
            self._unfinished.rename(self.path)
            shutil.rmtree(self._before)
        else:
            self._unfinished.rename(self.path)
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class ReleaseFolders(Releases):
    """Releases as folders, one for each version, below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, version: str) -> ExportFolder:
        """A new folder for a version."""
        if (self._root / version).exists():
            raise SettingsError(f"version {version} was released already, in {self._root / version}; give a newer one")
        return ExportFolder(self._root / version)

    def digests(self, version: str) -> dict[str, str]:
        """The SHA-256 of every file of a release."""
        folder = self._root / version
        found: dict[str, str] = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARK):
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    def place(self, version: str) -> str:
        """Where a release is."""
        return str(self._root / version)
