"""Files of OpenAI's form as rows, and what is not of that form."""

import copy
import json
import string

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import imports, openai_format, openai_import
from pipeline.errors import FormError
from pipeline.rescoring import common_scores
from pipeline.tables import TABLES


def record(*activations, word="t"):
    return {"tokens": [f" {word}{place}" for place in range(len(activations))], "activations": list(activations)}


def neuron_record(n_top=20, n_random=15, **more):
    return {
        "neuron_id": {"layer_index": 5, "neuron_index": 131, "dataclass_name": "NeuronId"},
        "random_sample": [record(0.0, place / 8, word="r") for place in range(n_random)],
        "random_sample_by_quantile": [[record(0.5)], [record(1.5)], [], [], []],
        "quantile_boundaries": [None, 0.25, 0.5, 1.5, 2.0, None],
        "mean": 0.125, "variance": 2.0, "skewness": None, "kurtosis": 3.0,
        "most_positive_activation_records": [record(-0.5, 20.0 - place) for place in range(n_top)],
        "dataclass_name": "NeuronRecord",
    } | more  # fmt: skip


def sequence(expected=(0.0, 10.0), true=(0.5, 2.0), **more):
    return {
        "simulation": {
            "tokens": [" a", " b"], "expected_activations": list(expected),
            "activation_scale": "simulated_normalized_activations",
            "distribution_values": [[0.0], [9.0, 10.0]], "distribution_probabilities": [[1.0], [0.25, 0.75]],
            "uncalibrated_simulation": None,
        },
        "true_activations": list(true), "ev_correlation_score": 1.0, "rsquared_score": None,
        "absolute_dev_explained_score": -3.0,
    } | more  # fmt: skip


def results(*sequences, text=" words about dogs."):
    simulation = {
        "scored_sequence_simulations": list(sequences), "ev_correlation_score": 0.5, "rsquared_score": -2.0,
        "absolute_dev_explained_score": None,
    }  # fmt: skip
    return {
        "neuron_id": {"layer_index": 5, "neuron_index": 131},
        "scored_explanations": [{"explanation": text, "scored_simulation": simulation}],
    }


RECORDS, EXPLANATIONS = "collated-activations/5/131.json", "explanations/5/131.jsonl"


def parse(value, path=RECORDS):
    text = value if isinstance(value, str) else json.dumps(value)
    match = openai_import.PATH.fullmatch(path)
    return openai_import.parse(
        text, match, source="s", path=path, file=imports.file_hash(text.encode("utf-8", "replace"))
    )


def frames(*found):
    """What becomes of them, held to the rules of each table."""
    batch = imports.batch(found, [], source="s")
    return {name: TABLES[name].conform(frame.with_columns(run_id=pl.lit("r"))) for name, frame in batch.frames.items()}


def test_a_record_keeps_its_list_its_place_and_what_it_is_for():
    rows = frames(parse(neuron_record()))["imported_records"]
    top = rows.filter(stratum="top").sort("rank")
    assert top.get_column("split").to_list() == ["explain", "calibrate", "score", "test"] * 5
    assert top.get_column("peak").to_list() == [20.0 - place for place in range(20)]
    assert top.item(3, "activations").to_list() == [-0.5, 17.0]
    random = rows.filter(stratum="random").sort("rank")
    assert random.get_column("split").to_list() == ["calibrate", "score", "test"] * 5
    assert rows.filter(stratum="q1").item(0, "split") == "none"


def test_old_data_with_ten_random_records_have_no_random_test_split():
    random = frames(parse(neuron_record(n_random=10)))["imported_records"].filter(stratum="random").sort("rank")
    assert random.get_column("split").to_list() == ["calibrate", "score"] * 5


def test_records_after_those_that_are_taken_apart_are_for_nothing():
    top = frames(parse(neuron_record(n_top=23)))["imported_records"].filter(stratum="top").sort("rank")
    assert top.get_column("split").to_list()[20:] == ["none"] * 3


def test_moments_are_kept_and_of_the_boundaries_those_that_are_numbers():
    row = frames(parse(neuron_record()))["imported_neurons"].row(0, named=True)
    assert (row["mean"], row["variance"], row["skewness"], row["kurtosis"]) == (0.125, 2.0, None, 3.0)
    assert row["quantile_boundaries"] == [0.25, 0.5, 1.5, 2.0]


def test_without_quantiles_there_are_no_strata_between_them():
    found = frames(parse(neuron_record(random_sample_by_quantile=None, quantile_boundaries=None)))
    assert found["imported_neurons"].item(0, "quantile_boundaries") is None
    assert set(found["imported_records"].get_column("stratum")) == {"top", "random"}


def test_all_files_of_a_neuron_become_one_row_of_it():
    means = parse({"tokens": [" a"], "average_activations": [2.5]}, "related-tokens/activation-based/5/131.json")
    joined = parse({"c_fc": None, "c_proj": None}, "related-neurons/weight-based/5/131.json")
    rows = frames(parse(neuron_record()), means, joined)["imported_neurons"]
    assert len(rows) == 1
    assert rows.item(0, "mean") == 0.125
    assert json.loads(rows.item(0, "token_means")) == {"tokens": [" a"], "average_activations": [2.5]}
    assert json.loads(rows.item(0, "neuron_weights"))["c_fc"] is None


def test_an_explanation_is_kept_word_for_word_with_scores_under_the_names_of_their_source():
    found = frames(parse(results(sequence(), sequence()), EXPLANATIONS))
    assert found["imported_explanations"].item(0, "text") == " words about dogs."
    scores = {row["scorer"]: (row["value"], row["missing_because"]) for row in found["imported_scores"].to_dicts()}
    assert scores == {
        "openai:ev_correlation": (0.5, None), "openai:rsquared": (-2.0, None),
        "openai:absolute_dev_explained": (None, "not_given"),
    }  # fmt: skip
    first, second = found["imported_simulations"].sort("rank").to_dicts()
    assert (first["stratum"], second["stratum"]) == ("top", "random")
    assert (first["expected"], first["true"], first["scale"]) == ([0.0, 10.0], [0.5, 2.0], "scaled")
    assert first["distribution_probabilities"] == [[1.0], [0.25, 0.75]]


def test_a_simulation_without_probabilities_has_none():
    one = sequence()
    one["simulation"] |= {"distribution_values": [], "distribution_probabilities": []}
    assert frames(parse(results(one), EXPLANATIONS))["imported_simulations"].item(0, "distribution_values") is None


def test_fields_renamed_by_the_debugger_are_the_same_fields():
    old = results(sequence(), sequence())
    new = {
        "neuron_id": {"layer": "5", "idx": 131, "dataclass_name": "NeuronId"},
        "scored_explanation_or_baseline_list": [
            {
                "explanation_or_baseline": old["scored_explanations"][0]["explanation"],
                "scored_simulation": {
                    **old["scored_explanations"][0]["scored_simulation"],
                    "scored_sequence_simulations": [
                        {
                            **{name: value for name, value in sequence().items() if name != "simulation"},
                            "sequence_simulation": {
                                **{k: v for k, v in sequence()["simulation"].items() if k != "activation_scale"},
                                "unit": "simulated_normalized_activations", "response": "ignored",
                            },
                        }
                    ] * 2,
                },
            }
        ],
    }  # fmt: skip
    before, after = frames(parse(old, EXPLANATIONS)), frames(parse(new, EXPLANATIONS))
    for name in ("imported_simulations", "imported_scores", "imported_explanations"):
        ids = ["identity", "explanation_id"]
        assert before[name].drop(ids).equals(after[name].drop(ids)), name


def test_our_formulas_find_the_scores_of_a_simulation_that_came_with_it():
    parts = [sequence((0.0, 9.0), (0.5, 2.0)), sequence((1.0, 2.0), (-0.5, 0.25))]
    found = frames(parse(results(*parts), EXPLANATIONS))
    ours = common_scores(
        found["imported_explanations"], found["imported_simulations"], TABLES["common_simulations"].empty(), seed=1
    )
    TABLES["common_scores"].conform(ours.with_columns(run_id=pl.lit("r")))
    value = ours.filter(scorer="ev_correlation", split="top_and_random").item(0, "value")
    assert value == pytest.approx(np.corrcoef([0.0, 9.0, 1.0, 2.0], [0.5, 2.0, -0.5, 0.25])[0, 1])
    assert ours.filter(scorer="ev_correlation", split="random_only").item(0, "n_sequences") == 1


def changed(value, path, to):
    value = copy.deepcopy(value)
    at = value
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = to
    return value


TOP = "most_positive_activation_records"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", r"no JSON: .*"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 10_000, "no JSON that can be read"),
        ("[]", "must be an object"),
        ({}, "must be an object, not nothing"),
        (changed(neuron_record(), ("neuron_id", "neuron_index"), 130), "is of neuron 5:130, its name says 5:131"),
        (changed(neuron_record(), ("neuron_id", "layer_index"), True), "must be a whole number from 0, not true"),
        (changed(neuron_record(), (TOP, 3, "tokens"), []), "tokens of record 3 of `top` must be a list of texts, and not empty"),
        (changed(neuron_record(), (TOP, 3, "tokens", 0), 7), "must be a list of texts, and not empty, not 7"),
        (changed(neuron_record(), (TOP, 3, "tokens", 0), "\ud800"), "holds half a character"),
        (changed(neuron_record(), (TOP, 3, "activations"), [1.0]), "one number for each of 2 tokens, and has 1"),
        (changed(neuron_record(), (TOP, 3, "activations", 1), None), "must be a list of numbers, not nothing"),
        (changed(neuron_record(), (TOP, 3, "activations", 1), "1"), "must be a list of numbers, not \"1\""),
        (changed(neuron_record(), (TOP, 3, "activations", 1), float("nan")), "not finite, or too large"),
        (changed(neuron_record(), (TOP, 3, "activations", 1), 1e39), "not finite, or too large"),
        (changed(neuron_record(), (TOP, 3, "activations", 1), 10**400), "too large"),
        (changed(neuron_record(), ("mean",), "much"), "mean must be a number or null"),
        (neuron_record(random_sample_by_quantile=[[]] * 6), "at most 5 lists, and has 6"),
    ],
    ids=range(18),
)  # fmt: skip
def test_what_is_not_of_the_form_is_rejected_with_the_place(value, said):
    with pytest.raises(FormError, match=said):
        parse(value)


def test_the_place_of_a_broken_text_is_told():
    with pytest.raises(FormError) as error:
        parse('{"neuron_id": }')
    assert error.value.offset == 14
    with pytest.raises(FormError) as error:
        imports.decode(b"abc\xff")
    assert error.value.offset == 3
    line = json.dumps(results(sequence()))
    with pytest.raises(FormError, match="must be one line, not 2") as error:
        parse(f"{line}\n{line}\n", EXPLANATIONS)
    assert error.value.offset == len(line) + 1


@pytest.mark.parametrize(
    ("path", "root", "kind"),
    [
        ("collated-activations/0/1.json", None, "collated-activations"),
        ("collated-activations/neurons/0/1.json", None, "collated-activations"),
        ("gpt2_small_data/explanations/0/1.jsonl", "gpt2_small_data", "explanations"),
        ("a/b/related-tokens/weight-based/0/1.json", "a/b", "related-tokens/weight-based"),
    ],
)
def test_files_are_known_by_their_paths_in_both_layouts(path, root, kind):
    match = openai_import.PATH.fullmatch(path)
    assert (match["root"], match["kind"], match["layer"], match["neuron"]) == (root, kind, "0", "1")


@pytest.mark.parametrize(
    "path", ["explanations/0/a.jsonl", "explanations/1.jsonl", "notes/0/1.json", "explanations/0/1.json.bak"]
)
def test_other_files_are_not_of_the_form(path):
    assert openai_import.PATH.fullmatch(path) is None


def mutilated(text, draw):
    """A file as disks, transfers and other writers leave it."""
    place = int(draw.integers(len(text)))
    kind = int(draw.integers(6))
    if kind == 0:
        return text[:place]
    if kind == 1:
        return text[:place] + text[place + int(draw.integers(1, 40)) :]
    if kind == 2:
        return text[:place] + draw.choice(list(string.printable)) + text[place:]
    if kind == 3:
        return text[:place] + text[: int(draw.integers(len(text)))]
    if kind == 4:
        return text.replace(
            draw.choice(["0.5", "null", '"tokens"', "[", "5", ":"]),
            draw.choice(["NaN", "{}", "[]", '"x"', "-1e999", ""]),
            1,
        )
    return bytes(text.encode()[::-1]).decode("utf-8", "replace")


@pytest.mark.parametrize("path", [RECORDS, EXPLANATIONS])
def test_a_mutilated_file_is_taken_over_or_rejected_and_nothing_else(path):
    text = json.dumps(neuron_record() if path == RECORDS else results(sequence(), sequence()))
    draw = np.random.default_rng(7)
    taken, rejected = [], 0
    for _ in range(150):
        try:
            taken.append(parse(mutilated(text, draw), path))
        except FormError:
            rejected += 1
    assert len(taken) + rejected == 150
    assert rejected > 50
    # What was taken can be written: each by itself, because they are all of one neuron.
    for found in taken:
        frames(found)


FLOATS = st.floats(-100, 100, width=32)


@given(st.lists(st.lists(st.tuples(st.text(max_size=4), FLOATS), min_size=1, max_size=5), min_size=1, max_size=4))
def test_tokens_and_activations_come_back_as_they_were_written(sequences):
    records = [{"tokens": [t for t, _ in one], "activations": [a for _, a in one]} for one in sequences]
    found = parse(neuron_record(random_sample=records))
    rows = frames(found)["imported_records"].filter(stratum="random").sort("rank")
    assert [found.sequences[key] for key in rows.get_column("sequence_id")] == [one["tokens"] for one in records]
    assert rows.get_column("activations").to_list() == [one["activations"] for one in records]


def test_what_is_exported_comes_back(some_corpus, truth, made):
    sequences = some_corpus(160, seed=4)
    lake = made(sequences, truth(sequences))
    texts = openai_format.texts(lake.sequences)
    words = dict(texts.select("sequence_id", "tokens").iter_rows())
    written = openai_format.neuron_records(lake.activations, texts, lake.statistics)
    said = openai_format.explanations(lake.explanations, lake.simulations, lake.scores, lake.exemplars, texts)
    found = [
        openai_import.parse(
            text,
            openai_import.PATH.fullmatch(f"{kind}/3/{neuron}.json"),
            source="s",
            path="p",
            file=imports.file_hash(text.encode()),
        )
        for kind, rows in (("collated-activations", written), ("explanations", said))
        for neuron, text in rows.select("neuron", "text").iter_rows()
    ]
    back = frames(*found)
    tokens = {key: value for one in found for key, value in one.sequences.items()}

    def exemplars(rows, known):
        return {
            (
                row["neuron"],
                row["split"],
                row["stratum"],
                " ".join(known[row["sequence_id"]]),
                tuple(row["activations"]),
            )
            for row in rows.filter(
                pl.col("split").is_in(["explain", "score"]), pl.col("stratum").is_in(["top", "random"])
            ).to_dicts()
        }

    assert exemplars(back["imported_records"], tokens) == exemplars(lake.exemplars, words)
    assert (
        back["imported_neurons"].sort("neuron").get_column("variance").to_list()
        == lake.statistics.get_column("variance").to_list()
    )
    ours = lake.explanations.drop_nulls("text").select("neuron", "text").sort("neuron", "text")
    assert back["imported_explanations"].select("neuron", "text").sort("neuron", "text").equals(ours)
    again = common_scores(
        back["imported_explanations"], back["imported_simulations"], TABLES["common_simulations"].empty(), seed=7
    )
    texts_of = lambda rows: rows.select("explanation_id", "text")  # noqa: E731
    again = again.join(texts_of(back["imported_explanations"]), on="explanation_id")
    first = (
        lake.scores.filter(method="token-lookup")
        .join(texts_of(lake.explanations), on="explanation_id")
        .drop_nulls("value")
    )
    at = ["neuron", "text", "scorer", "split"]
    both = first.join(again, on=at, suffix="_again")
    assert len(both) == len(first)
    assert both.get_column("value").to_list() == pytest.approx(both.get_column("value_again").to_list())
