"""Kernels: the compiled loops give what slow and plain arithmetic gives, wherever they are cut."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import kernels
from pipeline.capture import HISTOGRAM_EDGES, SPACING, ExactSums

SEEDS = st.integers(0, 2**31)
FRACTIONS = (1.0, 1 - 2**-53, 1 + 2**-52, 1.5, 1.5 - 2**-52, 1 + 2**-24, 1 + 2**-25, 2 - 2**-24, 1 + 2**-48, 1 + 2**-23)
"""Significands at the edges of the parts of a sum, and exact halves of their units."""

NEAR = st.integers(-60, 60)
ANYWHERE = st.integers(-498, 497) | st.integers(-20, 20).map(lambda k: SPACING * k) | NEAR
TERMS = (
    st.builds(lambda sign, fraction, exponent: sign * math.ldexp(fraction, exponent),
              st.sampled_from((1.0, -1.0)), st.sampled_from(FRACTIONS), NEAR)
    | st.builds(lambda sign, fraction, exponent: sign * math.ldexp(fraction, exponent),
                st.sampled_from((1.0, -1.0)), st.sampled_from(FRACTIONS), ANYWHERE)
    | st.floats(1e-150, 1e150) | st.floats(-1e150, -1e-150) | st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-9)
    | st.sampled_from((0.0, -0.0))
)  # fmt: skip


def drawn(seed, terms, reach):
    """Terms with all their bits, some of them so much larger that the others' last bits fall off."""
    draw = np.random.default_rng(seed)
    return np.ldexp(draw.uniform(-1, 1, terms), draw.choice((0, 0, 0, reach), terms)).tolist()


LISTS = st.builds(drawn, SEEDS, st.integers(1, 40), st.integers(0, 90)) | st.lists(
    TERMS, min_size=1, max_size=24
).flatmap(
    # Some of them again with the other sign, so that the sum is small beside its terms.
    lambda terms: st.integers(0, len(terms)).map(lambda n: [*terms, *(-term for term in terms[:n])])
)


def added(terms, start=None):
    """The exact sum of terms, as one neuron of one layer has it; going on from another."""
    parts = np.zeros((3, 1)) if start is None else start.parts[0].copy()
    exponents = np.full(1, kernels.LOWEST, np.int32) if start is None else start.exponents[0].copy()
    kernels.add_exactly(np.array(terms, dtype=np.float64).reshape(-1, 1), 0, 1, parts, exponents)
    return ExactSums(parts[None], exponents[None])


def total(sums):
    (whole,), (lowest,) = sums.totals(0)
    return Fraction(whole) * Fraction(2) ** int(lowest)


def bytes_of(sums):
    return sums.parts.tobytes(), sums.exponents.tobytes()


def cut(items, draw):
    """The items in order, in groups of random sizes, some of them empty."""
    edges = sorted(draw.choices(range(len(items) + 1), k=draw.randint(0, 5)))
    return [items[start:stop] for start, stop in zip([0, *edges], [*edges, len(items)], strict=True)]


@settings(max_examples=300)
@given(LISTS, SEEDS)
def test_any_order_and_grouping_of_terms_gives_the_same_sum_to_the_byte(terms, seed):
    draw = random.Random(seed)
    shuffled = draw.sample(terms, len(terms))
    found = []
    for group in cut(shuffled, draw):
        part = None
        for piece in cut(group, draw):
            part = added(piece, part)
        found.append(part)
    while len(found) > 1:
        one, other = (found.pop(draw.randrange(len(found))) for _ in range(2))
        found.append(one + other)

    assert bytes_of(found[0]) == bytes_of(added(sorted(terms)))


@pytest.mark.parametrize("cuts", [(1, 2), (2, 3), (1, 5)])
@pytest.mark.parametrize("later", [0.0, 2.0**20, 2.0**30, 2.0**60])
@pytest.mark.parametrize(
    "halves", [(2**23 + 1, -1), (2**23 - 1, 1), (2**23, 2**23), (-(2**23), -(2**23)), (2**23, 1, -1)]
)
def test_an_exact_half_of_a_unit_is_carried_in_one_way(halves, later, cuts):
    terms = [1.0, *(math.ldexp(half, -SPACING * 2) for half in halves), later]
    whole = bytes_of(added(terms))
    start, stop = cuts
    groups = (terms[:start], terms[start:stop], terms[stop:])
    assert bytes_of(added(groups[0]) + added(groups[1]) + added(groups[2])) == whole
    assert bytes_of(added(groups[2]) + (added(groups[1]) + added(groups[0]))) == whole
    assert bytes_of(added(groups[2], added(groups[1], added(groups[0])))) == whole


@pytest.mark.parametrize("largest", [2.0**23, 2.0**24, 2.0**47, 2.0**-1, 2.0**-25])
def test_a_power_of_two_at_the_edge_of_the_parts_comes_first_or_last(largest):
    for edge in (largest, -largest, largest * (1 - 2**-53), largest * (1 + 2**-52)):
        for other in (largest / 3, -largest / 2, largest / 2**20, math.pi * largest / 2**24):
            whole = bytes_of(added([edge, other, other]))
            assert bytes_of(added([other, edge], added([other]))) == whole
            assert bytes_of(added([other, other, edge])) == bytes_of(added([other]) + added([other, edge])) == whole


@settings(max_examples=300)
@given(LISTS)
def test_a_sum_is_right_to_a_47th_bit_of_its_largest_term_for_each_term(terms):
    largest = max(abs(term) for term in terms)
    assert abs(total(added(terms)) - sum(map(Fraction, terms))) <= len(terms) * Fraction(largest) / 2**47


@pytest.mark.parametrize("exponent", [-498, -24, -1, 0, 1, 23, 24, 25, 497])
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_one_term_that_fits_is_its_own_sum(fraction, exponent):
    term = math.ldexp(fraction, exponent)
    for sign in (1, -1):
        assert abs(total(added([sign * term])) - Fraction(sign * term)) <= Fraction(term) / 2**47


@given(st.lists(st.integers(-(2**47), 2**47), min_size=1, max_size=50), st.integers(-100, 100))
def test_whole_numbers_of_47_bits_add_up_without_any_rounding(terms, exponent):
    assert total(added([math.ldexp(term, exponent) for term in terms])) == sum(terms) * Fraction(2) ** exponent


def test_a_million_terms_are_a_million_times_one_term():
    for term in (0.1, math.pi * 1e9, -(1 - 2**-53)):
        sums = None
        for _ in range(10):
            sums = added([term] * 100_000, sums)
        assert total(sums) == 1_000_000 * total(added([term]))


def test_what_cancels_leaves_the_small_term_and_zeros_have_no_sign():
    assert total(added([2.0**40, 1.0, -(2.0**40)])) == 1
    assert bytes_of(added([-0.0, -0.0])) == bytes_of(added([0.0])) == bytes_of(added([]))
    assert not np.signbit(added([1.0, -1.0, -0.0]).parts).any()


def test_each_neuron_has_its_own_sum_and_those_outside_the_part_are_left_alone():
    draw = np.random.default_rng(0)
    values = np.ldexp(draw.normal(size=(9, 1200)), draw.integers(-40, 40, (9, 1200)))
    parts, exponents = np.full((3, 1200), 7.0), np.full(1200, kernels.LOWEST, np.int32)
    parts[:, 5:1150] = 0

    kernels.add_exactly(values, 5, 1150, parts, exponents)

    for neuron in (5, 6, 511, 512, 516, 517, 1028, 1029, 1149):
        alone = added(values[:, neuron])
        whole = ExactSums(parts[None, :, neuron : neuron + 1], exponents[None, neuron : neuron + 1])
        assert bytes_of(whole) == bytes_of(alone)
    for neuron in (0, 4, 1150, 1199):
        assert parts[:, neuron].tolist() == [7.0] * 3
        assert exponents[neuron] == kernels.LOWEST


def measured(x, lengths):
    """Extremes, sums and counts of windows (window, token, neuron)."""
    shape = (x.shape[0], x.shape[2])
    low, high = np.empty(shape, np.float32), np.empty(shape, np.float32)
    sums, positive = np.empty((4, *shape)), np.zeros(x.shape[2], np.int32)
    kernels.window_sums(x, np.asarray(lengths), 0, x.shape[2], low, high, sums, positive)
    return low, high, sums, positive


@settings(max_examples=40)
@given(
    SEEDS,
    st.sampled_from((1, 2, 3, 4, 5, 63, 64, 65, 127, 130, 300)),
    st.sampled_from((1e-30, 1e-12, 1e-6, 1.0, 1e6, 1e12, 1e30)),
    st.sampled_from((0.0, 1.0, -30.0, 1e4)),
    st.sampled_from((1, 3)),
)
def test_sums_of_a_window_are_those_of_fractions_and_its_extremes_are_exact(seed, length, scale, offset, tail):
    draw = np.random.default_rng(seed)
    x = (scale * (offset + draw.normal(size=(1, length, 2)) ** tail)).astype(np.float32)
    low, high, sums, positive = measured(x, [length])

    assert np.array_equal(low[0], x[0].min(0))
    assert np.array_equal(high[0], x[0].max(0))
    assert np.array_equal(positive, (x[0] > 0).sum(0))
    for neuron in range(2):
        values = [Fraction(float(value)) for value in x[0, :, neuron]]
        middle = (min(values) + max(values)) / 2
        reach = (max(values) - min(values)) / 2
        for power in range(1, 5):
            # Rounding in float32 is of what is left about the middle; moving it to zero rounds in float64.
            about = sum(
                math.comb(power, k) * abs(middle) ** (power - k) * sum(abs(value - middle) ** k for value in values)
                for k in range(1, power + 1)
            )
            bound = about / 2**20 + 2**power * len(values) * (abs(middle) + reach) ** power / 2**50
            least = Fraction(2) ** -1000
            assert abs(Fraction(sums[power - 1, 0, neuron]) - sum(v**power for v in values)) <= bound + least


@settings(max_examples=20)
@given(SEEDS, st.integers(2, 9))
def test_a_window_has_the_same_sums_in_any_batch_and_a_neuron_in_any_place(seed, windows):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 140, windows)
    x = (draw.normal(size=(windows, 140, 1030)) * 10.0 ** draw.integers(-8, 8, 1030)).astype(np.float32)
    x[:, :, [511, 512, 1023, 1029]] = x[:, :, [0]]
    low, high, sums, positive = measured(x, lengths)

    for other in (511, 512, 1023, 1029):
        assert sums[:, :, other].tobytes() == sums[:, :, 0].tobytes()
        assert positive[other] == positive[0]
    for window in range(windows):
        padded = np.concatenate([x[[window], : lengths[window]], np.full((1, 3, 1030), np.nan, np.float32)], axis=1)
        alone = measured(padded, lengths[[window]])
        assert alone[2][:, 0].tobytes() == sums[:, window].tobytes()
        assert (alone[0][0].tobytes(), alone[1][0].tobytes()) == (low[window].tobytes(), high[window].tobytes())


@pytest.mark.parametrize("length", [1, 2, 5, 64, 67])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_activation_that_is_no_number_shows_in_the_sum_of_its_window_and_neuron_alone(length, bad):
    for place in range(length):
        x = np.ones((2, length, 3), np.float32)
        x[1, place, 2] = bad
        _, _, sums, _ = measured(x, [length, length])
        assert np.isfinite(sums[0]).tolist() == [[True, True, True], [True, True, False]]


def test_the_largest_and_the_smallest_floats_have_finite_sums():
    info = np.finfo(np.float32)
    extreme = np.array([info.max, -info.max, info.max, info.smallest_subnormal, -info.tiny], np.float32)
    x = np.stack([np.tile(extreme, 60), np.full(300, info.max), np.full(300, info.smallest_subnormal)], axis=1)[None]
    low, high, sums, positive = measured(x.astype(np.float32), [300])
    assert np.isfinite(sums).all()
    assert positive.tolist() == [180, 300, 300]
    assert sums[0, 0, 1] == 300 * float(info.max)
    assert sums[0, 0, 2] == 300 * float(info.smallest_subnormal)
    assert (low[0, 0], high[0, 0]) == (-info.max, info.max)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e18, 1e30])
def test_neighbouring_floats_have_the_sums_of_a_constant(size):
    # Their middle is one of them.
    low = np.float32(size)
    pair = np.array([low, np.nextafter(low, np.float32(np.inf))], np.float32)
    for values in (pair, pair[::-1], -pair):
        _, _, sums, _ = measured(values[None, :, None].copy(), [2])
        for power in range(1, 5):
            assert sums[power - 1, 0, 0] == pytest.approx((values.astype(np.float64) ** power).sum(), rel=1e-15)


def edge_values():
    """Every edge of the histogram, the floats beside it, zeros of both signs and the ends of float32."""
    edges = np.array(HISTOGRAM_EDGES, np.float32)
    info = np.finfo(np.float32)
    ends = [0.0, -0.0, info.smallest_subnormal, -info.smallest_subnormal, info.tiny, info.max, -info.max]
    return np.concatenate(
        [edges, np.nextafter(edges, np.float32(np.inf)), np.nextafter(edges, np.float32(-np.inf)), ends]
    )


def histogram(values):
    """Counts between the edges: a bin has its end nearer to zero, so what is below zero is counted as in a mirror."""
    edges = np.array([-np.inf, *HISTOGRAM_EDGES, np.inf])
    below, above = values[values < 0], values[values >= 0]
    return np.histogram(above, edges)[0] + np.histogram(-below, edges)[0][::-1]


@settings(max_examples=30)
@given(st.lists(st.sampled_from(edge_values().tolist()) | st.floats(width=32, allow_nan=False, allow_infinity=False),
                min_size=1, max_size=60))  # fmt: skip
def test_a_bin_is_closed_at_its_end_nearer_to_zero(values):
    x = np.array(values, np.float32)[None, :, None]
    counts = np.zeros((1, 1, len(HISTOGRAM_EDGES) + 1), np.int32)
    kernels.count_in_bins(x.view(np.int32), np.array([x.shape[1]]), np.zeros(1, np.int32), 0, 1, counts)
    assert np.array_equal(counts[0, 0], histogram(x[0, :, 0]))


def test_every_edge_of_the_histogram_is_in_the_bin_beyond_it():
    for value in edge_values():
        x = np.array([[[value]]], np.float32)
        counts = np.zeros((1, 1, len(HISTOGRAM_EDGES) + 1), np.int32)
        kernels.count_in_bins(x.view(np.int32), np.ones(1, np.int64), np.zeros(1, np.int32), 0, 1, counts)
        assert np.array_equal(counts[0, 0], histogram(x[0, :, 0])), value


def test_windows_are_counted_in_their_class_up_to_their_length_and_for_the_neurons_asked_for():
    x = np.broadcast_to(np.float32(1), (4, 3, 700)).copy()
    counts = np.zeros((2, 700, len(HISTOGRAM_EDGES) + 1), np.int32)
    classes = np.array([1, -1, 0, -3], np.int32)
    kernels.count_in_bins(x.view(np.int32), np.array([3, 3, 2, 3]), classes, 10, 690, counts)
    assert counts.sum(axis=2)[:, 10:690].T.tolist() == [[2, 3]] * 680
    assert counts[:, :10].sum() == counts[:, 690:].sum() == 0


def test_more_tokens_than_sixteen_bits_count_are_counted():
    x = np.array([1, -1, 0, 1e9], np.float32)[np.arange(150_000) % 4].reshape(2, 75_000, 1)
    counts = np.zeros((1, 1, len(HISTOGRAM_EDGES) + 1), np.int32)
    for _ in range(2):
        kernels.count_in_bins(x.view(np.int32), np.array([75_000, 75_000]), np.zeros(2, np.int32), 0, 1, counts)
    assert np.array_equal(counts[0, 0], 2 * histogram(x.ravel()))


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 40))
def test_strongest_come_first_and_of_equals_the_lower_id(seed, slots):
    draw = np.random.default_rng(seed)
    peaks = draw.integers(-2, 3, (7, slots)).astype(np.float32) * np.where(draw.random((7, slots)) < 0.5, 1, -0.0)
    ids = draw.permuted(np.tile(np.arange(slots, dtype=np.uint64), (7, 1)), axis=1) + np.uint64(2**64 - 100)
    order = np.empty((7, slots), np.intp)
    kernels.order_slots(peaks, ids, order)
    for neuron in range(7):
        assert order[neuron].tolist() == sorted(range(slots), key=lambda s: (-peaks[neuron, s], int(ids[neuron, s])))


@settings(max_examples=30)
@given(SEEDS, st.integers(0, 30), st.integers(1, 6))
def test_a_draw_is_of_the_members_with_the_lowest_random_numbers(seed, members, k):
    draw = np.random.default_rng(seed)
    windows, neurons = (draw.integers(0, 2**64, n, dtype=np.uint64) for n in (40, 9))
    chosen_from = np.sort(draw.choice(40, members, replace=False))
    chosen = np.full((9, k), 99, np.int64)
    kernels.draw(windows, neurons, chosen_from, chosen, np.empty((9, k), np.uint64))
    for neuron in range(9):
        by_number = sorted(chosen_from.tolist(), key=lambda w: splitmix(int(windows[w]) ^ int(neurons[neuron])))
        assert chosen[neuron].tolist() == (by_number + [-1] * k)[:k]


def splitmix(number):
    """The finaliser of splitmix64 in whole numbers without end."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = (number ^ (number >> shift)) * factor % 2**64
    return number ^ (number >> 31)


@settings(max_examples=30)
@given(SEEDS)
def test_steps_are_added_to_the_rows_of_their_tokens(seed):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(3, 5, 8)).astype(np.float32)
    lengths, places = draw.integers(1, 6, 3), draw.integers(-1, 4, (3, 5)).astype(np.int32)
    per_unit = np.ldexp(1.0, draw.integers(0, 20, 8)).astype(np.float32)
    sums = np.full((4, 8), 3, np.int32)
    kernels.add_tokens(x, lengths, places, 2, 7, per_unit, sums)

    expected = np.full((4, 8), 3)
    for window in range(3):
        for token in range(lengths[window]):
            if places[window, token] >= 0:
                steps = np.rint(x[window, token].astype(np.float64) * per_unit).astype(np.int64)
                expected[places[window, token], 2:7] += steps[2:7]
    assert np.array_equal(sums, expected)
