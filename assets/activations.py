"""The assets `activations`, `neuron_statistics` and `token_associations`: one forward pass fills all three.

A range of layers is one run and one pass. Each layer still gets its own event and data version.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from assets.forward_pass import Figures, captured
from assets.project import Project, parse_key
from assets.spec import checks, described
from assets.step import Step, Written, over_layers
from pipeline.activations import activations as record_rows
from pipeline.activations import statistics as statistic_rows
from pipeline.associations import associations
from pipeline.capture import LayerCapture, Plan, can_grow
from pipeline.capture import plan as planned
from pipeline.checks import Finding, check
from pipeline.ports import Lake, Machines, Partials, Progress, SubjectModel
from pipeline.provenance import content_hash

CODE_VERSION = "3"
TABLES = ("activations", "neuron_statistics", "token_associations")


def settings(project: Project) -> dict[str, Any]:
    """The choices that these rows depend on."""
    return {"seed": project.choices.seed}


def define(project: Project) -> dg.AssetsDefinition:
    """The three assets for one project."""

    @dg.multi_asset(
        name="capture",
        specs=[
            dg.AssetSpec(
                table,
                group_name="layers",
                code_version=CODE_VERSION,
                deps=["sequences", "subject_layers"],
                skippable=True,
                **{**described(table), "kinds": {"pytorch", "deltalake"}},
            )
            for table in TABLES
        ],
        check_specs=[spec for table in TABLES for spec in checks(table)],
        partitions_def=project.layers,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool="capture",
    )
    def capture(  # noqa: PLR0917 (Dagster passes by name)
        context: dg.AssetExecutionContext,
        subject: dg.ResourceParam[SubjectModel],
        lake: dg.ResourceParam[Lake],
        partials: dg.ResourceParam[Partials],
        captures: dg.ResourceParam[Partials],
        machines: dg.ResourceParam[Machines],
        progress: dg.ResourceParam[Progress],
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        layers = [parse_key(key)[0] for key in context.partition_keys]
        with ExitStack() as stack:
            steps = {
                (table, layer): stack.enter_context(
                    Step(
                        context,
                        lake,
                        project,
                        table=table,
                        code_version=CODE_VERSION,
                        layer=layer,
                        settings=settings(project),
                    )
                )
                for table in TABLES
                for layer in layers
            }
            origin = subject.provenance()
            for step in steps.values():
                step.note_origin(subject=origin)
            inputs = {key: (step.read("sequences"), step.read("subject_layers")) for key, step in steps.items()}
            sequences = inputs[TABLES[0], layers[0]][0]
            plan, figures = planned(sequences), Figures()
            findings: dict[str, list[Finding]] = {table: [] for table in TABLES}
            embeddings = subject.embeddings()
            kept_as = {
                layer: content_hash(
                    {
                        "code_version": CODE_VERSION,
                        "weights": steps[TABLES[0], layer].input_hash("subject_layers"),
                        "layer": layer,
                        "seed": project.choices.seed,
                    }
                )
                for layer in layers
            }
            earlier = _earlier(captures, kept_as, plan) if project.choices.grow else {}
            for found in captured(
                subject,
                plan,
                layers,
                seed=project.choices.seed,
                key=content_hash([steps[TABLES[0], layer].key for layer in layers]),
                partials=partials,
                progress=progress,
                figures=figures,
                machines=machines,
                earlier=earlier,
            ):
                layer = found.layer
                if project.choices.grow:
                    captures.keep(kept_as[layer], [(layer, found.arrays())])
                fingerprint = inputs[TABLES[0], layer][1].item(0, "fingerprint")
                corpus = steps[TABLES[0], layer].input_hash("sequences")
                records = record_rows(found, plan, sequences, fingerprint=fingerprint)
                rows = {
                    "activations": records,
                    "neuron_statistics": statistic_rows(found, plan, fingerprint=fingerprint, corpus=corpus),
                    "token_associations": associations(
                        found,
                        plan,
                        records,
                        sequences,
                        embeddings=embeddings,
                        reading=subject.reading(layer),
                        fingerprint=fingerprint,
                        corpus=corpus,
                    ),
                }
                n_neurons = project.n_neurons[layer]
                for table in TABLES:
                    written = steps[table, layer].write(rows.pop(table))
                    parents = {"sequences": sequences} if table == "activations" else {}
                    checked = check(table, written.rows, n_neurons=n_neurons, **parents)
                    numbers = _numbers(written) | (figures.metadata() if table == "activations" else {})
                    if len(layers) == 1:
                        yield written.result(checked, extra=numbers)
                    else:
                        context.log_event(written.event(context, layer, checked, numbers))
                        findings[table].extend(checked)
                progress("activations", layers.index(layer) + 1, len(layers), f"wrote layer {layer}")
            if len(layers) > 1:
                yield from over_layers(findings)

    return capture


def _earlier(captures: Partials, kept_as: Mapping[int, str], plan: Plan) -> dict[int, LayerCapture]:
    """Of each layer the capture of a smaller corpus, if all layers have one that the new text can be merged into."""
    found: dict[int, LayerCapture] = {}
    for layer, key in kept_as.items():
        arrays = captures.found(key, [layer])
        if not arrays:
            return {}
        found[layer] = LayerCapture.from_arrays(arrays[layer])
        if not can_grow(found[layer], plan) or not np.array_equal(found[layer].ids, next(iter(found.values())).ids):
            return {}
    return found


def _numbers(written: Written) -> dict[str, Any]:
    """What is plotted for each of the three tables."""
    rows = written.rows
    if written.step.table.name == "neuron_statistics":
        return {
            "neurons/captured": len(rows),
            "neurons/dead": int(rows.get_column("dead").sum()),
            "data/sequences": int(rows.item(0, "n_sequences")),
            "data/tokens": int(rows.item(0, "n_tokens")),
            "data/fraction_positive_median": float(rows.select(pl.col("fraction_positive").median()).item()),
        }
    if written.step.table.name == "token_associations":
        return {"data/tokens_per_neuron": float(rows.select(pl.col("token_ids").list.len().mean()).item())}
    return {"data/records_per_neuron": len(rows) / max(rows.get_column("neuron").n_unique(), 1)}
