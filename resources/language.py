"""The door to language models: any endpoint that speaks OpenAI's chat protocol.

A request's identity is the hash of all that is sent and where to. The door looks for it among the replies that are
kept (table `language_calls`, then the journal) and sends only what is new:

    look -> claim -> send, and repeat what failed in passing -> journal -> read -> lake

What an endpoint can do wrong is told apart by one reason of `pipeline.tables.MISSING`. An answer that came is kept, be
it refused, filtered, cut short or no answer in form: it would most likely come again, and it may have been paid for.
To ask once more, ask with another seed. What failed in passing (timeout, too many requests, server error) is not kept
and is sent again by the next call.
"""

import asyncio
import json
import logging
import math
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import openai

from pipeline.errors import LanguageModelError, SettingsError
from pipeline.ports import Lake, Progress, Reply, Request, Usage
from pipeline.provenance import canonical_json, content_hash
from resources import answers
from resources.batch_records import BatchRecords
from resources.bounded import bounded
from resources.budget import Budget
from resources.call import Call, Failed
from resources.desk import Desk, Shared, kept
from resources.in_batches import InBatches
from resources.journal import Journal, Received
from resources.local_language import SCHEME, LocalModel, is_local
from resources.pace import Pace
from resources.prices import Price, Prices, open_prices
from resources.refusals import FORM, OF_A_FORM, unusable

ATTEMPTS = 5
FIRST_PAUSE = 0.5
"""Seconds before the first repetition; each later pause is twice as long, times a random number from 0.5 to 1."""
FIRST_LOOK, LONGEST_LOOK = 0.1, 5.0
"""Seconds between two looks for replies to what other processes have sent: the first, and the longest."""
LONGEST_PAUSE = 30.0
"""Seconds. An endpoint that asks to wait longer is asked again after this."""
RAW_REPLY = {"X-Stainless-Raw-Response": "true"}
"""Asks the SDK for the reply as it came."""
ROWS_AT_ONCE = 2_000
"""Replies that move to the lake in one commit."""

log = logging.getLogger(__name__)


class OpenAICompatible:
    """A `LanguageModel` behind a chat-completions endpoint, with every reply kept.

    `base_url` is what the endpoint's own documents say, usually ending in `/v1`. The key is read from the environment
    variable `api_key_variable` when something is sent, so kept replies can be read without one; servers on this
    machine may go without. `journal_path` is a file that is made if need be, on a local disk. `timeout` is in seconds,
    from sending a request to the last byte of its reply. At most `concurrency` requests are under way at once, and
    fewer while the endpoint asks to slow down. What does not fit the `budget` is not sent, and its reply says `budget`.
    With `batch`, requests go to the endpoint's batch API, and `progress` hears how far it has come; those of `local:`
    models do not.

    Raises:
        SettingsError: the URL is not one of HTTP or carries credentials, or a number is not positive.
    """

    def __init__(
        self,
        base_url: str,
        *,
        journal_path: Path,
        lake: Lake,
        concurrency: int = 16,
        timeout: float = 120.0,
        api_key_variable: str = "OPENAI_API_KEY",
        prices: Prices | None = None,
        budget: Budget | None = None,
        batch: bool = False,
        progress: Progress | None = None,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SettingsError(f"`base_url` (={_redacted(base_url)!r}) must be like `https://api.openai.com/v1`")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise SettingsError(
                f"`base_url` for {parts.hostname} must not carry a user, a password, `?` or `#`, because it is stored "
                f"with every reply; put the key into the environment variable {api_key_variable}"
            )
        if concurrency < 1:
            raise SettingsError(f"`concurrency` (={concurrency}) must be at least 1")
        if timeout <= 0:
            raise SettingsError(f"`timeout` (={timeout}) must be above 0 seconds")
        self.endpoint = base_url.rstrip("/")
        self._is_local = parts.hostname in {"localhost", "::1"} or parts.hostname.startswith("127.")
        self._journal_path = journal_path
        self._lake = lake
        self._concurrency = concurrency
        self._timeout = timeout
        self._key_variable = api_key_variable
        self._prices = prices or open_prices()
        self.budget = budget or Budget()
        self.batch = batch
        self.progress = progress
        self._local: dict[str, LocalModel] = {}
        self._computing = threading.Lock()
        # Learnt from the endpoint's refusals, for as long as this object lives.
        self._limit = float(concurrency)
        self._takes_response_format = True
        self._name_of_max_tokens = "max_tokens"

    def request_id(self, request: Request) -> str:
        """The tagged hash of everything that is sent for a request, and of where it is sent."""
        return content_hash(self.asked(request))

    def answer(self, requests: Sequence[Request], *, run_id: str) -> tuple[Sequence[Reply], Usage]:
        """One reply per request, in their order; a request that is kept or repeats another is not sent.

        `Usage` counts money and tokens of what this call sent, and the failures of all `requests`. Its money is unknown
        if that of any reply is.

        Raises:
            LanguageModelError: the endpoint cannot be used at all; every reply that came is kept.
        """
        if not requests:
            return [], Usage()
        ids = [self.request_id(request) for request in requests]
        with Journal(self._journal_path) as journal:
            self._flush(journal, run_id)
            call = Call(run_id=run_id, requests=dict(zip(ids, requests, strict=True)))
            try:
                asyncio.run(self._settle_here(call, journal))
            finally:
                self._flush(journal, run_id)
        return self._answered(call, ids)

    def answer_far(self, requests: Sequence[Request], desk: Shared, *, run_id: str) -> tuple[Sequence[Reply], Usage]:
        """As `answer`, with a desk that stands on another machine, which also moves replies to the lake."""
        if not requests:
            return [], Usage()
        ids = [self.request_id(request) for request in requests]
        call = Call(run_id=run_id, requests=dict(zip(ids, requests, strict=True)))
        asyncio.run(self._settle_all(call, desk))
        return self._answered(call, ids)

    def may_be_spread(self) -> bool:
        """Whether other machines may ask: batches, also those of earlier runs, are seen to by one process."""
        if self.batch:
            return False
        with Journal(self._journal_path) as journal:
            return not BatchRecords(journal).waiting()

    def keeper(self) -> tuple[Path, str, Budget, int]:
        """What a desk on this machine is made from, for those who ask on others."""
        return self._journal_path.resolve(), self._lake.uri, self.budget, self._concurrency

    def __getstate__(self) -> dict[str, Any]:
        """What goes to other machines: neither what is open or loaded here, nor any key."""
        here = {"_lake", "_local", "_computing", "progress"}
        return {name: value for name, value in vars(self).items() if name not in here}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._local, self._computing, self.progress = {}, threading.Lock(), None

    def flush(self, *, run_id: str) -> None:
        """Move replies that others kept to the lake."""
        with Journal(self._journal_path) as journal:
            self._flush(journal, run_id)

    def _answered(self, call: Call, ids: Sequence[str]) -> tuple[Sequence[Reply], Usage]:
        if call.unusable is not None:
            n_kept = len(call.replies) - len(call.errors)
            raise LanguageModelError(
                f"{call.unusable}. {n_kept:,} of {len(call.requests):,} replies are kept; run again to ask for the rest"
            )
        if call.errors:
            log.warning(
                "%d requests to %s brought no reply; the first because: %s",
                len(call.errors),
                self.endpoint,
                next(iter(call.errors.values())),
            )
        replies = [call.replies[request_id] for request_id in ids]
        return replies, Usage(
            requests_sent=call.sent,
            requests_kept=len(ids) - call.sent,
            prompt_tokens=call.prompt_tokens,
            completion_tokens=call.completion_tokens,
            cost_usd=call.cost_usd,
            failures=dict(Counter(reply.missing_because for reply in replies if reply.missing_because is not None)),
        )

    def recall(self, requests: Sequence[Request]) -> Sequence[Reply | None]:
        """For each request its kept reply, None for one that `answer` would send. Sends nothing."""
        if not requests:
            return []
        ids = [self.request_id(request) for request in requests]
        with Journal(self._journal_path) as journal:
            call = Call(run_id="", requests=dict(zip(ids, requests, strict=True)))
            for request_id in call.requests:
                if (received := journal.look(request_id)[0]) is not None:
                    call.take(request_id, received)
            self.look_into_lake(call, journal)
        return [call.replies.get(request_id) for request_id in ids]

    def price(self, model: str) -> Price | None:
        """What the model costs here, in batches if it is asked so; None if that is not known."""
        return self.batch_price(model) if self.batch else answers.price_of(self._prices, model, endpoint=self.endpoint)

    def batch_price(self, model: str) -> Price | None:
        """What the model costs in batches here, None if that is not known."""
        return answers.price_of(self._prices, model, endpoint=self.endpoint, batch=True)

    def _endpoint_of(self, request: Request) -> str:
        """Where a request is answered: the endpoint, or for a model in this process what it is made of."""
        return self._in_process(request.model).endpoint(request) if is_local(request.model) else self.endpoint

    def _in_process(self, model: str) -> LocalModel:
        return self._local.setdefault(model, LocalModel(model.removeprefix(SCHEME)))

    def check(self, model: str) -> dict[str, Any]:
        """What the endpoint does with one tiny request, which is always sent and never kept; for people.

        `reachable`: it answered at all. `answers`: the model gave a text. `json_mode`: it takes `response_format`.
        `error` is None, or what went wrong in words.
        """
        question = Request(
            model=model,
            messages=(("user", 'Answer with the JSON object {"ok": true} and nothing else.'),),
            temperature=0.0,
            max_tokens=16,
            seed=0,
        )
        found: dict[str, Any] = {"endpoint": self.endpoint, "model": model, "reachable": False, "answers": False}
        found |= {"json_mode": None, "model_served": None, "seconds": None, "error": None}
        begun = time.monotonic()
        try:
            status, body = asyncio.run(self._ask_alone(question))
        except LanguageModelError as error:
            return found | {"error": str(error)}
        except Failed as failed:
            return found | {"reachable": failed.heard, "error": failed.error}
        answer = answers.read(status, body)
        return found | {
            "reachable": True,
            "answers": answer.text is not None and answer.missing_because in {None, "truncated"},
            "json_mode": self._takes_response_format,
            "model_served": answer.model_served,
            "seconds": round(time.monotonic() - begun, 3),
            "error": answer.error,
        }

    # What is kept

    def asked(self, request: Request) -> dict[str, Any]:
        return sent(request, endpoint=self._endpoint_of(request))

    def look_into_lake(self, call: Call, journal: Journal) -> None:
        """Take what the lake has of the call's open requests. Reads their rows only."""
        # The count comes first: a flush between the two makes us look again, and not miss a reply.
        call.flushes = journal.flushes()
        call.take_kept(kept(self._lake, call.unsettled()))

    def _flush(self, journal: Journal, run_id: str) -> None:
        """Move the journal's replies to the lake, those of runs that died included."""
        if not journal.pending(1):
            return
        with journal.alone():
            while received := journal.pending(ROWS_AT_ONCE):
                record = {"step": "language_calls", "run_id": run_id, "rows": len(received)}
                self._lake.add("language_calls", answers.rows(received, self._prices), record=record)
                journal.settle([reply.request_id for reply in received])

    # Asking

    async def _settle_here(self, call: Call, journal: Journal) -> None:
        pace = Pace(self._concurrency)
        pace.limit = self._limit
        desk = Desk(journal, lake=self._lake, budget=self.budget, pace=pace)
        try:
            await self._settle_all(call, desk, journal)
        finally:
            desk.close()
        self._limit = pace.limit

    async def _settle_all(self, call: Call, desk: Shared, journal: Journal | None = None) -> None:
        """Settle all requests; batches only beside the `journal`."""
        await self._look(call, desk)
        async with AsyncExitStack() as opened:
            far = any(not is_local(call.requests[request_id].model) for request_id in call.unsettled())
            client = await opened.enter_async_context(self._client()) if far else None
            pause = FIRST_LOOK
            while (open_ids := call.unsettled()) and call.unusable is None:
                settled_before = len(call.replies)
                alone = [name for name in open_ids if not self.batch or is_local(call.requests[name].model)]
                queue = iter(alone)
                workers = min(self._concurrency, len(alone))
                batches = []
                if client is not None and journal is not None:
                    batches.append(InBatches(self, call, journal, client, pause=_pause).settle())
                await asyncio.gather(*batches, *(self._work(call, client, queue, desk) for _ in range(workers)))
                pause = FIRST_LOOK if len(call.replies) > settled_before else min(LONGEST_LOOK, 1.5 * pause)
                if len(call.replies) == settled_before:
                    # All that is left is under way in other processes: wait for their replies.
                    await asyncio.sleep(pause)

    async def _look(self, call: Call, desk: Shared) -> None:
        """Take what the lake has of the call's open requests."""
        call.flushes, found = await desk.kept(call.unsettled())
        call.take_kept(found)

    async def _work(self, call: Call, client: openai.AsyncOpenAI | None, queue: Iterator[str], desk: Shared) -> None:
        """Settle requests of the queue, which several workers share, as long as the endpoint can be used."""
        for request_id in queue:
            if call.unusable is not None:
                return
            if request_id in call.replies:
                continue
            claimed = await desk.claim(request_id)
            if claimed.unusable is not None:
                call.unusable = claimed.unusable
            if not claimed.mine:
                continue
            received = claimed.received
            if received is None and claimed.flushes != call.flushes:
                await self._look(call, desk)
            if received is None and request_id not in call.replies and await self._admitted(call, request_id, desk):
                call.failures[request_id] = claimed.failures
                received = await self._send(call, client, request_id, desk)
            desk.release(request_id)
            if received is not None:
                call.take(request_id, received)

    async def _admitted(self, call: Call, request_id: str, desk: Shared) -> bool:
        """Whether the budget has room for a request, now or once others are settled; if not, that is its reply."""
        request = call.requests[request_id]
        try:
            if await desk.admit(request_id, request, self.price(request.model)):
                return True
        except LanguageModelError as error:
            call.unusable = str(error)
            return False
        call.settle(request_id, None, "budget", None)
        return False

    async def _send(
        self, call: Call, client: openai.AsyncOpenAI | None, request_id: str, desk: Shared
    ) -> Received | None:
        """Send one request until something comes back; None if nothing did, with the reason in the call."""
        received = await self._attempts(call, client, request_id, desk)
        if received is None:
            desk.settled(request_id, usd=0.0, tokens=0)
            return None
        await desk.keep(received)
        usd, tokens = self._counted(call, received)
        desk.settled(request_id, usd=usd, tokens=tokens)
        return received

    def count(self, call: Call, received: Received) -> None:
        """Count what a reply cost, in the call and in the budget of this process."""
        usd, tokens = self._counted(call, received)
        self.budget.settled(received.request_id, usd=usd, tokens=tokens)

    def _counted(self, call: Call, received: Received) -> tuple[float | None, int | None]:
        """Count what a reply cost in the call; dollars and tokens, None where they are not known."""
        answer = answers.read(received.status, received.body, received.request)
        price = answers.price_of(
            self._prices, received.model, endpoint=self.endpoint, batch=received.batch_id is not None
        )
        paid = answers.cost(answer, price)
        call.prompt_tokens += answer.prompt_tokens or 0
        call.completion_tokens += answer.completion_tokens or 0
        call.cost_usd = None if call.cost_usd is None or paid is None else call.cost_usd + paid
        known = answer.prompt_tokens is not None and answer.completion_tokens is not None
        tokens = (answer.prompt_tokens or 0) + (answer.completion_tokens or 0)
        return paid, tokens if known else None

    async def _attempts(
        self, call: Call, client: openai.AsyncOpenAI | None, request_id: str, desk: Shared
    ) -> Received | None:
        request = call.requests[request_id]
        begun = time.monotonic()
        call.sent += 1
        for attempt in range(ATTEMPTS):
            try:
                async with desk.turn():
                    if call.unusable is not None:
                        return None
                    status, body = await self._ask(client, request)
            except Failed as failed:
                quiet = failed.retry_after if failed.again else 0.0
                desk.failed(request_id, run_id=call.run_id, reason=failed.reason, error=failed.error, quiet=quiet)
                call.failures[request_id] += 1
                call.silent = call.silent and not failed.heard
                if failed.unusable is not None:
                    call.unusable = failed.unusable
                if call.unusable is not None:
                    return None
                if failed.again and attempt + 1 < ATTEMPTS:
                    await asyncio.sleep(_pause(attempt))
                    continue
                if failed.unreachable and call.silent:
                    call.unusable = f"{self.endpoint} cannot be reached ({failed.error}): check the base URL and that the server runs"
                    return None
                call.silent = True
                call.errors[request_id] = failed.error
                call.settle(request_id, None, failed.reason, None)
                return None
            call.silent = False
            return Received(
                request_id=request_id,
                endpoint=self._endpoint_of(request),
                model=request.model,
                request=canonical_json(self.asked(request)),
                status=status,
                body=body,
                seconds=time.monotonic() - begun,
                attempts=call.failures[request_id] + 1,
                answered_at=datetime.now(UTC).isoformat(),
                run_id=call.run_id,
            )
        return None

    async def _ask_alone(self, request: Request) -> tuple[int, bytes]:
        if is_local(request.model):
            return await self._ask(None, request)
        async with self._client() as client:
            return await self._ask(client, request)

    async def _ask(self, client: openai.AsyncOpenAI | None, request: Request) -> tuple[int, bytes]:
        """One exchange: HTTP status and body of an answer that is worth keeping.

        Raises:
            Failed: none came.
        """
        if client is None or is_local(request.model):
            return 200, await asyncio.to_thread(self._compute, request)
        parameters = self.parameters(request)
        try:
            async with asyncio.timeout(self._timeout):
                # As `client.chat.completions.with_raw_response.create` does, less its walk through every message.
                reply: Any = await client.post(
                    self.path(request), body=parameters, cast_to=object, options={"headers": RAW_REPLY}
                )
        except TimeoutError:
            raise self._late() from None
        except openai.APIConnectionError as error:
            # The SDK may call a timeout what the HTTP library knows better.
            causes = _causes(error)
            unreachable = any(isinstance(cause, aiohttp.ClientConnectorError) for cause in causes)
            if any(isinstance(cause, TimeoutError) for cause in causes) and not unreachable:
                raise self._late() from None
            cause = next((cause for cause in causes if isinstance(cause, aiohttp.ClientError)), causes[-1])
            what = self.redacted(f"{type(cause).__name__}: {cause}")
            raise Failed("server_error", what, again=True, heard=not unreachable, unreachable=unreachable) from None
        except aiohttp.ClientError as error:
            # What is no HTTP at all: the SDK lets it through as it is.
            what = self.redacted(f"{type(error).__name__}: {error}")[:1_000]
            raise Failed("server_error", what, again=True) from None
        except openai.APIStatusError as error:
            codes, after = (error.code, error.type), error.response.headers.get("retry-after")
            failed = self.meaning(request, error.status_code, self.redacted(_said(error)), codes, _retry_after(after))
            if failed is None:
                return error.status_code, self.without_key(error.response.content)
            if self.parameters(request) != parameters:
                return await self._ask(client, request)
            raise failed from None
        body = self.without_key(reply.content)
        if (no_answer := answers.of_no_model(body)) is not None:
            raise Failed("server_error", self.redacted(no_answer), again=True)
        return reply.status_code, body

    def _late(self) -> Failed:
        late = f"no whole answer within {self._timeout:g} s (a slow server needs a longer --timeout, or a lower --concurrency)"
        return Failed("timeout", late, again=True, heard=False)

    def _compute(self, request: Request) -> bytes:
        """The answer of a model in this process, which does one thing at a time."""
        with self._computing:
            try:
                return self._in_process(request.model).respond(request)
            except LanguageModelError as error:
                raise Failed("server_error", str(error), again=False, unusable=str(error)) from error

    def path(self, request: Request) -> str:
        """Where a request goes, below the base URL."""
        return {"prompt": "/completions", "embed": "/embeddings"}.get(request.messages[0][0], "/chat/completions")

    def form(self) -> str:
        """How requests are written, of what endpoints differ in."""
        return f"{self._name_of_max_tokens}, response_format: {self._takes_response_format}"

    def parameters(self, request: Request) -> dict[str, Any]:
        match request.messages:
            case (("embed", text),):
                return {"model": request.model, "input": _sendable(text), "encoding_format": "float"}
            case (("prompt", text),):
                asked: dict[str, Any] = {
                    "model": request.model,
                    "prompt": _sendable(text),
                    "temperature": request.temperature,
                    "max_tokens": request.max_tokens,
                    "seed": request.seed,
                }
                asked |= {"logprobs": request.logprobs} if request.logprobs else {}
                return asked | ({"echo": True} if request.echo or request.told_from else {})
        parameters: dict[str, Any] = {
            "model": request.model,
            "messages": [{"role": role, "content": _sendable(text)} for role, text in request.messages],
            "temperature": request.temperature,
            self._name_of_max_tokens: request.max_tokens,
            "seed": request.seed,
        }
        if request.shape:
            parameters["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": json.loads(request.shape)},
            }
        elif request.json_reply and self._takes_response_format:
            parameters["response_format"] = {"type": "json_object"}
        if request.logprobs:
            parameters |= {"logprobs": True, "top_logprobs": request.logprobs}
        return parameters

    def meaning(
        self, request: Request, status: int, words: str, codes: Sequence[str | None], retry_after: float = 0.0
    ) -> Failed | None:
        """What an error status means; None for one that is the answer to this very request."""
        if "content_filter" in codes:
            return None
        why = None
        if status in {400, 422} and "max_completion_tokens" in words:
            self._name_of_max_tokens = "max_completion_tokens"
        elif status in OF_A_FORM and FORM in words and not request.shape:
            self._takes_response_format = False
        else:
            why = unusable(request, status, words, codes, endpoint=self.endpoint, key_variable=self._key_variable)
        return Failed(
            "rate_limited" if status == 429 else "server_error",
            words,
            again=status in {408, 409, 429} or status >= 500,
            retry_after=retry_after,
            unusable=why,
            status=status,
        )

    def _client(self) -> openai.AsyncOpenAI:
        key = self._key()
        if not key and not self._is_local:
            raise LanguageModelError(
                f"the environment variable {self._key_variable} is not set, and {self.endpoint} needs a key; "
                "set it to your key, or to `none` for a server that asks for no key"
            )
        if not key.isascii() or not key.isprintable():
            raise LanguageModelError(
                f"the environment variable {self._key_variable} holds characters that no key has; copy the key again"
            )
        # Retries are ours, so that every attempt is counted; the deadline is ours, because this timeout starts anew
        # with every byte. Of the two HTTP libraries that the SDK has, aiohttp takes half the time.
        http = openai.DefaultAioHttpClient(
            timeout=self._timeout + 1,
            # Another host would read our texts, and what it says would be kept as what this endpoint said.
            follow_redirects=False,
            event_hooks={"response": [bounded(answers.LARGEST_BODY + 1)]},
        )
        return openai.AsyncOpenAI(base_url=self.endpoint, api_key=key or "none", max_retries=0, http_client=http)

    def _key(self) -> str:
        return os.environ.get(self._key_variable, "").strip()

    def redacted(self, text: str) -> str:
        key = self._key()
        return _redacted(text.replace(key, "[key]") if len(key) >= 8 else text)

    def without_key(self, body: bytes) -> bytes:
        """The body, cut at the largest size that is read; the key, should the endpoint echo it, is never stored."""
        key = self._key().encode("ascii")
        if len(key) >= 8:
            body = body.replace(key, b"[key]")
            if b"\\u00" in body:
                # JSON may spell any character by its number, and a text that is JSON itself may do so once more.
                body = re.sub(
                    b"".join(rb"(?:%s|\\+u(?i:%04x))" % (re.escape(bytes([one])), one) for one in key), b"[key]", body
                )
        return body[: answers.LARGEST_BODY + 1]


def _said(error: openai.APIStatusError) -> str:
    """What an error status came with; servers differ in where they put their words, and the SDK knows one place."""
    words, body = str(error), error.response.text[:500].strip()
    return words if " - " in words or not body else f"{words} - {body}"


def _causes(error: BaseException) -> list[BaseException]:
    """An error, and what lies below it."""
    below = error.__cause__
    return [error, *([] if below is None else _causes(below))]


def sent(request: Request, *, endpoint: str) -> dict[str, Any]:
    """All that is sent for a request, and where to: what its identity is the hash of."""
    # What is not used is left out, so that requests from before there was such a thing are what they were.
    used: dict[str, Any] = {"logprobs": request.logprobs} if request.logprobs else {}
    if request.echo:
        used["echo"] = list(request.echo)
    if request.told_from:
        used["told_from"] = request.told_from
    if request.shape:
        used["shape"] = request.shape
    return used | {
        "endpoint": endpoint,
        "model": request.model,
        "messages": [[role, _sendable(text)] for role, text in request.messages],
        "temperature": float(request.temperature),
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "json_reply": request.json_reply,
    }


def _pause(attempt: int) -> float:
    """Seconds to wait after a failed attempt, counted from 0; random, so that clients do not come back in step."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * (1 << attempt)) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _retry_after(header: str | None) -> float:
    """Seconds that an endpoint asks us to wait (RFC 9110: a number or a date), cut to what we are ready to."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(LONGEST_PAUSE, max(0.0, seconds)) if math.isfinite(seconds) else 0.0


def _sendable(text: str) -> str:
    """Lone surrogates cannot be sent as UTF-8, so they become `?`, in the request's identity too."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _redacted(text: str) -> str:
    """The text without anything that looks like a key, as endpoints echo the key that they refuse, or that moves a terminal."""
    text = re.sub(r"\bsk-[\w*.-]+", "sk-[redacted]", answers.plain(text))
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
