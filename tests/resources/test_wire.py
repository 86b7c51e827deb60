"""Endpoints that break HTTP itself, or use it against us: every request has its reason, and nothing is sent or read beyond."""

import gzip
import json
import socket
import threading
import zlib
from contextlib import contextmanager

import pytest
from asking import FolderLake, questions

from pipeline.errors import LanguageModelError
from resources import answers
from resources import language as door
from resources.language import OpenAICompatible

KEY = "sk-canary-0123456789"
GOOD = json.dumps(
    {"choices": [{"message": {"content": "here"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 2**60}}
).encode()


def http(body, status="200 OK", **headers):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def bomb():
    """Many times what is read of a body, in little."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    mib = b" " * 2**20
    return b"".join(packer.compress(mib) for _ in range(2**6)) + packer.flush()


@contextmanager
def sending(raw):
    """A socket that sends these bytes whatever it is asked; the number of questions so far."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.settimeout(5)
                    try:
                        head, _, body = client.recv(65_536).partition(b"\r\n\r\n")
                        while b"question" not in body:
                            body += client.recv(65_536)
                        asked.append(head)
                        client.sendall(raw)
                    except OSError:
                        continue

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1", asked
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def ask(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(door, "FIRST_PAUSE", 0.001)
    lake = FolderLake(tmp_path / "lake")
    return lambda url: OpenAICompatible(url, journal_path=tmp_path / "j", lake=lake, timeout=20.0).answer(
        questions(0, 1), run_id="r"
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"{}\n",
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n{}     ",
        http(GOOD) + http(GOOD),
        http(b"no gzip", Content_Encoding="gzip"),
    ],
    ids=["no http", "http/2", "no status", "endless headers", "long header", "chunks", "two lengths", "two", "no gzip"],
)
def test_what_is_no_http_is_a_failure_with_its_reason(ask, raw):
    with sending(raw) as (url, asked):
        (reply,), usage = ask(url)
    assert (reply.text, reply.missing_because, usage.failures) == (None, "server_error", {"server_error": 1})
    assert len(asked) == door.ATTEMPTS


def test_a_body_that_unpacks_without_end_is_read_as_far_as_an_answer_can_go(ask, monkeypatch):
    read, of = [], answers.read
    monkeypatch.setattr(answers, "read", lambda *given: read.append(len(given[1])) or of(*given))
    with sending(http(bomb(), Content_Encoding="gzip")) as (url, _):
        (reply,), _ = ask(url)
    assert reply.missing_because == "unparsable"
    assert set(read) == {answers.LARGEST_BODY + 1}
    with sending(http(gzip.compress(GOOD), Content_Encoding="gzip")) as (url, _):
        assert ask(url)[0][0].text == "here"


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 Other", "307 Temporary", "308 Permanent"])
def test_nothing_is_sent_to_the_address_that_an_endpoint_sends_us_on_to(ask, status):
    with (
        sending(http(GOOD)) as (elsewhere, asked_there),
        sending(http(b"", status, Location=elsewhere)) as (url, asked),
    ):
        with pytest.raises(LanguageModelError, match=r"sends us on to another address, and nothing was sent there"):
            ask(url)
        assert (len(asked), asked_there) == (1, [])


@pytest.mark.parametrize("spell", [r"\u002d", r"\\u002D", r"\\\\u002d"])
def test_a_key_whose_letters_are_spelled_by_their_numbers_is_not_kept_either(ask, tmp_path, spell):
    body = GOOD.replace(b"here", b"the key is " + KEY.replace("-", spell).encode())
    with sending(http(body)) as (url, _):
        (reply,), usage = ask(url)
    assert reply.text == "the key is [key]"
    stored = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"0123456789" not in stored
    # More tokens than any reply has are not known, and no table has to hold their sum.
    assert usage.prompt_tokens == 0


def test_words_of_an_endpoint_that_would_move_a_terminal_are_shown_as_symbols(ask, caplog):
    with sending(http(b'{"detail": "\x1b[2J gone"}', "400 Bad")) as (url, _):
        ask(url)
    assert r'Error code: 400 - {"detail": "\x1b[2J gone"}' in caplog.text
