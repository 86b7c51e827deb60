"""Provider batches: a file of requests handed to an endpoint, which answers within a day for less.

    upload -> create -> wait -> download        OpenAI's protocol: `/files` and `/batches`, through its own client

Each step is written down before and after (`resources.batch_records`), so a process that dies anywhere is continued by
the next one with the same batch. What is repeated costs nothing: an upload, a look, a download. `create` is only
repeated when the endpoint's list of batches does not have ours, which carries its name here as metadata.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

import openai

from pipeline.errors import LanguageModelError
from resources import batch_files
from resources.batch_files import Line
from resources.batch_records import CREATED, CREATING, UPLOADED, BatchRecord, BatchRecords

FIRST_LOOK, LONGEST_LOOK = 1.0, 60.0
"""Seconds between two looks at a batch: the first, and the longest to which they grow."""
ATTEMPTS = 8
"""At one step, where failing costs nothing. A server may be started anew meanwhile."""
PAGES = 100
"""Of the list of batches that are looked through, with 100 batches each."""
OVER = ("completed", "failed", "expired", "cancelled")
WINDOW: Literal["24h"] = "24h"
OURS = "neuronledger"
"""Key of the metadata that holds a batch's name here."""


@dataclass(frozen=True)
class Ended:
    """A batch that is over: how, the lines of its files by custom id, and what was wrong with it as a whole."""

    status: str
    lines: dict[str, Line]
    errors: tuple[tuple[str | None, str, int | None], ...] = ()
    """Code, message, and the line of the input from 1 that it is about."""


T = TypeVar("T")


class NotTaken(Exception):  # noqa: N818 - it reads as what it is
    """The endpoint took no batch, so nothing of it will be answered or paid."""

    def __init__(self, status: int, code: str | None, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.code = code


class ProviderBatches:
    """The batches of one endpoint. `pause` gives the seconds to wait after a failed attempt, counted from 0."""

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        records: BatchRecords,
        *,
        pause: Callable[[int], float],
        redacted: Callable[[str], str],
        say: Callable[[str, int, int], None],
    ) -> None:
        self._client = client
        self._records = records
        self._pause = pause
        self._redacted = redacted
        self._say = say

    async def submit(self, record: BatchRecord, content: bytes) -> None:
        """Upload a file of requests, and make a batch of it.

        Raises:
            NotTaken: the endpoint does not take it; the batch is forgotten.
            LanguageModelError: the endpoint cannot be reached; what was done is remembered.
        """
        name = f"{OURS}-{record.key}.jsonl"
        try:
            file_id = await self._repeated(lambda: self._uploaded(name, content))
            self._records.note(record.key, UPLOADED, file_id=file_id)
            self._records.note(record.key, CREATING)
            batch_id = await self._created(record, file_id)
        except NotTaken:
            self._records.finish(record.key, [])
            raise
        self._records.note(record.key, CREATED, batch_id=batch_id)

    async def resume(self, record: BatchRecord) -> bool:
        """Find a batch of a process that died at the endpoint; False if it was never made, and then it is forgotten.

        Raises:
            LanguageModelError: the endpoint cannot be asked for it.
        """
        if record.state == CREATED:
            return True
        if record.state == CREATING and (batch_id := await self._found(record)) is not None:
            self._records.note(record.key, CREATED, batch_id=batch_id)
            return True
        self._records.finish(record.key, [])
        return False

    async def ended(self, record: BatchRecord, count: int) -> Ended:
        """Wait for the end of a batch of `count` requests, and bring what it answered.

        Raises:
            LanguageModelError: the endpoint cannot be asked for it; it is remembered.
        """
        batch_id, look = record.batch_id or "", FIRST_LOOK
        while True:
            try:
                batch = await self._patiently(lambda: self._client.batches.with_raw_response.retrieve(batch_id))
            except NotTaken as error:
                if error.status == 404:
                    return Ended("failed", {}, ((None, f"the endpoint knows no batch {batch_id} any more", None),))
                raise LanguageModelError(
                    f"batch {batch_id} cannot be asked for ({error}); it is remembered, and its replies are paid for"
                ) from None
            counts = batch.get("request_counts")
            counts = counts if isinstance(counts, dict) else {}
            answered, failed = (_number(counts.get(name)) for name in ("completed", "failed"))
            self._say(batch_id, min(answered + failed, count), count)
            if batch.get("status") in OVER:
                break
            await asyncio.sleep(look)
            look = min(LONGEST_LOOK, 1.3 * look)
        lines = await self._lines(batch.get("error_file_id"), least=0)
        # Of a request with a line in both files, the answer counts.
        lines |= await self._lines(batch.get("output_file_id"), least=answered)
        return Ended(batch["status"], lines, _errors(batch))

    async def _uploaded(self, name: str, content: bytes) -> str:
        file = (name, content, "application/jsonl")
        return _name(
            await self._once(lambda: self._client.files.with_raw_response.create(file=file, purpose="batch")), "file"
        )

    async def _created(self, record: BatchRecord, file_id: str) -> str:
        """Make the batch exactly once, whatever becomes of the answers."""
        for attempt in range(ATTEMPTS):
            try:
                made = await self._once(
                    lambda: self._client.batches.with_raw_response.create(
                        input_file_id=file_id,
                        endpoint=record.path,  # type: ignore[arg-type]
                        completion_window=WINDOW,
                        metadata={OURS: record.key},
                    )
                )
                return _name(made, "batch")
            except NotTaken as error:
                if error.status != 429 or attempt + 1 == ATTEMPTS:
                    raise
            except _Unheard:
                await asyncio.sleep(self._pause(attempt))
                if (batch_id := await self._found(record)) is not None:
                    return batch_id
            await asyncio.sleep(self._pause(attempt))
        raise LanguageModelError(
            f"{self._client.base_url} does not answer when it is to make a batch; whether it has made one is looked up "
            "by the next run"
        )

    async def _found(self, record: BatchRecord) -> str | None:
        """What the endpoint calls a batch that carries our name, None if it has none."""
        after: Any = openai.omit
        since = datetime.fromisoformat(record.begun_at).timestamp() - 86_400
        for _ in range(PAGES):
            start = after
            try:
                page = await self._patiently(
                    lambda: self._client.batches.with_raw_response.list(limit=100, after=start)  # noqa: B023 - awaited here
                )
            except NotTaken as error:
                raise LanguageModelError(
                    f"{self._client.base_url} does not list its batches ({error}), so it is not known whether it has the "
                    f"batch of file {record.file_id}: look there, and cancel it if it is there; then remove this file's "
                    "row from the table `batches` of the reply journal"
                ) from None
            batches = [one for one in page.get("data") or [] if isinstance(one, dict)]
            for one in batches:
                metadata = one.get("metadata")
                ours = isinstance(metadata, dict) and metadata.get(OURS) == record.key
                if (ours or one.get("input_file_id") == record.file_id) and isinstance(one.get("id"), str):
                    return str(one["id"])
            if not page.get("has_more") or not batches or _number(batches[-1].get("created_at")) < since:
                return None
            after = batches[-1].get("id")
        return None

    async def _lines(self, file_id: Any, *, least: int) -> dict[str, Line]:
        """What the file of answers holds. Fewer than `least`, or one cut off, and it is brought again."""
        best: dict[str, Line] = {}
        if not isinstance(file_id, str):
            return best
        for attempt in range(ATTEMPTS // 2):
            try:
                content = await self._bytes(file_id)
            except NotTaken:
                return best
            found, unreadable = batch_files.read(content)
            best = max(found, best, key=len)
            if not unreadable and len(found) >= least:
                break
            await asyncio.sleep(self._pause(attempt))
        return best

    async def _bytes(self, file_id: str) -> bytes:
        return await self._repeated(lambda: self._raw(lambda: self._client.files.with_raw_response.content(file_id)))

    async def _patiently(self, ask: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        """One step that may be repeated."""
        return await self._repeated(lambda: self._once(ask))

    async def _repeated(self, ask: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(ATTEMPTS):
            try:
                return await ask()
            except NotTaken as error:
                if error.status not in {408, 409, 429} or attempt + 1 == ATTEMPTS:
                    raise
            except _Unheard as error:
                if attempt + 1 == ATTEMPTS:
                    raise LanguageModelError(
                        f"{self._client.base_url} cannot be asked for its batches ({error}); they are remembered"
                    ) from None
            await asyncio.sleep(self._pause(attempt))
        raise AssertionError("the last attempt ends")

    async def _once(self, ask: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        """The JSON object that one exchange brings."""
        content = await self._raw(ask)
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise _Unheard(f"the answer is no JSON object: {content[:200]!r}")
        return value

    async def _raw(self, ask: Callable[[], Awaitable[Any]]) -> bytes:
        try:
            reply = await ask()
        except openai.APIConnectionError as error:
            raise _Unheard(self._redacted(f"{type(error.__cause__ or error).__name__}: {error}")) from None
        except openai.APIStatusError as error:
            words = self._redacted(str(error))
            if error.status_code >= 500:
                raise _Unheard(words) from None
            raise NotTaken(error.status_code, error.code or error.type, words) from None
        return bytes(reply.content)


class _Unheard(Exception):  # noqa: N818 - it never leaves this module, and reads as what it is
    """Nothing came that says whether the endpoint did what it was asked."""


def _name(value: dict[str, Any], what: str) -> str:
    name = value.get("id")
    if not isinstance(name, str) or not name:
        raise _Unheard(f"the {what} that was made has no id: {json.dumps(value)[:200]}")
    return name


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _errors(batch: dict[str, Any]) -> tuple[tuple[str | None, str, int | None], ...]:
    match batch.get("errors"):
        case {"data": list(errors)}:
            return tuple(
                (
                    error.get("code") if isinstance(error.get("code"), str) else None,
                    str(error.get("message"))[:1_000],
                    _number(error.get("line")) or None,
                )
                for error in errors
                if isinstance(error, dict)
            )
    return ()
