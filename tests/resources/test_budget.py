"""Budget: never passed, whatever comes back and in whatever order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import LanguageModelError
from pipeline.ports import Request
from resources.budget import Budget, most_prompt_tokens
from resources.prices import Price

PRICE = Price(1.0, 0.5, 2.0)


def request(text="hello", most=100):
    return Request(model="m", messages=(("user", text),), temperature=0.0, max_tokens=most, seed=0)


def test_no_limit_admits_everything_and_needs_no_price():
    assert all(Budget().admit(str(place), request(), None) for place in range(100))


def test_a_limit_in_dollars_needs_a_price():
    with pytest.raises(LanguageModelError, match="the price of `m` is not known, so a budget of \\$5 cannot be kept"):
        Budget(usd=5).admit("a", request(), None)


def test_what_is_under_way_counts_at_the_most_until_it_is_settled():
    most = most_prompt_tokens(request()) + 100
    budget = Budget(tokens=most + 50)
    assert budget.admit("a", request(), None)
    budget.settled("a", tokens=20)
    assert budget.admit("b", request(), None)
    assert not budget.admit("c", request(), None)
    # It may fit later.
    assert not budget.is_used_up
    budget.settled("b", tokens=30)
    assert budget.admit("c", request(), None)
    budget.settled("c", tokens=most)
    assert not budget.admit("d", request(), None)
    assert budget.is_used_up


def test_nothing_is_admitted_after_what_did_not_fit():
    budget = Budget(tokens=100)
    assert not budget.admit("a", request(most=1_000), None)
    assert not budget.admit("b", request("", most=1), None)


def test_a_reply_without_a_count_and_an_attempt_without_a_reply_count_at_the_most():
    budget = Budget(usd=1.0)
    assert budget.admit("a", request(), PRICE)
    budget.lost("a")
    budget.settled("a")
    most = PRICE.cost(prompt=most_prompt_tokens(request()), completion=100)
    assert budget.spent_usd == pytest.approx(2 * most)


@given(
    limit=st.integers(0, 3_000),
    asked=st.lists(st.tuples(st.text(max_size=30), st.integers(1, 300), st.floats(0, 1)), max_size=40),
    at_once=st.integers(1, 8),
)
def test_a_budget_is_never_passed(limit, asked, at_once):
    budget, price = Budget(usd=limit / 1e6, tokens=limit), Price(1.0, 1.0, 1.0)
    under_way = []
    for place, (text, most, share) in enumerate(asked):
        if len(under_way) == at_once:
            name, used = under_way.pop(0)
            budget.settled(name, usd=used / 1e6, tokens=used)
        one = request(text, most)
        if budget.admit(str(place), one, price):
            under_way.append((str(place), int(share * (most_prompt_tokens(one) + most))))
    for name, used in under_way:
        budget.settled(name, usd=used / 1e6, tokens=used)
    assert budget.spent_tokens <= limit
    assert budget.spent_usd <= limit / 1e6 + 1e-12
