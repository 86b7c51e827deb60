"""The desk of several machines: what a lost one held is free again, and what it had asked is not asked again."""

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from asking import questions

from resources.budget import Budget
from resources.delta import DeltaLake
from resources.desk import Desk, Keeper
from resources.journal import Journal, Received
from resources.pace import Pace

ONE, OTHER = "0.1", "1.1"


def reply(name: str) -> Received:
    return Received(
        request_id=name, endpoint="http://e/v1", model="m", request="{}", status=200, body=b"{}", seconds=1.0, attempts=1,
        answered_at="2026-01-02T03:04:05+00:00", run_id="r",
    )  # fmt: skip


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    return Keeper(tmp_path / "journal.sqlite", str(tmp_path / "lake"), Budget(tokens=2_000), most=2)


def within(seconds: float, work: Coroutine[Any, Any, Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(seconds):
            return await work

    return asyncio.run(limited())


def test_a_request_is_claimed_by_one_piece_until_that_is_lost(keeper: Keeper) -> None:
    async def work() -> None:
        assert (await keeper.claim(ONE, "a")).mine
        assert not (await keeper.claim(OTHER, "a")).mine
        await keeper.lost(ONE)
        assert (await keeper.claim(OTHER, "a")).mine

    within(20, work())


def test_a_reply_that_was_kept_before_a_machine_was_lost_is_there_for_the_next(keeper: Keeper) -> None:
    async def work() -> None:
        assert (await keeper.claim(ONE, "a")).received is None
        await keeper.keep(reply("a"))
        await keeper.lost(ONE)
        assert (await keeper.claim(OTHER, "a")).received == reply("a")

    within(20, work())


def test_places_under_way_are_those_of_all_pieces_and_come_back_from_a_lost_one(keeper: Keeper) -> None:
    async def work() -> None:
        await keeper.enter(ONE)
        await keeper.enter(ONE)
        waiting = asyncio.create_task(keeper.enter(OTHER))
        late = asyncio.create_task(keeper.enter(ONE))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await keeper.lost(ONE)
        await waiting
        await late
        # One that waited for a piece that is lost holds nothing.
        await keeper.enter(OTHER)

    within(20, work())


def test_an_endpoint_that_asks_one_piece_for_quiet_is_left_alone_by_all(keeper: Keeper) -> None:
    async def work() -> float:
        await keeper.enter(ONE)
        await keeper.failed("a", run_id="r", reason="rate_limited", error="slow down", quiet=0.3)
        await keeper.leave(ONE)
        begun = time.monotonic()
        await keeper.enter(OTHER)
        return time.monotonic() - begun

    assert within(20, work()) >= 0.25


def test_what_a_lost_machine_had_under_way_counts_at_the_most_that_it_can_cost(keeper: Keeper) -> None:
    async def work() -> None:
        (request,) = questions(0, 1)
        await keeper.claim(ONE, "a")
        assert await keeper.admit("a", request, None)
        await keeper.lost(ONE)
        spent = await keeper.spent()
        assert spent.spent_tokens > request.max_tokens

    within(20, work())


def test_once_stopped_nothing_more_is_sent(keeper: Keeper) -> None:
    async def work() -> None:
        await keeper.stop("the key was refused")
        claimed = await keeper.claim(ONE, "a")
        assert (claimed.mine, claimed.unusable) == (False, "the key was refused")

    within(20, work())


def test_replies_that_come_while_the_disk_is_busy_are_all_kept_even_if_the_call_is_stopped(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(40)]

    async def work(journal: Journal) -> None:
        desk = Desk(journal, lake=DeltaLake(tmp_path / "lake"), budget=Budget(), pace=Pace(40))
        keeping = [asyncio.create_task(desk.keep(reply(name))) for name in names]
        await keeping[0]
        for task in keeping[1:]:
            task.cancel()
        desk.close()

    with Journal(tmp_path / "journal.sqlite") as journal:
        within(20, work(journal))
        assert sorted(kept.request_id for kept in journal.pending(100)) == names
