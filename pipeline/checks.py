"""Checks: what must hold of the rows that were written, read back from the lake.

`Table.conform` refuses rows that break a table's own rules. These look across tables: nothing missing, nothing
leaked from what is explained to what is scored, every stored number still what its parents say.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from pipeline.baselines import METHODS
from pipeline.connections import SIGNS
from pipeline.exemplars import SCORED, SHOWN
from pipeline.explanations import FOUND_NOTHING
from pipeline.scale import scale
from pipeline.scores import scores
from pipeline.tables import MISSING, TABLES

FAILURES_ALLOWED = 0.2
"""Share of language-model answers that may be missing before the check fails."""

RECOMPUTED = 100
"""Neurons of a layer whose scores are computed again, drawn by the seed. `verify` and `audit` do so for all."""


LARGEST = float(np.log(2)) + 1e-9
"""Jensen-Shannon divergence of two distributions that have nothing in common, nats."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check, with the numbers behind it."""

    name: str
    passed: bool
    said: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


def check(table: str, rows: pl.DataFrame, **others: Any) -> list[Finding]:
    """All checks of one slice of a table. `others` are the parents each table's checks need."""
    return [_unique(table, rows), *_CHECKS[table](rows, **others)]


def names(table: str) -> list[str]:
    """The checks that `check` makes of a table."""
    return ["keys_are_unique", *_NAMES[table]]


def _unique(table: str, rows: pl.DataFrame) -> Finding:
    key = TABLES[table].key
    repeated = len(rows) - rows.select(key).n_unique()
    return Finding("keys_are_unique", repeated == 0, f"{repeated:,} rows repeat {key}", {"repeated": repeated})


def _sequences(rows: pl.DataFrame) -> list[Finding]:
    shared = rows.group_by("document_hash").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1).height
    windows = rows.group_by("token_ids").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1).height
    return [
        Finding(
            "splits_share_no_text",
            shared + windows == 0,
            f"{shared:,} documents and {windows:,} windows are in more than one split",
            {"documents": shared, "windows": windows},
        )
    ]


def _activations(rows: pl.DataFrame, *, sequences: pl.DataFrame, n_neurons: int) -> list[Finding]:
    missing = len(set(range(n_neurons)).symmetric_difference(rows.get_column("neuron")))
    lengths = rows.select("sequence_id", pl.col("activations").list.len().alias("n")).join(
        sequences.select("sequence_id", pl.col("token_ids").list.len().alias("tokens")), on="sequence_id", how="left"
    )
    unequal = lengths.filter(pl.col("n").ne_missing(pl.col("tokens"))).height
    at_peak = pl.col("activations").list.get(pl.col("peak_token"), null_on_oob=True)
    extreme = (
        pl.when(pl.col("polarity") == "+")
        .then(pl.col("activations").list.max())
        .otherwise(pl.col("activations").list.min())
    )
    # Activations are rounded to steps, 2**11 or more of which make the strongest; the peak is not.
    strongest = pl.col("activations").list.eval(pl.element().abs()).list.max()
    far = (pl.col("peak") - at_peak).abs() > strongest / 2**11
    wrong = rows.filter(at_peak.ne_missing(extreme) | far.fill_null(value=True)).height
    return [
        Finding(
            "every_neuron_is_there", missing == 0, f"{missing:,} of {n_neurons:,} neurons missing", {"missing": missing}
        ),
        Finding(
            "lengths_agree_with_sequences", unequal == 0, f"{unequal:,} records differ in length", {"unequal": unequal}
        ),
        Finding(
            "peak_is_the_extreme", wrong == 0, f"{wrong:,} records whose peak is not at their extreme", {"wrong": wrong}
        ),
    ]


def _per_neuron(rows: pl.DataFrame, *, n_neurons: int) -> list[Finding]:
    missing = len(set(range(n_neurons)).symmetric_difference(rows.get_column("neuron")))
    return [
        Finding(
            "every_neuron_is_there", missing == 0, f"{missing:,} of {n_neurons:,} neurons missing", {"missing": missing}
        )
    ]


def _vocabulary(rows: pl.DataFrame, *, n_tokens: int) -> list[Finding]:
    missing = len(set(range(n_tokens)).symmetric_difference(rows.get_column("token_id")))
    return [
        Finding(
            "every_token_is_there", missing == 0, f"{missing:,} of {n_tokens:,} tokens missing", {"missing": missing}
        )
    ]


def _connections(rows: pl.DataFrame, *, n_neurons: int) -> list[Finding]:
    unranked, backward = pl.lit(value=False), pl.lit(value=False)
    for sign, factor in SIGNS.items():
        for kind in ("input", "output", "upstream", "downstream"):
            magnitudes = pl.col(f"{kind}_{sign}_strengths") * factor
            unranked |= (magnitudes.list.min() <= 0) | (magnitudes.list.diff().list.max() > 0)
            for name in ("token_ids",) if kind in ("input", "output") else ("layers", "neurons"):
                unranked |= pl.col(f"{kind}_{sign}_{name}").list.len().ne_missing(magnitudes.list.len())
        backward |= pl.col(f"upstream_{sign}_layers").list.max() >= pl.col("layer")
        backward |= pl.col(f"downstream_{sign}_layers").list.min() <= pl.col("layer")
    wrong, against = rows.filter(unranked).height, rows.filter(backward).height
    return [
        *_per_neuron(rows, n_neurons=n_neurons),
        Finding(
            "lists_are_ranked", wrong == 0, f"{wrong:,} neurons have lists of another order or sign", {"wrong": wrong}
        ),
        Finding(
            "layers_are_in_order",
            against == 0,
            f"{against:,} neurons have upstream layers that are not before theirs, or downstream ones not after it",
            {"wrong": against},
        ),
    ]


def _exemplars(rows: pl.DataFrame, *, sequences: pl.DataFrame) -> list[Finding]:
    documents = rows.join(sequences.select("sequence_id", "document_hash"), on="sequence_id", how="left")
    at = ["layer", "neuron", "polarity", "document_hash"]
    shown = documents.filter(pl.col("split").is_in(SHOWN)).select(at).unique()
    leaked = documents.filter(pl.col("split").is_in(SCORED)).join(shown, on=at, how="semi").height
    unknown = documents.get_column("document_hash").null_count()
    flat = rows.select("polarity", "scale_maximum", "activations", "scaled_activations").explode(
        "activations", "scaled_activations"
    )
    sign = np.where(flat.get_column("polarity").to_numpy() == "-", -1.0, 1.0)
    again = scale(
        flat.get_column("activations").cast(pl.Float64).to_numpy() * sign,
        flat.get_column("scale_maximum").cast(pl.Float64).to_numpy(),
    )
    differ = int((again != flat.get_column("scaled_activations").to_numpy()).sum())
    return [
        Finding(
            "scored_documents_were_not_shown",
            leaked + unknown == 0,
            f"{leaked:,} scored records from documents shown for the same neuron, {unknown:,} from unknown documents",
            {"leaked": leaked, "unknown": unknown},
        ),
        Finding("scale_is_reproduced", differ == 0, f"{differ:,} scaled activations differ", {"differ": differ}),
    ]


def _explanations(rows: pl.DataFrame, *, exemplars: pl.DataFrame) -> list[Finding]:
    at = ["layer", "neuron", "polarity"]
    wanted = exemplars.select(at).unique()
    missing = sum(wanted.join(rows.filter(pl.col("method") == method), on=at, how="anti").height for method in METHODS)
    known = set(exemplars.filter(pl.col("split").is_in(SCORED)).get_column("exemplar_id"))
    peeked = sum(bool(known.intersection(ids)) for ids in rows.get_column("exemplar_ids"))
    written = rows.filter(
        (pl.col("explainer") != "none") & ~pl.col("missing_because").is_in(FOUND_NOTHING).fill_null(value=False)
    )
    return [
        Finding("every_neuron_is_there", missing == 0, f"{missing:,} neurons lack a baseline", {"missing": missing}),
        Finding(
            "no_scored_exemplar_was_shown", peeked == 0, f"{peeked:,} explanations saw scored text", {"peeked": peeked}
        ),
        _failure_share(written, "text"),
    ]


def _simulations(rows: pl.DataFrame, *, explanations: pl.DataFrame, exemplars: pl.DataFrame) -> list[Finding]:
    at = ["layer", "neuron", "polarity"]
    wanted = (
        explanations.filter(pl.col("text").is_not_null())
        .select(*at, "explanation_id")
        .join(exemplars.filter(pl.col("split").is_in(SCORED)).select(*at, "exemplar_id"), on=at)
    )
    missing = wanted.join(rows, on=["explanation_id", "exemplar_id"], how="anti").height
    stray = rows.join(wanted, on=["explanation_id", "exemplar_id"], how="anti").height
    return [
        Finding(
            "every_scored_exemplar_is_simulated",
            missing + stray == 0,
            f"{missing:,} simulations missing, {stray:,} of exemplars that are not to be scored",
            {"missing": missing, "stray": stray},
        ),
        _failure_share(rows.filter(~pl.col("simulator").is_in(METHODS)), "expected"),
    ]


def _judgements(rows: pl.DataFrame, *, sequences: pl.DataFrame, exemplars: pl.DataFrame) -> list[Finding]:
    documents = sequences.select("sequence_id", "document_hash")
    at = ["layer", "neuron", "polarity", "document_hash"]
    shown = exemplars.filter(pl.col("split").is_in(SHOWN)).join(documents, on="sequence_id").select(at).unique()
    judged = rows.join(sequences.select("sequence_id", "document_hash", "split"), on="sequence_id", how="left")
    leaked = judged.join(shown, on=at, how="semi").height
    others = judged.filter(~pl.col("split").is_in(SCORED).fill_null(value=False)).height
    return [
        Finding(
            "judged_documents_were_not_shown",
            leaked + others == 0,
            f"{leaked:,} texts from documents shown for the same neuron, {others:,} of another split than `score`",
            {"leaked": leaked, "others": others},
        ),
        _failure_share(rows, "value"),
    ]


def _ablations(rows: pl.DataFrame, *, simulations: pl.DataFrame) -> list[Finding]:
    key = ["explanation_id", "simulator", "exemplar_id"]
    missing = simulations.join(rows, on=key, how="anti").height
    stray = rows.join(simulations, on=key, how="anti").height
    bounds = pl.any_horizontal(~pl.col(name).is_between(0, LARGEST) for name in ("divergence", "mean_divergence"))
    wrong = rows.filter(bounds).height
    return [
        Finding(
            "every_simulation_is_put_in_place",
            missing + stray == 0,
            f"{missing:,} ablations missing, {stray:,} of no simulation",
            {"missing": missing, "stray": stray},
        ),
        Finding("divergences_are_possible", wrong == 0, f"{wrong:,} rows outside of 0 to log 2", {"wrong": wrong}),
    ]


def _scores(
    rows: pl.DataFrame, *, simulations: pl.DataFrame, explanations: pl.DataFrame, seed: int, **more: Any
) -> list[Finding]:
    neurons = rows.get_column("neuron").append(explanations.get_column("neuron")).unique().sort().to_numpy()
    drawn = pl.Series(np.random.default_rng(seed).permutation(neurons)[:RECOMPUTED], dtype=rows.schema["neuron"])
    of_drawn = pl.col("neuron").is_in(drawn.implode())
    more = {name: one.filter(of_drawn) if isinstance(one, pl.DataFrame) else one for name, one in more.items()}
    again = scores(simulations.filter(of_drawn), explanations.filter(of_drawn), seed=seed, **more)
    key = ["explanation_id", "simulator", "scorer", "split"]
    numbers = [name for name in again.columns if name not in key]
    both = rows.filter(of_drawn).select(*key, *numbers).join(again, on=key, how="full", suffix="_again")
    differ = both.filter(pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_again")) for name in numbers)).height
    unscored = len(
        set(explanations.get_column("explanation_id")).symmetric_difference(rows.get_column("explanation_id"))
    )
    return [
        Finding(
            "score_is_reproduced",
            differ + unscored == 0,
            f"{differ:,} scores of {len(drawn):,} neurons differ when recomputed; "
            f"{unscored:,} explanations are without scores, or scores without their explanation",
            {"differ": differ, "unscored": unscored, "neurons": len(drawn)},
        )
    ]


def _failure_share(rows: pl.DataFrame, column: str) -> Finding:
    # What the user's budget kept from being asked says nothing of the endpoint.
    rows = rows.filter(pl.col("missing_because").ne_missing("budget"))
    failed = rows.get_column(column).null_count()
    share = failed / len(rows) if len(rows) else 0.0
    reasons = sorted(rows.get_column("missing_because").drop_nulls().mode().to_list())
    most = f", most often {reasons[0]} ({MISSING[reasons[0]]})" if reasons else ""
    return Finding(
        "few_answers_are_missing",
        share <= FAILURES_ALLOWED,
        f"{failed:,} of {len(rows):,} missing{most}; {FAILURES_ALLOWED:.0%} are allowed",
        {"failed": failed, "share": share},
    )


def _explanation_embeddings(rows: pl.DataFrame) -> list[Finding]:
    known = rows.get_column("vector").drop_nulls()
    off = (known.list.eval(pl.element().cast(pl.Float64) ** 2).list.sum() - 1).abs()
    wrong = int((off > 1e-4).sum())
    widths = known.list.len().n_unique()
    return [
        Finding(
            "vectors_have_length_one",
            not wrong and widths <= 1,
            f"{wrong:,} of {len(known):,} vectors have not length 1, and they are of {widths} widths",
            {"wrong": wrong, "widths": widths},
        ),
        _failure_share(rows, "vector"),
    ]


_CHECKS: dict[str, Any] = {
    "sequences": _sequences,
    "subject_layers": lambda _: [],
    "activations": _activations,
    "neuron_statistics": _per_neuron,
    "token_associations": _per_neuron,
    "vocabulary": _vocabulary,
    "connections": _connections,
    "exemplars": _exemplars,
    "explanations": _explanations,
    "simulations": _simulations,
    "judgements": _judgements,
    "ablations": _ablations,
    "scores": _scores,
    "explanation_embeddings": _explanation_embeddings,
}
_NAMES: dict[str, tuple[str, ...]] = {
    "sequences": ("splits_share_no_text",),
    "subject_layers": (),
    "activations": ("every_neuron_is_there", "lengths_agree_with_sequences", "peak_is_the_extreme"),
    "neuron_statistics": ("every_neuron_is_there",),
    "token_associations": ("every_neuron_is_there",),
    "vocabulary": ("every_token_is_there",),
    "connections": ("every_neuron_is_there", "lists_are_ranked", "layers_are_in_order"),
    "exemplars": ("scored_documents_were_not_shown", "scale_is_reproduced"),
    "explanations": ("every_neuron_is_there", "no_scored_exemplar_was_shown", "few_answers_are_missing"),
    "simulations": ("every_scored_exemplar_is_simulated", "few_answers_are_missing"),
    "ablations": ("every_simulation_is_put_in_place", "divergences_are_possible"),
    "judgements": ("judged_documents_were_not_shown", "few_answers_are_missing"),
    "scores": ("score_is_reproduced",),
    "explanation_embeddings": ("vectors_have_length_one", "few_answers_are_missing"),
}
