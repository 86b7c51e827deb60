"""What is read of the lake once and kept while its table stays at its version: texts, words, records of writes.

Everything about one neuron is read when it is looked at. What belongs to no neuron would be read again for each.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import RLock
from typing import Any, TypeVar

import polars as pl

from pipeline.ports import Lake
from pipeline.texts import token_texts
from resources.delta import collect

T = TypeVar("T")


@dataclass(frozen=True)
class Window:
    """A sequence as pages need it: where it is from, and the bytes of each token."""

    document_id: str
    split: str
    offset: int
    token_ids: list[int]
    pieces: list[bytes]

    @property
    def tokens(self) -> list[str]:
        """Each token as text; bytes that are no whole character show as U+FFFD."""
        return [piece.decode("utf-8", errors="replace") for piece in self.pieces]


class Kept:
    """A lake, and what was read of it once."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._lock = RLock()
        self._kept: dict[str, tuple[Any, Any]] = {}

    def once(self, name: str, tables: Iterable[str], read: Callable[[], T]) -> T:
        """What `read` gives, read again only after one of these tables has changed."""
        versions = tuple(self.lake.version(table) for table in tables)
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

    def windows(self, sequence_ids: Iterable[str]) -> Mapping[str, Window]:
        """Those of these sequences that the lake has."""
        columns = ["sequence_id", "document_id", "split", "offset", "token_ids", "token_bytes"]
        kept = self.once("windows", ["sequences"], lambda: collect(self.lake.scan("sequences").select(columns)))
        wanted = pl.Series(sorted(set(sequence_ids)), dtype=pl.String)
        found = kept.filter(pl.col("sequence_id").is_in(wanted.implode()))
        return {row[0]: Window(*row[1:]) for row in found.iter_rows()}

    def words(self) -> Mapping[int, str]:
        """How each token looks: by itself, or where it first occurs if the vocabulary does not know it."""
        return self.once("words", ["vocabulary", "sequences"], self._words)

    def _words(self) -> Mapping[int, str]:
        met = token_texts(collect(self.lake.scan("sequences").select("sequence_id", "token_ids", "token_bytes")))
        spelled = collect(self.lake.scan("vocabulary").select("token_id", "bytes"))
        return met | {token: piece.decode("utf-8", errors="replace") for token, piece in spelled.iter_rows() if piece}

    def records(self) -> pl.DataFrame:
        """The table `materializations`."""
        return self.once("records", ["materializations"], lambda: self.lake.read("materializations"))

    def layers(self) -> pl.DataFrame:
        """The table `subject_layers`."""
        return self.once("layers", ["subject_layers"], lambda: self.lake.read("subject_layers"))
