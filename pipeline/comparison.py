"""Comparison: two states of the same neurons side by side, and what a difference in score comes from.

For each neuron and side of zero: the share of exemplars that both have, the correlation of the activations on the
sequences that both keep, both explanations, both scores. For each method: the mean difference with a paired bootstrap
over neurons, and the sign test.

A score is made from sequences, true activations on them, and what was simulated. With S(e, y, T) the correlation of
the simulation e with the activations y over the sequences T, and C the sequences that both sides scored:

    weights       S(e1, y2, C) - S(e1, y1, C)        the same words on the same texts, and the neuron does other things
    explanation,  S(e2, y2, C) - S(e1, y2, C)        other words, or another simulator, about the same activations
    simulator
    exemplars     the rest: other texts were chosen

The three sum to the difference. Nothing is asked anew: all of it is stored. Which of explanation and simulator it was
is told by what differs: the text, the simulator's name, or both; then it is told as both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lgamma, log
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.summary import MAIN

TABLES = ("exemplars", "explanations", "simulations", "scores")
"""What a side is compared by."""

RESAMPLES = 2_000
AT = ("layer", "neuron", "polarity")
PARTS = ("weights", "explanation", "simulator", "both", "exemplars")
"""What a difference is put down to. `both` is explanation and simulator where both are other ones."""


@dataclass(frozen=True)
class Comparison:
    """What two sides, called `a` and `b`, have in common and what not."""

    neurons: pl.DataFrame
    """A row for each neuron and polarity of either side: `in_a`, `in_b`, `exemplar_overlap` (Jaccard, 0 to 1),
    `shared_sequences`, `activation_correlation` over their tokens (null if undefined)."""
    scores: pl.DataFrame
    """A row for each neuron, polarity and method of both sides: texts, simulators, `value_a`, `value_b`, `difference`
    (b - a), and the columns of `PARTS`, null where nothing is known."""
    methods: pl.DataFrame
    """A row for each method: pairs, mean difference with `ci_low` and `ci_high`, how many are better, worse and equal,
    `p_value` of the sign test, and the mean of each part over the pairs of which it is known (`attributed`)."""

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain lists."""
        return {name: getattr(self, name).to_dicts() for name in ("neurons", "scores", "methods")}


def compare(
    a: Mapping[str, pl.DataFrame], b: Mapping[str, pl.DataFrame], *, seed: int = 0, by_simulator: bool | None = None
) -> Comparison:
    """Compare two sides, each the tables of `TABLES`, of the same layers. `seed` draws the resamples.

    `by_simulator` says that each simulator is compared with itself; unless told, it is so if both sides have the same ones.
    """
    pairs = _pairs(a, b, by_simulator=by_simulator)
    scores = _attributed(pairs, a["simulations"], b["simulations"], a["exemplars"], b["exemplars"])
    return Comparison(
        neurons=_neurons(a["exemplars"], b["exemplars"], a["explanations"], b["explanations"]),
        scores=scores,
        methods=by_method(scores, seed=seed),
    )


def together(parts: Sequence[Comparison], *, seed: int = 0) -> Comparison:
    """Comparisons of different neurons as one."""
    scores = pl.concat([part.scores for part in parts])
    return Comparison(pl.concat([part.neurons for part in parts]), scores, by_method(scores, seed=seed))


def sign_test(better: int, worse: int) -> float:
    """The two-sided p-value of so many signs if both were as likely; equal pairs are left out. 1 without any."""
    n, fewer = better + worse, min(better, worse)
    if not n:
        return 1.0
    logs = [lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) - n * log(2) for k in range(fewer + 1)]
    return float(min(1.0, 2 * np.exp(logs).sum()))


def paired_interval(differences: NDArray[np.float64], *, seed: int) -> tuple[float | None, float | None]:
    """2.5th and 97.5th percentile of the mean over resamples of the pairs; None with fewer than two."""
    if len(differences) < 2:
        return None, None
    draw = np.random.default_rng([seed, len(differences)])
    means = np.asarray(
        [differences[draw.integers(0, len(differences), len(differences))].mean() for _ in range(RESAMPLES)]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _neurons(
    exemplars_a: pl.DataFrame, exemplars_b: pl.DataFrame, explained_a: pl.DataFrame, explained_b: pl.DataFrame
) -> pl.DataFrame:
    at = list(AT)
    known = pl.concat([explained_a.select(at), explained_b.select(at)]).unique().sort(at)
    sides = [frame.select(at).unique().with_columns(pl.lit(value=True).alias(name))
             for frame, name in ((explained_a, "in_a"), (explained_b, "in_b"))]  # fmt: skip
    sequences = [
        frame.select(*at, "sequence_id", "activations").unique([*at, "sequence_id"], maintain_order=True)
        for frame in (exemplars_a, exemplars_b)
    ]
    shared = sequences[0].join(sequences[1], on=[*at, "sequence_id"], how="inner", suffix="_b")
    counts = [frame.group_by(at).len(name) for frame, name in zip(sequences, ("n_a", "n_b"), strict=True)]
    rows = known
    for frame in (*sides, *counts, shared.group_by(at).len("shared_sequences")):
        rows = rows.join(frame, on=at, how="left")
    rows = rows.with_columns(
        pl.col("in_a", "in_b").fill_null(value=False),
        pl.col("n_a", "n_b", "shared_sequences").fill_null(0).cast(pl.Int64),
    ).with_columns(
        (pl.col("shared_sequences") / (pl.col("n_a") + pl.col("n_b") - pl.col("shared_sequences")))
        .fill_nan(None)
        .alias("exemplar_overlap")
    )
    together = (
        shared.filter(pl.col("activations").list.len() == pl.col("activations_b").list.len())
        .select(*at, "activations", "activations_b")
        .explode("activations", "activations_b")
        .group_by(at)
        .agg(pl.corr(pl.col("activations").cast(pl.Float64), pl.col("activations_b").cast(pl.Float64)).alias("r"))
        .select(*at, pl.col("r").fill_nan(None).alias("activation_correlation"))
    )
    return (
        rows.join(together, on=at, how="left")
        .sort(at)
        .select(*at, "in_a", "in_b", "exemplar_overlap", "shared_sequences", "activation_correlation")
    )


def _main(side: Mapping[str, pl.DataFrame], *, by_simulator: bool) -> pl.DataFrame:
    """The main score of each explanation with its text; of several simulators the first by name, unless told apart."""
    texts = side["explanations"].select("layer", "explanation_id", "text")
    key = [*AT, "method", *(["simulator"] if by_simulator else [])]
    return (
        side["scores"]
        .filter(MAIN)
        .select(*AT, "method", "simulator", "explanation_id", "value")
        .join(texts, on=["layer", "explanation_id"], how="left")
        .sort(*AT, "method", "simulator", "explanation_id")
        .unique(key, keep="first", maintain_order=True)
    )


def _pairs(a: Mapping[str, pl.DataFrame], b: Mapping[str, pl.DataFrame], *, by_simulator: bool | None) -> pl.DataFrame:
    if by_simulator is None:
        simulators = [set(side["scores"].get_column("simulator")) for side in (a, b)]
        # Two simulators on one side are compared each with itself, if the other side has both.
        by_simulator = simulators[0] == simulators[1]
    first, second = (_main(side, by_simulator=by_simulator) for side in (a, b))
    on = [*AT, "method"]
    if by_simulator:
        first, second = (frame.with_columns(pl.col("simulator").alias("by")) for frame in (first, second))
        on.append("by")
    names = {name: f"{name}_a" for name in ("simulator", "explanation_id", "value", "text")}
    pairs = first.rename(names).join(
        second.rename({name: f"{name}_b" for name in names}), on=on, how="inner", maintain_order="left"
    )
    return pairs.select(*AT, "method", *(f"{name}_{side}" for name in names for side in "ab")).with_columns(
        (pl.col("value_b") - pl.col("value_a")).alias("difference")
    )


def _played(simulations: pl.DataFrame, exemplars: pl.DataFrame, wanted: pl.DataFrame, side: str) -> pl.DataFrame:
    """Of the pairs of `wanted` what their side simulated: sequence, expected and true activations."""
    key = ["layer", f"explanation_id_{side}", f"simulator_{side}"]
    where = exemplars.select("layer", "exemplar_id", "sequence_id").unique(["layer", "exemplar_id"])
    return (
        simulations.filter(pl.col("expected").is_not_null())
        .select(
            "layer",
            pl.col("explanation_id").alias(key[1]),
            pl.col("simulator").alias(key[2]),
            "exemplar_id",
            "expected",
            "true",
        )
        .join(where, on=["layer", "exemplar_id"], how="inner")
        .join(wanted.select("pair", *key), on=key, how="inner")
        .select(
            "pair", "sequence_id", pl.col("expected").alias(f"expected_{side}"), pl.col("true").alias(f"true_{side}")
        )
        .unique(["pair", "sequence_id"], keep="first", maintain_order=True)
    )


def _attributed(
    pairs: pl.DataFrame,
    simulated_a: pl.DataFrame,
    simulated_b: pl.DataFrame,
    exemplars_a: pl.DataFrame,
    exemplars_b: pl.DataFrame,
) -> pl.DataFrame:
    """The pairs with what each difference is put down to."""
    pairs = pairs.with_row_index("pair")
    known = pairs.filter(pl.col("difference").is_not_null())
    common = _played(simulated_a, exemplars_a, known, "a").join(
        _played(simulated_b, exemplars_b, known, "b"), on=["pair", "sequence_id"], how="inner"
    )
    lists = ["expected_a", "true_a", "expected_b", "true_b"]
    same_length = pl.all_horizontal(*(pl.col(name).list.len() == pl.col(lists[0]).list.len() for name in lists[1:]))
    flat = common.filter(same_length).select("pair", *lists).explode(lists)

    def correlation(expected: str, true: str) -> pl.Expr:
        return pl.corr(pl.col(expected).cast(pl.Float64), pl.col(true).cast(pl.Float64)).fill_nan(None)

    found = flat.group_by("pair").agg(
        correlation("expected_a", "true_a").alias("as_a"),
        correlation("expected_a", "true_b").alias("crossed"),
        correlation("expected_b", "true_b").alias("as_b"),
    )
    rows = pairs.join(found, on="pair", how="left", maintain_order="left").with_columns(
        (pl.col("crossed") - pl.col("as_a")).alias("weights"), (pl.col("as_b") - pl.col("crossed")).alias("words")
    )
    whole = pl.col("weights").is_not_null() & pl.col("words").is_not_null()
    other_text = pl.col("text_a").ne_missing(pl.col("text_b"))
    other_simulator = pl.col("simulator_a") != pl.col("simulator_b")

    def part(condition: pl.Expr) -> pl.Expr:
        return pl.when(whole).then(pl.when(condition).then(pl.col("words")).otherwise(0.0))

    return rows.with_columns(
        pl.when(whole).then(pl.col("weights")).alias("weights"),
        # With the same text and simulator, what was said differs by chance: it is the simulator's.
        part(other_text & ~other_simulator).alias("explanation"),
        part(~other_text).alias("simulator"),
        part(other_text & other_simulator).alias("both"),
        pl.when(whole).then(pl.col("difference") - pl.col("weights") - pl.col("words")).alias("exemplars"),
    ).select(pl.exclude("pair", "as_a", "crossed", "as_b", "words"))


def by_method(scores: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """The table `methods` of a comparison, from its `scores`."""
    rows: list[dict[str, Any]] = []
    for (method,), group in scores.sort("method").group_by(["method"], maintain_order=True):
        differences = group.get_column("difference").drop_nulls().to_numpy()
        better, worse = int((differences > 0).sum()), int((differences < 0).sum())
        low, high = paired_interval(differences, seed=seed)
        attributed = group.filter(pl.col("weights").is_not_null())
        rows.append(
            {
                "method": method,
                "pairs": len(differences),
                "missing": len(group) - len(differences),
                "mean_difference": float(differences.mean()) if len(differences) else None,
                "ci_low": low,
                "ci_high": high,
                "better": better,
                "worse": worse,
                "equal": len(differences) - better - worse,
                "p_value": sign_test(better, worse),
                "attributed": len(attributed),
                **{part: attributed.get_column(part).mean() for part in PARTS},
            }
        )
    schema = {
        "method": pl.String,
        **dict.fromkeys(("pairs", "missing"), pl.Int64),
        **dict.fromkeys(("mean_difference", "ci_low", "ci_high"), pl.Float64),
        **dict.fromkeys(("better", "worse", "equal"), pl.Int64),
        "p_value": pl.Float64,
        "attributed": pl.Int64,
        **dict.fromkeys(PARTS, pl.Float64),
    }
    return pl.DataFrame(rows, schema=schema)
