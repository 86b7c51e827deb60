"""Scorers: what a user may choose to score by, besides the formulas of `pipeline.scores`, which cost nothing.

    detection, fuzzing, fuzzing_active   a language model judges texts                        table `judgements`
    intruder                             a language model looks for the text that is not of the neuron   the same
    surprisal, or surprisal:MODEL        a base language model foretells texts, with the explanation and without   the same
    embedding:MODEL                      a model turns explanation and texts into vectors     table `judgements`
    ablation                             the simulation replaces the neuron                   table `ablations`

Each has scores of its own under its own name.
"""

from collections.abc import Sequence

from pipeline import intruder, judged_scores, judgements, measured_scores
from pipeline.errors import SettingsError

ABLATION = "ablation"
EMBEDDING = "embedding"
INTRUDER = "intruder"
SURPRISAL = "surprisal"
SCORERS = (*judgements.SCORERS, INTRUDER, SURPRISAL, EMBEDDING, ABLATION)
MAY_NAME = (EMBEDDING, SURPRISAL)
"""Those that can ask another model than the simulator's."""
WITH_MODEL = {EMBEDDING: "embedding:text-embedding-3-small, or embedding:local:FOLDER for an encoder in this process"}
"""Those that cannot ask the simulator's model, and how another is named."""

CHANCE = {
    **{name: 0.5 for name in judged_scores.JUDGED if not name.endswith("_f1")},
    "intruder": intruder.CHANCE,
    "surprisal": 0.0,
    "surprisal_auc": 0.5,
    "embedding_auc": 0.5,
}
"""What scores come to by chance alone, of those where that is known."""

ASKED = {**judged_scores.JUDGED, **{name: scorer for scorer, names in measured_scores.NAMES.items() for name in names}}
"""The names of scores that are made from judgements, each with the scorer of these."""


def parse(text: str) -> tuple[str, ...]:
    """The scorers that a user names, separated by commas; none for an empty text.

    Raises:
        SettingsError: a name is unknown, or there twice, or a model is missing or out of place.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        kind, model = named(name)
        if kind not in SCORERS:
            raise SettingsError(f"--scorers (={text!r}): there is no scorer {kind!r}; those are {', '.join(SCORERS)}")
        if kind in WITH_MODEL and not model:
            raise SettingsError(f"--scorers (={text!r}): {kind} needs a model's name, such as {WITH_MODEL[kind]}")
        if kind not in MAY_NAME and ":" in name:
            raise SettingsError(f"--scorers (={text!r}): {kind} takes no model of its own; write it alone")
    if len(set(names)) < len(names):
        raise SettingsError(f"--scorers (={text!r}) names one of them twice")
    return names


def named(name: str) -> tuple[str, str]:
    """The scorer of a name as users write it, and the model that it asks, if it has one of its own."""
    kind, _, model = name.partition(":")
    return kind, model.strip()


def asking(scorers: Sequence[str]) -> tuple[str, ...]:
    """Those of them that ask a model about texts."""
    return tuple(name for name in scorers if named(name)[0] != ABLATION)


def judging(scorers: Sequence[str]) -> tuple[str, ...]:
    """Those of them that ask the simulator's model to judge texts."""
    return tuple(name for name in scorers if name in judgements.SCORERS)


def measuring(scorers: Sequence[str], simulator: str | None) -> tuple[tuple[str, str], ...]:
    """Those of them that measure texts: each with the model that it asks, its own or the simulator's."""
    found = (named(name) for name in scorers)
    return tuple((kind, model or simulator or "") for kind, model in found if kind in measured_scores.NAMES)


def on_simulator(scorers: Sequence[str]) -> bool:
    """Whether any of them asks the simulator's model."""
    return any(not named(name)[1] for name in asking(scorers))


def tables(scorers: Sequence[str]) -> tuple[str, ...]:
    """The tables that these scores are made from beside `simulations`, in the order of the hops."""
    return (
        *(("judgements",) if asking(scorers) else ()),
        *(("ablations",) if ABLATION in scorers else ()),
    )
