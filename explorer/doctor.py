"""The doctor: looks at everything a run needs before money is spent, and mends what a killed one left behind.

    lake      opens, is sealed; a commit without its line is sealed if its rows are those that it recorded
    Dagster   runs whose process died are ended; a history that was lost is told again from the records
    model     is there, is whole, and its shape is that of the lake
    corpus    gives documents
    endpoint  answers one tiny question (the only thing here that can cost anything), if an explainer is set

What it mends, it says. What it cannot be sure of, it reports and leaves.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import dagster as dg
import polars as pl

from assets.project import layer_key, neuron_name
from assets.step import CODE_VERSION_TAG, DATA_VERSION_IS_OURS_TAG, DATA_VERSION_TAG, data_version, input_tags
from explorer.audit import is_recorded, newest
from explorer.condition import ILL, LEFT, MENDED, WELL, Condition
from explorer.dead_runs import dead_runs
from pipeline.errors import LakeError, NeuronLedgerError
from pipeline.ports import Document
from pipeline.provenance import TAG, frame_hash
from pipeline.records import read as records_of
from pipeline.tables import OF_IMPORTS, TABLES
from resources.commits import COMMIT_UUID, LAID_TOGETHER, RECORD
from resources.delta import DeltaLake
from resources.integrity import Chain, Log, read_chain, read_logs, unlike_sealed, unsealed
from resources.settings import Settings

FREE_BYTES = 2**30
"""Free disk space below which a run may not end: a pass keeps its captures on the way."""
DOCUMENTS = 100
"""Documents that are read to see whether the corpus gives text."""


def lake(lake: DeltaLake, *, seal_all: bool = False, mend: bool = True) -> Iterator[Condition]:
    """The tables and their ledger. `seal_all` seals what cannot be vouched for too, as it stands."""
    if lake.ledger is None:
        yield Condition("ledger", LEFT, "the lake has no ledger")
        return
    if "://" not in lake.uri:
        root = Path(lake.uri)
        if not root.exists():
            yield Condition("lake", WELL, f"{root} does not exist yet; the first run makes it")
            return
        free = shutil.disk_usage(root).free
        enough = WELL if free >= FREE_BYTES else ILL
        yield Condition("disk", enough, f"{free / 2**30:,.1f} GiB are free at {root}")
    for table in TABLES:
        try:
            lake.version(table)
        except LakeError as error:
            yield Condition("lake", ILL, str(error))
    chain = read_chain(lake)
    for fault in chain.faults:
        yield Condition("ledger", ILL, fault)
    logs = read_logs(lake)
    for log in logs:
        for fault in log.faults:
            yield Condition("lake", ILL, fault)
    if chain.faults:
        return
    for unlike in unlike_sealed(logs, chain):
        yield Condition("ledger", ILL, unlike)
    # Of a log that cannot be read nothing can be vouched for.
    yield from _seal(lake, [log for log in logs if not log.faults], chain, seal_all=seal_all, mend=mend)
    lines = sum(1 for _ in read_chain(lake).lines)
    yield Condition("ledger", WELL, f"{lines:,} lines; its head is {lake.ledger.head()}")


def _seal(lake: DeltaLake, logs: list[Log], chain: Chain, *, seal_all: bool, mend: bool) -> Iterator[Condition]:
    """Seal what was left without a line."""
    assert lake.ledger is not None  # noqa: S101 - for the type checker: callers asked
    for log, version in unsealed(logs, chain):
        where = f"{log.table} version {version}"
        reason = vouched(lake, log, version)
        if reason is None and not seal_all:
            said = f"{where} has no line in the ledger, and nothing vouches for its rows: another program may have written it; "
            yield Condition("ledger", ILL, said + "`doctor --seal-all` seals it as it stands")
        elif not mend:
            yield Condition(
                "ledger", ILL, f"{where} has no line in the ledger; {reason or 'it would be sealed as it stands'}"
            )
        else:
            lake.ledger.seal(log.table, version, by="doctor" if reason else "doctor, as it stood")
            yield Condition(
                "ledger", MENDED, f"{where} had no line in the ledger, and is sealed now: {reason or 'as it stands'}"
            )
    before = [
        (log.table, version) for log in logs for version in sorted(log.commits)
        if (log.table, version) not in chain.sealed and version <= chain.opened.get(log.table, -1)
    ]  # fmt: skip
    if not chain.lines:
        before = [(log.table, version) for log in logs for version in sorted(log.commits)]
    if before and seal_all and mend:
        for table, version in before:
            lake.ledger.seal(table, version, by="doctor, as it stood")
        yield Condition("ledger", MENDED, f"{len(before):,} commits from before the ledger are sealed as they stand")
    elif before:
        said = f"{len(before):,} commits are from before the ledger; `doctor --seal-all` seals them as they stand"
        yield Condition("ledger", LEFT, said)


def vouched(lake: DeltaLake, log: Log, version: int) -> str | None:
    """What vouches for a commit that its writer did not seal; None if nothing does."""
    actions = [json.loads(line) for line in log.files.read(log.commits[version]).split(b"\n") if line]
    if not any("add" in action or "remove" in action for action in actions):
        return "it holds no rows"
    info: Mapping[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
    if COMMIT_UUID not in info:
        return None
    record = json.loads(info.get(RECORD, "{}"))
    if not TABLES[log.table].by_layer and "content_hash" not in record:
        return _laid_together(lake, log.table, version) if LAID_TOGETHER in record else _added(log, actions)
    try:
        neurons = record.get("neurons")
        rows = lake.read(log.table, layer=record.get("layer"), neurons=neurons, version=version)
        if is_recorded(rows, TABLES[log.table], record):
            return "its rows are those that it recorded"
    except (LakeError, KeyError, TypeError):
        return None
    return None


def _laid_together(lake: DeltaLake, table: str, version: int) -> str | None:
    """Whether a commit holds the rows of the version before it, in other files."""
    try:
        now, before = (
            frame_hash(lake.read(table, version=each), key=TABLES[table].key, ignore=())
            for each in (version, version - 1)
        )
    except LakeError:
        return None
    return "it lays the same rows out in fewer files" if now == before else None


def _added(log: Log, actions: list[dict[str, Any]]) -> str | None:
    """A table that only grows: nothing was taken away, and each request has the hash that it is known by."""
    names = [f"{log.table}/{unquote(action['add']['path'])}" for action in actions if "add" in action]
    try:
        files = [BytesIO(log.files.read(name)) for name in names]
    except OSError:
        return None
    if any("remove" in action for action in actions):
        return None
    if log.table == "language_calls":
        rows = pl.concat([pl.read_parquet(file).select("request_id", "request") for file in files])
        for request_id, request in rows.iter_rows():
            if request_id != TAG + hashlib.sha256(request.encode("utf-8")).hexdigest():
                return None
        return "it only adds replies, whose requests have the hashes that they are known by"
    return "it only adds rows"


def instance(
    opened: dg.DagsterInstance, lake: DeltaLake, definitions: dg.Definitions | None, *, mend: bool = True
) -> Iterator[Condition]:
    """Runs that died, and what Dagster does not know of the tables."""
    yield from dead_runs(opened, mend=mend)
    told, missing = 0, 0
    for event in history(opened, lake, definitions):
        missing += 1
        if mend:
            opened.report_runless_asset_event(event)
            told += 1
    if missing:
        said = f"{missing:,} materialisations that Dagster did not know of"
        yield Condition(
            "history", MENDED if mend else ILL, f"{said} are told to it again" if told else f"there are {said}"
        )
    else:
        yield Condition("history", WELL, "Dagster knows of every slice of the tables")


def history(
    opened: dg.DagsterInstance, lake: DeltaLake, definitions: dg.Definitions | None
) -> Iterator[dg.AssetMaterialization]:
    """The events that Dagster lacks, oldest first: all of a slice that it never heard of, else the newest."""
    records = records_of(lake).filter(
        (pl.col("status") == "done")
        & pl.col("version").is_not_null()
        & pl.col("table").is_in([name for name in TABLES if name not in OF_IMPORTS])
    )
    graph = None if definitions is None else definitions.resolve_asset_graph()
    slices: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for row in records.sort("finished_at", "version").iter_rows(named=True):
        alone = row["neurons"][0] if row["neurons"] else None
        name = row["table"] if alone is None else f"neuron_{row['table']}"
        place = None if row["layer"] is None else layer_key(row["layer"])
        slices.setdefault((name, place if alone is None else neuron_name(row["layer"], alone)), []).append(row)
    order = {name: place for place, name in enumerate(TABLES)}
    for (name, partition), rows in sorted(slices.items(), key=lambda one: order[one[1][0]["table"]]):
        known = newest(opened, name, partition)
        if known in (data_version(rows[-1]), rows[-1]["content_hash"]):
            continue
        for row in rows if known is None else rows[-1:]:
            tags = {
                DATA_VERSION_TAG: data_version(row),
                DATA_VERSION_IS_OURS_TAG: "true",
                CODE_VERSION_TAG: str(json.loads(row["code"]).get("code_version")),
            }
            key = dg.AssetKey(name)
            if graph is not None and partition is not None and graph.has(key):
                where: Any = SimpleNamespace(instance=opened)
                for parent in sorted(graph.get(key).parent_keys):
                    at = partition if parent.path[-1].startswith("neuron_") else partition.partition("|")[0]
                    tags |= input_tags(where, parent, at)
            yield dg.AssetMaterialization(
                asset_key=key,
                partition=partition,
                description="told again by `neuronledger doctor` from the record in the lake",
                metadata={
                    "run": row["run_id"],
                    "made_at": row["finished_at"].isoformat(timespec="seconds"),
                    "delta/version": row["version"],
                    "delta/commit": row["commit_uuid"],
                    "data/content_hash": row["content_hash"],
                    "data/step_key": row["step_key"] or "",
                    "dagster/row_count" if row["layer"] is None else "dagster/partition_row_count": row["rows"],
                },
                tags=tags,
            )


def model(settings: Settings, found: DeltaLake) -> Iterator[Condition]:
    """The subject: there, whole, and of the shape of the lake."""
    from assets.definitions import open_subject

    try:
        subject = open_subject(settings)
        sites = subject.layers()
        subject.fingerprints()
    except NeuronLedgerError as error:
        yield Condition("model", ILL, str(error))
        return
    shape = {site.layer: site.n_neurons for site in sites}
    known = dict(found.read("subject_layers").select("layer", "n_neurons").iter_rows())
    if any(shape.get(layer) != count for layer, count in known.items()):
        yield Condition(
            "model", ILL, f"{settings.subject!r} is of another shape than the model of the lake; give another --lake"
        )
        return
    said = f"{settings.subject!r} has {len(shape)} layers and {sum(shape.values()):,} neurons; its weights can be read"
    yield Condition("model", WELL, said)


def corpus(settings: Settings) -> Iterator[Condition]:
    """The texts: there, and readable as text."""
    from resources.corpus import open_corpus

    try:
        documents = list(islice(open_corpus(settings.corpus, column=settings.column).documents(), DOCUMENTS))
    except (NeuronLedgerError, OSError) as error:
        yield Condition("corpus", ILL, str(error))
        return
    texts = sum(isinstance(document, Document) for document in documents)
    said = f"{texts} of the first {len(documents)} documents of {settings.corpus!r} can be read"
    yield Condition("corpus", WELL if texts else ILL, said)


def endpoint(settings: Settings, found: DeltaLake) -> Iterator[Condition]:
    """The language models: one tiny question to each."""
    from assets.definitions import open_language

    models = dict.fromkeys(name for name in (settings.explainer, settings.simulator) if name)
    if not models:
        yield Condition("endpoint", LEFT, "no explainer is set (--explainer), so no language model is asked")
        return
    for name in models:
        try:
            answer = open_language(settings, found).check(name)
        except NeuronLedgerError as error:
            yield Condition("endpoint", ILL, str(error))
            continue
        if not answer["answers"]:
            why = answer["error"] or "it gave no text"
            yield Condition("endpoint", ILL, f"{name} at {answer['endpoint']} does not answer: {why}")
            continue
        said = f"{name} at {answer['endpoint']} answers in {answer['seconds']} s as {answer['model_served']}"
        said += "" if answer["json_mode"] else "; it does not take `response_format`, so more answers may be unparsable"
        yield Condition("endpoint", WELL, said)
