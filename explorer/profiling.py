"""What `plan --profile` says: a model of a certain shape, and what a run with these settings would take on it."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from explorer.terminal import harmless, money
from pipeline import methods, selection
from pipeline.errors import SettingsError
from pipeline.profile import DEVICES, SHAPES, Asking, Capture, Shape, asking, capture, lake_bytes
from resources.prices import open_prices
from resources.settings import Settings

GIB = 2**30


@dataclass(frozen=True)
class Profile:
    """Everything that is estimated for one shape and one choice of settings."""

    shape: Shape
    windows: int
    length: int
    captures: tuple[Capture, ...]
    lake: int
    """Bytes."""
    explainer: str | None
    asked: Asking | None
    """None without an explainer."""
    cost_usd: float | None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def profile(name: str, settings: Settings) -> Profile:
    """The profile of one of `pipeline.profile.SHAPES` with these settings.

    Raises:
        SettingsError: there is none of this name.
    """
    if name not in SHAPES:
        raise SettingsError(f"--profile (={name!r}) must be one of {', '.join(SHAPES)}")
    shape, tokens = SHAPES[name], settings.windows * settings.length
    asked, cost = None, None
    if settings.explainer is not None:
        chosen = selection.parse(settings.select)
        asked = asking(
            shape, methods=len(methods.parse(settings.methods)), simulation=settings.simulation, neurons=chosen.count
        )
        prices, batch = open_prices(settings.price_file), settings.batch == "yes"
        price = prices.of(settings.explainer, endpoint=settings.base_url, batch=batch)
        cost = None if price is None else price.cost(prompt=asked.prompt_tokens, completion=asked.reply_tokens)
    return Profile(
        shape,
        settings.windows,
        settings.length,
        tuple(capture(shape, device, tokens=tokens) for device in DEVICES),
        lake_bytes(shape),
        settings.explainer,
        asked,
        cost,
    )


def lines(found: Profile) -> Group:
    """For the terminal."""
    shape = found.shape
    sides = ", each explained on both sides of zero" if shape.signed else ""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(f"one pass over {found.windows:,} windows of {found.length} tokens, on one")
    for name in ("time", "memory"):
        table.add_column(name, justify="right")
    for each in found.captures:
        fits = "" if each.fits else ", more than it has"
        table.add_row(each.device, _time(each.seconds), f"{each.memory / GIB:,.1f} GiB{fits}")
    said: list[Text | Table] = [
        Text(f"{shape.name}: {shape.layers} layers of {shape.neurons:,} neurons, {shape.all_neurons:,} in all{sides}"),
        table,
        Text(f"the tables of the pass, in the lake: {found.lake / GIB:,.1f} GiB"),
    ]
    if found.asked is not None:
        asked = found.asked
        said.append(
            Text(
                f"{harmless(found.explainer or '')}: {asked.requests:,} requests, about {asked.prompt_tokens:,} prompt tokens "
                f"and {asked.reply_tokens:,} reply tokens, {money(found.cost_usd)}"
            )
        )
        said.append(
            Text(
                f"to ask them: {_time(asked.seconds)} of one core, and {asked.lake / GIB:,.1f} GiB in the lake at least"
            )
        )
    said.append(
        Text(
            "Estimates from constants that were measured; pipeline/profile.py has them. Nothing was sent.", style="dim"
        )
    )
    return Group(*said)


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours:,} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
