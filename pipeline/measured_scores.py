"""Scores of texts to which a model gives a number, rather than a yes or no.

    intruder        share of the quiet texts that are found among active ones (`pipeline.intruder`). By chance 0.2
    embedding_auc   share of pairs of an active and a quiet text in which the active one is nearer to the explanation; equal
                    ones count half. By chance 0.5. Delphi's embedding scorer keeps the similarities, and leaves it to
                    whoever reads them to take this area under the curve

    surprisal       mean over active texts of what the explanation takes off their loss, nats per token
                    (`pipeline.surprisal`). By chance 0 or below; there is no best
    surprisal_auc   share of pairs of an active and a quiet text in which it takes more off the active one's. By chance 0.5

The interval is a cluster bootstrap by sequence. The p-value of an area is the share of permutations of what is true among
the texts that come out as high (Phipson and Smyth 2010), that of `intruder` the exact binomial one of as many right picks, and that of `surprisal` the share of changes of sign
of the texts' values with as high a mean.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.intruder import CHANCE
from pipeline.judged_scores import AT, COVERAGE_LIMIT, auc
from pipeline.judgements import written
from pipeline.permutation import PERMUTATIONS
from pipeline.provenance import content_hash, identity
from pipeline.tables import TABLES

FORMULA_VERSION = 1
RESAMPLES = 500

Floats = NDArray[np.float64]
Truth = NDArray[np.bool_]


@dataclass(frozen=True)
class Measure:
    """One score: its name, the texts that it is taken over, its formula and its chance."""

    name: str
    split: str
    formula: Callable[[Truth, Floats, Floats], Floats]
    """From what is true, the values, and weights (resample, text): the score under each row of weights."""
    chance: Callable[[Truth, Floats, int], float]
    """From what is true, the values and a seed: the p-value."""


def _auc_chance(truth: Truth, values: Floats, seed: int) -> float:
    """The share of permutations of `truth` with as high an area under the curve."""
    orders = np.random.default_rng([seed, len(truth), PERMUTATIONS]).permuted(np.tile(truth, (PERMUTATIONS, 1)), axis=1)
    # The area grows with the sum of the ranks of the active texts (Mann and Whitney), equal ones sharing theirs.
    ranks = (values[:, None] > values).sum(axis=1) + 0.5 * (values[:, None] == values).sum(axis=1)
    return float((1 + ((orders * ranks).sum(axis=1) >= ranks[truth].sum()).sum()) / (1 + PERMUTATIONS))


def _share(_: Truth, values: Floats, weights: Floats) -> Floats:
    """The mean of the values under each row of weights."""
    return np.asarray((weights @ values) / weights.sum(axis=1), dtype=np.float64)


def _picks_chance(_: Truth, values: Floats, __: int) -> float:
    """The probability of as many right picks or more, if each is right with the probability `CHANCE`."""
    n, right = len(values), int(values.sum())
    return math.fsum(math.comb(n, k) * CHANCE**k * (1 - CHANCE) ** (n - k) for k in range(right, n + 1))


def _mean_of_active(truth: Truth, values: Floats, weights: Floats) -> Floats:
    """The mean over the texts that are true; NaN where there are none."""
    with np.errstate(invalid="ignore"):
        return np.asarray((weights[:, truth] @ values[truth]) / weights[:, truth].sum(axis=1), dtype=np.float64)


def _signs_chance(truth: Truth, values: Floats, seed: int) -> float:
    """The share of changes of sign with as high a sum."""
    values = values[truth]
    signs = np.random.default_rng([seed, len(values), PERMUTATIONS]).choice((-1.0, 1.0), (PERMUTATIONS, len(values)))
    slack = 1e-10 * np.abs(values).sum()
    return float((1 + ((signs * values).sum(axis=1) >= values.sum() - slack).sum()) / (1 + PERMUTATIONS))


MEASURES: dict[str, tuple[Measure, ...]] = {
    "intruder": (Measure("intruder", "active_and_quiet", _share, _picks_chance),),
    "surprisal": (
        Measure("surprisal", "active", _mean_of_active, _signs_chance),
        Measure("surprisal_auc", "active_and_quiet", auc, _auc_chance),
    ),
    "embedding": (Measure("embedding_auc", "active_and_quiet", auc, _auc_chance),),
}
NO_TEXTS = {"intruder": "too_few_texts"}
"""Why an explanation has no judgements, where it is not `one_kind`."""
NAMES = {scorer: tuple(one.name for one in measures) for scorer, measures in MEASURES.items()}
"""The names of each scorer's scores."""


def measured_scores(
    judgements: pl.DataFrame, explanations: pl.DataFrame, *, measured_by: Sequence[tuple[str, str]], seed: int
) -> pl.DataFrame:
    """The `scores` rows of these scorers, each with its model, for every explanation that is measured, without `run_id`.

    A missing explanation has missing scores for its own reason. `seed` draws resamples and permutations.
    """
    groups = dict(judgements.sort("item").group_by("explanation_id", "scorer", "judge", maintain_order=True))
    with_text = set(written(explanations).get_column("explanation_id"))
    asked = explanations.filter(pl.col("explainer") != "none").sort(AT)
    found: list[dict[str, object]] = []
    for row in asked.iter_rows(named=True):
        for scorer, model in measured_by:
            group = groups.get((row["explanation_id"], scorer, model))
            for measure in MEASURES[scorer]:
                cells = {
                    **{name: row[name] for name in (*AT, "method")},
                    "simulator": model,
                    "scorer": measure.name,
                    "formula_version": FORMULA_VERSION,
                    "split": measure.split,
                    **dict.fromkeys(("value", "ci_low", "ci_high", "p_value", "token_lookup", "token_linear")),
                    **dict.fromkeys(("n_sequences", "n_tokens", "n_failed"), 0),
                    "missing_because": None,
                }
                if group is None:
                    has_text = row["explanation_id"] in with_text
                    reason = NO_TEXTS.get(scorer, "one_kind") if has_text else row["missing_because"]
                    cells |= {"simulator": model if has_text else "none", "missing_because": reason}
                    cells["identity"] = identity(
                        "score", explanation=row["identity"], scorer=measure.name, model=model, reason=reason,
                        formula_version=FORMULA_VERSION,
                    )  # fmt: skip
                    found.append(cells)
                else:
                    found.append(cells | dict(_measured(group, measure, seed=seed)))
    schema = {name: kind for name, kind in TABLES["scores"].schema.items() if name != "run_id"}
    frame = pl.DataFrame(found, schema=schema)
    # Several models that cannot be asked about a missing explanation are one row.
    return frame.unique(["explanation_id", "simulator", "scorer", "split"], keep="first", maintain_order=True)


def _measured(group: pl.DataFrame, measure: Measure, *, seed: int) -> Iterator[tuple[str, object]]:
    """The cells of one score, from the judgements of one explanation."""
    group = group.filter("fits") if measure.split == "active" else group
    known = group.drop_nulls("value")
    truth, values = known.get_column("fits").to_numpy(), known.get_column("value").to_numpy()
    sequences, cluster = np.unique(known.get_column("sequence_id").to_numpy(), return_inverse=True)
    n = len(sequences)
    failed = group.filter(pl.col("value").is_null())
    yield "n_sequences", n
    yield "n_failed", len(failed)
    made_from = content_hash(group.get_column("identity").to_list())
    yield "identity", identity(
        "score", judgements=made_from, scorer=measure.name, formula_version=FORMULA_VERSION, seed=seed,
        resamples=RESAMPLES, permutations=PERMUTATIONS,
    )  # fmt: skip
    if group.is_empty():
        yield "missing_because", "one_kind"
        return
    if not n:
        yield "missing_because", str(failed.get_column("missing_because").mode().sort()[0])
        return
    if len(known) < COVERAGE_LIMIT * len(group):
        yield "missing_because", "low_coverage"
        return
    weights = np.ones((1, n))
    if n > 1:
        drawn = np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        weights = np.concatenate([weights, drawn])
    found = measure.formula(truth, values, weights[:, cluster].astype(np.float64))
    if not np.isfinite(found[0]):
        yield "missing_because", "one_kind"
        return
    yield "value", float(found[0])
    yield "p_value", measure.chance(truth, values, seed)
    resampled = found[1:][np.isfinite(found[1:])]
    if len(resampled):
        low, high = np.percentile(resampled, (2.5, 97.5)).tolist()
        yield "ci_low", low
        yield "ci_high", high
