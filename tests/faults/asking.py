"""A process that asks an endpoint, made to be killed; and the lake that it and its test share.

python asking.py URL FOLDER FIRST LAST     asks questions FIRST..LAST, four at once
"""

import fcntl
import os
import sys
from pathlib import Path
from uuid import uuid4

import polars as pl

from pipeline.ports import Commit, Request
from pipeline.tables import TABLES
from resources.language import OpenAICompatible


class FolderLake:
    """A lake that keeps each `add` as one file, for several processes; it does what the door needs, and no more."""

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder)
        self.folder = folder
        self.adds = 0
        folder.mkdir(parents=True, exist_ok=True)

    def scan(self, table: str, *, layer=None, neurons=None, version=None) -> pl.LazyFrame:
        frames = [pl.read_parquet(file) for file in sorted(self.folder.glob(f"{table}-*.parquet"))]
        return pl.concat([TABLES[table].empty(), *frames]).lazy()

    def find(self, table: str, keys: pl.DataFrame) -> pl.LazyFrame:
        return self.scan(table).join(keys.lazy(), on=keys.columns, how="semi")

    def version(self, table: str) -> int | None:
        return len(list(self.folder.glob(f"{table}-*.parquet"))) - 1

    def replace(self, table, frame, **slice_and_record):
        raise NotImplementedError

    def add(self, table: str, frame: pl.DataFrame, *, record) -> Commit | None:
        with (self.folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            key = list(TABLES[table].key)
            new = TABLES[table].conform(frame).join(self.scan(table).select(key).collect(), on=key, how="anti")
            if not len(new):
                return None
            self.adds += 1
            name = f"{table}-{uuid4().hex}"
            new.write_parquet(self.folder / f"{name}.part")
            (self.folder / f"{name}.part").replace(self.folder / f"{name}.parquet")
            return Commit(table=table, version=self.version(table) or 0, commit_uuid=name, rows=len(new))


def questions(first: int, last: int) -> list[Request]:
    """The requests with these numbers."""
    return [
        Request(model="m", messages=(("user", f"question {number}"),), temperature=0.0, max_tokens=9, seed=1)
        for number in range(first, last)
    ]


if __name__ == "__main__":
    url, folder, first, last = sys.argv[1:]
    language = OpenAICompatible(
        url, journal_path=Path(folder) / "journal.sqlite", lake=FolderLake(Path(folder) / "lake"), concurrency=4
    )
    language.answer(questions(int(first), int(last)), run_id=f"process {os.getpid()}")
