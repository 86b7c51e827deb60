"""What the lake promises of several writers: no row is lost, none is doubled, and each knows its own commit."""

import multiprocessing
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from queue import Queue
from threading import Barrier
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

from pipeline.errors import LakeError
from resources import delta
from resources.delta import DeltaLake

WRITERS = 2
WRITES = 8


PLAIN = {pl.String: "x", pl.Boolean: False, pl.Int32: 1, pl.Int64: 1, pl.Float32: 0.5, pl.Float64: 0.5}


def rows_of(table: str, **cells: list[Any]) -> pl.DataFrame:
    """Rows with these cells, and nothing of interest in the others."""
    count = len(next(iter(cells.values())))
    columns = delta.declaration(table).columns
    return pl.DataFrame(
        {
            name: pl.Series(
                cells.get(name, [None if column.nullable else plain(column.type)] * count), dtype=column.type
            )
            for name, column in columns.items()
        }
    )


def plain(kind: Any) -> Any:
    if isinstance(kind, pl.List):
        return []
    return datetime(2026, 1, 1, tzinfo=UTC) if isinstance(kind, pl.Datetime) else PLAIN[kind]


def statistics(layer: int, neurons: list[int], *, mark: str) -> pl.DataFrame:
    """One row of `neuron_statistics` for each neuron, with `mark` as its run."""
    return rows_of("neuron_statistics", layer=[layer] * len(neurons), neuron=neurons, run_id=[mark] * len(neurons))


def calls(request_ids: list[str], *, mark: str) -> pl.DataFrame:
    """One row of `language_calls` for each request, with `mark` as its reply."""
    return rows_of("language_calls", request_id=request_ids, reply=[mark] * len(request_ids))


def text(document: str) -> pl.DataFrame:
    """One sequence of one document."""
    return rows_of("sequences", document_id=[document])


# What a writer does, in a process of its own.


def write_neurons_of_one_layer(lake: DeltaLake, writer: int, turn: int) -> Any:
    neuron = writer * WRITES + turn
    return lake.replace(
        "neuron_statistics", statistics(0, [neuron], mark=f"{writer}"), layer=0, neurons=[neuron], record={"n": neuron}
    )


def write_own_layers(lake: DeltaLake, writer: int, turn: int) -> Any:
    layer = writer * WRITES + turn
    return lake.replace(
        "neuron_statistics", statistics(layer, [0, 1], mark=f"{writer}"), layer=layer, record={"n": layer}
    )


def write_the_same_layer(lake: DeltaLake, writer: int, turn: int) -> Any:
    return lake.replace(
        "neuron_statistics", statistics(0, [0, 1, 2], mark=f"{writer}.{turn}"), layer=0, record={"n": turn}
    )


def replace_all_sequences(lake: DeltaLake, writer: int, turn: int) -> Any:
    return lake.replace("sequences", text(f"{writer}.{turn}"), record={"n": turn})


def add_the_same_requests(lake: DeltaLake, writer: int, turn: int) -> Any:
    requests = [f"{turn}.{number}" for number in range(5)]
    return lake.add("language_calls", calls(requests, mark=f"{writer}.{turn}"), record={"n": turn})


Turn = Callable[[DeltaLake, int, int], Any]


def take_turns(uri: str, writer: int, start: Barrier, results: "Queue[Any]", turn: Turn) -> None:
    try:
        lake = DeltaLake(uri)
        commits = []
        for number in range(WRITES):
            start.wait(timeout=60)
            commits.append(turn(lake, writer, number))
        results.put(commits)
    except BaseException as error:
        results.put(error)
        start.abort()
        raise


def at_once(uri: Path, turn: Turn) -> list[Any]:
    """The commits of writers in processes of their own, which start each turn together."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(WRITERS), context.Queue()
    writers = [
        context.Process(target=take_turns, args=(str(uri), writer, start, results, turn)) for writer in range(WRITERS)
    ]
    for process in writers:
        process.start()
    outcomes = [results.get(timeout=120) for _ in writers]
    for process in writers:
        process.join(timeout=60)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert not errors, errors
    return [commit for commits in outcomes for commit in commits]


def each_commit_is_its_own(lake: DeltaLake, table: str, commits: list[Any]) -> None:
    logged = {entry["commit_uuid"]: entry["version"] for entry in lake.history(table) if entry["commit_uuid"]}
    assert logged == {commit.commit_uuid: commit.version for commit in commits}
    assert len(set(logged.values())) == len(commits)


@pytest.mark.parametrize("turn", [write_neurons_of_one_layer, write_own_layers])
def test_writers_of_different_slices_lose_and_double_no_row(tmp_path: Path, turn: Turn) -> None:
    commits = at_once(tmp_path, turn)
    lake = DeltaLake(tmp_path)
    rows = lake.read("neuron_statistics").select("layer", "neuron", "run_id").rows()
    if turn is write_own_layers:
        expected = [(at, neuron, f"{at // WRITES}") for at in range(WRITERS * WRITES) for neuron in (0, 1)]
    else:
        expected = [(0, at, f"{at // WRITES}") for at in range(WRITERS * WRITES)]
    assert rows == expected
    assert len(commits) == WRITERS * WRITES
    each_commit_is_its_own(lake, "neuron_statistics", commits)


def test_of_two_writers_of_one_layer_the_later_stands_whole(tmp_path: Path) -> None:
    commits = at_once(tmp_path, write_the_same_layer)
    lake = DeltaLake(tmp_path)
    for commit in commits:
        then = lake.read("neuron_statistics", version=commit.version)
        assert then.get_column("neuron").to_list() == [0, 1, 2]
        assert then.get_column("run_id").n_unique() == 1
    each_commit_is_its_own(lake, "neuron_statistics", commits)


def test_of_two_writers_of_a_whole_table_the_later_stands_alone(tmp_path: Path) -> None:
    commits = at_once(tmp_path, replace_all_sequences)
    lake = DeltaLake(tmp_path)
    assert {lake.read("sequences", version=commit.version).height for commit in commits} == {1}
    each_commit_is_its_own(lake, "sequences", commits)


def test_two_writers_that_add_one_request_leave_one_row(tmp_path: Path) -> None:
    commits = [commit for commit in at_once(tmp_path, add_the_same_requests) if commit]
    lake = DeltaLake(tmp_path)
    rows = lake.read("language_calls").select("request_id", "reply").rows()
    assert [request for request, _ in rows] == sorted(
        f"{turn}.{number}" for turn in range(WRITES) for number in range(5)
    )
    assert all(reply.endswith(request.split(".")[0]) for request, reply in rows)
    each_commit_is_its_own(lake, "language_calls", commits)


# The same meetings, one for certain: the other writer comes between the reading of the table and the commit.


def overtaken_by(monkeypatch: pytest.MonkeyPatch, other: Callable[[], Any], *, times: int = 1) -> list[str]:
    """Let `other` write just before each of the next `times` commits; gives the errors that this caused."""
    errors: list[str] = []
    left = [times]

    def write(*args: Any, **kwargs: Any) -> None:
        if left[0] > 0:
            left[0] -= 1
            with monkeypatch.context() as undisturbed:
                undisturbed.setattr(delta, "write_deltalake", write_deltalake)
                other()
        try:
            write_deltalake(*args, **kwargs)
        except CommitFailedError as error:
            errors.append(str(error))
            raise

    monkeypatch.setattr(delta, "write_deltalake", write)
    return errors


@pytest.mark.parametrize("before", [[], [0, 1, 2]], ids=["absent layer", "present layer"])
def test_a_layer_write_that_was_overtaken_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[int]
) -> None:
    lake = DeltaLake(tmp_path)
    lake.replace("neuron_statistics", statistics(1, [0], mark="other layer"), layer=1, record={})
    if before:
        lake.replace("neuron_statistics", statistics(0, before, mark="old"), layer=0, record={})
    errors = overtaken_by(
        monkeypatch,
        lambda: lake.replace("neuron_statistics", statistics(0, [5, 6], mark="theirs"), layer=0, record={}),
        times=3,
    )
    commit = lake.replace("neuron_statistics", statistics(0, [6, 7], mark="ours"), layer=0, record={})
    assert len(errors) == 3
    assert lake.read("neuron_statistics").select("neuron", "run_id").rows() == [
        (6, "ours"),
        (7, "ours"),
        (0, "other layer"),
    ]
    assert commit.version == lake.version("neuron_statistics")


def test_a_whole_table_write_that_was_overtaken_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = DeltaLake(tmp_path)
    errors = overtaken_by(monkeypatch, lambda: lake.replace("sequences", text("theirs"), record={}))
    lake.replace("sequences", text("ours"), record={})
    assert len(errors) == 1
    assert lake.read("sequences").get_column("document_id").to_list() == ["ours"]


def test_an_addition_that_was_overtaken_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = DeltaLake(tmp_path)
    lake.add("language_calls", calls(["z"], mark="old"), record={})
    errors = overtaken_by(monkeypatch, lambda: lake.add("language_calls", calls(["a", "b"], mark="theirs"), record={}))
    commit = lake.add("language_calls", calls(["b", "c"], mark="ours"), record={})
    assert commit is not None
    assert (len(errors), commit.rows) == (1, 1)
    rows = lake.read("language_calls").select("request_id", "reply").rows()
    assert rows == [("a", "theirs"), ("b", "theirs"), ("c", "ours"), ("z", "old")]
    assert lake.add("language_calls", calls(["b", "c"], mark="ours"), record={}) is None


def test_a_writer_gives_up_when_others_never_let_it_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = DeltaLake(tmp_path)
    monkeypatch.setattr(delta, "TRIES", 3)
    overtaken_by(monkeypatch, lambda: lake.replace("sequences", text("theirs"), record={}), times=9)
    with pytest.raises(
        LakeError, match=r"nothing was written to the whole table of .*other writers came first 3 times"
    ):
        lake.replace("sequences", text("ours"), record={})
    assert lake.read("sequences").get_column("document_id").to_list() == ["theirs"]


def test_two_makers_of_one_table_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, other = DeltaLake(tmp_path), DeltaLake(tmp_path)
    make = DeltaLake._create

    def beaten(self: DeltaLake, spec: Any) -> DeltaTable:
        table = make(self, spec)
        if self is lake:
            other.replace("neuron_statistics", statistics(1, [0], mark="theirs"), layer=1, record={})
        return table

    monkeypatch.setattr(DeltaLake, "_create", beaten)
    lake.replace("neuron_statistics", statistics(0, [0], mark="ours"), layer=0, record={})
    assert lake.read("neuron_statistics").get_column("run_id").to_list() == ["ours", "theirs"]
