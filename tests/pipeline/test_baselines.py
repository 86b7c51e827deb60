"""Baselines: the table in words, the table as a prediction, and why there is none."""

import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.associations import MEAN_BITS, WEIGHT_BITS, corpus_tokens
from pipeline.baselines import METHODS, WORDS, explanations, simulations
from pipeline.texts import token_texts

SEEDS = st.integers(0, 2**31)
OPEN = ("explain", "calibrate")


def reasons(layer, method):
    return {
        (neuron, polarity): reason
        for neuron, polarity, reason in layer.explanations.filter(pl.col("method") == method)
        .select("neuron", "polarity", "missing_because")
        .iter_rows()
    }


@settings(max_examples=10)
@given(n=st.integers(4, 60), seed=SEEDS, signed=st.booleans())
def test_a_simulation_is_the_lookup_in_numpy_with_the_mean_for_what_was_never_seen(
    corpus, truth, made, *, n, seed, signed
):
    draw = np.random.default_rng(seed)
    splits = ["explain", "score", *draw.choice(["explain", "calibrate", "score", "test"], n)]
    sequences = corpus(*((split, draw.integers(0, 30, draw.integers(1, 7)).tolist()) for split in splits))
    layer = made(sequences, truth(sequences, n_neurons=5, seed=seed), signed=signed)

    windows = list(zip(sequences["split"], sequences["token_ids"].to_list(), layer.arrays, strict=True))
    ids = np.concatenate([tokens for split, tokens, _ in windows if split in OPEN])
    rows = np.concatenate([x for split, _, x in windows if split in OPEN]).astype(np.float64)
    tokens = corpus_tokens(layer.plan).tolist()
    said = {row["explanation_id"]: row for row in layer.explanations.iter_rows(named=True)}
    chosen = {row["exemplar_id"]: row for row in layer.exemplars.iter_rows(named=True)}
    assert len(layer.simulations) == sum(
        (layer.exemplars["split"] == "score")
        .filter((layer.exemplars["neuron"] == row["neuron"]) & (layer.exemplars["polarity"] == row["polarity"]))
        .sum()
        for row in said.values()
        if row["text"] is not None
    )
    for row in layer.simulations.iter_rows(named=True):
        explanation, exemplar = said[row["explanation_id"]], chosen[row["exemplar_id"]]
        sign, neuron = (-1 if row["polarity"] == "-" else 1), row["neuron"]
        assert (explanation["neuron"], explanation["polarity"]) == (neuron, row["polarity"])
        assert (exemplar["neuron"], exemplar["polarity"], exemplar["split"]) == (neuron, row["polarity"], "score")
        assert row["simulator"] == explanation["method"]
        if row["simulator"] == "token-lookup":
            assert row["scale"] == "neuron"
            expected = [rows[ids == t if t in ids else slice(None), neuron].mean() for t in exemplar["token_ids"]]
            bits = MEAN_BITS
        else:
            assert row["scale"] == "weight"
            expected = [layer.weights[tokens.index(t), neuron] for t in exemplar["token_ids"]]
            bits = WEIGHT_BITS
        assert np.allclose(row["expected"], sign * np.array(expected), rtol=2.0**-bits + 1e-6, atol=1e-7)
        assert row["true"] == [sign * x for x in exemplar["activations"]]
        assert row["missing_because"] is None


def test_the_words_are_the_strongest_tokens_with_their_counts_strongest_first(corpus, truth, made):
    sequences = corpus(("explain", [5, 6, 7, 5]), ("calibrate", [6, 6]), ("score", [5, 6, 7, 8]), ("explain", [7]))
    arrays = truth(sequences, n_neurons=2)
    strength = {5: 1.0, 6: 3.0, 7: -1.0, 8: 9.0}
    for ids, x in zip(sequences["token_ids"], arrays, strict=True):
        x[:, 0] = [strength[token] for token in ids]
    layer = made(sequences, arrays, signed=True)

    rows = layer.explanations.filter((pl.col("method") == "token-lookup") & (pl.col("neuron") == 0))
    texts = dict(rows.select("polarity", "text").iter_rows())
    # On average 9/7. Token 8 is the strongest, but stands in scored text alone.
    assert texts["+"] == 'tokens "t6" (3)'
    assert texts["-"] == 'tokens "t7" (2), "t5" (2)'


@pytest.mark.parametrize("polarity", ["+", "-"])
def test_at_most_ten_words_are_told_of_tokens_above_the_average_and_seen_often(some_corpus, truth, made, polarity):
    sequences = some_corpus(200, vocabulary=40)
    layer = made(sequences, truth(sequences), signed=True)
    counts = dict(zip(layer.plan.lookup.tolist(), layer.plan.counts.tolist(), strict=True))
    sign = -1 if polarity == "-" else 1

    for method, values in (("token-lookup", "means"), ("token-linear", "weights")):
        said = layer.explanations.filter((pl.col("method") == method) & (pl.col("polarity") == polarity)).drop_nulls(
            "text"
        )
        assert not said.is_empty()
        for neuron, text in said.select("neuron", "text").iter_rows():
            row = layer.associations.row(
                by_predicate=(pl.col("neuron") == neuron) & (pl.col("polarity") == polarity), named=True
            )
            strength = dict(zip(row["token_ids"], row[values], strict=True))
            usual = row["fallback"] if values == "means" else 0.0
            above = [token for token in strength if token in counts and sign * strength[token] > sign * usual]
            above = above or [token for token in strength if token in counts]
            often = [token for token in above if counts[token] >= min(5, max(counts[token] for token in above))]
            best = sorted(often, key=lambda token: (-sign * strength[token], token))[:WORDS]
            found = re.fullmatch(r'tokens ("t\d+" \(\d+\)(, )?)+', text)
            assert found
            assert text == "tokens " + ", ".join(f'"t{token}" ({counts[token]})' for token in best)


def test_a_token_of_white_space_is_told_by_its_escape(corpus, made):
    sequences = corpus(("explain", [1, 1, 2]), ("score", [1]))
    sequences = sequences.with_columns(
        pl.Series("token_bytes", [[{1: b"\n", 2: b" a  b"}[token] for token in ids] for ids in sequences["token_ids"]])
    )
    for strongest, told in ((1, '"\\n" (2)'), (2, '"a b" (1)')):
        arrays = [np.float32([[2] if token == strongest else [1] for token in ids]) for ids in sequences["token_ids"]]
        layer = made(sequences, arrays)
        assert layer.explanations.filter(pl.col("method") == "token-lookup")["text"].to_list() == [f"tokens {told}"]


def test_why_there_is_no_explanation(corpus, truth, made):
    sequences = corpus(("explain", [1, 2]), ("calibrate", [1]), ("score", [2, 1]))
    arrays = truth(sequences, n_neurons=4)
    shown = sequences["split"].index_of("explain")
    for window, x in enumerate(arrays):
        x[:, 0] = 0.0
        x[:, 1] = 0.0 if window == shown else 1.0
        x[:, 2] = -1.0
        x[:, 3] = 1.0

    unsigned, signed = made(sequences, arrays, linear=False), made(sequences, arrays, signed=True)

    assert reasons(unsigned, "token-lookup") == {
        (0, "+"): "dead_neuron",
        (1, "+"): "not_seen_firing",
        (2, "+"): "dead_neuron",
        (3, "+"): None,
    }
    assert reasons(unsigned, "token-linear")[3, "+"] == "no_linear_form"
    assert reasons(unsigned, "token-linear")[0, "+"] == "dead_neuron"
    assert reasons(signed, "token-lookup")[0, "-"] == "dead_neuron"
    assert reasons(signed, "token-lookup")[2, "-"] is None
    assert reasons(signed, "token-linear")[3, "+"] is None
    assert set(unsigned.simulations["simulator"]) == {"token-lookup"}


def test_a_signed_neuron_is_dead_on_the_side_where_it_never_fires(corpus, truth, made):
    sequences = corpus(("explain", [1, 2]), ("score", [2, 1]))
    arrays = [np.abs(x) + 1 for x in truth(sequences, n_neurons=1)]
    assert reasons(made(sequences, arrays, signed=True), "token-lookup")[0, "-"] == "dead_neuron"


@pytest.mark.parametrize("splits", [("explain", "test"), ("score", "test"), ("calibrate", "score")])
def test_without_documents_to_show_or_to_score_there_are_no_exemplars(corpus, truth, made, splits):
    sequences = corpus(*((split, [1, 2, token]) for token in range(4) for split in splits))
    arrays = [np.abs(x) + 1 for x in truth(sequences)]
    layer = made(sequences, arrays)
    assert set(reasons(layer, "token-lookup").values()) == {"no_exemplars"}
    assert layer.simulations.is_empty()
    assert set(layer.scores["missing_because"]) == {"no_exemplars"}


def test_every_neuron_has_one_row_of_each_method_and_every_id_is_its_own(some_corpus, truth, made):
    sequences = some_corpus(80)
    layer = made(sequences, truth(sequences), signed=True)
    rows = layer.explanations.group_by("neuron", "polarity").agg(pl.col("method").sort())
    assert rows["method"].to_list() == [sorted(METHODS)] * 12
    assert layer.explanations["explanation_id"].is_unique().all()
    assert set(layer.explanations["explainer"]) == {"none"}


def test_one_neuron_alone_is_explained_and_simulated_as_it_is_among_others(some_corpus, truth, made):
    sequences = some_corpus(80)
    layer = made(sequences, truth(sequences), signed=True)
    texts, dead = token_texts(sequences), layer.statistics.drop("identity", "run_id")
    for neuron in (2, 5, 1):
        tables, chosen, gone = (
            frame.filter(pl.col("neuron") == neuron) for frame in (layer.associations, layer.exemplars, dead)
        )
        said = explanations(tables, chosen, texts, statistics=gone)
        predicted = simulations(said, chosen, tables)
        for alone, among in ((said, layer.explanations), (predicted, layer.simulations)):
            order = ["method", "polarity"] if "method" in alone.columns else ["identity"]
            assert alone.sort(order).equals(among.filter(pl.col("neuron") == neuron).select(alone.columns).sort(order))


def test_shuffled_parents_give_the_same_rows(some_corpus, truth, made):
    sequences = some_corpus(60)
    layer = made(sequences, truth(sequences), signed=True)

    def shuffled(frame):
        return frame.sample(fraction=1, shuffle=True, seed=9)

    dead = shuffled(layer.statistics.drop("identity", "run_id"))
    said = explanations(
        shuffled(layer.associations), shuffled(layer.exemplars), token_texts(sequences), statistics=dead
    )
    predicted = simulations(shuffled(said), shuffled(layer.exemplars), shuffled(layer.associations))

    assert said.sort("identity").equals(layer.explanations.select(said.columns).sort("identity"))
    assert predicted.sort("identity").equals(layer.simulations.select(predicted.columns).sort("identity"))


def test_other_means_make_another_explanation_and_simulation(some_corpus, truth, made):
    sequences = some_corpus(40)
    layer = made(sequences, truth(sequences))
    dead = layer.statistics.drop("identity", "run_id")
    louder = layer.associations.with_columns(
        pl.when(pl.col("neuron") == 2)
        .then(pl.col("means").list.eval(pl.element() * 2))
        .otherwise(pl.col("means"))
        .alias("means")
    )

    said = explanations(louder, layer.exemplars, token_texts(sequences), statistics=dead)

    changed = said.filter(~pl.col("identity").is_in(layer.explanations["identity"].to_list()))
    assert changed.select("neuron", "method").rows() == [(2, "token-lookup")]


def test_another_text_has_another_identity(some_corpus, truth, made):
    sequences = some_corpus(40)
    layer = made(sequences, truth(sequences))
    dead = layer.statistics.drop("identity", "run_id")
    seen_once_more = layer.associations.with_columns(pl.col("counts").list.eval(pl.element() + 1))

    said = explanations(seen_once_more, layer.exemplars, token_texts(sequences), statistics=dead).drop_nulls("text")

    assert not set(said["text"]) & set(layer.explanations["text"])
    assert not set(said["identity"]) & set(layer.explanations["identity"])


def test_a_scored_token_without_a_row_has_the_fallback(some_corpus, truth, made):
    sequences = some_corpus(40)
    layer = made(sequences, truth(sequences))
    short = layer.associations.with_columns(pl.col("token_ids", "counts", "means", "weights").list.head(3))
    predicted = simulations(layer.explanations, layer.exemplars, short).filter(pl.col("simulator") == "token-lookup")
    assert predicted["expected"].explode().null_count() == 0


def test_nothing_to_explain_gives_no_rows(some_corpus, truth, made):
    sequences = some_corpus(40)
    layer = made(sequences, truth(sequences))
    said = layer.explanations.head(0)
    assert simulations(said, layer.exemplars, layer.associations).is_empty()
    assert simulations(layer.explanations, layer.exemplars.head(0), layer.associations).is_empty()
    columns = simulations(layer.explanations, layer.exemplars, layer.associations).schema
    assert simulations(said, layer.exemplars, layer.associations).schema == columns
