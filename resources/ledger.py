"""The ledger: one line for each commit of the lake, hash-chained, beside the tables.

    {lake}/_ledger/ledger.jsonl                  in a local folder: one file, a line for each commit
    {lake}/_ledger/00000000000000000041.json     in an object store, which has no append: one object for each line

    {"commit": "sha256:…", "files": {"layer=5/part-….parquet": "sha256:…"}, "hash": "sha256:…", "prev": "sha256:…",
     "sealed_by": "writer", "seq": 41, "table": "scores", "version": 7}

A line holds the hash of a commit file as its bytes stand, of the data files that it adds, and of a checkpoint written
with it. `hash` is that of the line without it, and `prev` that of the line before. So the last hash, the *head*, stands for
everything: who has noted it elsewhere can tell later whether a byte of the lake's past has changed. Delta itself would
not notice a changed byte of a data file, nor a commit that was taken away.

The first line of a ledger that began in a lake with tables names their newest versions: what came before it is not
covered until `doctor` seals it. In a folder a line is appended under a lock and forced to the disk; in an object store it
is put only if no object has its place yet, so that of two writers one takes the next. A writer that dies before its line
leaves a commit without one, which `doctor` seals and says so; one that dies within it leaves half a line, which the next
writer takes away.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from pipeline.errors import LakeError
from pipeline.tables import TABLES
from resources.lake_files import TAG, Files, LocalFiles, StoredFiles

FOLDER = "_ledger"
FILE = "ledger.jsonl"
AT_ONCE = 16
"""Lines that are fetched from an object store at a time."""
NOTHING = TAG + 64 * "0"
"""What the first line has as `prev`."""
LOG = "_delta_log"


@dataclass(frozen=True)
class Line:
    """One line: what is sealed, and its place in the chain."""

    seq: int
    hash: str
    content: Mapping[str, Any]

    @property
    def at(self) -> tuple[str, int] | None:
        """Table and version of the commit; None for an opening line."""
        return (self.content["table"], self.content["version"]) if "table" in self.content else None


class Ledger(Protocol):
    """The ledger of a lake. Nothing is created before the first line."""

    files: Files
    """The lake that it seals."""

    def seal(self, table: str, version: int, *, by: str = "writer") -> str:
        """Append the line of one commit, unless it has one; gives the head.

        Raises:
            LakeError: the commit or a file of it cannot be read, or the ledger cannot be written.
        """
        ...

    def check(self) -> None:
        """Before a write: whether its line could follow.

        Raises:
            LakeError: the ledger is damaged, or cannot be read or written.
        """
        ...

    def head(self) -> str | None:
        """The hash of the last line; None if there is no ledger.

        Raises:
            LakeError: it cannot be read.
        """
        ...

    def lines(self) -> Iterator[tuple[Line | None, bytes]]:
        """Each line with its bytes, None for a damaged one; half a line at the end is left out.

        Raises:
            OSError: the ledger cannot be read; a missing one has no lines.
        """
        ...

    def is_torn(self) -> bool:
        """Whether the last line is half written."""
        ...


class LocalLedger:
    """The ledger of a lake in a local folder: one file."""

    def __init__(self, lake: Path) -> None:
        self.files: Files = LocalFiles(lake)
        self._lake = lake
        self.path = lake / FOLDER / FILE
        self._sealed: set[tuple[str, int]] = set()
        self._read = 0
        self._last = (-1, NOTHING)

    def seal(self, table: str, version: int, *, by: str = "writer") -> str:
        """Append the line of one commit, unless it has one; gives the head.

        Raises:
            LakeError: the commit or a file of it cannot be read, or the ledger cannot be written.
        """
        try:
            with self._lock():
                self._begin(table, version)
                if (table, version) in self._sealed:
                    return self._last[1]
            # Hashing takes longer than anything here, and needs no lock.
            content = commit_content(self.files, table, version) | {"sealed_by": by}
            with self._lock():
                self._catch_up()
                if (table, version) not in self._sealed:
                    self._append(content)
                return self._last[1]
        except OSError as error:
            raise LakeError(
                f"version {version} of table `{table}` is written, but the ledger {self.path} has no line of it: {error}; "
                "see to the path, then run `neuronledger doctor`"
            ) from error

    def check(self) -> None:
        """Before a write: whether its line could follow.

        Raises:
            LakeError: the ledger is damaged, or cannot be read or written.
        """
        try:
            if self.path.exists():
                with self._lock():
                    self._catch_up()
        except OSError as error:
            raise LakeError(f"nothing was written, because the ledger {self.path} cannot be used: {error}") from error

    def head(self) -> str | None:
        """The hash of the last line; None if there is no ledger."""
        last = None
        for line, _ in self.lines():
            last = line or last
        return last.hash if last else None

    def lines(self) -> Iterator[tuple[Line | None, bytes]]:
        """Each line with its bytes, None for a damaged one; half a line at the end is left out."""
        return read(self.path)

    def is_torn(self) -> bool:
        """Whether the last line is half written: a writer died within it."""
        return self.path.exists() and self.path.stat().st_size > 0 and not self.path.read_bytes().endswith(b"\n")

    def _append(self, content: Mapping[str, Any]) -> None:
        seq, prev = self._last
        line = link(content, seq=seq + 1, prev=prev)
        is_new = not self.path.exists()
        # No buffer: on a full disk one would be written again when the file is closed, after the half that found room.
        with self.path.open("ab", buffering=0) as file:
            start = os.fstat(file.fileno()).st_size
            rest = memoryview(written(line).encode("ascii") + b"\n")
            self._read = start + len(rest)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                self._read = start
                with suppress(OSError):
                    file.truncate(start)
                raise
        if is_new:
            for folder in (self.path.parent, self._lake):
                _fsync_folder(folder)
        self._take(line)

    def _begin(self, table: str, version: int) -> None:
        """Read on; or begin the ledger, with a line that names what was there before this commit."""
        if self.path.exists():
            self._catch_up()
            return
        self._sealed, self._read, self._last = set(), 0, (-1, NOTHING)
        if found := before(self.files, table, version):
            self._append({"opened": found})

    def _catch_up(self) -> None:
        """Read what others appended since, and take away half a line."""
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            file.seek(self._read)
            rest = file.read()
            whole = rest.rfind(b"\n") + 1
            if whole < len(rest):
                file.truncate(self._read + whole)
            for raw in rest[:whole].splitlines():
                line = parse(raw)
                if line is None:
                    raise LakeError(
                        f"line {self._last[0] + 1} of the ledger {self.path} is damaged; restore the file from a copy, or move "
                        "it away to begin a new one, which covers only what is written from then on"
                    )
                self._take(line)
            self._read += whole

    def _take(self, line: Line) -> None:
        self._last = line.seq, line.hash
        if line.at is not None:
            self._sealed.add(line.at)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (self.path.parent / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class StoredLedger:
    """The ledger of a lake in an object store: one object for each line, named by its place in the chain.

    A writer reads the last line when it begins, and from then on only what others put after it.
    """

    def __init__(self, uri: str) -> None:
        self._store = StoredFiles(uri)
        self.files: Files = self._store
        self._last: tuple[int, str] | None = None

    def seal(self, table: str, version: int, *, by: str = "writer") -> str:
        """Put the line of one commit after the last, unless it has one that was put meanwhile; gives the head."""
        where = (
            f"version {version} of table `{table}` is written, but the ledger of {self._store.uri} has no line of it"
        )
        try:
            seq, prev = self._known()
            if seq < 0 and (opened := before(self.files, table, version)):
                seq, prev, _ = self._put({"opened": opened}, seq, prev, at=None)
            content = commit_content(self.files, table, version) | {"sealed_by": by}
            seq, prev, _ = self._put(content, seq, prev, at=(table, version))
        except OSError as error:
            raise LakeError(f"{where}: {error}; see to the store, then run `neuronledger doctor`") from error
        self._last = seq, prev
        return prev

    def check(self) -> None:
        """Before a write: whether the ledger can be read, and what its last line is."""
        try:
            self._last = self._newest()
        except OSError as error:
            raise LakeError(
                f"nothing was written, because the ledger of {self._store.uri} cannot be used: {error}"
            ) from error

    def head(self) -> str | None:
        """The hash of the last line; None if there is no ledger."""
        try:
            seq, last = self._newest()
        except OSError as error:
            raise LakeError(f"the ledger of {self._store.uri} cannot be read: {error}") from error
        return None if seq < 0 else last

    def lines(self) -> Iterator[tuple[Line | None, bytes]]:
        """Each line with its bytes, None for one that is damaged or is not in its place."""
        names = self._store.names(FOLDER)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for name, raw in zip(names, pool.map(self._store.read, names), strict=True):
                line = parse(raw)
                yield (line if line is not None and name == _place(line.seq) else None), raw

    def is_torn(self) -> bool:
        """Never: an object is there wholly or not at all."""
        return False

    def _known(self) -> tuple[int, str]:
        if self._last is None:
            self._last = self._newest()
        return self._last

    def _newest(self) -> tuple[int, str]:
        """Place and hash of the last line; -1 and nothing if there is none."""
        after = None if self._last is None or self._last[0] < 0 else _place(self._last[0])
        names = self._store.names(FOLDER, after=after)
        if not names:
            if after is None:
                return -1, NOTHING
            if self._last is not None and self._line(_place(self._last[0])).hash == self._last[1]:
                return self._last
            raise LakeError(
                f"the ledger of {self._store.uri} was changed while it was used; look at it with `neuronledger audit`"
            )
        line = self._line(names[-1])
        return line.seq, line.hash

    def _line(self, name: str) -> Line:
        line = parse(self._store.read(name))
        if line is None or name != _place(line.seq):
            raise LakeError(
                f"{self._store.uri}/{name} of the ledger is damaged; restore it from a copy, or move the folder away to begin a new "
                "ledger, which covers only what is written from then on"
            )
        return line

    def _put(
        self, content: Mapping[str, Any], seq: int, prev: str, *, at: tuple[str, int] | None
    ) -> tuple[int, str, bool]:
        """Put a line after this one, or after those that others put first; not if one of these is about the same."""
        while True:
            line = link(content, seq=seq + 1, prev=prev)
            if self._store.create(_place(line.seq), written(line).encode("ascii")):
                return line.seq, line.hash, True
            # Another writer was first; or we were, and the answer to an earlier try was lost.
            taken = self._line(_place(seq + 1))
            seq, prev = taken.seq, taken.hash
            if (at is None and "opened" in taken.content) or (at is not None and taken.at == at):
                return seq, prev, False


def _place(seq: int) -> str:
    return f"{FOLDER}/{seq:020}.json"


def commit_content(files: Files, table: str, version: int) -> dict[str, Any]:
    """What a line holds of a commit: its hash, and those of the files that came with it."""
    commit = files.read(f"{table}/{LOG}/{version:020}.json")
    names = sorted(files_of(files, table, version, commit))
    return {
        "table": table,
        "version": version,
        "commit": TAG + hashlib.sha256(commit).hexdigest(),
        "files": {name: files.hashed(f"{table}/{name}")[0] for name in names},
    }


def before(files: Files, table: str, version: int) -> dict[str, int]:
    """The newest version of each table before this commit."""
    found = {name: newest for name, newest in versions(files).items() if name != table}
    return found | ({table: version - 1} if version else {})


def link(content: Mapping[str, Any], *, seq: int, prev: str) -> Line:
    """What is sealed, as the line with this place in the chain."""
    body = {**content, "seq": seq, "prev": prev}
    return Line(seq, TAG + hashlib.sha256(_canonical(body).encode("ascii")).hexdigest(), body)


def written(line: Line) -> str:
    """The line as it stands in the file, without its end."""
    return _canonical({**line.content, "hash": line.hash})


def parse(raw: bytes) -> Line | None:
    """A line of the file; None if it is not one, or not the bytes that its content has."""
    try:
        content = json.loads(raw)
        stated = content.pop("hash")
        line = link(content, seq=content["seq"], prev=content["prev"])
        sealed = (
            content.get("table", ""),
            content.get("version", 0),
            content.get("files", {}),
            content.get("opened", {}),
        )
        if [type(value) for value in sealed] != [str, int, dict, dict]:
            return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return line if line.hash == stated and written(line).encode("ascii") == raw else None


def read(path: Path) -> Iterator[tuple[Line | None, bytes]]:
    """Each line of a ledger with its bytes, None for a damaged one; half a line at the end is left out.

    Raises:
        OSError: the file cannot be read; a missing one has no lines.
    """
    if path.exists():
        for raw in path.read_bytes().split(b"\n")[:-1]:
            yield parse(raw), raw


def versions(files: Files) -> dict[str, int]:
    """The newest version of each table of a lake, as its commit files say."""
    found: dict[str, int] = {}
    for table in TABLES:
        numbers = [int(stem) for name in files.names(f"{table}/{LOG}") if (stem := commit_stem(name)) is not None]
        if numbers:
            found[table] = max(numbers)
    return found


def commit_stem(name: str) -> str | None:
    """The number in the name of a commit file, as text; None for any other file."""
    stem, dot, ending = name.rpartition("/")[2].partition(".")
    return stem if (dot, ending) == (".", "json") and stem.isdigit() else None


def files_of(files: Files, table: str, version: int, commit: bytes) -> Iterator[str]:
    """Data files that a commit adds, and checkpoints written with it, as paths in the folder of the table."""
    for text in commit.split(b"\n"):
        action = json.loads(text) if text else {}
        if "add" in action:
            yield unquote(action["add"]["path"])
    for name in files.names(f"{table}/{LOG}", starting=f"{version:020}.checkpoint"):
        if name.endswith(".parquet"):
            yield name.removeprefix(f"{table}/")


def hash_file(path: Path) -> str:
    """The tagged hash of a file's bytes."""
    with path.open("rb") as file:
        return TAG + hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
