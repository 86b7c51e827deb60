"""Rounds: requests that are made from the replies to earlier ones, known before they are sent.

A way to explain that takes several rounds is a generator. It gives what to ask of the language model, or to run through
the subject, is sent the outcome, and ends with its rows. Whoever drives it decides where replies come from: a step asks
the language model, a plan looks at what is kept.
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Listening:
    """Texts to run through the subject, to hear what one neuron does on each."""

    texts: Sequence[tuple[int, str]]
    """(neuron of the layer, text)."""


Heard = Sequence[tuple[str, float]]
"""(token as text, activation in units of the neuron) in reading order; empty where the subject cannot read the text."""

Rounds = Generator[Round | Listening, Any, pl.DataFrame]
"""Is sent a `Reply` for each request of a `Round`, and what was `Heard` for each text of a `Listening`."""


def driven(
    rounds: Rounds, answer: Callable[[Round], Sequence[Reply]], listen: Callable[[Listening], Sequence[Heard]]
) -> pl.DataFrame:
    """The rows with which the rounds end; `answer` gives a reply for each request, `listen` what was heard of each text."""
    try:
        asked = next(rounds)
        while True:
            asked = rounds.send(answer(asked) if isinstance(asked, Round) else listen(asked))
    except StopIteration as end:
        rows: pl.DataFrame = end.value
        return rows


def usual(request: Request) -> str:
    """An explanation of the usual length. No two requests get the same words, for then these would be simulated once."""
    question = request.messages[-1][1].encode("utf-8", errors="replace")
    return f"{USUAL}, {hashlib.sha256(question).hexdigest()[:8]}"
