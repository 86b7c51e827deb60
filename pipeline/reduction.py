"""Reduction: the activations of one layer, taken in batch by batch and reduced at once into a capture.

What is kept, and why it stays bounded, is in `pipeline.capture`; the loops are in `pipeline.kernels`.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline import kernels
from pipeline.capture import (
    EMPTY,
    HISTOGRAM_CLASSES,
    HISTOGRAM_EDGES,
    LOOKUP_BITS,
    MAXIMA,
    PER_SAMPLE,
    PER_SPLIT,
    TOP,
    ExactSums,
    LayerCapture,
    Plan,
    Slots,
    neuron_numbers,
)
from pipeline.errors import CaptureError, SubjectError
from pipeline.record_pool import RecordPool
from pipeline.tables import SPLITS

if TYPE_CHECKING:
    import torch

_PIECE = 16
"""Windows reduced at a time, so that what is known of each (window, neuron) stays small."""

_BATCH = 64
"""Windows whose activations are stored together, once it is known which of them are among the strongest."""

_NARROW = 2**31
"""Steps that a token sum of 32 bits may never reach."""

_WIDE = 2**63 - 2**53
"""The same for 64 bits."""

_SANE = 2**52
"""Steps that one activation may never reach."""


class LayerReduction:
    """Reduces the batches of one layer as they come. `receive` each window once, then ask for the `result`.

    `probe` is the strongest |activation| of each neuron (neuron,) on the subject's probe, units of the neuron: it sets
    the steps of the token sums. `start` is a capture of windows of the same plan to go on from. The neurons are shared
    out among the threads of `pool`; their number changes no bit.

    Raises:
        CaptureError: `start` belongs to another layer, model or plan.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        layer: int,
        signed: bool,
        seed: int,
        probe: NDArray[np.float32],
        start: LayerCapture | None = None,
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        self.plan = plan
        self.layer = layer
        self.signed = signed
        self._seed = seed
        self._n = n = len(probe)
        self._pool = pool
        self._read = np.zeros(plan.n_windows, dtype=bool)
        self._parts = np.zeros((5, 3, n))
        self._exponents = np.full((5, n), kernels.LOWEST, dtype=np.int32)
        self._minimum = np.full(n, np.inf, dtype=np.float32)
        self._maximum = np.full(n, -np.inf, dtype=np.float32)
        self._positive = np.zeros(n, dtype=np.int64)
        counted = int(plan.lengths[plan.level >= plan.histogram_level].sum())
        self._histogram = np.zeros(
            (HISTOGRAM_CLASSES, n, len(HISTOGRAM_EDGES) + 1), dtype=np.uint16 if counted < 2**16 else np.int32
        )
        self._maxima = {
            polarity: np.zeros((min(plan.n_windows, MAXIMA), n), dtype=np.float32)
            for polarity in (("+", "-") if signed else ("+",))
        }
        length = int(plan.lengths.max(initial=0))
        groups = groups_of(plan)
        self._groups = np.stack([members(plan, name) for name in groups], axis=1)
        self._strongest = {
            polarity: _Strongest(groups, n, length, sign=1 if polarity == "+" else -1) for polarity in self._maxima
        }
        self._random = _Random(plan, layer=layer, n_neurons=n, length=length, seed=seed)
        self._tokens = _TokenSums(plan, probe)
        if start is not None:
            self._continue(start)

    def receive(self, windows: NDArray[np.int64], activations: "torch.Tensor") -> None:
        """Take in a batch: the windows, and their activations (window, token, neuron), which float32 holds exactly.

        Positions past the end of a window are not looked at.

        Raises:
            SubjectError: an activation is NaN or infinite, or beyond all measure of the probe.
            CaptureError: a window came before.
        """
        distinct, times = np.unique(windows, return_counts=True)
        twice = distinct[self._read[distinct] | (times > 1)]
        if len(twice):
            raise CaptureError(f"window {twice[0]} came twice to layer {self.layer}")
        x = activations.float().numpy(force=True)
        for at in range(0, len(windows), _BATCH):
            self._receive(windows[at : at + _BATCH], np.ascontiguousarray(x[at : at + _BATCH]))
        self._read[windows] = True

    def _receive(self, windows: NDArray[np.int64], x: NDArray[np.float32]) -> None:
        for at in range(0, len(windows), _PIECE):
            piece = _Piece.of(self.plan, windows[at : at + _PIECE], x[at : at + _PIECE], first=at)
            self._share(piece.measure)
            if not np.isfinite(piece.sums[0]).all():
                self._refuse(piece)
            self._tokens.make_room(piece, layer=self.layer)
            self._share(partial(self._take, piece))
            early = piece.windows < MAXIMA
            for polarity, maxima in self._maxima.items():
                zero = np.float32(0)  # of either sign becomes the same
                maxima[piece.windows[early]] = piece.high[early] + zero if polarity == "+" else zero - piece.low[early]
        for strongest in self._strongest.values():
            self._share(partial(strongest.store, x, self.plan.lengths[windows]))

    def result(self) -> LayerCapture:
        """What was kept so far. It shares memory with what is to come."""
        plan, read = self.plan, self._read
        early = np.flatnonzero(read[:MAXIMA])
        counts, sums = self._tokens.result()
        return LayerCapture(
            layer=self.layer,
            signed=self.signed,
            seed=self._seed,
            ids=plan.ids[read],
            count=int(plan.lengths[read].sum()),
            open_count=int(plan.lengths[read & plan.is_open].sum()),
            sums=ExactSums(self._parts, self._exponents),
            # Which of two zeros came first must not show.
            minimum=self._minimum + np.float32(0),
            maximum=self._maximum + np.float32(0),
            positive=self._positive,
            histogram_level=plan.histogram_level,
            histogram=self._histogram.astype(np.int64),
            strongest={
                polarity: {name: kept.in_order(name, plan) for name in kept.names}
                for polarity, kept in self._strongest.items()
            },
            random={split: self._random.in_order(split, plan) for split in SPLITS},
            maxima_ids=plan.ids[early],
            maxima={polarity: maxima[early] for polarity, maxima in self._maxima.items()},
            lookup=self._tokens.lookup,
            lookup_counts=counts,
            token_sums=sums,
            token_step=self._tokens.step,
        )

    def _share(self, work: Callable[[int, int], None]) -> None:
        """Do the work for all neurons, a part of them in each thread."""
        if self._pool is None:
            work(0, self._n)
            return
        threads = self._pool._max_workers
        width = -(-self._n // (threads * kernels.BLOCK)) * kernels.BLOCK
        parts = [(start, min(start + width, self._n)) for start in range(0, self._n, width)]
        for done in [self._pool.submit(work, *part) for part in parts]:
            done.result()

    def _take(self, piece: "_Piece", start: int, stop: int) -> None:
        """Add a measured piece to everything that is kept of the neurons from `start` to `stop`."""
        part = slice(start, stop)
        np.minimum(self._minimum[part], piece.low[:, part].min(axis=0), out=self._minimum[part])
        np.maximum(self._maximum[part], piece.high[:, part].max(axis=0), out=self._maximum[part])
        self._positive[part] += piece.positive[part]
        for index in range(4):
            kernels.add_exactly(piece.sums[index], start, stop, self._parts[index], self._exponents[index])
        if piece.is_open.any():
            kernels.add_exactly(piece.sums[0][piece.is_open], start, stop, self._parts[4], self._exponents[4])
            self._tokens.add(piece, start, stop)
        classes = np.minimum(self.plan.level[piece.windows] - self.plan.histogram_level, HISTOGRAM_CLASSES - 1)
        if (classes >= 0).any():
            kernels.count_in_bins(
                piece.x.view(np.int32), piece.lengths, classes.astype(np.int32), start, stop, self._histogram
            )
        for strongest in self._strongest.values():
            strongest.offer(piece, self._groups[piece.windows], start, stop)
        self._random.keep(piece, start, stop)

    def _continue(self, start: LayerCapture) -> None:
        """Take over everything from a capture of some windows of the same plan."""
        check_start(
            start, self.plan, layer=self.layer, signed=self.signed, seed=self._seed,
            lookup=self._tokens.lookup, step=self._tokens.step,
        )  # fmt: skip
        self._read[np.searchsorted(self.plan.ids, start.ids)] = True
        self._parts[:], self._exponents[:] = start.sums.parts, start.sums.exponents
        self._minimum[:], self._maximum[:] = start.minimum, start.maximum
        self._positive[:] = start.positive
        self._histogram[:] = start.histogram
        for polarity, maxima in self._maxima.items():
            maxima[np.searchsorted(self.plan.ids, start.maxima_ids)] = start.maxima[polarity]
            self._strongest[polarity].fill(start.strongest[polarity], self.plan)
        for split, slots in start.random.items():
            self._random.fill(split, slots, self.plan)
        self._tokens.fill(start)

    def _refuse(self, piece: "_Piece") -> None:
        real = np.arange(piece.x.shape[1])[:, None] < piece.lengths[:, None, None]
        bad = ~np.isfinite(piece.x) & real
        neuron = int(bad.any(axis=(0, 1)).argmax())
        raise SubjectError(
            f"layer {self.layer} gave {int(bad.sum()):,} activations that are NaN or infinite, first in neuron {neuron}; "
            "check the weights, or load the model in float32"
        )


@dataclass(frozen=True)
class _Piece:
    """A few windows, with what is known of each (window, neuron)."""

    rows: NDArray[np.int8]
    """Their places in the batch."""
    windows: NDArray[np.int32]
    x: NDArray[np.float32]
    lengths: NDArray[np.int64]
    tokens: list[NDArray[np.int32]]
    is_open: NDArray[np.bool_]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    sums: NDArray[np.float64]
    positive: NDArray[np.int32]

    @classmethod
    def of(cls, plan: Plan, windows: NDArray[np.int64], x: NDArray[np.float32], *, first: int) -> "_Piece":
        shape = (len(windows), x.shape[2])
        return cls(
            rows=np.arange(first, first + len(windows), dtype=np.int8),
            windows=windows.astype(np.int32),
            x=x,
            lengths=plan.lengths[windows],
            tokens=[plan.tokens[window] for window in windows],
            is_open=plan.is_open[windows],
            low=np.empty(shape, np.float32),
            high=np.empty(shape, np.float32),
            sums=np.empty((4, *shape), np.float64),
            positive=np.zeros(shape[1], np.int32),
        )

    def measure(self, start: int, stop: int) -> None:
        """Fill in the extremes and sums of the neurons from `start` to `stop`."""
        kernels.window_sums(self.x, self.lengths, start, stop, self.low, self.high, self.sums, self.positive)


class _Strongest:
    """The strongest windows of each group, in some slots of each neuron, group after group."""

    def __init__(self, groups: Mapping[str, int], n_neurons: int, length: int, *, sign: int) -> None:
        self.names = list(groups)
        self._starts = np.cumsum([0, *groups.values()])
        self._sign = sign
        slots = int(self._starts[-1])
        self._windows = np.full((n_neurons, slots), -1, dtype=np.int32)
        self._peaks = np.full((n_neurons, slots), -np.inf, dtype=np.float32)
        self._weakest = np.repeat(self._starts[:-1, None], n_neurons, axis=1).astype(np.int32)
        self._bars = np.full((len(groups), n_neurons), -np.inf, dtype=np.float32)
        self._fresh = np.full((n_neurons, slots), -1, dtype=np.int8)
        self._records = RecordPool(n_neurons, slots, length)

    def offer(self, piece: _Piece, groups: NDArray[np.bool_], start: int, stop: int) -> None:
        """Offer the windows of a piece to the groups (window, group) that they belong to."""
        kernels.offer(
            piece.rows, piece.windows, groups, self._starts, start, stop, piece.low, piece.high, self._sign,
            self._windows, self._peaks, self._fresh, self._weakest, self._bars,
        )  # fmt: skip

    def store(self, x: NDArray[np.float32], lengths: NDArray[np.int64], start: int, stop: int) -> None:
        """Store the activations of the windows of a batch (window, token, neuron) that are in a slot."""
        self._records.store(x, lengths, start, stop, self._fresh)

    def in_order(self, name: str, plan: Plan) -> Slots:
        """The filled slots of a group, which are as many for each neuron, strongest first."""
        first, last = self._slots_of(name)
        filled = int((self._windows[:1, first:last] >= 0).sum())
        part = np.s_[:, first : first + filled]
        ids, peaks = plan.ids[self._windows[part]], self._peaks[part]
        order = np.empty(ids.shape, dtype=np.intp)
        kernels.order_slots(peaks, ids, order)
        steps, exponents = self._records.behind(first + order)
        return Slots(np.take_along_axis(ids, order, axis=1), np.take_along_axis(peaks, order, axis=1), steps, exponents)

    def fill(self, groups: Mapping[str, Slots], plan: Plan) -> None:
        """Put back what `in_order` gave of each group, where nothing was offered yet."""
        shape = self._windows.shape
        longest = max(slots.steps.shape[2] for slots in groups.values())
        steps, exponents = np.zeros((*shape, longest), np.int16), np.zeros(shape, np.int16)
        for place, (name, slots) in enumerate(groups.items()):
            first, last = self._slots_of(name)
            part = np.s_[:, first : first + slots.ids.shape[1]]
            self._windows[part], self._peaks[part] = np.searchsorted(plan.ids, slots.ids), slots.peaks
            steps[part][:, :, : slots.steps.shape[2]], exponents[part] = slots.steps, slots.exponents
            self._weakest[place] = min(first + slots.ids.shape[1], last - 1)
            self._bars[place] = self._peaks[:, last - 1]
        self._records.put(self._windows, steps, exponents)

    def _slots_of(self, name: str) -> tuple[int, int]:
        place = self.names.index(name)
        return int(self._starts[place]), int(self._starts[place + 1])


class _Random:
    """The windows of each split that each neuron drew before the run, PER_SPLIT slots for each split."""

    def __init__(self, plan: Plan, *, layer: int, n_neurons: int, length: int, seed: int) -> None:
        # In as few bits as they need: there are as many of them as records.
        self._chosen = random_windows(plan, layer=layer, n_neurons=n_neurons, seed=seed).astype(np.int32)
        shape = self._chosen.shape
        self._windows = np.full(shape, -1, dtype=np.int32)
        self._peaks = np.full(shape, -np.inf, dtype=np.float32)
        self._steps = np.zeros((*shape, length), dtype=np.int16)
        self._exponents = np.zeros(shape, dtype=np.int16)
        neuron, slot = np.nonzero(self._chosen >= 0)
        order = np.argsort(self._chosen[neuron, slot], kind="stable")
        self._neuron, self._slot = neuron[order].astype(np.int32), slot[order].astype(np.int8)
        self._pairs = np.searchsorted(self._chosen[neuron, slot][order], np.arange(plan.n_windows + 1))

    def keep(self, piece: _Piece, start: int, stop: int) -> None:
        """Keep the windows of a piece for the neurons that drew them."""
        sizes = self._pairs[piece.windows + 1] - self._pairs[piece.windows]
        pairs = np.concatenate([[0], np.cumsum(sizes)])
        at = np.repeat(self._pairs[piece.windows] - pairs[:-1], sizes) + np.arange(pairs[-1])
        kernels.keep_drawn(
            piece.x, piece.lengths, piece.windows, pairs, self._neuron[at], self._slot[at], start, stop,
            piece.high, self._windows, self._peaks, self._steps, self._exponents,
        )  # fmt: skip

    def in_order(self, split: str, plan: Plan) -> Slots:
        """The windows of a split that were read so far, in the order of the draw."""
        part = np.s_[:, self._slots_of(split)]
        slots = Slots(
            ids=np.append(plan.ids, EMPTY)[self._windows[part]],
            peaks=self._peaks[part],
            steps=self._steps[part],
            exponents=self._exponents[part],
        )
        order = np.argsort(slots.ids == EMPTY, axis=1, kind="stable")
        return slots.ordered(order[:, : int((slots.ids != EMPTY).sum(axis=1).max(initial=0))])

    def fill(self, split: str, slots: Slots, plan: Plan) -> None:
        """Put windows into the slots that they were drawn for."""
        windows = np.where(slots.ids == EMPTY, -2, np.searchsorted(plan.ids, slots.ids))
        own = self._slots_of(split)
        for slot in range(own.start, own.stop):
            neuron, column = np.nonzero(windows == self._chosen[:, slot : slot + 1])
            self._windows[neuron, slot] = windows[neuron, column]
            self._peaks[neuron, slot] = slots.peaks[neuron, column]
            self._exponents[neuron, slot] = slots.exponents[neuron, column]
            self._steps[neuron, slot, : slots.steps.shape[2]] = slots.steps[neuron, column]

    @staticmethod
    def _slots_of(split: str) -> slice:
        first = PER_SPLIT * SPLITS.index(split)
        return slice(first, first + PER_SPLIT)


def check_start(
    start: LayerCapture,
    plan: Plan,
    *,
    layer: int,
    signed: bool,
    seed: int,
    lookup: NDArray[np.int32],
    step: NDArray[np.float64],
) -> None:
    """See that a capture to go on from is of this layer, plan, lookup table and step of its sums.

    Raises:
        CaptureError: it is of something else.
    """
    kept = [list(groups) for groups in start.strongest.values()]
    if (
        (start.layer, start.signed, start.seed) != (layer, signed, seed)
        or kept != [list(groups_of(plan))] * (2 if signed else 1)
        or not np.isin(start.ids, plan.ids).all()
        or start.histogram_level != plan.histogram_level
        or not np.array_equal(start.maxima_ids, np.intersect1d(start.ids, plan.ids[:MAXIMA]))
        or not np.array_equal(start.lookup, lookup)
        or not np.array_equal(start.token_step, step)
    ):
        raise CaptureError(
            f"the capture to go on from is not of this model, text and seed; remove it (layer {start.layer})"
        )


def groups_of(plan: Plan) -> dict[str, int]:
    """The groups of the strongest, and how many windows of a neuron each has place for."""
    return {"top": TOP, **dict.fromkeys(SPLITS, PER_SPLIT), **dict.fromkeys(map(str, plan.levels), PER_SAMPLE)}


def members(plan: Plan, group: str) -> NDArray[np.bool_]:
    """Which windows belong to a group of the strongest."""
    if group == "top":
        return np.ones(plan.n_windows, dtype=bool)
    return plan.split == SPLITS.index(group) if group in SPLITS else plan.level >= int(group)


def random_windows(plan: Plan, *, layer: int, n_neurons: int, seed: int) -> NDArray[np.int64]:
    """For each neuron, PER_SPLIT windows of each split drawn without replacement: (neuron, slot), -1 if too few.

    Those with the lowest hash of (window id, neuron, layer, seed): so a draw among more windows can be made from the
    draws among some and among the others, and one layer draws the same windows whichever layers run beside it.
    """
    numbers, neurons = plan.random_numbers(layer=layer, seed=seed), neuron_numbers(n_neurons)
    chosen = np.full((n_neurons, len(SPLITS), PER_SPLIT), -1, dtype=np.int64)
    scratch = np.empty((n_neurons, PER_SPLIT), dtype=np.uint64)
    for split in range(len(SPLITS)):
        drawn = np.full((n_neurons, PER_SPLIT), -1, dtype=np.int64)
        kernels.draw(numbers, neurons, np.flatnonzero(plan.split == split), drawn, scratch)
        chosen[:, split] = drawn
    return chosen.reshape(n_neurons, -1)


class _TokenSums:
    """The sum of a layer's activations at each token of the lookup table, in whole steps, so that it is exact.

    Sums are kept in 32 bits. Before a piece could take one over the edge, its row is moved into 64 bits; only the rows
    of common tokens ever are.
    """

    def __init__(self, plan: Plan, probe: NDArray[np.float32]) -> None:
        n = len(probe)
        self.lookup = plan.lookup_tokens(n)
        self.step = token_step(probe)
        self._per_unit = (1 / self.step).astype(np.float32)
        self._row_of = np.full(int(self.lookup.max(initial=0)) + 1, -1, dtype=np.int32)
        self._row_of[self.lookup] = np.arange(len(self.lookup))
        self._narrow = np.zeros((len(self.lookup), n), dtype=np.int32)
        self._wide: dict[int, NDArray[np.int64]] = {}
        self._reach = np.zeros(len(self.lookup))
        self._counts = np.zeros(len(self.lookup), dtype=np.int64)
        self._bound = np.zeros(len(self.lookup))
        self._places = np.empty((0, 0), dtype=np.int32)

    def make_room(self, piece: _Piece, *, layer: int) -> None:
        """Find the rows of a piece's tokens, and see that none of them can overflow."""
        self._places = np.full(piece.x.shape[:2], -1, dtype=np.int32)
        if not piece.is_open.any() or not len(self.lookup):
            return
        for row in np.flatnonzero(piece.is_open):
            ids = piece.tokens[row]
            known = np.where(ids < len(self._row_of), self._row_of[np.minimum(ids, len(self._row_of) - 1)], -1)
            self._places[row, : len(ids)] = known
        counts = np.bincount(self._places[self._places >= 0], minlength=len(self.lookup))
        strongest = np.maximum(np.abs(piece.low), np.abs(piece.high))[piece.is_open].max(axis=0)
        steps = float((strongest * self._per_unit.astype(np.float64)).max()) + 1
        if steps >= _SANE:
            neuron = int((strongest * self._per_unit.astype(np.float64)).argmax())
            raise SubjectError(
                f"neuron {neuron} of layer {layer} reached {strongest[neuron]:.3g}, more than 2**35 times what any text "
                "should give it; check the weights"
            )
        self._counts += counts
        self._bound += counts * steps
        if (self._bound >= _WIDE).any():
            raise SubjectError(f"the activations of layer {layer} are too strong to be summed; check the weights")
        full = np.flatnonzero(self._reach + counts * steps >= _NARROW)
        for row in full[counts[full] > 0]:
            self._widen(int(row))
            if counts[row] * steps >= _NARROW:
                window, token = np.nonzero(self._places == row)
                rounded = np.rint(piece.x[window, token].astype(np.float64) * self._per_unit)
                self._wide[int(row)] += rounded.astype(np.int64).sum(axis=0)
                self._places[window, token] = -1
                counts[row] = 0
        self._reach += counts * steps

    def add(self, piece: _Piece, start: int, stop: int) -> None:
        kernels.add_tokens(piece.x, piece.lengths, self._places, start, stop, self._per_unit, self._narrow)

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Occurrences (token,) and sums (token, neuron) so far."""
        sums = self._narrow.astype(np.int64)
        for row, wide in self._wide.items():
            sums[row] += wide
        return self._counts.copy(), sums

    def fill(self, start: LayerCapture) -> None:
        """Take over the sums of a capture."""
        self._counts[:] = start.lookup_counts
        self._bound[:] = np.abs(start.token_sums).max(axis=1, initial=0)
        largest = np.abs(start.token_sums).max(axis=1, initial=0)
        for row in np.flatnonzero(largest >= _NARROW // 2):
            self._wide[int(row)] = start.token_sums[row].copy()
        narrow = largest < _NARROW // 2
        self._narrow[narrow] = start.token_sums[narrow]
        self._reach[narrow] = largest[narrow]

    def _widen(self, row: int) -> None:
        self._wide[row] = self._wide.get(row, 0) + self._narrow[row].astype(np.int64)
        self._narrow[row] = 0
        self._reach[row] = 0


def token_step(probe: NDArray[np.float32]) -> NDArray[np.float64]:
    """The step of each neuron's token sums (neuron,), a power of two: 2**-LOOKUP_BITS of its strongest on the probe.

    A neuron that the probe leaves silent gets a step a thousand times finer than the median neuron's.
    """
    strongest = probe.astype(np.float64)
    typical = float(np.median(strongest)) or float(strongest.max(initial=0.0)) or 1.0
    exponents = np.frexp(np.maximum(strongest, typical / 1024))[1]
    return np.asarray(np.ldexp(1.0, exponents - LOOKUP_BITS), dtype=np.float64)
