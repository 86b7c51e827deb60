"""Answers: what the body says that an endpoint sent, or why it says nothing; and replies as rows of `language_calls`.

An endpoint may send anything, so nothing here raises. A body without an answer has one word of the closed list of
reasons in `pipeline.tables`, and more words where they help.
"""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from pipeline.ports import Likely
from pipeline.provenance import identity
from pipeline.tables import language_calls
from resources import logprobs
from resources.journal import Received
from resources.local_language import is_local
from resources.prices import Price, Prices

LARGEST_BODY = 8 * 2**20
"""Bytes. No answer to our requests is nearly as long."""

MOST_TOKENS = 2**40
"""No request or reply has more; a sum of many such numbers is still one that a table holds."""

AT_THE_LIMIT = frozenset({"length", "max_tokens", "MAX_TOKENS", "model_length"})
"""Finish reasons of an answer that was cut: OpenAI's, and those that gateways hand on from other providers."""


@dataclass(frozen=True)
class Answer:
    """A body, read."""

    text: str | None = None
    missing_because: str | None = None
    error: str | None = None
    model_served: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    likely: tuple[Likely, ...] | None = None


def read(status: int, body: bytes, request: str = "{}") -> Answer:
    """What a body says, or why it says nothing. Never raises: an endpoint may send anything.

    `request` is what was asked, as canonical JSON.
    """
    if status >= 400:
        return Answer(missing_because="filtered", error=_start(body))
    try:
        value = _parsed(body)
    except ValueError as fault:
        return Answer(missing_because="unparsable", error=str(fault))
    # Inside a string of JSON the quotes would be escaped.
    asked = json.loads(request) if '"logprobs":' in request else {}
    likely = None
    match value:
        case {"choices": [{"message": {} as message, **choice}, *_]}:
            finish_reason = _text(choice.get("finish_reason"))
            missing_because, error = _verdict(message, finish_reason)
            text = _text(message.get("content"))
            if asked:
                likely = logprobs.read(choice.get("logprobs"))
        case {"choices": [{"text": str(said), **choice}, *_]}:
            finish_reason = _text(choice.get("finish_reason"))
            # One or two tokens are all that is asked for, so that it ends at the limit.
            missing_because, error = ("filtered", None) if finish_reason == "content_filter" else (None, None)
            text, likely = _text(said), logprobs.read(choice.get("logprobs"))
            if text is None:
                missing_because, error = "unparsable", "the text holds lone surrogates"
            elif asked.get("echo"):
                prompt = asked["messages"][0][1]
                text, likely = text.removeprefix(prompt), logprobs.at_places(likely, prompt, asked["echo"])
            elif asked.get("told_from"):
                prompt = asked["messages"][0][1]
                text, likely = (
                    text.removeprefix(prompt),
                    logprobs.told(choice.get("logprobs"), prompt, asked["told_from"]),
                )
        case {"data": [{"embedding": found}]}:
            finish_reason, missing_because, error = None, None, None
            text = _vector(found)
            if text is None:
                missing_because, error = "unparsable", "the embedding is no list of numbers"
        case {"object": "list", "data": []}:
            return Answer(missing_because="wrong_length", error="the body has no embedding")
        case _:
            return Answer(missing_because="unparsable", error=f"the body has no message: {_start(body)}")
    usage = value.get("usage")
    completion_tokens = _count(usage, "completion_tokens")
    return Answer(
        text=text,
        missing_because=missing_because,
        error=error,
        model_served=_text(value.get("model")),
        finish_reason=finish_reason,
        prompt_tokens=_count(usage, "prompt_tokens"),
        cached_tokens=_count(usage, "prompt_tokens_details", "cached_tokens"),
        # An embedding has no reply in words.
        completion_tokens=0 if completion_tokens is None and "data" in value else completion_tokens,
        likely=likely,
    )


def of_no_model(body: bytes) -> str | None:
    """What stands in the place of an answer that no model gave, in words: a web page, or an error that came as a success.

    It is of a gateway or a proxy, so that it was not paid for and may be gone the next time. None for anything else.
    """
    if body[:1_000].lstrip()[:1] == b"<":
        return f"the body is HTML: {_start(body)}"
    if b'"error"' not in body[:10_000]:
        return None
    try:
        value = _parsed(body)
    except ValueError:
        return None
    match value:
        case {"error": error, **others} if error and not others.keys() & {"choices", "data"}:
            return f"the body has no message: {_start(body)}"
    return None


def _vector(value: Any) -> str | None:
    """An embedding as a JSON list: numbers as they came, or what float32 in base 64 holds; None if it is neither."""
    if isinstance(value, str):
        try:
            value = [float(str(one)) for one in np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")]
        except ValueError:
            return None
    numbers = isinstance(value, list) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in value
    )
    return json.dumps(value, separators=(",", ":")) if numbers and value else None


def _parsed(body: bytes) -> Any:
    """The JSON value of a body; a ValueError says in words what it is instead."""
    if len(body) > LARGEST_BODY:
        raise ValueError(f"the body is longer than {LARGEST_BODY:,} bytes")
    try:
        return json.loads(body.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"the body is not UTF-8: {_start(body)}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"the body is {'HTML' if body.lstrip()[:1] == b'<' else 'not JSON'}: {_start(body)}") from None


def _verdict(message: dict[str, Any], finish_reason: str | None) -> tuple[str | None, str | None]:
    """Why a message is no answer, if it is none: one word of the closed list, and more words where they help."""
    content, refusal = message.get("content"), message.get("refusal")
    if refusal:
        return "refused", plain(refusal)[:1_000] if isinstance(refusal, str) else None
    if finish_reason == "content_filter" or finish_reason in AT_THE_LIMIT:
        return ("filtered" if finish_reason == "content_filter" else "truncated"), None
    if not isinstance(content, str):
        return "unparsable", f"the content is a {type(content).__name__}, not text"
    if _text(content) is None:
        return "unparsable", f"the content holds lone surrogates: {plain(content)[:1_000]}"
    if not content.strip():
        return "unparsable", "the content is empty"
    return None, None


def _start(body: bytes) -> str:
    """The beginning of a body, for people."""
    return repr(body[:500].decode("utf-8", errors="replace"))


def plain(text: str) -> str:
    """The text without lone surrogates, which no table can hold."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _text(value: Any) -> str | None:
    """The value, if it is a text that a table can hold."""
    return value if isinstance(value, str) and plain(value) == value else None


def _count(usage: Any, *path: str) -> int | None:
    """A number of tokens inside `usage`, if the endpoint gave one that can be."""
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return usage if isinstance(usage, int) and not isinstance(usage, bool) and 0 <= usage < MOST_TOKENS else None


def cost(answer: Answer, price: Price | None) -> float | None:
    """US dollars that an answer cost, None if the price or the tokens are not known."""
    if price is None or answer.prompt_tokens is None or answer.completion_tokens is None:
        return None
    return price.cost(
        prompt=answer.prompt_tokens, cached=answer.cached_tokens or 0, completion=answer.completion_tokens
    )


def price_of(prices: Prices, model: str, *, endpoint: str, batch: bool = False) -> Price | None:
    """What a model costs, by itself or in a batch; one in this process costs nothing."""
    return Price(0.0, 0.0, 0.0) if is_local(model) else prices.of(model, endpoint=endpoint, batch=batch)


def rows(received: Sequence[Received], prices: Prices) -> pl.DataFrame:
    """Replies as rows of `language_calls`."""
    made = []
    for reply in received:
        answer = read(reply.status, reply.body, reply.request)
        packed = logprobs.packed(answer.likely)
        made.append(
            {
                "request_id": reply.request_id,
                "endpoint": reply.endpoint,
                "model": reply.model,
                "model_served": answer.model_served,
                "request": reply.request,
                "reply": answer.text,
                "logprobs": packed,
                "finish_reason": answer.finish_reason,
                "prompt_tokens": answer.prompt_tokens,
                "cached_tokens": answer.cached_tokens,
                "completion_tokens": answer.completion_tokens,
                "cost_usd": cost(
                    answer, price_of(prices, reply.model, endpoint=reply.endpoint, batch=reply.batch_id is not None)
                ),
                "seconds": reply.seconds,
                "attempts": reply.attempts,
                "batch_id": reply.batch_id,
                "missing_because": answer.missing_because,
                "error": answer.error,
                "answered_at": datetime.fromisoformat(reply.answered_at),
                "identity": identity(
                    "language_call",
                    request_id=reply.request_id,
                    reply=answer.text,
                    missing_because=answer.missing_because,
                    model_served=answer.model_served,
                    **({} if packed is None else {"logprobs": packed}),
                ),
                "run_id": reply.run_id,
            }
        )
    return language_calls.conform(pl.DataFrame(made, schema=language_calls.schema))
