"""Scoring kernels: the inner loops of scores, compiled to machine code (numba).

Each does what the lines of numpy in its docstring do, to the bit, in a fixed order of every addition and without
fast-math, so that one neuron scores alone as it does among others, and stored scores stay what they are.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
Floats = NDArray[np.float64]

CONSTANT = 1e-12
"""A spread below this share of the squares is what rounding leaves of values that are all the same."""


def _compiled(function: Function) -> Function:
    """Compile at the first call, and keep the result on disk where there is a place for it; x / 0 is no error."""
    try:
        return numba.njit(function, nogil=True, cache=True, error_model="numpy")  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package nor the home folder can be written to
        return numba.njit(function, nogil=True, error_model="numpy")  # type: ignore[no-any-return]


@_compiled
def resampled(moments: Floats, weights: Floats) -> Floats:
    """The four scores of each resample: (explanation, resample, score) of `pipeline.scores._formulas`; NaN where undefined.

    `moments` are sums over the tokens of each sequence (explanation, sequence, 10), `weights` how often each sequence is
    drawn (resample, sequence).
    """
    n_explanations, n_sequences, n_sums = moments.shape
    found = np.empty((n_explanations, len(weights), 4))
    sums = np.empty(n_sums)
    for explanation in range(n_explanations):
        for resample in range(len(weights)):
            sums[:] = 0.0
            for sequence in range(n_sequences):
                weight = weights[resample, sequence]
                for each in range(n_sums):
                    sums[each] += weight * moments[explanation, sequence, each]
            n, dy, ds, dyy, dss, dys = sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]
            yy, error, absolute, absolute_error = sums[6], sums[7], sums[8], sums[9]
            spread_y, spread_s = dyy - dy * dy / n, dss - ds * ds / n
            variance_y = spread_y if spread_y > CONSTANT * dyy else np.nan
            variance_s = spread_s if spread_s > CONSTANT * dss else np.nan
            correlation = (dys - dy * ds / n) / np.sqrt(variance_y * variance_s)
            # A comparison with NaN is false, so that NaN stays what it is.
            if correlation > 1.0:
                correlation = 1.0
            elif correlation < -1.0:
                correlation = -1.0
            found[explanation, resample, 0] = correlation
            found[explanation, resample, 1] = 1 - error / yy
            found[explanation, resample, 2] = 1 - absolute_error / absolute
            found[explanation, resample, 3] = 1 - error / variance_y
    for explanation in range(n_explanations):
        for resample in range(len(weights)):
            for score in range(4):
                if not np.isfinite(found[explanation, resample, score]):
                    found[explanation, resample, score] = np.nan
    return found


@_compiled
def matched(y: Floats, s: Floats, lengths: NDArray[np.int64], n_sequences: NDArray[np.int64]) -> Floats:
    """What stands for `s` in units of `y` at each token; see `pipeline.percentiles.on_percentiles`."""
    found = np.full(len(s), np.nan)
    sequence = token = 0
    for explanation in range(len(n_sequences)):
        n = n_sequences[explanation]
        size = lengths[sequence : sequence + n].sum()
        if n >= 2:
            here = slice(token, token + size)
            whose = np.repeat(np.arange(n), lengths[sequence : sequence + n])
            by_s, by_y = np.argsort(s[here], kind="mergesort"), np.argsort(y[here], kind="mergesort")
            begin = token
            for place in range(n):
                end = begin + lengths[sequence + place]
                _match(
                    s[begin:end], _others(s[here], by_s, whose, place), _others(y[here], by_y, whose, place),
                    found[begin:end],
                )  # fmt: skip
                begin = end
        sequence += n
        token += size
    return found


@_compiled
def _others(values: Floats, order: NDArray[np.int64], whose: NDArray[np.int64], place: int) -> Floats:
    """The values of all sequences but one, in order."""
    found = np.empty(len(values))
    count = 0
    for at in order:
        if whose[at] != place:
            found[count] = values[at]
            count += 1
    return found[:count]


@_compiled
def _match(asked: Floats, s: Floats, y: Floats, found: Floats) -> None:
    """`np.interp(asked, distinct values of s, means of y at the places of each)`, into `found`; `s` and `y` are in order."""
    values, means = np.empty(len(s)), np.empty(len(s))
    count = start = 0
    for at in range(1, len(s) + 1):
        if at == len(s) or s[at] != s[start]:
            values[count] = s[start]
            # As `np.add.reduceat` adds.
            means[count] = (y[start] + _sum(y[start + 1 : at])) / (at - start)
            count += 1
            start = at
    values, means = values[:count], means[:count]
    for at in range(len(asked)):
        x = asked[at]
        if count == 0:
            continue
        if x <= values[0]:
            found[at] = means[0]
        elif x >= values[count - 1]:
            found[at] = means[count - 1]
        else:
            after = np.searchsorted(values, x, side="right")
            before = after - 1
            if values[before] == x:
                found[at] = means[before]
            else:
                slope = (means[after] - means[before]) / (values[after] - values[before])
                found[at] = slope * (x - values[before]) + means[before]


@_compiled
def _sum(values: Floats) -> float:
    """The sum as numpy adds in pairs, for lists of up to 128 in eight sums side by side."""
    n = len(values)
    if n < 8:
        total = -0.0
        for value in values:
            total += value
        return float(total)
    if n <= 128:
        one, two, three, four = values[0], values[1], values[2], values[3]
        five, six, seven, eight = values[4], values[5], values[6], values[7]
        end = n - n % 8
        for at in range(8, end, 8):
            one += values[at]
            two += values[at + 1]
            three += values[at + 2]
            four += values[at + 3]
            five += values[at + 4]
            six += values[at + 5]
            seven += values[at + 6]
            eight += values[at + 7]
        total = ((one + two) + (three + four)) + ((five + six) + (seven + eight))
        for at in range(end, n):
            total += values[at]
        return float(total)
    half = n // 2
    half -= half % 8
    return float(_sum(values[:half]) + _sum(values[half:]))


@_compiled
def sums(y: Floats, s: Floats, lengths: NDArray[np.int64], n_sequences: NDArray[np.int64]) -> Floats:
    """(explanation, sequence, 10): the sums of `pipeline.scores._moments`, padded with zeros."""
    longest = lengths.max() if len(lengths) else 0
    out = np.zeros((len(n_sequences), n_sequences.max() if len(n_sequences) else 0, 10))
    columns = np.empty((9, longest))
    sequence = token = 0
    for explanation in range(len(n_sequences)):
        n = n_sequences[explanation]
        end = token + lengths[sequence : sequence + n].sum()
        centre_y = centre_s = 0.0
        for at in range(token, end):
            centre_y += y[at]
            centre_s += s[at]
        centre_y /= max(end - token, 1)
        centre_s /= max(end - token, 1)
        for place in range(n):
            length = lengths[sequence + place]
            for at in range(length):
                dy, ds = y[token + at] - centre_y, s[token + at] - centre_s
                error = y[token + at] - s[token + at]
                columns[0, at], columns[1, at] = dy, ds
                columns[2, at], columns[3, at], columns[4, at] = dy * dy, ds * ds, dy * ds
                columns[5, at], columns[6, at] = y[token + at] * y[token + at], error * error
                columns[7, at], columns[8, at] = abs(y[token + at]), abs(error)
            out[explanation, place, 0] = length
            for column in range(9):
                # As `np.add.reduceat` adds.
                out[explanation, place, column + 1] = columns[column, 0] + _sum(columns[column, 1:length])
            token += length
        sequence += n
    return out


@_compiled
def ranks(values: Floats, lengths: NDArray[np.int64]) -> Floats:
    """The rank of each value within its stretch of so many, from 0; equal ones share their mean rank."""
    found = np.empty(len(values))
    begin = 0
    for length in lengths:
        here = values[begin : begin + length]
        order = np.argsort(here)
        first = 0
        for at in range(1, length + 1):
            if at == length or here[order[at]] != here[order[first]]:
                for same in range(first, at):
                    found[begin + order[same]] = (first + at - 1) / 2
                first = at
        begin += length
    return found
