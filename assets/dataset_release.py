"""The asset `dataset_release`: a version of the lake for others, as a Hugging Face dataset, with what it was made from.

    releases/1.0.0/data/, README.md, croissant.json    as `export huggingface` writes them
    releases/1.0.0/release.json                        version, tables, freshness, audit, ledger head, the hash of each file
    releases/1.0.0/SUMMARY.md                          the same for people

A version is released once. Tables that are stale, or that no audit found to be as they were written since the last write,
are not released, unless this is asked for, and then it is written down.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import dagster as dg
import polars as pl
from pydantic import Field

from assets.exports import huggingface
from assets.freshness import Outside, State, states
from assets.project import Project
from assets.spec import OWNERS
from assets.step import add_record
from pipeline.huggingface_format import PUBLISHED
from pipeline.ports import Corpus, Lake, Progress, Releases, SubjectModel
from pipeline.provenance import content_hash

CODE_VERSION = "1"
CHECKS = ("tables_are_fresh", "tables_are_audited", "files_are_as_written", "failures_have_reasons")
VERSION = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}", re.ASCII)


class ReleaseConfig(dg.Config):
    """Which version, under what licence and title, and whether tables that are stale or not audited may go into it."""

    version: str
    licence: str = "unknown"
    title: str = ""
    stale: bool = False
    audit: str = Field(
        "", description="what `neuronledger audit --json` printed; `neuronledger release` gives it by itself"
    )
    unaudited: bool = False


def define(project: Project) -> dg.AssetsDefinition:
    """The asset for one project."""

    @dg.asset(
        group_name="releases",
        code_version=CODE_VERSION,
        deps=["scores"],
        kinds={"parquet", "huggingface"},
        owners=OWNERS,
        description="A version of the lake for others: a dataset with its card, and what it was made from.",
        check_specs=[dg.AssetCheckSpec(name, asset="dataset_release", blocking=True) for name in CHECKS],
    )
    def dataset_release(  # noqa: PLR0917 (Dagster names them all)
        context: dg.AssetExecutionContext,
        config: ReleaseConfig,
        lake: dg.ResourceParam[Lake],
        subject: dg.ResourceParam[SubjectModel],
        corpus: dg.ResourceParam[Corpus],
        releases: dg.ResourceParam[Releases],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult:
        if not VERSION.fullmatch(config.version):
            raise dg.Failure(f"version (={config.version!r}) must be three numbers, such as 1.0.0", allow_retries=False)
        started = datetime.now(UTC)
        outside = Outside(
            corpus=corpus.fingerprint(),
            tokenizer=subject.tokenizer_hash(),
            weights=subject.fingerprints(),
            checkpoint=subject.weights_hash(),
        )
        stale = not_fresh(lake, project, outside)
        if stale and not config.stale:
            raise dg.Failure(_refusal(stale), allow_retries=False)
        audit = audited(config.audit, lake.ledger_head())
        if audit["against"] and not config.unaudited:
            raise dg.Failure(
                f"not released, because {'; '.join(audit['against'][:5])}. Mend it first (docs/provenance.md), or release "
                "them as they are with --unaudited",
                allow_retries=False,
            )
        with releases.folder(config.version) as folder:
            about = huggingface(
                lake, folder, progress, name=config.title or None, licence=config.licence, version=config.version
            )
            release = {
                "version": config.version,
                "licence": config.licence,
                "subject": about["subject"],
                "layers": about["layers"],
                "rows": about["rows"],
                "bytes": about["bytes"],
                "tables": about["tables"],
                "not_fresh": [_said(state) for state in stale],
                "audit": audit,
                "ledger_head": lake.ledger_head(),
                "sha256": about["sha256"],
            }
            folder.write("release.json", (json.dumps(release, indent=2, sort_keys=True) + "\n").encode())
            folder.write("SUMMARY.md", page(release).encode())
        found = releases.digests(config.version)
        changed = sorted(name for name, digest in about["sha256"].items() if found.get(name) != digest)
        content = content_hash(dict(found))
        _record(lake, context.run.run_id, project, release, content=content, started=started)
        unexplained = _without_reason(lake)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(content),
            metadata={
                "summary": dg.MetadataValue.md(page(release)),
                "release/version": config.version,
                "release/path": dg.MetadataValue.path(releases.place(config.version)),
                "release/files": len(found),
                "release/bytes": int(about["bytes"]),
                "release/ledger_head": release["ledger_head"] or "none",
                **{f"rows/{name}": count for name, count in about["rows"].items()},
            },
            check_results=[
                _check("tables_are_fresh", not stale, f"{len(stale):,} slices are not fresh", severity="WARN"),
                _check("tables_are_audited", not audit["against"], "; ".join(audit["against"]), severity="WARN"),
                _check("files_are_as_written", not changed, f"{len(changed):,} files are not as they were written"),
                _check(
                    "failures_have_reasons", not unexplained, f"{unexplained:,} values are missing without a reason"
                ),
            ],
        )

    return dataset_release


def not_fresh(lake: Lake, project: Project, outside: Outside) -> list[State]:
    """The slices of published tables that are not fresh, of the layers that were captured."""
    layers = lake.scan("neuron_statistics").select("layer").unique().collect().get_column("layer").sort().to_list()
    found = states(lake, project, outside, layers=layers)
    return [state for state in found if state.table in PUBLISHED and state.status != "fresh"]


def audited(said: str, head: str | None) -> dict[str, Any]:
    """What an audit says for a release: which checks were clean, which were not made, and what speaks against it.

    Freshness (A17) is looked at by the release itself.

    Raises:
        dagster.Failure: `said` is not what `neuronledger audit --json` prints.
    """
    if not said:
        return {"head": None, "clean": [], "not_checked": [], "against": ["no audit was made"]}
    try:
        found = json.loads(said)
        checks = {check["id"]: check for check in found["checks"] if check["id"] != "A17"}
        against = [f"{name}: {line}" for name, check in checks.items() for line in check["findings"]]
        outcomes = {name: check["outcome"] for name, check in checks.items()}
        of = found["head"]
    except (ValueError, TypeError, KeyError):
        raise dg.Failure("`audit` must be what `neuronledger audit --json` prints", allow_retries=False) from None
    if of != head:
        against.insert(0, "the lake was written to since its audit")
    return {
        "head": of,
        "clean": [name for name, outcome in outcomes.items() if outcome == "clean"],
        "not_checked": [name for name, outcome in outcomes.items() if outcome == "not checked"],
        "against": against,
    }


def page(release: Mapping[str, Any]) -> str:
    """The summary of a release for people. It holds names and numbers only, no text of the corpus."""

    def lines() -> Iterator[str]:
        yield f"# Release {release['version']}"
        yield ""
        yield f"- neurons of `{_plain(release['subject'])}`, layers {', '.join(map(str, release['layers']))}"
        yield f"- {len(release['sha256']):,} data files, {release['bytes'] / 2**20:,.1f} MiB"
        yield f"- ledger head: {release['ledger_head'] or 'none: the lake has no ledger'}"
        fresh = not release["not_fresh"]
        yield f"- {'all tables are fresh' if fresh else 'NOT all tables are fresh:'}"
        yield from (f"  - {said}" for said in release["not_fresh"])
        audit = release["audit"]
        made = f"{len(audit['clean'])} checks clean, {len(audit['not_checked'])} not made: {', '.join(audit['not_checked']) or 'none'}"
        yield f"- {f'NOT audited, or with findings ({made}):' if audit['against'] else f'audited: {made}'}"
        yield from (f"  - {_plain(line)}" for line in audit["against"][:20])
        yield ""
        yield "| table | rows | Delta version |"
        yield "|---|---|---|"
        for name, count in release["rows"].items():
            yield f"| {name} | {count:,} | {release['tables'].get(name, '')} |"
        yield ""

    return "\n".join(lines())


def _plain(said: Any) -> str:
    """Words of a lake without what would be markup."""
    return re.sub("[^ -_a-~]", " ", str(said))


def _refusal(stale: Sequence[State]) -> str:
    shown = "; ".join(map(_said, stale[:5])) + (f"; and {len(stale) - 5} more" if len(stale) > 5 else "")
    return f"not released, because not all tables are fresh: {shown}. Run again first, or release them as they are with --stale"


def _said(state: State) -> str:
    where = "" if state.layer is None else f" of layer {state.layer}"
    return f"{state.table}{where} is {state.status}" + (f" ({state.cause})" if state.cause else "")


def _check(name: str, passed: bool, said: str, *, severity: str = "ERROR") -> dg.AssetCheckResult:  # noqa: FBT001
    return dg.AssetCheckResult(
        asset_key="dataset_release", check_name=name, passed=passed, description=said,
        severity=dg.AssetCheckSeverity(severity),
    )  # fmt: skip


def _without_reason(lake: Lake) -> int:
    """Values that are missing without a reason; the tables refuse them, so this looks at what other writers did."""
    missing = 0
    for table, value in (("explanations", "text"), ("simulations", "expected"), ("scores", "value")):
        both = pl.col(value).is_null() & pl.col("missing_because").is_null()
        missing += int(lake.scan(table).select(both.sum()).collect().item() or 0)
    return missing


def _record(
    lake: Lake, run_id: str, project: Project, release: Mapping[str, Any], *, content: str, started: datetime
) -> None:
    add_record(
        lake,
        {
            "commit_uuid": str(uuid4()), "run_id": run_id, "table": "dataset_release", "version": None, "layer": None,
            "neurons": None, "step_key": None, "content_hash": content, "rows": sum(release["rows"].values()),
            "inputs": json.dumps({name: {"content_hash": None, "version": at} for name, at in release["tables"].items()}),
            "settings": json.dumps({"version": release["version"], "licence": release["licence"]}, sort_keys=True),
            "code": json.dumps({**project.code, "code_version": CODE_VERSION}, sort_keys=True), "environment": "{}",
            "usage": "{}", "started_at": started, "finished_at": datetime.now(UTC), "status": "done", "error": None,
        },
    )  # fmt: skip
