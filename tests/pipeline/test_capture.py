"""Capture: what is kept of a stream equals what a whole array in memory would give, however the stream is cut."""

import math
import random
from contextlib import suppress
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import capture as streaming
from pipeline import reduction
from pipeline.capture import PER_SPLIT, TOP, plan
from pipeline.errors import SubjectError
from pipeline.reduction import LayerReduction
from pipeline.tables import SPLITS

SEEDS = st.integers(0, 2**31)


def strongest(arrays, sign, members, k):
    """Brute force: {neuron: [(window, peak), ...]} of the `k` strongest windows, ties to the lower window."""
    peaks = np.array([(sign * x).max(0) for x in arrays])
    return {
        neuron: [
            (window, float(peaks[window, neuron])) for window in sorted(members, key=lambda w: -peaks[w, neuron])[:k]
        ]
        for neuron in range(peaks.shape[1])
    }


def kept(records):
    found = {}
    for neuron, window, peak in zip(records.neuron, records.window, records.peak, strict=True):
        found.setdefault(int(neuron), []).append((int(window), float(peak)))
    return found


def activations_of(records, arrays):
    """The part of each record's activations that lies within its window, and what it should be."""
    for neuron, window, row in zip(records.neuron, records.window, records.activations, strict=True):
        yield row[: len(arrays[window])].tolist(), arrays[window][:, neuron].tolist()


@settings(max_examples=25)
@given(n=st.integers(1, 70), seed=SEEDS, signed=st.booleans(), batch=st.integers(1, 80), shuffle=SEEDS)
def test_the_strongest_windows_are_those_of_brute_force_for_any_batches(
    some_corpus, truth, captured, *, n, seed, signed, batch, shuffle
):
    sequences = some_corpus(n, seed=seed)
    arrays = truth(sequences, seed=seed)

    made, capture = captured(
        sequences, arrays, signed=signed, batch=batch, order=lambda k: random.Random(shuffle).sample(range(k), k)
    )

    assert list(capture.strongest) == (["+", "-"] if signed else ["+"])
    for polarity, groups in capture.strongest.items():
        sign = 1 if polarity == "+" else -1
        assert list(groups) == ["top", *SPLITS, *(str(level) for level in made.levels)]
        for name, records in groups.items():
            members = range(n)
            if name in SPLITS:
                members = np.flatnonzero(made.split == SPLITS.index(name)).tolist()
            elif name != "top":
                members = np.flatnonzero(made.level >= int(name)).tolist()
            expected = strongest(arrays, sign, members, PER_SPLIT if name in SPLITS else TOP) if members else {}
            assert kept(records) == expected
            assert all(found == true for found, true in activations_of(records, arrays))
        whole = np.array([(sign * x).max(0) for x in arrays])
        assert np.array_equal(capture.maxima[polarity], whole)


@settings(max_examples=25)
@given(n=st.integers(1, 60), seed=SEEDS, batch=st.integers(1, 80), shuffle=SEEDS)
def test_moments_extremes_and_token_sums_are_those_of_the_whole_array(
    some_corpus, truth, captured, *, n, seed, batch, shuffle
):
    sequences = some_corpus(n, seed=seed)
    arrays = truth(sequences, seed=seed)

    made, capture = captured(sequences, arrays, batch=batch, order=lambda k: random.Random(shuffle).sample(range(k), k))

    x = np.concatenate(arrays).astype(np.float64)
    assert capture.count == len(x)
    assert np.allclose(capture.mean, x.mean(0), rtol=1e-6, atol=1e-6)
    for power, sums in enumerate((capture.m2, capture.m3, capture.m4), start=2):
        assert np.allclose(sums, ((x - x.mean(0)) ** power).sum(0), rtol=1e-5, atol=1e-4 * len(x))
    assert np.array_equal(capture.minimum, x.min(0))
    assert np.array_equal(capture.maximum, x.max(0))
    assert np.array_equal(capture.positive, (x > 0).sum(0))
    is_open = np.isin([SPLITS[index] for index in made.split], ["explain", "calibrate"])
    tokens = [ids for ids, chosen in zip(made.tokens, is_open, strict=True) if chosen]
    open_x = [rows for rows, chosen in zip(arrays, is_open, strict=True) if chosen]
    if not tokens:
        assert np.isnan(capture.open_mean).all()
        assert capture.token_sums.shape == (0, x.shape[1])
        return
    ids, rows = np.concatenate(tokens), np.concatenate(open_x).astype(np.float64)
    assert np.array_equal(made.lookup, np.unique(ids))
    assert np.array_equal(made.counts, [(ids == token).sum() for token in made.lookup])
    # Quarters add up without rounding.
    assert np.array_equal(capture.token_sums, [rows[ids == token].sum(0) for token in made.lookup])
    assert np.allclose(capture.open_mean, rows.mean(0), rtol=1e-12, atol=1e-15)


@settings(max_examples=10)
@given(st.floats(-1e3, 1e3), st.sampled_from([1e-8, 1e-3, 1.0, 1e4]), SEEDS)
def test_moments_are_those_of_scipy_at_any_offset_and_scale(some_corpus, captured, offset, spread, seed):
    draw = np.random.default_rng(seed)
    sequences = some_corpus(80, longest=30)
    arrays = [
        (offset * spread + spread * draw.gamma(2.0, size=(len(ids), 3))).astype(np.float32)
        for ids in sequences.get_column("token_ids")
    ]

    _, capture = captured(sequences, arrays, batch=7)

    x = np.concatenate(arrays).astype(np.float64)
    variance = capture.m2 / capture.count
    assert np.allclose(capture.mean, x.mean(0), rtol=1e-6, atol=1e-6 * x.std())
    assert np.allclose(variance, x.var(0), rtol=1e-5, atol=0)
    assert np.allclose(capture.m3 / capture.count / variance**1.5, scipy.stats.skew(x), rtol=1e-4)
    assert np.allclose(capture.m4 / capture.count / variance**2, scipy.stats.kurtosis(x, fisher=False), rtol=1e-4)


def test_records_do_not_depend_on_layers_or_neurons_beside_them_nor_on_what_stands_past_the_end(
    some_corpus, truth, captured
):
    sequences = some_corpus(40)
    arrays = truth(sequences)
    _, whole = captured(sequences, arrays, fill=torch.nan)
    _, padded = captured(sequences, arrays, fill=1e30)
    _, alone = captured(sequences, [x[:, 2:3] for x in arrays])

    for name, records in whole.strongest["+"].items():
        assert kept(records) == kept(padded.strongest["+"][name])
        assert kept(records).get(2) == kept(alone.strongest["+"][name]).get(0)
    assert np.array_equal(whole.mean, padded.mean)
    assert np.array_equal(whole.token_sums, padded.token_sums)


@settings(max_examples=30)
@given(st.integers(0, 60), SEEDS, st.integers(0, 5), SEEDS)
def test_random_windows_are_of_their_split_never_twice_and_as_many_as_there_are(some_corpus, n, seed, layer, draw):
    made = plan(some_corpus(n, seed=seed))

    chosen = made.random_windows(layer=layer, n_neurons=9, seed=draw)

    assert chosen.shape == (9, PER_SPLIT * len(SPLITS))
    for index in range(len(SPLITS)):
        members = set(np.flatnonzero(made.split == index).tolist())
        for row in chosen[:, index * PER_SPLIT : (index + 1) * PER_SPLIT].tolist():
            real = [window for window in row if window >= 0]
            assert len(real) == len(set(real)) == min(PER_SPLIT, len(members))
            assert set(real) <= members
    assert np.array_equal(chosen, made.random_windows(layer=layer, n_neurons=9, seed=draw))


def test_random_windows_are_drawn_evenly_and_anew_for_each_layer_and_seed(some_corpus):
    made = plan(some_corpus(60, splits=("score",)))
    chosen = made.random_windows(layer=0, n_neurons=4000, seed=1)[:, 2 * PER_SPLIT : 3 * PER_SPLIT]

    counts = np.bincount(chosen.ravel(), minlength=60)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    pairs = np.zeros((60, 60))
    for a in range(PER_SPLIT):
        for b in range(a):
            np.add.at(pairs, (np.minimum(chosen[:, a], chosen[:, b]), np.maximum(chosen[:, a], chosen[:, b])), 1)
    assert scipy.stats.chisquare(pairs[np.triu_indices(60, 1)]).pvalue > 1e-4
    for other in ({"layer": 1, "seed": 1}, {"layer": 0, "seed": 2}):
        again = made.random_windows(n_neurons=4000, **other)[:, 2 * PER_SPLIT : 3 * PER_SPLIT]
        assert (chosen == again).mean() < 0.1


def test_every_window_that_was_drawn_is_kept_with_its_activations(some_corpus, truth, captured):
    sequences = some_corpus(50)
    arrays = truth(sequences)

    made, capture = captured(sequences, arrays, layer=3, seed=7, batch=6)

    chosen = made.random_windows(layer=3, n_neurons=6, seed=7)
    expected = sorted((neuron, window) for neuron, row in enumerate(chosen.tolist()) for window in row if window >= 0)
    assert sorted(zip(capture.random.neuron.tolist(), capture.random.window.tolist(), strict=True)) == expected
    assert all(found == true for found, true in activations_of(capture.random, arrays))
    for neuron, window, peak in zip(capture.random.neuron, capture.random.window, capture.random.peak, strict=True):
        assert peak == arrays[window][:, neuron].max()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_activation_that_is_no_number_is_refused_with_layer_and_neuron(corpus, truth, captured, bad):
    sequences = corpus(("explain", [1, 2]), ("score", [3]))
    arrays = truth(sequences)
    arrays[1][0, 4] = bad

    with pytest.raises(
        SubjectError, match=r"layer 3 gave 1 activations that are NaN or infinite, first in neuron 4; check"
    ):
        captured(sequences, arrays)


def test_a_huge_activation_is_counted_or_refused(corpus, truth, captured):
    sequences = corpus(("explain", [1, 2]))
    arrays = truth(sequences)
    arrays[0][0, 4] = 1e20

    with suppress(SubjectError):
        _, capture = captured(sequences, arrays)
        assert np.isfinite(capture.m4).all()


def test_a_plan_is_in_the_order_of_ids_whatever_the_order_of_rows(some_corpus):
    sequences = some_corpus(30)
    made, shuffled = plan(sequences), plan(sequences.sample(fraction=1, shuffle=True, seed=1))

    rows = sequences.sort("sequence_id")
    assert [ids.tolist() for ids in made.tokens] == rows.get_column("token_ids").to_list()
    assert [SPLITS[index] for index in made.split] == rows.get_column("split").to_list()
    for name in ("split", "level", "lookup", "counts"):
        assert np.array_equal(getattr(made, name), getattr(shuffled, name))


def test_the_level_of_a_window_is_how_often_four_divides_its_id(some_corpus):
    sequences = some_corpus(40)
    made = plan(sequences)

    for sequence_id, level in zip(sequences.sort("sequence_id")["sequence_id"], made.level, strict=True):
        bits = int(sequence_id, 16)
        assert bits % 4 ** int(level) == 0
        assert bits % 4 ** (int(level) + 1) != 0


@given(st.integers(0, 30), st.integers(1, 40), SEEDS)
@settings(max_examples=20)
def test_each_window_is_in_one_batch_with_windows_of_its_length(some_corpus, n, size, seed):
    made = plan(some_corpus(n, seed=seed))
    batches = [batch.tolist() for batch in made.batches(size)]

    assert sorted(window for batch in batches for window in batch) == list(range(n))
    assert all(0 < len(batch) <= size and batch == sorted(batch) for batch in batches)
    lengths = [[len(made.tokens[window]) for window in batch] for batch in batches]
    assert all(min(before) >= max(after) for before, after in pairwise(lengths))


def test_only_the_commonest_tokens_have_a_row_ties_to_the_lower_id(corpus, truth, captured, monkeypatch):
    monkeypatch.setattr(streaming, "LOOKUP_TOKENS", 2)
    sequences = corpus(("explain", [9, 4, 7, 7]), ("score", [5, 5, 5]), ("calibrate", [2]), ("test", [1, 1, 1]))
    arrays = truth(sequences)

    made, capture = captured(sequences, arrays, batch=1)

    assert (made.lookup.tolist(), made.counts.tolist()) == ([2, 7], [1, 2])
    rows = {t: x for ids, xs in zip(made.tokens, arrays, strict=True) for t, x in zip(ids.tolist(), xs, strict=True)}
    assert np.array_equal(capture.token_sums[0], rows[2])


def test_quantiles_are_taken_from_the_first_windows_alone(some_corpus, truth, captured, monkeypatch):
    monkeypatch.setattr(reduction, "QUANTILE_WINDOWS", 8)
    sequences = some_corpus(20)
    arrays = truth(sequences)

    _, capture = captured(sequences, arrays, batch=3)

    assert np.array_equal(capture.maxima["+"], [x.max(0) for x in arrays[:8]])


def test_a_plan_of_nothing_has_no_batches():
    made = plan(pl.DataFrame(schema={"sequence_id": pl.String, "split": pl.String, "token_ids": pl.List(pl.Int32)}))
    assert (made.n_windows, made.levels, list(made.batches(4)), made.lookup.tolist()) == (0, [], [], [])
    assert (made.random_windows(layer=0, n_neurons=2, seed=0) == -1).all()


def test_many_windows_in_one_batch_are_cut_as_they_come(some_corpus, truth):
    sequences = some_corpus(120, longest=3)
    arrays = truth(sequences, n_neurons=2)
    made = plan(sequences)
    reduction = LayerReduction(made, layer=0, n_neurons=2, signed=False, seed=0)
    for windows in made.batches(1):
        reduction.receive(windows, torch.from_numpy(arrays[windows[0]])[None])

    assert kept(reduction.result().strongest["+"]["top"]) == strongest(arrays, 1, range(120), TOP)
