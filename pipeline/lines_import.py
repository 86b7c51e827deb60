"""CSV and JSON Lines as rows: one explanation to a line, by whoever wrote it, with a score if there is one.

    neuron,explanation,author,score          or layer,neuron,explanation,...
    5:131,names of dogs,ann,0.7

`neuron` is `layer:neuron`, or the index beside a column `layer`. Names that others give to these columns are in `NAMES`; they
count where the column itself is not there. Also read: `polarity` (`+` or `-`), `method`, `scorer`. Other columns are left.
A line that is wrong is rejected by itself.
"""

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pipeline import imports
from pipeline.errors import FormError
from pipeline.imports import Found, index, wrong

CONVENTIONS = {
    "site": "unknown", "activation_function": "unknown", "number_format": "unknown", "normaliser": "unknown",
    "polarity": "as given, + unless given", "splits": "unknown",
}  # fmt: skip
CSV = re.compile(r"(?P<root>)(?P<kind>.*)\.csv", re.IGNORECASE | re.DOTALL)
JSONL = re.compile(r"(?P<root>)(?P<kind>.*)\.jsonl", re.IGNORECASE | re.DOTALL)
NAMES = {
    "neuron": ("feature", "latent", "index"),
    "explanation": ("text", "description", "label"),
    "author": ("explainer",),
    "score": ("value",),
}
"""What the columns are called elsewhere, the usual name first."""


def parse_csv(text: str, match: re.Match[str], *, source: str, path: str, file: str) -> Found:  # noqa: ARG001
    """The rows of a CSV file.

    Raises:
        FormError: it has no head with the columns that are needed.
    """
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        head = [name.strip().lower() for name in next(reader, [])]
    except csv.Error as error:
        raise FormError(f"no CSV: {error}", 0) from None
    known = _known(head)
    _needed(known)
    found = Found(file)

    def rows() -> Iterator[tuple[int, Mapping[str, Any] | FormError]]:
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, FormError(f"no CSV: {error}")
                continue
            if not values:
                continue
            if len(values) != len(head):
                yield line, FormError(f"there must be {len(head)} fields, as in the first line, not {len(values)}")
            else:
                row = dict(zip(head, values, strict=True))
                yield line, {name: row[column] for name, column in known.items()}

    _lines(found, rows(), source=source, path=path, form="csv")
    return found


def parse_jsonl(text: str, match: re.Match[str], *, source: str, path: str, file: str) -> Found:  # noqa: ARG001
    """The rows of a file of JSON Lines."""
    found = Found(file)

    def rows() -> Iterator[tuple[int, Mapping[str, Any] | FormError]]:
        for line, one in enumerate(text.split("\n"), start=1):
            if not one.strip():
                continue
            try:
                value = imports.mapping(imports.parse_json(one), "the line")
            except FormError as error:
                yield line, error
            else:
                row = {name.lower(): item for name, item in value.items()}
                yield line, {name: row[column] for name, column in _known(list(row)).items()}

    _lines(found, rows(), source=source, path=path, form="jsonl")
    return found


def _known(head: list[str]) -> dict[str, str]:
    """For each column that is read, or may be, the name that it has here.

    Raises:
        FormError: a column is there twice.
    """
    for name in head:
        if head.count(name) > 1 and name in ("layer", *NAMES, *(other for names in NAMES.values() for other in names)):
            raise FormError(f"there must be one column `{name}`, not {head.count(name)}", 0)
    known = {name: name for name in head}
    for name, others in NAMES.items():
        found = next((other for other in others if other in head), None)
        if name not in head and found is not None:
            known[name] = found
    return known


def _needed(head: Collection[str]) -> None:
    if missing := [name for name in ("neuron", "explanation") if name not in head]:
        raise FormError(
            f"the first line must name the columns `neuron` and `explanation`; it lacks {', '.join(missing)}", 0
        )


def _lines(
    found: Found, rows: Iterator[tuple[int, Mapping[str, Any] | FormError]], *, source: str, path: str, form: str
) -> None:
    for line, row in rows:
        try:
            if isinstance(row, FormError):
                raise row
            _line(found, row, line, source=source, path=path, form=form)
        except FormError as error:
            found.reject(f"line {line}", str(error), error.offset)


def _line(found: Found, row: Mapping[str, Any], line: int, *, source: str, path: str, form: str) -> None:
    layer, neuron = neuron_of(row)
    polarity = row.get("polarity") or "+"
    if polarity not in ("+", "-"):
        wrong("polarity", "+ or -", polarity)
    words = row.get("explanation")
    said = imports.text(words, "explanation") if words not in (None, "") else None
    at: dict[str, Any] = {"layer": layer, "neuron": neuron, "polarity": polarity}
    key = imports.explanation_id(source=source, file=found.file, **at, place=line)
    score = _score(row.get("score"))
    found.add(
        "imported_explanations", **at, explanation_id=key, method=imports.text(row.get("method") or form, "method"),
        explainer=imports.text(row.get("author") or "unknown", "author"), text=said,
        missing_because=None if said is not None else "not_given", path=path,
    )  # fmt: skip
    if score is not None:
        scorer = imports.text(row.get("scorer") or "score", "scorer")
        found.add(
            "imported_scores", **at, explanation_id=key, simulator="unknown", scorer=f"{form}:{scorer}", split="all", value=score,
            missing_because=None, n_sequences=0,
        )  # fmt: skip


def neuron_of(row: Mapping[str, Any]) -> tuple[int, int]:
    """Layer and index of a line."""
    name = row.get("neuron")
    if isinstance(name, str) and (found := re.fullmatch(r"\s*([0-9]{1,9})\s*:\s*([0-9]{1,9})\s*", name, re.ASCII)):
        return index(found[1], "neuron"), index(found[2], "neuron")
    if row.get("layer") in (None, ""):
        wrong("neuron", "such as 5:131, or an index beside a column `layer`", name)
    return index(_stripped(row["layer"]), "layer"), index(_stripped(name), "neuron")


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _score(value: Any) -> float | None:
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = float(value)
        except ValueError:
            wrong("score", "a number", value)
    return imports.number(value, "score")
