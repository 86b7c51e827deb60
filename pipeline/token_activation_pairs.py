"""The explainer `token-activation-pairs`: excerpts with their activations go in, one phrase comes out.

The method is OpenAI's (Bills et al. 2023, "Language models can explain neurons in language models"): worked cases, then
the neuron's excerpts as tokens with activations scaled to 0..10, and the active pairs once more when fewer than a fifth
of the activations are above zero. Where we differ: words and cases are our own; excerpts are JSON and not lines with
tabs, so that a token that is itself a tab or a newline stays one token; the reply is a JSON object, read strictly; and
temperature 0 is always sent.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import polars as pl

from pipeline import prompts
from pipeline.errors import LakeError
from pipeline.ports import Reply, Request
from pipeline.tables import STRATA

METHOD = "token-activation-pairs"
PROMPT_HASH = prompts.prompt_hash(("explain.system.txt", "explain.user.txt", "explain.repetition.txt", "cases.json"))
"""Of every file that a request of this method is made from."""

MAX_TOKENS = 200
LONGEST = 1_000
"""Characters. A longer text is not the phrase that was asked for."""

Excerpt = Sequence[tuple[str, int]]
"""(token, scaled activation 0 to 10) in reading order."""


class NeuronKey(NamedTuple):
    """One neuron on one side of zero."""

    layer: int
    neuron: int
    polarity: str


def requests(
    exemplars: pl.DataFrame, tokens: Mapping[str, Sequence[str]], *, model: str, seed: int
) -> list[tuple[NeuronKey, Request]]:
    """One request for each neuron that has exemplars, by layer, neuron and polarity.

    `exemplars` are rows of `pipeline.tables.exemplars` of split `explain`. `tokens` gives the display strings of each
    `sequence_id`, one per token.

    Raises:
        LakeError: a row is of another split, or a sequence has no tokens or another number of them.
    """
    if strangers := sorted(set(exemplars.get_column("split")) - {"explain"}):
        raise LakeError(f"exemplars of split {strangers} must never reach an explainer; pass only split `explain`")
    shown = exemplars.sort(
        "layer", "neuron", "polarity", pl.col("stratum").replace_strict(_ORDER, return_dtype=pl.Int8), "rank"
    )
    excerpts: dict[NeuronKey, list[Excerpt]] = {}
    columns = ("layer", "neuron", "polarity", "sequence_id", "scaled_activations")
    for layer, neuron, polarity, sequence_id, scaled in shown.select(columns).iter_rows():
        texts = token_texts(tokens, sequence_id, len(scaled))
        excerpts.setdefault(NeuronKey(layer, neuron, polarity), []).append(list(zip(texts, scaled, strict=True)))
    return [
        (
            key,
            Request(
                model=model,
                messages=(*_beginning(), ("user", _question(shown_to_it))),
                temperature=0.0,
                max_tokens=MAX_TOKENS,
                seed=seed,
            ),
        )
        for key, shown_to_it in excerpts.items()
    ]


def parse(reply: Reply, *, beside: Collection[str] = ()) -> tuple[str | None, str | None]:
    """The explanation, or None and the reason why there is none; never words that the reply does not hold.

    White space is collapsed. Anything but an object with one text `explanation` of 1 to 1,000 characters, and texts of
    the names `beside`, is `unparsable`, a refusal in prose included.
    """
    if reply.missing_because is not None or reply.text is None:
        return None, reply.missing_because or "unparsable"
    match prompts.read_object(reply.text):
        case {"explanation": str(words), **others} if set(others) == set(beside):
            text = phrase(words)
            if text is not None and all(isinstance(other, str) for other in others.values()):
                return text, None
    return None, "unparsable"


def phrase(words: str) -> str | None:
    """These words with white space collapsed, if they may be an explanation: 1 to 1,000 characters."""
    text = " ".join(words.split())
    return text if 0 < len(text) <= LONGEST else None


def token_texts(tokens: Mapping[str, Sequence[str]], sequence_id: str, length: int) -> Sequence[str]:
    """The display strings of one sequence, which must be `length` many.

    Raises:
        LakeError: the sequence is unknown, or has another number of tokens.
    """
    texts = tokens.get(sequence_id)
    if texts is None:
        raise LakeError(f"an exemplar is of sequence `{sequence_id}`, which has no tokens; run `sequences` again")
    if len(texts) != length:
        raise LakeError(
            f"sequence `{sequence_id}` has {len(texts)} tokens where its exemplar has {length}; "
            "run `sequences` and everything after it again"
        )
    return texts


_ORDER = {stratum: place for place, stratum in enumerate(STRATA)}


def _beginning() -> list[tuple[str, str]]:
    """What every request starts with, worked cases included: the same for all neurons, so that providers cache it."""
    messages = [("system", prompts.load("explain.system.txt").fill())]
    for case in prompts.cases():
        messages.append(("user", _question(case.excerpts)))
        messages.append(("assistant", prompts.as_data({"explanation": case.explanation})))
    return messages


def _question(excerpts: Sequence[Excerpt]) -> str:
    active = [[pair for pair in excerpt if pair[1] != 0] for excerpt in excerpts]
    n_active, n_tokens = sum(map(len, active)), sum(map(len, excerpts))
    repetition = ""
    # OpenAI's condition: the share is of scaled activations, so a weak activation that scales to 0 does not count.
    if 0 < n_active < 0.2 * n_tokens:
        repetition = prompts.load("explain.repetition.txt").fill(active=_lines(active))
    return prompts.load("explain.user.txt").fill(excerpts=_lines(excerpts), repetition=repetition)


def _lines(excerpts: Sequence[Excerpt]) -> str:
    """A JSON list with one excerpt to the line."""
    return "[\n" + ",\n".join(prompts.as_data(excerpt) for excerpt in excerpts) + "\n]"
