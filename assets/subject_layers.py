"""The asset `subject_layers`: the fingerprint of the weights behind each layer's neurons.

A materialisable asset rather than an observed source, so that Dagster records per layer which weights the
activations were made from.
"""

import json
from collections.abc import Iterator
from functools import cache

import dagster as dg
import polars as pl

from assets.project import Project, parse_key
from assets.spec import checks, described
from assets.step import Step, over_layers
from pipeline.checks import Finding, check
from pipeline.errors import NeuronLedgerError
from pipeline.ports import Lake, SubjectModel
from pipeline.provenance import identity
from pipeline.records import read as records_of

CODE_VERSION = "1"


def known_models(lake: Lake) -> frozenset[str]:
    """The hashes of weights, tokenizers and checkpoints by which the records of a lake know models; none of a lake that cannot be read."""
    names = ("weights", "tokenizer", "checkpoint")
    try:
        rows = records_of(lake)
    except NeuronLedgerError:
        return frozenset()
    made = pl.col("table").is_in(["sequences", "subject_layers", "vocabulary", "connections", "ablations"]) & (
        pl.col("status") == "done"
    )
    inputs = rows.filter(made).get_column("inputs").unique()
    return frozenset(read[name]["content_hash"] for read in map(json.loads, inputs) for name in names if name in read)


def define(project: Project) -> dg.AssetsDefinition:
    """The asset for one project."""

    @dg.multi_asset(
        name="subject_layers",
        specs=[
            dg.AssetSpec(
                "subject_layers",
                group_name="layers",
                code_version=CODE_VERSION,
                skippable=True,
                **described("subject_layers"),
            )
        ],
        check_specs=checks("subject_layers"),
        partitions_def=project.layers,
        # One run for all layers, but never the run of `activations`: Dagster skips what follows an asset that logs
        # its own events, and it joins assets in a run only if their policies are equal.
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=100_000),
    )
    def subject_layers(
        context: dg.AssetExecutionContext, subject: dg.ResourceParam[SubjectModel], lake: dg.ResourceParam[Lake]
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        sites = subject.layers()
        fingerprints = subject.fingerprints()
        findings: list[Finding] = []
        events: list[dg.AssetMaterialization] = []
        origin, parts = cache(subject.provenance), cache(subject.parts)
        single = len(context.partition_keys) == 1
        for key in context.partition_keys:
            layer, _ = parse_key(key)
            step = Step(context, lake, project, table="subject_layers", code_version=CODE_VERSION, layer=layer)
            step.note("weights", content=fingerprints[layer])
            site = sites[layer]
            itself = identity("subject_layer", layer=layer, site=site.site, fingerprint=fingerprints[layer])
            known = lake.read("subject_layers", layer=layer).filter(pl.col("identity") == itself)
            row = {
                "layer": layer,
                # The same weights in another folder: under a new name all that is made from them would be stale.
                "subject": known.item(0, "subject") if len(known) else subject.name,
                "site": site.site,
                "n_neurons": site.n_neurons,
                "signed": site.signed,
                "fingerprint": fingerprints[layer],
                "identity": itself,
            }
            schema = {name: column for name, column in step.table.schema.items() if name != "run_id"}
            if (written := step.restored()) is None:
                step.note_origin(subject=origin(), parts=parts()[layer])
                written = step.write(pl.DataFrame([row], schema=schema))
            extra = {"subject/fingerprint": fingerprints[layer], "subject/neurons": site.n_neurons}
            found = check("subject_layers", written.rows)
            findings.extend(found)
            if single:
                yield written.result(found, extra=extra)
            else:
                events.append(written.event(context, layer, found, extra))
        # All at once: whoever looks between two of them would make one run for some stale layers, and another for the rest.
        for event in events:
            context.log_event(event)
        if not single:
            yield from over_layers({"subject_layers": findings})

    return subject_layers
