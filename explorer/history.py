"""The history of a neuron: which runs wrote it, what came out otherwise each time, and why it was made again.

`writes` reads nothing of the neuron and stands on its page; `changes` reads its rows at every version that may have changed
them, and has a page of its own.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from assets import causes
from explorer.kept import Kept
from pipeline.summary import MAIN
from resources.delta import DeltaLake, collect

WRITTEN = ("activations", "exemplars", "explanations", "simulations", "judgements", "scores")
"""Tables whose writes a page lists."""
CHANGING = ("explanations", "scores")
"""Tables whose rows are compared from version to version."""
MOST = 60
"""Commits of a table that are looked at, the latest."""
SHOWN = 12
"""Runs that the page of a neuron lists, the latest."""


def writes(kept: Kept, layer: int, neuron: int) -> list[dict[str, Any]]:
    """The runs that wrote rows of a neuron, the latest first: tables, code, and the causes that tell them from the run before."""
    runs: dict[str, dict[str, Any]] = {}
    for table in WRITTEN:
        mine = kept.writes(table, layer, neuron)
        for place, row in enumerate(mine):
            run = runs.setdefault(
                row["run_id"],
                {"run_id": row["run_id"], "at": row["finished_at"], "alone": row["neurons"] is not None, "tables": [], "first": True,
                 "code": json.loads(row["code"]), "causes": []},
            )  # fmt: skip
            run["at"] = max(run["at"], row["finished_at"])
            run["tables"].append({"table": table, "version": row["version"], "content_hash": row["content_hash"]})
            before = mine[place + 1] if place + 1 < len(mine) else None
            run["first"] = run["first"] and before is None
            run["causes"] += [cause for cause in why(row, before) if cause not in run["causes"]]
    latest = sorted(runs.values(), key=lambda run: run["at"], reverse=True)
    return [run | {"at": run["at"].isoformat(timespec="seconds")} for run in latest]


def runs(kept: Kept, *, most: int = 30) -> list[dict[str, Any]]:
    """The latest runs that wrote something, each with the time of its last write and the tables that it wrote."""
    done = kept.records().filter((pl.col("status") == "done") & pl.col("version").is_not_null())
    found = (
        done.group_by("run_id")
        .agg(pl.col("finished_at").max().alias("at"), pl.col("table").unique().sort().alias("tables"))
        .sort("at", "run_id", descending=True)
        .head(most)
    )
    return [row | {"at": row["at"].isoformat(timespec="seconds")} for row in found.iter_rows(named=True)]


def why(row: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[str]:
    """What differs between a write and the one before it: code, settings, what it was made from. Nothing for a first one."""
    if before is None:
        return []
    code, inputs, settings = (
        [json.loads(record.get(name) or "{}") for record in (before, row)] for name in ("code", "inputs", "settings")
    )
    found = []
    if code[0].get("code_version") != code[1].get("code_version"):
        found.append(f"its code changed from version {code[0].get('code_version')} to {code[1].get('code_version')}")
    found += [
        causes.setting(name, settings[0].get(name), settings[1].get(name))
        for name in sorted({**settings[0], **settings[1]})
        if settings[0].get(name) != settings[1].get(name)
    ]
    # Of one neuron alone, what was read is another slice, with a hash of its own.
    if before.get("neurons") == row.get("neurons"):
        hashes = [{name: one.get("content_hash") for name, one in each.items()} for each in inputs]
        both = sorted(hashes[0].keys() & hashes[1].keys())
        found += [f"{name} changed" for name in both if hashes[0][name] != hashes[1][name]]
    return found


def changes(lake: DeltaLake, layer: int, neuron: int, *, until: Mapping[str, int] | None = None) -> dict[str, Any]:
    """What each commit changed of a neuron's explanations and scores, the latest first.

    `until` are the versions that nothing later than is looked at.
    """
    found = []
    looked_at, more = 0, False
    for table in CHANGING:
        commits: list[dict[str, Any]] = []
        for entry in lake.commits_of(table, layer, neuron):
            if until is not None and entry["version"] > until.get(table, -1):
                continue
            if len(commits) > MOST:
                more = True
                break
            commits.append(entry)
        commits.reverse()
        looked_at += len(commits)
        before: dict[Any, dict[str, Any]] = {}
        last: Mapping[str, Any] | None = None
        for place, entry in enumerate(commits):
            rows = _rows(lake, table, layer, neuron, entry["version"])
            # The oldest of a cut list only says what there was.
            if place or not more:
                changed = _differences(before, rows)
                if changed:
                    found.append(_event(table, entry, last, changed))
            before, last = rows, entry["record"] or None
    found.sort(key=lambda one: (one["at"], one["table"], one["version"]), reverse=True)
    return {"layer": layer, "neuron": neuron, "commits": looked_at, "is_cut": more, "events": found}


def _event(
    table: str, entry: Mapping[str, Any], before: Mapping[str, Any] | None, changed: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    record = entry["record"]
    return {
        "table": table,
        "version": entry["version"],
        "at": entry["timestamp"].isoformat(timespec="milliseconds") if entry["timestamp"] else "",
        "commit_uuid": entry["commit_uuid"],
        "run_id": record.get("run_id"),
        "code": json.loads(record["code"]) if record.get("code") else {},
        "causes": why(record, before) if record else [],
        "changed": list(changed),
    }


def _rows(lake: DeltaLake, table: str, layer: int, neuron: int, version: int) -> dict[Any, dict[str, Any]]:
    """The rows of a neuron at a version, by what tells one from another to a reader; of scores, the main ones."""
    rows = lake.scan(table, layer=layer, neurons=[neuron], version=version)
    if table == "scores":
        rows = rows.filter(MAIN)
    found: dict[Any, dict[str, Any]] = {}
    for row in collect(rows).sort("polarity", "method", "explanation_id").iter_rows(named=True):
        name = (row["polarity"], row["method"], row["simulator"] if table == "scores" else row["explainer"])
        place = sum(key[:3] == name for key in found)
        found[*name, place] = (
            {"value": row["value"], "ci_low": row["ci_low"], "ci_high": row["ci_high"], "missing_because": row["missing_because"]}
            if table == "scores"
            else {"text": row["text"], "missing_because": row["missing_because"], "explanation_id": row["explanation_id"],
                  "prompt_hash": row["prompt_hash"]}
        )  # fmt: skip
    return found


def _differences(before: Mapping[Any, dict[str, Any]], after: Mapping[Any, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that came, went, or came out otherwise; what a row is made from may be other and its words and value the same."""
    told = ("text", "missing_because", "value")
    return [
        {"polarity": key[0], "method": key[1], "by": key[2], "before": before.get(key), "after": after.get(key)}
        for key in sorted({**before, **after})
        if any((before.get(key) or {}).get(name) != (after.get(key) or {}).get(name) for name in told)
        or (key in before) != (key in after)
    ]


def tree(explanations: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """For each explanation that was made from another one of the neuron, that one's id: the tree of revisions."""
    known = {one["explanation_id"] for one in explanations}
    return {one["explanation_id"]: one["parent_id"] for one in explanations if one["parent_id"] in known}
