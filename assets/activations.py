"""The assets `activations`, `neuron_statistics` and `token_associations`: one forward pass fills all three.

A range of layers is one run and one pass. Each layer still gets its own event and data version.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl
from numpy.typing import NDArray

from assets.project import Project, parse_key
from assets.spec import checks, described
from assets.step import Step, Written, over_layers
from pipeline import capture as streaming
from pipeline.activations import activations as record_rows
from pipeline.activations import statistics as statistic_rows
from pipeline.associations import associations, corpus_tokens
from pipeline.checks import Finding, check
from pipeline.ports import Lake, Progress, SubjectModel

if TYPE_CHECKING:
    from pipeline.reduction import LayerReduction

CODE_VERSION = "1"
TABLES = ("activations", "neuron_statistics", "token_associations")
BATCH = 64
"""Windows in one forward pass. It changes no result, only speed and memory."""


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
    def capture(
        context: dg.AssetExecutionContext,
        subject: dg.ResourceParam[SubjectModel],
        lake: dg.ResourceParam[Lake],
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
            plan = streaming.plan(sequences)
            reductions = _streamed(subject, plan, layers, seed=project.choices.seed, progress=progress)
            findings: dict[str, list[Finding]] = {table: [] for table in TABLES}
            for layer in layers:
                captured = reductions.pop(layer).result()
                fingerprint = inputs[TABLES[0], layer][1].item(0, "fingerprint")
                corpus = steps[TABLES[0], layer].input_hash("sequences")
                records = record_rows(captured, plan, sequences, fingerprint=fingerprint, seed=project.choices.seed)
                rows = {
                    "activations": records,
                    "neuron_statistics": statistic_rows(captured, plan, fingerprint=fingerprint, corpus=corpus),
                    "token_associations": associations(
                        captured,
                        plan,
                        records,
                        sequences,
                        weights=subject.token_weights(layer, corpus_tokens(plan).tolist()),
                        fingerprint=fingerprint,
                        corpus=corpus,
                    ),
                }
                n_neurons = project.n_neurons[layer]
                for table in TABLES:
                    written = steps[table, layer].write(rows.pop(table))
                    parents = {"sequences": sequences} if table == "activations" else {}
                    found = check(table, written.rows, n_neurons=n_neurons, **parents)
                    if len(layers) == 1:
                        yield written.result(found, extra=_numbers(written))
                    else:
                        context.log_event(written.event(context, layer, _numbers(written)))
                        findings[table].extend(found)
                progress("activations", layers.index(layer) + 1, len(layers), f"wrote layer {layer}")
            if len(layers) > 1:
                yield from over_layers(findings)

    return capture


def _streamed(
    subject: SubjectModel, plan: streaming.Plan, layers: Sequence[int], *, seed: int, progress: Progress
) -> "dict[int, LayerReduction]":
    """Every window through the subject once, each layer reduced as it comes."""
    # Not at the top: whoever only reads the definitions needs no torch.
    from pipeline.reduction import LayerReduction

    sites = subject.layers()
    reductions = {
        layer: LayerReduction(
            plan,
            layer=layer,
            n_neurons=sites[layer].n_neurons,
            signed=sites[layer].signed,
            seed=seed,
            device=subject.device(),
        )
        for layer in layers
    }
    current: list[NDArray[np.int64]] = []
    started = time.monotonic()
    read = tokens = 0

    def batches() -> Iterator[list[list[int]]]:
        nonlocal read, tokens
        for windows in plan.batches(BATCH):
            current[:] = [windows]
            yield [plan.tokens[window].tolist() for window in windows]
            read += len(windows)
            tokens += sum(len(plan.tokens[window]) for window in windows)
            progress("capture", read, plan.n_windows, f"{tokens / (time.monotonic() - started):,.0f} tokens/s")

    subject.capture(batches(), layers, lambda layer, x: reductions[layer].receive(current[0], x))
    return reductions


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
