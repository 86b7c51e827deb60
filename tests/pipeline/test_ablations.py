"""Ablations: the line of a simulation, what is put in the place of a neuron, and what is told of it."""

import numpy as np
import polars as pl
import pytest

from pipeline.ablations import in_question, lines, rows
from pipeline.tables import TABLES


def simulated(*texts, simulator="m", polarity="+", explanation="e"):
    """Simulations from (expected or the reason for none, true)."""
    schema = {name: kind for name, kind in TABLES["simulations"].schema.items() if name != "run_id"}
    made = []
    for place, (expected, true) in enumerate(texts):
        missing = isinstance(expected, str)
        made.append(
            {
                "layer": 0, "neuron": 3, "polarity": polarity, "explanation_id": explanation, "simulator": simulator,
                "exemplar_id": f"x{place}", "stratum": "top", "rank": place, "scale": "scaled",
                "expected": None if missing else expected, "distribution_values": None, "distribution_probabilities": None,
                "true": true, "missing_because": expected if missing else None,
                "coverage": 0.0 if missing else sum(one is not None for one in expected) / len(expected),
                "request_ids": [f"r{place}"], "identity": f"sha256:{simulator}{place}",
            }
        )  # fmt: skip
    return pl.DataFrame(made, schema=schema)


def exemplars(*windows):
    return pl.DataFrame({"exemplar_id": [f"x{place}" for place in range(len(windows))], "token_ids": list(windows)})


STATISTICS = pl.DataFrame({"neuron": [3], "mean": [0.25]})


class Measured:
    """Divergences that tell what was put in place: its sum."""

    def __init__(self):
        self.asked = []

    def __call__(self, window, neurons, values):
        self.asked.append((list(window), list(neurons), values.tolist()))
        return values.astype(np.float64).sum(axis=1)


def test_the_line_is_that_of_numpy_over_all_tokens():
    s, y = [[0.0, 5.0, 10.0], [1.0, None, 2.0]], [[0.1, 2.0, 4.5], [0.2, 9.0, 0.9]]
    found = lines(simulated(*zip(s, y, strict=True)))["e", "m"]
    slope, intercept = np.polyfit([0, 5, 10, 1, 2], [0.1, 2, 4.5, 0.2, 0.9], 1)
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept))
    assert found.request_ids == ("r0", "r1")


def test_the_line_of_a_constant_simulation_is_the_mean():
    found = lines(simulated(([4.0, 4.0], [1.0, 3.0])))["e", "m"]
    assert found.known == (0.0, 2.0)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([("timeout", [1.0, 2.0]), ([1.0, 2.0], [1.0, 2.0])], "timeout"),
        ([("refused", [1.0, 2.0]), ("refused", [1.0, 2.0])], "refused"),
        ([([1.0, None, None], [1.0, 2.0, 3.0])], "low_coverage"),
    ],
)
def test_too_few_answers_give_no_line_and_the_reason(texts, reason):
    found = lines(simulated(*texts))["e", "m"]
    assert (found.known, found.missing_because) == (None, reason)


def test_a_neuron_gets_its_calibrated_simulation_and_its_mean_where_nothing_is_known():
    calibrating = simulated(([0.0, 10.0], [1.0, 3.0]))
    scored = simulated(([0.0, 5.0, None], [0.0, 0.0, 0.0]))
    measure = Measured()
    found = rows(scored, exemplars([7, 8, 9]), STATISTICS, lines(calibrating), measure=measure, checkpoint="c")
    assert measure.asked == [([7, 8, 9], [3, 3], [[0.25, 0.25, 0.25], [1.0, 2.0, 0.25]])]
    row = found.row(0, named=True)
    assert (row["slope"], row["intercept"]) == pytest.approx((0.2, 1.0))
    assert (row["divergence"], row["mean_divergence"], row["n_tokens"]) == (3.25, 0.75, 3)


def test_on_the_negative_side_what_is_put_in_place_is_negative():
    calibrating = simulated(([0.0, 10.0], [0.0, 5.0]), polarity="-")
    measure = Measured()
    rows(
        simulated(([10.0], [5.0]), polarity="-"), exemplars([7]), STATISTICS, lines(calibrating), measure=measure,
        checkpoint="c",
    )  # fmt: skip
    assert measure.asked[0][2] == [[0.25], [-5.0]]


def test_the_mean_is_put_in_place_once_for_all_simulations_of_a_text():
    calibrating = pl.concat([simulated(([0.0, 1.0], [0.0, 1.0]), simulator=name) for name in "mn"])
    scored = pl.concat([simulated(([1.0], [0.5]), ([0.0], [0.5]), simulator=name) for name in "mn"])
    measure = Measured()
    found = rows(scored, exemplars([1], [1]), STATISTICS, lines(calibrating), measure=measure, checkpoint="c")
    ((_, neurons, values),) = measure.asked
    assert neurons == [3] * 5
    assert values[0] == [0.25]
    assert found["mean_divergence"].to_list() == [0.25] * 4


def test_what_cannot_be_measured_has_the_reason():
    scored = simulated(("refused", [1.0]), ([1.0], [1.0]))
    line = lines(simulated(([0.0, 1.0], [0.0, 1.0])))
    found = rows(scored, exemplars([1], [2]), STATISTICS, line, measure=Measured(), checkpoint="c")
    assert found["missing_because"].to_list() == ["refused", None]
    none = rows(scored, exemplars([1], [2]), STATISTICS, {}, measure=Measured(), checkpoint="c")
    assert none["missing_because"].to_list() == ["refused", "no_exemplars"]
    encoder = rows(scored, exemplars([1], [2]), STATISTICS, line, measure=None, checkpoint="c", impossible="not_causal")
    assert encoder["missing_because"].to_list() == ["refused", "not_causal"]
    TABLES["ablations"].conform(encoder.with_columns(run_id=pl.lit("r")))


def test_identities_tell_the_weights_the_line_and_the_simulation_apart():
    def made(calibrating, checkpoint):
        return rows(
            simulated(([1.0], [1.0])), exemplars([1]), STATISTICS, lines(calibrating), measure=Measured(), checkpoint=checkpoint
        ).item(0, "identity")  # fmt: skip

    line, other = simulated(([0.0, 1.0], [0.0, 1.0])), simulated(([0.0, 1.0], [0.0, 2.0]))
    assert len({made(line, "c"), made(line, "d"), made(other, "c")}) == 3
    assert made(line, "c") == made(line, "c")


def test_where_a_language_model_is_asked_only_neurons_with_words_are_looked_at():
    explanations = pl.DataFrame(
        {"layer": [0] * 3, "neuron": [1, 1, 2], "polarity": ["+"] * 3, "explainer": ["none", "gpt", "none"]}
    )
    assert in_question(explanations, asked=True)["neuron"].to_list() == [1, 1]
    assert len(in_question(explanations, asked=False)) == 3
