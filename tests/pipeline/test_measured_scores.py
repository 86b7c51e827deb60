"""Scores of measured texts: sklearn's numbers, intervals by sequence, chance, and a reason wherever there is none."""

import numpy as np
import polars as pl
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.measured_scores import measured_scores
from pipeline.scores import scores
from pipeline.tables import TABLES


def measured(*texts, scorer="embedding", judge="m", explanation_id="e"):
    """Judgements from (what is true, the value or the reason for none)."""
    schema = {name: kind for name, kind in TABLES["judgements"].schema.items() if name != "run_id"}
    rows = [
        {
            "layer": 0, "neuron": 0, "polarity": "+", "explanation_id": explanation_id, "scorer": scorer, "judge": judge,
            "item": place, "sequence_id": f"s{place}", "stratum": "random", "marked_tokens": [], "fits": bool(fits),
            "value": None if isinstance(value, str) else float(value), "probability": None,
            "missing_because": value if isinstance(value, str) else None, "request_id": "r", "other_request_ids": ["q"],
            "identity": f"sha256:{scorer}{judge}{place}{value}",
        }
        for place, (fits, value) in enumerate(texts)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def explained(text="words", missing_because=None):
    schema = {name: kind for name, kind in TABLES["explanations"].schema.items() if name != "run_id"}
    row = dict.fromkeys(schema) | {
        "layer": 0, "neuron": 0, "polarity": "+", "explanation_id": "e", "method": "summary", "explainer": "gpt",
        "text": text, "missing_because": missing_because, "exemplar_ids": [], "identity": "sha256:e",
    }  # fmt: skip
    return pl.DataFrame([row], schema=schema)


def scored(judgements, explanations=None, by=(("embedding", "m"),)):
    found = measured_scores(judgements, explained() if explanations is None else explanations, measured_by=by, seed=0)
    return {row["scorer"]: row for row in found.iter_rows(named=True)}


texts = st.lists(st.tuples(st.booleans(), st.integers(-5, 5)), min_size=2, max_size=20).filter(
    lambda found: len({fits for fits, _ in found}) == 2
)


@settings(max_examples=40)
@given(texts)
def test_the_area_is_that_of_sklearn_with_an_interval_around_what_can_be(found):
    row = scored(measured(*found))["embedding_auc"]
    assert row["value"] == pytest.approx(sklearn.metrics.roc_auc_score(*zip(*found, strict=True)))
    assert 0 <= row["ci_low"] <= row["ci_high"] <= 1
    assert 0.001 <= row["p_value"] <= 1
    assert (row["n_sequences"], row["n_failed"], row["split"]) == (len(found), 0, "active_and_quiet")


def test_p_is_small_where_all_active_texts_are_nearer_and_large_where_none_is():
    ahead = [(True, 1), (False, 0)] * 8
    assert scored(measured(*ahead))["embedding_auc"]["p_value"] == 0.001
    assert scored(measured(*((not fits, value) for fits, value in ahead)))["embedding_auc"]["p_value"] > 0.9
    assert scored(measured((True, 1), (False, 1)))["embedding_auc"]["p_value"] == 1


def test_values_without_rank_have_no_say_in_p():
    """It is that of scipy's exact Mann and Whitney test, as near as draws come to it."""
    from scipy.stats import mannwhitneyu

    active, quiet = [0.9, 0.7, 0.4, 0.8], [0.3, 0.5, 0.1, 0.2]
    row = scored(measured(*((True, one) for one in active), *((False, one) for one in quiet)))["embedding_auc"]
    assert row["p_value"] == pytest.approx(mannwhitneyu(active, quiet, alternative="greater").pvalue, abs=0.02)


@pytest.mark.parametrize(
    ("judgements", "reason"),
    [
        (measured((True, 1), (True, 2)), "one_kind"),
        (measured((True, "refused"), (False, "refused")), "refused"),
        (measured((True, 1), (False, "timeout"), (False, "timeout")), "low_coverage"),
        (measured((True, 1)).clear(), "one_kind"),
    ],
)
def test_without_a_value_there_is_a_reason(judgements, reason):
    row = scored(judgements)["embedding_auc"]
    assert (row["value"], row["missing_because"], row["p_value"]) == (None, reason, None)


def test_a_missing_explanation_has_one_row_for_its_own_reason_whatever_models_are_asked():
    two = (("embedding", "m"), ("embedding", "n"))
    found = measured_scores(measured().clear(), explained(None, "refused"), measured_by=two, seed=0)
    assert found.select("simulator", "missing_because").rows() == [("none", "refused")]


def test_each_model_has_scores_of_its_own_beside_all_others():
    empty = TABLES["simulations"].empty().drop("run_id")
    both = pl.concat([measured((True, 1), (False, 0)), measured((True, 0), (False, 1), judge="n")])
    by = (("embedding", "m"), ("embedding", "n"))
    found = scores(empty, explained(), seed=0, judgements=both, measured_by=by)
    TABLES["scores"].conform(found.with_columns(run_id=pl.lit("r")))
    ours = found.filter(scorer="embedding_auc").sort("simulator")
    assert ours.select("simulator", "value").rows() == [("m", 1.0), ("n", 0.0)]
    assert found.filter(pl.col("scorer") != "embedding_auc").equals(scores(empty, explained(), seed=0))
    assert np.unique(found["identity"]).size == len(found)


def test_found_intruders_are_a_share_with_the_exact_p_of_luck():
    from scipy.stats import binomtest

    judgements = measured(*((False, found) for found in (1, 1, 1, 0, 1)), scorer="intruder")
    row = scored(judgements, by=(("intruder", "m"),))["intruder"]
    assert row["value"] == 0.8
    assert row["p_value"] == pytest.approx(binomtest(4, 5, 0.2, alternative="greater").pvalue)
    assert row["ci_low"] < 0.8 < row["ci_high"]
    none = scored(judgements.clear(), by=(("intruder", "m"),))["intruder"]
    assert (none["value"], none["missing_because"]) == (None, "too_few_texts")


def test_surprisal_is_the_mean_over_active_texts_and_its_area_is_over_all():
    judgements = measured(*((True, 0.5), (True, 0.3), (True, -0.1), (False, 0.4), (False, 0.0)), scorer="surprisal")
    found = scored(judgements, by=(("surprisal", "m"),))
    assert found["surprisal"]["value"] == pytest.approx(0.7 / 3)
    assert (found["surprisal"]["n_sequences"], found["surprisal"]["split"]) == (3, "active")
    assert found["surprisal_auc"]["value"] == pytest.approx(3 / 6)
    assert (found["surprisal_auc"]["n_sequences"], found["surprisal_auc"]["split"]) == (5, "active_and_quiet")


def test_a_gain_on_every_text_is_no_luck_and_one_on_half_of_them_may_be():
    def p(*gains):
        judgements = measured(*((True, one) for one in gains), scorer="surprisal")
        return scored(judgements, by=(("surprisal", "m"),))["surprisal"]["p_value"]

    assert p(*[0.1] * 10) < 0.01
    assert p(*[0.1, -0.1] * 5) > 0.3
