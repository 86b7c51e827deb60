"""The asset `explanation_embeddings`: explanations as vectors, for search by meaning; only where an encoder is chosen.

What is embedded already by the same encoder is kept, so that a layer made again sends and computes what is new.
"""

import dagster as dg

from assets.project import Project, parse_key
from assets.spec import checks, described
from assets.step import Step
from pipeline.checks import check
from pipeline.meaning import rows, unknown, wanted
from pipeline.ports import Encoder, Lake

CODE_VERSION = "1"


def define(project: Project) -> dg.AssetsDefinition:
    """The asset for one project, by layer."""

    @dg.asset(
        group_name="layers",
        code_version=CODE_VERSION,
        deps=["explanations"],
        partitions_def=project.layers,
        check_specs=checks("explanation_embeddings"),
        pool="language",
        **described("explanation_embeddings"),
    )
    def explanation_embeddings(
        context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake], encoder: dg.ResourceParam[Encoder]
    ) -> dg.MaterializeResult:
        layer, _ = parse_key(context.partition_key)
        fingerprint = encoder.fingerprint()
        with Step(
            context, lake, project, table="explanation_embeddings", code_version=CODE_VERSION, layer=layer,
            settings={"encoder": encoder.name},
        ) as step:  # fmt: skip
            said = wanted(step.read("explanations"), fingerprint=fingerprint)
            step.note("encoder", content=fingerprint)
            step.note_origin(encoder=encoder.provenance())
            known = lake.read("explanation_embeddings", layer=layer)
            texts = unknown(said, known)
            vectors, usage = encoder.encode(texts, run_id=step.run_id)
            found = dict(zip(texts, vectors, strict=True))
            written = step.write(rows(said, known, found, encoder=encoder.name, fingerprint=fingerprint), usage=usage)
        numbers = {"data/embedded": len(written.rows), "data/embedded_now": len(texts)}
        return written.result(check("explanation_embeddings", written.rows), extra=numbers)

    return explanation_embeddings
