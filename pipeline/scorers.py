"""Scorers: what a user may choose to score by, besides the formulas of `pipeline.scores`, which cost nothing.

    detection, fuzzing, fuzzing_active   a language model judges texts           table `judgements`
    ablation                             the simulation replaces the neuron      table `ablations`

Each has scores of its own under its own name.
"""

from collections.abc import Sequence

from pipeline import judgements
from pipeline.errors import SettingsError

ABLATION = "ablation"
SCORERS = (*judgements.SCORERS, ABLATION)


def parse(text: str) -> tuple[str, ...]:
    """The scorers that a user names, separated by commas; none for an empty text.

    Raises:
        SettingsError: a name is unknown, or there twice.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in SCORERS:
            raise SettingsError(f"--scorers (={text!r}): there is no scorer {name!r}; those are {', '.join(SCORERS)}")
    if len(set(names)) < len(names):
        raise SettingsError(f"--scorers (={text!r}) names one of them twice")
    return names


def judging(scorers: Sequence[str]) -> tuple[str, ...]:
    """Those of them that ask a language model about texts."""
    return tuple(name for name in scorers if name in judgements.SCORERS)


def tables(scorers: Sequence[str]) -> tuple[str, ...]:
    """The tables that these scores are made from beside `simulations`, in the order of the hops."""
    return (
        *(("judgements",) if judging(scorers) else ()),
        *(("ablations",) if ABLATION in scorers else ()),
    )
