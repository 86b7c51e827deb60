"""The asset `sequences`: the corpus as windows of tokens, each document in one split."""

import json
from collections.abc import Iterator
from typing import Any

import dagster as dg

from assets.project import Project
from assets.spec import checks, described
from assets.step import Step
from pipeline.checks import check
from pipeline.ports import Corpus, Document, Lake, Progress, Rejected, SubjectModel
from pipeline.sequences import sequences as windows

CODE_VERSION = "1"


def settings(project: Project) -> dict[str, Any]:
    """The choices that these rows depend on."""
    return {"windows": project.choices.windows, "length": project.choices.length, "seed": project.choices.seed}


def define(project: Project) -> dg.AssetsDefinition:
    """The asset for one project."""

    @dg.asset(group_name="layers", code_version=CODE_VERSION, check_specs=checks("sequences"), **described("sequences"))
    def sequences(
        context: dg.AssetExecutionContext,
        corpus: dg.ResourceParam[Corpus],
        subject: dg.ResourceParam[SubjectModel],
        lake: dg.ResourceParam[Lake],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult:
        with Step(
            context,
            lake,
            project,
            table="sequences",
            code_version=CODE_VERSION,
            settings=settings(project),
        ) as step:
            step.note("corpus", content=corpus.fingerprint())
            step.note("tokenizer", content=subject.tokenizer_hash())
            found: dict[str, Any] = {}
            if (written := step.restored()) is None:
                made = windows(
                    _heard(corpus, progress),
                    subject.tokenize,
                    length=project.choices.length,
                    limit=project.choices.windows,
                    seed=project.choices.seed,
                )
                step.note_origin(corpus=corpus.provenance(), parts=subject.parts()[0])
                written = step.write(made.frame)
                found = {
                    "data/documents": made.documents,
                    "data/duplicates": made.duplicates,
                    "data/rejected": sum(made.rejected.values()),
                    "data/rejected_because": dg.MetadataValue.json(dict(made.rejected)),
                }
        return written.result(
            check("sequences", written.rows),
            extra=found
            | {
                "data/tokens": int(written.rows.get_column("token_ids").list.len().sum()),
                "data/splits": dg.MetadataValue.json(
                    dict(written.rows.group_by("split").len().sort("split").iter_rows())
                ),
                "data/corpus": dg.MetadataValue.json(json.loads(json.dumps(dict(corpus.provenance()), default=str))),
            },
        )

    return sequences


def _heard(corpus: Corpus, progress: Progress) -> Iterator[Document | Rejected]:
    """The documents of a corpus, with a word about how many there were now and then."""
    for count, document in enumerate(corpus.documents(), start=1):
        if count % 500 == 0:
            progress("sequences", count, 0, "documents read")
        yield document
