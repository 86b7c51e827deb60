"""The words that go to language models: text files with strict filling and a hash, and the form of the data in them.

    explain.*.txt    what the explainer is told, and how a neuron's excerpts are laid before it
    simulate.*.txt   the same for the simulator; simulate-many.*.txt for the one that reads several excerpts at once
    simulate-prompt.txt  for simulators that complete a text in place of a chat
    intruder.*.txt   what a judge is told that looks for the text that is not of the neuron
    surprisal*.txt   what stands before a text whose probability is asked for
    embed.query.txt  what stands before an explanation whose vector is asked for
    cases.json       worked cases for both; a token is "text" or ["text", activation], and 0 is left out

Changing a letter of a file changes its hash, so results know which words made them.

Text of the corpus goes into a prompt as JSON (but for its own probability or vector) and through `as_data`, so it stays data: it cannot act as a placeholder,
end a list, or be read as a control token of the language model.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from pipeline.errors import SettingsError
from pipeline.provenance import content_hash


@dataclass(frozen=True)
class Prompt:
    """One text file of this folder. `$name` in it is a placeholder, `$$` a dollar sign."""

    name: str
    text: str

    @property
    def hash(self) -> str:
        """The tagged hash of the file's name and text."""
        return content_hash([self.name, self.text])

    def fill(self, **values: str) -> str:
        """The text with each placeholder replaced once; a `$` inside a value stays a dollar sign.

        Raises:
            SettingsError: a placeholder has no value, a value has no placeholder, or a `$` starts no name; the
                message lists all of them.
        """
        template = Template(self.text)
        if not template.is_valid():
            raise SettingsError(f"prompt `{self.name}` has a `$` that starts no name; write `$$` for a dollar sign")
        wanted = set(template.get_identifiers())
        missing, unused = sorted(wanted - set(values)), sorted(set(values) - wanted)
        if missing or unused:
            raise SettingsError(
                f"prompt `{self.name}` lacks values for {missing} and has no place for {unused}; "
                f"its placeholders are {sorted(wanted)}"
            )
        return template.substitute(values).removesuffix("\n")


@dataclass(frozen=True)
class Case:
    """A worked case: excerpts of (token, scaled activation 0 to 10), and the explanation they deserve."""

    explanation: str
    excerpts: tuple[tuple[tuple[str, int], ...], ...]


@cache
def load(name: str) -> Prompt:
    """The file of this folder with that name.

    Raises:
        SettingsError: there is no such file; the message lists those that exist.
    """
    folder = files(__name__)
    file = folder / name
    if not file.is_file():
        known = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith((".txt", ".json")))
        raise SettingsError(f"there is no prompt `{name}`; the prompts are {known}")
    return Prompt(name=name, text=file.read_text(encoding="utf-8"))


@cache
def cases() -> tuple[Case, ...]:
    """The worked cases, in the order of the file."""
    return tuple(
        Case(
            explanation=case["explanation"],
            excerpts=tuple(
                tuple((token, 0) if isinstance(token, str) else (token[0], token[1]) for token in excerpt)
                for excerpt in case["excerpts"]
            ),
        )
        for case in json.loads(load("cases.json").text)
    )


def prompt_hash(names: Iterable[str]) -> str:
    """The tagged hash of all files that a rendered prompt uses, in whatever order they are named."""
    return content_hash(sorted(load(name).hash for name in names))


def as_data(value: Any, *, ascii_only: bool = False) -> str:
    r"""JSON that no language model's tokenizer can take for anything but data, in one line.

    Servers may read `<|endoftext|>`, `</s>` or `[INST]` in a message as control tokens, and text of a corpus can hold
    them. JSON lets any character of a string be written by its number, so every `<`, a `[` before a capital letter,
    and control characters are written as `\u003c` and so on. The value is the same: `json.loads` gives it back. Lone
    surrogates, which cannot be sent, become `?`. `ascii_only` writes all that is not ASCII so too.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    if ascii_only:
        text = json.dumps(json.loads(text), ensure_ascii=True, separators=(",", ":"))
    return re.sub(r"[<\x7f-\x9f\u2028\u2029]|\[(?=/?[A-Z])", lambda found: f"\\u{ord(found[0]):04x}", text)


def read_object(text: str) -> dict[str, object] | None:
    """The one JSON object that a reply consists of, alone or in a Markdown fence; None if it is anything else.

    Strict, because a guess would become a number: no text around the object, no key twice, no NaN or Infinity, no
    lone surrogates.
    """
    fenced = re.fullmatch(r"\s*```(?:json)?[ \t]*\n(.*)\n[ \t]*```\s*", text, flags=re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else text, object_pairs_hook=_unique, parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")
