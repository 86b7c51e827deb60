"""Logprobs: the likely tokens in the place of each token, as endpoints send them, as the lake keeps them.

Two forms are in use. Chat, and llama.cpp everywhere:

    {"content": [{"token": "7", "logprob": -0.1, "top_logprobs": [{"token": "7", "logprob": -0.1}, ...]}, ...]}

and the older one of completions, with nothing for the first token of a prompt:

    {"tokens": ["7", ...], "token_logprobs": [-0.1, ...], "top_logprobs": [{"7": -0.1, ...}, ...]}
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from pipeline.ports import LEAST_LOGPROB, Likely


def read(value: Any) -> tuple[Likely, ...] | None:
    """What an endpoint sent, None if that is in no form known. The likeliest tokens come first."""
    match value:
        case {"content": list(content)}:
            found = [_of_chat(token) for token in content]
        case {"tokens": list(tokens), "top_logprobs": list(tops), **others} if len(tokens) == len(tops):
            own = others.get("token_logprobs")
            own = own if isinstance(own, list) and len(own) == len(tokens) else [None] * len(tokens)
            found = [_likely(*parts) for parts in zip(tokens, own, tops, strict=True)]
        case _:
            return None
    return None if None in found else tuple(one for one in found if one is not None)


def at_places(likely: Sequence[Likely] | None, prompt: str, places: Sequence[int]) -> tuple[Likely, ...] | None:
    """Those at some places of a prompt, in characters; one without tokens where none begins there.

    None if the tokens, joined, do not hold the prompt: then nothing is known of where they stand. A token that the
    model puts before every text may come first. Nor is anything known of probabilities that are `shifted`.
    """
    if likely is None or shifted(likely):
        return None
    joined = "".join(one.token for one in likely)
    begin = joined.find(prompt)
    if begin < 0:
        return None
    starts = accumulate((len(one.token) for one in likely), initial=-begin)
    at = {start: one for start, one in zip(starts, likely, strict=False) if one.token}
    return tuple(at.get(place, Likely("", ())) for place in places)


def shifted(likely: Sequence[Likely]) -> bool:
    """Whether each token has the probabilities of the one after it, as llama-cpp-python's server sends those of a prompt.

    Where they belong to their tokens, the likeliest is often the token itself, and hardly ever the one that follows. What
    is given for few of the tokens says nothing of that: where an activation stands, the likeliest may well be a line's end.
    """
    firsts = [one.tokens[0][0] if one.tokens else None for one in likely]
    if 2 * firsts.count(None) > len(firsts):
        return False
    here = sum(first == one.token for first, one in zip(firsts, likely, strict=True))
    after = sum(first == one.token for first, one in zip(firsts, likely[1:], strict=False))
    return after > here


def told(value: Any, prompt: str, place: int) -> tuple[Likely, ...] | None:
    """The tokens of a prompt from a place on, in characters, each with its own probability alone.

    None if one of them has none, if they are `shifted`, or if the tokens, joined, do not hold the prompt: then nothing is
    known of where they stand. Half a character is spelled `bytes:` and its bytes. A token that begins before the place counts.
    """
    match value:
        case {"tokens": list(tokens), "token_logprobs": list(own)} if len(tokens) == len(own):
            pieces = [_bytes(token) for token in tokens]
        case _:
            return None
    if shifted(read(value) or ()):
        return None
    whole = prompt.encode("utf-8", errors="replace")
    begin = b"".join(pieces).find(whole)
    if begin < 0:
        return None
    first, last = begin + len(prompt[:place].encode("utf-8", errors="replace")), begin + len(whole)
    found, start = [], 0
    for token, piece, logprob in zip(tokens, pieces, own, strict=True):
        if start < last and start + len(piece) > first:
            known = dict(_logprobs([(token, logprob)]))
            if not known:
                return None
            found.append(Likely(token, tuple(known.items())))
        start += len(piece)
    return tuple(found)


def _bytes(token: Any) -> bytes:
    """What a token stands for in a text."""
    if not isinstance(token, str):
        return b""
    if re.fullmatch(r"bytes:(\\x[0-9a-fA-F]{2})+", token):
        return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
    return token.encode("utf-8", errors="replace")


def packed(likely: Sequence[Likely] | None) -> str | None:
    """For the lake: JSON."""
    if likely is None:
        return None
    return json.dumps([[one.token, one.tokens] for one in likely], ensure_ascii=False, separators=(",", ":"))


def unpacked(text: str | None) -> tuple[Likely, ...] | None:
    """From the lake."""
    if text is None:
        return None
    return tuple(
        Likely(token, tuple((other, float(logprob)) for other, logprob in tokens)) for token, tokens in json.loads(text)
    )


def _of_chat(value: Any) -> Likely | None:
    match value:
        case {"token": str(token), **others}:
            tops = others.get("top_logprobs")
            listed = tops if isinstance(tops, list) else []
            pairs = [(top.get("token"), top.get("logprob")) for top in listed if isinstance(top, dict)]
            return _likely(token, others.get("logprob"), dict(pairs) if _texts(pairs) else None)
    return None


def _texts(pairs: Sequence[tuple[Any, Any]]) -> bool:
    return all(isinstance(token, str) for token, _ in pairs)


def _likely(token: Any, own: Any, tops: Any) -> Likely | None:
    """One token; its own probability counts where it is not among the likeliest."""
    if not isinstance(token, str) or not _plain(token):
        return None
    known = dict(_logprobs(tops.items())) if isinstance(tops, dict) else {}
    known = dict(_logprobs([(token, own)])) | known
    kept = sorted(
        ((text, logprob) for text, logprob in known.items() if logprob >= LEAST_LOGPROB or text == token),
        key=lambda pair: (-pair[1], pair[0]),
    )
    return Likely(token, tuple(kept))


def _logprobs(pairs: Any) -> Iterator[tuple[str, float]]:
    """Those that are logarithms of probabilities; rounding may leave one a little above 0."""
    for text, logprob in pairs:
        is_number = isinstance(logprob, int | float) and not isinstance(logprob, bool)
        if isinstance(text, str) and _plain(text) and is_number and math.isfinite(logprob) and logprob <= 1e-3:
            yield text, min(float(logprob), 0.0)


def _plain(text: str) -> bool:
    """Whether a table can hold it: lone surrogates cannot be written."""
    return text.isascii() or text == text.encode("utf-8", errors="replace").decode("utf-8")
