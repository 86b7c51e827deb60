"""An audit: twenty-one questions to a lake, each with what was looked at, what was found, and what was not checked.

    A1-A6     are the bytes and rows those that were written?
    A7-A10    does everything lead back to what it was made from, nothing counted twice or lost?
    A11-A16   do texts, prompts, replies, scores, activations and weights give the same again?
    A17-A20   is it up to date, from known code, from the model asked for, and free of secrets?
    A21       do the files that imports kept give the same rows again?

A clean audit says what was not checked, because silence would pass for proof.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

CHECKS = {
    "A1": "the ledger's chain is whole",
    "A2": "the ledger holds the head that was noted elsewhere",
    "A3": "every commit is there, sealed and unchanged",
    "A4": "every data file is there and unchanged",
    "A5": "the rows are those that were recorded",
    "A6": "tables keep their past and refuse numbers that are not finite",
    "A7": "every score leads back to its texts",
    "A8": "every neuron is counted once",
    "A9": "no key occurs twice",
    "A10": "Dagster and the tables agree",
    "A11": "the documents give the same tokens again",
    "A12": "the exemplars give the same requests again",
    "A13": "the kept replies give the same explanations and simulations again",
    "A14": "the simulations give the same scores again, to the bit",
    "A15": "the model gives the same activations again",
    "A16": "the files of the model are those recorded",
    "A17": "nothing is stale",
    "A18": "the code that ran is known",
    "A19": "the language model that answered is the one asked",
    "A20": "no table holds a secret",
    "A21": "the kept files of imports give the same rows again",
}
"""The checks in their order, each as what is true if it finds nothing."""

SHOWN = 20
"""Findings of one check that are told one by one."""


@dataclass(frozen=True)
class Check:
    """One check: how much was looked at, and what was found. `not_checked` says why, or what part was left out."""

    id: str
    looked_at: str = ""
    findings: Sequence[str] = field(default_factory=tuple)
    not_checked: str | None = None
    notes: Sequence[str] = field(default_factory=tuple)
    """What an auditor should know and is no fault."""

    @property
    def says(self) -> str:
        """The check in words."""
        return CHECKS[self.id]

    @property
    def outcome(self) -> str:
        """`findings`, `clean` or `not checked`."""
        if self.findings:
            return "findings"
        return "clean" if self.looked_at else "not checked"


@dataclass(frozen=True)
class Audit:
    """The outcome of all checks of one lake."""

    lake: str
    head: str | None
    """The ledger's head when it was read; note it elsewhere."""
    checks: Sequence[Check]

    @property
    def findings(self) -> int:
        """How many there are."""
        return sum(len(check.findings) for check in self.checks)
