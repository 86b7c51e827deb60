"""The asset `connections`, on models in which it is known what joins what. No text is ever read."""

from pathlib import Path

import dagster as dg
import pytest
import torch
from polars.testing import assert_frame_equal
from transformers import AutoTokenizer, GPT2Model

from assets import definitions
from assets.freshness import Outside, states
from assets.run import materialize
from pipeline.errors import NeuronLedgerError
from pipeline.testing import GROUPS, planted_checkpoint, planted_gated_checkpoint
from resources.settings import load


class Ledger:
    """A folder with a model in it, and a text that nothing asks for."""

    def __init__(self, home: Path) -> None:
        (home / "corpus.txt").write_text("the\n")
        self.folder = home / "subject"
        self.settings = load(subject=str(self.folder), corpus=str(home / "corpus.txt"), lake=str(home / "lake"))
        self.lake = definitions.open_lake(self.settings)

    def make(self, *layers, assets=("subject_layers", "connections")):
        with dg.DagsterInstance.ephemeral() as instance:
            for asset in assets:
                materialize(definitions.build(self.settings), instance, [asset], layers=layers)

    def rows(self, layer):
        return self.lake.read("connections", layer=layer)

    def tokens(self, layer, neuron, kind):
        """One list of tokens as words."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        ids = self.rows(layer).row(neuron, named=True)[f"{kind}_token_ids"]
        return [tokenizer.decode([token]).strip() for token in ids]

    def states(self, *layers):
        """Status and cause of the connections of each layer."""
        subject = definitions.open_subject(self.settings)
        outside = Outside("c", subject.tokenizer_hash(), subject.fingerprints(), subject.weights_hash())
        found = states(self.lake, definitions.open_project(self.settings, subject), outside, layers=layers)
        return {state.layer: (state.status, state.cause) for state in found if state.table == "connections"}

    def change(self, edit):
        """Edit the weights on disk."""
        model = GPT2Model.from_pretrained(self.folder)
        with torch.no_grad():
            edit(model)
        model.save_pretrained(self.folder)


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURONLEDGER_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def join(model):
    """Let neuron 0:0 write what tells "ship", and the opposite of what tells "music"."""
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    ship, music = (tokenizer.encode(f" {word}")[0] for word in ("ship", "music"))
    model.h[0].mlp.c_proj.weight[0, ship] = 2
    model.h[0].mlp.c_proj.weight[0, music] = -1
    model.ln_f.weight.fill_(0.5)


@pytest.fixture
def planted(tmp_path):
    planted_checkpoint(tmp_path / "subject")
    ledger = Ledger(tmp_path)
    ledger.change(join)
    return ledger


def test_a_neuron_is_excited_by_its_words_the_strongest_first(planted):
    planted.make(0, 1)
    assert planted.tokens(0, 0, "input_positive") == list(reversed(GROUPS["colours"]))
    assert planted.tokens(0, 1, "input_positive") == list(reversed(GROUPS["animals"]))
    assert planted.tokens(1, 7, "input_positive") == ["ship"]
    assert planted.tokens(0, 0, "input_negative") == []


def test_a_neuron_promotes_the_token_that_it_writes_and_excites_the_neuron_that_reads_it(planted):
    planted.make(0, 1)
    assert planted.tokens(0, 0, "output_positive") == ["ship"]
    assert planted.tokens(0, 0, "output_negative") == ["music"]
    writer, reader = planted.rows(0).row(0, named=True), planted.rows(1).row(7, named=True)
    assert writer["output_positive_strengths"] == [1.0]
    assert (writer["downstream_positive_layers"], writer["downstream_positive_neurons"]) == ([1], [7])
    assert (reader["upstream_positive_layers"], reader["upstream_positive_neurons"]) == ([0], [0])
    assert writer["downstream_positive_strengths"] == reader["upstream_positive_strengths"]
    assert (writer["upstream_positive_layers"], reader["downstream_positive_layers"]) == ([], [])


def test_a_gated_mlp_has_no_connections_that_its_weights_alone_define(tmp_path):
    planted_gated_checkpoint(tmp_path / "subject")
    ledger = Ledger(tmp_path)
    ledger.make(0)
    rows = ledger.rows(0)
    for kind in ("input", "upstream", "downstream"):
        assert rows.get_column(f"{kind}_positive_strengths").null_count() == len(rows) == 4


def test_a_layer_made_alone_is_what_it_is_among_others(planted):
    planted.make(0, 1)
    together = [planted.rows(layer).drop("run_id") for layer in (0, 1)]
    planted.make(1)
    planted.make(0)
    for layer in (0, 1):
        assert_frame_equal(planted.rows(layer).drop("run_id"), together[layer], check_exact=True)
    assert planted.states(0, 1) == {0: ("fresh", ""), 1: ("fresh", "")}


def test_connections_are_stale_when_a_weight_changes_that_no_neuron_of_their_layer_sees(planted):
    planted.make(0)
    assert planted.states(0) == {0: ("fresh", "")}
    planted.change(lambda model: model.h[1].mlp.c_fc.weight[0, 0].add_(1))
    assert planted.states(0) == {0: ("stale", "the checkpoint changed")}
    planted.make(0, assets=["connections"])
    assert planted.states(0) == {0: ("fresh", "")}


def test_a_model_that_cannot_be_read_leaves_a_record_of_why_for_each_layer(planted):
    planted.make(0, 1, assets=["subject_layers"])
    planted.change(lambda model: model.h[1].mlp.c_fc.weight.fill_(torch.nan))
    with pytest.raises(NeuronLedgerError, match="NaN or infinite weights"):
        planted.make(0, 1, assets=["connections"])
    found = planted.states(0, 1)
    assert {status for status, _ in found.values()} == {"failed"}
    assert all("NaN or infinite weights" in cause for _, cause in found.values())


def test_connections_are_not_made_from_layers_that_were_never_looked_at(planted):
    with pytest.raises(NeuronLedgerError, match="materialise the asset `subject_layers` first"):
        planted.make(0, assets=["connections"])
