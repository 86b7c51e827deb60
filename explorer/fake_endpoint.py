"""The fake endpoint: a chat endpoint on this machine whose model is a script, to try the pipeline on without a provider.

It knows the planted neurons of `pipeline.testing`; of any other neuron it names the strongest tokens, and simulates by
the words in quotes. It misbehaves as often as it is told. Its model is called `scripted`, and is never a default.

    POST /v1/chat/completions   answers, or misbehaves
    GET  /v1/models             the one model
    GET  /counts                what it was asked: requests, different ones, answers, and each kind of fault
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as Asked
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeline.misbehaviour import check, drawn
from pipeline.ports import Request
from pipeline.testing import ScriptedLanguageModel, scripted

MODEL = "scripted"
BYTES_PER_TOKEN = 3
"""By which it counts tokens."""
RETRY_AFTER = "0.2"
"""Seconds that it asks to wait."""


@dataclass
class FakeEndpoint:
    """The endpoint's state: the script, how it misbehaves, and what it was asked. `seconds` is how long it thinks."""

    rates: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    language: ScriptedLanguageModel = field(default_factory=scripted)
    asked: Counter[str] = field(default_factory=Counter)
    """Hash of a request's content -> how often it came."""
    sent: Counter[str] = field(default_factory=Counter)
    """`answered`, or a kind of fault -> how often."""

    def __post_init__(self) -> None:
        check(self.rates)

    def app(self) -> Starlette:
        """The endpoint as an ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/counts", self._counts),
            ]
        )

    async def _models(self, _: Asked) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "nobody"}]})

    async def _counts(self, _: Asked) -> Response:
        return JSONResponse({"requests": self.asked.total(), "different": len(self.asked), **self.sent})

    async def _chat(self, asked: Asked) -> Response:
        body = await asked.body()
        try:
            request = _request(json.loads(body))
        except (ValueError, KeyError, TypeError, AttributeError):
            return _failure(400, "the request is no chat completion: `messages` with `role` and `content` are needed")
        if request.model != MODEL:
            return _failure(404, f"there is no model {request.model!r}; the one here is {MODEL!r}")
        name = hashlib.sha256(body).hexdigest()
        fault = drawn(self.rates, body, times=self.asked[name], seed=self.seed)
        self.asked[name] += 1
        self.sent[fault or "answered"] += 1
        await asyncio.sleep(self.seconds)
        if fault == "rate_limited":
            return _failure(429, "slow down", headers={"Retry-After": RETRY_AFTER})
        if fault == "server_error":
            return _failure(500, "the endpoint broke, as it was told to")
        ((reply,), _) = self.language.answer([request], run_id="")
        return _spoken(request, reply.text, fault)


def _request(asked: Mapping[str, Any]) -> Request:
    messages = tuple((str(message["role"]), str(message["content"])) for message in asked["messages"])
    if not messages:
        raise ValueError("no messages")
    return Request(model=str(asked["model"]), messages=messages, temperature=0.0, max_tokens=1, seed=0)


def _spoken(request: Request, text: str | None, fault: str | None) -> Response:
    """The answer, or what the fault makes of it."""
    finish, refusal = "stop", None
    if text is None or fault == "refused":
        text, refusal = None, "I would rather not say."
    elif fault == "truncated":
        text, finish = text[: len(text) // 2], "length"
    elif fault == "empty":
        text = ""
    elif fault == "malformed":
        text = f"Sure! Here is what you asked for: {text[:-1]}"
    elif fault == "wrong_length":
        text = _shortened(text)
    body = {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": text, "refusal": refusal},
            }
        ],
        "usage": {
            "prompt_tokens": sum(len(said.encode()) for _, said in request.messages) // BYTES_PER_TOKEN,
            "completion_tokens": len((text or "").encode()) // BYTES_PER_TOKEN,
        },
    }
    if fault != "cut_off":
        return JSONResponse(body)
    whole = json.dumps(body).encode()

    async def half() -> AsyncIterator[bytes]:
        yield whole[: len(whole) // 2]
        # The rest, whose length was promised, never comes.
        raise ConnectionResetError("cut off on purpose")

    return StreamingResponse(half(), media_type="application/json", headers={"Content-Length": str(len(whole))})


def _shortened(text: str) -> str:
    """A list of predictions without its last one; anything else as it is."""
    value = json.loads(text)
    for name in ("activations", "excerpts"):
        if isinstance(value.get(name), list):
            value[name] = value[name][:-1]
        elif isinstance(value.get(name), dict):
            value[name].popitem()
    return json.dumps(value)


def _failure(status: int, words: str, *, headers: Mapping[str, str] | None = None) -> Response:
    error = {"message": words, "type": "scripted", "param": None, "code": None}
    return JSONResponse({"error": error}, status_code=status, headers=dict(headers or {}))
