"""Best of several: chosen where it is neither shown nor scored, and not at all where nothing can be compared."""

import polars as pl
import pytest

from pipeline.best_of import SPLIT, best, calibrating, rounds
from pipeline.evidence import evidence
from pipeline.ports import Reply
from pipeline.rounds import Round, driven
from pipeline.tables import TABLES
from pipeline.texts import display, token_texts

TRUE = [0.0, 1.0, 0.0, 5.0]
RIGHT, HALF, CONSTANT = [0.0, 2.0, 0.0, 10.0], [0.0, 0.0, 9.0, 10.0], [3.0, 3.0, 3.0, 3.0]


def hypotheses(*texts, missing_because=None):
    schema = {name: kind for name, kind in TABLES["explanations"].schema.items() if name != "run_id"}
    rows = [
        {
            "layer": 0, "neuron": 0, "polarity": "+", "explanation_id": text or "none", "method": "hypotheses:3", "explainer": "m",
            "text": text, "missing_because": missing_because, "request_id": "r", "exemplar_ids": ["x"], "identity": f"sha256:{text}",
        }
        for text in texts
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def simulated(**by_explanation):
    """Simulations from (explanation, the expected activations or the reason, for each of the exemplars)."""
    schema = {name: kind for name, kind in TABLES["simulations"].schema.items() if name != "run_id"}
    rows = [
        {
            "layer": 0, "neuron": 0, "polarity": "+", "explanation_id": explanation, "exemplar_id": f"e{place}", "true": TRUE,
            "expected": None if isinstance(found, str) else found, "missing_because": found if isinstance(found, str) else None,
            "identity": f"sha256:{explanation}{place}", "request_ids": [f"{explanation}{place}"],
        }
        for explanation, several in by_explanation.items()
        for place, found in enumerate(several)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def found(candidates, simulations):
    rows = best(candidates, simulations, number=3)
    TABLES["explanations"].conform(rows.with_columns(run_id=pl.lit("r")))
    assert rows["method"].to_list() == ["best-of:3"]
    return rows.row(0, named=True)["text"] or rows.row(0, named=True)["missing_because"]


@pytest.mark.parametrize(
    ("simulations", "expected"),
    [
        ({"a": [HALF], "b": [RIGHT], "c": [CONSTANT]}, "b"),
        # Of equals the explainer's favourite; scale does not matter.
        ({"a": [RIGHT], "b": [TRUE], "c": [HALF]}, "a"),
        # Compared on what all have: the second sequence, where c is right.
        ({"a": [RIGHT, HALF], "b": ["refused", HALF], "c": [HALF, RIGHT]}, "c"),
        # What was simulated nowhere is no candidate.
        ({"a": ["refused", "refused"], "b": [HALF, HALF], "c": [CONSTANT, CONSTANT]}, "b"),
        ({"a": [CONSTANT], "b": [CONSTANT]}, "constant_simulation"),
        ({"a": ["refused", RIGHT], "b": [RIGHT, "refused"]}, "no_simulation"),
        # What may be answered tomorrow is waited for, whatever the others say.
        ({"a": ["timeout"], "b": ["budget"]}, "timeout"),
        ({"a": [RIGHT, RIGHT], "b": [HALF, "timeout"]}, "timeout"),
        ({"a": [CONSTANT, "budget"], "b": [CONSTANT, CONSTANT]}, "budget"),
        ({}, "no_exemplars"),
    ],
)
def test_the_candidate_that_simulates_best_stands(simulations, expected):
    assert found(hypotheses("a", "b", "c"), simulated(**simulations)) == expected


def test_where_nothing_is_said_nothing_is_chosen():
    assert found(hypotheses(None, missing_because="dead_neuron"), simulated()) == "dead_neuron"


def test_the_requests_that_the_choice_took_are_kept_with_it_but_for_those_that_failed_in_passing():
    rows = best(hypotheses("a", "b"), simulated(a=[RIGHT, "timeout"], b=["unparsable", HALF]), number=2)
    assert rows["other_request_ids"].to_list() == [["a0", "b0", "b1"]]
    assert best(hypotheses(None, missing_because="dead_neuron"), simulated(), number=2)[
        "other_request_ids"
    ].to_list() == [None]


def test_what_it_was_chosen_by_is_part_of_what_it_is():
    one = best(hypotheses("a", "b"), simulated(a=[RIGHT], b=[HALF]), number=3)
    other = best(hypotheses("a", "c"), simulated(a=[RIGHT], c=[HALF]), number=3)
    assert one["text"].to_list() == other["text"].to_list() == ["a"]
    assert one["explanation_id"].to_list() != other["explanation_id"].to_list()


@pytest.fixture(scope="module")
def layer(some_corpus, truth, made):
    sequences = some_corpus(80)
    return made(sequences, truth(sequences), signed=True)


def test_candidates_are_simulated_on_texts_that_are_neither_shown_nor_scored(layer):
    calibration = calibrating(layer.activations, layer.sequences)
    splits = calibration.join(layer.sequences.select("sequence_id", of="split"), on="sequence_id")["of"]
    assert set(splits) == {SPLIT}
    assert calibration.group_by("neuron", "polarity", "stratum").len()["len"].max() <= 5
    assert set(calibration["stratum"]) == {"top", "random"}
    assert calibration.join(layer.exemplars, on="exemplar_id").is_empty()


@pytest.mark.parametrize("way", ["json", "json-logprobs", "all-at-once"])
def test_the_rounds_ask_for_hypotheses_and_then_simulate_each(layer, way):
    texts = display(layer.sequences)
    shown = evidence(layer.exemplars, layer.associations, texts, token_texts(layer.sequences))
    calibration = calibrating(layer.activations, layer.sequences)
    asked: list[Round] = []

    def answer(one):
        asked.append(one)
        said = one.usual or [None] * len(one.requests)
        return [Reply(f"r{place}", text, None if text else "timeout") for place, text in enumerate(said)]

    rows = driven(
        rounds(
            layer.explanations, layer.exemplars, texts, number=2, calibration=calibration, model="m", simulator="s", way=way,
            seed=0, evidence=shown,
        ),
        answer,
        lambda _: pytest.fail("nothing is to be heard"),
    )  # fmt: skip
    first, second = asked
    assert {request.model for request in first.requests} == {"m"}
    assert {request.model for request in second.requests} == {"s"}
    pairs = calibration.join(
        rows.filter(pl.col("missing_because") == "timeout"), on=["layer", "neuron", "polarity"], how="semi"
    )
    assert len(second.requests) == 2 * len(pairs)
    assert len(rows) == layer.explanations.select("neuron", "polarity").n_unique()
    assert rows["text"].null_count() == len(rows)
