"""Activations: the records and statistics of a layer are those that a whole array in memory would give."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.activations import PER_STRATUM, QUANTILES, activations, statistics
from pipeline.capture import PER_SPLIT, TOP
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
            activations(capture, plan, sequences, fingerprint="f", seed=7),
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
    sequences = some_corpus(1500, longest=1)
    draw = np.random.default_rng(0)
    arrays = [draw.normal(size=(1, 200)).astype(np.float32) for _ in range(1500)]
    plan, capture = captured(sequences, arrays, batch=100)

    rows = activations(capture, plan, sequences, fingerprint="f", seed=0)

    peaks = np.sort([x.max(0) for x in arrays], axis=0)
    edges = np.quantile(peaks, QUANTILES, axis=0).astype(np.float32)
    edges = np.concatenate([np.full((1, 200), -np.inf), edges, np.full((1, 200), np.inf)])
    for index in range(5):
        stratum = rows.filter(pl.col("stratum") == f"q{index}")
        assert stratum["neuron"].n_unique() == 200
        places = []
        for neuron, peak in stratum.select("neuron", "peak").iter_rows():
            low, high = (np.searchsorted(peaks[:, neuron], edges[edge, neuron]) for edge in (index, index + 1))
            places.append((np.searchsorted(peaks[:, neuron], np.float32(peak)) - low + 0.5) / (high - low))
        # q4 holds two windows of 1,500, and both are kept.
        if index < 4:
            assert scipy.stats.kstest(places, "uniform").pvalue > 1e-4


def test_which_records_are_drawn_depends_on_the_seed_and_not_on_the_order_of_rows(some_corpus, truth, captured):
    sequences = some_corpus(300, longest=2)
    plan, capture = captured(sequences, truth(sequences))

    def strata(frame, seed):
        rows = activations(capture, plan, frame, fingerprint="f", seed=seed)
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
        rows = activations(capture, plan, frame, fingerprint=fingerprint, seed=7)
        assert rows["identity"].is_unique().all()
        return set(rows["identity"])

    before = ids(capture, sequences, "f")
    assert ids(capture, sequences.sample(fraction=1, shuffle=True, seed=0), "f") == before
    assert not ids(capture, sequences, "g") & before
    assert ids(changed, sequences, "f") != before
    other = sequences.with_columns(pl.concat_str("identity", pl.lit("x")).alias("identity"))
    assert not ids(capture, other, "f") & before
