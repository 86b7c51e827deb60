"""The fake endpoint: a chat endpoint on this machine whose model is a script, to try the pipeline on without a provider.

It knows the planted neurons of `pipeline.testing`; of any other neuron it names the strongest tokens, and simulates by
the words in quotes. It misbehaves as often as it is told. Its model is called `scripted`, and is never a default.

    POST /v1/chat/completions   answers, or misbehaves; with `logprobs` and `top_logprobs` if asked for
    POST /v1/completions        the same for a plain prompt; with `echo` and `logprobs` if asked for
    POST /v1/embeddings         a vector for each text, alike as far as texts share words
    /v1/files, /v1/batches      the same in batches; see `explorer.fake_batches`
    GET  /v1/models             the one model
    GET  /counts                what it was asked: requests, different ones, answers, and each kind of fault

Its tokens are those of `pipeline.scripted_tokens`. It answers in full whatever `max_tokens` says.
"""

import asyncio
import base64
import hashlib
import json
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as Asked
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from explorer.fake_batches import FakeBatches
from pipeline.errors import SettingsError
from pipeline.misbehaviour import check, drawn
from pipeline.ports import Request
from pipeline.scripted_tokens import ScriptedToken, embedding, spelled, tokens, top
from pipeline.testing import ScriptedLanguageModel, foretold, left_out, scripted

MODEL = "scripted"
BYTES_PER_TOKEN = 3
"""By which it counts tokens."""
RETRY_AFTER = "0.2"
"""Seconds that it asks to wait."""
LONGEST = 3600
"""Seconds that an answer may take."""
DROPS = 10
"""Pieces of a slow answer."""
MOST_LOGPROBS = 20
"""Alternatives that may be asked for at each token, as at OpenAI."""

FAILED = {
    "rate_limited": (429, "slow down", "rate_limit_exceeded"),
    "server_error": (500, "the endpoint broke, as it was told to", None),
    "filtered": (400, "the content filter withheld the answer, as it was told to", "content_filter"),
}
"""Status, words and code of faults in place of an answer."""

Json = dict[str, Any]
Read = Callable[[Json], Request]
Write = Callable[[Json, Request, str | None, str | None], Json]


@dataclass
class FakeEndpoint:
    """The endpoint's state: the script, how it misbehaves, and what it was asked.

    `seconds` is how long it thinks, and how long it waits before each drop of a slow answer, there at least a
    fifth of one. `digits` is the most that one of its tokens holds.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    digits: int = 3
    language: ScriptedLanguageModel = field(default_factory=scripted)
    asked: Counter[str] = field(default_factory=Counter)
    """Hash of a request's content -> how often it came."""
    sent: Counter[str] = field(default_factory=Counter)
    """`answered`, or a kind of fault -> how often."""

    def __post_init__(self) -> None:
        check(self.rates)
        if not 0 <= self.seconds <= LONGEST:
            raise SettingsError(f"--seconds (={self.seconds:g}) must be a number from 0 to {LONGEST:,}")
        self.batches = FakeBatches(self.answer_line, rates=self.rates, seed=self.seed, seconds=self.seconds)

    def app(self) -> Starlette:
        """The endpoint as an ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/embeddings", self._embeddings, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/counts", self._counts),
                *self.batches.routes(),
            ]
        )

    async def _models(self, _: Asked) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "nobody"}]})

    async def _counts(self, _: Asked) -> Response:
        batches = self.batches.counts()
        return JSONResponse({"requests": self.asked.total(), "different": len(self.asked), **self.sent, **batches})

    async def _chat(self, asked: Asked) -> Response:
        return await self._answered(asked, *self._ways()["/v1/chat/completions"])

    async def _completions(self, asked: Asked) -> Response:
        return await self._answered(asked, *self._ways()["/v1/completions"])

    async def _embeddings(self, asked: Asked) -> Response:
        return await self._answered(asked, *self._ways()["/v1/embeddings"])

    def _ways(self) -> dict[str, tuple[Read, Write]]:
        """How a request to each path is read, and its answer written."""
        return {
            "/v1/chat/completions": (_chat_request, self._spoken),
            "/v1/completions": (_completion_request, self._continued),
            "/v1/embeddings": (_embedding_request, _embedded),
        }

    def answer_line(self, path: str, wanted: Json) -> tuple[int, Json]:
        """Status and body of the answer to a request that came in a batch."""
        if path not in self._ways():
            return 404, _error(f"there is no {path}")
        read, write = self._ways()[path]
        try:
            request = read(wanted)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return 400, _error(f"the request cannot be read: {error!r}")
        fault = self._fault(json.dumps(wanted, sort_keys=True).encode())
        if fault in FAILED:
            status, words, code = FAILED[fault]
            return status, _error(words, code)
        ((reply,), _) = self.language.answer([request], run_id="")
        return 200, write(wanted, request, reply.text, fault)

    def _fault(self, content: bytes) -> str | None:
        """What goes wrong with a request, counted."""
        name = hashlib.sha256(content).hexdigest()
        fault = drawn(self.rates, content, times=self.asked[name], seed=self.seed)
        self.asked[name] += 1
        self.sent[fault or "answered"] += 1
        return fault

    async def _answered(
        self,
        asked: Asked,
        read: Read,
        write: Write,
    ) -> Response:
        """Read a request, go wrong if it is its turn, and else write what the script answers."""
        body = await asked.body()
        try:
            wanted = json.loads(body)
            request = read(wanted)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return _failure(400, f"the request cannot be read: {error!r}")
        if request.model != MODEL:
            return _failure(404, f"there is no model {request.model!r}; the one here is {MODEL!r}")
        fault = self._fault(body)
        await asyncio.sleep(self.seconds)
        if fault in FAILED:
            status, words, code = FAILED[fault]
            return _failure(status, words, code, headers={"Retry-After": RETRY_AFTER} if status == 429 else None)
        ((reply,), _) = self.language.answer([request], run_id="")
        return self._sent(write(wanted, request, reply.text, fault), fault)

    def _sent(self, answer: Json, fault: str | None) -> Response:
        """The whole answer at once, or what the fault leaves of it."""
        if fault not in ("cut_off", "slow"):
            return JSONResponse(answer)
        whole = json.dumps(answer).encode()

        async def half() -> AsyncIterator[bytes]:
            yield whole[: len(whole) // 2]
            # The rest, whose length was promised, never comes.
            raise ConnectionResetError("cut off on purpose")

        async def drops() -> AsyncIterator[bytes]:
            size = -(-len(whole) // DROPS)
            for start in range(0, len(whole), size):
                await asyncio.sleep(max(self.seconds, 0.2))
                yield whole[start : start + size]

        length = {"Content-Length": str(len(whole))}
        return StreamingResponse(
            half() if fault == "cut_off" else drops(), media_type="application/json", headers=length
        )

    def _spoken(self, wanted: Json, request: Request, text: str | None, fault: str | None) -> Json:
        """A chat completion."""
        text, finish, refusal = _faulty(text, fault)
        choice: Json = {
            "index": 0,
            "finish_reason": finish,
            "message": {"role": "assistant", "content": text, "refusal": refusal},
        }
        if wanted.get("logprobs"):
            said = tokens(text or "", digits=self.digits)
            choice["logprobs"] = {"content": [_chat_token(token, wanted.get("top_logprobs") or 0) for token in said]}
        return {
            "id": "chatcmpl-scripted",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [choice],
            "usage": _usage(request, text),
        }

    def _continued(self, wanted: Json, request: Request, text: str | None, fault: str | None) -> Json:
        """A completion of a prompt, which comes before it if it is to be echoed."""
        text, finish, _ = _faulty(text, fault)
        prompt = request.messages[-1][1] if wanted.get("echo") else ""
        choice: Json = {"index": 0, "finish_reason": finish, "text": prompt + (text or ""), "logprobs": None}
        if wanted.get("logprobs") is not None:
            guessed = foretold(prompt, tokens(prompt, digits=self.digits, values=left_out(prompt)))
            said = [*guessed, *tokens(text or "", digits=self.digits)]
            choice["logprobs"] = _completion_tokens(said, wanted["logprobs"], first_is_known=not prompt)
        return {
            "id": "cmpl-scripted",
            "object": "text_completion",
            "created": 0,
            "model": MODEL,
            "choices": [choice],
            "usage": _usage(request, text),
        }


def _chat_request(wanted: Json) -> Request:
    messages = tuple((str(message["role"]), str(message["content"])) for message in wanted["messages"])
    if not messages:
        raise ValueError("`messages` must hold at least one message")
    if wanted.get("top_logprobs") is not None:
        if not wanted.get("logprobs"):
            raise ValueError("`top_logprobs` needs `logprobs`")
        _count_of_logprobs(wanted["top_logprobs"])
    return Request(model=str(wanted["model"]), messages=messages, temperature=0.0, max_tokens=1, seed=0)


def _completion_request(wanted: Json) -> Request:
    prompt = wanted["prompt"]
    if not isinstance(prompt, str) or not prompt:
        raise ValueError("`prompt` must be a text here")
    if wanted.get("logprobs") is not None:
        _count_of_logprobs(wanted["logprobs"])
    return Request(model=str(wanted["model"]), messages=(("prompt", prompt),), temperature=0.0, max_tokens=1, seed=0)


def _embedding_request(wanted: Json) -> Request:
    texts = [wanted["input"]] if isinstance(wanted["input"], str) else wanted["input"]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("`input` must be a text or a list of texts, none of them empty")
    messages = tuple(("user", text) for text in texts)
    return Request(model=str(wanted["model"]), messages=messages, temperature=0.0, max_tokens=1, seed=0)


def _count_of_logprobs(count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MOST_LOGPROBS:
        raise ValueError(f"the number of logprobs (={count!r}) must be from 0 to {MOST_LOGPROBS}")


def _faulty(text: str | None, fault: str | None) -> tuple[str | None, str, str | None]:
    """Text, finish reason and refusal, as the fault leaves them."""
    if text is None or fault == "refused":
        return None, "stop", "I would rather not say."
    match fault:
        case "truncated":
            return text[: len(text) // 2], "length", None
        case "empty":
            return "", "stop", None
        case "malformed":
            return f"Sure! Here is what you asked for: {text[:-1]}", "stop", None
        case "wrong_length":
            return _shortened(text), "stop", None
    return text, "stop", None


def _chat_token(token: ScriptedToken, count: int) -> Json:
    def shown(piece: bytes, logprob: float) -> Json:
        return {"token": piece.decode(errors="replace"), "logprob": logprob, "bytes": list(piece)}

    likely = top(token, count)
    return shown(token.piece, token.logprob) | {"top_logprobs": [shown(*one) for one in likely]}


def _completion_tokens(said: Sequence[ScriptedToken], count: int, *, first_is_known: bool) -> Json:
    """The form of the older protocol. Of the first token of a prompt no probability is known."""
    places, place = [], 0
    for token in said:
        places.append(place)
        place += len(token.piece.decode(errors="replace"))
    known = [first_is_known or bool(index) for index in range(len(said))]
    return {
        "tokens": [spelled(token.piece) for token in said],
        "token_logprobs": [token.logprob if here else None for token, here in zip(said, known, strict=True)],
        "top_logprobs": [
            {spelled(piece): logprob for piece, logprob in top(token, count)} if here else None
            for token, here in zip(said, known, strict=True)
        ],
        "text_offset": places,
    }


def _embedded(wanted: Json, request: Request, _text: str | None, fault: str | None) -> Json:
    """A vector for each text, as numbers or as little-endian float32 in base 64; one fewer if that is the fault."""
    vectors: list[Any] = [embedding(text) for _, text in request.messages]
    if fault == "wrong_length":
        vectors.pop()
    if wanted.get("encoding_format") == "base64":
        vectors = [base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() for vector in vectors]
    usage = _usage(request, None)
    return {
        "object": "list",
        "model": MODEL,
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)],
        "usage": {"prompt_tokens": usage["prompt_tokens"], "total_tokens": usage["prompt_tokens"]},
    }


def _usage(request: Request, text: str | None) -> Json:
    prompt = sum(len(said.encode()) for _, said in request.messages) // BYTES_PER_TOKEN
    completion = len((text or "").encode()) // BYTES_PER_TOKEN
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _shortened(text: str) -> str:
    """An object whose lists and objects lack their last entry; anything else as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if not isinstance(value, dict):
        return text
    return json.dumps({name: _without_last(found) for name, found in value.items()})


def _without_last(value: Any) -> Any:
    if isinstance(value, list):
        return value[:-1]
    return dict(list(value.items())[:-1]) if isinstance(value, dict) else value


def _error(words: str, code: str | None = None) -> Json:
    return {"error": {"message": words, "type": "scripted", "param": None, "code": code}}


def _failure(status: int, words: str, code: str | None = None, *, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(_error(words, code), status_code=status, headers=dict(headers or {}))
