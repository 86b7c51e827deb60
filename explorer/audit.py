"""An audit of a lake: every check of `pipeline.audit`, from the tables, the files, and what is at hand of the outside."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from assets.freshness import WORTH_ASKING_AGAIN, State
from assets.project import layer_key
from assets.step import DATA_VERSION_TAG, data_version
from explorer import originals, verify
from explorer.replay import REPLAYED, Records, Replayed, replay
from explorer.verify import DIFFERS, NOT_CHECKED, Link, Outside
from pipeline.audit import CHECKS, Audit, Check
from pipeline.errors import LakeError
from pipeline.provenance import frame_hash
from pipeline.scorers import ABLATION, ASKED
from pipeline.tables import OF_IMPORTS, TABLES, Table
from resources.delta import DeltaLake, collect
from resources.integrity import integrity

Say = Callable[[str], None]

SECRETS = re.compile(
    r"sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|[Bb]earer [A-Za-z0-9._-]{20,}"
)
"""What the keys of common providers look like."""
CORPUS_TEXT = {("sequences", "text"), ("sequences", "document_id"), ("explanations", "text")}
CORPUS_TEXT |= {("language_calls", "request"), ("language_calls", "reply")}
"""Columns that hold words of documents, in which an example of a key may stand."""


@dataclass(frozen=True)
class Scope:
    """What is looked at: all of a lake, or one neuron; and what is at hand besides it."""

    layer: int | None = None
    neuron: int | None = None
    outside: Outside = field(default_factory=Outside)
    states: Callable[[], Sequence[State]] | None = None
    """The state of every slice; None where model or corpus are not at hand."""
    instance: dg.DagsterInstance | None = None
    recompute: int = 3
    """Neurons of each layer whose activations are computed again."""
    seed: int = 0
    quick: bool = False
    """Only A1 to A10, A18, A19 and A20."""


class _Lake:
    """A lake being audited, with what several checks need."""

    def __init__(self, lake: DeltaLake, scope: Scope, say: Say) -> None:
        self.lake = lake
        self.scope = scope
        self.say = say
        self.records = Records(lake)
        captured = collect(lake.scan("neuron_statistics").select(pl.col("layer").unique().sort()))
        layers = captured.get_column("layer").to_list()
        self.layers = [layer for layer in layers if scope.layer in (None, layer)]

    def scan(self, table: str, layer: int) -> pl.LazyFrame:
        """The rows of a layer that are looked at."""
        neurons = None if self.scope.neuron is None else [self.scope.neuron]
        return self.lake.scan(table, layer=layer, neurons=neurons)


def audit(
    lake: DeltaLake,
    *,
    anchors: Sequence[str] = (),
    signers: Path | None = None,
    scope: Scope | None = None,
    say: Say = lambda _: None,
) -> Audit:
    """All checks that can be made with what is at hand. `anchors` are heads of the ledger that were noted elsewhere.

    `signers` is a file of those who may sign heads.

    Where bytes were changed, only they are told: rows that cannot be trusted prove nothing.
    """
    scope = scope or Scope()
    # Dagster's events are elsewhere: whoever rewrites the ledger must rewrite them too.
    noted = heads(scope.instance) if scope.instance is not None else []
    found, head = integrity(lake, anchors=[*anchors, *noted], signers=signers, progress=say)
    checks = {check.id: check for check in found}
    why = "bytes of the lake were changed; restore them first"
    if not any(check.findings for check in found):
        looked = None
        for makes, make in _CHECKS.items():
            try:
                looked = looked or _Lake(lake, scope, say)
                checks |= {check.id: check for check in make(looked)}
            except LakeError as error:
                checks |= {name: Check(name, findings=[f"the lake cannot be read: {error}"]) for name in makes}
        why = "it was left out (--quick)"
    return Audit(lake.uri, head, [checks.get(name) or Check(name, not_checked=why) for name in CHECKS])


def _content(on: _Lake) -> Iterator[Check]:
    """Each slice against the content hash of its record, neurons that were recomputed alone against theirs."""
    findings, slices = [], 0
    for (table, layer), _ in on.records.rows.group_by("table", "layer", maintain_order=True):
        whole = on.records.last(str(table), layer)
        if whole is None or table not in TABLES or (layer is not None and on.scope.layer not in (None, layer)):
            continue
        key, where = TABLES[str(table)].key, table if layer is None else f"{table} of layer {layer}"
        on.say(f"hashing the rows of {where}")
        alone = on.records.alone(str(table), layer) if layer is not None else []
        slices += 1
        rows = on.lake.read(str(table), layer=layer)
        if not alone:
            same = is_recorded(rows, TABLES[str(table)], whole)
        else:
            before = on.lake.read(str(table), layer=layer, version=whole["version"])
            others = ~pl.col("neuron").is_in(alone)
            same = is_recorded(before, TABLES[str(table)], whole) and frame_hash(
                before.filter(others), key=key
            ) == frame_hash(rows.filter(others), key=key)
        at = pl.col("layer").is_null() if layer is None else pl.col("layer") == layer
        made_by = set(on.records.rows.filter((pl.col("table") == table) & at).get_column("run_id"))
        for neuron in alone:
            record = on.records.last(str(table), layer, neuron)
            if record and not is_recorded(rows.filter(pl.col("neuron") == neuron), TABLES[str(table)], record):
                findings.append(f"the rows of {layer}:{neuron} in {table} are not those that were recorded")
        if not same:
            unfinished = set(rows.get_column("run_id").unique()) - made_by
            why = "they are of a write that was never finished; run `neuronledger run`" if unfinished else "they differ"
            findings.append(f"the rows of {where} are not those that were recorded: {why}")
    left_out = "language_calls, materializations and what imports brought, which have no record of their own (A3 and A4 cover them)"
    yield Check("A5", f"{slices:,} slices of tables", findings, not_checked=left_out)


def is_recorded(rows: pl.DataFrame, table: Table, record: Mapping[str, Any]) -> bool:
    """Whether rows have the content of a record, which may be older than columns that are null in all of them."""
    if frame_hash(rows, key=table.key) == record["content_hash"]:
        return True
    later = [
        name
        for name, column in table.columns.items()
        if column.added and rows.get_column(name).null_count() == len(rows)
    ]
    return bool(later) and frame_hash(rows, key=table.key, ignore=("run_id", *later)) == record["content_hash"]


def _references(on: _Lake) -> Iterator[Check]:
    """Every row against the rows that it names."""
    findings: list[str] = []
    looked = 0
    known = set(collect(on.lake.scan("sequences").select("sequence_id")).to_series())
    calls = set(collect(on.lake.scan("language_calls").select("request_id")).to_series())
    sites = set(collect(on.lake.scan("subject_layers").select("layer")).to_series())
    for layer in on.layers:
        on.say(f"following the references of layer {layer}")
        explanations = collect(
            on.scan("explanations", layer).select(
                "explanation_id", "request_id", "other_request_ids", "missing_because", "exemplar_ids"
            )
        )
        exemplars = collect(on.scan("exemplars", layer).select("exemplar_id", "sequence_id"))
        simulations = collect(
            on.scan("simulations", layer).select("explanation_id", "simulator", "exemplar_id", "request_ids", "missing_because")
        )  # fmt: skip
        judgements = collect(
            on.scan("judgements", layer).select("explanation_id", "request_id", "other_request_ids", "missing_because")
        )
        ablations = collect(
            on.scan("ablations", layer).select(
                "explanation_id", "simulator", "exemplar_id", "request_ids", "missing_because"
            )
        )
        scores = collect(on.scan("scores", layer).select("explanation_id", "simulator", "scorer", "value", "identity"))
        looked += len(scores)
        # An answer that failed in passing has no kept reply, and is asked for again.
        kept = ~pl.col("missing_because").is_in(WORTH_ASKING_AGAIN).fill_null(value=False)
        asked = explanations.filter(kept).get_column("request_id")
        others = explanations.get_column("other_request_ids").explode()
        played = simulations.filter(kept).get_column("request_ids").explode()
        judged = judgements.filter(kept).get_column("request_id").to_list()
        judged += judgements.filter(kept).get_column("other_request_ids").explode().drop_nulls().to_list()
        calibrated = ablations.get_column("request_ids").explode()
        valued = scores.filter(pl.col("value").is_not_null())
        of_judges, of_ablations = pl.col("scorer").is_in(list(ASKED)), pl.col("scorer") == ABLATION
        at = ["explanation_id", "simulator"]
        lost = {
            "scores of no explanation": scores.join(explanations, on="explanation_id", how="anti").height,
            "scores without a simulation": valued.filter(~of_judges).join(simulations, on=at, how="anti").height,
            "scores without a judgement": valued.filter(of_judges)
            .join(judgements, on="explanation_id", how="anti").height,
            "scores without an ablation": valued.filter(of_ablations).join(ablations, on=at, how="anti").height,
            "ablations of no simulation": ablations.join(simulations, on=[*at, "exemplar_id"], how="anti").height,
            "judgements of no explanation": judgements.join(explanations, on="explanation_id", how="anti").height,
            "simulations of no explanation": simulations.join(explanations, on="explanation_id", how="anti").height,
            "simulations on no exemplar": simulations.join(exemplars, on="exemplar_id", how="anti").height,
            "explanations of no exemplar": len(
                set(explanations.get_column("exemplar_ids").explode().drop_nulls()) - set(exemplars.get_column("exemplar_id"))
            ),
            "exemplars of no sequence": len(set(exemplars.get_column("sequence_id")) - known),
            "requests without a kept reply": len(
                {*asked.drop_nulls(), *others.drop_nulls(), *played.drop_nulls(), *calibrated.drop_nulls(), *judged} - calls
            ),
            "layers without a record of their weights": int(layer not in sites),
        }  # fmt: skip
        findings += [f"layer {layer}: {count:,} {what}" for what, count in lost.items() if count]
    yield Check("A7", f"{looked:,} scores", findings)


def _counts(on: _Lake) -> Iterator[Check]:
    """Every neuron has its rows, and each explanation its scores."""
    findings, looked = [], 0
    n_neurons = dict(collect(on.lake.scan("subject_layers").select("layer", "n_neurons")).iter_rows())
    for layer in on.layers:
        counted = collect(on.scan("neuron_statistics", layer).select(pl.col("neuron").n_unique())).item()
        expected = 1 if on.scope.neuron is not None else n_neurons.get(layer)
        looked += counted
        if counted != expected:
            findings.append(f"layer {layer} has {expected} neurons, and statistics of {counted}")
        sides = collect(on.scan("token_associations", layer).select("neuron", "polarity"))
        explanations = collect(on.scan("explanations", layer).select("neuron", "polarity", "method", "explanation_id"))
        scored = collect(on.scan("scores", layer).select("explanation_id").unique())
        if explanations.is_empty():
            continue
        of_method = explanations.filter(pl.col("method") == "token-lookup").select("neuron", "polarity")
        unexplained = sides.join(of_method, on=["neuron", "polarity"], how="anti").height
        unscored = explanations.join(scored, on="explanation_id", how="anti").height if len(scored) else 0
        if unexplained:
            findings.append(f"layer {layer}: {unexplained:,} neurons have neither an explanation nor a reason for none")
        if unscored:
            findings.append(f"layer {layer}: {unscored:,} explanations have neither a score nor a reason for none")
    yield Check("A8", f"{looked:,} neurons", findings)


def _keys(on: _Lake) -> Iterator[Check]:
    findings, total = [], 0
    for name, table in TABLES.items():
        on.say(f"counting the keys of {name}")
        # The key of a table with layers begins with the layer, so each can be counted by itself.
        layers = collect(on.lake.scan(name).select(pl.col("layer").unique())).to_series() if table.by_layer else [None]
        repeated = 0
        for layer in layers:
            counted = on.lake.scan(name, layer=layer).select(pl.len(), pl.struct(table.key).n_unique().alias("keys"))
            rows, keys = collect(counted).row(0)
            total, repeated = total + rows, repeated + rows - keys
        if repeated:
            findings.append(f"{repeated:,} rows of {name} repeat a key {table.key}")
    yield Check("A9", f"{total:,} rows of {len(TABLES)} tables", findings)


def _dagster(on: _Lake) -> Iterator[Check]:
    """The newest event of each slice against the content of its last finished write."""
    if on.scope.instance is None:
        yield Check("A10", not_checked="there is no Dagster instance at hand; the tables need none")
        return
    findings, slices = [], 0
    for (table, layer), _ in on.records.rows.group_by("table", "layer", maintain_order=True):
        whole = on.records.last(str(table), layer)
        if whole is None or table in OF_IMPORTS or (layer is not None and on.scope.layer not in (None, layer)):
            continue
        slices += 1
        where = str(table) if layer is None else f"{table} {layer_key(int(layer))}"
        known = newest(on.scope.instance, str(table), None if layer is None else layer_key(int(layer)))
        if known is None:
            findings.append(
                f"Dagster knows of no materialisation of {where}; `neuronledger doctor` rebuilds its history"
            )
        elif known not in (data_version(whole), whole["content_hash"]):
            findings.append(f"Dagster has another version of {where} than the tables; `neuronledger doctor` tells it")
    yield Check("A10", f"{slices:,} slices", findings)


def heads(instance: dg.DagsterInstance) -> list[str]:
    """The heads of the ledger that Dagster noted with the newest materialisations of each table, some old, some new."""
    found: dict[str, None] = {}
    for table in TABLES:
        events = instance.fetch_materializations(dg.AssetKey(table), limit=20).records
        for event in events:
            head = event.asset_materialization and event.asset_materialization.metadata.get("ledger/head")
            if head:
                found[str(head.value)] = None
    return list(found)


def newest(instance: dg.DagsterInstance, asset: str, partition: str | None) -> str | None:
    """The data version of the newest materialisation that Dagster knows of a slice."""
    partitions = None if partition is None else [partition]
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=partitions), limit=1
    ).records
    event = found[0].asset_materialization if found else None
    return (event.tags or {}).get(DATA_VERSION_TAG, "") if event else None


def _replay(on: _Lake) -> Iterator[Check]:
    """A12, A13 and A14: prompts, replies and scores."""
    if on.scope.quick:
        return
    found: dict[str, list[Replayed]] = {table: [] for table in REPLAYED}
    subject = on.scope.outside.subject
    for layer in on.layers:
        for table in REPLAYED:
            if table == "judgements" and on.records.last(table, layer, on.scope.neuron) is None:
                continue
            on.say(f"replaying {table} of layer {layer}")
            found[table].append(replay(on.lake, on.records, table, layer, on.scope.neuron, subject=subject))
    requests = set().union(*(one.requests for made in found.values() for one in made))
    yield _replayed("A12", found["exemplars"], f", {len(requests):,} requests")
    yield _replayed("A13", [*found["explanations"], *found["simulations"], *found["judgements"]])
    yield _replayed("A14", found["scores"])


def _replayed(name: str, found: Sequence[Replayed], more: str = "") -> Check:
    rows = sum(one.rows for one in found)
    findings = [f"{one.table} of layer {one.layer}: {one.said}" for one in found if one.outcome == "differs"]
    left_out = [f"{one.table} of layer {one.layer}: {one.said}" for one in found if one.outcome == "not replayed"]
    looked = f"{rows:,} rows{more}" if rows else ""
    return Check(name, looked, findings, not_checked="; ".join(left_out) or (None if rows else "there are none"))


def _documents(on: _Lake) -> Iterator[Check]:
    if on.scope.quick:
        return
    on.say("reading the corpus")
    neurons = None if on.scope.neuron is None else [on.scope.neuron]
    yield from _linked("A11", [verify.documents(on.lake, on.records, on.scope.layer or 0, neurons, on.scope.outside)])


def _model(on: _Lake) -> Iterator[Check]:
    """A15 and A16: what the model does again, and its files."""
    if on.scope.quick:
        return
    made, files = [], []
    for layer in on.layers:
        on.say(f"computing activations of layer {layer} again")
        known = collect(on.scan("neuron_statistics", layer).select("neuron").sort("neuron")).to_series().to_list()
        drawn = verify.drawn_neurons(known, on.scope.recompute, seed=on.scope.seed, layer=layer)
        files.append(verify.weights(on.lake, on.records, layer, on.scope.outside))
        if drawn:
            made.append(verify.activations(on.lake, on.records, layer, drawn, on.scope.outside))
            if on.records.last("ablations", layer, on.scope.neuron) is not None:
                made.append(verify.ablations(on.lake, on.records, layer, drawn, on.scope.outside))
    left = f"the activations of all but {on.scope.recompute} neurons of each layer, drawn by seed {on.scope.seed}; and that no "
    left += "stronger window was left out (a run of the layer tells that)"
    yield from _linked("A15", made, left_out=left)
    yield from _linked("A16", files)


def _linked(name: str, links: Sequence[Link], *, left_out: str | None = None, of: str = "layers") -> Iterator[Check]:
    done = [link for link in links if link.outcome != NOT_CHECKED]
    missing = sorted({link.said for link in links if link.outcome == NOT_CHECKED})
    findings = [f"{link.at}: {link.said}" for link in links if link.outcome == DIFFERS]
    looked = done[0].said if len(done) == 1 else f"{len(done):,} {of}"
    not_checked = "; ".join(missing) or (left_out if done else "there are none")
    yield Check(name, looked if done else "", findings, not_checked=not_checked)


def _stale(on: _Lake) -> Iterator[Check]:
    if on.scope.quick:
        return
    if on.scope.states is None:
        yield Check("A17", not_checked=on.scope.outside.why.get("subject", "model and corpus are not both at hand"))
        return
    on.say("looking for what is stale")
    states = [state for state in on.scope.states() if on.scope.layer in (None, state.layer) or state.layer is None]
    findings = [
        f"{state.table}{'' if state.layer is None else f' of layer {state.layer}'} is {state.status}: {state.cause}"
        for state in states
        if state.status in ("stale", "failed")
    ]
    missing = sum(state.status == "missing" for state in states)
    notes = [f"{missing:,} slices were never made"] if missing else []
    yield Check("A17", f"{len(states):,} slices", findings, notes=notes)


def _code(on: _Lake) -> Iterator[Check]:
    """Whether each write says which code made it. A package without its repository has a version and no commit."""
    findings: list[str] = []
    notes: list[str] = []
    seen: dict[tuple[Any, ...], list[str]] = {}
    for row in on.records.rows.iter_rows(named=True):
        code = json.loads(row["code"])
        kind = (code.get("package"), code.get("git_commit"), code.get("changed"))
        seen.setdefault(kind, []).append(row["table"])
    for (package, commit, changed), tables in seen.items():
        made = f"{len(tables):,} writes"
        if changed is True:
            findings.append(f"{made} were made by files that differ from commit {commit}")
        elif commit in (None, "unknown"):
            said = f"{made} were made by version {package} of the package, installed without its commit"
            (notes if package not in (None, "not installed", "unknown") else findings).append(said)
    yield Check("A18", f"{sum(len(tables) for tables in seen.values()):,} writes", findings, notes=notes)


def _served(on: _Lake) -> Iterator[Check]:
    """A provider names the dated model behind the name asked for (`gpt-4o-mini-2024-07-18`), which is no other."""
    calls = collect(
        on.lake.scan("language_calls").select("model", "model_served", "endpoint").drop_nulls("model_served")
    )
    other = calls.filter(~pl.col("model_served").str.starts_with(pl.col("model")))
    findings = [
        f"{count:,} answers of {endpoint} are by {served!r}, where {asked!r} was asked"
        for asked, served, endpoint, count in other.group_by("model", "model_served", "endpoint").len().sort("model").iter_rows()
    ]  # fmt: skip
    yield Check("A19", f"{len(calls):,} answers", findings)


def _secrets(on: _Lake) -> Iterator[Check]:
    """The secrets of this environment anywhere, and what looks like one anywhere but in words of documents."""
    own = [
        value
        for name, value in os.environ.items()
        if re.search(r"(KEY|TOKEN|SECRET|PASSWORD)$", name) and len(value) >= 12
    ]
    findings: list[str] = []
    notes: list[str] = []
    cells = 0
    for name, table in TABLES.items():
        on.say(f"looking for secrets in {name}")
        texts = [column for column, declared in table.columns.items() if declared.type == pl.String]
        looks = [pl.col(column).str.contains(SECRETS.pattern).sum().alias(f"looks {column}") for column in texts]
        holds = [
            pl.any_horizontal(*(pl.col(column).str.contains(value, literal=True) for value in own)).sum().alias(f"holds {column}")
            for column in texts if own
        ]  # fmt: skip
        counted = collect(on.lake.scan(name).select(pl.len(), *looks, *holds)).row(0, named=True)
        cells += counted["len"] * len(texts)
        for column in texts:
            if counted.get(f"holds {column}"):
                findings.append(
                    f"{counted[f'holds {column}']:,} rows of {name}.{column} hold a secret of this environment"
                )
            if count := counted[f"looks {column}"]:
                said = f"{count:,} rows of {name}.{column} hold what looks like a key"
                (notes if (name, column) in CORPUS_TEXT else findings).append(said)
    yield Check("A20", f"{cells:,} texts", findings, notes=notes)


def _originals(on: _Lake) -> Iterator[Check]:
    if on.scope.quick:
        return
    if on.scope.layer is not None:
        yield Check("A21", not_checked="it is about whole imports; `neuronledger verify --source NAME` checks one")
        return
    known = sorted(originals.sources(on.lake))
    links = [link for source in known for link in originals.links(on.lake, source, say=on.say)]
    yield from _linked("A21", links, of="imports")


_CHECKS: Mapping[tuple[str, ...], Callable[[_Lake], Iterator[Check]]] = {
    ("A5",): _content,
    ("A7",): _references,
    ("A8",): _counts,
    ("A9",): _keys,
    ("A10",): _dagster,
    ("A18",): _code,
    ("A19",): _served,
    ("A20",): _secrets,
    ("A11",): _documents,
    ("A12", "A13", "A14"): _replay,
    ("A15", "A16"): _model,
    ("A17",): _stale,
    ("A21",): _originals,
}
