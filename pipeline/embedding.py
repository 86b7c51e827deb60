"""Embedding: how near an explanation and a text are, for a model that turns either into a vector.

    value = cos(vector of the explanation, vector of the text)

After delphi (`scorers/embedding`): the explanation stands behind an instruction, as retrieval models are trained to
read it, and the text by itself. The texts are those of `pipeline.judgements`, active and quiet ones, from documents that
no explainer reads. Each text and each explanation is one request, so that one that several neurons share is asked once.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline import prompts
from pipeline.judgements import AT, Item, item, written
from pipeline.ports import Reply, Request
from pipeline.provenance import identity
from pipeline.tables import IN_PASSING, TABLES

NAME = "embedding"
FILE = "embed.query.txt"
PROMPT_HASH = prompts.prompt_hash((FILE,))


@dataclass(frozen=True)
class Pair:
    """One explanation and one text; their vectors come with two requests."""

    explanation_id: str
    place: int
    item: Item
    query: int
    """Place of the explanation's request among all."""
    text: int
    """Place of the text's."""


@dataclass(frozen=True)
class Asked:
    """All requests, each once, and what they are about."""

    pairs: tuple[Pair, ...]
    requests: tuple[Request, ...]


def requests(
    explanations: pl.DataFrame, judged: pl.DataFrame, texts: Mapping[str, Sequence[str]], *, model: str
) -> Asked:
    """The requests for vectors of every explanation that a language model or a person wrote, and of its texts.

    `judged` is that of `pipeline.judgements.texts_to_judge`, and `texts` gives the display strings of each sequence.
    """
    neurons = {key: list(group.iter_rows(named=True)) for key, group in judged.group_by(AT, maintain_order=True)}
    sent: dict[Request, int] = {}
    pairs: list[Pair] = []
    for row in written(explanations).iter_rows(named=True):
        known = neurons.get((row["layer"], row["neuron"], row["polarity"]), ())
        query = request(prompts.load(FILE).fill(explanation=row["text"]), model=model)
        for place, text in enumerate(known):
            words = request("".join(texts[text["sequence_id"]]), model=model)
            at = [sent.setdefault(one, len(sent)) for one in (query, words)]
            pairs.append(Pair(row["explanation_id"], place, item(text, fits=text["active"], marks=()), *at))
    return Asked(tuple(pairs), tuple(sent))


def request(text: str, *, model: str) -> Request:
    """The request for the vector of a text."""
    return Request(
        model=model, messages=(("embed", text),), temperature=0.0, max_tokens=0, seed=0, json_reply=False
    )  # fmt: skip


def rows(asked: Asked, replies: Sequence[Reply], explanations: pl.DataFrame, *, model: str) -> pl.DataFrame:
    """The `judgements` rows of those replies, without `run_id`."""
    said = {row["explanation_id"]: row for row in explanations.iter_rows(named=True)}
    vectors = [vector(reply) for reply in replies]
    found: list[dict[str, object]] = []
    for pair in asked.pairs:
        explanation = said[pair.explanation_id]
        value, reason = nearness(vectors[pair.text], vectors[pair.query])
        ids = [replies[pair.text].request_id, replies[pair.query].request_id]
        found.append(
            {
                **{name: explanation[name] for name in AT},
                "explanation_id": pair.explanation_id,
                "scorer": NAME,
                "judge": model,
                "item": pair.place,
                "sequence_id": pair.item.sequence_id,
                "stratum": pair.item.stratum,
                "marked_tokens": [],
                "fits": pair.item.fits,
                "value": value,
                "probability": None,
                "missing_because": reason,
                "request_id": ids[0],
                "other_request_ids": ids[1:],
                "identity": identity(
                    "judgement",
                    explanation=explanation["identity"],
                    record=pair.item.identity,
                    scorer=NAME,
                    judge=model,
                    prompt=PROMPT_HASH,
                    requests=ids,
                    value=value,
                    missing_because=reason,
                ),
            }
        )
    schema = {name: kind for name, kind in TABLES["judgements"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)


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
        reasons = [side for side in (one, other) if isinstance(side, str)]
        # What failed in passing may come, and then the other is asked for no more.
        return None, next((reason for reason in reasons if reason in IN_PASSING), reasons[0])
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
