"""A whole `neuronledger run` that is killed while it captures: the same command goes on, and nothing shows of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from pipeline.provenance import frame_hash
from pipeline.tables import TABLES
from pipeline.testing import planted_checkpoint, planted_corpus
from resources.delta import DeltaLake

MADE = [name for name in TABLES if name not in ("language_calls", "materializations")]
WINDOWS = 90

# The command as installed, with shards so small that a short corpus has several. It is killed as the operating system
# kills: without a word, at a window, or while what was captured is being kept for the third time.
RUN = """
import os, signal, sys
from assets import forward_pass
from explorer import cli, terminal
from resources import partials

forward_pass.SHARD, forward_pass.BATCH, forward_pass.KEEP_AFTER = 16, 4, 0.0
at_window, at_file = int(sys.argv[1]), int(sys.argv[2])
files = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Progress(terminal.TerminalProgress):
    def __call__(self, step, done, total, detail=""):
        if step == "capture" and 0 < at_window <= done:
            die()

def to_disk(path, kept=partials._to_disk):
    global files
    kept(path)
    files += path.suffix == ".safetensors"
    if files == at_file:
        die()

terminal.TerminalProgress, partials._to_disk = Progress, to_disk
cli.main(["run"])
"""


OF_A_SET = ("hashes.json", "layer-00.safetensors", "layer-01.safetensors")


def run(home: Path, *, at_window: int = 0, at_file: int = 0) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NEURONLEDGER_")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, str(at_window), str(at_file)],
        cwd=home,
        env={**inherited, "HF_HUB_OFFLINE": "1", "NEURONLEDGER_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def contents(home: Path) -> dict[str, str]:
    """The content of every table, whoever wrote it."""
    lake = DeltaLake(home / "lake" / "subject")
    return {name: frame_hash(lake.read(name), key=TABLES[name].key) for name in MADE}


def partial_files(home: Path) -> list[str]:
    """What lies in the folder of partial captures, the folders of keys left out."""
    kept = home / "dagster_home" / "subject" / "captures"
    return sorted("/".join(path.relative_to(kept).parts[1:]) for path in kept.glob("*/**/*"))


def windows_resumed(home: Path) -> object:
    with dg.DagsterInstance.from_config(str(home / "dagster_home" / "subject")) as instance:
        (event,) = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey("activations"), asset_partitions=["L01"]), limit=1
        ).records
    assert event.asset_materialization is not None
    return event.asset_materialization.metadata["data/windows_resumed"].value


def project(home: Path) -> Path:
    planted_checkpoint(home / "subject")
    lines = [json.dumps({"text": text}) + "\n" for text in planted_corpus(WINDOWS, seed=1)]
    (home / "corpus.jsonl").write_text("".join(lines))
    (home / "neuronledger.toml").write_text(f'subject = "subject"\ncorpus = "corpus.jsonl"\nwindows = {WINDOWS}\n')
    return home


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    home = project(tmp_path_factory.mktemp("undisturbed"))
    done = run(home)
    assert done.returncode == 0, done.stderr
    return home


def test_a_run_that_was_killed_in_a_shard_and_again_while_keeping_ends_as_if_it_never_was(undisturbed, tmp_path):
    home = project(tmp_path)

    assert run(home, at_window=40).returncode == -9
    assert partial_files(home) == ["0002", *(f"0002/{name}" for name in OF_A_SET)]

    # Two layers are kept after windows 48, 64 and 80: the fifth file is one of half a set.
    assert run(home, at_file=5).returncode == -9
    whole = [file for file in partial_files(home) if not file.startswith("new-")]
    assert whole == ["0004", *(f"0004/{name}" for name in OF_A_SET)]
    assert len(partial_files(home)) == len(whole) + 2

    done = run(home)

    assert done.returncode == 0, done.stderr
    assert windows_resumed(home) == 64
    assert contents(home) == contents(undisturbed)
    assert not list((home / "dagster_home" / "subject" / "captures").iterdir())
