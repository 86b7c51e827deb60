"""Connections: how strongly a neuron is joined to tokens and to other neurons by the weights alone.

No text is read and no forward pass is made. A connection is the straight path from one to the other through the
residual stream, with nothing on it but the gain of the norm that is read from (Bills et al. 2023, README, "Definition
of connection weights"):

    token -> neuron     wte[t] @ diag(ln_2.g) @ c_fc.w[:, n]                             input
    neuron -> token     c_proj.w[n] @ diag(ln_f.g) @ wte[t]                              output
    neuron -> neuron    h{l1}.c_proj.w[n1] @ diag(h{l2}.ln_2.g) @ h{l2}.c_fc.w[:, n2]    upstream, downstream; l1 < l2

LayerNorm's bias and centring are left out, and so is all that attention and other neurons make of what passes. We
differ in two things. A model with an output matrix of its own has it in the place of `wte`. And a list of positive
connections holds none that is zero or negative, and the other way round, so that a list may be short.

Products are made block by block, and each neuron keeps the strongest that were seen: memory never holds all tokens by
all neurons, nor all neurons by all neurons.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.provenance import identities

TOKENS = 50
"""Tokens kept of each sign, as many as Bills et al. 2023 show."""

NEURONS = 10
"""Neurons kept of each sign, as many as Bills et al. 2023 show."""

BLOCK = 4 * 2**20
"""Products made at once, in values (16 MiB). No setting: the last bits of a product can depend on the shape of its
block, and so the blocks of a layer are the same whatever else a run makes."""

SIGNS = {"positive": 1, "negative": -1}

Array = NDArray[np.float32]


def connections(
    layer: int,
    n_neurons: int,
    *,
    embeddings: Array,
    reading: Array | None,
    writing: Array | None,
    unembedding: Array | None,
    upstream: Iterable[Array | None],
    downstream: Iterable[Array | None],
    fingerprint: str,
    checkpoint: str,
) -> pl.DataFrame:
    """The `connections` rows of one layer, without `run_id`.

    Arrays are float32: `embeddings` (vocabulary, width), `reading` (width, neuron), `writing` (neuron, width),
    `unembedding` (width, vocabulary). `upstream` gives `writing` of each earlier layer from 0, `downstream` gives
    `reading` of each later layer; they are asked for one after the other, and none is kept. `fingerprint` is that of
    the layer, `checkpoint` the hash of all weights.

    Lists are null where the model has no connections of their kind, because an array that they need is None. They are
    empty where the model has them, and this neuron has none of this sign.

    The strongest come first, and of equals the lower token, or the lower layer and neuron. This order is exact for
    strengths as they are stored. A strength is a sum of float32 products made by the machine's BLAS: the same machine
    with the same number of threads gives the same bits, another may differ in the last ones.
    """
    out = _transposed(writing)
    linear = reading is not None and writing is not None
    found = {
        "input": strongest([embeddings], reading, TOKENS),
        "output": strongest([_transposed(unembedding)], out, TOKENS),
        "upstream": strongest(upstream if linear else [None], reading, NEURONS),
        "downstream": strongest(map(_transposed, downstream) if linear else [None], out, NEURONS),
    }
    first_layer = {"upstream": 0, "downstream": layer + 1}
    lists = [_lists(kind, ranked, n_neurons, first_layer.get(kind)) for kind, ranked in found.items()]
    at = pl.select(layer=pl.repeat(layer, n_neurons, dtype=pl.Int32), neuron=pl.int_range(n_neurons, dtype=pl.Int32))
    made = identities("connections", at, fingerprint=fingerprint, checkpoint=checkpoint)
    return pl.concat([at, *lists], how="horizontal").with_columns(pl.Series("identity", made))


@dataclass(frozen=True)
class Ranked:
    """The strongest connections of one sign: arrays of one length, sorted by neuron, then from strong to weak."""

    neuron: NDArray[np.int64]
    part: NDArray[np.int64]
    """Which of the arrays it is joined to, from 0."""
    row: NDArray[np.int64]
    """Which row of that array."""
    strength: Array


def strongest(parts: Iterable[Array | None], neurons: Array | None, count: int) -> dict[str, Ranked] | None:
    """For each sign, the `count` strongest products of each neuron with the rows of all parts.

    A part is float32 (row, width), and `neurons` float32 (width, neuron). None if one of them is None.
    """
    if neurons is None:
        return None
    n_neurons = neurons.shape[1]
    running = {name: _Running(n_neurons, count, sign) for name, sign in SIGNS.items()}
    at_once = max(1, BLOCK // n_neurons)
    sizes: list[int] = []
    for part in parts:
        if part is None:
            return None
        sizes.append(len(part))
        for start in range(0, len(part), at_once):
            block = part[start : start + at_once] @ neurons
            for kept in running.values():
                kept.see(block)
    return {name: kept.ranked(sizes) for name, kept in running.items()}


class _Running:
    """The strongest connections of one sign among the rows seen so far; what is too weak is dropped at first sight."""

    def __init__(self, n_neurons: int, count: int, sign: int) -> None:
        self._count = count
        self._sign = sign
        self._seen = 0
        # What the magnitude of a newcomer must exceed, by neuron.
        self._bound = np.zeros(n_neurons, np.float32)
        # Neurons, rows and magnitudes: those kept, and newcomers that are not sorted in yet.
        self._kept = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        self._new: list[tuple[NDArray[np.int64], NDArray[np.int64], Array]] = []
        self._n_new = 0

    def see(self, block: Array) -> None:
        """The products of the next rows, (row, neuron)."""
        if not self._seen:
            self._bound = self._first_bound(block)
        at = np.flatnonzero(block > self._bound if self._sign > 0 else block < -self._bound)
        row, neuron = np.divmod(at, block.shape[1])
        self._new.append((neuron, row + self._seen, np.abs(block.reshape(-1)[at])))
        self._seen += len(block)
        self._n_new += len(at)
        # Sorting seldom costs less than the newcomers that an old bound lets in.
        if self._n_new > self._count * len(self._bound):
            self._settle()

    def ranked(self, sizes: Sequence[int]) -> Ranked:
        """The strongest of all rows seen, which came from parts of these sizes."""
        self._settle()
        neuron, row, magnitude = self._kept
        starts = np.cumsum([0, *sizes])
        part = np.searchsorted(starts, row, side="right") - 1
        return Ranked(neuron, part, row - starts[part], magnitude * np.float32(self._sign))

    def _first_bound(self, block: Array) -> Array:
        """A bound from a few rows: what is weaker than `count` of them need not be sorted."""
        few = block[: 8 * self._count]
        if len(few) < self._count:
            return self._bound
        place = len(few) - self._count if self._sign > 0 else self._count - 1
        last = np.partition(few, place, axis=0)[place] * np.float32(self._sign)
        # A little below, so that the last of them and its equals pass.
        below: Array = np.nextafter(np.maximum(last, np.float32(0)), np.float32(0))
        return below

    def _settle(self) -> None:
        """Sort newcomers in, and keep of each neuron the `count` strongest."""
        neuron, row, magnitude = (np.concatenate(arrays) for arrays in zip(self._kept, *self._new, strict=True))
        self._new, self._n_new = [], 0
        # By neuron, then from strong to weak: the bits of positive floats are ordered as the floats are, and numpy sorts
        # numbers of 16 bits several times as fast. The sort is stable and rows came ascending, so the lower of equals
        # stays first.
        weak = ~magnitude.view(np.uint32)
        by = neuron.astype(np.min_scalar_type(len(self._bound)))
        order = np.lexsort((weak.astype(np.uint16), (weak >> 16).astype(np.uint16), by))
        neuron, row, magnitude = neuron[order], row[order], magnitude[order]
        rank = np.arange(len(neuron)) - np.searchsorted(neuron, np.arange(len(self._bound)))[neuron]
        stays, last = rank < self._count, rank == self._count - 1
        self._kept = (neuron[stays], row[stays], magnitude[stays])
        self._bound[neuron[last]] = magnitude[last]


def _lists(kind: str, found: dict[str, Ranked] | None, n_neurons: int, first_layer: int | None) -> pl.DataFrame:
    """The columns of one kind, one row a neuron: lists of tokens, or of layers and neurons if a first layer is given."""
    lists = pl.DataFrame({"neuron": np.arange(n_neurons)})
    names = ("token_ids",) if first_layer is None else ("layers", "neurons")
    for sign in SIGNS:
        schema = pl.Schema({f"{kind}_{sign}_{name}": pl.Int32 for name in names})
        schema[f"{kind}_{sign}_strengths"] = pl.Float32()
        if found is None:
            lists = lists.with_columns(pl.lit(None, pl.List(type_)).alias(name) for name, type_ in schema.items())
            continue
        ranked = found[sign]
        joined = (ranked.row,) if first_layer is None else (ranked.part + first_layer, ranked.row)
        columns = dict(zip(schema, (*joined, ranked.strength), strict=True))
        rows = pl.DataFrame({"neuron": ranked.neuron, **columns}, schema_overrides=schema)
        by_neuron = rows.group_by("neuron", maintain_order=True).agg(pl.all())
        lists = lists.join(by_neuron, on="neuron", how="left", maintain_order="left").with_columns(
            pl.col(schema.names()).fill_null([])
        )
    return lists.drop("neuron")


def _transposed(array: Array | None) -> Array | None:
    return None if array is None else array.T
