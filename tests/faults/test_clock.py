"""Clocks that are wrong: what was made last is what was written last, whatever time the writer's machine believed it was."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from runs import Runs

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


YEAR = 365 * 86_400


def test_commands_whose_clocks_differ_by_years_agree_on_what_is_fresh_and_intact(
    tmp_path: Path, every_case: bool
) -> None:
    if not every_case:
        pytest.skip("only in the full set of faults: FAULTS=all")
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to build the wrong clock with")
    library = tmp_path / "clock.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(Path(__file__).with_name("clock.c")), "-ldl"],
        check=True,
    )
    runs = Runs(tmp_path, in_memory=False, preload=library)
    home = runs.copied("home")

    def command(*words: str, shift: int = 0) -> str:
        """What a command says to whoever has a clock that is wrong by so many seconds."""
        (home / "said.txt").unlink(missing_ok=True)
        code = runs.run(home, words=list(words), environment={"CLOCK_SHIFT": str(shift)})
        said = (home / "said.txt").read_text()
        assert code == 0 or words[0] == "audit", said
        return said

    with runs.endpoint:
        command("run", "--layers", "0")
        for seed, shift in enumerate((-2 * 86_400, YEAR, 0, -86_400), start=1):
            words = ("--layers", "0", "--seed", str(seed))
            assert "nothing was recomputed" not in command("run", *words, shift=shift)
            assert "nothing was recomputed" in command("run", *words)
        assert "nothing was recomputed" in command("run", *words, shift=-2 * YEAR)
        checks = [line.split() for line in command("audit", "--quick", shift=-3 * 86_400).splitlines()]
        runs.close()
    # A18 tells of a checkout that was changed, as that of who writes this is.
    found = {words[0] for words in checks if "findings" in words[1:] and re.fullmatch(r"A\d+", words[0])}
    assert found <= {"A18"}
    assert len([words for words in checks if words[1:] and re.fullmatch(r"A\d+", words[0]) and "clean" in words]) > 5
    # The clock was wrong indeed.
    times = DeltaLake(home / "lake" / "subject").read("materializations").get_column("finished_at")
    assert times.max() - datetime.now(UTC) > timedelta(days=300)
