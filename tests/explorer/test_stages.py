"""One stage by itself: of a folder with an import and an endpoint, and nothing else."""

import json
import urllib.request

import polars as pl
import pytest

from explorer.fake_endpoint import FakeEndpoint

SUBJECT = 'subject = "there-is-no-such-model"\ncorpus = "there-is-no-such-text"\nlake = "lake/subject"\n'


@pytest.fixture(scope="module")
def exported(told, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    assert told.type("export", "openai", str(folder), "--layers", "1").exit_code == 0
    return folder


@pytest.fixture
def alone(empty, exported, tmp_path):
    """A folder with an import, without a model or a text."""
    folder = type(empty)(tmp_path)
    (tmp_path / "neuronledger.toml").write_text(SUBJECT)
    result = folder.type("import", "openai", str(exported))
    assert result.exit_code == 0, result.stderr
    return folder


def requests_of(address):
    with urllib.request.urlopen(f"{address}/counts") as reply:
        return json.load(reply)


def test_stored_simulations_are_scored_by_our_formulas_without_a_model(alone, told):
    result = alone.type("run", "--stage", "scores")
    assert result.exit_code == 0, result.stderr
    assert "openai, its own simulations: " in result.stdout
    at = ["neuron", "explanation", "scorer", "split"]
    words = told.table("explanations").select("layer", "explanation_id", pl.col("text").alias("explanation"))
    ours = told.table("scores", layer=1).join(words, on=["layer", "explanation_id"])
    ours = ours.filter(pl.col("method") != "token-linear").drop_nulls("value")
    theirs = alone.table("imported_explanations").select("explanation_id", pl.col("text").alias("explanation"))
    again = alone.table("common_scores").join(theirs, on="explanation_id").drop_nulls("value")
    both = ours.join(again, on=at, suffix="_again")
    assert len(both) == len(ours) > 0
    assert both.get_column("value").to_list() == pytest.approx(both.get_column("value_again").to_list(), abs=1e-6)
    assert "scores" not in {name for name in ("scores", "simulations") if alone.lake.version(name) is not None}
    assert not any(scorer.startswith("openai") for scorer in alone.table("common_scores").get_column("scorer"))

    version = alone.lake.version("common_scores")
    assert "nothing was made again" in alone.type("run", "--stage", "scores").stdout
    assert alone.lake.version("common_scores") == version


def test_imported_words_are_simulated_on_records_that_were_not_shown_without_a_model(alone, served):
    with served(FakeEndpoint().app()) as address:
        ask = ("run", "--stage", "simulations", "--simulator", "scripted", "--base-url", f"{address}/v1")
        result = alone.type(*ask)
        assert result.exit_code == 0, result.stderr
        first = requests_of(address)
        assert "nothing was made again" in alone.type(*ask).stdout
        assert requests_of(address) == first
        assert alone.type(*ask, "--neurons", "1:5").exit_code == 0
        assert requests_of(address) == first
    played, records = alone.table("common_simulations"), alone.table("imported_records")
    assert set(played.get_column("simulator")) == {"scripted"}
    made_from = records.with_columns(exemplar_id=pl.col("identity").str.slice(7, 16)).join(
        played, on=["neuron", "exemplar_id"], how="semi"
    )
    assert set(made_from.get_column("split")) == {"score"}
    shown = records.filter(pl.col("split") == "explain").select("neuron", "sequence_id")
    assert made_from.join(shown, on=["neuron", "sequence_id"]).is_empty()
    assert made_from.get_column("stratum").unique().sort().to_list() == ["random", "top"]

    result = alone.type("run", "--stage", "scores")
    assert "openai, simulated by scripted: " in result.stdout
    named = alone.table("common_scores").group_by("simulator").len()
    assert set(named.get_column("simulator")) >= {"scripted", "unknown"}
    calls = alone.table("materializations").filter(pl.col("table") == "common_simulations")
    assert json.loads(calls.sort("finished_at").row(0, named=True)["usage"])["requests_sent"] > 0


def test_our_own_tables_are_made_too_where_what_they_are_made_from_is_fresh(copied):
    copied.lake.replace("scores", copied.table("scores", layer=0).clear(), layer=0, record={}, allow_empty=True)
    result = copied.type("run", "--stage", "scores")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "made scores layer 0")
    assert copied.not_fresh() == {}
    copied.lake.replace("exemplars", copied.table("exemplars", layer=0).clear(), layer=0, record={}, allow_empty=True)
    result = copied.type("run", "--stage", "scores")
    assert result.exit_code == 1
    assert "scores layer 0: `exemplars` is " in result.stderr


def test_what_a_stage_lacks_is_said(empty, alone, tmp_path):
    said = alone.type("run", "--stage", "simulations")
    assert (said.exit_code, "name one with --simulator" in said.stderr) == (2, True)
    said = alone.type("run", "--stage", "scores", "--layers", "7")
    assert (said.exit_code, "there is no 7" in said.stderr) == (2, True)
    said = alone.type("run", "--stage", "scores", "--neurons", "0:1")
    assert (said.exit_code, "no explanations were imported of layers [0]" in said.stderr) == (1, True)
    nothing = alone.type("run", "--stage", "scores", "--lake", str(tmp_path / "nothing"))
    assert (nothing.exit_code, "holds no explanations" in nothing.stderr) == (1, True)


def test_words_without_records_are_not_simulated_and_the_way_to_do_it_is_said(empty, tmp_path):
    folder = type(empty)(tmp_path)
    (tmp_path / "neuronledger.toml").write_text(SUBJECT)
    (tmp_path / "mine.csv").write_text("neuron,explanation\n0:1,dogs\n")
    folder.type("import", "csv", str(tmp_path / "mine.csv"))
    said = folder.type("run", "--stage", "simulations", "--simulator", "scripted")
    assert said.exit_code == 1
    assert "neuronledger import words" in said.stderr
