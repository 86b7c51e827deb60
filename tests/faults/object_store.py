"""An object store of one's own: a real S3 server (moto) in a process of its own, and a wire to it that can be cut.

    with Store() as store, store.environment():
        DeltaLake(store.bucket("lake")).replace(...)

Credentials are in the environment, as for users. `Wire` stands between a lake and the store, and lets something happen
to one of the requests that change the store, counted from 0, or to all from there on.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import pytest

SECRET = "canary-secret-0f1e2d3c4b5a"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "CANARYKEYID",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}

SIGNED = "AWS4-HMAC-SHA256 Credential=CANARYKEYID/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""Moto gives and removes nothing for a stranger, but checks no signature."""

KINDS = ("refused", "lost", "unavailable", "forbidden")
"""What can happen to a request: the connection ends before the store had it, or after the store did it and before it
could say so; the store is busy (503); the store says no (403)."""


class Store:
    """A running S3 server with nothing in it."""

    def __enter__(self) -> "Store":
        self._port = _free_port()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return self
            assert self._process.poll() is None, "the object store ended before it began"
            time.sleep(0.1)
        raise AssertionError("the object store did not begin within 30 s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self._port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def bucket(self, name: str) -> str:
        """Make a bucket, and give the address of a lake in it."""
        connection = HTTPConnection(*self.address)
        connection.request("PUT", f"/{name}")
        assert connection.getresponse().status == 200
        connection.close()
        return f"s3://{name}/lake"

    def everything(self) -> bytes:
        """All that the store holds, and how it is called."""
        found = b""
        for bucket in _names(self._get("/"), b"Name"):
            marker = b""
            while True:
                page = self._get(f"/{bucket.decode()}?list-type=2&start-after={marker.decode()}")
                keys = _names(page, b"Key")
                found += b"\n".join(keys)
                found += b"".join(self._get(f"/{bucket.decode()}/{key.decode()}") for key in keys)
                if b"<IsTruncated>true" not in page:
                    break
                marker = keys[-1]
        return found

    def keys(self, bucket: str) -> list[str]:
        """The names of what a bucket holds, 1,000 of them at most."""
        return [key.decode() for key in _names(self._get(f"/{bucket}?list-type=2"), b"Key")]

    def put(self, bucket: str, key: str, data: bytes | None) -> None:
        """Put an object there whatever was there; remove it for None."""
        connection = HTTPConnection(*self.address)
        connection.request("DELETE" if data is None else "PUT", f"/{bucket}/{key}", data, {"Authorization": SIGNED})
        assert connection.getresponse().status == (204 if data is None else 200)
        connection.close()

    def empty(self, bucket: str) -> None:
        """Remove all that a bucket holds."""
        for key in self.keys(bucket):
            self.put(bucket, key, None)

    def _get(self, path: str) -> bytes:
        connection = HTTPConnection(*self.address)
        connection.request("GET", path, headers={"Authorization": SIGNED})
        body = connection.getresponse().read()
        connection.close()
        return body

    @contextmanager
    def environment(self, url: str | None = None) -> Iterator[None]:
        """What the environment says of the store, or of a wire to it."""
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": url or self.url}).items():
                patch.setenv(name, value)
            yield


class Wire:
    """A proxy before a store. `fault` happens to the request that changes the store and has the number `at`."""

    def __init__(self, store: Store) -> None:
        self.changes: list[str] = []
        """The requests that change the store, in order."""
        self.requests = 0
        """All requests, those that only read included."""
        self._store = store
        self._fault: tuple[str, int, bool] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Wire":
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

        def pass_on(request: BaseHTTPRequestHandler) -> None:
            wire._handle(request)

        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            setattr(Handler, f"do_{method}", pass_on)

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                pass  # a lake that has read enough hangs up

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def happen(self, kind: str | None, *, at: int = 0, from_there_on: bool = False) -> None:
        """Count from 0 again, and let this happen; None for nothing."""
        self.changes = []
        self._fault = None if kind is None else (kind, at, from_there_on)

    def _due(self, request: BaseHTTPRequestHandler) -> str | None:
        with self._lock:
            self.requests += 1
            if request.command in ("GET", "HEAD"):
                return None
            number = len(self.changes)
            self.changes.append(f"{request.command} {request.path}")
        if self._fault is None:
            return None
        kind, at, from_there_on = self._fault
        return kind if number == at or (from_there_on and number > at) else None

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        kind = self._due(request)
        if kind == "refused":
            request.close_connection = True
            return
        if kind in ("unavailable", "forbidden"):
            status, code = (503, "SlowDown") if kind == "unavailable" else (403, "AccessDenied")
            said = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            request.send_response(status)
            request.send_header("Content-Length", str(len(said)))
            request.end_headers()
            request.wfile.write(said)
            return
        connection = HTTPConnection(*self._store.address)
        connection.request(request.command, request.path, body=body, headers=dict(request.headers))
        answer = connection.getresponse()
        said = answer.read()
        if kind == "lost":
            request.close_connection = True
        else:
            request.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    request.send_header(name, value)
            length = answer.getheader("Content-Length") if request.command == "HEAD" else str(len(said))
            request.send_header("Content-Length", length or "0")
            request.end_headers()
            request.wfile.write(said)
        connection.close()


def _names(page: bytes, tag: bytes) -> list[bytes]:
    return [part.split(b"</" + tag + b">")[0] for part in page.split(b"<" + tag + b">")[1:]]


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
