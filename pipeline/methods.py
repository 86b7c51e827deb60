"""Methods: the ways in which a language model is asked to explain a neuron, each with a prompt of its own.

    token-activation-pairs   excerpts as tokens with activations (`pipeline.token_activation_pairs`)
    highlight                the same excerpts as text, clearly active tokens marked
    highlight-values         marked with their activations
    highlight-reasoning      marked without, and the language model reasons before it answers
    summary                  only the active tokens, each with a few before it
    next-token-pairs         only the active tokens, each with the one after it
    logits                   marked excerpts, and the tokens that the neuron's output promotes and suppresses
    token-space              no excerpts: the tokens with the highest mean activation
    token-space-weights      no excerpts: the tokens whose embeddings excite it most, by the weights alone

Highlighting is delphi's idea (threshold 0.3 of the strongest activation), with reasoning or without, and `summary` that
of Lee et al. 2023, whose prompts take a third of the tokens; token-space and next-token-pairs are OpenAI's (Bills et al.
2023), and promoted tokens are shown by Neuronpedia. Where we differ: marks are JSON lists of one piece, because marks made of characters can be in the text itself;
every method answers with a JSON object that is read as strictly as that of `token-activation-pairs`; and of the tokens
before a next one all clearly active ones are shown, and not one to an excerpt.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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

LOGITS = "logits.json"
"""File with the promoted and suppressed tokens of each worked case of `cases.json`."""

OUTPUTS = 15
"""Promoted and suppressed tokens that `logits` shows, of each."""

Kind = Literal["excerpts", "tokens", "weights"]
SHOWN_FROM: dict[Kind, tuple[str, ...]] = {
    "excerpts": ("exemplars",),
    "tokens": ("token_associations",),
    "weights": ("connections", "vocabulary"),
}
"""Where each kind of evidence is from."""


@dataclass(frozen=True)
class Evidence:
    """What of one neuron on one side of zero may be shown: all of it is from documents that are not scored."""

    excerpts: Sequence[pairs.Excerpt] = ()
    exemplar_ids: Sequence[str] = ()
    tokens: Sequence[tuple[str, int]] = ()
    """(token, mean activation from 0 to 10), strongest first."""
    exciting: Sequence[tuple[str, int]] = ()
    """(token, weight from its embedding, from 0 to 10), strongest first."""
    promoted: Sequence[str] = ()
    suppressed: Sequence[str] = ()
    """Tokens whose logits the neuron raises, and lowers, most when it is active on this side."""
    parents: Mapping[Kind, Sequence[str]] = field(default_factory=dict)
    """Identities of the rows that each kind of evidence is from."""


@dataclass(frozen=True)
class Method:
    """One way of asking. `show` renders evidence, and gives None where there is none of its kind."""

    name: str
    show: Callable[[Evidence], str | None]
    kinds: tuple[Kind, ...] = ("excerpts",)
    """What it is shown."""
    cases: str = "cases.json"
    """File of the worked cases."""
    beside: str | None = None
    """File with what stands beside the evidence of each worked case."""
    reasons: bool = False
    """Whether the reply reasons before it explains."""

    @property
    def prompt_hash(self) -> str:
        """Of every file that a request of this method is made from."""
        more = [self.beside] if self.beside else []
        more += [REASONING] if self.reasons else []
        return prompts.prompt_hash(
            (f"explain-{self.name}.system.txt", f"explain-{self.name}.user.txt", self.cases, *more)
        )

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
        return [parent for kind in self.kinds for parent in evidence.parents.get(kind, ())]

    def exemplars(self, evidence: Evidence) -> list[str]:
        """Exemplars that were shown."""
        return list(evidence.exemplar_ids) if "excerpts" in self.kinds else []

    def _beginning(self) -> list[tuple[str, str]]:
        """What every request starts with: the same for all neurons, so that providers cache it."""
        messages = [("system", prompts.load(f"explain-{self.name}.system.txt").fill())]
        for explanation, evidence in _cases(self.cases, self.beside):
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


def _with_logits(evidence: Evidence) -> str | None:
    """Marked excerpts, and what the neuron's output does to the tokens that come next."""
    marked = _marked(evidence, values=False)
    if marked is None or not (evidence.promoted or evidence.suppressed):
        return None
    promoted, suppressed = list(evidence.promoted), list(evidence.suppressed)
    return "\n".join((marked, prompts.as_data({"promotes": promoted}), prompts.as_data({"suppresses": suppressed})))


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
        Method("logits", _with_logits, kinds=("excerpts", "weights"), beside=LOGITS),
        Method("token-space", lambda evidence: _list(evidence.tokens), kinds=("tokens",), cases="token-cases.json"),
        Method(
            "token-space-weights",
            lambda evidence: _list(evidence.exciting),
            kinds=("weights",),
            cases="token-cases.json",
        ),
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


def tables(name: str) -> tuple[str, ...]:
    """The tables that what a method shows is from."""
    kinds = ("excerpts",) if name == pairs.METHOD else METHODS[name].kinds
    return tuple(table for kind in kinds for table in SHOWN_FROM[kind])


def read(name: str, reply: Reply) -> tuple[str | None, str | None]:
    """The explanation that a reply to the method holds, or None and the reason why there is none."""
    return pairs.parse(reply) if name == pairs.METHOD else METHODS[name].read(reply)


def evidence(
    exemplars: pl.DataFrame,
    associations: pl.DataFrame,
    texts: Mapping[str, Sequence[str]],
    words: Mapping[int, str],
    *,
    connections: pl.DataFrame | None = None,
    spelled: Mapping[int, str] | None = None,
) -> dict[pairs.NeuronKey, Evidence]:
    """What may be shown of each neuron that has exemplars of split `explain`, by layer, neuron and polarity.

    `texts` has the display strings of each sequence, `words` that of each token of the corpus. `connections` are rows of
    that table and `spelled` has every token of the vocabulary; without them there is no evidence of weights.
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
    joined = (
        {} if connections is None else {(row["layer"], row["neuron"]): row for row in connections.iter_rows(named=True)}
    )
    found: dict[pairs.NeuronKey, Evidence] = {}
    for row in rows.iter_rows(named=True):
        key = pairs.NeuronKey(row["layer"], row["neuron"], row["polarity"])
        weights = _weights(joined.get((key.layer, key.neuron), {}), key.polarity, spelled or {})
        found[key] = Evidence(
            excerpts=[
                list(zip(pairs.token_texts(texts, sequence_id, len(scaled)), scaled, strict=True))
                for sequence_id, scaled in zip(row["sequence_id"], row["scaled_activations"], strict=True)
            ],
            exemplar_ids=row["exemplar_id"],
            tokens=_strongest(row, words),
            exciting=_scaled(weights["input"][:TOKENS]),
            promoted=[word for word, _ in weights["promoted"][:OUTPUTS]],
            suppressed=[word for word, _ in weights["suppressed"][:OUTPUTS]],
            parents={
                "excerpts": row["identity"],
                "tokens": [row["table"]] if row["table"] is not None else [],
                "weights": weights["identity"],
            },
        )
    return found


def _weights(row: Mapping[str, Any], polarity: str, spelled: Mapping[int, str]) -> dict[str, Any]:
    """What the weights of one neuron say on one side of zero: (token, strength above zero), strongest first.

    On the negative side what it writes is negated, and so is what excites it. A token that is no whole text is left out.
    """
    same, other = ("negative", "positive") if polarity == "-" else ("positive", "negative")

    def listed(name: str) -> list[tuple[str, float]]:
        ranked = zip(row.get(f"{name}_token_ids") or (), row.get(f"{name}_strengths") or (), strict=True)
        words = ((spelled.get(token, ""), abs(strength)) for token, strength in ranked)
        return [(word, strength) for word, strength in words if word and "\ufffd" not in word]

    return {
        "input": listed(f"input_{same}"),
        "promoted": listed(f"output_{same}"),
        "suppressed": listed(f"output_{other}"),
        "identity": [row["identity"]] if row else [],
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
    return _scaled([(word, mean) for mean, word in sorted(means, key=lambda one: (-one[0], one[1]))[:TOKENS]])


def _scaled(ranked: Sequence[tuple[str, float]]) -> list[tuple[str, int]]:
    """These values, strongest first, as whole numbers of which the first is 10; none below a half."""
    if not ranked or ranked[0][1] <= 0:
        return []
    return [(word, scaled) for word, value in ranked if (scaled := round(10 * value / ranked[0][1])) >= 1]


@cache
def _cases(file: str, beside: str | None) -> tuple[tuple[str, Evidence], ...]:
    """Worked cases: the explanation that the evidence deserves, and the evidence."""
    if file == "cases.json":
        more: dict[str, Any] = json.loads(prompts.load(beside).text) if beside else {}
        return tuple(
            (case.explanation, Evidence(excerpts=case.excerpts, **more.get(case.explanation, {})))
            for case in prompts.cases()
        )
    return tuple((case["explanation"], _evidence(case)) for case in json.loads(prompts.load(file).text))


def _evidence(case: Mapping[str, Any]) -> Evidence:
    tokens = tuple((token, value) for token, value in case.get("tokens", ()))
    return Evidence(
        excerpts=tuple(((token, activation), (after, 0)) for token, after, activation in case.get("pairs", ())),
        tokens=tokens,
        exciting=tokens,
    )
