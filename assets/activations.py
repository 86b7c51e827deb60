"""The assets `activations`, `neuron_statistics` and `token_associations`: one forward pass fills all three.

A range of layers is one run and one pass, even if only some of it are to be made. Each layer still gets its own event
and data version. A layer that was made before from the same weights and text is put back without a pass.
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
LAYERS_TAG = "neuronledger/layers"
"""The layers that a run over a range of them makes, such as `1,5`; all of the range unless it is there."""


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
        asked = _asked(context)
        # A run of a range tells of each layer by an event of its own, even if the range holds one stale layer only.
        is_single = len(context.partition_keys) == 1
        findings: dict[str, list[Finding]] = {table: [] for table in TABLES}
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
                for layer in asked
            }
            weights = {}
            for (_, layer), step in steps.items():
                sequences = step.read("sequences")
                weights[layer] = str(step.read("subject_layers").item(0, "fingerprint"))

            def told(
                written: Written, layer: int, more: Mapping[str, Any] | None = None
            ) -> Iterator[dg.MaterializeResult]:
                table = written.step.table.name
                parents = {"sequences": sequences} if table == "activations" else {}
                checked = check(table, written.rows, n_neurons=project.n_neurons[layer], **parents)
                numbers = {**_numbers(written), **(more or {})}
                if is_single:
                    yield written.result(checked, extra=numbers)
                else:
                    context.log_event(written.event(context, layer, checked, numbers))
                    findings[table].extend(checked)

            layers = []
            for layer in asked:
                before = [found for table in TABLES if (found := steps[table, layer].earlier()) is not None]
                if len(before) < len(TABLES):
                    layers.append(layer)
                    continue
                for table, then in zip(TABLES, before, strict=True):
                    yield from told(steps[table, layer].restore(then), layer)
                progress("activations", asked.index(layer) + 1, len(asked), f"put back layer {layer}")
            if layers:
                origin = subject.provenance()
                for layer in layers:
                    for table in TABLES:
                        steps[table, layer].note_origin(subject=origin)
                figures = Figures()
                passed = _passed(
                    steps,
                    {layer: weights[layer] for layer in layers},
                    sequences,
                    subject=subject,
                    seed=project.choices.seed,
                    partials=partials,
                    captures=captures if project.choices.grow else None,
                    machines=machines,
                    progress=progress,
                    figures=figures,
                )
                for layer, rows in passed:
                    for table in TABLES:
                        more = figures.metadata() if table == "activations" else {}
                        yield from told(steps[table, layer].write(rows.pop(table)), layer, more)
                    progress("activations", layers.index(layer) + 1, len(layers), f"wrote layer {layer}")
            if not is_single:
                yield from over_layers(findings)

    return capture


def _asked(context: dg.AssetExecutionContext) -> list[int]:
    """The layers to make: those of the run's partitions, or of these the ones that its tag names."""
    layers = [parse_key(key)[0] for key in context.partition_keys]
    named = context.run.tags.get(LAYERS_TAG)
    return layers if named is None else [layer for layer in layers if str(layer) in named.split(",")]


def _passed(
    steps: Mapping[tuple[str, int], Step],
    fingerprints: Mapping[int, str],
    sequences: pl.DataFrame,
    *,
    subject: SubjectModel,
    seed: int,
    partials: Partials,
    captures: Partials | None,
    machines: Machines,
    progress: Progress,
    figures: Figures,
) -> Iterator[tuple[int, dict[str, pl.DataFrame]]]:
    """The rows of the three tables, one layer after the other, from one pass over the layers that have `fingerprints`.

    `captures` keeps what was found for a corpus that grows.
    """
    layers = list(fingerprints)
    plan, embeddings = planned(sequences), subject.embeddings()
    kept_as = {
        layer: content_hash(
            {
                "code_version": CODE_VERSION,
                "weights": steps[TABLES[0], layer].input_hash("subject_layers"),
                "layer": layer,
                "seed": seed,
            }
        )
        for layer in layers
    }
    for found in captured(
        subject,
        plan,
        layers,
        seed=seed,
        key=content_hash([steps[TABLES[0], layer].key for layer in layers]),
        partials=partials,
        progress=progress,
        figures=figures,
        machines=machines,
        earlier=_earlier(captures, kept_as, plan) if captures is not None else {},
    ):
        layer = found.layer
        if captures is not None:
            captures.keep(kept_as[layer], [(layer, found.arrays())])
        step = steps[TABLES[0], layer]
        fingerprint, corpus = fingerprints[layer], step.input_hash("sequences")
        records = record_rows(found, plan, sequences, fingerprint=fingerprint)
        yield (
            layer,
            {
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
            },
        )


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
