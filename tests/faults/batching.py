"""Processes that ask an endpoint in batches, each killed at another step; run by `test_batches_killed.py`.

python batching.py URL FOLDER STRIDE

For each step, or each STRIDE of them, of one call of the door (before and after everything that goes to the disk or to the endpoint), one child
is killed there and another one goes on in the same place. Prints a line of JSON for each: what the second one got.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
from asking import FolderLake

from pipeline.methods import METHODS, Evidence
from pipeline.ports import Request
from resources import batch_records, journal, provider_batches
from resources.language import OpenAICompatible

REQUESTS = 3


def questions(first: int, count: int) -> list[Request]:
    """Different requests that the fake endpoint can answer."""
    ask, silent = METHODS["token-space"], [(" the", 1), (" of", 1), (" a", 1)]
    evidence = [Evidence(tokens=[(f" w{place}", 10), *silent]) for place in range(first, first + count)]
    return [ask.request(one, model="scripted", seed=0) for one in evidence]


class Steps:
    """Everything that a call does outside of its memory, counted; the process dies at one of them."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.count = 0

    def step(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Count from now on."""
        transaction = journal.transaction

        @contextlib.contextmanager
        def counted(connection: Any) -> Any:
            self.step()
            with transaction(connection):
                yield
            self.step()

        journal.transaction = batch_records.transaction = counted  # type: ignore[assignment]
        self._around(openai.AsyncOpenAI, "request")
        add = FolderLake.add

        def adding(*arguments: Any, **named: Any) -> Any:
            self.step()
            found = add(*arguments, **named)
            self.step()
            return found

        FolderLake.add = adding  # type: ignore[method-assign]

    def _around(self, owner: Any, name: str) -> None:
        method = getattr(owner, name)

        async def counted(*arguments: Any, **named: Any) -> Any:
            self.step()
            found = await method(*arguments, **named)
            self.step()
            return found

        setattr(owner, name, counted)


def child(work: Callable[[], None]) -> int:
    """Run something in a process of its own, and say how that ended."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        work()
    finally:
        sys.stdout.flush()
        os._exit(0)
    raise AssertionError


def main() -> None:
    url, folder, stride = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    provider_batches.FIRST_LOOK = 0.01

    def ask(step: int, *, killed: bool) -> None:
        home = folder / str(step)
        language = OpenAICompatible(
            url, journal_path=home / "journal.sqlite", lake=FolderLake(home / "lake"), batch=True
        )
        steps = Steps(step)
        if killed:
            steps.watch()
        replies, usage = language.answer(questions(REQUESTS * step, REQUESTS), run_id=f"{step} {killed}")
        rows = FolderLake(home / "lake").scan("language_calls").collect()
        found = {
            "step": step,
            "killed": killed,
            "texts": [reply.text for reply in replies],
            "sent": usage.requests_sent,
            "rows": len(rows),
            "batches": rows.get_column("batch_id").n_unique(),
        }
        sys.stdout.write(json.dumps(found) + "\n")

    step = 1
    while os.WIFSIGNALED(child(lambda: ask(step, killed=True))):  # noqa: B023 - the child begins at once
        child(lambda: ask(step, killed=False))  # noqa: B023
        step += stride


if __name__ == "__main__":
    main()
