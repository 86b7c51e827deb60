"""Scoring kernels give, to the bit, what plain numpy gives: stored scores stay what they are."""

import numpy as np
import pytest
from scipy.stats import rankdata

from pipeline.scores import RESAMPLES, _formulas
from pipeline.scoring_kernels import matched, ranks, resampled, sums


def drawn(seed, *, longest=150):
    """Ragged sequences of some explanations; of some all values are equal, or whole numbers, or one sequence is all there is."""
    draw = np.random.default_rng(seed)
    n = draw.integers(0, 9, draw.integers(1, 5))
    n[0] = max(n[0], 1)
    lengths = draw.integers(1, longest, n.sum())
    y, s = draw.normal(size=(2, lengths.sum()))
    if seed % 2:
        s = draw.integers(0, 11, len(s)).astype(np.float64)
    if seed % 3 == 0:
        s = np.where(draw.random(len(s)) < 0.9, 0.0, s)
    if seed % 5 == 0:
        y = np.zeros_like(y)
    return y, s, lengths, n


def explanations(lengths, n):
    """Of each, the places of its sequences' tokens."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    first = np.cumsum(n) - n
    return [
        [np.arange(starts[at], ends[at]) for at in range(begin, begin + count)]
        for begin, count in zip(first, n, strict=True)
    ]


@pytest.mark.parametrize("seed", range(12))
def test_sums_are_those_of_reduceat_about_means_added_in_order(seed):
    y, s, lengths, n = drawn(seed)
    starts = np.cumsum(lengths) - lengths
    owner = np.repeat(np.repeat(np.arange(len(n)), n), lengths)
    count = np.maximum(np.bincount(owner, minlength=len(n)), 1)
    dy, ds = (values - (np.bincount(owner, values, minlength=len(n)) / count)[owner] for values in (y, s))
    columns = (np.ones_like(y), dy, ds, dy * dy, ds * ds, dy * ds, y * y, (y - s) ** 2, np.abs(y), np.abs(y - s))
    expected = np.stack([np.add.reduceat(column, starts) for column in columns], axis=-1)
    found = sums(y, s, lengths, n)
    assert found.shape == (len(n), n.max(), 10)
    first = np.cumsum(n) - n
    for explanation, (begin, size) in enumerate(zip(first, n, strict=True)):
        assert found[explanation, :size].tobytes() == expected[begin : begin + size].tobytes()
        assert not found[explanation, size:].any()


@pytest.mark.parametrize("seed", range(12))
def test_ranks_are_mean_ranks_from_zero_within_each_stretch(seed):
    _, s, lengths, n = drawn(seed)
    stretches = np.array([sum(map(len, parts)) for parts in explanations(lengths, n)])
    expected = [rankdata(s[np.concatenate(parts)]) - 1 for parts in explanations(lengths, n) if parts]
    np.testing.assert_array_equal(ranks(s, stretches), np.concatenate(expected))


@pytest.mark.parametrize("seed", range(12))
def test_values_are_matched_by_interpolation_between_means_of_what_the_others_show(seed):
    y, s, lengths, n = drawn(seed, longest=40)
    found = matched(y, s, lengths, n)
    for parts in explanations(lengths, n):
        for place, own in enumerate(parts):
            rest = [at for other, at in enumerate(parts) if other != place]
            if not rest:
                assert np.isnan(found[own]).all()
                continue
            ordered_s, ordered_y = (np.sort(values[np.concatenate(rest)], kind="stable") for values in (s, y))
            first = np.flatnonzero(np.append(True, ordered_s[1:] != ordered_s[:-1]))
            counts = np.diff(np.append(first, len(ordered_s)))
            means = np.add.reduceat(ordered_y, first) / counts
            np.testing.assert_array_equal(found[own], np.interp(s[own], ordered_s[first], means))


@pytest.mark.parametrize("seed", range(6))
def test_resamples_have_the_scores_of_sums_added_one_sequence_after_the_other(seed):
    y, s, lengths, n = drawn(seed)
    moments = sums(y, s, lengths, n)
    size = moments.shape[1]
    weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=RESAMPLES).astype(np.float64)
    added = np.zeros((len(n), RESAMPLES, 10))
    for sequence in range(size):
        added += weights[None, :, sequence, None] * moments[:, None, sequence]
    np.testing.assert_array_equal(resampled(moments, weights), _formulas(added))
