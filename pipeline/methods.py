"""Methods: the ways in which a language model is asked to explain a neuron, each with a prompt of its own.

    token-activation-pairs   excerpts as tokens with activations (`pipeline.token_activation_pairs`)
    highlight                the same excerpts as text, clearly active tokens marked
    highlight-values         marked with their activations
    highlight-reasoning      marked without, and the language model reasons before it answers
    summary                  only the active tokens, each with a few before it
    next-token-pairs         only the active tokens, each with the one after it
    token-space              no excerpts: the tokens with the highest mean activation

Highlighting is delphi's idea (threshold 0.3 of the strongest activation), with reasoning or without, and `summary` that
of Lee et al. 2023, whose prompts take a third of the tokens; token-space and next-token-pairs are OpenAI's (Bills et al.
2023). Where we differ: marks are JSON lists of one piece, because marks made of characters can be in the text itself;
every method answers with a JSON object that is read as strictly as that of `token-activation-pairs`; and of the tokens
before a next one all clearly active ones are shown, and not one to an excerpt.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import polars as pl

from pipeline import prompts
from pipeline import token_activation_pairs as pairs
from pipeline.associations import SEEN_OFTEN
from pipeline.controls import CONTROLS, RANDOM
from pipeline.errors import SettingsError
from pipeline.languages import ENGLISH, language_hash
from pipeline.ports import Reply, Request
from pipeline.provenance import content_hash
from pipeline.tables import STRATA

CLEARLY = 3
"""Scaled activation from which a token is marked (delphi marks from 0.3 of the strongest)."""

BEFORE = 6
"""Tokens before an active one that `summary` shows."""

TOKENS = 25
"""Tokens that the token-space methods show."""

REASONING = "reasoning.json"
"""File with the reasoning of each worked case of `cases.json`."""

REASONING_TOKENS = 400

Kind = Literal["excerpts", "tokens"]


@dataclass(frozen=True)
class Evidence:
    """What of one neuron on one side of zero may be shown: all of it is from documents that are not scored."""

    excerpts: Sequence[pairs.Excerpt] = ()
    exemplar_ids: Sequence[str] = ()
    tokens: Sequence[tuple[str, int]] = ()
    """(token, mean activation from 0 to 10), strongest first."""
    excerpt_parents: Sequence[str] = ()
    """Identities of the exemplars."""
    token_parents: Sequence[str] = ()
    """Identity of the row of `token_associations`."""


@dataclass(frozen=True)
class Method:
    """One way of asking. `show` renders evidence, and gives None where there is none of its kind."""

    name: str
    show: Callable[[Evidence], str | None]
    kind: Kind = "excerpts"
    """What it is shown: of excerpts, or of tokens without any text around them."""
    cases: str = "cases.json"
    """File of the worked cases."""
    reasons: bool = False
    """Whether the reply reasons before it explains."""

    @property
    def prompt_hash(self) -> str:
        """Of every file that a request of this method is made from."""
        files = [f"explain-{self.name}.system.txt", f"explain-{self.name}.user.txt", self.cases]
        return prompts.prompt_hash([*files, REASONING] if self.reasons else files)

    def request(self, evidence: Evidence, *, model: str, seed: int) -> Request | None:
        """The question about one neuron; None if there is nothing to show."""
        shown = self.show(evidence)
        if shown is None:
            return None
        return Request(
            model=model,
            messages=(*self._beginning(), ("user", self._question(shown))),
            temperature=0.0,
            max_tokens=pairs.MAX_TOKENS + (REASONING_TOKENS if self.reasons else 0),
            seed=seed,
        )

    def read(self, reply: Reply) -> tuple[str | None, str | None]:
        """The explanation, or None and the reason why there is none."""
        return pairs.parse(reply, beside=("reasoning",) if self.reasons else ())

    def parents(self, evidence: Evidence) -> list[str]:
        """Identities of what the question was made from."""
        return list(evidence.token_parents if self.kind == "tokens" else evidence.excerpt_parents)

    def exemplars(self, evidence: Evidence) -> list[str]:
        """Exemplars that were shown."""
        return [] if self.kind == "tokens" else list(evidence.exemplar_ids)

    def _beginning(self) -> list[tuple[str, str]]:
        """What every request starts with: the same for all neurons, so that providers cache it."""
        messages = [("system", prompts.load(f"explain-{self.name}.system.txt").fill())]
        for explanation, evidence in _cases(self.cases):
            answer = {"explanation": explanation}
            if self.reasons:
                answer = {"reasoning": json.loads(prompts.load(REASONING).text)[explanation], **answer}
            messages.append(("user", self._question(self.show(evidence) or "")))
            messages.append(("assistant", prompts.as_data(answer)))
        return messages

    def _question(self, shown: str) -> str:
        return prompts.load(f"explain-{self.name}.user.txt").fill(evidence=shown)


def _marked(evidence: Evidence, *, values: bool) -> str | None:
    """Each excerpt as pieces of text, the clearly active tokens in brackets of their own."""
    lines = []
    for excerpt in evidence.excerpts:
        pieces: list[Any] = []
        for token, activation in excerpt:
            if activation >= CLEARLY:
                pieces.append([token, activation] if values else [token])
            elif pieces and isinstance(pieces[-1], str):
                pieces[-1] += token
            else:
                pieces.append(token)
        lines.append(prompts.as_data(pieces))
    return "\n".join(lines) or None


def _places(evidence: Evidence) -> str | None:
    """Each clearly active token with what stands before it in its excerpt."""
    lines = [
        prompts.as_data(["".join(before for before, _ in excerpt[max(0, place - BEFORE) : place]), token, activation])
        for excerpt in evidence.excerpts
        for place, (token, activation) in enumerate(excerpt)
        if activation >= CLEARLY
    ]
    return "\n".join(lines) or None


def _next(evidence: Evidence) -> str | None:
    """Each clearly active token with the one after it; the last of an excerpt has none."""
    lines = [
        prompts.as_data([token, after, activation])
        for excerpt in evidence.excerpts
        for (token, activation), (after, _) in pairwise(excerpt)
        if activation >= CLEARLY
    ]
    return "\n".join(lines) or None


def _list(tokens: Sequence[tuple[str, int]]) -> str | None:
    return prompts.as_data(list(tokens)) if tokens else None


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("highlight", lambda evidence: _marked(evidence, values=False)),
        Method("highlight-values", lambda evidence: _marked(evidence, values=True)),
        Method("highlight-reasoning", lambda evidence: _marked(evidence, values=False), reasons=True),
        Method("summary", _places),
        Method("next-token-pairs", _next, cases="next-token-cases.json"),
        Method("token-space", lambda evidence: _list(evidence.tokens), kind="tokens", cases="token-cases.json"),
    )
}
"""All but `token-activation-pairs`, which came first and has a module of its own."""

ASKING = (pairs.METHOD, *METHODS)
"""The methods that ask a language model."""

NAMES = (*ASKING, *CONTROLS)


def parse(text: str) -> tuple[str, ...]:
    """Method names as users write them, separated by commas.

    Raises:
        SettingsError: a name is unknown or there twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in NAMES]:
        raise SettingsError(f"--methods (={text!r}): there is no {unknown[0]!r}; known are {', '.join(NAMES)}")
    if len(set(names)) < len(names):
        raise SettingsError(f"--methods (={text!r}) names a method twice")
    if RANDOM in names and not set(names[: names.index(RANDOM)]) & set(ASKING):
        raise SettingsError(
            f"--methods (={text!r}): `{RANDOM}` takes the words of the first method; name that before it"
        )
    return names


def prompt_hash(name: str, language: str = ENGLISH) -> str:
    """Of every file that a request of the method is made from, in the language of its explanations."""
    found = pairs.PROMPT_HASH if name == pairs.METHOD else METHODS[name].prompt_hash
    return found if language == ENGLISH else content_hash([found, language_hash(language)])


def read(name: str, reply: Reply) -> tuple[str | None, str | None]:
    """The explanation that a reply to the method holds, or None and the reason why there is none."""
    return pairs.parse(reply) if name == pairs.METHOD else METHODS[name].read(reply)


def evidence(
    exemplars: pl.DataFrame,
    associations: pl.DataFrame,
    texts: Mapping[str, Sequence[str]],
    words: Mapping[int, str],
) -> dict[pairs.NeuronKey, Evidence]:
    """What may be shown of each neuron that has exemplars of split `explain`, by layer, neuron and polarity.

    `texts` has the display strings of each sequence, `words` that of each token.
    """
    order = {stratum: place for place, stratum in enumerate(STRATA)}
    shown = exemplars.filter(pl.col("split") == "explain").sort(
        "layer", "neuron", "polarity", pl.col("stratum").replace_strict(order, return_dtype=pl.Int8), "rank"
    )
    by_neuron = shown.group_by("layer", "neuron", "polarity", maintain_order=True).agg(
        "sequence_id", "scaled_activations", "exemplar_id", "identity"
    )
    rows = by_neuron.join(
        associations.select(
            "layer", "neuron", "polarity", "token_ids", "counts", "means", pl.col("identity").alias("table")
        ),
        on=["layer", "neuron", "polarity"],
        how="left",
        maintain_order="left",
    )
    return {
        pairs.NeuronKey(row["layer"], row["neuron"], row["polarity"]): Evidence(
            excerpts=[
                list(zip(pairs.token_texts(texts, sequence_id, len(scaled)), scaled, strict=True))
                for sequence_id, scaled in zip(row["sequence_id"], row["scaled_activations"], strict=True)
            ],
            exemplar_ids=row["exemplar_id"],
            excerpt_parents=row["identity"],
            tokens=_strongest(row, words),
            token_parents=[row["table"]] if row["table"] is not None else [],
        )
        for row in rows.iter_rows(named=True)
    }


def _strongest(row: Mapping[str, Any], words: Mapping[int, str]) -> list[tuple[str, int]]:
    """The tokens with the largest means on this side of zero, scaled so that the first has 10; none below a half.

    They are the strongest of all that were seen often in documents that are not scored: the table holds twice as many of
    these. Others stand in it because of a text that may be scored, and are not shown.
    """
    if row["means"] is None:
        return []
    sign = -1.0 if row["polarity"] == "-" else 1.0
    means = [
        (sign * mean, words[token])
        for token, count, mean in zip(row["token_ids"], row["counts"], row["means"], strict=True)
        if token in words and count >= SEEN_OFTEN
    ]
    ranked = sorted(means, key=lambda one: (-one[0], one[1]))[:TOKENS]
    if not ranked or ranked[0][0] <= 0:
        return []
    return [(word, scaled) for mean, word in ranked if (scaled := round(10 * mean / ranked[0][0])) >= 1]


@cache
def _cases(file: str) -> tuple[tuple[str, Evidence], ...]:
    """Worked cases: the explanation that the evidence deserves, and the evidence."""
    if file == "cases.json":
        return tuple((case.explanation, Evidence(excerpts=case.excerpts)) for case in prompts.cases())
    return tuple((case["explanation"], _evidence(case)) for case in json.loads(prompts.load(file).text))


def _evidence(case: Mapping[str, Any]) -> Evidence:
    return Evidence(
        excerpts=tuple(((token, activation), (after, 0)) for token, after, activation in case.get("pairs", ())),
        tokens=tuple((token, value) for token, value in case.get("tokens", ())),
    )
