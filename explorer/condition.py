"""A condition: one thing that was looked at before or after a run, and how it was found."""

from dataclasses import dataclass

WELL, MENDED, ILL, LEFT = "well", "mended", "ill", "not checked"


@dataclass(frozen=True)
class Condition:
    """One thing that was looked at: `well`, `mended`, `ill` or `not checked`, and in words why."""

    of: str
    outcome: str
    said: str
