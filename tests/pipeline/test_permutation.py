"""The p-value: small where the simulation of a sequence fits that sequence, and about evenly spread by chance."""

import itertools

import numpy as np
import pytest

from pipeline.permutation import PERMUTATIONS, p_values


def p_of(y, s, *, seed=0):
    """For explanations (explanation, sequence, token)."""
    y, s = np.asarray(y, dtype=np.float64), np.asarray(s, dtype=np.float64)
    count, n, length = y.shape
    return p_values(y.ravel(), s.ravel(), np.full(count * n, length), np.full(count, n, dtype=np.int32), seed=seed)


def test_it_is_about_the_share_of_all_orders_that_correlate_as_much():
    draw = np.random.default_rng(3)
    y, s = draw.normal(size=(2, 5, 8))
    s = 0.3 * y + s
    truly = np.corrcoef(y.ravel(), s.ravel())[0, 1]
    orders = itertools.permutations(range(5))
    exact = np.mean([np.corrcoef(y.ravel(), s[list(order)].ravel())[0, 1] >= truly - 1e-12 for order in orders])
    assert p_of([y], [s])[0] == pytest.approx(exact, abs=0.03)


def test_a_perfect_simulation_is_beaten_by_no_other_order():
    y = np.random.default_rng(0).normal(size=(1, 10, 16))
    assert p_of(y, y)[0] == 1 / (1 + PERMUTATIONS)
    assert p_of(y, -y)[0] == 1


def test_chance_gives_every_p_about_as_often():
    draw = np.random.default_rng(1)
    p = p_of(draw.normal(size=(600, 8, 12)), draw.normal(size=(600, 8, 12)))
    for share in (0.05, 0.25, 0.5, 0.9):
        assert (p <= share).mean() == pytest.approx(share, abs=0.06)


def test_what_is_the_same_in_every_sequence_is_no_evidence():
    y = np.tile([5.0, 0, 0, 0], (1, 6, 1))
    assert p_of(y, y)[0] == 1


def test_one_sequence_or_sequences_of_unequal_length_have_none():
    y = np.arange(5.0)
    assert np.isnan(p_values(y, y, np.array([5]), np.array([1], dtype=np.int32), seed=0)).all()
    assert np.isnan(p_values(y, y, np.array([2, 3]), np.array([2], dtype=np.int32), seed=0)).all()
    assert np.isnan(p_values(y[:0], y[:0], np.array([], dtype=np.int64), np.array([0], dtype=np.int32), seed=0)).all()


def test_one_neuron_alone_has_the_p_that_it_has_among_others():
    y, s = np.random.default_rng(2).normal(size=(2, 70, 5, 9))
    together = p_of(y, s)
    assert together.tolist() == [p_of(y[[i]], s[[i]])[0] for i in range(70)]
