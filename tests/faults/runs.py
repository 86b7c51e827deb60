"""Runs of the command, each a copy of one process that has loaded everything, so that hundreds can be killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from endpoint import Endpoint

from pipeline.ports import Request
from pipeline.testing import Planted, ScriptedLanguageModel, planted_checkpoint, planted_corpus

DOCUMENTS = 60

# Python and its libraries take longer to start than such a run: they start once, and each run is a copy of that process.
# What starts threads (a question to polars, a table that is opened) is not done here, since a copy has none of them.
# Where Dagster's events stay in memory, what is fresh is said by the lake alone.
RUNS = """
import contextlib, json, os, sys, tempfile
import assets.definitions, assets.run, dagster, pipeline.kernels, pipeline.reduction, resources.language, resources.subject
import transformers.models.auto.tokenization_auto, transformers.models.gpt2.modeling_gpt2
from explorer import cli
from resources import instance

with tempfile.TemporaryDirectory() as folder:
    dagster.DagsterInstance.local_temp(folder).dispose()

@contextlib.contextmanager
def in_memory(settings):
    with dagster.DagsterInstance.ephemeral() as opened:
        yield opened

if sys.argv[1] == "in memory":
    instance.instance = in_memory

for line in sys.stdin:
    home, words, more = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.update(more)
        os.chdir(home)
        os.environ["NEURONLEDGER_HOME"] = home
        said = os.open("said.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(said, 1), os.dup2(said, 2)
        cli.main(words)
    print(child, flush=True)
    _, status, used = os.wait4(child, 0)
    print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, flush=True)
"""


def project(home: Path) -> Planted:
    """Make a project with a planted subject and texts for it."""
    planted = planted_checkpoint(home / "subject")
    lines = [json.dumps({"text": text}) + "\n" for text in planted_corpus(DOCUMENTS, seed=1)]
    (home / "corpus.jsonl").write_text("".join(lines))
    (home / "neuronledger.toml").write_text(f'subject = "subject"\ncorpus = "corpus.jsonl"\nwindows = {DOCUMENTS}\n')
    return planted


def said(request: dict[str, Any]) -> str:
    """What tells requests apart here, as it is sent and as it is kept."""
    messages = [[m["role"], m["content"]] if isinstance(m, dict) else m for m in request["messages"]]
    return json.dumps(messages)


class Runs:
    """Runs of the command in copies of one project, with an endpoint that can kill them.

    `preload` is a library that stands before all others in them.
    """

    def __init__(self, folder: Path, *, in_memory: bool, preload: Path | None = None) -> None:
        self.folder = folder
        self._language = ScriptedLanguageModel(project(folder / "made"))
        self.endpoint = Endpoint(self._answer, seconds=0.02)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NEURONLEDGER_")}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RUNS, "in memory" if in_memory else "on disk"],
            env={
                **inherited, "HF_HUB_OFFLINE": "1", "DAGSTER_DISABLE_TELEMETRY": "1",
                **({} if preload is None else {"LD_PRELOAD": str(preload)}),
            },
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self._kill_at = 0
        self._kill_after = 0.0
        self._child = 0
        self.used = 0.0
        """Seconds of processor time that the last run took."""
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

    def run(
        self,
        home: Path,
        *,
        words: list[str] | None = None,
        kill_at: int = 0,
        kill_after: float = 0.0,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """The exit code of a run, -9 if it was killed `kill_after` seconds after its `kill_at`-th request came.

        Without `kill_at` they are of processor time, from its beginning: how busy the machine is changes nothing.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._kill_at, self._kill_after = kill_at, kill_after
        self._process.stdin.write(json.dumps([str(home), words or self.words, dict(environment or {})]) + "\n")
        self._child = int(self._process.stdout.readline())
        if kill_after and not kill_at:
            threading.Thread(target=self._kill_when_used, args=[self._child, kill_after]).start()
        code, used = self._process.stdout.readline().split()
        self._child, self.used = 0, float(used)
        return int(code)

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

    def _kill_when_used(self, child: int, seconds: float) -> None:
        while child == self._child:
            with suppress(OSError):
                fields = Path(f"/proc/{child}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
                if (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") >= seconds:
                    os.kill(child, signal.SIGKILL)
                    return
            time.sleep(0.005)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
