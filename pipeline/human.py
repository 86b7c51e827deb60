"""Human: explanations that people wrote, simulated and scored like those of a language model.

Each names its author, who stands in the row as the explainer. Nothing is asked of a language model for them, and a
selection of neurons does not touch them: whoever wrote about a neuron wants it scored.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import polars as pl

from pipeline.controls import NOBODY
from pipeline.errors import SettingsError
from pipeline.provenance import content_hash, identity, short
from pipeline.tables import POLARITIES, TABLES
from pipeline.token_activation_pairs import phrase

METHOD = "human"
COLUMNS = ("neuron", "explanation", "author")
SIDE = "polarity"
"""A column that may be left out: `+` unless it says `-`."""


@dataclass(frozen=True)
class Statement:
    """What one person says of one neuron on one side of zero."""

    layer: int
    neuron: int
    polarity: str
    text: str
    author: str


def statement(record: Mapping[str, Any]) -> Statement:
    """A record of a file as a statement, with white space in its text collapsed.

    Raises:
        SettingsError: a column is missing, unknown or wrong.
    """
    if missing := [name for name in COLUMNS if not isinstance(record.get(name), str) or not record[name].strip()]:
        raise SettingsError(f"`{missing[0]}` is missing; each record needs {', '.join(COLUMNS)} as texts")
    if strangers := sorted(str(name) for name in record if name not in (*COLUMNS, SIDE)):
        raise SettingsError(f"there is no column {strangers[0]!r}; known are {', '.join((*COLUMNS, SIDE))}")
    place = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", record["neuron"].strip())
    if place is None:
        raise SettingsError(f"{record['neuron']!r} is no neuron; write layer:neuron, such as 5:131")
    polarity = record.get(SIDE) or "+"
    if polarity not in POLARITIES:
        raise SettingsError(f"the polarity {polarity!r} must be `+` or `-`")
    text, author = phrase(record["explanation"]), " ".join(record["author"].split())
    if text is None:
        raise SettingsError(f"the explanation has {len(record['explanation']):,} characters; 1 to 1,000 are allowed")
    for name, words in (("explanation", text), ("author", author)):
        if strange := re.search(r"[\x00-\x1f\x7f]", words):
            raise SettingsError(f"the {name} holds the control character {strange[0]!r}; take it out")
    if author in ("none", NOBODY):
        raise SettingsError(f"the author {author!r} stands for no one; give a name")
    return Statement(int(place[1]), int(place[2]), polarity, text, author)


def fit(statements: Sequence[Statement], *, n_neurons: Sequence[int], signed: Sequence[bool]) -> None:
    """See that each neuron exists; `n_neurons` and `signed` have one entry for each layer.

    Raises:
        SettingsError: the subject has no such neuron, or nothing to explain on that side, or a statement is there twice.
    """
    for one in statements:
        name = f"{one.layer}:{one.neuron}"
        if one.layer >= len(n_neurons):
            raise SettingsError(f"the subject has layers 0 to {len(n_neurons) - 1}; there is no {name}")
        if one.neuron >= n_neurons[one.layer]:
            raise SettingsError(f"layer {one.layer} has neurons 0 to {n_neurons[one.layer] - 1}; there is no {name}")
        if one.polarity == "-" and not signed[one.layer]:
            raise SettingsError(f"neuron {name} has no negative side to explain; its polarity must be `+`")
    for one, count in Counter(statements).items():
        if count > 1:
            raise SettingsError(f"what {one.author} says of {one.layer}:{one.neuron} is there {count} times")


def fingerprint(statements: Iterable[Statement]) -> str:
    """Tagged hash of these statements, in whatever order they come."""
    return content_hash(sorted(list(astuple(one)) for one in statements))


def explanations(statements: Iterable[Statement], *, layer: int, neuron: int | None = None) -> pl.DataFrame:
    """The `explanations` rows of the statements about a layer, or one neuron of it, without `run_id`."""
    found = []
    for one in statements:
        if one.layer != layer or neuron not in (None, one.neuron):
            continue
        at = {"layer": one.layer, "neuron": one.neuron, "polarity": one.polarity}
        made = identity("explanation", **at, method=METHOD, explainer=one.author, text=one.text)
        found.append(
            at
            | {"explanation_id": short(made), "parent_id": None, "method": METHOD, "explainer": one.author}
            | {"text": one.text, "missing_because": None, "prompt_hash": None, "request_id": None}
            | {"exemplar_ids": [], "identity": made}
        )
    schema = {name: kind for name, kind in TABLES["explanations"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)
