"""Neuronpedia's exports as rows.

    v1/{model}/{source}/{features,activations,explanations}/batch-N.jsonl.gz    its bulk files, a row to a line
    {any name}.json     a list of explanations, as its export of one source was; or a feature, as its API gives one

The source is the layer, alone (`5`, MLP neurons) or before the name of a set (`5-res-jb`, features of an autoencoder). One
line is one row of Neuronpedia's tables; a line that is wrong is rejected by itself. Activations are in units of the
feature; `binContains` -1 means the strongest, others lie between `binMin` and `binMax`. Scores are not part of these files.
"""

import re
from collections.abc import Mapping
from typing import Any

from pipeline import imports
from pipeline.errors import FormError
from pipeline.imports import Found, index, mapping, number, numbers, tokens, wrong

FORM = "neuronpedia"
PATH = re.compile(
    r"(?:(?P<root>(?:.*/)?[^/]+/(?P<source>(?P<layer>[0-9]{1,6})(?:-[^/]*)?))/(?P<kind>features|activations|explanations)/"
    r"batch-(?P<batch>[0-9]{1,4})\.jsonl(?:\.gz)?)|(?:.*/)?(?P<name>[^/]+)\.json",
    re.ASCII,
)
SOURCE = re.compile(r"(?P<layer>[0-9]{1,6})(?:-.*)?", re.ASCII | re.DOTALL)
CONVENTIONS = {
    "site": "of the source's name; a bare layer is the MLP neuron after the nonlinearity",
    "activation_function": "unknown", "number_format": "unknown; values are rounded to 3 to 5 decimals",
    "normaliser": "the strongest activation of each excerpt is 10, each excerpt by itself", "polarity": "+; dataSource `bottom` is -",
    "splits": "none: explanations may be scored on the excerpts that they were made from",
}  # fmt: skip
LINES = 2**16
"""Most lines of a batch; a record's rank is its place in all batches."""


def parse(text: str, match: re.Match[str], *, source: str, path: str, file: str) -> Found:
    """The rows of one batch; lines that are wrong are in `rejected`."""
    found, kind = Found(file), match["kind"]
    if kind is None:
        _whole(found, imports.parse_json(text), source=source, path=path)
        return found
    lines = text.split("\n")
    if len(lines) > LINES:
        raise FormError(f"a batch may have {LINES:,} lines, not {len(lines):,}")
    for place, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = mapping(imports.parse_json(line), "the line")
            neuron = index(row.get("index"), "index")
            if row.get("layer") != match["source"]:
                wrong("layer", f"{match['source']!r}, the name of the folder", row.get("layer"))
            at = {"layer": int(match["layer"]), "neuron": neuron}
            rank = int(match["batch"]) * LINES + place
            if kind == "features":
                _feature(found, row, at)
            elif kind == "activations":
                _activation(found, row, at, rank)
            else:
                _explanation(found, row, at, rank=rank, source=source, path=path)
        except FormError as error:
            found.reject(f"line {place + 1}", str(error), error.offset)
    return found


def _whole(found: Found, value: Any, *, source: str, path: str) -> None:
    """A list of explanations, or of features; or one feature."""
    rows = value if isinstance(value, list) else [value]
    if not all(isinstance(row, dict) and {"layer", "index"} <= row.keys() for row in rows):
        raise FormError("it must be a feature, or a list of explanations or features, each with `layer` and `index`", 0)
    for place, row in enumerate(rows):
        try:
            of = SOURCE.fullmatch(imports.text(row["layer"], "layer"))
            if of is None:
                wrong("layer", "the name of a source, which begins with the layer", row["layer"])
            at = {"layer": int(of["layer"]), "neuron": index(row["index"], "index")}
            if "description" in row:
                _explanation(found, row, at, rank=place, source=source, path=path)
                continue
            one = Found(found.file)
            inside = {name: imports.listing(row.get(name) or [], name) for name in ("activations", "explanations")}
            _feature(one, {name: item for name, item in row.items() if name not in inside}, at)
            for rank, said in enumerate(inside["activations"]):
                _activation(one, mapping(said, f"activation {rank}"), at, rank)
            for rank, said in enumerate(inside["explanations"]):
                words = mapping(said, f"explanation {rank}")
                _explanation(one, words, at, rank=place * LINES + rank, source=source, path=path)
            # All of a feature or nothing.
            for table, made in one.rows.items():
                found.rows.setdefault(table, []).extend(made)
            found.sequences |= one.sequences
        except FormError as error:
            found.reject(f"entry {place}", str(error), error.offset)


def _feature(found: Found, row: Mapping[str, Any], at: Mapping[str, int]) -> None:
    number(row.get("maxActApprox"), "maxActApprox")
    promoted = {name: row.get(name) for name in ("pos_str", "pos_values", "neg_str", "neg_values") if row.get(name)}
    kept = {name: value for name, value in row.items() if name not in ("vector", "createdAt", "creatorId")}
    found.add(
        "imported_neurons", **at,
        token_weights=imports.written(promoted, "logits") if promoted else None, original=imports.written(kept, "the line"),
    )  # fmt: skip


def _activation(found: Found, row: Mapping[str, Any], at: Mapping[str, int], rank: int) -> None:
    words = tokens(row.get("tokens"), "tokens")
    values = numbers(row.get("values"), "values", count=len(words))
    share = number(row.get("binContains"), "binContains")
    low, high = number(row.get("binMin"), "binMin"), number(row.get("binMax"), "binMax")
    top = share is None or share < 0 or low is None or high is None
    polarity = "-" if row.get("dataSource") == "bottom" else "+"
    found.add(
        "imported_records", **at, polarity=polarity, stratum="top" if top else f"{low:g} to {high:g}", rank=rank, split="none",
        sequence_id=found.sequence(words), peak=float(-values.min() if polarity == "-" else values.max()), activations=values,
    )  # fmt: skip


def _explanation(
    found: Found, row: Mapping[str, Any], at: Mapping[str, int], *, rank: int, source: str, path: str
) -> None:
    said = imports.text(row.get("description"), "description")
    found.add(
        "imported_explanations", **at, polarity="+",
        explanation_id=imports.explanation_id(source=source, file=found.file, **at, polarity="+", place=rank),
        method=imports.text(row.get("typeName") or FORM, "typeName"),
        explainer=imports.text(row.get("explanationModelName") or "unknown", "explanationModelName"),
        text=said or None, missing_because=None if said else "not_given", path=path,
    )  # fmt: skip
