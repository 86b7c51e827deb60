"""Neuronpedia's lines and requests: the fields that its readers know, and the limits that its server holds to."""

import json
import string

import numpy as np
import polars as pl
import pytest

from pipeline import imports, neuronpedia_format, neuronpedia_import, openai_format
from pipeline.tables import TABLES

FEATURE = {
    "modelId", "layer", "index", "creatorId", "createdAt", "maxActApprox", "hasVector", "vector", "hookName",
    "topkCosSimIndices", "topkCosSimValues", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1", "correlated_features_indices",
    "correlated_features_pearson", "correlated_features_l1", "neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero",
    "freq_hist_data_bar_heights", "freq_hist_data_bar_values", "logits_hist_data_bar_heights", "logits_hist_data_bar_values",
    "decoder_weights_dist", "sourceSetName",
}  # fmt: skip
ACTIVATION = {
    "id", "tokens", "index", "layer", "modelId", "maxValue", "maxValueTokenIndex", "minValue", "values", "creatorId", "dataSource",
    "dataIndex", "dfaValues", "createdAt", "lossValues", "binMin", "binMax", "binContains", "qualifyingTokenIndex",
}  # fmt: skip
EXPLANATION = {
    "id", "modelId", "layer", "index", "description", "authorId", "typeName", "explanationModelName", "notes", "createdAt",
}  # fmt: skip
MADE = {"model": "gpt2-small", "date": "2026-11-27"}


@pytest.fixture(scope="module")
def lake(some_corpus, truth, made):
    sequences = some_corpus(160, seed=4)
    return made(sequences, truth(sequences))


@pytest.fixture(scope="module")
def texts(lake):
    return openai_format.texts(lake.sequences)


@pytest.fixture(scope="module")
def joined(lake):
    """Connections with output tokens, so many that not all may be uploaded."""
    neurons = lake.statistics.get_column("neuron")
    many = [list(range(12)) * 2] * len(neurons)
    return pl.DataFrame(
        {
            "neuron": neurons,
            **{f"output_{sign}_token_ids": many for sign in ("positive", "negative")},
            **{f"output_{sign}_strengths": [[0.5] * 24] * len(neurons) for sign in ("positive", "negative")},
        }
    )


WORDS = pl.Series([f" t{token}" if token else "" for token in range(12)])


def lines(rows):
    return [json.loads(text) for text in rows.get_column("text")]


def test_a_feature_has_the_fields_of_theirs_with_our_numbers(lake, joined):
    found = lines(neuronpedia_format.features(lake.statistics, joined, WORDS, site="mlp", **MADE))
    row = lake.statistics.row(2, named=True)
    assert set(found[2]) <= FEATURE
    assert (found[2]["layer"], found[2]["index"], found[2]["sourceSetName"]) == ("3", "2", "neurons")
    assert found[2]["maxActApprox"] == row["maximum"]
    assert sum(found[2]["freq_hist_data_bar_heights"]) == pytest.approx(1)
    assert (
        len(found[2]["freq_hist_data_bar_values"])
        == len(row["histogram"])
        == len(found[2]["freq_hist_data_bar_heights"])
    )
    assert found[2]["pos_str"][:2] == ["", " t1"]


def test_bars_stand_in_their_bins_one_after_the_other():
    bars = neuronpedia_format.bar_positions()
    assert bars == sorted(bars)
    assert bars[len(bars) // 2] == 0


def test_every_line_has_the_same_fields_because_the_first_decides(lake, joined, texts):
    kinds = {
        "features": (neuronpedia_format.features(lake.statistics, joined, WORDS, site="mlp", **MADE), FEATURE),
        "activations": (neuronpedia_format.activations(lake.activations, texts, lake.statistics, **MADE), ACTIVATION),
        "explanations": (neuronpedia_format.explanations(lake.explanations, **MADE), EXPLANATION),
    }
    for rows, known in kinds.values():
        fields = {tuple(line) for line in lines(rows)}
        assert len(fields) == 1
        assert set(next(iter(fields))) <= known


def test_activations_are_the_strongest_and_those_between_quantiles(lake, texts):
    found = lines(neuronpedia_format.activations(lake.activations, texts, lake.statistics, **MADE))
    of = [line for line in found if line["index"] == "3"]
    top = [line for line in of if line["binContains"] == -1]
    ours = lake.activations.filter(neuron=3, stratum="top").sort("rank").head(20)
    assert [np.float32(line["maxValue"]) for line in top] == ours.get_column("peak").cast(pl.Float64).to_list()
    assert of[: len(top)] == top
    boundaries = lake.statistics.row(3, named=True)["quantile_boundaries"]
    lowest = [line for line in of if line["binContains"] == 0.5]
    assert {line["binMax"] for line in lowest} == {boundaries[0]}
    for line in of:
        assert line["values"][line["maxValueTokenIndex"]] == line["maxValue"]


def test_ids_are_their_kind_and_each_its_own(lake, texts):
    ids = [
        line["id"] for line in lines(neuronpedia_format.activations(lake.activations, texts, lake.statistics, **MADE))
    ]
    assert len(set(ids)) == len(ids)
    assert all(
        len(name) == 25 and name[0] == "c" and set(name) <= set(string.ascii_lowercase + string.digits) for name in ids
    )


def test_uploads_keep_within_the_limits_and_what_does_not_fit_is_counted(lake, texts, joined):
    long = lake.explanations.with_columns(
        pl.when((pl.col("neuron") == 3) & (pl.col("method") == "token-lookup"))
        .then(pl.lit("x" * 513))
        .otherwise(pl.col("text"))
        .alias("text")
    )
    found, left = neuronpedia_format.uploads(
        lake.statistics, lake.activations, long, joined, sequences=texts, words=WORDS
    )
    for feature in lines(found):
        assert 0 <= feature["density"] <= 1
        assert len(feature["topLogits"]) <= 20
        assert all(one["token"] for one in feature["topLogits"])
        assert all(1 <= len(one["text"]) <= 512 for one in feature["explanations"])
        assert feature["activations"]
        for one in feature["activations"]:
            assert 1 <= len(one["tokens"]) == len(one["values"]) <= 1024
            assert all(one["tokens"])
            assert one["quantileFraction"] is None or 0 <= one["quantileFraction"] <= 1
    assert left["explanations_too_long_to_upload"] == 1
    assert left["excerpts_with_an_empty_token_or_too_long"] == 0


def test_an_excerpt_with_an_empty_token_is_not_uploaded(lake, texts, joined):
    spoiled = texts.with_columns(pl.col("tokens").list.eval(pl.element().replace(" t3", "")))
    found, left = neuronpedia_format.uploads(
        lake.statistics, lake.activations, lake.explanations, joined, sequences=spoiled, words=WORDS
    )
    assert left["excerpts_with_an_empty_token_or_too_long"] > 0
    assert all(all(one["tokens"]) for feature in lines(found) for one in feature["activations"])


@pytest.mark.parametrize(
    ("subject", "name"),
    [("gpt2", "gpt2"), ("EleutherAI/pythia-70m", "pythia-70m"), ("./My Model_v2", "my-model-v2"), ("..", "model")],
)
def test_a_model_is_named_as_neuronpedia_names_one(subject, name):
    assert neuronpedia_format.model_id(subject) == name


def test_what_is_exported_comes_back(lake, texts):
    written = {
        "activations": neuronpedia_format.activations(lake.activations, texts, lake.statistics, **MADE),
        "explanations": neuronpedia_format.explanations(lake.explanations, **MADE),
    }
    found = [
        neuronpedia_import.parse(
            "\n".join(rows.get_column("text")), neuronpedia_import.PATH.fullmatch(f"v1/gpt2-small/3/{kind}/batch-0.jsonl.gz"),
            source="s", path=kind, file="sha256:f",
        )
        for kind, rows in written.items()
    ]  # fmt: skip
    assert [one.rejected for one in found] == [[], []]
    batch = imports.batch(found, [], source="s")
    back = {name: TABLES[name].conform(frame.with_columns(run_id=pl.lit("r"))) for name, frame in batch.frames.items()}
    ours = lake.explanations.drop_nulls("text").select("neuron", "text").sort("neuron", "text")
    assert back["imported_explanations"].select("neuron", "text").sort("neuron", "text").equals(ours)
    top = back["imported_records"].filter(stratum="top", neuron=3).sort("rank").get_column("activations").to_list()
    assert (
        top
        == lake.activations.filter(neuron=3, stratum="top").sort("rank").head(20).get_column("activations").to_list()
    )
