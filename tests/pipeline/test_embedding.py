"""Embedding: each text asked for once, the cosine of two vectors, and a reason wherever there is none."""

import json

import numpy as np
import polars as pl
import pytest

from pipeline.embedding import nearness, requests, rows, vector
from pipeline.ports import Reply
from pipeline.tables import TABLES
from pipeline.testing import scripted

SAID = pl.DataFrame(
    [
        {"layer": 0, "neuron": neuron, "polarity": "+", "explanation_id": f"e{neuron}", "explainer": explainer,
         "text": text, "missing_because": None if text else "refused", "identity": f"sha256:e{neuron}"}
        for neuron, explainer, text in ((0, "m", "red things"), (1, "m", "red things"), (2, "m", None), (3, "none", "x"))
    ]
)  # fmt: skip
JUDGED = pl.DataFrame(
    [
        {"layer": 0, "neuron": neuron, "polarity": "+", "active": active, "sequence_id": name, "stratum": "top",
         "scaled": [1.0], "identity": f"sha256:{name}"}
        for neuron in range(4) for name, active in (("a", True), ("b", False))
    ]
)  # fmt: skip
TEXTS = {"a": ["a red", " car"], "b": ["nothing", " here"]}


def asked():
    return requests(SAID, JUDGED, TEXTS, model="m")


def test_a_text_that_several_explanations_share_is_asked_for_once():
    found = asked()
    words = [request.messages[0][1] for request in found.requests]
    assert words == [words[0], "a red car", "nothing here"]
    assert words[0].endswith("\nQuery: red things")
    assert [(pair.explanation_id, pair.item.fits) for pair in found.pairs] == [
        ("e0", True), ("e0", False), ("e1", True), ("e1", False),
    ]  # fmt: skip
    assert {request.messages[0][0] for request in found.requests} == {"embed"}


def test_values_are_cosines_and_rows_fit_the_table():
    found = asked()
    replies = [Reply(f"r{place}", json.dumps(one), None) for place, one in enumerate(([1, 0], [1, 1], [-2, 0]))]
    made = rows(found, replies, SAID, model="m")
    TABLES["judgements"].conform(made.with_columns(run_id=pl.lit("r")))
    assert made["value"].to_list() == pytest.approx([2**-0.5, -1, 2**-0.5, -1])
    assert made.select("request_id", pl.col("other_request_ids").list.first()).rows()[:2] == [
        ("r1", "r0"),
        ("r2", "r0"),
    ]
    assert made["identity"].n_unique() == 4


def test_what_failed_has_its_reason_and_what_may_come_goes_first():
    replies = [Reply("q", None, "timeout"), Reply("a", None, "unparsable"), Reply("b", "[1, 0]", None)]
    made = rows(asked(), replies, SAID, model="m").filter(explanation_id="e0")
    assert made["missing_because"].to_list() == ["timeout", "timeout"]


@pytest.mark.parametrize("text", ["[]", "{}", "[1, true]", '["1"]', "[1, NaN]", "1", "[[1]]", "", "[" * 100_000])
def test_what_is_no_vector_is_not_taken_for_one(text):
    assert vector(Reply("r", text, None)) == "unparsable"


def test_vectors_without_an_angle_have_none():
    one, none = np.array([1.0, 0.0]), np.zeros(2)
    assert nearness(one, none) == (None, "unparsable")
    assert nearness(one, np.ones(3)) == (None, "wrong_length")
    assert nearness(one, one * 1e-300)[0] == pytest.approx(1)


def test_the_scripted_model_finds_shared_words_nearer():
    found = asked()
    replies, _ = scripted().answer(found.requests, run_id="r")
    made = rows(found, replies, SAID, model="scripted")
    active, quiet = made["value"][0], made["value"][1]
    assert active > quiet
