"""Automation by Dagster's own daemon: a process of its own that looks, launches runs as processes, and stops where it should."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import torch
from dagster._core.scheduler.instigation import TickStatus
from safetensors.torch import load_file, save_file

from assets import definitions
from assets.automation import SENSOR
from assets.run import CAPTURE, END_TAG, START_TAG, materialize
from pipeline.testing import planted_checkpoint, planted_corpus
from resources.delta import DeltaLake
from resources.instance import instance
from resources.settings import Settings, load

EVERY_SECOND = """
from assets import automation, definitions
from resources.settings import load
automation.INTERVAL = 1
defs = definitions.build(load())
"""
"""The project as Dagster loads it, but for how often it is looked at."""

PATIENCE = 400
"""Seconds that a busy machine may take for any one step; on an idle one they take five to thirty."""

Made = tuple[tuple[str, ...], tuple[str, ...]]
"""Assets and layers of one run."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_case: bool) -> Settings:
    """A project in which all is made up to the exemplars of two layers. An explainer is set, and no budget for it."""
    if not every_case:
        pytest.skip(
            "a minute with a daemon: FAULTS=all runs it, and tests/assets/test_cutoff.py the same in one process"
        )
    for name in [name for name in os.environ if name.startswith("NEURONLEDGER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    planted_checkpoint(tmp_path / "subject")
    lines = (json.dumps({"text": text}) + "\n" for text in planted_corpus(30, seed=1))
    (tmp_path / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "quick.py").write_text(EVERY_SECOND, encoding="utf-8")
    found = load(
        subject=str(tmp_path / "subject"), corpus=str(tmp_path / "corpus.jsonl"), explainer="nobody",
        base_url="http://127.0.0.1:9/v1", device="cpu", lake=str(tmp_path / "lake"),
    )  # fmt: skip
    with instance(found) as opened:
        built = definitions.build(found)
        materialize(built, opened, ["sequences"])
        for assets in (["subject_layers"], CAPTURE):
            materialize(built, opened, assets, layers=[0, 1])
        for layer in (0, 1):
            materialize(built, opened, ["exemplars"], layers=[layer])
    return found


@contextmanager
def daemon(settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    """`dagster-daemon run`, as `neuronledger ui` starts it."""
    environment = {**os.environ, **settings.for_children(), "DAGSTER_DISABLE_TELEMETRY": "1"}
    words = [sys.executable, "-W", "ignore", "-m", "dagster._daemon", "run", "-f", "quick.py"]
    with Path("daemon.log").open("wb") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)


def ticks(opened: dg.DagsterInstance) -> int:
    """How often the sensor has looked, and come to an end."""
    states = [state for state in opened.all_instigator_state() if state.instigator_name == SENSOR]
    done = [TickStatus.SKIPPED, TickStatus.SUCCESS]
    return sum(len(opened.get_ticks(state.instigator_origin_id, state.selector_id, statuses=done)) for state in states)


def wait(process: "subprocess.Popen[bytes]", until: Callable[[], object]) -> None:
    begun = time.monotonic()
    while not until():
        assert process.poll() is None, Path("daemon.log").read_text()[-3000:]
        assert time.monotonic() - begun < PATIENCE, Path("daemon.log").read_text()[-3000:]
        time.sleep(0.2)


def made_by(opened: dg.DagsterInstance, known: set[str]) -> list[Made]:
    """What the daemon's runs made, one after the other."""
    found: list[Made] = []
    for run in reversed(opened.get_runs()):
        if run.run_id in known:
            continue
        keys = sorted(key.to_user_string() for key in run.asset_selection or ())
        first, last = (run.tags.get(tag, run.tags.get("dagster/partition", "")) for tag in (START_TAG, END_TAG))
        found.append((tuple(keys), tuple(dict.fromkeys((first, last)))))
    return found


def changed(settings: Settings, name: str, change: Callable[[torch.Tensor], object]) -> None:
    """Change one tensor of the model."""
    path = Path(settings.subject) / "model.safetensors"
    tensors = load_file(path)
    change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


def hashed_again(settings: Settings, opened: dg.DagsterInstance, layers: Sequence[int]) -> set[str]:
    """Materialise `subject_layers`, as a person does in the UI; the runs that there are then."""
    materialize(definitions.build(settings), opened, ["subject_layers"], layers=layers)
    return {run.run_id for run in opened.get_runs()}


def test_a_daemon_makes_the_stale_layers_and_goes_on_only_where_content_changed(settings: Settings) -> None:
    lake = DeltaLake(settings.lake_uri)
    with instance(settings) as opened, daemon(settings) as process:
        # The first look sees what there is, and asks for nothing.
        wait(process, lambda: ticks(opened) >= 1)
        before = {table: lake.read(table, layer=0) for table in (*CAPTURE, "exemplars")}
        changed(settings, "h.1.mlp.c_fc.weight", lambda weight: weight[:, 0].add_(weight[:, 1]))
        known = hashed_again(settings, opened, [0, 1])
        chain: list[Made] = [(tuple(sorted(CAPTURE)), ("L01",)), (("exemplars",), ("L01",))]
        wait(process, lambda: len(made_by(opened, known)) >= 2 and not running(opened))
        looked = ticks(opened)
        wait(process, lambda: ticks(opened) >= looked + 2)
        # Explanations would ask a language model, for which nobody set a budget.
        assert made_by(opened, known) == chain
        assert {table: lake.read(table, layer=0).equals(rows) for table, rows in before.items()} == dict.fromkeys(
            before, True
        )
        assert lake.version("explanations") is None
        spelled = json.loads((Path(settings.subject) / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
        used = lake.read("sequences").get_column("token_ids").explode(empty_as_null=True, keep_nulls=True)
        unused = min(set(spelled.values()) - set(used))
        changed(settings, "wte.weight", lambda weight: weight[unused].add_(0.5))
        known = hashed_again(settings, opened, [0, 1])
        # Both layers in one run; their activations are what they were, and nothing is made from them.
        wait(process, lambda: made_by(opened, known) and not running(opened))
        looked = ticks(opened)
        wait(process, lambda: ticks(opened) >= looked + 2)
        assert made_by(opened, known) == [(tuple(sorted(CAPTURE)), ("L00", "L01"))]
        failed = [run.run_id for run in opened.get_runs() if run.status != dg.DagsterRunStatus.SUCCESS]
    assert failed == []
    assert lake.read("materializations").filter(pl.col("status") != "done").is_empty()


def running(opened: dg.DagsterInstance) -> bool:
    ended = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    return any(run.status not in ended for run in opened.get_runs())
