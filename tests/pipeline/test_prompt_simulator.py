"""The simulators that complete a prompt: what stands where, whatever the tokens hold, and what cannot be known."""

import math
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ports import Likely, Reply
from pipeline.prompt_simulator import (
    PROMPT_HASHES,
    parse_at_once,
    parse_by_token,
    requests_at_once,
    requests_by_token,
)
from pipeline.scripted_tokens import pieces, tokens
from pipeline.testing import left_out, likely_of, scripted
from resources import logprobs

GOLDEN = Path(__file__).parents[1] / "golden"

AWKWARD = [
    "The",
    " cat",
    "\t",
    "\n",
    "�",
    " naïve",
    "<|endoftext|>",
    '"',
    "?",
    "unbelievably",
    " 10",
    "\t10\n",
    "1",
    "",
]


def explained(text):
    row = {"layer": 0, "neuron": 1, "polarity": "+", "explanation_id": "e", "text": text}
    return pl.DataFrame([row])


def hidden(n_tokens):
    row = {"layer": 0, "neuron": 1, "polarity": "+", "exemplar_id": "x", "sequence_id": "s", "split": "score"}
    return pl.DataFrame([row | {"token_ids": list(range(n_tokens))}])


def asked_at_once(explanation, texts):
    ((_, request),) = requests_at_once(explained(explanation), hidden(len(texts)), {"s": texts}, model="m", seed=0)
    return request


def asked_by_token(explanation, texts):
    some = requests_by_token(explained(explanation), hidden(len(texts)), {"s": texts}, model="m", seed=0)
    return [request for _, request in some]


TEXTS = st.lists(st.text(st.characters(exclude_categories=()), max_size=6), min_size=1, max_size=6)


@given(st.text(min_size=1), TEXTS)
def test_the_places_are_those_of_what_is_left_out_whatever_the_tokens_hold(explanation, texts):
    request = asked_at_once(explanation, texts)
    ((role, prompt),) = request.messages
    ten, *places = request.echo
    assert role == "prompt"
    assert prompt.isascii()
    assert prompt[ten - 1 : ten + 3] == "\t10\n"
    assert len(places) == len(texts)
    assert all(prompt[place - 1 :].startswith("\t?") for place in places)
    assert prompt[places[-1] :] == "?"
    assert places == sorted(set(places))


@given(TEXTS)
def test_one_at_a_time_asks_for_the_same_places_of_the_same_prompt(texts):
    whole = asked_at_once("cats", texts)
    single = asked_by_token("cats", texts)
    assert [request.messages[0][1] for request in single] == [whole.messages[0][1][:place] for place in whole.echo[1:]]
    assert {(request.max_tokens, request.echo) for request in single} == {(2, ())}


def test_tokens_that_the_simulator_cuts_otherwise_are_predicted_one_by_one():
    request = replace(asked_at_once('the words "cat", "naïve"', AWKWARD), model="scripted")
    ((reply,), _) = scripted().answer([request], run_id="r")
    found = parse_at_once(reply, len(AWKWARD))
    assert found.coverage == 1.0
    assert [round(value) for value in found.expected] == [0, 10, 0, 0, 0, 10, *[0] * 8]
    replies, _ = scripted().answer(asked_by_token('the words "cat", "naïve"', AWKWARD), run_id="r")
    assert parse_by_token(replies) == found


@pytest.mark.parametrize("beginning", ["", "<s>"])
def test_the_endpoint_may_put_a_token_of_its_own_before_the_prompt(beginning):
    request = asked_at_once("every token", [" a", " b"])
    prompt = request.messages[0][1]
    made = (*((Likely(beginning, ()),) if beginning else ()), *likely_of(tokens(prompt, values=left_out(prompt))))
    found = parse_at_once(Reply("", "", None, likely=logprobs.at_places(made, prompt, request.echo)), 2)
    assert found.expected == pytest.approx([9.8, 9.8])


def test_an_echo_that_is_not_the_prompt_says_nothing():
    request = asked_at_once("every token", [" a"])
    prompt = request.messages[0][1]
    made = likely_of(tokens(prompt.replace(" a", " b")))
    likely = logprobs.at_places(made, prompt, request.echo)
    assert parse_at_once(Reply("", "", None, likely=likely), 1).missing_because == "no_probabilities"


def test_a_model_without_a_token_for_ten_cannot_simulate_all_at_once_but_one_at_a_time():
    texts = [" a", " b"]
    request = asked_at_once("every token", texts)
    prompt = request.messages[0][1]
    made = likely_of(tokens(prompt, digits=1, values=left_out(prompt)))
    likely = logprobs.at_places(made, prompt, request.echo)
    assert parse_at_once(Reply("", "", None, likely=likely), 2).missing_because == "no_probabilities"
    replies = [Reply("", "10\n", None, likely=likely_of(tokens("10\n", digits=1)[:2])) for _ in texts]
    assert parse_by_token(replies).expected == pytest.approx([9.8, 9.8])


def test_on_the_scale_from_0_to_9_no_number_has_to_be_told_from_another():
    texts = [" a", " b"]
    table = explained("every token"), hidden(2), {"s": texts}
    ((_, request),) = requests_at_once(*table, model="m", seed=0, most=9)
    prompt = request.messages[0][1]
    assert "\t10\n" not in prompt
    assert [prompt[place] for place in request.echo] == ["?", "?"]
    made = likely_of(tokens(prompt, digits=1, values=left_out(prompt)))
    found = parse_at_once(Reply("", "", None, likely=logprobs.at_places(made, prompt, request.echo)), 2, most=9)
    # The scripted neighbour 10 of a 9 is a 1 and a 0 here, and the 1 is not the 9's neighbour: nothing is made of it.
    assert all(value <= 9 for one in found.distributions for value in one.values)
    asked = [one for _, one in requests_by_token(*table, model="m", seed=0, most=9)]
    assert [(one.messages[0][1], one.max_tokens) for one in asked] == [(prompt[:place], 1) for place in request.echo]
    nine = Reply("", "9", None, likely=(Likely("9", (("9", math.log(0.5)), ("1", math.log(0.5)), ("10", -1))),))
    assert parse_by_token([nine], most=9).expected == pytest.approx([5.0])


def test_one_at_a_time_a_1_that_was_only_likely_may_have_been_a_10():
    nine = Reply("", "9\n", None, likely=(Likely("9", (("9", math.log(0.6)), ("1", math.log(0.4)))), Likely("\n", ())))
    assert parse_by_token([nine]).expected == [9.0]
    # That a 10 is one token is seen where it was likely; then a 1 is a 1.
    ten = Reply("", "10\n", None, likely=(Likely("10", (("10", -0.1),)), Likely("\n", ())))
    assert parse_by_token([nine, ten]).expected == pytest.approx([5.8, 10.0])


def test_a_place_where_no_token_begins_is_not_known_and_the_others_are():
    ten, number = Likely("10", (("10", -0.1),)), Likely("?", (("7", -0.1),))
    found = parse_at_once(Reply("", "", None, likely=(ten, number, Likely("", ()))), 2)
    assert (found.expected, found.coverage) == ([7.0, None], 0.5)


def test_a_reply_that_is_missing_makes_the_excerpt_missing_for_its_reason():
    good = Reply("", "7", None, likely=(Likely("7", (("7", -0.1),)),))
    found = parse_by_token([good, Reply("", None, "timeout")])
    assert (found.expected, found.missing_because) == (None, "timeout")
    assert parse_by_token([good, Reply("", "7", None)]).coverage == 0.5
    assert parse_by_token([Reply("", "7", None)]).missing_because == "no_probabilities"


def test_a_whole_prompt_reads_like_this():
    request = asked_at_once("names of cats", ["The", " cat", "<|endoftext|>", "\n", "é"])
    assert request.messages[0][1] + "\n" == (GOLDEN / "simulate_prompt.txt").read_text(encoding="utf-8")


def test_the_scripted_tokens_cut_the_prompt_as_awkwardly_as_real_ones():
    prompt = asked_at_once("x", AWKWARD).messages[0][1]
    assert b"?\n" in pieces(prompt)
    assert len(set(PROMPT_HASHES.values())) == len(PROMPT_HASHES) == 4
