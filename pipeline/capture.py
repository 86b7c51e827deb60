"""Capture: what is kept of one layer's activations while the corpus streams past, and how two captures become one.

A batch of activations has shape (window, token, neuron) and is reduced at once; nothing of that size outlives its
step. What stays per neuron is bounded whatever the corpus:

    moments      exact sums of the powers 1 to 4 over every token, extremes, how many are above zero
    histogram    counts in fixed bins, over a sample of the windows
    strongest    the windows with the highest maximum, with their activations: of the corpus, of each split, and of
                 nested samples of the windows (one in 4, one in 16, ...) that reach down to ordinary windows
    random       windows of each split, drawn for each neuron by hash
    maxima       the maximum in each of a thousand windows, for the quantiles
    token sums   sum of activations at each of the commonest tokens, over the documents that are not scored

Every part is decided window by window, by the window's id and split, and summed exactly. So a capture of some windows
and a capture of others merge into the capture of both, equal to the bit, in any order and number: shards, machines, a
run that goes on after a kill, and new text are one operation.

`pipeline.reduction` fills a capture. A *window* is the position of a sequence in the order of sequence ids. Ties between
equal maxima go to the lower id.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, reduce
from math import ldexp
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.errors import CaptureError
from pipeline.tables import SPLITS

TOP = 20
"""Strongest windows kept of the whole corpus (Bills et al. 2023 keep 20 of 50,000)."""

PER_SPLIT = 5
"""Strongest windows kept of each split, and windows drawn at random from each split."""

PER_SAMPLE = 8
"""Strongest windows kept of each nested sample."""

SAMPLED = 8_192
"""Windows in the largest nested sample, about: the strongest of a larger one are among the strongest of the corpus."""

MAXIMA = 1_024
"""Windows whose maxima are kept, those with the lowest ids (ids are hashes, so this is a random sample)."""

HISTOGRAM_WINDOWS = 512
"""Windows of the histogram, about: all of a small corpus, else the nested sample of this size."""

LOOKUP_BYTES = 48 * 2**20
"""Memory for the token sums of one layer, four bytes each. The commonest tokens have one; rarer ones count as unseen."""

LOOKUP_BITS = 17
"""Bits of an activation in a token sum, below the strongest one of the probe."""

VECTOR_BITS = 12
"""Activations of a record are kept in whole steps of a power of two, 2**11 to 2**12 of which make the strongest: as near
as float16, with none of its limits. Ranks, moments and sums are taken before."""

SPACING = 24
"""Bits between two parts of an exact sum. A part holds 2**(53 - 24) terms before a bit could be lost."""

EMPTY = np.uint64(2**64 - 1)
"""In place of a sequence id: a slot that no window has filled yet."""

HISTOGRAM_CLASSES = 4
"""Levels of windows that the histogram counts apart, so that it can be carried over to a smaller sample."""

NOT_SCORED = ("explain", "calibrate")
"""Splits that the token-lookup table may be read from."""

HISTOGRAM_EDGES: tuple[float, ...] = tuple(
    sign * 2.0 ** (octave // 2) * (1.5 if octave % 2 else 1.0)
    for sign, octaves in ((-1, range(24, -25, -1)), (1, range(-24, 25)))
    for octave in octaves
)
"""Edges of the inner bins, units of the neuron: 1 and 1.5 times each power of two from 2**-12 to 2**12, both signs. Bins
are closed at the end nearer to zero; the first and the last have no other end."""


@dataclass(frozen=True)
class Plan:
    """What will be read, decided before the run so that nothing depends on the order of batches."""

    tokens: list[NDArray[np.int32]]
    """Token ids of each window."""
    ids: NDArray[np.uint64]
    """Sequence ids, ascending."""
    split: NDArray[np.int8]
    """Index into SPLITS of each window's document."""
    level: NDArray[np.int8]
    """How many times a window survives a one-in-four draw: sample j holds the windows with level >= j."""
    lookup: NDArray[np.int32]
    """Token ids of documents that are not scored, commonest first; of equals the lower one first."""
    counts: NDArray[np.int64]
    """Occurrences of each of them."""

    @property
    def n_windows(self) -> int:
        return len(self.tokens)

    @cached_property
    def levels(self) -> list[int]:
        """The nested samples that are kept: not much above SAMPLED windows, down to one that is kept whole."""
        return nested_levels(self.level)

    @property
    def histogram_level(self) -> int:
        """The sample that the histogram is taken over; 0 for all windows."""
        return _level_of(self.n_windows, HISTOGRAM_WINDOWS)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each window."""
        return np.asarray([len(tokens) for tokens in self.tokens], dtype=np.int64)

    @cached_property
    def is_open(self) -> NDArray[np.bool_]:
        """Which windows are of documents that are not scored."""
        return np.isin(self.split, [SPLITS.index(name) for name in NOT_SCORED])

    def shards(self, size: int) -> list[NDArray[np.int64]]:
        """All windows in groups of `size`, the last one smaller: what is captured, merged or lost as one."""
        return [np.arange(start, min(start + size, self.n_windows)) for start in range(0, self.n_windows, size)]

    def batches(self, windows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
        """These windows in batches of at most `size` equally long ones."""
        lengths = self.lengths[windows]
        for length in np.unique(lengths)[::-1]:
            same = windows[lengths == length]
            for start in range(0, len(same), size):
                yield same[start : start + size]

    def lookup_tokens(self, n_neurons: int) -> NDArray[np.int32]:
        """The tokens whose mean activation is kept for a layer of this width, ascending."""
        return np.sort(self.lookup[: max(LOOKUP_BYTES // (4 * n_neurons), 1)])

    def random_numbers(self, *, layer: int, seed: int) -> NDArray[np.uint64]:
        """A random number for each window, which depends on its id, the layer and the seed alone."""
        return random_numbers(self.ids, layer=layer, seed=seed)


def plan(sequences: pl.DataFrame) -> Plan:
    """The plan for a table of sequences, taken in the order of their ids."""
    rows = sequences.sort("sequence_id")
    tokens = [np.asarray(ids, dtype=np.int32) for ids in rows.get_column("token_ids").to_list()]
    split = np.asarray([SPLITS.index(name) for name in rows.get_column("split")], dtype=np.int8)
    ids = np.asarray([int(sequence_id, 16) for sequence_id in rows.get_column("sequence_id")], dtype=np.uint64)
    open_windows = [ids for ids, index in zip(tokens, split, strict=True) if SPLITS[index] in NOT_SCORED]
    seen, counts = np.unique(np.concatenate([*open_windows, np.empty(0, np.int32)]), return_counts=True)
    commonest = np.lexsort((seen, -counts))
    return Plan(
        tokens=tokens, ids=ids, split=split, level=sample_levels(ids), lookup=seen[commonest], counts=counts[commonest]
    )


def sample_levels(ids: NDArray[np.uint64]) -> NDArray[np.int8]:
    """Half the number of trailing zero bits of each id, so that one id in 4**j has level j or more."""
    lowest = ids & (~ids + np.uint64(1))
    # A power of two is exact as float64, and its exponent is the number of zeros.
    zeros = np.frexp(lowest.astype(np.float64))[1] - 1
    return np.where(ids == 0, 31, zeros // 2).astype(np.int8)


def nested_levels(level: NDArray[np.int8], *, first: int = 1) -> list[int]:
    """The nested samples to keep of windows with these levels, none below `first`."""
    if len(level) <= TOP:
        return []
    first = max(first, _level_of(len(level), SAMPLED))
    sizes = [int((level >= j).sum()) for j in range(33)]
    last = next(j for j, size in enumerate(sizes) if j >= first and size <= PER_SAMPLE)
    return [j for j in range(first, last + 1) if sizes[j]]


def _level_of(windows: int, size: int) -> int:
    """The first level whose sample is expected to hold no more than `size` of so many windows."""
    level = 0
    while windows > size * 4**level:
        level += 1
    return level


def random_numbers(ids: NDArray[np.uint64], *, layer: int, seed: int) -> NDArray[np.uint64]:
    """Random numbers from ids, a layer and a seed (splitmix64)."""
    return _mixed(ids ^ np.random.default_rng([seed, layer]).integers(0, 2**64, dtype=np.uint64))


@dataclass(frozen=True)
class Records:
    """Windows of neurons, with their activations. All arrays have one entry per record."""

    neuron: NDArray[np.int64]
    window: NDArray[np.int64]
    peak: NDArray[np.float32]
    """Strongest activation in the polarity asked for: the maximum of x for `+`, of -x for `-`."""
    activations: NDArray[np.float32]
    """(record, token), units of the neuron; positions past the window's end are meaningless."""


@dataclass(frozen=True)
class Slots:
    """Equally many windows of every neuron with their activations, in an order that their content decides."""

    ids: NDArray[np.uint64]
    """(neuron, slot) sequence ids."""
    peaks: NDArray[np.float32]
    """(neuron, slot), as in `Records`."""
    steps: NDArray[np.int16]
    """(neuron, slot, token): activations in whole steps of 2**exponent."""
    exponents: NDArray[np.int16]
    """(neuron, slot)."""

    def records(self, plan: Plan) -> Records:
        """The same as one long list, neuron by neuron, without empty slots."""
        neuron, slot = np.nonzero(self.ids != EMPTY)
        steps, exponents = self.steps[neuron, slot].astype(np.float32), self.exponents[neuron, slot].astype(np.int32)
        return Records(
            neuron=neuron,
            window=np.searchsorted(plan.ids, self.ids[neuron, slot]),
            peak=self.peaks[neuron, slot],
            activations=np.ldexp(steps, exponents[:, None]),
        )

    def part(self, slots: slice) -> "Slots":
        """Some of the slots of each neuron. It shares memory with all."""
        return Slots(self.ids[:, slots], self.peaks[:, slots], self.steps[:, slots], self.exponents[:, slots])

    def ordered(self, order: NDArray[np.intp]) -> "Slots":
        """The slots (neuron, slot) of each neuron named by `order`, in its order."""
        at = np.arange(len(order))[:, None], order
        return Slots(ids=self.ids[at], peaks=self.peaks[at], steps=self.steps[at], exponents=self.exponents[at])

    def strongest(self, k: int) -> "Slots":
        """The `k` strongest of each neuron, strongest first; of equals the lower id first."""
        by_id = np.argsort(self.ids, axis=1, kind="stable")
        by_peak = np.argsort(-np.take_along_axis(self.peaks, by_id, axis=1), axis=1, kind="stable")
        return self.ordered(np.take_along_axis(by_id, by_peak, axis=1)[:, :k])

    def with_level(self, level: int) -> "Slots":
        """Those whose windows are in a nested sample. Every neuron must have kept the same windows."""
        inside = sample_levels(self.ids.ravel()).reshape(self.ids.shape) >= level
        order = np.argsort(~inside, axis=1, kind="stable")
        return self.ordered(order[:, : int(inside[0].sum()) if len(inside) else 0])

    @staticmethod
    def joined(parts: "Sequence[Slots]") -> "Slots":
        """All slots of several captures of one layer."""
        longest = max(part.steps.shape[2] for part in parts)
        return Slots(
            ids=np.concatenate([part.ids for part in parts], axis=1),
            peaks=np.concatenate([part.peaks for part in parts], axis=1),
            steps=np.concatenate(
                [np.pad(part.steps, ((0, 0), (0, 0), (0, longest - part.steps.shape[2]))) for part in parts], axis=1
            ),
            exponents=np.concatenate([part.exponents for part in parts], axis=1),
        )


@dataclass(frozen=True)
class ExactSums:
    """Sums that do not depend on the order or grouping of their terms; see `pipeline.kernels.add_exactly`."""

    parts: NDArray[np.float64]
    """(sum, 3, neuron)."""
    exponents: NDArray[np.int32]
    """(sum, neuron)."""

    def __add__(self, other: "ExactSums") -> "ExactSums":
        exponents = np.maximum(self.exponents, other.exponents)
        return ExactSums(self._raised(exponents) + other._raised(exponents), exponents)

    def totals(self, index: int) -> tuple[list[int], NDArray[np.int32]]:
        """One sum of each neuron as it is: a whole number, and the exponent of its unit."""
        lowest = self.exponents[index] - 3 * SPACING
        parts = [np.ldexp(self.parts[index, i], -lowest - (2 - i) * SPACING).astype(np.int64) for i in range(3)]
        high, middle, low = (part.tolist() for part in parts)
        return [(a << 2 * SPACING) + (b << SPACING) + c for a, b, c in zip(high, middle, low, strict=True)], lowest

    def _raised(self, exponents: NDArray[np.int32]) -> NDArray[np.float64]:
        """The parts that remain at larger exponents."""
        by = (exponents - self.exponents) // SPACING
        raised = np.zeros_like(self.parts)
        for part in range(3):
            for shift in range(3 - part):
                raised[:, part + shift] += np.where(by == shift, self.parts[:, part], 0.0)
        return raised


@dataclass(frozen=True)
class LayerCapture:
    """All that was kept of one layer, for the windows in `ids`."""

    layer: int
    signed: bool
    seed: int
    ids: NDArray[np.uint64]
    """Sequence ids of the windows that were read, ascending."""
    count: int
    """Tokens of these windows."""
    open_count: int
    """Tokens of those that are not scored."""
    sums: ExactSums
    """Sums over tokens of the powers 1 to 4, and over the tokens that are not scored of the first power."""
    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    positive: NDArray[np.int64]
    histogram_level: int
    """The nested sample that the histogram is taken over; 0 is all windows."""
    histogram: NDArray[np.int64]
    """(class, neuron, bin) counts: windows of exactly this level, the next, ..., and all above in the last class."""
    strongest: dict[str, dict[str, Slots]]
    """For each polarity: `top`, `explain` ... `test`, and the nested samples `1`, `2`, ..., strongest first."""
    random: dict[str, Slots]
    """For each split, windows drawn for each neuron, in the order of the draw. Peaks are of polarity `+`."""
    maxima_ids: NDArray[np.uint64]
    maxima: dict[str, NDArray[np.float32]]
    """For each polarity, the peak in each of the windows `maxima_ids`: (window, neuron)."""
    lookup: NDArray[np.int32]
    """Tokens that have a sum, ascending."""
    lookup_counts: NDArray[np.int64]
    """Occurrences of each in windows that are not scored."""
    token_sums: NDArray[np.int64]
    """(token, neuron): sum of the activations, each rounded to whole steps."""
    token_step: NDArray[np.float64]
    """(neuron,): one step, a power of two in units of the neuron."""

    @property
    def n_neurons(self) -> int:
        return len(self.minimum)

    @cached_property
    def levels(self) -> list[int]:
        """The nested samples that were kept."""
        groups = next(iter(self.strongest.values()))
        return [int(name) for name in groups if name.isdigit()]

    @cached_property
    def _level(self) -> NDArray[np.int8]:
        return sample_levels(self.ids)

    def sample_size(self, level: int) -> int:
        """Windows in a nested sample; all of them for level 0."""
        return int((self._level >= level).sum())

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Mean, and mean of (x - mean) to the powers 2, 3 and 4.

        Sums over windows are exact; within a window powers are summed in float32 about the middle of its range. So a
        variance is good to about 1e-6 of itself, and what is lost to a mean far from zero is that of a sum in float64:
        a fourth moment loses all where the mean is 1e4 times the spread.
        """
        n = self.count
        found = np.empty((4, self.n_neurons))
        totals, exponents = zip(*(self.sums.totals(power) for power in range(4)), strict=True)
        # One unit for all: its powers are the units that the sums of powers are whole multiples of.
        units = np.min([lowest // (power + 1) for power, lowest in enumerate(exponents)], axis=0)
        shifts = np.stack([lowest - (power + 1) * units for power, lowest in enumerate(exponents)]).T.tolist()
        for neuron, (sums, shift, unit) in enumerate(
            zip(zip(*totals, strict=True), shifts, units.tolist(), strict=True)
        ):
            s1, s2, s3, s4 = (total << by for total, by in zip(sums, shift, strict=True))
            found[:, neuron] = (
                _ratio(s1, n, unit),
                _ratio(n * s2 - s1**2, n**2, 2 * unit),
                _ratio(n**2 * s3 - 3 * n * s1 * s2 + 2 * s1**3, n**3, 3 * unit),
                _ratio(n**3 * s4 - 4 * n**2 * s1 * s3 + 6 * n * s1**2 * s2 - 3 * s1**4, n**4, 4 * unit),
            )
        return found[0], found[1], found[2], found[3]

    def open_mean(self) -> NDArray[np.float64]:
        """Mean over all tokens of the documents that are not scored; NaN if there are none."""
        totals, exponents = self.sums.totals(4)
        if not self.open_count:
            return np.full(self.n_neurons, np.nan)
        return np.ldexp([total / self.open_count for total in totals], exponents)

    def token_means(self) -> NDArray[np.float32]:
        """(token of `lookup`, neuron): mean activation on each token; NaN for one that did not occur."""
        counts = np.where(self.lookup_counts > 0, self.lookup_counts, np.nan)
        means = np.empty(self.token_sums.shape, dtype=np.float32)
        for row, (sums, count) in enumerate(zip(self.token_sums, counts, strict=True)):
            means[row] = sums * self.token_step / count
        return means

    def priorities(self, ids: NDArray[np.uint64], neurons: NDArray[np.int64]) -> NDArray[np.uint64]:
        """What decides a draw among windows, for pairs of a window and a neuron: the lowest is drawn first."""
        return _mixed(random_numbers(ids, layer=self.layer, seed=self.seed) ^ neuron_numbers(self.n_neurons)[neurons])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as named arrays, to be kept in a file."""
        found: dict[str, NDArray[Any]] = {}
        for field in fields(self):
            found |= _flat(field.name, getattr(self, field.name))
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "LayerCapture":
        """What `arrays` was made from."""
        tree: dict[str, Any] = {}
        for name, array in arrays.items():
            *path, last = name.split("/")
            place = tree
            for step in path:
                place = place.setdefault(step, {})
            place[last] = array
        numbers = {name: int(tree[name]) for name in ("layer", "seed", "count", "open_count", "histogram_level")}
        return cls(
            **{
                **tree,
                **numbers,
                "signed": bool(tree["signed"]),
                "sums": ExactSums(**tree["sums"]),
                # A file gives names in an order of its own.
                "strongest": {
                    polarity: {name: Slots(**tree["strongest"][polarity][name]) for name in _in_order(groups)}
                    for polarity, groups in sorted(tree["strongest"].items())
                },
                "random": {split: Slots(**tree["random"][split]) for split in SPLITS},
                "maxima": dict(sorted(tree["maxima"].items())),
            }
        )


def merge(captures: Sequence[LayerCapture]) -> LayerCapture:
    """The capture of all windows of several captures of one layer, in any order.

    Equal to a capture that saw all windows at once, with two exceptions where new text is added to a capture that was
    planned without it: a token that had no row in the lookup table of one of them is counted from the others alone
    (and which tokens have one may then depend on the order), and a histogram keeps its sample only while the text grows less than 64 times.

    Raises:
        CaptureError: they are of different layers or models, were drawn with different seeds, or share a window.
    """
    if not captures:
        raise CaptureError("no captures were given to merge; name at least one")
    return reduce(_merged, captures)


def can_grow(earlier: LayerCapture, plan: Plan) -> bool:
    """Whether a capture of some windows of a plan, merged with one of all others, is that of all to the byte.

    It is not where a window is gone, where a token of the new lookup table occurred among the earlier windows but had no
    sum there, or where the histogram of the earlier windows has too few classes.
    """
    at = np.searchsorted(plan.ids, earlier.ids)
    if not len(earlier.ids) or at.max(initial=0) >= plan.n_windows or (plan.ids[at] != earlier.ids).any():
        return False
    if plan.histogram_level - earlier.histogram_level >= len(earlier.histogram):
        return False
    kept = plan.lookup_tokens(earlier.n_neurons)
    unsummed = np.setdiff1d(kept, earlier.lookup)
    read = [plan.tokens[window] for window in at[plan.is_open[at]]]
    return not np.isin(unsummed, np.concatenate([*read, np.empty(0, np.int32)])).any()


def _merged(one: LayerCapture, other: LayerCapture) -> LayerCapture:
    for name in ("layer", "signed", "seed", "n_neurons"):
        if getattr(one, name) != getattr(other, name):
            raise CaptureError(
                f"captures with {name}={getattr(one, name)} and {name}={getattr(other, name)} cannot be merged; capture "
                "both with the same model and settings"
            )
    if len(shared := np.intersect1d(one.ids, other.ids)):
        raise CaptureError(f"window {int(shared[0]):016x} is in both captures, and must be counted once")
    ids = np.sort(np.concatenate([one.ids, other.ids]))
    both = (one, other)
    first = max((part.levels[0] for part in both if part.levels), default=1)
    level = max(one.histogram_level, other.histogram_level, _level_of(len(ids), HISTOGRAM_WINDOWS))
    lookup, counts, sums, step = _merged_tokens(one, other)
    return replace(
        one,
        ids=ids,
        count=one.count + other.count,
        open_count=one.open_count + other.open_count,
        sums=one.sums + other.sums,
        minimum=np.minimum(one.minimum, other.minimum),
        maximum=np.maximum(one.maximum, other.maximum),
        positive=one.positive + other.positive,
        histogram_level=level,
        histogram=_merged_histogram([_at_level(part, level) for part in both]),
        strongest={
            polarity: {
                "top": Slots.joined([part.strongest[polarity]["top"] for part in both]).strongest(TOP),
                **{
                    split: Slots.joined([part.strongest[polarity][split] for part in both]).strongest(PER_SPLIT)
                    for split in SPLITS
                },
                **{
                    str(sample): Slots.joined([_sample(part, polarity, sample) for part in both]).strongest(PER_SAMPLE)
                    for sample in nested_levels(sample_levels(ids), first=first)
                },
            }
            for polarity in one.strongest
        },
        random={split: _drawn(one, [part.random[split] for part in both]) for split in SPLITS},
        **_merged_maxima(one, other),
        lookup=lookup,
        lookup_counts=counts,
        token_sums=sums,
        token_step=step,
    )


def _sample(part: LayerCapture, polarity: str, level: int) -> Slots:
    """What a capture holds of a nested sample. Of one that it did not keep apart, a kept sample around it holds all."""
    groups = part.strongest[polarity]
    if str(level) in groups:
        return groups[str(level)]
    around = groups[str(part.levels[-1])] if part.levels else groups["top"]
    return around.with_level(level)


def _drawn(capture: LayerCapture, parts: Sequence[Slots]) -> Slots:
    slots = Slots.joined(parts)
    priorities = np.where(
        slots.ids == EMPTY, EMPTY, capture.priorities(slots.ids, np.arange(capture.n_neurons)[:, None])
    )
    width = min(int((slots.ids != EMPTY).sum(axis=1).max(initial=0)), PER_SPLIT)
    return slots.ordered(np.argsort(priorities, axis=1, kind="stable")[:, :width])


def _merged_maxima(one: LayerCapture, other: LayerCapture) -> dict[str, Any]:
    ids = np.concatenate([one.maxima_ids, other.maxima_ids])
    lowest = np.argsort(ids)[:MAXIMA]
    return {
        "maxima_ids": ids[lowest],
        "maxima": {
            polarity: np.concatenate([one.maxima[polarity], other.maxima[polarity]])[lowest] for polarity in one.maxima
        },
    }


def _at_level(part: LayerCapture, level: int) -> NDArray[np.int64]:
    """A capture's histogram over a smaller nested sample."""
    dropped = level - part.histogram_level
    if dropped >= len(part.histogram):
        raise CaptureError(
            f"the histogram of {len(part.ids):,} windows cannot be carried over to so much more text; capture it anew"
        )
    return part.histogram[dropped:]


def _merged_histogram(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Sums class by class; where one has fewer classes, its last one holds all that lies above."""
    classes = min(len(part) for part in parts)
    merged: NDArray[np.int64] = np.sum(
        [np.concatenate([part[: classes - 1], part[classes - 1 :].sum(axis=0, keepdims=True)]) for part in parts],
        axis=0,
    )
    return merged


def _merged_tokens(
    one: LayerCapture, other: LayerCapture
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    step = np.minimum(one.token_step, other.token_step)
    lookup = np.union1d(one.lookup, other.lookup)
    counts = np.zeros(len(lookup), dtype=np.int64)
    sums = np.zeros((len(lookup), one.n_neurons), dtype=np.int64)
    for part in (one, other):
        at = np.searchsorted(lookup, part.lookup)
        counts[at] += part.lookup_counts
        sums[at] += part.token_sums * (part.token_step / step).astype(np.int64)
    limit = max(LOOKUP_BYTES // (4 * one.n_neurons), len(one.lookup), len(other.lookup))
    commonest = np.sort(np.lexsort((lookup, -counts))[:limit])
    return lookup[commonest], counts[commonest], sums[commonest], step


def neuron_numbers(n_neurons: int) -> NDArray[np.uint64]:
    """A random number for each neuron index (splitmix64)."""
    return _mixed(np.arange(1, n_neurons + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    return numbers ^ (numbers >> np.uint64(31))


def _in_order(groups: Mapping[str, Any]) -> list[str]:
    """Names of groups of the strongest: of the corpus, of the splits, of the samples."""
    return ["top", *SPLITS, *sorted((name for name in groups if name.isdigit()), key=int)]


def _ratio(numerator: int, denominator: int, exponent: int) -> float:
    """numerator / denominator * 2**exponent, where the quotient alone may be too large for a float."""
    dropped = max(numerator.bit_length() - denominator.bit_length() - 900, 0)
    return ldexp((numerator >> dropped) / denominator, exponent + dropped)


def _flat(name: str, value: Any) -> dict[str, NDArray[Any]]:
    if isinstance(value, np.ndarray):
        return {name: value}
    if isinstance(value, dict):
        return {path: array for key, part in value.items() for path, array in _flat(f"{name}/{key}", part).items()}
    if isinstance(value, (Slots, ExactSums)):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return {f"{name}/{key}": array for key, array in parts.items()}
    return {name: np.asarray(value)}
