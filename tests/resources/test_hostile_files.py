"""Files of strangers: whatever is in them, each is taken or listed with a reason, and nothing outside the folder is touched."""

import gzip
import json
import os
from pathlib import Path

import pytest

from resources import foreign_files
from resources.foreign_files import FORMS, ForeignFiles

PLACES = {
    "openai": "collated-activations/0/1.json",
    "neuronpedia": "m/0/activations/batch-0.jsonl",
    "delphi": "scores/detection/layers.0_latent1.txt",
    "csv": "a.csv",
    "jsonl": "a.jsonl",
}
assert PLACES.keys() == FORMS.keys()

CONTENTS = {
    "nothing": b"",
    "a huge number": b'{"mean": 1e400, "layer": "0", "index": 1, "tokens": ["a"], "values": [1e400], "neuron": 1e400}',
    "a huge whole number": b'{"layer": "0", "index": ' + b"9" * 5000 + b"}",
    "half a character": rb'{"layer": "0", "index": 1, "tokens": ["\ud800"], "values": [1], "explanation": "\ud800", "neuron": 1}',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "UTF-16": "neuron,explanation\n0:1,dogs\n".encode("utf-16"),
    "Latin-1": "neuron,explanation\n0:1,déjà\n".encode("latin-1"),
    "zeros": b"\0" * 1000,
    "a duplicate key": b'{"layer": "0", "layer": 1, "index": 1, "index": 2, "neuron": 0, "neuron": [] }',
    "other kinds": b'{"layer": [], "index": {}, "tokens": 1, "values": "x", "neuron": null, "explanation": {}}',
    "a list": b"[[[]], 1, null, true]",
    "negative": b'{"layer": "-1", "index": -1, "neuron": -1, "explanation": "x"}',
    "no end of line": b'{"layer": "0"\r\r\r\n\x0b\x0c\x1c\x85"index": 1}',
    "colours": b'neuron,explanation\n0:1,"\x1b[2J"\n',
}


def lay(home: Path, form: str, data: bytes) -> Path:
    path = home / PLACES[form]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def told(home: Path, form: str) -> list[dict]:
    return [row for batch in ForeignFiles(processes=1).batches(form, str(home), source="s") for row in batch.files]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CONTENTS)
def test_any_content_is_taken_or_listed_with_a_reason(tmp_path, form, name):
    lay(tmp_path, form, CONTENTS[name])
    files = told(tmp_path, form)
    assert files[0]["path"] == PLACES[form]
    assert all((file["status"] == "rejected") == (file["reason"] is not None) for file in files)
    assert all(len(file["reason"] or "") < 300 for file in files)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_mark_before_the_text_and_either_end_of_line_are_read(tmp_path, form, end):
    lines = {
        "csv": [b"neuron,explanation", b"0:1,dogs", b"0:2,cats"],
        "jsonl": [b'{"neuron": "0:1", "explanation": "dogs"}', b'{"neuron": "0:2", "explanation": "cats"}'],
    }[form]
    lay(tmp_path, form, b"\xef\xbb\xbf" + end.join([*lines, b""]))
    (batch,) = ForeignFiles(processes=1).batches(form, str(tmp_path), source="s")
    assert batch.frames["imported_explanations"].get_column("text").to_list() == ["dogs", "cats"]
    assert [file["status"] for file in batch.files] == ["imported"]


def test_utf_16_is_named(tmp_path):
    lay(tmp_path, "csv", CONTENTS["UTF-16"])
    assert told(tmp_path, "csv")[0]["reason"] == "no UTF-8 but UTF-16; write it as UTF-8"


def test_a_packed_file_that_grows_without_end_and_a_plain_one_that_is_too_large_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign_files, "LARGEST", 10_000)
    (tmp_path / "m/0/features").mkdir(parents=True)
    (tmp_path / "m/0/features/batch-0.jsonl.gz").write_bytes(gzip.compress(b" " * 1_000_000))
    (tmp_path / "m/0/features/batch-1.jsonl").write_bytes(b" " * 10_001)
    assert [file["reason"] for file in told(tmp_path, "neuronpedia")] == [
        "it unpacks to more than 10,000 bytes", "it has more than 10,000 bytes"
    ]  # fmt: skip


def test_pipes_devices_and_folders_are_no_files(tmp_path):
    home = tmp_path / "explanations" / "0"
    home.mkdir(parents=True)
    os.mkfifo(home / "1.jsonl")
    (home / "2.jsonl").symlink_to("/dev/zero")
    (home / "3.jsonl").symlink_to(tmp_path)
    (home / "4.jsonl").symlink_to("4.jsonl")
    reasons = {file["path"]: file["reason"] for file in told(tmp_path, "openai")}
    no_file = "it is no file, but a device, a pipe or a folder"
    assert reasons["explanations/0/1.jsonl"] == reasons["explanations/0/2.jsonl"] == no_file
    assert "it cannot be read" in reasons["explanations/0/4.jsonl"]
    assert all(reasons.values())


def test_folders_are_not_followed_out_of_the_one_that_is_imported(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "b.csv").write_text("neuron,explanation\n0:1,dogs\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("neuron,explanation\n0:1,dogs\n")
    (tmp_path / "in" / "up").symlink_to(tmp_path / "outside")
    assert [file["path"] for file in told(tmp_path / "in", "csv")] == ["a.csv"]


def test_a_name_that_is_no_text_is_listed_and_the_others_are_taken(tmp_path):
    (tmp_path / "a.csv").write_text("neuron,explanation\n0:1,dogs\n")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.csv")).write_text("neuron,explanation\n0:1,dogs\n")
    assert [(file["path"], file["reason"]) for file in told(tmp_path, "csv")] == [
        ("a.csv", None), (r"\xff.csv", "its name is not UTF-8; rename it")
    ]  # fmt: skip


def test_a_neuron_that_is_there_twice_is_kept_with_both_explanations(tmp_path):
    lay(tmp_path, "csv", b"neuron,explanation\n0:1,dogs\n0:1,dogs\n")
    (batch,) = ForeignFiles(processes=1).batches("csv", str(tmp_path), source="s")
    assert batch.frames["imported_explanations"].get_column("explanation_id").n_unique() == 2


def test_a_list_of_explanations_and_a_feature_as_neuronpedia_gives_them_are_read(tmp_path):
    at = {"modelId": "gemma-2-2b", "layer": "20-gemmascope-mlp-16k"}
    said = {"description": " dogs", "explanationModelName": "gpt-4o-mini", "typeName": "oai_token-act-pair"}
    (tmp_path / "list.json").write_text(json.dumps([at | {"index": "1"} | said, at | {"index": "x"} | said]))
    feature = at | {
        "index": "2",
        "maxActApprox": 3.5,
        "pos_str": ["a"],
        "pos_values": [1.0],
        "explanations": [said | at],
    }
    feature["activations"] = [{"tokens": ["a", "b"], "values": [0, 3.5]}]
    (tmp_path / "one.json").write_text(json.dumps(feature))
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    (batch,) = ForeignFiles(processes=1).batches("neuronpedia", str(tmp_path), source="s")
    assert batch.frames["imported_explanations"].select("layer", "neuron", "text", "method").rows() == [
        (20, 1, " dogs", "oai_token-act-pair"), (20, 2, " dogs", "oai_token-act-pair")
    ]  # fmt: skip
    assert batch.frames["imported_records"].select("neuron", "peak").rows() == [(2, 3.5)]
    assert batch.frames["imported_neurons"].get_column("neuron").to_list() == [2]
    assert [(file["path"], file["status"]) for file in batch.files] == [
        ("list.json", "imported"), ("list.json: entry 1", "rejected"), ("one.json", "imported"), ("other.json", "rejected")
    ]  # fmt: skip


def test_other_json_beside_bulk_files_is_about_something_else(tmp_path):
    lay(tmp_path, "neuronpedia", b"")
    (tmp_path / "neuronledger.json").write_text("{}")
    assert [file["path"] for file in told(tmp_path, "neuronpedia")] == [PLACES["neuronpedia"]]
