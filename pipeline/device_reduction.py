"""Device reduction: the activations of one layer, reduced on the GPU that computed them.

The counterpart of `pipeline.reduction.LayerReduction`, with the same result to the bit for the same activations. What
is kept stays on the device until it is asked for; of the activations nothing is copied and nothing is stored.

The host runs ahead of the device, at most two pieces of text.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import device_kernels as kernels
from pipeline.capture import (
    EMPTY,
    HISTOGRAM_CLASSES,
    HISTOGRAM_EDGES,
    MAXIMA,
    PER_SPLIT,
    ExactSums,
    LayerCapture,
    Plan,
    Slots,
    neuron_numbers,
)
from pipeline.errors import CaptureError, SubjectError
from pipeline.kernels import LOWEST, TOKENS_PER_SUM
from pipeline.reduction import check_start, groups_of, members, token_step
from pipeline.tables import SPLITS

WINDOWS = 4
"""Windows that one program measures, one after the other."""

CHUNK = 64
"""Windows whose sums one program adds up: fewer are more programs, more write less."""

SEGMENT = 32
"""Occurrences of one token that one program adds up."""

SANE = 2**50
"""Steps that one activation may never reach."""

_BLOCK = 128
"""Neurons of a program, one for each thread."""

_EXACTLY = {"enable_fp_fusion": False}
"""A fused multiplication and addition rounds once where the loops on a CPU round twice."""


@dataclass(frozen=True)
class _Tokens:
    """Where in a piece the tokens of a lookup table occur, in windows that are not scored."""

    counts: NDArray[np.int64]
    """Occurrences of each token of the table."""
    occurrences: torch.Tensor
    segments: torch.Tensor


@dataclass(frozen=True)
class _Piece:
    """Windows that are before all layers, and what each needs to know of them."""

    windows: NDArray[np.int64]
    again: NDArray[np.bool_]
    """Which of them are there more than once."""
    numbers: torch.Tensor
    listed: torch.Tensor
    """The places in the piece of the windows of each group of the strongest, group after group."""
    members: torch.Tensor
    """(group + 1,) int32: where in `listed` each group begins."""
    lengths: torch.Tensor
    is_open: torch.Tensor
    sampled: torch.Tensor
    """(sampled window, 2) int32: its place in the piece, and its class in the histogram."""
    early: torch.Tensor
    """Places in the piece of the windows whose maxima are kept."""
    tokens: dict[int, _Tokens] = field(default_factory=dict)
    """By the length of the lookup table: layers of one width share it."""


class TextsOnDevice:
    """What the layers of one device share: the plan, the piece of text that is before them, and an alarm.

    `device` is one that Triton compiles for.
    """

    def __init__(self, plan: Plan, device: str | torch.device) -> None:
        self.plan = plan
        self.device = torch.device(device)
        self.groups = groups_of(plan)
        self.starts = self.put(_starts(self.groups.values()))
        self._belongs = np.stack([members(plan, name) for name in self.groups])
        self.places = torch.full((plan.n_windows,), -1, dtype=torch.int32, device=self.device)
        """(all windows,) int32: where in the piece each window is, -1 for nowhere."""
        self._piece: _Piece | None = None
        self.alarm = torch.zeros(1, dtype=torch.int32, device=self.device)
        """Not zero once any layer has found a fault."""
        self._heard: tuple[torch.Tensor, torch.cuda.Event] | None = None
        self._layers: WeakSet[DeviceReduction] = WeakSet()
        self._pinned = torch.empty(0, dtype=torch.uint8)

    def put(self, array: NDArray[Any]) -> torch.Tensor:
        """The array on the device, which is not waited for."""
        there = torch.from_numpy(np.ascontiguousarray(array))
        return there.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else there.clone()

    def get(self, tensor: torch.Tensor) -> NDArray[Any]:
        """A copy of a tensor in the memory of the host."""
        if self.device.type != "cuda":
            return np.asarray(tensor.clone().numpy())
        if self._pinned.nbytes < tensor.nbytes:
            self._pinned = torch.empty(tensor.nbytes, dtype=torch.uint8, pin_memory=True)
        # A device fills pinned memory many times faster than any other, and all threads copy from there.
        passing = self._pinned[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        found = torch.from_numpy(np.empty(tuple(tensor.shape), dtype=passing[:0].numpy().dtype))
        return np.asarray(found.copy_(passing.copy_(tensor)).numpy())

    def current(self) -> AbstractContextManager[Any]:
        """Makes the device the one that kernels run on, in this thread."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def watch(self, layer: "DeviceReduction") -> None:
        """Ask this layer for faults before the next pieces."""
        self._layers.add(layer)

    def piece(self, windows: NDArray[np.int64]) -> _Piece:
        """These windows as they are before all layers.

        Raises:
            SubjectError: a layer found a fault in a piece before.
        """
        if self._piece is not None and np.array_equal(self._piece.windows, windows):
            return self._piece
        if self._is_alarmed():
            for layer in sorted(self._layers, key=lambda one: one.layer):
                layer.refuse_faults()
        plan = self.plan
        classes = np.minimum(plan.level[windows] - plan.histogram_level, HISTOGRAM_CLASSES - 1)
        sampled = np.flatnonzero(classes >= 0)
        group, listed = np.nonzero(self._belongs[:, windows])
        distinct, times = np.unique(windows, return_counts=True)
        piece = _Piece(
            windows=windows.copy(),
            again=np.isin(windows, distinct[times > 1]),
            numbers=self.put(windows.astype(np.int32)),
            listed=self.put(listed.astype(np.int32)),
            members=self.put(_starts(np.bincount(group, minlength=len(self.groups)))),
            lengths=self.put(plan.lengths[windows].astype(np.int32)),
            is_open=self.put(plan.is_open[windows].astype(np.int32)),
            sampled=self.put(np.stack([sampled, classes[sampled]], axis=1).astype(np.int32)),
            early=self.put(np.flatnonzero(windows < MAXIMA)),
        )
        self.places.fill_(-1)
        self.places[piece.numbers.long()] = torch.arange(len(windows), dtype=torch.int32, device=self.device)
        self._piece = piece
        return piece

    def drawn(self, *, layer: int, n_neurons: int, seed: int) -> NDArray[np.int64]:
        """`pipeline.reduction.random_windows` of the plan."""
        plan, n_splits = self.plan, len(SPLITS)
        shape = (n_neurons, n_splits, PER_SPLIT)
        priorities, chosen = (torch.empty(shape, dtype=torch.int64, device=self.device) for _ in range(2))
        numbers = (plan.random_numbers(layer=layer, seed=seed), neuron_numbers(n_neurons))
        by_split = np.argsort(plan.split, kind="stable").astype(np.int32)
        starts = _starts(np.bincount(plan.split, minlength=n_splits))
        with self.current():
            kernels.draw[-(-n_neurons // 16), n_splits](
                *(self.put(some.view(np.int64)) for some in numbers), self.put(by_split), self.put(starts),
                n_neurons, PER_SPLIT, priorities, chosen,
                block=16, width=_power_above(PER_SPLIT), tile=32, num_warps=1,
            )  # fmt: skip
        return self.get(chosen.take_along_dim(priorities.argsort(dim=2), 2).view(n_neurons, -1))

    def _is_alarmed(self) -> bool:
        """Whether a layer had found a fault when the piece before the last one ended, if the device is a GPU."""
        if self.device.type != "cuda":
            return bool(self.alarm.item())
        # What is asked for now is read when it is surely there, so that nothing waits.
        before = self._heard
        copied = torch.empty(1, dtype=torch.int32, pin_memory=True).copy_(self.alarm, non_blocking=True)
        with self.current():
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._heard = copied, event
        if before is None:
            return False
        before[1].synchronize()
        return bool(before[0].item())

    def tokens(self, piece: _Piece, lookup: NDArray[np.int32], *, length: int) -> _Tokens:
        """Where in a piece of windows of `length` tokens those of a lookup table (ascending token ids) occur."""
        if len(lookup) not in piece.tokens:
            piece.tokens[len(lookup)] = self._found(piece, lookup, length)
        return piece.tokens[len(lookup)]

    def _found(self, piece: _Piece, lookup: NDArray[np.int32], length: int) -> _Tokens:
        plan = self.plan
        row_of = np.full(int(lookup.max(initial=-1)) + 2, -1, dtype=np.int32)
        row_of[lookup] = np.arange(len(lookup))
        rows = np.full((len(piece.windows), length), -1, dtype=np.int32)
        for place in np.flatnonzero(plan.is_open[piece.windows]):
            tokens = plan.tokens[piece.windows[place]]
            rows[place, : len(tokens)] = tokens
        # A token behind the last of the table has the row of the last entry, which is none; so has the end of a window.
        rows = row_of[np.minimum(rows, len(row_of) - 1)]
        known = rows >= 0
        counts = np.bincount(rows[known], minlength=len(lookup))
        # What is in no row comes first.
        occurrences = self.put(rows).ravel().argsort(stable=True)[rows.size - int(counts.sum()) :]
        stops = np.cumsum(counts)
        pieces = -(-counts // SEGMENT)
        row = np.repeat(np.arange(len(lookup)), pieces)
        first = (stops - counts)[row] + SEGMENT * (np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
        segments = np.stack([row, first, np.minimum(first + SEGMENT, stops[row])], axis=1)
        return _Tokens(counts, occurrences, self.put(segments.astype(np.int32)))


class _Kept:
    """Slots for windows of each neuron, with their activations, on the device."""

    def __init__(self, keys: torch.Tensor, length: int) -> None:
        shape, device = tuple(keys.shape), keys.device
        self.keys = keys
        self.peaks = torch.full(shape, -torch.inf, dtype=torch.float32, device=device)
        self.steps = torch.zeros((*shape, length), dtype=torch.int16, device=device)
        self.exponents = torch.zeros(shape, dtype=torch.int16, device=device)

    def slots(self, order: torch.Tensor, texts: TextsOnDevice) -> Slots:
        """The slots (neuron, slot) of each neuron that `order` names, in its order."""
        keys = texts.get(self.keys.take_along_dim(order, 1))
        windows = np.where(keys == kernels.EMPTY_KEY, -1, _window_of(keys))
        return Slots(
            ids=np.append(texts.plan.ids, EMPTY)[windows],
            peaks=texts.get(self.peaks.take_along_dim(order, 1)),
            steps=texts.get(self.steps.take_along_dim(order[:, :, None], 1)),
            exponents=texts.get(self.exponents.take_along_dim(order, 1)),
        )

    def put(self, neuron: torch.Tensor, slot: torch.Tensor, slots: Slots, at: tuple[NDArray[Any], ...]) -> None:
        """Put entries of `slots` named by `at` into these slots."""
        device, length = self.keys.device, slots.steps.shape[2]

        def there(array: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        self.peaks[neuron, slot] = there(slots.peaks[at])
        self.exponents[neuron, slot] = there(slots.exponents[at])
        self.steps[neuron, slot, :length] = there(slots.steps[at])


class DeviceReduction:
    """Reduces the batches of one layer as they come. `receive` each window once, then ask for the `result`.

    As `LayerReduction`, for activations that are on the device of `texts`, which all its layers share. A fault of the
    activations is found later: before the next piece but one, or with the result.

    Raises:
        CaptureError: `start` belongs to another layer, model or plan.
    """

    def __init__(
        self,
        texts: TextsOnDevice,
        *,
        layer: int,
        signed: bool,
        seed: int,
        probe: NDArray[np.float32],
        start: LayerCapture | None = None,
    ) -> None:
        plan, put, device = texts.plan, texts.put, texts.device
        self.plan, self.layer, self.signed = plan, layer, signed
        self._texts, self._seed = texts, seed
        self._n = n = len(probe)
        self._length = length = int(plan.lengths.max(initial=0))
        self._read = np.zeros(plan.n_windows, dtype=bool)
        self._lookup = plan.lookup_tokens(n)
        self._step = token_step(probe)
        if start is not None:
            check_start(start, plan, layer=layer, signed=signed, seed=seed, lookup=self._lookup, step=self._step)
        self._per_unit = put((1 / self._step).astype(np.float32))
        # However often the commonest token occurs, its sum cannot leave 64 bits.
        self._most_steps = float(min(SANE, 2**62 // max(int(plan.counts.max(initial=1)), 1)))
        self._counts = np.zeros(len(self._lookup), dtype=np.int64)

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._token_sums = zeros(len(self._lookup), n, dtype=torch.int64)
        self._parts = zeros(5, 3, n, dtype=torch.float64)
        self._exponents = torch.full((5, n), LOWEST, dtype=torch.int32, device=device)
        self._minimum = torch.full((n,), torch.inf, dtype=torch.float32, device=device)
        self._maximum = torch.full((n,), -torch.inf, dtype=torch.float32, device=device)
        self._positive = zeros(n, dtype=torch.int64)
        self._histogram = zeros(HISTOGRAM_CLASSES, len(HISTOGRAM_EDGES) + 1, n, dtype=torch.int32)
        self._faults = zeros(2, n, dtype=torch.int8)
        polarities = ("+", "-") if signed else ("+",)
        early = min(plan.n_windows, MAXIMA)
        self._maxima = {polarity: zeros(early, n, dtype=torch.float32) for polarity in polarities}
        n_slots = sum(texts.groups.values())
        self._strongest = {
            polarity: _Kept(torch.full((n, n_slots), kernels.EMPTY_KEY, dtype=torch.int64, device=device), length)
            for polarity in polarities
        }
        self._chosen = texts.drawn(layer=layer, n_neurons=n, seed=seed)
        self._random = _Kept(
            put(np.where(self._chosen < 0, kernels.EMPTY_KEY, kernels.WINDOW_MASK - self._chosen)), length
        )
        if start is not None:
            self._continue(start)
        texts.watch(self)

    def receive(self, windows: NDArray[np.int64], activations: torch.Tensor) -> None:
        """Take in a batch: the windows, and their activations (window, token, neuron) in any number format.

        Raises:
            SubjectError: an activation of a batch before was NaN, infinite, or beyond all measure of the probe.
            CaptureError: a window came before.
        """
        with self._texts.current():
            twice = windows[self._read[windows] | self._texts.piece(windows).again]
            if len(twice):
                raise CaptureError(f"window {twice.min()} came twice to layer {self.layer}")
            self._take(windows, activations if activations.stride(2) == 1 else activations.contiguous())
        self._read[windows] = True

    def result(self) -> LayerCapture:
        """What was kept so far, copied from the device."""
        self.refuse_faults()
        plan, read, get = self.plan, self._read, self._texts.get
        early = np.flatnonzero(read[:MAXIMA])
        return LayerCapture(
            layer=self.layer,
            signed=self.signed,
            seed=self._seed,
            ids=plan.ids[read],
            count=int(plan.lengths[read].sum()),
            open_count=int(plan.lengths[read & plan.is_open].sum()),
            sums=ExactSums(get(self._parts), get(self._exponents)),
            # Which of two zeros came first must not show.
            minimum=get(self._minimum) + np.float32(0),
            maximum=get(self._maximum) + np.float32(0),
            positive=get(self._positive),
            histogram_level=plan.histogram_level,
            histogram=get(self._histogram.transpose(1, 2).to(torch.int64)),
            strongest={polarity: self._groups_of(kept) for polarity, kept in self._strongest.items()},
            random=self._splits(),
            maxima_ids=plan.ids[early],
            maxima={polarity: get(maxima)[early] for polarity, maxima in self._maxima.items()},
            lookup=self._lookup,
            lookup_counts=self._counts.copy(),
            token_sums=get(self._token_sums),
            token_step=self._step,
        )

    def refuse_faults(self) -> None:
        """Wait for the device.

        Raises:
            SubjectError: an activation was NaN, infinite, or beyond all measure of the probe.
        """
        if not bool(self._faults.any()):
            return
        not_finite, too_strong = self._faults.numpy(force=True)
        if not_finite.any():
            raise SubjectError(
                f"layer {self.layer} gave activations that are NaN or infinite, first in neuron {not_finite.argmax()}; "
                "check the weights, or load the model in float32"
            )
        raise SubjectError(
            f"neuron {too_strong.argmax()} of layer {self.layer} reached more than {self._most_steps:.0g} steps of its "
            "token sums, far more than any text should give it; check the weights"
        )

    def _take(self, windows: NDArray[np.int64], x: torch.Tensor) -> None:
        texts, n = self._texts, self._n
        piece = texts.piece(windows)
        tokens = texts.tokens(piece, self._lookup, length=x.shape[1])
        n_windows, length = len(windows), x.shape[1]
        n_measured, n_chunks, n_blocks = -(-n_windows // WINDOWS), -(-n_windows // CHUNK), -(-n // _BLOCK)
        low, high = (torch.empty((n_windows, n), dtype=torch.float32, device=x.device) for _ in range(2))
        powers = torch.empty((n_windows, 4, n), dtype=torch.float64, device=x.device)
        positive = torch.empty((n_measured, n), dtype=torch.int32, device=x.device)
        parts = torch.empty((n_chunks, 5, 3, n), dtype=torch.float64, device=x.device)
        exponents = torch.empty((n_chunks, 5, n), dtype=torch.int32, device=x.device)
        holds = length % 4 == 0 and length <= TOKENS_PER_SUM
        width = 512 // x.element_size()
        kernels.window_sums[-(-n // width), n_measured](
            x, x.stride(0), x.stride(1), piece.lengths, piece.is_open, n_windows, n, self._per_unit, self._most_steps,
            low, high, powers, positive, self._faults, texts.alarm,
            held=length if holds else 0, chunk=WINDOWS, block=width, **_EXACTLY,
        )  # fmt: skip
        kernels.add_windows[n_blocks, n_chunks, 5](
            powers, piece.is_open, n_windows, n, parts, exponents, lowest=LOWEST, chunk=CHUNK, block=_BLOCK, **_EXACTLY
        )
        early = {}
        if len(piece.early):
            # A zero of either sign becomes the same.
            early = {
                polarity: high[piece.early] + 0.0 if polarity == "+" else 0.0 - low[piece.early]
                for polarity in self._maxima
            }
        # Memory may have run out until here, and nothing that is kept was changed yet.
        kernels.add_chunks[n_blocks, 5](
            parts, exponents, n_chunks, n, self._parts, self._exponents, block=_BLOCK, **_EXACTLY
        )
        kernels.add_extremes[(-(-n // 16),)](
            low, high, positive, n_windows, n_measured, n, self._minimum, self._maximum, self._positive,
            block=16, tile=256,
        )  # fmt: skip
        for polarity, strongest in early.items():
            self._maxima[polarity][piece.numbers[piece.early]] = strongest
        if len(piece.sampled):
            kernels.count_in_bins[n_blocks, len(piece.sampled)](
                x, x.stride(0), x.stride(1), piece.lengths, piece.sampled, n, len(HISTOGRAM_EDGES) + 1,
                self._histogram, block=_BLOCK,
            )  # fmt: skip
        if len(tokens.segments):
            kernels.add_tokens[-(-n // 1_024), len(tokens.segments)](
                x, x.stride(0), x.stride(1), tokens.occurrences, tokens.segments, x.shape[1], n, self._per_unit,
                self._token_sums, at_once=4, block=1_024, **_EXACTLY,
            )  # fmt: skip
        self._counts += tokens.counts
        for polarity, kept in self._strongest.items():
            sign = 1 if polarity == "+" else -1
            kernels.offer[-(-n // 8), len(texts.groups)](
                high if polarity == "+" else low, piece.numbers, piece.listed, piece.members, texts.starts, n,
                kept.keys.shape[1], kept.keys,
                sign=sign, block=8, width=_power_above(max(texts.groups.values())), tile=128,
            )  # fmt: skip
            self._keep(kept, piece, x, low, high, sign=sign)
        self._keep(self._random, piece, x, low, high, sign=1)

    def _keep(
        self, kept: _Kept, piece: _Piece, x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, *, sign: int
    ) -> None:
        n_slots = kept.keys.shape[1]
        kernels.keep[-(-self._n // 32), n_slots](
            x, x.stride(0), x.stride(1), piece.lengths, self._texts.places, self.plan.n_windows, self._n, n_slots,
            self._length, low, high, kept.keys, kept.peaks, kept.steps, kept.exponents,
            sign=sign, block=32, tile=min(_power_above(self._length), 64), **_EXACTLY,
        )  # fmt: skip

    def _columns(self, group: str) -> slice:
        sizes = list(self._texts.groups.values())
        first = sum(sizes[: list(self._texts.groups).index(group)])
        return slice(first, first + self._texts.groups[group])

    def _groups_of(self, kept: _Kept) -> dict[str, Slots]:
        """The filled slots of each group, which are as many for each neuron, strongest first."""
        columns = {group: self._columns(group) for group in self._texts.groups}
        order = [kept.keys[:, some].argsort(dim=1, descending=True) + some.start for some in columns.values()]
        slots = kept.slots(torch.cat(order, dim=1), self._texts)
        filled = {group: int((slots.ids[:1, some] != EMPTY).sum()) for group, some in columns.items()}
        return {group: slots.part(slice(some.start, some.start + filled[group])) for group, some in columns.items()}

    def _splits(self) -> dict[str, Slots]:
        """Of each split the random windows that were read so far, in the order of the draw."""
        missing = ((self._chosen < 0) | ~self._read[self._chosen]).reshape(self._n, len(SPLITS), PER_SPLIT)
        order = missing.argsort(axis=2, kind="stable")
        first = PER_SPLIT * np.arange(len(SPLITS))
        slots = self._random.slots(self._texts.put((order + first[:, None]).reshape(self._n, -1)), self._texts)
        slots.ids[np.take_along_axis(missing, order, axis=2).reshape(self._n, -1)] = EMPTY
        filled = (~missing).sum(axis=2).max(axis=0, initial=0)
        return {
            split: slots.part(slice(start, start + count))
            for split, start, count in zip(SPLITS, first, filled, strict=True)
        }

    def _continue(self, start: LayerCapture) -> None:
        """Take over everything from a capture of some windows of the same plan."""
        put, plan = self._texts.put, self.plan
        self._read[np.searchsorted(plan.ids, start.ids)] = True
        self._counts[:] = start.lookup_counts
        self._token_sums.copy_(put(start.token_sums))
        self._parts.copy_(put(start.sums.parts))
        self._exponents.copy_(put(start.sums.exponents))
        self._minimum.copy_(put(start.minimum))
        self._maximum.copy_(put(start.maximum))
        self._positive.copy_(put(start.positive))
        self._histogram.copy_(put(start.histogram.astype(np.int32)).transpose(1, 2))
        early = put(np.searchsorted(plan.ids, start.maxima_ids))
        for polarity, kept in self._strongest.items():
            self._maxima[polarity][early] = put(start.maxima[polarity])
            for group, slots in start.strongest[polarity].items():
                filled = np.nonzero(slots.ids != EMPTY)
                neurons, slot = put(filled[0]), put(filled[1] + self._columns(group).start)
                kept.put(neurons, slot, slots, filled)
                kept.keys[neurons, slot] = put(
                    _key_of(slots.peaks[filled], np.searchsorted(plan.ids, slots.ids[filled]))
                )
        for place, split in enumerate(SPLITS):
            slots = start.random[split]
            windows = np.where(slots.ids == EMPTY, -2, np.searchsorted(plan.ids, slots.ids))
            columns = slice(place * PER_SPLIT, (place + 1) * PER_SPLIT)
            neuron, given, drawn = np.nonzero(windows[:, :, None] == self._chosen[:, None, columns])
            self._random.put(put(neuron), put(drawn + columns.start), slots, (neuron, given))


def try_out(device: str) -> str | None:
    """Compile and run a kernel; None if that works, else why not, in a few words."""
    texts = torch.device(device)
    where = torch.cuda.device(texts) if texts.type == "cuda" else nullcontext()
    parts = torch.zeros((5, 3, 1), dtype=torch.float64, device=texts)
    exponents = torch.zeros((5, 1), dtype=torch.int32, device=texts)
    try:
        with where:
            kernels.add_chunks[1, 5](parts, exponents, 0, 1, parts, exponents, block=_BLOCK)
    except Exception as error:  # noqa: BLE001 (compilers have many ways to fail: no C compiler, a GPU that is too old)
        return " ".join(f"triton cannot compile for it ({error})".split())[:200]
    return None


def _key_of(peaks: NDArray[np.float32], windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keys as `pipeline.device_kernels.offer` makes them."""
    # Zeros of both signs are equal.
    bits = (peaks + np.float32(0)).view(np.int32)
    ordered = (bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))).astype(np.int64)
    return np.asarray((ordered << 32) | (kernels.WINDOW_MASK - windows), dtype=np.int64)


def _window_of(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(kernels.WINDOW_MASK - (keys & kernels.WINDOW_MASK), dtype=np.int64)


def _starts(sizes: Iterable[int]) -> NDArray[np.int32]:
    """Where each of some groups of these sizes begins, and where the last ends."""
    return np.cumsum([0, *sizes], dtype=np.int32)


def _power_above(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << max(number - 1, 0).bit_length()
