"""Scores of judgements: sklearn's numbers, intervals by sequence, chance, and a reason wherever there is none."""

import numpy as np
import polars as pl
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.judged_scores import RESAMPLES, judged_scores
from pipeline.scores import scores
from pipeline.tables import TABLES


def judged(*answers, scorer="detection", explanation_id="e", sequences=None):
    """Judgements from (what is true, what was said or the reason for nothing, probability)."""
    schema = {name: kind for name, kind in TABLES["judgements"].schema.items() if name != "run_id"}
    rows = [
        {
            "layer": 0,
            "neuron": 0,
            "polarity": "+",
            "explanation_id": explanation_id,
            "scorer": scorer,
            "judge": "m",
            "item": place,
            "sequence_id": f"s{place if sequences is None else sequences[place]}",
            "stratum": "random",
            "marked_tokens": [],
            "fits": bool(fits),
            "value": None if isinstance(said, str) else float(said),
            "probability": rest[0] if rest else None,
            "missing_because": said if isinstance(said, str) else None,
            "request_id": "r",
            "identity": f"sha256:{scorer}{place}",
        }
        for place, (fits, said, *rest) in enumerate(answers)
    ]
    return pl.DataFrame(rows, schema=schema)


def explained(text="words", reason=None, explainer="m"):
    schema = {name: kind for name, kind in TABLES["explanations"].schema.items() if name != "run_id"}
    row = {"layer": 0, "neuron": 0, "polarity": "+", "explanation_id": "e", "method": "x", "explainer": explainer,
           "text": text, "missing_because": reason, "exemplar_ids": [], "identity": "sha256:e"}  # fmt: skip
    return pl.DataFrame([row], schema=schema)


def scored(judgements, explanations=None, scorer="detection", seed=0):
    frame = judged_scores(
        judgements, explained() if explanations is None else explanations, judged_by={scorer: "m"}, seed=seed
    )
    return {
        row["scorer"]: row
        for row in TABLES["scores"].conform(frame.with_columns(run_id=pl.lit("r"))).iter_rows(named=True)
    }


ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 1)), min_size=2, max_size=12).filter(
    lambda found: len({fits for fits, *_ in found}) == 2
)


@settings(max_examples=30)
@given(ANSWERS)
def test_the_scores_are_those_of_sklearn(answers):
    found = scored(judged(*answers))
    truth, said, likely = zip(*answers, strict=True)
    assert found["detection"]["value"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(truth, said))
    assert found["detection_f1"]["value"] == pytest.approx(sklearn.metrics.f1_score(truth, said))
    assert found["detection_auc"]["value"] == pytest.approx(sklearn.metrics.roc_auc_score(truth, likely))


def test_without_probabilities_there_is_no_area_and_no_row_of_it():
    assert set(scored(judged((1, 1), (0, 0)))) == {"detection", "detection_f1"}


def test_a_judge_that_is_always_right_has_a_p_value_of_few_permutations_and_one_that_says_yes_to_all_has_1():
    right = scored(judged(*[(1, 1), (0, 0)] * 5))["detection"]
    assert (right["value"], right["ci_low"], right["ci_high"]) == (1, 1, 1)
    assert right["p_value"] < 0.02
    always = scored(judged(*[(1, 1), (0, 1)] * 5))["detection"]
    assert (always["value"], always["p_value"]) == (0.5, 1)


def test_the_interval_resamples_sequences_and_not_texts():
    answers = [(1, 1), (0, 0), (1, 1), (0, 1), (1, 0), (0, 0), (1, 1), (0, 1)]
    places = [0, 0, 1, 1, 2, 2, 3, 3]
    row = scored(judged(*answers, scorer="fuzzing_active", sequences=places), scorer="fuzzing_active", seed=3)[
        "fuzzing_active"
    ]
    drawn = np.random.default_rng([3, 4]).multinomial(4, np.full(4, 1 / 4), size=RESAMPLES)
    slow = []
    for times in drawn:
        chosen = [answer for answer, place in zip(answers, places, strict=True) for _ in range(times[place])]
        slow.append(sklearn.metrics.balanced_accuracy_score(*zip(*chosen, strict=True)))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(np.percentile(slow, (2.5, 97.5))))
    assert row["n_sequences"] == 4


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([(1, 1), (0, "refused"), (0, "refused")], "low_coverage"),
        ([(1, 1), (1, 0)], "one_kind"),
        ([(1, 1), (1, 0), (0, "timeout")], "one_kind"),
        ([(1, "timeout"), (0, "refused"), (0, "refused")], "refused"),
    ],
)
def test_an_undefined_score_is_null_with_its_reason(answers, reason):
    for row in scored(judged(*answers)).values():
        assert (row["value"], row["ci_low"], row["p_value"], row["missing_because"]) == (None, None, None, reason)
        assert row["n_failed"] == sum(isinstance(said, str) for _, said in answers)


def test_an_explanation_that_is_missing_or_has_no_texts_to_be_judged_by_says_so():
    nothing = judged()
    assert {row["missing_because"] for row in scored(nothing, explained(None, "refused")).values()} == {"refused"}
    assert {row["missing_because"] for row in scored(nothing).values()} == {"one_kind"}
    assert scored(nothing, explained(explainer="none")) == {}


def test_the_scores_of_judges_stand_beside_those_of_simulations_and_change_none_of_them():
    simulations = TABLES["simulations"].empty().drop("run_id")
    alone = scores(simulations, explained(), seed=0)
    both = scores(simulations, explained(), seed=0, judgements=judged((1, 1), (0, 0)), judged_by={"detection": "m"})
    assert both.head(len(alone)).equals(alone)
    assert both.tail(2)["scorer"].to_list() == ["detection", "detection_f1"]
    assert both.tail(2)["split"].unique().to_list() == ["active_and_quiet"]
