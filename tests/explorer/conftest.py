"""Project folders as users have them: a planted model and texts beside a settings file, and commands typed there."""

import json
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click.testing
import dagster as dg
import polars as pl
import pytest
import uvicorn

from explorer.cli import main
from explorer.fake_endpoint import FakeEndpoint
from pipeline.provenance import frame_hash
from pipeline.scores import scores
from pipeline.tables import TABLES
from pipeline.testing import Planted, planted_checkpoint, planted_corpus, planted_gated_checkpoint
from resources import instance
from resources.delta import DeltaLake

HOSTILE = "[red]a[/red] [link=http://b]c[/link] \x1b[2J\x1b]0;d\x07 \x9b31m \u202ee \x00 \r f\n"
"""What a text may hold to speak to a terminal: colours, links, a title, reversed writing, a line of its own."""

BESIDE = (
    "judgements",
    "explanation_embeddings",
    "language_calls",
    "materializations",
    "reviews",
    "imports",
    "common_simulations",
    "common_scores",
)
"""Tables that a plain run does not make, besides those of what was imported."""
MADE = [name for name in TABLES if name not in BESIDE and not name.startswith("imported_")]


@contextmanager
def in_memory(settings: Any) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


@dataclass(frozen=True)
class Folder:
    """A project folder. Dagster keeps its events in memory, which takes half the time, unless `on_disk`."""

    home: Path
    on_disk: bool = False

    @property
    def lake(self) -> DeltaLake:
        return DeltaLake(self.home / "lake" / "subject")

    def type(self, *words: str) -> click.testing.Result:
        """What a command prints here, and its exit code. An error that is no exit is one of the test."""
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("NEURONLEDGER_")]:
                patch.delenv(name)
            for name, value in ENVIRONMENT.items():
                patch.setenv(name, value)
            patch.chdir(self.home)
            if not self.on_disk:
                patch.setattr(instance, "instance", in_memory)
            result = click.testing.CliRunner().invoke(main, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def states(self, *words: str) -> dict[tuple[str, int | None], tuple[str, str]]:
        """Status and cause of each slice."""
        found = json.loads(self.type("status", "--json", *words).stdout)
        return {(row["table"], row["layer"]): (row["status"], row["cause"]) for row in found}

    def not_fresh(self, *words: str) -> dict[tuple[str, int | None], str]:
        """The causes of all slices that are not fresh."""
        return {at: f"{status}: {cause}" for at, (status, cause) in self.states(*words).items() if status != "fresh"}

    def table(self, name: str, **at: Any) -> pl.DataFrame:
        return self.lake.read(name, **at)

    def contents(self) -> dict[str, str]:
        """The content of every table, whoever wrote it."""
        return {name: frame_hash(self.table(name), key=TABLES[name].key) for name in MADE}

    def versions(self) -> dict[str, int | None]:
        return {name: self.lake.version(name) for name in TABLES}

    def runs(self) -> dict[tuple[str, int | None], set[str]]:
        """Which runs wrote the rows of each slice."""
        return {
            (name, layer): set(self.table(name, layer=layer).get_column("run_id"))
            for name in MADE
            for layer in ((0, 1) if TABLES[name].by_layer else (None,))
        }

    def copy(self, to: Path, *, on_disk: bool = False) -> "Folder":
        """The same folder in another place, without Dagster's events."""
        shutil.copytree(self.home, to, ignore=shutil.ignore_patterns("dagster_home"), dirs_exist_ok=True)
        return Folder(to, on_disk)


ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DAGSTER_DISABLE_TELEMETRY": "1"}


def lay_out(home: Path, *, documents: int) -> Path:
    """Settings and texts for a model that lies in `subject`."""
    texts = planted_corpus(documents, seed=1)
    lines = (json.dumps({"text": text if place % 2 else f"{text[:60]} {HOSTILE} {text[60:]}"}) + "\n"
             for place, text in enumerate(texts))  # fmt: skip
    (home / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    (home / "neuronledger.toml").write_text(
        f'subject = "subject"\ncorpus = "corpus.jsonl"\nwindows = {documents}\n', encoding="utf-8"
    )
    return home


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> Planted:
    """The model of `empty`, and what its neurons do."""
    return planted_checkpoint(tmp_path_factory.mktemp("empty") / "subject")


@pytest.fixture(scope="session")
def empty(planted) -> Folder:
    """A folder in which nothing was run yet."""
    return Folder(lay_out(planted.folder.parent, documents=60))


@pytest.fixture(scope="session")
def first(empty, tmp_path_factory) -> tuple[Folder, click.testing.Result]:
    """A folder with everything in it, made by one command with Dagster's events on disk; and what that printed."""
    folder = empty.copy(tmp_path_factory.mktemp("made"), on_disk=True)
    return folder, folder.type("run")


@pytest.fixture(scope="session")
def made(first) -> Folder:
    """A folder with everything in it. Tests that change something take a copy."""
    return first[0]


@pytest.fixture
def copied(made, tmp_path) -> Folder:
    """A folder with everything in it, to be changed."""
    return made.copy(tmp_path)


@pytest.fixture(scope="session")
def gated(tmp_path_factory) -> Folder:
    """A made folder of a model of another shape, whose neurons mean something on both sides of zero."""
    home = lay_out(tmp_path_factory.mktemp("gated"), documents=120)
    planted_gated_checkpoint(home / "subject")
    folder = Folder(home)
    assert folder.type("run").exit_code == 0
    return folder


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """An ASGI application on a free port of this machine; its address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def served() -> Any:
    return serving


@pytest.fixture(scope="session")
def told(made, tmp_path_factory) -> Folder:
    """A made folder in which a language model has explained neuron 1:5, and refused to explain 1:6."""
    folder = made.copy(tmp_path_factory.mktemp("told"))
    with serving(FakeEndpoint().app()) as address:
        folder.type("run", "--neurons", "1:5", "--explainer", "scripted", "--base-url", f"{address}/v1")
    at = {"layer": 1, "neurons": [6]}
    refusal = folder.table("explanations", layer=1, neurons=[5]).filter(pl.col("explainer") == "scripted")
    refusal = refusal.with_columns(
        pl.lit(6, pl.Int32).alias("neuron"), pl.lit(None, pl.String).alias("text"), pl.lit("refused").alias("missing_because"),
        pl.lit("0" * 16).alias("explanation_id"),
    )  # fmt: skip
    explanations = pl.concat([folder.table("explanations", **at), refusal])
    found = scores(folder.table("simulations", **at), explanations, seed=0).with_columns(run_id=pl.lit("by hand"))
    folder.lake.replace("explanations", explanations, **at, record={})
    folder.lake.replace("scores", found, **at, record={})
    return folder


@pytest.fixture(scope="session")
def address(told, tmp_path_factory) -> Iterator[str]:
    """Where the explorer serves the lake of `told`."""
    from explorer.kept import Kept
    from explorer.server import Explorer
    from explorer.staleness import Staleness

    explorer = Explorer(Kept(told.lake), Staleness(told.lake, None), told.home, tmp_path_factory.mktemp("files"))
    with serving(explorer.app()) as found:
        yield found


def ask(address: str, **headers: str) -> tuple[int, str]:
    """Status and body of a page, in English unless asked otherwise; where it sends one is followed."""
    asked = urllib.request.Request(address, headers={"Accept-Language": "en", **headers})
    try:
        with urllib.request.urlopen(asked) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture(scope="session")
def asking() -> Any:
    return ask
