"""The commands of an auditor: `audit`. What they find is made elsewhere; here it is asked for and printed."""

import json
import sys
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from explorer.cli import diagnostics, main, reported, screen, settings_options
from pipeline.audit import SHOWN, Audit
from pipeline.errors import NeuronLedgerError
from resources.settings import load

CLEAN, FINDINGS, NOT_RUN = 0, 1, 2


@main.command()
@click.option("--anchor", "anchors", multiple=True, help="A head of the ledger that you noted earlier.")
@click.option("--json", "as_json", is_flag=True, help="{lake, head, findings, checks: [{id, says, outcome, ...}]}.")
@settings_options
@reported
def audit(anchors: tuple[str, ...], as_json: bool, **flags: Any) -> None:  # noqa: FBT001 (click passes flags by name)
    """Whether the lake is what was written, and what nobody checked. Exits with 0 clean, 1 findings, 2 not run."""
    from assets.definitions import open_lake
    from explorer.audit import audit as audited

    settings = load(**flags)
    if wrong := [anchor for anchor in anchors if not anchor.startswith("sha256:")]:
        _not_run(f"--anchor (={wrong[0]!r}) must be a head as a run prints it, such as sha256:0f3a...")
    try:
        lake = open_lake(settings)
        if lake.version("materializations") is None and not (lake.ledger and lake.ledger.path.exists()):
            _not_run(f"there is no lake at {lake.uri}; name one with --lake, or run `neuronledger run` first")
        with diagnostics().status("reading the ledger") as status:
            found = audited(lake, anchors=anchors, say=status.update)
    except NeuronLedgerError as error:
        _not_run(str(error))
    if as_json:
        click.echo(json.dumps(as_dict(found)))
    else:
        _print(found, screen())
    sys.exit(FINDINGS if found.findings else CLEAN)


def as_dict(found: Audit) -> dict[str, Any]:
    """An audit as JSON has it."""
    checks = [{**asdict(check), "says": check.says, "outcome": check.outcome} for check in found.checks]
    return {"lake": found.lake, "head": found.head, "findings": found.findings, "checks": checks}


def _print(found: Audit, to: Console) -> None:
    from explorer.terminal import harmless

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("check", "holds if clean", "outcome", "looked at"):
        table.add_column(name)
    colours = {"clean": "green", "findings": "bold red", "not checked": "dim"}
    for check in found.checks:
        table.add_row(check.id, check.says, Text(check.outcome, style=colours[check.outcome]), check.looked_at)
    to.print(table)
    for title, lines in (
        ("Findings", [(check.id, line) for check in found.checks for line in _first(check.findings)]),
        ("To know", [(check.id, note) for check in found.checks for note in check.notes]),
        ("Not checked", [(check.id, check.not_checked) for check in found.checks if check.not_checked]),
    ):
        if lines:
            to.print(f"\n[bold]{title}[/]")
        for name, line in lines:
            to.print(Text(f"{name}  {harmless(line)}"), soft_wrap=True)
    to.print()
    to.print(Text(f"lake {found.lake}"), soft_wrap=True)
    if found.head:
        to.print(
            Text(f"head {found.head}; note it elsewhere, and give it to a later audit as --anchor"), soft_wrap=True
        )
    to.print(f"{found.findings:,} findings" if found.findings else "no findings")


def _first(findings: Any) -> list[str]:
    more = len(findings) - SHOWN
    return [*findings[:SHOWN], *([f"... and {more:,} more; --json has them all"] if more > 0 else [])]


def _not_run(why: str) -> None:
    click.echo(f"Error: {why}", err=True)
    sys.exit(NOT_RUN)
