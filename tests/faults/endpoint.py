"""A chat endpoint that misbehaves on request: a real HTTP server on loopback, scripted by the test.

    with Endpoint(lambda request: "hello", script=["429", None, "html"]) as endpoint:
        ask(endpoint.url)
    assert endpoint.asked.total() == 3

`answer` gets the request as a dict and gives the reply's text. `script` names the fault of each request in order of
arrival (None: no fault), and later requests have none; or `rates` gives each fault a share, drawn from `seed`, the
request's content and how often it came, so a run can be repeated. `FAULTS` lists the faults.
"""

import hashlib
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "scripted-model-0001"


def completion(content: Any, *, finish_reason: str = "stop", model: str = MODEL, **message: Any) -> dict[str, Any]:
    """A chat completion as OpenAI documents it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": content, **message},
            }
        ],
        "usage": {
            "prompt_tokens": 11,
            "completion_tokens": 7,
            "total_tokens": 18,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    }


def _failure(message: str, code: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": code, "param": None, "code": code}}).encode()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


Sent = tuple[int, dict[str, str], bytes]
FAULTS: dict[str, Callable[[str, str], Sent]] = {
    # name: (the key that was sent, the text that would be answered) -> status, headers, body
    "429": lambda key, text: (429, {"Retry-After": "0"}, _failure("slow down", "rate_limit_exceeded")),
    "429 for an hour": lambda key, text: (429, {"Retry-After": "3600"}, _failure("slow down", "rate_limit_exceeded")),
    "quota": lambda key, text: (429, {}, _failure(f"key {key} has no quota", "insufficient_quota")),
    "500": lambda key, text: (500, {}, _failure(f"our fault, {key}")),
    "503": lambda key, text: (503, {"Retry-After": "soon"}, b"<html>overloaded</html>"),
    "400": lambda key, text: (400, {}, _failure("maximum context length exceeded", "context_length_exceeded")),
    "401": lambda key, text: (401, {}, _failure(f"Incorrect API key provided: {key}.", "invalid_api_key")),
    "403": lambda key, text: (403, {}, _failure("not for you")),
    "404": lambda key, text: (404, {}, _failure("no such model", "model_not_found")),
    "400 content filter": lambda key, text: (400, {}, _failure("filtered prompt", "content_filter")),
    "400 hostile": lambda key, text: (400, {}, b'{"error": {"message": ["a"], "code": ["b"], "type": {}}}'),
    "html": lambda key, text: (200, {"Content-Type": "text/html"}, b"<html>please log in</html>"),
    "not json": lambda key, text: (200, {}, b'{"choices": [{"mess'),
    "empty body": lambda key, text: (200, {}, b""),
    "deep": lambda key, text: (200, {}, b"[" * 100_000),
    "long": lambda key, text: (200, {}, _json(completion("a" * (8 * 2**20)))),
    "not utf-8": lambda key, text: (200, {}, _json(completion("X")).replace(b"X", b"\xff\xfe")),
    "error in 200": lambda key, text: (200, {}, _failure("upstream broke")),
    "empty choices": lambda key, text: (200, {}, _json(completion("") | {"choices": []})),
    "null choices": lambda key, text: (200, {}, _json(completion("") | {"choices": None})),
    "message is text": lambda key, text: (200, {}, b'{"choices": [{"message": "hello"}]}'),
    "a list": lambda key, text: (200, {}, b"[1, 2]"),
    "refusal": lambda key, text: (200, {}, _json(completion(None, refusal="I cannot help with that."))),
    "content filter": lambda key, text: (200, {}, _json(completion("", finish_reason="content_filter"))),
    "length": lambda key, text: (200, {}, _json(completion(text[:3], finish_reason="length"))),
    "null content": lambda key, text: (200, {}, _json(completion(None))),
    "empty content": lambda key, text: (200, {}, _json(completion(" \n"))),
    "int content": lambda key, text: (200, {}, _json(completion(42))),
    "list content": lambda key, text: (200, {}, _json(completion([{"type": "text", "text": text}]))),
    "surrogate": lambda key, text: (200, {}, _json(completion("half \ud800 a pair"))),
    "echo of the key": lambda key, text: (200, {}, _json(completion(f"your key is {key}"))),
    "other model": lambda key, text: (200, {}, _json(completion(text, model="somebody-else"))),
    "odd usage": lambda key, text: (200, {}, _json(completion(text) | {"usage": {"prompt_tokens": "many"}})),
    # These never end well on the wire; `_Handler` sends them.
    "cut": lambda key, text: (200, {}, _json(completion(text))),
    "trickle": lambda key, text: (200, {}, _json(completion(text))),
    "hang up": lambda key, text: (200, {}, b""),
}


class Endpoint:
    """The server. `seconds` is how long each answer takes. `refuse` names parameters that get status 400.

    With `counts` an answer says how many tokens it took, one for three bytes; else every answer says the same.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str] = lambda request: f"answer to {request['messages'][-1]['content']}",
        *,
        script: Sequence[str | None] = (),
        rates: Mapping[str, float] | None = None,
        seed: int = 0,
        seconds: float = 0.0,
        refuse: Mapping[str, str] | None = None,
        counts: bool = False,
    ) -> None:
        self.answer = answer
        self.script = list(script)
        self.rates = dict(rates or {})
        self.seed = seed
        self.seconds = seconds
        self.refuse = dict(refuse or {})
        self.counts = counts
        self.asked: Counter[str] = Counter()
        """How often each request came: hash of its body -> times."""
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.scripted = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def under_way(self) -> int:
        """Requests that came and are not answered yet."""
        return self._at_once

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "Endpoint":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def receive(self, body: bytes, key: str) -> tuple[str | None, Sent]:
        """Note one request, and decide on its fault and its answer."""
        request = json.loads(body)
        name = hashlib.sha256(body).hexdigest()
        with self._lock:
            place, times = self.asked.total(), self.asked[name]
            self.asked[name] += 1
            self.requests.append(request)
            self.keys.add(key)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            time.sleep(self.seconds)
            for parameter, words in self.refuse.items():
                if parameter in request:
                    return None, (400, {}, _failure(words))
            fault = self._fault(name, place, times)
            text = self.answer(request)
            reply = completion(text)
            if self.counts:
                read = sum(len(message["content"].encode()) for message in request["messages"])
                reply["usage"] = {"prompt_tokens": read // 3, "completion_tokens": len(text.encode()) // 3}
            return fault, FAULTS[fault](key, text) if fault else (200, {}, _json(reply))
        finally:
            with self._lock:
                self._at_once -= 1

    def _fault(self, name: str, place: int, times: int) -> str | None:
        if place < len(self.script):
            return self.script[place]
        draw = random.Random(f"{self.seed} {name} {times}").random()
        for fault, share in self.rates.items():
            draw -= share
            if draw < 0:
                return fault
        return None


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is what some tests are about; any other error is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True  # the client was killed while it asked
            return
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        fault, (status, headers, reply) = self.server.scripted.receive(body, key)  # type: ignore[attr-defined]
        if fault == "hang up":
            self.close_connection = True
            return
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            if fault == "cut":
                self.close_connection = True
                self.wfile.write(reply[: len(reply) // 2])
            elif fault == "trickle":
                for byte in reply:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.05)
            else:
                self.wfile.write(reply)
        except OSError:
            self.close_connection = True  # the client has left, which is what some tests are about

    def log_message(self, *arguments: object) -> None:
        """Tests read what was asked, not a log."""
