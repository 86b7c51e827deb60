"""Digits: from the likely tokens in the place of a number to a distribution over 0 to 10, and what to expect.

    E = sum(v p(v)) / sum(p(v))    over the tokens that are exactly 0, 1, ..., 10

(Bills et al. 2023, `simulator.py`: no smoothing, and nothing for what is not among the likely tokens.) Where we differ:
without any such token nothing is known, where that code expects 0; and many tokenizers have no token for 10, whose first
digit then looks like a 1. Where the second digit is known it tells them apart; where not, 1 and 10 are left out. On the
scale from 0 to 9 every number is one digit, and nothing has to be told apart.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.ports import Likely

NUMBERS = {str(value): value for value in range(11)}

DIGITS_ONLY = 9
"""The top of the scale that has no 10: 9 stands for nine tenths of the neuron's strongest, and all above."""


@dataclass(frozen=True)
class Distribution:
    """Values from 0 to 10 with their probabilities, which sum to 1; the likeliest first."""

    values: tuple[float, ...]
    probabilities: tuple[float, ...]

    @property
    def expected(self) -> float:
        """The mean."""
        mean = math.fsum(value * share for value, share in zip(self.values, self.probabilities, strict=True))
        return min(max(mean, 0.0), 10.0)


def distribution(
    here: Likely, following: Likely | None = None, *, before: str = "", alone: bool = False, most: int = 10
) -> Distribution | None:
    """What is likely where a number stands; None if no number is.

    `here` is the token in which the number begins, after the characters `before`. `alone` says that the tokenizer has
    no token for 10; then the token `following` it says how likely a 1 goes on to 10. Numbers above `most` are none.
    """
    chances: dict[int, float] = {}
    for text, logprob in here.tokens:
        value = NUMBERS.get(text.removeprefix(before)) if text.startswith(before) else None
        if value is not None and value <= most:
            chances[value] = chances.get(value, 0.0) + math.exp(logprob)
    if alone and 1 in chances:
        one = chances.pop(1)
        on = None if following is None or here.token != f"{before}1" else _goes_on(following)
        if on is not None:
            chances |= {value: share for value, share in ((1, one * (1 - on)), (10, one * on)) if share > 0}
    return _renormalised(chances)


def _goes_on(following: Likely) -> float | None:
    """How likely a 0 comes right after a 1."""
    if not following.tokens:
        return None
    return min(1.0, math.fsum(math.exp(logprob) for text, logprob in following.tokens if text.startswith("0")))


def _renormalised(chances: Mapping[int, float]) -> Distribution | None:
    whole = math.fsum(chances.values())
    if not whole > 0:
        return None
    ordered = sorted(chances.items(), key=lambda item: (-item[1], item[0]))
    return Distribution(tuple(float(value) for value, _ in ordered), tuple(share / whole for _, share in ordered))
