"""Rounds: requests that are made from the replies to earlier ones, known before they are sent.

A way to explain that takes several rounds is a generator. It gives what to ask, is sent the replies, and ends with its
rows. Whoever drives it decides where replies come from: a step asks the language model, a plan looks at what is kept.
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import polars as pl

from pipeline.ports import Reply, Request

USUAL = "words that refer to a usual topic, such as names of places or of people, in any text"
"""Stands in for an explanation that is not written yet."""


@dataclass(frozen=True)
class Round:
    """What to ask together."""

    requests: Sequence[Request]
    usual: Sequence[str] | None = None
    """For each request a reply of the usual form and length, to plan with; None where no later round depends on it."""


Rounds = Generator[Round, Sequence[Reply], pl.DataFrame]


def driven(rounds: Rounds, answer: Callable[[Round], Sequence[Reply]]) -> pl.DataFrame:
    """The rows with which the rounds end; `answer` gives one reply for each request of a round."""
    try:
        asked = next(rounds)
        while True:
            asked = rounds.send(answer(asked))
    except StopIteration as end:
        rows: pl.DataFrame = end.value
        return rows


def usual(request: Request) -> str:
    """An explanation of the usual length. No two requests get the same words, for then these would be simulated once."""
    question = request.messages[-1][1].encode("utf-8", errors="replace")
    return f"{USUAL}, {hashlib.sha256(question).hexdigest()[:8]}"
