"""The pipeline and the explorer under load for twenty minutes: no error, and neither memory nor handles nor files grow.

One process makes a project again and again, each time with another seed, and another shows its pages to four readers who
never pause. Memory is what each holds for itself (not what it maps of files), once as it warms up and once at the end.

    FAULTS=all python -m pytest -q tests/faults/test_soak.py          NEURONLEDGER_TEST_SOAK=60 for a minute
"""

import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint
from runs import project

from pipeline.ports import Request
from pipeline.testing import ScriptedLanguageModel

SECONDS = float(os.environ.get("NEURONLEDGER_TEST_SOAK", "1200"))
READERS = 4
GROWTH = 1.15
"""Of memory, from the second fifth of the time to the last: allocators and caches need some room."""
PAGES = ("/", "/0", "/0/{neuron}", "/search?words=the", "/random", "/help", "/0/{neuron}.json", "/static/explorer.css")


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    memory: float
    """MiB of its own."""
    handles: int


def held(pid: int) -> Held:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    own = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))
    return Held(own / 1024, sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()))


def test_under_load_nothing_grows_and_nothing_fails(
    tmp_path: Path, every_case: bool, say: Callable[[str], None]
) -> None:
    if not every_case:
        pytest.skip("only in the full set of faults: FAULTS=all")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    home = tmp_path / "home"
    language = ScriptedLanguageModel(project(home))

    def answer(request: dict[str, Any]) -> str:
        messages = tuple((message["role"], message["content"]) for message in request["messages"])
        replies, _ = language.answer([Request(request["model"], messages, 0.0, 1, 0)], run_id="r")
        return replies[0].text or ""

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NEURONLEDGER_")}
    environment = {
        **inherited, "NEURONLEDGER_HOME": str(home), "HF_HUB_OFFLINE": "1", "DAGSTER_DISABLE_TELEMETRY": "1",
        "TMPDIR": str(temporary), "MALLOC_ARENA_MAX": "2",
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", "from explorer.cli import main; main()"]
    with Endpoint(answer) as endpoint, (tmp_path / "said.txt").open("w+") as said:
        first = subprocess.run(
            [*command, "run", "--layers", "0"], cwd=home, env=environment, capture_output=True, text=True, check=False
        )
        assert first.returncode == 0, first.stderr
        runs = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("soak.py")), str(home), endpoint.url],
            env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])}, stdout=subprocess.DEVNULL, stderr=said,
        )  # fmt: skip
        pages = subprocess.Popen(
            [*command, "explore", "--port", str(port)], cwd=home, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            watched = {"runs": runs.pid, "pages": pages.pid}
            wrong, counts, over = _read(port, until=time.monotonic() + SECONDS)
            seen: list[tuple[dict[str, Held], int]] = []
            while not over.is_set():
                over.wait(max(0.5, SECONDS / 200))
                assert runs.poll() is None, said.seek(0) or said.read()[-2_000:]
                assert pages.poll() is None
                files = sum(1 for _ in temporary.rglob("*"))
                seen.append(({name: held(pid) for name, pid in watched.items()}, files))
        finally:
            for process in (runs, pages):
                process.kill()
                process.wait()
        said.seek(0)
        codes = [line.split()[2] for line in said.read().splitlines() if line.startswith("run ")]
    assert wrong == []
    assert set(codes) == {"0"}
    fifth = len(seen) // 5
    early, late = seen[fifth : 2 * fifth], seen[-fifth:]
    for name in ("runs", "pages"):
        before, after = (max(one[name].memory for one, _ in some) for some in (early, late))
        # The least: what is open only while a page is made, such as each file of a table, is no leak.
        handles = [min(one[name].handles for one, _ in some) for some in (early, late)]
        say(
            f"soak of {SECONDS:,.0f} s, {name}: {before:,.0f} MiB, then {after:,.0f}; handles at rest {handles[0]}, then {handles[1]}"
        )
        assert after <= GROWTH * before, name
        assert handles[1] <= handles[0] + 4, name
    most = [max(files for _, files in some) for some in (early, late)]
    say(f"{len(codes)} runs, {sum(counts):,} pages, no error; temporary files {most[0]}, then {most[1]}")
    assert most[1] <= most[0] + 4


def _read(port: int, *, until: float) -> tuple[list[str], list[int], threading.Event]:
    """Let readers ask for pages; what went wrong, how many each has read, and whether all are done."""
    wrong: list[str] = []
    counts, over = [0] * READERS, threading.Event()

    def read(reader: int) -> None:
        draw = random.Random(reader)
        while time.monotonic() < until:
            path = draw.choice(PAGES).format(neuron=draw.randrange(16))
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=120) as answer:
                    answer.read()
                counts[reader] += 1
            except urllib.error.HTTPError as error:
                if error.code >= 500:
                    wrong.append(f"{path}: {error}")
            except OSError as error:
                if sum(counts):  # before the first page the server is not up yet
                    wrong.append(f"{path}: {error}")
                time.sleep(0.2)

    threads = [threading.Thread(target=read, args=(reader,)) for reader in range(READERS)]
    for thread in threads:
        thread.start()

    def wait() -> None:
        for thread in threads:
            thread.join()
        over.set()

    threading.Thread(target=wait).start()
    return wrong, counts, over
