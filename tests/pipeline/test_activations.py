"""Activations: the records and statistics of a layer are those that a whole array in memory would give."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.activations import PER_STRATUM, QUANTILES, activations, quantile_boundaries, statistics
from pipeline.capture import MAXIMA, PER_SAMPLE, PER_SPLIT, TOP, VECTOR_BITS
from pipeline.tables import SPLITS, TABLES

SEEDS = st.integers(0, 2**31)


@dataclass(frozen=True)
class Recorded:
    """A corpus, what its neurons do, and the tables of it."""

    sequences: pl.DataFrame
    arrays: list[np.ndarray]
    activations: pl.DataFrame
    statistics: pl.DataFrame

    def window(self, sequence_id):
        return self.sequences["sequence_id"].index_of(sequence_id)


@pytest.fixture(scope="module")
def recorded(some_corpus, truth, captured):
    def build(n, seed, *, signed, n_neurons=4, splits=SPLITS):
        sequences = some_corpus(n, seed=seed, splits=splits)
        arrays = truth(sequences, n_neurons=n_neurons, seed=seed)
        plan, capture = captured(sequences, arrays, signed=signed)
        rows = (
            activations(capture, plan, sequences, fingerprint="f"),
            statistics(capture, plan, fingerprint="f", corpus="c"),
        )
        names = ("activations", "neuron_statistics")
        stamped = (frame.with_columns(run_id=pl.lit("r")) for frame in rows)
        return Recorded(
            sequences, arrays, *(TABLES[name].conform(frame) for name, frame in zip(names, stamped, strict=True))
        )

    return build


def brute_top(made, neuron, polarity):
    """The windows that must be in `top`, strongest first, ties by sequence id."""
    sign = -1 if polarity == "-" else 1
    peaks = [(sign * x[:, neuron]).max() for x in made.arrays]
    order = sorted(range(len(peaks)), key=lambda window: (-peaks[window], made.sequences["sequence_id"][window]))
    by_split = [[w for w in order if made.sequences["split"][w] == split][:PER_SPLIT] for split in SPLITS]
    wanted = {*order[:TOP], *(window for windows in by_split for window in windows)}
    return [window for window in order if window in wanted]


@settings(max_examples=15)
@given(st.integers(1, 120), SEEDS, st.booleans())
def test_top_holds_the_strongest_of_the_corpus_and_five_of_each_split(recorded, n, seed, signed):
    layer = recorded(n, seed, signed=signed, splits=(*SPLITS, "explain"))

    top = layer.activations.filter(pl.col("stratum") == "top").sort("neuron", "polarity", "rank")
    found = {
        key: (rows["rank"].to_list(), [layer.window(sequence_id) for sequence_id in rows["sequence_id"]])
        for key, rows in top.group_by("neuron", "polarity", maintain_order=True)
    }

    polarities = ("+", "-") if signed else ("+",)
    assert set(found) == {(neuron, polarity) for neuron in range(4) for polarity in polarities}
    for (neuron, polarity), (ranks, windows) in found.items():
        assert windows == brute_top(layer, neuron, polarity)
        assert ranks == list(range(len(windows)))


@settings(max_examples=15)
@given(st.integers(1, 120), SEEDS, st.booleans())
def test_every_record_is_what_the_neuron_did_and_its_peak_the_first_extreme(recorded, n, seed, signed):
    layer = recorded(n, seed, signed=signed)

    for row in layer.activations.iter_rows(named=True):
        x = layer.arrays[layer.window(row["sequence_id"])][:, row["neuron"]]
        assert row["activations"] == x.tolist()
        position = int((x if row["polarity"] == "+" else -x).argmax())
        assert (row["peak_token"], row["peak"]) == (position, x[position])
    ranks = layer.activations.sort("rank").group_by("neuron", "polarity", "stratum").agg("rank")
    assert all(found == list(range(len(found))) for found in ranks.get_column("rank").to_list())


@settings(max_examples=10)
@given(st.integers(1, 200), SEEDS, st.booleans())
def test_a_stratum_lies_between_its_quantiles_and_the_random_windows_are_the_same_for_both_signs(
    recorded, n, seed, signed
):
    layer = recorded(n, seed, signed=signed)

    for polarity, sign in (("+", 1), ("-", -1))[: 2 if signed else 1]:
        peaks = np.array([(sign * x).max(0) for x in layer.arrays])
        edges = np.quantile(peaks, QUANTILES, axis=0).astype(np.float32)
        edges = np.concatenate([np.full((1, 4), -np.inf), edges, np.full((1, 4), np.inf)])
        rows = layer.activations.filter(pl.col("polarity") == polarity)
        for index in range(5):
            stratum = rows.filter(pl.col("stratum") == f"q{index}")
            at, peak = stratum["neuron"].to_numpy(), sign * stratum["peak"].to_numpy()
            assert (edges[index, at] <= peak).all()
            assert (peak < edges[index + 1, at]).all()
            inside = ((edges[index] <= peaks) & (peaks < edges[index + 1])).sum(0)
            counts = np.bincount(at, minlength=4)
            assert (counts <= np.minimum(inside, PER_STRATUM)).all()
            if n <= TOP:
                assert np.array_equal(counts, np.minimum(inside, PER_STRATUM))
    random = layer.activations.filter(pl.col("stratum") == "random").group_by("neuron", "polarity").agg("sequence_id")
    per_neuron = random.group_by("neuron").agg(pl.col("sequence_id").list.sort().n_unique())
    assert per_neuron.get_column("sequence_id").to_list() == [1] * 4


def test_records_of_a_quantile_stratum_are_drawn_evenly_from_all_windows_in_it(some_corpus, captured):
    # One length for all: the neurons share their windows, and a longer window is a stronger one.
    sequences = some_corpus(1000, longest=1)
    draw = np.random.default_rng(0)
    arrays = [draw.normal(size=(1, 200)).astype(np.float32) for _ in range(1000)]
    plan, capture = captured(sequences, arrays, batch=100)

    rows = activations(capture, plan, sequences, fingerprint="f")

    peaks = np.sort([x.max(0) for x in arrays], axis=0)
    edges = np.quantile(peaks, QUANTILES, axis=0).astype(np.float32)
    edges = np.concatenate([np.full((1, 200), -np.inf), edges, np.full((1, 200), np.inf)])
    for index in range(5):
        stratum = rows.filter(pl.col("stratum") == f"q{index}")
        # A sample that reaches down to a stratum may hold no window of it.
        assert stratum["neuron"].n_unique() >= 180
        places = []
        for neuron, peak in stratum.select("neuron", "peak").iter_rows():
            low, high = (np.searchsorted(peaks[:, neuron], edges[edge, neuron]) for edge in (index, index + 1))
            places.append((np.searchsorted(peaks[:, neuron], np.float32(peak)) - low + 0.5) / (high - low))
        # q4 holds one window of 1,000.
        if index < 4:
            assert scipy.stats.kstest(places, "uniform").pvalue > 1e-4


LARGE = {"MAXIMA": 64, "SAMPLED": 48}
"""Sizes that make a corpus of a few hundred windows a large one."""


@settings(max_examples=15)
@given(n=st.integers(21, 700), seed=SEEDS, signed=st.booleans(), shrink=st.booleans())
def test_a_quantile_is_that_of_the_largest_sample_whose_kept_windows_reach_down_to_it(
    some_corpus, captured, shrunk, *, n, seed, signed, shrink
):
    sequences = some_corpus(n, longest=2, seed=seed)
    draw = np.random.default_rng(seed)
    arrays = [draw.normal(size=(len(ids), 5)).astype(np.float32) for ids in sequences["token_ids"]]
    sizes = LARGE if shrink else {}
    with shrunk(**sizes):
        plan, capture = captured(sequences, arrays, signed=signed, batch=100)
        found = quantile_boundaries(capture)

    assert list(found) == (["+", "-"] if signed else ["+"])
    for polarity, boundaries in found.items():
        peaks = np.array([(x if polarity == "+" else -x).max(0) for x in arrays])
        # What is known of each sample: its windows, and how many of the strongest of them were kept.
        first = peaks[: sizes.get("MAXIMA", MAXIMA)]
        samples = [
            (peaks, TOP),
            *((peaks[plan.level >= level], PER_SAMPLE) for level in plan.levels),
            (first, len(first)),
        ]
        for place, quantile in enumerate(QUANTILES):
            reaching = [rows for rows, kept in samples if (1 - quantile) * (len(rows) - 1) <= kept - 1]
            expected = np.quantile(max(reaching, key=len).astype(np.float64), quantile, axis=0)
            assert np.allclose(boundaries[:, place], expected, rtol=1e-6, atol=1e-7)
        assert (np.diff(boundaries, axis=1) >= 0).all() or shrink
        if n <= len(first):
            assert np.allclose(boundaries, np.quantile(peaks, QUANTILES, axis=0).T, rtol=1e-6, atol=1e-7)


@settings(max_examples=15)
@given(n=st.integers(21, 500), seed=SEEDS, signed=st.booleans(), shrink=st.booleans())
def test_a_stratum_is_a_draw_among_all_its_windows_in_one_sample(
    some_corpus, truth, captured, shrunk, *, n, seed, signed, shrink
):
    sequences = some_corpus(n, longest=2, seed=seed)
    # Few values: most windows have the same maximum as others, and as a boundary.
    arrays = [np.maximum(x, 0) if seed % 2 else x for x in truth(sequences, seed=seed)]
    with shrunk(**(LARGE if shrink else {})):
        plan, capture = captured(sequences, arrays, signed=signed, batch=100)
        edges = {polarity: found.astype(np.float64) for polarity, found in quantile_boundaries(capture).items()}
        rows = activations(capture, plan, sequences, fingerprint="f")

    found = (
        rows.filter(pl.col("stratum").str.starts_with("q")).group_by("neuron", "polarity", "stratum").agg("sequence_id")
    )
    strata = {key[:3]: key[3] for key in found.iter_rows()}
    levels = {level: np.flatnonzero(plan.level >= level) for level in (0, *plan.levels)}
    for polarity, boundaries in edges.items():
        peaks = np.array([(x if polarity == "+" else -x).max(0) for x in arrays])
        for neuron in range(6):
            for index, (low, high) in enumerate(pairwise([-np.inf, *boundaries[neuron], np.inf])):
                inside = (low <= peaks[:, neuron]) & (peaks[:, neuron] < high)
                possible = []
                for level, members in levels.items():
                    wanted = members[inside[members]]
                    slots = capture.strongest[polarity][str(level) if level else "top"]
                    if np.isin(plan.ids[wanted], slots.ids[neuron]).all():
                        possible.append(fair_draw(capture, plan, wanted, neuron))
                assert set(strata.get((neuron, polarity, f"q{index}"), [])) in possible


def fair_draw(capture, plan, members, neuron):
    """The sequence ids of the members that are drawn."""
    ids = plan.ids[members]
    order = np.argsort(capture.priorities(ids, np.full(len(ids), neuron)))
    return {f"{sequence_id:016x}" for sequence_id in ids[order[:PER_STRATUM]]}


@settings(max_examples=15)
@given(st.integers(1, 60), SEEDS)
def test_activations_are_rounded_to_steps_and_peaks_are_not(some_corpus, captured, n, seed):
    sequences = some_corpus(n, seed=seed, longest=12)
    draw = np.random.default_rng(seed)
    scales = np.array([1e-12, 1.0, 1e12])
    arrays = [(draw.normal(size=(len(ids), 3)) * scales).astype(np.float32) for ids in sequences["token_ids"]]
    plan, capture = captured(sequences, arrays, signed=True, probe=scales.astype(np.float32))

    where = {sequence_id: place for place, sequence_id in enumerate(sequences["sequence_id"])}
    for row in activations(capture, plan, sequences, fingerprint="f").iter_rows(named=True):
        x = arrays[where[row["sequence_id"]]][:, row["neuron"]].astype(np.float64)
        half = np.ldexp(1.0, np.frexp(np.abs(x).max())[1] - VECTOR_BITS - 1)
        assert np.abs(np.array(row["activations"]) - x).max() <= half
        extreme = x.max() if row["polarity"] == "+" else x.min()
        # The other end of a random window is known from its steps alone.
        known = 0 if row["polarity"] == "+" or row["stratum"] != "random" else half
        assert abs(row["peak"] - extreme) <= known
        assert abs(x[row["peak_token"]] - extreme) <= 2 * half


@pytest.mark.parametrize("offset", [1, 1e2, 1e3, 3e3, 1e4, 1e5, 1e6, 1e7])
def test_moments_of_a_neuron_far_from_zero_are_right_or_null(some_corpus, captured, offset):
    sequences = some_corpus(100, longest=64)
    draw = np.random.default_rng(0)
    arrays = [(offset + draw.normal(size=(len(ids), 50))).astype(np.float32) for ids in sequences["token_ids"]]
    plan, capture = captured(sequences, arrays, probe=np.full(50, offset, np.float32))

    found = statistics(capture, plan, fingerprint="f", corpus="c")

    x = np.concatenate(arrays).astype(np.float64)
    assert (found["variance"] >= 0).all()
    assert np.allclose(found["variance"], x.var(0), rtol=1e-5, atol=offset**2 * 2.0**-46)
    skewness, kurtosis = scipy.stats.skew(x), scipy.stats.kurtosis(x, fisher=False)
    for row, true_skewness, true_kurtosis in zip(found.iter_rows(named=True), skewness, kurtosis, strict=True):
        if offset <= 1e3:
            assert row["kurtosis"] is not None
        if row["kurtosis"] is not None:
            assert row["skewness"] == pytest.approx(true_skewness, abs=0.01)
            assert row["kurtosis"] == pytest.approx(true_kurtosis, rel=0.01)


def test_which_records_are_drawn_depends_on_the_seed_and_not_on_the_order_of_rows(some_corpus, truth, captured):
    sequences = some_corpus(300, longest=2)

    def strata(frame, seed):
        plan, capture = captured(frame, truth(sequences), seed=seed)
        rows = activations(capture, plan, frame, fingerprint="f")
        return rows.filter(pl.col("stratum").str.starts_with("q")).sort("neuron", "stratum", "rank")

    assert strata(sequences, 1).equals(strata(sequences.sample(fraction=1, shuffle=True, seed=1), 1))
    assert not strata(sequences, 1).equals(strata(sequences, 2))


@settings(max_examples=15)
@given(st.integers(1, 60), SEEDS, st.booleans())
def test_statistics_are_those_of_the_whole_array(recorded, n, seed, signed):
    layer = recorded(n, seed, signed=signed, n_neurons=6)

    x = np.concatenate(layer.arrays).astype(np.float64)
    peaks = np.array([rows.max(0) for rows in layer.arrays])
    found = layer.statistics
    assert found["neuron"].to_list() == list(range(6))
    assert found["count"].to_list() == found["n_tokens"].to_list() == [len(x)] * 6
    assert found["n_sequences"].to_list() == [n] * 6
    assert np.allclose(found["mean"], x.mean(0), rtol=1e-6, atol=1e-6)
    assert np.allclose(found["variance"], x.var(0), rtol=1e-5, atol=1e-9)
    assert np.array_equal(found["minimum"], x.min(0))
    assert np.array_equal(found["maximum"], x.max(0))
    assert np.array_equal(found["fraction_positive"], (x > 0).mean(0))
    assert np.array_equal(
        found["quantile_boundaries"].to_list(), np.quantile(peaks, QUANTILES, axis=0).T.astype(np.float32)
    )
    constant = x.min(0) == x.max(0)
    for name, oracle in (("skewness", scipy.stats.skew), ("kurtosis", lambda v: scipy.stats.kurtosis(v, fisher=False))):
        column = found[name].to_list()
        assert [value is None for value in column] == constant.tolist()
        varied = np.flatnonzero(~constant)
        assert np.allclose([column[neuron] for neuron in varied], oracle(x[:, varied]), rtol=1e-4, atol=1e-4)
    never = (x.max(0) <= 0) & ((x.min(0) >= 0) | (not signed))
    assert found["dead"].to_list() == never.tolist()
    assert found["variance"].to_numpy()[constant].tolist() == [0.0] * constant.sum()


@pytest.mark.parametrize(
    "scale",
    [
        1e-9,
        1e-12,
        1e6,
        1e10,
    ],
)
def test_skewness_and_kurtosis_do_not_depend_on_the_unit(some_corpus, captured, scale):
    draw = np.random.default_rng(0)
    sequences = some_corpus(60, longest=20)
    arrays = [(scale * draw.normal(size=(len(ids), 1))).astype(np.float32) for ids in sequences["token_ids"]]
    plan, capture = captured(sequences, arrays)

    row = statistics(capture, plan, fingerprint="f", corpus="c").row(0, named=True)

    x = np.concatenate(arrays).astype(np.float64)[:, 0]
    assert row["skewness"] == pytest.approx(scipy.stats.skew(x), rel=1e-4)
    assert row["kurtosis"] == pytest.approx(scipy.stats.kurtosis(x, fisher=False), rel=1e-4)


def test_identities_follow_the_weights_the_text_and_the_numbers(some_corpus, truth, captured):
    sequences = some_corpus(30)
    arrays = truth(sequences)
    plan, capture = captured(sequences, arrays)
    arrays[0][0, 2] += 0.25
    _, changed = captured(sequences, arrays)

    def ids(capture, frame, fingerprint):
        rows = activations(capture, plan, frame, fingerprint=fingerprint)
        assert rows["identity"].is_unique().all()
        return set(rows["identity"])

    before = ids(capture, sequences, "f")
    assert ids(capture, sequences.sample(fraction=1, shuffle=True, seed=0), "f") == before
    assert not ids(capture, sequences, "g") & before
    assert ids(changed, sequences, "f") != before
    other = sequences.with_columns(pl.concat_str("identity", pl.lit("x")).alias("identity"))
    assert not ids(capture, other, "f") & before
