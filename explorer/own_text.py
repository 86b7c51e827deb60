"""A text of one's own: what the neurons of a lake do on it, read by the subject itself.

For each chosen neuron what it does at each token, on the scale of its own page; and of all neurons those that fire most
against what they did on the corpus. Nothing is kept.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from explorer.index import FilterError, Index, whole, words_of
from explorer.kept import Kept
from explorer.live import BusyError, Live, NotAtHandError, strange
from explorer.neuron import parse
from pipeline.errors import SettingsError
from pipeline.firing import SORTS, fired
from pipeline.ports import SubjectModel
from pipeline.scale import scale
from resources.delta import collect

MOST_LETTERS = 4_000
"""Of a text: an address has to hold it."""
MOST_TOKENS = 1_024
MOST_NEURONS = 12
"""Neurons that one may choose."""
SHOWN = 30
"""Neurons named among those that fire most."""
FEW = 5
"""Of these, how many are shown token by token where none was chosen."""

NUMBERS = ["neuron", "minimum", "maximum", "mean", "variance", "quantile_boundaries"]


@dataclass(frozen=True)
class Asked:
    """What an address asks for: a text, neurons, a layer alone, and by what those that fire most are ordered."""

    text: str = ""
    neurons: tuple[tuple[int, int], ...] = ()
    layer: int | None = None
    order: str = SORTS[0]

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Asked":
        """What a query asks for.

        Raises:
            FilterError: a name is no neuron, or there are too many; the layer or the order is of no use.
        """
        # A browser sends a form's line breaks as two characters.
        text = query.get("text", "").replace("\r\n", "\n")
        if len(text) > MOST_LETTERS:
            raise FilterError(f"The text has {len(text):,} letters; give at most {MOST_LETTERS:,}.")
        names = [name for name in query.get("neurons", "").replace(",", " ").split() if name]
        if len(names) > MOST_NEURONS:
            raise FilterError(f"neurons names {len(names)} of them; give at most {MOST_NEURONS}.")
        try:
            neurons = tuple(dict.fromkeys(parse(name[:40]) for name in names))
        except SettingsError as error:
            raise FilterError(f"{error}.") from None
        layer = query.get("layer", "").strip()
        order = query.get("order", "") or SORTS[0]
        if order not in SORTS:
            raise FilterError(f"order (={order[:40]!r}) must be one of {', '.join(SORTS)}.")
        return cls(text, neurons, whole(layer[:20], "layer") if layer else None, order)

    def named(self) -> str:
        """The chosen neurons as they are typed."""
        return ", ".join(f"{layer}:{neuron}" for layer, neuron in self.neurons)


@dataclass
class Found:
    """What a pass brought: tokens, what fires, and what chosen neurons do. Layers come one after the other."""

    token_ids: list[int]
    tokens: list[str]
    left_out: int
    firing: list[pl.DataFrame] = field(default_factory=list)
    values: dict[tuple[int, int], NDArray[np.float32]] = field(default_factory=dict)
    counts: Any = 0
    strongest: list[list[tuple[float, int, int, str]]] = field(default_factory=list)


def gather(kept: Kept, live: Live[SubjectModel], asked: Asked, *, patience: float | None) -> dict[str, Any]:
    """What the page of a text shows. `why` says why nothing could be read.

    Raises:
        FilterError: a neuron or a layer is not in the lake.
        LakeError: a table cannot be read.
    """
    shape = dict(kept.layers().select("layer", "n_neurons").iter_rows())
    for layer, neuron in asked.neurons:
        if neuron >= shape.get(layer, 0):
            raise FilterError(f"There is no neuron {layer}:{neuron} in this lake.")
    if asked.layer is not None and asked.layer not in shape:
        raise FilterError(f"There is no layer {asked.layer} in this lake.")
    shown: dict[str, Any] = {
        "text": asked.text, "neurons": asked.named(), "layer": asked.layer, "order": asked.order, "layers": sorted(shape),
        "subject": kept.layers().item(0, "subject") if shape else None, "most": MOST_LETTERS, "why": None, "busy": False,
        "closed": {}, "read": None,
    }  # fmt: skip
    if not asked.text.strip():
        return shown
    try:
        found, closed = live.use(lambda subject: _read(kept, subject, asked), patience=patience)
    except NotAtHandError as error:
        return shown | {"why": str(error), "busy": isinstance(error, BusyError)}
    return shown | {"closed": closed, "read": _dressed(kept, found, asked)}


def explained(shown: dict[str, Any], index: Callable[[], Index]) -> dict[str, Any]:
    """What is shown, with the best explanation of each side of a neuron that it names."""
    if shown["read"] is not None:
        rows = [
            *shown["read"]["firing"],
            *shown["read"]["shown"],
            *(row for here in shown["read"]["at"] for row in here),
        ]
        said = words_of(index(), [(row["layer"], row["neuron"]) for row in rows])
        for row in rows:
            row["explanation"] = said.get((row["layer"], row["neuron"], row["polarity"]))
    return shown


def _read(kept: Kept, subject: SubjectModel, asked: Asked) -> tuple[Found, dict[int, str]]:
    """One pass over the text. Of a layer only what is shown outlives it."""
    closed = dict(strange(kept, subject))
    wanted = [asked.layer] if asked.layer is not None else kept.layers().get_column("layer").to_list()
    wanted = sorted({*wanted, *(layer for layer, _ in asked.neurons)} - set(closed))
    numbers = {layer: _numbers(kept, layer) for layer in wanted}
    wanted = [layer for layer in wanted if len(numbers[layer])]
    if not wanted:
        raise NotAtHandError(next(iter(closed.values()), "No layer of this lake was captured yet."))
    read = subject.tokenize([asked.text])[0]
    most = min(subject.max_tokens(), MOST_TOKENS)
    if not read.ids:
        raise NotAtHandError("The tokenizer finds no token in this text.")
    ids = read.ids[:most]
    pieces = [piece.decode("utf-8", errors="replace") for piece in read.pieces[:most]]
    found = Found(ids, pieces, len(read.ids) - len(ids), strongest=[[] for _ in ids])
    signed = dict(kept.layers().select("layer", "signed").iter_rows())

    def receive(layer: int, _: slice, values: Any) -> None:
        _keep(found, layer, values[0].float().cpu().numpy(), numbers[layer], asked, signed=signed[layer])

    subject.capture([[ids]], wanted, receive)
    return found, closed


def _numbers(kept: Kept, layer: int) -> pl.DataFrame:
    """The statistics of one layer's neurons."""
    read = kept.lake.scan("neuron_statistics", layer=layer).select(NUMBERS)
    return kept.once(f"numbers of layer {layer}", ["neuron_statistics"], lambda: collect(read))


def _keep(
    found: Found, layer: int, values: NDArray[np.float32], numbers: pl.DataFrame, asked: Asked, *, signed: bool
) -> None:
    mine = fired(values, numbers, signed=signed)
    rows = mine.neurons.with_columns(pl.lit(layer, pl.Int32).alias("layer"))
    chosen = [neuron for at, neuron in asked.neurons if at == layer]
    if asked.layer in (None, layer):
        most = rows.sort(asked.order, "neuron", descending=[True, False], nulls_last=True).head(SHOWN)
        found.firing.append(most.filter(pl.col(asked.order).is_not_null()))
        chosen += most.get_column("neuron").head(FEW).to_list()
        found.counts = found.counts + mine.counts
        names = list(zip(rows.get_column("neuron"), rows.get_column("polarity"), strict=True))
        for token, (places, shares) in enumerate(zip(mine.strongest.tolist(), mine.shares.tolist(), strict=True)):
            here = [(share, layer, *names[place]) for place, share in zip(places, shares, strict=True) if place >= 0]
            best = sorted([*found.strongest[token], *here], key=lambda one: (-one[0], *one[1:]))
            found.strongest[token] = best[: len(places)]
    for neuron in chosen:
        found.values[layer, neuron] = values[:, neuron].copy()


def _dressed(kept: Kept, found: Found, asked: Asked) -> dict[str, Any]:
    firing = (
        pl.concat(found.firing)
        .sort(asked.order, "layer", "neuron", descending=[True, False, False])
        .head(SHOWN)
        .to_dicts()
        if found.firing
        else []
    )
    chosen = list(asked.neurons) or list(dict.fromkeys((row["layer"], row["neuron"]) for row in firing))[:FEW]
    return {
        "token_ids": found.token_ids,
        "tokens": found.tokens,
        "left_out": found.left_out,
        "counts": np.asarray(found.counts).tolist() if found.firing else None,
        "at": [
            [{"layer": layer, "neuron": neuron, "polarity": polarity, "share": share} for share, layer, neuron, polarity in here]
            for here in found.strongest
        ],
        "firing": firing,
        "shown": [one for at in chosen for one in _maps(kept, at, found)],
    }  # fmt: skip


def _maps(kept: Kept, at: tuple[int, int], found: Found) -> Sequence[dict[str, Any]]:
    """One neuron on the text, once for each side that it has: 10 is the strongest of the corpus on that side."""
    layer, neuron = at
    values = found.values.get(at)
    numbers = _numbers(kept, layer).filter(pl.col("neuron") == neuron).select("minimum", "maximum")
    if values is None or numbers.is_empty():
        return [
            {"layer": layer, "neuron": neuron, "polarity": "+", "activations": None, "steps": None, "maximum": None}
        ]
    low, high = numbers.row(0)
    sides: Iterable[tuple[str, float, float]] = [("+", 1.0, max(0.0, high))]
    if bool(kept.layers().filter(pl.col("layer") == layer).item(0, "signed")):
        sides = [*sides, ("-", -1.0, max(0.0, -low))]
    return [
        {"layer": layer, "neuron": neuron, "polarity": polarity, "activations": [float(value) for value in values],
         "steps": scale(sign * values.astype(np.float64), most).tolist(), "maximum": most}
        for polarity, sign, most in sides
    ]  # fmt: skip
