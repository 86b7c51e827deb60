"""The command `neuronledger`. Results go to standard output, progress and errors to standard error.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 done in part (something failed, or the budget was used up).
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
from rich.text import Text

import explorer.auditing
import explorer.comparing
import explorer.embedding
import explorer.exchange
import explorer.looking  # noqa: F401 (these hold the other commands)
from explorer.command import (
    DONE,
    FAILED,
    IN_PART,
    command_name,
    complain,
    diagnostics,
    end_with_the_head,
    layer_range,
    main,
    outside_of,
    reported,
    same_subject,
    screen,
    settings_options,
    typed,
)
from pipeline.errors import SettingsError
from pipeline.misbehaviour import ALL_KINDS
from resources.budget import Budget
from resources.settings import FILE, Settings, home, load

if TYPE_CHECKING:
    from assets.freshness import Outside, State
    from assets.project import Project
    from assets.run import Outcome
    from explorer.kept import Kept
    from explorer.verify import Link
    from pipeline.ports import Lake
    from resources.delta import DeltaLake

P = ParamSpec("P")
T = TypeVar("T")


@main.command()
@settings_options
@reported
def demo(**flags: Any) -> None:
    """The whole pipeline on a model and texts that are installed with it: no key, no GPU, no network."""
    chosen = load(**flags)
    flags |= {name: "demo" for name in ("subject", "corpus") if getattr(chosen, name) != "demo"}
    settings = load(**flags)
    end_with_the_head(settings)
    _run(settings, layers=None)
    _finished(settings, flags)


@main.command()
@click.option("--layers", "wanted", help="Layers to make, such as 0-3,7; all of them unless given.")
@click.option("--neurons", help="Recompute only these neurons, fresh or not, such as 5:131,5:204.")
@click.option("--budget-usd", type=float, help="Stop before language models cost more than this in this run.")
@click.option("--budget-tokens", type=int, help="Stop before language models read and write more tokens than this.")
@click.option("--retry-failed", is_flag=True, help="Only ask again for answers that failed in passing.")
@click.option(
    "--stage",
    type=click.Choice(["simulations", "scores"]),
    help="Only this, of what is in the lake and of imports; for imports no model and no corpus is needed.",
)
@settings_options
@reported
def run(  # noqa: PLR0917 (click passes all by name)
    wanted: str | None,
    neurons: str | None,
    budget_usd: float | None,
    budget_tokens: int | None,
    retry_failed: bool,  # noqa: FBT001 (click passes flags by name)
    stage: str | None,
    **flags: Any,
) -> None:
    """Make everything that is missing or stale, from text to scores; what is fresh is left alone."""
    settings = load(**flags)
    for name, most in (("--budget-usd", budget_usd), ("--budget-tokens", budget_tokens)):
        if most is not None and not 0 <= most < float("inf"):
            raise SettingsError(f"{name} (={most}) must be a number from 0 on")
    if neurons is not None and wanted is not None:
        raise SettingsError("give either --layers or --neurons, not both")
    if neurons is not None and retry_failed:
        raise SettingsError(
            "give either --neurons or --retry-failed, not both; --neurons asks again for what is missing"
        )
    if stage is not None and retry_failed:
        raise SettingsError("give either --stage or --retry-failed, not both; a stage asks again for what is missing")
    budget = Budget(usd=budget_usd, tokens=budget_tokens)
    end_with_the_head(settings)
    if stage is not None:
        from explorer import stages

        stages.run(settings, stage, layers=wanted, neurons=neurons, budget=budget)
    elif neurons is not None:
        _recompute(settings, neurons, budget)
    else:
        _run(settings, layers=wanted, budget=budget, retry_failed=retry_failed)
    if budget.is_used_up:
        parts = {"layers": wanted, "neurons": neurons, "stage": stage} | flags
        again = f"{command_name()} run{' --retry-failed' if retry_failed else ''}{typed(parts)}"
        limit = f"--budget-usd {budget_usd:g}" if budget_usd is not None else f"--budget-tokens {budget_tokens}"
        spent = f"{budget.spent_tokens:,} tokens" if budget_usd is None else _money(budget.spent_usd)
        click.echo(f"The budget is used up: {spent} of it are spent. What was answered is kept; to go on:", err=True)
        click.echo(f"{again} {limit}", err=True)
        sys.exit(IN_PART)
    if neurons is None and stage is None:
        _finished(settings, flags)


@main.command()
@click.option("--layers", "wanted", help="Layers to plan for, such as 0-3,7; all of them unless given.")
@click.option(
    "--profile",
    help="`gpt2`, `gpt2-xl`, `llama-70b`: a model of this shape instead of the subject, and all that it takes.",
)
@click.option("--json", "as_json", is_flag=True, help="{layers: [...], total: {...}, without_exemplars: [...]}.")
@settings_options
@reported
def plan(wanted: str | None, profile: str | None, as_json: bool, **flags: Any) -> None:  # noqa: FBT001 (click passes flags by name)
    """What a run with these settings would ask of language models, and what that would cost. Sends nothing."""
    if profile is not None:
        from explorer import profiling

        estimate = profiling.profile(profile, load(**flags))
        if as_json:
            click.echo(json.dumps(estimate.as_dict()))
        else:
            screen().print(profiling.lines(estimate))
        return
    from assets.definitions import open_lake, open_language, open_project, open_subject
    from assets.plan import as_dict, planned, ready
    from explorer import terminal

    settings = load(**flags)
    subject = open_subject(settings)
    project = open_project(settings, subject)
    if (
        project.choices.explainer is None
        and project.choices.simulator is None
        and "ablation" not in project.choices.scorers
    ):
        raise SettingsError("there is nothing to plan without a language model; name one with --explainer")
    layers, lake = layer_range(wanted, len(project.n_neurons)), open_lake(settings)
    stages = list(planned(lake, project, open_language(settings, lake), subject, layers=layers))
    missing = [layer for layer in layers if not ready(lake, project, layer)]
    total = terminal.planned_total(stages, concurrency=settings.concurrency, batch=settings.batch == "yes")
    if as_json:
        found = {"layers": [as_dict(stage) for stage in stages], "total": total, "without_exemplars": missing}
        click.echo(json.dumps(found))
        return
    console = screen()
    console.print(terminal.plan(stages, total))
    if missing:
        where = ",".join(map(str, missing))
        console.print(
            Text(f"Layers without exemplars, or what else is to be shown, are not in this plan. Without an explainer they cost nothing:\n"
                 f"{command_name()} run --layers {where} --explainer ''{typed({**flags, 'explainer': None})}"),
            soft_wrap=True,
        )  # fmt: skip


@main.command()
@click.option(
    "--by", type=click.Choice(["layer", "neuron"]), default="layer", show_default=True, help="One line for each."
)
@click.option("--json", "as_json", is_flag=True, help="{rows: [...], total: {...}}.")
@settings_options
@reported
def cost(by: str, as_json: bool, **flags: Any) -> None:  # noqa: FBT001 (click passes flags by name)
    """What language models were asked for this lake, and what was paid."""
    from assets.definitions import open_lake
    from assets.plan import spent
    from assets.plan import total as paid
    from explorer import terminal

    lake = open_lake(load(**flags))
    rows, total = spent(lake, by_neuron=by == "neuron"), paid(lake)
    if as_json:
        click.echo(json.dumps({"rows": rows.to_dicts(), "total": total}))
        return
    screen().print(terminal.cost(rows, total))


@main.command()
@click.option("--layers", "wanted", help="Layers to look at, such as 0-3,7; all of them unless given.")
@click.option(
    "--layer",
    type=click.IntRange(0),
    help="Every neuron of this layer, with --json {neuron, status, cause, recomputed}.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="A list of {table, layer, status, cause, recomputed, root, missing: {reason: rows}}.",
)
@settings_options
@reported
def status(wanted: str | None, layer: int | None, as_json: bool, **flags: Any) -> None:  # noqa: FBT001 (click passes flags by name)
    """Which tables of which layers are fresh, stale (and why), missing or failed, and which rows have no value and why."""
    from assets.definitions import open_lake, open_project, open_subject
    from assets.freshness import of_neurons, states, summary
    from explorer import terminal
    from explorer.embedding import embedded
    from pipeline.summary import REASONED, without_value

    settings = load(**flags)
    subject = open_subject(settings)
    project = open_project(settings, subject)
    layers = layer_range(wanted, len(project.n_neurons))
    lake = open_lake(settings)
    if layer is not None:
        (layer,) = layer_range(str(layer), len(project.n_neurons))
        found = of_neurons(lake, project, outside_of(settings, subject), layer=layer)
        if as_json:
            click.echo(json.dumps(found.to_dicts()))
        else:
            screen().print(terminal.of_neurons(found, layer))
        return
    rows = summary(
        [*states(lake, project, outside_of(settings, subject), layers=layers), *embedded(settings, lake, layers)]
    )
    missing = without_value({table: lake.scan(table) for table in REASONED}, layers=layers)
    if as_json:
        reasons: dict[tuple[str, int | None], dict[str, int]] = {}
        for table, layer, reason, count in missing.drop("of").iter_rows():
            reasons.setdefault((table, layer), {})[reason] = count
        slices = [row | {"missing": reasons.get((row["table"], row["layer"]), {})} for row in rows.to_dicts()]
        click.echo(json.dumps(slices))
        return
    console = screen()
    console.print(terminal.states(rows))
    for line in terminal.causes(rows):
        console.print(line)
    if len(missing):
        for part in ("", terminal.without_value(missing), *terminal.reasons(missing)):
            console.print(part)


@main.command()
@click.argument("neuron")
@click.option("--json", "as_json", is_flag=True, help="{layer, neuron, site, statistics, sides, connections, chain}.")
@settings_options
@reported
def show(neuron: str, as_json: bool, **flags: Any) -> None:  # noqa: FBT001 (click passes flags by name)
    """One neuron, written layer:neuron: statistics, explanations, scores, texts, and where they came from."""
    from assets.definitions import open_lake
    from explorer import neuron as neurons
    from explorer import terminal

    layer, index = neurons.parse(neuron)
    found = neurons.read(open_lake(load(**flags)), layer, index)
    if as_json:
        click.echo(found.as_json())
        return
    console = screen()
    console.print(terminal.neuron(found, colour=console.color_system is not None))


@main.command()
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@reported
def init(force: bool) -> None:  # noqa: FBT001 (click passes flags by name)
    """Write a commented neuronledger.toml here, with every setting at its default."""
    path = Path.cwd() / FILE
    if path.exists() and not force:
        raise SettingsError(f"{path} is there already; give --force to replace it")
    lines = [
        "# Settings of Neuron Ledger. A flag or an environment variable (NEURONLEDGER_SUBJECT, ...) goes before them."
    ]
    for name, field in Settings.model_fields.items():
        value = json.dumps(field.default) if field.default is not None else '""'
        lines += ["", f"# {field.description}", f"# {name} = {value}"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    click.echo(f"wrote {path}")


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=3000, show_default=True, help="0 takes any free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Any other needs NEURONLEDGER_TOKEN.")
@settings_options
@reported
def ui(port: int, host: str, **flags: Any) -> None:
    """Start the Dagster UI on this project, with its daemon: on this machine only unless you say otherwise.

    Dagster's server has no login of its own. It is behind the same guard as `explore`: names and origins of other sites
    are refused, and with NEURONLEDGER_TOKEN visitors must enter it.
    """
    from explorer import dagster_ui

    settings = load(**flags)
    token = os.environ.get("NEURONLEDGER_TOKEN") or None
    try:
        dagster_ui.serve(settings, host=host, port=port, token=token, said=lambda address:
                         click.echo(f"Dagster UI at {address} for the lake {settings.lake_uri}; stop it with Ctrl-C", err=True))  # fmt: skip
        code = DONE
    except KeyboardInterrupt:
        code = 130
    click.echo("Stopped. Runs that were started go on to their end.", err=True)
    # Threads that answer pages that went away would be waited for.
    os._exit(code)


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=7575, show_default=True, help="0 takes any free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Any other needs NEURONLEDGER_TOKEN.")
@click.option(
    "--static", "folder", type=click.Path(path_type=Path), help="Write pages to this new folder, and serve nothing."
)
@click.option("--against", help="Another lake, which /compare sets beside this one.")
@click.option("--neurons", multiple=True, help="With --static: these neurons, such as 5:131,5:204; may be given again.")
@click.option("--layers", "wanted", help="With --static: all neurons of these layers, such as 0-3,7.")
@click.option("--speak", type=click.Choice(["en", "fr"]), default="en", show_default=True, help="With --static.")
@settings_options
@reported
def explore(  # noqa: PLR0917 (click passes all by name)
    port: int,
    host: str,
    folder: Path | None,
    against: str | None,
    neurons: tuple[str, ...],
    wanted: str | None,
    speak: str,
    **flags: Any,
) -> None:
    """Look at the neurons in a browser: pages of this lake, on this machine only unless you say otherwise.

    With --static, pages as files, which need no server: of the neurons and layers named, or else of those that were
    explained or stand out.
    """
    from assets.definitions import open_lake, open_subject
    from explorer import site
    from explorer.kept import Kept
    from explorer.live import Live
    from explorer.looking import encoder_of
    from explorer.meaning import Meaning
    from explorer.neuron import parse
    from explorer.server import Explorer, serve
    from explorer.staleness import Staleness
    from explorer.terminal import TerminalProgress
    from explorer.verifying import Verifying

    settings = load(**flags)
    lake = open_lake(settings)
    given = {name.replace("_", "-"): str(value) for name, value in flags.items() if value is not None}
    explorer = Explorer(
        Kept(lake), Staleness(lake, _looking(settings, lake)), home(), settings.instance / "explorer", given,
        settings.human_file, live=Live(lambda: open_subject(settings)), verifying=Verifying(_verifies(settings, lake)),
        against=None if against is None else _other(against),
        meaning=Meaning(settings.instance / "explorer", encoder_of(settings)),
    )  # fmt: skip
    if folder is None:
        if neurons or wanted is not None:
            raise SettingsError("--neurons and --layers choose what --static writes; give its folder too")
        token = os.environ.get("NEURONLEDGER_TOKEN") or None
        serve(explorer, host=host, port=port, token=token, said=lambda address:
              click.echo(f"{address} shows the lake {settings.lake_uri}; stop it with Ctrl-C", err=True))  # fmt: skip
        return
    known = explorer.kept.layers().get_column("layer").to_list()
    layers = None if wanted is None else layer_range(wanted, max(known, default=-1) + 1)
    named = [parse(name.strip()) for some in neurons for name in some.split(",")]
    with TerminalProgress(diagnostics()) as progress:
        pages = site.write(explorer, folder, site.chosen(explorer, layers, named), language=speak,
                           progress=lambda done, total: progress("pages", done, total))  # fmt: skip
    explorer.staleness.close()
    click.echo(f"wrote {pages:,} pages; open {folder / 'index.html'}")


def _other(uri: str) -> "Kept":
    """Another lake, to compare with.

    Raises:
        SettingsError: there is none.
    """
    from explorer.kept import Kept
    from resources.delta import DeltaLake

    lake = DeltaLake(uri)
    if not lake.rows("subject_layers"):
        raise SettingsError(f"--against (={uri!r}) is no lake; give the folder of one, such as lake/demo")
    return Kept(lake)


def faults(command: Callable[P, T]) -> Callable[P, T]:
    """A flag for the share of each kind of fault."""
    for kind, words in reversed(ALL_KINDS.items()):
        command = click.option(f"--{kind.replace('_', '-')}", type=float, default=0.0, help=f"Share of {words}.")(
            command
        )
    return command


@main.command("fake-endpoint")
@click.option("--port", type=click.IntRange(1, 65535), default=8642, show_default=True, help="Port on 127.0.0.1.")
@click.option("--seconds", type=float, default=0.0, help="How long each answer takes, and each batch.")
@click.option("--seed", type=int, default=0, help="Seed of what goes wrong.")
@faults
@reported
def fake_endpoint(port: int, seconds: float, seed: int, **rates: float) -> None:
    """A chat endpoint on this machine whose model, `scripted`, is a script; it fails as often as it is told."""
    import uvicorn

    from explorer.fake_endpoint import FakeEndpoint

    endpoint = FakeEndpoint({kind: share for kind, share in rates.items() if share}, seed=seed, seconds=seconds)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except OSError as error:
            raise SettingsError(
                f"port {port} of 127.0.0.1 cannot be used ({error.strerror}); give another --port"
            ) from None
        click.echo(
            f"http://127.0.0.1:{port}/v1 answers as the model `scripted`; stop it with Ctrl-C. In another terminal:\n"
            f"{command_name()} run --neurons 0:0 --explainer scripted --base-url http://127.0.0.1:{port}/v1",
            err=True,
        )
        uvicorn.Server(uvicorn.Config(endpoint.app(), log_level="critical")).run(sockets=[listening])


def _run(settings: Settings, *, layers: str | None, budget: Budget | None = None, retry_failed: bool = False) -> None:
    """Make what is not fresh, and say so; exit if anything failed."""
    from assets.definitions import build, open_lake, open_language, open_project, open_subject
    from assets.run import Runner
    from explorer.terminal import TerminalProgress
    from resources.instance import instance

    subject = open_subject(settings)
    project = open_project(settings, subject)
    wanted = layer_range(layers, len(project.n_neurons))
    if project.choices.length < settings.length:
        click.echo(f"Windows are of {project.choices.length} tokens: the subject reads no more at a time.", err=True)
    lake = open_lake(settings)
    same_subject(lake, project, settings)
    with TerminalProgress(diagnostics()) as progress, instance(settings) as opened:
        language = open_language(settings, lake, budget=budget, progress=progress)
        definitions = build(settings, progress=progress, language=language)
        runner = Runner(
            definitions, opened, lake, project, outside_of(settings, subject), progress.say,
            enough=lambda: language.budget.is_used_up,
        )  # fmt: skip
        outcome = runner.ask_again(wanted) if retry_failed else runner.refresh(wanted)
    if not outcome.made and not outcome.failed and not language.budget.is_used_up:
        nothing = "No answer is missing that could come now" if retry_failed else "Everything is fresh"
        click.echo(f"{nothing}: nothing was recomputed.")
    _stop_if_failed(outcome)


def _recompute(settings: Settings, names: str, budget: Budget) -> None:
    from assets.definitions import build, open_lake, open_language, open_project, open_subject
    from assets.run import Runner
    from explorer.neuron import parse
    from explorer.terminal import TerminalProgress
    from resources.instance import instance

    subject = open_subject(settings)
    project = open_project(settings, subject)
    neurons = list(dict.fromkeys(parse(name.strip()) for name in names.split(",")))
    for layer, neuron in neurons:
        if layer >= len(project.n_neurons):
            raise SettingsError(
                f"the subject has layers 0 to {len(project.n_neurons) - 1}; there is no {layer}:{neuron}"
            )
        if neuron >= project.n_neurons[layer]:
            raise SettingsError(
                f"layer {layer} has neurons 0 to {project.n_neurons[layer] - 1}; there is no {layer}:{neuron}"
            )
    lake = open_lake(settings)
    same_subject(lake, project, settings)
    with TerminalProgress(diagnostics()) as progress, instance(settings) as opened:
        language = open_language(settings, lake, budget=budget, progress=progress)
        definitions = build(settings, progress=progress, language=language)
        runner = Runner(
            definitions, opened, lake, project, outside_of(settings, subject), progress.say,
            enough=lambda: language.budget.is_used_up,
        )  # fmt: skip
        outcome = runner.recompute(neurons)
    for name in outcome.made:
        click.echo(f"recomputed {name}")
    _stop_if_failed(outcome)


def _stop_if_failed(outcome: "Outcome") -> None:
    for name, why in outcome.failed.items():
        complain(f"{name}: {why}")
    if outcome.failed:
        sys.exit(IN_PART if outcome.made else FAILED)


def _looking(settings: Settings, lake: "Lake") -> "Callable[[Sequence[int]], list[State]]":
    """What finds the states of layers. The subject and the corpus are opened when it is first asked."""
    from functools import cache

    @cache
    def opened() -> "tuple[Project, Outside]":
        from assets.definitions import open_project, open_subject

        subject = open_subject(settings)
        return open_project(settings, subject), outside_of(settings, subject)

    def look(layers: Sequence[int]) -> "list[State]":
        from assets.freshness import states

        project, outside = opened()
        return states(lake, project, outside, layers=layers)

    return look


def _verifies(settings: Settings, lake: "DeltaLake") -> "Callable[[int, int, Callable[[str], None]], list[Link]]":
    """What makes a neuron again and compares it, with model and corpus as they are then."""

    def verified(layer: int, neuron: int, say: Callable[[str], None]) -> "list[Link]":
        from explorer.auditing import at_hand
        from explorer.verify import verify

        return verify(lake, layer, neuron, outside=at_hand(settings, lake), say=say)

    return verified


def _finished(settings: Settings, flags: Mapping[str, Any]) -> None:
    """What was found, where it is, and what to type next."""
    from assets.definitions import open_lake
    from explorer import neuron as neurons
    from explorer import terminal
    from pipeline.summary import MAIN, best
    from resources.delta import collect

    lake, console = open_lake(settings), screen()
    statistics = collect(lake.scan("neuron_statistics").select("layer", "neuron", "dead"))
    explanations = collect(lake.scan("explanations").select("layer", "neuron", "polarity", "explanation_id", "text"))
    scores = collect(
        lake.scan("scores")
        .filter(MAIN)
        .select(
            "layer", "neuron", "polarity", "explanation_id", "method", "scorer", "split", "value", "ci_low", "ci_high"
        )
    )
    console.print()
    console.print(terminal.layers(statistics, explanations, scores))
    console.print(
        "\n[bold]How well tokens alone predict a neuron[/] (correlation with the true activations, texts never shown)"
    )
    for method in scores.get_column("method").unique().sort():
        console.print(terminal.score_distribution(scores, method))
    top = best(scores, explanations)
    console.print("\n[bold]The best-explained neurons[/]")
    found = [neurons.read(lake, row["layer"], row["neuron"]) for row in top.iter_rows(named=True)]
    console.print(terminal.best_neurons(found, scores, explanations, colour=console.color_system is not None))
    command, chosen = command_name(), typed(flags)
    example = f"{top.item(0, 'layer')}:{top.item(0, 'neuron')}" if len(top) else "0:0"
    # Lines to be typed again must not be broken, however narrow the terminal is.
    console.print(Text(f"lake             {settings.lake_uri}"), soft_wrap=True)
    console.print(Text(f"one neuron       {command} show {example}{chosen}"), soft_wrap=True)
    console.print(Text(f"one neuron anew  {command} run --neurons {example}{chosen}"), soft_wrap=True)
    console.print(Text(f"the Dagster UI   {command} ui{chosen}"), soft_wrap=True)


def _money(usd: float) -> str:
    from explorer.terminal import money

    return money(usd)
