"""Pages: from what is shown to HTML. Nothing is read here, and nothing is sent.

Every text is escaped by the templates, after characters that could disturb a reader are made visible: control
characters, marks that turn the direction of writing, and halves of characters.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from explorer import charts, words
from explorer.heat import digits, excerpts, heat, number, overlaid, visible
from explorer.neuron_page import main_cell, sentence

LONGEST_TEXT = 20_000
"""Letters shown of a text that is no token; more is cut, and the page says how much."""


@dataclass(frozen=True)
class Here:
    """Where a page stands: its path and state, so that links can change one thing and keep the rest."""

    path: str = "/"
    query: Mapping[str, str] = field(default_factory=dict)
    language: str = "en"
    kept: tuple[str, ...] = ("lang", "v")
    """What every link takes along."""

    is_static = False

    @property
    def is_old(self) -> bool:
        """Whether it shows how the lake was, and not how it is: nothing can be said or noted there."""
        return bool(self.query.get("v"))

    def url(self, path: str, **query: Any) -> str:
        """The address of another page."""
        kept = {name: self.query[name] for name in self.kept if name in self.query}
        found = {name: value for name, value in {**kept, **query}.items() if value not in (None, "")}
        return path + (f"?{urlencode(found)}" if found else "")

    def now(self, **changes: Any) -> str:
        """The address of this page with some of its state changed; None takes something out."""
        found = {name: value for name, value in {**self.query, **changes}.items() if value not in (None, "")}
        return self.path + (f"?{urlencode(found)}" if found else "")

    def asset(self, name: str) -> str:
        """The address of a file of `static/`."""
        return f"/static/{name}"

    def as_json(self) -> str:
        """The address of what this page shows, as JSON."""
        query = f"?{urlencode(self.query)}" if self.query else ""
        return f"{self.path.rstrip('/') or '/index'}.json{query}"


def prose(text: str | None) -> str:
    """Text of several lines: as `visible`, with its line breaks."""
    return "\n".join(visible(line, most=LONGEST_TEXT) for line in (text or "").split("\n"))


def score(value: float | None) -> str:
    """A score to three decimals; a dash for what is missing."""
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def signed(value: float | None) -> str:
    """A difference of scores, with its sign."""
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def short(tagged: str | None) -> str:
    """The first digits of a tagged hash."""
    return "–" if not tagged else visible(tagged.partition(":")[2][:12] or tagged[:12])


def when(moment: str | datetime | None) -> str:
    """A moment to the minute, UTC."""
    if moment is None:
        return "–"
    return (moment if isinstance(moment, str) else moment.isoformat())[:16].replace("T", " ") + " UTC"


def money(usd: float | None) -> str:
    """US dollars; a dash when the price is not known."""
    if usd is None:
        return "–"
    return f"${usd:,.2f}" if usd >= 1 or not usd else f"${usd:.4f}"


def asked(request: str) -> list[tuple[str, str]]:
    """The role and words of each message of a kept request. What is no request shows as one message, as it stands."""
    try:
        found = [(role, content) for role, content in json.loads(request)["messages"]]
        if all(isinstance(part, str) for message in found for part in message):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    return [("?", request)]


@cache
def environment() -> Environment:
    """The templates. A name that a page forgot to give is an error, never an empty place."""
    found = Environment(
        loader=PackageLoader("explorer"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "visible": visible, "prose": prose, "number": number, "score": score, "signed": signed, "short": short, "when": when,
        "money": money, "reason": sentence, "asked": asked,
    }  # fmt: skip
    found.globals |= {
        "charts": charts,
        "excerpts": excerpts,
        "heat": heat,
        "overlaid": overlaid,
        "main_cell": main_cell,
        "LANGUAGES": words.LANGUAGES,
    }
    return found


def page(name: str, here: Here, **shown: Any) -> str:
    """The page made by a template of this name."""
    template = environment().get_template(f"{name}.html")
    return template.render(here=here, t=words.speaker(here.language), **shown)


def notebook(neuron: Any, *, few: int = 5) -> str:
    """A neuron as a piece of HTML that stands by itself, with `few` texts of each side."""
    return environment().get_template("notebook.html").render(neuron=neuron, few=few)


DAGSTER = "http://127.0.0.1:3000"
"""Where `neuronledger ui` is, unless it was told another port."""


def dressed(name: str, here: Here, found: dict[str, Any], *, embedded: bool = False, island: Any = None) -> str:
    """The page of what was found. `island` is laid into it as JSON, for pages that can ask no server."""
    shown = DRESSED[name](here, found) if name in DRESSED else found
    return page(
        name, here, embedded=embedded, dagster=DAGSTER, island=None if island is None else laid(island), **shown
    )


def laid(shown: Any) -> Markup:
    """JSON that can stand in a script element: no text in it can end the element."""
    said = json.dumps(shown, default=str, allow_nan=False)
    for sign in "<>&":
        said = said.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(said)  # noqa: S704 (in ASCII, and without the signs that markup is made of)


def _neuron(here: Here, found: dict[str, Any]) -> dict[str, Any]:
    """What the neuron's template needs besides: points to draw, rows of small tables, words on commands."""

    t, compared, statistics = words.speaker(here.language), found["compared"], found["statistics"]
    records = [] if compared is None else [one for one in compared["records"] if one["expected"] is not None]
    edges = charts.edges()
    filled = [place for place, count in enumerate(statistics["histogram"]) if count]
    bins = range(filled[0], filled[-1] + 1) if filled else range(0)
    names = [one["sequence_id"] for side in found["texts"] for group in side["groups"] for one in group["records"]]
    return found | {
        "digits": digits(names),
        "points": [
            pair for one in records for pair in zip(one["expected"], one["true"], strict=True) if pair[0] is not None
        ],
        "bins": [(edges[place], edges[place + 1], statistics["histogram"][place]) for place in bins],
        "quantiles": list(zip(("50 %", "90 %", "99 %", "99.9 %"), statistics["quantile_boundaries"], strict=False)),
        "commands": [
            (t("To compute this neuron again, and nothing else"), found["commands"]["recompute"]),
            (t("To run everything again and compare it with what is kept"), found["commands"]["verify"]),
            (t("The same in a terminal"), found["commands"]["show"]),
            (t("To read what this page shows, in Python"), found["commands"]["read"]),
        ],
    }  # fmt: skip


def _listed(here: Here, found: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001 (all are dressed alike)
    """What lists need besides: what the bars stand for."""
    return found | {"labels": [f"{place / 10 - 1:.1f} … {place / 10 - 0.9:.1f}" for place in range(20)]}


DRESSED: Mapping[str, Callable[[Here, dict[str, Any]], dict[str, Any]]] = {
    "neuron": _neuron, "home": _listed, "layer": _listed,
}  # fmt: skip
"""What a page adds to what it shows."""
