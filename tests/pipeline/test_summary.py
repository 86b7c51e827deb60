"""Summary: counts and medians that can be done by hand."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.summary import best, by_layer, distribution, without_value

STATISTICS = {"layer": pl.Int32, "neuron": pl.Int32, "dead": pl.Boolean}
SAID = {
    "layer": pl.Int32,
    "neuron": pl.Int32,
    "polarity": pl.String,
    "explanation_id": pl.String,
    "text": pl.String,
}
SCORES = {
    "layer": pl.Int32,
    "neuron": pl.Int32,
    "polarity": pl.String,
    "explanation_id": pl.String,
    "method": pl.String,
    "value": pl.Float64,
    "scorer": pl.String,
    "split": pl.String,
}


def statistics(*rows):
    return pl.DataFrame(rows, schema=STATISTICS, orient="row")


def said(*rows):
    return pl.DataFrame(rows, schema=SAID, orient="row")


def scores(*rows, scorer="ev_correlation", split="top_and_random"):
    return pl.DataFrame([(*row, scorer, split) for row in rows], schema=SCORES, orient="row")


def test_each_layer_counts_what_was_captured_dead_explained_and_scored():
    frame = by_layer(
        statistics((1, 0, True), (0, 0, False), (0, 1, False), (0, 2, True)),
        said((0, 0, "+", "a", "cats"), (0, 0, "-", "b", "dogs"), (0, 1, "+", "c", "mats"), (0, 2, "+", "d", None)),
        pl.concat(
            [
                scores((0, 0, "+", "a", "m", 0.5), (0, 0, "-", "b", "m", 0.7), (0, 1, "+", "c", "m", None)),
                scores((0, 1, "+", "c", "l", 0.9)),
                scores((0, 1, "+", "c", "m", 99.0), split="random_only"),
                scores((0, 1, "+", "c", "m", 99.0), scorer="rsquared"),
            ]
        ),
    )
    assert frame.to_dicts() == [
        {
            "layer": 0,
            "captured": 3,
            "dead": 1,
            "explained": 2,
            "scored": 2,
            "l median": 0.9,
            "m median": pytest.approx(0.6),
        },
        {"layer": 1, "captured": 1, "dead": 1, "explained": 0, "scored": 0, "l median": None, "m median": None},
    ]


def test_before_anything_is_scored_there_are_counts_and_no_medians():
    frame = by_layer(statistics((0, 0, False)), said(), scores())
    assert frame.to_dicts() == [{"layer": 0, "captured": 1, "dead": 0, "explained": 0, "scored": 0}]
    assert by_layer(statistics(), said(), scores()).is_empty()


@given(st.lists(st.integers(-64, 64).map(lambda n: n / 64), max_size=40))
def test_a_distribution_is_a_histogram_and_what_lies_below_zero(values):
    rows = [(0, place, "+", str(place), "m", value) for place, value in enumerate(values)]
    counts, below = distribution(
        scores(*rows, (0, 99, "+", "x", "other", 0.5), (0, 98, "+", "y", "m", None)), "m", bins=16
    )
    expected, _ = np.histogram([value for value in values if value >= 0], bins=16, range=(0, 1))
    assert counts == expected.tolist()
    assert below == sum(value < 0 for value in values)


def test_the_best_neurons_are_each_named_once_by_their_best_explanation():
    found = best(
        scores(
            (0, 0, "+", "a", "m", 0.5),
            (0, 0, "+", "b", "l", 0.8),
            (0, 0, "-", "c", "m", 0.7),
            (1, 4, "+", "d", "m", 0.9),
            (1, 5, "+", "e", "m", None),
            (0, 3, "+", "f", "m", 0.1),
        ),
        said((0, 0, "+", "a", "A"), (0, 0, "+", "b", "B"), (0, 0, "-", "c", "C"), (1, 4, "+", "d", "D")),
    )
    assert found.select("layer", "neuron", "polarity", "text").rows() == [
        (1, 4, "+", "D"),
        (0, 0, "+", "B"),
        (0, 0, "-", "C"),
    ]
    assert best(scores(), said()).is_empty()


def test_equals_are_told_in_the_order_of_neurons():
    rows = [(0, neuron, "+", str(neuron), "m", 0.5) for neuron in range(40)]
    found = best(scores(*rows[::-1]), said(), count=5)
    assert found["neuron"].to_list() == [0, 1, 2, 3, 4]


def test_rows_without_a_value_are_counted_by_table_layer_and_reason():
    rows = pl.DataFrame(
        {"layer": [0, 0, 0, 1, 2], "missing_because": ["refused", None, "refused", "dead_neuron", "refused"]},
        schema={"layer": pl.Int32, "missing_because": pl.String},
    )
    found = without_value({"scores": rows.lazy(), "explanations": rows.clear().lazy()}, layers=[0, 1])
    assert found.rows() == [("scores", 0, "refused", 2, 3), ("scores", 1, "dead_neuron", 1, 1)]
