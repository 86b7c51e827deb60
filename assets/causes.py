"""Causes: in words, what is other than it was when a slice was made.

Each function compares what a record kept with what is there today, and says nothing it does not know.
"""

from collections.abc import Iterable, Mapping
from typing import Any

TOKENIZER_CLASS = "tokenizer class in config.json"
AT_MOST = 2
"""Parts that are named; of more, how many others there are."""


def parts(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """What changed of a model's parts, such as `block 8 attention weights changed`; None if that is not known."""
    if not before or not now:
        return None
    if TOKENIZER_CLASS in now and TOKENIZER_CLASS not in before:
        # A record of an earlier version, which counted more of config.json and hashed the tokenizer's files otherwise.
        now = {name: found for name, found in now.items() if not name.startswith("tokenizer ")}
        before = {
            name: found for name, found in before.items() if name in now or not name.startswith(("tokenizer ", "`"))
        }
    said = [
        f"{name} {_change(before.get(name), now.get(name))}"
        # In the order of the pass: what comes first is what the rest may follow from.
        for name in dict.fromkeys((*now, *before))
        if before.get(name) != now.get(name)
    ]
    return _few(said) or None


def corpus(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What changed of the text, such as `the corpus grew by 3 files`; None if that is not known."""
    if not before or before.get("kind") != now.get("kind"):
        return None
    if "files" not in now:
        names = (name for name in now if name not in ("fingerprint", "n_documents", "content_hash"))
        said = [f"{name} from {before.get(name)} to {now[name]}" for name in names if before.get(name) != now[name]]
        return f"the corpus changed: {_few(said)}" if said else None
    if any(len(one["files"]) != one["n_files"] for one in (before, now)):
        grown = now["n_files"] - before["n_files"]
        return f"the corpus changed and has {grown:+,} files" if grown else None
    had, has = ({file["path"]: file["sha256"] for file in one["files"]} for one in (before, now))
    added, gone = sorted(has.keys() - had.keys()), sorted(had.keys() - has.keys())
    other = sorted(name for name in has.keys() & had.keys() if has[name] != had[name])
    said = [
        f"{verb} {_files(names)}"
        for verb, names in (("grew by", added), ("lost", gone), ("has other text in", other))
        if names
    ]
    if before.get("column") != now.get("column"):
        said.append(f"is read from column {now['column']} instead of {before['column']}")
    return f"the corpus {' and '.join(said)}" if said else None


def setting(name: str, had: Any, has: Any) -> str:
    """What changed of a setting."""
    if name.startswith("prompt") and had is not None:
        return f"the {name} changed ({_short(had)} to {_short(has)})"
    if isinstance(had, list) and isinstance(has, list):
        new = [value for value in has if value not in had]
        return f"{_listed(new)} {'was' if len(new) == 1 else 'were'} added to setting `{name}`"
    return f"setting `{name}` changed from {had} to {has}"


def _change(before: str | None, now: str | None) -> str:
    if before is None:
        return "is new"
    if now is None:
        return "is gone"
    # Hashes say nothing to people.
    return "changed" if _is_hash(before) or _is_hash(now) else f"changed from {before} to {now}"


def _is_hash(text: str) -> bool:
    return len(text) == 16 and all(letter in "0123456789abcdef" for letter in text)


def _short(value: Any) -> str:
    return str(value).removeprefix("sha256:")[:8]


def _files(names: list[str]) -> str:
    return f"{len(names):,} files" if len(names) > 1 else f"1 file ({names[0]})"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _few(said: list[str]) -> str:
    more = len(said) - AT_MOST
    return ", ".join(said[:AT_MOST]) + (f", and {more} other part{'s' if more > 1 else ''}" if more > 0 else "")
