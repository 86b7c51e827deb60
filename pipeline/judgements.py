"""Judgements: a language model reads texts beside an explanation, and says which of them fit.

    detection        does the text hold what the explanation speaks of? Texts on which the neuron is active, and others
    fuzzing          do the marks stand where the explanation says? Active texts with true marks, quiet ones with false
    fuzzing_active   the same, the false marks on the active texts as well

After delphi (`scorers/classifier`, detection and fuzzing of both kinds): five texts to the request, active and quiet ones
shuffled; a true mark stands on each token above 0.3 of the strongest of its text; a quiet text has as many false marks
as an active one has true ones on average. Where we differ: texts are from documents that no explainer reads (delphi's
are drawn from the list that trained the explainer); a mark is a piece of JSON of its own, so that no text can hold one; each
text draws its false marks by itself; and an answer that does not name its texts by number is missing, not wrong.

An active text has a token of 3 or more on the scale of the exemplars, a quiet one none. Active ones are the strongest
that are kept, up to ten; quiet ones up to ten in the order of their ids, which is one by chance.
"""

import hashlib
import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import polars as pl

from pipeline import prompts
from pipeline.ports import Reply, Request
from pipeline.provenance import identity
from pipeline.scale import scale
from pipeline.tables import TABLES

SCORERS = ("detection", "fuzzing", "fuzzing_active")

CLEARLY = 3
"""Scaled activation from which a text is active."""
MARKED_FROM = 0.3
"""Share of a text's strongest activation above which a token is marked."""
TEXTS = 10
"""Most active texts, and most quiet ones, that one scorer reads of a neuron."""
TO_A_REQUEST = 5
LIKELY = 5
"""Likely tokens to ask for in each place, where probabilities are wanted (as delphi does)."""

AT = ["layer", "neuron", "polarity"]

_FILES = {name: "detect" if name == "detection" else "fuzz" for name in SCORERS}
PROMPT_HASHES = {
    name: prompts.prompt_hash((f"{file}.system.txt", f"{file}.user.txt", "cases.json")) for name, file in _FILES.items()
}
"""Of every file that a request of the scorer is made from."""


@dataclass(frozen=True)
class Item:
    """One text to be judged, with marks or without."""

    sequence_id: str
    stratum: str
    fits: bool
    """What is true: that the neuron is active on it, or where the marks stand."""
    marks: tuple[int, ...]
    """Marked tokens, none in detection."""
    identity: str
    """Of the activation record."""


@dataclass(frozen=True)
class Question:
    """The texts of one request, for one explanation."""

    explanation_id: str
    scorer: str
    first: int
    """Place of its first text among all that the scorer reads of the neuron."""
    items: tuple[Item, ...]


Asked = list[tuple[Question, Request]]


def texts_to_judge(records: pl.DataFrame, exemplars: pl.DataFrame, sequences: pl.DataFrame) -> pl.DataFrame:
    """The active and the quiet texts of each neuron that has some of both: `AT`, `sequence_id`, `active`, `scaled`, ...

    `records`, `exemplars` and `sequences` are rows of `activations`, `exemplars` and `sequences`. Only documents of
    split `score` are looked at. `scaled` are the activations from 0 to 10, unrounded and not below 0.
    """
    maxima = exemplars.group_by(AT).agg(pl.col("scale_maximum").first()).filter(pl.col("scale_maximum") > 0)
    hidden = sequences.filter(pl.col("split") == "score").select("sequence_id")
    sign = pl.when(pl.col("polarity") == "-").then(-1.0).otherwise(1.0)
    found = (
        records.join(hidden, on="sequence_id", how="semi")
        .join(maxima, on=AT)
        # One sequence can be in several strata.
        .sort(*AT, "sequence_id", "stratum")
        .unique([*AT, "sequence_id"], keep="first", maintain_order=True)
        .with_columns(strength=pl.col("peak").cast(pl.Float64) * sign)
    )
    peaks = scale(
        found.get_column("strength").to_numpy(), found.get_column("scale_maximum").cast(pl.Float64).to_numpy()
    )
    found = found.with_columns(pl.Series("active", peaks >= CLEARLY, dtype=pl.Boolean))
    both = found.group_by(AT).agg(pl.col("active").n_unique().alias("kinds")).filter(pl.col("kinds") == 2)
    return (
        found.join(both.drop("kinds"), on=AT, how="semi", maintain_order="left")
        .sort(*AT, "active", pl.when(pl.col("active")).then(-pl.col("strength")).otherwise(0.0), "sequence_id")
        .group_by([*AT, "active"], maintain_order=True)
        .head(TEXTS)
        .with_columns(
            scaled=pl.col("activations").list.eval(pl.element().cast(pl.Float64)) * sign * 10 / pl.col("scale_maximum")
        )
        .select(*AT, "active", "sequence_id", "stratum", "scaled", "identity")
    )


def requests(
    explanations: pl.DataFrame,
    judged: pl.DataFrame,
    texts: Mapping[str, Sequence[str]],
    *,
    scorers: Sequence[str],
    model: str,
    seed: int,
    likely: bool = False,
) -> Asked:
    """The requests to judge every explanation that a language model or a person wrote.

    `judged` is that of `texts_to_judge`, and `texts` gives the display strings of each sequence, one per token. `likely`
    asks for probabilities too.
    """
    neurons = {key: list(group.iter_rows(named=True)) for key, group in judged.group_by(AT, maintain_order=True)}
    asked: Asked = []
    items: dict[tuple[Any, ...], list[Item]] = {}
    for row in written(explanations).iter_rows(named=True):
        key = (row["layer"], row["neuron"], row["polarity"])
        for scorer in scorers if key in neurons else ():
            if (*key, scorer) not in items:
                items[*key, scorer] = _shuffled(_items(neurons[key], scorer, seed), (seed, scorer, *key))
            for first in range(0, len(items[*key, scorer]), TO_A_REQUEST):
                some = tuple(items[*key, scorer][first : first + TO_A_REQUEST])
                question = Question(row["explanation_id"], scorer, first, some)
                request = _request(row["text"], some, texts, scorer=scorer, model=model, seed=seed)
                asked.append((question, replace(request, logprobs=LIKELY) if likely else request))
    return asked


def written(explanations: pl.DataFrame) -> pl.DataFrame:
    """The explanations that are judged: all with a text but those of the baselines."""
    return explanations.filter((pl.col("explainer") != "none") & pl.col("text").is_not_null())


def rows(asked: Asked, replies: Sequence[Reply], explanations: pl.DataFrame, *, model: str) -> pl.DataFrame:
    """The `judgements` rows of those replies, without `run_id`."""
    said = {row["explanation_id"]: row for row in explanations.iter_rows(named=True)}
    found: list[dict[str, object]] = []
    for (question, _), reply in zip(asked, replies, strict=True):
        explanation = said[question.explanation_id]
        answers = parse(reply, len(question.items))
        likely = probabilities(reply)
        for place, (shown, (value, reason)) in enumerate(zip(question.items, answers, strict=True)):
            probability = None if value is None else likely.get(place)
            found.append(
                {
                    **{name: explanation[name] for name in AT},
                    "explanation_id": question.explanation_id,
                    "scorer": question.scorer,
                    "judge": model,
                    "item": question.first + place,
                    "sequence_id": shown.sequence_id,
                    "stratum": shown.stratum,
                    "marked_tokens": list(shown.marks),
                    "fits": shown.fits,
                    "value": value,
                    "probability": probability,
                    "missing_because": reason,
                    "request_id": reply.request_id,
                    "other_request_ids": None,
                    "identity": identity(
                        "judgement",
                        explanation=explanation["identity"],
                        record=shown.identity,
                        scorer=question.scorer,
                        judge=model,
                        prompt=PROMPT_HASHES[question.scorer],
                        request=reply.request_id,
                        place=place,
                        marks=list(shown.marks),
                        value=value,
                        missing_because=reason,
                        **({} if probability is None else {"probability": probability}),
                    ),
                }
            )
    schema = {name: kind for name, kind in TABLES["judgements"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)


def parse(reply: Reply, count: int) -> list[tuple[float | None, str | None]]:
    """For each of `count` texts the answer, 1 or 0, or the reason why there is none.

    Texts that the reply leaves out are `wrong_length`, and the others keep their answers. All are if it names one twice
    or one that is not there, as then it cannot be told which is meant.
    """
    if reply.missing_because is not None or reply.text is None:
        return [(None, reply.missing_because or "unparsable")] * count
    match prompts.read_object(reply.text):
        case {"answers": list(pairs), **others} if not others:
            pass
        case _:
            return [(None, "unparsable")] * count
    answers: dict[int, float] = {}
    for pair in pairs:
        match pair:
            case [int(number), int(answer)] if _is_answer(number, answer):
                answers[number] = float(answer)
            case _:
                return [(None, "unparsable")] * count
    if len(answers) < len(pairs) or not answers.keys() <= set(range(count)):
        return [(None, "wrong_length")] * count
    return [(answers[place], None) if place in answers else (None, "wrong_length") for place in range(count)]


def probabilities(reply: Reply) -> dict[int, float]:
    """Of each text for which it is known, the probability of yes: p(1) / (p(0) + p(1)) in the place of its answer.

    Answer and probabilities meet by where they stand in the reply. Tokens that hold more than the answer count where
    their rivals differ in the answer alone.
    """
    likely, text = reply.likely or (), reply.text or ""
    if "".join(one.token for one in likely) != text:
        return {}
    starts = list(accumulate((len(one.token) for one in likely[:-1]), initial=0))
    found: dict[int, float] = {}
    for pair in re.finditer(r"\[\s*([0-9]{1,3})\s*,\s*([01])\s*\]", text):
        at = bisect_right(starts, pair.start(2)) - 1
        token, offset = likely[at].token, pair.start(2) - starts[at]
        chances = [
            math.fsum(
                math.exp(logprob)
                for rival, logprob in likely[at].tokens
                if rival == token[:offset] + answer + token[offset + 1 :]
            )
            for answer in "01"
        ]
        if sum(chances) > 0:
            found[int(pair[1])] = chances[1] / sum(chances)
    return found


def _is_answer(number: int, answer: int) -> bool:
    """Python takes True for 1."""
    return not isinstance(number, bool) and not isinstance(answer, bool) and answer in (0, 1)


def _items(neuron: Sequence[Mapping[str, Any]], scorer: str, seed: int) -> list[Item]:
    """All texts of a neuron as one scorer shows them."""
    active = [row for row in neuron if row["active"]]
    quiet = [row for row in neuron if not row["active"]]
    if scorer == "detection":
        return [item(row, fits=row["active"], marks=()) for row in (*active, *quiet)]
    true = [clear(row["scaled"]) for row in active]
    found = [item(row, fits=True, marks=marks) for row, marks in zip(active, true, strict=True)]
    if scorer == "fuzzing":
        count = int(np.ceil(np.mean([len(marks) for marks in true])))
        false = [(row, list(range(len(row["scaled"]))), count) for row in quiet]
    else:
        false = [
            (row, sorted(set(range(len(row["scaled"]))) - set(marks)), len(marks))
            for row, marks in zip(active, true, strict=True)
        ]
    for row, places, count in false:
        # Of a text that is marked nearly throughout there are no false marks.
        if len(places) >= count:
            drawn = generator(seed, scorer, row["identity"]).choice(np.asarray(places), size=count, replace=False)
            found.append(item(row, fits=False, marks=tuple(sorted(drawn.tolist()))))
    return found


def item(row: Mapping[str, Any], *, fits: bool, marks: tuple[int, ...]) -> Item:
    """One row of `texts_to_judge` as it is shown."""
    return Item(row["sequence_id"], row["stratum"], fits, marks, row["identity"])


def clear(scaled: Sequence[float]) -> tuple[int, ...]:
    """The tokens that are marked: those above 0.3 of the strongest."""
    strongest = max(scaled)
    return tuple(place for place, activation in enumerate(scaled) if activation > MARKED_FROM * strongest)


def _shuffled(items: Sequence[Item], drawn_by: Sequence[object]) -> list[Item]:
    return [items[place] for place in generator(*drawn_by).permutation(len(items)).tolist()]


def generator(*drawn_by: object) -> np.random.Generator:
    """The same for the same words and numbers, whatever else is drawn, so that a neuron alone draws what it does among others."""
    return np.random.default_rng(list(hashlib.sha256(json.dumps(drawn_by).encode()).digest()))


def _request(
    explanation: str,
    items: Sequence[Item],
    texts: Mapping[str, Sequence[str]],
    *,
    scorer: str,
    model: str,
    seed: int,
) -> Request:
    shown = [(texts[item.sequence_id], item.marks) for item in items]
    return Request(
        model=model,
        messages=(*_beginning(scorer), ("user", _question(scorer, explanation, shown))),
        temperature=0.0,
        # `[4,1],` is six tokens where every character is one.
        max_tokens=32 + 12 * len(items),
        seed=seed,
    )


def _beginning(scorer: str) -> Iterator[tuple[str, str]]:
    """What every request of a scorer starts with: what is asked, and two worked cases with texts of one another."""
    yield "system", prompts.load(f"{_FILES[scorer]}.system.txt").fill()
    one, two, three = prompts.cases()
    for first, case, other, third in ((0, one, two, three), (1, three, one, two)):
        # The first excerpt of a case, those of others, the second excerpt, and it again with marks at the wrong words.
        excerpts = [(case.excerpts[0], 1), (other.excerpts[0], 0), (third.excerpts[0], 0), (case.excerpts[1], 1)]
        excerpts = excerpts[first:] + excerpts[:first]
        shown = [([token for token, _ in excerpt], clear([of for _, of in excerpt])) for excerpt, _ in excerpts]
        answers = [answer for _, answer in excerpts]
        if scorer != "detection":
            tokens, marks = shown[-first]
            shown.append((tokens, tuple(sorted({place for mark in marks if (place := mark - 3) not in marks}))))
            answers.append(0)
        yield "user", _question(scorer, case.explanation, shown)
        yield "assistant", prompts.as_data({"answers": [[place, answer] for place, answer in enumerate(answers)]})


def _question(scorer: str, explanation: str, shown: Sequence[tuple[Sequence[str], Sequence[int]]]) -> str:
    lines = (
        f"{place}: {prompts.as_data(''.join(tokens) if scorer == 'detection' else pieces(tokens, marks))}"
        for place, (tokens, marks) in enumerate(shown)
    )
    return prompts.load(f"{_FILES[scorer]}.user.txt").fill(
        explanation=prompts.as_data(explanation), texts="\n".join(lines)
    )


def pieces(tokens: Sequence[str], marks: Sequence[int]) -> list[str | list[str]]:
    """A text in pieces: each marked token a list of its own, all that stands between them one string."""
    found: list[str | list[str]] = []
    for place, token in enumerate(tokens):
        if place in marks:
            found.append([token])
        elif found and isinstance(found[-1], str):
            found[-1] += token
        else:
            found.append(token)
    return found
