"""In batches: how the requests of a call go to a provider as files, and how what comes back settles them.

Batches that were submitted before, by this process or one that died, are brought first, whether or not requests are asked
in batches now: they are paid for. Then what is left is handed over, as far as the budget has room; and so on in the next
round, until nothing is left.
"""

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import openai

from pipeline.errors import LanguageModelError
from pipeline.ports import Progress, Request
from pipeline.provenance import canonical_json
from resources import batch_files
from resources.batch_files import Line
from resources.batch_records import BatchRecord, BatchRecords, begun
from resources.budget import Budget
from resources.call import Call, Failed
from resources.journal import Journal, Received
from resources.local_language import is_local
from resources.prices import Price
from resources.provider_batches import Ended, NotTaken, ProviderBatches

OF_A_STATUS = {
    "expired": ("timeout", "the provider had no time for it before the batch expired"),
    "cancelled": ("not_requested", "the batch was cancelled before its turn"),
}
"""Reason and words for a request without an answer, by how its batch ended."""
OF_A_CODE = {"batch_expired": "timeout", "batch_cancelled": "not_requested", "rate_limit_exceeded": "rate_limited"}
OF_A_FILE = {"token_limit_exceeded": "rate_limited"}
"""Reasons by the provider's code, of a line without a response and of a file that was not taken."""


class Door(Protocol):
    """What the door to an endpoint does for its requests, however they are sent."""

    endpoint: str
    budget: Budget
    batch: bool
    progress: Progress | None

    def asked(self, request: Request) -> dict[str, Any]: ...
    def parameters(self, request: Request) -> dict[str, Any]: ...
    def path(self, request: Request) -> str: ...
    def form(self) -> str: ...
    def batch_price(self, model: str) -> Price | None: ...
    def count(self, call: Call, received: Received) -> None: ...
    def look_into_lake(self, call: Call, journal: Journal) -> None: ...
    def redacted(self, text: str) -> str: ...
    def without_key(self, body: bytes) -> bytes: ...
    def meaning(
        self, request: Request, status: int, words: str, codes: Sequence[str | None], retry_after: float = 0.0
    ) -> Failed | None: ...


class InBatches:
    """The batches of one call, for one round."""

    def __init__(
        self, door: Door, call: Call, journal: Journal, client: openai.AsyncOpenAI, *, pause: Callable[[int], float]
    ) -> None:
        self._door = door
        self._call = call
        self._journal = journal
        self._records = BatchRecords(journal)
        self._batches = ProviderBatches(client, self._records, pause=pause, redacted=door.redacted, say=self._say)
        self._counts: dict[str, tuple[int, int]] = {}
        """By batch, how many of how many of its requests are answered."""
        self._claimed: list[str] = []

    async def settle(self) -> None:
        """Bring what batches hold of the call, and if that is how it is asked, hand over what they do not hold."""
        tasks: list[asyncio.Task[None]] = []
        try:
            for record in self._records.holding(self._call.unsettled()):
                # Another process may have brought it since.
                now = self._records.find(record.key) if self._claim(record.key) else None
                if now is not None and await self._batches.resume(now):
                    tasks.append(asyncio.create_task(self._bring(record.key)))
            if self._door.batch:
                for record, content in self._files():
                    if await self._hand_over(record, content):
                        tasks.append(asyncio.create_task(self._bring(record.key)))
            await asyncio.gather(*tasks)
        except LanguageModelError as error:
            self._call.unusable = self._call.unusable or str(error)
        finally:
            for task in tasks:
                task.cancel()
            for name in self._claimed:
                self._journal.release(name)

    def _claim(self, key: str) -> bool:
        name = f"batch {key}"
        if not self._journal.claim(name):
            return False
        self._claimed.append(name)
        return True

    def _files(self) -> Iterator[tuple[BatchRecord, bytes]]:
        """Batches of what is neither settled nor in a batch, each begun and claimed, with its file."""
        call = self._call
        for path, names in self._admitted():
            asked = {name: canonical_json(self._door.asked(call.requests[name])) for name in names}
            lines = (
                (name, batch_files.line(name, path, self._door.parameters(call.requests[name])))
                for name in sorted(names)
            )
            for part in batch_files.parts(lines):
                record = begun(uuid.uuid4().hex, endpoint=self._door.endpoint, path=path, form=self._door.form())
                self._claim(record.key)
                taken = self._records.begin(record, {name: asked[name] for name, _ in part}, flushes=call.flushes)
                for name, _ in part:
                    if not taken or name not in taken:
                        self._door.budget.settled(name, usd=0.0, tokens=0)
                if taken is None:
                    self._door.look_into_lake(call, self._journal)
                elif taken:
                    yield record, b"".join(line for name, line in part if name in taken)

    def _admitted(self) -> list[tuple[str, list[str]]]:
        """The requests that the budget has room for now, by path and model, because a file has one of each."""
        held = self._records.held()
        groups: dict[tuple[str, str], list[str]] = {}
        for name in self._call.unsettled():
            request = self._call.requests[name]
            if is_local(request.model) or name in held:
                continue
            if self._door.budget.admit(name, request, self._door.batch_price(request.model)):
                groups.setdefault((f"/v1{self._door.path(request)}", request.model), []).append(name)
            elif self._door.budget.is_used_up:
                self._call.settle(name, None, "budget", None)
            else:
                # What is under way may cost less than the most, and then there is another batch.
                break
        return [(path, names) for (path, _), names in groups.items()]

    async def _hand_over(self, record: BatchRecord, content: bytes) -> bool:
        """Whether the endpoint took a batch.

        Raises:
            LanguageModelError: it takes none at all.
        """
        names = list(self._records.requests(record.key))
        try:
            await self._batches.submit(record, content)
        except NotTaken as refused:
            for name in names:
                self._door.budget.settled(name, usd=0.0, tokens=0)
            request, words = self._call.requests[names[0]], str(refused)
            meant = self._door.meaning(request, refused.status, words, (refused.code,))
            unusable = meant.unusable if meant is not None and refused.status in {401, 403, 429} else None
            if refused.status != 429 or unusable is not None:
                raise LanguageModelError(
                    unusable or f"{self._door.endpoint} takes no batches ({words}): ask without them, by `--batch no`"
                ) from None
            for name in names:
                self._fail(name, "rate_limited", words)
            return False
        return True

    async def _bring(self, key: str) -> None:
        """Wait for a batch, keep its replies, and settle what the call asked of it."""
        door, call, record = self._door, self._call, self._records.find(key)
        if record is None:
            return
        asked = self._records.requests(key)
        requests = {name: _request(json.loads(text)) for name, text in asked.items()}
        for name, request in requests.items():
            door.budget.hold(name, request, door.batch_price(request.model))
        ended = await self._batches.ended(record, len(asked))
        now = datetime.now(UTC)
        seconds = (now - datetime.fromisoformat(record.begun_at)).total_seconds()
        received: list[Received] = []
        failed: list[tuple[str, Failed]] = []
        for place, (name, text) in enumerate(asked.items(), start=1):
            line = ended.lines.get(batch_files.custom_id(name))
            fault = _without_a_line(ended, place, len(asked)) if line is None else self._fault(requests[name], line)
            if fault is not None or line is None or line.status is None:
                failed.append((name, fault or Failed("server_error", "no answer came", again=False)))
                continue
            received.append(
                Received(
                    name, door.endpoint, requests[name].model, text, line.status, door.without_key(line.body),
                    seconds, self._journal.failures(name) + 1, now.isoformat(), call.run_id, record.batch_id,
                )
            )  # fmt: skip
        self._records.finish(key, received)
        for one in received:
            door.count(call, one)
            if one.request_id in call.requests:
                call.sent += 1
                call.take(one.request_id, one)
        for name, fault in failed:
            door.budget.settled(name, usd=0.0, tokens=0)
            # The endpoint may have told how it wants to be asked; then there is another round.
            if not fault.again and (fault.status not in {400, 422} or door.form() == record.form):
                call.unusable = call.unusable or fault.unusable
                self._fail(name, fault.reason, fault.error)

    def _fault(self, request: Request, line: Line) -> Failed | None:
        """Why a line is no answer that is worth keeping; None if it is one."""
        words = self._door.redacted(line.message or "no reason was given")
        if line.status is None:
            return Failed(OF_A_CODE.get(line.code or "", "server_error"), words, again=False)
        if line.is_answer:
            return None
        meant = self._door.meaning(request, line.status, f"status {line.status}: {words}", (line.code,))
        if meant is not None:
            meant.again = False
        return meant

    def _fail(self, name: str, reason: str, words: str) -> None:
        """Note that a request was not answered; if the call asked for it, it gets the reason."""
        self._journal.log_failure(name, run_id=self._call.run_id, reason=reason, error=words)
        if name in self._call.requests:
            self._call.sent += 1
            self._call.errors[name] = words
            self._call.settle(name, None, reason, None)

    def _say(self, batch_id: str, done: int, total: int) -> None:
        """Tell how far the batches have come, all together."""
        self._counts[batch_id] = done, total
        if self._door.progress is not None:
            more = f" and {len(self._counts) - 1} more" if len(self._counts) > 1 else ""
            answered, of = (sum(counts) for counts in zip(*self._counts.values(), strict=True))
            self._door.progress("batch", answered, of, f"waiting for {next(iter(self._counts))}{more}")


def _without_a_line(ended: Ended, place: int, count: int) -> Failed:
    """Why a request has no line; it is number `place` of `count` in its file, from 1."""
    if ended.status in OF_A_STATUS:
        reason, words = OF_A_STATUS[ended.status]
        return Failed(reason, words, again=False)
    if ended.status != "failed":
        return Failed("server_error", "the files of the batch have no answer to it", again=False)
    # One line that cannot be read fails a file as a whole; the others are handed over again without it.
    blamed = [(code, words) for code, words, line in ended.errors if line == place]
    if not blamed and any(line is not None and 1 <= line <= count for *_, line in ended.errors):
        return Failed("not_requested", "another line of its batch was refused", again=True)
    code, words = next(
        iter(blamed or [(code, words) for code, words, _ in ended.errors]), (None, "no reason was given")
    )
    unusable = f"the batch was refused ({words}): use another model" if code and "model" in code else None
    return Failed(
        OF_A_FILE.get(code or "", "server_error"), f"the batch was refused: {words}", again=False, unusable=unusable
    )


def _request(asked: Mapping[str, Any]) -> Request:
    """The request of which `asked` is all that is sent."""
    return Request(
        model=asked["model"],
        messages=tuple((role, text) for role, text in asked["messages"]),
        temperature=asked["temperature"],
        max_tokens=asked["max_tokens"],
        seed=asked["seed"],
        json_reply=asked["json_reply"],
        logprobs=asked.get("logprobs", 0),
        echo=tuple(asked.get("echo", ())),
        told_from=asked.get("told_from", 0),
        shape=asked.get("shape", ""),
    )
