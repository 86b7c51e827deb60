"""Selection: which neurons are asked about."""

import polars as pl
import pytest

from pipeline import tables
from pipeline.errors import SettingsError
from pipeline.selection import STATISTICS, Selection, context, parse, selected


def statistics(**columns):
    return pl.DataFrame({"neuron": range(len(columns["dead"])), **columns})


NOTHING = (tables.exemplars.schema, tables.token_associations.schema)


def chosen(text, rows, *, seed=0, layer=0):
    exemplars, associations = (pl.DataFrame(schema=schema) for schema in NOTHING)
    return selected(parse(text), rows, exemplars, associations, layer=layer, seed=seed)


@pytest.mark.parametrize(
    "text",
    ["", "some", "random", "random:0", "random:-1", "random:x", "top:5", "top:5:beauty", "top:0:kurtosis", "all:1"],
)
def test_other_forms_are_refused(text):
    with pytest.raises(SettingsError, match="must be `all`, `random:50`, or `top:50:`"):
        parse(text)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_every_statistic_can_be_named(statistic):
    assert parse(f"top:3:{statistic}") == Selection(3, statistic)


def test_a_dead_neuron_is_never_chosen():
    rows = statistics(dead=[True, False, False], kurtosis=[9.0, 1.0, 2.0])
    assert chosen("all", rows) == {1, 2}
    assert chosen("random:3", rows) == {1, 2}
    assert chosen("top:3:kurtosis", rows) == {1, 2}


def test_the_largest_are_chosen_and_of_equals_the_first():
    rows = statistics(dead=[False] * 4, kurtosis=[1.0, 3.0, None, 3.0])
    assert chosen("top:1:kurtosis", rows) == {1}
    assert chosen("top:2:kurtosis", rows) == {1, 3}
    assert chosen("top:9:kurtosis", rows) == {0, 1, 3}


def test_a_draw_depends_on_seed_and_layer_and_a_smaller_one_is_part_of_it():
    rows = statistics(dead=[False] * 100)
    assert chosen("random:10", rows) == chosen("random:10", rows)
    assert chosen("random:10", rows) < chosen("random:20", rows)
    assert chosen("random:10", rows) != chosen("random:10", rows, seed=1)
    assert chosen("random:10", rows) != chosen("random:10", rows, layer=1)


def test_context_is_what_the_mean_of_the_token_does_not_tell():
    exemplars = pl.DataFrame(
        {
            "neuron": [0, 1, 2, 2],
            "polarity": ["+"] * 4,
            "split": ["explain", "explain", "explain", "score"],
            "token_ids": [[7, 8, 7, 8]] * 3 + [[7, 7, 7, 7]],
            "activations": [[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]],
        }
    )
    associations = pl.DataFrame(
        {
            "neuron": [0, 1, 2],
            "polarity": ["+"] * 3,
            "token_ids": [[7], [7, 8], [7, 8]],
            "means": [[1.0], [1.0, 0.0], [0.5, 0.0]],
            "fallback": [0.0] * 3,
        }
    )
    found = context(exemplars, associations)
    assert found[0] == pytest.approx(0)
    assert found[1] == pytest.approx(1)
    assert found[2] == pytest.approx(1 - 1 / 3)


def test_where_tokens_tell_all_the_same_they_tell_nothing():
    exemplars = pl.DataFrame(
        {"neuron": [0], "polarity": ["+"], "split": ["explain"], "token_ids": [[7, 8]], "activations": [[1.0, 0.0]]}
    )
    associations = pl.DataFrame(
        {"neuron": [0], "polarity": ["+"], "token_ids": [[7, 8]], "means": [[1.0, 1.0]], "fallback": [0.0]}
    )
    assert context(exemplars, associations) == {0: 1.0}
