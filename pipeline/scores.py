"""Scores: how well a simulation predicts the neuron, by eleven formulas on two sets of sequences.

With true activations y and expected activations s at all tokens of the scored sequences, taken together:

    ev_correlation           Pearson correlation of s and y
    rsquared                 1 - mean((y - s)**2) / mean(y**2)          not centred, as in OpenAI's code
    absolute_dev_explained   1 - mean(|y - s|) / mean(|y|)
    explained_variance       1 - mean((y - s)**2) / var(y)              centred, as in the paper
    rank_correlation         Pearson correlation of the ranks of s and y, equal ones sharing theirs (Spearman)
    linear_rsquared, linear_absolute_dev_explained, linear_explained_variance
                             the same three with a + b s in place of s
    percentile_rsquared, percentile_absolute_dev_explained, percentile_explained_variance
                             the same three with what has the rank of s among true activations in place of s

Bills et al. 2023, "Scoring explanations", and its code `explanations/scoring.py`. Activations are raw: not scaled,
and negative ones kept. The last three only mean something when s is in the units of y (`simulations.scale` is
`neuron`); for a simulation on the scale 0 to 10 or in units of weights they are computed as they stand. The `linear_`
ones bring any simulation to the neuron's units: a and b are the least-squares line through all other sequences of the
set, never the one that is scored by it, so that nothing is fitted to what it is measured on. (The paper fits its
calibration on the simulated text itself, with a quarter of it held out; with ten sequences that is two or three.)

The `percentile_` ones do so by rank, with no line assumed (`pipeline.percentiles`).

Tokens of one sequence are not independent, so the interval resamples whole sequences (cluster bootstrap). Ranks,
lines and percentiles are not found anew in a resample. The two correlations have a p-value (`pipeline.permutation`);
what the others would say of chance depends on units. A score of simulations that leave out half the tokens of the set
or more is null.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.ablation_scores import ablation_scores
from pipeline.judged_scores import judged_scores
from pipeline.measured_scores import measured_scores
from pipeline.percentiles import on_percentiles
from pipeline.permutation import p_values
from pipeline.provenance import content_hash, identities
from pipeline.scoring_kernels import CONSTANT, ranks, resampled, sums

RAW = ("ev_correlation", "rsquared", "absolute_dev_explained", "explained_variance")
LINEAR = ("linear_rsquared", "linear_absolute_dev_explained", "linear_explained_variance")
PERCENTILE = ("percentile_rsquared", "percentile_absolute_dev_explained", "percentile_explained_variance")
CORRELATIONS = ("ev_correlation", "rank_correlation")
SCORERS = (*RAW, "rank_correlation", *LINEAR, *PERCENTILE)
FORMULA_VERSION = 1
SETS = {"top_and_random": ("top", "random"), "random_only": ("random",)}
RESAMPLES = 500
COVERAGE_LIMIT = 0.5
"""Least share of a set's tokens with a usable prediction, below which a score would say more of the failures."""


def scores(
    simulations: pl.DataFrame,
    explanations: pl.DataFrame,
    *,
    seed: int,
    judgements: pl.DataFrame | None = None,
    judged_by: Mapping[str, str] | None = None,
    measured_by: Sequence[tuple[str, str]] = (),
    ablations: pl.DataFrame | None = None,
    ablated: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """The `scores` rows for all explanations given, without `run_id`.

    An explanation that is missing has missing scores, for the same reason. `seed` draws the resamples, the same ones
    for every neuron, so that one neuron alone scores as it does among others. `judged_by` names the judge of each
    scorer that has `judgements` (`pipeline.judged_scores`), `measured_by` each scorer with a model of its own that has
    some (`pipeline.measured_scores`), and `ablated` are the explanations that should have
    `ablations` (`pipeline.ablation_scores`).
    """
    grid = explanations.join(pl.DataFrame({"split": list(SETS)}), how="cross", maintain_order="left_right")
    frames = [_missing(grid.filter(pl.col("text").is_null()))]
    methods = explanations.select("layer", "explanation_id", "method")
    for name, strata in SETS.items():
        rows = simulations.filter(pl.col("stratum").is_in(strata)).join(
            methods, on=["layer", "explanation_id"], how="inner", maintain_order="left"
        )
        frames.append(_scored(rows, name, seed=seed))
    frame = pl.concat(frames)
    answered = frame.select("layer", "explanation_id", "split").unique()
    unsimulated = grid.filter(pl.col("text").is_not_null()).join(
        answered, on=["layer", "explanation_id", "split"], how="anti", maintain_order="left"
    )
    frame = pl.concat([frame, _missing(unsimulated.with_columns(pl.lit("no_simulation").alias("missing_because")))])
    found = _with_baselines(frame.with_columns(pl.lit(FORMULA_VERSION, pl.Int32).alias("formula_version")))
    if judgements is not None and judged_by:
        judged = judged_scores(judgements, explanations, judged_by=judged_by, seed=seed)
        found = pl.concat([found, judged.select(found.columns)])
    if judgements is not None and measured_by:
        measured = measured_scores(judgements, explanations, measured_by=measured_by, seed=seed)
        found = pl.concat([found, measured.select(found.columns)])
    if ablations is not None and ablated is not None:
        without = ablation_scores(ablations, ablated, seed=seed).drop("token_lookup", "token_linear")
        found = pl.concat([found, _with_baselines(without).select(found.columns)])
    return found


def _missing(explanations: pl.DataFrame) -> pl.DataFrame:
    """One row for each scorer of every explanation and set (`split`) without a simulation."""
    rows = explanations.select(
        "layer",
        "neuron",
        "polarity",
        "explanation_id",
        "method",
        "missing_because",
        "split",
        pl.col("identity").alias("explanation"),
    ).join(pl.DataFrame({"scorer": SCORERS}), how="cross", maintain_order="left_right")
    made_from = rows.select("explanation", "scorer", "split")
    return rows.select(
        "layer", "neuron", "polarity", "explanation_id", "method",
        pl.lit("none").alias("simulator"), "scorer", "split",
        pl.lit(None, pl.Float64).alias("value"), "missing_because",
        pl.lit(None, pl.Float64).alias("ci_low"), pl.lit(None, pl.Float64).alias("ci_high"),
        pl.lit(None, pl.Float64).alias("p_value"),
        pl.lit(0, pl.Int32).alias("n_sequences"), pl.lit(0, pl.Int64).alias("n_tokens"), pl.lit(0, pl.Int32).alias("n_failed"),
        pl.Series("identity", identities("score", made_from, formula_version=FORMULA_VERSION), dtype=pl.String),
    )  # fmt: skip


def _scored(rows: pl.DataFrame, split: str, *, seed: int) -> pl.DataFrame:
    """All scorers on one set of sequences, for every (explanation, simulator) in `rows`."""
    at = ["layer", "neuron", "polarity", "explanation_id", "method", "simulator"]
    rows = rows.sort(*at, "stratum", "rank", "exemplar_id")
    groups = rows.group_by(at, maintain_order=True).agg(
        pl.col("expected").is_null().sum().cast(pl.Int32).alias("n_failed"),
        pl.col("expected").is_not_null().sum().cast(pl.Int32).alias("n_sequences"),
        pl.col("expected").list.drop_nulls().list.len().sum().cast(pl.Int64).alias("n_tokens"),
        pl.col("identity").str.join("\n").alias("simulations"),
        pl.col("missing_because").drop_nulls().mode().sort().first().alias("failure"),
        ((pl.col("coverage") * pl.col("true").list.len()).sum() / pl.col("true").list.len().sum()).alias("coverage"),
    )
    usable = _known(rows.filter(pl.col("expected").is_not_null()))
    n_sequences = groups.get_column("n_sequences").to_numpy()
    tokens = _Tokens.of(usable, n_sequences)
    raw = _moments(tokens, tokens.y, tokens.s)
    ranked = tokens.ranks(tokens.y), tokens.ranks(tokens.s)
    shape = tokens.lengths, n_sequences
    matched = on_percentiles(tokens.y, tokens.s, *shape)
    found = (
        raw,
        _moments(tokens, *ranked),
        _moments(tokens, tokens.y, _on_lines(tokens, raw)),
        _moments(tokens, tokens.y, np.where(np.isnan(matched), tokens.s, matched)),
    )
    columns = (range(4), range(1), range(1, 4), range(1, 4))
    chance = dict(
        zip(
            CORRELATIONS,
            (p_values(y, s, *shape, seed=seed) for y, s in ((tokens.y, tokens.s), ranked)),
            strict=True,
        )
    )
    point, low, high = (
        np.concatenate([values[:, some] for values, some in zip(parts, columns, strict=True)], axis=1)
        for parts in zip(
            *((_formulas(sums.sum(axis=1)), *_interval(sums, n_sequences, seed=seed)) for sums in found), strict=True
        )
    )
    extremes = _extremes(usable, n_sequences)
    constant_true, constant_expected = extremes
    hashes = [content_hash(text) for text in groups.get_column("simulations")]
    frames: list[pl.DataFrame] = []
    for index, scorer in enumerate(SCORERS):
        value = point[:, index]
        reason = np.full(len(groups), None, dtype=object)
        if scorer in CORRELATIONS:
            reason[constant_expected] = "constant_simulation"
        if scorer in CORRELATIONS or scorer.endswith("explained_variance"):
            reason[constant_true] = "constant_activation"
        if scorer in (*LINEAR, *PERCENTILE):
            reason[n_sequences == 1] = "too_few_sequences"
        reason[(reason == None) & ~np.isfinite(value)] = "constant_activation"  # noqa: E711 (elementwise)
        reason[groups.get_column("coverage").to_numpy() < COVERAGE_LIMIT] = "low_coverage"
        nothing = n_sequences == 0
        reason[nothing] = groups.get_column("failure").fill_null("no_simulation").to_numpy()[nothing]
        reasons = pl.Series("missing_because", reason.tolist(), dtype=pl.String)
        known = reasons.is_null()
        frame = groups.select(
            *at, pl.lit(scorer).alias("scorer"), pl.lit(split).alias("split"),
            pl.Series("value", value), reasons,
            pl.Series("ci_low", low[:, index]), pl.Series("ci_high", high[:, index]),
            pl.Series("p_value", chance.get(scorer, np.full(len(groups), np.nan))),
            "n_sequences", "n_tokens", "n_failed",
        ).with_columns(
            pl.when(known).then(pl.col(name)).fill_nan(None).alias(name)
            for name in ("value", "ci_low", "ci_high", "p_value")
        )  # fmt: skip
        made_from = frame.select("scorer", "split").with_columns(pl.Series("simulations", hashes, dtype=pl.String))
        made = identities("score", made_from, formula_version=FORMULA_VERSION, seed=seed, resamples=RESAMPLES)
        frames.append(frame.with_columns(pl.Series("identity", made, dtype=pl.String)))
    return pl.concat(frames).select(
        *at[:5], "simulator", "scorer", "split", "value", "missing_because", "ci_low", "ci_high", "p_value",
        "n_sequences", "n_tokens", "n_failed", "identity",
    )  # fmt: skip


def _known(usable: pl.DataFrame) -> pl.DataFrame:
    """The simulations with `true` and `expected` at those tokens alone where something is expected."""
    if not usable.get_column("expected").list.eval(pl.element().is_null()).list.any().any():
        return usable
    rows = usable.with_row_index("row")
    flat = rows.select("row", "true", "expected").explode("true", "expected").drop_nulls("expected")
    kept = flat.group_by("row", maintain_order=True).agg("true", "expected")
    return rows.drop("true", "expected").join(kept, on="row", maintain_order="left").select(usable.columns)


@dataclass(frozen=True)
class _Tokens:
    """All tokens of the simulations to be scored, one after the other, and whose they are."""

    y: NDArray[np.float64]
    s: NDArray[np.float64]
    n_sequences: NDArray[np.int32]
    """Of each explanation."""
    lengths: NDArray[np.int64]
    """Of each sequence."""
    explanation: NDArray[np.int64]
    """Of each sequence."""
    position: NDArray[np.int64]
    """Of each sequence within its explanation."""

    @classmethod
    def of(cls, usable: pl.DataFrame, n_sequences: NDArray[np.int32]) -> "_Tokens":
        explanation = np.repeat(np.arange(len(n_sequences)), n_sequences)
        y, s = (
            usable.get_column(name).explode(empty_as_null=False, keep_nulls=False).cast(pl.Float64).to_numpy()
            for name in ("true", "expected")
        )
        return cls(
            y=y,
            s=s,
            n_sequences=n_sequences,
            lengths=usable.get_column("true").list.len().to_numpy().astype(np.int64),
            explanation=explanation,
            position=np.arange(len(explanation)) - np.repeat(np.cumsum(n_sequences) - n_sequences, n_sequences),
        )

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """The explanation of each token."""
        return np.repeat(self.explanation, self.lengths)

    @cached_property
    def n_tokens(self) -> NDArray[np.float64]:
        """Tokens of each explanation."""
        found = np.bincount(self.explanation, weights=self.lengths, minlength=len(self.n_sequences))
        return np.asarray(found, dtype=np.float64)

    def ranks(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The rank of each token's value among those of its explanation, from 0; equal ones share their mean rank."""
        return ranks(values, self.n_tokens.astype(np.int64))


def _on_lines(tokens: _Tokens, moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """a + b s at each token, with the line through all other sequences of its explanation; their mean if s is constant."""
    others = moments.sum(axis=1, keepdims=True) - moments
    n, dy, ds, _, dss, dys = np.moveaxis(others[..., :6], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (dys - dy * ds / n) / _varied(dss, dss - ds * ds / n)
        slope = np.where(np.isfinite(slope), slope, 0.0)
        level = np.where(n > 0, (dy - slope * ds) / n, 0.0)
    at = (tokens.explanation, tokens.position)
    centre_y, centre_s = _centres(tokens, tokens.y), _centres(tokens, tokens.s)
    slope, level = (np.repeat(values[at], tokens.lengths) for values in (slope, level))
    owner = tokens.owner
    return np.asarray(centre_y[owner] + level + slope * (tokens.s - centre_s[owner]), dtype=np.float64)


def _centres(tokens: _Tokens, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over all tokens of each explanation."""
    sums = np.bincount(tokens.owner, weights=values, minlength=len(tokens.n_sequences))
    return np.asarray(sums / np.maximum(tokens.n_tokens, 1), dtype=np.float64)


def _moments(tokens: _Tokens, y: NDArray[np.float64], s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over the tokens of each sequence: (explanation, sequence, sum), padded with zeros.

    The sums are n, y, s, y*y, s*s, y*s about the explanation's own means, then those means, then raw y*y,
    (y-s)**2, |y| and |y-s|. Taking them about the mean keeps the correlation exact when a neuron barely varies.
    """
    return sums(y, s, tokens.lengths, tokens.n_sequences.astype(np.int64))


def _formulas(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The four scores from sums over tokens (..., 10); NaN where one is undefined."""
    n, dy, ds, dyy, dss, dys, yy, error, absolute, absolute_error = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance_y, variance_s = _varied(dyy, dyy - dy * dy / n), _varied(dss, dss - ds * ds / n)
        correlation = (dys - dy * ds / n) / np.sqrt(variance_y * variance_s)
        result = np.stack(
            [
                np.clip(correlation, -1, 1),
                1 - error / yy,
                1 - absolute_error / absolute,
                1 - error / variance_y,
            ],
            axis=-1,
        )
    return np.where(np.isfinite(result), result, np.nan)


def _varied(squares: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """The spread of a resample about its own mean, NaN where it is only what rounding leaves of one that is constant."""
    return np.where(spread > CONSTANT * squares, spread, np.nan)


def _interval(
    moments: NDArray[np.float64], n_sequences: NDArray[np.int32], *, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """2.5th and 97.5th percentile over resamples of whole sequences; NaN with fewer than two sequences."""
    low = np.full((len(moments), len(RAW)), np.nan)
    high = low.copy()
    for size in np.unique(n_sequences[n_sequences >= 2]):
        generator = np.random.default_rng([seed, int(size)])
        weights = generator.multinomial(int(size), np.full(size, 1 / size), size=RESAMPLES).astype(np.float64)
        members = np.flatnonzero(n_sequences == size)
        for block in np.array_split(members, max(1, len(members) // 512)):
            bounds = _percentiles(resampled(moments[block, :size], weights), (2.5, 97.5))
            low[block], high[block] = bounds
    return low, high


def _percentiles(values: NDArray[np.float64], percents: tuple[float, float]) -> list[NDArray[np.float64]]:
    """Percentiles over axis 1 by linear interpolation, leaving NaN out; NaN where nothing is left."""
    ordered = np.sort(values, axis=1)
    n = np.isfinite(ordered).sum(axis=1)
    found: list[NDArray[np.float64]] = []
    for percent in percents:
        at = np.maximum(n - 1, 0) * percent / 100
        below = np.floor(at).astype(np.int64)
        above = np.minimum(below + 1, np.maximum(n - 1, 0))
        lower = np.take_along_axis(ordered, below[:, None], axis=1)[:, 0]
        upper = np.take_along_axis(ordered, above[:, None], axis=1)[:, 0]
        found.append(np.where(n > 0, lower + (upper - lower) * (at - below), np.nan))
    return found


def _extremes(usable: pl.DataFrame, n_sequences: NDArray[np.int32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each explanation, whether the true and the expected activations are the same at every token."""
    explanation = np.repeat(np.arange(len(n_sequences)), n_sequences)
    found: list[NDArray[np.bool_]] = []
    for name in ("true", "expected"):
        low, high = np.full(len(n_sequences), np.inf), np.full(len(n_sequences), -np.inf)
        column = usable.get_column(name)
        np.minimum.at(low, explanation, column.list.min().to_numpy())
        np.maximum.at(high, explanation, column.list.max().to_numpy())
        found.append(low == high)
    return found[0], found[1]


def _with_baselines(frame: pl.DataFrame) -> pl.DataFrame:
    """Beside every score, the same score of the two baselines for that neuron."""
    at = ["layer", "neuron", "polarity", "scorer", "split"]
    for method in ("token-lookup", "token-linear"):
        baseline = frame.filter(pl.col("method") == method).select(*at, pl.col("value").alias(method.replace("-", "_")))
        frame = frame.join(baseline.unique(at), on=at, how="left", maintain_order="left")
    return frame
