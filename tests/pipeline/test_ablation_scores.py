"""Scores of ablations: 1 for a simulation that is the neuron, 0 for one that is its mean, and a reason where there is none."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ablation_scores import ablation_scores
from pipeline.scores import scores
from pipeline.tables import TABLES

divergences = st.lists(st.tuples(st.floats(0, 0.6), st.floats(1e-6, 0.6)), min_size=2, max_size=10)


def ablated(*pairs, simulator="m", coverage=1.0):
    """Ablations from (divergence or the reason for none, mean divergence); every second one is random."""
    schema = {name: kind for name, kind in TABLES["ablations"].schema.items() if name != "run_id"}
    made = [
        {
            "layer": 0, "neuron": 0, "polarity": "+", "explanation_id": "e", "simulator": simulator,
            "exemplar_id": f"x{place}", "stratum": ("top", "random")[place % 2], "rank": place // 2, "slope": 1.0,
            "intercept": 0.0, "n_tokens": 4, "coverage": coverage, "divergence": None if isinstance(one, str) else one,
            "mean_divergence": None if isinstance(one, str) else mean, "missing_because": one if isinstance(one, str) else None,
            "request_ids": [], "identity": f"sha256:{simulator}{place}{one}",
        }
        for place, (one, mean) in enumerate(pairs)
    ]  # fmt: skip
    return pl.DataFrame(made, schema=schema)


def explained(text="words", missing_because=None, method="summary"):
    schema = {name: kind for name, kind in TABLES["explanations"].schema.items() if name != "run_id"}
    row = dict.fromkeys(schema) | {
        "layer": 0, "neuron": 0, "polarity": "+", "explanation_id": "e", "method": method, "explainer": "gpt", "text": text,
        "missing_because": missing_because, "exemplar_ids": [], "identity": "sha256:e",
    }  # fmt: skip
    return pl.DataFrame([row], schema=schema)


def scored(ablations, explanations=None, split="top_and_random"):
    found = ablation_scores(ablations, explained() if explanations is None else explanations, seed=0)
    return found.filter(split=split).row(0, named=True)


def test_a_perfect_simulation_scores_1_and_the_mean_0():
    assert scored(ablated((0.0, 0.2), (0.0, 0.1)))["value"] == 1
    assert scored(ablated((0.2, 0.2), (0.1, 0.1)))["value"] == 0


def test_the_score_is_one_minus_the_ratio_of_means():
    pairs = [(0.01, 0.2), (0.3, 0.1), (0.02, 0.05), (0.0, 0.4)]
    both = scored(ablated(*pairs))
    assert both["value"] == pytest.approx(1 - np.mean([0.01, 0.3, 0.02, 0]) / np.mean([0.2, 0.1, 0.05, 0.4]))
    assert (both["n_sequences"], both["n_tokens"], both["n_failed"]) == (4, 16, 0)
    assert scored(ablated(*pairs), split="random_only")["value"] == pytest.approx(1 - 0.3 / 0.5)


@settings(max_examples=40)
@given(divergences)
def test_intervals_are_around_what_could_be_and_p_is_a_share(pairs):
    row = scored(ablated(*pairs))
    assert row["ci_low"] <= row["ci_high"]
    ratios = [1 - one / mean for one, mean in pairs]
    assert min(ratios) - 1e-9 <= row["ci_low"] <= row["ci_high"] <= max(ratios) + 1e-9
    assert 0.001 <= row["p_value"] <= 1


def test_p_is_small_where_every_text_is_better_and_large_where_none_is():
    better = [(0.01, 0.2)] * 10
    assert scored(ablated(*better))["p_value"] < 0.005
    assert scored(ablated(*((mean, one) for one, mean in better)))["p_value"] == 1
    assert scored(ablated((0.1, 0.1), (0.1, 0.1)))["p_value"] == 1


@pytest.mark.parametrize(
    ("ablations", "reason"),
    [
        (ablated((1e-12, 2e-12), (0.0, 0.0)), "no_effect"),
        (ablated(("refused", None), ("refused", None)), "refused"),
        (ablated(("refused", None), ("timeout", None), ("timeout", None), (0.0, 0.1)), "low_coverage"),
        (ablated((0.1, 0.2), (0.1, 0.2), coverage=0.3), "low_coverage"),
        (ablated(("not_causal", None)), "not_causal"),
    ],
)
def test_without_a_value_there_is_a_reason(ablations, reason):
    row = scored(ablations)
    assert (row["value"], row["missing_because"], row["ci_low"], row["p_value"]) == (None, reason, None, None)


def test_one_text_has_a_value_and_neither_interval_nor_p():
    row = scored(ablated((0.1, 0.2)))
    assert row["value"] == 0.5
    assert (row["ci_low"], row["p_value"]) == (None, None)


def test_a_missing_explanation_has_missing_scores_for_its_own_reason():
    row = scored(ablated().clear(), explained(None, "dead_neuron"))
    assert (row["value"], row["missing_because"], row["n_sequences"]) == (None, "dead_neuron", 0)


def test_they_stand_beside_the_other_scores_each_with_those_of_the_baselines():
    by_lookup = ablated((0.1, 0.2), (0.1, 0.2), simulator="token-lookup").with_columns(explanation_id=pl.lit("b"))
    words = pl.concat([explained(), explained(method="token-lookup").with_columns(explanation_id=pl.lit("b"))])
    empty = TABLES["simulations"].empty().drop("run_id")
    found = scores(
        empty, words, seed=0, ablations=pl.concat([ablated((0.0, 0.2), (0.0, 0.2)), by_lookup]), ablated=words
    )
    TABLES["scores"].conform(found.with_columns(run_id=pl.lit("r")))
    ours = found.filter(scorer="ablation", split="top_and_random").sort("explanation_id")
    assert ours["token_lookup"].to_list() == [0.5, 0.5]
    assert ours["value"].to_list() == [0.5, 1.0]
    others = scores(empty, words, seed=0)
    assert found.filter(pl.col("scorer") != "ablation").equals(others)
