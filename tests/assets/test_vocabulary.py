"""The asset `vocabulary`, on a model whose every word is known. Neither text nor weights are ever read."""

from pathlib import Path

import dagster as dg
import pytest
from transformers import GPT2Model

from assets import definitions
from assets.freshness import Outside, states
from assets.run import materialize
from pipeline.testing import GROUPS, planted_checkpoint
from resources.settings import load


class Ledger:
    """A folder with a model in it, and a text that nothing asks for."""

    def __init__(self, home: Path) -> None:
        (home / "corpus.txt").write_text("the\n")
        planted_checkpoint(home / "subject")
        self.folder = home / "subject"
        self.settings = load(subject=str(self.folder), corpus=str(home / "corpus.txt"), lake=str(home / "lake"))
        self.lake = definitions.open_lake(self.settings)

    def make(self):
        with dg.DagsterInstance.ephemeral() as instance:
            materialize(definitions.build(self.settings), instance, ["vocabulary"])
        return self.lake.read("vocabulary")

    def state(self):
        """Status and cause."""
        subject = definitions.open_subject(self.settings)
        outside = Outside("c", subject.tokenizer_hash(), subject.fingerprints(), subject.weights_hash())
        project = definitions.open_project(self.settings, subject)
        (state,) = (state for state in states(self.lake, project, outside, layers=[0]) if state.table == "vocabulary")
        return state.layer, state.status, state.cause

    def rename(self, word, other):
        """Edit the tokenizer on disk."""
        file = self.folder / "tokenizer.json"
        file.write_text(file.read_text("utf-8").replace(f"Ġ{word}", f"Ġ{other}"), encoding="utf-8")


@pytest.fixture
def ledger(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURONLEDGER_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Ledger(tmp_path)


def test_every_token_of_the_model_is_there_with_its_bytes_whatever_the_corpus_holds(ledger):
    rows = ledger.make()
    assert rows.get_column("token_id").to_list() == list(range(len(rows)))
    spelled = rows.get_column("bytes").to_list()
    assert spelled[:3] == [b"<unk>", b".", b" the"]
    assert {f" {word}".encode() for group in GROUPS.values() for word in group} < set(spelled)


def test_an_embedding_that_stands_for_no_token_has_no_bytes(ledger):
    model = GPT2Model.from_pretrained(ledger.folder)
    known = model.wte.num_embeddings
    model.resize_token_embeddings(known + 2, mean_resizing=False)
    model.save_pretrained(ledger.folder)
    spelled = ledger.make().get_column("bytes").to_list()
    assert len(spelled) == known + 2
    assert spelled[known:] == [b"", b""]
    assert all(spelled[:known])


def test_the_weights_are_not_read(ledger):
    (ledger.folder / "model.safetensors").write_bytes(b"")
    assert len(ledger.make()) > 0


def test_another_tokenizer_makes_it_stale_and_one_write_puts_other_rows_in_the_place_of_all(ledger):
    assert ledger.state() == (None, "missing", "")
    before, version = ledger.make(), ledger.lake.version("vocabulary")
    assert ledger.state() == (None, "fresh", "")
    ledger.rename("ship", "boat")
    assert ledger.state() == (None, "stale", "the tokenizer changed")
    after = ledger.make()
    assert ledger.state() == (None, "fresh", "")
    assert ledger.lake.version("vocabulary") == version + 1
    changed = zip(before.get_column("bytes"), after.get_column("bytes"), strict=True)
    assert [(old, new) for old, new in changed if old != new] == [(b" ship", b" boat")]
    assert set(before.get_column("identity")).isdisjoint(after.get_column("identity"))


def test_the_same_tokenizer_gives_the_same_rows(ledger):
    before, after = ledger.make(), ledger.make()
    assert after.drop("run_id").equals(before.drop("run_id"))
    assert after.get_column("identity").n_unique() == len(after)
