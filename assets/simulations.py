"""The asset `simulations`: every explanation, played back on the exemplars that its explainer never saw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import polars as pl

from assets.pieces import pieces
from assets.project import Choices, Project, parse_key
from assets.spec import checks, described
from assets.step import Step, Written
from pipeline import simulations as played_by_model
from pipeline.baselines import simulations as baseline_rows
from pipeline.checks import check
from pipeline.ports import Answer, Lake, LanguageModel, Machines, Usage
from pipeline.texts import display

CODE_VERSION = "1"


def settings(project: Project) -> dict[str, Any]:
    """The choices that these rows depend on."""
    if not project.choices.simulator:
        return {}
    return {
        "simulator": project.choices.simulator,
        "prompt": played_by_model.PROMPT_HASHES[project.choices.simulation],
        "seed": project.choices.seed,
        "parser": played_by_model.parser_version(project.choices.simulation),
    }


@dataclass(frozen=True)
class Work:
    """What is the same for every neuron of a layer."""

    choices: Choices
    texts: Mapping[str, Sequence[str]]


def simulated(
    work: Work, piece: tuple[pl.DataFrame, Mapping[str, pl.DataFrame]], answer: Answer
) -> tuple[pl.DataFrame, Usage]:
    """The rows of some neurons' explanations, and what they cost. Runs on any machine."""
    explanations, tables = piece
    exemplars, choices = tables["exemplars"], work.choices
    rows = baseline_rows(explanations, exemplars, tables["token_associations"])
    if (model := choices.simulator) is None:
        return rows, Usage()
    way = choices.simulation
    asked = played_by_model.requests(explanations, exemplars, work.texts, model=model, seed=choices.seed, way=way)
    replies, usage = answer([request for _, request in asked])
    played = played_by_model.rows(asked, replies, explanations, exemplars, model=model, way=way)
    return pl.concat([rows, played.select(rows.columns)]), usage


def make(
    context: dg.AssetExecutionContext,
    lake: Lake,
    language: LanguageModel,
    project: Project,
    *,
    machines: Machines,
    layer: int,
    neuron: int | None = None,
) -> tuple[Written, list[Any], dict[str, Any]]:
    """Simulate the explanations of a layer, or of one neuron of it."""
    with Step(
        context, lake, project, table="simulations", code_version=CODE_VERSION, layer=layer, neuron=neuron,
        settings=settings(project),
    ) as step:  # fmt: skip
        explanations, exemplars = step.read("explanations"), step.read("exemplars", may_be_empty=True)
        tables = {"exemplars": exemplars, "token_associations": step.read("token_associations")}
        work = Work(project.choices, display(step.read("sequences")) if project.choices.simulator else {})
        if (written := step.restored()) is None:
            some = pieces(explanations, tables, batch=project.choices.batch)
            found = list(machines.ask(simulated, work, some, language, run_id=step.run_id))
            written = step.write(pl.concat(rows for rows, _ in found), usage=sum((paid for _, paid in found), Usage()))
    numbers = {
        "data/simulations": len(written.rows),
        "data/simulations_missing": written.rows.get_column("expected").null_count(),
    }
    findings = check("simulations", written.rows, explanations=explanations, exemplars=exemplars)
    return written, findings, numbers


def define(project: Project) -> dg.AssetsDefinition:
    """The asset for one project, by layer."""

    @dg.asset(
        group_name="layers",
        code_version=CODE_VERSION,
        deps=["explanations", "exemplars", "token_associations"],
        partitions_def=project.layers,
        check_specs=checks("simulations"),
        pool="language",
        **described("simulations"),
    )
    def simulations(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        language: dg.ResourceParam[LanguageModel],
        machines: dg.ResourceParam[Machines],
    ) -> dg.MaterializeResult:
        layer, _ = parse_key(context.partition_key)
        written, findings, numbers = make(context, lake, language, project, machines=machines, layer=layer)
        return written.result(findings, extra=numbers)

    return simulations
