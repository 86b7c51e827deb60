"""The assets `common_simulations` and `common_scores`: imported explanations, simulated and scored by us.

Neither needs a subject model, a corpus or an accelerator: what is simulated are the records that came with an import. A
layer that is made from the same rows, settings and code as last time is left as it is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import dagster as dg
import polars as pl
from pydantic import Field

from assets.pieces import pieces
from assets.spec import described
from assets.step import add_record
from pipeline import openai_import, rescoring
from pipeline import simulations as played_by_model
from pipeline.ports import Lake, LanguageModel, Progress, Usage
from pipeline.provenance import frame_hash, step_key
from pipeline.scores import COVERAGE_LIMIT, FORMULA_VERSION, RESAMPLES
from pipeline.simulations import Way
from pipeline.tables import IN_PASSING, TABLES

CODE_VERSION = {"common_simulations": "1", "common_scores": f"1.{FORMULA_VERSION}"}
SOURCES = ("imported_explanations", "imported_records")


@dataclass(frozen=True)
class Rescoring:
    """What the rows depend on besides what was imported."""

    seed: int
    simulator: str | None = None
    simulation: Way = "json"


class Which(dg.Config):
    """Of which layers and neurons; of all that were imported unless given."""

    layers: list[int] = Field(default_factory=list)
    neurons: list[str] = Field(default_factory=list, description="such as 5:131")


@dataclass
class Made:
    """What a run of one of these assets came to."""

    rows: int = 0
    layers: list[int] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)
    left_out: int = 0
    """Explanations without a record to simulate them on, or simulations of a text that the explainer was or may have been shown."""
    missing: int = 0
    usage: Usage = field(default_factory=Usage)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for `--json`."""
        return asdict(self)


@dataclass
class _Slice:
    """One layer of one of the two tables being made, or some neurons of it: its inputs by content, and its record."""

    lake: Lake
    table: str
    layer: int
    neurons: Sequence[int] | None
    settings: Mapping[str, Any]
    run_id: str
    code: Mapping[str, Any]
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def read(self, table: str) -> pl.DataFrame:
        version = self.lake.version(table)
        rows = self.lake.read(table, layer=self.layer, neurons=self.neurons, version=version)
        self.inputs[table] = {"content_hash": frame_hash(rows, key=TABLES[table].key), "version": version}
        return rows

    @property
    def key(self) -> str:
        hashes = {name: one["content_hash"] for name, one in self.inputs.items()}
        return step_key(asset=self.table, code_version=CODE_VERSION[self.table], settings=self.settings, inputs=hashes)

    def is_fresh(self) -> bool:
        """Whether the last write was of the whole layer, from the same, and no answer is missing that could come now."""
        made = self.lake.scan("materializations").filter(
            (pl.col("table") == self.table) & (pl.col("layer") == self.layer)
        )
        last = made.sort("finished_at").select("step_key", "neurons").tail(1).collect()
        if self.neurons is not None or last.rows() != [(self.key, None)]:
            return False
        again = self.lake.scan(self.table, layer=self.layer).filter(pl.col("missing_because").is_in(IN_PASSING))
        return again.select(pl.len()).collect().item() == 0

    def write(self, rows: pl.DataFrame, usage: Usage) -> None:
        table = TABLES[self.table]
        rows = table.conform(rows.with_columns(pl.lit(self.run_id).alias("run_id")))
        content = frame_hash(rows, key=table.key)
        record: dict[str, Any] = {
            "commit_uuid": str(uuid4()), "run_id": self.run_id, "table": self.table, "layer": self.layer,
            "neurons": self.neurons, "step_key": self.key, "content_hash": content, "rows": len(rows),
            "inputs": json.dumps(self.inputs, sort_keys=True), "settings": json.dumps(dict(self.settings), sort_keys=True),
            "code": json.dumps({**self.code, "code_version": CODE_VERSION[self.table]}, sort_keys=True),
            "environment": "{}", "usage": json.dumps(asdict(usage), sort_keys=True, default=dict), "status": "done",
            "error": None,
        }  # fmt: skip
        commit = self.lake.replace(
            self.table, rows, layer=self.layer, neurons=self.neurons, record=record, commit_uuid=record["commit_uuid"],
            allow_empty=True,
        )  # fmt: skip
        times = {"started_at": self.started, "finished_at": datetime.now(UTC)}
        add_record(self.lake, {**record, "version": commit.version, **times})


def simulate(
    lake: Lake,
    language: LanguageModel,
    progress: Progress,
    chosen: Rescoring,
    which: Which,
    *,
    run_id: str,
    code: Mapping[str, Any],
) -> Made:
    """Simulate imported explanations on the records of their source that the explainer was not shown.

    Raises:
        dagster.Failure: there is no simulator, or nothing was imported that can be simulated.
    """
    if chosen.simulator is None:
        raise dg.Failure("no language model is there to simulate; name one with --simulator", allow_retries=False)
    settings = {
        "simulator": chosen.simulator, "prompt": played_by_model.PROMPT_HASHES[chosen.simulation], "seed": chosen.seed,
        "parser": played_by_model.parser_version(chosen.simulation),
    }  # fmt: skip
    made, slices, way = Made(), _slices(lake, which), chosen.simulation
    for done, (layer, neurons) in enumerate(slices):
        progress("simulate imports", done, len(slices), f"layer {layer}")
        step = _Slice(lake, "common_simulations", layer, neurons, settings, run_id, code)
        explanations, records = (step.read(name) for name in SOURCES)
        if step.is_fresh():
            made.fresh.append(layer)
            continue
        chosen_records = rescoring.to_score(records, explanations)
        texts = _texts(lake, chosen_records)
        parts, usage = [TABLES["common_simulations"].empty().drop("run_id")], Usage()
        for source in explanations.get_column("source").unique().sort():
            said = explanations.filter((pl.col("source") == source) & pl.col("text").is_not_null())
            shown = rescoring.exemplars(chosen_records.filter(pl.col("source") == source), texts)
            for some, tables in pieces(said, {"exemplars": shown}):
                these = tables["exemplars"]
                asked = rescoring.requests(some, these, texts, model=chosen.simulator, seed=chosen.seed, way=way)
                replies, paid = language.answer([request for _, request in asked], run_id=run_id)
                played = rescoring.simulations(
                    asked, replies, some, these, source=source, model=chosen.simulator, way=way
                )
                parts.append(played.select(parts[0].columns))
                usage += paid
                made.left_out += some.join(played, on="explanation_id", how="anti").height
        rows = pl.concat(parts)
        step.write(rows, usage)
        made.layers += [layer] if layer not in made.layers else []
        made.rows += len(rows)
        made.missing += rows.get_column("expected").null_count()
        made.usage += usage
    progress("simulate imports", len(slices), len(slices))
    if not made.rows and not made.fresh:
        raise dg.Failure(
            "none of what was imported can be simulated: only an import of the form `openai` tells by its order which "
            "records the explainer was not shown, and it must hold explanations and records of the same neurons. Others: "
            "`neuronledger import words`, then `run --human-explanations`",
            allow_retries=False,
        )
    return made


def score(
    lake: Lake, progress: Progress, chosen: Rescoring, which: Which, *, run_id: str, code: Mapping[str, Any]
) -> Made:
    """Score every simulation of an imported explanation by our formulas: theirs and ours.

    Raises:
        dagster.Failure: nothing was imported.
    """
    settings: dict[str, Any] = {"seed": chosen.seed, "resamples": RESAMPLES, "coverage_limit": COVERAGE_LIMIT}
    # The other forms do not say what an explainer was shown; delphi draws shown and scored windows from one pool.
    told = lake.read("imports").filter(pl.col("form") == openai_import.FORM).get_column("source").unique().to_list()
    settings["sources"] = sorted(told)
    made, slices = Made(), _slices(lake, which)
    for done, (layer, neurons) in enumerate(slices):
        progress("score imports", done, len(slices), f"layer {layer}")
        step = _Slice(lake, "common_scores", layer, neurons, settings, run_id, code)
        explanations, records = (step.read(name) for name in SOURCES)
        imported, ours = step.read("imported_simulations"), step.read("common_simulations")
        if step.is_fresh():
            made.fresh.append(layer)
            continue
        fair = rescoring.fair(imported.filter(pl.col("source").is_in(told)), records)
        rows = rescoring.common_scores(explanations, fair, ours, seed=chosen.seed)
        step.write(rows, Usage())
        made.layers += [layer] if layer not in made.layers else []
        made.rows += len(rows)
        made.left_out += len(imported) - len(fair)
        made.missing += rows.get_column("value").null_count()
    progress("score imports", len(slices), len(slices))
    return made


def _slices(lake: Lake, which: Which) -> list[tuple[int, list[int] | None]]:
    """The layers that explanations were imported of; or each neuron that is wanted, which has a record of its own."""
    found = lake.scan("imported_explanations").select("layer").unique().collect().get_column("layer").sort().to_list()
    if not found:
        raise dg.Failure("no explanations were imported; see `neuronledger import --help`", allow_retries=False)
    wanted: list[tuple[int, list[int] | None]] = [(layer, None) for layer in (which.layers or found)]
    if which.neurons:
        pairs = {(int(layer), int(neuron)) for layer, _, neuron in (name.partition(":") for name in which.neurons)}
        wanted = [(layer, [neuron]) for layer, neuron in sorted(pairs)]
    if strangers := sorted({layer for layer, _ in wanted} - set(found)):
        raise dg.Failure(f"no explanations were imported of layers {strangers}; there are {found}", allow_retries=False)
    return wanted


def _texts(lake: Lake, records: pl.DataFrame) -> dict[str, list[str]]:
    """The tokens of the records' sequences."""
    wanted = records.get_column("sequence_id").unique()
    rows = lake.scan("imported_sequences").filter(pl.col("sequence_id").is_in(wanted.implode()))
    return dict(rows.select("sequence_id", "tokens").collect().iter_rows())


def define(chosen: Rescoring, code: Mapping[str, Any]) -> list[dg.AssetsDefinition]:
    """The two assets."""

    @dg.asset(
        group_name="imports",
        code_version=CODE_VERSION["common_simulations"],
        pool="language",
        **described("common_simulations"),
    )
    def common_simulations(
        context: dg.AssetExecutionContext,
        config: Which,
        lake: dg.ResourceParam[Lake],
        language: dg.ResourceParam[LanguageModel],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult:
        made = simulate(lake, language, progress, chosen, config, run_id=context.run.run_id, code=code)
        return _result(made)

    @dg.asset(
        group_name="imports",
        code_version=CODE_VERSION["common_scores"],
        deps=["common_simulations"],
        **described("common_scores"),
    )
    def common_scores(
        context: dg.AssetExecutionContext,
        config: Which,
        lake: dg.ResourceParam[Lake],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult:
        made = score(lake, progress, chosen, config, run_id=context.run.run_id, code=code)
        return _result(made)

    return [common_simulations, common_scores]


def _result(made: Made) -> dg.MaterializeResult:
    numbers = {
        "data/rows": made.rows,
        "data/missing": made.missing,
        "data/left_out": made.left_out,
        "data/layers": len(made.layers),
        "data/layers_fresh": len(made.fresh),
        "llm/requests_sent": made.usage.requests_sent,
        "llm/requests_kept": made.usage.requests_kept,
    }
    return dg.MaterializeResult(value=made.as_dict(), metadata=numbers)
