"""Dagster's own interface, really started: it answers behind the guard, and stops soon, whatever is still open."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from explorer.cli import main

TOKEN = "a secret of some length"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}
BEGIN = "from explorer.cli import main; main()"


@pytest.fixture(scope="module")
def started(empty, tmp_path_factory):
    """The command as a process of its own, and its address."""
    folder = empty.copy(tmp_path_factory.mktemp("ui"))
    told = (folder.home / "told").open("w")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("NEURONLEDGER_", "DAGSTER_"))},
        "DAGSTER_DISABLE_TELEMETRY": "1", "NEURONLEDGER_TOKEN": TOKEN,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, "ui", "--port", "0"], cwd=folder.home, env=environment, stderr=told
    )
    try:
        address, until = None, time.monotonic() + 180
        while address is None and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
            address = re.search(r"Dagster UI at (http://127\.0\.0\.1:\d+)", (folder.home / "told").read_text())
        assert address, (folder.home / "told").read_text()
        yield process, address[1]
    finally:
        process.kill()
        process.wait()
        told.close()


def ask(address, data=None, **headers):
    """Status and body of an answer."""
    asked = urllib.request.Request(address, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(asked) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def query(address, text, **headers):
    body = json.dumps({"query": text}).encode()
    return ask(f"{address}/graphql", body, Content_Type="application/json", **headers)


def children(pid):
    """The processes that one has started, and which of them is the daemon."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def is_gone(pid):
    """Whether there is no such process any more, or only what is left until somebody asks how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def within(seconds, true):
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_its_pages_and_its_graphql_answer_to_those_who_know_the_token(started):
    _, address = started
    status, page = ask(address, **KNOWN)
    assert (status, "<title>Dagster" in page or "dagster" in page.lower()) == (200, True)
    assert ask(f"{address}/server_info", **KNOWN)[0] == 200
    status, answer = query(address, "{ version workspaceOrError { __typename } }", Origin=address, **KNOWN)
    assert status == 200
    assert json.loads(answer)["data"]["workspaceOrError"]["__typename"] == "Workspace"


def test_nothing_is_said_to_others(started):
    _, address = started
    port = address.rpartition(":")[2]
    assert ask(address)[0] == 401
    assert query(address, "{ version }", Origin=address)[0] == 401
    assert ask(address, Host="evil.example", **KNOWN)[0] == 421
    assert query(address, "{ version }", Origin=address, Host=f"evil.example:{port}", **KNOWN)[0] == 421
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert query(address, "{ version }", Origin=origin, **KNOWN)[0] == 403
    assert query(address, "{ version }", **KNOWN)[0] == 403
    assert "restricted" not in ask(f"{address}/graphql?query={{version}}")[1]


def test_a_websocket_is_opened_by_its_own_pages_alone_and_does_not_keep_it_from_stopping(started):
    client = pytest.importorskip("websockets.sync.client")
    from websockets.exceptions import InvalidStatus

    process, address = started
    place = address.replace("http", "ws") + "/graphql"
    refused = [
        ({"origin": "http://evil.example"}, KNOWN), ({"origin": address}, {}), ({"origin": "null"}, KNOWN),
    ]  # fmt: skip
    for options, headers in refused:
        with (
            pytest.raises(InvalidStatus, match="403"),
            client.connect(place, subprotocols=["graphql-ws"], additional_headers=headers, **options),
        ):
            pass
    with client.connect(place, subprotocols=["graphql-ws"], additional_headers=KNOWN, origin=address) as mine:
        mine.send(json.dumps({"type": "connection_init"}))
        assert json.loads(mine.recv(timeout=60))["type"] == "connection_ack"
        daemon = [pid for pid, command in children(process.pid).items() if "dagster._daemon" in command]
        assert len(daemon) == 1
        process.send_signal(signal.SIGTERM)
        # It waits two seconds for requests, and two for processes; the rest is room for a machine with much to do.
        assert within(30, lambda: process.poll() is not None)
        assert within(10, lambda: is_gone(daemon[0]))


def test_what_it_started_never_outlives_it_even_if_it_is_killed(tmp_path):
    begin = (
        "import sys, time\nfrom explorer.dagster_ui import child\n"
        "with child([sys.executable, '-c', 'import time; time.sleep(600)']) as started:\n"
        "    print(started.pid, flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", begin], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert not is_gone(pid)
        parent.kill()
        assert within(10, lambda: is_gone(pid))


def test_an_address_that_others_can_reach_needs_a_token_before_anything_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEURONLEDGER_TOKEN", raising=False)
    result = CliRunner().invoke(main, ["ui", "--host", "0.0.0.0"])
    assert (result.exit_code, "set NEURONLEDGER_TOKEN" in result.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []
    for port in ("-1", "65536", "http"):
        assert CliRunner().invoke(main, ["ui", "--port", port]).exit_code == 2
