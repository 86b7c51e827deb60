"""Benchmark of the door to language models: how many replies a second one process takes in, stored and read.

    python -m benchmarks.language --concurrency 200 --milliseconds 200 --requests 2000

The endpoint is a process of its own on this machine, which waits for the given time and answers every request alike, with
the 64 numbers of a simulation. It does as little as it can, and takes a core of its own where there is one to spare.
"""

import argparse
import asyncio
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from benchmarks.figures import Figure, as_json, as_text
from pipeline.json_simulator import parse
from pipeline.ports import Request
from resources.delta import DeltaLake
from resources.language import OpenAICompatible

GOAL = 0.9
MODEL = "scripted"
TOKENS = 64


def _answer() -> bytes:
    """The answer to everything: a simulation, as chat endpoints send it."""
    content = json.dumps({"activations": [[place, 0] for place in range(TOKENS)]})
    message = {"role": "assistant", "content": content, "refusal": None}
    body = json.dumps(
        {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 500, "completion_tokens": 200, "total_tokens": 700},
        }
    ).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Alike(asyncio.Protocol):
    """One connection to the endpoint."""

    answer = _answer()
    seconds = 0.2

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer later, once a request is whole."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if end and len(body) >= (int(length[1]) if length else 0):
            self._received = b""
            asyncio.get_running_loop().call_later(self.seconds, self._send)

    def _send(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self.answer)


async def _serve(port: int, seconds: float) -> None:
    Alike.seconds = seconds
    server = await asyncio.get_running_loop().create_server(Alike, "127.0.0.1", port, backlog=2_000)
    await server.serve_forever()


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
        asyncio.run(_serve(asked.serve, asked.milliseconds / 1e3))
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
            # It keeps nothing. A started process may ignore SIGTERM: where SIGINT is ignored, as in the background of a
            # shell, Dagster ignores both, and children inherit that.
            server.kill()
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
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            threading.Event().wait(0.02)
        else:
            return
    raise RuntimeError("the endpoint did not start")


if __name__ == "__main__":
    main()
