"""Scores of judgements: how often a language model that reads an explanation is right about texts.

With "yes" for texts that fit:

    detection        balanced accuracy, (share of fitting texts called so + share of the others not called so) / 2
    detection_f1     2 TP / (2 TP + FP + FN)
    detection_auc    share of pairs of a fitting and another text in which the fitting one has the higher probability;
                     only where the endpoint gives probabilities

and the same of `fuzzing` and `fuzzing_active`. By chance the first and the last are 0.5. Delphi calls the first accuracy
(`log/result_analysis.py`); where it takes an undefined share for 0, ours is null with a reason. The interval is a
cluster bootstrap by sequence. The p-value of balanced accuracy is the share of permutations of what is true among the
texts that are answered as rightly (Phipson and Smyth 2010).
"""

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.judgements import SCORERS, written
from pipeline.permutation import PERMUTATIONS, ROUNDING
from pipeline.provenance import content_hash, identity
from pipeline.tables import TABLES

FORMULA_VERSION = 1
RESAMPLES = 500
COVERAGE_LIMIT = 0.5
"""Least share of texts with an answer."""
SPLITS = {"detection": "active_and_quiet", "fuzzing": "active_and_quiet", "fuzzing_active": "active"}
"""The texts of each scorer."""
MEASURES = ("", "_f1", "_auc")
JUDGED = {scorer + measure: scorer for scorer in SCORERS for measure in MEASURES}
"""The names of scores that are made from judgements, each with the scorer of these."""

Floats = NDArray[np.float64]
AT = ["layer", "neuron", "polarity", "explanation_id"]


def judged_scores(
    judgements: pl.DataFrame, explanations: pl.DataFrame, *, judged_by: Mapping[str, str], seed: int
) -> pl.DataFrame:
    """The `scores` rows of these scorers, each with its judge, for every explanation that is judged, without `run_id`.

    A missing explanation has missing scores for its own reason. `seed` draws resamples and permutations.
    """
    answered = {
        (explanation_id, scorer): group
        for (explanation_id, scorer), group in judgements.sort("item").group_by(
            "explanation_id", "scorer", maintain_order=True
        )
    }
    asked = explanations.filter(pl.col("explainer") != "none").sort("layer", "neuron", "polarity", "explanation_id")
    with_text = set(written(explanations).get_column("explanation_id"))
    found: list[dict[str, object]] = []
    for row in asked.iter_rows(named=True):
        for scorer, judge in judged_by.items():
            group = answered.get((row["explanation_id"], scorer))
            if group is None:
                reason = "one_kind" if row["explanation_id"] in with_text else row["missing_because"]
                measured = _without(reason, row["identity"], scorer)
            else:
                measured = _measured(group, scorer, seed=seed)
            found.extend(
                {
                    **{name: row[name] for name in (*AT, "method")},
                    "simulator": "none" if group is None else judge,
                    "formula_version": FORMULA_VERSION,
                    "split": SPLITS[scorer],
                    "token_lookup": None,
                    "token_linear": None,
                    **one,
                }
                for one in measured
            )
    schema = {name: kind for name, kind in TABLES["scores"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)


def _without(reason: str | None, explanation: str, scorer: str) -> Iterator[dict[str, object]]:
    for measure in MEASURES[:2]:
        made = identity(
            "score", explanation=explanation, scorer=scorer + measure, reason=reason, formula_version=FORMULA_VERSION
        )
        yield _row(scorer + measure, reason=reason, identity=made)


def _measured(group: pl.DataFrame, scorer: str, *, seed: int) -> Iterator[dict[str, object]]:
    """The scores of one explanation by one scorer, from its judgements."""
    known = group.filter(pl.col("value").is_not_null())
    truth, says = known.get_column("fits").to_numpy(), known.get_column("value").to_numpy() == 1
    likely = known.get_column("probability").cast(pl.Float64).to_numpy()
    sequences, cluster = np.unique(known.get_column("sequence_id").to_numpy(), return_inverse=True)
    n = len(sequences)
    weights = np.ones((1, n))
    if n > 1:
        drawn = np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        weights = np.concatenate([weights, drawn])
    of_items = weights[:, cluster].astype(np.float64)
    failed = group.filter(pl.col("value").is_null())
    reason = _reason(truth, failed, of=len(group))
    made_from = content_hash(group.get_column("identity").to_list())
    for measure in MEASURES:
        values, why, chance = np.full(len(weights), np.nan), reason, None
        if measure == "_auc":
            given = np.isfinite(likely)
            if not given.any():
                continue
            why = why or _kinds(truth[given])
            values = auc(truth[given], likely[given], of_items[:, given]) if why is None else values
        elif why is None:
            values = _f1(truth, says, of_items) if measure == "_f1" else _balanced(truth, says, of_items)
            chance = _p(truth, says, seed=seed) if not measure else None
        resampled = values[1:][np.isfinite(values[1:])]
        low, high = np.percentile(resampled, (2.5, 97.5)).tolist() if len(resampled) else (None, None)
        yield _row(
            scorer + measure,
            reason=why,
            value=None if why else float(values[0]),
            ci_low=low,
            ci_high=high,
            p_value=chance,
            n_sequences=n,
            n_failed=len(failed),
            identity=identity(
                "score",
                judgements=made_from,
                scorer=scorer + measure,
                formula_version=FORMULA_VERSION,
                seed=seed,
                resamples=RESAMPLES,
                permutations=PERMUTATIONS,
            ),
        )


def _reason(truth: NDArray[np.bool_], failed: pl.DataFrame, *, of: int) -> str | None:
    """Why there is no score, if there is none."""
    if not len(truth):
        return str(failed.get_column("missing_because").mode().sort()[0])
    if len(truth) < COVERAGE_LIMIT * of:
        return "low_coverage"
    return _kinds(truth)


def _kinds(truth: NDArray[np.bool_]) -> str | None:
    return "one_kind" if truth.all() or not truth.any() else None


def _row(scorer: str, *, reason: str | None, **found: object) -> dict[str, object]:
    empty = {"value": None, "ci_low": None, "ci_high": None, "p_value": None, "n_sequences": 0, "n_failed": 0}
    return {**empty, "n_tokens": 0, "scorer": scorer, "missing_because": reason, **found}


def _balanced(truth: NDArray[np.bool_], says: NDArray[np.bool_], weights: Floats) -> Floats:
    """Balanced accuracy under each row of `weights`; NaN where texts of one kind have none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        right = (weights @ (truth & says)) / (weights @ truth) + (weights @ (~truth & ~says)) / (weights @ ~truth)
    return np.asarray(right / 2, dtype=np.float64)


def _f1(truth: NDArray[np.bool_], says: NDArray[np.bool_], weights: Floats) -> Floats:
    both = weights @ (truth & says)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 2 * both / (2 * both + weights @ (truth != says))
    return np.asarray(found, dtype=np.float64)


def auc(truth: NDArray[np.bool_], likely: Floats, weights: Floats) -> Floats:
    """Area under the receiver operating characteristic: equal probabilities count half."""
    ahead = (likely[truth][:, None] > likely[~truth]) + 0.5 * (likely[truth][:, None] == likely[~truth])
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = weights[:, truth].sum(axis=1) * weights[:, ~truth].sum(axis=1)
        found = ((weights[:, truth] @ ahead) * weights[:, ~truth]).sum(axis=1) / pairs
    return np.asarray(found, dtype=np.float64)


def _p(truth: NDArray[np.bool_], says: NDArray[np.bool_], *, seed: int) -> float:
    orders = np.random.default_rng([seed, len(truth), PERMUTATIONS]).permuted(np.tile(truth, (PERMUTATIONS, 1)), axis=1)
    # The counts of both kinds stay, so balanced accuracy grows with the number of fitting texts called so.
    hits = orders @ says.astype(np.int64)
    return float((1 + (hits >= (truth & says).sum() - ROUNDING).sum()) / (1 + PERMUTATIONS))
