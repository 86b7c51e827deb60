"""The simulator that says only where a neuron is active: ten excerpts to the request, and silence is not written out.

What is asked is what `pipeline.json_many_simulator` asks. Most activations are 0, and a number that is written costs several
times what one costs that is read, so the reply has pairs only for tokens where the neuron is active; a token without a pair
is 0. An excerpt without any such token has an empty list, so that silence is said and not left out.
"""

from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from pipeline import json_many_simulator, prompts
from pipeline.json_many_simulator import grouped, numbered
from pipeline.json_simulator import Simulated, missing, read_pairs
from pipeline.ports import Reply, Request

PROMPT_HASH = prompts.prompt_hash(("simulate-sparse.system.txt", "simulate-sparse.user.txt", "cases.json"))
"""Of every file that a request of this simulator is made from."""

AT_ONCE = 10
"""Excerpts of one request: all on which an explanation is scored."""


def requests(
    explanations: pl.DataFrame,
    exemplars: pl.DataFrame,
    tokens: Mapping[str, Sequence[str]],
    *,
    model: str,
    seed: int,
) -> Iterator[tuple[tuple[tuple[tuple[str, str], ...], ...], Request]]:
    """For each explanation, its exemplars in groups: the (explanation_id, exemplar_id) of each excerpt, and the request.

    Arguments and errors as in `pipeline.json_many_simulator.requests`.
    """
    beginning = _beginning()
    for explanation, ids, excerpts in grouped(explanations, exemplars, tokens, at_once=AT_ONCE):
        yield (
            ids,
            Request(
                model=model,
                messages=(*beginning, ("user", _question(explanation, excerpts))),
                temperature=0.0,
                # A neuron may be active on every token.
                max_tokens=64 + sum(16 + 12 * len(excerpt) for excerpt in excerpts),
                seed=seed,
            ),
        )


def parse(reply: Reply, lengths: Sequence[int]) -> list[Simulated]:
    """For each excerpt a number from 0 to 10 for each of its tokens, or nothing and the reason.

    `wrong_length`: the reply does not have the excerpt, or an index that no token of it has. `unparsable`: it is not in the
    form that was asked for. What a pair says that is no number from 0 to 10, or two that differ, is not known.
    """
    return json_many_simulator.parse(reply, lengths, read=_read)


def _read(pairs: object, n_tokens: int) -> Simulated:
    """What the pairs say, and 0 of every token that none is about."""
    if not isinstance(pairs, list):
        return missing("unparsable")
    said = {pair[0] for pair in pairs if isinstance(pair, list) and pair and isinstance(pair[0], int)}
    silent = [[index, 0] for index in range(n_tokens) if index not in said]
    return read_pairs([*pairs, *silent], n_tokens)


def _beginning() -> list[tuple[str, str]]:
    """What every request starts with, worked cases included: the same for all, so that providers cache it."""
    messages = [("system", prompts.load("simulate-sparse.system.txt").fill())]
    cases = prompts.cases()
    for case in cases:
        excerpts = [[token for token, _ in excerpt] for excerpt in case.excerpts]
        active = [[[n, value] for n, (_, value) in enumerate(excerpt) if value] for excerpt in case.excerpts]
        if case is cases[0]:
            # A neuron for names of metals is silent where there are none.
            excerpts.append([token for token, _ in cases[1].excerpts[0]])
            active.append([])
        answer = {str(place): pairs for place, pairs in enumerate(active)}
        messages.append(("user", _question(case.explanation, excerpts)))
        messages.append(("assistant", prompts.as_data({"excerpts": answer})))
    return messages


def _question(explanation: str, excerpts: Sequence[Sequence[str]]) -> str:
    return prompts.load("simulate-sparse.user.txt").fill(
        explanation=prompts.as_data(explanation), excerpts=numbered(excerpts)
    )
