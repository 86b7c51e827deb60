"""Simulations of a language model: what is asked, and what becomes of each reply."""

import json

import polars as pl
import pytest

from pipeline import explanations as explainer
from pipeline.ports import Reply
from pipeline.scores import scores
from pipeline.simulations import requests, rows
from pipeline.tables import TABLES
from pipeline.texts import display


@pytest.fixture(scope="module")
def layer(some_corpus, truth, made):
    sequences = some_corpus(60)
    return made(sequences, truth(sequences), signed=True)


@pytest.fixture(scope="module")
def words(layer):
    """The baselines' explanations with those of a language model beside them."""
    asked = explainer.requests(layer.explanations, layer.exemplars, display(layer.sequences), model="m", seed=0)
    replies = [Reply(f"sha256:{place}", '{"explanation": "cats"}', None) for place in range(len(asked))]
    written = explainer.rows(asked, replies, layer.explanations, layer.exemplars, model="m")
    return pl.concat([layer.explanations.select(written.columns), written])


def made_of(layer, words, answer):
    """Rows for replies that `answer` writes from the neuron's own exemplar."""
    asked = requests(words, layer.exemplars, display(layer.sequences), model="s", seed=0)
    hidden = {row["exemplar_id"]: row for row in layer.exemplars.iter_rows(named=True)}
    replies = [answer(f"sha256:{place}", hidden[key[0][0][1]]) for place, (key, _) in enumerate(asked)]
    frame = rows(asked, replies, words, layer.exemplars, model="s")
    return TABLES["simulations"].conform(frame.with_columns(run_id=pl.lit("r")))


def knows(request_id, exemplar):
    """A simulator that knows the scaled activations."""
    pairs = [list(pair) for pair in enumerate(exemplar["scaled_activations"])]
    return Reply(request_id, json.dumps({"activations": pairs}), None)


def refuses(request_id, exemplar):
    return Reply(request_id, None, "refused")


def test_every_written_explanation_meets_every_scored_exemplar_of_its_side(layer, words):
    found = made_of(layer, words, knows)
    written = words.filter(pl.col("explainer") != "none").drop_nulls("text")
    scored = layer.exemplars.filter(pl.col("split") == "score")
    at = ["layer", "neuron", "polarity"]
    wanted = written.select(*at, "explanation_id").join(scored.select(*at, "exemplar_id"), on=at)
    columns = [*at, "explanation_id", "exemplar_id"]
    assert sorted(found.select(columns).rows()) == sorted(wanted.select(columns).rows())
    assert set(found["simulator"]) == {"s"}


def test_what_was_said_stands_beside_what_the_neuron_did(layer, words):
    hidden = {row["exemplar_id"]: row for row in layer.exemplars.iter_rows(named=True)}
    for row in made_of(layer, words, knows).iter_rows(named=True):
        exemplar = hidden[row["exemplar_id"]]
        sign = -1 if exemplar["polarity"] == "-" else 1
        assert row["true"] == [sign * x for x in exemplar["activations"]]
        assert row["expected"] == exemplar["scaled_activations"]
        assert (row["scale"], row["coverage"], row["stratum"], row["rank"]) == (
            "scaled", 1.0, exemplar["stratum"], exemplar["rank"],
        )  # fmt: skip


def test_a_simulator_that_knows_the_neuron_scores_well_on_both_sides(layer, words):
    frame = scores(made_of(layer, words, knows), words.filter(pl.col("explainer") != "none"), seed=0)
    main = frame.filter(pl.col("scorer") == "ev_correlation", pl.col("split") == "top_and_random").drop_nulls("value")
    assert set(main["polarity"]) == {"+", "-"}
    # The scale cuts off below zero, so that even full knowledge is not 1.
    assert main["value"].min() > 0.8


def test_a_reply_without_numbers_is_a_null_and_never_zeros(layer, words):
    found = made_of(layer, words, refuses)
    assert found["expected"].null_count() == len(found)
    assert set(found["missing_because"]) == {"refused"}
    assert set(found["coverage"]) == {0.0}
    assert found["true"].null_count() == 0


def test_a_missing_explanation_is_not_simulated(layer, words):
    silent = words.filter(pl.col("text").is_null())
    assert not silent.is_empty()
    assert requests(silent, layer.exemplars, display(layer.sequences), model="s", seed=0) == []
    assert rows([], [], silent, layer.exemplars, model="s").is_empty()


def test_the_identity_follows_the_answer_and_both_parents(layer, words):
    before = made_of(layer, words, knows)
    assert before["identity"].is_unique().all()
    assert made_of(layer, words, knows)["identity"].equals(before["identity"])
    reworded = words.with_columns(pl.concat_str("identity", pl.lit("x")).alias("identity"))
    for other in (made_of(layer, words, refuses), made_of(layer, reworded, knows)):
        assert not set(other["identity"]) & set(before["identity"])
