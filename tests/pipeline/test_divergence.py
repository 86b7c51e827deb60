"""Divergence: Jensen and Shannon's, of logits, down to what one neuron moves."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from pipeline.divergence import jensen_shannon

logits = st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=2, max_size=8)


@given(logits)
def test_it_is_scipys_distance_squared_and_the_same_both_ways(pairs):
    one, other = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    # scipy takes the root of what rounding leaves below zero.
    with np.errstate(invalid="ignore"):
        expected = jensenshannon(one.softmax(0).numpy(), other.softmax(0).numpy()) ** 2
    found = float(jensen_shannon(one, other))
    assert found == pytest.approx(np.nan_to_num(expected), abs=1e-12)
    assert float(jensen_shannon(other, one)) == pytest.approx(found, abs=1e-15)
    assert 0 <= found <= np.log(2) + 1e-12


def test_equal_logits_are_not_apart_and_others_may_be_as_far_as_can_be():
    one = torch.tensor([[2.0, 1.0, -5.0]])
    assert jensen_shannon(one, one + 3).tolist() == [0.0]
    never = torch.tensor([[0.0, -torch.inf, -torch.inf], [-torch.inf, 0.0, 0.0]])
    assert jensen_shannon(never[0], never[1]).item() == pytest.approx(np.log(2))


def test_what_moves_logits_by_a_millionth_is_seen():
    """To second order it is an eighth of the variance of what the logits moved by."""
    one = torch.zeros(4, dtype=torch.float64)
    moved = torch.tensor([1e-6, -1e-6, 0, 0], dtype=torch.float64)
    assert jensen_shannon(one, one + moved).item() == pytest.approx(0.5e-12 / 8, rel=1e-3)
