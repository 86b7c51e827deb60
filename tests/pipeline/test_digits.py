"""Digits: what is expected is the mean over exact numbers, and nothing is known where no number is likely."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.digits import distribution
from pipeline.ports import Likely


def likely(token, **chances):
    """A token, and the probability of each text in its place (`_7` is the number 7)."""
    return Likely(token, tuple((text.removeprefix("_"), math.log(chance)) for text, chance in chances.items()))


def test_the_mean_is_over_exact_numbers_alone_and_their_probabilities_sum_to_one():
    found = distribution(Likely("7", (("7", math.log(0.4)), ("unknown", math.log(0.3)), ("3", math.log(0.1)), ("07", -2), (" 5", -2), ("11", -3))))  # fmt: skip
    assert found.values == (7.0, 3.0)
    assert found.probabilities == pytest.approx((0.8, 0.2))
    assert found.expected == pytest.approx(6.2)


@given(st.dictionaries(st.integers(0, 10), st.floats(-9, 0), min_size=1))
def test_it_agrees_with_the_formula_of_the_paper(logprobs):
    found = distribution(Likely("x", tuple((str(value), logprob) for value, logprob in logprobs.items())))
    weights = {value: math.exp(logprob) for value, logprob in logprobs.items()}
    mean = sum(value * weight for value, weight in weights.items()) / sum(weights.values())
    assert found.expected == pytest.approx(mean)
    assert sum(found.probabilities) == pytest.approx(1)


def test_without_a_number_nothing_is_known():
    assert distribution(likely("unknown", unknown=0.9)) is None
    assert distribution(Likely("", ())) is None


def test_a_space_that_belongs_to_the_token_is_no_part_of_the_number():
    found = distribution(Likely(" 7", ((" 7", math.log(0.5)), (" 3", math.log(0.5)), ("9", math.log(0.1)))), before=" ")
    assert sorted(found.values) == [3.0, 7.0]


def test_where_ten_is_two_tokens_the_second_tells_it_from_one():
    found = distribution(likely("1", _1=0.8, _0=0.2), likely("0", _0=0.75, end=0.25), alone=True)
    assert dict(zip(found.values, found.probabilities, strict=True)) == pytest.approx({10: 0.6, 1: 0.2, 0: 0.2})


def test_where_nobody_knows_whether_it_is_one_or_ten_it_is_neither():
    found = distribution(likely("0", _0=0.5, _1=0.3, _2=0.1), likely("]", end=1.0), alone=True)
    assert dict(zip(found.values, found.probabilities, strict=True)) == pytest.approx({0: 5 / 6, 2: 1 / 6})
    assert distribution(likely("1", _1=1.0), None, alone=True) is None
