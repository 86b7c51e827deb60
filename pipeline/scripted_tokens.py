"""Scripted tokens: how the scripted language model cuts text, how likely it holds each piece, and what it embeds.

The cut is as awkward as that of real tokenizers: long words fall into pieces, letters take one sign before them along, a
character outside ASCII is one token for each of its bytes, and digits stand in groups of three or, as in many models,
alone. A number from 0 to 10 is given with its neighbours; everything else is nearly certain.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DIMENSIONS = 64
"""Of an embedding."""

SURE = 0.8
"""The probability of a number that is said; its neighbours from 0 to 10 share the rest."""

NEARLY_CERTAIN = 0.99

_PIECES = (
    rb"[^\r\nA-Za-z0-9\x80-\xff]?[A-Za-z]{1,6}|[0-9]{1,%d}| ?[^\sA-Za-z0-9\x80-\xff]+[\r\n]*|[\x80-\xff]|[\x00-\x7f]"
)


@dataclass(frozen=True)
class ScriptedToken:
    """One token with the probabilities of what might have stood in its place, itself included, the likeliest first."""

    piece: bytes
    chances: Mapping[bytes, float]

    @property
    def logprob(self) -> float:
        """The natural logarithm of the token's own probability."""
        return math.log(self.chances[self.piece])


def pieces(text: str, *, digits: int = 3) -> list[bytes]:
    """The tokens of a text; joined, they give its UTF-8. `digits` is the most that one token holds."""
    return re.findall(_PIECES % digits, text.encode())


def tokens(
    text: str, *, digits: int = 3, values: Mapping[int, Mapping[int, float]] | None = None
) -> list[ScriptedToken]:
    """The tokens of a text with their probabilities.

    Where a number from 0 to 10 stands, it and its neighbours are likely. `values` gives other distributions: by the
    place in the text's UTF-8 bytes, the probability of each number there.
    """
    raw = text.encode()
    likely = {} if values is None else dict(values)
    for found in re.finditer(rb"[0-9]+", raw):
        if int(found[0]) <= 10 and len(found[0]) <= 2:
            likely.setdefault(found.start(), around(int(found[0])))
    made: list[ScriptedToken] = []
    place, begun, said = 0, -1, b""
    for piece in pieces(text, digits=digits):
        if place in likely:
            begun, said = place, b""
        if begun >= 0:
            chances = _next(likely[begun], said, piece, digits)
            if piece.isdigit():
                said += piece
            else:
                begun = -1
        else:
            chances = {piece: NEARLY_CERTAIN}
        made.append(ScriptedToken(piece, dict(sorted(chances.items(), key=lambda item: (-item[1], item[0])))))
        place += len(piece)
    return made


def around(value: int) -> dict[int, float]:
    """The number that is meant, and its neighbours from 0 to 10."""
    near = [other for other in (value - 1, value + 1) if 0 <= other <= 10]
    return {value: SURE} | dict.fromkeys(near, (1 - SURE) / len(near))


def _next(values: Mapping[int, float], said: bytes, piece: bytes, digits: int) -> dict[bytes, float]:
    """What may come after the digits `said` of a number; `piece` stands for the end of it if it is no digit."""
    chances: dict[bytes, float] = {}
    for value, probability in values.items():
        written = str(value).encode()
        if written.startswith(said):
            rest = written[len(said) :][:digits]
            come = rest or (piece if not piece.isdigit() else b"]")
            chances[come] = chances.get(come, 0.0) + probability
    whole = sum(chances.values())
    found = {come: probability / whole for come, probability in chances.items()}
    return found if piece in found else found | {piece: 1e-6}


def spelled(piece: bytes) -> str:
    """A token as OpenAI's completions show it: its text, or `bytes:` and its bytes where they are no whole character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def top(token: ScriptedToken, count: int) -> Sequence[tuple[bytes, float]]:
    """The `count` likeliest tokens in a token's place, with the logarithms of their probabilities."""
    return [(piece, math.log(probability)) for piece, probability in list(token.chances.items())[:count]]


def embedding(text: str) -> list[float]:
    """A vector of length 1 that two texts share as far as they share words; the same for the same text anywhere."""
    vector = [0.0] * DIMENSIONS
    for word in re.findall(r"\w+", text.casefold()) or [text]:
        digest = hashlib.sha256(word.encode()).digest()
        for place in range(4):
            vector[digest[place] % DIMENSIONS] += 1.0 if digest[place + 4] % 2 else -1.0
    length = math.sqrt(sum(value * value for value in vector))
    # Words may cancel each other out; a vector of zeros has no direction.
    return [value / length for value in vector] if length else [1.0] + [0.0] * (DIMENSIONS - 1)
