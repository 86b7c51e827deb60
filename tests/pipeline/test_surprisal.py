"""Surprisal: the same prompt but for the description, losses in nats over a text's own tokens, and a reason for none."""

import math

import polars as pl
import pytest

from pipeline.ports import Likely, Reply
from pipeline.surprisal import gain, loss, requests, rows
from pipeline.tables import TABLES
from pipeline.testing import scripted

SAID = pl.DataFrame(
    [
        {"layer": 0, "neuron": neuron, "polarity": "+", "explanation_id": f"e{neuron}", "explainer": explainer,
         "text": 'the\nword "red"', "missing_because": None, "identity": f"sha256:e{neuron}"}
        for neuron, explainer in ((0, "m"), (1, "m"), (2, "none"))
    ]
)  # fmt: skip
JUDGED = pl.DataFrame(
    [
        {"layer": 0, "neuron": neuron, "polarity": "+", "active": active, "sequence_id": name, "stratum": "top",
         "scaled": [1.0], "identity": f"sha256:{name}"}
        for neuron in range(3) for name, active in (("a", True), ("b", False))
    ]
)  # fmt: skip
TEXTS = {"a": [" a", " red", " car"], "b": [" nothing", " here"]}


def asked():
    return requests(SAID, JUDGED, TEXTS, model="m", seed=0)


def told(*logprobs, request_id="r"):
    likely = tuple(Likely(f"t{place}", ((f"t{place}", one),)) for place, one in enumerate(logprobs))
    return Reply(request_id, "", None, likely=likely)


def test_prompts_differ_in_the_description_alone():
    found = asked()
    prompts = [request.messages[0][1] for request in found.requests]
    assert prompts[:2] == [
        "Description: no particular kind of text\nA text that fits this description:\n a red car",
        'Description: the word "red"\nA text that fits this description:\n a red car',
    ]
    assert [request.messages[0][1][request.told_from :] for request in found.requests] == [
        " a red car", " a red car", " nothing here", " nothing here",
    ]  # fmt: skip
    # Neurons share what does not depend on them.
    assert len(found.pairs) == 4
    assert {request.json_reply for request in found.requests} == {False}


def test_the_loss_is_that_of_the_tokens_themselves():
    assert loss(told(-1.0, -0.5)) == (1.5, 2)
    rival = Reply("r", "", None, likely=(Likely("a", (("b", -0.1), ("a", -3.0))),))
    assert loss(rival) == (3.0, 1)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("r", None, "timeout"), "timeout"),
        (Reply("r", "x", None), "no_probabilities"),
        (Reply("r", "x", None, likely=()), "no_probabilities"),
        (Reply("r", "x", None, likely=(Likely("a", (("b", -0.1),)),)), "no_probabilities"),
    ],
)
def test_a_loss_that_is_not_known_has_a_reason(reply, reason):
    assert loss(reply) == reason


def test_the_gain_is_in_nats_per_token():
    assert gain((2.0, 4), (6.0, 4)) == (1.0, None)
    assert gain("no_probabilities", "timeout") == (None, "timeout")
    assert gain((2.0, 4), "no_probabilities") == (None, "no_probabilities")


def test_rows_fit_the_table_and_name_both_requests():
    replies = [
        told(-2.0, -2.0, request_id="u"),
        told(-1.0, -1.0, request_id="t"),
        told(-1.0),
        Reply("x", None, "refused"),
    ]
    made = rows(asked(), replies, SAID, model="m").filter(explanation_id="e0")
    TABLES["judgements"].conform(made.with_columns(run_id=pl.lit("r")))
    assert made.select("value", "missing_because", "fits").rows() == [(1.0, None, True), (None, "refused", False)]
    assert made.select("request_id", pl.col("other_request_ids").list.first()).row(0) == ("t", "u")


def test_the_scripted_model_holds_named_words_likelier():
    found = asked()
    replies, _ = scripted().answer(found.requests, run_id="r")
    made = rows(found, replies, SAID, model="scripted")
    assert made["value"].to_list()[:2] == pytest.approx([math.log(9) / 3, 0])
