"""The simulator for any chat endpoint: an explanation and numbered tokens go in, one number per token comes out.

The idea is OpenAI's logprob-free simulator (Bills et al. 2023, and its successor in transformer-debugger): the expected
activation is what the language model writes down, not an expectation over digit tokens. Where we differ: tokens and
numbers meet by index and never by repeating the text; temperature is always sent; and nothing is known of a token
without a number, where those systems score the whole reply as zeros.

A request never holds an activation of the sequence that it asks about.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from pipeline import prompts
from pipeline.digits import Distribution
from pipeline.errors import LakeError
from pipeline.ports import Reply, Request
from pipeline.token_activation_pairs import token_texts

PROMPT_HASH = prompts.prompt_hash(("simulate.system.txt", "simulate.user.txt", "cases.json"))
"""Of every file that a request of this simulator is made from."""
DIGITS_PROMPT_HASH = prompts.prompt_hash(("simulate-9.system.txt", "simulate.user.txt", "cases.json"))
"""The same on the scale from 0 to 9."""


@dataclass(frozen=True)
class Simulated:
    """What one reply predicts, or the reason why it predicts nothing."""

    expected: Sequence[float | None] | None
    """One per token, scaled, 0 to 10; None where nothing is known."""
    missing_because: str | None
    coverage: float
    """Share of tokens with a usable prediction, 0 to 1."""
    distributions: Sequence[Distribution | None] | None = None
    """What was likely at each token, where the simulator says so."""


def requests(
    explanations: pl.DataFrame,
    exemplars: pl.DataFrame,
    tokens: Mapping[str, Sequence[str]],
    *,
    model: str,
    seed: int,
    most: int = 10,
) -> Iterator[tuple[tuple[str, str], Request]]:
    """For each explanation with a text and each exemplar of its neuron: (explanation_id, exemplar_id) and the request.

    `explanations` and `exemplars` are rows of their tables, the exemplars of split `score`. `tokens` gives the display
    strings of each `sequence_id`, one per token. Activations are asked for from 0 to `most`, 10 or `DIGITS_ONLY`.

    Raises:
        LakeError: an exemplar was shown to the explainer, or a sequence has no tokens or another number of them.
    """
    beginning = _beginning(most)
    for explanation_id, exemplar_id, text, sequence_id, n_tokens in paired(explanations, exemplars).iter_rows():
        yield (
            (explanation_id, exemplar_id),
            Request(
                model=model,
                messages=(*beginning, ("user", question(text, token_texts(tokens, sequence_id, n_tokens)))),
                temperature=0.0,
                # `[12,0],` is eight tokens where every character is one; half as much again allows white space.
                max_tokens=64 + 12 * n_tokens,
                seed=seed,
            ),
        )


def paired(explanations: pl.DataFrame, exemplars: pl.DataFrame) -> pl.DataFrame:
    """Each explanation with a text beside each exemplar of its neuron.

    Raises:
        LakeError: an exemplar was shown to the explainer.
    """
    if strangers := sorted(set(exemplars.get_column("split")) - {"score"}):
        raise LakeError(f"exemplars of split {strangers} must never be scored on; pass only split `score`")
    hidden = exemplars.select(
        "layer", "neuron", "polarity", "exemplar_id", "sequence_id", pl.col("token_ids").list.len().alias("n_tokens")
    )
    return (
        explanations.filter(pl.col("text").is_not_null())
        .select("layer", "neuron", "polarity", "explanation_id", "text")
        .join(hidden, on=["layer", "neuron", "polarity"], maintain_order="left_right")
        .select("explanation_id", "exemplar_id", "text", "sequence_id", "n_tokens")
    )


def parse(reply: Reply, n_tokens: int, *, most: int = 10) -> Simulated:
    """A number from 0 to `most` for each of the `n_tokens` tokens of which the reply says one, or nothing and the reason.

    `wrong_length`: the pairs are well formed, but none is of a token, or one is of a token that there is not.
    `unparsable`: anything else that is not the object that was asked for.
    """
    if reply.missing_because is not None or reply.text is None:
        return missing(reply.missing_because or "unparsable")
    match prompts.read_object(reply.text):
        case {"activations": list(pairs), **others} if not others:
            return read_pairs(pairs, n_tokens, most=most)
    return missing("unparsable")


def read_pairs(pairs: object, n_tokens: int, *, most: int = 10) -> Simulated:
    """[index, activation] pairs in whatever order: what they say of each token, or nothing at all and the reason.

    Nothing is known of a token without a pair, with two different ones, or with one that is no number from 0 to `most`. An
    index that no token has makes all of them doubtful, for then somebody has counted wrong.
    """
    if not isinstance(pairs, list):
        return missing("unparsable")
    numbers: dict[int, float | None] = {}
    for pair in pairs:
        match pair:
            case [int(index), value] if not isinstance(index, bool):
                number = _number(value, most)
                numbers[index] = number if numbers.get(index, number) == number else None
            case _:
                return missing("unparsable")
    if not numbers or not numbers.keys() <= set(range(n_tokens)):
        return missing("wrong_length")
    expected = [numbers.get(index) for index in range(n_tokens)]
    known = sum(number is not None for number in expected)
    return Simulated(expected, None, known / n_tokens) if known else missing("unparsable")


def _number(value: object, most: int) -> float | None:
    """A number from 0 to `most`. Python takes True for 1, and JSON numbers may overflow to infinity."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
    return float(value) if is_number and isinstance(value, int | float) else None


def of_distributions(found: Sequence[Distribution | None]) -> Simulated:
    """What is expected at each token, where anything is known of one; `no_probabilities` if of none."""
    known = sum(one is not None for one in found)
    if not known:
        return missing("no_probabilities")
    return Simulated([None if one is None else one.expected for one in found], None, known / len(found), found)


def missing(reason: str) -> Simulated:
    """Nothing, because of a word of `pipeline.tables.MISSING`."""
    return Simulated(expected=None, missing_because=reason, coverage=0.0)


def _beginning(most: int) -> list[tuple[str, str]]:
    """What every request starts with, worked cases included: the same for all, so that providers cache it."""
    messages = [("system", prompts.load("simulate.system.txt" if most == 10 else f"simulate-{most}.system.txt").fill())]
    for case in prompts.cases():
        excerpt = case.excerpts[0]
        activations = [[index, min(activation, most)] for index, (_, activation) in enumerate(excerpt)]
        messages.append(("user", question(case.explanation, [token for token, _ in excerpt])))
        messages.append(("assistant", prompts.as_data({"activations": activations})))
    return messages


def question(explanation: str, texts: Sequence[str]) -> str:
    """What is asked of one excerpt: the explanation, and its tokens with their numbers."""
    return prompts.load("simulate.user.txt").fill(
        explanation=prompts.as_data(explanation), tokens=prompts.as_data(list(enumerate(texts)))
    )
