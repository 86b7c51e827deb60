"""The asset `judgements`: every explanation, held against texts by a language model; only where such scorers are chosen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import polars as pl

from assets.pieces import pieces
from assets.project import Project, parse_key
from assets.spec import checks, described
from assets.step import Step, Written
from pipeline import embedding, intruder, scorers, surprisal
from pipeline import judgements as judged_by_model
from pipeline.checks import check
from pipeline.ports import Answer, Lake, LanguageModel, Machines, Reply, Request, Usage
from pipeline.simulations import PROBABILITIES
from pipeline.texts import display

CODE_VERSION = "1"
INPUTS = ("sequences", "activations", "exemplars", "explanations")
PROMPT_HASHES = {module.NAME: module.PROMPT_HASH for module in (embedding, intruder, surprisal)}
"""Of scorers that measure texts."""


@dataclass(frozen=True)
class Questions:
    """The requests of one kind of scorer, and what makes rows of `judgements` of their replies."""

    requests: Sequence[Request]
    read: Callable[[Sequence[Reply]], pl.DataFrame]


def settings(project: Project) -> dict[str, Any]:
    """The choices that these rows depend on."""
    chosen = scorers.asking(project.choices.scorers)
    if not chosen:
        return {}
    judging = scorers.judging(chosen)
    return {
        "scorers": list(chosen),
        # As freshness names whoever is asked.
        **({"simulator": project.choices.simulator} if scorers.on_simulator(chosen) else {}),
        "seed": project.choices.seed,
        **({"probabilities": True} if judging and _likely(project) else {}),
        **{f"prompt of {name}": judged_by_model.PROMPT_HASHES[name] for name in judging},
        **{f"prompt of {kind}": PROMPT_HASHES[kind] for kind, _ in scorers.measuring(chosen, None)},
    }


@dataclass(frozen=True)
class Work:
    """What is the same for every neuron of a layer."""

    project: Project
    sequences: pl.DataFrame


def judged(
    work: Work, piece: tuple[pl.DataFrame, Mapping[str, pl.DataFrame]], answer: Answer
) -> tuple[pl.DataFrame, Usage]:
    """The rows of some neurons' explanations, and what they cost. Runs on any machine."""
    explanations, tables = piece
    frames, usage = [], Usage()
    for asked in questions(work.project, {**tables, "sequences": work.sequences, "explanations": explanations}):
        replies, paid = answer(asked.requests)
        frames.append(asked.read(replies))
        usage += paid
    return pl.concat(frames), usage


def make(
    context: dg.AssetExecutionContext,
    lake: Lake,
    language: LanguageModel,
    project: Project,
    *,
    machines: Machines,
    layer: int,
    neuron: int | None = None,
) -> tuple[Written, list[Any], dict[str, Any]]:
    """Judge the explanations of a layer, or of one neuron of it."""
    with Step(
        context, lake, project, table="judgements", code_version=CODE_VERSION, layer=layer, neuron=neuron,
        settings=settings(project),
    ) as step:  # fmt: skip
        inputs = {name: step.read(name, may_be_empty=name == "exemplars") for name in INPUTS}
        if (written := step.restored()) is None:
            tables = {name: inputs[name] for name in ("activations", "exemplars")}
            some = pieces(inputs["explanations"], tables, batch=project.choices.batch)
            work = Work(project, inputs["sequences"])
            found = list(machines.ask(judged, work, some, language, run_id=step.run_id))
            written = step.write(pl.concat(rows for rows, _ in found), usage=sum((paid for _, paid in found), Usage()))
    numbers = {
        "data/judgements": len(written.rows),
        "data/judgements_missing": written.rows.get_column("value").null_count(),
    }
    findings = check("judgements", written.rows, sequences=inputs["sequences"], exemplars=inputs["exemplars"])
    return written, findings, numbers


def questions(project: Project, inputs: Mapping[str, pl.DataFrame]) -> Iterator[Questions]:
    """What is asked for each kind of scorer that was chosen."""
    said, texts, chosen = inputs["explanations"], display(inputs["sequences"]), project.choices.scorers
    read = judged_by_model.texts_to_judge(inputs["activations"], inputs["exemplars"], inputs["sequences"])
    if judging := scorers.judging(chosen):
        model, seed = project.choices.simulator or "", project.choices.seed
        asked = judged_by_model.requests(
            said, read, texts, scorers=judging, model=model, seed=seed, likely=_likely(project)
        )
        yield Questions(
            [request for _, request in asked],
            lambda replies: judged_by_model.rows(asked, replies, said, model=model),
        )
    for kind, model in scorers.measuring(chosen, project.choices.simulator):
        yield _measuring(kind, model, said, read, texts, seed=project.choices.seed)


def _measuring(
    kind: str,
    model: str,
    said: pl.DataFrame,
    read: pl.DataFrame,
    texts: Mapping[str, Sequence[str]],
    *,
    seed: int,
) -> Questions:
    """What a scorer that measures texts asks its model."""
    if kind == scorers.INTRUDER:
        hidden = intruder.requests(said, read, texts, model=model, seed=seed)
        return Questions(
            [request for _, request in hidden], lambda replies: intruder.rows(hidden, replies, said, model=model)
        )
    if kind == scorers.SURPRISAL:
        told = surprisal.requests(said, read, texts, model=model, seed=seed)
        return Questions(told.requests, lambda replies: surprisal.rows(told, replies, said, model=model))
    asked = embedding.requests(said, read, texts, model=model)
    return Questions(asked.requests, lambda replies: embedding.rows(asked, replies, said, model=model))


def _likely(project: Project) -> bool:
    """Whether the judge is asked for probabilities: where the simulator is, the endpoint gives them."""
    return project.choices.simulation in PROBABILITIES


def define(project: Project) -> dg.AssetsDefinition:
    """The asset for one project, by layer."""

    @dg.asset(
        group_name="layers",
        code_version=CODE_VERSION,
        deps=["simulations"],
        partitions_def=project.layers,
        check_specs=checks("judgements"),
        pool="language",
        **described("judgements"),
    )
    def judgements(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        language: dg.ResourceParam[LanguageModel],
        machines: dg.ResourceParam[Machines],
    ) -> dg.MaterializeResult:
        layer, _ = parse_key(context.partition_key)
        written, findings, numbers = make(context, lake, language, project, machines=machines, layer=layer)
        return written.result(findings, extra=numbers)

    return judgements
