"""The asset `connections`: what each neuron is joined to by the weights alone. It needs no text and no forward pass.

One layer, a range or all of them, in one run: the weights are loaded once. A row depends on all weights of the model
(embeddings, other layers, the final norm), and not only on those that reach its layer.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache

import dagster as dg

from assets.project import Project, parse_key
from assets.spec import checks, described
from assets.step import Step, over_layers
from pipeline.checks import Finding, check
from pipeline.connections import connections as connection_rows
from pipeline.ports import Lake, Progress, SubjectModel

CODE_VERSION = "1"


def define(project: Project) -> dg.AssetsDefinition:
    """The asset for one project."""

    @dg.multi_asset(
        name="connections",
        specs=[
            dg.AssetSpec(
                "connections",
                group_name="layers",
                code_version=CODE_VERSION,
                deps=["subject_layers"],
                skippable=True,
                **described("connections"),
            )
        ],
        check_specs=checks("connections"),
        partitions_def=project.layers,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def connections(
        context: dg.AssetExecutionContext,
        subject: dg.ResourceParam[SubjectModel],
        lake: dg.ResourceParam[Lake],
        progress: dg.ResourceParam[Progress],
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        layers = [parse_key(key)[0] for key in context.partition_keys]
        findings: list[Finding] = []
        with ExitStack() as stack:
            steps = [
                stack.enter_context(
                    Step(context, lake, project, table="connections", code_version=CODE_VERSION, layer=layer)
                )
                for layer in layers
            ]
            fingerprints = [step.read("subject_layers").item(0, "fingerprint") for step in steps]
            checkpoint = subject.weights_hash()
            embeddings, unembedding = cache(subject.embeddings), cache(subject.unembedding)
            for done, (layer, step) in enumerate(zip(layers, steps, strict=True)):
                step.note("checkpoint", content=checkpoint)
                n_neurons = project.n_neurons[layer]
                if (written := step.restored()) is None:
                    step.note_origin(subject=subject.provenance())
                    rows = connection_rows(
                        layer,
                        n_neurons,
                        embeddings=embeddings(),
                        reading=subject.reading(layer),
                        writing=subject.writing(layer),
                        unembedding=unembedding(),
                        upstream=map(subject.writing, range(layer)),
                        downstream=map(subject.reading, range(layer + 1, len(project.n_neurons))),
                        fingerprint=fingerprints[done],
                        checkpoint=checkpoint,
                    )
                    written = step.write(rows)
                found = check("connections", written.rows, n_neurons=n_neurons)
                if len(layers) == 1:
                    yield written.result(found)
                else:
                    context.log_event(written.event(context, layer, found))
                    findings.extend(found)
                progress("connections", done + 1, len(layers), f"wrote layer {layer}")
        if len(layers) > 1:
            yield from over_layers({"connections": findings})

    return connections
