"""The ledger: one line for each commit of the lake, hash-chained, in a file beside the tables.

    {lake}/_ledger/ledger.jsonl

    {"commit": "sha256:…", "files": {"layer=5/part-….parquet": "sha256:…"}, "hash": "sha256:…", "prev": "sha256:…",
     "sealed_by": "writer", "seq": 41, "table": "scores", "version": 7}

A line holds the hash of a commit file as its bytes stand, of the data files that it adds, and of a checkpoint written
with it. `hash` is that of the line without it, and `prev` that of the line before. So the last hash, the *head*, stands for
everything: who has noted it elsewhere can tell later whether a byte of the lake's past has changed. Delta itself would
not notice a changed byte of a data file, nor a commit that was taken away.

The first line of a ledger that began in a lake with tables names their newest versions: what came before it is not
covered until `doctor` seals it. A line is appended under a lock and forced to the disk. A writer that dies before its line
leaves a commit without one, which `doctor` seals and says so; one that dies within it leaves half a line, which the next
writer takes away.

Only lakes in local folders have a ledger: an object store has no append.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipeline.errors import LakeError

FOLDER = "_ledger"
FILE = "ledger.jsonl"
TAG = "sha256:"
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


class Ledger:
    """The ledger of a lake in a local folder. Nothing is created before the first line."""

    def __init__(self, lake: Path) -> None:
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
            content = self._content(table, version) | {"sealed_by": by}
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
        for line, _ in read(self.path):
            last = line or last
        return last.hash if last else None

    def _content(self, table: str, version: int) -> dict[str, Any]:
        folder = self._lake / table
        commit = (folder / LOG / f"{version:020}.json").read_bytes()
        return {
            "table": table,
            "version": version,
            "commit": TAG + hashlib.sha256(commit).hexdigest(),
            "files": {name: hash_file(folder / name) for name in sorted(files_of(folder, version, commit))},
        }

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
        found = {name: newest for name, newest in versions(self._lake).items() if name != table}
        if version:
            found[table] = version - 1
        if found:
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


def versions(lake: Path) -> dict[str, int]:
    """The newest version of each table in the folder of a lake, as its commit files say."""
    found = {}
    for log in lake.glob(f"*/{LOG}"):
        numbers = [int(file.stem) for file in log.glob("*.json") if file.stem.isdigit()]
        if numbers:
            found[log.parent.name] = max(numbers)
    return found


def files_of(folder: Path, version: int, commit: bytes) -> Iterable[str]:
    """Data files that a commit adds, and checkpoints written with it, as paths in the folder of the table."""
    for text in commit.split(b"\n"):
        action = json.loads(text) if text else {}
        if "add" in action:
            yield unquote(action["add"]["path"])
    for path in (folder / LOG).glob(f"{version:020}.checkpoint*.parquet"):
        yield f"{LOG}/{path.name}"


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
