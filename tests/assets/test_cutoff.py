"""After a change of the model: which layers are captured again, which rows change, and what is asked again."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import load_file, save_file

from assets import definitions
from assets.freshness import Outside
from assets.run import Outcome, Runner
from pipeline.testing import Planted, ScriptedLanguageModel, planted_checkpoint, planted_corpus
from resources.corpus import open_corpus
from resources.settings import load

HOPS = ("exemplars", "explanations", "simulations", "scores")
MODEL = "scripted"


@dataclass
class Project:
    """A folder with a planted model, its lake, and one language model for all that is done there."""

    home: Path
    language: ScriptedLanguageModel

    @property
    def weights(self) -> Path:
        return self.home / "subject" / "model.safetensors"

    @contextmanager
    def runner(self) -> Iterator[Runner]:
        """What `run` makes things with, as the model and the text are now."""
        settings = load(subject=str(self.home / "subject"), corpus=str(self.home / "corpus.jsonl"), explainer=MODEL,
                        device="cpu", lake=str(self.home / "lake"))  # fmt: skip
        subject = definitions.open_subject(settings)
        outside = Outside(
            corpus=open_corpus(settings.corpus).fingerprint(), tokenizer=subject.tokenizer_hash(),
            weights=subject.fingerprints(), checkpoint=subject.weights_hash(),
        )  # fmt: skip
        with dg.DagsterInstance.ephemeral() as instance:
            yield Runner(
                definitions.build(settings, language=self.language), instance, definitions.open_lake(settings),
                definitions.open_project(settings, subject), outside, lambda _: None,
            )  # fmt: skip

    def refresh(self) -> Outcome:
        with self.runner() as runner:
            outcome = runner.refresh([0, 1])
        assert not outcome.failed
        return outcome

    def not_fresh(self) -> set[tuple[str, int | None]]:
        with self.runner() as runner:
            return {(state.table, state.layer) for state in runner.states([0, 1]) if state.status != "fresh"}

    def table(self, name: str) -> pl.DataFrame:
        return pl.scan_delta(str(self.home / "lake" / name)).collect()

    def tables(self) -> dict[str, pl.DataFrame]:
        return {name: self.table(name) for name in HOPS}

    def edit(self, name: str, change: Callable[[torch.Tensor], object]) -> None:
        """Change one tensor on disk."""
        tensors = load_file(self.weights)
        change(tensors[name])
        save_file(tensors, self.weights, metadata={"format": "pt"})


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return planted_checkpoint(tmp_path_factory.mktemp("cutoff") / "subject")


@pytest.fixture(scope="session")
def whole(planted: Planted) -> Project:
    """Everything made once."""
    home = planted.folder.parent
    lines = (json.dumps({"text": text}) + "\n" for text in planted_corpus(60, seed=1))
    (home / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    project = Project(home, ScriptedLanguageModel(planted))
    project.refresh()
    return project


@pytest.fixture
def project(whole: Project, planted: Planted, tmp_path: Path) -> Project:
    """The same in another place, before a language model that keeps the same replies."""
    shutil.copytree(whole.home, tmp_path, dirs_exist_ok=True)
    language = ScriptedLanguageModel(planted)
    language._replies.update(whole.language._replies)
    return Project(tmp_path, language)


def asked(tables: dict[str, pl.DataFrame]) -> set[str]:
    """The requests that these rows come from."""
    return {
        *tables["explanations"].get_column("request_id").drop_nulls(),
        *tables["simulations"].get_column("request_ids").explode(empty_as_null=True, keep_nulls=True).drop_nulls(),
    }


def rows_of(tables: dict[str, pl.DataFrame], where: pl.Expr) -> dict[str, pl.DataFrame]:
    return {name: frame.filter(where) for name, frame in tables.items()}


def assert_same(now: dict[str, pl.DataFrame], before: dict[str, pl.DataFrame]) -> None:
    """Every row as it was, with its identity and the run that made it."""
    for name in HOPS:
        assert_frame_equal(now[name], before[name], check_row_order=False, check_exact=True)


def test_one_neuron_of_the_last_layer_with_other_weights_is_all_that_is_asked_about_again(project: Project) -> None:
    before = project.tables()
    # Neuron 1:0 reads less, and so does nothing else.
    project.edit("h.1.mlp.c_fc.weight", lambda weight: weight[:, 0].mul_(0.75))
    assert {layer for table, layer in project.not_fresh() if table != "connections"} == {1}
    outcome = project.refresh()
    assert outcome.made[:2] == ["subject_layers layer 1", "activations layer 1"]
    after, it = project.tables(), (pl.col("layer") == 1) & (pl.col("neuron") == 0)
    assert_same(rows_of(after, ~it), rows_of(before, ~it))
    new = asked(rows_of(after, it)) - asked(before)
    assert project.language.sent == len(new)
    assert not set(after["scores"].filter(it).get_column("run_id")) & set(before["scores"].get_column("run_id"))
    assert project.not_fresh() == set()


def test_a_model_that_is_as_it_was_again_makes_old_rows_fresh(project: Project) -> None:
    kept, before = project.weights.read_bytes(), project.tables()
    project.edit("h.1.mlp.c_fc.weight", lambda weight: weight[:, 0].mul_(0.75))
    assert project.not_fresh()
    project.weights.write_bytes(kept)
    # Nothing was made in between, so nothing is made now.
    assert project.refresh().made == []
    project.edit("h.1.mlp.c_fc.weight", lambda weight: weight[:, 0].mul_(0.75))
    project.refresh()
    sent = project.language.sent
    project.weights.write_bytes(kept)
    project.refresh()
    after = project.tables()
    assert project.language.sent == sent
    assert {name: frame.drop("run_id").sort("identity").rows() for name, frame in after.items()} == {
        name: frame.drop("run_id").sort("identity").rows() for name, frame in before.items()
    }


def test_weights_that_no_text_reaches_leave_everything_after_the_exemplars_fresh(project: Project) -> None:
    spelled = json.loads((project.home / "subject" / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    used = set(project.table("sequences").get_column("token_ids").explode(empty_as_null=True, keep_nulls=True))
    unused = min(set(spelled.values()) - used)
    before = project.tables()
    project.edit("wte.weight", lambda weight: weight[unused].add_(0.5))
    outcome = project.refresh()
    assert outcome.made == [
        "subject_layers layers 0-1",
        "activations layers 0-1",
        "exemplars layer 0",
        "exemplars layer 1",
        "connections layers 0-1",
        "layer_summary",
    ]
    assert project.language.sent == 0
    assert_same(project.tables(), before)
    assert project.not_fresh() == set()
