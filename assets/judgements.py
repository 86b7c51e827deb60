"""The asset `judgements`: every explanation, held against texts by a language model; only where such scorers are chosen."""

from typing import Any

import dagster as dg

from assets.project import Project, parse_key
from assets.spec import checks, described
from assets.step import Step, Written
from pipeline import judgements as judged_by_model
from pipeline import scorers
from pipeline.checks import check
from pipeline.ports import Lake, LanguageModel
from pipeline.texts import display

CODE_VERSION = "1"
INPUTS = ("sequences", "activations", "exemplars", "explanations")


def settings(project: Project) -> dict[str, Any]:
    """The choices that these rows depend on."""
    chosen = scorers.judging(project.choices.scorers)
    if not chosen:
        return {}
    return {
        "scorers": list(chosen),
        # As freshness names whoever is asked.
        "simulator": project.choices.simulator,
        "seed": project.choices.seed,
        **({"probabilities": True} if _likely(project) else {}),
        **{f"prompt of {name}": judged_by_model.PROMPT_HASHES[name] for name in chosen},
    }


def make(
    context: dg.AssetExecutionContext,
    lake: Lake,
    language: LanguageModel,
    project: Project,
    *,
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
            asked, model = questions(project, inputs)
            replies, usage = language.answer([request for _, request in asked], run_id=step.run_id)
            rows = judged_by_model.rows(asked, replies, inputs["explanations"], model=model)
            written = step.write(rows, usage=usage)
    numbers = {
        "data/judgements": len(written.rows),
        "data/judgements_missing": written.rows.get_column("value").null_count(),
    }
    findings = check("judgements", written.rows, sequences=inputs["sequences"], exemplars=inputs["exemplars"])
    return written, findings, numbers


def questions(project: Project, inputs: dict[str, Any]) -> tuple[judged_by_model.Asked, str]:
    """The requests that the chosen scorers send, and the model that is asked."""
    model = project.choices.simulator or ""
    judged = judged_by_model.texts_to_judge(inputs["activations"], inputs["exemplars"], inputs["sequences"])
    asked = judged_by_model.requests(
        inputs["explanations"], judged, display(inputs["sequences"]),
        scorers=scorers.judging(project.choices.scorers), model=model, seed=project.choices.seed, likely=_likely(project),
    )  # fmt: skip
    return asked, model


def _likely(project: Project) -> bool:
    """Whether the judge is asked for probabilities: where the simulator is, the endpoint gives them."""
    return project.choices.simulation == "json-logprobs"


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
    ) -> dg.MaterializeResult:
        layer, _ = parse_key(context.partition_key)
        written, findings, numbers = make(context, lake, language, project, layer=layer)
        return written.result(findings, extra=numbers)

    return judgements
