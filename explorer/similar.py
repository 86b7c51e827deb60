"""Similar neurons: those that are like one by when they fire, by their weights, and by what is said of them.

Each kind says what it means, and with which layers it was compared: those nearest to the neuron's own, as many as can be
read while somebody waits.
"""

import re
from collections.abc import Sequence
from typing import Any

import polars as pl

from explorer.index import Index, by_neuron, words_of
from explorer.kept import Kept
from explorer.meaning import Meaning
from explorer.neuron_page import NotThereError, not_there
from pipeline.baselines import METHODS
from pipeline.controls import CONTROLS
from pipeline.likeness import by_weights, together
from resources.delta import collect

SHOWN = 12
"""Neurons named of each kind."""
MOST_NEURONS = 40_000
"""That one is compared with."""
JOINTS = [
    f"{side}_{sign}_{part}"
    for side in ("input", "output")
    for sign in ("positive", "negative")
    for part in ("token_ids", "strengths")
]
MOST_NEAR = 2_000
"""Explanations that are looked through for those of other neurons by the same method."""
LEAST_WINDOWS = 2
"""Strongest windows in common, from which on two neurons are named: one alone may be by chance."""


def gather(kept: Kept, index: Index, layer: int, neuron: int, meaning: Meaning) -> dict[str, Any]:
    """The neurons that are like this one.

    Raises:
        NotThereError: the lake has no such neuron.
    """
    mine = index.neurons.filter((pl.col("layer") == layer) & (pl.col("neuron") == neuron))
    if mine.is_empty():
        raise NotThereError(not_there(kept, layer, neuron))
    layers = _nearest(kept, index, layer)
    found: dict[str, Any] = {
        "layer": layer,
        "neuron": neuron,
        "subject": kept.layers().item(0, "subject") if len(kept.layers()) else None,
        "layers": layers,
        "together": _together(kept, layer, neuron, layers),
        "weights": _weights(kept, layer, neuron, layers),
        "said": [one for row in mine.iter_rows(named=True) for one in _said(kept, index, row, meaning)],
    }  # fmt: skip
    named = [
        *(one for side in found["together"] for one in side["rows"]),
        *(one for rows in found["weights"].values() for one in rows or ()),
    ]
    said = words_of(index, [(one["layer"], one["neuron"]) for one in named])
    of_any = by_neuron(said)
    for one in named:
        at = (one["layer"], one["neuron"])
        # Weights join a neuron, and windows a side of it.
        one["text"] = said.get((*at, one["polarity"])) if "polarity" in one else of_any.get(at)
    return found


def _nearest(kept: Kept, index: Index, layer: int) -> list[int]:
    """The neuron's own layer and those about it, of those that were captured."""
    sizes = dict(kept.layers().select("layer", "n_neurons").iter_rows())
    captured = index.neurons.get_column("layer").unique().to_list()
    found: list[int] = []
    room = MOST_NEURONS
    for one in sorted(captured, key=lambda one: (abs(one - layer), one)):
        room -= sizes.get(one, 0)
        if found and room < 0:
            break
        found.append(one)
    return sorted(found)


def _together(kept: Kept, layer: int, neuron: int, layers: Sequence[int]) -> list[dict[str, Any]]:
    # A window on which a neuron is silent is none of its strongest, though it fills the list of one that hardly fires.
    fires = pl.when(pl.col("polarity") == "+").then(pl.col("peak") > 0).otherwise(pl.col("peak") < 0)
    top = (pl.col("stratum") == "top") & fires
    columns = ["layer", "neuron", "polarity", "sequence_id", "peak_token"]
    own = collect(kept.lake.scan("activations", layer=layer, neurons=[neuron]).filter(top).select(columns))
    windows = own.get_column("sequence_id").unique().implode()
    theirs = [
        kept.lake.scan("activations", layer=one).filter(top & pl.col("sequence_id").is_in(windows)) for one in layers
    ]
    records = pl.concat([collect(one.select(columns)) for one in theirs]) if len(own) else own
    others = records.filter(~((pl.col("layer") == layer) & (pl.col("neuron") == neuron)))
    found = []
    for polarity in own.get_column("polarity").unique().sort():
        mine = own.filter(pl.col("polarity") == polarity)
        rows = together(others, mine).filter(pl.col("windows") >= LEAST_WINDOWS).head(SHOWN)
        found.append({"polarity": polarity, "of": mine.get_column("sequence_id").n_unique(), "rows": rows.to_dicts()})
    return found


def _weights(kept: Kept, layer: int, neuron: int, layers: Sequence[int]) -> dict[str, list[dict[str, Any]] | None]:
    """Neurons joined to the same tokens; None where the connections were not made, or the model has none of the kind."""
    columns = ["layer", "neuron", *JOINTS]
    own = collect(kept.lake.scan("connections", layer=layer, neurons=[neuron]).select(columns))
    if own.is_empty():
        return {"input": None, "output": None}
    known = pl.concat([collect(kept.lake.scan("connections", layer=one).select(columns)) for one in layers])
    others = known.filter(~((pl.col("layer") == layer) & (pl.col("neuron") == neuron)))
    found: dict[str, list[dict[str, Any]] | None] = {}
    for side in ("input", "output"):
        rows = by_weights(others, own, side)
        found[side] = None if rows is None else rows.filter(pl.col("cosine") > 0).head(SHOWN).to_dicts()
    return found


def _said(kept: Kept, index: Index, mine: dict[str, Any], meaning: Meaning) -> list[dict[str, Any]]:
    """Neurons whose explanation means like the best of one side, or shares most words with it where there are no vectors.

    A list of tokens is held against lists.
    """
    rows, by = _near(kept, index, mine, meaning), "meaning"
    if rows is None:
        # Numbers are counts of tokens, and `tokens` begins every list of them.
        words = [word for word in re.findall(r"[^\W\d_]{2,}", mine["text"] or "") if word != "tokens"]
        rows, by = index.find(" ".join(dict.fromkeys(words)), every=False), "words"
    same = pl.col("method").eq_missing(pl.lit(mine["method"]))
    others = rows.filter(
        (same if mine["method"] in METHODS else ~pl.col("method").is_in(METHODS)) & ~pl.col("method").is_in(CONTROLS)
        & ~((pl.col("layer") == mine["layer"]) & (pl.col("neuron") == mine["neuron"]))
    )  # fmt: skip
    best = others.unique(["layer", "neuron", "polarity"], keep="first", maintain_order=True).head(SHOWN)
    columns = ["layer", "neuron", "polarity", "method", "text", "value", *(["closeness"] if by == "meaning" else [])]
    shown = best.select(columns).to_dicts()
    return [{"polarity": mine["polarity"], "text": mine["text"], "method": mine["method"], "by": by, "rows": shown}]


def _near(kept: Kept, index: Index, mine: dict[str, Any], meaning: Meaning) -> pl.DataFrame | None:
    name = mine["explanation_id"]
    return None if name is None or not mine["text"] else meaning.like(kept, index, name, most=MOST_NEAR)
