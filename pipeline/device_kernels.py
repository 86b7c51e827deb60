"""Device kernels: the inner loops of capture on a GPU (Triton), over activations that never leave it.

They do what `pipeline.kernels` does, addition by addition in the same order, so that activations give the same capture
to the bit on either side. A program takes a block of neurons; neurons lie next to each other in memory.

    draw            windows for the random records of each neuron
    measure         extremes of each window; extremes and exact sums of powers of all, in shares
    add_shares      the exact sums of all shares
    offer           windows to the slots of the strongest ones
    keep            activations of the windows that are in the slots since this piece
    add_tokens      activations to the sums of their tokens
    count_in_bins   activations into the histogram

What differs from piece to piece is not specialised, so that nothing is compiled anew in the middle of a pass. Atomic
additions are relaxed: sums of whole numbers, which nothing reads before the kernel has ended.

Triton comes with torch's CUDA builds. `TRITON_INTERPRET=1` runs the same code on a CPU, slowly, as the tests do.
"""

import triton
import triton.language as tl

from pipeline.capture import SPACING, VECTOR_BITS
from pipeline.kernels import HISTOGRAM_LOWEST, HISTOGRAM_STEPS, TOKENS_PER_SUM

EMPTY_KEY = -(2**63)
"""In place of a key: a slot that no window has filled yet."""

WINDOW_MASK = 2**31 - 1
"""The lower bits of a key hold this less the window, so that of equal peaks the earlier window has the larger key."""

_SPACING = tl.constexpr(SPACING)
_VECTOR_BITS = tl.constexpr(VECTOR_BITS)
_TOKENS_PER_SUM = tl.constexpr(TOKENS_PER_SUM)
_EMPTY_KEY = tl.constexpr(EMPTY_KEY)
_WINDOW_MASK = tl.constexpr(WINDOW_MASK)
_HISTOGRAM_BITS = tl.constexpr((127 + HISTOGRAM_LOWEST) << 23)
_HISTOGRAM_STEPS = tl.constexpr(HISTOGRAM_STEPS)
_MOST = tl.constexpr(2**63 - 1)


@triton.jit
def _exponent(value):
    """What frexp calls the exponent, of float64 that are not subnormal; -1022 for zero."""
    return ((value.to(tl.int64, bitcast=True) >> 52) & 0x7FF).to(tl.int32) - 1022


@triton.jit
def _rounder(exponent):
    """1.5 * 2.0**exponent: adding it to float64 and taking it away rounds to whole multiples of 2**(exponent - 52)."""
    return ((exponent.to(tl.int64) + 1023) << 52 | 2251799813685248).to(tl.float64, bitcast=True)


@triton.jit
def _small_power_of_two(exponent):
    """2.0**exponent as float32."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _rounded(value):
    """float64 below 2**51 to whole numbers, halves to even."""
    return (value + 6755399441055744.0) - 6755399441055744.0


@triton.jit
def _raised(parts0, parts1, parts2, by):
    """The parts of exact sums at an exponent that is larger by `by` steps; what falls off the lower end is dropped."""
    two = tl.where(by == 0, parts2, tl.where(by == 1, parts1, tl.where(by == 2, parts0, 0.0)))
    one = tl.where(by == 0, parts1, tl.where(by == 1, parts0, 0.0))
    return tl.where(by == 0, parts0, 0.0), one, two


@triton.jit
def _mixed(value):
    """`pipeline.kernels.priority` of a window's number xor a neuron's."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB
    return value ^ (value >> 31)


@triton.jit(do_not_specialize=["n_neurons"])
def draw(
    windows,
    neurons,
    listed,
    starts,
    n_neurons,
    n_slots,
    priorities,
    chosen,
    block: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
):
    """Windows with the lowest priorities: a program for a block of neurons and a group of windows.

    `windows` and `neurons` are random numbers of each, int64 in place of uint64. The windows of group g are `listed`
    from `starts[g]` to `starts[g + 1]`. Fills `priorities` and `chosen` (neuron, group * `n_slots` + slot) int64, the
    first so that whole numbers with a sign sort as those without, and not filled where a group has too few windows.
    """
    neuron = tl.program_id(0) * block + tl.arange(0, block)
    group = tl.program_id(1)
    slot = tl.arange(0, width)
    number = tl.load(neurons + neuron, mask=neuron < n_neurons, other=0).to(tl.uint64, bitcast=True)
    # What is no slot never is the weakest.
    held = tl.zeros((block, width), tl.int64) + tl.where(slot < n_slots, _MOST, _EMPTY_KEY)[None, :]
    holds = tl.zeros((block, width), tl.int64) - 1
    weakest = tl.max(held, axis=1)
    last = tl.load(starts + group + 1)
    for first in range(tl.load(starts + group), last, tile):
        at = first + tl.arange(0, tile)
        window = tl.load(listed + at, mask=at < last, other=0)
        random = tl.load(windows + window, mask=at < last, other=0).to(tl.uint64, bitcast=True)
        key = _mixed(random[:, None] ^ number[None, :]).to(tl.int64, bitcast=True) ^ _EMPTY_KEY
        key = tl.where((at < last)[:, None], key, _MOST)
        best = tl.min(key, axis=0)
        while tl.max((best < weakest).to(tl.int32), axis=0) > 0:
            goes = tl.argmax(held, axis=1)
            here = (slot[None, :] == goes[:, None]) & (best < weakest)[:, None]
            # No two windows have the same number, so none the same priority.
            mine = key == best[None, :]
            held = tl.where(here, best[:, None], held)
            holds = tl.where(here, tl.sum(tl.where(mine, window[:, None], 0), axis=0)[:, None], holds)
            key = tl.where(mine, _MOST, key)
            weakest = tl.max(held, axis=1)
            best = tl.min(key, axis=0)
    at = (neuron.to(tl.int64) * tl.num_programs(1) + group)[:, None] * n_slots + slot[None, :]
    inside = (neuron < n_neurons)[:, None] & (slot < n_slots)[None, :]
    tl.store(priorities + at, held, mask=inside)
    tl.store(chosen + at, holds, mask=inside)


@triton.jit
def _in_a_row(first, token_stride, inside, count: tl.constexpr):
    """Activations (neuron,) of `count` tokens, as many arrays; all are asked for before one is looked at."""
    xs: tl.tuple = ()
    for t in tl.static_range(count):
        xs = xs + (tl.load(first + t * token_stride, mask=inside, other=0.0),)
    return xs


@triton.jit
def _is_above(value, least):
    return tl.where(value >= least, 1.0, 0.0)


@triton.jit
def _with_four(s1, s2, s3, s4, x0, x1, x2, x3, center, unit):
    """Sums of the powers 1 to 4 of distances to a centre, with four more."""
    x0, x1 = (x0 - center) * unit, (x1 - center) * unit
    x2, x3 = (x2 - center) * unit, (x3 - center) * unit
    q0, q1, q2, q3 = x0 * x0, x1 * x1, x2 * x2, x3 * x3
    s1 += (x0 + x1) + (x2 + x3)
    s2 += (q0 + q1) + (q2 + q3)
    s3 += (x0 * q0 + x1 * q1) + (x2 * q2 + x3 * q3)
    s4 += (q0 * q0 + q1 * q1) + (q2 * q2 + q3 * q3)
    return s1, s2, s3, s4


@triton.jit
def _with_one(p0, p1, p2, exponent, value):
    """Exact sums with one more term that their exponent holds; see `pipeline.kernels.add_exactly`."""
    base = _rounder(exponent + (52 - _SPACING))
    part = (value + base) - base
    p0 += part
    value -= part
    finer = _rounder(exponent + (52 - 2 * _SPACING))
    part = (value + finer) - finer
    p1 += part
    value -= part
    finest = _rounder(exponent + (52 - 3 * _SPACING))
    return p0, p1, p2 + ((value + finest) - finest)


@triton.jit
def _with_room(p0, p1, p2, exponent, size):
    """Exact sums at an exponent that holds a term of `size`, which is its own exponent."""
    # Shifted up, because whole numbers divide towards zero here.
    needed = (size + 1 + 64 * _SPACING + _SPACING - 1) // _SPACING * _SPACING - 64 * _SPACING
    needed = tl.where(size >= exponent, needed, exponent)
    p0, p1, p2 = _raised(p0, p1, p2, (needed - exponent) // _SPACING)
    return p0, p1, p2, needed


@triton.jit
def _parts_at(parts, exponents, sum_, n_neurons, column, inside):
    """One of the five exact sums of a share: its three parts and exponent."""
    row = parts + 3 * sum_ * n_neurons + column
    p0 = tl.load(row, mask=inside, other=0.0)
    p1 = tl.load(row + n_neurons, mask=inside, other=0.0)
    p2 = tl.load(row + 2 * n_neurons, mask=inside, other=0.0)
    return p0, p1, p2, tl.load(exponents + sum_ * n_neurons + column, mask=inside, other=0)


@triton.jit
def _put_parts(parts, exponents, sum_, n_neurons, column, inside, p0, p1, p2, exponent):
    row = parts + 3 * sum_ * n_neurons + column
    tl.store(row, p0, mask=inside)
    tl.store(row + n_neurons, p1, mask=inside)
    tl.store(row + 2 * n_neurons, p2, mask=inside)
    tl.store(exponents + sum_ * n_neurons + column, exponent, mask=inside)


@triton.jit(do_not_specialize=["n_windows", "per_share", "most_steps", "n_early"])
def measure(
    x,
    window_stride,
    lengths,
    is_open,
    numbers,
    n_windows,
    per_share,
    n_neurons,
    per_unit,
    most_steps,
    low,
    high,
    parts,
    exponents,
    extremes,
    positive,
    early,
    n_early,
    faults,
    alarm,
    token_stride: tl.constexpr,
    signed: tl.constexpr,
    held: tl.constexpr,
    block: tl.constexpr,
):
    """What is known of each window, and the sums and extremes of all: a program for a block of neurons and some windows.

    `x` is (window, token, neuron) with neurons side by side; `lengths`, `is_open` and `numbers` (window,) int32. If all
    windows have `held` tokens, at most 64 and a multiple of 4, they are held in registers; if it is 0, they are read twice,
    16 tokens at once. Fills `low` and `high` (window, neuron) float32, and of the windows with a number below `n_early` the
    strongest of each polarity in `early` (polarity, number, neuron) float32.

    Each program takes `per_share` windows into a share of its own of the exact sums, `parts` (share, 5, 3, neuron) float64
    and `exponents` (share, 5, neuron) int32, of `extremes` (share, 2, neuron) float32 and of `positive` (share, neuron)
    int64. The sums are of the powers 1 to 4, and of the first power over open windows. Sets `faults` (2, neuron) int8
    where a sum is not finite, and where an activation of an open window, times `per_unit` (neuron,) float32, is beyond
    `most_steps`; then `alarm` (1,) int32 is set too.
    """
    column = tl.program_id(0) * block + tl.arange(0, block)
    inside = column < n_neurons
    share = tl.program_id(1)
    nothing, none = tl.zeros((block,), tl.float64), tl.zeros((block,), tl.float32)
    not_finite, strongest_open = column < 0, none
    parts += share.to(tl.int64) * 15 * n_neurons
    exponents += share.to(tl.int64) * 5 * n_neurons
    extremes += share.to(tl.int64) * 2 * n_neurons
    positive += share.to(tl.int64) * n_neurons
    a0, a1, a2, a = _parts_at(parts, exponents, 0, n_neurons, column, inside)
    b0, b1, b2, b = _parts_at(parts, exponents, 1, n_neurons, column, inside)
    c0, c1, c2, c = _parts_at(parts, exponents, 2, n_neurons, column, inside)
    d0, d1, d2, d = _parts_at(parts, exponents, 3, n_neurons, column, inside)
    o0, o1, o2, o = _parts_at(parts, exponents, 4, n_neurons, column, inside)
    # The least float32 above zero: compared with zero, a narrow format would be compared in pairs, which is slower.
    least = (column * 0 + 1).to(tl.float32, bitcast=True)
    lowest = tl.load(extremes + column, mask=inside, other=0.0)
    highest = tl.load(extremes + n_neurons + column, mask=inside, other=0.0)
    count = tl.zeros((block,), tl.int32)
    first = share * per_share
    for w in range(first, tl.minimum(first + per_share, n_windows)):
        length = tl.load(lengths + w)
        wide = tl.zeros((block,), tl.int64) + w
        row = x + wide * window_stride + column
        # The extremes pass over NaN, which shows in the sums.
        if held > 0:
            xs = _in_a_row(row, token_stride, inside, held)
            lo = xs[0].to(tl.float32)
            hi = lo
            for i in tl.static_range(1, held):
                lo = tl.minimum(lo, xs[i].to(tl.float32))
                hi = tl.maximum(hi, xs[i].to(tl.float32))
        else:
            lo = tl.load(row, mask=inside, other=0.0).to(tl.float32)
            hi = lo
            sixteens = length // 16 * 16
            for begin in range(0, sixteens, 16):
                ys = _in_a_row(row + begin * token_stride, token_stride, inside, 16)
                for i in tl.static_range(16):
                    lo = tl.minimum(lo, ys[i].to(tl.float32))
                    hi = tl.maximum(hi, ys[i].to(tl.float32))
            for t in range(sixteens, length):
                x0 = tl.load(row + t * token_stride, mask=inside, other=0.0).to(tl.float32)
                lo = tl.minimum(lo, x0)
                hi = tl.maximum(hi, x0)
        at = wide * n_neurons + column
        tl.store(low + at, lo, mask=inside)
        tl.store(high + at, hi, mask=inside)
        lowest = tl.minimum(lowest, lo)
        highest = tl.maximum(highest, hi)
        number = tl.load(numbers + w)
        if number < n_early:
            # A zero of either sign becomes the same.
            tl.store(early + number.to(tl.int64) * n_neurons + column, hi + 0.0, mask=inside)
            if signed:
                tl.store(early + (number + n_early).to(tl.int64) * n_neurons + column, 0.0 - lo, mask=inside)
        center = 0.5 * lo + 0.5 * hi
        up, down = hi - center, center - lo
        reach = tl.where(up > down, up, down)
        unusual = ((reach > 1e6) | ((reach > 0) & (reach < 1e-6))) & (reach - reach == 0)
        size = tl.maximum(tl.minimum(_exponent(reach.to(tl.float64)), 120), -120)
        unit = tl.where(unusual, _small_power_of_two(-size), 1.0)
        whole1, whole2, whole3, whole4 = nothing, nothing, nothing, nothing
        if held > 0:
            s1, s2, s3, s4, above = none, none, none, none, none
            for i in tl.static_range(0, held, 4):
                x0, x1 = xs[i].to(tl.float32), xs[i + 1].to(tl.float32)
                x2, x3 = xs[i + 2].to(tl.float32), xs[i + 3].to(tl.float32)
                above += _is_above(x0, least) + _is_above(x1, least)
                above += _is_above(x2, least) + _is_above(x3, least)
                s1, s2, s3, s4 = _with_four(s1, s2, s3, s4, x0, x1, x2, x3, center, unit)
            count += above.to(tl.int32)
            whole1, whole2 = s1.to(tl.float64), s2.to(tl.float64)
            whole3, whole4 = s3.to(tl.float64), s4.to(tl.float64)
        else:
            for start in range(0, length, _TOKENS_PER_SUM):
                stop = tl.minimum(start + _TOKENS_PER_SUM, length)
                sixteens, fours = start + (stop - start) // 16 * 16, start + (stop - start) // 4 * 4
                s1, s2, s3, s4, above = none, none, none, none, none
                for begin in range(start, sixteens, 16):
                    ys = _in_a_row(row + begin * token_stride, token_stride, inside, 16)
                    for i in tl.static_range(0, 16, 4):
                        x0, x1 = ys[i].to(tl.float32), ys[i + 1].to(tl.float32)
                        x2, x3 = ys[i + 2].to(tl.float32), ys[i + 3].to(tl.float32)
                        above += _is_above(x0, least) + _is_above(x1, least)
                        above += _is_above(x2, least) + _is_above(x3, least)
                        s1, s2, s3, s4 = _with_four(s1, s2, s3, s4, x0, x1, x2, x3, center, unit)
                for t in range(sixteens, fours, 4):
                    x0 = tl.load(row + t * token_stride, mask=inside, other=0.0).to(tl.float32)
                    x1 = tl.load(row + (t + 1) * token_stride, mask=inside, other=0.0).to(tl.float32)
                    x2 = tl.load(row + (t + 2) * token_stride, mask=inside, other=0.0).to(tl.float32)
                    x3 = tl.load(row + (t + 3) * token_stride, mask=inside, other=0.0).to(tl.float32)
                    above += _is_above(x0, least) + _is_above(x1, least)
                    above += _is_above(x2, least) + _is_above(x3, least)
                    s1, s2, s3, s4 = _with_four(s1, s2, s3, s4, x0, x1, x2, x3, center, unit)
                for t in range(fours, stop):
                    x0 = tl.load(row + t * token_stride, mask=inside, other=0.0).to(tl.float32)
                    above += _is_above(x0, least)
                    x0 = (x0 - center) * unit
                    q0 = x0 * x0
                    s1 += x0
                    s2 += q0
                    s3 += x0 * q0
                    s4 += q0 * q0
                count += above.to(tl.int32)
                whole1 += s1.to(tl.float64)
                whole2 += s2.to(tl.float64)
                whole3 += s3.to(tl.float64)
                whole4 += s4.to(tl.float64)
        # From the middle of the window's range to zero.
        tokens = length.to(tl.float64)
        middle = center.to(tl.float64)
        back = 1.0 / unit.to(tl.float64)
        square = back * back
        m1, m2, m3, m4 = whole1 * back, whole2 * square, whole3 * square * back, whole4 * square * square
        middle2 = middle * middle
        p1 = m1 + tokens * middle
        p2 = m2 + 2 * middle * m1 + tokens * middle2
        p3 = m3 + 3 * middle * m2 + 3 * middle2 * m1 + tokens * middle2 * middle
        p4 = m4 + 4 * middle * m3 + 6 * middle2 * m2 + 4 * middle2 * middle * m1 + tokens * middle2 * middle2
        not_finite = not_finite | (p1 - p1 != 0)
        opened = tl.load(is_open + w)
        p5 = tl.where(opened > 0, p1, 0.0)
        e1, e2, e3, e4 = _exponent(tl.abs(p1)), _exponent(tl.abs(p2)), _exponent(tl.abs(p3)), _exponent(tl.abs(p4))
        e5 = tl.where(opened > 0, e1, -1022)
        # Which they seldom do after the first few windows.
        if tl.max(((e1 >= a) | (e2 >= b) | (e3 >= c) | (e4 >= d) | (e5 >= o)).to(tl.int32), axis=0) > 0:
            a0, a1, a2, a = _with_room(a0, a1, a2, a, e1)
            b0, b1, b2, b = _with_room(b0, b1, b2, b, e2)
            c0, c1, c2, c = _with_room(c0, c1, c2, c, e3)
            d0, d1, d2, d = _with_room(d0, d1, d2, d, e4)
            o0, o1, o2, o = _with_room(o0, o1, o2, o, e5)
        a0, a1, a2 = _with_one(a0, a1, a2, a, p1)
        b0, b1, b2 = _with_one(b0, b1, b2, b, p2)
        c0, c1, c2 = _with_one(c0, c1, c2, c, p3)
        d0, d1, d2 = _with_one(d0, d1, d2, d, p4)
        o0, o1, o2 = _with_one(o0, o1, o2, o, p5)
        strongest = tl.where(opened > 0, tl.maximum(tl.abs(lo), tl.abs(hi)), 0.0)
        strongest_open = tl.maximum(strongest_open, strongest)
    _put_parts(parts, exponents, 0, n_neurons, column, inside, a0, a1, a2, a)
    _put_parts(parts, exponents, 1, n_neurons, column, inside, b0, b1, b2, b)
    _put_parts(parts, exponents, 2, n_neurons, column, inside, c0, c1, c2, c)
    _put_parts(parts, exponents, 3, n_neurons, column, inside, d0, d1, d2, d)
    _put_parts(parts, exponents, 4, n_neurons, column, inside, o0, o1, o2, o)
    tl.store(extremes + column, lowest, mask=inside)
    tl.store(extremes + n_neurons + column, highest, mask=inside)
    before = tl.load(positive + column, mask=inside, other=0)
    tl.store(positive + column, before + count, mask=inside)
    steps = tl.load(per_unit + column, mask=inside, other=0.0).to(tl.float64)
    too_strong = strongest_open.to(tl.float64) * steps >= most_steps
    if tl.max(((not_finite | too_strong) & inside).to(tl.int32), axis=0) > 0:
        tl.store(faults + column, 1, mask=inside & not_finite)
        tl.store(faults + n_neurons + column, 1, mask=inside & too_strong)
        tl.store(alarm, 1)


@triton.jit(do_not_specialize=["n_shares"])
def add_shares(share_parts, share_exponents, n_shares, n_neurons, parts, exponents, block: tl.constexpr):
    """The exact sums of all shares: a program for a block of neurons and one of five sums.

    Fills `parts` (5, 3, neuron) float64 and `exponents` (5, neuron) int32.
    """
    column = tl.program_id(0) * block + tl.arange(0, block)
    inside = column < n_neurons
    index = tl.program_id(1)
    p0, p1, p2, exponent = _parts_at(share_parts, share_exponents, index, n_neurons, column, inside)
    for share in range(1, n_shares):
        at = (tl.zeros((block,), tl.int64) + share) * 5 * n_neurons
        q0, q1, q2, other = _parts_at(share_parts + 3 * at, share_exponents + at, index, n_neurons, column, inside)
        both = tl.maximum(exponent, other)
        p0, p1, p2 = _raised(p0, p1, p2, (both - exponent) // _SPACING)
        q0, q1, q2 = _raised(q0, q1, q2, (both - other) // _SPACING)
        p0, p1, p2, exponent = p0 + q0, p1 + q1, p2 + q2, both
    _put_parts(parts, exponents, index, n_neurons, column, inside, p0, p1, p2, exponent)


@triton.jit
def offer(
    extremes,
    windows,
    listed,
    members,
    starts,
    n_neurons,
    n_slots,
    keys,
    sign: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
):
    """Offer windows to the slots of the strongest ones: a program for a block of neurons and a group of slots.

    `extremes` (window, neuron) float32 are maxima for sign 1 and minima for sign -1. `windows` (window,) int32 are the
    windows' numbers. Those of group g are `listed` from `members[g]` to `members[g + 1]`, by their places in the piece;
    it has the slots `starts[g]` to `starts[g + 1]`, at most `width`, of each neuron in `keys` (neuron, slot) int64. A
    key is the peak in a form that sorts as whole numbers do, above WINDOW_MASK less the window.
    """
    neuron = tl.program_id(0) * block + tl.arange(0, block)
    group = tl.program_id(1)
    member, last = tl.load(members + group), tl.load(members + group + 1)
    if member < last:
        slot = tl.load(starts + group) + tl.arange(0, width)
        exists = (neuron < n_neurons)[:, None] & (slot < tl.load(starts + group + 1))[None, :]
        at = neuron[:, None].to(tl.int64) * n_slots + slot[None, :]
        # What is no slot never is the weakest.
        held = tl.load(keys + at, mask=exists, other=_MOST)
        weakest = tl.min(held, axis=1)
        for first in range(member, last, tile):
            here = first + tl.arange(0, tile)
            w = tl.load(listed + here, mask=here < last, other=0)
            window = tl.load(windows + w, mask=here < last, other=0)
            inside = (here < last)[:, None] & (neuron < n_neurons)[None, :]
            peak = tl.load(extremes + w[:, None].to(tl.int64) * n_neurons + neuron[None, :], mask=inside, other=0.0)
            peak = sign * peak
            # Zeros of both signs are equal.
            bits = tl.where(peak == 0, 0.0, peak).to(tl.int32, bitcast=True)
            bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
            key = (bits.to(tl.int64) << 32) | (window ^ _WINDOW_MASK).to(tl.int64)[:, None]
            key = tl.where(inside, key, _EMPTY_KEY)
            best = tl.max(key, axis=0)
            while tl.max((best > weakest).to(tl.int32), axis=0) > 0:
                # The strongest window left goes where the weakest was, until none left is stronger than any kept.
                goes = tl.argmin(held, axis=1)
                into = (tl.arange(0, width)[None, :] == goes[:, None]) & (best > weakest)[:, None]
                held = tl.where(into, best[:, None], held)
                key = tl.where(key == best[None, :], _EMPTY_KEY, key)
                weakest = tl.min(held, axis=1)
                best = tl.max(key, axis=0)
        tl.store(keys + at, held, mask=exists)


@triton.jit(do_not_specialize=["n_all"])
def keep(
    x,
    window_stride,
    token_stride,
    lengths,
    places,
    n_all,
    n_neurons,
    n_slots,
    longest,
    low,
    high,
    keys,
    peaks,
    steps,
    exponents,
    sign: tl.constexpr,
    block: tl.constexpr,
    tile: tl.constexpr,
):
    """Keep the activations of those windows of this piece that are in slots: a program for a block of neurons and a slot.

    `places` (all windows,) int32 says where in the piece a window is, -1 for nowhere. `keys` (neuron, slot) int64 as in
    `offer`. Fills `peaks` (neuron, slot) float32, `steps` (neuron, slot, `longest`) int16 and `exponents` (neuron,
    slot) int16.
    """
    neuron = tl.program_id(0) * block + tl.arange(0, block)
    slot = tl.program_id(1)
    at = neuron.to(tl.int64) * n_slots + slot
    window = (tl.load(keys + at, mask=neuron < n_neurons, other=_EMPTY_KEY) & _WINDOW_MASK) ^ _WINDOW_MASK
    place = tl.load(places + window, mask=window < n_all, other=-1)
    new = (neuron < n_neurons) & (place >= 0)
    if tl.max(new.to(tl.int32), axis=0) > 0:
        place = tl.maximum(place, 0)
        corner = place.to(tl.int64) * n_neurons + neuron
        lo = tl.load(low + corner, mask=new, other=0.0)
        hi = tl.load(high + corner, mask=new, other=0.0)
        strongest = tl.maximum(tl.abs(lo), tl.abs(hi))
        exponent = (_exponent(strongest.to(tl.float64)) - _VECTOR_BITS) * (strongest > 0).to(tl.int32)
        # In two factors, so that neither leaves float32. The shift divides towards the lower number.
        half = exponent >> 1
        one, two = _small_power_of_two(-half), _small_power_of_two(half - exponent)
        length = tl.load(lengths + place, mask=new, other=0)
        for first in range(0, longest, tile):
            t = first + tl.arange(0, tile)
            real = new[:, None] & (t[None, :] < length[:, None])
            source = place.to(tl.int64)[:, None] * window_stride + t[None, :].to(tl.int64) * token_stride
            value = tl.load(x + source + neuron[:, None], mask=real, other=0.0).to(tl.float32)
            value = value * one[:, None] * two[:, None]
            # Below 2**22, adding and taking away 1.5 * 2**23 rounds to whole numbers, halves to even.
            value = (value + 12582912.0) - 12582912.0
            target = at[:, None] * longest + t[None, :]
            tl.store(steps + target, value.to(tl.int16), mask=new[:, None] & (t < longest)[None, :])
        tl.store(exponents + at, exponent.to(tl.int16), mask=new)
        # Which of two zeros came first must not show.
        if sign > 0:
            tl.store(peaks + at, hi + 0.0, mask=new)
        else:
            tl.store(peaks + at, 0.0 - lo, mask=new)


@triton.jit
def _at_token(x, window_stride, token_stride, occurrences, occurrence, last, n_tokens, column, inside):
    """Activations (neuron,) at an occurrence of a token, zero behind the last."""
    # In 32 bits, which divide several times faster than 64.
    place = tl.load(occurrences + occurrence, mask=occurrence < last, other=0).to(tl.int32)
    source = (place // n_tokens).to(tl.int64) * window_stride + (place % n_tokens).to(tl.int64) * token_stride
    return tl.load(x + source + column, mask=inside & (column * 0 + occurrence < last), other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["n_tokens"], do_not_specialize_on_alignment=["occurrences"])
def add_tokens(
    x,
    window_stride,
    token_stride,
    occurrences,
    segments,
    n_tokens,
    n_neurons,
    per_unit,
    lower,
    upper,
    at_once: tl.constexpr,
    block: tl.constexpr,
):
    """Add activations in whole steps to the sums of their tokens: a program for a block of neurons and a segment.

    `occurrences` (occurrence,) are places window * `n_tokens` + token in the piece. A segment, a row of `segments`
    (segment, 4) int32, is a row of the sums with the first and behind the last of its at most 512 occurrences, of which
    `at_once` are read at once, and whether no other segment has that row. `per_unit` (neuron,) float32 is steps per unit
    of the neuron, a power of two.

    A sum is 2**32 * `upper` + `lower` (row, neuron) int32, because the upper half is almost never touched.
    """
    column = tl.program_id(0) * block + tl.arange(0, block)
    inside = column < n_neurons
    segment = segments + 4 * tl.program_id(1)
    row, start, last = tl.load(segment), tl.load(segment + 1), tl.load(segment + 2)
    steps = tl.load(per_unit + column, mask=inside, other=0.0)
    # Below 2**22 steps, as nearly always, float32 and int32 hold all there is, and take less time.
    largest = tl.zeros((block,), tl.float32)
    short = tl.zeros((block,), tl.int32)
    for first in range(start, last, at_once):
        for i in tl.static_range(at_once):
            value = _at_token(x, window_stride, token_stride, occurrences, first + i, last, n_tokens, column, inside)
            value *= steps
            largest = tl.maximum(largest, tl.abs(value))
            # Adding 1.5 * 2**23 rounds to whole numbers, halves to even, and its last bits are that number.
            short += (value + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
    above = tl.zeros((block,), tl.int32)
    if tl.max(largest, axis=0) >= 4194304.0:
        total = tl.zeros((block,), tl.int64)
        for one in range(start, last):
            value = _at_token(x, window_stride, token_stride, occurrences, one, last, n_tokens, column, inside)
            total += _rounded(value.to(tl.float64) * steps.to(tl.float64)).to(tl.int64)
        short = total.to(tl.int32)
        above = ((total - short.to(tl.int64)) >> 32).to(tl.int32)
    into = row.to(tl.int64) * n_neurons + column
    if tl.load(segment + 3) > 0:
        before = tl.load(lower + into, mask=inside, other=0)
        tl.store(lower + into, before + short, mask=inside)
    else:
        before = tl.atomic_add(lower + into, short, mask=inside, sem="relaxed")
    after = before + short
    # Over the edge of 32 bits: the signs of both terms differ from that of their sum.
    over = ((before ^ after) & (short ^ after)) < 0
    above += tl.where(over, tl.where(short > 0, 1, -1), 0)
    tl.atomic_add(upper + into, above, mask=inside & (above != 0), sem="relaxed")


@triton.jit
def count_in_bins(
    x,
    window_stride,
    token_stride,
    lengths,
    sampled,
    n_neurons,
    n_bins,
    histogram,
    block: tl.constexpr,
    at_once: tl.constexpr,
):
    """Count activations in bins: a program for a block of neurons, a window of the sample, and `at_once` tokens.

    A row of `sampled` (sampled window, 2) int32 is a window's place in the piece and its class; `histogram` is
    (class, bin, neuron) int32, for neighbours often are in the same bin.
    """
    column = tl.program_id(0) * block + tl.arange(0, block)
    inside = column < n_neurons
    place = tl.load(sampled + 2 * tl.program_id(1))
    first = tl.program_id(2) * at_once
    length = tl.load(lengths + place)
    row = x + place.to(tl.int64) * window_stride + first * token_stride + column
    corner = histogram + tl.load(sampled + 2 * tl.program_id(1) + 1).to(tl.int64) * n_bins * n_neurons + column
    for t in tl.static_range(at_once):
        real = inside & (column * 0 + first + t < length)
        bits = tl.load(row + t * token_stride, mask=real, other=0.0).to(tl.float32).to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        step = tl.minimum((size - _HISTOGRAM_BITS) >> 22, _HISTOGRAM_STEPS) + 1
        step = tl.where(size >= _HISTOGRAM_BITS, step, 0)
        into = _HISTOGRAM_STEPS + 1 + tl.where(bits >= 0, step, -step)
        tl.atomic_add(corner + into * n_neurons, 1, mask=real, sem="relaxed")
