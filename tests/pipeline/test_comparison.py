"""Two sides compared: what they share, which is better, and what a difference comes from."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pipeline.comparison import PARTS, compare, paired_interval, sign_test, together


def side(*neurons, simulator="m", text="words"):
    """The tables of a few neurons, each given as {sequence: (true, expected)}; the score is what they correlate to."""
    exemplars, explanations, simulations, scores = [], [], [], []
    for neuron, texts in enumerate(neurons):
        at = {"layer": 0, "neuron": neuron, "polarity": "+"}
        said = f"{text}-{neuron}"
        explanations.append({**at, "explanation_id": said, "text": text})
        true = np.concatenate([true for true, _ in texts.values()])
        expected = np.concatenate([expected for _, expected in texts.values()])
        with np.errstate(invalid="ignore"):
            r = float(np.corrcoef(true, expected)[0, 1])
        scores.append(
            {**at, "method": "pairs", "simulator": simulator, "explanation_id": said, "value": None if np.isnan(r) else r,
             "scorer": "ev_correlation", "split": "top_and_random"}
        )  # fmt: skip
        for name, (y, s) in texts.items():
            exemplar = f"{name}-{neuron}-{y}"
            exemplars.append({**at, "exemplar_id": exemplar, "sequence_id": name, "activations": y})
            simulations.append(
                {
                    **at,
                    "explanation_id": said,
                    "simulator": simulator,
                    "exemplar_id": exemplar,
                    "expected": s,
                    "true": y,
                }
            )
    return {
        "exemplars": pl.DataFrame(exemplars),
        "explanations": pl.DataFrame(explanations),
        "simulations": pl.DataFrame(simulations),
        "scores": pl.DataFrame(scores, schema_overrides={"value": pl.Float64}),
    }


ONE = {"s1": ([0.0, 1.0, 2.0], [0.0, 5.0, 10.0]), "s2": ([0.0, 0.0, 3.0], [0.0, 1.0, 8.0])}


def only(comparison):
    (row,) = comparison.scores.to_dicts()
    return row


def test_a_side_differs_from_itself_in_nothing():
    found = compare(side(ONE), side(ONE))
    assert only(found)["difference"] == 0
    assert all(only(found)[part] == 0 for part in PARTS)
    (neuron,) = found.neurons.to_dicts()
    assert (neuron["exemplar_overlap"], neuron["shared_sequences"]) == (1, 2)
    assert neuron["activation_correlation"] == pytest.approx(1)
    assert found.methods.row(0, named=True)["p_value"] == 1


def test_the_share_of_sequences_and_the_correlation_are_those_of_what_both_have():
    other = {"s2": ([0.0, 3.0, 0.0], [0.0, 1.0, 8.0]), "s3": ([1.0], [1.0])}
    (neuron,) = compare(side(ONE), side(other)).neurons.to_dicts()
    assert (neuron["exemplar_overlap"], neuron["shared_sequences"]) == (1 / 3, 1)
    assert neuron["activation_correlation"] == pytest.approx(np.corrcoef([0, 0, 3], [0, 3, 0])[0, 1])


def changed(*, true=None, expected=None):
    return {name: (true or y, expected or s) for name, (y, s) in ONE.items()}


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (side(changed(true=[2.0, 1.0, 0.0])), "weights"),
        (side(changed(expected=[9.0, 0.0, 1.0]), text="other words"), "explanation"),
        (side(changed(expected=[9.0, 0.0, 1.0]), simulator="n"), "simulator"),
        (side(changed(expected=[9.0, 0.0, 1.0]), simulator="n", text="other words"), "both"),
        (side({**ONE, "s3": ([0.0, 4.0, 1.0], [3.0, 0.0, 0.0])}), "exemplars"),
    ],
)
def test_a_difference_is_put_down_to_the_one_thing_that_differs(other, part):
    row = only(compare(side(ONE), other))
    assert abs(row["difference"]) > 0.01
    assert row[part] == pytest.approx(row["difference"])
    assert [row[name] for name in PARTS if name != part] == pytest.approx([0] * 4)


values = st.lists(st.floats(0, 10).map(lambda x: round(x, 2)), min_size=3, max_size=3)
texts = st.dictionaries(st.sampled_from(["s1", "s2", "s3"]), st.tuples(values, values), min_size=1)


@given(texts, texts)
def test_the_parts_sum_to_the_difference_wherever_they_are_known(a, b):
    row = only(compare(side(a), side(b, text="other words")))
    if row["weights"] is not None:
        assert sum(row[part] for part in PARTS) == pytest.approx(row["difference"], abs=1e-9)
    if row["difference"] is None:
        assert {row[part] for part in PARTS} == {None}


def test_without_a_common_sequence_nothing_is_put_down_to_anything():
    row = only(compare(side(ONE), side({"s9": ONE["s1"]})))
    assert row["difference"] is not None
    assert {row[part] for part in PARTS} == {None}


def test_a_score_that_is_missing_on_one_side_is_no_difference():
    found = compare(side(ONE), side({"s1": ([1.0, 1.0], [0.0, 5.0])}))
    assert only(found)["difference"] is None
    assert found.methods.select("pairs", "missing").row(0) == (0, 1)


def test_a_neuron_of_one_side_alone_is_said_to_be_so():
    found = compare(side(ONE, ONE), side(ONE))
    assert found.neurons.select("neuron", "in_a", "in_b").rows() == [(0, True, True), (1, True, False)]
    assert len(found.scores) == 1


@pytest.mark.parametrize(("better", "worse", "p"), [(0, 0, 1), (5, 5, 1), (10, 0, 2 / 1024), (8, 2, 112 / 1024)])
def test_the_sign_test_counts_heads_and_tails(better, worse, p):
    assert sign_test(better, worse) == sign_test(worse, better) == pytest.approx(p)


def test_the_interval_is_seeded_and_holds_the_mean():
    differences = np.array([0.1, 0.2, -0.05, 0.3, 0.0, 0.15])
    low, high = paired_interval(differences, seed=1)
    assert low < differences.mean() < high
    assert (low, high) == paired_interval(differences, seed=1)
    assert paired_interval(differences[:1], seed=1) == (None, None)


def test_neurons_compared_some_at_a_time_are_compared_as_all_at_once():
    other = [changed(), changed(expected=[3.0, 1.0, 2.0]), changed(true=[9.0, 1.0, 0.0]), ONE]
    sides = side(ONE, ONE, changed(true=[1.0, 1.0, 2.0]), ONE), side(*other, text="others")

    def some(neurons):
        kept = ({name: rows.filter(pl.col("neuron").is_in(neurons)) for name, rows in one.items()} for one in sides)
        return compare(*kept, seed=3, by_simulator=True)

    whole, parts = compare(*sides, seed=3), together([some([0]), some([1, 2]), some([3])], seed=3)
    for name in ("neurons", "scores", "methods"):
        assert_frame_equal(getattr(parts, name), getattr(whole, name))
