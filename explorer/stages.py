"""One stage by itself: `run --stage simulations` and `run --stage scores`.

What was imported needs nothing but its own records, so that a lake with an import and nothing else is simulated and scored
without a subject model, a corpus or an accelerator. Tables of our own are made where all that they are made from is fresh.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import dagster as dg
import polars as pl
from rich.console import Console

from assets import rescoring
from assets.definitions import build, open_lake, open_language, open_project, open_subject, rescored
from assets.run import Outcome, Runner, failure
from explorer.command import FAILED, IN_PART, complain, diagnostics, layer_range, outside_of, same_subject
from explorer.neuron import parse
from explorer.terminal import TerminalProgress
from pipeline.errors import LakeError, SettingsError
from pipeline.ports import Lake
from pipeline.summary import MAIN
from resources import code
from resources.budget import Budget
from resources.instance import instance
from resources.language import OpenAICompatible
from resources.settings import Settings

ASSET = {"simulations": "common_simulations", "scores": "common_scores"}


def run(
    settings: Settings,
    stage: str,
    *,
    budget: Budget,
    layers: str | None = None,
    neurons: str | None = None,
    ours: bool = True,
) -> None:
    """Make one stage of all that is in the lake, or of imports alone unless `ours`; exit if a part could not be made.

    Raises:
        LakeError: there is nothing in the lake that the stage is made from.
    """
    lake = open_lake(settings)
    chosen = [parse(name.strip()) for name in neurons.split(",")] if neurons is not None else []
    has_imports, has_ours = (lake.rows(name) > 0 for name in ("imported_explanations", "explanations"))
    has_ours = has_ours and ours
    if not has_imports and not has_ours:
        raise LakeError(
            f"the lake {settings.lake_uri} holds no explanations; `neuronledger import` takes over those of others, and "
            "`neuronledger run` makes some"
        )
    if stage == "simulations" and not (settings.simulator or settings.explainer):
        raise SettingsError("--stage simulations needs a language model that simulates; name one with --simulator")
    outcome = Outcome()
    with TerminalProgress(diagnostics()) as progress, instance(settings) as opened:
        doors = _Doors(settings, lake, progress, opened, open_language(settings, lake, budget=budget))
        if has_imports:
            known = lake.scan("imported_explanations").select(pl.col("layer").max()).collect().item()
            wanted = [] if layers is None else layer_range(layers, known + 1)
            _said(stage, doors.imports(stage, layers=wanted, neurons=chosen))
        if has_ours:
            outcome = doors.ours(stage, layers=layers, neurons=chosen)
    for name in outcome.made:
        click.echo(f"made {name}")
    for name, why in outcome.failed.items():
        complain(f"{name}: {why}")
    if has_imports and stage == "scores":
        _medians(lake)
    if outcome.failed:
        sys.exit(IN_PART if outcome.made or has_imports else FAILED)


@dataclass(frozen=True)
class _Doors:
    """What a stage is made through."""

    settings: Settings
    lake: Lake
    progress: TerminalProgress
    instance: dg.DagsterInstance
    language: OpenAICompatible

    def imports(self, stage: str, *, layers: Sequence[int], neurons: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Make a stage of what was imported."""
        definitions = dg.Definitions(
            assets=rescoring.define(rescored(self.settings), code.code()),
            resources={"lake": self.lake, "language": self.language, "progress": self.progress},
            executor=dg.in_process_executor,
        )
        asset = ASSET[stage]
        config = {"layers": list(layers), "neurons": [f"{layer}:{neuron}" for layer, neuron in neurons]}
        result = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey(asset)],
            run_config={
                "ops": {asset: {"config": config}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            raise_on_error=False,
        )
        if not result.success:
            raise failure(result)
        found: dict[str, Any] = result.output_for_node(asset)
        return found

    def ours(self, stage: str, *, layers: str | None, neurons: Sequence[tuple[int, int]]) -> Outcome:
        """Make a stage of our own tables."""
        subject = open_subject(self.settings)
        project = open_project(self.settings, subject)
        wanted = layer_range(layers, len(project.n_neurons))
        same_subject(self.lake, project, self.settings)
        definitions = build(self.settings, progress=self.progress, language=self.language)
        runner = Runner(
            definitions, self.instance, self.lake, project, outside_of(self.settings, subject), self.progress.say,
            enough=lambda: self.language.budget.is_used_up,
        )  # fmt: skip
        return runner.recompute(neurons, hops=[stage]) if neurons else runner.only(stage, wanted)


def _said(stage: str, made: dict[str, Any]) -> None:
    """What became of the imports."""
    table = ASSET[stage]
    if made["layers"]:
        click.echo(f"{made['rows']:,} rows in the table `{table}`, layers {', '.join(map(str, made['layers']))}")
    if made["fresh"]:
        click.echo(f"`{table}` is fresh: nothing was made again of layers {', '.join(map(str, made['fresh']))}")
    if made["missing"]:
        click.echo(f"  {made['missing']:,} have no value; the column `missing_because` says why")
    if made["left_out"]:
        said = (
            "explanations have no record to be simulated on that their explainer was not shown"
            if stage == "simulations"
            else "simulations that came with them are left out: their explainer was shown the text, or may have been"
        )
        click.echo(f"  {made['left_out']:,} {said}")
    usage = made["usage"]
    if stage == "simulations":
        click.echo(
            f"  {usage['requests_sent']:,} requests sent, {usage['requests_kept']:,} answered from what was kept"
        )


def _medians(lake: Lake) -> None:
    """Our main score of each source beside its own, where it has one of the same formula."""
    at = ["source", "simulator"]
    ours = lake.scan("common_scores").filter(MAIN, pl.col("value").is_not_null())
    found = ours.group_by(at).agg(pl.len(), pl.col("value").median()).sort(at).collect()
    console = Console(highlight=False, width=160)
    for source, simulator, count, value in found.iter_rows():
        which = "its own simulations" if simulator == "unknown" else f"simulated by {simulator}"
        console.print(f"{source}, {which}: {count:,} explanations, median ev_correlation {value:.3f}", markup=False)
