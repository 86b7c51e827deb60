"""The words of the pages in the languages that they speak. English is the key; what a language lacks stays English.

What the data says (explanations, texts, settings, names of methods and scorers) is never translated.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

LANGUAGES = {"en": "English", "fr": "Français"}

FRENCH: Mapping[str, str] = {}


def preferred(accepted: str) -> str:
    """The first of `LANGUAGES` in an Accept-Language header, by its weights; English if there is none."""
    found: list[tuple[float, str]] = []
    for part in accepted[:500].split(","):
        name, _, rest = part.strip().partition(";")
        weight = rest.strip().removeprefix("q=")
        try:
            found.append((-float(weight or 1), name.partition("-")[0].lower()))
        except ValueError:
            continue
    return next((name for _, name in sorted(found, key=lambda one: one[0]) if name in LANGUAGES), "en")


def say(language: str, words: str, **values: Any) -> str:
    """These words in a language, with values filled in."""
    spoken = FRENCH.get(words, words) if language == "fr" else words
    return spoken.format(**values) if values else spoken


def speaker(language: str) -> Any:
    """`say` in one language."""
    return partial(say, language)
