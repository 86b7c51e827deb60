"""The commands of an auditor: `audit`, `verify`, `why`, `doctor` and `export prov`. What they find is made elsewhere; here it is asked for and printed.

`audit`, `verify` and `doctor` exit with 0 if all is as it was, 1 if something was found, and 2 if they could not run.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from explorer.command import (
    UNREADABLE,
    diagnostics,
    is_panic,
    layer_range,
    main,
    outside_of,
    reported,
    screen,
    settings_options,
)
from explorer.exchange import FOLDER, export_group
from pipeline.audit import SHOWN, Audit
from pipeline.errors import NeuronLedgerError, SettingsError
from resources.settings import Settings, load

if TYPE_CHECKING:
    import dagster as dg

    from assets.freshness import State
    from explorer.condition import Condition
    from explorer.verify import Link, Outside
    from resources.delta import DeltaLake

CLEAN, FINDINGS, NOT_RUN = 0, 1, 2

recompute_option = click.option(
    "--recompute",
    type=click.IntRange(0, 100_000),
    default=3,
    show_default=True,
    help="Neurons of a layer to run again.",
)
draw_option = click.option(
    "--draw", type=int, default=0, show_default=True, help="Seed of which neurons are run again."
)


@main.command()
@click.argument("neuron", required=False)
@click.option("--anchor", "anchors", multiple=True, help="A head of the ledger that you noted earlier.")
@click.option(
    "--signers",
    type=click.Path(path_type=Path),
    help="File of those who may sign heads: lines `ada ssh-ed25519 AAAA...`.",
)
@click.option("--quick", is_flag=True, help="Leave out what replays, reads the corpus, or runs the model.")
@recompute_option
@draw_option
@click.option("--json", "as_json", is_flag=True, help="{lake, head, findings, checks: [{id, says, outcome, ...}]}.")
@settings_options
@reported
def audit(  # noqa: PLR0917 (click passes all by name)
    neuron: str | None,
    anchors: tuple[str, ...],
    signers: Path | None,
    quick: bool,  # noqa: FBT001 (click passes flags by name)
    recompute: int,
    draw: int,
    as_json: bool,  # noqa: FBT001
    **flags: Any,
) -> None:
    """Whether the lake is what was written, and what nobody checked. Exits with 0 clean, 1 findings, 2 not run."""
    with _run_or_say_why():
        settings = load(**flags)
        layer, index = _neuron(neuron)
        if wrong := [anchor for anchor in anchors if not anchor.startswith("sha256:")]:
            _not_run(f"--anchor (={wrong[0]!r}) must be a head as a run prints it, such as sha256:0f3a...")
        lake = _lake(settings)
        _is_known(lake, layer, index)
        found = audited_lake(
            settings, lake, anchors=anchors, signers=signers, layer=layer, neuron=index, recompute=recompute, seed=draw,
            quick=quick,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(audit_as_dict(found)))
    else:
        _print_audit(found, screen())
    sys.exit(FINDINGS if found.findings else CLEAN)


def audited_lake(
    settings: Settings,
    lake: "DeltaLake",
    *,
    anchors: Sequence[str] = (),
    signers: Path | None = None,
    layer: int | None = None,
    neuron: int | None = None,
    recompute: int = 3,
    seed: int = 0,
    quick: bool = False,
) -> Audit:
    """The audit of a lake with the model, the text and the events that these settings name, as far as they are at hand."""
    from explorer.audit import Scope
    from explorer.audit import audit as audited

    with _said("reading the ledger") as status, _instance(settings) as instance:
        outside, states = (_nothing() if quick else at_hand(settings, lake)), None
        if outside.subject is not None and outside.corpus is not None:
            states = _states(settings, lake)
        scope = Scope(
            layer=layer, neuron=neuron, outside=outside, states=states, instance=instance, recompute=recompute, seed=seed,
            quick=quick,
        )  # fmt: skip
        return audited(lake, anchors=anchors, signers=signers, scope=scope, say=status.update)


@main.command()
@click.argument("neuron", required=False)
@click.option("--layer", "wanted", help="Verify all of these layers, such as 0-3,7.")
@click.option("--source", help="Verify an import: parse the files that it kept again.")
@click.option("--all", "every", is_flag=True, help="Verify all layers and imports of the lake.")
@recompute_option
@draw_option
@click.option("--json", "as_json", is_flag=True, help="A list of {name, at, outcome, said, neurons}.")
@settings_options
@reported
def verify(  # noqa: PLR0917
    neuron: str | None,
    wanted: str | None,
    source: str | None,
    every: bool,  # noqa: FBT001 (click passes flags by name)
    recompute: int,
    draw: int,
    as_json: bool,  # noqa: FBT001
    **flags: Any,
) -> None:
    """Compute a neuron's numbers again, from the model's files to the scores, and say "equal" or which link is broken.

    Exits with 0 if all that could be compared is equal, 1 if something differs, 2 if nothing could be compared.
    """
    from explorer import originals
    from explorer.verify import DIFFERS, NOT_CHECKED, captured_layers
    from explorer.verify import verify as verified

    with _run_or_say_why():
        if (neuron is not None) + (wanted is not None) + (source is not None) + every != 1:
            _not_run("say what to verify: a neuron such as 5:131, --layer 0-3, --source NAME, or --all")
        settings = load(**flags)
        layer, index = _neuron(neuron)
        lake = _lake(settings)
        known = captured_layers(lake)
        imported = [source] if source is not None else sorted(originals.sources(lake)) if every else []
        layers = (
            [] if source is not None
            else [layer] if layer is not None
            else known if every
            else layer_range(wanted, max(known, default=-1) + 1)
        )  # fmt: skip
        with _said("opening the model") as status:
            outside = at_hand(settings, lake) if layers else _nothing()
            links: list[Link] = []
            for place, each in enumerate(layers):
                links += verified(
                    lake, each, index, outside=outside, recompute=recompute, seed=draw, say=status.update,
                    # The documents of all layers are the same.
                    with_documents=place == 0,
                )  # fmt: skip
            for name in imported:
                links += originals.links(lake, name, say=status.update)
    if as_json:
        click.echo(json.dumps([asdict(link) for link in links]))
    else:
        _print_links(links, screen())
    outcomes = {link.outcome for link in links}
    sys.exit(FINDINGS if DIFFERS in outcomes else NOT_RUN if outcomes == {NOT_CHECKED} else CLEAN)


@main.command()
@click.argument("score")
@click.option("--json", "as_json", is_flag=True, help="A list of {name, says, facts}.")
@settings_options
@reported
def why(score: str, as_json: bool, **flags: Any) -> None:  # noqa: FBT001 (click passes flags by name)
    """Where a score came from, down to file bytes. SCORE is its identity (or 8 digits of it), or a neuron: its main score."""
    from explorer.terminal import harmless
    from explorer.why import find
    from explorer.why import why as chain

    lake = _lake(load(**flags))
    layer, index = _place(score)
    hops = chain(lake, find(lake, score, layer=layer, neuron=index))
    if as_json:
        click.echo(json.dumps([asdict(hop) for hop in hops], default=str))
        return
    console = screen()
    for hop in hops:
        console.print(Text(harmless(hop.says)))


@main.command()
@click.option("--seal-all", is_flag=True, help="Seal commits that nothing vouches for too, as they stand.")
@click.option("--look-only", is_flag=True, help="Mend nothing.")
@click.option("--no-endpoint", is_flag=True, help="Send nothing to the language model.")
@click.option("--json", "as_json", is_flag=True, help="A list of {of, outcome, said}.")
@settings_options
@reported
def doctor(seal_all: bool, look_only: bool, no_endpoint: bool, as_json: bool, **flags: Any) -> None:  # noqa: FBT001
    """Look at lake, Dagster, model, corpus and endpoint before money is spent, and mend what a killed run left behind.

    Exits with 0 if all is well or mended, 1 if something needs a person, 2 if it could not run.
    """
    from assets.definitions import build, open_lake
    from explorer import doctor as looks
    from explorer.condition import ILL, Condition
    from resources.instance import instance

    with _run_or_say_why():
        settings = load(**flags)
        lake = open_lake(settings)
        with _said("looking at the lake") as status:
            found = list(looks.lake(lake, seal_all=seal_all, mend=not look_only))
            status.update("looking at the model and the corpus")
            found += [*looks.model(settings, lake), *looks.corpus(settings)]
            usable = not any(each.outcome == ILL and each.of in ("lake", "model", "corpus") for each in found)
            if (usable and lake.version("materializations") is not None and not look_only) or _has_instance(settings):
                status.update("looking at Dagster")
                try:
                    with instance(settings) as opened:
                        definitions = build(settings) if usable else None
                        found += looks.instance(opened, lake, definitions, mend=not look_only)
                except SettingsError as error:
                    found.append(Condition("Dagster", ILL, str(error)))
            if not no_endpoint:
                status.update("asking the language model")
                found += looks.endpoint(settings, lake)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found]))
    else:
        _print_conditions(found, screen())
    sys.exit(FINDINGS if any(each.outcome == ILL for each in found) else CLEAN)


@export_group.command("prov")
@FOLDER
@click.argument("scores", nargs=-1)
@click.option("--without-data", is_flag=True, help="Leave out the data files of the tables.")
@click.option("--replace", is_flag=True, help="Replace an earlier export in this folder.")
@click.option("--json", "as_json", is_flag=True, help="{lake, head, scores, n_files}.")
@settings_options
@reported
def export_prov(
    folder: Path,
    scores: tuple[str, ...],
    without_data: bool,  # noqa: FBT001
    replace: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
    **flags: Any,
) -> None:
    """A bundle for auditors: tables, ledger, PROV-JSON, OpenLineage, RO-Crate, and a verify.py that needs only Python.

    SCORES are identities or neurons whose chains are told; the best of each layer unless given.
    """
    from explorer import bundle
    from explorer.audit import Scope
    from explorer.audit import audit as audited
    from explorer.why import find
    from resources.export_folder import ExportFolder

    lake = _lake(load(**flags))
    rows = [find(lake, name, layer=layer, neuron=index) for name in scores for layer, index in [_place(name)]]
    with _said("auditing") as status:
        found = audited(lake, scope=Scope(quick=True), say=status.update)
        status.update("writing the bundle")
        with ExportFolder(folder, replace=replace) as out:
            about = bundle.bundle(lake, out, rows or bundle.best_scores(lake), found, data=not without_data)
    if as_json:
        click.echo(json.dumps(about))
        return
    anchor = f" --anchor {about['head']}" if about["head"] else ""
    click.echo(f"{about['n_files']:,} files in {folder}; check them with: python {folder}/verify.py{anchor}")
    if not anchor:
        click.echo("The lake has no ledger, so verify.py can only hold the files against their list.", err=True)


# ---- what is at hand


def _neuron(name: str | None) -> tuple[int | None, int | None]:
    from explorer.neuron import parse

    return (None, None) if name is None else parse(name)


def _is_known(lake: "DeltaLake", layer: int | None, neuron: int | None) -> None:
    """Refuse a neuron that the lake does not have. What cannot be read is left to the audit."""
    from pipeline.errors import LakeError

    if layer is None or neuron is None:
        return
    try:
        found = lake.read("neuron_statistics", layer=layer, neurons=[neuron])
    except LakeError:
        return
    if found.is_empty():
        _not_run(f"neuron {layer}:{neuron} is not in the lake {lake.uri}; see what is there with `neuronledger status`")


def _place(name: str) -> tuple[int | None, int | None]:
    """Layer and neuron of a name that may also be the identity of a score."""
    return _neuron(name) if ":" in name.removeprefix("sha256:") else (None, None)


def _lake(settings: Settings) -> "DeltaLake":
    from assets.definitions import open_lake

    lake = open_lake(settings)
    if lake.version("materializations") is None and lake.ledger_head() is None:
        raise NeuronLedgerError(
            f"there is no lake at {lake.uri}; name one with --lake, or run `neuronledger run` first"
        )
    return lake


def _nothing() -> "Outside":
    from explorer.verify import Outside

    return Outside(why=dict.fromkeys(("subject", "corpus"), "it was left out (--quick)"))


def at_hand(settings: Settings, lake: "DeltaLake") -> "Outside":
    """Model and corpus of these settings, if they are at hand and the model is that of the lake."""
    from assets.definitions import open_subject
    from explorer.verify import Outside
    from resources.corpus import open_corpus

    subject: Any = None
    corpus: Any = None
    why: dict[str, str] = {}
    try:
        subject = open_subject(settings)
        shape = {site.layer: site.n_neurons for site in subject.layers()}
        known = dict(lake.read("subject_layers").select("layer", "n_neurons").iter_rows())
        if any(shape.get(layer) != count for layer, count in known.items()):
            subject, why["subject"] = (
                None,
                f"{settings.subject!r} is a model of another shape than that of the lake; name it with --subject",
            )
    except NeuronLedgerError as error:
        subject, why["subject"] = None, f"the model is not at hand: {error}"
    try:
        corpus = open_corpus(settings.corpus, column=settings.column)
        corpus.fingerprint()
    except (NeuronLedgerError, OSError) as error:
        corpus, why["corpus"] = None, f"the corpus is not at hand: {error}"
    return Outside(subject, corpus, {"corpus": why.get("subject", ""), **why})


def _states(settings: Settings, lake: "DeltaLake") -> "Callable[[], Sequence[State]]":
    """What is stale by these settings."""
    from assets.definitions import open_project, open_subject
    from assets.freshness import states

    def look() -> "Sequence[State]":
        subject = open_subject(settings)
        project = open_project(settings, subject)
        return states(lake, project, outside_of(settings, subject), layers=range(len(project.n_neurons)))

    return look


@contextmanager
def _instance(settings: Settings) -> "Iterator[dg.DagsterInstance | None]":
    """The Dagster instance, if there is one; none is made."""
    from resources.instance import instance

    with ExitStack() as stack:
        opened = None
        # A damaged one tells as little as none, and `doctor` says so.
        with suppress(SettingsError):
            opened = stack.enter_context(instance(settings)) if _has_instance(settings) else None
        yield opened


def _has_instance(settings: Settings) -> bool:
    return (settings.instance / "dagster.yaml").exists()


# ---- what is said


@contextmanager
def _said(first: str) -> Iterator[Status]:
    """A line on standard error that says what is being done, where that is a terminal."""
    with diagnostics().status(first) as status:
        yield status


@contextmanager
def _run_or_say_why() -> Iterator[None]:
    try:
        yield
    except (NeuronLedgerError, OSError) as error:
        _not_run(str(error))
    except BaseException as error:
        if not is_panic(error):
            raise
        _not_run(UNREADABLE)


def _not_run(why: str) -> NoReturn:
    from explorer.terminal import harmless

    click.echo(f"Error: {harmless(why)}", err=True)
    sys.exit(NOT_RUN)


def audit_as_dict(found: Audit) -> dict[str, Any]:
    """An audit as JSON has it."""
    checks = [{**asdict(check), "says": check.says, "outcome": check.outcome} for check in found.checks]
    return {"lake": found.lake, "head": found.head, "findings": found.findings, "checks": checks}


COLOURS = {"clean": "green", "equal": "green", "findings": "bold red", "differs": "bold red", "not checked": "dim"}
COLOURS |= {"well": "green", "mended": "yellow", "ill": "bold red"}


def _print_audit(found: Audit, to: Console) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("check", "holds if clean", "outcome", "looked at"):
        table.add_column(name)
    for check in found.checks:
        table.add_row(check.id, check.says, Text(check.outcome, style=COLOURS[check.outcome]), Text(check.looked_at))
    to.print(table)
    for title, lines in (
        ("Findings", [(check.id, line) for check in found.checks for line in _first(check.findings)]),
        ("To know", [(check.id, note) for check in found.checks for note in check.notes]),
        ("Not checked", [(check.id, check.not_checked) for check in found.checks if check.not_checked]),
    ):
        _list(title, lines, to)
    to.print()
    to.print(Text(f"lake {found.lake}"), soft_wrap=True)
    if found.head:
        to.print(
            Text(f"head {found.head}; note it elsewhere, and give it to a later audit as --anchor"), soft_wrap=True
        )
    to.print(f"{found.findings:,} findings" if found.findings else "no findings")


def _print_links(links: "Sequence[Link]", to: Console) -> None:
    from explorer.terminal import harmless
    from explorer.verify import DIFFERS, NOT_CHECKED

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("link", "of", "outcome", "compared"):
        table.add_column(name)
    for link in links:
        table.add_row(
            link.name, Text(link.at), Text(link.outcome, style=COLOURS[link.outcome]), Text(harmless(link.said))
        )
    to.print(table)
    broken = [link for link in links if link.outcome == DIFFERS]
    to.print()
    if broken:
        to.print(
            Text(f"The first broken link is {broken[0].name} of {broken[0].at}: {harmless(broken[0].said)}"),
            soft_wrap=True,
        )
    else:
        names = dict.fromkeys(f"{link.name} of {link.at}" for link in links if link.outcome == NOT_CHECKED)
        without = f", but for what was not checked: {'; '.join(names)}"
        if len(names) == len(links):
            to.print("nothing could be compared")
        else:
            to.print(Text("equal" + (without if names else "")), soft_wrap=True)


def _print_conditions(found: "Sequence[Condition]", to: Console) -> None:
    from explorer.terminal import harmless

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for each in found:
        table.add_row(each.of, Text(each.outcome, style=COLOURS[each.outcome]), Text(harmless(each.said)))
    to.print(table)


def _list(title: str, lines: Iterable[tuple[str, str | None]], to: Console) -> None:
    from explorer.terminal import harmless

    lines = list(lines)
    if lines:
        to.print(f"\n[bold]{title}[/]")
    for name, line in lines:
        to.print(Text(f"{name}  {harmless(line or '')}"), soft_wrap=True)


def _first(findings: Sequence[str]) -> list[str]:
    more = len(findings) - SHOWN
    return [*findings[:SHOWN], *([f"... and {more:,} more; --json has them all"] if more > 0 else [])]
