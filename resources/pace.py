"""Pace: how many requests are under way at once, as many as the endpoint takes.

Additive increase, multiplicative decrease (Chiu and Jain 1989), as TCP does it: a reply raises the limit by its share
of one request, a refusal for coming too fast halves it. A second refusal within a second is of the same moment. An endpoint
that asks for quiet means all who ask it, not only the request that it refused.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

ONE_MOMENT = 1.0
"""Seconds within which refusals are answered once."""


class Pace:
    """At most `most` requests at once, fewer after refusals."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.limit = float(most)
        self._under_way = 0
        self._changed = asyncio.Condition()
        self._slowed_at = -ONE_MOMENT
        self._quiet_until = 0.0

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold the place of one request."""
        await self.enter()
        try:
            yield
        finally:
            await self.leave()

    async def enter(self) -> None:
        """Wait for the place of one request."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._under_way < int(self.limit))
            self._under_way += 1
        while (seconds := self._quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(seconds)

    async def leave(self) -> None:
        """Give it back."""
        async with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def quiet(self, seconds: float) -> None:
        """The endpoint asked to be left alone for so long."""
        self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)

    def faster(self) -> None:
        """A reply came."""
        self.limit = min(float(self._most), self.limit + 1 / self.limit)

    def slower(self) -> None:
        """The endpoint asked to slow down."""
        now = time.monotonic()
        if now - self._slowed_at >= ONE_MOMENT:
            self._slowed_at = now
            self.limit = max(1.0, self.limit / 2)
