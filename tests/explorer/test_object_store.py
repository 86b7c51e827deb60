"""A whole run with its lake on an object store: the same rows as in a folder, and no credential anywhere."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from explorer import offline
from pipeline.provenance import frame_hash
from pipeline.tables import TABLES
from resources.delta import DeltaLake

MADE = [name for name in TABLES if name not in ("language_calls", "materializations")]

sys.path.append(str(Path(__file__).parents[1] / "faults"))

from object_store import CREDENTIALS, SECRET, Store  # noqa: E402


@pytest.fixture(scope="module")
def reached() -> Iterator[Store]:
    with Store() as store, store.environment():
        yield store


def test_a_run_on_an_object_store_leaves_the_rows_of_one_in_a_folder_and_no_credential(reached, made, empty, tmp_path):
    uri = reached.bucket("ledger")
    folder = empty.copy(tmp_path, on_disk=True)

    run = folder.type("run", "--layers", "1", "--lake", uri)

    assert run.exit_code == 0, run.output
    on_store, in_folder = DeltaLake(uri), made.lake
    compared = []
    for name in MADE:
        layer = 1 if TABLES[name].by_layer else None
        here, there = (lake.read(name, layer=layer).drop("run_id", strict=False) for lake in (in_folder, on_store))
        assert frame_hash(here, key=TABLES[name].key) == frame_hash(there, key=TABLES[name].key), name
        compared += [name] if len(here) else []
    assert {"sequences", "activations", "exemplars", "explanations", "simulations", "scores"} <= set(compared)
    assert not (folder.home / "lake").exists()

    # The ledger is the same there: a run ends with its head, an audit holds the store to it, and a bundle checks itself.
    head = on_store.ledger_head()
    assert run.stdout.splitlines()[-1].split() == ["the", "ledger", head]
    audit = json.loads(folder.type("audit", "--quick", "--json", "--anchor", head, "--lake", uri).stdout)
    assert audit["head"] == head
    outcomes = {check["id"]: check["outcome"] for check in audit["checks"]}
    assert {outcomes[f"A{number}"] for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)} == {"clean"}
    assert folder.type("export", "prov", "bundle", "--lake", uri).exit_code == 0
    assert offline.look(folder.home / "bundle", anchor=head)[0] == []

    written = reached.everything() + b"".join(path.read_bytes() for path in folder.home.rglob("*") if path.is_file())
    assert b"commit_uuid" in written
    assert SECRET.encode() not in written
    assert CREDENTIALS["AWS_ACCESS_KEY_ID"].encode() not in written


def test_a_bucket_that_is_not_there_is_one_line(reached, empty, tmp_path):
    result = empty.copy(tmp_path).type("run", "--lake", "s3://nowhere/lake")
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert "s3://nowhere/lake/subject_layers" in line
    assert "NoSuchBucket" in line
