"""The asset `ablations`: every simulation in the place of its neuron in the subject; only where that scorer is chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import polars as pl

from assets import simulations
from assets.pieces import pieces
from assets.project import Project, parse_key
from assets.spec import checks, described
from assets.step import Step, Written
from pipeline import ablations as replaced
from pipeline import baselines, scorers
from pipeline import simulations as played_by_model
from pipeline.best_of import calibrating
from pipeline.checks import check
from pipeline.ports import Answer, Lake, LanguageModel, Machines, Reply, SubjectModel, Usage
from pipeline.texts import display

CODE_VERSION = f"1.{replaced.FORMULA_VERSION}"
INPUTS = (
    "sequences", "activations", "neuron_statistics", "token_associations", "exemplars", "explanations", "simulations",
)  # fmt: skip
MAY_BE_EMPTY = ("exemplars", "simulations")


def settings(project: Project) -> dict[str, Any]:
    """The choices that these rows depend on: of the simulator that is asked about the calibrating texts."""
    return {"scorers": ["ablation"], **simulations.settings(project)}


@dataclass(frozen=True)
class Work:
    """What is the same for every neuron of a layer."""

    project: Project
    sequences: pl.DataFrame
    impossible: str | None
    """Why no neuron of this subject can be replaced, if so: then nobody is asked."""


def fitted(
    work: Work, piece: tuple[pl.DataFrame, Mapping[str, pl.DataFrame]], answer: Answer
) -> tuple[replaced.Lines, Usage]:
    """The lines of some neurons' explanations, and what they cost. Runs on any machine."""
    said, tables = piece
    tables = {**tables, "sequences": work.sequences}
    texts = display(work.sequences) if work.project.choices.simulator else {}
    asked = [] if work.impossible else questions(work.project, said, tables, texts)
    replies, usage = answer([request for _, request in asked])
    return _lines(work.project, said, tables, asked, replies), usage


def make(
    context: dg.AssetExecutionContext,
    lake: Lake,
    language: LanguageModel,
    subject: SubjectModel,
    project: Project,
    *,
    machines: Machines,
    layer: int,
    neuron: int | None = None,
) -> tuple[Written, list[Any], dict[str, Any]]:
    """Replace the neurons of a layer by their simulations, or one neuron of it."""
    with Step(
        context, lake, project, table="ablations", code_version=CODE_VERSION, layer=layer, neuron=neuron,
        settings=settings(project),
    ) as step:  # fmt: skip
        inputs = {name: step.read(name, may_be_empty=name in MAY_BE_EMPTY) for name in INPUTS}
        impossible, checkpoint = subject.irreplaceable(), subject.weights_hash()
        step.note("checkpoint", content=checkpoint)
        if impossible is None:
            step.note_origin(subject=subject.provenance())
        some = in_question(project, inputs["explanations"])
        stored = inputs["simulations"].join(some, on="explanation_id", how="semi", maintain_order="left")
        if (written := step.restored()) is None:
            frames, usage = [], Usage()
            work = Work(project, inputs["sequences"], impossible)
            asking = {name: inputs[name] for name in ("activations", "token_associations")}
            lines = machines.ask(fitted, work, pieces(some, asking), language, run_id=step.run_id)
            measuring = {name: inputs[name] for name in ("exemplars", "neuron_statistics")} | {"simulations": stored}
            for (_, tables), (found, paid) in zip(pieces(some, measuring), lines, strict=True):
                rows = replaced.rows(
                    tables["simulations"], tables["exemplars"], tables["neuron_statistics"], found,
                    checkpoint=checkpoint, impossible=impossible,
                    measure=None if impossible else replaced.divergences(subject, layer),
                )  # fmt: skip
                frames.append(rows)
                usage += paid
            written = step.write(pl.concat(frames), usage=usage)
    numbers = {
        "data/ablations": len(written.rows),
        "data/ablations_missing": written.rows.get_column("divergence").null_count(),
    }
    return written, check("ablations", written.rows, simulations=stored), numbers


def in_question(project: Project, explanations: pl.DataFrame) -> pl.DataFrame:
    """The explanations whose simulations are put in place."""
    return replaced.in_question(explanations, asked=project.choices.simulator is not None)


def questions(
    project: Project, explanations: pl.DataFrame, tables: Mapping[str, pl.DataFrame], texts: Mapping[str, Sequence[str]]
) -> played_by_model.Asked:
    """The requests to simulate these on texts of split `calibrate`, to which the lines are fitted."""
    if (model := project.choices.simulator) is None:
        return []
    return played_by_model.requests(
        explanations, calibrating(tables["activations"], tables["sequences"]), texts,
        model=model, seed=project.choices.seed, way=project.choices.simulation,
    )  # fmt: skip


def _lines(
    project: Project,
    explanations: pl.DataFrame,
    tables: Mapping[str, pl.DataFrame],
    asked: played_by_model.Asked,
    replies: Sequence[Reply],
) -> replaced.Lines:
    """The lines of the baselines, and of the language model by its replies."""
    texts = calibrating(tables["activations"], tables["sequences"])
    simulated = baselines.simulations(explanations, texts, tables["token_associations"])
    if (model := project.choices.simulator) is not None:
        way = project.choices.simulation
        played = played_by_model.rows(asked, replies, explanations, texts, model=model, way=way)
        simulated = pl.concat([simulated, played.select(simulated.columns)])
    return replaced.lines(simulated)


def define(project: Project) -> dg.AssetsDefinition:
    """The asset for one project, by layer."""

    @dg.asset(
        group_name="layers",
        code_version=CODE_VERSION,
        deps=["judgements" if scorers.judging(project.choices.scorers) else "simulations"],
        partitions_def=project.layers,
        check_specs=checks("ablations"),
        pool="language",
        **described("ablations"),
    )
    def ablations(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        language: dg.ResourceParam[LanguageModel],
        subject: dg.ResourceParam[SubjectModel],
        machines: dg.ResourceParam[Machines],
    ) -> dg.MaterializeResult:
        layer, _ = parse_key(context.partition_key)
        written, findings, numbers = make(context, lake, language, subject, project, machines=machines, layer=layer)
        return written.result(findings, extra=numbers)

    return ablations
