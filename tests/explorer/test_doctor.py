"""The command `doctor`: what a killed writer left is sealed or reported, and a lost history is told again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from explorer import doctor
from pipeline.provenance import frame_hash
from pipeline.tables import TABLES
from resources import delta


def treated(folder, *words):
    result = folder.type("doctor", "--no-endpoint", "--json", *words)
    return result.exit_code, json.loads(result.stdout)


def outcomes(found, of):
    return [each["outcome"] for each in found if each["of"] == of]


def conditions(lake, **how):
    return {(each.of, each.outcome): each.said for each in doctor.lake(lake, **how)}


def behind_its_back(lake, record):
    """A write without a line in the ledger, as of one that was killed before it."""
    ledger, lake.ledger = lake.ledger, None
    rows = lake.read("scores", layer=0)
    lake.replace("scores", rows, layer=0, record=record(rows))
    lake.ledger = ledger
    return lake.version("scores")


def test_a_lake_that_was_made_here_is_well(made):
    code, found = treated(made)
    assert code == 0
    assert {each["outcome"] for each in found} <= {"well", "not checked"}
    assert {"ledger", "model", "corpus", "disk"} <= {each["of"] for each in found}


def test_a_commit_whose_writer_died_before_its_line_is_sealed_and_said_to_be_so(copied):
    lake = copied.lake
    version = behind_its_back(
        lake, lambda rows: {"layer": 0, "neurons": None, "content_hash": frame_hash(rows, key=TABLES["scores"].key)}
    )
    assert copied.type("audit", "--quick").exit_code == 1
    said = conditions(lake)["ledger", "mended"]
    assert said == (
        f"scores version {version} had no line in the ledger, and is sealed now: its rows are those that it recorded"
    )
    found = json.loads(copied.type("audit", "--quick", "--json").stdout)["checks"][2]
    assert found["findings"] == []
    assert found["notes"] == [f"1 commits were sealed afterwards, by doctor: scores version {version}"]


def test_a_commit_that_nothing_vouches_for_is_reported_and_sealed_only_on_request(copied):
    lake = copied.lake
    version = behind_its_back(lake, lambda _: {"layer": 0, "content_hash": "sha256:another"})
    assert "nothing vouches for its rows" in conditions(lake)["ledger", "ill"]
    assert copied.type("doctor", "--no-endpoint").exit_code == 1
    assert ("ledger", "ill") not in conditions(lake, seal_all=True)
    assert lake.ledger.path.read_text(encoding="ascii").splitlines()[-1].count("doctor, as it stood") == 1
    assert version == lake.version("scores")


@pytest.mark.parametrize("left", [b"", b"[1]", b'{"commitInfo": {"time'])
def test_a_commit_that_a_power_cut_spoiled_is_named_and_never_sealed(copied, left):
    version = behind_its_back(copied.lake, lambda _: {})
    commit = copied.home / "lake" / "subject" / "scores" / "_delta_log" / f"{version:020}.json"
    commit.write_bytes(left)
    before = copied.lake.ledger.path.read_bytes()
    code, found = treated(copied, "--seal-all")
    assert (code, "mended" in outcomes(found, "ledger")) == (1, False)
    assert "ill" in outcomes(found, "lake")
    assert copied.lake.ledger.path.read_bytes() == before


def test_a_sealed_commit_that_is_gone_is_reported(copied):
    version = copied.lake.version("scores")
    (copied.home / "lake" / "subject" / "scores" / "_delta_log" / f"{version:020}.json").unlink()
    code, found = treated(copied)
    assert code == 1
    assert f"scores version {version} is sealed, but its commit is gone" in [each["said"] for each in found]


def test_a_commit_that_lays_rows_out_anew_is_sealed_if_they_are_the_same(copied, monkeypatch):
    lake = copied.lake
    monkeypatch.setattr(delta, "SMALL_FILES", 1)
    monkeypatch.setattr(lake.ledger, "seal", lambda *_, **__: None)
    lake._lay_together(TABLES["materializations"])
    monkeypatch.undo()
    version = lake.version("materializations")
    assert conditions(lake)["ledger", "mended"] == (
        f"materializations version {version} had no line in the ledger, and is sealed now: it lays the same rows out in fewer files"
    )
    assert json.loads(copied.type("audit", "--quick", "--json").stdout)["checks"][2]["findings"] == []


def test_replies_are_sealed_only_if_their_requests_have_their_hashes(copied):
    lake = copied.lake
    schema = TABLES["language_calls"].schema
    names = {
        "endpoint": "http://e",
        "model": "m",
        "request": "{}",
        "seconds": 1.0,
        "attempts": 1,
        "identity": "i",
        "run_id": "r",
    }
    row = {**dict.fromkeys(schema), **names, "missing_because": "refused", "answered_at": pl.datetime(2026, 1, 1)}
    ledger, lake.ledger = lake.ledger, None
    moment = pl.select(pl.datetime(2026, 1, 1, time_zone="UTC", time_unit="us")).item()
    frame = pl.DataFrame([{**row, "request_id": "sha256:0", "answered_at": moment}], schema=schema)
    lake.add("language_calls", frame, record={})
    lake.ledger = ledger
    assert "nothing vouches" in conditions(lake, mend=False)["ledger", "ill"]


def test_a_lake_from_before_the_ledger_can_be_sealed_as_it_stands(copied):
    lake = copied.lake
    shutil.rmtree(lake.ledger.path.parent)
    assert "seals them as they stand" in conditions(lake)["ledger", "not checked"]
    assert "are sealed as they stand" in conditions(lake, seal_all=True)["ledger", "mended"]
    found = json.loads(copied.type("audit", "--quick", "--json").stdout)["checks"]
    assert [check["outcome"] for check in found[:1] + found[2:4]] == ["clean"] * 3


def test_with_the_dagster_instance_deleted_its_history_is_told_again(made, tmp_path):
    folder = made.copy(tmp_path, on_disk=True)
    assert not (folder.home / "dagster_home").exists()
    code, found = treated(folder)
    assert code == 0
    assert outcomes(found, "history") == ["mended"]
    _, again = treated(folder)
    assert outcomes(again, "history") == ["well"]
    checks = {check["id"]: check for check in json.loads(folder.type("audit", "--quick", "--json").stdout)["checks"]}
    assert checks["A10"]["outcome"] == "clean"
    assert folder.not_fresh() == {}


def test_a_model_or_a_corpus_that_is_gone_is_named(copied):
    shutil.rmtree(copied.home / "subject")
    (copied.home / "corpus.jsonl").unlink()
    code, found = treated(copied, "--look-only")
    assert code == 1
    assert outcomes(found, "model") == ["ill"]
    assert outcomes(found, "corpus") == ["ill"]


@pytest.mark.parametrize("damage", ["runs.db", "dagster.yaml"])
def test_a_dagster_folder_that_cannot_be_read_is_named_and_the_lake_answers_without_it(made, tmp_path, damage):
    folder = replace(made, home=Path(shutil.copytree(made.home, tmp_path / "copy")))
    # Other tests may have given this home another lake, whose folder lies beside this one.
    (file,) = (folder.home / "dagster_home" / "subject").rglob(damage)
    file.write_bytes(b"telemetry: [" * 50)
    code, found = treated(folder)
    (said,) = [each["said"] for each in found if each["of"] == "Dagster"]
    assert (code, "cannot be used" in said, "move it away" in said) == (1, True, True)
    checks = {check["id"]: check for check in json.loads(folder.type("audit", "--quick", "--json").stdout)["checks"]}
    assert "there is no Dagster instance at hand" in checks["A10"]["not_checked"]
    result = folder.type("run", "--neurons", "0:1")
    assert (result.exit_code, "cannot be used" in result.stderr) == (2, True)
