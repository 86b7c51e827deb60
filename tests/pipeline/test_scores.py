"""Scores: OpenAI's formulas, the paper's, their laws, and a reason wherever a score is undefined."""

import numpy as np
import polars as pl
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.scores import CORRELATIONS, COVERAGE_LIMIT, LINEAR, PERCENTILE, RAW, RESAMPLES, SCORERS, SETS, scores
from pipeline.tables import TABLES

SEEDS = st.integers(0, 2**31)
METHOD = "token-activation-pairs"


def explained(*rows):
    """Explanations from (neuron, explanation id, method, reason why there is none)."""
    schema = {name: kind for name, kind in TABLES["explanations"].schema.items() if name != "run_id"}
    filled = [
        {
            "layer": 0,
            "neuron": neuron,
            "polarity": "+",
            "explanation_id": explanation_id,
            "method": method,
            "explainer": "m",
            "text": None if reason else "words",
            "missing_because": reason,
            "exemplar_ids": [],
            "identity": f"sha256:{explanation_id}",
        }
        for neuron, explanation_id, method, reason in rows
    ]
    return pl.DataFrame(filled, schema=schema)


def simulated(explanation_id, *records, neuron=0, simulator="m"):
    """Simulations of one explanation from (stratum, true, expected or the reason why there is none)."""
    schema = {name: kind for name, kind in TABLES["simulations"].schema.items() if name != "run_id"}
    ranks = {"top": 0, "random": 0}
    rows = []
    for stratum, true, expected in records:
        missing = isinstance(expected, str)
        rows.append(
            {
                "layer": 0,
                "neuron": neuron,
                "polarity": "+",
                "explanation_id": explanation_id,
                "simulator": simulator,
                "exemplar_id": f"{stratum}{ranks[stratum]}",
                "stratum": stratum,
                "rank": ranks[stratum],
                "scale": "scaled",
                "expected": None if missing else list(expected),
                "true": list(true),
                "missing_because": expected if missing else None,
                "coverage": 0.0 if missing else 1.0,
                "request_ids": [],
                "identity": f"sha256:{explanation_id}{stratum}{ranks[stratum]}",
            }
        )
        ranks[stratum] += 1
    return pl.DataFrame(rows, schema=schema)


def records(draw, n_top=5, n_random=5, *, shortest=1, longest=8, sharing=0.5):
    """Sequences of float32 with a simulation that shares a part with the truth."""
    found = []
    for stratum in ["top"] * n_top + ["random"] * n_random:
        true = draw.normal(size=draw.integers(shortest, longest + 1)).astype(np.float32)
        found.append((stratum, true, (sharing * true + draw.normal(size=len(true))).astype(np.float32)))
    return found


def scored(rows, explanations=None, seed=0):
    """The rows as the table holds them."""
    if explanations is None:
        explanations = explained((0, "e", METHOD, None))
    frame = scores(rows, explanations, seed=seed)
    return TABLES["scores"].conform(frame.with_columns(run_id=pl.lit("r")))


def by_name(frame, column="value"):
    """{(scorer, split): value}"""
    return {(scorer, split): value for scorer, split, value in frame.select("scorer", "split", column).iter_rows()}


def flat(found, split):
    chosen = [record for record in found if record[0] in SETS[split] and not isinstance(record[2], str)]
    return (np.concatenate([record[place] for record in chosen]).astype(np.float64) for place in (1, 2))


@settings(max_examples=40)
@given(SEEDS, st.floats(-1, 1), st.integers(1, 5), st.integers(1, 5))
def test_the_four_scores_are_those_of_numpy_and_of_openai_over_all_tokens_together(seed, sharing, n_top, n_random):
    found = records(np.random.default_rng(seed), n_top, n_random, sharing=sharing)
    frame = scored(simulated("e", *found))
    values = by_name(frame)

    for split in SETS:
        y, s = flat(found, split)
        assume(len(y) > 2)
        assert values["ev_correlation", split] == pytest.approx(np.corrcoef(y, s)[0, 1], rel=1e-10, abs=1e-12)
        # OpenAI, explanations/scoring.py: rsquared_score_from_sequences, absolute_dev_explained_score_from_sequences.
        assert values["rsquared", split] == pytest.approx(
            1 - np.mean((y - s) ** 2) / np.mean(y**2), rel=1e-12, abs=1e-14
        )
        assert values["absolute_dev_explained", split] == pytest.approx(
            1 - np.mean(np.abs(y - s)) / np.mean(np.abs(y)), rel=1e-12, abs=1e-14
        )
        assert values["explained_variance", split] == pytest.approx(
            sklearn.metrics.r2_score(y, s), rel=1e-10, abs=1e-12
        )
        rows = frame.filter(pl.col("split") == split)
        assert set(rows["n_tokens"]) == {len(y)}
        assert set(rows["n_sequences"]) == {n_random + (n_top if split == "top_and_random" else 0)}
    assert set(values) == {(scorer, split) for scorer in SCORERS for split in SETS}


def test_a_perfect_simulation_scores_one_everywhere_with_an_interval_of_one():
    found = [(stratum, true, true) for stratum, true, _ in records(np.random.default_rng(1))]
    # By rank among the other sequences, the largest value of all is unknown.
    frame = scored(simulated("e", *found)).filter(~pl.col("scorer").is_in(PERCENTILE))
    for column in ("value", "ci_low", "ci_high"):
        assert all(value == pytest.approx(1, abs=1e-12) for value in frame[column])


@settings(max_examples=20)
@given(SEEDS, st.sampled_from([0.125, 2.0, 64.0]), st.integers(-40, 40))
def test_correlation_knows_neither_unit_nor_zero_of_the_simulation(seed, factor, shift):
    draw = np.random.default_rng(seed)
    # Long enough that no resample is constant.
    found = [(stratum, true, np.round(s * 8) / 8) for stratum, true, s in records(draw, shortest=6)]
    other = [(stratum, true, factor * expected + shift) for stratum, true, expected in found]
    flipped = [(stratum, true, -expected) for stratum, true, expected in found]
    one, two, negative = (scored(simulated("e", *rows)) for rows in (found, other, flipped))

    for column in ("value", "ci_low", "ci_high"):
        first, second = (by_name(frame.filter(scorer="ev_correlation"), column) for frame in (one, two))
        assert first == pytest.approx(second, abs=1e-9)
    for key, value in by_name(one.filter(scorer="ev_correlation")).items():
        assert by_name(negative)[key] == pytest.approx(-value, abs=1e-12)


@settings(max_examples=20)
@given(SEEDS, st.randoms())
def test_the_order_of_rows_is_nothing(seed, shuffle):
    rows = simulated("e", *records(np.random.default_rng(seed)))
    places = list(range(len(rows)))
    shuffle.shuffle(places)
    assert scored(rows[places]).equals(scored(rows))


@settings(max_examples=15)
@given(SEEDS, st.integers(1, 8))
def test_one_neuron_alone_scores_to_the_last_bit_as_it_does_among_others(seed, n):
    draw = np.random.default_rng(seed)
    parts = [
        simulated(
            f"e{neuron}",
            *records(draw, int(draw.integers(0, 6)), int(draw.integers(2, 6)), longest=40),
            neuron=neuron,
        )
        for neuron in range(n)
    ]
    explanations = explained(*((neuron, f"e{neuron}", METHOD, None) for neuron in range(n)))

    together = scored(pl.concat(parts), explanations)

    for neuron in range(n):
        alone = scored(parts[neuron], explanations.filter(neuron=neuron))
        assert alone.equals(together.filter(neuron=neuron))


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_the_rank_correlation_is_that_of_scipy_ties_included(seed, n_top, n_random, tied):
    found = records(np.random.default_rng(seed), n_top, n_random)
    if tied:
        found = [(stratum, np.round(y), np.round(s)) for stratum, y, s in found]
    others = records(np.random.default_rng(seed + 1))
    frame = scored(
        pl.concat([simulated("d", *others, neuron=1), simulated("e", *found)]),
        explained((0, "e", METHOD, None), (1, "d", METHOD, None)),
    ).filter(neuron=0)
    for split in SETS:
        y, s = flat(found, split)
        assume(len(set(y)) > 1 and len(set(s)) > 1)
        oracle = scipy.stats.spearmanr(y, s).statistic
        assert by_name(frame)["rank_correlation", split] == pytest.approx(oracle, abs=1e-12)


@settings(max_examples=40)
@given(SEEDS, st.floats(-1, 1), st.integers(2, 5), st.integers(2, 5))
def test_a_line_is_fitted_to_all_sequences_but_the_one_that_it_is_measured_on(seed, sharing, n_top, n_random):
    found = records(np.random.default_rng(seed), n_top, n_random, sharing=sharing, shortest=3)
    values = by_name(scored(simulated("e", *found)))
    for split, strata in SETS.items():
        chosen = [record for record in found if record[0] in strata]
        y = np.concatenate([record[1] for record in chosen]).astype(np.float64)
        lines = []
        for place, (_, _, expected) in enumerate(chosen):
            rest = [record for other, record in enumerate(chosen) if other != place]
            others = [np.concatenate([record[side] for record in rest]).astype(np.float64) for side in (2, 1)]
            lines.append(np.polyval(np.polyfit(*others, 1), expected.astype(np.float64)))
        s = np.concatenate(lines)
        assert values["linear_rsquared", split] == pytest.approx(1 - np.mean((y - s) ** 2) / np.mean(y**2), abs=1e-8)
        assert values["linear_absolute_dev_explained", split] == pytest.approx(
            1 - np.abs(y - s).mean() / np.abs(y).mean(), abs=1e-8
        )
        assert values["linear_explained_variance", split] == pytest.approx(
            1 - np.mean((y - s) ** 2) / y.var(), abs=1e-8
        )


def test_a_line_brings_any_unit_to_that_of_the_neuron():
    found = [(stratum, y, 4 * y - 3) for stratum, y, _ in records(np.random.default_rng(1), shortest=3)]
    values = by_name(scored(simulated("e", *found)))
    for scorer in LINEAR:
        assert values[scorer, "random_only"] == pytest.approx(1, abs=1e-6)
    assert values["rsquared", "random_only"] < 0


def test_a_constant_simulation_predicts_the_mean_of_the_other_sequences():
    found = [("random", [0.0, 1.0], [5.0, 5.0]), ("random", [2.0, 3.0], [5.0, 5.0])]
    values = by_name(scored(simulated("e", *found)))
    # The other sequence's mean is 2.5 for the first and 0.5 for the second: off by 2.5, 1.5, 1.5 and 2.5.
    assert values["linear_absolute_dev_explained", "random_only"] == pytest.approx(1 - 8 / 6)


def test_the_interval_is_that_of_a_slow_bootstrap_over_sequences_with_the_same_weights():
    found = records(np.random.default_rng(3), longest=30)
    frame = scored(simulated("e", *found), seed=11)
    low, high = by_name(frame, "ci_low"), by_name(frame, "ci_high")

    for split, strata in SETS.items():
        # As the table orders them: `random` before `top`.
        chosen = sorted((record for record in found if record[0] in strata), key=lambda record: record[0])
        n = len(chosen)
        weights = np.random.default_rng([11, n]).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        resampled = []
        for row in weights:
            y = np.concatenate([record[1] for record, times in zip(chosen, row, strict=True) for _ in range(times)])
            s = np.concatenate([record[2] for record, times in zip(chosen, row, strict=True) for _ in range(times)])
            y, s = y.astype(np.float64), s.astype(np.float64)
            resampled.append(
                (
                    np.corrcoef(y, s)[0, 1],
                    1 - ((y - s) ** 2).mean() / (y**2).mean(),
                    1 - np.abs(y - s).mean() / np.abs(y).mean(),
                    1 - ((y - s) ** 2).mean() / y.var(),
                )
            )
        bounds = np.percentile(resampled, (2.5, 97.5), axis=0)
        for place, scorer in enumerate(RAW):
            assert low[scorer, split] == pytest.approx(bounds[0, place], abs=1e-9)
            assert high[scorer, split] == pytest.approx(bounds[1, place], abs=1e-9)


def test_a_resample_without_variance_is_left_out_of_the_interval():
    key = ("ev_correlation", "random_only")
    weights = np.random.default_rng([5, 3]).multinomial(3, np.full(3, 1 / 3), size=RESAMPLES)
    for seed in range(12, 25):
        true, expected = np.random.default_rng(seed).normal(size=(2, 3, 7)).astype(np.float32)
        expected[0] = 0.1
        frame = scored(simulated("e", *(("random", y, s) for y, s in zip(true, expected, strict=True))), seed=5)

        resampled = []
        for row in weights:
            y, s = (np.repeat(values, row, axis=0).ravel().astype(np.float64) for values in (true, expected))
            resampled.append(np.nan if np.ptp(s) == 0 else np.corrcoef(y, s)[0, 1])
        assert np.isnan(resampled).sum() > 5
        low, high = np.nanpercentile(resampled, (2.5, 97.5))
        assert by_name(frame, "ci_low")[key] == pytest.approx(low, abs=1e-9)
        assert by_name(frame, "ci_high")[key] == pytest.approx(high, abs=1e-9)


def test_the_interval_agrees_with_that_of_scipy():
    draw = np.random.default_rng(0)
    found = records(draw, 0, 40, longest=2, sharing=1.0)
    frame = scored(simulated("e", *found))

    def correlation(places):
        chosen = [found[int(place)] for place in places]
        return np.corrcoef(np.concatenate([r[1] for r in chosen]), np.concatenate([r[2] for r in chosen]))[0, 1]

    oracle = scipy.stats.bootstrap(
        (np.arange(40),), correlation, vectorized=False, method="percentile", n_resamples=2000, rng=1
    ).confidence_interval
    key = ("ev_correlation", "random_only")
    assert by_name(frame, "ci_low")[key] == pytest.approx(oracle.low, abs=0.04)
    assert by_name(frame, "ci_high")[key] == pytest.approx(oracle.high, abs=0.04)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(4)
    n, true_correlation = 300, 0.6
    parts = []
    for neuron in range(n):
        found = []
        for _ in range(20):
            y = draw.normal(size=10)
            s = true_correlation * y + np.sqrt(1 - true_correlation**2) * draw.normal(size=10)
            found.append(("random", y, s))
        parts.append(simulated(f"e{neuron:03d}", *found, neuron=neuron))
    frame = scored(pl.concat(parts), explained(*((i, f"e{i:03d}", METHOD, None) for i in range(n))))
    rows = frame.filter(scorer="ev_correlation", split="random_only")
    covered = ((rows["ci_low"] <= true_correlation) & (true_correlation <= rows["ci_high"])).mean()
    assert 0.87 < covered < 0.98


def test_another_seed_moves_the_interval_and_not_the_value():
    rows = simulated("e", *records(np.random.default_rng(0)))
    one, two = scored(rows, seed=1), scored(rows, seed=2)
    assert one["value"].equals(two["value"])
    assert not one["ci_low"].equals(two["ci_low"])
    assert not set(one["identity"]) & set(two["identity"])


CONSTANT_SIMULATION = dict.fromkeys(("ev_correlation", "rank_correlation"), "constant_simulation")
CONSTANT_ACTIVATION = dict.fromkeys(
    (*CORRELATIONS, *(scorer for scorer in SCORERS if scorer.endswith("explained_variance"))), "constant_activation"
)


@pytest.mark.parametrize(
    ("true", "expected", "undefined"),
    [
        ([1, 2, 3], [4, 4, 4], CONSTANT_SIMULATION),
        ([0.1, 0.2, 0.3], [0.1, 0.1, 0.1], CONSTANT_SIMULATION),
        ([2, 2, 2], [1, 2, 3], CONSTANT_ACTIVATION),
        ([0.1, 0.1, 0.1], [1, 2, 3], CONSTANT_ACTIVATION),
        ([2, 2, 2], [1, 1, 1], CONSTANT_ACTIVATION),
        ([0, 0, 0], [1, 2, 3], dict.fromkeys(SCORERS, "constant_activation")),
        ([0, 0, 0], [0, 0, 0], dict.fromkeys(SCORERS, "constant_activation")),
    ],
)
def test_an_undefined_score_is_null_with_its_reason(true, expected, undefined):
    frame = scored(simulated("e", ("random", true, expected), ("random", true, expected), ("top", true, expected)))
    for row in frame.iter_rows(named=True):
        reason = undefined.get(row["scorer"])
        assert row["missing_because"] == reason
        assert (row["value"] is None) == (reason is not None)
        if reason:
            assert (row["ci_low"], row["ci_high"]) == (None, None)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e18])
def test_a_neuron_of_any_unit_is_scored(scale):
    draw = np.random.default_rng(0)
    found = [(stratum, true, true + expected) for stratum, true, expected in records(draw)]
    small = [(stratum, scale * true, scale * expected) for stratum, true, expected in found]
    assert by_name(scored(simulated("e", *small))) == pytest.approx(by_name(scored(simulated("e", *found))), abs=1e-5)


def test_a_neuron_that_barely_varies_keeps_its_correlation():
    draw = np.random.default_rng(0)
    steps = draw.integers(0, 5, (10, 30))
    true = np.float32(1000) + steps * np.spacing(np.float32(1000))
    found = [("random", row, other) for row, other in zip(true, steps, strict=True)]
    assert by_name(scored(simulated("e", *found)))["ev_correlation", "random_only"] == pytest.approx(1, abs=1e-9)


def test_a_neuron_with_a_score_may_stand_before_one_without():
    parts = [
        simulated("e0", ("random", [1, 2, 3], [1, 3, 2]), neuron=0),
        simulated("e1", ("random", [1, 2, 3], [1, 1, 1]), neuron=1),
    ]
    frame = scored(pl.concat(parts), explained((0, "e0", METHOD, None), (1, "e1", METHOD, None)))
    rows = frame.filter(scorer="ev_correlation", split="random_only")
    assert rows.select("neuron", "missing_because").rows() == [(0, None), (1, "constant_simulation")]


def test_failed_sequences_are_counted_and_left_out():
    draw = np.random.default_rng(2)
    found = records(draw)
    failed = [
        (stratum, true, "refused" if place in (1, 7, 8) else expected)
        for place, (stratum, true, expected) in enumerate(found)
    ]
    frame = scored(simulated("e", *failed))
    without = scored(simulated("e", *(record for record in failed if not isinstance(record[2], str))))

    assert by_name(frame) == by_name(without)
    assert by_name(frame, "ci_low") == by_name(without, "ci_low")
    assert by_name(frame, "n_failed") == {
        (s, split): 3 if split == "top_and_random" else 2 for s in SCORERS for split in SETS
    }
    assert by_name(frame, "n_sequences") == {
        (s, split): 7 if split == "top_and_random" else 3 for s in SCORERS for split in SETS
    }
    assert not set(frame["identity"]) & set(without["identity"])


def test_where_every_sequence_failed_the_commonest_reason_is_told():
    rows = simulated("e", ("top", [1, 2], "timeout"), ("random", [1, 2], "refused"), ("random", [1, 3], "refused"))
    frame = scored(rows)
    assert set(frame["missing_because"]) == {"refused"}
    assert by_name(frame, "n_failed")["rsquared", "top_and_random"] == 3
    assert set(frame["n_sequences"]) == set(frame["n_tokens"]) == {0}
    assert frame.select("value", "ci_low", "ci_high").null_count().row(0) == (len(frame),) * 3


def test_one_sequence_has_a_value_and_no_interval():
    frame = scored(simulated("e", ("random", [1, 2, 4], [1, 2, 3])))
    alone = frame.filter(pl.col("scorer").is_in([*LINEAR, *PERCENTILE]))
    assert set(alone["missing_because"]) == {"too_few_sequences"}
    assert frame["value"].null_count() == alone["value"].null_count() == len(alone)
    assert frame["ci_low"].null_count() == frame["ci_high"].null_count() == frame["p_value"].null_count() == len(frame)


@pytest.mark.parametrize(("failed", "reason"), [(5, None), (6, "low_coverage"), (10, "refused")])
def test_a_score_of_less_than_half_of_the_tokens_is_none(failed, reason):
    found = records(np.random.default_rng(2), 0, 10, shortest=6, longest=6)
    rows = simulated("e", *((name, y, "refused" if place < failed else s) for place, (name, y, s) in enumerate(found)))
    frame = scored(rows).filter(split="random_only")
    assert COVERAGE_LIMIT == 0.5
    assert set(frame["missing_because"]) == {reason}
    assert set(frame["n_failed"]) == {failed}


def test_only_correlations_have_a_p_value():
    frame = scored(simulated("e", *records(np.random.default_rng(0), shortest=6, longest=6)))
    assert set(frame.drop_nulls("p_value")["scorer"]) == set(CORRELATIONS)
    assert frame["p_value"].drop_nulls().is_between(0.001, 1).all()


def test_the_rank_correlation_has_the_p_value_of_ranks():
    draw = np.random.default_rng(0)
    found = [("random", y, y) for y in draw.normal(size=(6, 8)).astype(np.float32)]
    spoilt = [(name, y, s if place else s - 1000) for place, (name, y, s) in enumerate(found)]
    assert by_name(scored(simulated("e", *found)), "p_value")["rank_correlation", "random_only"] < 0.01
    values = by_name(scored(simulated("e", *spoilt)), "p_value")
    assert values["rank_correlation", "random_only"] < values["ev_correlation", "random_only"]


def test_a_missing_explanation_has_missing_scores_for_its_own_reason():
    frame = scored(simulated("e"), explained((0, "e", METHOD, "truncated"), (1, "f", METHOD, "dead_neuron")))
    assert len(frame) == 2 * len(SCORERS) * len(SETS)
    assert set(frame.select("neuron", "missing_because").rows()) == {(0, "truncated"), (1, "dead_neuron")}
    assert set(frame["simulator"]) == {"none"}


def test_an_explanation_that_was_never_simulated_says_so():
    frame = scored(simulated("e"), explained((0, "e", METHOD, None)))
    assert set(frame["missing_because"]) == {"no_simulation"}
    assert len(frame) == len(SCORERS) * len(SETS)


def test_a_set_without_any_sequence_says_so_too():
    frame = scored(simulated("e", ("top", [1, 2], [1, 3]), ("top", [1, 5], [1, 3])))
    assert by_name(frame, "missing_because")["ev_correlation", "random_only"] == "no_simulation"


def test_no_explanations_have_no_scores():
    frame = scored(simulated("e"), explained())
    assert frame.is_empty()


def test_each_simulator_of_an_explanation_has_its_own_scores():
    draw = np.random.default_rng(0)
    one, two = simulated("e", *records(draw), simulator="a"), simulated("e", *records(draw), simulator="b")
    frame = scored(pl.concat([one, two]))
    assert frame.filter(simulator="a").equals(scored(one))
    assert frame.filter(simulator="b").equals(scored(two))


def test_beside_each_score_stands_that_of_the_baselines_of_the_same_neuron():
    draw = np.random.default_rng(0)
    parts = [
        simulated("l0", *records(draw), neuron=0, simulator="token-lookup"),
        simulated("w0", *records(draw), neuron=0, simulator="token-linear"),
        simulated("l1", *records(draw), neuron=1, simulator="token-lookup"),
        simulated("e0", *records(draw), neuron=0),
        simulated("e1", *records(draw), neuron=1),
    ]
    explanations = explained(
        (0, "l0", "token-lookup", None), (0, "w0", "token-linear", None), (1, "l1", "token-lookup", None),
        (1, "w1", "token-linear", "no_linear_form"), (0, "e0", METHOD, None), (1, "e1", METHOD, None),
    )  # fmt: skip
    frame = scored(pl.concat(parts), explanations)

    def of(explanation_id):
        return by_name(frame.filter(explanation_id=explanation_id))

    for neuron in (0, 1):
        for row in frame.filter(neuron=neuron).iter_rows(named=True):
            key = (row["scorer"], row["split"])
            assert row["token_lookup"] == of(f"l{neuron}")[key]
            assert row["token_linear"] == of(f"w{neuron}")[key]
    assert len(frame) == 6 * len(SCORERS) * len(SETS)


def test_the_baselines_of_a_whole_layer_score_as_sklearn_says(some_corpus, truth, made):
    sequences = some_corpus(100)
    layer = made(sequences, truth(sequences), signed=True)
    rows = layer.scores.filter(scorer="explained_variance", split="top_and_random").drop_nulls("value")
    assert len(rows) > 6
    for explanation_id, value in rows.select("explanation_id", "value").iter_rows():
        chosen = layer.simulations.filter(explanation_id=explanation_id)
        y, s = (chosen[name].explode().to_numpy().astype(np.float64) for name in ("true", "expected"))
        assert value == pytest.approx(sklearn.metrics.r2_score(y, s), abs=1e-9)
