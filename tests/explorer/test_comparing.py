"""The command `compare`, on a lake before and after a change, and on two lakes."""

import json

import pytest
from safetensors.torch import load_file, save_file

from explorer import compared
from explorer.kept import Kept
from explorer.server import Explorer
from explorer.staleness import Staleness


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


@pytest.fixture(scope="module")
def both(edited, made, served, tmp_path_factory):
    """The explorer on the lake that was made again, beside the one that was not."""
    folder, first = edited
    explorer = Explorer(
        Kept(folder.lake),
        Staleness(folder.lake, None),
        folder.home,
        tmp_path_factory.mktemp("files"),
        against=Kept(made.lake),
    )
    with served(explorer.app()) as address:
        yield address, first


def test_the_page_says_what_the_command_says(both, edited, asking):
    address, first = both
    folder, _ = edited
    told = json.loads(folder.type("compare", f".@{first[:8]}", ".", "--layers", "1", "--json").stdout)
    found = json.loads(asking(f"{address}/compare.json?a={first}&layer=1")[1])["found"]
    assert found["methods"] == told["methods"]
    wanted = [row for row in told["scores"] if row["value_a"] != row["value_b"] or row["text_a"] != row["text_b"]]
    assert found["changed"] == len(wanted)
    assert sorted(found["rows"], key=str) == sorted(wanted, key=str)
    assert found["neurons"]["in_both"] == len(told["neurons"])
    status, page = asking(f"{address}/compare?a={first}&layer=1")
    assert status == 200
    assert f'href="/1/0/compare?a={first}"' in page
    assert "paired bootstrap" in page
    assert asking(f"{address}/compare?a={first}")[1].count("0 differ") == 1


def test_all_layers_are_compared_at_once_where_they_are_few(both, edited, asking, monkeypatch):
    address, first = both
    folder, _ = edited
    told = json.loads(folder.type("compare", f".@{first[:8]}", ".", "--json").stdout)
    found = json.loads(asking(f"{address}/compare.json?a={first}&layer=all")[1])["found"]
    assert (found["layer"], found["methods"]) == ("all", told["methods"])
    assert found["neurons"]["in_both"] == len(told["neurons"])
    assert "all layers" in asking(f"{address}/compare?a={first}&layer=1")[1]
    monkeypatch.setattr(compared, "MOST", 3)
    status, page = asking(f"{address}/compare?a={first}&layer=all&lang=fr")
    assert (status, "`neuronledger compare` compares them" in page) == (400, True)


def test_one_neuron_is_set_beside_itself_with_words_scores_and_what_the_difference_is_due_to(both, asking):
    address, first = both
    found = json.loads(asking(f"{address}/1/0/compare.json?a={first}")[1])
    assert found["sides"]["a"]["moment"]["run_id"] == first
    assert found["statistics"]["a"] != found["statistics"]["b"], found["statistics"]
    for row in found["scores"]:
        if row["difference"] is not None and row["weights"] is not None:
            parts = sum(row[part] for part in ("weights", "explanation", "simulator", "both", "exemplars"))
            assert parts == pytest.approx(row["difference"])
    status, page = asking(f"{address}/1/0/compare?a={first}&lang=fr")
    assert status == 200
    assert "Le neurone lui-même" in page
    other = json.loads(asking(f"{address}/0/1/compare.json?a={first}")[1])
    assert {row["difference"] for row in other["scores"]} <= {0, None}
    assert other["only"] == {"a": [], "b": []}


def test_the_other_lake_is_a_side_by_its_name_alone(both, asking):
    address, _ = both
    found = json.loads(asking(f"{address}/compare.json?a=against&layer=1")[1])
    assert found["found"]["changed"] >= 1
    assert json.loads(asking(f"{address}/1/0/compare.json?a=against")[1])["sides"]["a"]["moment"] is None
    # A path is none, whatever lies there.
    for path in ("/etc", "..", "s3://elsewhere/lake", "file:///"):
        assert asking(f"{address}/compare?a={path}")[0] == 400


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [("a=against&layer=77", 404, "Layer 77 is not in both"), ("a=against&layer=x", 400, "layer (="), ("", 200, "Runs"),
     ("a=against&method=magic", 400, "method (="), ("a=nothing", 400, "is neither a run of"), ("a=against&page=9", 200, "b minus a")],
)  # fmt: skip
def test_what_cannot_be_compared_is_said(both, asking, query, status, said):
    found = asking(f"{both[0]}/compare?{query}")
    assert (found[0], said in found[1].replace("&#39;", "'")) == (status, True)


def test_without_another_lake_there_is_none(address, asking):
    status, page = asking(f"{address}/compare?a=against")
    assert (status, "start with `neuronledger explore --against LAKE`" in page) == (400, True)
    assert asking(f"{address}/99/0/compare")[0] == 404


def test_another_lake_that_is_none_is_refused_before_anything_is_served(made, tmp_path):
    result = made.type("explore", "--against", str(tmp_path / "nothing"))
    assert (result.exit_code, "is no lake; give the folder of one" in result.stderr) == (2, True)
