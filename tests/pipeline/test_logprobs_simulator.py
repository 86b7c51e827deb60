"""The simulator with probabilities: numbers and what was likely meet by where they stand."""

import json
import math

import pytest

from pipeline.logprobs_simulator import parse
from pipeline.ports import Likely, Reply
from pipeline.scripted_tokens import tokens
from pipeline.testing import likely_of


def said(text, likely):
    return Reply("sha256:0", text, None, likely=likely)


def wrote(pairs, *, digits=3, spaced=False):
    text = json.dumps({"activations": pairs}, separators=None if spaced else (",", ":"))
    return said(text, likely_of(tokens(text, digits=digits)))


PAIRS = [[index, value] for index, value in enumerate([0, 10, 1, 7, 0, 0, 0, 0, 0, 0, 3, 10])]


@pytest.mark.parametrize("spaced", [False, True])
def test_each_token_has_the_mean_of_what_was_likely(spaced):
    found = parse(wrote(PAIRS, spaced=spaced), 12)
    expected = [0.2, 9.8, 1, 7, *[0.2] * 6, 3, 9.8]
    assert (found.missing_because, found.coverage) == (None, 1.0)
    assert found.expected == pytest.approx(expected)
    assert found.distributions[3].values == (7.0, 6.0, 8.0)


def test_where_digits_stand_alone_ten_is_not_taken_for_one():
    found = parse(wrote(PAIRS, digits=1), 12)
    assert found.expected[1] == found.expected[11] == pytest.approx(9.8)
    assert found.expected[3] == pytest.approx(7)
    # That a 1 was likely in the place of the 0 may have meant 10: it is left out.
    assert found.expected[0] == pytest.approx(0)


def test_on_the_scale_from_0_to_9_a_1_is_a_1_however_digits_are_cut():
    pairs = [[index, min(value, 9)] for index, value in PAIRS]
    text = json.dumps({"activations": pairs}, separators=(",", ":"))
    found = parse(wrote(pairs, digits=1), 12, most=9)
    assert found.expected == pytest.approx(parse(said(text, likely_of(tokens(text))), 12, most=9).expected, abs=1)
    assert found.expected[0] == pytest.approx(0.2)
    # A 10 is no number of this scale.
    assert parse(wrote(PAIRS, digits=1), 12, most=9).expected[1] is None


def test_a_space_within_the_token_of_a_number_changes_nothing():
    text = '{"activations": [[0, 7]]}'
    at = text.index(" 7")
    number = Likely(" 7", ((" 7", math.log(0.5)), (" 9", math.log(0.5))))
    found = parse(said(text, (Likely(text[:at], ()), number, Likely("]]}", ()))), 1)
    assert found.expected == pytest.approx([8])


def test_a_number_whose_token_holds_more_is_not_known_and_the_others_are():
    text = '{"activations":[[0,7],[1,3]]}'
    at, then = text.index("7"), text.index("3")
    pieces = (
        Likely(text[:at], ()),
        Likely("7]", (("7]", -0.1), ("3", -0.5))),
        Likely(text[at + 2 : then], ()),
        Likely("3", (("3", -0.1),)),
        Likely("]]}", ()),
    )
    found = parse(said(text, pieces), 2)
    assert (found.expected, found.coverage, found.missing_because) == ([None, 3.0], 0.5, None)


@pytest.mark.parametrize("likely", [None, (), (Likely("{", ()),)])
def test_without_probabilities_that_fit_the_reply_nothing_is_made_up(likely):
    found = parse(said('{"activations":[[0,7]]}', likely), 1)
    assert (found.expected, found.missing_because) == (None, "no_probabilities")


def test_a_reply_in_another_form_has_the_reason_of_the_simulator_without_probabilities():
    assert parse(said("no", ()), 1).missing_because == "unparsable"
    assert parse(Reply("sha256:0", None, "refused"), 1).missing_because == "refused"
