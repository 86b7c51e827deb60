"""The ledger: one line for each commit, whoever writes and however often a writer dies; and what it gives away."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import LakeError
from pipeline.tables import TABLES
from resources import integrity as integrity_of
from resources import ledger, table_form
from resources.delta import DeltaLake
from resources.integrity import integrity, read_chain

HERE = Path(__file__)
TABLE = "subject_layers"


def rows(layer: int, n_neurons: int = 4) -> pl.DataFrame:
    row = {
        "layer": layer, "subject": "s", "site": "mlp", "n_neurons": n_neurons, "signed": False, "fingerprint": "sha256:0",
        "identity": f"sha256:{layer}", "run_id": "r",
    }  # fmt: skip
    return pl.DataFrame([row], schema=TABLES[TABLE].schema)


def lake_with(folder: Path, *layers: int) -> DeltaLake:
    lake = DeltaLake(folder)
    for layer in layers:
        lake.replace(TABLE, rows(layer), layer=layer, record={})
    return lake


@pytest.fixture
def lake(tmp_path: Path, monkeypatch) -> DeltaLake:
    monkeypatch.setattr(integrity_of, "PATIENCE", 0.0)
    return lake_with(tmp_path / "lake", 0, 1, 2)


def found(lake: DeltaLake, *anchors: str) -> dict[str, list[str]]:
    checks, _ = integrity(lake, anchors=anchors)
    return {check.id: list(check.findings) for check in checks if check.findings}


def commit_file(lake: DeltaLake, version: int) -> Path:
    return Path(lake.uri) / TABLE / "_delta_log" / f"{version:020}.json"


def test_every_commit_has_one_line_and_the_last_one_is_the_head(lake):
    lines = [line for line, _ in ledger.read(lake.ledger.path)]
    assert [line.at for line in lines] == [(TABLE, version) for version in range(4)]
    assert [line.content["prev"] for line in lines[1:]] == [line.hash for line in lines[:-1]]
    assert lake.ledger.head() == lines[-1].hash
    assert found(lake) == {}


def test_a_write_tells_its_caller_the_head(lake):
    commit = lake.replace(TABLE, rows(5), layer=5, record={})
    assert commit.ledger_head == lake.ledger.head()


def test_a_lake_from_before_the_ledger_goes_on_and_says_what_is_not_covered(lake):
    shutil.rmtree(lake.ledger.path.parent)
    again = lake_with(Path(lake.uri), 3)
    assert [line.at for line, _ in ledger.read(again.ledger.path)] == [None, (TABLE, 4)]
    checks = {check.id: check for check in integrity(again)[0]}
    assert not any(check.findings for check in checks.values())
    assert checks["A3"].not_checked == "4 commits from before the ledger began"
    assert checks["A4"].not_checked == "3 data files from before the ledger began"


def test_a_lake_without_a_ledger_is_no_finding_and_not_called_checked(lake):
    shutil.rmtree(lake.ledger.path.parent)
    checks = {check.id: check.outcome for check in integrity(lake)[0]}
    assert checks == {"A1": "not checked", "A2": "not checked", "A3": "not checked", "A4": "not checked", "A6": "clean"}


def test_half_a_line_is_taken_away_by_the_next_writer(lake):
    with lake.ledger.path.open("ab") as file:
        file.write(b'{"commit":"sha256:7')
    assert found(lake) == {}
    lake_with(Path(lake.uri), 3)
    assert found(lake) == {}
    assert len(list(ledger.read(lake.ledger.path))) == 5


def test_nothing_is_written_on_a_damaged_ledger(lake):
    lake.ledger.path.write_bytes(lake.ledger.path.read_bytes().replace(b"writer", b"Writer", 1))
    with pytest.raises(LakeError, match=r"line 0 of the ledger .* is damaged; restore"):
        DeltaLake(lake.uri).replace(TABLE, rows(3), layer=3, record={})
    assert lake.version(TABLE) == 3


def test_a_row_edited_in_its_file_is_found(lake):
    file = next((Path(lake.uri) / TABLE).glob("layer=1/*.parquet"))
    pl.read_parquet(file).with_columns(pl.lit(7, pl.Int32).alias("n_neurons")).write_parquet(file)
    assert list(found(lake)) == ["A4"]


def test_a_row_edited_through_delta_is_found(lake):
    lake.ledger = None
    lake.replace(TABLE, rows(1, n_neurons=7), layer=1, record={})
    assert list(found(DeltaLake(lake.uri))) == ["A3"]


@pytest.mark.parametrize("version", [1, 3])
def test_a_commit_that_was_taken_away_is_found(lake, version):
    commit_file(lake, version).unlink()
    assert f"{TABLE} version {version} is sealed, but its commit is gone" in found(lake)["A3"]


def test_a_commit_that_was_emptied_is_found(lake):
    commit_file(lake, 3).write_bytes(b"")
    assert any("empty, cut off or damaged" in finding for finding in found(lake)["A3"])


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_line_that_was_taken_away_is_found(lake, place):
    lines = lake.ledger.path.read_bytes().splitlines(keepends=True)
    lake.ledger.path.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
    assert found(lake)


def test_only_an_anchor_tells_that_the_newest_commit_and_its_line_were_taken_away(lake):
    head = lake.ledger.head()
    commit_file(lake, 3).unlink()
    lake.ledger.path.write_bytes(b"".join(lake.ledger.path.read_bytes().splitlines(keepends=True)[:-1]))
    assert found(lake) == {}
    assert list(found(lake, head)) == ["A2"]


def test_only_an_anchor_tells_that_the_ledger_was_written_anew(lake):
    head = lake.ledger.head()
    file = next((Path(lake.uri) / TABLE).glob("layer=1/*.parquet"))
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    lake.ledger.path.unlink()
    for version in range(4):
        lake.ledger.seal(TABLE, version)
    assert found(lake) == {}
    assert list(found(lake, head)) == ["A2"]


def test_an_anchor_from_before_later_writes_holds_and_they_are_told(lake):
    head = lake.ledger.head()
    lake.replace(TABLE, rows(3), layer=3, record={})
    checks = {check.id: check for check in integrity(lake, anchors=[head])[0]}
    assert checks["A2"].outcome == "clean"
    assert checks["A2"].notes == [f"1 commits came after the head that was noted last: {TABLE} version 4"]


def test_a_checkpoint_that_names_other_files_than_the_commits_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(table_form.PROPERTIES, "delta.checkpointInterval", "2")
    monkeypatch.setattr(integrity_of, "PATIENCE", 0.0)
    lake = lake_with(tmp_path / "lake", 0, 1, 2)
    checkpoint = next((tmp_path / "lake" / TABLE / "_delta_log").glob("*.checkpoint.parquet"))
    assert found(lake) == {}
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1] + b"!")
    assert "A4" in found(DeltaLake(lake.uri))


FLIPS = int(os.environ.get("NEURONLEDGER_BIT_FLIPS", "60"))
"""600 of them take about ten times as long."""


def test_every_flipped_bit_is_found(tmp_path, monkeypatch):
    """In data files, commits and the ledger alike."""
    monkeypatch.setattr(integrity_of, "PATIENCE", 0.0)
    lake = lake_with(tmp_path / "lake", 0, 1, 2)
    files = [path for path in Path(lake.uri).rglob("*") if path.is_file() and path.name != "lock"]
    kinds = [[path for path in files if path.suffix == suffix] for suffix in (".parquet", ".json", ".jsonl")]
    drawn, missed = random.Random(1), []
    for number in range(FLIPS):
        path = drawn.choice(kinds[number % 3])
        whole = path.read_bytes()
        bit = drawn.randrange(8 * len(whole))
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        if not found(lake):
            missed.append((path.name, bit))
        path.write_bytes(whole)
    assert missed == []
    assert found(lake) == {}


WRITER = """
import sys
sys.path[:0] = [{root!r}, {here!r}]
from test_ledger import DeltaLake, rows, TABLE
lake = DeltaLake({lake!r})
for layer in range({first}, {last}):
    lake.replace(TABLE, rows(layer), layer=layer, record={{}})
    print(layer, flush=True)
"""


def writer(lake: Path, first: int, last: int) -> "subprocess.Popen[str]":
    program = WRITER.format(root=str(HERE.parents[2]), here=str(HERE.parent), lake=str(lake), first=first, last=last)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def test_several_processes_write_one_chain(tmp_path, monkeypatch):
    monkeypatch.setattr(integrity_of, "PATIENCE", 0.0)
    lake = lake_with(tmp_path / "lake", 99)
    writers = [writer(tmp_path / "lake", 10 * number, 10 * number + 6) for number in range(3)]
    for each in writers:
        each.communicate()
        assert each.returncode == 0
    assert found(lake) == {}
    assert len(read_chain(lake).sealed) == 2 + 18


def test_a_writer_that_is_killed_leaves_at_most_its_own_commit_without_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(integrity_of, "PATIENCE", 0.0)
    lake = lake_with(tmp_path / "lake", 99)
    each = writer(tmp_path / "lake", 0, 90)
    for _ in range(5):
        each.stdout.readline()
    each.send_signal(signal.SIGKILL)
    each.communicate()
    assert each.returncode == -signal.SIGKILL
    lake.replace(TABLE, rows(98), layer=98, record={})
    findings = found(lake)
    assert set(findings) <= {"A3"}
    assert len(findings.get("A3", ())) <= 1


def test_what_a_ledger_says_can_be_checked_with_the_standard_library_alone(lake):
    for text in lake.ledger.path.read_text(encoding="ascii").splitlines():
        line = json.loads(text)
        stated = line.pop("hash")
        body = json.dumps(line, sort_keys=True, separators=(",", ":")).encode("ascii")
        assert stated == f"sha256:{hashlib.sha256(body).hexdigest()}"
