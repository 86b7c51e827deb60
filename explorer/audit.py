"""An audit of a lake: every check of `pipeline.audit`, from the tables, the files, and what is at hand of the outside."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl

from pipeline.audit import CHECKS, Audit, Check
from pipeline.errors import LakeError
from pipeline.provenance import frame_hash
from pipeline.tables import TABLES
from resources.delta import DeltaLake, collect
from resources.integrity import integrity

Say = Callable[[str], None]


def audit(lake: DeltaLake, *, anchors: Sequence[str] = (), say: Say = lambda _: None) -> Audit:
    """The checks that need nothing but the lake."""
    found, head = integrity(lake, anchors=anchors, progress=say)
    checks = {check.id: check for check in found}
    if any(check.findings for check in found):
        # Damaged files are named already, and reading them would only fail.
        why = "bytes of the lake were changed; restore them first"
    else:
        why = "this version does not check it"
        try:
            records = lake.read("materializations")
            for make in (_content, _keys, _code, _served):
                check = make(lake, records, say)
                checks[check.id] = check
        except LakeError as error:
            why = f"the lake cannot be read: {error}"
    return Audit(lake.uri, head, [checks.get(name) or Check(name, not_checked=why) for name in CHECKS])


def _done(records: pl.DataFrame) -> Iterator[tuple[str, int | None, dict[str, Any], dict[int, dict[str, Any]]]]:
    """For each slice: its last finished write, and for each neuron recomputed alone since, the last one of it."""
    rows = records.filter((pl.col("status") == "done") & pl.col("version").is_not_null()).sort("version")
    slices: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for row in rows.iter_rows(named=True):
        slices.setdefault((row["table"], row["layer"]), []).append(row)
    for (table, layer), made in slices.items():
        whole = [row for row in made if row["neurons"] is None]
        if not whole or table not in TABLES:
            continue
        last = whole[-1]
        later = (row for row in made if row["neurons"] is not None and row["version"] > last["version"])
        yield table, layer, last, {neuron: row for row in later for neuron in row["neurons"]}


def _content(lake: DeltaLake, records: pl.DataFrame, say: Say) -> Check:
    """Each slice against the content hash of its record, neurons that were recomputed alone against theirs."""
    findings, slices = [], 0
    for table, layer, whole, alone in _done(records):
        say(f"hashing the rows of {table}{'' if layer is None else f' layer {layer}'}")
        key, where = TABLES[table].key, table if layer is None else f"{table} of layer {layer}"
        slices += 1
        rows = lake.read(table, layer=layer)
        if not alone:
            same = frame_hash(rows, key=key) == whole["content_hash"]
        else:
            before = lake.read(table, layer=layer, version=whole["version"])
            others = ~pl.col("neuron").is_in(list(alone))
            same = frame_hash(before, key=key) == whole["content_hash"] and frame_hash(
                before.filter(others), key=key
            ) == frame_hash(rows.filter(others), key=key)
            for neuron, record in sorted(alone.items()):
                of_it = rows.filter(pl.col("neuron") == neuron)
                if frame_hash(of_it, key=key) != record["content_hash"]:
                    findings.append(f"the rows of {layer}:{neuron} in {table} are not those that were recorded")
        if not same:
            made_by = {whole["run_id"], *(record["run_id"] for record in alone.values())}
            unfinished = set(rows.get_column("run_id").unique()) - made_by
            why = "they are of a write that was never finished; run `neuronledger run`" if unfinished else "they differ"
            findings.append(f"the rows of {where} are not those that were recorded: {why}")
    left_out = (
        "language_calls and materializations, which only grow and have no record of their own (A3 and A4 cover them)"
    )
    return Check("A5", f"{slices:,} slices of tables", findings, not_checked=left_out)


def _keys(lake: DeltaLake, _: pl.DataFrame, say: Say) -> Check:
    findings, total = [], 0
    for name, table in TABLES.items():
        say(f"counting the keys of {name}")
        counted = lake.scan(name).select(pl.len().alias("rows"), pl.struct(table.key).n_unique().alias("keys"))
        rows, keys = collect(counted).row(0)
        total += rows
        if rows != keys:
            findings.append(f"{rows - keys:,} rows of {name} repeat a key {table.key}")
    return Check("A9", f"{total:,} rows of {len(TABLES)} tables", findings)


def _code(_: DeltaLake, records: pl.DataFrame, __: Say) -> Check:
    """Whether each write says which code made it. A package without its repository has a version and no commit."""
    findings: list[str] = []
    notes: list[str] = []
    seen: dict[tuple[Any, ...], list[str]] = {}
    for row in records.filter(pl.col("status") == "done").iter_rows(named=True):
        code = json.loads(row["code"])
        kind = (code.get("package"), code.get("git_commit"), code.get("changed"))
        seen.setdefault(kind, []).append(row["table"])
    for (package, commit, changed), tables in seen.items():
        made = f"{len(tables):,} writes (of {', '.join(sorted(set(tables)))[:80]})"
        if changed is True:
            findings.append(f"{made} were made by files that differ from commit {commit}")
        elif commit in (None, "unknown"):
            said = f"{made} were made by version {package} of the package, installed without its commit"
            (notes if package not in (None, "not installed", "unknown") else findings).append(said)
    return Check("A18", f"{sum(len(tables) for tables in seen.values()):,} writes", findings, notes=notes)


def _served(lake: DeltaLake, _: pl.DataFrame, __: Say) -> Check:
    """A provider names the dated model behind the name asked for (`gpt-4o-mini-2024-07-18`), which is no other."""
    calls = collect(lake.scan("language_calls").select("model", "model_served", "endpoint").drop_nulls("model_served"))
    other = calls.filter(~pl.col("model_served").str.starts_with(pl.col("model")))
    findings = [
        f"{count:,} answers of {endpoint} are by {served!r}, where {asked!r} was asked"
        for asked, served, endpoint, count in other.group_by("model", "model_served", "endpoint").len().sort("model").iter_rows()
    ]  # fmt: skip
    return Check("A19", f"{len(calls):,} answers", findings)
