"""Scores of ablations: how much of what the neuron does for the next token the simulation keeps.

    ablation = 1 - E[divergence] / E[mean_divergence]        over the sequences of a set

1 if the subject goes on as with the neuron itself, 0 if no better than with the neuron's mean, below 0 if worse (Bills et
al. 2023, "Scoring explanations"). The interval is a cluster bootstrap by sequence. For the p-value, each sequence's two
divergences change places at random, as they might if the simulation were worth no more than the mean: the share of such
draws that score as much (Phipson and Smyth 2010).
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.permutation import PERMUTATIONS
from pipeline.provenance import content_hash, identity
from pipeline.tables import TABLES

NAME = "ablation"
FORMULA_VERSION = 1
SETS = {"top_and_random": ("top", "random"), "random_only": ("random",)}
RESAMPLES = 500
COVERAGE_LIMIT = 0.5
"""Least share of a set's tokens with a prediction."""
LEAST_EFFECT = 1e-10
"""Nats. A mean divergence below this is what rounding in float32 leaves (measured: up to 1e-11)."""

Floats = NDArray[np.float64]
AT = ["layer", "neuron", "polarity", "explanation_id"]


def ablation_scores(ablations: pl.DataFrame, explanations: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """The `scores` rows of this scorer for the explanations given, without `run_id`.

    An explanation that is missing has missing scores for its own reason. `seed` draws resamples and changes of sign.
    """
    groups = {
        (str(explanation_id), str(simulator)): group
        for (explanation_id, simulator), group in ablations.sort("stratum", "rank", "exemplar_id").group_by(
            "explanation_id", "simulator", maintain_order=True
        )
    }
    simulators: dict[str, list[str]] = {}
    for explanation_id, simulator in sorted(groups):
        simulators.setdefault(explanation_id, []).append(simulator)
    found: list[dict[str, object]] = []
    for row in explanations.sort(AT).iter_rows(named=True):
        common = {name: row[name] for name in (*AT, "method")}
        for split, strata in SETS.items():
            for simulator in simulators.get(row["explanation_id"], ()):
                group = groups[row["explanation_id"], simulator].filter(pl.col("stratum").is_in(strata))
                found.append({**common, "simulator": simulator, "split": split, **_scored(group, split, seed=seed)})
            if row["explanation_id"] not in simulators:
                reason = row["missing_because"] or "no_simulation"
                made = identity(
                    "score", explanation=row["identity"], scorer=NAME, split=split, reason=reason,
                    formula_version=FORMULA_VERSION,
                )  # fmt: skip
                found.append({**common, "simulator": "none", "split": split, **_cells(reason), "identity": made})
    schema = {name: kind for name, kind in TABLES["scores"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)


def _scored(group: pl.DataFrame, split: str, *, seed: int) -> dict[str, object]:
    known = group.drop_nulls("divergence")
    divergence, of_mean = (known.get_column(name).to_numpy() for name in ("divergence", "mean_divergence"))
    n, n_tokens = len(known), known.get_column("n_tokens").to_numpy()
    made = identity(
        "score", ablations=content_hash(group.get_column("identity").to_list()), scorer=NAME, split=split,
        formula_version=FORMULA_VERSION, seed=seed, resamples=RESAMPLES, permutations=PERMUTATIONS,
    )  # fmt: skip
    counts = {"n_sequences": n, "n_tokens": int(n_tokens.sum()), "n_failed": len(group) - n, "identity": made}
    total = int(group.get_column("n_tokens").to_numpy().sum())
    predicted = float(known.get_column("coverage").to_numpy() @ n_tokens)
    reason: str | None = None
    if not n:
        failures = group.get_column("missing_because").drop_nulls().mode().sort()
        reason = str(failures[0]) if len(failures) else "no_simulation"
    elif predicted < COVERAGE_LIMIT * total:
        reason = "low_coverage"
    elif of_mean.mean() < LEAST_EFFECT:
        reason = "no_effect"
    if reason is not None:
        return {**_cells(reason), **counts}
    low, high = _interval(divergence, of_mean, seed=seed)
    return {
        **_cells(None),
        **counts,
        "value": _value(divergence[None].sum(axis=1), of_mean[None].sum(axis=1)).item(),
        "ci_low": low,
        "ci_high": high,
        "p_value": _p(of_mean - divergence, seed=seed) if n > 1 else None,
    }


def _cells(reason: str | None) -> dict[str, object]:
    return {
        "scorer": NAME, "formula_version": FORMULA_VERSION, "missing_because": reason, "value": None, "ci_low": None,
        "ci_high": None, "p_value": None, "n_sequences": 0, "n_tokens": 0, "n_failed": 0, "token_lookup": None,
        "token_linear": None,
    }  # fmt: skip


def _value(divergence: Floats, of_mean: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1 - divergence / of_mean, dtype=np.float64)


def _interval(divergence: Floats, of_mean: Floats, *, seed: int) -> tuple[float | None, float | None]:
    n = len(divergence)
    if n < 2:
        return None, None
    weights = np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
    below = (weights * of_mean).sum(axis=1)
    values = _value((weights * divergence).sum(axis=1), below)[below / n >= LEAST_EFFECT]
    if not len(values):
        return None, None
    low, high = np.percentile(values, (2.5, 97.5)).tolist()
    return low, high


def _p(better: Floats, *, seed: int) -> float:
    """The p of the sum of differences, from changes of sign."""
    signs = np.random.default_rng([seed, len(better), PERMUTATIONS]).choice((-1.0, 1.0), (PERMUTATIONS, len(better)))
    slack = 1e-10 * np.abs(better).sum()
    return float((1 + ((signs * better).sum(axis=1) >= better.sum() - slack).sum()) / (1 + PERMUTATIONS))
