"""Looking from the terminal: `search` for neurons by what is said of them, and `try` a text of one's own on them.

The same code as behind the pages `/search` and `/text`, so that both say the same.
"""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from explorer.command import FAILED, main, reported, screen, settings_options
from explorer.live import NotAtHandError
from pipeline.errors import SettingsError
from resources.settings import Settings, load

if TYPE_CHECKING:
    from pipeline.ports import Encoder, SubjectModel

SHOWN = 15
"""Neurons named in the terminal among those that fire most; `--json` has more."""
JSON_OF_A_SEARCH = "{q, count, page, pages, sort, facets, rows: [{layer, neuron, polarity, text, method, value, ...}]}."
JSON_OF_A_TEXT = "{text, closed, why, read: {tokens, token_ids, firing: [...], shown: [...], at: [...]}}."


@main.command()
@click.argument("words", nargs=-1)
@click.option("--token", help="Neurons with a high mean activation on this token, by their token lists.")
@click.option("--meaning", is_flag=True, help="What means like the words, by the embeddings that `embed` made.")
@click.option("--layer", type=click.IntRange(0), help="Of this layer alone.")
@click.option("--method", help="Explanations of this method alone, such as token-lookup.")
@click.option("--state", help="`explained`, `not_explained`, `failed` or `dead`.")
@click.option("--least", help="Smallest score.")
@click.option("--most", help="Largest score.")
@click.option("--sort", help="`match`, `neuron`, `score`, `gain`, `lookup`, `maximum` or `fires`.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Neurons shown.")
@click.option("--json", "as_json", is_flag=True, help=JSON_OF_A_SEARCH)
@settings_options
@reported
def search(  # noqa: PLR0917 (click passes all by name)
    words: tuple[str, ...],
    token: str | None,
    meaning: bool,  # noqa: FBT001 (click passes flags by name)
    layer: int | None,
    method: str | None,
    state: str | None,
    least: str | None,
    most: str | None,
    sort: str | None,
    limit: int,
    as_json: bool,  # noqa: FBT001 (click passes flags by name)
    **flags: Any,
) -> None:
    """Neurons whose explanation holds all these WORDS, the best match first; without words, the best scores."""
    from explorer import lists
    from explorer.index import FilterError, Filters, index
    from explorer.meaning import Meaning

    if token is not None and (words or method or meaning):
        raise SettingsError("--token is a search by itself; leave out the words, --method and --meaning")
    if meaning and not words:
        raise SettingsError("--meaning needs words that say what to look for")
    settings = load(**flags)
    kept = _kept(settings)
    asked = {
        "q": " ".join(words) if token is None else token, "by": "meaning" if meaning else None, "method": method if token is None else "token-lookup",
        "layer": layer, "state": state, "least": least, "most": most, "sort": sort,
    }  # fmt: skip
    filters = Filters.of({name: str(value) for name, value in asked.items() if value is not None})
    try:
        files = settings.instance / "explorer"
        by_meaning = Meaning(files, encoder_of(settings, far=True))
        found = lists.search(kept, index(kept, files), filters, by_meaning, size=limit, patience=None)
    except FilterError as error:
        raise SettingsError(str(error)) from None
    if meaning and found["by"] != "meaning":
        raise NotAtHandError(found["semantic"])
    if as_json:
        click.echo(json.dumps(found, default=str))
        return
    console = screen()
    if not found["count"]:
        console.print("Nothing was found.")
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name, right in (
        ("neuron", False),
        *((("near", True),) if meaning else ()),
        ("score", True),
        ("tokens alone", True),
        ("method", False),
        ("explanation", False),
    ):
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "explanation")
    for row in found["rows"]:
        table.add_row(
            _name(row),
            *((_number(row["closeness"], 2),) if meaning else ()),
            _number(row["value"]),
            _number(row["lookup"]),
            _harmless(_by(row)),
            _harmless(_said(row)),
        )
    console.print(table)
    if found["count"] > len(found["rows"]):
        click.echo(f"{found['count']:,} found; {len(found['rows'])} shown (--limit)", err=True)


@main.command("try")
@click.argument("text")
@click.option(
    "--neurons", default="", help="Where these fire, such as 5:131,5:204; by default the first few of the most."
)
@click.option("--layer", type=click.IntRange(0), help="Look at this layer alone.")
@click.option("--order", type=click.Choice(["share", "z"]), default="share", show_default=True, help="What is most.")
@click.option("--json", "as_json", is_flag=True, help=JSON_OF_A_TEXT)
@settings_options
@reported
def try_(text: str, neurons: str, layer: int | None, order: str, as_json: bool, **flags: Any) -> None:  # noqa: FBT001
    """What the neurons do on a TEXT of your own: where those you name fire, and which fire most against the corpus."""
    from assets.definitions import open_subject
    from explorer import own_text
    from explorer.index import FilterError, index
    from explorer.live import Live

    settings = load(**flags)
    kept = _kept(settings)
    live: Live[SubjectModel] = Live(lambda: open_subject(settings))
    query = {"text": text, "neurons": neurons, "order": order} | ({} if layer is None else {"layer": str(layer)})
    if not text.strip():
        raise SettingsError("TEXT is empty; write some words between quotes")
    try:
        found = own_text.gather(kept, live, own_text.Asked.of(query), patience=None)
    except FilterError as error:
        raise SettingsError(str(error)) from None
    found = own_text.explained(found, lambda: index(kept, settings.instance / "explorer"))
    if as_json:
        click.echo(json.dumps(found, default=str))
    else:
        _told(found)
    if found["read"] is None:
        if not as_json:
            click.echo(f"Error: {_harmless(found['why'])}", err=True)
        raise SystemExit(FAILED)


def _told(found: Mapping[str, Any]) -> None:
    console, read = screen(), found["read"]
    for reason in found["closed"].values():
        click.echo(_harmless(reason), err=True)
    if read is None:
        return
    if read["left_out"]:
        click.echo(
            f"The last {read['left_out']:,} tokens were left out: the model does not read more at once.", err=True
        )
    colour = console.color_system is not None
    for one in read["shown"]:
        if one["steps"] is None:
            continue
        positive = one["polarity"] == "+"
        peak, most = (
            (max(one["activations"]), one["maximum"]) if positive else (min(one["activations"]), -one["maximum"])
        )
        console.print(Text.assemble((_name(one), "bold cyan"), f"  {peak:.4g} of {most:.4g} in the corpus"))
        console.print(_marked(read["tokens"], one["steps"], colour=colour))
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name, right in (
        ("neuron", False),
        ("at", False),
        ("activation", True),
        ("share", True),
        ("z", True),
        ("explanation", False),
    ):
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "explanation")
    for row in read["firing"][:SHOWN]:
        table.add_row(
            _name(row), _harmless(read["tokens"][row["token"]]).strip(), f"{row['peak']:.4g}", _number(row["share"], 2),
            _number(row["z"], 1), _harmless(_cut(row["explanation"] or "", 120)),
        )  # fmt: skip
    if read["firing"]:
        console.print()
        console.print(table)


def encoder_of(settings: Settings, *, far: bool = False) -> "Callable[[], Encoder] | None":
    """What opens the encoder of these settings; None without one. One of an endpoint only if `far`: pages send nothing."""
    name = settings.encoder
    if name is None:
        return None

    def look() -> "Encoder":
        from assets.definitions import open_lake, open_language
        from resources.encoder import open_encoder
        from resources.local_language import is_local

        if not far and not is_local(name):
            raise SettingsError(
                f"{name} is a model of an endpoint, and pages send nothing; search by it with `neuronledger search --meaning`"
            )
        return open_encoder(name, open_language(settings, open_lake(settings)))

    return look


def _kept(settings: Settings) -> Any:
    from assets.definitions import open_lake
    from explorer.kept import Kept

    return Kept(open_lake(settings))


def _marked(tokens: list[str], steps: list[int], *, colour: bool) -> Text:
    from explorer.terminal import marked

    return marked(tokens, steps, colour=colour)


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['layer']}:{row['neuron']}" + (" −" if row["polarity"] == "-" else "")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _by(row: Mapping[str, Any]) -> str:
    return (row["method"] or "–") + ("" if row["explainer"] in (None, "none") else f", {row['explainer']}")


def _said(row: Mapping[str, Any]) -> str:
    if row["text"] is not None:
        return _cut(row["text"], 220)
    return "not explained" if row["missing_because"] is None else f"none, because {row['missing_because']}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _harmless(text: str) -> str:
    from explorer.terminal import harmless

    return harmless(text)
