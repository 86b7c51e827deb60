"""Clocks that are wrong: what was made last is what was written last, whatever time the writer's machine believed it was."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from runs import project

from assets import explanations, freshness, run, scores, simulations, step
from assets.project import Choices, Project
from benchmarks.asking import HOPS, of_layer, text, windows
from pipeline.testing import scripted
from resources.delta import DeltaLake
from resources.machines import ThisMachine

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
JUMPS = {"a day back": timedelta(days=-1), "a year ahead": timedelta(days=365), "right again": timedelta(0)}
PROJECT = Project(
    n_neurons=(3,), choices=Choices(windows=9, length=64, seed=0, explainer=None, simulator=None), code={}
)


def made(lake: DeltaLake, project: Project) -> None:
    """Explain, simulate and score with the baselines alone."""
    definitions = dg.Definitions(
        assets=[asset.define(project) for asset in (explanations, simulations, scores)],
        resources={
            "lake": lake, "machines": ThisMachine(), "language": scripted(),
            "subject": dg.ResourceDefinition.none_resource(),
        },
        executor=dg.in_process_executor,
    )  # fmt: skip
    with dg.DagsterInstance.ephemeral() as instance:
        run.materialize(definitions, instance, HOPS, layers=[0])


def test_the_last_write_counts_as_the_last_when_the_clock_goes_back_or_was_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, words, now = DeltaLake(tmp_path / "lake"), text(), NOON

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return now

    monkeypatch.setattr(step, "datetime", Clock)
    lake.replace("sequences", windows(words), record={})
    for table, rows in of_layer(words, 0, 3).items():
        lake.replace(table, rows, layer=0, record={})
    made(lake, PROJECT)
    for seed, jump in enumerate(JUMPS.values(), start=1):
        now = NOON + jump
        made(lake, replace(PROJECT, choices=replace(PROJECT.choices, seed=seed)))
        record = freshness._Records(lake).whole("scores", 0)
        assert record is not None
        assert json.loads(record["settings"])["seed"] == seed
        assert record["version"] == lake.version("scores")
        assert record["finished_at"] >= record["started_at"]
    times = lake.read("materializations").sort("finished_at").filter(table="scores")
    assert times["version"].to_list() == sorted(times["version"].to_list())


LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


def command(home: Path, *words: str, shift: str) -> str:
    """What a command of a project says, with a clock that is wrong by `shift`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NEURONLEDGER_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "from explorer.cli import main; main()", *words],
        cwd=home,
        env={
            **inherited, "HF_HUB_OFFLINE": "1", "NEURONLEDGER_HOME": str(home), "LD_PRELOAD": str(LIBRARY),
            "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_commands_whose_clocks_differ_by_years_agree_on_what_is_fresh_and_intact(
    tmp_path: Path, every_case: bool
) -> None:
    if not every_case:
        pytest.skip("only in the full set of faults: FAULTS=all")
    if LIBRARY is None:
        pytest.skip("libfaketime is not installed")
    project(tmp_path)
    command(tmp_path, "run", "--layers", "0", shift="+0")
    for seed, shift in enumerate(("-2d", "+400d", "+0", "-1d"), start=1):
        words = ("--layers", "0", "--seed", str(seed))
        assert "nothing was recomputed" not in command(tmp_path, "run", *words, shift=shift)
        assert "nothing was recomputed" in command(tmp_path, "run", *words, shift="+0")
    assert "nothing was recomputed" in command(tmp_path, "run", *words, shift="-700d")
    command(tmp_path, "audit", "--quick", shift="-3d")
