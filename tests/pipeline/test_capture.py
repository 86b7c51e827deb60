"""Capture: what is decided before the stream, and captures of some windows and of others that make the one of both."""

import random
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.activations import activations, statistics
from pipeline.associations import associations
from pipeline.capture import (
    HISTOGRAM_EDGES,
    PER_SAMPLE,
    SAMPLED,
    TOP,
    LayerCapture,
    merge,
    nested_levels,
    plan,
    random_numbers,
    sample_levels,
)
from pipeline.errors import CaptureError
from pipeline.tables import SPLITS

SEEDS = st.integers(0, 2**31)
SMALL = {"MAXIMA": 16, "SAMPLED": 24, "HISTOGRAM_WINDOWS": 16}
"""Sizes that make a corpus of fifty windows a large one."""


@pytest.fixture(scope="module")
def varied():
    """What six neurons do on each window, arrays (token, neuron): ties, zeros of both signs, and four scales."""

    def build(sequences, seed=0):
        draw = np.random.default_rng(seed)
        arrays = []
        for tokens in sequences["token_ids"]:
            x = draw.normal(size=(len(tokens), 6)) ** 3 * (1, 1, 1e-3, 1, 1e-6, 30)
            x[:, 0] = draw.integers(-8, 9, len(tokens)) / 4
            x[:, 1] = np.where(draw.random(len(tokens)) < 0.5, -0.0, 0.0)
            x[:, 3] = np.where(x[:, 3] > 1, x[:, 3], x[:, 1])
            arrays.append(x.astype(np.float32))
        return arrays

    return build


def test_a_plan_is_in_the_order_of_ids_whatever_the_order_of_rows(some_corpus):
    sequences = some_corpus(30)
    made, shuffled = plan(sequences), plan(sequences.sample(fraction=1, shuffle=True, seed=1))

    rows = sequences.sort("sequence_id")
    assert [ids.tolist() for ids in made.tokens] == rows.get_column("token_ids").to_list()
    assert [SPLITS[index] for index in made.split] == rows.get_column("split").to_list()
    assert [f"{sequence_id:016x}" for sequence_id in made.ids] == rows.get_column("sequence_id").to_list()
    for name in ("ids", "split", "level", "lookup", "counts", "lengths", "is_open"):
        assert np.array_equal(getattr(made, name), getattr(shuffled, name))


def test_the_tokens_of_a_plan_are_those_of_open_documents_commonest_first_of_equals_the_lower_first(corpus):
    made = plan(corpus(("explain", [9, 4, 7, 7]), ("score", [5] * 5), ("calibrate", [2, 9]), ("test", [1, 1, 1])))
    assert (made.lookup.tolist(), made.counts.tolist()) == ([7, 9, 2, 4], [2, 2, 1, 1])
    assert made.lookup_tokens(8).tolist() == [2, 4, 7, 9]


@pytest.mark.parametrize(("memory", "tokens"), [(3 * 4 * 8, [2, 7, 9]), (3 * 4 * 8 - 1, [7, 9]), (1, [7])])
def test_a_lookup_table_has_as_many_of_the_commonest_tokens_as_its_memory_holds(corpus, shrunk, memory, tokens):
    made = plan(corpus(("explain", [9, 4, 7, 7]), ("calibrate", [2, 9])))
    with shrunk(LOOKUP_BYTES=memory):
        assert made.lookup_tokens(8).tolist() == tokens


def test_the_level_of_a_window_is_how_often_four_divides_its_id(some_corpus):
    ids = [*plan(some_corpus(40)).ids.tolist(), 1, 2, 4, 2**62, 2**63, 3 * 4**20, 2**64 - 1]
    for window, level in zip(ids, sample_levels(np.array(ids, np.uint64)).tolist(), strict=True):
        assert window % 4**level == 0
        assert window % 4 ** (level + 1) != 0
    assert sample_levels(np.zeros(1, np.uint64)).tolist() == [31]


@settings(max_examples=40)
@given(st.integers(0, 200_000), SEEDS)
def test_nested_samples_begin_near_the_size_asked_for_and_end_with_one_that_is_kept_whole(n, seed):
    ids = np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)
    # Faster than one by one: the level of random ids is geometric.
    lowest = ids & (~ids + np.uint64(1))
    level = (np.log2(lowest.astype(np.float64)) // 2).astype(np.int8)
    levels = nested_levels(level)
    sizes = [int((level >= j).sum()) for j in levels]

    if n <= TOP:
        assert levels == []
        return
    assert all(after == before + 1 for before, after in pairwise(levels))
    # Five standard deviations about what is expected.
    first = n / 4 ** levels[0] if levels else 0
    assert first <= SAMPLED
    assert all(abs(size - n / 4**j) <= 5 * (n / 4**j) ** 0.5 + 1 for size, j in zip(sizes, levels, strict=True))
    if levels and levels[0] > 1:
        assert first * 4 > SAMPLED
    below = levels[-1] + 1 if levels else 1
    assert all(size > PER_SAMPLE for size in sizes[:-1])
    assert (sizes and sizes[-1] <= PER_SAMPLE) or not (level >= below).any()


@given(st.integers(0, 30), st.integers(1, 40), SEEDS)
@settings(max_examples=20)
def test_each_window_is_in_one_batch_with_windows_of_its_length(some_corpus, n, size, seed):
    made = plan(some_corpus(n, seed=seed))
    asked = np.flatnonzero(np.random.default_rng(seed).random(n) < 0.7)
    batches = [batch.tolist() for batch in made.batches(asked, size)]

    assert sorted(window for batch in batches for window in batch) == asked.tolist()
    assert all(0 < len(batch) <= size and batch == sorted(batch) for batch in batches)
    lengths = [{len(made.tokens[window]) for window in batch} for batch in batches]
    assert all(len(of_batch) == 1 for of_batch in lengths)
    assert all(min(before) >= max(after) for before, after in pairwise(lengths))


@given(st.integers(0, 30), st.integers(1, 40))
@settings(max_examples=20)
def test_shards_are_all_windows_in_order_and_of_one_size_but_the_last(some_corpus, n, size):
    shards = [shard.tolist() for shard in plan(some_corpus(n)).shards(size)]
    assert [window for shard in shards for window in shard] == list(range(n))
    assert all(len(shard) == size for shard in shards[:-1])
    assert all(0 < len(shard) <= size for shard in shards[-1:])


def test_a_plan_of_nothing_has_no_batches():
    made = plan(pl.DataFrame(schema={"sequence_id": pl.String, "split": pl.String, "token_ids": pl.List(pl.Int32)}))
    nothing = np.arange(0)
    assert (made.n_windows, made.levels, list(made.batches(nothing, 4)), made.shards(4)) == (0, [], [], [])
    assert (made.lookup.tolist(), made.histogram_level) == ([], 0)


def test_random_numbers_of_windows_are_their_own_and_differ_by_layer_and_seed(some_corpus):
    made, fewer = plan(some_corpus(50)), plan(some_corpus(20))
    numbers = made.random_numbers(layer=1, seed=2)
    assert np.array_equal(fewer.random_numbers(layer=1, seed=2), numbers[np.isin(made.ids, fewer.ids)])
    for layer, seed in ((2, 2), (1, 3), (2, 1)):
        assert not np.isin(random_numbers(made.ids, layer=layer, seed=seed), numbers).any()


def test_the_edges_of_the_histogram_ascend_and_are_the_same_on_both_sides_of_zero():
    assert all(before < after for before, after in pairwise(HISTOGRAM_EDGES))
    assert [-edge for edge in reversed(HISTOGRAM_EDGES)] == list(HISTOGRAM_EDGES)
    assert (HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1], min(map(abs, HISTOGRAM_EDGES))) == (-(2.0**12), 2.0**12, 2.0**-12)
    assert {round(after / before, 9) for before, after in pairwise(HISTOGRAM_EDGES[49:])} == {1.5, round(4 / 3, 9)}


def merged_somehow(parts, draw):
    """All captures as one, a few at a time and in any order."""
    parts = list(parts)
    while len(parts) > 1:
        some = [parts.pop(draw.randrange(len(parts))) for _ in range(min(len(parts), draw.randint(2, 4)))]
        parts.append(merge(some))
    return parts[0]


@settings(max_examples=30)
@given(n=st.integers(1, 120), seed=SEEDS, signed=st.booleans(), shards=st.integers(1, 9), shrink=st.booleans())
def test_captures_of_the_shards_of_a_plan_merge_into_the_capture_of_all_to_the_byte(
    some_corpus, varied, captured, differing, shrunk, *, n, seed, signed, shards, shrink
):
    sequences = some_corpus(n, seed=seed, longest=9)
    arrays = varied(sequences, seed)
    draw = random.Random(seed)
    # Some of them may be empty.
    shard_of = np.random.default_rng(seed).integers(0, shards, n)
    with shrunk(**(SMALL if shrink else {})):
        _, whole = captured(sequences, arrays, signed=signed, batch=draw.randint(1, 20))
        parts = [
            captured(
                sequences, arrays, signed=signed, batch=draw.randint(1, 20), windows=np.flatnonzero(shard_of == shard)
            )[1]
            for shard in range(shards)
        ]
        found = merged_somehow(parts, draw)
    assert differing(found, whole) == []


@pytest.mark.parametrize("size", [5, 15, 30, 60, 160])
def test_small_shards_of_a_large_plan_lose_nothing_of_its_samples(
    some_corpus, varied, captured, differing, shrunk, *, size
):
    sequences = some_corpus(200, longest=2)
    arrays = varied(sequences)
    # The largest nested sample is one window in 16, and more than a shard of them.
    with shrunk(SAMPLED=24, TOP=5, PER_SAMPLE=3):
        made, whole = captured(sequences, arrays, signed=True, batch=50)
        parts = [captured(sequences, arrays, signed=True, batch=50, windows=shard)[1] for shard in made.shards(size)]
        assert made.levels[0] == 2
        in_order = merge(parts)
        somehow = merged_somehow(parts, random.Random(0))
    assert differing(in_order, whole) == differing(somehow, whole) == []


@settings(max_examples=30)
@given(n=st.integers(1, 150), seed=SEEDS, signed=st.booleans(), corpora=st.integers(2, 4), shrink=st.booleans())
def test_captures_of_two_corpora_merge_into_the_capture_and_the_tables_of_the_joined_one(
    some_corpus, varied, captured, differing, shrunk, *, n, seed, signed, corpora, shrink
):
    sequences = some_corpus(n, seed=seed, longest=9)
    arrays = varied(sequences, seed)
    corpus_of = np.random.default_rng(seed).integers(0, corpora, n)
    with shrunk(**(SMALL if shrink else {})):
        made, whole = captured(sequences, arrays, signed=signed, batch=30)
        parts = []
        for place in np.unique(corpus_of):
            mine = [x for x, other in zip(arrays, corpus_of, strict=True) if other == place]
            parts.append(captured(sequences.filter(pl.Series(corpus_of == place)), mine, signed=signed, batch=30)[1])
        found = merged_somehow(parts, random.Random(seed))

    # Fewer classes of the histogram may be told apart where the sample became smaller.
    assert set(differing(found, whole)) <= {"histogram"}
    assert np.array_equal(found.histogram.sum(axis=0), whole.histogram.sum(axis=0))
    one, other = (tables_of(capture, made, sequences) for capture in (found, whole))
    for name, rows in one.items():
        assert rows.equals(other[name], null_equal=True), name


def tables_of(capture, made, sequences):
    origin = {"fingerprint": "f", "corpus": "c"}
    records = activations(capture, made, sequences, fingerprint="f")
    return {
        "activations": records,
        "neuron_statistics": statistics(capture, made, **origin),
        "token_associations": associations(capture, made, records, sequences, embeddings=None, reading=None, **origin),
    }


def test_a_merge_of_one_is_that_one_and_a_merge_of_none_is_refused(some_corpus, truth, captured, differing):
    sequences = some_corpus(5)
    _, capture = captured(sequences, truth(sequences))
    assert differing(merge([capture]), capture) == []
    with pytest.raises(CaptureError, match="no captures were given to merge; name at least one"):
        merge([])


def test_captures_that_share_a_window_are_refused(some_corpus, truth, captured):
    sequences = some_corpus(20)
    arrays = truth(sequences)
    made, one = captured(sequences, arrays, windows=np.arange(12))
    _, other = captured(sequences, arrays, windows=np.arange(11, 20))
    with pytest.raises(CaptureError, match=f"window {made.ids[11]:016x} is in both captures, and must be counted once"):
        merge([one, other])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"layer": 4}, "layer=3 and layer=4"),
        ({"seed": 8}, "seed=7 and seed=8"),
        ({"signed": True}, "signed=False and signed=True"),
        ({"width": 5}, "n_neurons=6 and n_neurons=5"),
    ],
)
def test_captures_of_other_layers_seeds_signs_or_widths_are_refused(some_corpus, truth, captured, changed, named):
    sequences = some_corpus(20)
    arrays = truth(sequences)
    _, one = captured(sequences, arrays, windows=np.arange(10))
    width = changed.pop("width", 6)
    _, other = captured(sequences, [x[:, :width] for x in arrays], windows=np.arange(10, 20), **changed)
    with pytest.raises(CaptureError, match=f"captures with {named} cannot be merged; capture both with the same model"):
        merge([one, other])


def test_a_histogram_is_carried_over_to_64_times_the_text_and_not_further(some_corpus, truth, captured, shrunk):
    sequences = some_corpus(300, longest=2)
    arrays = truth(sequences)
    with shrunk(HISTOGRAM_WINDOWS=1):
        _, one = captured(sequences[:1], arrays[:1])
        _, some = captured(sequences[1:64], arrays[1:64])
        _, many = captured(sequences[64:], arrays[64:])
        assert (one.histogram_level, some.histogram_level, many.histogram_level) == (0, 3, 4)
        assert merge([one, some]).histogram_level == 3
        with pytest.raises(
            CaptureError, match="the histogram of 1 windows cannot be carried over to so much more text"
        ):
            merge([one, many])


def test_a_token_without_a_row_in_one_table_is_counted_from_the_other_alone(corpus, truth, captured, shrunk):
    sequences = corpus(("explain", [1, 1, 2, 2, 2]), ("explain", [1, 1, 1, 1, 2]))
    arrays = truth(sequences)
    with shrunk(LOOKUP_BYTES=4 * 6):
        one, other = (captured(sequences[place], [arrays[place]])[1] for place in range(2))
        found, reverse = merge([one, other]), merge([other, one])
    assert sorted([one.lookup.tolist(), other.lookup.tolist()]) == [[1], [2]]
    assert (found.lookup.tolist(), found.lookup_counts.tolist()) == ([1], [4])
    assert np.array_equal(found.token_sums, next(part for part in (one, other) if part.lookup[0] == 1).token_sums)
    assert np.array_equal(found.token_sums, reverse.token_sums)


def test_a_capture_is_what_its_arrays_say(some_corpus, varied, captured, differing):
    sequences = some_corpus(60)
    _, capture = captured(sequences, varied(sequences), signed=True)
    again = LayerCapture.from_arrays(capture.arrays())
    assert differing(again, capture) == []
    assert (again.signed, again.levels, type(again.count)) == (True, capture.levels, int)
    reordered = LayerCapture.from_arrays(dict(sorted(capture.arrays().items(), reverse=True)))
    assert reordered.levels == capture.levels
    assert {name: array.ndim for name, array in capture.arrays().items()}["layer"] == 0


def test_token_means_of_tokens_that_did_not_occur_and_means_of_no_text_are_no_numbers(corpus, truth, captured):
    sequences = corpus(("explain", [1, 2]), ("score", [3]))
    made, capture = captured(sequences, truth(sequences), windows=np.arange(0))
    assert made.lookup_tokens(6).tolist() == capture.lookup.tolist() == [1, 2]
    assert np.isnan(capture.token_means()).all()
    assert np.isnan(capture.open_mean()).all()


def test_a_sample_is_as_large_as_the_windows_that_were_read_of_it(some_corpus, truth, captured):
    sequences = some_corpus(60)
    made, capture = captured(sequences, truth(sequences), windows=np.arange(40))
    assert capture.sample_size(0) == 40
    for level in capture.levels:
        assert capture.sample_size(level) == (made.level[:40] >= level).sum()


def test_priorities_are_one_number_for_each_window_and_neuron(some_corpus, truth, captured):
    sequences = some_corpus(20)
    made, capture = captured(sequences, truth(sequences))
    table = capture.priorities(made.ids, np.arange(6)[:, None])
    pairs = [(window, neuron) for window in range(20) for neuron in range(6)]
    windows, neurons = np.array(pairs).T
    assert np.array_equal(capture.priorities(made.ids[windows], neurons), table[neurons, windows])
    assert len(np.unique(table)) == 120
