"""Benchmark of the door to language models: how many replies a second one process takes in, stored and read.

    python -m benchmarks.language --concurrency 200 --milliseconds 200 --requests 2000

The endpoint is a process of its own on this machine, which thinks for the given time and answers every request alike,
with the 64 numbers of a simulation. It takes part of the processor; on two cores the figure is one of both.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from benchmarks.figures import Figure, as_json, as_text
from explorer.fake_endpoint import MODEL, FakeEndpoint
from pipeline.json_simulator import parse
from pipeline.ports import Reply, Request, Usage
from resources.delta import DeltaLake
from resources.language import OpenAICompatible

GOAL = 0.9
TOKENS = 64


@dataclass
class Alike:
    """A language model that gives every request the same simulation."""

    text: str = field(default=json.dumps({"activations": [[place, 0] for place in range(TOKENS)]}))

    def answer(self, requests: Sequence[Request], *, run_id: str) -> tuple[Sequence[Reply], Usage]:  # noqa: ARG002
        return [Reply("", self.text, None) for _ in requests], Usage()


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask, and print the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, default=200, help="requests under way at once")
    parser.add_argument("--milliseconds", type=float, default=200.0, help="how long the endpoint takes for each")
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.serve is not None:
        endpoint = FakeEndpoint(seconds=asked.milliseconds / 1e3, language=Alike())  # type: ignore[arg-type]
        uvicorn.run(endpoint.app(), host="127.0.0.1", port=asked.serve, log_level="critical")
        return
    figure = throughput(asked.requests, asked.concurrency, asked.milliseconds)
    print(as_json([figure]) if asked.json else as_text(figure))


def throughput(requests: int, concurrency: int, milliseconds: float) -> Figure:
    """The share of concurrency / latency that is reached, parsing and storing included."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.language", "--serve", str(port), "--milliseconds", str(milliseconds)]
    with tempfile.TemporaryDirectory() as home, subprocess.Popen(command) as server:
        try:
            _wait_for(port)
            door = OpenAICompatible(
                f"http://127.0.0.1:{port}/v1",
                journal_path=Path(home) / "journal.sqlite",
                lake=DeltaLake(str(Path(home) / "lake")),
                concurrency=concurrency,
            )
            door.answer(_questions(1, prefix="warm up"), run_id="r")
            begun, cpu = time.perf_counter(), time.process_time()
            replies, usage = door.answer(_questions(requests), run_id="r")
            read = sum(parse(reply, TOKENS).expected is not None for reply in replies)
            seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        finally:
            server.terminate()
    if (read, usage.requests_sent) != (requests, requests):
        raise RuntimeError(f"{read} of {requests} replies could be read, and {usage.requests_sent} were sent")
    most = concurrency / (milliseconds / 1e3)
    return Figure(
        f"requests_per_second_{concurrency}_in_flight",
        requests / seconds / most,
        f"of {most:,.0f} a second",
        GOAL,
        higher_is_better=True,
        detail=f"{requests / seconds:,.0f} requests/s, {1e3 * cpu / requests:.2f} ms of processor time for each on our side",
    )


def _questions(count: int, *, prefix: str = "question") -> list[Request]:
    system = "You predict what one neuron does. " * 40
    return [
        Request(MODEL, (("system", system), ("user", f"{prefix} {place}")), temperature=0.0, max_tokens=900, seed=0)
        for place in range(count)
    ]


def _wait_for(port: int) -> None:
    for _ in range(500):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/counts").close()
        except OSError:
            threading.Event().wait(0.02)
        else:
            return
    raise RuntimeError("the endpoint did not start")


if __name__ == "__main__":
    main()
