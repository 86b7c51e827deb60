"""Intruder: four texts on which a neuron is active, and one on which it is not; can a language model tell which?

After delphi (`scorers/classifier/intruder`): the active texts carry marks where the neuron is active, the quiet one as
many at words drawn by chance. No explanation is read: what is measured is whether the neuron does one thing that can be
seen at all, so every explanation of a neuron has the same score, from the same requests. By chance one of five is picked.

The texts are those of `pipeline.judgements`, from documents that no explainer reads. Each quiet text hides once, among
four active ones drawn for it. Where we differ: marks are pieces of JSON, the answer is a number alone, without words before
it, and one that is missing or no number of a text is null and not wrong (delphi counts a failed call as a wrong pick).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pipeline import prompts
from pipeline.judgements import AT, Item, clear, generator, item, pieces, written
from pipeline.ports import Reply, Request
from pipeline.provenance import identity
from pipeline.tables import TABLES

NAME = "intruder"
FILES = ("intruder.system.txt", "intruder.user.txt", "cases.json")
PROMPT_HASH = prompts.prompt_hash(FILES)
ACTIVE = 4
"""Active texts of a request."""
CHANCE = 1 / (ACTIVE + 1)


@dataclass(frozen=True)
class Hidden:
    """One request about an explanation's neuron: the quiet text, and its place among the others."""

    explanation_id: str
    place: int
    item: Item
    at: int


Asked = list[tuple[Hidden, Request]]


def requests(
    explanations: pl.DataFrame, judged: pl.DataFrame, texts: Mapping[str, Sequence[str]], *, model: str, seed: int
) -> Asked:
    """The requests for the neurons of every explanation that a language model or a person wrote.

    `judged` is that of `pipeline.judgements.texts_to_judge`, and `texts` gives the display strings of each sequence. A
    neuron with fewer than four active texts has none.
    """
    neurons = {key: list(group.iter_rows(named=True)) for key, group in judged.group_by(AT, maintain_order=True)}
    made: dict[tuple[Any, ...], list[tuple[int, Item, int, Request]]] = {}
    asked: Asked = []
    for row in written(explanations).iter_rows(named=True):
        key = (row["layer"], row["neuron"], row["polarity"])
        if key not in made:
            made[key] = list(_hidden(key, neurons.get(key, ()), texts, model=model, seed=seed))
        asked += [(Hidden(row["explanation_id"], place, quiet, at), request) for place, quiet, at, request in made[key]]
    return asked


def _hidden(
    key: tuple[Any, ...],
    neuron: Sequence[Mapping[str, Any]],
    texts: Mapping[str, Sequence[str]],
    *,
    model: str,
    seed: int,
) -> Iterator[tuple[int, Item, int, Request]]:
    """Each quiet text of a neuron among active ones."""
    active = [row for row in neuron if row["active"]]
    if len(active) < ACTIVE:
        return
    for place, row in enumerate(one for one in neuron if not one["active"]):
        draw = generator(seed, NAME, *key, place)
        some = [active[one] for one in draw.choice(len(active), size=ACTIVE, replace=False).tolist()]
        shown = [(texts[one["sequence_id"]], clear(one["scaled"])) for one in some]
        count = min(max(1, round(float(np.mean([len(marks) for _, marks in shown])))), len(row["scaled"]))
        marks = tuple(sorted(draw.choice(len(row["scaled"]), size=count, replace=False).tolist()))
        at = int(draw.integers(ACTIVE + 1))
        shown.insert(at, (texts[row["sequence_id"]], marks))
        yield place, item(row, fits=False, marks=marks), at, _request(shown, model=model, seed=seed)


def _request(shown: Sequence[tuple[Sequence[str], Sequence[int]]], *, model: str, seed: int) -> Request:
    return Request(
        model=model, messages=(*_beginning(), ("user", _question(shown))), temperature=0.0, max_tokens=32, seed=seed
    )


def _beginning() -> Iterator[tuple[str, str]]:
    """What every request starts with: what is asked, and two worked cases with a text of one another."""
    yield "system", prompts.load(FILES[0]).fill()
    one, two, three = prompts.cases()
    for at, case, other in ((2, one, two), (0, three, one)):
        shown = [
            ([token for token, _ in excerpt], clear([of for _, of in excerpt])) for excerpt in case.excerpts
        ]  # fmt: skip
        tokens, marks = [token for token, _ in other.excerpts[0]], clear([of for _, of in other.excerpts[0]])
        shown.insert(at, (tokens, tuple(place - 3 for place in marks if place - 3 not in marks)))
        yield "user", _question(shown)
        yield "assistant", prompts.as_data({"intruder": at})


def _question(shown: Sequence[tuple[Sequence[str], Sequence[int]]]) -> str:
    lines = (f"{place}: {prompts.as_data(pieces(tokens, marks))}" for place, (tokens, marks) in enumerate(shown))
    return prompts.load(FILES[1]).fill(texts="\n".join(lines))


def parse(reply: Reply) -> tuple[int | None, str | None]:
    """The number of the text that was picked, or the reason why there is none."""
    if reply.missing_because is not None or reply.text is None:
        return None, reply.missing_because or "unparsable"
    match prompts.read_object(reply.text):
        case {"intruder": int(found), **others} if not others and not isinstance(found, bool) and 0 <= found <= ACTIVE:
            return found, None
    return None, "unparsable"


def rows(asked: Asked, replies: Sequence[Reply], explanations: pl.DataFrame, *, model: str) -> pl.DataFrame:
    """The `judgements` rows of those replies, without `run_id`."""
    said = {row["explanation_id"]: row for row in explanations.iter_rows(named=True)}
    found: list[dict[str, object]] = []
    for (hidden, _), reply in zip(asked, replies, strict=True):
        explanation = said[hidden.explanation_id]
        picked, reason = parse(reply)
        value = None if picked is None else float(picked == hidden.at)
        found.append(
            {
                **{name: explanation[name] for name in AT},
                "explanation_id": hidden.explanation_id,
                "scorer": NAME,
                "judge": model,
                "item": hidden.place,
                "sequence_id": hidden.item.sequence_id,
                "stratum": hidden.item.stratum,
                "marked_tokens": list(hidden.item.marks),
                "fits": False,
                "value": value,
                "probability": None,
                "missing_because": reason,
                "request_id": reply.request_id,
                "other_request_ids": None,
                "identity": identity(
                    "judgement",
                    explanation=explanation["identity"],
                    record=hidden.item.identity,
                    scorer=NAME,
                    judge=model,
                    prompt=PROMPT_HASH,
                    request=reply.request_id,
                    marks=list(hidden.item.marks),
                    value=value,
                    missing_because=reason,
                ),
            }
        )
    schema = {name: kind for name, kind in TABLES["judgements"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)
