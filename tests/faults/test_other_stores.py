"""Azure and Google: a lake is reached by what the environment says, in the words of those stores, and by nothing else.

Azure's emulator is a real store in a process of its own. Of Google's there is none that speaks as the store does, so a
plain server only notes who asks it for what: that shows the door, and not that a lake can be kept there.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from azure import KEY, Azurite, program
from operations import calls, neurons, stored

from pipeline.errors import LakeError
from resources.delta import DeltaLake

TABLE = "neuron_statistics"


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    if program() is None:
        pytest.skip("Azurite is not installed")
    with Azurite(tmp_path_factory.mktemp("azurite")) as running:
        yield running


def test_writers_on_azure_lose_no_row_and_double_none_and_leave_no_key(azurite: Azurite) -> None:
    uri, writers, turns = azurite.container("writers"), 3, 4
    failed: list[BaseException] = []

    def write(writer: int) -> None:
        try:
            lake = DeltaLake(uri)
            for turn in range(turns):
                neuron = writer * turns + turn
                lake.replace(TABLE, neurons(0, [neuron], f"{writer}"), layer=0, neurons=[neuron], record={})
                lake.add("language_calls", calls(["all ask this", f"{writer} {turn}"], f"{writer}"), record={})
        except BaseException as error:  # noqa: BLE001 - it is shown below
            failed.append(error)

    with azurite.environment():
        DeltaLake(uri).replace(TABLE, neurons(1, [7], "first"), layer=1, record={})
        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        lake = DeltaLake(uri)
        rows = [(0, writer * turns + turn, str(writer)) for writer in range(writers) for turn in range(turns)]
        assert stored(lake, TABLE) == [*rows, (1, 7, "first")]
        asked = sorted(request for request, _ in stored(lake, "language_calls"))
        assert asked == sorted(
            ["all ask this", *(f"{writer} {turn}" for writer in range(writers) for turn in range(turns))]
        )
    written = b"".join(path.read_bytes() for path in azurite.folder.rglob("*") if path.is_file())
    assert b"commit_uuid" in written
    assert KEY.encode() not in written


def test_what_azure_refuses_is_one_line_without_the_key(azurite: Azurite) -> None:
    wrong = "d3Jvbmcta2V5LWNhbmFyeQ=="
    uri = azurite.container("refused")
    with azurite.environment(key=wrong), pytest.raises(LakeError) as refused:
        DeltaLake(uri).replace(TABLE, neurons(0, [0], "x"), layer=0, record={})
    assert uri in str(refused.value)
    assert "\n" not in str(refused.value)
    assert wrong not in str(refused.value)


class _Noted(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_PUT = do_POST = do_HEAD = do_GET  # noqa: N815 (the names are the library's)

    def log_message(self, *arguments: object) -> None:
        """What was asked is noted, not shown."""


def test_a_lake_on_google_is_asked_for_where_the_environment_says_and_its_refusal_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = type("Noted", (_Noted,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        account = tmp_path / "account.json"
        account.write_text(
            json.dumps(
                {
                    "gcs_base_url": f"http://127.0.0.1:{server.server_address[1]}", "disable_oauth": True,
                    "client_email": "canary@example", "private_key": "canary-private-key", "private_key_id": "",
                }
            )
        )  # fmt: skip
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
        try:
            with pytest.raises(LakeError) as refused:
                DeltaLake("gs://somewhere/lake").replace(TABLE, neurons(0, [0], "x"), layer=0, record={})
        finally:
            server.shutdown()
            thread.join()
    assert any("/somewhere" in path for path in handler.asked)  # type: ignore[attr-defined]
    assert "gs://somewhere/lake" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "canary" not in str(refused.value)
