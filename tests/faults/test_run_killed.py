"""Whole runs that are killed while a language model is asked, or while its answers are written down.

Each is killed once, at a random point between its first request and its last write, and then run again: no request is
sent twice whose reply was kept, and the tables end as those of a run that nobody disturbed. Three points on each push;
`NEURONLEDGER_TEST_KILLS=20` for more.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint

from pipeline.ports import Request
from pipeline.provenance import frame_hash
from pipeline.tables import TABLES
from pipeline.testing import ScriptedLanguageModel, planted_checkpoint, planted_corpus
from resources.delta import DeltaLake
from resources.journal import Journal

KILLS = int(os.environ.get("NEURONLEDGER_TEST_KILLS", "3"))
DOCUMENTS = 60
LATEST = 1.5
"""Seconds after a request is asked at which a run is killed at the latest: the tables are written after the last one."""
MADE = ("explanations", "simulations", "judgements", "scores")

# Python and its libraries take longer to start than such a run: they start once, and each run is a copy of that process.
# Dagster's events stay in memory: what is fresh is said by the lake alone.
RUNS = """
import contextlib, json, os, sys
import assets.definitions, assets.run, dagster, resources.language, resources.subject, transformers
from explorer import cli
from resources import instance

@contextlib.contextmanager
def in_memory(settings):
    with dagster.DagsterInstance.ephemeral() as opened:
        yield opened

instance.instance = in_memory

for line in sys.stdin:
    home, words = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(home)
        os.environ["NEURONLEDGER_HOME"] = home
        said = os.open("said.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(said, 1), os.dup2(said, 2)
        cli.main(words)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def said(request: dict[str, Any]) -> str:
    """What tells requests apart here, as it is sent and as it is kept."""
    messages = [[m["role"], m["content"]] if isinstance(m, dict) else m for m in request["messages"]]
    return json.dumps(messages)


class Runs:
    """Runs of the command in copies of one project, with an endpoint that can kill them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        planted = planted_checkpoint(folder / "made" / "subject")
        lines = [json.dumps({"text": text}) + "\n" for text in planted_corpus(DOCUMENTS, seed=1)]
        (folder / "made" / "corpus.jsonl").write_text("".join(lines))
        (folder / "made" / "neuronledger.toml").write_text(
            f'subject = "subject"\ncorpus = "corpus.jsonl"\nwindows = {DOCUMENTS}\n'
        )
        self._language = ScriptedLanguageModel(planted)
        self.endpoint = Endpoint(self._answer, seconds=0.02)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NEURONLEDGER_")}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RUNS],
            env={**inherited, "HF_HUB_OFFLINE": "1", "DAGSTER_DISABLE_TELEMETRY": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self._kill_at = 0
        self._kill_after = 0.0
        self._child = 0
        self._lock = threading.Lock()

    @property
    def words(self) -> list[str]:
        return [
            "run", "--layers", "0", "--explainer", "scripted", "--base-url", self.endpoint.url, "--concurrency", "4",
            "--select", "random:2", "--scorers", "detection",
        ]  # fmt: skip

    def copied(self, name: str) -> Path:
        """A project in which everything is made but what a language model is asked for."""
        return Path(shutil.copytree(self.folder / "made", self.folder / name))

    def run(self, home: Path, *, words: list[str] | None = None, kill_at: int = 0, kill_after: float = 0.0) -> int:
        """The exit code of a run, -9 if it was killed `kill_after` seconds after its `kill_at`-th request came."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._kill_at, self._kill_after = kill_at, kill_after
        self._process.stdin.write(json.dumps([str(home), words or self.words]) + "\n")
        self._child = int(self._process.stdout.readline())
        code = int(self._process.stdout.readline())
        self._child = 0
        return code

    def _answer(self, request: dict[str, Any]) -> str:
        with self._lock:
            self._kill_at -= 1
            if self._kill_at == 0:
                threading.Timer(self._kill_after, self._kill).start()
            messages = tuple((message["role"], message["content"]) for message in request["messages"])
            replies, _ = self._language.answer([Request(request["model"], messages, 0.0, 1, 0)], run_id="r")
            return replies[0].text or ""

    def _kill(self) -> None:
        if child := self._child:
            os.kill(child, signal.SIGKILL)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(tmp_path_factory.mktemp("killed"))
    with runs.endpoint:
        made = runs.folder / "made"
        assert runs.run(made, words=["run", "--layers", "0"]) == 0, (made / "said.txt").read_text()
        yield runs
        runs.close()


def lake_of(home: Path) -> DeltaLake:
    return DeltaLake(home / "lake" / "subject")


def kept(home: Path) -> set[str]:
    """The requests whose replies are kept, in the lake or on the way there."""
    requests = lake_of(home).read("language_calls")["request"].to_list()
    journal = home / "dagster_home" / "subject" / "language_calls.sqlite"
    if journal.exists():
        with Journal(journal) as opened:
            requests += [received.request for received in opened.pending(1_000_000)]
    return {said(json.loads(request)) for request in requests}


def contents(home: Path) -> dict[str, str]:
    """The tables, whoever wrote them."""
    return {name: frame_hash(lake_of(home).read(name), key=TABLES[name].key) for name in MADE}


def test_a_run_killed_at_a_random_point_pays_for_no_kept_reply_again_and_ends_as_if_it_never_was(runs):
    undisturbed = runs.copied("undisturbed")
    assert runs.run(undisturbed) == 0, (undisturbed / "said.txt").read_text()
    total = len(runs.endpoint.requests)
    assert total > 20
    draw, killed = random.Random(20), 0
    for number in range(KILLS):
        home = runs.copied(f"killed-{number}")
        begun = len(runs.endpoint.requests)
        # Two of three among the requests, the third after the last of them or shortly before.
        late = number % 3 == 2
        at = draw.randint(total - 5, total) if late else draw.randint(1, total)
        killed += runs.run(home, kill_at=at, kill_after=draw.uniform(0, LATEST if late else 0.05)) == -9
        before = kept(home)
        again = len(runs.endpoint.requests)
        assert runs.run(home) == 0, (home / "said.txt").read_text()
        sent = Counter(said(request) for request in runs.endpoint.requests[again:])
        where = f"point {number}, request {at} of {total}"
        assert not before & set(sent), where
        assert set(sent.values()) <= {1}, where
        # What was under way when the run was killed is the most that is lost.
        assert again - begun + sent.total() <= total + 4, where
        assert contents(home) == contents(undisturbed), where
        shutil.rmtree(home)
    assert killed >= KILLS // 2
