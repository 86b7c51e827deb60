"""The simulator that reads several excerpts at once: one explanation and numbered excerpts go in, a list for each comes out.

What is asked is what `pipeline.json_simulator` asks. Instructions and worked cases, which are most of a request, are sent
once for five excerpts (simulating several records in one request is transformer-debugger's idea; its form is not ours).
Excerpts of all strata stand in an order that says nothing of how strong they are, and a text that is an exemplar of two
strata is asked about once.

Each excerpt of a reply stands by itself: what is wrong with one makes no other missing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import polars as pl

from pipeline import prompts
from pipeline.json_simulator import Simulated, missing, paired, read_pairs
from pipeline.ports import Reply, Request
from pipeline.token_activation_pairs import token_texts

PROMPT_HASH = prompts.prompt_hash(("simulate-many.system.txt", "simulate-many.user.txt", "cases.json"))
"""Of every file that a request of this simulator is made from."""

AT_ONCE = 5
"""Excerpts of one request."""


def requests(
    explanations: pl.DataFrame,
    exemplars: pl.DataFrame,
    tokens: Mapping[str, Sequence[str]],
    *,
    model: str,
    seed: int,
) -> Iterator[tuple[tuple[tuple[tuple[str, str], ...], ...], Request]]:
    """For each explanation, its exemplars in groups: the (explanation_id, exemplar_id) of each excerpt, and the request.

    An excerpt has several exemplars where they are of one sequence. Arguments and errors as in
    `pipeline.json_simulator.requests`.
    """
    beginning = _beginning()
    for explanation, ids, excerpts in grouped(explanations, exemplars, tokens, at_once=AT_ONCE):
        yield (
            ids,
            Request(
                model=model,
                messages=(*beginning, ("user", _question(explanation, excerpts))),
                temperature=0.0,
                # As for one excerpt, and some for the braces and numbers around each.
                max_tokens=64 + sum(16 + 12 * len(excerpt) for excerpt in excerpts),
                seed=seed,
            ),
        )


def grouped(
    explanations: pl.DataFrame, exemplars: pl.DataFrame, tokens: Mapping[str, Sequence[str]], *, at_once: int
) -> Iterator[tuple[str, tuple[tuple[tuple[str, str], ...], ...], list[Sequence[str]]]]:
    """Each explanation with up to `at_once` excerpts: its text, the ids that each answers, and the tokens of each."""
    # By id, which is a hash, so that the order tells nothing of the neuron.
    by_text = (
        paired(explanations, exemplars)
        .group_by("explanation_id", "text", "sequence_id", "n_tokens", maintain_order=True)
        .agg(pl.col("exemplar_id"))
        .sort("sequence_id", maintain_order=True)
        .group_by("explanation_id", "text", maintain_order=True)
        .agg("sequence_id", "n_tokens", "exemplar_id")
        .sort("explanation_id")
    )
    for explanation_id, text, sequences, lengths, exemplar_ids in by_text.iter_rows():
        for first in range(0, len(sequences), at_once):
            some = slice(first, first + at_once)
            yield (
                text,
                tuple(tuple((explanation_id, one) for one in ids) for ids in exemplar_ids[some]),
                [token_texts(tokens, *one) for one in zip(sequences[some], lengths[some], strict=True)],
            )


def parse(
    reply: Reply, lengths: Sequence[int], *, read: Callable[[object, int], Simulated] = read_pairs
) -> list[Simulated]:
    """For each excerpt a number from 0 to 10 for each of its tokens of which the reply says one, or nothing and the reason.

    `read` makes of the list of one excerpt what it says of so many tokens.

    `wrong_length`: the excerpt, or an index of it, is not there, or there is more than was asked for. `unparsable`: it is
    not in the form that was asked for.
    """
    if reply.missing_because is not None or reply.text is None:
        return [missing(reply.missing_because or "unparsable") for _ in lengths]
    match prompts.read_object(reply.text):
        case {"excerpts": dict(found), **others} if not others and found.keys() <= {
            str(n) for n in range(len(lengths))
        }:
            return [
                read(found[str(place)], length) if str(place) in found else missing("wrong_length")
                for place, length in enumerate(lengths)
            ]
    return [missing("unparsable") for _ in lengths]


def _beginning() -> list[tuple[str, str]]:
    """What every request starts with, worked cases included: the same for all, so that providers cache it."""
    messages = [("system", prompts.load("simulate-many.system.txt").fill())]
    for case in prompts.cases():
        answer = {
            str(place): [[index, activation] for index, (_, activation) in enumerate(excerpt)]
            for place, excerpt in enumerate(case.excerpts)
        }
        messages.append(
            ("user", _question(case.explanation, [[token for token, _ in excerpt] for excerpt in case.excerpts]))
        )
        messages.append(("assistant", prompts.as_data({"excerpts": answer})))
    return messages


def _question(explanation: str, excerpts: Sequence[Sequence[str]]) -> str:
    return prompts.load("simulate-many.user.txt").fill(
        explanation=prompts.as_data(explanation), excerpts=numbered(excerpts)
    )


def numbered(excerpts: Sequence[Sequence[str]]) -> str:
    """A line for each excerpt: its number, and its tokens with theirs."""
    return "\n".join(f"{place}: {prompts.as_data(list(enumerate(texts)))}" for place, texts in enumerate(excerpts))
