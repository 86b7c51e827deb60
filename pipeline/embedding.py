"""Embedding: how near an explanation and a text are, for a model that turns either into a vector.

    value = cos(vector of the explanation, vector of the text)

After delphi (`scorers/embedding`): the explanation stands behind an instruction, as retrieval models are trained to
read it, and the text by itself. Each text and each explanation is one request, so that one that several neurons share is
asked once.
"""

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from pipeline import pairs, prompts
from pipeline.pairs import Asked
from pipeline.ports import Reply, Request

NAME = "embedding"
FILE = "embed.query.txt"
PROMPT_HASH = prompts.prompt_hash((FILE,))


def requests(
    explanations: pl.DataFrame, judged: pl.DataFrame, texts: Mapping[str, Sequence[str]], *, model: str
) -> Asked:
    """The requests for vectors of every explanation and of its texts; see `pipeline.pairs`."""
    instructed = prompts.load(FILE)

    def both(explanation: str, text: str) -> tuple[Request, Request]:
        return request(instructed.fill(explanation=explanation), model=model), request(text, model=model)

    return pairs.pairs(explanations, judged, texts, both)


def request(text: str, *, model: str) -> Request:
    """The request for the vector of a text."""
    return Request(
        model=model, messages=(("embed", text),), temperature=0.0, max_tokens=0, seed=0, json_reply=False
    )  # fmt: skip


def rows(asked: Asked, replies: Sequence[Reply], explanations: pl.DataFrame, *, model: str) -> pl.DataFrame:
    """The `judgements` rows of those replies, without `run_id`."""
    vectors = [vector(reply) for reply in replies]
    return pairs.rows(
        asked, replies, explanations, lambda pair: nearness(vectors[pair.second], vectors[pair.first]),
        scorer=NAME, model=model, prompt=PROMPT_HASH,
    )  # fmt: skip


def vector(reply: Reply) -> np.ndarray | str:
    """The vector that a reply holds, float64, or the reason why it holds none."""
    if reply.missing_because is not None or reply.text is None:
        return reply.missing_because or "unparsable"
    try:
        found = json.loads(reply.text)
    except (ValueError, RecursionError):
        return "unparsable"
    if not isinstance(found, list) or not found or not all(_is_number(one) for one in found):
        return "unparsable"
    return np.asarray(found, dtype=np.float64)


def nearness(one: np.ndarray | str, other: np.ndarray | str) -> tuple[float | None, str | None]:
    """The cosine of the angle between two vectors, or the reason why there is none."""
    if isinstance(one, str) or isinstance(other, str):
        return None, pairs.why_not(one, other)
    if len(one) != len(other):
        return None, "wrong_length"
    # A vector of zeros points nowhere.
    if not one.any() or not other.any():
        return None, "unparsable"
    # Squares of very large or small numbers are none.
    sides = [side / np.abs(side).max() for side in (one, other)]
    lengths = [np.linalg.norm(side) for side in sides]
    return float(np.clip(sides[0] @ sides[1] / (lengths[0] * lengths[1]), -1, 1)), None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
