"""A lake on an object store: the same tables, through a wire that is cut, and under several writers at once."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from object_store import KINDS, Store, Wire
from operations import OPERATIONS, calls, neurons, stored, told, wrong

from pipeline.errors import LakeError
from resources.delta import DeltaLake
from resources.integrity import integrity
from resources.lake_files import StoredFiles

FOLDER = Path(__file__).parent
Say = Callable[[str], None]


@pytest.fixture(autouse=True)
def _reached_by_the_environment(store: Store) -> Iterator[None]:
    with store.environment():
        yield


def test_a_table_on_an_object_store_is_what_it_is_in_a_folder(store: Store) -> None:
    lake, other = DeltaLake(store.bucket("tables")), DeltaLake("s3://tables/lake")
    assert lake.version("neuron_statistics") is None
    assert lake.read("neuron_statistics").is_empty()
    commit = lake.replace("neuron_statistics", neurons(0, [0, 1], "a"), layer=0, record={"by": "a"})
    assert other.read("neuron_statistics").select("neuron", "run_id").rows() == [(0, "a"), (1, "a")]
    frame = other.scan("neuron_statistics")
    lake.replace("neuron_statistics", neurons(0, [1], "b"), layer=0, neurons=[1], record={"by": "b"})
    assert other.read("neuron_statistics").select("neuron", "run_id").rows() == [(0, "a"), (1, "b")]
    assert sorted(frame.select("neuron", "run_id").collect().rows()) == [(0, "a"), (1, "a")]
    assert lake.find_commit("neuron_statistics", commit.commit_uuid) == commit.version
    assert [entry["record"].get("by") for entry in other.history("neuron_statistics")][:2] == ["b", "a"]
    assert (lake.rows("neuron_statistics", layer=0), lake.run_ids("neuron_statistics")) == (2, {"a", "b"})
    assert lake.add("language_calls", calls(["x"], "first"), record={}) is not None
    assert other.add("language_calls", calls(["x"], "second"), record={}) is None


TAMPERED = {
    "a data file": ("A4", lambda name: name.endswith(".parquet"), lambda raw: raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]),
    "a commit": ("A3", lambda name: name.endswith("3.json") and "_delta_log" in name, lambda raw: raw + b" "),
    "a removed commit": ("A3", lambda name: name.endswith("3.json") and "_delta_log" in name, None),
    "a line": ("A1", lambda name: name.endswith("1.json") and "_ledger" in name, lambda raw: raw.replace(b"writer", b"nobody")),
    "a removed line": ("A1", lambda name: name.endswith("1.json") and "_ledger" in name, None),
}  # fmt: skip


def test_what_was_changed_behind_the_back_of_an_object_store_is_found(store: Store) -> None:
    lake = DeltaLake(store.bucket("tampered"))
    for number in range(3):
        commit = lake.replace("neuron_statistics", neurons(0, [number], "a"), layer=0, record={})
    checks, head = integrity(lake, anchors=[str(commit.ledger_head)])
    assert (head, [check.outcome for check in checks]) == (commit.ledger_head, ["clean"] * 5)
    for check, chosen, change in TAMPERED.values():
        (name,) = [name for name in store.keys("tampered") if chosen(name)][:1]
        raw = StoredFiles("s3://tampered").read(name)
        store.put("tampered", name, None if change is None else change(raw))
        found = {one.id for one in integrity(DeltaLake(lake.uri), anchors=[str(head)])[0] if one.findings}
        assert check in found, name
        store.put("tampered", name, raw)
    # The newest write and its line taken away together are told by the head alone.
    for name in (f"lake/_ledger/{4:020}.json", f"lake/neuron_statistics/_delta_log/{4:020}.json"):
        store.put("tampered", name, None)
    assert not any(one.findings for one in integrity(DeltaLake(lake.uri))[0])
    assert [one.id for one in integrity(DeltaLake(lake.uri), anchors=[str(head)])[0] if one.findings] == ["A2"]


def test_an_unchanged_table_is_not_read_anew(store: Store) -> None:
    store.bucket("again")
    with Wire(store) as wire, store.environment(wire.url):
        lake = DeltaLake("s3://again/lake")
        for number in range(3):
            lake.add("language_calls", calls([f"{number}"], "x"), record={})
        lake.rows("language_calls")
        before = wire.requests
        assert lake.rows("language_calls") == 3
        assert wire.requests - before <= 3


def test_a_table_that_was_removed_and_made_again_is_read_anew(store: Store) -> None:
    lake = DeltaLake(store.bucket("removed"))
    lake.replace("neuron_statistics", neurons(0, [0], "a"), layer=0, record={})
    assert stored(lake, "neuron_statistics") == [(0, 0, "a")]
    store.empty("removed")
    assert DeltaLake("s3://removed/lake").read("neuron_statistics").is_empty()
    DeltaLake("s3://removed/lake").replace("neuron_statistics", neurons(0, [1], "b"), layer=0, record={})
    assert stored(lake, "neuron_statistics") == [(0, 1, "b")]


def test_a_store_that_cannot_be_reached_is_named_on_one_line(store: Store) -> None:
    store.bucket("closed")
    with Wire(store) as wire, store.environment(wire.url):
        wire.happen("forbidden", from_there_on=True)
        with pytest.raises(LakeError, match=r"s3://closed/lake/sequences cannot be made: .*AccessDenied") as raised:
            OPERATIONS["a whole table"].prepare(DeltaLake("s3://closed/lake"))
    assert "\n" not in str(raised.value)
    assert "\x1b" not in str(raised.value)


def test_whatever_happens_to_a_request_nothing_is_lost_or_doubled(store: Store, every_case: bool, say: Say) -> None:
    names = list(OPERATIONS) if every_case else ["replies"]
    cases, bad = 0, []
    with Wire(store) as wire, store.environment(wire.url):
        for name in names:
            operation = OPERATIONS[name]
            lake = DeltaLake(store.bucket(f"undisturbed-{names.index(name)}"))
            operation.prepare(lake)
            wire.happen(None)
            assert told(operation, lake) == "done"
            assert stored(lake, operation.table) == operation.after
            points = len(wire.changes)
            for kind in KINDS if every_case else ("lost", "forbidden"):
                for at in range(points):
                    for from_there_on in {kind == "forbidden", False} if every_case else {kind == "forbidden"}:
                        wire.happen(None)
                        lake = DeltaLake(store.bucket(f"case-{cases}"))
                        operation.prepare(lake)
                        wire.happen(kind, at=at, from_there_on=from_there_on)
                        outcome = told(operation, lake)
                        wire.happen(None)
                        bad += [f"{name}, {kind} at {at}: {what}" for what in wrong(operation, lake, outcome)]
                        cases += 1
    say(f"object store: {cases} requests met a fault, {len(bad)} times something was lost, doubled or told wrong")
    assert not bad, "\n".join(bad)
    assert cases >= (70 if every_case else 4)


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from operations import calls, neurons
from resources.delta import DeltaLake
lake, writer, turns = DeltaLake(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
for turn in range(turns):
    number = writer * turns + turn
    one = lake.replace("neuron_statistics", neurons(0, [number], str(writer)), layer=0, neurons=[number], record={})
    lake.replace("neuron_statistics", neurons(1 + number, [0], str(writer)), layer=1 + number, record={})
    added = lake.add("language_calls", calls([f"{turn}.{each}" for each in range(3)], f"{writer}"), record={})
    print(one.version, added.version if added else -1, added.rows if added else 0, flush=True)
"""


def test_several_writers_lose_and_double_no_row(store: Store, every_case: bool) -> None:
    writers, turns = (4, 50) if every_case else (2, 3)
    uri = store.bucket("writers")
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WRITER, str(FOLDER), uri, str(writer), str(turns)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for writer in range(writers)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    told = [line.split() for process in processes for line in process.communicate("go\n")[0].splitlines()]
    assert [process.returncode for process in processes] == [0] * writers
    lake = DeltaLake(uri)
    one_layer = [(0, at, str(at // turns)) for at in range(writers * turns)]
    own_layers = [(1 + at, 0, str(at // turns)) for at in range(writers * turns)]
    assert stored(lake, "neuron_statistics") == one_layer + own_layers
    requests = [request for request, _ in stored(lake, "language_calls")]
    assert requests == sorted(f"{turn}.{each}" for turn in range(turns) for each in range(3))
    # The ledger is one chain, and has a line for each commit.
    checks, _ = integrity(lake)
    assert not any(check.findings for check in checks)
    assert not any(check.not_checked for check in checks if check.id != "A2")
    # Each writer knows its own commits, and no two say that they made the same one.
    ours = [int(version) for version, _, _ in told]
    added = [int(version) for _, version, rows in told if int(rows)]
    assert len(set(ours)) == len(ours) == writers * turns
    assert len(set(added)) == len(added)
    assert sum(int(rows) for _, _, rows in told) == 3 * turns
