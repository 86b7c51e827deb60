"""Batch files: many requests as the lines of one file, and the lines of the files that a provider answers with.

As OpenAI documents its batch API: JSON Lines, each request with a name (`custom_id`) that its answer repeats. Answers
come in any order, in an output file and an error file. Here nothing is believed of them: a line may be cut, doubled,
strange or missing, and what can be read is used.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000
"""What OpenAI takes in one file."""


@dataclass(frozen=True)
class Line:
    """One answer: a response with its HTTP status and body, or an error without one."""

    custom_id: str
    status: int | None
    body: bytes = b""
    code: str | None = None
    message: str | None = None
    """Of an error, in the response or without one."""

    @property
    def is_answer(self) -> bool:
        """Whether the request was answered with success."""
        return self.status is not None and self.status < 400


def custom_id(request_id: str) -> str:
    """The name of a request in a file: its hash without the tag, 64 characters."""
    return request_id.rpartition(":")[2]


def line(request_id: str, path: str, parameters: Mapping[str, Any]) -> bytes:
    """One request, line break included."""
    asked = {"custom_id": custom_id(request_id), "method": "POST", "url": path, "body": parameters}
    return json.dumps(asked, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def parts(lines: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Requests with their lines, cut into files that are not too long; of one line alone nothing can be cut."""
    part: list[tuple[str, bytes]] = []
    size = 0
    for request_id, text in lines:
        if part and (len(part) == MOST_REQUESTS or size + len(text) > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append((request_id, text))
        size += len(text)
    if part:
        yield part


def read(content: bytes) -> tuple[dict[str, Line], int]:
    """The answers of a file by name, and how many lines could not be read. Never raises.

    Of several answers to one request the first that is a success counts, else the first.
    """
    found: dict[str, Line] = {}
    unreadable = 0
    for text in content.split(b"\n"):
        if not text.strip():
            continue
        one = _line(text)
        if one is None:
            unreadable += 1
        elif one.custom_id not in found or (one.is_answer and not found[one.custom_id].is_answer):
            found[one.custom_id] = one
    return found, unreadable


def _line(text: bytes) -> Line | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    match value:
        case {"custom_id": str(name), "response": {"status_code": int(status), "body": body}} if body is not None:
            error = body.get("error") if status >= 400 and isinstance(body, dict) else None
            code, message = _error(error)
            return Line(name, status, json.dumps(body).encode(), code, message)
        case {"custom_id": str(name), "error": {} as error}:
            return Line(name, None, b"", *_error(error))
        case {"custom_id": str(name)}:
            return Line(name, None, b"", None, "the line has neither an answer nor an error")
    return None


def _error(error: Any) -> tuple[str | None, str | None]:
    if not isinstance(error, dict):
        return None, None
    code, kind, message = (error.get(name) for name in ("code", "type", "message"))
    chosen = next((one for one in (code, kind) if isinstance(one, str)), None)
    return chosen, message if isinstance(message, str) else None
