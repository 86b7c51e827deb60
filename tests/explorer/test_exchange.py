"""Commands that write a lake for other tools."""

import hashlib
import json


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_lake_gives_the_same_files(made, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert made.type("export", "openai", str(one)).exit_code == 0
    assert made.type("export", "openai", str(two)).exit_code == 0
    assert digests(one) == digests(two)


def test_an_export_for_openai_holds_every_captured_neuron_and_says_what_it_lacks(made, tmp_path):
    result = made.type("export", "openai", str(tmp_path / "out"), "--layers", "1", "--json")
    about = json.loads(result.stdout)
    neurons = made.table("neuron_statistics", layer=1).get_column("neuron").to_list()
    found = sorted(int(path.stem) for path in (tmp_path / "out" / "collated-activations" / "1").iterdir())
    assert found == neurons
    assert about["layers"] == [1]
    assert about["conventions"]["splits"] == "by document"
    assert about == json.loads((tmp_path / "out" / "neuronledger.json").read_text())
    assert not (tmp_path / "out" / "collated-activations" / "0").exists()
    lines = (tmp_path / "out" / "provenance" / "1.jsonl").read_text().splitlines()
    assert [json.loads(line)["neuron"] for line in lines] == neurons


def test_what_an_export_cannot_carry_is_printed(made, tmp_path):
    said = made.type("export", "openai", str(tmp_path / "out"))
    assert "collated-activations" in said.stdout
    assert "What the format has no field for:" in said.stdout


def test_a_folder_that_is_there_is_left_alone(made, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    said = made.type("export", "openai", str(tmp_path / "mine"))
    assert said.exit_code == 2
    assert "is no export" in said.stderr


def test_a_lake_without_neurons_and_a_layer_that_is_not_there_are_said(made, tmp_path):
    said = made.type("export", "openai", str(tmp_path / "out"), "--lake", str(tmp_path / "empty"))
    assert said.exit_code == 1
    assert "has no captured neurons" in said.stderr
    said = made.type("export", "openai", str(tmp_path / "out"), "--layers", "7")
    assert said.exit_code == 2
    assert "there is no 7" in said.stderr
    assert not (tmp_path / "out").exists()
