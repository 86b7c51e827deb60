"""Freshness: of every table and layer, whether its rows are what today's model, text, code and choices would give.

Dagster's own staleness stops at direct parents and cannot be seen by partition. Here a slice is fresh if the key that
its record holds is the key of today, and all that it was made from is fresh too.

    fresh    nothing changed
    stale    something that it is made from changed; the cause says what
    missing  never made
    failed   the last attempt failed; the cause is its error
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from assets import (
    ablations,
    activations,
    causes,
    connections,
    exemplars,
    explanations,
    judgements,
    scores,
    sequences,
    simulations,
    subject_layers,
    vocabulary,
)
from assets.project import Project
from assets.step import BY_VALUE
from pipeline.ports import Lake
from pipeline.provenance import frame_hash
from pipeline.records import read as records_of
from pipeline.tables import IN_PASSING, TABLES


@dataclass(frozen=True)
class Outside:
    """What the pipeline is made from that is not in the lake, by content."""

    corpus: str
    tokenizer: str
    weights: Sequence[str]
    """One fingerprint for each layer."""
    checkpoint: str
    """Of all weights: what a neuron is joined to also depends on what comes after its layer."""
    parts: Callable[[], Sequence[Mapping[str, str]]] = tuple
    """What each layer's fingerprint is made from, by name; asked for only where something changed."""
    source: Callable[[], Mapping[str, Any]] = dict
    """Where the text is from; asked for only if it changed."""


@dataclass(frozen=True)
class State:
    """One table of one layer (None for a table without layers), and the neurons that were recomputed alone since."""

    table: str
    layer: int | None
    status: str
    cause: str = ""
    recomputed: tuple[int, ...] = ()
    inherited: bool = False
    """Stale only because something that it is made from is not fresh, and fresh again if that comes out the same."""
    root: str = ""
    """For a cause that is inherited, the one that it goes back to."""


@dataclass(frozen=True)
class Hop:
    """What one table is made by and from."""

    code_version: str
    settings: Callable[[Project], Mapping[str, Any]]
    inputs: tuple[str, ...]
    more_inputs: Callable[[Project], tuple[str, ...]] = lambda _: ()
    """Those that only some choices need."""


WORTH_ASKING_AGAIN = IN_PASSING

UNANSWERED = "answers are missing"
"""In the cause of a slice that lacks such answers."""


def _nothing(_: Project) -> Mapping[str, Any]:
    return {}


_CAPTURED = Hop(activations.CODE_VERSION, activations.settings, ("sequences", "subject_layers"))
HOPS: dict[str, Hop] = {
    "sequences": Hop(sequences.CODE_VERSION, sequences.settings, ()),
    "subject_layers": Hop(subject_layers.CODE_VERSION, _nothing, ()),
    **dict.fromkeys(activations.TABLES, _CAPTURED),
    "vocabulary": Hop(vocabulary.CODE_VERSION, _nothing, ()),
    "connections": Hop(connections.CODE_VERSION, _nothing, ("subject_layers",)),
    "exemplars": Hop(exemplars.CODE_VERSION, _nothing, ("sequences", "activations")),
    "explanations": Hop(
        explanations.CODE_VERSION,
        explanations.settings,
        explanations.INPUTS,
        explanations.more_inputs,
    ),
    "simulations": Hop(
        simulations.CODE_VERSION, simulations.settings, ("explanations", "exemplars", "token_associations")
    ),
    "judgements": Hop(judgements.CODE_VERSION, judgements.settings, judgements.INPUTS),
    "ablations": Hop(ablations.CODE_VERSION, ablations.settings, ablations.INPUTS),
    "scores": Hop(scores.CODE_VERSION, scores.settings, ("simulations", "explanations"), scores.more_inputs),
}
"""Every table in the order of the hops."""


def looked_at(project: Project) -> list[str]:
    """The tables that matter to a project, in the order of the hops: some only do if a scorer is chosen that needs them."""
    needed = scores.more_inputs(project)
    return [table for table in HOPS if table not in ("judgements", "ablations") or table in needed]


def states(lake: Lake, project: Project, outside: Outside, *, layers: Sequence[int]) -> list[State]:
    """The state of every table, of the layers given if it has layers, in the order of the hops."""
    comparison = _Comparison(_Records(lake), project, outside)
    for table in looked_at(project):
        for layer in layers if TABLES[table].by_layer else (None,):
            comparison.look(table, layer)
    return list(comparison.found.values())


class _Records:
    """The provenance records of a lake, newest last."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        rows = records_of(lake).sort("finished_at")
        self._all: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
        for row in rows.iter_rows(named=True):
            self._all.setdefault((row["table"], row["layer"]), []).append(row)
        self._current: dict[tuple[str, int | None], set[str]] = {}
        self._slices: dict[str, Mapping[int | None, tuple[int, frozenset[str | None]]]] = {}

    def whole(self, table: str, layer: int | None) -> dict[str, Any] | None:
        """The last record of the whole slice that was finished."""
        done = (row for row in self._all.get((table, layer), ()) if row["neurons"] is None and row["status"] == "done")
        return max(done, key=lambda row: row["finished_at"], default=None)

    def failure(self, table: str, layer: int | None) -> dict[str, Any] | None:
        """The last record of the whole slice, if it failed."""
        whole = [row for row in self._all.get((table, layer), ()) if row["neurons"] is None]
        return whole[-1] if whole and whole[-1]["status"] == "failed" else None

    def recomputed(self, table: str, layer: int | None) -> dict[int, dict[str, Any]]:
        """For each neuron recomputed alone since the whole slice was made, its last record."""
        whole = self.whole(table, layer)
        return {
            neuron: row
            for row in self._all.get((table, layer), ())
            if row["neurons"] and row["status"] == "done" and whole and row["finished_at"] > whole["finished_at"]
            for neuron in row["neurons"]
        }

    def values(self, table: str, layer: int | None) -> str | None:
        """The hash of a whole slice but for its identities, where it was recorded; see `assets.step`."""
        whole = self.whole(table, layer)
        found = json.loads(whole["environment"]).get("made", {}) if whole and table in BY_VALUE else {}
        return found.get("values_hash")

    def rows(self, table: str, layer: int | None) -> int:
        """How many rows the slice has now."""
        return self._slice(table, layer)[0]

    def is_finished(self, table: str, layer: int | None) -> bool:
        """Whether all of the slice was written by writes that came to their records."""
        done = [row for row in self._all.get((table, layer), ()) if row["status"] == "done"]
        commits = self._slice(table, layer)[1]
        if None not in commits:
            return commits <= {row["commit_uuid"] for row in done}
        # Somebody else laid the same rows out anew, so the rows themselves must tell.
        return self._lake.run_ids(table, layer=layer) <= {row["run_id"] for row in done}

    def _slice(self, table: str, layer: int | None) -> tuple[int, frozenset[str | None]]:
        if table not in self._slices:
            self._slices[table] = self._lake.slices(table)
        return self._slices[table].get(layer, (0, frozenset()))

    def contents(self, table: str, layer: int | None) -> Iterator[str]:
        """The content hashes by which a slice may be known: as made whole, and as it is with neurons recomputed."""
        whole = self.whole(table, layer)
        if whole is None:
            return
        yield whole["content_hash"]
        if self.recomputed(table, layer):
            if (table, layer) not in self._current:
                rows, key = self._lake.read(table, layer=layer), TABLES[table].key
                later = [
                    name
                    for name, column in TABLES[table].columns.items()
                    if column.added and name in rows.columns and rows.get_column(name).null_count() == len(rows)
                ]
                # What was made from it before a column was added knows it without.
                self._current[table, layer] = {
                    frame_hash(rows, key=key), frame_hash(rows, key=key, ignore=("run_id", *later)),
                }  # fmt: skip
            yield from self._current[table, layer]


@dataclass
class _Comparison:
    """The records of a lake against today, one slice after the other in the order of the hops."""

    records: _Records
    project: Project
    outside: Outside
    found: dict[tuple[str, int | None], State] = field(default_factory=dict)

    def look(self, table: str, layer: int | None) -> None:
        """Find the state of one slice; those of all slices that it is made from are known."""
        self.found[table, layer] = self._state(table, layer)

    def _state(self, table: str, layer: int | None) -> State:
        record = self.records.whole(table, layer)
        if failure := self.records.failure(table, layer):
            return State(table, layer, "failed", failure["error"] or "")
        if record is None:
            return State(table, layer, "missing")
        recomputed = self.records.recomputed(table, layer)
        rows = self.records.rows(table, layer)
        if record["rows"] and not rows:
            return State(table, layer, "missing", f"its {record['rows']:,} rows are gone")
        if not self.records.is_finished(table, layer) or (not recomputed and rows != record["rows"]):
            return State(table, layer, "stale", "it holds rows of a write that was never finished")
        alone = tuple(sorted(recomputed))
        own = (
            *self._causes(table, layer, record),
            *self._alone(table, layer, recomputed),
            *self._late(table, layer, record),
        )
        inherited = tuple(self._inherited(table, layer))
        # In the order in which they came about: choices and what is outside, what is made from them, single neurons.
        for cause in (*own[:1], *(cause for cause, _ in inherited)):
            root = "" if own else inherited[0][1]
            return State(table, layer, "stale", cause, alone, inherited=not own, root=root)
        return State(table, layer, "fresh", "", alone)

    def of_neurons(self, layer: int) -> tuple[str, dict[int, str], set[int]]:
        """Why all neurons of a layer are stale, why some are, and which were recomputed alone."""
        some: dict[int, str] = {}
        alone: set[int] = set()
        for table in looked_at(self.project):
            at = layer if TABLES[table].by_layer else None
            state, record = self.found[table, at], self.records.whole(table, at)
            if state.status in ("missing", "failed") and table not in ("connections", "vocabulary"):
                return f"{table} {state.status}" + (f": {state.cause}" if state.cause else ""), some, alone
            if record is None:
                continue
            for cause in self._causes(table, at, record):
                # What answers are missing is said of each neuron by itself.
                if table not in ("connections", "vocabulary") and UNANSWERED not in cause:
                    return cause, some, alone
            recomputed = self.records.recomputed(table, at)
            alone |= set(recomputed)
            found = (*self._alone(table, at, recomputed), *self._late(table, at, record))
            for cause in found:
                if name := re.search(r"neuron \d+:(\d+)", cause):
                    some.setdefault(int(name[1]), cause)
        return "", some, alone

    def _causes(self, table: str, layer: int | None, record: Mapping[str, Any]) -> Iterator[str]:
        """Why a slice is stale, the first cause first; nothing if it is fresh."""
        hop = HOPS[table]
        yield from self._choices(hop, record)
        # What no language model is asked about today need not be answered.
        asks = {"explainer", "simulator", "scorers"} & set(hop.settings(self.project))
        for reason, count in json.loads(record["usage"]).get("failures", {}).items() if asks else ():
            if reason in WORTH_ASKING_AGAIN:
                yield f"{count} {UNANSWERED} ({reason})"
        read = json.loads(record["inputs"])
        inputs = {name: entry["content_hash"] for name, entry in read.items()}
        for name, content in _outside(table, layer, self.outside).items():
            if inputs.get(name) != content:
                yield self._said(name, layer, record)
        for parent in (*hop.inputs, *hop.more_inputs(self.project)):
            at = layer if TABLES[parent].by_layer else None
            if self.found[parent, at].status == "fresh" and inputs.get(parent) not in set(
                self.records.contents(parent, at)
            ):
                values = read.get(parent, {}).get("values_hash")
                if values is None or values != self.records.values(parent, at):
                    yield f"{parent} changed"

    def _said(self, name: str, layer: int | None, record: Mapping[str, Any]) -> str:
        """In words, what changed of something that is not in the lake; older records do not tell."""
        origin, said = json.loads(record["environment"]), None
        if name == "corpus":
            said = causes.corpus(origin.get("corpus", {}), self.outside.source())
        elif "parts" in origin and (now := self.outside.parts()):
            some = "tokenizer " if name == "tokenizer" else ""
            before, after = (
                {part: found for part, found in one.items() if part.startswith(some)}
                for one in (origin["parts"], now[layer or 0])
            )
            said = causes.parts(before, after)
        return said or f"the {name} changed"

    def _inherited(self, table: str, layer: int | None) -> Iterator[tuple[str, str]]:
        """What it is made from that is not fresh, and the cause that this goes back to."""
        hop = HOPS[table]
        for parent in (*hop.inputs, *hop.more_inputs(self.project)):
            state = self.found[parent, layer if TABLES[parent].by_layer else None]
            if state.status != "fresh":
                yield f"{parent} is {state.status}", state.root or state.cause

    def _choices(self, hop: Hop, record: Mapping[str, Any]) -> Iterator[str]:
        """What differs in code and settings. Rows made with more than is asked for today hold what is asked for."""
        code = json.loads(record["code"]).get("code_version")
        if code != hop.code_version:
            yield f"its code changed from version {code} to {hop.code_version}"
        before, now = json.loads(record["settings"]), dict(hop.settings(self.project))
        # Who is asked says more than how.
        for name in sorted(now, key=lambda name: (name not in ("explainer", "simulator"), name)):
            had = before.get(name)
            if had != now[name] and not (isinstance(had, list) and set(now[name]) <= set(had)):
                yield causes.setting(name, had, now[name])

    def _alone(self, table: str, layer: int | None, recomputed: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
        """What differs for neurons that were recomputed alone."""
        for neuron, record in sorted(recomputed.items()):
            for cause in self._choices(HOPS[table], record):
                yield f"neuron {layer}:{neuron} was recomputed, and since then {cause}"

    def _late(self, table: str, layer: int | None, record: Mapping[str, Any]) -> Iterator[str]:
        """Neurons whose parent was recomputed alone after this table's rows of them, with another outcome."""
        own = self.records.recomputed(table, layer)
        for parent in (*HOPS[table].inputs, *HOPS[table].more_inputs(self.project)):
            for neuron, row in sorted(self.records.recomputed(parent, layer).items()):
                later = row["finished_at"] > own.get(neuron, record)["finished_at"]
                if later and _differs(record, parent, self.records, layer):
                    yield f"{parent} of neuron {layer}:{neuron} was recomputed"


def _differs(record: Mapping[str, Any], parent: str, records: _Records, layer: int | None) -> bool:
    """Whether a parent's rows, neurons recomputed alone included, are other than those that were read."""
    read = json.loads(record["inputs"]).get(parent, {}).get("content_hash")
    return read not in list(records.contents(parent, layer))[1:]


def _outside(table: str, layer: int | None, outside: Outside) -> dict[str, str]:
    if table == "sequences":
        return {"corpus": outside.corpus, "tokenizer": outside.tokenizer}
    if table == "subject_layers" and layer is not None:
        return {"weights": outside.weights[layer]}
    if table == "vocabulary":
        return {"tokenizer": outside.tokenizer}
    if table in ("connections", "ablations"):
        return {"checkpoint": outside.checkpoint}
    return {}


def of_neurons(lake: Lake, project: Project, outside: Outside, *, layer: int) -> pl.DataFrame:
    """The state of every neuron of one layer, from its statistics to its scores: `neuron`, `status`, `cause`, `recomputed`.

    A neuron is stale if its layer is, or if it alone was recomputed halfway or under other choices; failed if an answer
    about it is missing that may come tomorrow; missing if nothing was ever said of it.
    """
    comparison = _Comparison(_Records(lake), project, outside)
    for table in looked_at(project):
        comparison.look(table, layer if TABLES[table].by_layer else None)
    everyone, some, alone = comparison.of_neurons(layer)
    reasons = [
        lake.scan(name, layer=layer)
        .filter(pl.col("missing_because").is_in(WORTH_ASKING_AGAIN))
        .group_by("neuron", "missing_because")
        .agg(pl.len())
        .collect()
        for name in ("explanations", "simulations", "judgements", "ablations")
        if name in looked_at(project)
    ]
    unanswered: dict[int, str] = {}
    for neuron, reason, count in pl.concat(reasons).sort("neuron", "missing_because").iter_rows():
        unanswered.setdefault(neuron, f"{count} {UNANSWERED} ({reason})")
    explained = set(lake.scan("explanations", layer=layer).select(pl.col("neuron").unique()).collect()["neuron"])

    def state(neuron: int) -> tuple[int, str, str, bool]:
        if neuron not in explained:
            return neuron, "missing", everyone, False
        if cause := some.get(neuron) or everyone:
            return neuron, "stale", cause, neuron in alone
        if neuron in unanswered:
            return neuron, "failed", unanswered[neuron], neuron in alone
        return neuron, "fresh", "", neuron in alone

    schema = {"neuron": pl.Int32, "status": pl.String, "cause": pl.String, "recomputed": pl.Boolean}
    return pl.DataFrame([state(neuron) for neuron in range(project.n_neurons[layer])], schema=schema, orient="row")


def summary(found: Sequence[State]) -> pl.DataFrame:
    """The states as a table, for people and for `--json`."""
    return pl.DataFrame(
        [(s.table, s.layer, s.status, s.cause, list(s.recomputed), s.root) for s in found],
        schema={
            "table": pl.String,
            "layer": pl.Int32,
            "status": pl.String,
            "cause": pl.String,
            "recomputed": pl.List(pl.Int32),
            "root": pl.String,
        },
        orient="row",
    )
