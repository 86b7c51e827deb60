"""Reduction: what is kept of a stream is what keeping everything and sorting it gives, however the stream is cut."""

import math
import random
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from pipeline.capture import (
    HISTOGRAM_EDGES,
    LOOKUP_BITS,
    MAXIMA,
    PER_SAMPLE,
    PER_SPLIT,
    TOP,
    VECTOR_BITS,
    LayerCapture,
    plan,
)
from pipeline.errors import CaptureError, SubjectError
from pipeline.reduction import LayerReduction, random_windows, token_step
from pipeline.tables import SPLITS

SEEDS = st.integers(0, 2**31)
OPEN = ("explain", "calibrate")
PROBE = np.array([0.1, 0, 2, 3, 1e-12, 1e12, 40, 30], np.float32)
"""About the strongest of each neuron of `behaviour`."""

SMALL = {"MAXIMA": 16, "SAMPLED": 24, "HISTOGRAM_WINDOWS": 16}
"""Sizes that make a corpus of fifty windows a large one."""


@pytest.fixture(scope="module")
def behaviour():
    """What eight neurons of every sort do on each window of a corpus: arrays (token, neuron).

    Constant, dead with zeros of both signs, quarters that tie, mostly silent, tiny, huge, with heavy tails, and far
    from zero.
    """

    def build(sequences, seed=0):
        draw = np.random.default_rng(seed)
        arrays = []
        for tokens in sequences["token_ids"]:
            x = draw.normal(size=(len(tokens), 8)) * (1, 1, 1, 1, 1e-12, 1e12, 1, 1)
            x[:, 0] = 0.1
            x[:, 1] = np.where(draw.random(len(tokens)) < 0.5, -0.0, 0.0)
            x[:, 2] = draw.integers(-8, 9, len(tokens)) / 4
            x[:, 3] = np.where(x[:, 3] > 0.8, x[:, 3], x[:, 1])
            x[:, 6] **= 5
            x[:, 7] += 30
            arrays.append(x.astype(np.float32))
        return arrays

    return build


def shuffled(seed):
    """An order of batches."""
    return lambda k: random.Random(seed).sample(range(k), k)


def sorted_out(peaks, members, k):
    """The `k` of the `members` with the highest peak (window, neuron): (neuron, k), ties to the lower window."""
    return np.array(
        [sorted(members, key=lambda window: (-peaks[window, neuron], window))[:k] for neuron in range(peaks.shape[1])],
        dtype=np.int64,
    )


def assert_records(slots, made, arrays):
    """The activations of every slot are those of its window, to half a step."""
    found = slots.records(made)
    longest = max(map(len, arrays))
    whole = np.stack([np.pad(x.astype(np.float64), ((0, longest - len(x)), (0, 0))) for x in arrays])
    x = whole[found.window, :, found.neuron]
    half = np.ldexp(1.0, np.frexp(np.abs(x).max(axis=1, initial=0))[1] - VECTOR_BITS - 1)
    assert (np.abs(found.activations - x) <= half[:, None]).all()


@settings(max_examples=20)
@given(n=st.integers(1, 110), seed=SEEDS, signed=st.booleans(), batch=st.integers(1, 120), shrink=st.booleans())
def test_what_is_kept_is_what_sorting_everything_gives(
    some_corpus, behaviour, captured, shrunk, *, n, seed, signed, batch, shrink
):
    sequences = some_corpus(n, seed=seed, longest=9)
    arrays = behaviour(sequences, seed)
    top, maxima = (5, SMALL["MAXIMA"]) if shrink else (TOP, MAXIMA)
    with shrunk(**({**SMALL, "TOP": 5} if shrink else {})):
        made, capture = captured(sequences, arrays, signed=signed, batch=batch, order=shuffled(seed), probe=PROBE)
        levels, sample = made.levels, made.histogram_level

    assert list(capture.strongest) == list(capture.maxima) == (["+", "-"] if signed else ["+"])
    for polarity, groups in capture.strongest.items():
        peaks = np.array([(x if polarity == "+" else -x).max(0) for x in arrays])
        members = {"top": (range(n), top)}
        members |= {name: (np.flatnonzero(made.split == at), PER_SPLIT) for at, name in enumerate(SPLITS)}
        members |= {str(level): (np.flatnonzero(made.level >= level), PER_SAMPLE) for level in levels}
        assert list(groups) == list(members)
        for name, slots in groups.items():
            best = sorted_out(peaks, *members[name])
            assert np.array_equal(slots.ids, made.ids[best])
            assert np.array_equal(slots.peaks, np.take_along_axis(peaks.T, best, axis=1))
            assert_records(slots, made, arrays)
        assert np.array_equal(capture.maxima[polarity], peaks[:maxima])
    assert np.array_equal(capture.maxima_ids, made.ids[:maxima])
    for at, name in enumerate(SPLITS):
        ids = made.ids[made.split == at]
        hashes = capture.priorities(ids, np.arange(8)[:, None])
        assert np.array_equal(capture.random[name].ids, ids[np.argsort(hashes, axis=1)[:, :PER_SPLIT]])
        assert_records(capture.random[name], made, arrays)
        drawn = capture.random[name].records(made)
        assert np.array_equal(
            drawn.peak, [arrays[w][:, j].max() for w, j in zip(drawn.window, drawn.neuron, strict=True)]
        )
    x = np.concatenate(arrays)
    assert np.array_equal(capture.ids, made.ids)
    assert (capture.count, capture.open_count) == (len(x), made.lengths[made.is_open].sum())
    assert np.array_equal(capture.minimum, x.min(0))
    assert np.array_equal(capture.maximum, x.max(0))
    assert np.array_equal(capture.positive, (x > 0).sum(0))
    counted = [rows for rows, level in zip(arrays, made.level, strict=True) if level >= sample]
    for neuron in range(8):
        values = np.concatenate([rows[:, neuron] for rows in counted]) if counted else np.empty(0)
        assert np.array_equal(capture.histogram[:, neuron].sum(0), histogram(values))
        for place in range(3):
            exactly = sum(len(rows) for rows, level in zip(arrays, made.level, strict=True) if level == sample + place)
            assert capture.histogram[place, neuron].sum() == exactly


def histogram(values):
    """Counts between the edges; a bin has its end nearer to zero, so what is below zero is counted as in a mirror."""
    edges = np.array([-np.inf, *HISTOGRAM_EDGES, np.inf])
    below, above = values[values < 0], values[values >= 0]
    return np.histogram(above, edges)[0] + np.histogram(-below, edges)[0][::-1]


def exact_moments(values):
    """Mean and central moments 2, 3 and 4 of floats, as fractions."""
    lowest = min(math.frexp(value)[1] for value in values) - 24
    whole = [int(math.ldexp(value, -lowest)) for value in values]
    n, total = len(whole), sum(whole)
    unit = Fraction(2) ** lowest
    return [
        Fraction(total, n) * unit,
        *(
            Fraction(sum((n * v - total) ** power for v in whole), n ** (power + 1)) * unit**power
            for power in (2, 3, 4)
        ),
    ]


def tolerances(windows):
    """How far mean and central moments may be off for one neuron on some windows (token,), by the rounding allowed.

    Rounding in float32 is of the distances from the middle of each window. The sums about zero are rounded as float64,
    and no finer than a 47th bit of the largest, which is what remains of a neuron that lies far from zero.
    """
    x = np.concatenate(windows)
    mean, n = x.mean(), len(x)
    bounds = np.zeros(4)
    for window in windows:
        middle = (window.min() + window.max()) / 2
        powers = [np.sum(np.abs(window - middle) ** power) for power in range(5)]
        bounds[0] += powers[1]
        for power in (2, 3, 4):
            bounds[power - 1] += sum(
                math.comb(power, k) * abs(middle - mean) ** (power - k) * powers[k] for k in range(1, power + 1)
            )
    longest = max(map(len, windows))
    # They are taken about the mean as found: where that is off, a third moment is off by 3 times the second of it, and a
    # fourth by 4 times the third. In a skewed neuron this outweighs the rest.
    bounds[2] += 3 * np.mean((x - mean) ** 2) * bounds[0]
    bounds[3] += 4 * abs(np.mean((x - mean) ** 3)) * bounds[0]
    far = [(2 * np.abs(x).max()) ** power * longest * len(windows) / n for power in (1, 2, 3, 4)]
    return 2.0**-20 * bounds / n + 2.0**-46 * np.array(far)


@settings(max_examples=25)
@given(
    seed=SEEDS,
    n=st.integers(1, 12),
    longest=st.sampled_from((1, 3, 64, 300)),
    offset=st.sampled_from((0.0, 1.0, -7.0, 1e3, 1e6)),
    tail=st.sampled_from((1, 3, 7)),
)
@example(seed=0, n=8, longest=3, offset=0.0, tail=7)
@example(seed=5, n=8, longest=3, offset=0.0, tail=7)
def test_moments_are_those_of_fractions_at_any_offset_and_scale(
    some_corpus, captured, *, seed, n, longest, offset, tail
):
    sequences = some_corpus(n, seed=seed, longest=longest)
    draw = np.random.default_rng(seed)
    scales = np.array([1e-12, 1e-5, 1.0, 1e3, 1e12])
    arrays = [
        (scales * (offset + draw.normal(size=(len(ids), 5)) ** tail)).astype(np.float32)
        for ids in sequences["token_ids"]
    ]

    _, capture = captured(sequences, arrays, batch=5, order=shuffled(seed), probe=scales.astype(np.float32) * 4096)

    found = np.stack(capture.moments())
    for neuron in range(5):
        windows = [x[:, neuron].astype(np.float64) for x in arrays]
        true = exact_moments(np.concatenate(windows).tolist())
        for power, (value, expected, off) in enumerate(zip(found[:, neuron], true, tolerances(windows), strict=True)):
            assert abs(Fraction(float(value)) - expected) <= off, f"moment {power + 1}"
    open_x = [x for x, is_open in zip(arrays, plan(sequences).is_open, strict=True) if is_open]
    if not open_x:
        assert np.isnan(capture.open_mean()).all()
        return
    for neuron, value in enumerate(capture.open_mean()):
        windows = [x[:, neuron].astype(np.float64) for x in open_x]
        true = exact_moments(np.concatenate(windows).tolist())[0]
        assert abs(Fraction(float(value)) - true) <= tolerances(windows)[0]


@settings(max_examples=10)
@given(st.floats(-10, 10), st.sampled_from((1e-12, 1e-3, 1.0, 1e12)), SEEDS)
def test_skewness_and_kurtosis_of_a_neuron_near_zero_have_six_digits(some_corpus, captured, offset, spread, seed):
    draw = np.random.default_rng(seed)
    sequences = some_corpus(80, longest=30)
    arrays = [
        (spread * (offset + draw.gamma(2.0, size=(len(ids), 3)))).astype(np.float32) for ids in sequences["token_ids"]
    ]

    _, capture = captured(sequences, arrays, batch=7, probe=np.full(3, spread, np.float32))

    x = np.concatenate(arrays).astype(np.float64)
    mean, variance, third, fourth = capture.moments()
    assert np.allclose(mean, x.mean(0), rtol=0, atol=1e-7 * x.std())
    assert np.allclose(variance, x.var(0), rtol=1e-6, atol=0)
    assert np.allclose(third / variance**1.5, scipy.stats.skew(x), rtol=0, atol=3e-6)
    assert np.allclose(fourth / variance**2, scipy.stats.kurtosis(x, fisher=False), rtol=3e-6)


def test_a_neuron_whose_windows_add_up_to_nothing_has_moments(corpus, captured):
    sequences = corpus(*[("explain", [1, 2])] * 3)
    arrays = [np.array([[1, 1e30, 0], [-1, -1e30, 0]], np.float32)] * 3
    _, capture = captured(sequences, arrays, probe=np.array([1, 1e30, 1], np.float32))
    mean, variance, third, fourth = capture.moments()
    assert (mean.tolist(), third.tolist()) == ([0, 0, 0], [0, 0, 0])
    big = float(np.float32(1e30))
    assert variance.tolist() == pytest.approx([1, big**2, 0])
    assert fourth.tolist() == pytest.approx([1, big**4, 0])


def test_a_constant_neuron_has_no_spread_but_rounding(corpus, captured):
    sequences = corpus(*[("explain", [1] * 7), ("score", [2] * 64)] * 20)
    constants = np.array([0.1, -3.3, 1e-12, 1e12, 0, 2], np.float32)
    arrays = [np.tile(constants, (len(ids), 1)) for ids in sequences["token_ids"]]
    _, capture = captured(sequences, arrays, probe=np.abs(constants))
    mean, variance, third, fourth = capture.moments()
    size = np.abs(constants.astype(np.float64))
    assert (np.abs(mean - constants) <= size * 2.0**-50).all()
    for power, moment in ((2, variance), (3, third), (4, fourth)):
        assert (np.abs(moment) <= size**power * 2.0**-44).all()
    assert [mean[4], variance[4], third[4], fourth[4]] == [0, 0, 0, 0]
    assert np.array_equal(capture.minimum, capture.maximum)


@settings(max_examples=15)
@given(n=st.integers(1, 60), seed=SEEDS, batch=st.integers(1, 70))
def test_token_sums_are_sums_of_rounded_steps_and_their_means_those_of_numpy(
    some_corpus, behaviour, captured, *, n, seed, batch
):
    sequences = some_corpus(n, seed=seed, longest=20)
    arrays = behaviour(sequences, seed)
    made, capture = captured(sequences, arrays, batch=batch, order=shuffled(seed), probe=PROBE)

    tokens = [ids for ids, is_open in zip(made.tokens, made.is_open, strict=True) if is_open]
    rows = [x for x, is_open in zip(arrays, made.is_open, strict=True) if is_open]
    if not tokens:
        assert capture.token_sums.shape == (0, 8)
        return
    ids, x = np.concatenate(tokens), np.concatenate(rows).astype(np.float64)
    assert np.array_equal(capture.lookup, np.unique(ids))
    means = capture.token_means()
    for place, token in enumerate(capture.lookup):
        seen = x[ids == token]
        assert capture.lookup_counts[place] == len(seen)
        for neuron, step in enumerate(capture.token_step):
            exact = sum(round(Fraction(value) / Fraction(float(step))) for value in seen[:, neuron].tolist())
            assert capture.token_sums[place, neuron] == exact
        off = capture.token_step / 2 + np.abs(seen.mean(0)) * 2.0**-23
        assert (np.abs(means[place] - seen.mean(0)) <= off).all()


@given(st.lists(st.floats(2**-20, 2**20, width=32), min_size=1, max_size=9), st.integers(0, 9))
def test_a_step_is_a_power_of_two_17_bits_below_the_strongest_of_the_probe(strongest, silent):
    probe = np.array([*strongest, *[0.0] * silent], np.float32)
    steps = token_step(probe)
    typical = float(np.median(probe)) or max(strongest)
    assert (np.frexp(steps)[0] == 0.5).all()
    scale = np.maximum(probe.astype(np.float64), typical / 1024)
    assert (scale < steps * 2**LOOKUP_BITS).all()
    assert (steps * 2**LOOKUP_BITS <= 2 * scale).all()


def test_a_probe_of_nothing_has_the_steps_of_silent_neurons_beside_one():
    assert token_step(np.zeros(3, np.float32)).tolist() == [2.0 ** (1 - LOOKUP_BITS - 10)] * 3


@settings(max_examples=15)
@given(n=st.integers(1, 70), seed=SEEDS, signed=st.booleans(), batches=st.tuples(*[st.integers(1, 80)] * 2))
def test_batches_and_their_order_change_no_byte(
    some_corpus, behaviour, captured, differing, *, n, seed, signed, batches
):
    sequences = some_corpus(n, seed=seed, longest=9)
    arrays = behaviour(sequences, seed)
    one, other = batches

    def run(**how):
        return captured(sequences, arrays, signed=signed, probe=PROBE, **how)[1]

    whole = run(batch=one)
    again = run(batch=other, order=shuffled(seed), fill=1e30)
    reverse = run(batch=other, order=lambda k: range(k)[::-1], fill=torch.inf)
    assert differing(whole, again) == differing(whole, reverse) == []


def test_threads_change_no_byte(some_corpus, captured, differing):
    sequences = some_corpus(40, longest=12)
    draw = np.random.default_rng(0)
    arrays = [draw.normal(size=(len(ids), 1700)).astype(np.float32) for ids in sequences["token_ids"]]
    _, alone = captured(sequences, arrays, signed=True, batch=20)
    for threads in (1, 2, 3, 7):
        with ThreadPoolExecutor(threads) as pool:
            _, shared = captured(sequences, arrays, signed=True, batch=20, pool=pool)
        assert differing(alone, shared) == []


def test_an_error_in_a_thread_is_not_lost(some_corpus, captured):
    sequences = some_corpus(3)
    arrays = [np.zeros((len(ids), 1100), np.float32) for ids in sequences["token_ids"]]
    arrays[1][0, 1099] = math.nan
    with ThreadPoolExecutor(2) as pool, pytest.raises(SubjectError, match="first in neuron 1099"):
        captured(sequences, arrays, pool=pool)


def test_a_neuron_does_not_depend_on_those_beside_it(some_corpus, behaviour, captured):
    sequences = some_corpus(40, longest=9)
    arrays = behaviour(sequences)
    _, whole = captured(sequences, arrays, signed=True, probe=PROBE)
    for neuron in range(8):
        _, alone = captured(sequences, [x[:, [neuron]] for x in arrays], signed=True, probe=PROBE[[neuron]])
        for name in ("minimum", "maximum", "positive"):
            assert getattr(whole, name)[neuron] == getattr(alone, name)[0]
        assert np.array_equal(whole.sums.parts[..., neuron], alone.sums.parts[..., 0])
        if PROBE[neuron] > np.median(PROBE) / 1024:
            assert np.array_equal(whole.token_sums[:, neuron], alone.token_sums[:, 0])
        for polarity, groups in alone.strongest.items():
            for name, slots in groups.items():
                assert np.array_equal(whole.strongest[polarity][name].ids[neuron], slots.ids[0])
                assert np.array_equal(whole.strongest[polarity][name].steps[neuron], slots.steps[0])


def stored(capture):
    """A capture that was kept in a file, which gives names in an order of its own, and read again."""
    arrays = {name: x if x.flags.c_contiguous else np.ascontiguousarray(x) for name, x in capture.arrays().items()}
    return LayerCapture.from_arrays(load(save(arrays)))


@settings(max_examples=20)
@given(n=st.integers(1, 90), seed=SEEDS, signed=st.booleans(), stops=st.integers(1, 4), shrink=st.booleans())
def test_a_run_that_was_stopped_ends_with_the_same_bytes(
    some_corpus, behaviour, captured, differing, shrunk, *, n, seed, signed, stops, shrink
):
    sequences = some_corpus(n, seed=seed, longest=9)
    arrays = behaviour(sequences, seed)
    draw = np.random.default_rng(seed)
    part = draw.integers(0, stops + 1, n)
    with shrunk(**(SMALL if shrink else {})):
        _, whole = captured(sequences, arrays, signed=signed, probe=PROBE)
        capture = None
        for at in range(stops + 1):
            windows = np.flatnonzero(part == at)
            batch = int(draw.integers(1, 20))
            _, capture = captured(
                sequences, arrays, signed=signed, windows=windows, batch=batch, start=capture, probe=PROBE
            )
            capture = stored(capture) if draw.random() < 0.5 else capture
    assert differing(capture, whole) == []


@pytest.mark.parametrize(
    "other", [{"layer": 4}, {"seed": 8}, {"signed": True}, {"probe": np.full(6, 9, np.float32)}, {"width": 5}]
)
def test_a_start_of_another_layer_seed_or_model_is_refused(some_corpus, truth, captured, other):
    sequences = some_corpus(30)
    arrays = truth(sequences)
    _, start = captured(sequences, arrays, windows=np.arange(10))
    width = other.pop("width", 6)
    with pytest.raises(CaptureError, match="is not of this model, text and seed; remove it"):
        captured(sequences, [x[:, :width] for x in arrays], windows=np.arange(10, 30), start=start, **other)


@settings(max_examples=40)
@given(seed=SEEDS, n=st.integers(2, 60), split=st.sampled_from(SPLITS), shrink=st.booleans(), every=st.integers(2, 9))
def test_a_start_of_other_text_is_refused_or_changes_no_byte(
    some_corpus, truth, captured, differing, shrunk, *, seed, n, split, shrink, every
):
    sequences = some_corpus(n, seed=seed, longest=3, vocabulary=2)
    arrays = truth(sequences)
    known = np.ones(n, dtype=bool)
    known[(np.arange(n) % every == 0) & (sequences["split"] == split).to_numpy()] = False
    with shrunk(**(SMALL if shrink else {})):
        _, whole = captured(sequences, arrays)
        fewer = [x for x, is_known in zip(arrays, known, strict=True) if is_known]
        if not fewer:
            return
        _, start = captured(sequences.filter(pl.Series(known)), fewer)
        try:
            _, found = captured(sequences, arrays, windows=np.flatnonzero(~known), start=start)
        except CaptureError:
            return
    assert differing(found, whole) == []


def test_a_start_with_windows_that_are_not_in_the_plan_is_refused(some_corpus, truth, captured):
    sequences = some_corpus(30)
    arrays = truth(sequences)
    _, start = captured(sequences, arrays)
    with pytest.raises(CaptureError, match="is not of this model, text and seed"):
        captured(sequences[:29], arrays[:29], start=start, windows=np.arange(0))


def test_a_window_that_comes_twice_is_refused(corpus, truth, captured):
    sequences = corpus(*[("explain", [1, 2])] * 4)
    arrays = truth(sequences)
    made, start = captured(sequences, arrays, windows=np.array([2]))
    probe = np.full(6, 2, np.float32)
    for before, again, named in (([0, 1], [3, 1], 1), ([0], [3, 1, 3], 3), ([], [2], 2)):
        reduction = LayerReduction(made, layer=3, signed=False, seed=7, probe=probe, start=start)
        reduction.receive(np.array(before, dtype=np.int64), torch.zeros(len(before), 2, 6))
        with pytest.raises(CaptureError, match=f"window {named} came twice to layer 3"):
            reduction.receive(np.array(again), torch.zeros(len(again), 2, 6))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("window", "token", "neuron"), [(0, 0, 0), (1, 4, 5), (1, 2, 3), (19, 0, 2)])
def test_an_activation_that_is_no_number_is_refused_with_layer_and_neuron(
    corpus, truth, captured, *, bad, window, token, neuron
):
    sequences = corpus(*[("explain", [1, 2, 3, 4, 5]), ("score", [3] * 5)] * 10)
    arrays = truth(sequences)
    arrays[window][token, neuron] = bad
    message = rf"layer 3 gave 1 activations that are NaN or infinite, first in neuron {neuron}; check"
    for batch in (1, 4, 20):
        with pytest.raises(SubjectError, match=message):
            captured(sequences, arrays, batch=batch)


def test_what_stands_past_the_end_of_a_window_is_not_looked_at(corpus, truth, captured, differing):
    sequences = corpus(("explain", [1, 2, 3]), ("score", [4, 5, 6]), ("test", [7] * 9))
    arrays = truth(sequences)
    _, whole = captured(sequences, arrays, fill=0.0)
    for fill in (torch.nan, torch.inf, -torch.inf, 1e38):
        _, padded = captured(sequences, arrays, fill=fill)
        assert differing(whole, padded) == []


def test_the_largest_floats_are_counted(corpus, captured):
    big, tiny = 3e38, np.finfo(np.float32).smallest_subnormal
    sequences = corpus(("score", [1, 2, 3]))
    x = np.array([[big, -big], [-big, -big], [tiny, -big]], np.float32)
    made, capture = captured(sequences, [x], signed=True)
    mean, variance, third, fourth = capture.moments()
    assert np.isfinite([mean, variance, third, fourth]).all()
    assert (capture.minimum[1], capture.maximum[0]) == (np.float32(-big), np.float32(big))
    assert variance[0] == pytest.approx(x[:, 0].astype(np.float64).var(), rel=1e-6)
    assert_records(capture.strongest["-"]["top"], made, [x])


@pytest.mark.parametrize("batch", [7, 64, 400])
def test_sums_of_a_common_token_never_overflow(corpus, captured, batch):
    draw = np.random.default_rng(batch)
    windows = [("explain", [5] * 40) if place % 9 else ("calibrate", [5, 6, 7]) for place in range(1000)]
    sequences = corpus(*windows)
    sizes = np.array([1e3, 1.0, 3e-3])
    arrays = [
        (sizes * (1 + draw.random((len(ids), 3))) * (1, -1, 1)).astype(np.float32) for ids in sequences["token_ids"]
    ]
    probe = np.full(3, 1e-6, np.float32)
    half = np.arange(1000) % 2 == 0
    _, capture = captured(sequences, arrays, batch=batch, probe=probe)
    _, start = captured(sequences, arrays, batch=batch, probe=probe, windows=np.flatnonzero(half))
    _, again = captured(sequences, arrays, batch=batch, probe=probe, windows=np.flatnonzero(~half), start=start)

    ids, x = np.concatenate(sequences["token_ids"].to_list()), np.concatenate(arrays).astype(np.float64)
    steps = np.rint(x / capture.token_step).astype(np.int64)
    exact = np.array([[sum(column) for column in steps[ids == token].T.tolist()] for token in (5, 6, 7)])
    assert np.abs(exact).max() > 2**60
    assert np.array_equal(capture.token_sums, exact)
    assert np.array_equal(again.token_sums, exact)
    assert np.allclose(capture.token_means(), [x[ids == token].mean(0) for token in (5, 6, 7)], rtol=1e-6)


@settings(max_examples=20)
@given(SEEDS, st.integers(1, 40))
def test_sums_are_exact_at_the_edge_of_32_bits(corpus, captured, seed, batch):
    draw = np.random.default_rng(seed)
    sequences = corpus(*(("explain", draw.integers(0, 3, draw.integers(1, 6)).tolist()) for _ in range(60)))
    # With this probe a step is one unit.
    probe = np.full(3, 2.0**LOOKUP_BITS - 1, np.float32)
    arrays = [
        np.ldexp(draw.choice((-1.0, 1, 1, 1), (len(ids), 3)), draw.choice((0, 26, 29, 30, 31), (len(ids), 3)))
        for ids in sequences["token_ids"]
    ]
    _, capture = captured(
        sequences, [x.astype(np.float32) for x in arrays], batch=batch, probe=probe, order=shuffled(seed)
    )
    ids, x = np.concatenate(sequences["token_ids"].to_list()), np.concatenate(arrays).astype(np.int64)
    assert np.array_equal(capture.token_step, [1, 1, 1])
    assert np.array_equal(capture.token_sums, [x[ids == token].sum(0) for token in capture.lookup])


def test_sums_that_were_taken_over_from_a_start_do_not_overflow_either(corpus, captured):
    sequences = corpus(("explain", [5]), ("explain", [5]), ("explain", [5]))
    # Steps of one unit; each window alone fits in 32 bits.
    values = np.array([[2.0**30 - 64, -(2.0**30) + 64], [2.0**31 - 2.0**20] * 2, [2.0**29, -(2.0**31) + 2.0**20]])
    arrays = [row.astype(np.float32)[None] for row in values]
    capture = None
    for window in range(3):
        probe = np.full(2, 2.0**LOOKUP_BITS - 1, np.float32)
        _, capture = captured(sequences, arrays, windows=np.array([window]), start=capture, probe=probe)
    assert capture.token_sums.tolist() == [values.sum(axis=0).tolist()]


@pytest.mark.parametrize("batch", [1, 30])
def test_an_activation_beyond_all_measure_of_the_probe_is_refused_where_it_would_be_summed(corpus, captured, batch):
    probe = np.full(3, 0.75, np.float32)
    sequences = corpus(*[("explain", [1]), ("score", [1])] * 10)
    arrays = [np.ones((1, 3), np.float32) for _ in range(20)]
    is_open = (sequences["split"] == "explain").to_numpy()

    arrays[np.flatnonzero(~is_open)[0]][0, 1] = 1e30
    arrays[np.flatnonzero(is_open)[3]][0, 1] = -(2.0**34)
    _, capture = captured(sequences, arrays, batch=batch, probe=probe)
    assert capture.token_sums.tolist() == [[10 * 2**17, 9 * 2**17 - 2**51, 10 * 2**17]]

    arrays[np.flatnonzero(is_open)[3]][0, 1] = -(2.0**35)
    with pytest.raises(
        SubjectError, match=r"neuron 1 of layer 3 reached 3.44e\+10, more than 2\*\*35 times what any text"
    ):
        captured(sequences, arrays, batch=batch, probe=probe)


def test_only_the_commonest_tokens_have_a_sum_ties_to_the_lower_id(corpus, truth, captured, shrunk):
    sequences = corpus(("explain", [9, 4, 7, 7]), ("score", [5, 5, 5]), ("calibrate", [2]), ("test", [1, 1, 1]))
    arrays = truth(sequences)
    with shrunk(LOOKUP_BYTES=2 * 4 * 6):
        made, capture = captured(sequences, arrays, batch=1)

    assert capture.lookup.tolist() == [2, 7]
    assert capture.lookup_counts.tolist() == [1, 2]
    rows = {t: x for ids, xs in zip(made.tokens, arrays, strict=True) for t, x in zip(ids.tolist(), xs, strict=True)}
    assert np.array_equal(capture.token_means()[0], rows[2])


@settings(max_examples=30)
@given(st.integers(0, 60), SEEDS, st.integers(0, 5), SEEDS)
def test_random_windows_are_of_their_split_never_twice_and_as_many_as_there_are(some_corpus, n, seed, layer, draw):
    made = plan(some_corpus(n, seed=seed))

    chosen = random_windows(made, layer=layer, n_neurons=9, seed=draw)

    assert chosen.shape == (9, PER_SPLIT * len(SPLITS))
    for index in range(len(SPLITS)):
        members = set(np.flatnonzero(made.split == index).tolist())
        for row in chosen[:, index * PER_SPLIT : (index + 1) * PER_SPLIT].tolist():
            real = [window for window in row if window >= 0]
            assert len(real) == len(set(real)) == min(PER_SPLIT, len(members))
            assert set(real) <= members
    assert np.array_equal(chosen[:4], random_windows(made, layer=layer, n_neurons=4, seed=draw))


def test_random_windows_are_drawn_evenly_and_anew_for_each_layer_and_seed(some_corpus):
    made = plan(some_corpus(60, splits=("score",)))

    def drawn(layer, seed):
        chosen = random_windows(made, layer=layer, n_neurons=4000, seed=seed)
        return chosen[:, 2 * PER_SPLIT : 3 * PER_SPLIT]

    chosen = drawn(0, 1)
    assert scipy.stats.chisquare(np.bincount(chosen.ravel(), minlength=60)).pvalue > 1e-4
    pairs = np.zeros((60, 60))
    for a in range(PER_SPLIT):
        for b in range(a):
            np.add.at(pairs, (np.minimum(chosen[:, a], chosen[:, b]), np.maximum(chosen[:, a], chosen[:, b])), 1)
    assert scipy.stats.chisquare(pairs[np.triu_indices(60, 1)]).pvalue > 1e-4
    for layer, seed in ((1, 1), (0, 2)):
        assert (chosen == drawn(layer, seed)).mean() < 0.1


def test_half_precision_reads_as_the_floats_it_stands_for(corpus, differing):
    made = plan(corpus(("explain", [1, 2]), ("test", [3, 4])))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 2, 3))).half()
    found = []
    for activations in (x, x.float(), x.float().transpose(0, 1).contiguous().transpose(0, 1)):
        reduction = LayerReduction(made, layer=0, signed=True, seed=0, probe=np.ones(3, np.float32))
        reduction.receive(np.arange(2), activations)
        found.append(reduction.result())
    assert differing(found[0], found[1]) == differing(found[1], found[2]) == []
