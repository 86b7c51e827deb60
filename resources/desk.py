"""The desk: what all who ask one endpoint share, so that none sends what another has, or more than the endpoint takes.

    claim -> admit -> turn -> (send) -> keep -> release

It holds the journal, the budget and the pace. `Desk` is for one process. On several machines the same desk stands beside
the journal, in a process of its own (`Keeper`), and whoever asks holds a `FarDesk`, which hands each question on to it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from pipeline.ports import Lake, Request
from resources.budget import Budget
from resources.delta import DeltaLake
from resources.journal import Journal, Received
from resources.pace import Pace
from resources.prices import Price

Kept = tuple[str, str | None, str | None, str | None, str | None]
"""Of a reply in the lake: request_id, text, missing_because, model_served, and its logprobs, packed."""


@dataclass(frozen=True)
class Claimed:
    """What there is to know before a request is sent."""

    mine: bool
    """Whether it may be sent by whoever asked: no other is at it."""
    received: Received | None = None
    """Its reply, if the journal has it."""
    flushes: int = 0
    """How often replies have moved to the lake; see `resources.journal`."""
    failures: int = 0
    """Attempts that brought no reply, in this run and earlier ones."""
    unusable: str | None = None
    """Why nothing more is to be sent, if so."""


class Shared(Protocol):
    """A desk, here or elsewhere. What needs no answer is no coroutine."""

    async def kept(self, request_ids: Sequence[str]) -> tuple[int, list[Kept]]:
        """How often replies have moved to the lake, and what it has of these requests."""
        ...

    async def claim(self, request_id: str) -> Claimed:
        """Ask to send a request, until `release`."""
        ...

    async def admit(self, request_id: str, request: Request, price: Price | None) -> bool:
        """Whether the budget has room for a request, now or once others are settled.

        Raises:
            LanguageModelError: the budget is in US dollars, and the price of the model is not known.
        """
        ...

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Hold the place of one request under way."""
        ...

    async def keep(self, received: Received) -> None:
        """Write a reply down, and return when it would survive a power cut."""
        ...

    def failed(self, request_id: str, *, run_id: str, reason: str, error: str, quiet: float) -> None:
        """An attempt brought no reply, and the endpoint asked for so many seconds of `quiet`."""
        ...

    def settled(self, request_id: str, *, usd: float | None, tokens: int | None) -> None:
        """A request came back, and cost this much; see `resources.budget`."""
        ...

    def release(self, request_id: str) -> None:
        """Let others send the request."""
        ...


class Desk:
    """The desk of one process, for one event loop."""

    def __init__(self, journal: Journal, *, lake: Lake, budget: Budget, pace: Pace) -> None:
        self._journal = journal
        self._lake = lake
        self._budget = budget
        self._pace = pace
        self._waiting: list[tuple[Received, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def kept(self, request_ids: Sequence[str]) -> tuple[int, list[Kept]]:
        # The count comes first: a flush between the two makes whoever asks look again, and not miss a reply.
        return self._journal.flushes(), kept(self._lake, request_ids)

    async def claim(self, request_id: str) -> Claimed:
        if not self._journal.claim(request_id):
            return Claimed(mine=False)
        received, flushes = self._journal.look(request_id)
        return Claimed(mine=True, received=received, flushes=flushes, failures=self._journal.failures(request_id))

    async def admit(self, request_id: str, request: Request, price: Price | None) -> bool:
        while not self._budget.admit(request_id, request, price):
            if self._budget.is_used_up:
                return False
            await asyncio.sleep(0.02)
        return True

    def turn(self) -> AbstractAsyncContextManager[None]:
        return self._pace.one()

    async def keep(self, received: Received) -> None:
        # The disk takes as long for many replies as for one, so those that come while it is busy are written together.
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((received, written))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        await written
        self._pace.faster()

    async def _write(self) -> None:
        while self._waiting:
            now, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._journal.keep, *(received for received, _ in now))
            except Exception as error:  # noqa: BLE001 - whoever waits gets it
                for _, written in now:
                    if not written.done():
                        written.set_exception(error)
            else:
                for _, written in now:
                    if not written.done():
                        written.set_result(None)
        self._writing = None

    def close(self) -> None:
        """Write down what came and is not yet written: the call was stopped meanwhile."""
        if self._waiting:
            self._journal.keep(*(received for received, _ in self._waiting))

    def failed(self, request_id: str, *, run_id: str, reason: str, error: str, quiet: float) -> None:
        self._pace.quiet(quiet)
        # A server with too much to do at once says so by being late.
        if reason in {"rate_limited", "timeout"}:
            self._pace.slower()
        if reason == "timeout":
            self._budget.lost(request_id)
        self._journal.log_failure(request_id, run_id=run_id, reason=reason, error=error)

    def settled(self, request_id: str, *, usd: float | None, tokens: int | None) -> None:
        self._budget.settled(request_id, usd=usd, tokens=tokens)

    def release(self, request_id: str) -> None:
        self._journal.release(request_id)


class Keeper:
    """The desk of several machines, made to be an actor with coroutines, on the machine where the journal is.

    Whoever asks says which piece of work it is of; if that is lost, so are its claims, its place under way and, since it may
    have been charged, the most that its requests can cost.
    """

    def __init__(self, journal: Path, lake: str, budget: Budget, most: int) -> None:
        self._where = journal, lake
        self._budget = replace(budget, _held={})
        self._most = most
        self._claims: dict[str, str] = {}
        self._turns: dict[str, int] = {}
        self._gone: set[str] = set()
        self._unusable: str | None = None

    # Made by the first question, because a database belongs to the thread that opened it, and coroutines have their own.
    @cached_property
    def _pace(self) -> Pace:
        return Pace(self._most)

    @cached_property
    def _desk(self) -> Desk:
        lake = DeltaLake(self._where[1])
        return Desk(Journal(self._where[0]), lake=lake, budget=self._budget, pace=self._pace)

    async def kept(self, request_ids: Sequence[str]) -> tuple[int, list[Kept]]:
        return await self._desk.kept(request_ids)

    async def claim(self, piece: str, request_id: str) -> Claimed:
        if self._unusable is not None:
            return Claimed(mine=False, unusable=self._unusable)
        if self._claims.get(request_id, piece) != piece:
            return Claimed(mine=False)
        found = await self._desk.claim(request_id)
        if found.mine:
            self._claims[request_id] = piece
        return found

    async def admit(self, request_id: str, request: Request, price: Price | None) -> bool:
        return await self._desk.admit(request_id, request, price)

    async def enter(self, piece: str) -> None:
        await self._pace.enter()
        self._turns[piece] = self._turns.get(piece, 0) + 1
        if piece in self._gone:
            await self.leave(piece)

    async def leave(self, piece: str) -> None:
        if self._turns.get(piece, 0):
            self._turns[piece] -= 1
            await self._pace.leave()

    async def keep(self, received: Received) -> None:
        await self._desk.keep(received)

    async def failed(self, request_id: str, *, run_id: str, reason: str, error: str, quiet: float) -> None:
        self._desk.failed(request_id, run_id=run_id, reason=reason, error=error, quiet=quiet)

    async def settled(self, request_id: str, *, usd: float | None, tokens: int | None) -> None:
        self._desk.settled(request_id, usd=usd, tokens=tokens)

    async def release(self, request_id: str) -> None:
        self._claims.pop(request_id, None)
        self._desk.release(request_id)

    async def lost(self, piece: str) -> None:
        """Whoever worked on this piece is gone."""
        self._gone.add(piece)
        for request_id in [name for name, owner in self._claims.items() if owner == piece]:
            self._budget.settled(request_id)
            await self.release(request_id)
        for _ in range(self._turns.get(piece, 0)):
            await self.leave(piece)

    async def stop(self, why: str) -> None:
        """Let nothing more be sent. What is under way still ends, as it may be paid for."""
        self._unusable = why

    async def spent(self) -> Budget:
        """What was spent of the budget so far."""
        return replace(self._budget, _held={})


class FarDesk:
    """The desk that a `Keeper` holds elsewhere. `actor` is its handle, `piece` the work for which requests are sent."""

    def __init__(self, actor: Any, piece: str) -> None:
        self._actor = actor
        self._piece = piece

    async def kept(self, request_ids: Sequence[str]) -> tuple[int, list[Kept]]:
        found: tuple[int, list[Kept]] = await self._actor.kept.remote(request_ids)
        return found

    async def claim(self, request_id: str) -> Claimed:
        found: Claimed = await self._actor.claim.remote(self._piece, request_id)
        return found

    async def admit(self, request_id: str, request: Request, price: Price | None) -> bool:
        return bool(await self._actor.admit.remote(request_id, request, price))

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        await self._actor.enter.remote(self._piece)
        try:
            yield
        finally:
            self._actor.leave.remote(self._piece)

    async def keep(self, received: Received) -> None:
        await self._actor.keep.remote(received)

    def failed(self, request_id: str, *, run_id: str, reason: str, error: str, quiet: float) -> None:
        self._actor.failed.remote(request_id, run_id=run_id, reason=reason, error=error, quiet=quiet)

    def settled(self, request_id: str, *, usd: float | None, tokens: int | None) -> None:
        self._actor.settled.remote(request_id, usd=usd, tokens=tokens)

    def release(self, request_id: str) -> None:
        self._actor.release.remote(request_id)


def kept(lake: Lake, request_ids: Sequence[str]) -> list[Kept]:
    """What a lake has of these requests. Reads their rows only."""
    rows = lake.find(
        "language_calls", pl.DataFrame({"request_id": list(request_ids)}, schema={"request_id": pl.String})
    )
    found: list[Kept] = (
        rows.select("request_id", "reply", "missing_because", "model_served", "logprobs").collect().rows()
    )
    return found
