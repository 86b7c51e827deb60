"""A figure: one measured number with its unit, and the goal that it is held against."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    """One measured number. A ratio has its two sides measured in one run, by turns."""

    figure: str
    value: float
    unit: str
    goal: float | None
    """None where there is nothing to reach: what a peer does, or a number that explains another one."""
    higher_is_better: bool
    detail: str

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.higher_is_better else self.value <= self.goal


def as_json(figures: Iterable[Figure]) -> str:
    """A list of objects with `figure`, `value`, `unit`, `goal`, `higher_is_better` and `detail`."""
    return json.dumps([asdict(figure) for figure in figures], indent=2)


def as_text(figure: Figure) -> str:
    """A line with name, value, unit and goal, and one with the detail."""
    goal = ""
    if figure.goal is not None:
        word = "at least" if figure.higher_is_better else "at most"
        goal = f"  (goal: {word} {figure.goal:,g}, {'reached' if figure.reached else 'missed'})"
    return f"{figure.figure}  {_short(figure.value)} {figure.unit}{goal}\n    {figure.detail}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
