"""Exemplars: five to show, ten to score on, no document on both sides, one scale."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.exemplars import exemplars, relisted
from pipeline.scale import scale

SEEDS = st.integers(0, 2**31)
AT = ("neuron", "polarity")


@pytest.fixture(scope="module")
def layer(some_corpus, truth, made):
    sequences = some_corpus(160)
    return made(sequences, truth(sequences), signed=True)


def test_five_are_shown_five_top_and_five_random_are_scored(layer):
    counts = layer.exemplars.group_by(*AT, "split", "stratum").agg(pl.col("rank").sort())
    assert set(counts.select("split", "stratum").rows()) == {("explain", "top"), ("score", "top"), ("score", "random")}
    assert counts.height == 6 * 2 * 3
    assert all(ranks == [0, 1, 2, 3, 4] for ranks in counts.get_column("rank").to_list())


def test_no_document_is_shown_and_scored(layer):
    documents = layer.exemplars.join(
        layer.sequences.select("sequence_id", "document_hash", true_split="split"), on="sequence_id"
    )
    assert (documents["split"] == documents["true_split"]).all()
    assert documents.group_by("document_hash").agg(pl.col("split").n_unique())["split"].max() == 1


@settings(max_examples=12)
@given(n=st.integers(3, 80), seed=SEEDS, signed=st.booleans())
def test_the_strongest_of_each_split_are_chosen_with_ties_to_the_lower_id(some_corpus, truth, made, *, n, seed, signed):
    sequences = some_corpus(n, seed=seed, splits=("explain", "score", "test"))
    if not {"explain", "score"} & set(sequences["split"]):
        return
    layer = made(sequences, truth(sequences, n_neurons=3, seed=seed), signed=signed)

    for (neuron, polarity), rows in layer.exemplars.group_by(*AT):
        sign = -1 if polarity == "-" else 1
        for split in ("explain", "score"):
            windows = [w for w in range(n) if sequences["split"][w] == split]
            order = sorted(windows, key=lambda w: -(sign * layer.arrays[w][:, neuron]).max())[:5]
            found = rows.filter((pl.col("split") == split) & (pl.col("stratum") == "top")).sort("rank")
            assert found["sequence_id"].to_list() == [sequences["sequence_id"][w] for w in order]


def test_the_scale_is_that_of_the_strongest_activation_shown_and_every_step_is_its_own(layer):
    for _, rows in layer.exemplars.group_by(*AT):
        sign = -1.0 if rows["polarity"][0] == "-" else 1.0
        shown = rows.filter(pl.col("split") == "explain")
        maximum = max(0.0, *(sign * x for xs in shown["activations"] for x in xs))
        assert rows["scale_maximum"].to_list() == [maximum] * len(rows)
        for xs, steps in rows.select("activations", "scaled_activations").iter_rows():
            assert steps == scale(np.array(xs) * sign, maximum).tolist()
        assert max(max(steps) for steps in shown["scaled_activations"]) == (10 if maximum else 0)


def test_tokens_and_activations_are_those_of_the_sequence(layer):
    for row in layer.exemplars.iter_rows(named=True):
        window = layer.window(row["sequence_id"])
        assert row["token_ids"] == layer.sequences["token_ids"][window].to_list()
        assert row["activations"] == layer.arrays[window][:, row["neuron"]].tolist()


def test_one_neuron_alone_has_the_exemplars_it_has_among_others(layer):
    columns = [name for name in layer.exemplars.columns if name != "run_id"]
    for neuron in range(6):
        alone = exemplars(layer.activations.filter(pl.col("neuron") == neuron), layer.sequences)
        among = layer.exemplars.filter(pl.col("neuron") == neuron).select(columns)
        assert alone.select(columns).sort("exemplar_id").equals(among.sort("exemplar_id"))


def test_the_order_of_rows_is_nothing(layer):
    def shuffled(frame):
        return frame.sample(fraction=1, shuffle=True, seed=3)

    rows = exemplars(shuffled(layer.activations), shuffled(layer.sequences))
    assert rows.sort("exemplar_id").equals(exemplars(layer.activations, layer.sequences).sort("exemplar_id"))


def test_a_neuron_without_documents_to_show_has_no_scale(corpus, truth, made):
    sequences = corpus(("score", [1, 2]), ("score", [3]), ("test", [1]))
    rows = made(sequences, truth(sequences)).exemplars
    assert set(rows["split"]) == {"score"}
    assert set(rows["scale_maximum"]) == {0.0}
    assert set(rows["scaled_activations"].explode()) == {0}


def test_a_corpus_with_nothing_to_show_or_score_has_no_exemplars(corpus, truth, made):
    sequences = corpus(("test", [1, 2]), ("calibrate", [3]))
    assert made(sequences, truth(sequences)).exemplars.is_empty()


@given(st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=4), max_size=5))
def test_a_flat_column_is_cut_back_into_its_lists(lists):
    column = pl.Series(lists, dtype=pl.List(pl.Int64))
    flat = pl.Series([item for items in lists for item in items], dtype=pl.Int64)
    assert relisted(flat, column.list.len()).to_list() == lists
    assert relisted(flat, column.list.len()).dtype == pl.List(pl.Int64)
