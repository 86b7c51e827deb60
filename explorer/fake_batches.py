"""The fake endpoint's batches: files of requests that are answered while nobody waits, as OpenAI documents them.

    POST /v1/files                 takes a file of requests; GET /v1/files/ID/content gives one back, of answers too
    POST /v1/batches               makes a batch of a file
    GET  /v1/batches, /v1/batches/ID    all batches, the newest first, a page at a time; one batch
    POST /v1/batches/ID/cancel     ends a batch before its time

A batch is answered when it is made, and says so after the endpoint's `seconds`, at the second look or later. Its lines
come in another order than the requests. All of it is in memory.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as Asked
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.misbehaviour import BATCH_KINDS, LINE_KINDS, drawn

MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000
"""In one file, as at OpenAI."""
EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
CANCELLED = {"code": "batch_cancelled", "message": "This request was not executed because the batch was cancelled."}

Json = dict[str, Any]


@dataclass
class Batch:
    """One batch. `input` is the file that it is made of."""

    batch_id: str
    path: str
    input: str
    metadata: Json
    status: str
    """How it ends."""
    created: float = field(default_factory=time.time)
    looks: int = 0
    completed: int = 0
    failed: int = 0
    total: int = 0
    output: str | None = None
    error: str | None = None
    errors: list[Json] = field(default_factory=list)


class FakeBatches:
    """Files and batches. `answer` gives status and body for a path and a request."""

    def __init__(
        self, answer: Callable[[str, Json], tuple[int, Json]], *, rates: Mapping[str, float], seed: int, seconds: float
    ) -> None:
        self._answer = answer
        self._rates = rates
        self._seed = seed
        self._seconds = seconds
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Batch] = {}
        self._lines: Counter[str] = Counter()
        """How often each line was answered."""

    def routes(self) -> list[Route]:
        """Where it listens."""
        return [
            Route("/v1/files", self._upload, methods=["POST"]),
            Route("/v1/files/{name}/content", self._content),
            Route("/v1/batches", self._make, methods=["POST"]),
            Route("/v1/batches", self._all),
            Route("/v1/batches/{name}", self._one),
            Route("/v1/batches/{name}/cancel", self._cancel, methods=["POST"]),
        ]

    def counts(self) -> dict[str, int]:
        """Files, batches, and the requests in them; nothing before there was a file."""
        if not self.files:
            return {}
        return {
            "files": len(self.files),
            "batches": len(self.batches),
            "in_batches": sum(batch.total for batch in self.batches.values()),
        }

    async def _upload(self, asked: Asked) -> Response:
        fields = _multipart(asked.headers.get("content-type", ""), await asked.body())
        if fields.get("purpose") != b"batch" or "file" not in fields:
            return _failure(400, "a form with `file`, and `purpose` that is `batch`, is expected")
        if len(fields["file"]) > MOST_BYTES:
            return _failure(413, f"the file is longer than {MOST_BYTES:,} bytes")
        name = self._stored(fields["file"])
        size = len(fields["file"])
        return JSONResponse({"id": name, "object": "file", "bytes": size, "purpose": "batch", "status": "processed"})

    async def _content(self, asked: Asked) -> Response:
        content = self.files.get(asked.path_params["name"])
        if content is None:
            return _failure(404, "there is no such file")
        return Response(content, media_type="application/jsonl")

    async def _make(self, asked: Asked) -> Response:
        try:
            wanted = json.loads(await asked.body())
            name, path, window = (wanted[field] for field in ("input_file_id", "endpoint", "completion_window"))
            metadata = dict(wanted.get("metadata") or {})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return _failure(400, f"the request cannot be read: {error!r}")
        if window != "24h" or name not in self.files:
            return _failure(400, "`completion_window` must be `24h`, and `input_file_id` a file that was uploaded")
        content = self.files[name]
        times = sum(self.files[batch.input] == content for batch in self.batches.values())
        fault = drawn(self._rates, content, times=times, seed=self._seed, kinds=BATCH_KINDS)
        batch = Batch(f"batch_{len(self.batches) + 1:04}", path, name, metadata, "completed")
        self.batches[batch.batch_id] = batch
        self._process(batch, content, fault)
        if fault == "batch_unheard":
            return _failure(500, "the endpoint broke, as it was told to")
        return JSONResponse(self._shown(batch))

    async def _one(self, asked: Asked) -> Response:
        batch = self.batches.get(asked.path_params["name"])
        if batch is None:
            return _failure(404, "there is no such batch")
        batch.looks += 1
        return JSONResponse(self._shown(batch))

    async def _all(self, asked: Asked) -> Response:
        names = list(self.batches)[::-1]
        after = asked.query_params.get("after")
        start = names.index(after) + 1 if after in names else 0
        limit = int(asked.query_params.get("limit", 20))
        page = [self._shown(self.batches[name]) for name in names[start : start + limit]]
        return JSONResponse({"object": "list", "data": page, "has_more": start + limit < len(names)})

    async def _cancel(self, asked: Asked) -> Response:
        batch = self.batches.get(asked.path_params["name"])
        if batch is None:
            return _failure(404, "there is no such batch")
        if not self._is_over(batch):
            batch.status, batch.looks, batch.created = "cancelled", 2, 0.0
            self._store(batch, {}, {name: _unanswered(name, CANCELLED) for name in _names(self.files[batch.input])})
        return JSONResponse(self._shown(batch))

    def _process(self, batch: Batch, content: bytes, fault: str | None) -> None:
        lines, batch.errors = _read(content, batch.path)
        batch.total = len(lines)
        if fault == "batch_failed":
            batch.errors = [_problem("scripted", "the batch was refused, as the endpoint was told to", None)]
        if batch.errors:
            batch.status, batch.total = "failed", 0
            return
        answered = lines
        if fault == "batch_expired":
            batch.status, answered = "expired", lines[: len(lines) // 2]
        output: dict[str, bytes] = {}
        errors = {line["custom_id"]: _unanswered(line["custom_id"], EXPIRED) for line in lines[len(answered) :]}
        missing = 0
        for line in answered:
            name = line["custom_id"]
            status, body = self._answer(batch.path, line["body"])
            response = {"status_code": status, "request_id": f"req_{name[:8]}", "body": body}
            one = _line({"id": f"batch_req_{name[:8]}", "custom_id": name, "response": response, "error": None})
            odd = drawn(self._rates, name.encode(), times=self._lines[name], seed=self._seed, kinds=LINE_KINDS)
            self._lines[name] += 1
            if odd == "line_missing":
                missing += 1
            else:
                (output if status < 400 else errors)[name] = one * 2 if odd == "line_doubled" else one
        self._store(batch, output, errors)
        batch.completed += missing
        if fault == "batch_cut_off" and batch.output is not None:
            self.files[batch.output] = self.files[batch.output][: 2 * len(self.files[batch.output]) // 3]

    def _store(self, batch: Batch, output: Mapping[str, bytes], errors: Mapping[str, bytes]) -> None:
        batch.completed, batch.failed = len(output), len(errors)
        order = [sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest()) for found in (output, errors)]
        batch.output = self._stored(b"".join(output[name] for name in order[0])) if output else None
        batch.error = self._stored(b"".join(errors[name] for name in order[1])) if errors else None

    def _stored(self, content: bytes) -> str:
        name = f"file-{len(self.files) + 1:04}"
        self.files[name] = content
        return name

    def _is_over(self, batch: Batch) -> bool:
        return batch.looks > 1 and time.time() >= batch.created + self._seconds

    def _shown(self, batch: Batch) -> Json:
        over, begun = self._is_over(batch), batch.looks > 0
        status = batch.status if over else "in_progress" if begun else "validating"
        done = 1.0 if over else 0.5 if begun else 0.0
        return {
            "id": batch.batch_id,
            "object": "batch",
            "endpoint": batch.path,
            "input_file_id": batch.input,
            "completion_window": "24h",
            "created_at": int(batch.created),
            "metadata": batch.metadata,
            "status": status,
            "errors": {"object": "list", "data": batch.errors} if over and batch.errors else None,
            "output_file_id": batch.output if over else None,
            "error_file_id": batch.error if over else None,
            "request_counts": {
                "total": batch.total,
                "completed": int(done * batch.completed),
                "failed": int(done * batch.failed),
            },
        }


def _read(content: bytes, path: str) -> tuple[list[Json], list[Json]]:
    """The lines of a file, or what is wrong with it."""
    lines: list[Json] = []
    seen: set[str] = set()
    models: set[str] = set()
    for place, text in enumerate(content.splitlines(), start=1):
        try:
            line = json.loads(text)
            name, model = line["custom_id"], line["body"]["model"]
            if not isinstance(name, str) or line["method"] != "POST" or line["url"] != path:
                raise ValueError(f"`custom_id`, `method` or `url` is not as it must be for {path}")
        except (ValueError, KeyError, TypeError) as error:
            return [], [_problem("invalid_json_line", f"the line cannot be read: {error!r}", place)]
        if name in seen:
            return [], [_problem("duplicate_custom_id", f"the custom_id {name!r} came before", place)]
        seen.add(name)
        models.add(str(model))
        lines.append(line)
    if not lines or len(lines) > MOST_REQUESTS:
        return [], [_problem("invalid_file", f"the file has {len(lines):,} requests, not 1 to {MOST_REQUESTS:,}", None)]
    if models != {"scripted"}:
        return [], [_problem("model_not_found", f"the models are {sorted(models)}; the one here is `scripted`", None)]
    return lines, []


def _names(content: bytes) -> list[str]:
    return [json.loads(line)["custom_id"] for line in content.splitlines()]


def _problem(code: str, message: str, line: int | None) -> Json:
    return {"code": code, "message": message, "param": None, "line": line}


def _unanswered(name: str, error: Json) -> bytes:
    return _line({"id": f"batch_req_{name[:8]}", "custom_id": name, "response": None, "error": error})


def _line(value: Json) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _multipart(content_type: str, body: bytes) -> dict[str, bytes]:
    """The fields of a form, as browsers and clients send files (RFC 7578)."""
    boundary = content_type.partition("boundary=")[2].strip().strip('"').encode()
    fields: dict[str, bytes] = {}
    for part in body.split(b"--" + boundary)[1:-1] if boundary else []:
        head, _, content = part.partition(b"\r\n\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0].decode(errors="replace")
        fields[name] = content.removesuffix(b"\r\n")
    return fields


def _failure(status: int, words: str) -> Response:
    return JSONResponse({"error": {"message": words, "type": "scripted", "param": None, "code": None}}, status)
