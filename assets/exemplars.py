"""The asset `exemplars`: of each neuron's records, those to show and those to score on."""

from typing import Any

import dagster as dg
import polars as pl

from assets.project import Project, parse_key
from assets.spec import checks, described
from assets.step import Step, Written
from pipeline.checks import check
from pipeline.exemplars import exemplars as chosen
from pipeline.ports import Lake

CODE_VERSION = "1"


def make(
    context: dg.AssetExecutionContext, lake: Lake, project: Project, *, layer: int, neuron: int | None = None
) -> tuple[Written, list[Any], dict[str, Any]]:
    """Choose the exemplars of a layer, or of one neuron of it."""
    with Step(context, lake, project, table="exemplars", code_version=CODE_VERSION, layer=layer, neuron=neuron) as step:
        sequences, records = step.read("sequences"), step.read("activations")
        written = step.restored() or step.write(chosen(records, sequences))
    shown = written.rows.filter(pl.col("split") == "explain")
    numbers = {
        "data/shown": len(shown),
        "data/scored": len(written.rows) - len(shown),
        "neurons/with_exemplars": written.rows.get_column("neuron").n_unique(),
    }
    return written, check("exemplars", written.rows, sequences=sequences), numbers


def define(project: Project) -> dg.AssetsDefinition:
    """The asset for one project, by layer."""

    @dg.asset(
        group_name="layers",
        code_version=CODE_VERSION,
        deps=["activations"],
        partitions_def=project.layers,
        check_specs=checks("exemplars"),
        **described("exemplars"),
    )
    def exemplars(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> dg.MaterializeResult:
        written, findings, numbers = make(context, lake, project, layer=parse_key(context.partition_key)[0])
        return written.result(findings, extra=numbers)

    return exemplars
