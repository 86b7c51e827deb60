"""The commands `export` and `import`: a lake in other tools' forms, and theirs in a lake."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from explorer.cli import layer_range, main, reported, settings_options
from resources.settings import load

FOLDER = click.argument("folder", type=click.Path(path_type=Path))


def export_options(command: Any) -> Any:
    """What every export takes: where to, of which layers, and whether it may replace an earlier one."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="What was written, as JSON."),
        click.option("--replace", is_flag=True, help="Replace an earlier export in this folder."),
        click.option(
            "--layers", "wanted", help="Layers to export, such as 0-3,7; all that were captured unless given."
        ),
        FOLDER,
    ):
        command = option(command)
    return command


@main.group("export")
def export_group() -> None:
    """Write a lake in the form of another tool. An export is whole or not there, and the same lake gives the same bytes."""


@export_group.command("openai")
@export_options
@settings_options
@reported
def export_openai(folder: Path, wanted: str | None, replace: bool, as_json: bool, **flags: Any) -> None:  # noqa: FBT001
    """Files that OpenAI's automated-interpretability and its viewer read: activations, explanations, related ones."""
    from assets import exports

    _export(exports.openai, folder, wanted, replace=replace, as_json=as_json, flags=flags)


def _export(
    write: Any, folder: Path, wanted: str | None, *, replace: bool, as_json: bool, flags: Mapping[str, Any], **more: Any
) -> None:
    from assets.definitions import open_lake
    from explorer.terminal import TerminalProgress
    from resources.export_folder import ExportFolder

    lake = open_lake(load(**flags))
    layers = None
    if wanted is not None:
        sites = lake.read("subject_layers")
        layers = layer_range(wanted, max(sites.get_column("layer").to_list(), default=-1) + 1)
    with TerminalProgress(Console(stderr=True)) as progress, ExportFolder(folder, replace=replace) as out:
        about = write(lake, out, progress, layers=layers, **more)
    if as_json:
        click.echo(json.dumps(about))
        return
    click.echo(f"{out.files:,} files, {out.bytes / 2**20:,.1f} MiB, in {out.path}")
    for kind, count in about.get("files", {}).items():
        click.echo(f"  {count:>9,}  {kind}")
    if about.get("not_carried"):
        click.echo("What the format has no field for:")
        for line in about["not_carried"]:
            click.echo(f"  - {line}")
    sys.stdout.flush()
