"""`export prov`: a folder that checks itself with Python alone, and that the libraries of its formats read back."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from explorer import offline

prov = pytest.importorskip("prov.model", reason="the extra `audit` is not installed")
rocrate = pytest.importorskip("rocrate.rocrate", reason="the extra `audit` is not installed")
pytest.importorskip("openlineage.client", reason="the extra `audit` is not installed")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def exported(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "out"
    done = made.type("export", "prov", str(folder), "0:1", "--json")
    assert done.exit_code == 0, done.stderr
    return folder, json.loads(done.stdout)


def copied_bundle(exported, tmp_path):
    return Path(shutil.copytree(exported[0], tmp_path / "copy"))


def checked(folder, *words):
    """What verify.py says, run without a single installed package."""
    command = [sys.executable, "-I", "-S", str(folder / "verify.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_bundle_checks_itself_with_the_standard_library_alone(exported):
    folder, about = exported
    code, said = checked(folder, "--anchor", about["head"])
    assert code == 0, said
    assert said.splitlines()[-1] == "all is as it was sealed"


def test_a_changed_missing_or_added_file_is_found(exported, tmp_path):
    folder = copied_bundle(exported, tmp_path)
    file = next((folder / "tables" / "scores").rglob("*.parquet"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code, said = checked(folder)
    assert code == 1
    assert re.search(r"scores/layer=\d/.* is not the file sealed", said)
    file.write_bytes(whole)
    (folder / "stranger.txt").write_text("x")
    (folder / "prov.json").unlink()
    faults, _ = offline.look(folder)
    assert faults == ["prov.json is missing", "stranger.txt is in no manifest"]


def test_a_manifest_made_anew_does_not_hide_a_changed_ledger_or_file(exported, tmp_path):
    folder, about = copied_bundle(exported, tmp_path), exported[1]
    ledger = folder / "ledger" / "ledger.jsonl"
    *kept, last = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(kept))
    cut = json.loads(last)
    commit = f"tables/{cut['table']}/_delta_log/{cut['version']:020}.json"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["ledger/ledger.jsonl"] = offline.hashed(ledger)
    manifest["head"] = offline.chain(ledger)[0][-1]["hash"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert offline.look(folder)[0] == [f"the commit {cut['table']} version {cut['version']} is not in the ledger"]
    del manifest["files"][commit]
    (folder / commit).unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert offline.look(folder)[0] == []
    assert offline.look(folder, anchor=about["head"])[0] == [f"the ledger does not hold the head {about['head']}"]


def test_a_head_that_was_noted_tells_of_a_commit_that_was_added_and_of_a_ledger_that_was_taken_away(exported, tmp_path):
    bundle = copied_bundle(exported, tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    head, log = manifest["head"], bundle / "tables" / "scores" / "_delta_log"
    added = log / f"{max(int(file.stem) for file in log.glob('*.json')) + 1:020}.json"
    added.write_text("{}\n")
    manifest["files"][added.relative_to(bundle).as_posix()] = offline.hashed(added)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert offline.look(bundle, anchor=head)[0] == [f"the commit scores version {int(added.stem)} is not in the ledger"]
    manifest["files"] = {name: stated for name, stated in manifest["files"].items() if not name.startswith("ledger/")}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(bundle / "ledger")
    assert offline.look(bundle, anchor=head)[0] == [f"there is no ledger, and so none that holds the head {head}"]


def test_two_scores_of_a_neuron_are_both_told(made, tmp_path):
    names = made.table("scores", layer=0, neurons=[1]).drop_nulls("value")["identity"].unique().sort().to_list()[:2]
    said = made.type("export", "prov", str(tmp_path / "out"), *names, "--without-data", "--json")
    assert said.exit_code == 0, said.stderr
    assert len(list((tmp_path / "out" / "why").glob("*.txt"))) == len(names) == 2
    document = json.loads((tmp_path / "out" / "prov.json").read_text())["entity"].values()
    assert {entity["nl:identity"] for entity in document if entity.get("prov:type") == "nl:score"} == set(names)


def test_the_libraries_of_the_formats_read_it_back(exported):
    folder, _ = exported
    document = prov.ProvDocument.deserialize(folder / "prov.json")
    kinds = {str(record.get_attribute("prov:type").copy().pop()) for record in document.get_records(prov.ProvEntity)}
    assert {
        "nl:score",
        "nl:explanation",
        "nl:simulation",
        "nl:exemplar",
        "nl:sequence",
        "nl:document",
        "nl:file",
    } <= kinds
    crate = rocrate.ROCrate(folder)
    hashes = {entity.id: entity.get("sha256") for entity in crate.data_entities}
    assert f"sha256:{hashes['prov.json']}" == offline.hashed(folder / "prov.json")
    events = [json.loads(line) for line in (folder / "openlineage.jsonl").read_text().splitlines()]
    assert {event["eventType"] for event in events} == {"COMPLETE"}
    assert "scores/layer=0" in {output["name"] for event in events for output in event["outputs"]}


def test_the_same_lake_gives_the_same_bytes_but_for_times_of_the_crate(exported, made, tmp_path):
    again = tmp_path / "again"
    assert made.type("export", "prov", str(again), "0:1").exit_code == 0
    one, other = (json.loads((folder / "manifest.json").read_text())["files"] for folder in (exported[0], again))
    assert {name for name in one if one[name] != other.get(name)} <= {"ro-crate-metadata.json"}


def test_without_data_it_says_what_is_not_there(made, tmp_path):
    done = made.type("export", "prov", str(tmp_path / "out"), "--without-data")
    assert done.exit_code == 0
    assert not list((tmp_path / "out" / "tables").rglob("part-*.parquet"))
    code, said = checked(tmp_path / "out")
    assert code == 0
    assert "sealed data files that are not in this bundle" in said
    assert {path.suffix for path in (tmp_path / "out" / "why").iterdir()} == {".txt", ".json"}


@pytest.mark.parametrize("name", ["eu-ai-act.md", "eu-ai-act.fr.md"])
def test_the_page_for_auditors_names_commands_and_tables_that_exist(name):
    from pipeline.tables import TABLES

    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+)`", text)) - {"code", "environment", "audit", "documents"}
    assert named <= set(TABLES)
    assert text.count("\n| ") == 8
