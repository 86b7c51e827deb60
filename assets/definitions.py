"""The definitions that Dagster loads: the only file that sees both the assets and the doors.

Dagster calls `defs` when it loads the project, so that importing this module reads no setting and opens nothing.
"""

from functools import cache

import dagster as dg
import polars as pl

from assets import (
    ablations,
    activations,
    automation,
    connections,
    dataset_release,
    exemplars,
    explanation_embeddings,
    explanations,
    imports,
    judgements,
    layer_summary,
    neuron,
    rescoring,
    scores,
    sequences,
    signing,
    simulations,
    vocabulary,
)
from assets import subject_layers as layers
from assets.project import Choices, Project
from assets.run import last_hops
from pipeline import human, languages, methods, scorers, selection
from pipeline.errors import SettingsError
from pipeline.ports import (
    Corpus,
    Encoder,
    Foreign,
    Lake,
    LanguageModel,
    Machines,
    Partials,
    Progress,
    Releases,
    SubjectModel,
)
from resources import code, people, signature
from resources.budget import Budget
from resources.corpus import open_corpus
from resources.delta import DeltaLake
from resources.encoder import open_encoder
from resources.export_folder import ReleaseFolders
from resources.foreign_files import ForeignFiles
from resources.language import OpenAICompatible
from resources.machines import RayMachines, ThisMachine
from resources.partials import PartialFiles
from resources.prices import open_prices
from resources.progress import LoggedProgress
from resources.settings import Settings, load
from resources.subject import HuggingFaceSubject


@dg.definitions
def defs() -> dg.Definitions:
    """The project of the folder, the environment and the file that Dagster was started with."""
    return build(load())


def build(
    settings: Settings,
    *,
    progress: Progress | None = None,
    language: LanguageModel | None = None,
    encoder: Encoder | None = None,
) -> dg.Definitions:
    """All assets, jobs and doors for these settings; `language` and `encoder` are in place of the doors that they name."""
    subject = open_subject(settings)
    lake = open_lake(settings)
    project = open_project(settings, subject)
    progress = progress or LoggedProgress()
    doors: dict[
        str,
        Corpus | SubjectModel | LanguageModel | Lake | Machines | Partials | Progress | Foreign | Releases | Encoder,
    ] = {
        "subject": subject,
        "corpus": open_corpus(settings.corpus, column=settings.column),
        "lake": lake,
        "language": language or open_language(settings, lake, budget=_budget(settings, lake), progress=progress),
        "partials": PartialFiles(settings.instance / "captures"),
        "captures": PartialFiles(settings.instance / "captures-of-all-text"),
        "machines": open_machines(settings),
        "progress": progress,
        "foreign": ForeignFiles(),
        "releases": ReleaseFolders(settings.releases),
    }
    if settings.encoder:
        doors["encoder"] = encoder or open_encoder(settings.encoder, open_language(settings, lake))
    assets = [
        sequences.define(project),
        layers.define(project),
        activations.define(project),
        vocabulary.define(project),
        connections.define(project),
        exemplars.define(project),
        explanations.define(project),
        simulations.define(project),
        *([judgements.define(project)] if "judgements" in scores.more_inputs(project) else []),
        *([ablations.define(project)] if "ablations" in scores.more_inputs(project) else []),
        scores.define(project),
        layer_summary.define(),
        *neuron.define(project),
        *imports.define(project.code),
        *rescoring.define(rescored(settings), project.code),
        dataset_release.define(project),
        *([explanation_embeddings.define(project)] if settings.encoder else []),
    ]
    # Without an explainer nothing is paid for.
    spending = (
        settings.automation_budget_usd is not None or (project.choices.explainer or project.choices.simulator) is None
    )
    return dg.Definitions(
        assets=automation.automated(assets, spending=spending),
        sensors=[
            automation.sensor(),
            *(signing.sensors(lambda: _signed(settings, lake)) if settings.signing_file else ()),
        ],
        resources=doors,
        # A step takes seconds and starting a process takes longer: parallel work is inside steps.
        executor=dg.in_process_executor,
        jobs=[
            dg.define_asset_job(
                "explain_layer",
                selection=dg.AssetSelection.assets(*last_hops(project)),
                description="From a layer's activations to its scores.",
            ),
            dg.define_asset_job(
                "explain_neuron",
                selection=dg.AssetSelection.groups("neuron"),
                description="From one neuron's activations to its scores, leaving all other neurons as they are.",
            ),
        ],
    )


def _signed(settings: Settings, lake: DeltaLake) -> str | None:
    """Sign the head of the ledger; gives it, or None where there is none."""
    head = lake.ledger_head()
    if head is not None and lake.ledger is not None and settings.signing_file is not None:
        signature.keep(lake.ledger.files, head, settings.signing_file)
    return head


def _budget(settings: Settings, lake: Lake) -> Budget | None:
    """What is left of the most that runs of Dagster's own may cost; None for no limit, which a person's run has."""
    if settings.automation_budget_usd is None:
        return None
    spent = lake.scan("language_calls").select(pl.col("cost_usd").sum()).collect().item()
    return Budget(usd=settings.automation_budget_usd, spent_usd=float(spent))


def open_project(settings: Settings, subject: SubjectModel) -> Project:
    """The project of these settings: the subject's shape, and the choices that results depend on.

    Raises:
        SettingsError: a choice cannot be made of this subject, or there is no one to simulate what people wrote.
    """
    sites = subject.layers()
    n_neurons = tuple(site.n_neurons for site in sites)
    written = people.statements(settings.human_file) if settings.human_file else ()
    human.fit(written, n_neurons=n_neurons, signed=[site.signed for site in sites])
    if written and not (settings.simulator or settings.explainer):
        raise SettingsError(
            "--human-explanations needs a language model that simulates them; name one with --simulator"
        )
    chosen = scorers.parse(settings.scorers)
    if scorers.on_simulator(chosen) and not (settings.simulator or settings.explainer):
        raise SettingsError("--scorers needs a language model that judges; name one with --simulator or --explainer")
    return Project(
        n_neurons=n_neurons,
        choices=Choices(
            windows=settings.windows,
            length=min(settings.length, subject.max_tokens()),
            seed=settings.seed,
            explainer=settings.explainer,
            simulator=settings.simulator or settings.explainer,
            methods=methods.parse(settings.methods),
            language=languages.parse(settings.language),
            simulation=settings.simulation,
            human=written,
            scorers=chosen,
            select=selection.parse(settings.select),
            grow=settings.grow == "yes",
            batch=settings.batch == "yes",
        ),
        code=code.code(),
        environment=code.environment(),
    )


def rescored(settings: Settings) -> rescoring.Rescoring:
    """The choices that our simulations and scores of imports depend on."""
    return rescoring.Rescoring(
        seed=settings.seed, simulator=settings.simulator or settings.explainer, simulation=settings.simulation
    )


def open_subject(settings: Settings) -> HuggingFaceSubject:
    """The door to the subject model; its weights are loaded, and its names in the lake read, when they are first needed."""
    return HuggingFaceSubject(
        settings.subject,
        revision=settings.revision,
        device=settings.device,
        dtype=settings.dtype,
        site=settings.site,
        known=cache(lambda: layers.known_models(open_lake(settings))),
    )


def open_machines(settings: Settings) -> Machines:
    """Where a forward pass runs; nothing is reached before one does."""
    return RayMachines(device=settings.device) if settings.engine == "ray" else ThisMachine()


def open_lake(settings: Settings) -> DeltaLake:
    """The door to the tables."""
    return DeltaLake(settings.lake_uri)


def open_language(
    settings: Settings, lake: Lake, *, budget: Budget | None = None, progress: Progress | None = None
) -> OpenAICompatible:
    """The door to the language model; nothing is sent before something is asked."""
    return OpenAICompatible(
        settings.base_url,
        journal_path=settings.instance / "language_calls.sqlite",
        lake=lake,
        concurrency=settings.concurrency,
        timeout=settings.timeout,
        prices=open_prices(settings.price_file),
        budget=budget,
        batch=settings.batch == "yes",
        progress=progress,
    )
