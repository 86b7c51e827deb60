"""The asset `explanations`: of every neuron, what its tokens say of it, and what a language model does if there is one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import dagster as dg
import polars as pl

from assets.listening import heard
from assets.pieces import pieces
from assets.project import Project, parse_key
from assets.spec import checks, described
from assets.step import Step, Written
from pipeline import best_of, human, methods, revision, token_activation_pairs
from pipeline import explanations as written_by_model
from pipeline import simulations as played_by_model
from pipeline.baselines import METHODS
from pipeline.baselines import explanations as baseline_rows
from pipeline.checks import check
from pipeline.contrast import quiet
from pipeline.controls import CONTROLS, EMPTY, RANDOM, empty_explanations, random_explanations
from pipeline.evidence import CLEARLY
from pipeline.evidence import evidence as gathered
from pipeline.languages import ENGLISH
from pipeline.ports import Answer, Lake, LanguageModel, Machines, Reply, SubjectModel, Usage
from pipeline.rounds import Heard, Listening, Round, Rounds, driven, usual
from pipeline.selection import Selection, selected
from pipeline.texts import display, spelled, token_texts

CODE_VERSION = "1"
INPUTS = ("sequences", "exemplars", "neuron_statistics", "token_associations")


def settings(project: Project) -> dict[str, Any]:
    """The choices that these rows depend on."""
    chosen: dict[str, Any] = {"methods": list(METHODS)}
    if project.choices.explainer:
        chosen |= {
            "methods": [*METHODS, *project.choices.methods],
            "explainer": project.choices.explainer,
            "seed": project.choices.seed,
        }
        for name in sending(project):
            # Of the first method the name is older than there were others.
            at = "prompt" if name == token_activation_pairs.METHOD else f"prompt of {name}"
            chosen[at] = methods.prompt_hash(name, project.choices.language)
        if choosing(project):
            chosen["simulator"] = project.choices.simulator
            chosen["prompt of simulator"] = played_by_model.PROMPT_HASHES[project.choices.simulation]
        if project.choices.language != ENGLISH:
            chosen["language"] = project.choices.language
        if project.choices.select != Selection():
            chosen["select"] = asdict(project.choices.select)
    if project.choices.human:
        chosen["methods"] = [*chosen["methods"], human.METHOD]
        chosen[human.METHOD] = human.fingerprint(project.choices.human)
    return chosen


def inputs(project: Project) -> tuple[str, ...]:
    """The tables that are read; what only some methods show is read where one of them is chosen."""
    return (*INPUTS, *more_inputs(project))


def more_inputs(project: Project) -> tuple[str, ...]:
    """Those of them that only some methods need."""
    asked = sending(project) if project.choices.explainer else ()
    return tuple(sorted({table for name in asked for table in methods.tables(name)} - set(INPUTS)))


def about(
    project: Project, baselines: pl.DataFrame, tables: Mapping[str, pl.DataFrame], *, layer: int, neuron: int | None
) -> pl.DataFrame:
    """The rows of `baselines` about the neurons that a language model is asked about; one recomputed alone always is."""
    # If all are asked about, a neuron that never fires has its row too, with the reason.
    if neuron is not None or project.choices.select == Selection():
        return baselines
    chosen = selected(
        project.choices.select, tables["neuron_statistics"], tables["exemplars"], tables["token_associations"],
        layer=layer, seed=project.choices.seed,
    )  # fmt: skip
    return baselines.filter(pl.col("neuron").is_in(chosen))


def asking(project: Project) -> tuple[str, ...]:
    """The methods chosen that ask a language model."""
    return tuple(name for name in project.choices.methods if name in methods.ASKING)


def sending(project: Project) -> tuple[str, ...]:
    """The methods chosen for which anything is sent."""
    return tuple(name for name in project.choices.methods if name not in CONTROLS)


def choosing(project: Project) -> dict[str, int]:
    """The methods chosen that choose among hypotheses, and among how many."""
    return {name: number for name, number in methods.CHOOSING.items() if name in project.choices.methods}


def with_controls(
    project: Project, rows: pl.DataFrame, others: pl.DataFrame, asked_about: pl.DataFrame
) -> pl.DataFrame:
    """The rows of a language model, with the controls that were chosen; random ones take the words of `others`."""
    frames = [rows]
    if RANDOM in project.choices.methods:
        source, *_ = asking(project)
        frames.append(random_explanations(rows, others, source=source, seed=project.choices.seed))
    if EMPTY in project.choices.methods:
        frames.append(empty_explanations(asked_about))
    return pl.concat(frame.select(rows.columns) for frame in frames)


def baselines(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """What tokens alone say of every neuron."""
    texts = token_texts(tables["sequences"])
    statistics = tables["neuron_statistics"]
    return baseline_rows(tables["token_associations"], tables["exemplars"], texts, statistics=statistics)


def rounds(
    project: Project,
    asked_about: pl.DataFrame,
    tables: Mapping[str, pl.DataFrame],
    *,
    model: str,
    words: Mapping[int, str],
) -> Rounds:
    """What is asked about these neurons, round after round, and in the end the rows of a language model.

    `words` says how each token looks.
    """
    sequences, exemplars = tables["sequences"], tables["exemplars"]
    texts = display(sequences)
    others: dict[str, Any] = {}
    if "connections" in tables:
        others = {"connections": tables["connections"], "spelled": spelled(tables["vocabulary"])}
    if "activations" in tables:
        others["quiet"] = quiet(tables["activations"], exemplars, sequences, clearly=CLEARLY)
    more: dict[str, Any] = {
        "evidence": gathered(exemplars, tables["token_associations"], texts, words, **others),
        "spoken": project.choices.language,
        "model": model,
    }
    seed, names = project.choices.seed, asking(project)
    asked = written_by_model.requests(asked_about, exemplars, texts, seed=seed, methods=names, **more)
    supposed = [methods.answer(question.method, usual(request)) for question, request in asked]
    replies = yield Round([request for _, request in asked], supposed)
    rows = written_by_model.rows(asked, replies, asked_about, exemplars, methods=names, **more)
    for number in choosing(project).values():
        best = yield from best_of.rounds(
            asked_about, exemplars, texts, number=number, seed=seed,
            calibration=best_of.calibrating(tables["activations"], sequences),
            simulator=project.choices.simulator or model, way=project.choices.simulation, **more,
        )  # fmt: skip
        rows = together(rows, best)
    parents = rows.filter(pl.col("method") == names[0]) if names else rows
    more["seed"] = seed
    if revision.REVISION in project.choices.methods:
        rows = together(rows, (yield from revision.rounds(parents, **more)))
    if revision.RANDOM_REVISION in project.choices.methods:
        found = revision.drawn(tables["activations"], exemplars, sequences, texts, seed=seed)
        rows = together(rows, (yield from revision.random_rounds(parents, texts=found, **more)))
    return rows


def together(rows: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """Rows of two origins; the order of columns is whoever made them's."""
    return pl.concat([rows, others.select(rows.columns)])


@dataclass(frozen=True)
class Work:
    """What is the same for every neuron of a layer."""

    project: Project
    model: str
    layer: int
    subject: SubjectModel
    words: Mapping[int, str]


def explained(
    work: Work, piece: tuple[pl.DataFrame, Mapping[str, pl.DataFrame]], answer: Answer
) -> tuple[pl.DataFrame, Usage, bool]:
    """A language model's rows of some neurons, what they cost, and if the subject was heard. Runs on any machine."""
    asked_about, tables = piece
    usages, listened = [Usage()], False

    def ask(asked: Round) -> Sequence[Reply]:
        replies, usage = answer(asked.requests)
        usages.append(usage)
        return replies

    def listen(asked: Listening) -> Sequence[Heard]:
        nonlocal listened
        listened = True
        return heard(work.subject, asked, layer=work.layer, length=work.project.choices.length)

    asking_rounds = rounds(work.project, asked_about, tables, model=work.model, words=work.words)
    return driven(asking_rounds, ask, listen), sum(usages, Usage()), listened


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
    """Explain the neurons of a layer, or one of them."""
    with Step(
        context, lake, project, table="explanations", code_version=CODE_VERSION, layer=layer, neuron=neuron,
        settings=settings(project),
    ) as step:  # fmt: skip
        tables = {name: step.read(name, may_be_empty=name == "exemplars") for name in inputs(project)}
        asked = partial(machines.ask, language=language, run_id=step.run_id)
        written = step.restored() or _written(step, lake, asked, subject, project, tables, layer=layer, neuron=neuron)
    numbers: dict[str, Any] = {"neurons/explained": written.rows.drop_nulls("text").get_column("neuron").n_unique()}
    reasons = written.rows.drop_nulls("missing_because").group_by("missing_because").len().sort("missing_because")
    numbers |= {f"missing/{reason}": count for reason, count in reasons.iter_rows()}
    return written, check("explanations", written.rows, exemplars=tables["exemplars"]), numbers


def _written(  # noqa: PLR0917 (the first five are those of `make`)
    step: Step,
    lake: Lake,
    ask: Callable[..., Iterator[Any]],
    subject: SubjectModel,
    project: Project,
    tables: Mapping[str, pl.DataFrame],
    *,
    layer: int,
    neuron: int | None,
) -> Written:
    """Ask about the neurons, and write what is said of them."""
    rows, usage = baselines(tables), Usage()
    if (model := project.choices.explainer) is not None:
        asked_about = about(project, rows, tables, layer=layer, neuron=neuron)
        work = Work(project, model, layer, subject, token_texts(tables["sequences"]))
        found = list(ask(explained, work, pieces(asked_about, tables, batch=project.choices.batch)))
        if any(listened for *_, listened in found):
            step.note_origin(subject=subject.provenance())
        said = pl.concat(frame for frame, *_ in found)
        usage = sum((paid for _, paid, _ in found), Usage())
        # A neuron alone has no others beside it but those that were explained before.
        others = said if neuron is None else lake.read("explanations", layer=layer)
        said = with_controls(project, said, others.filter(pl.col("explainer") == model), asked_about)
        rows = together(rows, said)
    rows = together(rows, human.explanations(project.choices.human, layer=layer, neuron=neuron))
    return step.write(rows, usage=usage)


def define(project: Project) -> dg.AssetsDefinition:
    """The asset for one project, by layer."""

    @dg.asset(
        group_name="layers",
        code_version=CODE_VERSION,
        deps=sorted({"exemplars", "neuron_statistics", "token_associations", *more_inputs(project)}),
        partitions_def=project.layers,
        check_specs=checks("explanations"),
        pool="language",
        **described("explanations"),
    )
    def explanations(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        language: dg.ResourceParam[LanguageModel],
        subject: dg.ResourceParam[SubjectModel],
        machines: dg.ResourceParam[Machines],
    ) -> dg.MaterializeResult:
        layer, _ = parse_key(context.partition_key)
        written, findings, numbers = make(context, lake, language, subject, project, machines=machines, layer=layer)
        return written.result(findings, extra=numbers)

    return explanations
