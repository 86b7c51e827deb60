"""The command `compare`, on a lake before and after a change, and on two lakes."""

import json

import pytest
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def edited(made, tmp_path_factory):
    """A lake whose last layer was made again with other weights; the first run's id."""
    folder = made.copy(tmp_path_factory.mktemp("edited"))
    first = folder.table("materializations").sort("finished_at").get_column("run_id")[-1]
    weights = folder.home / "subject" / "model.safetensors"
    tensors = load_file(weights)
    tensors["h.1.mlp.c_fc.weight"][:, 0].add_(tensors["h.1.mlp.c_fc.weight"][:, 1])
    save_file(tensors, weights, metadata={"format": "pt"})
    assert folder.type("run").exit_code == 0
    return folder, first


def test_a_lake_now_and_after_an_earlier_run_differ_in_what_was_changed_since(edited):
    folder, first = edited
    result = folder.type("compare", f".@{first[:8]}", ".", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    changed = {(row["layer"], row["neuron"]) for row in found["scores"] if row["difference"] not in (None, 0)}
    assert changed == {(1, 0)}
    assert {row["exemplar_overlap"] for row in found["neurons"] if row["layer"] == 0} <= {1, None}
    shown = folder.type("compare", f".@{first[:8]}", ".").stdout
    assert "The largest of" in shown
    assert "1:0" in shown


def test_two_lakes_of_the_same_content_do_not_differ(made, tmp_path):
    other = made.copy(tmp_path)
    result = made.type("compare", ".", str(other.home / "lake" / "subject"))
    assert result.exit_code == 0
    assert "The largest of" not in result.stdout
    assert "sign test p" in result.stdout


@pytest.mark.parametrize(
    ("a", "said"),
    [
        (".@nothing", "is neither a run of"),
        (".@2001-01-01", "yet at 2001-01-01; name a later run or time"),
        ("elsewhere", "'elsewhere' is no lake with scores"),
    ],
)
def test_what_names_no_side_is_refused_in_one_sentence(made, a, said):
    result = made.type("compare", a, ".")
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
