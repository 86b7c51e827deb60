"""What the pages that list neurons show: the whole lake, one layer, and what a search finds."""

import json
import random
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from explorer import imported
from explorer.index import STATES, Filters, Index, counts, named, paged, spread
from explorer.kept import Kept
from explorer.live import PATIENCE, NotAtHandError
from explorer.meaning import Meaning
from explorer.neuron_page import NotThereError, not_there, sentence
from pipeline.errors import SettingsError
from resources.delta import collect

PAGE = 50
BY_WORDS = "Words are matched by their stems."
BY_MEANING = "Nearest first, by the cosine of the embeddings of text and explanation."
COLUMNS = (
    "layer", "neuron", "polarity", "text", "method", "explainer", "missing_because", "value", "ci_low", "ci_high", "lookup",
    "gain", "state", "maximum", "fraction_positive",
)  # fmt: skip
FEW = 8
"""Neurons of each kind on the first page."""
LISTS = "neuronledger-lists.toml"
"""A file in the project's folder with lists of neurons worth a look."""


def home(kept: Kept, index: Index, folder: Path) -> dict[str, Any]:
    """The lake at a glance."""
    neurons, said = index.neurons, index.explanations
    layers = kept.layers()
    by_model = said.filter(pl.col("by_model"))
    written = by_model.filter(pl.col("value").is_not_null())
    lookup = said.filter(pl.col("method") == "token-lookup")
    found = []
    for layer, n_neurons in layers.sort("layer").select("layer", "n_neurons").iter_rows():
        mine = neurons.filter(pl.col("layer") == layer)
        scored = written.filter(pl.col("layer") == layer).get_column("value")
        tokens = lookup.filter(pl.col("layer") == layer).get_column("value").drop_nulls()
        found.append(
            {
                "layer": layer,
                "n_neurons": n_neurons,
                "captured": mine.get_column("neuron").n_unique(),
                **{state: int((mine.get_column("state") == state).sum()) for state in STATES},
                "median": scored.median(),
                "lookup_median": tokens.median(),
                "spread": spread(scored),
                "lookup_spread": spread(tokens),
            }
        )
    failures = by_model.get_column("missing_because").drop_nulls().value_counts(sort=True)
    return {
        "uri": kept.lake.uri,
        "subject": layers.item(0, "subject") if len(layers) else None,
        "texts": kept.lake.rows("sequences"),
        "layers": found,
        "failures": [
            {"table": "explanations", "reason": reason, "sentence": sentence(reason), "count": count}
            for reason, count in failures.iter_rows()
        ]
        + kept.once("failures", ["simulations"], lambda: _unsimulated(kept)),
        "cost": kept.once("cost", ["language_calls"], lambda: _cost(kept)),
        "interesting": {
            "gain": _few(written.sort("gain", descending=True, nulls_last=True).filter(pl.col("gain") > 0)),
            "best": _few(written.sort("value", descending=True)),
            "worst": _few(written.sort("value")),
            "lookup_best": _few(lookup.filter(pl.col("value").is_not_null()).sort("value", descending=True)),
            "lookup_worst": _few(lookup.filter(pl.col("value").is_not_null()).sort("value")),
        },
        "curated": curated(folder),
        "last": _last(kept),
        "sources": imported.sources(kept),
    }


def _few(rows: pl.DataFrame) -> list[dict[str, Any]]:
    return named(rows.unique(["layer", "neuron"], keep="first", maintain_order=True).head(FEW), COLUMNS)


def _unsimulated(kept: Kept) -> list[dict[str, Any]]:
    found = collect(
        kept.lake.scan("simulations")
        .filter(pl.col("missing_because").is_not_null())
        .group_by("missing_because")
        .len()
        .sort("len", descending=True)
    )
    return [
        {"table": "simulations", "reason": reason, "sentence": sentence(reason), "count": count}
        for reason, count in found.iter_rows()
    ]


def _cost(kept: Kept) -> dict[str, Any]:
    """What language models were asked and paid; the money is None where the price of an answer is not known."""
    calls = kept.lake.scan("language_calls")
    found = collect(
        calls.select(
            pl.len().alias("requests"),
            pl.col("prompt_tokens", "completion_tokens").sum(),
            pl.col("seconds").sum(),
            pl.col("cost_usd").sum().alias("usd"),
            (pl.col("cost_usd").is_null() & pl.col("prompt_tokens").is_not_null()).sum().alias("unpriced"),
        )
    ).row(0, named=True)
    models = collect(calls.group_by("model").len().sort("len", "model", descending=[True, False]))
    return found | {
        "usd": None if found["unpriced"] else found["usd"],
        "models": [list(row) for row in models.iter_rows()],
    }


def _last(kept: Kept) -> list[dict[str, Any]]:
    """The latest writes."""
    rows = kept.records().sort("finished_at", descending=True).head(6)
    return [
        {**row, "finished_at": row["finished_at"].isoformat(timespec="seconds"), "code": json.loads(row["code"])}
        for row in rows.select(
            "table", "layer", "neurons", "status", "error", "rows", "run_id", "finished_at", "code"
        ).iter_rows(named=True)
    ]


def curated(folder: Path) -> list[dict[str, Any]]:
    """Lists of neurons from a file of the project, as `[[list]]` with `name`, `note` and `neurons = ["5:131", ...]`.

    Raises:
        SettingsError: the file is not of this form.
    """
    from explorer.neuron import parse

    path = folder / LISTS
    if not path.is_file():
        return []
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
        return [
            {
                "name": str(one["name"]),
                "note": str(one.get("note", "")),
                "neurons": [parse(str(name)) for name in one["neurons"]],
            }
            for one in tree["list"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f'{path} must hold tables `[[list]]` with `name` and `neurons`, such as ["5:131"]; it does not: {error!r}'
        ) from error


def layer(kept: Kept, index: Index, number: int, filters: Filters, *, size: int = PAGE) -> dict[str, Any]:
    """One layer: its neurons, filtered, sorted and paged, and how their scores spread.

    Raises:
        NotThereError: the lake has no such layer.
        FilterError: a filter is of no use.
    """
    rows = index.neurons.filter(pl.col("layer") == number)
    known = kept.layers().filter(pl.col("layer") == number)
    if rows.is_empty():
        raise NotThereError(not_there(kept, number))
    return {
        "layer": number,
        "subject": known.item(0, "subject") if len(known) else None,
        "site": known.item(0, "site") if len(known) else None,
        "fingerprint": known.item(0, "fingerprint") if len(known) else None,
        "layers": kept.layers().sort("layer").get_column("layer").to_list(),
        "spread": spread(rows.get_column("value")),
        **_listed(rows, filters, usual="neuron", facets=("state", "method"), size=size),
    }


def search(
    kept: Kept, index: Index, filters: Filters, meaning: Meaning, *, size: int = PAGE, patience: float | None = PATIENCE
) -> dict[str, Any]:
    """Explanations that hold the words, or mean like them where that is asked for and can be; all neurons without words.

    Raises:
        FilterError: a filter is of no use.
    """
    rows, said, without = index.find(filters.q) if filters.q else index.neurons, BY_WORDS, 0
    if filters.q and filters.by == "meaning":
        try:
            rows, said = meaning.find(kept, index, filters.q, patience=patience), BY_MEANING
            known = meaning.vectors(kept, index)
            without = 0 if known is None else known.without
        except NotAtHandError as error:
            said = str(error)
    usual = "match" if filters.q else "score"
    return {
        "q": filters.q,
        "by": "meaning" if said == BY_MEANING else "words",
        "semantic": said,
        "without": without,
        "imported": len(imported.matching(kept, filters.q)) if filters.q else 0,
        "uri": kept.lake.uri,
        **_listed(rows, filters, usual=usual, facets=("layer", "state", "method"), size=size),
    }


def _listed(
    rows: pl.DataFrame, filters: Filters, *, usual: str, facets: tuple[str, ...], size: int = PAGE
) -> dict[str, Any]:
    chosen = filters.sorted(rows.filter(filters.expression()), usual=usual)
    shown, page, pages = paged(chosen, filters, size=size)
    return {
        "count": len(chosen),
        "page": page,
        "pages": pages,
        "sort": filters.sort or usual,
        "facets": {name: counts(rows.filter(filters.expression(without=name)), name) for name in facets},
        "rows": named(shown, [*COLUMNS, *(("closeness",) if "closeness" in shown.columns else ())]),
    }


def chance(index: Index, filters: Filters) -> Mapping[str, Any]:
    """A neuron by chance among those that pass the filters.

    Raises:
        NotThereError: none does.
    """
    rows = (index.find(filters.q) if filters.q else index.neurons).filter(filters.expression())
    if rows.is_empty():
        raise NotThereError("No neuron passes these filters.")
    return rows.row(random.randrange(len(rows)), named=True)  # noqa: S311 (for a stroll, not for a secret)
