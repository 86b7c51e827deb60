"""Simulated: a simulation beside the neuron, in the neuron's units, in steps of a scale of ten, and where it is furthest off."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.scale import TOP, scale

WORST = 20
"""Tokens named where a simulation is furthest from the neuron."""
AROUND = 5
"""Tokens shown on each side of one of them."""


def line(expected: Any, true: Any) -> tuple[float, float] | None:
    """Intercept and slope of the least-squares line of true on expected activations; None where there is none."""
    if len(expected) < 2 or float(np.ptp(expected)) == 0.0:
        return None
    slope, level = np.polyfit(expected, true, 1)
    return float(level), float(slope)


def in_units(expected: Any, unit: str, most: float, fitted: tuple[float, float] | None) -> Any:
    """A simulation in units of the neuron: `scaled` is in tenths of `most`, `weight` is brought there by its line."""
    values: Any = np.asarray(expected, dtype=np.float64)
    if unit == "scaled":
        return values * most / TOP
    if unit == "weight":
        return np.zeros_like(values) if fitted is None else fitted[0] + fitted[1] * values
    return values


def steps(values: Any, most: float) -> list[int | None]:
    """A simulation in steps of a tenth of the scale; None for a token without one."""
    return _known(scale(np.nan_to_num(values), most), values)


def differences(values: Any, true: Any, most: float) -> list[int | None]:
    """Simulated minus real, in steps of a tenth of the scale, toward zero, at most 10 either way; None as in `steps`."""
    if most <= 0:
        return _known(np.zeros(len(true)), values)
    found = np.nan_to_num(np.trunc(TOP * (values - np.asarray(true, dtype=np.float64)) / most))
    return _known(np.clip(found, -TOP, TOP), values)


def _known(found: Any, values: Any) -> list[int | None]:
    pairs = zip(found.astype(int).tolist(), np.isnan(values).tolist(), strict=True)
    return [None if is_missing else step for step, is_missing in pairs]


def beside(
    expected: Sequence[Sequence[float | None] | None], true: Sequence[Sequence[float]], unit: str, most: float
) -> tuple[list[dict[str, Any]], tuple[float, float] | None, Any, Any]:
    """Of each text what a page shows of its simulation, the least-squares line, and all true and simulated values on end.

    `expected` is None for a text that was not simulated, and holds None where a token was not answered for.
    """
    known = [place for place, one in enumerate(expected) if one is not None]
    flat, real = (
        np.asarray([value for place in known for value in lists[place] or ()], dtype=np.float64)
        for lists in (expected, true)
    )
    answered = np.isfinite(flat)
    fitted = line(flat[answered], real[answered])
    values = in_units(flat, unit, most, fitted)
    # Of a token that the simulator did not answer for there is neither a value nor a step.
    shown = [None if np.isnan(value) else value for value in values.tolist()]
    all_steps, all_differences = steps(values, most), differences(values, real, most)
    found, at = [], 0
    for one, activations in zip(expected, true, strict=True):
        part = None if one is None else slice(at, at := at + len(one))
        found.append(
            {
                "true": activations,
                "expected": one,
                "in_units": None if part is None else shown[part],
                "true_steps": scale(activations, most).tolist(),
                "steps": None if part is None else all_steps[part],
                "own_steps": None if part is None else steps(values[part], _greatest(values[part])),
                "difference_steps": None if part is None else all_differences[part],
            }
        )
    return found, fitted, real, values


def _greatest(values: Any) -> float:
    known = values[~np.isnan(values)]
    return max(float(known.max()), 0.0) if len(known) else 0.0


def worst(records: Sequence[Mapping[str, Any]], true: Any, values: Any) -> list[dict[str, Any]]:
    """The tokens where the simulation is furthest from the neuron, the furthest first, of equals the first.

    `true` and `values` are those of the simulated records, one after the other.
    """
    away = np.nan_to_num(np.abs(values - true))
    furthest = np.argsort(-away, kind="stable")[:WORST].tolist()
    simulated = [place for place, record in enumerate(records) if record["in_units"] is not None]
    ends = np.cumsum([len(records[place]["true"]) for place in simulated], dtype=np.int64)
    found = []
    for token in [token for token in furthest if away[token] > 0]:
        which = int(np.searchsorted(ends, token, side="right"))
        place, at = simulated[which], token - int(ends[which - 1] if which else 0)
        record = records[place]
        real, value = record["true"][at], record["in_units"][at]
        found.append(
            {
                "record": place,
                "token": at,
                "before": record["tokens"][max(0, at - AROUND) : at],
                "text": record["tokens"][at],
                "after": record["tokens"][at + 1 : at + 1 + AROUND],
                "true": real,
                "simulated": value,
                "difference": value - real,
            }
        )
    return found
