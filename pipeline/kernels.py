"""Kernels: the inner loops of capture, compiled to machine code (numba) and run over the activations where they lie.

Each function works on the neurons `start` to `stop` of a batch of shape (window, token, neuron) and on nothing outside
of them, so that threads can share a batch by neurons, and no result depends on how they do. Within a window the order
of every addition is fixed, so none depends on the batch that a window came in either. No fast-math: compiled for any
processor, the results are equal to the bit.

Plain numpy takes a pass through memory for each operation, some twelve of them; here a block of neurons stays in the
cache. Measured on two cores: 1.2 ns for each activation against 2.9 ns with torch's own operations.
"""

from collections.abc import Callable
from math import frexp, ldexp
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.capture import SPACING, VECTOR_BITS

Function = TypeVar("Function", bound=Callable[..., Any])
Array = NDArray[Any]
"""The docstrings give shapes and number types, which the compiler finds by itself."""

BLOCK = 512
"""Neurons that one thread works on at a time: 64 tokens of them fit a second-level cache, their sums a first-level one."""

TOKENS_PER_SUM = 64
"""Tokens that are summed in float32 before the sum is added in float64."""

LOWEST = -960
"""Exponent of a sum of zeros, a multiple of SPACING below the fourth power of any float32."""

HISTOGRAM_LOWEST = -12
"""Activations nearer to zero than two to this share one bin of the histogram; see `pipeline.capture`."""

HISTOGRAM_STEPS = 48
"""Bins on each side of that one, two for each doubling, before the last, which takes all that is stronger."""

_BINNED = 256
"""Neurons whose bins fit a second-level cache, those in use a first-level one."""

NO_RECORD = np.uint16(2**16 - 1)
"""In place of a record's number: a slot behind which nothing was stored yet."""

_KEPT = 128
"""Neurons whose slots are looked at together, so that what is known of them stays in the cache."""

_COUNTED = 2**16 - 1
"""Tokens after which a count of 16 bits could be full."""

_HISTOGRAM_BITS = np.int32((127 + HISTOGRAM_LOWEST) << 23)
_LAST_STEP = np.int32(HISTOGRAM_STEPS)


def _compiled(function: Function) -> Function:
    """Compile at the first call, and keep the result on disk where there is a place for it."""
    try:
        return numba.njit(function, nogil=True, cache=True)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package nor the home folder can be written to
        return numba.njit(function, nogil=True)  # type: ignore[no-any-return]


# Four tokens at a time: a running sum then goes through memory once for four activations, which halves the time.


@_compiled
def _extremes(a: Array, b: Array, c: Array, d: Array, low: Array, high: Array) -> None:
    for j in range(a.shape[0]):
        one = a[j] if a[j] < b[j] else b[j]
        two = c[j] if c[j] < d[j] else d[j]
        one = one if one < two else two
        low[j] = one if one < low[j] else low[j]
        one = a[j] if a[j] > b[j] else b[j]
        two = c[j] if c[j] > d[j] else d[j]
        one = one if one > two else two
        high[j] = one if one > high[j] else high[j]


@_compiled
def _powers(
    a: Array, b: Array, c: Array, d: Array, center: Array, unit: Array, s1: Array, s2: Array, s3: Array, s4: Array
) -> None:
    for j in range(a.shape[0]):
        d0, d1 = (a[j] - center[j]) * unit[j], (b[j] - center[j]) * unit[j]
        d2, d3 = (c[j] - center[j]) * unit[j], (d[j] - center[j]) * unit[j]
        q0, q1, q2, q3 = d0 * d0, d1 * d1, d2 * d2, d3 * d3
        s1[j] += (d0 + d1) + (d2 + d3)
        s2[j] += (q0 + q1) + (q2 + q3)
        s3[j] += (d0 * q0 + d1 * q1) + (d2 * q2 + d3 * q3)
        s4[j] += (q0 * q0 + q1 * q1) + (q2 * q2 + q3 * q3)


@_compiled
def _power(row: Array, center: Array, unit: Array, s1: Array, s2: Array, s3: Array, s4: Array) -> None:
    for j in range(row.shape[0]):
        d = (row[j] - center[j]) * unit[j]
        square = d * d
        s1[j] += d
        s2[j] += square
        s3[j] += d * square
        s4[j] += square * square


@_compiled
def _positive(a: Array, b: Array, c: Array, d: Array, count: Array) -> None:
    for j in range(a.shape[0]):
        count[j] += np.int32(a[j] > 0) + np.int32(b[j] > 0) + np.int32(c[j] > 0) + np.int32(d[j] > 0)


@_compiled
def _positive_in(row: Array, count: Array) -> None:
    for j in range(row.shape[0]):
        count[j] += np.int32(row[j] > 0)


@_compiled
def _add(total: Array, part: Array) -> None:
    for j in range(total.shape[0]):
        total[j] += part[j]


@_compiled
def _middles(low: Array, high: Array, center: Array, unit: Array) -> None:
    usual = True
    for j in range(low.shape[0]):
        center[j] = np.float32(0.5) * low[j] + np.float32(0.5) * high[j]
        unit[j] = 1
        # Neighbouring numbers have one of them for a middle.
        reach = max(high[j] - center[j], center[j] - low[j])
        usual &= (reach <= 1e6) & ((reach == 0) | (reach >= 1e-6))
    if usual:
        return
    for j in range(low.shape[0]):
        reach = max(high[j] - center[j], center[j] - low[j])
        if (reach > 1e6 or 0 < reach < 1e-6) and np.isfinite(reach):
            unit[j] = ldexp(1.0, -max(min(frexp(reach)[1], 120), -120))


@_compiled
def _about_zero(
    tokens: float, center: Array, unit: Array, d1: Array, d2: Array, d3: Array, d4: Array,
    s1: Array, s2: Array, s3: Array, s4: Array,
) -> None:  # fmt: skip
    for j in range(center.shape[0]):
        a, back = np.float64(center[j]), 1.0 / np.float64(unit[j])
        square = back * back
        m1, m2, m3, m4 = d1[j] * back, d2[j] * square, d3[j] * square * back, d4[j] * square * square
        a2 = a * a
        s1[j] = m1 + tokens * a
        s2[j] = m2 + 2 * a * m1 + tokens * a2
        s3[j] = m3 + 3 * a * m2 + 3 * a2 * m1 + tokens * a2 * a
        s4[j] = m4 + 4 * a * m3 + 6 * a2 * m2 + 4 * a2 * a * m1 + tokens * a2 * a2


@_compiled
def window_sums(
    x: Array, lengths: Array, start: int, stop: int, low: Array, high: Array, sums: Array, positive: Array
) -> None:
    """Extremes and sums of the powers 1 to 4 of each window, and how many activations are above zero.

    `x` (window, token, neuron) float32 with `lengths` (window,) tokens that count; fills `low` and `high` (window,
    neuron) float32 and `sums` (4, window, neuron) float64, adds to `positive` (neuron,). A sum that is not finite says
    that an activation was not.

    Powers are taken about the middle of the window's own range, which loses nothing to cancellation, in units of a
    power of two where the range is so wide or narrow that a fourth power would leave float32; then they are moved to
    zero in float64.
    """
    center, unit = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    part, whole = np.empty((4, BLOCK), np.float32), np.empty((4, BLOCK), np.float64)
    count = np.empty(BLOCK, np.int32)
    for first in range(start, stop, BLOCK):
        n = min(BLOCK, stop - first)
        last = first + n
        c, u, p = center[:n], unit[:n], count[:n]
        p[:] = 0
        for w in range(x.shape[0]):
            lo, hi = low[w, first:last], high[w, first:last]
            lo[:] = x[w, 0, first:last]
            hi[:] = lo
            for t in range(0, lengths[w], 4):
                # Past the end the last token comes again, which changes no extreme.
                end = lengths[w] - 1
                b, d, e = (
                    x[w, min(t + 1, end), first:last],
                    x[w, min(t + 2, end), first:last],
                    x[w, min(t + 3, end), first:last],
                )
                _extremes(x[w, t, first:last], b, d, e, lo, hi)
            _middles(lo, hi, c, u)
            whole[:, :n] = 0
            for block in range(0, lengths[w], TOKENS_PER_SUM):
                part[:, :n] = 0
                end = min(block + TOKENS_PER_SUM, lengths[w])
                s1, s2, s3, s4 = part[0, :n], part[1, :n], part[2, :n], part[3, :n]
                fours = block + (end - block) // 4 * 4
                for t in range(block, fours, 4):
                    b, d, e = x[w, t + 1, first:last], x[w, t + 2, first:last], x[w, t + 3, first:last]
                    _powers(x[w, t, first:last], b, d, e, c, u, s1, s2, s3, s4)
                    _positive(x[w, t, first:last], b, d, e, p)
                for t in range(fours, end):
                    _power(x[w, t, first:last], c, u, s1, s2, s3, s4)
                    _positive_in(x[w, t, first:last], p)
                for power in range(4):
                    _add(whole[power, :n], part[power, :n])
            _about_zero(
                float(lengths[w]), c, u, whole[0, :n], whole[1, :n], whole[2, :n], whole[3, :n],
                sums[0, w, first:last], sums[1, w, first:last], sums[2, w, first:last], sums[3, w, first:last],
            )  # fmt: skip
        _add(positive[first:last], p)


@_compiled
def _raise(parts: Array, exponents: Array, j: int, exponent: int) -> None:
    """Move the parts of one sum up to a larger exponent; what falls off the lower end is dropped."""
    while exponents[j] < exponent:
        parts[2, j] = parts[1, j]
        parts[1, j] = parts[0, j]
        parts[0, j] = 0
        exponents[j] += SPACING
        if parts[0, j] == 0 and parts[1, j] == 0 and parts[2, j] == 0:
            exponents[j] = exponent


@_compiled
def _split(values: Array, base: Array, parts0: Array, parts1: Array, parts2: Array) -> None:
    for j in range(values.shape[0]):
        value = values[j]
        # Adding and taking away 1.5 * 2**52 units rounds to whole units.
        part = (value + base[j]) - base[j]
        parts0[j] += part
        value -= part
        finer = base[j] * 2.0**-SPACING
        part = (value + finer) - finer
        parts1[j] += part
        value -= part
        finest = finer * 2.0**-SPACING
        parts2[j] += (value + finest) - finest


@_compiled
def add_exactly(values: Array, start: int, stop: int, parts: Array, exponents: Array) -> None:
    """Add `values` (term, neuron) float64 to exact sums: `parts` (3, neuron) float64, `exponents` (neuron,) int32.

    A sum is kept in three parts, whole multiples of 2**(E - 24), 2**(E - 48) and 2**(E - 72), where E is the least
    multiple of 24 with every term below 2**(E - 1). Adding whole multiples rounds nothing, and a term is rounded in
    one way whenever it comes, so any order and grouping of terms gives the same sum (binned summation: Demmel and
    Nguyen 2015, "Parallel reproducible summation", with three bins).
    """
    base = np.empty(BLOCK, np.float64)
    largest = np.empty(BLOCK, np.float64)
    for first in range(start, stop, BLOCK):
        n = min(BLOCK, stop - first)
        last = first + n
        largest[:n] = 0
        for term in range(values.shape[0]):
            row = values[term, first:last]
            for j in range(n):
                size = abs(row[j])
                largest[j] = size if size > largest[j] else largest[j]
        for j in range(n):
            if largest[j] >= ldexp(1.0, exponents[first + j] - 1):
                needed = -((-frexp(largest[j])[1] - 1) // SPACING) * SPACING
                _raise(parts, exponents, first + j, needed)
            base[j] = ldexp(1.5, 52 + exponents[first + j] - SPACING)
        for term in range(values.shape[0]):
            _split(values[term, first:last], base[:n], parts[0, first:last], parts[1, first:last], parts[2, first:last])


@_compiled
def _gather(x: Array, w: int, length: int, neurons: Array, count: int, buffer: Array) -> None:
    """Copy the activations of `count` neurons out of one window, token by token, as they lie in memory."""
    for t in range(length):
        row = x[w, t]
        for place in range(count):
            buffer[place, t] = row[neurons[place]]


@_compiled
def _to_steps(values: Array, steps: Array) -> int:
    """Round a window's activations to whole steps of a power of two, and give its exponent."""
    exponent = _exponent_of(values)
    # In two factors, so that neither leaves float32.
    one, two = _power_of_two(-(exponent // 2)), _power_of_two(-(exponent - exponent // 2))
    for t in range(values.shape[0]):
        steps[t] = np.int16(np.rint(values[t] * one * two))
    return exponent


@_compiled
def _exponent_of(values: Array) -> int:
    """The exponent of the steps of a window, read off the bits of its strongest activation."""
    # The bits of floats without a sign are ordered as the floats are, and whole numbers are compared many at a time.
    bits = np.int32(0)
    for t in range(values.shape[0]):
        bits = max(bits, np.int32(np.float32(values[t]).view(np.int32) & np.int32(0x7FFFFFFF)))
    if bits >= 1 << 23:
        return int(bits >> 23) - 126 - VECTOR_BITS
    # Below what float32 holds in full.
    return frexp(float(bits))[1] - 149 - VECTOR_BITS if bits > 0 else 0


@_compiled
def _power_of_two(exponent: int) -> np.float32:
    return np.int32((127 + exponent) << 23).view(np.float32)


@_compiled
def _copy(values: Array, length: int, slot: Array) -> None:
    for t in range(length):
        slot[t] = values[t]
    for t in range(length, slot.shape[0]):
        slot[t] = 0


@_compiled
def _weakest(kept: Array, peaks: Array, first: int, last: int) -> int:
    """The slot that goes next: an empty one, else that of the lowest peak, of equal ones that of the highest window."""
    # Slots are filled in order.
    if kept[last - 1] < 0:
        slot = last - 1
        while slot > first and kept[slot - 1] < 0:
            slot -= 1
        return slot
    slot, lowest, window = first, peaks[first], kept[first]
    for other in range(first + 1, last):
        peak, its = peaks[other], kept[other]
        lower = (peak < lowest) | ((peak == lowest) & (its > window))
        slot = other if lower else slot
        lowest = peak if lower else lowest
        window = its if lower else window
    return slot


@_compiled
def offer(
    rows: Array,
    windows: Array,
    groups: Array,
    starts: Array,
    start: int,
    stop: int,
    low: Array,
    high: Array,
    sign: int,
    kept: Array,
    peaks: Array,
    fresh: Array,
    weakest: Array,
    bars: Array,
) -> None:
    """Offer windows to the slots of the strongest ones of each neuron.

    Each window (of `windows`, (window,) int32) belongs to some groups, `groups` (window, group) bool. Group g has the
    slots `starts[g]` to `starts[g + 1]` of each neuron in `kept` (neuron, slot) int32 windows (-1 for an empty slot) and
    `peaks` (neuron, slot) float32. `weakest` (group, neuron) int32 is the slot that goes next, and `bars` (group, neuron)
    float32 the peak that it has, minus infinity while one is empty. The peak of a window is the maximum of `sign * x`; of
    equal ones the lower window stays.

    A slot whose activations are still to be stored has its window's place in the batch, of `rows` (window,) int8, in
    `fresh` (neuron, slot) int8: most that come early are driven out before their batch is over.
    """
    zero = np.float32(0)
    for first in range(start, stop, _KEPT):
        last = min(first + _KEPT, stop)
        for w in range(windows.shape[0]):
            window = windows[w]
            for g in range(groups.shape[1]):
                if not groups[w, g]:
                    continue
                for j in range(first, last):
                    # Which of two zeros came first must not show.
                    peak = high[w, j] + zero if sign > 0 else zero - low[w, j]
                    if peak < bars[g, j]:
                        continue
                    slot = weakest[g, j]
                    if peak == bars[g, j] and window > kept[j, slot] >= 0:
                        continue
                    kept[j, slot] = window
                    peaks[j, slot] = peak
                    fresh[j, slot] = rows[w]
                    slot = _weakest(kept[j], peaks[j], starts[g], starts[g + 1])
                    weakest[g, j] = slot
                    bars[g, j] = peaks[j, slot] if kept[j, slot] >= 0 else -np.inf


@_compiled
def release(fresh: Array, records: Array, uses: Array, free: Array, n_free: int) -> tuple[int, int]:
    """Let go of the records of slots that hold another window now; gives how many are free, and how many are needed.

    `fresh` (neuron, slot) int8 has each such slot's place in the batch, else -1; `records` (neuron, slot) uint16 the
    record behind each slot, else NO_RECORD. `uses` (record,) uint8 is how many slots have it, and the first `n_free` of
    `free` (record,) uint16 are those without any. One record is needed for each neuron and window.
    """
    needed = 0
    for j in range(fresh.shape[0]):
        places = np.uint64(0)  # _BATCH of `pipeline.reduction` fits
        for slot in range(fresh.shape[1]):
            if fresh[j, slot] < 0:
                continue
            places |= np.uint64(1) << np.uint64(fresh[j, slot])
            record = records[j, slot]
            if record != NO_RECORD:
                records[j, slot] = NO_RECORD
                uses[record] -= np.uint8(1)
                if uses[record] == 0:
                    free[n_free] = record
                    n_free += 1
        while places != np.uint64(0):
            places &= places - np.uint64(1)
            needed += 1
    return n_free, needed


@_compiled
def _by_window(fresh: Array, first: int, last: int, ends: Array, neurons: Array, slots: Array) -> None:
    """List the fresh slots by window, then by neuron, and mark them: window w has those before `ends[w]`."""
    ends[:] = 0
    for j in range(first, last):
        for slot in range(fresh.shape[1]):
            if fresh[j, slot] >= 0:
                ends[fresh[j, slot] + 1] += 1
    for w in range(1, ends.shape[0]):
        ends[w] += ends[w - 1]
    for j in range(first, last):
        for slot in range(fresh.shape[1]):
            if fresh[j, slot] >= 0:
                place = ends[fresh[j, slot]]
                neurons[place], slots[place] = j, slot
                ends[fresh[j, slot]] += 1
                fresh[j, slot] = -1


@_compiled
def store(
    x: Array,
    lengths: Array,
    start: int,
    stop: int,
    fresh: Array,
    records: Array,
    steps: Array,
    exponents: Array,
    uses: Array,
    free: Array,
    n_free: int,
) -> None:
    """Store the activations of those windows of a batch that are in a slot, and mark the slots as stored.

    `x` (window, token, neuron); `fresh` and `records` (neuron, slot), of the neurons from `start` to `stop` alone, are
    those of `release`, as are `uses` and `free`, whose last are taken, one for each neuron and window. Fills `steps` (record,
    token) int16 and `exponents` (record,) int16.
    """
    n_slots = fresh.shape[1]
    ends = np.empty(x.shape[0] + 1, np.int64)
    neurons, slots = np.empty(_KEPT * n_slots, np.int32), np.empty(_KEPT * n_slots, np.int32)
    buffer, rounded = np.empty((_KEPT, x.shape[1]), np.float32), np.empty(x.shape[1], np.int16)
    distinct, columns = np.empty(_KEPT, np.int32), np.empty(_KEPT, np.int32)
    for first in range(0, stop - start, _KEPT):
        last = min(first + _KEPT, stop - start)
        _by_window(fresh, first, last, ends, neurons, slots)
        place = 0
        for w in range(x.shape[0]):
            length, count = lengths[w], 0
            for pair in range(place, ends[w]):
                if count == 0 or distinct[count - 1] != neurons[pair]:
                    distinct[count] = neurons[pair]
                    columns[count] = neurons[pair] + start
                    count += 1
            _gather(x, w, length, columns, count, buffer)
            for number in range(count):
                j = distinct[number]
                n_free -= 1
                record = free[n_free]
                exponents[record] = _to_steps(buffer[number, :length], rounded)
                _copy(rounded, length, steps[record])
                used = 0
                while place < ends[w] and neurons[place] == j:
                    records[j, slots[place]] = record
                    used += 1
                    place += 1
                uses[record] = used


@_compiled
def highest(values: Array, allowed: Array, sign: int, chosen: Array) -> None:
    """For each neuron the allowed tokens with the highest `sign * values` (token, neuron), of equal ones the lower tokens.

    `allowed` (token,) bool; fills `chosen` (neuron, k) int32, which begins as -1, in no promised order.
    """
    k = chosen.shape[1]
    strengths, bars = np.empty((_KEPT, k), np.float32), np.empty(_KEPT, np.float32)
    weakest = np.empty(_KEPT, np.int32)
    for first in range(0, values.shape[1], _KEPT):
        n = min(_KEPT, values.shape[1] - first)
        bars[:], weakest[:] = -np.inf, 0
        for token in range(values.shape[0]):
            if not allowed[token]:
                continue
            row = values[token, first : first + n]
            for j in range(n):
                strength = np.float32(sign) * row[j]
                if strength > bars[j]:
                    mine, slot = chosen[first + j], weakest[j]
                    mine[slot], strengths[j, slot] = token, strength
                    slot = _weakest(mine, strengths[j], 0, k)
                    weakest[j] = slot
                    bars[j] = strengths[j, slot] if mine[slot] >= 0 else -np.inf


@_compiled
def keep_drawn(
    x: Array,
    lengths: Array,
    windows: Array,
    pairs: Array,
    neurons: Array,
    slots: Array,
    start: int,
    stop: int,
    high: Array,
    kept: Array,
    peaks: Array,
    steps: Array,
    exponents: Array,
) -> None:
    """Keep windows for the neurons that drew them before the run: window w for pairs `pairs[w]` to `pairs[w + 1]`.

    `neurons` (pair,) int32 ascend within a window; `slots` (pair,) int32 are where they keep it.
    """
    buffer = np.empty((stop - start, x.shape[1]), np.float32)
    for w in range(x.shape[0]):
        length = lengths[w]
        first = pairs[w] + np.searchsorted(neurons[pairs[w] : pairs[w + 1]], start)
        last = pairs[w] + np.searchsorted(neurons[pairs[w] : pairs[w + 1]], stop)
        _gather(x, w, length, neurons[first:last], last - first, buffer)
        for pair in range(first, last):
            j, slot = neurons[pair], slots[pair]
            kept[j, slot] = windows[w]
            peaks[j, slot] = high[w, j] + np.float32(0)
            exponents[j, slot] = _to_steps(buffer[pair - first, :length], steps[j, slot])


@_compiled
def order_slots(peaks: Array, ids: Array, order: Array) -> None:
    """Fill `order` (neuron, k) with the slots of each neuron, strongest first; of equals the lower id first."""
    for j in range(peaks.shape[0]):
        for slot in range(peaks.shape[1]):
            place = slot
            while place > 0:
                before = order[j, place - 1]
                if peaks[j, before] > peaks[j, slot] or (
                    peaks[j, before] == peaks[j, slot] and ids[j, before] < ids[j, slot]
                ):
                    break
                order[j, place] = before
                place -= 1
            order[j, place] = slot


@_compiled
def _add_steps(row: Array, per_unit: Array, sums: Array) -> None:
    for j in range(row.shape[0]):
        sums[j] += np.int32(np.rint(row[j] * per_unit[j]))


@_compiled
def add_tokens(x: Array, lengths: Array, places: Array, start: int, stop: int, per_unit: Array, sums: Array) -> None:
    """Add each activation, in whole steps of the neuron's unit, to the sum of its token.

    `places` (window, token) int32 are rows of `sums` (row, neuron) int32, -1 for tokens that are not summed;
    `per_unit` (neuron,) float32 is steps per unit of the neuron, a power of two.
    """
    for w in range(x.shape[0]):
        for t in range(lengths[w]):
            if places[w, t] >= 0:
                _add_steps(x[w, t, start:stop], per_unit[start:stop], sums[places[w, t], start:stop])


@_compiled
def _bins_of(row: Array, bins: Array) -> None:
    for j in range(row.shape[0]):
        # Each step in 32 bits: numba would take 64, of which a register holds half as many.
        size = np.int32(row[j] & np.int32(0x7FFFFFFF))
        step = np.int32(np.int32(size - _HISTOGRAM_BITS) >> 22)
        step = max(np.int32(min(step, _LAST_STEP) + 1), np.int32(0))
        bins[j] = np.uint32(HISTOGRAM_STEPS + 1 + (step if row[j] >= 0 else -step))


@_compiled
def _count_up(bins: Array, counts: Array) -> None:
    for j in range(bins.shape[0]):
        counts[j, bins[j]] += np.uint16(1)


@_compiled
def _move_counts(counts: Array, histogram: Array) -> None:
    for j in range(counts.shape[0]):
        for bin_ in range(counts.shape[1]):
            histogram[j, bin_] += counts[j, bin_]
            counts[j, bin_] = 0


@_compiled
def count_in_bins(bits: Array, lengths: Array, classes: Array, start: int, stop: int, histogram: Array) -> None:
    """Count activations in the bins of `histogram` (class, neuron, bin) of whole numbers; windows of class -1 are left out.

    `bits` is the batch (window, token, neuron) seen as int32: exponent and first bit of a float32 are the number of its bin.
    They are counted in 16 bits first, which leaves room in the cache for as many neurons as the memory reads at a stretch.
    """
    bins = np.empty(_BINNED, np.uint32)
    counts = np.zeros((_BINNED, histogram.shape[2]), np.uint16)
    for first in range(start, stop, _BINNED):
        n = min(_BINNED, stop - first)
        last = first + n
        for kind in range(histogram.shape[0]):
            counted = 0
            for w in range(bits.shape[0]):
                if classes[w] != kind:
                    continue
                for t in range(lengths[w]):
                    if counted == _COUNTED:
                        _move_counts(counts[:n], histogram[kind, first:last])
                        counted = 0
                    _bins_of(bits[w, t, first:last], bins[:n])
                    _count_up(bins[:n], counts[:n])
                    counted += 1
            if counted:
                _move_counts(counts[:n], histogram[kind, first:last])


@_compiled
def priority(window: np.uint64, neuron: np.uint64) -> np.uint64:
    """A random number for a pair, from two random numbers: the finaliser of splitmix64 (Steele et al. 2014)."""
    mixed = window ^ neuron
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@_compiled
def draw(windows: Array, neurons: Array, members: Array, chosen: Array, priorities: Array) -> None:
    """For each neuron the `members` with the lowest priority: fills `chosen` (neuron, k) with -1 where there are few.

    `windows` and `neurons` are random uint64 numbers, one for each window and neuron; `members` (member,) int64 are
    indices into `windows`. `priorities` (neuron, k) uint64 is scratch.
    """
    k = chosen.shape[1]
    for j in range(neurons.shape[0]):
        size = 0
        for member in members:
            mixed = priority(windows[member], neurons[j])
            if size == k and mixed >= priorities[j, k - 1]:
                continue
            place = min(size, k - 1)
            while place > 0 and priorities[j, place - 1] > mixed:
                priorities[j, place] = priorities[j, place - 1]
                chosen[j, place] = chosen[j, place - 1]
                place -= 1
            priorities[j, place] = mixed
            chosen[j, place] = member
            size = min(size + 1, k)
        for place in range(size, k):
            chosen[j, place] = -1
