"""Azure's object store, of one's own: its emulator (Azurite) as a process on loopback, with an account made for it.

Azurite is a program of Node: `npm install --prefix .venv/azurite azurite`, or `azurite-blob` anywhere on the path.
"""

import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType

import pytest

ACCOUNT = "canaryaccount"
KEY = base64.b64encode(b"canary-key-0f1e2d3c4b5a6978").decode()
VERSION = "2021-08-06"


def program() -> str | None:
    """Where Azurite is; None if it is not installed."""
    beside = Path(__file__).parents[2] / ".venv" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    return shutil.which("azurite-blob") or (str(beside) if beside.exists() else None)


class Azurite:
    """A running emulator that keeps everything in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "Azurite":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._process = subprocess.Popen(
            [
                program() or "", "--blobHost", "127.0.0.1", "--blobPort", str(self._port), "--location", str(self.folder),
                "--silent", "--skipApiVersionCheck", "--disableTelemetry",
            ],
            env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return self
            assert self._process.poll() is None, "Azurite ended before it began"
            time.sleep(0.1)
        raise AssertionError("Azurite did not begin within 60 s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    @contextmanager
    def environment(self, *, key: str = KEY) -> Iterator[None]:
        """What a user has in the environment."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": key,
                "AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{self._port}",
            }.items():  # fmt: skip
                patch.setenv(name, value)
            yield

    def container(self, name: str) -> str:
        """Make a container, and give the address of a lake in it."""
        date = formatdate(usegmt=True)
        signed = (
            f"PUT{12 * chr(10)}x-ms-date:{date}\nx-ms-version:{VERSION}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        )
        digest = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
        connection = HTTPConnection("127.0.0.1", self._port)
        connection.request(
            "PUT",
            f"/{ACCOUNT}/{name}?restype=container",
            headers={
                "x-ms-date": date, "x-ms-version": VERSION, "Content-Length": "0",
                "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
            },
        )  # fmt: skip
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()
        connection.close()
        return f"az://{name}/lake"
