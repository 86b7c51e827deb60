"""Explanations of a language model: who is asked about, and what becomes of each reply."""

import json
from collections import Counter

import polars as pl
import pytest

from pipeline.explanations import requests, rows
from pipeline.ports import Reply
from pipeline.tables import TABLES
from pipeline.texts import display
from pipeline.token_activation_pairs import METHOD, PROMPT_HASH

AT = ("layer", "neuron", "polarity")


@pytest.fixture(scope="module")
def layer(some_corpus, truth, made):
    sequences = some_corpus(60)
    return made(sequences, truth(sequences), signed=True)


def asked_of(layer):
    return requests(layer.explanations, layer.exemplars, display(layer.sequences), model="m", seed=0)


def replied(asked, text='{"explanation": "cats"}', missing_because=None):
    return [
        Reply(request_id=f"sha256:{place}", text=text, missing_because=missing_because) for place in range(len(asked))
    ]


def made_of(layer, asked, replies, exemplars=None):
    frame = rows(asked, replies, layer.explanations, layer.exemplars if exemplars is None else exemplars, model="m")
    return TABLES["explanations"].conform(frame.with_columns(run_id=pl.lit("r")))


def test_every_neuron_that_was_seen_firing_is_asked_about_once_on_each_side(layer):
    keys = [tuple(question.key) for question, _ in asked_of(layer)]
    alive = layer.explanations.filter(pl.col("method") == "token-lookup").drop_nulls("text")
    assert keys == alive.select(AT).sort(AT).rows()
    # Neuron 0 is above zero everywhere, neuron 1 never.
    assert {(3, 0, "-"), (3, 1, "+")} & set(keys) == set()
    assert len(keys) == 10


def test_each_neuron_has_one_row_and_a_silent_one_says_why(layer):
    asked = asked_of(layer)
    found = made_of(layer, asked, replied(asked))

    assert found.select(AT).is_unique().all()
    assert len(found) == 12
    assert set(found["text"].drop_nulls()) == {"cats"}
    silent = found.filter(pl.col("text").is_null()).sort(AT)
    lookup = layer.explanations.filter((pl.col("method") == "token-lookup") & pl.col("text").is_null()).sort(AT)
    assert silent.select("neuron", "polarity").rows() == [(0, "-"), (1, "+")]
    assert silent["missing_because"].to_list() == lookup["missing_because"].to_list()
    assert silent["request_id"].to_list() == [None, None]
    assert silent["exemplar_ids"].to_list() == [[], []]
    assert set(found["method"]) == {METHOD}
    assert set(found["prompt_hash"]) == {PROMPT_HASH}


def test_a_row_names_the_exemplars_that_its_request_showed_and_no_other(layer):
    asked = asked_of(layer)
    found = made_of(layer, asked, replied(asked))
    for row in found.drop_nulls("text").iter_rows(named=True):
        shown = layer.exemplars.filter(
            (pl.col("neuron") == row["neuron"])
            & (pl.col("polarity") == row["polarity"])
            & (pl.col("split") == "explain")
        ).sort("rank")
        assert row["exemplar_ids"] == shown["exemplar_id"].to_list()


@pytest.mark.parametrize(
    ("text", "missing_because", "reason"),
    [
        ("no", None, "unparsable"),
        (None, "refused", "refused"),
        (None, "timeout", "timeout"),
        ("{}", None, "unparsable"),
    ],
)
def test_a_reply_without_an_explanation_is_a_null_with_its_reason(layer, text, missing_because, reason):
    asked = asked_of(layer)
    found = made_of(layer, asked, replied(asked, text, missing_because))
    assert found["text"].null_count() == len(found)
    assert Counter(found["missing_because"])[reason] == 10
    assert found["request_id"].null_count() == 2


def test_each_reply_goes_to_its_own_neuron(layer):
    asked = asked_of(layer)
    replies = [
        Reply(
            request_id=f"sha256:{n}",
            text=json.dumps({"explanation": f"{key.neuron}{key.polarity}"}),
            missing_because=None,
        )
        for n, (key, _) in enumerate(asked)
    ]
    for neuron, polarity, text in (
        made_of(layer, asked, replies).drop_nulls("text").select("neuron", "polarity", "text").iter_rows()
    ):
        assert text == f"{neuron}{polarity}"


def test_too_few_replies_are_an_error_and_not_a_shift(layer):
    asked = asked_of(layer)
    with pytest.raises(ValueError, match="shorter"):
        rows(asked, replied(asked)[1:], layer.explanations, layer.exemplars, model="m")


def test_the_identity_follows_words_request_and_exemplars(layer):
    asked = asked_of(layer)
    before = made_of(layer, asked, replied(asked)).drop_nulls("text")["identity"]
    words = made_of(layer, asked, replied(asked, '{"explanation": "dogs"}')).drop_nulls("text")["identity"]
    others = layer.exemplars.with_columns(pl.concat_str("identity", pl.lit("x")).alias("identity"))
    exemplars = made_of(layer, asked, replied(asked), others).drop_nulls("text")["identity"]
    replies = [Reply(f"{reply.request_id}x", reply.text, None) for reply in replied(asked)]
    request = made_of(layer, asked, replies).drop_nulls("text")["identity"]
    assert len({*before, *words, *exemplars, *request}) == 40
    assert made_of(layer, asked, replied(asked)).drop_nulls("text")["identity"].equals(before)


def test_a_layer_of_silent_neurons_asks_nothing(corpus, truth, made):
    sequences = corpus(("explain", [1, 2]), ("score", [1]))
    layer = made(sequences, [0 * x for x in truth(sequences)])
    assert asked_of(layer) == []
    found = made_of(layer, [], [])
    assert found["missing_because"].to_list() == ["dead_neuron"] * 6
