"""The command `embed`: explanations as vectors, so that they are found by meaning.

It makes the asset `explanation_embeddings` through Dagster, as `run` makes the others, of those layers where an explanation has
no embedding of this encoder, or an embedding no explanation any more.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from explorer.command import FAILED, IN_PART, complain, diagnostics, layer_range, main, reported, settings_options
from pipeline.errors import NeuronLedgerError, SettingsError
from resources.budget import Budget
from resources.settings import Settings, load

if TYPE_CHECKING:
    from assets.freshness import State
    from pipeline.ports import Encoder, Lake
    from resources.delta import DeltaLake

TABLE = "explanation_embeddings"


@main.command()
@click.option("--layers", "wanted", help="Layers whose explanations are embedded, such as 0-3,7; all unless given.")
@click.option("--budget-usd", type=click.FloatRange(0), help="Stop before the endpoint costs more than this.")
@click.option("--budget-tokens", type=click.IntRange(0), help="Stop before the endpoint reads more tokens than this.")
@settings_options
@reported
def embed(wanted: str | None, budget_usd: float | None, budget_tokens: int | None, **flags: Any) -> None:
    """Embed explanations by an --encoder, for search by meaning; what is embedded already is left alone."""
    from assets.definitions import build, open_lake, open_language, open_subject
    from assets.run import materialize
    from explorer.terminal import TerminalProgress
    from resources.encoder import open_encoder
    from resources.instance import instance

    settings = load(**flags)
    if settings.encoder is None:
        raise SettingsError(
            "there is nothing to embed with; name an encoder, such as --encoder local:demo (all-MiniLM-L6-v2, which comes with "
            "the demo), local:FOLDER, or a model of the endpoint"
        )
    lake = open_lake(settings)
    budget = Budget(usd=budget_usd, tokens=budget_tokens)
    language = open_language(settings, lake, budget=budget)
    encoder = open_encoder(settings.encoder, language)
    layers = [
        layer
        for layer in layer_range(wanted, len(open_subject(settings).layers()))
        if not lake.scan("explanations", layer=layer).head(1).collect().is_empty()
        and state(lake, encoder, layer).status != "fresh"
    ]
    made, failed = [], False
    with TerminalProgress(diagnostics()) as progress, instance(settings) as opened:
        definitions = build(settings, language=language, encoder=encoder)
        for layer in layers:
            if budget.is_used_up:
                break
            progress.say(f"{TABLE} layer {layer}")
            try:
                materialize(definitions, opened, [TABLE], layers=[layer])
                made.append(layer)
            except NeuronLedgerError as error:
                failed = True
                complain(f"{TABLE} layer {layer}: {error}")
    if not layers:
        click.echo("Every explanation has its embedding: nothing was made.")
    _counted(settings, lake, made)
    if budget.is_used_up:
        complain("the budget is used up; what was answered is kept, and the same command goes on from there")
    if failed or budget.is_used_up:
        sys.exit(IN_PART if made else FAILED)


def embedded(settings: Settings, lake: "DeltaLake", layers: Sequence[int]) -> "list[State]":
    """The states of the embeddings of some layers; none where no encoder is chosen."""
    from assets.definitions import open_language
    from resources.encoder import open_encoder

    if settings.encoder is None:
        return []
    encoder = open_encoder(settings.encoder, open_language(settings, lake))
    return [state(lake, encoder, layer) for layer in layers]


def state(lake: "Lake", encoder: "Encoder", layer: int) -> "State":
    """Whether the embeddings of a layer are those of its explanations by this encoder, and what `embed` would do if not."""
    from assets.freshness import State
    from pipeline.meaning import AT, wanted
    from resources.delta import collect

    explanations = collect(lake.scan("explanations", layer=layer).select(*AT, "text"))
    known = collect(lake.scan(TABLE, layer=layer).select("explanation_id", "identity", "missing_because"))
    if explanations.is_empty() and known.is_empty():
        return State(TABLE, layer, "missing", "there are no explanations yet")
    ours = wanted(explanations, fingerprint=encoder.fingerprint()).select("explanation_id", "identity")
    have = known.filter(known.get_column("missing_because").is_null()).select("explanation_id", "identity")
    lacking = len(ours.join(have, on=ours.columns, how="anti"))
    if known.is_empty() and lacking:
        return State(TABLE, layer, "missing", f"`neuronledger embed` makes them, by {encoder.name}")
    surplus = len(have.join(ours, on=ours.columns, how="anti"))
    said = [
        f"{count:,} {what}"
        for count, what in (
            (lacking, f"explanations have no embedding of {encoder.name}"),
            (surplus, "embeddings are of other explanations or of another encoder"),
        )
        if count
    ]
    return State(TABLE, layer, "stale" if said else "fresh", ", and ".join(said))


def _counted(settings: Settings, lake: "Lake", layers: list[int]) -> None:
    import polars as pl

    from resources.delta import collect

    for layer in layers:
        rows = collect(lake.scan(TABLE, layer=layer).select(pl.col("missing_because")))
        missing = rows.get_column("missing_because").drop_nulls()
        click.echo(
            f"layer {layer}: {len(rows) - len(missing):,} of {len(rows):,} explanations have an embedding of {settings.encoder}"
            + (f"; {len(missing):,} have none ({', '.join(sorted(set(missing)))})" if len(missing) else "")
        )
