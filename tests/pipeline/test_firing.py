"""What fires on one text, against the corpus: shares, standard deviations and rarity by hand."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.firing import EACH, fired


def statistics(**columns):
    known = {
        "neuron": [0, 1], "minimum": [-1.0, -2.0], "maximum": [4.0, 0.0], "mean": [1.0, 0.0], "variance": [4.0, 0.0],
        "quantile_boundaries": [[0.0, 1.0, 2.0, 3.0], [0.0] * 4],
    }  # fmt: skip
    return pl.DataFrame(known | columns)


VALUES = np.array([[0.5, -1.0], [2.5, 0.0], [-1.0, -4.0]], dtype=np.float32)


def test_a_neuron_is_held_against_what_it_did_on_the_corpus():
    first, silent = fired(VALUES, statistics(), signed=False).neurons.to_dicts()
    assert (first["peak"], first["token"]) == (2.5, 1)
    assert first["share"] == 2.5 / 4
    assert first["z"] == (2.5 - 1.0) / 2
    # Above the 99 % boundary, and below the 99.9 % one: at most one window in a hundred reaches it.
    assert first["rarity"] == 0.01
    # It never rose above zero on the corpus and never varied, so nothing can be said of it but its peak.
    assert (silent["peak"], silent["share"], silent["z"], silent["rarity"]) == (0.0, None, None, None)


def test_a_neuron_that_means_something_below_zero_is_two():
    rows = fired(VALUES, statistics(), signed=True).neurons
    assert rows.get_column("polarity").to_list() == ["+", "+", "-", "-"]
    below = rows.row(3, named=True)
    assert (below["peak"], below["token"], below["share"]) == (-4.0, 2, 2.0)


def test_each_token_has_its_strongest_neurons_and_how_many_reach_half():
    found = fired(VALUES, statistics(maximum=[4.0, 8.0]), signed=True)
    names = found.neurons.select("neuron", "polarity").rows()
    # Token 2: neuron 1 at twice its least, neuron 0 at its least; on the other side nothing is above zero.
    assert [names[place] for place in found.strongest[2] if place >= 0] == [(1, "-"), (0, "-")]
    assert found.shares[2, :2].tolist() == [2.0, 1.0]
    assert found.counts.tolist() == [1, 1, 2]


def test_neurons_without_statistics_are_left_out():
    found = fired(VALUES, statistics().filter(pl.col("neuron") == 1), signed=False)
    assert found.neurons.get_column("neuron").to_list() == [1]


@given(arrays(np.float32, (3, 2), elements=st.floats(-8, 8, width=32)))
def test_the_share_of_a_token_is_never_above_that_of_the_text(values):
    found = fired(values, statistics(maximum=[4.0, 8.0]), signed=True)
    shares = found.neurons.get_column("share").to_numpy()
    for token in range(3):
        for place, share in zip(found.strongest[token], found.shares[token], strict=False):
            if place >= 0:
                assert share <= shares[place] * (1 + 1e-6)
    assert found.strongest.shape[1] <= EACH


def test_ties_go_to_the_first_neuron():
    found = fired(np.ones((1, 2), dtype=np.float32), statistics(maximum=[2.0, 2.0]), signed=False)
    assert found.strongest[0].tolist() == [0, 1]
    assert found.shares[0].tolist() == pytest.approx([0.5, 0.5])
