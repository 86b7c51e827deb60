"""Which neurons are alike: shared strongest windows and weights, by hand."""

import polars as pl
import pytest

from pipeline.likeness import by_weights, together


def records(*rows):
    return pl.DataFrame(
        rows, schema={"layer": pl.Int32, "neuron": pl.Int32, "polarity": pl.String, "sequence_id": pl.String, "peak_token": pl.Int32},
        orient="row",
    )  # fmt: skip


def test_neurons_that_peak_at_the_same_token_of_the_same_windows_come_first():
    mine = records((0, 0, "+", "a", 3), (0, 0, "+", "b", 5), (0, 0, "+", "c", 1))
    others = records(
        (0, 1, "+", "a", 3), (0, 1, "+", "b", 9), (0, 2, "+", "a", 3), (0, 2, "+", "b", 5),
        (1, 3, "-", "a", 0), (1, 3, "-", "b", 0), (1, 3, "-", "c", 0), (0, 4, "+", "z", 3),
    )  # fmt: skip
    found = together(others, mine)
    assert found.rows() == [(0, 2, "+", 2, 2), (0, 1, "+", 2, 1), (1, 3, "-", 3, 0)]


def test_a_window_that_is_kept_twice_counts_once():
    mine = records((0, 0, "+", "a", 3))
    assert together(records((0, 1, "+", "a", 3), (0, 1, "+", "a", 3)), mine).rows() == [(0, 1, "+", 1, 1)]


def connections(**rows):
    """A row for each neuron: what its input is joined to, a strength by token."""
    found = []
    for neuron, (name, joints) in enumerate(rows.items()):
        assert name.startswith("n")
        row = {"layer": 0, "neuron": neuron}
        for sign, keep in (("positive", lambda value: value > 0), ("negative", lambda value: value < 0)):
            kept = {} if joints is None else {token: value for token, value in joints.items() if keep(value)}
            row |= {
                f"input_{sign}_token_ids": None if joints is None else list(kept),
                f"input_{sign}_strengths": None if joints is None else list(kept.values()),
            }
        found.append(row)
    schema = {"layer": pl.Int32, "neuron": pl.Int32} | {
        f"input_{sign}_{part}": pl.List(kind)
        for sign in ("positive", "negative")
        for part, kind in (("token_ids", pl.Int32), ("strengths", pl.Float32))
    }
    return pl.DataFrame(found, schema=schema, orient="row")


def test_weights_are_alike_as_the_cosine_of_what_is_kept_of_them():
    rows = connections(
        n0={1: 3.0, 2: 4.0}, n1={1: 6.0, 2: 8.0}, n2={1: 1.0, 9: -1.0}, n3={1: -3.0, 2: -4.0}, n4={7: 1.0}
    )
    found = by_weights(rows.slice(1), rows.slice(0, 1), "input")
    assert [row[1] for row in found.rows()] == [1, 2, 3]
    assert found.get_column("cosine").to_list() == pytest.approx([1.0, 3 / (5 * 2**0.5), -1.0])


def test_without_weights_of_a_kind_there_is_nothing_to_compare():
    rows = connections(n0=None, n1={1: 1.0})
    assert by_weights(rows.slice(1), rows.slice(0, 1), "input") is None
    assert by_weights(rows.slice(0, 1), rows.slice(1), "input").is_empty()
