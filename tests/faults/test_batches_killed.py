"""A run in batches is killed before and after everything that it does; the next one goes on with the same batch."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import uvicorn
from batching import REQUESTS

from explorer.fake_endpoint import FakeEndpoint


def test_wherever_a_run_is_killed_the_next_one_goes_on_with_the_same_batch_and_pays_nothing_twice(
    tmp_path: Path, every_case: bool, say: Callable[[str], None]
) -> None:
    endpoint = FakeEndpoint()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(endpoint.app(), log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
            program = Path(__file__).with_name("batching.py")
            command = [sys.executable, str(program), url, str(tmp_path), "1" if every_case else "4"]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment)
        finally:
            server.should_exit = True
            thread.join()
    found = [json.loads(line) for line in done.stdout.splitlines()]
    # The last one had no step left to be killed at.
    assert [one["killed"] for one in found] == [False] * (len(found) - 1) + [True]
    assert len(found) > (20 if every_case else 5)
    for one in found:
        assert all(f"w{REQUESTS * one['step'] + place}" in text for place, text in enumerate(one["texts"]))
        assert (one["rows"], one["batches"]) == (REQUESTS, 1)
    assert len(endpoint.asked) == REQUESTS * len(found)
    assert set(endpoint.asked.values()) == {1}
    assert len(endpoint.batches.batches) == len(found)
    say(f"batches: killed at {len(found) - 1} places, nothing asked twice")
