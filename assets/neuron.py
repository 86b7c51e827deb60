"""The neuron group: the same hops for one neuron, so that it can be recomputed alone and has its own history.

Partitions are `L05|N0131`. Defining one for every neuron costs nothing; each is materialised only when asked for.
The assets write the same tables as the layer group, and replace the rows of their neuron alone.
"""

from collections.abc import Callable
from typing import Any

import dagster as dg

from assets import ablations, exemplars, explanations, judgements, scores, simulations
from assets.project import Project, layer_key, parse_key
from assets.spec import checks, described
from assets.step import Written
from pipeline.ports import Lake, LanguageModel, Machines, SubjectModel
from pipeline.tables import TABLES

BY_LAYER = dg.MultiToSingleDimensionPartitionMapping(partition_dimension_name="layer")
"""Each neuron of the neuron group reads the partition of its layer."""


def define(project: Project) -> list[dg.AssetsDefinition]:
    """The four assets for one project, and those that the chosen scorers need."""

    def options(table: str, code_version: str, *parents: str) -> dict[str, Any]:
        return {
            "group_name": "neuron",
            "code_version": code_version,
            "partitions_def": project.neurons,
            "check_specs": checks(table, asset=f"neuron_{table}"),
            "deps": [
                dg.AssetDep(parent, partition_mapping=BY_LAYER)
                if parent in TABLES and TABLES[parent].by_layer
                else parent
                for parent in parents
            ],
            **described(table),
        }

    @dg.asset(**options("exemplars", exemplars.CODE_VERSION, "activations"))
    def neuron_exemplars(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> dg.MaterializeResult:
        return _made(context, project, "exemplars", lambda **at: exemplars.make(context, lake, project, **at))

    @dg.asset(
        pool="language",
        **options("explanations", explanations.CODE_VERSION, "neuron_exemplars", *explanations.more_inputs(project)),
    )
    def neuron_explanations(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        language: dg.ResourceParam[LanguageModel],
        subject: dg.ResourceParam[SubjectModel],
        machines: dg.ResourceParam[Machines],
    ) -> dg.MaterializeResult:
        return _made(
            context,
            project,
            "explanations",
            lambda **at: explanations.make(context, lake, language, subject, project, machines=machines, **at),
        )

    @dg.asset(
        pool="language",
        **options("simulations", simulations.CODE_VERSION, "neuron_explanations"),
    )
    def neuron_simulations(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        language: dg.ResourceParam[LanguageModel],
        machines: dg.ResourceParam[Machines],
    ) -> dg.MaterializeResult:
        return _made(
            context,
            project,
            "simulations",
            lambda **at: simulations.make(context, lake, language, project, machines=machines, **at),
        )

    further: list[dg.AssetsDefinition] = []
    hops = ("simulations", *scores.more_inputs(project))
    if "judgements" in hops:

        @dg.asset(
            pool="language",
            **options("judgements", judgements.CODE_VERSION, "neuron_simulations"),
        )
        def neuron_judgements(
            context: dg.AssetExecutionContext,
            lake: dg.ResourceParam[Lake],
            language: dg.ResourceParam[LanguageModel],
            machines: dg.ResourceParam[Machines],
        ) -> dg.MaterializeResult:
            return _made(
                context,
                project,
                "judgements",
                lambda **at: judgements.make(context, lake, language, project, machines=machines, **at),
            )

        further.append(neuron_judgements)

    if "ablations" in hops:

        @dg.asset(
            pool="language",
            **options("ablations", ablations.CODE_VERSION, f"neuron_{hops[hops.index('ablations') - 1]}"),
        )
        def neuron_ablations(
            context: dg.AssetExecutionContext,
            lake: dg.ResourceParam[Lake],
            language: dg.ResourceParam[LanguageModel],
            subject: dg.ResourceParam[SubjectModel],
            machines: dg.ResourceParam[Machines],
        ) -> dg.MaterializeResult:
            return _made(
                context, project, "ablations",
                lambda **at: ablations.make(context, lake, language, subject, project, machines=machines, **at),
            )  # fmt: skip

        further.append(neuron_ablations)

    @dg.asset(**options("scores", scores.CODE_VERSION, f"neuron_{hops[-1]}"))
    def neuron_scores(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> dg.MaterializeResult:
        return _made(context, project, "scores", lambda **at: scores.make(context, lake, project, **at))

    return [neuron_exemplars, neuron_explanations, neuron_simulations, *further, neuron_scores]


def _made(
    context: dg.AssetExecutionContext,
    project: Project,
    table: str,
    make: Callable[..., tuple[Written, list[Any], dict[str, Any]]],
) -> dg.MaterializeResult:
    """Make one neuron's slice of a table, and leave a note of it on the layer's own timeline."""
    layer, neuron = parse_key(context.partition_key)
    if neuron is None or neuron >= project.n_neurons[layer]:
        raise dg.Failure(
            f"layer {layer} has neurons 0 to {project.n_neurons[layer] - 1}; there is no {context.partition_key}",
            allow_retries=False,
        )
    written, findings, numbers = make(layer=layer, neuron=neuron)
    context.log_event(
        dg.AssetObservation(
            table,
            partition=layer_key(layer),
            description=f"neuron {layer}:{neuron} was recomputed alone",
            metadata={"neuron": neuron, "delta/version": written.commit.version, "run": context.run.run_id},
        )
    )
    return written.result(findings, asset=f"neuron_{table}", extra=numbers)
