"""The commits of one table: the files of its Delta log, read as they are.

    {at}/_delta_log/00000000000000000007.json    lines of JSON, an action each: `commitInfo`, `add`, `remove`, ...

Each commit of ours carries its `commit_uuid` and the provenance record of its write. Delta's own reader trusts the log
more than a power cut allows, and gives wrong numbers to commits while others write, so what is asked of single commits
is read here.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.errors import LakeError
from resources.delta_errors import failure, said

COMMIT_UUID = "neuronledger.commit_uuid"
RECORD = "neuronledger.record"
LAID_TOGETHER = "laid_together"
"""In the record of a commit that only lays rows out anew: how many files they had."""

Log = frozenset[tuple[str, int, int, int]]
"""Commit files by name, place, size and time."""


class Commits:
    """The commits of the table at `at`; `folder` is the same place on a local disk, None on an object store."""

    def __init__(self, at: str, folder: Path | None) -> None:
        self.at = at
        self._folder = None if folder is None else folder / "_delta_log"
        self._whole: Log = frozenset()
        """The commits that were looked at."""

    def exist(self) -> bool:
        """Whether a local folder has any."""
        return self._folder is not None and any(self._folder.glob("*.json"))

    def changed(self) -> tuple[int, int] | None:
        """Their local folder, by place and the time that a file last came to it or went; None without one."""
        if self._folder is None:
            return None
        try:
            status = os.stat(self._folder)  # noqa: PTH116 (asked for every table of a page)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def files(self) -> Log:
        """Every commit file in a local folder; none on an object store.

        A power cut can leave a commit without bytes, or with its first lines only, and Delta then goes on as if its rows
        had never been. So each commit is looked at once.

        Raises:
            LakeError: a commit is cut, or there is none between two others.
        """
        if self._folder is None:
            return frozenset()
        found = set()
        try:
            with suppress(FileNotFoundError), os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".json"):
                        status = entry.stat()
                        found.add((entry.name, status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError as error:
            raise LakeError(f"the table {self.at} cannot be read: {error}") from error
        versions = {int(name[:-5]) for name, *_ in found if name[:-5].isdigit()}
        for version in set(range(min(versions, default=0), max(versions, default=0))) - versions:
            # One that came while the folder was read may be left out of what was read.
            if not (self._folder / f"{version:020}.json").exists():
                raise LakeError(
                    f"the commit {self._folder}/{version:020}.json is gone, and later ones are there; restore it from a copy"
                )
        for name, *_ in found - self._whole:
            try:
                reason = _cut((self._folder / name).read_bytes())
            except OSError as error:
                reason = f"cannot be read ({error})"
            if reason is not None:
                raise LakeError(
                    f"the commit {self._folder}/{name} {reason}, as after a power cut, and its rows would be missing; "
                    "restore it from a copy, or remove it if it is the newest, and run again"
                )
        self._whole = frozenset(found)
        return self._whole

    def damaged_checkpoint(self) -> str:
        """What to do about a checkpoint that cannot be read, in words; nothing if there is none."""
        if self._folder is None:
            return ""
        if (self._folder / "_last_checkpoint").exists() and not any(self._folder.glob("*.checkpoint*.parquet")):
            return "; remove `_last_checkpoint` in its `_delta_log`, and nothing is lost, since all commits are kept"
        for path in sorted(self._folder.glob("*.checkpoint*.parquet")):
            try:
                pl.read_parquet(path)
            except BaseException as error:  # noqa: BLE001 - a Rust panic is no Exception
                failure(error)
                return (
                    f"; its checkpoint {path.name} cannot be read: remove that and `_last_checkpoint` beside it, and nothing "
                    "is lost, since all commits are kept"
                )
        return ""

    def text(self, version: int) -> str | None:
        """One commit as it stands in its file; None if there is none.

        Raises:
            LakeError: it cannot be read.
        """
        name = f"{version:020}.json"
        try:
            if self._folder is not None:
                return (self._folder / name).read_text(encoding="utf-8")
            lines = pl.read_lines(f"{self.at}/_delta_log/{name}", glob=False).get_column("line")
            return "\n".join(lines.to_list())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise LakeError(f"the commit {self.at}/_delta_log/{name} cannot be read: {said(error)}") from error

    def actions(self, version: int) -> list[dict[str, Any]]:
        """The actions of one commit, from its own file.

        Raises:
            LakeError: it is not there, or it is damaged.
        """
        name, text = f"{self.at}/_delta_log/{version:020}.json", self.text(version)
        if text is None:
            raise LakeError(f"the commit {name} is not there, though later ones may be; restore it from a copy")
        try:
            return [json.loads(line) for line in text.split("\n") if line]
        except ValueError as error:
            raise LakeError(f"the commit {name} cannot be read: {error}; restore it from a copy") from error

    def stamp(self, version: int) -> int:
        """When a commit was written, in milliseconds since 1970."""
        infos = [action["commitInfo"] for action in self.actions(version) if "commitInfo" in action]
        return int(infos[0].get("timestamp", 0)) if infos else 0

    def carries(self, version: int, commit_uuid: str) -> bool:
        """Whether a commit is the one with this uuid."""
        return any(action.get("commitInfo", {}).get(COMMIT_UUID) == commit_uuid for action in self.actions(version))


def described(version: int, actions: list[dict[str, Any]]) -> dict[str, Any]:
    """A commit, for people: version, timestamp (UTC), operation, commit_uuid and record."""
    info: dict[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
    return {
        "version": version,
        "timestamp": datetime.fromtimestamp(info["timestamp"] / 1000, UTC) if "timestamp" in info else None,
        "operation": info.get("operation"),
        "commit_uuid": info.get(COMMIT_UUID),
        "record": json.loads(info.get(RECORD, "{}")),
    }


def metadata(commit_uuid: str, record: Mapping[str, Any]) -> dict[str, str]:
    """What a commit of ours carries.

    Raises:
        LakeError: `record` is not JSON.
    """
    try:
        text = json.dumps(dict(record), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LakeError(f"the record of a write must be JSON, but {error}: {record!r}") from error
    return {COMMIT_UUID: commit_uuid, RECORD: text}


def _cut(commit: bytes) -> str | None:
    """Why a commit is not as it was written, None if it is: it states how many files it adds and removes."""
    if not commit:
        return "has no bytes"
    try:
        actions = [json.loads(line) for line in commit.split(b"\n") if line]
        information: list[dict[str, Any]] = [action["commitInfo"] for action in actions if "commitInfo" in action]
    except (ValueError, TypeError):
        return "is damaged"
    stated = information[0].get("operationMetrics", {}) if information else {}
    for kind, name in (("add", "num_added_files"), ("remove", "num_removed_files")):
        here = sum(kind in action for action in actions)
        if stated.get(name, here) != here:
            return f"has {here} of {stated[name]} lines that {kind} a file"
    return None
