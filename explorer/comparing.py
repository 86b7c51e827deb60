"""The command `compare`: two states of one lake, or two lakes, and what makes their scores differ."""

import json
import re
from collections.abc import Mapping
from typing import Any

import click
import polars as pl
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from explorer.command import layer_range, main, reported, screen, settings_options
from explorer.terminal import harmless
from pipeline.comparison import PARTS, TABLES, Comparison
from pipeline.errors import SettingsError
from pipeline.ports import Lake
from resources.delta import collect
from resources.settings import Settings, load

SHOWN = 10
"""Neurons that are shown; `--json` has all."""


@main.command()
@click.argument("a")
@click.argument("b")
@click.option("--layers", "wanted", help="Layers to compare, such as 0-3,7; all of them unless given.")
@click.option("--json", "as_json", is_flag=True, help="{a, b, neurons, scores, methods}, each a list of rows.")
@settings_options
@reported
def compare(a: str, b: str, wanted: str | None, as_json: bool, **flags: Any) -> None:  # noqa: FBT001 (click passes flags by name)
    """What differs between A and B, and how much of a score's difference is due to texts, words, simulator or weights.

    Each is a lake (`.` for the one of the settings), and may go on with @ and a run or a time, as in `.@0f3c` or
    `.@2026-03-01T12:00`: the lake as it was after that run, or at that time (UTC unless it says otherwise); a commit
    (`.@scores@7`) or a head of the ledger names one too. Nothing is asked of a language model.
    """
    # Compiled loops come with this, and every command would wait for them.
    from explorer import compared

    settings = load(**flags)
    sides = [_side(side, settings) for side in (a, b)]
    layers = set.intersection(*(_scored(side) for side in sides))
    if wanted is not None:
        layers &= set(layer_range(wanted, max(layers, default=-1) + 1))
    if not layers:
        raise SettingsError(f"{a} and {b} have no layer in common that was scored; run both first, or see `status`")
    found = compared.whole_layers(sides[0], sides[1], sorted(layers), seed=settings.seed)
    if as_json:
        click.echo(json.dumps({"a": a, "b": b, **found.as_dict()}))
        return
    screen().print(shown(found, a, b))


def shown(found: Comparison, a: str, b: str) -> Group:
    """A comparison for the terminal."""
    neurons, scores = found.neurons, found.scores
    both = neurons.filter(pl.col("in_a") & pl.col("in_b"))
    same = scores.filter(pl.col("text_a").eq_missing(pl.col("text_b")))
    lines: list[RenderableType] = [
        Text(f"a = {harmless(a)}, b = {harmless(b)}"),
        Text(
            f"{len(both):,} neurons in both (sides of zero counted apart), {len(neurons) - len(both):,} in one; of a "
            f"neuron's exemplars {_number(both.get_column('exemplar_overlap').mean())} are in both on average, and its "
            f"activations on them correlate to {_number(both.get_column('activation_correlation').mean())}"
        ),
        Text(f"{len(same):,} of {len(scores):,} explanations say the same"),
        Text(""),
        _methods(found),
    ]
    changed = scores.filter(pl.col("difference").is_not_null() & (pl.col("difference") != 0)).sort(
        pl.col("difference").abs(), descending=True
    )
    if len(changed):
        lines += [Text(""), Text(f"The largest of {len(changed):,} differences", style="bold")]
        lines += [line for row in changed.head(SHOWN).iter_rows(named=True) for line in _one(row)]
    return Group(*lines)


def _methods(found: Comparison) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("method")
    for name in (
        "pairs",
        "b - a",
        "95 % interval",
        "better/worse/equal",
        "sign test p",
        *(f"by {part}" for part in PARTS),
    ):
        table.add_column(name, justify="right")
    for row in found.methods.iter_rows(named=True):
        interval = "" if row["ci_low"] is None else f"{row['ci_low']:+.3f} to {row['ci_high']:+.3f}"
        table.add_row(
            harmless(row["method"]), f"{row['pairs']:,}", _number(row["mean_difference"], sign=True), interval,
            f"{row['better']}/{row['worse']}/{row['equal']}", _number(row["p_value"]),
            *(_number(row[part], sign=True) for part in PARTS),
        )  # fmt: skip
    return table


def _one(row: Mapping[str, Any]) -> list[Text]:
    side = "" if row["polarity"] == "+" else " (below zero)"
    parts = ", ".join(f"{part} {row[part]:+.3f}" for part in PARTS if row[part]) or "not known what by"
    lines = [
        Text(
            f"{row['layer']}:{row['neuron']}{side} {harmless(row['method'])}: {row['value_a']:.3f} to {row['value_b']:.3f} ({parts})"
        )
    ]
    if row["text_a"] == row["text_b"]:
        return [*lines, Text(f"    {harmless(row['text_a'] or '')}", style="dim")]
    return [*lines, *(Text(f"    {name}: {harmless(row[f'text_{name}'] or 'nothing')}", style="dim") for name in "ab")]


def _number(value: Any, *, sign: bool = False) -> str:
    return "" if value is None else f"{value:{'+' if sign else ''}.3f}"


def _side(named: str, settings: Settings) -> Lake:
    """The lake of one side, as it was when it says."""
    from explorer.moments import LakeThen, moment
    from resources.delta import DeltaLake

    found = re.fullmatch(r"(.*)@([a-z_]+@[0-9]+)", named) or re.fullmatch(r"(.*)@([^@]*)", named)
    where, when = (found[1], found[2]) if found else (named, "")
    lake = DeltaLake(settings.lake_uri if where in ("", ".") else where)
    if not lake.rows("scores"):
        raise SettingsError(f"{named!r} is no lake with scores; give the folder of one, or `.` for {settings.lake_uri}")
    if not when:
        return lake
    then = moment(lake, when)
    if missing := [name for name in TABLES if name not in then.versions]:
        raise SettingsError(f"{lake.uri} had no {', '.join(missing)} yet at {when}; name a later run or time")
    return LakeThen(lake, then)


def _scored(lake: Lake) -> set[int]:
    """The layers that have scores."""
    return set(collect(lake.scan("scores").select(pl.col("layer").unique())).to_series())
