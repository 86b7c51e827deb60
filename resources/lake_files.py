"""The files of a lake as plain bytes, in a local folder or under an object-store prefix.

The ledger and the audit read what Delta wrote without Delta, so that a doubt about the tables is none about their reader.
Names are relative to the lake, with `/` between their parts. An object store is reached with what the environment says,
as by Delta itself.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

TAG = "sha256:"


class Files(Protocol):
    """What is read of a lake as bytes.

    Raises:
        OSError: by any method, where a file cannot be read; `FileNotFoundError` where there is none.
    """

    uri: str

    def names(self, under: str, *, starting: str = "") -> list[str]:
        """The files directly in a folder of the lake, or those whose names there start so; none if there is no such folder."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        ...

    def hashed(self, name: str) -> tuple[str, int]:
        """The tagged hash of a file, and its size in bytes."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that is not there yet; False, and nothing is written, if it is."""
        ...


class LocalFiles:
    """The files of a lake in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def names(self, under: str, *, starting: str = "") -> list[str]:
        """The files directly in a folder of the lake, or those whose names there start so; none if there is no such folder."""
        try:
            with os.scandir(self.root / under) as entries:
                found = [entry.name for entry in entries if entry.name.startswith(starting) and entry.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [f"{under}/{name}" for name in sorted(found)]

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        return (self.root / name).read_bytes()

    def hashed(self, name: str) -> tuple[str, int]:
        """The tagged hash of a file, and its size in bytes."""
        path = self.root / name
        with path.open("rb") as file:
            return TAG + hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that is not there yet; False, and nothing is written, if it is."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        return True


class StoredFiles:
    """The files of a lake under an object-store prefix such as `s3://bucket/prefix`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._opened: Any = None

    @property
    def _store(self) -> Any:
        if self._opened is None:
            from obstore.store import from_url

            with _plain_errors(self.uri):
                self._opened = from_url(self.uri)
        return self._opened

    def names(self, under: str, *, starting: str = "", after: str | None = None) -> list[str]:
        """The files directly in a folder of the lake, or those whose names there start so, or come after another's."""
        found: list[str] = []
        with _plain_errors(f"{self.uri}/{under}"):
            for chunk in self._store.list(under, offset=after or (f"{under}/{starting}" if starting else None)):
                names = [str(one["path"]) for one in chunk]
                found += [
                    name
                    for name in names
                    if name.startswith(f"{under}/{starting}") and "/" not in name[len(under) + 1 :]
                ]
                # They come in the order of their names.
                if names and names[-1] > f"{under}/{starting}" and not names[-1].startswith(f"{under}/{starting}"):
                    break
        return sorted(found)

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        with _plain_errors(f"{self.uri}/{name}"):
            return bytes(self._store.get(name).bytes())

    def hashed(self, name: str) -> tuple[str, int]:
        """The tagged hash of a file, and its size in bytes; a large one is read piece by piece."""
        digest, size = hashlib.sha256(), 0
        with _plain_errors(f"{self.uri}/{name}"):
            for piece in self._store.get(name).stream():
                digest.update(piece)
                size += len(piece)
        return TAG + digest.hexdigest(), size

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that is not there yet; False, and nothing is written, if it is."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with _plain_errors(f"{self.uri}/{name}"):
            try:
                self._store.put(name, data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
        return True


@contextmanager
def _plain_errors(where: str) -> Iterator[None]:
    """The errors of the store's library as those of files."""
    from obstore.exceptions import BaseError, NotFoundError

    try:
        yield
    except (NotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError(errno.ENOENT, "there is no such file", where) from error
    except BaseError as error:
        raise OSError(errno.EIO, " ".join(str(error).split())[:300], where) from error
