"""A step: one slice of one table being made, and the record that lets anyone check it later.

    with Step(context, lake, project, table="scores", layer=5) as step:
        simulations = step.read("simulations")
        written = step.write(scores(simulations, ...))

The step hashes what it reads, so the record names its inputs by content. It writes the rows, then a line of the
table `materializations`, then tells Dagster: killed at any point, the next run sees an unfinished step and makes it
again. An error inside leaves a line that says why.

A layer made again changes only the rows that come out otherwise. A row that is stored already, word for word, stays
with the run that made it. What was made before from the same inputs, by the same code and with the same settings is not
made again: it is read from the version of then and put back (`Step.restored`).
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import dagster as dg
import polars as pl

from assets.process import PROCESS_TAG, process_name
from assets.project import Project, layer_key
from pipeline.checks import Finding
from pipeline.errors import LakeError
from pipeline.ports import Commit, Lake, Usage
from pipeline.provenance import frame_hash, step_key
from pipeline.tables import IN_PASSING, TABLES, Table

DATA_VERSION_TAG = "dagster/data_version"
DATA_VERSION_IS_OURS_TAG = "dagster/data_version_is_user_provided"
CODE_VERSION_TAG = "dagster/code_version"

BY_VALUE: Mapping[str, tuple[str, ...]] = {
    "sequences": ("run_id", "document_id"),
    **dict.fromkeys(
        ("activations", "neuron_statistics", "token_associations", "connections", "vocabulary"), ("run_id", "identity")
    ),
}
"""Tables with columns that only say where the rows are from (the weights, the tokenizer, the file and its line), by name.

What is made from such a table depends on its values alone, which others may give too, so these are hashed as well."""


_named: set[str] = set()
"""Runs that this process has put its name to."""


@dataclass(frozen=True)
class Earlier:
    """A slice as an earlier write left it: its record, and its rows with the runs that made them."""

    record: Mapping[str, Any]
    rows: pl.DataFrame


class Step:
    """One slice of one table being made. `settings` are the choices that its rows depend on."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        lake: Lake,
        project: Project,
        *,
        table: str,
        code_version: str,
        layer: int | None = None,
        neuron: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.table = TABLES[table]
        self.layer = layer
        self.neuron = neuron
        self.code_version = code_version
        self.settings = dict(settings or {})
        self._origin: dict[str, Any] = {}
        self._context = context
        self._lake = lake
        self._project = project
        self._inputs: dict[str, dict[str, Any]] = {}
        self._started = datetime.now(UTC)
        self._is_written = False
        if PROCESS_TAG not in context.run.tags and self.run_id not in _named:
            # A run that Dagster's UI or its daemon started: the process that runs it, for steps have none of their own.
            context.instance.add_run_tags(self.run_id, {PROCESS_TAG: process_name(os.getpid()) or "unknown"})
            _named.add(self.run_id)

    @property
    def run_id(self) -> str:
        return self._context.run.run_id

    def read(self, table: str, *, may_be_empty: bool = False) -> pl.DataFrame:
        """This slice of another table (all of it if it has no layers), noted as an input by its content.

        Raises:
            dagster.Failure: the slice has no rows, which means that it was never made, unless it may be empty.
        """
        declared = TABLES[table]
        neurons = None if self.neuron is None or "neuron" not in declared.columns else [self.neuron]
        version = self._lake.version(table)
        rows = (
            self._lake.read(table, layer=self.layer, neurons=neurons, version=version)
            if declared.by_layer
            else self._lake.read(table, version=version)
        )
        if rows.is_empty() and not may_be_empty:
            where = f" of layer {self.layer}" if declared.by_layer else ""
            raise dg.Failure(
                f"table `{table}` has no rows{where} yet; materialise the asset `{table}` first", allow_retries=False
            )
        self.note(table, content=frame_hash(rows, key=declared.key), version=version)
        if table in BY_VALUE:
            self._inputs[table]["values_hash"] = _values_hash(rows, declared)
        return rows

    def note(self, name: str, *, content: str, version: int | None = None) -> None:
        """Name an input that is not a table of the lake, or was read by other means, by the hash of its content."""
        self._inputs[name] = {"content_hash": content, "version": version}

    def note_origin(self, **origin: Mapping[str, Any]) -> None:
        """Record where the model or the text is from, down to file hashes and number format.

        It stands beside the environment and is no part of the key: what matters of it enters by an input's content.
        """
        self._origin |= {name: dict(value) for name, value in origin.items()}

    def input_hash(self, name: str) -> str:
        """The content hash of an input that was read or noted."""
        return str(self._inputs[name]["content_hash"])

    @property
    def key(self) -> str:
        """What this step is made from: code version, settings and the content of its inputs."""
        return step_key(
            asset=self.table.name,
            code_version=self.code_version,
            settings=self.settings,
            inputs={name: entry["content_hash"] for name, entry in self._inputs.items()},
        )

    def write(self, rows: pl.DataFrame, *, usage: Usage | None = None) -> "Written":
        """Replace this slice by `rows` (without `run_id`), and record it."""
        rows = self.table.conform(self._with_runs(rows))
        if self.table.name in BY_VALUE:
            self.note_origin(made={"values_hash": _values_hash(rows, self.table)})
        content = frame_hash(rows, key=self.table.key)
        record = self._record(content=content, rows=len(rows), usage=usage or Usage())
        return self._written(rows, record, usage=usage or Usage())

    def earlier(self) -> Earlier | None:
        """This slice as it was when it was last made from the same inputs, code and settings; None if it never was.

        None as well if it is what was made last, since then somebody wants it made again; if its files are gone, or are
        not what was recorded; and if answers were missing that may come now. A neuron recomputed alone is always made.
        """
        # The log tells what is there; the records are many small files, and on an object store as many requests.
        if self.neuron is not None or not self._lake.rows(self.table.name, layer=self.layer):
            return None
        whole = pl.col("neurons").is_null() & (pl.col("status") == "done") & pl.col("version").is_not_null()
        of_slice = (pl.col("table") == self.table.name) & pl.col("layer").eq_missing(pl.lit(self.layer, pl.Int32))
        found = self._lake.scan("materializations").filter(of_slice & whole).sort("finished_at").collect()
        if found.is_empty() or found.item(-1, "step_key") == self.key:
            return None
        for record in found.filter(pl.col("step_key") == self.key).reverse().iter_rows(named=True):
            if not set(json.loads(record["usage"]).get("failures", {})).isdisjoint(IN_PASSING):
                continue
            try:
                rows = self._lake.read(self.table.name, layer=self.layer, version=record["version"])
            except LakeError:
                continue
            if frame_hash(rows, key=self.table.key) == record["content_hash"]:
                return Earlier(record, rows)
        return None

    def restore(self, earlier: Earlier) -> "Written":
        """Put a slice back as it was, with its identities, its runs, and the code and environment that made it."""
        then, rows = earlier.record, self.table.conform(earlier.rows)
        origin = {"version": then["version"], "commit_uuid": then["commit_uuid"], "run_id": then["run_id"]}
        record = self._record(content=then["content_hash"], rows=len(rows), usage=Usage()) | {
            "code": then["code"],
            "environment": json.dumps({**json.loads(then["environment"]), "restored": origin}, sort_keys=True),
        }
        return self._written(rows, record, usage=Usage(), restored_from=then["version"])

    def restored(self) -> "Written | None":
        """This slice put back as `earlier` finds it; None if it has to be made."""
        found = self.earlier()
        return None if found is None else self.restore(found)

    def _written(
        self, rows: pl.DataFrame, record: dict[str, Any], *, usage: Usage, restored_from: int | None = None
    ) -> "Written":
        """Write rows with their record."""
        said = {name: value for name, value in record.items() if name not in ("started_at", "finished_at", "version")}
        commit = self._lake.replace(
            self.table.name,
            rows,
            layer=self.layer,
            neurons=None if self.neuron is None else [self.neuron],
            record=said if restored_from is None else said | {"restored_from": restored_from},
            commit_uuid=record["commit_uuid"],
            # A dead neuron has no simulations and nothing made of them, and a corpus without the right splits no exemplars.
            allow_empty=self.table.name in ("exemplars", "simulations", "judgements", "ablations"),
        )
        add_record(self._lake, {**record, "version": commit.version})
        self._is_written = True
        return Written(
            self, commit, content=record["content_hash"], version=data_version(record), rows=rows, usage=usage, inputs=dict(self._inputs),
            restored_from=restored_from,
        )  # fmt: skip

    def _with_runs(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows with the run that made each: this one, or for a row that is stored word for word the one that did.

        A neuron recomputed alone is made by this run in any case: that it was made again is what was asked for.
        """
        rows = rows.with_columns(pl.lit(self.run_id, pl.String).alias("run_id"))
        if self.layer is None or self.neuron is not None:
            return rows
        key, table = list(self.table.key), self.table.name
        same = self._lake.scan(table, layer=self.layer).select(*key, "identity").collect()
        if same.join(rows.select(*key, "identity"), on=[*key, "identity"], how="semi").is_empty():
            return rows
        # The rows of a write that was killed before its record are nobody's.
        finished = self._lake.scan("materializations").filter(
            (pl.col("table") == table) & (pl.col("layer") == self.layer) & (pl.col("status") == "done")
        )
        runs = finished.select(pl.col("run_id").unique()).collect().get_column("run_id")
        stored = self._lake.read(table, layer=self.layer).filter(pl.col("run_id").is_in(runs.implode()))
        others = [name for name in self.table.columns if name not in (*key, "run_id")]
        names = {name: f"{name} as stored" for name in (*others, "run_id")}
        beside = rows.join(stored.rename(names), on=key, how="left", maintain_order="left")
        equal = pl.all_horizontal(*(pl.col(name).eq_missing(pl.col(names[name])) for name in others))
        kept = pl.when(equal).then(pl.coalesce(names["run_id"], "run_id")).otherwise("run_id")
        return beside.with_columns(kept.alias("run_id")).select(rows.columns)

    def __enter__(self) -> "Step":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Record that this slice could not be made, and why, unless it was written before the error."""
        if error is None or self._is_written or isinstance(error, GeneratorExit):
            return
        said = str(error.description if isinstance(error, dg.Failure) else error)
        # Ctrl-C reaches a step as an exception that is no `Exception`, and without words.
        why = f"{type(error).__name__}: {said}" if isinstance(error, Exception) else "it was stopped before it ended"
        record = self._record(content=None, rows=0, usage=Usage())
        add_record(self._lake, {**record, "status": "failed", "error": why[:2000]})

    def _record(self, *, content: str | None, rows: int, usage: Usage) -> dict[str, Any]:
        return {
            "commit_uuid": str(uuid4()),
            "run_id": self.run_id,
            "table": self.table.name,
            "version": None,
            "layer": self.layer,
            "neurons": None if self.neuron is None else [self.neuron],
            "step_key": self.key if content else None,
            "content_hash": content,
            "rows": rows,
            "inputs": json.dumps(self._inputs, sort_keys=True),
            "settings": json.dumps(self.settings, sort_keys=True),
            "code": json.dumps({**self._project.code, "code_version": self.code_version}, sort_keys=True),
            "environment": json.dumps({**self._project.environment, **self._origin}, sort_keys=True, default=str),
            "usage": json.dumps(asdict(usage), sort_keys=True, default=dict),
            "started_at": self._started,
            "finished_at": datetime.now(UTC),
            "status": "done",
            "error": None,
        }


def _values_hash(rows: pl.DataFrame, table: Table) -> str:
    """The tagged hash of a table's content but for what says where it is from."""
    return frame_hash(rows, key=table.key, ignore=BY_VALUE[table.name])


def data_version(record: Mapping[str, Any]) -> str:
    """What Dagster is told as the version of a slice: the hash of its values, so that it goes on where `freshness` does."""
    made = json.loads(record["environment"]).get("made", {})
    return str(made.get("values_hash", record["content_hash"]))


def add_record(lake: Lake, record: Mapping[str, Any]) -> None:
    """Add one line to `materializations`.

    A line that ended before one that is there already, by a clock that was set back or another machine's, counts on from
    that one (a hybrid clock: Kulkarni et al. 2014), for the order of lines is by when they ended.
    """
    table = TABLES["materializations"]
    latest = lake.scan(table.name).select(pl.col("finished_at").max()).collect().item()
    if latest is not None and record["finished_at"] <= latest:
        took = max(record["finished_at"] - record["started_at"], timedelta(0))
        ended = latest + timedelta(microseconds=1)
        record = {**record, "started_at": ended - took, "finished_at": ended}
    lake.add(table.name, pl.DataFrame([dict(record)], schema=table.schema, orient="row"), record={})


class Written:
    """A slice that was written: what Dagster is told of it."""

    def __init__(
        self,
        step: Step,
        commit: Commit,
        *,
        content: str,
        version: str,
        rows: pl.DataFrame,
        usage: Usage,
        inputs: Mapping[str, Any],
        restored_from: int | None = None,
    ) -> None:
        self.step = step
        self.commit = commit
        self.content = content
        self.version = version
        """What Dagster is told; see `data_version`."""
        self.rows = rows
        self.restored_from = restored_from
        """The version of the table that the rows were put back from; None if they were made."""
        self._usage = usage
        self._inputs = inputs

    def metadata(self, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the asset page shows: counts, where the rows are, how they were made, five of them."""
        step = self.step
        seconds = (datetime.now(UTC) - step._started).total_seconds()
        shown = {
            "dagster/partition_row_count" if step.layer is not None else "dagster/row_count": len(self.rows),
            "dagster/table_name": step.table.name,
            "dagster/uri": f"{step._lake.uri}/{step.table.name}",
            "delta/version": self.commit.version,
            "delta/commit": self.commit.commit_uuid,
            "data/content_hash": self.content,
            "data/step_key": step.key,
            "data/inputs": dg.MetadataValue.json(dict(self._inputs)),
            "data/preview": preview(self.rows),
            "time/seconds": seconds,
            **(extra or {}),
        }
        if self.restored_from is not None:
            shown["delta/restored_from"] = self.restored_from
        if self.commit.ledger_head is not None:
            shown["ledger/head"] = self.commit.ledger_head
        if self._usage.requests_sent or self._usage.requests_kept:
            shown |= {
                "llm/requests_sent": self._usage.requests_sent,
                "llm/requests_kept": self._usage.requests_kept,
                "llm/prompt_tokens": self._usage.prompt_tokens,
                "llm/completion_tokens": self._usage.completion_tokens,
            }
            if self._usage.cost_usd is not None:
                shown["llm/cost_usd"] = self._usage.cost_usd
            shown |= {f"llm/failed/{reason}": count for reason, count in sorted(self._usage.failures.items())}
        return shown

    def result(
        self, findings: list[Finding], *, asset: str | None = None, extra: Mapping[str, Any] | None = None
    ) -> dg.MaterializeResult:
        """The event of a run that makes one partition."""
        self._refuse(findings)
        asset = asset or self.step.table.name
        return dg.MaterializeResult(
            asset_key=asset,
            metadata=self.metadata(extra),
            data_version=dg.DataVersion(self.version),
            check_results=[check_result(asset, finding) for finding in findings],
        )

    def _refuse(self, findings: list[Finding]) -> None:
        """Record that rows broke a rule, so that no later run takes them for fresh."""
        broken = [finding for finding in findings if not finding.passed]
        if broken:
            record = self.step._record(content=None, rows=len(self.rows), usage=Usage())
            said = "; ".join(f"{finding.name}: {finding.said}" for finding in broken)
            add_record(self.step._lake, {**record, "status": "failed", "error": f"failed checks: {said}"[:2000]})

    def event(
        self,
        context: dg.AssetExecutionContext,
        layer: int,
        findings: list[Finding],
        extra: Mapping[str, Any] | None = None,
    ) -> dg.AssetMaterialization:
        """The event of one partition in a run that makes several, with its own data version."""
        self._refuse(findings)
        name = self.step.table.name
        tags = {
            DATA_VERSION_TAG: self.version,
            DATA_VERSION_IS_OURS_TAG: "true",
            CODE_VERSION_TAG: self.step.code_version,
        }
        for parent in context.assets_def.asset_deps[dg.AssetKey(name)]:
            tags |= input_tags(context, parent, layer_key(layer))
        return dg.AssetMaterialization(
            asset_key=name, partition=layer_key(layer), metadata=self.metadata(extra), tags=tags
        )


def check_result(asset: str, finding: Finding) -> dg.AssetCheckResult:
    """One finding as Dagster shows it."""
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=finding.name,
        passed=finding.passed,
        description=finding.said,
        metadata=dict(finding.numbers),
        severity=dg.AssetCheckSeverity.ERROR,
    )


def over_layers(findings: Mapping[str, list[Finding]]) -> Iterator[dg.AssetCheckResult]:
    """One result for each check of a run over several layers: passed if it passed for all."""
    for table, found in findings.items():
        for name in dict.fromkeys(finding.name for finding in found):
            same = [finding for finding in found if finding.name == name]
            failed = [finding for finding in same if not finding.passed]
            said = f"{len(same) - len(failed)} of {len(same)} layers passed"
            if failed:
                said += f"; the first that failed: {failed[0].said}"
            yield check_result(table, Finding(name, not failed, said, (failed or same)[0].numbers))


def preview(rows: pl.DataFrame) -> dg.TableMetadataValue:
    """Five rows, long lists cut short. Text is shown as JSON, so that nothing in it can act as markup."""
    columns = [name for name in rows.columns if name not in ("identity", "run_id", "token_bytes")]
    records = [
        dg.TableRecord({name: _cell(value) for name, value in row.items()})
        for row in rows.select(columns).head(5).iter_rows(named=True)
    ]
    schema = dg.TableSchema(columns=[dg.TableColumn(name=name, type="string") for name in columns])
    return dg.MetadataValue.table(records=records, schema=schema)


def schema(table: Table) -> dg.TableSchema:
    """A table's columns with types, docs and constraints, for the asset page."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=name,
                type=str(column.type),
                description=column.doc,
                constraints=dg.TableColumnConstraints(nullable=column.nullable, unique=table.key == (name,)),
            )
            for name, column in table.columns.items()
        ],
        constraints=dg.TableConstraints(other=[f"({', '.join(table.key)}) is unique"]),
    )


def _cell(value: Any) -> str:
    if isinstance(value, list):
        shown = ", ".join(_cell(item) for item in value[:8])
        return f"[{shown}{', ...' if len(value) > 8 else ''}] ({len(value)})"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def input_tags(context: dg.AssetExecutionContext, parent: dg.AssetKey, partition: str) -> dict[str, str]:
    """The tags by which Dagster knows which version of a parent an event was made from.

    Dagster sets them itself on `MaterializeResult`, but not on events that a step logs one partition at a time.
    """
    for key in (partition, None):
        record = context.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=parent, asset_partitions=[key] if key else None), limit=1
        ).records
        if record and record[0].asset_materialization:
            version = (record[0].asset_materialization.tags or {}).get(DATA_VERSION_TAG, "")
            return {
                f"dagster/input_data_version/{parent.to_user_string()}": hashlib.sha256(version.encode()).hexdigest(),
                f"dagster/input_event_pointer/{parent.to_user_string()}": str(record[0].storage_id),
            }
    return {}
