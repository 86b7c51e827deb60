"""The asset `scores`: how well each explanation predicts its neuron."""

from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from assets.pieces import pieces
from assets.project import Project, parse_key
from assets.spec import checks, described
from assets.step import Step, Written
from pipeline import ablations, scorers
from pipeline.checks import check
from pipeline.permutation import PERMUTATIONS
from pipeline.ports import Lake
from pipeline.scores import COVERAGE_LIMIT, FORMULA_VERSION, RESAMPLES
from pipeline.scores import scores as scored

CODE_VERSION = f"3.{FORMULA_VERSION}"


def settings(project: Project) -> dict[str, Any]:
    """The choices that these rows depend on."""
    chosen = project.choices.scorers
    return {
        "seed": project.choices.seed,
        "resamples": RESAMPLES,
        "permutations": PERMUTATIONS,
        "coverage_limit": COVERAGE_LIMIT,
        **({"scorers": list(chosen)} if chosen else {}),
    }


def more_inputs(project: Project) -> tuple[str, ...]:
    """What is read only where scorers are chosen that need it."""
    return scorers.tables(project.choices.scorers)


def make(
    context: dg.AssetExecutionContext, lake: Lake, project: Project, *, layer: int, neuron: int | None = None
) -> tuple[Written, list[Any], dict[str, Any]]:
    """Score the simulations of a layer, or of one neuron of it."""
    with Step(
        context, lake, project, table="scores", code_version=CODE_VERSION, layer=layer, neuron=neuron,
        settings=settings(project),
    ) as step:  # fmt: skip
        simulations, explanations = step.read("simulations", may_be_empty=True), step.read("explanations")
        more: dict[str, Any] = {"seed": project.choices.seed}
        further = {name: step.read(name, may_be_empty=True) for name in more_inputs(project)}
        if "judgements" in further:
            more["judged_by"] = dict.fromkeys(scorers.judging(project.choices.scorers), project.choices.simulator)
            more["measured_by"] = scorers.measuring(project.choices.scorers, project.choices.simulator)
        if "ablations" in further:
            asked = project.choices.simulator is not None
            further["ablated"] = ablations.in_question(explanations, asked=asked)
        if (written := step.restored()) is None:
            found = []
            for said, some in pieces(explanations, {"simulations": simulations, **further}):
                given: dict[str, Any] = {**some, **more}
                found.append(scored(given.pop("simulations"), said, **given))
            written = step.write(pl.concat(found))
    more |= further
    findings = check("scores", written.rows, simulations=simulations, explanations=explanations, **more)
    return written, findings, _numbers(written.rows)


def define(project: Project) -> dg.AssetsDefinition:
    """The asset for one project, by layer."""

    @dg.asset(
        group_name="layers",
        code_version=CODE_VERSION,
        deps=[("simulations", *more_inputs(project))[-1]],
        partitions_def=project.layers,
        check_specs=checks("scores"),
        **described("scores"),
    )
    def scores(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> dg.MaterializeResult:
        written, findings, numbers = make(context, lake, project, layer=parse_key(context.partition_key)[0])
        return written.result(findings, extra=numbers)

    return scores


def _numbers(rows: pl.DataFrame) -> dict[str, Any]:
    """For each method, the distribution of the main score, to be plotted by layer."""
    main = rows.filter((pl.col("scorer") == "ev_correlation") & (pl.col("split") == "top_and_random"))
    numbers: dict[str, Any] = {"neurons/scored": main.drop_nulls("value").get_column("neuron").n_unique()}
    for method, group in main.sort("method").group_by("method", maintain_order=True):
        values = group.get_column("value").drop_nulls()
        numbers[f"score/{method[0]}/undefined"] = len(group) - len(values)
        if len(values):
            numbers[f"score/{method[0]}/mean"] = float(values.sum()) / len(values)
            numbers[f"score/{method[0]}/median"] = float(np.quantile(values.to_numpy(), 0.5))
            numbers[f"score/{method[0]}/p90"] = float(np.quantile(values.to_numpy(), 0.9))
    return numbers
