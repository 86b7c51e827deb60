"""Connections by the weights alone, held against full matrices and a full sort."""

import weakref

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import connections as module
from pipeline.connections import NEURONS, TOKENS, connections, strongest
from pipeline.tables import TABLES

MADE_FROM = {"fingerprint": "sha256:f", "checkpoint": "sha256:c"}


def weights(draw, *, vocabulary=40, width=3, layers=(4, 6, 5), head=True):
    """A model's arrays of small whole numbers: their products are exact, and many are equal."""

    def whole(*shape):
        return draw.integers(-2, 3, shape).astype(np.float32)

    return {
        "embeddings": whole(vocabulary, width),
        "reading": [whole(width, neurons) for neurons in layers],
        "writing": [whole(neurons, width) for neurons in layers],
        "unembedding": whole(width, vocabulary) if head else None,
    }


def rows(model, layer, **changed):
    """The rows of one layer, held to the rules of the table."""
    reading, writing = model["reading"], model["writing"]
    arrays = {
        "embeddings": model["embeddings"],
        "reading": reading[layer],
        "writing": writing[layer],
        "unembedding": model["unembedding"],
        "upstream": iter(writing[:layer]),
        "downstream": iter(reading[layer + 1 :]),
    } | changed
    frame = connections(layer, len(writing[layer]), **arrays, **MADE_FROM)
    return TABLES["connections"].conform(frame.with_columns(run_id=pl.lit("r")))


def ranked(strengths, count, factor):
    """(what it is joined to, strength) from strong to weak, by a full sort of everything."""
    found = [(at, value) for at, value in strengths.items() if value * factor > 0]
    return sorted(found, key=lambda pair: (-abs(pair[1]), pair[0]))[:count]


def expected(model, layer, neuron):
    """Each list of one neuron, as the formulas say."""
    into, out = model["reading"][layer][:, neuron], model["writing"][layer][neuron]
    earlier, later = range(layer), range(layer + 1, len(model["reading"]))
    products = {
        "input": (TOKENS, {(t,): e @ into for t, e in enumerate(model["embeddings"])}),
        "output": (TOKENS, {(t,): out @ u for t, u in enumerate(model["unembedding"].T)}),
        "upstream": (NEURONS, {(at, n): w @ into for at in earlier for n, w in enumerate(model["writing"][at])}),
        "downstream": (NEURONS, {(at, n): out @ r for at in later for n, r in enumerate(model["reading"][at].T)}),
    }
    return {
        f"{kind}_{sign}": ranked(strengths, count, factor)
        for kind, (count, strengths) in products.items()
        for sign, factor in (("positive", 1), ("negative", -1))
    }


def lists(row, kind):
    """One list of a row as (what it is joined to, strength)."""
    names = ("layers", "neurons") if "stream" in kind else ("token_ids",)
    joined = zip(*(row[f"{kind}_{name}"] for name in names), strict=True)
    return list(zip(joined, row[f"{kind}_strengths"], strict=True))


KINDS = [
    f"{kind}_{sign}" for kind in ("input", "output", "upstream", "downstream") for sign in ("positive", "negative")
]


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 130), st.integers(1, 300))
def test_every_list_is_what_a_full_sort_of_all_products_gives_whatever_the_size_of_a_block(
    seed, width, vocabulary, block
):
    draw = np.random.default_rng(seed)
    layers = tuple(draw.integers(1, 16, draw.integers(1, 4)))
    model = weights(draw, vocabulary=vocabulary, width=width, layers=layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        for layer in range(len(layers)):
            for row in rows(model, layer).iter_rows(named=True):
                assert {kind: lists(row, kind) for kind in KINDS} == expected(model, layer, row["neuron"])


def test_with_weights_of_any_size_strengths_are_those_of_exact_arithmetic_up_to_rounding():
    draw = np.random.default_rng(0)
    n_tokens, width, n_neurons = 3000, 64, 20
    embeddings = draw.normal(size=(n_tokens, width)).astype(np.float32)
    neurons = draw.normal(size=(width, n_neurons)).astype(np.float32)
    exact = embeddings.astype(np.float64) @ neurons
    found = strongest([embeddings[:1000], embeddings[1000:]], neurons, TOKENS)
    tolerance = 1e-5  # 64 terms near 1 with 24 bits each
    for sign, factor in (("positive", 1), ("negative", -1)):
        one = found[sign]
        assert one.neuron.tolist() == np.repeat(np.arange(n_neurons), TOKENS).tolist()
        token = one.row + 1000 * one.part
        np.testing.assert_allclose(one.strength, exact[token, one.neuron], atol=tolerance)
        best = np.sort(exact * factor, axis=0)[::-1][:TOKENS].T.ravel()
        np.testing.assert_allclose(one.strength * factor, best, atol=tolerance)


def test_of_equals_the_lower_token_and_the_lower_layer_and_neuron_come_first():
    model = {
        "embeddings": np.ones((60, 1), np.float32),
        "reading": [np.ones((1, 7), np.float32)] * 3,
        "writing": [np.ones((7, 1), np.float32)] * 3,
        "unembedding": -np.ones((1, 60), np.float32),
    }
    row = rows(model, 2).row(0, named=True)
    assert row["input_positive_token_ids"] == list(range(50))
    assert row["output_negative_token_ids"] == list(range(50))
    assert row["output_negative_strengths"] == [-1.0] * 50
    assert row["upstream_positive_layers"] == [0] * 7 + [1] * 3
    assert row["upstream_positive_neurons"] == [*range(7), *range(3)]
    row = rows(model, 0).row(0, named=True)
    assert row["downstream_positive_layers"] == [1] * 7 + [2] * 3


def test_what_is_zero_joins_nothing():
    model = weights(np.random.default_rng(0))
    zero = np.zeros_like(model["reading"][1])
    row = rows(model, 1, reading=zero, embeddings=-model["embeddings"]).row(0, named=True)
    for kind in ("input_positive", "input_negative", "upstream_positive", "upstream_negative"):
        assert lists(row, kind) == []


def test_fewer_candidates_than_places_are_all_there():
    model = weights(np.random.default_rng(1), vocabulary=3)
    for row in rows(model, 2).iter_rows(named=True):
        into = model["embeddings"] @ model["reading"][2][:, row["neuron"]]
        assert len(row["input_positive_token_ids"]) == (into > 0).sum()
        assert len(row["input_negative_token_ids"]) == (into < 0).sum()


def test_the_first_layer_has_nothing_upstream_and_the_last_nothing_downstream_which_is_not_the_same_as_null():
    model = weights(np.random.default_rng(2))
    first, last = rows(model, 0), rows(model, 2)
    for sign in ("positive", "negative"):
        for name in ("layers", "neurons", "strengths"):
            assert first.get_column(f"upstream_{sign}_{name}").to_list() == [[]] * 4
            assert last.get_column(f"downstream_{sign}_{name}").to_list() == [[]] * 5
    assert first.get_column("downstream_positive_layers").list.len().max() > 0


def null_kinds(frame):
    """The lists that are null in every row; the others are so in none."""
    found = {kind for kind in KINDS if frame.get_column(f"{kind}_strengths").null_count() == len(frame)}
    others = [f"{kind}_strengths" for kind in KINDS if kind not in found]
    assert not others or frame.select(others).null_count().sum_horizontal().item() == 0
    return {kind.split("_")[0] for kind in found}


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_gated_mlp_has_connections_with_output_tokens_only(layer):
    model = weights(np.random.default_rng(3))
    model["reading"] = [None] * 3
    assert null_kinds(rows(model, layer)) == {"input", "upstream", "downstream"}


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_model_without_a_linear_head_has_all_connections_but_those_with_output_tokens(layer):
    assert null_kinds(rows(weights(np.random.default_rng(4), head=False), layer)) == {"output"}


def test_neurons_that_write_by_no_linear_map_are_joined_to_input_tokens_only():
    model = weights(np.random.default_rng(5))
    model["writing"] = [np.ones_like(array) for array in model["writing"]]
    assert null_kinds(rows(model, 1, writing=None)) == {"output", "upstream", "downstream"}


def test_arrays_of_other_layers_are_let_go_one_after_the_other():
    model = weights(np.random.default_rng(6), layers=(4,) * 6)
    handed = []

    def later():
        for array in model["reading"][1:]:
            held = array.copy()
            handed.append(weakref.ref(held))
            # The one before it may still be in use.
            assert sum(reference() is not None for reference in handed) <= 2
            yield held
            del held

    rows(model, 0, downstream=later())
    assert len(handed) == 5


def test_where_one_layer_has_no_such_form_there_are_none_with_any():
    model = weights(np.random.default_rng(7))
    upstream = [model["writing"][0], None]
    assert null_kinds(rows(model, 2, upstream=upstream)) == {"upstream"}


def test_a_row_knows_what_it_was_made_from():
    model = weights(np.random.default_rng(8))
    arrays = {name: model[name] for name in ("embeddings", "unembedding")}
    arrays |= {"reading": model["reading"][0], "writing": model["writing"][0], "upstream": [], "downstream": []}
    made = {
        tuple(connections(layer, 4, **arrays, fingerprint=fingerprint, checkpoint=checkpoint).get_column("identity"))
        for layer, fingerprint, checkpoint in ((0, "sha256:f", "c"), (1, "sha256:f", "c"), (0, "sha256:g", "c"), (0, "sha256:f", "d"))
    }  # fmt: skip
    assert len({identity for identities in made for identity in identities}) == 16
