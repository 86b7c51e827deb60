"""The site: pages of a lake written as files, to be read from disk or put on any web server, without a server of ours.

    index.html  5/index.html  5/131.html  5/131.json  static/

It holds the neurons that were asked for; a link to any other leads nowhere and says so. What needs a server (search,
filters, verdicts) is left out.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from explorer import lists, neuron_page, pages
from explorer.index import Filters, Index
from explorer.pages import Here
from explorer.server import STATIC, Explorer
from pipeline.errors import SettingsError

NOT_HERE = "#not-here"


@dataclass(frozen=True)
class OnDisk(Here):
    """A page in a file, which names others by their place beside it."""

    written: frozenset[str] = frozenset()
    """The paths of all pages of the site."""

    is_static = True

    @property
    def _up(self) -> str:
        return "../" * file_of(self.path).count("/")

    def url(self, path: str, **query: Any) -> str:  # noqa: ARG002 (files have no state)
        """The file of another page, from this one."""
        return self._up + file_of(path) if path in self.written else NOT_HERE

    def now(self, **changes: Any) -> str:  # noqa: ARG002 (files have no state)
        """This page."""
        return file_of(self.path).rpartition("/")[2]

    def asset(self, name: str) -> str:
        """A file of `static/`."""
        return f"{self._up}static/{name}"

    def as_json(self) -> str:
        """The file with what this page shows."""
        return self.now().removesuffix(".html") + ".json"


def file_of(path: str) -> str:
    """The file of a page, such as `5/131.html` of `/5/131`."""
    parts = [part for part in path.split("/") if part]
    return "/".join(parts) + ".html" if len(parts) == 2 else "/".join([*parts, "index.html"])


def chosen(
    explorer: Explorer, layers: Sequence[int] | None, neurons: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The neurons of the site: those named, all of the layers named, or else those that were explained or stand out."""
    index = explorer.index()
    known = index.neurons.select("layer", "neuron", "state").unique(["layer", "neuron"])
    if neurons or layers is not None:
        wanted = known.filter(pl.col("layer").is_in(list(layers or [])))
        return sorted({*neurons, *wanted.select("layer", "neuron").iter_rows()})
    home = lists.home(explorer.kept, index, explorer.home)
    found = set(known.filter(pl.col("state") == "explained").select("layer", "neuron").iter_rows())
    found |= {(row["layer"], row["neuron"]) for rows in home["interesting"].values() for row in rows}
    return sorted(found | {at for one in home["curated"] for at in one["neurons"]})


def write(
    explorer: Explorer, folder: Path, neurons: Sequence[tuple[int, int]], *, language: str = "en",
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> int:  # fmt: skip
    """Write the site of these neurons; how many pages it has.

    Raises:
        SettingsError: the folder is there and holds something, or no neuron was named.
        NotThereError: the lake has no such neuron.
    """
    if folder.exists() and any(folder.iterdir()):
        raise SettingsError(f"the folder {folder} is not empty; name a new one")
    if not neurons:
        raise SettingsError("there is nothing to show; name some with --neurons or --layers")
    layers = sorted({layer for layer, _ in neurons})
    paths = ["/", *(f"/{layer}" for layer in layers), *(f"/{layer}/{neuron}" for layer, neuron in neurons)]
    written = frozenset(paths)
    index = _only(explorer.index(), neurons)
    for done, path in enumerate(paths):
        here = OnDisk(path, {}, language, written=written)
        parts = [int(part) for part in path.split("/") if part]
        if len(parts) == 2:
            name, found = "neuron", explorer.one(*parts)
        elif parts:
            found = lists.layer(explorer.kept, index, parts[0], Filters(), size=max(1, len(index.neurons)))
            name, found = "layer", found | {"fresh": asdict(explorer.staleness.of(parts[0], patience=60))}
        else:
            name, found = "home", explorer.at_a_glance(patience=60)
        found = _for_strangers(found)
        target = folder / file_of(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = pages.dressed(name, here, found, island=found if name == "neuron" else None)
        target.write_bytes(text.encode("utf-8", errors="replace"))
        target.with_suffix(".json").write_text(json.dumps(found, default=str, allow_nan=False), encoding="ascii")
        progress(done + 1, len(paths))
    (folder / "static").mkdir(exist_ok=True)
    for name in STATIC:
        shutil.copyfile(Path(__file__).parent / "static" / name, folder / "static" / name)
    return len(paths)


def _for_strangers(found: dict[str, Any]) -> dict[str, Any]:
    """What a page shows, without the places of this machine: the lake is called by its last name alone."""
    if "uri" not in found:
        return found
    name = found["uri"].rstrip("/").rpartition("/")[2]
    if "commands" not in found:
        return {**found, "uri": name}
    calls = {key: {**call, "endpoint": None, "error": None} for key, call in found["calls"].items()}
    read = neuron_page.snippet(name, found["layer"], found["neuron"])
    return {**found, "uri": name, "calls": calls, "people": None, "commands": {**found["commands"], "read": read}}


def _only(index: Index, neurons: Sequence[tuple[int, int]]) -> Index:
    """The index with the neurons of the site alone."""
    wanted = pl.DataFrame(list(neurons), schema={"layer": pl.Int32, "neuron": pl.Int32}, orient="row")
    return replace(index, neurons=index.neurons.join(wanted, on=["layer", "neuron"], how="semi", maintain_order="left"))
