"""Device reduction: the activations of one layer, reduced on the GPU that computed them.

The counterpart of `pipeline.reduction.LayerReduction`, with the same result to the bit for the same activations. What
is kept stays on the device until it is asked for; of the activations nothing is copied and nothing is stored.

The host runs ahead of the device, at most two pieces of text. All runs on the model's stream: one of its own, beside
what the model does next, gained nothing in TF32 and little in bfloat16 (on an H200), for more memory.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
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

SHARES = 98_304
"""Neurons times shares of a layer's sums, about, each share filled by a program of its own: as many as keep a GPU busy."""

MOST_SHARES = 64

LEAST_WINDOWS = 4
"""Windows that one program measures, at least."""

SEGMENT = 64
"""Occurrences of one token that one program adds up."""

SANE = 2**50
"""Steps that one activation may never reach."""

_BLOCK = 128
"""Neurons of a program, one for each thread."""

_ROW = 128
"""Bytes of a token that a program of one warp measures at a time."""

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
        self.n_slots = sum(self.groups.values())
        self.group_of = self.put(np.repeat(np.arange(len(self.groups)), list(self.groups.values())))
        """(slot,) int64: which group each slot of the strongest belongs to."""
        self.ids = self.put(np.append(plan.ids, EMPTY).view(np.int64))
        """(all windows + 1,) int64: the sequence ids, and behind them that of no window."""
        self._belongs = np.stack([members(plan, name) for name in self.groups])
        self._classes = np.minimum(plan.level.astype(np.int32) - plan.histogram_level, HISTOGRAM_CLASSES - 1)
        """Of each window its class in the histogram, below 0 for none."""
        splits = np.bincount(plan.split, minlength=len(SPLITS))
        self._by_split = self.put(np.argsort(plan.split, kind="stable").astype(np.int32)), self.put(_starts(splits))
        self.places = torch.full((plan.n_windows,), -1, dtype=torch.int32, device=self.device)
        """(all windows,) int32: where in the piece each window is, -1 for nowhere."""
        self._piece: _Piece | None = None
        self.alarm = torch.zeros(1, dtype=torch.int32, device=self.device)
        """Not zero once any layer has found a fault."""
        self._heard: tuple[torch.Tensor, torch.cuda.Event] | None = None
        self._layers: WeakSet[DeviceReduction] = WeakSet()

    def put(self, array: NDArray[Any]) -> torch.Tensor:
        """The array on the device, which is not waited for."""
        there = torch.from_numpy(np.ascontiguousarray(array))
        return there.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else there.clone()

    def put_all(self, *arrays: NDArray[Any]) -> list[torch.Tensor]:
        """Several arrays as int32 in one row each, in one transfer."""
        # Kernels read faster from addresses that are multiples of 16 bytes.
        sizes = [-(-array.size // 4) * 4 for array in arrays]
        together = np.zeros(sum(sizes), dtype=np.int32)
        starts = _starts(sizes)
        for array, start in zip(arrays, starts, strict=False):
            together[start : start + array.size] = array.ravel()
        there = self.put(together)
        return [there[start : start + array.size] for array, start in zip(arrays, starts, strict=False)]

    def fetched(self, tensor: torch.Tensor) -> NDArray[Any]:
        """A copy of a tensor in the memory of the host, which is filled when `wait` returns.

        A device fills page-locked memory many times faster than any other, and torch keeps what was given back for the
        next.
        """
        if self.device.type != "cuda":
            return np.asarray(tensor.clone().numpy())
        there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return np.asarray(there.copy_(tensor.contiguous(), non_blocking=True).numpy())

    def wait(self) -> None:
        """Until the device has done all that it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

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
        sampled = np.flatnonzero(self._classes[windows] >= 0)
        group, listed = np.nonzero(self._belongs[:, windows])
        distinct = np.sort(windows)
        twice = distinct[1:][distinct[1:] == distinct[:-1]]
        numbers, listed_, members_, lengths, is_open, sampled_ = self.put_all(
            windows,
            listed,
            _starts(np.bincount(group, minlength=len(self.groups))),
            self.plan.lengths[windows],
            self.plan.is_open[windows],
            np.stack([sampled, self._classes[windows[sampled]]], axis=1),
        )
        piece = _Piece(
            windows=windows.copy(),
            again=np.isin(windows, twice),
            numbers=numbers,
            listed=listed_,
            members=members_,
            lengths=lengths,
            is_open=is_open,
            sampled=sampled_.view(-1, 2),
        )
        self.places.fill_(-1)
        self.places[numbers] = torch.arange(len(windows), dtype=torch.int32, device=self.device)
        self._piece = piece
        return piece

    def drawn(self, *, layer: int, n_neurons: int, seed: int) -> torch.Tensor:
        """`pipeline.reduction.random_windows` of the plan, on the device."""
        plan, n_splits = self.plan, len(SPLITS)
        shape = (n_neurons, n_splits, PER_SPLIT)
        priorities, chosen = (torch.empty(shape, dtype=torch.int64, device=self.device) for _ in range(2))
        numbers = (plan.random_numbers(layer=layer, seed=seed), neuron_numbers(n_neurons))
        with self.current():
            kernels.draw[-(-n_neurons // 4), n_splits](
                *(self.put(some.view(np.int64)) for some in numbers), *self._by_split,
                n_neurons, PER_SPLIT, priorities, chosen,
                block=4, width=_power_above(PER_SPLIT), tile=128, num_warps=1,
            )  # fmt: skip
        return chosen.take_along_dim(priorities.argsort(dim=2), 2).view(n_neurons, -1)

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
        plan, windows = self.plan, piece.windows
        row_of = np.full(int(lookup.max(initial=-1)) + 2, -1, dtype=np.int32)
        row_of[lookup] = np.arange(len(lookup))
        rows = np.full((len(windows), length), -1, dtype=np.int32)
        opened = np.flatnonzero(plan.is_open[windows])
        lengths = plan.lengths[windows[opened]]
        if len(opened) and (lengths == length).all():
            rows[opened] = np.concatenate([plan.tokens[window] for window in windows[opened]]).reshape(-1, length)
        else:
            for place, many in zip(opened, lengths, strict=True):
                rows[place, :many] = plan.tokens[windows[place]]
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
        segments = np.stack([row, first, np.minimum(first + SEGMENT, stops[row]), pieces[row] == 1], axis=1)
        return _Tokens(counts, occurrences, self.put(segments.astype(np.int32)))


class _Kept:
    """Slots for windows of each neuron, with their activations, on the device."""

    def __init__(self, keys: torch.Tensor, length: int) -> None:
        shape, device = tuple(keys.shape), keys.device
        self.keys = keys
        self.peaks = torch.full(shape, -torch.inf, dtype=torch.float32, device=device)
        self.steps = torch.zeros((*shape, length), dtype=torch.int16, device=device)
        self.exponents = torch.zeros(shape, dtype=torch.int16, device=device)

    def slots(self, order: torch.Tensor, windows: torch.Tensor, texts: TextsOnDevice) -> Slots:
        """The slots (neuron, slot) of each neuron that `order` names, in its order, with these windows, -1 for none.

        They are filled when the device was waited for.
        """
        return Slots(
            ids=texts.fetched(texts.ids[windows]).view(np.uint64),
            peaks=texts.fetched(self.peaks.take_along_dim(order, 1)),
            steps=texts.fetched(self.steps.take_along_dim(order[:, :, None], 1)),
            exponents=texts.fetched(self.exponents.take_along_dim(order, 1)),
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
        self.plan, self.layer, self.signed = texts.plan, layer, signed
        self._texts, self._seed = texts, seed
        self._n = len(probe)
        plan, n = texts.plan, self._n
        put, device = texts.put, texts.device
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

        self._lower, self._upper = zeros(2, len(self._lookup), n, dtype=torch.int32)
        shares = min(max(-(-SHARES // n), 1), MOST_SHARES)
        self._parts = zeros(shares, 5, 3, n, dtype=torch.float64)
        self._exponents = torch.full((shares, 5, n), LOWEST, dtype=torch.int32, device=device)
        self._extremes = torch.full((shares, 2, n), torch.inf, dtype=torch.float32, device=device)
        self._extremes[:, 1] = -torch.inf
        self._positive = zeros(shares, n, dtype=torch.int64)
        self._histogram = zeros(HISTOGRAM_CLASSES, len(HISTOGRAM_EDGES) + 1, n, dtype=torch.int32)
        self._faults = zeros(2, n, dtype=torch.int8)
        polarities = ("+", "-") if signed else ("+",)
        self._maxima = zeros(len(polarities), min(plan.n_windows, MAXIMA), n, dtype=torch.float32)
        self._chosen = texts.drawn(layer=layer, n_neurons=n, seed=seed)
        self._kept = {}
        for polarity in polarities:
            keys = torch.full((n, texts.n_slots), kernels.EMPTY_KEY, dtype=torch.int64, device=device)
            if polarity == "+":
                # Behind the strongest the random windows, of which peaks are of this polarity.
                drawn = torch.where(self._chosen < 0, kernels.EMPTY_KEY, kernels.WINDOW_MASK - self._chosen)
                keys = torch.cat([keys, drawn], dim=1)
            self._kept[polarity] = _Kept(keys, length)
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
        plan, read, texts, device = self.plan, self._read, self._texts, self._texts.device
        early = np.flatnonzero(read[:MAXIMA])
        parts = torch.empty((5, 3, self._n), dtype=torch.float64, device=device)
        exponents = torch.empty((5, self._n), dtype=torch.int32, device=device)
        with texts.current():
            kernels.add_shares[-(-self._n // _BLOCK), 5](
                self._parts, self._exponents, len(self._parts), self._n, parts, exponents, block=_BLOCK, **_EXACTLY
            )
        maxima = self._maxima if len(early) == self._maxima.shape[1] else self._maxima[:, texts.put(early)]
        # Which of two zeros came first must not show.
        minimum, maximum = self._extremes[:, 0].amin(dim=0) + 0.0, self._extremes[:, 1].amax(dim=0) + 0.0
        get = texts.fetched
        slots = {polarity: self._slots(polarity) for polarity in self._kept}
        found = LayerCapture(
            layer=self.layer,
            signed=self.signed,
            seed=self._seed,
            ids=plan.ids[read],
            count=int(plan.lengths[read].sum()),
            open_count=int(plan.lengths[read & plan.is_open].sum()),
            sums=ExactSums(get(parts), get(exponents)),
            minimum=get(minimum),
            maximum=get(maximum),
            positive=get(self._positive.sum(dim=0)),
            histogram_level=plan.histogram_level,
            histogram=get(self._histogram.transpose(1, 2).to(torch.int64)),
            strongest={},
            random={},
            maxima_ids=plan.ids[early],
            maxima=dict(zip(self._kept, get(maxima), strict=True)),
            lookup=self._lookup,
            lookup_counts=self._counts.copy(),
            token_sums=get((self._upper.to(torch.int64) << 32) + self._lower),
            token_step=self._step,
        )
        texts.wait()
        # How many slots are filled is known only now.
        strongest = {polarity: self._groups_of(kept) for polarity, kept in slots.items()}
        return replace(found, strongest=strongest, random=self._splits_of(slots["+"]))

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
        low, high = torch.empty((2, n_windows, n), dtype=torch.float32, device=x.device)
        holds = length % 4 == 0 and length <= TOKENS_PER_SUM
        width, per_share = _ROW // x.element_size(), max(-(-n_windows // len(self._parts)), LEAST_WINDOWS)
        # Memory may have run out until here, and nothing that is kept was changed yet.
        kernels.measure[-(-n // width), -(-n_windows // per_share)](
            x, x.stride(0), piece.lengths, piece.is_open, piece.numbers, n_windows, per_share, n,
            self._per_unit, self._most_steps, low, high, self._parts, self._exponents, self._extremes, self._positive,
            self._maxima, self._maxima.shape[1], self._faults, texts.alarm,
            token_stride=x.stride(1), signed=self.signed, held=length if holds else 0, block=width, num_warps=1, **_EXACTLY,
        )  # fmt: skip
        if len(piece.sampled):
            kernels.count_in_bins[-(-n // _BLOCK), len(piece.sampled), -(-length // 8)](
                x, x.stride(0), x.stride(1), piece.lengths, piece.sampled, n, len(HISTOGRAM_EDGES) + 1,
                self._histogram, block=_BLOCK, at_once=8,
            )  # fmt: skip
        if len(tokens.segments):
            kernels.add_tokens[-(-n // 1_024), len(tokens.segments)](
                x, x.stride(0), x.stride(1), tokens.occurrences, tokens.segments, x.shape[1], n, self._per_unit,
                self._lower, self._upper, at_once=4, block=1_024, **_EXACTLY,
            )  # fmt: skip
        self._counts += tokens.counts
        for polarity, kept in self._kept.items():
            sign, n_slots = 1 if polarity == "+" else -1, kept.keys.shape[1]
            kernels.offer[-(-n // 8), len(texts.groups)](
                high if polarity == "+" else low, piece.numbers, piece.listed, piece.members, texts.starts, n,
                n_slots, kept.keys,
                sign=sign, block=8, width=_power_above(max(texts.groups.values())), tile=128,
            )  # fmt: skip
            kernels.keep[-(-n // 32), n_slots](
                x, x.stride(0), x.stride(1), piece.lengths, texts.places, self.plan.n_windows, n, n_slots,
                self._length, low, high, kept.keys, kept.peaks, kept.steps, kept.exponents,
                sign=sign, block=32, tile=min(_power_above(self._length), 64), **_EXACTLY,
            )  # fmt: skip

    def _columns(self, group: str) -> slice:
        sizes = list(self._texts.groups.values())
        first = sum(sizes[: list(self._texts.groups).index(group)])
        return slice(first, first + self._texts.groups[group])

    def _slots(self, polarity: str) -> Slots:
        """The slots of each group strongest first, then for `+` the random windows in the order of the draw.

        Those that are empty come last in their group or split. All are filled when the device was waited for.
        """
        texts, kept, n_slots = self._texts, self._kept[polarity], self._texts.n_slots
        order = kept.keys[:, :n_slots].argsort(dim=1, descending=True)
        rank = torch.arange(n_slots, device=texts.device)
        order = order.take_along_dim((texts.group_of[order] * n_slots + rank).argsort(dim=1), 1)
        keys = kept.keys.take_along_dim(order, 1)
        windows = torch.where(keys == kernels.EMPTY_KEY, -1, kernels.WINDOW_MASK - (keys & kernels.WINDOW_MASK))
        if polarity == "+":
            chosen, place = self._chosen, torch.arange(self._chosen.shape[1], device=texts.device)
            read = texts.put(np.append(self._read, False))
            drawn = torch.where(read[chosen], chosen, -1)
            behind = (place // PER_SPLIT * 2 + (drawn < 0)) * len(place) + place
            back = behind.argsort(dim=1)
            order = torch.cat([order, n_slots + back], dim=1)
            windows = torch.cat([windows, drawn.take_along_dim(back, 1)], dim=1)
        return kept.slots(order, windows, texts)

    def _groups_of(self, slots: Slots) -> dict[str, Slots]:
        """The filled slots of each group, which are as many for each neuron, strongest first."""
        columns = {group: self._columns(group) for group in self._texts.groups}
        filled = {group: int((slots.ids[:1, some] != EMPTY).sum()) for group, some in columns.items()}
        return {group: slots.part(slice(some.start, some.start + filled[group])) for group, some in columns.items()}

    def _splits_of(self, slots: Slots) -> dict[str, Slots]:
        """Of each split the random windows that were read so far, in the order of the draw."""
        first = self._texts.n_slots + PER_SPLIT * np.arange(len(SPLITS))
        filled = (slots.ids[:, first[0] :] != EMPTY).reshape(self._n, len(SPLITS), PER_SPLIT).sum(axis=2)
        return {
            split: slots.part(slice(start, start + count))
            for split, start, count in zip(SPLITS, first, filled.max(axis=0, initial=0), strict=True)
        }

    def _continue(self, start: LayerCapture) -> None:
        """Take over everything from a capture of some windows of the same plan."""
        put, plan = self._texts.put, self.plan
        self._read[np.searchsorted(plan.ids, start.ids)] = True
        self._counts[:] = start.lookup_counts
        sums = put(start.token_sums)
        self._upper.copy_((sums + 2**31) >> 32)
        self._lower.copy_(sums - (self._upper.to(torch.int64) << 32))
        self._parts[0].copy_(put(start.sums.parts))
        self._exponents[0].copy_(put(start.sums.exponents))
        self._extremes[0].copy_(put(np.stack([start.minimum, start.maximum])))
        self._positive[0].copy_(put(start.positive))
        self._histogram.copy_(put(start.histogram.astype(np.int32)).transpose(1, 2))
        early = put(np.searchsorted(plan.ids, start.maxima_ids))
        for maxima, (polarity, kept) in zip(self._maxima, self._kept.items(), strict=True):
            maxima[early] = put(start.maxima[polarity])
            for group, slots in start.strongest[polarity].items():
                filled = np.nonzero(slots.ids != EMPTY)
                neurons, slot = put(filled[0]), put(filled[1] + self._columns(group).start)
                kept.put(neurons, slot, slots, filled)
                kept.keys[neurons, slot] = put(
                    _key_of(slots.peaks[filled], np.searchsorted(plan.ids, slots.ids[filled]))
                )
        chosen = self._chosen.numpy(force=True)
        for place, split in enumerate(SPLITS):
            slots = start.random[split]
            windows = np.where(slots.ids == EMPTY, -2, np.searchsorted(plan.ids, slots.ids))
            columns = slice(place * PER_SPLIT, (place + 1) * PER_SPLIT)
            neuron, given, drawn = np.nonzero(windows[:, :, None] == chosen[:, None, columns])
            columns_of = put(drawn + columns.start + self._texts.n_slots)
            self._kept["+"].put(put(neuron), columns_of, slots, (neuron, given))


def try_out(device: str) -> str | None:
    """Compile and run a kernel; None if that works, else why not, in a few words."""
    texts = torch.device(device)
    where = torch.cuda.device(texts) if texts.type == "cuda" else nullcontext()
    parts = torch.zeros((1, 5, 3, 1), dtype=torch.float64, device=texts)
    exponents = torch.zeros((1, 5, 1), dtype=torch.int32, device=texts)
    try:
        with where:
            kernels.add_shares[1, 5](parts, exponents, 1, 1, parts, exponents, block=_BLOCK)
    except Exception as error:  # noqa: BLE001 (compilers have many ways to fail: no C compiler, a GPU that is too old)
        return " ".join(f"triton cannot compile for it ({error})".split())[:200]
    return None


def _key_of(peaks: NDArray[np.float32], windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keys as `pipeline.device_kernels.offer` makes them."""
    # Zeros of both signs are equal.
    bits = (peaks + np.float32(0)).view(np.int32)
    ordered = (bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))).astype(np.int64)
    return np.asarray((ordered << 32) | (kernels.WINDOW_MASK - windows), dtype=np.int64)


def _starts(sizes: Iterable[int]) -> NDArray[np.int32]:
    """Where each of some groups of these sizes begins, and where the last ends."""
    return np.cumsum([0, *sizes], dtype=np.int32)


def _power_above(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << max(number - 1, 0).bit_length()
