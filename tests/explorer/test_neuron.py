"""One neuron, gathered from the tables."""

import json
import shutil

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer.neuron import parse, read
from pipeline.errors import LakeError, NeuronLedgerError, SettingsError
from resources.delta import DeltaLake

INDICES = st.integers(0, 999_999_999)


@given(INDICES, INDICES)
def test_a_name_gives_back_layer_and_neuron(layer, neuron):
    assert parse(f"{layer}:{neuron}") == (layer, neuron)


@pytest.mark.parametrize(
    "name", ["", ":", "5", "5:", ":5", "5:131:2", "-1:2", "5:1.5", " 5:1", "5:1\n", "٥:١", "5:" + "1" * 5000]
)
def test_what_is_no_name_is_refused_with_an_example(name):
    with pytest.raises(SettingsError, match="is no neuron; write layer:neuron, such as 5:131"):
        parse(name)


@given(st.text(max_size=12))
def test_any_other_text_is_refused_and_never_an_error_of_another_kind(text):
    try:
        layer, neuron = parse(text)
    except SettingsError:
        return
    assert (layer, neuron) == tuple(int(part) for part in text.split(":"))


def test_a_neuron_is_what_its_rows_say(made):
    found = read(made.lake, 1, 5)
    at = {"layer": 1, "neurons": [5]}
    assert (found.layer, found.neuron, found.site) == (1, 5, "h.1.mlp.c_proj")
    assert found.statistics["maximum"] == made.table("neuron_statistics", **at).item(0, "maximum")
    (side,) = found.sides
    rows = {row["explanation_id"]: row for row in made.table("explanations", **at).iter_rows(named=True)}
    assert {said.explanation_id: (said.method, said.text, said.identity) for said in side.explanations} == {
        name: (row["method"], row["text"], row["identity"]) for name, row in rows.items()
    }
    assert sum(len(said.scores) for said in side.explanations) == len(made.table("scores", **at))
    assert len(side.excerpts) == len(made.table("exemplars", **at))


def test_the_better_explanation_comes_first(made):
    main = (pl.col("scorer") == "ev_correlation") & (pl.col("split") == "top_and_random")
    for neuron in range(8):
        scores = dict(
            made.table("scores", layer=1, neurons=[neuron]).filter(main).select("explanation_id", "value").iter_rows()
        )
        (side,) = read(made.lake, 1, neuron).sides
        values = [scores[said.explanation_id] for said in side.explanations]
        known = [value for value in values if value is not None]
        assert known == sorted(known, reverse=True)
        assert values[: len(known)] == known


def test_an_excerpt_has_one_activation_for_each_token_and_its_text_is_that_of_the_window(made):
    texts = dict(made.table("sequences").select("sequence_id", "text").iter_rows())
    for shown in read(made.lake, 0, 0).sides[0].excerpts:
        assert len(shown.tokens) == len(shown.activations) == len(shown.scaled_activations) == 64
        assert "".join(shown.tokens) == texts[shown.sequence_id]


def test_a_neuron_that_never_fires_has_a_reason_and_no_words(made):
    found = read(made.lake, 0, 3)
    assert found.statistics["dead"]
    for said in found.sides[0].explanations:
        assert said.text is None
        assert said.missing_because == "dead_neuron: the neuron never fires on this corpus in this polarity"
        assert {score["value"] for score in said.scores} == {None}


def test_the_chain_leads_back_from_scores_to_text_and_weights(made):
    chain = {link["table"]: link for link in read(made.lake, 0, 1).chain}
    assert set(chain["sequences"]["inputs"]) >= {"corpus", "tokenizer"}
    assert set(chain["subject_layers"]["inputs"]) >= {"weights"}
    for link in chain.values():
        for name, entry in link["inputs"].items():
            if name in chain:
                assert entry["content_hash"] == chain[name]["content_hash"]


def test_the_json_is_ascii_and_reads_back(made):
    found = read(made.lake, 0, 0)
    assert found.as_json().isascii()
    again = json.loads(found.as_json())
    assert again["sides"][0]["excerpts"][0]["tokens"] == found.sides[0].excerpts[0].tokens


def test_a_neuron_that_is_not_there_says_which_are(made, tmp_path):
    with pytest.raises(NeuronLedgerError, match=r"^layer 1 has neurons 0 to 7; there is no 1:8$"):
        read(made.lake, 1, 8)
    with pytest.raises(NeuronLedgerError, match=r"^layer 9 is not in the lake .*; captured are layers 0, 1$"):
        read(made.lake, 9, 0)
    with pytest.raises(NeuronLedgerError, match=r"has no neurons yet; run `neuronledger run` first$"):
        read(DeltaLake(tmp_path), 0, 0)


def test_a_damaged_file_is_no_missing_neuron(copied):
    for file in (copied.home / "lake" / "subject" / "exemplars").rglob("*.parquet"):
        file.write_bytes(b"")
    with pytest.raises(LakeError, match="a data file of the lake cannot be read"):
        read(copied.lake, 0, 1)


def test_connections_are_those_of_the_table_with_the_text_of_each_token(made):
    found = read(made.lake, 0, 0).connections
    row = made.table("connections", layer=0, neurons=[0]).row(0, named=True)
    assert [one["token_id"] for one in found["input_positive"]] == row["input_positive_token_ids"]
    assert [one["strength"] for one in found["input_positive"]] == row["input_positive_strengths"]
    assert [one["text"].strip() for one in found["input_positive"]] == ["purple", "yellow", "green", "blue", "red"]
    assert found["upstream_positive"] == []


def test_a_token_has_its_text_from_the_vocabulary_or_else_from_the_corpus(copied):
    def strongest():
        return read(copied.lake, 0, 0).connections["input_positive"][0]

    assert strongest()["text"] == " purple"
    sequences, vocabulary = copied.table("sequences"), copied.table("vocabulary")
    lacks = ~pl.col("token_ids").list.contains(strongest()["token_id"])
    copied.lake.replace("sequences", sequences.filter(lacks), record={})
    assert strongest()["text"] == " purple"
    copied.lake.replace("vocabulary", vocabulary.with_columns(bytes=pl.lit(b"")), record={})
    assert strongest()["text"] is None
    copied.lake.replace("sequences", sequences, record={})
    assert strongest()["text"] == " purple"
    shutil.rmtree(copied.home / "lake" / "subject" / "vocabulary")
    assert strongest()["text"] == " purple"


def test_connections_that_the_model_does_not_define_are_none_and_so_are_all_before_they_are_made(gated, copied):
    assert read(gated.lake, 0, 0).connections["input_positive"] is None
    shutil.rmtree(copied.home / "lake" / "subject" / "connections")
    assert read(copied.lake, 0, 0).connections is None
