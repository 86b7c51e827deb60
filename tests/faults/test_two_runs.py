"""Two `neuronledger run` at once on one lake: both end well, and the rows are those of one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.provenance import frame_hash
from pipeline.tables import TABLES
from pipeline.testing import planted_checkpoint, planted_corpus
from resources.delta import DeltaLake

RUN = [sys.executable, "-W", "ignore", "-c", "from explorer.cli import main; main()", "run"]


def project(home: Path) -> Path:
    home.mkdir()
    planted_checkpoint(home / "subject")
    lines = [json.dumps({"text": text}) + "\n" for text in planted_corpus(60, seed=1)]
    (home / "corpus.jsonl").write_text("".join(lines))
    (home / "neuronledger.toml").write_text('subject = "subject"\ncorpus = "corpus.jsonl"\nwindows = 60\n')
    return home


def at_once(home: Path, count: int) -> list[tuple[int, str]]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NEURONLEDGER_")}
    running = [
        subprocess.Popen(
            RUN,
            cwd=home,
            env={**inherited, "HF_HUB_OFFLINE": "1", "NEURONLEDGER_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(count)
    ]
    said = [process.communicate()[0] for process in running]
    return [(process.returncode, words) for process, words in zip(running, said, strict=True)]


def contents(home: Path) -> dict[str, str]:
    """The content of every table, whoever wrote it; a key that is there twice would be another content."""
    lake = DeltaLake(home / "lake" / "subject")
    names = [name for name in TABLES if name not in ("language_calls", "materializations")]
    return {name: frame_hash(lake.read(name).drop("run_id", strict=False), key=TABLES[name].key) for name in names}


def test_two_runs_at_once_leave_the_rows_of_one(tmp_path: Path, every_case: bool) -> None:
    if not every_case:
        pytest.skip("only in the full set of faults: FAULTS=all")
    one, two = project(tmp_path / "one"), project(tmp_path / "two")
    for code, said in at_once(one, 1) + at_once(two, 2):
        assert code == 0, said
    assert contents(two) == contents(one)
    ((code, said),) = at_once(two, 1)
    assert (code, "nothing was recomputed" in said) == (0, True), said
