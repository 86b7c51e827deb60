"""Files of other systems: found by their paths, parsed side by side, and listed when they are not what they should be."""

import gzip
import json

import pytest

from pipeline.errors import SettingsError
from resources import foreign_files
from resources.foreign_files import ForeignFiles


def write(folder, layer, neuron, text=None, kind="explanations"):
    path = folder / kind / str(layer) / f"{neuron}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {"neuron_id": {"layer_index": layer, "neuron_index": neuron}, "scored_explanations": []}
    path.write_text(json.dumps(value) if text is None else text, encoding="utf-8")


def batches(folder, **how):
    return list(ForeignFiles(**how).batches("openai", str(folder), source="s"))


def test_every_file_is_told_of_once_layer_by_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign_files, "NEURONS", 2)
    for layer, neuron in ((1, 0), (0, 10), (0, 2), (0, 1)):
        write(tmp_path, layer, neuron)
    (tmp_path / "readme.txt").touch()
    told = [[file["path"] for file in batch.files] for batch in batches(tmp_path, processes=1)]
    assert told == [
        ["explanations/0/1.jsonl", "explanations/0/2.jsonl"], ["explanations/0/10.jsonl"], ["explanations/1/0.jsonl"]
    ]  # fmt: skip
    assert ForeignFiles().count("openai", str(tmp_path)) == 4


def test_several_processes_give_what_one_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign_files, "NEURONS", 2)
    for neuron in range(7):
        write(tmp_path, 0, neuron, None if neuron % 3 else "{")
    one, two = batches(tmp_path, processes=1), batches(tmp_path, processes=2)
    assert [batch.files for batch in one] == [batch.files for batch in two]
    assert [file["status"] for batch in two for file in batch.files] == [
        "rejected", "imported", "imported", "rejected", "imported", "imported", "rejected"
    ]  # fmt: skip


def test_a_file_that_cannot_be_read_is_rejected_and_the_others_are_taken(tmp_path):
    write(tmp_path, 0, 0)
    (tmp_path / "explanations" / "0" / "1.jsonl").symlink_to("nowhere")
    (batch,) = batches(tmp_path)
    assert [(file["status"], file["reason"]) for file in batch.files] == [
        ("imported", None), ("rejected", "it cannot be read: No such file or directory")
    ]  # fmt: skip
    assert batch.files[1]["sha256"] == ""


def test_of_two_files_of_one_neuron_the_second_is_rejected(tmp_path):
    write(tmp_path, 0, 1)
    write(tmp_path, 0, 1, kind="explanations/neurons")
    (batch,) = batches(tmp_path)
    assert [file["reason"] for file in batch.files] == [
        None,
        "explanations/0/1.jsonl is of the same neuron and was taken",
    ]


def test_a_folder_without_such_files_and_one_with_two_sets_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="is not there; give a folder or a file"):
        ForeignFiles().count("openai", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match=r"would be such as explanations/5/131\.jsonl"):
        ForeignFiles().count("openai", str(tmp_path))
    write(tmp_path / "xl", 0, 1)
    write(tmp_path / "small", 0, 1)
    with pytest.raises(SettingsError, match="several sets of data: small, xl; import one of these folders"):
        ForeignFiles().count("openai", str(tmp_path))


def test_packed_batches_are_unpacked_and_broken_ones_rejected(tmp_path):
    folder = tmp_path / "v1" / "gpt2-small" / "5" / "explanations"
    folder.mkdir(parents=True)
    line = json.dumps({"layer": "5", "index": "1", "description": "dogs"}) + "\n"
    packed = gzip.compress((line + "{\n").encode())
    (folder / "batch-0.jsonl.gz").write_bytes(packed)
    (folder / "batch-1.jsonl.gz").write_bytes(packed[:20])
    found = list(ForeignFiles().batches("neuronpedia", str(tmp_path), source="s"))
    assert sum(len(batch.frames["imported_explanations"]) for batch in found) == 1
    told = {file["path"]: file["status"] for batch in found for file in batch.files}
    name = "v1/gpt2-small/5/explanations/batch-"
    assert told == {
        f"{name}0.jsonl.gz": "imported",
        f"{name}0.jsonl.gz: line 2": "rejected",
        f"{name}1.jsonl.gz": "rejected",
    }


def test_one_file_can_be_read_by_itself(tmp_path):
    (tmp_path / "mine.csv").write_text("neuron,explanation\n5:1,dogs\n")
    (batch,) = ForeignFiles().batches("csv", str(tmp_path / "mine.csv"), source="s")
    assert batch.frames["imported_explanations"].item(0, "text") == "dogs"
    assert batch.files[0]["path"] == "mine.csv"
