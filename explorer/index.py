"""The index: one row for each explanation and one for each neuron of a lake, for lists, counts and searches.

It is derived from `neuron_statistics`, `explanations` and `scores`, and made again when one of them changes. Words are
found by SQLite's full-text search (BM25), in a file that can be deleted at any time; numbers are in memory.
"""

import atexit
import hashlib
import json
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from explorer.kept import Kept
from pipeline.controls import CONTROLS
from pipeline.errors import NeuronLedgerError
from pipeline.explanations import FOUND_NOTHING
from pipeline.summary import MAIN
from resources.delta import collect

SOURCES = ("neuron_statistics", "explanations", "scores")
FORM = 2
"""Raised when the file is laid out in another way."""
MOST_FOUND = 20_000
"""Explanations that a search finds at most, the best matches."""
SORTS = {
    "neuron": ("layer", "neuron"), "score": ("value",), "gain": ("gain",), "lookup": ("lookup",), "maximum": ("maximum",),
    "fires": ("fraction_positive",), "match": ("match",),
}  # fmt: skip
STATES = ("explained", "not_explained", "failed", "dead")


class FilterError(NeuronLedgerError):
    """A filter in an address is of no use."""


@dataclass(frozen=True)
class Filters:
    """What an address asks for. Every field is a name in its query; empty is no filter."""

    q: str = ""
    by: str = ""
    """`meaning` to find what means like `q`; else its words are looked for."""
    layer: str = ""
    method: str = ""
    state: str = ""
    least: str = ""
    """Smallest score."""
    most: str = ""
    """Largest score."""
    sort: str = ""
    order: str = ""
    page: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Filters":
        """The filters of an address, each cut to a sensible length."""
        return cls(**{one.name: query.get(one.name, "")[:200].strip() for one in fields(cls)})

    def expression(self, *, without: str = "") -> pl.Expr:
        """Rows that pass, by all filters but one.

        Raises:
            FilterError: a number is none, or a word is not one of those that are known.
        """
        found = pl.lit(value=True)
        if self.layer and without != "layer":
            found &= pl.col("layer") == whole(self.layer, "layer")
        if self.method and without != "method":
            found &= pl.col("method") == self.method
        if self.state and without != "state":
            if self.state not in STATES:
                raise FilterError(f"state (={self.state!r}) must be one of {', '.join(STATES)}.")
            found &= pl.col("state") == self.state
        if self.least:
            found &= pl.col("value") >= _decimal(self.least, "least")
        if self.most:
            found &= pl.col("value") <= _decimal(self.most, "most")
        return found

    def sorted(self, rows: pl.DataFrame, *, usual: str) -> pl.DataFrame:
        """The rows in the order that was asked for; what has no value comes last."""
        sort = self.sort or usual
        if sort not in SORTS or not set(SORTS[sort]) <= set(rows.columns):
            raise FilterError(f"sort (={sort!r}) must be one of {', '.join(SORTS)}.")
        down = (self.order or ("up" if sort in ("neuron", "match") else "down")) == "down"
        keys = [*SORTS[sort], "layer", "neuron", "polarity"]
        return rows.sort(keys, descending=[down] * len(SORTS[sort]) + [False] * 3, nulls_last=True, maintain_order=True)


def whole(text: str, name: str) -> int:
    """A whole number in a query.

    Raises:
        FilterError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise FilterError(f"{name} (={text!r}) must be a whole number.")
    return int(text)


def _decimal(text: str, name: str) -> float:
    if not re.fullmatch(r"-?[0-9]{0,6}(\.[0-9]{0,9})?", text) or not re.search(r"[0-9]", text):
        raise FilterError(f"{name} (={text!r}) must be a number, such as 0.5.")
    return float(text)


@dataclass(frozen=True)
class Index:
    """The lists of one state of a lake."""

    explanations: pl.DataFrame
    """A row for each explanation, in the order of the table."""
    neurons: pl.DataFrame
    """A row for each neuron and side, with its best explanation: of a language model if there is one."""
    words: Path
    """The file that words are looked up in."""

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Where the neuron of each row of `neurons` stands in the order of neurons, from the least."""
        layers, neurons = (self.neurons.get_column(name).cast(pl.Int64).to_numpy() for name in ("layer", "neuron"))
        places: NDArray[np.int64] = layers << 32 | neurons
        return places

    def find(self, words: str, *, every: bool = True) -> pl.DataFrame:
        """The explanations that hold all these words, or any unless `every`, with `match` from 0 for the best."""
        wanted = query(words) if every else any_of(words)
        if not wanted:
            return self.explanations.clear().with_columns(pl.lit(0, pl.Int64).alias("match"))
        with closing(sqlite3.connect(f"file:{self.words}?mode=ro", uri=True)) as opened:
            rows = opened.execute(
                "SELECT rowid FROM said WHERE said MATCH ? ORDER BY rank LIMIT ?", (wanted, MOST_FOUND)
            ).fetchall()
        found = pl.DataFrame({"row": [row[0] for row in rows]}, schema={"row": pl.UInt32}).with_row_index("match")
        return (
            self.explanations.with_row_index("row")
            .join(found.with_columns(pl.col("match").cast(pl.Int64)), on="row", how="inner", maintain_order="right")
            .drop("row")
        )


def best_words(kept: Kept, neurons: Iterable[tuple[int, int]]) -> Mapping[tuple[int, int], str]:
    """The best explanation of each of these neurons, as far as the index is made already: no page waits for it.

    Of a neuron with two sides the positive one's, and the other's where that has none.
    """
    known = kept.ready("index")
    return {} if known is None else by_neuron(words_of(known, neurons))


def by_neuron(said: Mapping[tuple[int, int, str], str]) -> Mapping[tuple[int, int], str]:
    """Of each neuron the words of its positive side, or else of the other."""
    return {
        (layer, neuron): text for (layer, neuron, _), text in sorted(said.items(), key=lambda one: one[0][2] == "+")
    }


def words_of(known: Index, neurons: Iterable[tuple[int, int]]) -> Mapping[tuple[int, int, str], str]:
    """The best explanation of each side of these neurons that has one."""
    wanted = np.asarray([_place(*one) for one in set(neurons)], dtype=np.int64)
    first, after = (np.searchsorted(known.places, wanted, side) for side in ("left", "right"))
    rows = [row for start, end in zip(first.tolist(), after.tolist(), strict=True) for row in range(start, end)]
    found = known.neurons.select("layer", "neuron", "polarity", "text")[rows].drop_nulls().iter_rows()
    return {(layer, neuron, polarity): text for layer, neuron, polarity, text in found}


def _place(layer: int, neuron: int) -> int:
    """Where a neuron stands in the order of neurons."""
    return layer << 32 | neuron


def query(words: str) -> str:
    """A full-text query for all these words, the last one as the beginning of a word. Nothing in them is syntax."""
    found = re.findall(r"[^\W_]+", words)
    return " ".join(f'"{word}"' for word in found[:-1]) + (f' "{found[-1]}"*' if found else "")


def any_of(words: str) -> str:
    """A full-text query for any of these words, up to 64."""
    return " OR ".join(f'"{word}"' for word in re.findall(r"[^\W_]+", words)[:64])


def index(kept: Kept, folder: Path) -> Index:
    """The index of the lake as it is now. Files go to `folder`."""
    return kept.once("index", SOURCES, lambda: _made(kept, folder))


@cache
def writable(folder: Path) -> Path:
    """The folder; another one until this process ends, where it cannot be written to: what is laid there is only derived."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        other = tempfile.TemporaryDirectory(prefix="neuronledger-explorer-")
        atexit.register(other.cleanup)
        return Path(other.name)


def _made(kept: Kept, folder: Path) -> Index:
    lake = kept.lake
    said = lake.scan("explanations").select(
        "layer", "neuron", "polarity", "explanation_id", "method", "explainer", "text", "missing_because"
    )
    main = (
        lake.scan("scores")
        .filter(MAIN)
        .select(
            "layer", "explanation_id", "value", "ci_low", "ci_high", "n_failed", pl.col("token_lookup").alias("lookup")
        )
    )
    numbers = lake.scan("neuron_statistics").select(
        "layer", "neuron", "dead", "minimum", "maximum", "fraction_positive"
    )
    at = ["layer", "neuron", "polarity"]
    explanations = collect(said).sort(*at, "method", "explanation_id")
    scores = (
        collect(main)
        .sort("value", descending=True, nulls_last=True)
        .unique(["layer", "explanation_id"], keep="first", maintain_order=True)
    )
    explanations = explanations.join(
        scores, on=["layer", "explanation_id"], how="left", maintain_order="left"
    ).with_columns(
        ((pl.col("explainer") != "none") & ~pl.col("method").is_in(CONTROLS)).alias("by_model"),
        pl.when(pl.col("explainer") != "none").then(pl.col("value") - pl.col("lookup")).alias("gain"),
    )
    neurons = _neurons(explanations, collect(numbers))
    states = neurons.select(*at, "dead", "maximum", "fraction_positive")
    explanations = explanations.join(states, on=at, how="left", maintain_order="left").with_columns(_state())
    return Index(explanations, neurons, _words(kept, folder, explanations))


def _neurons(explanations: pl.DataFrame, numbers: pl.DataFrame) -> pl.DataFrame:
    """One row for each neuron and side that was captured."""
    at = ["layer", "neuron", "polarity"]
    best = (
        explanations.filter(~pl.col("method").is_in(CONTROLS))
        .with_columns(pl.col("text").is_null().alias("none"))
        .sort("none", "by_model", "value", descending=[False, True, True], nulls_last=True)
        .unique(at, keep="first", maintain_order=True)
        .drop("none")
    )
    failures = explanations.filter(pl.col("by_model") & pl.col("missing_because").is_not_null()).select(
        *at, pl.col("missing_because").alias("failed_because")
    )
    return (
        numbers.join(best, on=["layer", "neuron"], how="left", maintain_order="left")
        .with_columns(pl.col("polarity").fill_null("+"))
        .join(failures.unique(at, keep="first", maintain_order=True), on=at, how="left", maintain_order="left")
        .with_columns(_state(failure="failed_because"))
        .sort(at)
    )


def _state(failure: str = "missing_because") -> pl.Expr:
    """One of `STATES`: whether a language model has explained it, failed to, or was not asked."""
    return (
        pl.when(pl.col("dead").fill_null(value=False))
        .then(pl.lit("dead"))
        .when(pl.col("by_model").fill_null(value=False) & pl.col("text").is_not_null())
        .then(pl.lit("explained"))
        .when(pl.col(failure).is_not_null() & ~pl.col(failure).is_in(FOUND_NOTHING))
        .then(pl.lit("failed"))
        .otherwise(pl.lit("not_explained"))
        .alias("state")
    )


def _words(kept: Kept, folder: Path, explanations: pl.DataFrame) -> Path:
    """The full-text file for these explanations, made unless it is there. Others of the lake are removed."""
    stamp = json.dumps([FORM, kept.lake.uri, [kept.lake.version(table) for table in SOURCES]])
    name = hashlib.sha256(stamp.encode()).hexdigest()[:16]
    folder = writable(folder)
    path = folder / f"words-{name}.sqlite"
    if path.exists():
        return path
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with closing(sqlite3.connect(new)) as opened:
        opened.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE VIRTUAL TABLE said USING fts5(text, content='', tokenize='porter unicode61 remove_diacritics 2');"
        )
        texts = explanations.get_column("text")
        rows = ((place, text) for place, text in enumerate(texts) if text)
        opened.executemany("INSERT INTO said(rowid, text) VALUES (?, ?)", rows)
        opened.commit()
    new.replace(path)
    for other in folder.glob("words-*.sqlite"):
        if other != path:
            with suppress(OSError):
                other.unlink()
    return path


def counts(rows: pl.DataFrame, column: str) -> list[tuple[Any, int]]:
    """How many rows have each value, by value."""
    found = rows.get_column(column).value_counts().sort(column, nulls_last=True)
    return [(value, count) for value, count in found.iter_rows() if value is not None]


def paged(rows: pl.DataFrame, filters: Filters, *, size: int) -> tuple[pl.DataFrame, int, int]:
    """The rows of the page asked for, its number from 1, and how many pages there are."""
    pages = max(1, -(-len(rows) // size))
    page = min(max(1, whole(filters.page or "1", "page")), pages)
    return rows.slice((page - 1) * size, size), page, pages


def named(rows: pl.DataFrame, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows as mappings, with these columns."""
    return rows.select(columns).to_dicts()


def spread(values: Iterable[float | None], *, bins: int = 20) -> list[int]:
    """How many scores fall in each of `bins` equal parts from -1 to 1."""
    found = [0] * bins
    for value in values:
        if value is not None:
            found[min(bins - 1, int((min(max(value, -1.0), 1.0) + 1) / 2 * bins))] += 1
    return found
