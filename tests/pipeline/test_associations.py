"""Token associations: means of the documents that are not scored, and every token that may be asked for."""

import math
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.associations import (
    MEAN_BITS,
    SEEN_OFTEN,
    STRONGEST,
    WEIGHT_BITS,
    _highest,
    _rounded,
    associations,
    corpus_tokens,
)

SEEDS = st.integers(0, 2**31)
OPEN = ("explain", "calibrate")


def occurrences(layer, token, neuron):
    """What the neuron did wherever the token stands in a document that is not scored."""
    return np.array(
        [
            x[position, neuron]
            for ids, split, x in zip(layer.sequences["token_ids"], layer.sequences["split"], layer.arrays, strict=True)
            if split in OPEN
            for position, other in enumerate(ids)
            if other == token
        ],
        dtype=np.float64,
    )


def rounded(value, bits):
    """A number to so many significant bits, by fractions."""
    value = float(np.float32(value))
    if value == 0:
        return 0.0
    unit = Fraction(2) ** (math.frexp(value)[1] - bits)
    return float(round(Fraction(value) / unit) * unit)


@settings(max_examples=10)
@given(n=st.integers(1, 60), seed=SEEDS, signed=st.booleans(), linear=st.booleans())
def test_counts_means_weights_and_fallback_are_those_of_the_open_documents(
    some_corpus, truth, made, *, n, seed, signed, linear
):
    sequences = some_corpus(n, seed=seed, splits=("explain", "calibrate", "score"))
    layer = made(sequences, truth(sequences, n_neurons=3, seed=seed), signed=signed, linear=linear)

    tokens = corpus_tokens(layer.plan).tolist()
    open_x = [x for split, x in zip(sequences["split"], layer.arrays, strict=True) if split in OPEN]
    assert layer.associations.select("neuron", "polarity").rows() == [
        (neuron, polarity) for neuron in range(3) for polarity in (("+", "-") if signed else ("+",))
    ]
    if not open_x:
        assert layer.associations["fallback"].null_count() == len(layer.associations)
        assert layer.associations["token_ids"].list.len().sum() == 0
        return
    fallback = np.concatenate(open_x).mean(0)
    for row in layer.associations.iter_rows(named=True):
        neuron = row["neuron"]
        assert row["fallback"] == pytest.approx(fallback[neuron], rel=1e-6, abs=1e-7)
        assert row["token_ids"] == sorted(set(row["token_ids"]))
        assert (row["weights"] is None) == (not linear)
        for place, (token, count, mean) in enumerate(zip(row["token_ids"], row["counts"], row["means"], strict=True)):
            seen = occurrences(layer, token, neuron)
            assert count == len(seen)
            assert mean == (rounded(seen.mean(), MEAN_BITS) if count else row["fallback"])
            if linear:
                weight = layer.weights[tokens.index(token), neuron]
                assert row["weights"][place] == rounded(weight, WEIGHT_BITS)


def test_every_token_of_a_record_that_may_be_scored_is_there(some_corpus, truth, made):
    sequences = some_corpus(150, vocabulary=400)
    layer = made(sequences, truth(sequences), signed=True)

    known = {
        (row["neuron"], row["polarity"]): set(row["token_ids"]) for row in layer.associations.iter_rows(named=True)
    }
    for row in layer.exemplars.filter(pl.col("split") == "score").iter_rows(named=True):
        assert set(row["token_ids"]) <= known[row["neuron"], row["polarity"]]


def test_the_strongest_tokens_by_mean_and_by_weight_are_kept_for_each_sign(some_corpus, captured, made):
    sequences = some_corpus(400, longest=20, vocabulary=150)
    draw = np.random.default_rng(5)
    arrays = [draw.normal(size=(len(ids), 2)).astype(np.float32) for ids in sequences["token_ids"]]
    layer = made(sequences, arrays, signed=True)

    tokens = corpus_tokens(layer.plan)
    counts = {int(t): int(c) for t, c in zip(layer.plan.lookup, layer.plan.counts, strict=True)}
    for row in layer.associations.iter_rows(named=True):
        sign = -1 if row["polarity"] == "-" else 1
        often = [int(token) for token in tokens if counts.get(int(token), 0) >= SEEN_OFTEN]
        means = {token: sign * occurrences(layer, token, row["neuron"]).mean() for token in often}
        weights = {
            int(t): sign * w for t, w in zip(tokens, layer.weights[:, row["neuron"]], strict=True) if int(t) in counts
        }
        for strength in (means, weights):
            assert set(sorted(strength, key=strength.get)[-STRONGEST:]) <= set(row["token_ids"])


def test_a_token_seen_only_in_scored_text_has_the_mean_of_the_neuron(corpus, truth, made):
    sequences = corpus(("explain", [1, 2]), ("score", [7, 1]), ("test", [8]))
    layer = made(sequences, truth(sequences))
    for row in layer.associations.iter_rows(named=True):
        assert row["token_ids"] == [1, 2, 7]
        assert row["counts"] == [1, 1, 0]
        assert row["means"][2] == row["fallback"]


def test_tokens_too_rare_for_a_row_count_as_unseen(corpus, truth, made, shrunk):
    sequences = corpus(("explain", [1, 1, 2]), ("score", [1, 2]))
    # Room for one token of six neurons.
    with shrunk(LOOKUP_BYTES=4 * 6):
        layer = made(sequences, truth(sequences))
    assert layer.associations["counts"].to_list() == [[2, 0]] * 6


def test_without_open_documents_nothing_is_known(corpus, truth, made):
    sequences = corpus(("score", [1, 2]), ("test", [3]))
    layer = made(sequences, truth(sequences))
    assert layer.associations["token_ids"].to_list() == [[]] * 6
    assert layer.associations["fallback"].to_list() == [None] * 6


def test_a_neuron_without_any_token_has_an_empty_row(corpus, truth, captured):
    sequences = corpus(("test", [1, 2]), ("test", [3]))
    plan, capture = captured(sequences, truth(sequences))
    records = pl.DataFrame(
        schema={"neuron": pl.Int32, "polarity": pl.String, "stratum": pl.String, "sequence_id": pl.String}
    )

    rows = associations(capture, plan, records, sequences, embeddings=None, reading=None, fingerprint="f", corpus="c")

    assert rows["neuron"].to_list() == list(range(6))
    assert rows["token_ids"].to_list() == [[]] * 6
    assert rows["weights"].to_list() == [None] * 6


@given(st.integers(1, 300), SEEDS)
@settings(max_examples=20)
def test_of_distinct_strengths_the_highest_are_kept(n, seed):
    strength = np.random.default_rng(seed).permutation(n * 2).reshape(n, 2).astype(np.float32)
    allowed = np.random.default_rng(seed).random(n) < 0.8
    for sign in (1, -1):
        neuron, token = np.divmod(_highest(strength, allowed, sign=sign), n)
        for column in range(2):
            best = [token for token in np.argsort(-sign * strength[:, column]) if allowed[token]][:STRONGEST]
            assert sorted(token[neuron == column]) == sorted(best)


def test_of_equal_strengths_the_lower_tokens_are_kept():
    strength = np.zeros((5 * STRONGEST, 1), np.float32)
    strength[100] = 1
    found = _highest(strength, np.ones(len(strength), bool), sign=1)
    assert sorted(found) == [*range(STRONGEST - 1), 100]


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**120), max_value=2.0**120)),
    st.integers(2, 24),
)
def test_a_value_is_rounded_to_the_nearest_of_so_many_significant_bits(values, bits):
    found = _rounded(np.asarray(values, np.float32), bits)
    assert found.dtype == np.float32
    assert found.tolist() == [rounded(value, bits) for value in values]
