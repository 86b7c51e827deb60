"""Controls: explanations that should not fit, so that one sees what a score is worth.

    random-explanation   what the first method said of another neuron of the same layer, drawn by a seed
    empty                no words at all: what a simulator makes of the text alone

Bills et al. 2023 compare with such explanations too ("random explanations"). Nothing is asked for them; simulating them
is paid for like any other.
"""

import hashlib
from typing import Any

import polars as pl

from pipeline.provenance import identity, short
from pipeline.tables import TABLES

RANDOM = "random-explanation"
EMPTY = "empty"
CONTROLS = (RANDOM, EMPTY)
NOBODY = "nobody"
"""Stands as the explainer of the empty explanation."""


def random_explanations(rows: pl.DataFrame, others: pl.DataFrame, *, source: str, seed: int) -> pl.DataFrame:
    """For each row of method `source` a row with the words that this method has for another neuron, without `run_id`.

    `others` are rows of the same layer to draw from; those of the row's own neuron and of other methods do not count.
    A neuron of which nothing is said has no control either, for the same reason; where there is no other, the reason is
    `no_evidence`.
    """
    said = others.filter((pl.col("method") == source) & pl.col("text").is_not_null()).sort("neuron", "polarity")
    drawn_from = said.select("neuron", "explanation_id", "identity", "text").rows()
    found: list[dict[str, Any]] = []
    # A method can have several explanations of one neuron; a control is for the neuron.
    each = rows.filter(pl.col("method") == source).unique(["neuron", "polarity"], keep="first", maintain_order=True)
    for row in each.iter_rows(named=True):
        strangers = [one for one in drawn_from if one[0] != row["neuron"]] if row["text"] is not None else []
        parent_id = parent = text = None
        reason = row["missing_because"] or "no_evidence"
        if strangers:
            at = f"{seed} {row['layer']} {row['neuron']} {row['polarity']}"
            draw = int.from_bytes(hashlib.sha256(at.encode()).digest()[:8], "big")
            _, parent_id, parent, text = strangers[draw % len(strangers)]
            reason = None
        made = identity(
            "explanation",
            **{name: row[name] for name in ("layer", "neuron", "polarity", "explainer")},
            method=RANDOM,
            parent=parent,
            text=text,
            missing_because=reason,
        )
        found.append(
            {name: row[name] for name in ("layer", "neuron", "polarity", "explainer")}
            | {"explanation_id": short(made), "parent_id": parent_id, "method": RANDOM, "text": text}
            | {"missing_because": reason, "prompt_hash": None, "request_id": None, "exemplar_ids": [], "identity": made}
        )
    schema = {name: kind for name, kind in TABLES["explanations"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)


def empty_explanations(baselines: pl.DataFrame) -> pl.DataFrame:
    """For each neuron that something can be said of, an explanation without a word, without `run_id`.

    `baselines` are the rows of `pipeline.baselines.explanations`: where the token-lookup is missing, so is this, for the
    same reason.
    """
    found: list[dict[str, Any]] = []
    for row in baselines.filter(pl.col("method") == "token-lookup").iter_rows(named=True):
        at = {name: row[name] for name in ("layer", "neuron", "polarity", "missing_because")}
        made = identity("explanation", **at, method=EMPTY)
        found.append(
            {**at, "explanation_id": short(made), "parent_id": None, "method": EMPTY, "explainer": NOBODY}
            | {"text": "" if row["text"] is not None else None, "prompt_hash": None, "request_id": None}
            | {"exemplar_ids": [], "identity": made}
        )
    schema = {name: kind for name, kind in TABLES["explanations"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)
