"""What the page of a neuron shows, gathered from the tables: the same mapping is its JSON.

Nothing is rounded, averaged or filled in here: a score is as it stands in `scores`, with its own scorer, split and
interval, and what is missing is null beside its reason.
"""

import heapq
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from explorer import simulated
from explorer.kept import Kept, Window
from pipeline.controls import CONTROLS
from pipeline.errors import LakeError, NeuronLedgerError
from pipeline.scale import scale
from pipeline.scorers import CHANCE
from pipeline.scores import SCORERS, SETS
from pipeline.tables import CHAIN, MISSING, STRATA
from resources.delta import collect

PARTS = (
    "neuron_statistics", "activations", "token_associations", "connections", "exemplars", "explanations", "simulations",
    "scores",
)  # fmt: skip
BESIDE = ("neuron_statistics", "explanations", "scores")
"""Those of them whose rows are few and small."""
UNSHOWN = {
    "exemplars": ["token_ids", "activations", "scaled_activations"],
    "simulations": ["distribution_values", "distribution_probabilities"],
}
"""Columns that a page of a neuron does without: the largest of their tables."""
OWN = ("layer", "neuron", "identity", "run_id")
STRONGEST = 24
"""Tokens shown of a token table."""


class NotThereError(NeuronLedgerError):
    """The lake has no such neuron, layer or text."""


def gather(
    kept: Kept, layer: int, neuron: int, *, explanation: str | None = None, simulator: str | None = None
) -> dict[str, Any]:
    """All that is shown of one neuron. `explanation` and `simulator` say which simulation is set beside the neuron.

    Raises:
        NotThereError: the lake has no such neuron, or the neuron no such explanation.
    """
    rows = _rows(kept, layer, neuron)
    if rows["neuron_statistics"].is_empty():
        raise NotThereError(not_there(kept, layer, neuron))
    known = kept.layer(layer)
    windows = kept.windows(
        [*rows["activations"].get_column("sequence_id"), *rows["exemplars"].get_column("sequence_id")]
    )
    calls = _calls(kept, rows)
    dates = kept.dates("explanations")
    statistics = {
        name: value for name, value in rows["neuron_statistics"].row(0, named=True).items() if name not in OWN
    }
    polarities = sorted(set(rows["activations"].get_column("polarity"))) or ["+"]
    explanations = _explanations(rows, calls, dates)
    chosen = _chosen(explanations, explanation)
    return {
        "layer": layer,
        "neuron": neuron,
        "n_neurons": known.get("n_neurons"),
        "subject": known.get("subject"),
        "site": known.get("site"),
        "fingerprint": known.get("fingerprint"),
        "polarities": polarities,
        "statistics": statistics,
        "explanations": explanations,
        "texts": [_texts(rows, windows, statistics, polarity) for polarity in polarities],
        "compared": None if chosen is None else _compared(rows, windows, chosen, simulator),
        "tokens": [_tokens(rows["token_associations"], kept.words(), polarity) for polarity in polarities],
        "connections": _connections(rows["connections"], kept.words()),
        "calls": calls,
        "chain": _chain(kept, layer, neuron, rows),
    }  # fmt: skip


def must_be_there(kept: Kept, layer: int, neuron: int) -> None:
    """Raises NotThereError unless the lake has this neuron."""
    rows = kept.lake.scan("neuron_statistics", layer=layer, neurons=[neuron]).select("neuron")
    if collect(rows).is_empty():
        raise NotThereError(not_there(kept, layer, neuron))


def not_there(kept: Kept, layer: int, neuron: int | None = None) -> str:
    """What the lake has instead, in a sentence."""
    known = kept.n_neurons()
    if not known:
        return "This lake has no neurons yet. `neuronledger run` makes them."
    if layer not in known:
        return f"There is no layer {layer} in this lake. It has layers {', '.join(map(str, sorted(known)))}."
    if neuron is not None and neuron >= known[layer]:
        return f"There is no neuron {layer}:{neuron}. Layer {layer} has neurons 0 to {known[layer] - 1}."
    return f"Layer {layer} was not captured yet. `neuronledger run --layers {layer}` does it."


def _rows(kept: Kept, layer: int, neuron: int) -> dict[str, pl.DataFrame]:
    """The rows of one neuron, without columns that no page shows.

    Raises:
        LakeError: a table is damaged; it says which.
    """
    rows = {table: _named(table, partial(kept.beside, table, layer, neuron)) for table in BESIDE}
    apart = [table for table in PARTS if table not in rows]
    scans = [kept.lake.scan(table, layer=layer, neurons=[neuron]).drop(UNSHOWN.get(table, [])) for table in apart]
    return rows | dict(zip(apart, _together(apart, scans), strict=True))


def _together(tables: Sequence[str], frames: Sequence[pl.LazyFrame]) -> list[pl.DataFrame]:
    """All of them at once, read in parallel; one after the other if that fails, to say which table is damaged."""
    try:
        return pl.collect_all(frames)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        return [_named(table, partial(collect, frame)) for table, frame in zip(tables, frames, strict=True)]


def _named(table: str, read: Callable[[], pl.DataFrame]) -> pl.DataFrame:
    try:
        return read()
    except LakeError as error:
        raise LakeError(f"table `{table}`: {error}") from error


def _columns(frame: pl.DataFrame, *names: str) -> Iterable[tuple[Any, ...]]:
    """The rows of some columns. Of so few rows, polars takes longer to plan a selection than Python to make it."""
    return zip(*(frame.get_column(name).to_list() for name in names), strict=True)


def _where(frame: pl.DataFrame, name: str, value: Any) -> pl.DataFrame:
    """The rows that have this value in a column."""
    places = [place for place, found in enumerate(frame.get_column(name).to_list()) if found == value]
    return frame if len(places) == len(frame) else frame[places]


def _calls(kept: Kept, rows: Mapping[str, pl.DataFrame]) -> dict[str, dict[str, Any]]:
    """The requests behind this neuron's rows, by id."""
    asked = set(rows["explanations"].get_column("request_id").drop_nulls())
    for requests in rows["simulations"].get_column("request_ids").to_list():
        asked.update(name for name in requests or () if name is not None)
    if not asked:
        return {}
    wanted = sorted(asked)
    calls = kept.lake.find("language_calls", pl.DataFrame({"request_id": wanted}))
    found = collect(calls.filter(pl.col("request_id").is_in(wanted)))
    return {
        row["request_id"]: {
            name: row[name].isoformat(timespec="seconds") if name == "answered_at" else row[name]
            for name in (
                "model", "model_served", "endpoint", "request", "reply", "finish_reason", "prompt_tokens", "cached_tokens",
                "completion_tokens", "cost_usd", "seconds", "attempts", "missing_because", "error", "answered_at", "run_id",
            )
        }
        for row in found.iter_rows(named=True)
    }  # fmt: skip


def _explanations(
    rows: Mapping[str, pl.DataFrame], calls: Mapping[str, Mapping[str, Any]], dates: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Every explanation with its scores, the best by the main score first, those without one last."""
    played: dict[str, list[str]] = {}
    for explanation_id, requests in _columns(rows["simulations"], "explanation_id", "request_ids"):
        played.setdefault(explanation_id, []).extend(requests or ())
    scored: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows["scores"].iter_rows(named=True):
        scored.setdefault(row["explanation_id"], {}).setdefault(row["simulator"], []).append(row)
    found = []
    for row in rows["explanations"].iter_rows(named=True):
        call = calls.get(row["request_id"] or "", {})
        made = dates.get(row["run_id"])
        asked = {row["request_id"], *played.get(row["explanation_id"], [])} - {None}
        found.append(
            {
                **{name: row[name] for name in (
                    "explanation_id", "polarity", "parent_id", "method", "explainer", "text", "missing_because", "prompt_hash",
                    "request_id", "exemplar_ids", "identity", "run_id",
                )},
                "control": row["method"] in CONTROLS,
                "reason": sentence(row["missing_because"]),
                "made_at": call.get("answered_at") or (made.isoformat(timespec="seconds") if made else None),
                "cost": _cost([calls[name] for name in asked if name in calls], asked=len(asked)),
                "simulators": [_scored(group, name) for name, group in scored.get(row["explanation_id"], {}).items()],
            }
        )  # fmt: skip
    return sorted(found, key=lambda one: (main(one) is None, -(main(one) or 0.0)))


def _scored(scores: Iterable[Mapping[str, Any]], simulator: Any) -> dict[str, Any]:
    """All scores of one explanation by one simulator: a line for each scorer, a cell for each split."""
    cells = {(row["scorer"], row["split"]): _cell(row) for row in scores}
    order = {scorer: place for place, scorer in enumerate(SCORERS)}
    scorers = sorted({scorer for scorer, _ in cells}, key=lambda scorer: (order.get(scorer, len(order)), scorer))
    splits = sorted(
        {split for _, split in cells}, key=lambda split: (split not in SETS, split != "top_and_random", split)
    )
    return {
        "simulator": simulator,
        "splits": splits,
        "scores": [
            {"scorer": scorer, "chance": CHANCE.get(scorer), "cells": [cells.get((scorer, split)) for split in splits]}
            for scorer in scorers
        ],
    }


def _cell(row: Mapping[str, Any]) -> dict[str, Any]:
    value, lookup = row["value"], row["token_lookup"]
    return {
        **{name: row[name] for name in (
            "split", "value", "missing_because", "ci_low", "ci_high", "n_sequences", "n_tokens", "n_failed", "formula_version",
            "token_lookup", "token_linear", "p_value", "identity",
        )},
        "reason": sentence(row["missing_because"]),
        "context_gain": None if value is None or lookup is None else value - lookup,
    }  # fmt: skip


def main_cell(explanation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The score that is meant when nothing else is said: `ev_correlation` on `top_and_random`; the best simulator's."""
    cells = [
        cell
        for simulator in explanation["simulators"]
        for line in simulator["scores"]
        if line["scorer"] == "ev_correlation"
        for cell in line["cells"]
        if cell is not None and cell["split"] == "top_and_random"
    ]
    return max(cells, key=lambda cell: -2.0 if cell["value"] is None else cell["value"], default=None)


def main(explanation: Mapping[str, Any]) -> float | None:
    """The value of `main_cell`."""
    cell = main_cell(explanation)
    return None if cell is None else cell["value"]


def sentence(reason: str | None) -> str | None:
    """What a reason of the closed list means."""
    return None if reason is None else MISSING.get(reason, reason)


def _cost(calls: Sequence[Mapping[str, Any]], *, asked: int) -> dict[str, Any] | None:
    """What an explanation and its simulations took; None where no language model was asked."""
    if not asked:
        return None
    prices = [call["cost_usd"] for call in calls]
    return {
        "requests": asked,
        "prompt_tokens": sum(call["prompt_tokens"] or 0 for call in calls),
        "completion_tokens": sum(call["completion_tokens"] or 0 for call in calls),
        "seconds": sum(call["seconds"] for call in calls),
        "usd": None if None in prices or len(calls) < asked else sum(prices),
    }


def _chosen(explanations: Sequence[dict[str, Any]], wanted: str | None) -> dict[str, Any] | None:
    if wanted is None:
        written = [one for one in explanations if one["text"] is not None]
        # A language model's words before a baseline, whose tokens are shown anyway.
        by_model = [one for one in written if one["explainer"] != "none" and not one["control"]]
        return next(iter([*by_model, *written]), None)
    found = next((one for one in explanations if one["explanation_id"] == wanted), None)
    if found is None:
        raise NotThereError(f"This neuron has no explanation {wanted}.")
    return found


def _texts(
    rows: Mapping[str, pl.DataFrame], windows: Mapping[str, Window], statistics: Mapping[str, Any], polarity: str
) -> dict[str, Any]:
    """The records of one side, by stratum, on one scale: 10 is the strongest activation of this side."""
    records = _where(rows["activations"], "polarity", polarity)
    sign = -1.0 if polarity == "-" else 1.0
    most = max(0.0, sign * (statistics["minimum"] if polarity == "-" else statistics["maximum"]))
    uses: dict[str, set[str]] = {}
    for side, name, split in _columns(rows["exemplars"], "polarity", "sequence_id", "split"):
        if side == polarity:
            uses.setdefault(name, set()).add(split)
    by_stratum: dict[str, list[dict[str, Any]]] = {}
    all_steps = _cut(scale(sign * _flat(records.get_column("activations")), most), records.get_column("activations"))
    for row, steps in zip(records.iter_rows(named=True), all_steps, strict=True):
        record = _record(row, windows, steps, sorted(uses.get(row["sequence_id"], ())))
        by_stratum.setdefault(row["stratum"], []).append(record)
    groups, bounds = [], [None, *statistics["quantile_boundaries"], None]
    for stratum in STRATA:
        found = sorted(by_stratum.get(stratum, []), key=lambda one: one["rank"])
        if not found:
            continue
        place = int(stratum[1:]) if stratum.startswith("q") else None
        groups.append(
            {
                "stratum": stratum,
                "from": None if place is None else bounds[place],
                "to": None if place is None else bounds[place + 1],
                "records": _apart(found),
            }
        )
    return {"polarity": polarity, "maximum": most, "groups": groups}


def _cut(values: Any, like: pl.Series) -> list[list[Any]]:
    """One flat array as lists that are as long as those of a column."""
    ends = np.cumsum(like.list.len().to_numpy())
    return [part.tolist() for part in np.split(values, ends[:-1])] if len(ends) else []


def _record(row: Mapping[str, Any], windows: Mapping[str, Window], steps: list[int], used: list[str]) -> dict[str, Any]:
    window = windows.get(row["sequence_id"])
    return {
        "rank": row["rank"],
        "sequence_id": row["sequence_id"],
        "document_id": None if window is None else window.document_id,
        "offset": None if window is None else window.offset,
        "peak": row["peak"],
        "peak_token": row["peak_token"],
        "used": used,
        "copies": 1,
        "tokens": ["\ufffd"] * len(steps) if window is None else window.tokens,
        "token_ids": None if window is None else window.token_ids,
        "activations": row["activations"],
        "steps": steps,
    }


def _apart(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records whose texts are the same letter for letter, once, with how many there are."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for record in records:
        first = found.setdefault(tuple(record["tokens"]), record)
        if first is not record:
            first["copies"] += 1
    return list(found.values())


def _compared(
    rows: Mapping[str, pl.DataFrame], windows: Mapping[str, Window], chosen: Mapping[str, Any], simulator: str | None
) -> dict[str, Any] | None:
    """One explanation's simulation beside the neuron, on the scale of the texts shown to the explainer.

    A simulation in units of weights has no place on it, and is brought there by its least-squares line: so only its
    shape can be compared, and `fitted` says so.
    """
    mine = _where(rows["simulations"], "explanation_id", chosen["explanation_id"])
    simulators = sorted(set(mine.get_column("simulator")))
    if simulator not in simulators:
        if simulator is not None:
            raise NotThereError(f"The simulator {simulator} did not simulate this explanation.")
        if not simulators:
            return None
        simulator = simulators[0]
    mine = _where(mine, "simulator", simulator)
    exemplars = {row["exemplar_id"]: row for row in rows["exemplars"].iter_rows(named=True)}
    sides = _columns(rows["exemplars"], "polarity", "scale_maximum")
    most = max((maximum for side, maximum in sides if side == chosen["polarity"]), default=0.0)
    shown = sorted(mine.iter_rows(named=True), key=lambda row: (STRATA.index(row["stratum"]), row["rank"]))
    unit = mine.item(0, "scale")
    beside, line, real, values = simulated.beside(
        [row["expected"] for row in shown], [row["true"] for row in shown], unit, most
    )
    records = []
    for row, side in zip(shown, beside, strict=True):
        exemplar = exemplars.get(row["exemplar_id"])
        window = None if exemplar is None else windows.get(exemplar["sequence_id"])
        records.append(
            {
                "exemplar_id": row["exemplar_id"],
                "sequence_id": None if exemplar is None else exemplar["sequence_id"],
                "document_id": None if window is None else window.document_id,
                "stratum": row["stratum"],
                "rank": row["rank"],
                "tokens": ["\ufffd"] * len(row["true"]) if window is None else window.tokens,
                "token_ids": None if window is None else window.token_ids,
                "missing_because": row["missing_because"],
                "reason": sentence(row["missing_because"]),
                "request_ids": row["request_ids"],
                **side,
            }
        )
    return {
        "explanation_id": chosen["explanation_id"],
        "simulator": simulator,
        "simulators": simulators,
        "unit": unit,
        "fitted": unit == "weight",
        "scale_maximum": most,
        "line": line,
        "records": records,
        "worst": simulated.worst(records, real, values),
    }


def _flat(lists: pl.Series) -> Any:
    return lists.explode(empty_as_null=False, keep_nulls=False).cast(pl.Float64).to_numpy()


def _tokens(associations: pl.DataFrame, words: Mapping[int, str], polarity: str) -> dict[str, Any]:
    """The strongest tokens of one side: by mean activation where they occur often enough to say so, and by weight."""
    mine = _where(associations, "polarity", polarity)
    if mine.is_empty():
        return {"polarity": polarity, "fallback": None, "by_mean": [], "by_weight": None}
    row = mine.row(0, named=True)
    has_weights = row["weights"] is not None
    weights = row["weights"] if has_weights else [None] * len(row["token_ids"])
    tokens = [one for one in zip(row["token_ids"], row["counts"], row["means"], weights, strict=True)
              if None not in one[: 4 if has_weights else 3]]  # fmt: skip
    down = -1 if polarity == "+" else 1

    def listed(tokens: Sequence[tuple[Any, ...]], by: int) -> list[dict[str, Any]]:
        strongest = heapq.nsmallest(STRONGEST, tokens, key=lambda one: (down * one[by], one[0]))
        return [
            {"token_id": token, "text": words.get(token), "count": count, "mean": mean, "weight": weight}
            for token, count, mean, weight in strongest
        ]

    enough = max(1, min(5, max((count for _, count, _, _ in tokens), default=1)))
    return {
        "polarity": polarity,
        "fallback": row["fallback"],
        "by_mean": listed([one for one in tokens if one[1] >= enough], 2),
        "by_weight": listed(tokens, 3) if has_weights else None,
    }


def _connections(connections: pl.DataFrame, words: Mapping[int, str]) -> dict[str, list[dict[str, Any]] | None] | None:
    """Tokens and neurons that this one is joined to by the weights, by kind and sign; None if they were not made yet."""
    if connections.is_empty():
        return None
    row = connections.row(0, named=True)
    found: dict[str, list[dict[str, Any]] | None] = {}
    for kind in [name.removesuffix("_strengths") for name in row if name.endswith("_strengths")]:
        strengths = row[f"{kind}_strengths"]
        if strengths is None:
            found[kind] = None
        elif f"{kind}_token_ids" in row:
            found[kind] = [
                {"token_id": token, "text": words.get(token), "strength": value}
                for token, value in zip(row[f"{kind}_token_ids"], strengths, strict=True)
            ]
        else:
            found[kind] = [
                {"layer": layer, "neuron": neuron, "strength": value}
                for layer, neuron, value in zip(row[f"{kind}_layers"], row[f"{kind}_neurons"], strengths, strict=True)
            ]
    return found


def _chain(kept: Kept, layer: int, neuron: int, rows: Mapping[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """For each hop, the write that this neuron's rows are from: the last finished one of the run that they name."""
    chain = []
    for table in CHAIN:
        runs = set(rows[table].get_column("run_id")) if table in rows and not rows[table].is_empty() else None
        row = kept.write(table, layer, neuron, runs)
        if row is None:
            continue
        chain.append(
            {
                **{name: row[name] for name in ("table", "version", "run_id", "commit_uuid", "content_hash", "step_key", "rows")},
                "alone": row["neurons"] is not None,
                "finished_at": row["finished_at"].isoformat(timespec="seconds"),
                "seconds": (row["finished_at"] - row["started_at"]).total_seconds(),
                **{name: json.loads(row[name]) for name in ("inputs", "settings", "code", "environment", "usage")},
            }
        )  # fmt: skip
    return chain


def text(kept: Kept, layer: int, neuron: int, sequence_id: str) -> dict[str, Any]:
    """Every token of one text, named by the first digits of its sequence, with its bytes and the neuron's activation.

    Raises:
        NotThereError: the lake has no such neuron, or keeps no record of it on such a text.
    """
    records = kept.lake.scan("activations", layer=layer, neurons=[neuron])
    record = collect(records.filter(pl.col("sequence_id").str.starts_with(sequence_id))).sort("stratum", "rank")
    if len(names := set(record.get_column("sequence_id"))) == 1:
        (sequence_id,) = names
    window = kept.windows([sequence_id]).get(sequence_id)
    if record.is_empty() or window is None:
        raise NotThereError(f"The lake keeps no record of neuron {layer}:{neuron} on text {sequence_id}.")
    numbers = collect(kept.lake.scan("neuron_statistics", layer=layer, neurons=[neuron]))
    negative = record.item(0, "polarity") == "-"
    most = max(0.0, -numbers.item(0, "minimum") if negative else numbers.item(0, "maximum"))
    values = record.item(0, "activations").to_list()
    steps = scale((-1.0 if negative else 1.0) * np.asarray(values, dtype=np.float64), most).tolist()
    rows = zip(window.tokens, window.pieces, window.token_ids, values, steps, strict=True)
    return {
        "layer": layer, "neuron": neuron, "sequence_id": sequence_id, "document_id": window.document_id,
        "split": window.split, "offset": window.offset,
        "tokens": [
            {"text": token, "bytes": piece.hex(), "token_id": token_id, "activation": value, "step": step}
            for token, piece, token_id, value, step in rows
        ],
    }  # fmt: skip


def snippet(uri: str, layer: int, neuron: int, versions: Mapping[str, int] | None = None) -> str:
    """Python that reads what the page shows; `versions` are those of the tables on a page of an older state."""
    at = f"lake, at = {uri!r}, (pl.col('layer') == {layer}) & (pl.col('neuron') == {neuron})\n"
    if versions is None:
        return (
            f"import polars as pl\n{at}"
            f"tables = {{name: pl.scan_delta(f'{{lake}}/{{name}}').filter(at).collect() for name in {list(PARTS)!r}}}\n"
        )
    then = {name: versions[name] for name in PARTS if name in versions}
    return (
        f"import polars as pl\n{at}versions = {then!r}\n"
        "tables = {name: pl.scan_delta(f'{lake}/{name}', version=version).filter(at).collect()\n"
        "          for name, version in versions.items()}\n"
    )


def command(name: str, flags: Mapping[str, str]) -> str:
    """A command line that can be pasted into a shell."""
    return " ".join(["neuronledger", name, *(f"--{flag} {shlex.quote(value)}" for flag, value in flags.items())])
