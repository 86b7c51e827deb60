"""A moment in the life of a lake: after a run, at a time, at a commit, or at a line of the ledger; and the lake as it was then.

    0f3c2a…                    after that run (its id, or how it begins)
    2026-03-01T12:00           at that time, UTC unless it says otherwise
    scores@7                   when that version of that table was written
    sha256:9ab1…               when the head of the ledger was this one, as a run prints it at its end

Nothing is copied: Delta keeps every version, so the lake of then is read through the numbers of its versions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from pipeline.errors import LakeError, SettingsError
from pipeline.ports import Commit, Lake
from pipeline.records import read as records_of
from pipeline.tables import TABLES
from resources.delta import DeltaLake, collect

SHORTEST = 4
"""Letters of a run's id, or of a head, that name it."""
NOTED = {"materializations": "finished_at", "reviews": "at", "language_calls": "answered_at"}
"""Tables that only grow, with the time of each row: of these, the rows up to a moment are those that there were."""


@dataclass(frozen=True)
class Moment:
    """What a lake was at one time."""

    said: str
    """How it was asked for."""
    until: datetime
    versions: Mapping[str, int]
    """Of each table its version then; one that was not made yet is left out."""
    run_id: str | None = None
    """The run after which it was, if it was asked for so."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        until = self.until.isoformat(timespec="milliseconds")
        return {"said": self.said, "until": until, "run_id": self.run_id, "versions": dict(self.versions)}


def moment(lake: DeltaLake, said: str) -> Moment:
    """The moment that these words name.

    Raises:
        SettingsError: they name none of this lake.
    """
    if found := re.fullmatch(r"([a-z_]{1,40})@([0-9]{1,9})", said, re.ASCII):
        return _commit(lake, said, found[1], int(found[2]))
    if re.fullmatch(r"sha256:[0-9a-f]{4,64}", said, re.ASCII):
        return _head(lake, said)
    done = records_of(lake).filter((pl.col("status") == "done") & pl.col("version").is_not_null())
    of_run = done.filter(pl.col("run_id").str.starts_with(said)) if len(said) >= SHORTEST else done.clear()
    runs = of_run.get_column("run_id").unique().to_list()
    if len(runs) > 1:
        raise SettingsError(f"{len(runs)} runs begin with {said!r}; write more of the id")
    if runs:
        wrote = of_run.group_by("table").agg(pl.col("version").max()).iter_rows()
        until = max(lake.written_at(table, version) for table, version in wrote)
        return Moment(said, until, _versions(lake, until), runs[0])
    try:
        until = datetime.fromisoformat(said)
    except ValueError:
        latest = done.sort("finished_at").get_column("run_id").unique(maintain_order=True).to_list()[-3:]
        runs_said = f"; its last runs are {', '.join(run[:8] for run in latest)}" if latest else ""
        raise SettingsError(
            f"{said[:80]!r} is neither a run of {lake.uri} nor a time such as 2026-03-01T12:00, a commit such as scores@7, "
            f"or a head of its ledger{runs_said}"
        ) from None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return Moment(said, until, _versions(lake, until))


def _versions(lake: DeltaLake, until: datetime) -> dict[str, int]:
    found = {table: lake.version_at(table, until) for table in TABLES}
    return {table: version for table, version in found.items() if version is not None}


def _commit(lake: DeltaLake, said: str, table: str, version: int) -> Moment:
    newest = lake.version(table) if table in TABLES else None
    if newest is None or version > newest:
        has = f"its newest is {table}@{newest}" if newest is not None else f"tables are {', '.join(TABLES)}"
        raise SettingsError(f"there is no commit {said!r} in {lake.uri}; {has}")
    until = lake.written_at(table, version)
    # Of two commits in one millisecond, that of this table is the one that was asked for.
    return Moment(said, until, _versions(lake, until) | {table: version})


def _head(lake: DeltaLake, said: str) -> Moment:
    """What the ledger had sealed when its head began so."""
    versions: dict[str, int] = {}
    last: tuple[str, int] | None = None
    for line, _ in () if lake.ledger is None else lake.ledger.lines():
        if line is None:
            break
        if line.at is None:
            versions |= line.content.get("opened", {})
        else:
            last = line.at
            versions[last[0]] = max(last[1], versions.get(last[0], 0))
        if line.hash.startswith(said) and last is not None:
            return Moment(
                said, lake.written_at(*last), {name: found for name, found in versions.items() if name in TABLES}
            )
    raise SettingsError(
        f"no line of the ledger of {lake.uri} has a hash that begins with {said}; `audit` looks at all of them"
    )


class LakeThen(Lake):
    """A lake as it was at a moment. It can be read only."""

    def __init__(self, lake: Lake, moment: Moment) -> None:
        self.today = lake
        self.moment = moment
        self.uri = lake.uri

    def scan(
        self, table: str, *, layer: int | None = None, neurons: Sequence[int] | None = None, version: int | None = None
    ) -> pl.LazyFrame:
        """The rows that there were, or those of a version, which may not be a later one."""
        if table in NOTED and version is None:
            return self._noted(table, self.today.scan(table, layer=layer, neurons=neurons))
        then = self.moment.versions.get(table)
        if then is None:
            return TABLES[table].empty().lazy() if table in TABLES else self.today.scan(table)
        if version is not None and version > then:
            raise LakeError(f"table `{table}` had no version {version} yet at {self.moment.said}")
        return self.today.scan(table, layer=layer, neurons=neurons, version=then if version is None else version)

    def _noted(self, table: str, rows: pl.LazyFrame) -> pl.LazyFrame:
        by_then = pl.col(NOTED[table]) <= self.moment.until
        if table == "materializations":
            # The record of a write comes after it, so what it is of decides.
            names = pl.col("table")
            then = names.replace_strict(dict(self.moment.versions), default=-1, return_dtype=pl.Int64)
            by_then = pl.when(pl.col("version").is_null()).then(by_then).otherwise(pl.col("version") <= then)
        return rows.filter(by_then)

    def read(
        self, table: str, *, layer: int | None = None, neurons: Sequence[int] | None = None, version: int | None = None
    ) -> pl.DataFrame:
        """The same rows, in the order of the table."""
        spec = TABLES[table]
        found = collect(self.scan(table, layer=layer, neurons=neurons, version=version))
        return found.sort(spec.sort or spec.key)

    def rows(self, table: str, *, layer: int | None = None) -> int:
        """How many rows there were."""
        return int(collect(self.scan(table, layer=layer).select(pl.len())).item())

    def slices(self, table: str) -> Mapping[int | None, tuple[int, frozenset[str | None]]]:
        """Not known of a moment.

        Raises:
            LakeError: always.
        """
        raise LakeError(
            f"which commits hold the rows of `{table}` is only known of today's lake; leave out {self.moment.said}"
        )

    def run_ids(self, table: str, *, layer: int | None = None) -> set[str]:
        """The runs that wrote the rows that there were."""
        return set(self.read(table, layer=layer).get_column("run_id"))

    def version(self, table: str) -> int | None:
        """The version then; today's of a table whose rows say themselves when they came."""
        return self.today.version(table) if table in NOTED else self.moment.versions.get(table)

    def replace(self, table: str, frame: pl.DataFrame, **_: Any) -> Commit:  # noqa: ARG002 (the past is not written to)
        """Refused.

        Raises:
            LakeError: always.
        """
        raise LakeError(f"the lake as it was at {self.moment.said} cannot be written to")

    def add(self, table: str, frame: pl.DataFrame, **_: Any) -> Commit | None:  # noqa: ARG002 (the past is not written to)
        """Refused.

        Raises:
            LakeError: always.
        """
        raise LakeError(f"the lake as it was at {self.moment.said} cannot be written to")
