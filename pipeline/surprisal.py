"""Surprisal: how much likelier a base language model holds a text once it has read the explanation.

    value = (loss of the text after a description of nothing in particular - loss after the explanation) / its tokens

in nats per token, where the loss is the sum of -log p of the text's tokens. After delphi (`scorers/surprisal`), which
keeps the losses of every token and defines no score; here both prompts have the same form, so that they differ in the
description alone, and every request is by itself, so that no text is read behind another.

The texts are those of `pipeline.judgements`, active and quiet ones, from documents that no explainer reads. They stand
in the prompt as they are, and not as JSON, because it is their own probability that is asked for. The model is asked
through completions with `echo` and `logprobs`, as vLLM gives them, or is a local one.
"""

import math
from collections.abc import Mapping, Sequence

import polars as pl

from pipeline import prompts
from pipeline.embedding import Asked, Pair
from pipeline.judgements import AT, item, written
from pipeline.ports import Reply, Request
from pipeline.provenance import identity
from pipeline.tables import IN_PASSING, TABLES

NAME = "surprisal"
FILES = ("surprisal.txt", "surprisal.none.txt")
PROMPT_HASH = prompts.prompt_hash(FILES)


def requests(
    explanations: pl.DataFrame, judged: pl.DataFrame, texts: Mapping[str, Sequence[str]], *, model: str, seed: int
) -> Asked:
    """The requests for the losses of every explanation's texts, with it and without; the latter once for each text.

    `judged` is that of `pipeline.judgements.texts_to_judge`, and `texts` gives the display strings of each sequence.
    """
    neurons = {key: list(group.iter_rows(named=True)) for key, group in judged.group_by(AT, maintain_order=True)}
    sent: dict[Request, int] = {}
    pairs: list[Pair] = []
    nothing = prompts.load(FILES[1]).fill()
    for row in written(explanations).iter_rows(named=True):
        known = neurons.get((row["layer"], row["neuron"], row["polarity"]), ())
        for place, text in enumerate(known):
            words = "".join(texts[text["sequence_id"]])
            at = [
                sent.setdefault(request(description, words, model=model, seed=seed), len(sent))
                for description in (nothing, row["text"])
            ]
            pairs.append(Pair(row["explanation_id"], place, item(text, fits=text["active"], marks=()), *at))
    return Asked(tuple(pairs), tuple(sent))


def request(description: str, text: str, *, model: str, seed: int) -> Request:
    """The request for the probabilities of a text behind a description."""
    before = prompts.load(FILES[0]).fill(description=" ".join(description.split())) + "\n"
    return Request(
        model=model,
        messages=(("prompt", before + text),),
        temperature=0.0,
        # Endpoints refuse to write nothing at all.
        max_tokens=1,
        seed=seed,
        json_reply=False,
        logprobs=1,
        told_from=len(before),
    )


def loss(reply: Reply) -> tuple[float, int] | str:
    """The loss of a text in nats, and over how many tokens, or the reason why it is not known."""
    if reply.missing_because is not None:
        return reply.missing_because
    own = [dict(one.tokens).get(one.token) for one in reply.likely or ()]
    known = [logprob for logprob in own if logprob is not None]
    if not known or len(known) < len(own):
        return "no_probabilities"
    return -math.fsum(known), len(known)


def rows(asked: Asked, replies: Sequence[Reply], explanations: pl.DataFrame, *, model: str) -> pl.DataFrame:
    """The `judgements` rows of those replies, without `run_id`."""
    said = {row["explanation_id"]: row for row in explanations.iter_rows(named=True)}
    losses = [loss(reply) for reply in replies]
    found: list[dict[str, object]] = []
    for pair in asked.pairs:
        explanation = said[pair.explanation_id]
        value, reason = gain(losses[pair.text], losses[pair.query])
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


def gain(told: tuple[float, int] | str, untold: tuple[float, int] | str) -> tuple[float | None, str | None]:
    """What reading the explanation takes off the loss, nats per token, or the reason why that is not known."""
    if isinstance(told, str) or isinstance(untold, str):
        reasons = [one for one in (told, untold) if isinstance(one, str)]
        # What failed in passing may come, and then the other is asked for no more.
        return None, next((reason for reason in reasons if reason in IN_PASSING), reasons[0])
    return (untold[0] - told[0]) / told[1], None
