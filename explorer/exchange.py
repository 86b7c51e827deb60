"""The commands `export` and `import`: a lake in other tools' forms, and theirs in a lake."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from explorer.command import FAILED, IN_PART, layer_range, main, reported, settings_options
from pipeline.errors import SettingsError
from resources.settings import load

SHOWN = 20
"""Rejected files that a command names."""

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


@export_group.command("huggingface")
@click.option("--name", help="Title of the dataset.")
@click.option(
    "--license", "licence", default="unknown", show_default=True, help="Licence of the tables, such as cc-by-4.0."
)
@click.option("--version", default="1.0.0", show_default=True, help="Version of the dataset.")
@export_options
@settings_options
@reported
def export_huggingface(folder: Path, wanted: str | None, replace: bool, as_json: bool, **given: Any) -> None:  # noqa: FBT001
    """A dataset for the Hugging Face hub: Parquet by table, a card, and its description in Croissant."""
    from assets import exports

    more = {name: given.pop(name) for name in ("name", "licence", "version")}
    _export(exports.huggingface, folder, wanted, replace=replace, as_json=as_json, flags=given, **more)


@export_group.command("neuronpedia")
@click.option(
    "--model", help="The model's id at Neuronpedia, such as gpt2-small; from the subject's name unless given."
)
@export_options
@settings_options
@reported
def export_neuronpedia(folder: Path, wanted: str | None, replace: bool, as_json: bool, **given: Any) -> None:  # noqa: FBT001
    """Neuronpedia's bulk files (v1/), and bodies of its upload requests within their limits (upload/)."""
    from assets import exports

    model = given.pop("model")
    if model is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,99}", model, re.ASCII):
        raise SettingsError(f"--model (={model!r}) must be small letters, digits, dots and dashes, such as gpt2-small")
    _export(exports.neuronpedia, folder, wanted, replace=replace, as_json=as_json, flags=given, model=model)


@export_group.command("csv")
@export_options
@settings_options
@reported
def export_csv(folder: Path, wanted: str | None, replace: bool, as_json: bool, **flags: Any) -> None:  # noqa: FBT001
    """Explanations, scores and statistics as CSV."""
    from assets import exports

    _export(exports.csv, folder, wanted, replace=replace, as_json=as_json, flags=flags)


@export_group.command("originals")
@click.option("--source", help="Only what was imported under this name.")
@click.option("--json", "as_json", is_flag=True, help="What was written, as JSON.")
@click.option("--replace", is_flag=True, help="Replace an earlier export in this folder.")
@FOLDER
@settings_options
@reported
def export_originals(folder: Path, source: str | None, replace: bool, as_json: bool, **flags: Any) -> None:  # noqa: FBT001
    """The files that were imported, byte for byte, each source in a folder of its name."""
    from explorer import originals

    _export(originals.give_back, folder, None, replace=replace, as_json=as_json, flags=flags, source=source)


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
    if "source" not in more:
        more["layers"] = layers
    with TerminalProgress(Console(stderr=True)) as progress, ExportFolder(folder, replace=replace) as out:
        about = write(lake, out, progress, **more)
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


CONVENTIONS = ("site", "activation_function", "number_format", "normaliser", "polarity", "splits", "tokenizer")
"""What an import may be told of its numbers."""


@main.group("import")
def import_group() -> None:
    """Take over what another system found, in tables of its own beside ours. Bad files are listed, and stop no others."""


def import_options(command: Any) -> Any:
    """What every import takes: from where, under which name, and what is known of its numbers."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="{imported, rejected: [...], rows: {...}, conventions: {...}}."),
        click.option(
            "--convention", "told", multiple=True, metavar="NAME=TEXT",
            help=f"What the numbers mean, where the files do not say: {', '.join(CONVENTIONS)}. May be given several times.",
        ),
        click.option(
            "--keep-originals", "keep", type=click.Choice(("yes", "no")), default="yes", show_default=True,
            help="Keep the files themselves in the lake too, byte for byte.",
        ),
        click.option("--source", help="Name for what is imported, such as gpt2-xl-openai; that of the form unless given."),
        click.argument("folder", type=click.Path(path_type=Path)),
    ):  # fmt: skip
        command = option(command)
    return command


IMPORTS = {
    "openai": "Files of OpenAI's release or of transformer-debugger: records, explanations, simulations, scores, related ones.",
    "neuronpedia": "Folders of Neuronpedia's exports: features, activations and explanations as batch-N.jsonl.gz.",
    "delphi": "Results of EleutherAI's delphi: explanations, and scores by simulation, detection and fuzzing.",
    "csv": "A CSV file with the columns neuron (or layer and neuron) and explanation, and author and score if there are.",
    "jsonl": "A file of JSON Lines with the same fields as `import csv`.",
}
"""What each import reads, by its form."""


def _add_import(form: str, reads: str) -> None:
    @import_group.command(form, help=reads)
    @import_options
    @settings_options
    @reported
    def of_form(folder: Path, source: str | None, told: tuple[str, ...], **options: Any) -> None:
        _import(form, folder, source, told, **options)


for _form, _reads in IMPORTS.items():
    _add_import(_form, _reads)


@import_group.command("scores")
@settings_options
@reported
def import_scores(**flags: Any) -> None:
    """Score the simulations that came with imports by our formulas, as `run --stage scores` does."""
    from explorer import stages
    from resources.budget import Budget

    stages.run(load(**flags), "scores", budget=Budget(), ours=False)


@import_group.command("words")
@click.option("--source", help="Only what was imported under this name.")
@settings_options
@reported
def import_words(source: str | None, **flags: Any) -> None:
    """Print imported explanations as CSV that `run --human-explanations FILE` simulates and scores on our texts."""
    import polars as pl

    from assets.definitions import open_lake
    from pipeline.csv_format import words

    rows = open_lake(load(**flags)).read("imported_explanations")
    if source is not None:
        rows = rows.filter(pl.col("source") == source)
    if rows.is_empty():
        known = "" if source is None else f" under the name {source!r}"
        raise SettingsError(f"no explanations were imported{known}")
    click.echo(words(rows), nl=False)


def _import(
    form: str,
    folder: Path,
    source: str | None,
    told: tuple[str, ...],
    *,
    keep: str,
    as_json: bool,
    **flags: Any,
) -> None:
    import dagster as dg

    from assets import imports
    from assets.definitions import open_lake
    from assets.run import failure
    from explorer.terminal import TerminalProgress, harmless
    from resources import code
    from resources.foreign_files import ForeignFiles
    from resources.instance import instance

    settings = load(**flags)
    name = source or form
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,39}", name, re.ASCII):
        raise SettingsError(f"--source (={name!r}) must be small letters, digits, dots and dashes, at most 40")
    conventions = dict(_convention(text) for text in told)
    foreign, place = ForeignFiles(), str(folder.expanduser().resolve())
    foreign.count(form, place)
    with TerminalProgress(Console(stderr=True)) as progress, instance(settings) as opened:
        definitions = dg.Definitions(
            assets=imports.define(code.code()),
            resources={"lake": open_lake(settings), "foreign": foreign, "progress": progress},
            executor=dg.in_process_executor,
        )
        asset = f"import_{form}"
        result = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=opened,
            asset_selection=[dg.AssetKey(asset)],
            run_config={
                "ops": {
                    asset: {
                        "config": {
                            "folder": place,
                            "source": name,
                            "conventions": conventions,
                            "keep_originals": keep == "yes",
                        }
                    }
                },
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            raise_on_error=False,
        )
    if not result.success:
        raise failure(result)
    taken = result.output_for_node(asset)
    if as_json:
        click.echo(json.dumps(taken))
    else:
        click.echo(f"{taken['imported']:,} files imported as `{name}` into {settings.lake_uri}")
        for table, rows in taken["rows"].items():
            click.echo(f"  {rows:>9,}  {table}")
    for file in taken["rejected"][:SHOWN]:
        at = "" if file["offset_in_file"] is None else f", at {file['offset_in_file']:,}"
        click.echo(harmless(f"rejected {file['path']}{at}: {file['reason']}"), err=True)
    if len(taken["rejected"]) > SHOWN:
        click.echo(f"and {len(taken['rejected']) - SHOWN:,} more; all are in the table `imported_files`", err=True)
    if taken["rejected"]:
        sys.exit(IN_PART if taken["imported"] else FAILED)


def _convention(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or name not in CONVENTIONS:
        raise SettingsError(
            f"--convention (={text!r}) must be NAME=TEXT, with one of the names {', '.join(CONVENTIONS)}"
        )
    return name, value


@main.command()
@click.argument("version")
@click.option(
    "--license", "licence", default="unknown", show_default=True, help="Licence of the tables, such as cc-by-4.0."
)
@click.option("--title", default="", help="Title of the dataset.")
@click.option("--stale", is_flag=True, help="Release tables that are not fresh too; the release says which.")
@click.option("--unaudited", is_flag=True, help="Release what the audit has findings on too; the release says which.")
@click.option("--quick", is_flag=True, help="Audit without what replays, reads the corpus, or runs the model.")
@settings_options
@reported
def release(  # noqa: PLR0917 (click passes all by name)
    version: str,
    licence: str,
    title: str,
    stale: bool,  # noqa: FBT001
    unaudited: bool,  # noqa: FBT001
    quick: bool,  # noqa: FBT001
    **flags: Any,
) -> None:
    """Release a version of the lake, such as 1.0.0, after an audit: a dataset, its card, and what it was made from."""
    import dagster as dg

    from assets.dataset_release import VERSION
    from assets.definitions import build, open_lake
    from assets.run import failure
    from explorer.auditing import audit_as_dict, audited_lake
    from explorer.terminal import TerminalProgress
    from resources.instance import instance

    settings = load(**flags)
    if not VERSION.fullmatch(version):
        raise SettingsError(f"VERSION (={version!r}) must be three numbers, such as 1.0.0")
    if (settings.releases / version).exists():
        raise SettingsError(
            f"version {version} was released already, in {settings.releases / version}; give a newer one"
        )
    audit = json.dumps(audit_as_dict(audited_lake(settings, open_lake(settings), quick=quick)))
    with TerminalProgress(Console(stderr=True)) as progress, instance(settings) as opened:
        result = (
            build(settings, progress=progress)
            .resolve_implicit_global_asset_job_def()
            .execute_in_process(
                instance=opened,
                asset_selection=[dg.AssetKey("dataset_release")],
                run_config={
                    "ops": {
                        "dataset_release": {
                            "config": {
                                "version": version,
                                "licence": licence,
                                "title": title,
                                "stale": stale,
                                "audit": audit,
                                "unaudited": unaudited,
                            }
                        }
                    },
                    "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                },
                raise_on_error=False,
            )
        )
    if not result.success:
        raise failure(result)
    place = settings.releases / version
    click.echo((place / "SUMMARY.md").read_text(encoding="utf-8"))
    click.echo(f"released in {place}")
