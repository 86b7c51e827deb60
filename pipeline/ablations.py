"""Ablations: a simulation put in the place of its neuron in the subject, to see whether the subject goes on as before.

With m(x) the subject's next-token probabilities on a sequence x, s the simulation and a mean:

    divergence        JSD(m(x with the neuron at a + b s(x)), m(x)), averaged over the tokens of x
    mean_divergence   JSD(m(x with the neuron at its mean over all tokens), m(x)), averaged in the same way

Bills et al. 2023, "Scoring explanations", ablation scoring. Their simulations are calibrated by a line; how it is
fitted they do not say. Ours, a + b s, is the least-squares line through five top and five random sequences of split
`calibrate`, which are neither shown nor scored. A language model has to be asked about those too (`pipeline.best_of`
asks the same); a baseline costs nothing. The neuron is replaced at every token of the text, not at the special tokens
around it; a token without a prediction gets the mean, so that it counts for nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.divergence import jensen_shannon
from pipeline.ports import SubjectModel
from pipeline.provenance import content_hash, identity
from pipeline.tables import IN_PASSING, TABLES

FORMULA_VERSION = 1
COVERAGE_LIMIT = 0.5
"""Least share of the calibrating tokens with a prediction."""

Floats = NDArray[np.float64]
AT = ["layer", "neuron", "polarity"]


@dataclass(frozen=True)
class Line:
    """The line from a simulation to its neuron, or the reason why there is none."""

    slope: float | None
    intercept: float | None
    missing_because: str | None
    made_from: str
    """Hash of the simulations that it is fitted on."""
    request_ids: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[float, float] | None:
        return None if self.slope is None or self.intercept is None else (self.slope, self.intercept)


NO_LINE = Line(None, None, "no_exemplars", content_hash(None))
"""Of a simulation for which there is no text to fit one on."""

Lines = Mapping[tuple[str, str], Line]
"""By explanation and simulator."""
Measure = Callable[[Sequence[int], Sequence[int], NDArray[np.float32]], Floats]
"""A window of token ids, and for each variant its neuron and what to put in its place at each token (variant, token); gives
each variant's divergence from the subject as it is, averaged over the tokens."""


def in_question(explanations: pl.DataFrame, *, asked: bool) -> pl.DataFrame:
    """The explanations whose simulations are put in place: of all neurons, or where a language model is `asked`, of
    those for which somebody found words, baselines included."""
    if not asked:
        return explanations
    return explanations.join(explanations.filter(pl.col("explainer") != "none").select(AT), on=AT, how="semi")


def lines(simulated: pl.DataFrame) -> dict[tuple[str, str], Line]:
    """The line of each explanation and simulator, from `simulations` rows on split `calibrate`.

    A constant simulation has slope 0: all that it says is the mean.
    """
    found: dict[tuple[str, str], Line] = {}
    for key, group in simulated.sort("exemplar_id").group_by("explanation_id", "simulator", maintain_order=True):
        reasons = group.get_column("missing_because").drop_nulls().to_list()
        passing = [reason for reason in reasons if reason in IN_PASSING]
        slope, intercept, reason = None, None, passing[0] if passing else None
        if reason is None:
            known = group.drop_nulls("expected").select("expected", "true").explode("expected", "true")
            s, y = (known.get_column(name).cast(pl.Float64).to_numpy() for name in ("expected", "true"))
            there = np.isfinite(s)
            if there.sum() < COVERAGE_LIMIT * group.get_column("true").list.len().to_numpy().sum():
                reason = max(set(reasons), key=reasons.count) if reasons else "low_coverage"
            else:
                slope, intercept = _fitted(s[there], y[there])
        ids = group.filter(~pl.col("missing_because").is_in(IN_PASSING).fill_null(value=False)).get_column(
            "request_ids"
        )
        found[str(key[0]), str(key[1])] = Line(
            slope,
            intercept,
            reason,
            made_from=content_hash(group.get_column("identity").to_list()),
            request_ids=tuple(sorted(set(ids.explode().drop_nulls()))),
        )
    return found


def _fitted(s: Floats, y: Floats) -> tuple[float, float]:
    """Slope and intercept of the least-squares line of `y` on `s`."""
    ds = s - s.mean()
    spread = float(ds @ ds)
    slope = float(ds @ (y - y.mean())) / spread if spread > 1e-12 * float(s @ s) else 0.0
    return slope, float(y.mean() - slope * s.mean())


def rows(
    simulations: pl.DataFrame,
    exemplars: pl.DataFrame,
    statistics: pl.DataFrame,
    found: Lines,
    *,
    measure: Measure | None,
    checkpoint: str,
    impossible: str | None = None,
) -> pl.DataFrame:
    """The `ablations` rows of these simulations, without `run_id`.

    `exemplars` and `statistics` are rows of `exemplars` and `neuron_statistics`; `checkpoint` is the hash of all weights.
    `impossible` is the reason why no neuron of this subject can be replaced; then nothing is measured.
    """
    windows = dict(exemplars.select("exemplar_id", "token_ids").iter_rows())
    means = dict(statistics.select("neuron", "mean").iter_rows())
    tasks = [
        _Task(row, _line(found, row, impossible), windows[row["exemplar_id"]], means[row["neuron"]])
        for row in simulations.sort("neuron", "explanation_id", "simulator", "exemplar_id").iter_rows(named=True)
    ]
    by_window: dict[tuple[int, ...], list[_Task]] = {}
    for task in tasks:
        if task.line.known is not None and task.row["expected"] is not None:
            by_window.setdefault(tuple(task.window), []).append(task)
    if measure is not None:
        for window, some in by_window.items():
            _measured(window, some, measure)
    schema = {name: kind for name, kind in TABLES["ablations"].schema.items() if name != "run_id"}
    return pl.DataFrame([_row(task, checkpoint) for task in tasks], schema=schema)


@dataclass
class _Task:
    """One simulation on one sequence, with what is to be put in its neuron's place, and what came of it."""

    row: Mapping[str, Any]
    line: Line
    window: Sequence[int]
    mean: float
    divergence: float | None = None
    mean_divergence: float | None = None
    expected: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.expected = np.asarray(
            [np.nan if one is None else one for one in self.row["expected"] or ()], dtype=np.float64
        )

    @property
    def sign(self) -> float:
        return -1.0 if self.row["polarity"] == "-" else 1.0

    def replacement(self) -> Floats:
        """What is put in the place of the neuron at each token."""
        if self.line.known is None:
            raise ValueError("there is no line")
        slope, intercept = self.line.known
        predicted = self.sign * (intercept + slope * self.expected)
        return np.where(np.isfinite(predicted), predicted, self.mean)


def _line(found: Lines, row: Mapping[str, Any], impossible: str | None) -> Line:
    if impossible is not None:
        return Line(None, None, impossible, content_hash(None))
    return found.get((row["explanation_id"], row["simulator"]), NO_LINE)


def _measured(window: Sequence[int], tasks: Sequence[_Task], measure: Measure) -> None:
    """Measure what is put in place on one window; the mean of each neuron once."""
    neurons = sorted({task.row["neuron"] for task in tasks})
    means = {task.row["neuron"]: task.mean for task in tasks}
    values = [np.full(len(window), means[neuron]) for neuron in neurons] + [task.replacement() for task in tasks]
    apart = measure(window, [*neurons, *(task.row["neuron"] for task in tasks)], np.asarray(values, dtype=np.float32))
    of_mean = dict(zip(neurons, apart.tolist(), strict=False))
    for task, divergence in zip(tasks, apart[len(neurons) :].tolist(), strict=True):
        task.divergence, task.mean_divergence = divergence, of_mean[task.row["neuron"]]


def _row(task: _Task, checkpoint: str) -> dict[str, object]:
    row, line = task.row, task.line
    reason = row["missing_because"] or line.missing_because
    known = task.divergence is not None and reason is None
    slope, intercept = (line.slope, line.intercept) if known else (None, None)
    return {
        **{name: row[name] for name in (*AT, "explanation_id", "simulator", "exemplar_id", "stratum", "rank", "coverage")},
        "slope": slope,
        "intercept": intercept,
        "n_tokens": len(task.window),
        "divergence": task.divergence if known else None,
        "mean_divergence": task.mean_divergence if known else None,
        "missing_because": None if known else reason or "no_simulation",
        "request_ids": list(line.request_ids),
        "identity": identity(
            "ablation",
            simulation=row["identity"],
            line=line.made_from,
            slope=slope,
            intercept=intercept,
            mean=task.mean,
            checkpoint=checkpoint,
            missing_because=None if known else reason,
            formula_version=FORMULA_VERSION,
        ),
    }  # fmt: skip


def divergences(subject: SubjectModel, layer: int) -> Measure:
    """What `rows` measures by, of the neurons of one layer."""

    def measure(window: Sequence[int], neurons: Sequence[int], values: NDArray[np.float32]) -> Floats:
        def found() -> Iterator[float]:
            outputs = subject.replaced(layer, window, neurons, values)
            clean = next(outputs)
            for changed in outputs:
                yield float(jensen_shannon(clean, changed).mean())

        return np.fromiter(found(), dtype=np.float64, count=len(neurons))

    return measure
