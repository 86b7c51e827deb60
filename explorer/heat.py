"""Heat: tokens as HTML, coloured by what a neuron does on them; each text of a page, with what is known of it.

A page holds thousands of tokens, so this is written in Python and not as a template: neighbours of one colour are one piece.
"""

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import groupby
from typing import Any

from markupsafe import Markup, escape

SHORT = 8
"""First digits of the name of a text that its address has, unless they name another text too."""
LONGEST_TOKEN = 120
"""Letters shown of a token; more is cut, and the page says how much."""
SYMBOLS = {"\n": "↵", "\t": "⇥", "\r": "␍", "\x1b": "␛", "\x00": "␀", "\x7f": "␡"}
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def visible(text: str | None, *, spaces: bool = False, most: int = LONGEST_TOKEN) -> str:
    """Text that shows all its characters, at most `most` of them: `↵` for a line break, `·` for what no font shows."""
    if text is None:
        return "?"
    found = text if len(text) <= most else text[:most]
    if not (found.isascii() and found.isprintable()):
        found = "".join(SYMBOLS.get(char) or (char if _is_shown(char) else "·") for char in found)
    if spaces:
        found = found.replace(" ", "␣")
    return found if len(text) <= most else f"{found}… ({len(text):,})"


def number(value: Any, digits: int = 4) -> str:
    """A number to some significant digits, a count in full; a dash for what is missing."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


@cache
def _is_shown(char: str) -> bool:
    return unicodedata.category(char) not in HIDDEN


def heat(
    tokens: Sequence[str], steps: Sequence[int | None], values: Sequence[float] | None = None, *, spaces: bool = False
) -> Markup:
    """Tokens coloured by step: 0 to 10, or -10 to 10 for differences. With `values` a coloured one says its own in its title.

    Without them neighbours of one step stand in one element, and what has step 0 is plain text, for a page holds thousands
    of tokens; the script tells them apart when asked. What has none was not answered for, and is crossed out.
    """
    if values is None:
        return _marked(tokens, steps, _class_of_step, spaces=spaces)
    marks = [(step, value) if step else step for step, value in zip(steps, values, strict=True)]
    return _marked(tokens, marks, _class_and_title, spaces=spaces)


def _class_of_step(step: int | None) -> str:
    if step is None:
        return "unknown"
    return "" if not step else f"k{step}" if step > 0 else f"n{-step}"


def _class_and_title(mark: Any) -> str:
    return f'{_class_of_step(mark[0])} title="{mark[1]:.3g}"' if isinstance(mark, tuple) else _class_of_step(mark)


def overlaid(
    tokens: Sequence[str], real: Sequence[int], simulated: Sequence[int | None], *, spaces: bool = False
) -> Markup:
    """Tokens with the neuron's step as ground and the simulation's as a line beneath."""
    return _marked(tokens, list(zip(real, simulated, strict=True)), _class_of_both, spaces=spaces)


def _class_of_both(steps: tuple[int, int | None]) -> str:
    real, simulated = steps
    if not real and simulated == 0:
        return ""
    return f'"k{real} {"unknown" if simulated is None else f"u{simulated}"}"'


def _marked(tokens: Sequence[str], marks: Sequence[Any], kind: Callable[[Any], str], *, spaces: bool) -> Markup:
    """Tokens, those with one mark together; `kind` gives the class of a mark, nothing for plain text."""
    parts, start = [], 0
    for mark, alike in groupby(marks):
        end = start + sum(1 for _ in alike)
        shown, name = _run(tokens[start:end], spaces), kind(mark)
        parts.append(f"<u class={name}>{shown}</u>" if name else shown)
        start = end
    return Markup("".join(parts))  # noqa: S704 (each run was escaped)


def _run(tokens: Sequence[str], spaces: bool) -> str:  # noqa: FBT001 (called by place, thousands of times for a page)
    """Tokens as they stand in a page: what they hold is visible, and none of it is markup."""
    if len(tokens) == 1:
        token = tokens[0]
        return _lettered(token, spaces) if len(token) <= LONGEST_TOKEN else _letters(token, spaces)
    if max(map(len, tokens)) > LONGEST_TOKEN:
        return "".join(_letters(token, spaces) for token in tokens)
    text = "".join(tokens)
    return str(escape(visible(text, spaces=spaces, most=len(text))))


def _letters(token: str, spaces: bool) -> str:  # noqa: FBT001 (as above)
    return str(escape(visible(token, spaces=spaces)))


_lettered = lru_cache(maxsize=2**16)(_letters)
"""The same for short tokens, which come again and again."""


def excerpts(
    records: Iterable[Mapping[str, Any]],
    t: Callable[..., str],
    *,
    address: tuple[str, str, int] | None,
    spaces: bool = False,
) -> Markup:
    """Texts as heat maps, each under a line that says its peak, where it is from, and what it was used for.

    `address` holds what stands before and after the first digits of a sequence's id in the address of its page, and how
    many digits; None where it has none.
    """
    used = {"explain": t("shown to explainers"), "score": t("scored")}
    first, every = t("strongest at the first token"), t("every token")
    parts = []
    for record in records:
        about = [f"<b>{number(record['peak'])}</b>"]
        if "document_id" in record:
            about[0] += f" <bdi>{escape(visible(record['document_id']))}</bdi>"
        if record["offset"]:
            about[0] += f" +{record['offset']}"
        if record["copies"] > 1:
            about.append(escape(t("{n} texts alike", n=record["copies"])))
        about += [escape(used.get(split, split)) for split in record["used"]]
        if record["peak_token"] == 0:
            about.append(escape(first))
        if address is not None:
            place = escape(f"{address[0]}{record['sequence_id'][: address[2]]}{address[1]}")
            about.append(f'<a href="{place}">{escape(every)}</a>')
        text = heat(record["tokens"], record["steps"], spaces=spaces)
        # HTML lets a paragraph end where the next begins.
        parts.append(f"<p class=about>{' · '.join(about)}<p class=heat>{text}\n")
    return Markup(f"<div class=texts>{''.join(parts)}</div>") if parts else Markup()  # noqa: S704 (each piece was escaped)


def digits(names: Iterable[str]) -> int:
    """How many first digits tell these names apart, at least `SHORT`; as many as there are if none do."""
    distinct = set(names)
    longest = max((len(name) for name in distinct), default=SHORT)
    return next((n for n in range(SHORT, longest) if len({name[:n] for name in distinct}) == len(distinct)), longest)
