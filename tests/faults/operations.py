"""Writes of a lake for fault tests: each with the rows that stand before it, and those that must stand after it.

A write that met a fault may have happened or not, never in part; and what its caller was told must be true. Whoever
then does it again must end where an undisturbed writer ends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

from pipeline.errors import LakeError
from pipeline.tables import TABLES
from resources import table_form
from resources.delta import DeltaLake

Rows = list[tuple[Any, ...]]

PLAIN = {pl.String: "x", pl.Boolean: False, pl.Int32: 1, pl.Int64: 1, pl.Float32: 0.5, pl.Float64: 0.5, pl.Binary: b"x"}


def rows_of(table: str, **cells: list[Any]) -> pl.DataFrame:
    """Rows with these cells, and nothing of interest in the others."""
    count = len(next(iter(cells.values())))
    return pl.DataFrame(
        {
            name: pl.Series(
                cells.get(name, [None if column.nullable else _plain(column.type)] * count), dtype=column.type
            )
            for name, column in TABLES[table].columns.items()
        }
    )


def _plain(kind: Any) -> Any:
    if isinstance(kind, pl.List):
        return []
    return datetime(2026, 1, 1, tzinfo=UTC) if isinstance(kind, pl.Datetime) else PLAIN[kind]


def neurons(layer: int, indices: list[int], mark: str) -> pl.DataFrame:
    """One row of `neuron_statistics` for each neuron, with `mark` as its run."""
    return rows_of("neuron_statistics", layer=[layer] * len(indices), neuron=indices, run_id=[mark] * len(indices))


def calls(requests: list[str], mark: str) -> pl.DataFrame:
    """One row of `language_calls` for each request, with `mark` as its reply."""
    return rows_of("language_calls", request_id=requests, reply=[mark] * len(requests))


def stored(lake: DeltaLake, table: str) -> Rows:
    """What tells the rows of a table apart, in their order; duplicates stay."""
    columns = {
        "neuron_statistics": ["layer", "neuron", "run_id"],
        "language_calls": ["request_id", "reply"],
        "sequences": ["document_id", "run_id"],
    }[table]
    return sorted(lake.read(table).select(columns).rows())


NOTHING_WRITTEN = ("nothing was written", "cannot be made")
"""What a lake says only if no row was written."""


@dataclass(frozen=True)
class Operation:
    """One write: `prepare` comes before any fault, `do` meets it."""

    table: str
    prepare: Callable[[DeltaLake], object]
    do: Callable[[DeltaLake], object]
    before: Rows
    after: Rows


def _old(lake: DeltaLake) -> None:
    lake.replace("neuron_statistics", neurons(0, [0, 1, 2], "old"), layer=0, record={})
    lake.replace("neuron_statistics", neurons(1, [0], "other"), layer=1, record={})


def _nothing(_: DeltaLake) -> None:
    pass


def _many(lake: DeltaLake) -> None:
    """A table that writes a checkpoint with every second commit, the next one among them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(table_form.PROPERTIES, "delta.checkpointInterval", "2")
        _old(lake)
    if (lake.version("neuron_statistics") or 0) % 2:
        lake.replace("neuron_statistics", neurons(1, [0], "other"), layer=1, record={})


OLD: Rows = [(0, 0, "old"), (0, 1, "old"), (0, 2, "old"), (1, 0, "other")]

OPERATIONS = {
    "the first write of a table": Operation(
        "neuron_statistics",
        _nothing,
        lambda lake: lake.replace("neuron_statistics", neurons(0, [0], "new"), layer=0, record={}),
        [],
        [(0, 0, "new")],
    ),
    "a layer": Operation(
        "neuron_statistics",
        _old,
        lambda lake: lake.replace("neuron_statistics", neurons(0, [1, 2], "new"), layer=0, record={}),
        OLD,
        [(0, 1, "new"), (0, 2, "new"), (1, 0, "other")],
    ),
    "one neuron": Operation(
        "neuron_statistics",
        _old,
        lambda lake: lake.replace("neuron_statistics", neurons(0, [1], "new"), layer=0, neurons=[1], record={}),
        OLD,
        [(0, 0, "old"), (0, 1, "new"), (0, 2, "old"), (1, 0, "other")],
    ),
    "a layer, with a checkpoint": Operation(
        "neuron_statistics",
        _many,
        lambda lake: lake.replace("neuron_statistics", neurons(0, [1, 2], "new"), layer=0, record={}),
        OLD,
        [(0, 1, "new"), (0, 2, "new"), (1, 0, "other")],
    ),
    "a whole table": Operation(
        "sequences",
        lambda lake: lake.replace("sequences", rows_of("sequences", document_id=["a"], run_id=["old"]), record={}),
        lambda lake: lake.replace("sequences", rows_of("sequences", document_id=["b"], run_id=["new"]), record={}),
        [("a", "old")],
        [("b", "new")],
    ),
    "replies": Operation(
        "language_calls",
        lambda lake: lake.add("language_calls", calls(["a"], "old"), record={}),
        lambda lake: lake.add("language_calls", calls(["a", "b"], "new"), record={}),
        [("a", "old")],
        [("a", "old"), ("b", "new")],
    ),
}


def told(operation: Operation, lake: DeltaLake) -> str:
    """Do it, and give what the caller was told: "done", or the message of the lake's own error."""
    try:
        operation.do(lake)
    except LakeError as error:
        return str(error)
    return "done"


def wrong(operation: Operation, lake: DeltaLake, outcome: str | None) -> list[str]:
    """What is wrong with a lake after a write that met a fault, with what its caller was told (None: it was killed).

    Does the write once more, and looks again.
    """
    found: list[str] = []
    try:
        rows = stored(lake, operation.table)
    except Exception as error:  # noqa: BLE001 - whatever it is, the table is not readable
        return [f"unreadable: {error}"]
    if rows not in (operation.before, operation.after):
        found.append(f"{'duplicated' if len(set(rows)) < len(rows) else 'lost'}: {rows}")
    if outcome == "done" and rows != operation.after:
        found.append(f"lost: told done, but the rows are {rows}")
    if outcome is not None and outcome.startswith("raised"):
        found.append(f"told wrong: {outcome}")
    if outcome is not None and any(words in outcome for words in NOTHING_WRITTEN) and rows != operation.before:
        found.append(f"told wrong: {outcome}, but the rows are {rows}")
    try:
        operation.do(lake)
        again = stored(lake, operation.table)
    except Exception as error:  # noqa: BLE001
        return [*found, f"unreadable: the write could not be done again: {error}"]
    if again != operation.after:
        found.append(f"{'duplicated' if len(set(again)) < len(again) else 'lost'} when done again: {again}")
    return found
