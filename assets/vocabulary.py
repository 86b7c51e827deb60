"""The asset `vocabulary`: what each token of the subject stands for, so that tokens outside the corpus can be read too."""

import dagster as dg
import polars as pl

from assets.project import Project
from assets.spec import checks, described
from assets.step import Step
from pipeline.checks import check
from pipeline.ports import Lake, SubjectModel
from pipeline.provenance import identities

CODE_VERSION = "1"


def define(project: Project) -> dg.AssetsDefinition:
    """The asset for one project."""

    @dg.asset(
        group_name="layers", code_version=CODE_VERSION, check_specs=checks("vocabulary"), **described("vocabulary")
    )
    def vocabulary(
        context: dg.AssetExecutionContext, subject: dg.ResourceParam[SubjectModel], lake: dg.ResourceParam[Lake]
    ) -> dg.MaterializeResult:
        with Step(context, lake, project, table="vocabulary", code_version=CODE_VERSION) as step:
            tokenizer, n_tokens = subject.tokenizer_hash(), subject.vocabulary_size()
            step.note("tokenizer", content=tokenizer)
            tokens = pl.DataFrame({"token_id": range(n_tokens)}, schema={"token_id": pl.Int32})
            written = step.restored() or step.write(
                tokens.with_columns(
                    pl.Series("bytes", subject.spell(range(n_tokens)), dtype=pl.Binary),
                    pl.Series("identity", identities("vocabulary", tokens, tokenizer=tokenizer)),
                )
            )
        unknown = written.rows.filter(pl.col("bytes").bin.size() == 0).height
        return written.result(
            check("vocabulary", written.rows, n_tokens=n_tokens), extra={"data/unknown_tokens": unknown}
        )

    return vocabulary
