"""The simulator for chat endpoints that give probabilities: what it expects, not only what it writes down.

It asks what `pipeline.json_simulator` asks, and for the likely tokens in the place of each number. The activation of a
token is the mean over the numbers that were likely there (`pipeline.digits`), so a simulator that wavers between 2 and 8
says 5 with its doubt beside it. Numbers and probabilities meet by where they stand in the reply, and where a number is
not whole, or begins inside a token in another way than its rivals, nothing is known of that token.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import polars as pl

from pipeline import json_simulator
from pipeline.digits import Distribution, distribution
from pipeline.json_simulator import Simulated, missing, of_distributions
from pipeline.ports import Likely, Reply, Request
from pipeline.provenance import content_hash

LIKELY = 20
"""Likely tokens to ask for in each place, the most that OpenAI gives; there are eleven numbers."""

PROMPT_HASH = content_hash(["json-logprobs", json_simulator.PROMPT_HASH])
"""Of every file that a request of this simulator is made from, and of its name."""
DIGITS_PROMPT_HASH = content_hash(["json-logprobs-9", json_simulator.DIGITS_PROMPT_HASH])
"""The same on the scale from 0 to 9."""


def requests(
    explanations: pl.DataFrame,
    exemplars: pl.DataFrame,
    tokens: Mapping[str, Sequence[str]],
    *,
    model: str,
    seed: int,
    most: int = 10,
) -> Iterator[tuple[tuple[str, str], Request]]:
    """Those of `pipeline.json_simulator`, with the likely tokens asked for."""
    for keys, request in json_simulator.requests(explanations, exemplars, tokens, model=model, seed=seed, most=most):
        yield keys, replace(request, logprobs=LIKELY)


def parse(reply: Reply, n_tokens: int, *, most: int = 10) -> Simulated:
    """What is expected at each of the `n_tokens` tokens, or nothing and the reason.

    As in `pipeline.json_simulator.parse`, and `no_probabilities` where none came, or none that fit the reply.
    """
    written = json_simulator.parse(reply, n_tokens, most=most)
    if written.expected is None or reply.text is None:
        return written
    if reply.likely is None or "".join(one.token for one in reply.likely) != reply.text:
        return missing("no_probabilities")
    starts = list(accumulate((len(one.token) for one in reply.likely[:-1]), initial=0))
    pairs = list(re.finditer(r"\[\s*([0-9]+)\s*,\s*([0-9]+)\s*\]", reply.text))
    alone = most == 10 and _digits_stand_alone(pairs, starts)
    found: list[Distribution | None] = [None] * n_tokens
    for pair in pairs:
        index = int(pair[1])
        if index < n_tokens and written.expected[index] == int(pair[2]):
            found[index] = _at(pair.start(2), pair.end(2), reply.likely, starts, alone=alone, most=most)
    return of_distributions(found)


def _at(
    start: int, end: int, likely: Sequence[Likely], starts: Sequence[int], *, alone: bool, most: int
) -> Distribution | None:
    """What is likely in the place of the number from `start` to `end`."""
    last = bisect_right(starts, start) - 1
    before = likely[last].token[: start - starts[last]]
    if starts[last] + len(likely[last].token) > end:
        return None
    following = likely[last + 1] if last + 1 < len(likely) else None
    return distribution(likely[last], following, before=before, alone=alone, most=most)


def _digits_stand_alone(pairs: Sequence["re.Match[str]"], starts: Sequence[int]) -> bool:
    """Whether a number of two digits is two tokens, in the numbers of the reply's tokens or its values."""
    begins = set(starts)
    spans = [pair.span(group) for pair in pairs for group in (1, 2)]
    return any(end - start == 2 and start + 1 in begins for start, end in spans)
