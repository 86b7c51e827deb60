"""Pairs: an explanation and a text that two requests are about, one of which it may share with other pairs.

A scorer (`pipeline.embedding`, `pipeline.surprisal`) says which two requests, and what their replies come to. The texts are
those of `pipeline.judgements`, active and quiet ones, from documents that no explainer reads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from pipeline.judgements import AT, Item, item, written
from pipeline.ports import Reply, Request
from pipeline.provenance import identity
from pipeline.tables import IN_PASSING, TABLES


@dataclass(frozen=True)
class Pair:
    """One explanation and one text, and the places of their two requests among all."""

    explanation_id: str
    place: int
    item: Item
    first: int
    second: int


@dataclass(frozen=True)
class Asked:
    """All requests, each once, and what they are about."""

    pairs: tuple[Pair, ...]
    requests: tuple[Request, ...]


def pairs(
    explanations: pl.DataFrame,
    judged: pl.DataFrame,
    texts: Mapping[str, Sequence[str]],
    both: Callable[[str, str], tuple[Request, Request]],
) -> Asked:
    """Every explanation that a language model or a person wrote with each of its neuron's texts.

    `judged` is that of `pipeline.judgements.texts_to_judge`, `texts` gives the display strings of each sequence, and
    `both` the two requests for the words of an explanation and of a text.
    """
    neurons = {key: list(group.iter_rows(named=True)) for key, group in judged.group_by(AT, maintain_order=True)}
    sent: dict[Request, int] = {}
    found: list[Pair] = []
    for row in written(explanations).iter_rows(named=True):
        for place, text in enumerate(neurons.get((row["layer"], row["neuron"], row["polarity"]), ())):
            asked = both(row["text"], "".join(texts[text["sequence_id"]]))
            first, second = (sent.setdefault(request, len(sent)) for request in asked)
            found.append(Pair(row["explanation_id"], place, item(text, fits=text["active"], marks=()), first, second))
    return Asked(tuple(found), tuple(sent))


def rows(
    asked: Asked,
    replies: Sequence[Reply],
    explanations: pl.DataFrame,
    come_to: Callable[[Pair], tuple[float | None, str | None]],
    *,
    scorer: str,
    model: str,
    prompt: str,
) -> pl.DataFrame:
    """The `judgements` rows of those pairs, without `run_id`; `come_to` gives the value of a pair, or why there is none.

    The request that stands first in a row is the second of the pair.
    """
    said = {row["explanation_id"]: row for row in explanations.iter_rows(named=True)}
    found: list[dict[str, object]] = []
    for pair in asked.pairs:
        explanation = said[pair.explanation_id]
        value, reason = come_to(pair)
        ids = [replies[pair.second].request_id, replies[pair.first].request_id]
        found.append(
            {
                **{name: explanation[name] for name in AT},
                "explanation_id": pair.explanation_id,
                "scorer": scorer,
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
                    scorer=scorer,
                    judge=model,
                    prompt=prompt,
                    requests=ids,
                    value=value,
                    missing_because=reason,
                ),
            }
        )
    schema = {name: kind for name, kind in TABLES["judgements"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)


def why_not(*sides: object) -> str | None:
    """Of two sides, each a value or the reason why there is none, a reason; what failed in passing may yet come."""
    reasons = [side for side in sides if isinstance(side, str)]
    return next((reason for reason in reasons if reason in IN_PASSING), reasons[0] if reasons else None)
