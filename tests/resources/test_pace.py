"""Pace: half as many at once after a refusal, one more for every round of replies."""

import asyncio

from resources.pace import Pace


def test_a_refusal_halves_the_limit_once_for_each_moment():
    pace = Pace(16)
    pace.slower()
    pace.slower()
    assert pace.limit == 8


def test_the_limit_never_falls_below_one_nor_rises_above_the_most():
    pace = Pace(2)
    for _ in range(5):
        pace._slowed_at = float("-inf")
        pace.slower()
    assert pace.limit == 1
    for _ in range(10):
        pace.faster()
    assert pace.limit == 2


def test_a_round_of_replies_raises_the_limit_by_one():
    pace = Pace(16)
    pace.slower()
    for _ in range(8):
        pace.faster()
    assert 8.9 < pace.limit < 9.1


def test_no_more_are_under_way_than_the_limit():
    most = 0

    async def all_of_them():
        nonlocal most
        pace, under_way = Pace(8), 0
        pace.slower()

        async def one():
            nonlocal most, under_way
            async with pace.one():
                under_way += 1
                most = max(most, under_way)
                await asyncio.sleep(0)
                under_way -= 1

        await asyncio.gather(*(one() for _ in range(40)))

    asyncio.run(all_of_them())
    assert most == 4
