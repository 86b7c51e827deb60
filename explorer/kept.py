"""What is read of the lake once and kept while its table stays at its version: texts, words, records of writes.

Everything about one neuron is read when it is looked at. What belongs to no neuron would be read again for each.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from threading import Lock, RLock
from typing import Any, TypeVar

import polars as pl

from explorer.blocks import Blocks, width
from pipeline.ports import Lake
from pipeline.records import read as records_of
from pipeline.tables import TABLES
from pipeline.texts import token_texts
from resources.delta import collect

T = TypeVar("T")
SECONDS = 2.0
UNCHANGED = frozenset({"windows", "words"})
"""The largest of what is kept, which hardly ever changes."""
MOST_WINDOWS = 4_096
"""Windows whose tokens are kept as text: about 10 KB each."""


@dataclass(frozen=True)
class Window:
    """A sequence as pages need it: where it is from, and the bytes of each token."""

    document_id: str
    split: str
    offset: int
    token_ids: list[int]
    pieces: list[bytes]

    @cached_property
    def tokens(self) -> list[str]:
        """Each token as text; bytes that are no whole character show as U+FFFD."""
        return [piece.decode("utf-8", errors="replace") for piece in self.pieces]


class WindowsKept:
    """The windows that were asked for last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Window] = OrderedDict()
        self._lock = Lock()

    def of(
        self, sequence_ids: Iterable[str], read: Callable[[Iterable[str]], Mapping[str, Window]]
    ) -> Mapping[str, Window]:
        """Those of these sequences that there are; `read` gives those that are not known yet."""
        wanted = set(sequence_ids)
        with self._lock:
            found = {name: self._kept[name] for name in wanted if name in self._kept}
            for name in found:
                self._kept.move_to_end(name)
        if missing := wanted - found.keys():
            new = read(missing)
            found |= new
            with self._lock:
                self._kept |= new
                while len(self._kept) > MOST_WINDOWS:
                    self._kept.popitem(last=False)
        return found


class Kept:
    """A lake, and what was read of it once.

    Of a lake as it was at some time, `now` is what is kept of today's: what did not change since is not read again.
    """

    def __init__(self, lake: Lake, now: "Kept | None" = None) -> None:
        self.lake = lake
        self._now = now
        self._asked: dict[str, tuple[float, int | None]] = {}
        self._lock = RLock()
        self._kept: dict[str, tuple[Any, Any]] = {}
        self._blocks = Blocks()

    def once(self, name: str, tables: Iterable[str], read: Callable[[], T]) -> T:
        """What `read` gives, read again only after one of these tables has changed."""
        tables = list(tables)
        versions = tuple(map(self.version, tables))
        if self._now is not None and name in UNCHANGED and versions == tuple(map(self._now.version, tables)):
            return self._now.once(name, tables, read)
        known = self._kept.get(name)
        if known is None or known[0] != versions:
            with self._lock:
                known = self._kept.get(name)
                if known is None or known[0] != versions:
                    known = self._kept[name] = versions, read()
        found: T = known[1]
        return found

    def ready(self, name: str) -> Any | None:
        """What was read under this name, even if something was written since; None if nothing was."""
        known = self._kept.get(name)
        return None if known is None else known[1]

    def state(self) -> tuple[int | None, ...]:
        """The versions of all tables: as long as they stay, so does everything that pages show of them."""
        return tuple(map(self.version, TABLES))

    def version(self, table: str) -> int | None:
        """The version of a table now; in an object store, where to ask takes long, now or up to `SECONDS` ago."""
        if "://" not in self.lake.uri:
            return self.lake.version(table)
        known = self._asked.get(table)
        if known is None or time.monotonic() - known[0] > SECONDS:
            known = self._asked[table] = time.monotonic(), self.lake.version(table)
        return known[1]

    def look_again(self) -> None:
        """Take no version for known: something was written here."""
        self._asked.clear()

    def beside(self, table: str, layer: int, neuron: int) -> pl.DataFrame:
        """The rows of one neuron, in the order of the table, read with those of the neurons beside it and kept.

        Raises:
            LakeError: a data file is damaged or gone.
        """
        version = self.version(table)
        counts: dict[int, int] = self.once(f"rows of {table}", [table], dict)
        if layer not in counts:
            counts[layer] = self.lake.rows(table, layer=layer)
        wide = width(counts[layer], self.n_neurons().get(layer, 0))

        def read(neurons: range) -> pl.DataFrame:
            return self.lake.read(table, layer=layer, neurons=neurons)

        return self._blocks.rows((table, layer, version), neuron, wide, read)

    def windows(self, sequence_ids: Iterable[str]) -> Mapping[str, Window]:
        """Those of these sequences that the lake has."""
        known: WindowsKept = self.once("windows as text", ["sequences"], WindowsKept)
        return known.of(sequence_ids, self._windows)

    def _windows(self, sequence_ids: Iterable[str]) -> Mapping[str, Window]:
        columns = ["sequence_id", "document_id", "split", "offset", "token_ids", "token_bytes"]
        kept = self.once(
            "windows",
            ["sequences"],
            lambda: collect(self.lake.scan("sequences").select(columns)).sort("sequence_id"),
        )
        wanted = pl.Series(sorted(set(sequence_ids)), dtype=pl.String)
        places = kept.get_column("sequence_id").search_sorted(wanted)
        found = kept[places.filter(places < len(kept))]
        known = set(wanted)
        return {row[0]: Window(*row[1:]) for row in found.iter_rows() if row[0] in known}

    def words(self) -> Mapping[int, str]:
        """How each token looks: by itself, or where it first occurs if the vocabulary does not know it."""
        return self.once("words", ["vocabulary", "sequences"], self._words)

    def _words(self) -> Mapping[int, str]:
        met = token_texts(collect(self.lake.scan("sequences").select("sequence_id", "token_ids", "token_bytes")))
        spelled = collect(self.lake.scan("vocabulary").select("token_id", "bytes"))
        return met | {token: piece.decode("utf-8", errors="replace") for token, piece in spelled.iter_rows() if piece}

    def records(self) -> pl.DataFrame:
        """The table `materializations`."""
        return self.once("records", ["materializations"], lambda: records_of(self.lake))

    def write(self, table: str, layer: int, neuron: int, runs: Collection[str] | None) -> dict[str, Any] | None:
        """The last finished write of a table that holds this neuron's rows, of these runs if they are given."""
        mine = self.writes(table, layer, neuron)
        return next((row for row in mine if runs is None or row["run_id"] in runs), None)

    def writes(self, table: str, layer: int, neuron: int) -> list[dict[str, Any]]:
        """The finished writes of a table that held this neuron's rows, the latest first."""
        return [
            row
            for row in self.once("writes", ["materializations"], self._writes).get(table, ())
            if row["layer"] in (layer, None) and (row["neurons"] is None or neuron in row["neurons"])
        ]

    def _writes(self) -> Mapping[str, list[dict[str, Any]]]:
        """The finished writes of each table, the latest first."""
        writes: dict[str, list[dict[str, Any]]] = {}
        done = self.records().filter(pl.col("status") == "done").sort("finished_at", maintain_order=True)
        for row in done.reverse().iter_rows(named=True):
            writes.setdefault(row["table"], []).append(row)
        return writes

    def dates(self, table: str) -> Mapping[str, datetime]:
        """When each run last wrote a table."""
        return self.once(f"dates of {table}", ["materializations"], lambda: self._dates(table))

    def _dates(self, table: str) -> Mapping[str, datetime]:
        return dict(self.records().filter(pl.col("table") == table).select("run_id", "finished_at").iter_rows())

    def layers(self) -> pl.DataFrame:
        """The table `subject_layers`."""
        return self.once("layers", ["subject_layers"], lambda: self.lake.read("subject_layers"))

    def layer(self, number: int) -> Mapping[str, Any]:
        """The row of one layer in it; empty if there is none."""
        known = self.once(
            "layers by number",
            ["subject_layers"],
            lambda: {row["layer"]: row for row in self.layers().iter_rows(named=True)},
        )
        return known.get(number, {})

    def n_neurons(self) -> Mapping[int, int]:
        """How many neurons each layer has."""
        return self.once(
            "neurons of layers",
            ["subject_layers"],
            lambda: dict(self.layers().select("layer", "n_neurons").iter_rows()),
        )
