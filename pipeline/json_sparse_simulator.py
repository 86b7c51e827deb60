"""The simulator that says only where a neuron is active: ten excerpts to the request, and silence is not written out.

What is asked is what `pipeline.json_many_simulator` asks. Most activations are 0, and a number that is written costs several
times what one costs that is read, so the reply has pairs only for tokens where the neuron is active; a token without a pair
is 0. An excerpt without any such token has an empty list, so that silence is said and not left out.

A model that stops early looks silent then. `closed` asks for a mark at the end of each list, the last index and "end": with
it silence is said as far as the excerpt goes, and without it only as far as the last pair goes.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import polars as pl

from pipeline import json_many_simulator, prompts
from pipeline.json_many_simulator import grouped, numbered
from pipeline.json_simulator import Simulated, missing, read_pairs
from pipeline.ports import Reply, Request

PROMPT_HASH = prompts.prompt_hash(("simulate-sparse.system.txt", "simulate-sparse.user.txt", "cases.json"))
"""Of every file that a request of this simulator is made from."""

CLOSED_PROMPT_HASH = prompts.prompt_hash(("simulate-closed.system.txt", "simulate-sparse.user.txt", "cases.json"))
"""The same, with the mark."""

END = "end"
"""The mark of a list that goes to the end of its excerpt, beside the index of the last token."""

AT_ONCE = 10
"""Excerpts of one request: all on which an explanation is scored."""


def requests(
    explanations: pl.DataFrame,
    exemplars: pl.DataFrame,
    tokens: Mapping[str, Sequence[str]],
    *,
    model: str,
    seed: int,
    closed: bool = False,
) -> Iterator[tuple[tuple[tuple[tuple[str, str], ...], ...], Request]]:
    """For each explanation, its exemplars in groups: the (explanation_id, exemplar_id) of each excerpt, and the request.

    Arguments and errors as in `pipeline.json_many_simulator.requests`.
    """
    beginning = _beginning(closed=closed)
    for explanation, ids, excerpts in grouped(explanations, exemplars, tokens, at_once=AT_ONCE):
        yield (
            ids,
            Request(
                model=model,
                messages=(*beginning, ("user", _question(explanation, excerpts))),
                temperature=0.0,
                # A neuron may be active on every token.
                max_tokens=64 + sum((32 if closed else 16) + 12 * len(excerpt) for excerpt in excerpts),
                seed=seed,
            ),
        )


def parse(reply: Reply, lengths: Sequence[int], *, closed: bool = False) -> list[Simulated]:
    """For each excerpt a number from 0 to 10 for each of its tokens, or nothing and the reason.

    `wrong_length`: the reply does not have the excerpt, or an index that no token of it has. `unparsable`: it is not in the
    form that was asked for. What a pair says that is no number from 0 to 10, or two that differ, is not known; nor, of
    `closed` lists, what comes after the last pair of one without its mark.
    """
    return json_many_simulator.parse(reply, lengths, read=_read_closed if closed else _read)


def _read(pairs: object, n_tokens: int) -> Simulated:
    """What the pairs say, and 0 of every token that none is about."""
    if not isinstance(pairs, list):
        return missing("unparsable")
    said = {pair[0] for pair in pairs if isinstance(pair, list) and pair and isinstance(pair[0], int)}
    silent = [[index, 0] for index in range(n_tokens) if index not in said]
    return read_pairs([*pairs, *silent], n_tokens)


def _read_closed(pairs: object, n_tokens: int) -> Simulated:
    """What the pairs say, and 0 of every other token if the list ends with its mark."""
    if not isinstance(pairs, list):
        return missing("unparsable")
    ends = [pair for pair in pairs if isinstance(pair, list) and pair and isinstance(pair[-1], str)]
    if not ends:
        return _as_far_as_it_goes(pairs, n_tokens)
    match ends, pairs[-1]:
        # Whoever ends elsewhere than at the last token has counted wrong.
        case [[int(last), "end"]], [_, "end"] if not isinstance(last, bool):
            return _read(pairs[:-1], n_tokens) if last == n_tokens - 1 else missing("wrong_length")
    return missing("unparsable")


def _as_far_as_it_goes(pairs: list[object], n_tokens: int) -> Simulated:
    """What the pairs of a list without its mark say, and 0 between them if they are in order."""
    indices = [pair[0] for pair in pairs if isinstance(pair, list) and pair and isinstance(pair[0], int)]
    in_order = len(indices) == len(pairs) and all(one < other for one, other in pairwise(indices))
    reached = min(indices[-1], n_tokens) if indices and in_order else 0
    return read_pairs([*pairs, *([index, 0] for index in range(reached) if index not in set(indices))], n_tokens)


def _beginning(*, closed: bool) -> list[tuple[str, str]]:
    """What every request starts with, worked cases included: the same for all, so that providers cache it."""
    name = "simulate-closed.system.txt" if closed else "simulate-sparse.system.txt"
    messages = [("system", prompts.load(name).fill())]
    cases = prompts.cases()
    for case in cases:
        excerpts = [[token for token, _ in excerpt] for excerpt in case.excerpts]
        active: list[list[list[object]]] = [
            [[n, value] for n, (_, value) in enumerate(excerpt) if value] for excerpt in case.excerpts
        ]
        if case is cases[0]:
            # A neuron for names of metals is silent where there are none.
            excerpts.append([token for token, _ in cases[1].excerpts[0]])
            active.append([])
        if closed:
            active = [[*pairs, [len(tokens) - 1, END]] for pairs, tokens in zip(active, excerpts, strict=True)]
        answer = {str(place): pairs for place, pairs in enumerate(active)}
        messages.append(("user", _question(case.explanation, excerpts)))
        messages.append(("assistant", prompts.as_data({"excerpts": answer})))
    return messages


def _question(explanation: str, excerpts: Sequence[Sequence[str]]) -> str:
    return prompts.load("simulate-sparse.user.txt").fill(
        explanation=prompts.as_data(explanation), excerpts=numbered(excerpts)
    )
