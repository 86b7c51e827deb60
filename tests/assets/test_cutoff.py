"""After a change of the model: which layers are captured again, which rows change, and what is asked again."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
import torch
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor
from dagster._core.definitions.automation_tick_evaluation_context import (
    build_run_requests,
    build_run_requests_with_backfill_policies,
)
from polars.testing import assert_frame_equal
from safetensors.torch import load_file, save_file

from assets import definitions
from assets.automation import SENSOR
from assets.freshness import Outside
from assets.project import parse_key
from assets.run import CAPTURE, END_TAG, START_TAG, Outcome, Runner, materialize
from assets.step import DATA_VERSION_TAG
from explorer.replay import Records, replay
from pipeline.provenance import frame_hash
from pipeline.tables import TABLES
from pipeline.testing import Planted, ScriptedLanguageModel, planted_checkpoint, planted_corpus
from resources.corpus import open_corpus
from resources.delta import DeltaLake
from resources.integrity import integrity
from resources.settings import Settings, load
from resources.subject import HuggingFaceSubject

HOPS = ("exemplars", "explanations", "simulations", "scores")
RESTORED = ("subject_layers", *CAPTURE, "connections", *HOPS)
MODEL = "scripted"


@dataclass
class Project:
    """A folder with a planted model, its lake, and one language model for all that is done there."""

    home: Path
    language: ScriptedLanguageModel

    @property
    def weights(self) -> Path:
        return self.home / "subject" / "model.safetensors"

    def settings(self, **choices: Any) -> Settings:
        return load(
            subject=str(self.home / "subject"), corpus=str(self.home / "corpus.jsonl"), explainer=MODEL,
            device="cpu", lake=str(self.home / "lake"), **choices,
        )  # fmt: skip

    def definitions(self, **choices: Any) -> dg.Definitions:
        """The assets and doors, as a new process has them."""
        return definitions.build(self.settings(**choices), language=self.language)

    @contextmanager
    def runner(self) -> Iterator[Runner]:
        """What `run` makes things with, as the model and the text are now."""
        settings = self.settings()
        subject = definitions.open_subject(settings)
        outside = Outside(
            corpus=open_corpus(settings.corpus).fingerprint(), tokenizer=subject.tokenizer_hash(),
            weights=subject.fingerprints(), checkpoint=subject.weights_hash(),
        )  # fmt: skip
        with dg.DagsterInstance.ephemeral() as instance:
            yield Runner(
                self.definitions(), instance, definitions.open_lake(settings),
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


def unused(project: Project) -> int:
    """A token that no text holds."""
    spelled = json.loads((project.home / "subject" / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    used = project.table("sequences").get_column("token_ids").explode(empty_as_null=True, keep_nulls=True)
    return min(set(spelled.values()) - set(used))


def reads_more(weight: torch.Tensor) -> None:
    """Neuron 1:0 also reads what its neighbour reads."""
    weight[:, 0].add_(weight[:, 1])


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
    project.edit("h.1.mlp.c_fc.weight", reads_more)
    assert {layer for table, layer in project.not_fresh() if table != "connections"} == {1}
    outcome = project.refresh()
    assert outcome.made[:2] == ["subject_layers layer 1", "activations layer 1"]
    after, it = project.tables(), (pl.col("layer") == 1) & (pl.col("neuron") == 0)
    assert_same(rows_of(after, ~it), rows_of(before, ~it))
    new = asked(rows_of(after, it)) - asked(before)
    assert project.language.sent == len(new) > 0
    assert not set(after["scores"].filter(it).get_column("run_id")) & set(before["scores"].get_column("run_id"))
    assert project.not_fresh() == set()


def there_and_back(project: Project) -> tuple[dict[str, pl.DataFrame], datetime]:
    """The tables as they were before the model was changed, run, and changed back; and when that was."""
    kept, before = project.weights.read_bytes(), {name: project.table(name) for name in RESTORED}
    project.edit("h.1.mlp.c_fc.weight", reads_more)
    project.refresh()
    assert project.table("activations").filter(layer=1).get_column("identity").to_list() != (
        before["activations"].filter(layer=1).get_column("identity").to_list()
    )
    project.weights.write_bytes(kept)
    return before, datetime.now(UTC)


def records_since(project: Project, when: datetime) -> pl.DataFrame:
    return project.table("materializations").filter(pl.col("finished_at") > when).sort("finished_at")


def test_a_model_that_was_never_run_changed_is_fresh_when_it_is_changed_back(project: Project) -> None:
    kept = project.weights.read_bytes()
    project.edit("h.1.mlp.c_fc.weight", reads_more)
    assert project.not_fresh()
    project.weights.write_bytes(kept)
    assert project.refresh().made == []


def test_a_model_that_is_as_it_was_again_has_its_old_rows_put_back(project: Project) -> None:
    before, changed_back = there_and_back(project)
    sent = project.language.sent
    with pytest.MonkeyPatch.context() as patch:
        # Whoever would run the model fails.
        patch.delattr(HuggingFaceSubject, "capture")
        project.refresh()
    assert project.language.sent == sent
    assert project.not_fresh() == set()
    for name, rows in before.items():
        assert_frame_equal(project.table(name), rows, check_row_order=False, check_exact=True)
    new = records_since(project, changed_back)
    old = project.table("materializations")
    assert {(row["table"], row["layer"]) for row in new.iter_rows(named=True)} == {
        *((name, 1) for name in RESTORED if name != "connections"), ("connections", 0), ("connections", 1),
    }  # fmt: skip
    for row in new.iter_rows(named=True):
        origin = json.loads(row["environment"])["restored"]
        (first,) = old.filter(commit_uuid=origin["commit_uuid"]).iter_rows(named=True)
        same = ("table", "layer", "version", "step_key", "content_hash", "code")
        assert {name: first[name] for name in same} == {name: row[name] for name in same} | {
            "version": origin["version"]
        }
        lake = DeltaLake(project.home / "lake")
        commit = next(one for one in lake.history(row["table"]) if one["commit_uuid"] == row["commit_uuid"])
        assert commit["record"]["restored_from"] == origin["version"] < commit["version"]
    # Each of these commits is sealed, and what needs no replies replays.
    checks, _ = integrity(lake)
    assert not any(check.findings for check in checks)
    replayed = [replay(lake, Records(lake), table, 1) for table in ("exemplars", "scores")]
    assert [one.outcome for one in replayed] == ["equal", "equal"]


def test_what_was_made_before_is_made_again_if_its_files_are_gone(project: Project) -> None:
    before, changed_back = there_and_back(project)
    lake = DeltaLake(project.home / "lake")
    for name in RESTORED:
        live = {Path(file) for file in lake.files(name)}
        for path in (project.home / "lake" / name).rglob("*.parquet"):
            if path not in live:
                path.unlink()
    sent = project.language.sent
    project.refresh()
    assert project.language.sent == sent
    assert project.not_fresh() == set()
    assert not records_since(project, changed_back).filter(pl.col("environment").str.contains("restored")).height
    for name, rows in before.items():
        now = project.table(name).drop("run_id", "subject", strict=False)
        assert_frame_equal(now, rows.drop("run_id", "subject", strict=False), check_row_order=False, check_exact=True)


def test_the_same_weights_in_another_folder_make_nothing_stale(project: Project) -> None:
    before = project.table("subject_layers").drop("run_id")
    with project.runner() as runner:
        # The lake was made under another folder's name.
        assert project.settings().subject not in before.get_column("subject")
        materialize(runner.definitions, runner.instance, ["subject_layers"], layers=[0, 1])
    assert_frame_equal(project.table("subject_layers").drop("run_id"), before, check_row_order=False)
    assert project.not_fresh() == set()


def test_what_is_asked_for_again_is_made_and_not_put_back(project: Project) -> None:
    with project.runner() as runner:
        materialize(runner.definitions, runner.instance, ["scores"], layers=[1])
    last = project.table("materializations").sort("finished_at").row(-1, named=True)
    assert (last["table"], "restored" in json.loads(last["environment"])) == ("scores", False)


def test_weights_that_no_text_reaches_leave_everything_after_the_activations_fresh(project: Project) -> None:
    before = project.tables()
    project.edit("wte.weight", lambda weight: weight[unused(project)].add_(0.5))
    outcome = project.refresh()
    assert outcome.made == [
        "subject_layers layers 0-1",
        "activations layers 0-1",
        "connections layers 0-1",
        "layer_summary",
    ]
    assert project.language.sent == 0
    assert_same(project.tables(), before)
    assert project.not_fresh() == set()


def lines_of(project: Project) -> list[str]:
    return (project.home / "corpus.jsonl").read_text("utf-8").splitlines(keepends=True)


@pytest.mark.parametrize(
    "edited",
    [
        lambda lines: lines[::-1],
        lambda lines: [*lines, lines[0]],
        lambda lines: [json.dumps({"text": json.loads(line)["text"], "more": 1}) + "\n" for line in lines],
    ],
    ids=["other order", "a text twice", "another field"],
)
def test_a_corpus_of_the_same_texts_is_read_again_and_nothing_else_is_made(
    project: Project, edited: Callable[[list[str]], list[str]]
) -> None:
    before = {name: project.table(name) for name in RESTORED}
    (project.home / "corpus.jsonl").write_text("".join(edited(lines_of(project))), encoding="utf-8")
    assert ("sequences", None) in project.not_fresh()
    assert project.refresh().made == ["sequences", "layer_summary"]
    assert project.not_fresh() == set()
    for name, rows in before.items():
        assert_frame_equal(project.table(name), rows, check_row_order=False, check_exact=True)


# Dagster by itself


@dataclass
class Daemon:
    """What Dagster's daemon does with a project, one evaluation at a time."""

    project: Project
    instance: dg.DagsterInstance
    choices: dict[str, Any]
    cursor: AssetDaemonCursor | None = None

    def make(self, *assets: str, layers: Sequence[int] = (), neuron: tuple[int, int] | None = None) -> None:
        """A run. Each begins with doors of its own, as a process of its own has them."""
        materialize(self.project.definitions(**self.choices), self.instance, assets, layers=layers, neuron=neuron)

    def tick(self) -> list[tuple[set[str], list[int]]]:
        """Evaluate once, and make what is asked for: assets and layers of each run."""
        built = self.project.definitions(**self.choices)
        graph = built.resolve_asset_graph()
        found = dg.evaluate_automation_conditions(built, self.instance, cursor=self.cursor)
        self.cursor = found.cursor
        asked = [result.true_subset for result in found.results if not result.true_subset.is_empty]
        sensor = built.resolve_sensor_def(SENSOR)
        assert isinstance(sensor, dg.AutomationConditionSensorDefinition)
        runs = []
        for request in build_run_requests(asked, graph, {}, emit_backfills=sensor.emit_backfills):
            # Several layers are asked for as a backfill, which the daemon cuts into runs by each asset's policy.
            if request.asset_graph_subset is not None:
                partitions = list(request.asset_graph_subset.iterate_asset_partitions())
                cut = build_run_requests_with_backfill_policies(partitions, graph, self.instance)
            else:
                cut = [request]
            for one in cut:
                first, last = (one.tags.get(tag, one.partition_key) for tag in (START_TAG, END_TAG))
                layers = list(range(parse_key(str(first))[0], parse_key(str(last))[0] + 1))
                assets = {key.to_user_string() for key in one.asset_selection or ()}
                self.make(*assets, layers=layers)
                runs.append((assets, layers))
        return sorted(runs, key=lambda run: (sorted(run[0]), run[1]))


@contextmanager
def daemon(project: Project, **choices: Any) -> Iterator[Daemon]:
    """One that knows of everything that was made."""
    with dg.DagsterInstance.ephemeral() as instance:
        found = Daemon(project, instance, choices)
        found.make("sequences")
        found.make("subject_layers", layers=[0, 1])
        found.make(*CAPTURE, layers=[0, 1])
        for layer in (0, 1):
            found.make(*HOPS, layers=[layer])
        # The first evaluation sees what there is, and asks for nothing.
        assert found.tick() == []
        yield found


def test_dagster_captures_stale_layers_in_one_pass_and_goes_on_only_where_content_changed(project: Project) -> None:
    with daemon(project, automation_budget_usd=5) as by_itself:
        sent = project.language.sent
        project.edit("wte.weight", lambda weight: weight[unused(project)].add_(0.5))
        by_itself.make("subject_layers", layers=[0, 1])
        assert by_itself.tick() == [(set(CAPTURE), [0, 1])]
        # All activations came out the same but for the weights that their identities name.
        assert (by_itself.tick(), project.language.sent) == ([], sent)

        project.edit("h.1.mlp.c_fc.weight", reads_more)
        by_itself.make("subject_layers", layers=[0, 1])
        assert by_itself.tick() == [(set(CAPTURE), [1])]
        chain = [by_itself.tick() for _ in range(5)]
        assert chain == [*([({hop}, [1])] for hop in HOPS), []]
        assert project.language.sent > sent
        assert project.not_fresh() == {("connections", 0), ("connections", 1)}


def test_without_a_budget_dagster_asks_no_language_model_by_itself(project: Project) -> None:
    with daemon(project) as by_itself:
        project.edit("h.1.mlp.c_fc.weight", reads_more)
        by_itself.make("subject_layers", layers=[0, 1])
        assert [by_itself.tick() for _ in range(3)] == [[(set(CAPTURE), [1])], [({"exemplars"}, [1])], []]
        # What a person makes goes on to what costs nothing.
        by_itself.make("explanations", layers=[1])
        by_itself.make("simulations", layers=[1])
        assert by_itself.tick() == [({"scores"}, [1])]

        # One neuron from the UI has its own event, with the hash of its own rows.
        by_itself.make(*(f"neuron_{hop}" for hop in HOPS), neuron=(1, 0))
        records = by_itself.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey("neuron_scores"), asset_partitions=["L01|N0000"]), limit=1
        ).records
        (event,) = (record.asset_materialization for record in records)
        assert event is not None
        rows = project.table("scores").filter((pl.col("layer") == 1) & (pl.col("neuron") == 0))
        assert (event.tags or {})[DATA_VERSION_TAG] == frame_hash(rows, key=TABLES["scores"].key)
