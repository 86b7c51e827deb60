"""The asset `simulations`: every explanation, played back on the exemplars that its explainer never saw."""

from typing import Any

import dagster as dg
import polars as pl

from assets.pieces import pieces
from assets.project import Project, parse_key
from assets.spec import checks, described
from assets.step import Step, Written
from pipeline import simulations as played_by_model
from pipeline.baselines import simulations as baseline_rows
from pipeline.checks import check
from pipeline.ports import Lake, LanguageModel, Usage
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
        "parser": played_by_model.PARSER_VERSION,
    }


def make(
    context: dg.AssetExecutionContext,
    lake: Lake,
    language: LanguageModel,
    project: Project,
    *,
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
        model, way, seed = project.choices.simulator, project.choices.simulation, project.choices.seed
        texts = display(step.read("sequences")) if model else {}
        if (written := step.restored()) is None:
            frames, usage = [], Usage()
            for said, some in pieces(explanations, tables, batch=project.choices.batch):
                shown = some["exemplars"]
                rows = baseline_rows(said, shown, some["token_associations"])
                frames.append(rows.select(sorted(rows.columns)))
                if model is None:
                    continue
                asked = played_by_model.requests(said, shown, texts, model=model, seed=seed, way=way)
                replies, paid = language.answer([request for _, request in asked], run_id=step.run_id)
                played = played_by_model.rows(asked, replies, said, shown, model=model, way=way)
                frames.append(played.select(sorted(played.columns)))
                usage += paid
            written = step.write(pl.concat(frames), usage=usage)
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
        deps=["explanations"],
        partitions_def=project.layers,
        check_specs=checks("simulations"),
        pool="language",
        **described("simulations"),
    )
    def simulations(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        language: dg.ResourceParam[LanguageModel],
    ) -> dg.MaterializeResult:
        layer, _ = parse_key(context.partition_key)
        written, findings, numbers = make(context, lake, language, project, layer=layer)
        return written.result(findings, extra=numbers)

    return simulations
