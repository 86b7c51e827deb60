"""Replay: the same code on the same rows, without a write and without a question to anyone.

A step is made again as a run would make it, but its lake only reads, and its language model only knows what was kept.
What comes out is held against what is stored, to the bit. So whatever a step does, from prompts to scores, is replayed by
the step itself.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import dagster as dg
import polars as pl

from assets import ablations, exemplars, explanations, judgements, scores, simulations
from assets.freshness import HOPS, WORTH_ASKING_AGAIN
from assets.process import PROCESS_TAG
from assets.project import Choices, Project
from pipeline import human
from pipeline.baselines import METHODS
from pipeline.errors import NeuronLedgerError
from pipeline.human import Statement
from pipeline.languages import ENGLISH
from pipeline.ports import Commit, Lake, Reply, Request, SubjectModel, Usage
from pipeline.provenance import content_hash, frame_hash
from pipeline.records import read as records_of
from pipeline.revision import REVISION
from pipeline.scorers import tables
from pipeline.selection import Selection
from pipeline.simulations import PROMPT_HASHES
from pipeline.tables import TABLES
from resources import logprobs
from resources.delta import collect
from resources.language import sent
from resources.machines import ThisMachine

REPLAYED = {
    "exemplars": exemplars,
    "explanations": explanations,
    "simulations": simulations,
    "judgements": judgements,
    "scores": scores,
}
"""The tables that can be made again from the lake alone, with the modules of their assets."""

WITH_SUBJECT = {"ablations": ablations}
"""Those for which the subject has to run again."""

SAME = (
    "torch",
    "transformers",
    "device",
    "device_name",
    "cpu_capability",
    "attention",
    "float32_matmul_precision",
    "dtype",
)
"""What must be equal for the subject to give the same activations to the bit."""

UNKEPT = "not_requested"
"""The reason of an answer that was not kept, and is not asked for here."""


@dataclass(frozen=True)
class Replayed:
    """How one slice came out again: `equal`, `differs` or `not replayed`, and in words where or why."""

    table: str
    layer: int
    neurons: tuple[int, ...]
    """The neurons that differ."""
    rows: int
    outcome: str
    said: str = ""
    requests: frozenset[str] = frozenset()
    """Ids of the requests that came out again and have a kept reply."""


@dataclass
class Records:
    """The finished writes of a lake."""

    lake: Lake

    @cached_property
    def rows(self) -> pl.DataFrame:
        """Rows of `materializations` that wrote something, oldest version first."""
        return (
            records_of(self.lake).filter((pl.col("status") == "done") & pl.col("version").is_not_null()).sort("version")
        )

    def last(self, table: str, layer: int | None, neuron: int | None = None) -> dict[str, Any] | None:
        """The write that the rows of a slice are from; of one neuron, if it was recomputed alone, that."""
        at = pl.col("layer").is_null() if layer is None else pl.col("layer") == layer
        whose = pl.col("neurons").is_null()
        if neuron is not None:
            whose |= pl.col("neurons").list.contains(neuron)
        found = self.rows.filter((pl.col("table") == table) & at & whose)
        return None if found.is_empty() else found.row(-1, named=True)

    def alone(self, table: str, layer: int) -> list[int]:
        """The neurons of a layer that were recomputed alone since the whole was made."""
        whole = self.last(table, layer)
        since = -1 if whole is None else whole["version"]
        found = self.rows.filter(
            (pl.col("table") == table) & (pl.col("layer") == layer)
            & (pl.col("version") > since) & pl.col("neurons").is_not_null()
        )  # fmt: skip
        return sorted(set(found.get_column("neurons").explode()))


class _ReadOnly(Lake):
    """A lake that keeps what is written for whoever asks, and changes nothing. Tables of `versions` are read as of then.

    It knows of no earlier writes: a step would put back what one of them made, and nothing would be computed.
    """

    def __init__(self, lake: Lake, versions: Mapping[str, int]) -> None:
        self.uri = lake.uri
        self.written: pl.DataFrame | None = None
        self._lake = lake
        self._versions = versions

    def scan(self, table: str, *, version: int | None = None, **at: Any) -> pl.LazyFrame:
        if table == "materializations":
            return TABLES[table].empty().lazy()
        return self._lake.scan(table, version=self._versions.get(table, version), **at)

    def read(self, table: str, *, version: int | None = None, **at: Any) -> pl.DataFrame:
        return self._lake.read(table, version=self._versions.get(table, version), **at)

    def rows(self, table: str, *, layer: int | None = None) -> int:
        return self._lake.rows(table, layer=layer)

    def slices(self, table: str) -> Mapping[int | None, tuple[int, frozenset[str | None]]]:
        return self._lake.slices(table)

    def run_ids(self, table: str, *, layer: int | None = None) -> set[str]:
        return self._lake.run_ids(table, layer=layer)

    def version(self, table: str) -> int | None:
        return self._versions.get(table, self._lake.version(table))

    def replace(self, table: str, frame: pl.DataFrame, *, commit_uuid: str | None = None, **_: Any) -> Commit:
        self.written = frame
        return Commit(table=table, version=0, commit_uuid=commit_uuid or "", rows=len(frame))

    def add(self, table: str, frame: pl.DataFrame, *, record: Mapping[str, Any]) -> Commit | None:  # noqa: ARG002
        return None


@dataclass
class Kept:
    """A language model that knows the kept replies and no others; its requests have the ids that they were sent with."""

    lake: Lake
    asked: list[str] = field(default_factory=list)
    """Ids of the requests that were answered here."""

    @cached_property
    def _calls(self) -> dict[str, Reply]:
        rows = self.lake.scan("language_calls").select(
            "request_id", "reply", "missing_because", "model_served", "logprobs"
        )
        return {
            request_id: Reply(request_id, text, missing_because, served, likely=logprobs.unpacked(likely))
            for request_id, text, missing_because, served, likely in rows.collect().iter_rows()
        }

    @cached_property
    def _endpoints(self) -> list[str]:
        """Each that was asked, since it is part of a request's identity."""
        return (
            collect(self.lake.scan("language_calls").select(pl.col("endpoint").unique().sort())).to_series().to_list()
        )

    def answer(self, requests: Sequence[Request], *, run_id: str) -> tuple[Sequence[Reply], Usage]:  # noqa: ARG002
        return [self._reply(request) for request in requests], Usage()

    def _reply(self, request: Request) -> Reply:
        for endpoint in self._endpoints:
            if (request_id := content_hash(sent(request, endpoint=endpoint))) in self._calls:
                self.asked.append(request_id)
                return self._calls[request_id]
        return Reply("unknown", text=None, missing_because=UNKEPT)


def project_of(lake: Lake) -> Project:
    """The project of a lake as far as the tables know it, with no choices of its own."""
    known = lake.read("subject_layers").select("layer", "n_neurons")
    n_neurons = dict(known.iter_rows())
    choices = Choices(windows=1, length=1, seed=0, explainer=None, simulator=None)
    return Project(tuple(n_neurons.get(layer, 0) for layer in range(max(n_neurons, default=-1) + 1)), choices, code={})


def as_recorded(
    records: Records, project: Project, record: Mapping[str, Any], statements: Sequence[Statement] = ()
) -> Project:
    """The project with the choices that a write was made with, as far as they can be told from the records.

    `statements` are what people wrote, which a record names by its hash only.
    """
    made = json.loads(record["settings"])
    chosen: dict[str, Any] = {name: made[name] for name in ("seed", "explainer", "simulator") if name in made}
    if windows := records.last("sequences", None):
        chosen["length"] = json.loads(windows["settings"]).get("length", project.choices.length)
    if record["table"] == "explanations":
        asked = tuple(name for name in made["methods"] if name not in (*METHODS, human.METHOD))
        chosen["methods"] = asked or project.choices.methods
        if human.METHOD in made:
            chosen["human"] = tuple(statements)
        chosen["language"] = made.get("language", ENGLISH)
        chosen["select"] = Selection(**made["select"]) if "select" in made else Selection()
    if "scorers" in made:
        chosen["scorers"] = tuple(made["scorers"])
        # The record of scores does not say whom their scorers asked; that of what they are made from does.
        neuron = record["neurons"][0] if record["neurons"] else None
        behind = [records.last(table, record["layer"], neuron) for table in tables(chosen["scorers"])]
        named = [json.loads(one["settings"]).get("simulator") for one in behind if one is not None]
        chosen["simulator"] = next((name for name in named if name), None)
    played = made.get("prompt" if record["table"] in ("simulations", "ablations") else "prompt of simulator")
    if made.get("probabilities"):
        chosen["simulation"] = "json-logprobs"
    if played is not None:
        chosen["simulation"] = next(
            (way for way, prompt in PROMPT_HASHES.items() if prompt == played), project.choices.simulation
        )
    return replace(project, choices=replace(project.choices, **chosen))


def replay(
    lake: Lake,
    records: Records,
    table: str,
    layer: int,
    neuron: int | None = None,
    *,
    subject: SubjectModel | None = None,
) -> Replayed:
    """Make one slice of a table again, from the rows that the lake has now, and compare.

    `WITH_SUBJECT` needs `subject`, and so do explanations that were tested on sentences written for them.
    If these give something else, but those that the slice was made from give the same, it is out of date and not broken.
    """
    record = records.last(table, layer, neuron)
    if record is None:
        return Replayed(table, layer, (), 0, "not replayed", "it was never made, or its record is gone")
    project = as_recorded(records, project_of(lake), record, _statements(lake))
    if why := _other(table, project, record) or _unheard(lake, table, project, record, subject):
        return Replayed(table, layer, (), 0, "not replayed", why)
    alone = records.alone(table, layer) if neuron is None else []
    stored = lake.read(table, layer=layer, neurons=None if neuron is None else [neuron])
    stored = stored.filter(~pl.col("neuron").is_in(alone))
    read = {
        name: entry["version"] for name, entry in json.loads(record["inputs"]).items() if entry["version"] is not None
    }
    # Which neurons of a layer were asked about can only be told from all of them; one that is made alone always is.
    drawn = neuron is not None and record["neurons"] is None and "select" in json.loads(record["settings"])
    at = {"layer": layer, "neuron": None if drawn else neuron}
    # What was drawn from other rows of the same table was drawn from those before the write.
    before = {table: max(record["version"] - 1, 0)} if at["neuron"] is not None else {}
    differs: list[str] = []
    neurons: tuple[int, ...] = ()
    for versions in (before, before | read):
        try:
            language = Kept(lake)
            made = _make(_ReadOnly(lake, versions), language, subject, project, table, at)
            made = made.filter(pl.col("neuron") == neuron) if drawn else made
        except (NeuronLedgerError, dg.Failure) as error:
            said = str(error.description if isinstance(error, dg.Failure) else error)
            return Replayed(table, layer, (), len(stored), "differs", f"it cannot be made again: {said}")
        found, said = compared(table, stored, made.filter(~pl.col("neuron").is_in(alone)))
        if not said:
            break
        neurons = found
        differs.append(said)
    if differs:
        # What it was made from gave it, and gives something else now.
        outdated = (
            "what it was made from was made anew since, and now gives something else: " if len(differs) == 1 else ""
        )
        return Replayed(table, layer, neurons, len(stored), "differs", outdated + differs[0])
    others = [replay(lake, records, table, layer, one, subject=subject) for one in alone]
    if wrong := [one for one in others if one.outcome != "equal"]:
        return wrong[0]
    requests = frozenset(language.asked).union(*(one.requests for one in others))
    return Replayed(table, layer, (), len(stored) + sum(one.rows for one in others), "equal", requests=requests)


def _statements(lake: Lake) -> list[Statement]:
    """What people wrote of neurons, as far as it stands in the lake."""
    rows = lake.scan("explanations").filter(pl.col("method") == human.METHOD)
    found = collect(rows.select("layer", "neuron", "polarity", "text", "explainer"))
    return [Statement(*row) for row in found.iter_rows()]


def _other(table: str, project: Project, record: Mapping[str, Any]) -> str:
    """Why this code cannot make what that code made; nothing if it can."""
    hop = HOPS[table]
    code = json.loads(record["code"]).get("code_version")
    if code != hop.code_version:
        return f"it was made by version {code} of the code of `{table}`, and this is {hop.code_version}; use the package that made it"
    made, again = json.loads(record["settings"]), json.loads(json.dumps(dict(hop.settings(project))))
    wrong = sorted(name for name in made.keys() | again.keys() if made.get(name) != again.get(name))
    if wrong:
        return (
            f"it was made with other {', '.join(wrong)} than there are here; use the flags and the package that made it"
        )
    return ""


def _unheard(lake: Lake, table: str, project: Project, record: Mapping[str, Any], subject: SubjectModel | None) -> str:
    """Why the subject cannot read again the sentences that were written for it; nothing if it can, or if there are none."""
    if table != "explanations" or REVISION not in project.choices.methods:
        return ""
    said = f"the subject has to read the sentences of `{REVISION}` again, and "
    if subject is None:
        return said + "it is not at hand"
    layer = record["layer"]
    if subject.fingerprints()[layer] not in lake.read("subject_layers", layer=layer).get_column("fingerprint"):
        return said + "the model at hand has other weights"
    made, now = json.loads(record["environment"]).get("subject"), subject.provenance()
    if other := [name for name in SAME if made is not None and made.get(name) != now.get(name)]:
        return f"{said}{', '.join(other)} differ from when it did: the last digits may too, and with them the requests"
    return ""


def _make(  # noqa: PLR0917 (all that a step is given)
    lake: "_ReadOnly",
    language: Kept,
    subject: SubjectModel | None,
    project: Project,
    table: str,
    at: Mapping[str, Any],
) -> pl.DataFrame:
    """What the step of a table writes."""
    context: Any = SimpleNamespace(run=SimpleNamespace(run_id="replay", tags={PROCESS_TAG: ""}))
    given: dict[str, Any] = {"context": context, "lake": lake, "language": language, "subject": subject}
    given |= {"project": project, "machines": ThisMachine(), **at}
    make = {**REPLAYED, **WITH_SUBJECT}[table].make
    make(**{name: given[name] for name in inspect.signature(make).parameters})
    if lake.written is None:
        raise NeuronLedgerError(f"the step `{table}` wrote nothing")
    return lake.written


def compared(table: str, stored: pl.DataFrame, made: pl.DataFrame) -> tuple[tuple[int, ...], str]:
    """The neurons of which rows differ, and in words what does; an empty text if nothing does.

    Answers that failed in passing were not kept, so what was made of them is left out on both sides.
    """
    key = list(TABLES[table].key)
    if frame_hash(stored, key=key) == frame_hash(made, key=key):
        return (), ""
    if "missing_because" in stored.columns and table != "scores":
        stored = stored.filter(~pl.col("missing_because").is_in(WORTH_ASKING_AGAIN).fill_null(value=False))
        made = made.filter(~pl.col("missing_because").is_in([UNKEPT, *WORTH_ASKING_AGAIN]).fill_null(value=False))
    columns = [name for name in TABLES[table].columns if name not in ("run_id", *key)]
    gone, new = stored.join(made, on=key, how="anti"), made.join(stored, on=key, how="anti")
    if len(gone) or len(new):
        neurons = tuple(sorted({*gone.get_column("neuron"), *new.get_column("neuron")}))
        return (
            neurons,
            f"{len(gone):,} stored rows do not come out again, and {len(new):,} others do ({_named(stored, neurons)})",
        )
    both = stored.select(*key, *columns).join(made.select(*key, *columns), on=key, how="inner", suffix=" again")
    for name in columns:
        wrong = both.filter(pl.col(name).ne_missing(pl.col(f"{name} again")))
        if len(wrong):
            neurons = tuple(sorted(set(wrong.get_column("neuron"))))
            first = wrong.row(0, named=True)
            shown = f"{_short(first[name])} is stored, {_short(first[f'{name} again'])} comes out"
            return neurons, f"`{name}` differs in {len(wrong):,} rows ({_named(stored, neurons)}): {shown}"
    return _bytes_differ(stored, made, key)


def _bytes_differ(stored: pl.DataFrame, made: pl.DataFrame, key: Sequence[str]) -> tuple[tuple[int, ...], str]:
    """The neurons whose rows are equal as numbers and not as bytes, as a zero is with another sign."""
    if frame_hash(stored, key=key) == frame_hash(made, key=key):
        return (), ""
    of_neuron = [
        {neuron: frame_hash(rows, key=key) for (neuron,), rows in frame.group_by("neuron")} for frame in (stored, made)
    ]  # fmt: skip
    neurons = tuple(sorted(one for one in of_neuron[0] if of_neuron[0][one] != of_neuron[1].get(one)))
    return neurons, f"rows of {len(neurons):,} neurons ({_named(stored, neurons)}) differ in the sign of a zero"


def _named(rows: pl.DataFrame, neurons: Sequence[int]) -> str:
    layer = rows.item(0, "layer") if len(rows) else "?"
    return ", ".join(f"{layer}:{neuron}" for neuron in neurons[:5]) + (", ..." if len(neurons) > 5 else "")


def _short(value: Any) -> str:
    text = f"{value!r}"
    return text if len(text) <= 60 else f"{text[:57]}..."
