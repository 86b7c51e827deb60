"""OpenAI's files, read back by a reader that knows nothing but the format."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import openai_format

FIELDS = {
    "NeuronId": {"layer_index", "neuron_index"},
    "ActivationRecord": {"tokens", "activations"},
    "NeuronRecord": {
        "neuron_id", "random_sample", "random_sample_by_quantile", "quantile_boundaries", "mean", "variance", "skewness",
        "kurtosis", "most_positive_activation_records",
    },
    "SequenceSimulation": {
        "tokens", "expected_activations", "activation_scale", "distribution_values", "distribution_probabilities",
        "uncalibrated_simulation",
    },
    "ScoredSequenceSimulation": {
        "simulation", "true_activations", "ev_correlation_score", "rsquared_score", "absolute_dev_explained_score",
    },
    "ScoredSimulation": {
        "scored_sequence_simulations", "ev_correlation_score", "rsquared_score", "absolute_dev_explained_score",
    },
    "ScoredExplanation": {"explanation", "scored_simulation"},
    "NeuronSimulationResults": {"neuron_id", "scored_explanations"},
    "TokensAndWeights": {"tokens", "strengths"},
    "WeightBasedSummaryOfNeuron": {"input_positive", "input_negative", "output_positive", "output_negative"},
    "TokenLookupTableSummaryOfNeuron": {"tokens", "average_activations"},
}  # fmt: skip
"""The classes of the format with their fields. The loaders raise TypeError for any other key."""


def loads(text):
    def build(found):
        name = found.pop("dataclass_name")
        assert set(found) == FIELDS[name], name
        return found | {"class": name}

    return json.loads(text, object_hook=build)


def strided(records, splits, n):
    """The records of each split, as the loaders take a list apart."""
    assert len(records) >= n * len(splits)
    return {split: records[place : n * len(splits) : len(splits)] for place, split in enumerate(splits)}


TOP, RANDOM = ("train", "calibration", "valid", "test"), ("calibration", "valid", "test")


@pytest.fixture(scope="module")
def lake(some_corpus, truth, made):
    """A layer of six neurons over a corpus in which each split has windows enough."""
    sequences = some_corpus(160, seed=4)
    return made(sequences, truth(sequences))


@pytest.fixture(scope="module")
def texts(lake):
    return openai_format.texts(lake.sequences)


@pytest.fixture(scope="module")
def records(lake, texts):
    rows = openai_format.neuron_records(lake.activations, texts, lake.statistics)
    return {neuron: loads(text) for neuron, text in rows.select("neuron", "text").iter_rows()}


@pytest.fixture(scope="module")
def results(lake, texts):
    rows = openai_format.explanations(lake.explanations, lake.simulations, lake.scores, lake.exemplars, texts)
    return {neuron: loads(text) for neuron, text in rows.iter_rows()}


def of(split, stratum, lake, neuron):
    """Tokens and activations of our exemplars."""
    rows = lake.exemplars.filter(split=split, stratum=stratum, neuron=neuron, polarity="+").sort("rank")
    words = dict(openai_format.texts(lake.sequences).select("sequence_id", "tokens").iter_rows())
    return [
        (words[sequence], list(activations))
        for sequence, activations in rows.select("sequence_id", "activations").iter_rows()
    ]


def pairs(found):
    # Numbers are written as the shortest text that float32 reads back.
    return [(record["tokens"], np.float32(record["activations"]).tolist()) for record in found]


def test_every_neuron_has_a_record_with_its_moments(lake, records):
    assert list(records) == lake.statistics.get_column("neuron").to_list()
    row = lake.statistics.row(2, named=True)
    assert records[2]["neuron_id"] == {"layer_index": 3, "neuron_index": 2, "class": "NeuronId"}
    assert [records[2][name] for name in ("mean", "variance", "skewness", "kurtosis")] == [
        row["mean"], row["variance"], row["skewness"], row["kurtosis"]
    ]  # fmt: skip
    assert records[2]["quantile_boundaries"] == row["quantile_boundaries"]
    assert len(records[2]["random_sample_by_quantile"]) == 5


def test_train_records_are_what_an_explainer_is_shown_and_valid_ones_what_is_scored(lake, records):
    top = strided(records[3]["most_positive_activation_records"], TOP, 5)
    random = strided(records[3]["random_sample"], RANDOM, 5)
    assert pairs(top["train"]) == of("explain", "top", lake, 3)
    assert pairs(top["valid"]) == of("score", "top", lake, 3)
    assert pairs(random["valid"]) == of("score", "random", lake, 3)


def test_without_a_number_the_loaders_find_the_same_splits(records):
    for record in records.values():
        for name, splits in (("most_positive_activation_records", TOP), ("random_sample", RANDOM)):
            assert len(record[name]) == 5 * len(splits)


def test_a_split_with_few_windows_shortens_all_and_lends_none(some_corpus, truth, made):
    sequences = some_corpus(60, seed=9)
    few = sequences.filter(pl.col("split") == "test").head(2).get_column("sequence_id")
    sequences = sequences.filter((pl.col("split") != "test") | pl.col("sequence_id").is_in(few.to_list()))
    lake = made(sequences, truth(sequences))
    rows = openai_format.neuron_records(lake.activations, openai_format.texts(lake.sequences), lake.statistics)
    assert rows.get_column("n").to_list() == [2] * 6
    record = loads(rows.item(3, "text"))
    assert (
        pairs(strided(record["most_positive_activation_records"], TOP, 2)["train"]) == of("explain", "top", lake, 3)[:2]
    )


def test_scored_sequences_are_the_valid_records_in_their_order(lake, records, results):
    first = results[3]["scored_explanations"][0]["scored_simulation"]["scored_sequence_simulations"]
    top = strided(records[3]["most_positive_activation_records"], TOP, 5)["valid"]
    random = strided(records[3]["random_sample"], RANDOM, 5)["valid"]
    assert [one["simulation"]["tokens"] for one in first] == [record["tokens"] for record in top + random]
    assert [one["true_activations"] for one in first] == [record["activations"] for record in top + random]


def test_the_scores_of_a_file_follow_from_its_simulations(results):
    for result in results.values():
        for explanation in result["scored_explanations"]:
            simulation = explanation["scored_simulation"]
            parts = simulation["scored_sequence_simulations"]
            if not parts or simulation["ev_correlation_score"] is None:
                continue
            true = np.concatenate([part["true_activations"] for part in parts])
            expected = np.concatenate([part["simulation"]["expected_activations"] for part in parts])
            assert simulation["ev_correlation_score"] == pytest.approx(np.corrcoef(true, expected)[0, 1], abs=1e-6)
            assert simulation["rsquared_score"] == pytest.approx(
                1 - np.mean((true - expected) ** 2) / np.mean(true**2), rel=1e-5, abs=1e-5
            )


def test_an_explanation_in_units_that_the_format_cannot_name_has_its_words_and_no_sequences(lake, results):
    linear = lake.explanations.filter(method="token-linear", neuron=3).item(0, "text")
    found = {one["explanation"]: one["scored_simulation"] for one in results[3]["scored_explanations"]}
    assert found[linear]["scored_sequence_simulations"] == []


def test_a_failed_simulation_is_left_out_and_named_beside(lake, texts):
    first = pl.col("row") == pl.col("row").filter(pl.col("simulator") == "token-lookup").min()
    failed = lake.simulations.with_row_index("row").with_columns(
        pl.when(first).then(None).otherwise(pl.col("expected")).alias("expected"),
        pl.when(first).then(pl.lit("timeout")).alias("missing_because"),
    )
    gone = failed.filter(pl.col("expected").is_null()).row(0, named=True)
    rows = openai_format.explanations(lake.explanations, failed, lake.scores, lake.exemplars, texts)
    result = loads(dict(rows.iter_rows())[gone["neuron"]])
    sizes = sorted(
        len(one["scored_simulation"]["scored_sequence_simulations"]) for one in result["scored_explanations"]
    )
    assert sizes == [0, 9]
    records = openai_format.neuron_records(lake.activations, texts, lake.statistics)
    beside = openai_format.provenance(lake.explanations, failed, lake.statistics, records)
    said = json.loads(dict(beside.iter_rows())[gone["neuron"]])
    failures = [one["failed"] for one in said["explanations"] if one["failed"]]
    assert failures == [[{"exemplar_id": gone["exemplar_id"], "missing_because": "timeout"}]]


def test_a_dead_neuron_is_not_explained_but_named_beside(lake, texts, results):
    assert 1 not in results
    records = openai_format.neuron_records(lake.activations, texts, lake.statistics)
    beside = openai_format.provenance(lake.explanations, lake.simulations, lake.statistics, records)
    said = json.loads(dict(beside.iter_rows())[1])
    assert {one["missing_because"] for one in said["explanations"]} == {"dead_neuron"}
    assert len(said["records"]["most_positive_activation_records"]) == 20


def test_the_words_of_a_language_model_stand_before_those_of_baselines(lake, texts):
    rows = lake.explanations.with_columns(
        pl.when((pl.col("method") == "token-linear") & (pl.col("neuron") == 3))
        .then(pl.lit("gpt"))
        .otherwise(pl.col("explainer"))
        .alias("explainer")
    )
    found = openai_format.explanations(rows, lake.simulations, lake.scores, lake.exemplars, texts)
    first = loads(dict(found.iter_rows())[3])["scored_explanations"][0]["explanation"]
    assert first == rows.filter(explainer="gpt").item(0, "text")


def test_tokens_of_a_neuron_stand_with_their_means_the_highest_first(lake):
    words = pl.Series([f" t{token}" for token in range(12)])
    found = openai_format.tokens_by_activation(lake.associations, words)
    row = lake.associations.filter(neuron=3, polarity="+").row(0, named=True)
    means = sorted((mean for mean, count in zip(row["means"], row["counts"], strict=True) if count), reverse=True)
    loaded = loads(dict(found.iter_rows())[3])
    assert np.float32(loaded["average_activations"]).tolist() == means
    assert all(token in words for token in loaded["tokens"])


JOINED = pl.DataFrame(
    {
        "layer": [0, 0],
        "neuron": [0, 1],
        **{
            f"{side}_{sign}_token_ids": [[2, 0], []]
            for side in ("input", "output")
            for sign in ("positive", "negative")
        },
        **{
            f"{side}_{sign}_strengths": [[0.5, 0.25], []]
            for side in ("input", "output", "upstream", "downstream")
            for sign in ("positive", "negative")
        },
        **{
            f"{side}_{sign}_{name}": [[1, 2], []]
            for side in ("upstream", "downstream")
            for sign in ("positive", "negative")
            for name in ("layers", "neurons")
        },
    }
)


def test_connections_name_tokens_by_their_text_and_neurons_by_layer_and_index():
    rows = dict(openai_format.tokens_by_weight(JOINED, pl.Series(["a", "b", "\x00 c"])).iter_rows())
    assert loads(rows[0])["input_positive"] == {
        "tokens": ["\x00 c", "a"],
        "strengths": [0.5, 0.25],
        "class": "TokensAndWeights",
    }
    assert loads(rows[1])["output_negative"]["tokens"] == []
    rows = dict(openai_format.neurons_by_weight(JOINED, last_layer=3).iter_rows())
    found = json.loads(rows[0])
    assert found["c_fc"] is None
    assert found["c_proj"] == {
        "top_positive_neurons": ["1_1", "2_2"], "top_positive_weights": [0.5, 0.25],
        "top_negative_neurons": ["1_1", "2_2"], "top_negative_weights": [0.5, 0.25],
    }  # fmt: skip
    assert json.loads(rows[1])["c_proj"]["top_positive_neurons"] == []


def test_a_model_without_output_tokens_has_no_such_file():
    none = JOINED.with_columns(pl.lit(None, pl.List(pl.Float64)).alias("output_positive_strengths"))
    assert openai_format.tokens_by_weight(none, pl.Series(["a"])).is_empty()


QUARTERS = st.integers(-8, 8).map(lambda number: number / 4)


@given(st.lists(st.lists(st.tuples(QUARTERS, QUARTERS), min_size=1, max_size=9), min_size=1, max_size=5))
def test_the_scores_of_a_sequence_do_not_depend_on_those_beside_it(sequences):
    true = [[y for y, _ in sequence] for sequence in sequences]
    expected = [[s for _, s in sequence] for sequence in sequences]
    together = openai_format.sequence_scores(pl.Series(true), pl.Series(expected))
    for place in range(len(sequences)):
        alone = openai_format.sequence_scores(pl.Series([true[place]]), pl.Series([expected[place]]))
        for one, all_of_them in zip(alone, together, strict=True):
            assert one[0] == (None if all_of_them[place] is None else pytest.approx(all_of_them[place]))


def test_a_constant_sequence_has_no_correlation():
    correlation, *_ = openai_format.sequence_scores(
        pl.Series([[1.0, 1.0], [0.0, 2.0]]), pl.Series([[1.0, 2.0], [1.0, 3.0]])
    )
    assert correlation.to_list() == [None, 1.0]
