"""Percentile matching: what it does to one sequence is said by all others, and by no order of equal values."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.percentiles import on_percentiles

SEEDS = st.integers(0, 2**31)


def matched(*sequences):
    """For one explanation, from (true, expected) of each sequence: what stands for the expected ones."""
    y, s = (np.concatenate([np.asarray(pair[side], dtype=np.float64) for pair in sequences]) for side in (0, 1))
    lengths = np.array([len(pair[0]) for pair in sequences])
    return on_percentiles(y, s, lengths, np.array([len(sequences)], dtype=np.int32))


@settings(max_examples=30)
@given(SEEDS, st.integers(2, 6))
def test_each_sequence_is_matched_as_numpy_matches_it_to_the_others(seed, n):
    draw = np.random.default_rng(seed)
    sequences = [draw.normal(size=(2, draw.integers(1, 9))) for _ in range(n)]
    expected = []
    for place, (_, s) in enumerate(sequences):
        others = [pair for other, pair in enumerate(sequences) if other != place]
        expected.append(np.interp(s, *(np.sort(np.concatenate([pair[side] for pair in others])) for side in (1, 0))))
    np.testing.assert_array_equal(matched(*sequences), np.concatenate(expected))


def test_equal_predictions_share_the_mean_of_the_true_activations_beside_them():
    # Of the other sequence the three smallest true values, 0, 1 and 2, stand beside its three zeros.
    found = matched(([9, 9], [0, 10]), ([2, 50, 0, 1], [0, 10, 0, 0]))
    assert found[:2].tolist() == [1, 50]


def test_a_simulation_in_any_unit_and_shape_is_brought_to_the_neurons_own():
    y = np.random.default_rng(0).permuted(np.tile(np.arange(10.0), (4, 1)), axis=1)
    np.testing.assert_allclose(matched(*((row, np.exp(row)) for row in y)), y.ravel())


def test_an_only_sequence_has_no_others_to_be_matched_to():
    assert np.isnan(matched(([1, 2], [0, 1]))).all()


@settings(max_examples=20)
@given(SEEDS)
def test_a_higher_prediction_never_stands_for_a_lower_activation(seed):
    draw = np.random.default_rng(seed)
    sequences = [(draw.normal(size=6), draw.integers(0, 4, 6)) for _ in range(3)]
    found = matched(*sequences).reshape(3, 6)
    for (_, s), row in zip(sequences, found, strict=True):
        assert (np.diff(row[np.argsort(s, kind="stable")]) >= 0).all()
