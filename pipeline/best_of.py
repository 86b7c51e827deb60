"""Best of several: the hypothesis that simulates best on texts that are neither shown nor scored.

    best-of:5   five hypotheses (`hypotheses:5`, the same request), each simulated on exemplars of split `calibrate`; the
                one with the highest correlation stands, and is then scored like any other, on split `score`

Choosing the best of n noisy scores and reporting that score is optimistic (Bills et al. 2023 choose on one split and
report on another; Transluce's observatory chooses on the split that it scores). Here the choice never sees a scored text.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import polars as pl

from pipeline import explanations, simulations
from pipeline.evidence import Evidence
from pipeline.exemplars import exemplars as exemplars_of
from pipeline.languages import ENGLISH
from pipeline.methods import BEST_OF, HYPOTHESES, answer
from pipeline.provenance import identity, short
from pipeline.rounds import Round, Rounds, usual
from pipeline.simulations import Way
from pipeline.tables import IN_PASSING, TABLES
from pipeline.token_activation_pairs import NeuronKey

SPLIT = "calibrate"
AT = ("layer", "neuron", "polarity")


def calibrating(records: pl.DataFrame, sequences: pl.DataFrame) -> pl.DataFrame:
    """Five top and five random records of split `calibrate` for each neuron, as `exemplars` rows to simulate on.

    Their split reads `score`, because that is what is simulated; none of them is in the table `exemplars`.
    """
    found = exemplars_of(records, sequences, scored=(SPLIT,))
    return found.filter(pl.col("split") == SPLIT).with_columns(pl.lit("score").alias("split"))


def rounds(
    baselines: pl.DataFrame,
    exemplars: pl.DataFrame,
    texts: Mapping[str, Sequence[str]],
    *,
    number: int,
    calibration: pl.DataFrame,
    model: str,
    simulator: str,
    way: Way,
    seed: int,
    evidence: Mapping[NeuronKey, Evidence],
    spoken: str = ENGLISH,
) -> Rounds:
    """Ask for hypotheses about every neuron, simulate them, and end with the best of each as `explanations` rows.

    `calibration` is that of `calibrating`; the rest is as in `pipeline.explanations` and `pipeline.simulations`.
    """
    name = f"{HYPOTHESES}:{number}"
    asking: dict[str, Any] = {"model": model, "methods": (name,), "evidence": evidence, "spoken": spoken}
    asked = explanations.requests(baselines, exemplars, texts, seed=seed, **asking)
    supposed = [answer(name, usual(request)) for _, request in asked]
    replies = yield Round([request for _, request in asked], supposed)
    candidates = explanations.rows(asked, replies, baselines, exemplars, **asking)
    playing = simulations.requests(candidates, calibration, texts, model=simulator, seed=seed, way=way)
    played = yield Round([request for _, request in playing])
    simulated = simulations.rows(playing, played, candidates, calibration, model=simulator, way=way)
    return best(candidates, simulated, number=number)


def best(candidates: pl.DataFrame, simulated: pl.DataFrame, *, number: int) -> pl.DataFrame:
    """For each neuron the row of its best candidate, or of the reason why there is none, without `run_id`.

    `candidates` are rows of one method, the explainer's favourite first, and `simulated` their simulations. They are
    compared by correlation over all tokens of those sequences on which each of them was simulated; one that was
    simulated nowhere cannot be chosen, nor one whose simulation is constant. Of equals the first is chosen.
    """
    by_explanation: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in simulated.sort("explanation_id", "exemplar_id").iter_rows(named=True):
        by_explanation.setdefault(row["explanation_id"], {})[row["exemplar_id"]] = row
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in candidates.iter_rows(named=True):
        groups.setdefault(tuple(row[name] for name in AT), []).append(row)
    found = [_chosen(group, by_explanation, number) for group in groups.values()]
    schema = {name: kind for name, kind in TABLES["explanations"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)


def _chosen(
    group: Sequence[Mapping[str, Any]], played: Mapping[str, Mapping[str, Mapping[str, Any]]], number: int
) -> dict[str, Any]:
    first, method = group[0], f"{BEST_OF}:{number}"
    reason, chosen, made_from = first["missing_because"], None, [row["identity"] for row in group]
    if reason is None:
        simulated = {row["explanation_id"]: played.get(row["explanation_id"], {}) for row in group}
        made_from += [row["identity"] for rows in simulated.values() for row in rows.values()]
        values, reason = _correlations(simulated)
        if values:
            chosen = max(group, key=lambda row: values.get(row["explanation_id"], -np.inf))
            reason = None
    text = None if chosen is None else chosen["text"]
    # What failed in passing has no reply that is kept.
    tried = [
        row["request_ids"]
        for one in group
        for row in played.get(one["explanation_id"], {}).values()
        if row["missing_because"] not in IN_PASSING
    ]
    made = identity(
        "explanation",
        **{name: first[name] for name in (*AT, "explainer")},
        method=method,
        made_from=made_from,
        text=text,
        missing_because=reason,
    )
    return {**(chosen or first), "method": method, "text": text, "missing_because": reason} | {
        "explanation_id": short(made), "identity": made, "other_request_ids": sorted(set(chain(*tried))) or None,
    }  # fmt: skip


def _correlations(simulated: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> tuple[dict[str, float], str | None]:
    """The correlation of each explanation that has one, or none and the reason.

    Where an answer is missing that may come tomorrow there is none yet: what happened to be answered is no choice.
    """
    reasons = [row["missing_because"] for rows in simulated.values() for row in rows.values()]
    if passing := [reason for reason in reasons if reason in IN_PASSING]:
        return {}, passing[0]
    usable = {
        explanation: {exemplar: row for exemplar, row in rows.items() if row["expected"] is not None}
        for explanation, rows in simulated.items()
    }
    usable = {explanation: rows for explanation, rows in usable.items() if rows}
    if not usable:
        return {}, reasons[0] if reasons else "no_exemplars"
    common = set.intersection(*(set(rows) for rows in usable.values()))
    found: dict[str, float] = {}
    reason = None if common else "no_simulation"
    for explanation, rows in usable.items():
        if not common:
            continue
        expected, true = (
            np.concatenate([np.asarray(rows[exemplar][name], dtype=np.float64) for exemplar in sorted(common)])
            for name in ("expected", "true")
        )
        known = np.isfinite(expected)
        expected, true = expected[known], true[known]
        if true.min() == true.max():
            reason = "constant_activation"
        elif expected.min() == expected.max():
            reason = reason or "constant_simulation"
        else:
            found[explanation] = float(np.corrcoef(expected, true)[0, 1])
    return found, reason
