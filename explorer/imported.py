"""Imported: what other systems say of neurons, as pages show it, under the names that they gave.

Nothing of it is mixed with our own rows: each source stands by itself, with what its numbers mean. Scores are the
source's own (`openai:ev_correlation`), or ours over its simulations and records (`common_scores`), and say which.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from explorer import simulated
from explorer.index import Filters, counts, paged
from explorer.kept import Kept
from explorer.neuron_page import NotThereError, sentence
from pipeline.scale import scale
from pipeline.tables import STRATA
from resources.delta import collect

PAGE = 50
REJECTED = 20
"""Files named that could not be imported."""
PARTS = (
    "imported_neurons", "imported_records", "imported_explanations", "imported_simulations", "imported_scores",
    "common_simulations", "common_scores",
)  # fmt: skip
RELATED = ("token_means", "token_weights", "neuron_weights", "original")
"""What a source says in a form of its own, which is shown word for word."""
LISTED = ("layer", "neuron", "polarity", "source", "method", "explainer", "text", "missing_because")


def sources(kept: Kept) -> list[dict[str, Any]]:
    """Each import: its form, what its numbers mean, and the files that were not taken."""
    return kept.once("imports", ["imports", "imported_files"], lambda: _sources(kept))


def _sources(kept: Kept) -> list[dict[str, Any]]:
    if kept.version("imports") is None:
        return []
    rejected: dict[str, list[dict[str, Any]]] = {}
    files = kept.lake.scan("imported_files").filter(pl.col("status") == "rejected")
    for row in collect(files.select("source", "path", "reason", "offset_in_file").sort("source", "path")).to_dicts():
        rejected.setdefault(row["source"], []).append(row)
    return [
        {
            **{
                name: row[name] for name in ("source", "form", "folder", "files_hash", "imported", "rejected", "run_id")
            },
            "conventions": json.loads(row["conventions"]),
            "files": rejected.get(row["source"], [])[:REJECTED],
        }
        for row in kept.lake.read("imports").sort("source", "files_hash").iter_rows(named=True)
    ]


def has(kept: Kept, layer: int, neuron: int | None = None) -> bool:
    """Whether a source says anything of this neuron, or of any of this layer."""
    found = _all(kept).filter(pl.col("layer") == layer)
    return not (found if neuron is None else found.filter(pl.col("neuron") == neuron)).is_empty()


def _all(kept: Kept) -> pl.DataFrame:
    """A row for each imported explanation, and for each neuron that has none."""
    return kept.once("imported", ["imported_explanations", "imported_neurons"], lambda: _listed(kept))


def _listed(kept: Kept) -> pl.DataFrame:
    said = collect(kept.lake.scan("imported_explanations").select(*LISTED, "explanation_id"))
    others = collect(kept.lake.scan("imported_neurons").select("layer", "source", "neuron"))
    without = others.join(said, on=["layer", "source", "neuron"], how="anti")
    return pl.concat([said, without], how="diagonal").sort("layer", "neuron", "source", "explanation_id")


def matching(kept: Kept, words: str) -> pl.DataFrame:
    """Imported explanations that hold each of these words, in any case; all rows without words."""
    found = _all(kept)
    for word in words.split():
        text = pl.col("text").str.to_lowercase().str.contains(word.lower(), literal=True)
        found = found.filter(text.fill_null(value=False))
    return found


def listed(kept: Kept, filters: Filters, source: str) -> dict[str, Any]:
    """The sources, and what they say, by words, layer and source.

    Raises:
        FilterError: a filter is of no use.
    """
    known = sources(kept)
    rows = matching(kept, filters.q)
    if filters.layer:
        rows = rows.filter(Filters(layer=filters.layer).expression())
    if source:
        rows = rows.filter(pl.col("source") == source)
    shown, page, pages = paged(rows, filters, size=PAGE)
    scores = _best(kept, shown)
    return {
        "uri": kept.lake.uri,
        "sources": known,
        "q": filters.q,
        "source": source,
        "count": len(rows),
        "page": page,
        "pages": pages,
        "facets": {name: counts(rows, name) for name in ("layer", "source")},
        "rows": [row | {"scores": scores.get(row["explanation_id"], [])} for row in shown.to_dicts()],
    }


def _best(kept: Kept, rows: pl.DataFrame) -> Mapping[str, list[dict[str, Any]]]:
    """The sources' own scores of these explanations."""
    found: dict[str, list[dict[str, Any]]] = {}
    for layer, neurons in rows.group_by("layer").agg(pl.col("neuron").unique().sort()).iter_rows():
        for row in kept.lake.read("imported_scores", layer=layer, neurons=neurons).iter_rows(named=True):
            found.setdefault(row["explanation_id"], []).append(_score(row, "theirs"))
    return found


def _score(row: Mapping[str, Any], whose: str) -> dict[str, Any]:
    return {
        "whose": whose,
        **{name: row[name] for name in ("simulator", "scorer", "split", "value", "missing_because", "n_sequences")},
        "reason": sentence(row["missing_because"]),
        **{name: row.get(name) for name in ("ci_low", "ci_high", "p_value")},
    }


def said(kept: Kept, layer: int, neuron: int) -> list[dict[str, Any]]:
    """What sources say of one neuron, each explanation with its scores, for the neuron's own page."""
    if kept.version("imported_explanations") is None or not has(kept, layer, neuron):
        return []
    at: dict[str, Any] = {"layer": layer, "neurons": [neuron]}
    return _explanations({name: kept.lake.read(name, **at) for name in (
        "imported_explanations", "imported_scores", "common_scores")})  # fmt: skip


def gather(kept: Kept, layer: int, neuron: int) -> dict[str, Any]:
    """All that sources say of one neuron.

    Raises:
        NotThereError: none says anything.
    """
    at: dict[str, Any] = {"layer": layer, "neurons": [neuron]}
    rows = {name: kept.lake.read(name, **at) for name in PARTS}
    if all(rows[name].is_empty() for name in ("imported_neurons", "imported_records", "imported_explanations")):
        raise NotThereError(f"Nothing was imported of neuron {layer}:{neuron}.")
    tokens = _sequences(kept, rows)
    texts = _texts(rows["imported_records"], tokens)
    explanations = _explanations(rows)
    conventions = {one["source"]: one for one in sources(kept)}
    names = sorted({name for frame in rows.values() for name in frame.get_column("source")})
    return {
        "layer": layer,
        "neuron": neuron,
        "uri": kept.lake.uri,
        "is_ours": layer in kept.n_neurons() and neuron < kept.n_neurons()[layer],
        "sources": [
            {
                **{key: conventions.get(name, {}).get(key) for key in ("form", "folder", "conventions")},
                "source": name,
                "numbers": _numbers(rows["imported_neurons"], name),
                "explanations": [one for one in explanations if one["source"] == name],
            }
            for name in names
        ],
        "texts": texts,
        "compared": _compared(rows, explanations, texts, tokens),
    }


def _sequences(kept: Kept, rows: Mapping[str, pl.DataFrame]) -> Mapping[str, list[str]]:
    tables = ("imported_records", "imported_simulations")
    wanted = sorted({name for table in tables for name in rows[table].get_column("sequence_id")})
    if not wanted:
        return {}
    found = kept.lake.find("imported_sequences", pl.DataFrame({"sequence_id": wanted}))
    return dict(collect(found.select("sequence_id", "tokens")).iter_rows())


def _numbers(neurons: pl.DataFrame, source: str) -> dict[str, Any] | None:
    mine = neurons.filter(pl.col("source") == source)
    if mine.is_empty():
        return None
    row = mine.row(0, named=True)
    return {
        **{name: row[name] for name in ("mean", "variance", "skewness", "kurtosis", "quantile_boundaries")},
        "related": {name: row[name] for name in RELATED if row[name] is not None},
    }


def _explanations(rows: Mapping[str, pl.DataFrame]) -> list[dict[str, Any]]:
    scores: dict[str, list[dict[str, Any]]] = {}
    for table, whose in (("imported_scores", "theirs"), ("common_scores", "ours")):
        for row in rows[table].iter_rows(named=True):
            scores.setdefault(row["explanation_id"], []).append(_score(row, whose))
    return [
        {
            **{name: row[name] for name in (
                "source", "explanation_id", "polarity", "method", "explainer", "text", "missing_because", "path", "run_id",
            )},
            "reason": sentence(row["missing_because"]),
            "scores": scores.get(row["explanation_id"], []),
        }
        for row in rows["imported_explanations"].iter_rows(named=True)
    ]  # fmt: skip


def _texts(records: pl.DataFrame, tokens: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """The records of each source and side by stratum, on one scale: 10 is the strongest of the source's on that side."""
    sides: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in records.sort("source", "polarity", "stratum", "rank").iter_rows(named=True):
        sides.setdefault((row["source"], row["polarity"]), []).append(row)
    found = []
    for (source, polarity), rows in sides.items():
        sign = -1.0 if polarity == "-" else 1.0
        most = max([0.0, *(sign * value for row in rows for value in row["activations"])])
        groups = []
        for stratum in STRATA:
            mine = [_record(row, tokens, sign, most) for row in rows if row["stratum"] == stratum]
            if mine:
                groups.append({"stratum": stratum, "records": mine})
        found.append({"source": source, "polarity": polarity, "maximum": most, "groups": groups})
    return found


def _record(row: Mapping[str, Any], tokens: Mapping[str, list[str]], sign: float, most: float) -> dict[str, Any]:
    values = row["activations"]
    steps = scale(sign * np.asarray(values, dtype=np.float64), most).tolist()
    return {
        **{name: row[name] for name in ("rank", "sequence_id", "peak", "activations")},
        "offset": None,
        "copies": 1,
        "used": [] if row["split"] == "none" else [row["split"]],
        "peak_token": int(np.argmax(sign * np.asarray(values))) if values else None,
        "tokens": tokens.get(row["sequence_id"]) or ["\ufffd"] * len(values),
        "token_ids": None,
        "steps": steps,
    }


def _compared(
    rows: Mapping[str, pl.DataFrame],
    explanations: Sequence[Mapping[str, Any]],
    texts: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, list[str]],
) -> dict[str, Any] | None:
    """Simulations beside the neuron, those of the sources and ours, one after the other; `records` are those of all."""
    most = {(side["source"], side["polarity"]): side["maximum"] for side in texts}
    places = {(side["source"], side["polarity"], group["stratum"], record["rank"]): record["sequence_id"]
              for side in texts for group in side["groups"] for record in group["records"]}  # fmt: skip
    words = {one["explanation_id"]: one for one in explanations}
    records: list[dict[str, Any]] = []
    simulations = []
    for table, whose in (("imported_simulations", "theirs"), ("common_simulations", "ours")):
        for (explanation, simulator), mine in _groups(rows[table]):
            source, side, unit = mine[0]["source"], mine[0]["polarity"], mine[0]["scale"]
            greatest = most.get((source, side), 0.0) or max([0.0, *(abs(v) for row in mine for v in row["true"])])
            sides, line, real, values = simulated.beside(
                [row["expected"] for row in mine], [row["true"] for row in mine], unit, greatest
            )
            of = []
            for row, one in zip(mine, sides, strict=True):
                name = row.get("sequence_id") or places.get((source, side, row["stratum"], row["rank"]))
                of.append(
                    {
                        "stratum": row["stratum"],
                        "rank": row["rank"],
                        "sequence_id": name,
                        "document_id": None,
                        "tokens": tokens.get(name or "") or ["\ufffd"] * len(row["true"]),
                        "token_ids": None,
                        "missing_because": row["missing_because"],
                        "reason": sentence(row["missing_because"]),
                        **one,
                    }
                )
            said_of = words.get(explanation, {})
            simulations.append(
                {
                    "source": source, "whose": whose, "explanation_id": explanation, "simulator": simulator, "polarity": side,
                    "text": said_of.get("text"), "unit": unit, "maximum": greatest, "line": line,
                    "first": len(records), "count": len(of), "worst": simulated.worst(of, real, values),
                }
            )  # fmt: skip
            records += of
    return {"simulations": simulations, "records": records} if simulations else None


def _groups(rows: pl.DataFrame) -> Iterable[tuple[tuple[str, str], list[dict[str, Any]]]]:
    """The rows of each explanation and simulator, by stratum and rank."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows.iter_rows(named=True):
        found.setdefault((row["explanation_id"], row["simulator"]), []).append(row)
    for key, mine in found.items():
        yield key, sorted(mine, key=lambda row: (STRATA.index(row["stratum"]), row["rank"]))
