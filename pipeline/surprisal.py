"""Surprisal: how much likelier a base language model holds a text once it has read the explanation.

    value = (loss of the text after a description of nothing in particular - loss after the explanation) / its tokens

in nats per token, where the loss is the sum of -log p of the text's tokens. After delphi (`scorers/surprisal`), which
keeps the losses of every token and defines no score; here both prompts have the same form, so that they differ in the
description alone, and every request is by itself, so that no text is read behind another.

The texts stand in the prompt as they are, and not as JSON, because it is their own probability that is asked for. The
model is asked through completions with `echo` and `logprobs`, as vLLM gives them, or is a local one.
"""

import math
from collections.abc import Mapping, Sequence

import polars as pl

from pipeline import pairs, prompts
from pipeline.pairs import Asked
from pipeline.ports import Reply, Request

NAME = "surprisal"
FILES = ("surprisal.txt", "surprisal.none.txt")
PROMPT_HASH = prompts.prompt_hash(FILES)


def requests(
    explanations: pl.DataFrame, judged: pl.DataFrame, texts: Mapping[str, Sequence[str]], *, model: str, seed: int
) -> Asked:
    """The requests for the losses of every explanation's texts, with it and without; the latter once for each text."""
    nothing = prompts.load(FILES[1]).fill()

    def both(explanation: str, text: str) -> tuple[Request, Request]:
        without, told = (request(words, text, model=model, seed=seed) for words in (nothing, explanation))
        return without, told

    return pairs.pairs(explanations, judged, texts, both)


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
    losses = [loss(reply) for reply in replies]
    return pairs.rows(
        asked, replies, explanations, lambda pair: gain(losses[pair.second], losses[pair.first]),
        scorer=NAME, model=model, prompt=PROMPT_HASH,
    )  # fmt: skip


def gain(told: tuple[float, int] | str, untold: tuple[float, int] | str) -> tuple[float | None, str | None]:
    """What reading the explanation takes off the loss, nats per token, or the reason why that is not known."""
    if isinstance(told, str) or isinstance(untold, str):
        return None, pairs.why_not(told, untold)
    return (untold[0] - told[0]) / told[1], None
