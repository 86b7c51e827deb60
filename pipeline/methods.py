"""Methods: the ways in which a language model is asked to explain a neuron, each with a prompt of its own.

    token-activation-pairs   excerpts as tokens with activations (`pipeline.token_activation_pairs`)
    highlight                the same excerpts as text, clearly active tokens marked
    highlight-values         marked with their activations
    highlight-reasoning      marked without, and the language model reasons before it answers
    contrastive              marked excerpts, and texts that hold the same tokens on which the neuron is quiet
    hypotheses:5             marked with activations, and several explanations asked for (2 to 5), a row for each
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
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from pipeline import prompts
from pipeline import token_activation_pairs as pairs
from pipeline.controls import CONTROLS, RANDOM
from pipeline.errors import SettingsError
from pipeline.evidence import CLEARLY, SHOWN_FROM, Evidence, Kind, marked
from pipeline.languages import ENGLISH, language_hash
from pipeline.ports import Reply, Request
from pipeline.provenance import content_hash
from pipeline.revision import NAMES as REVISING
from pipeline.revision import REVISION
from pipeline.revision import prompt_hash as revision_hash

BEFORE = 6
"""Tokens before an active one that `summary` shows."""

REASONING = "reasoning.json"
"""File with the reasoning of each worked case of `cases.json`."""

REASONING_TOKENS = 400

LOGITS = "logits.json"
"""File with the promoted and suppressed tokens of each worked case of `cases.json`."""

HYPOTHESES = "hypotheses"
MOST_HYPOTHESES = 5
BEST_OF = "best-of"

CONTRAST = "contrast.json"
"""File with quiet texts for each worked case of `cases.json`."""

Said = tuple[tuple[str, ...], str | None]
"""Explanations, and the reason if there is none."""


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
    number: int | None = None
    """Of explanations wanted, if that is not the one."""

    @property
    def prompt_hash(self) -> str:
        """Of every file that a request of this method is made from."""
        more = [self.beside] if self.beside else []
        more += [REASONING] if self.reasons else []
        more += [f"{HYPOTHESES}.json"] if self.number else []
        return prompts.prompt_hash((*self._files, self.cases, *more))

    @property
    def _files(self) -> tuple[str, str]:
        kind = self.name.partition(":")[0]
        return f"explain-{kind}.system.txt", f"explain-{kind}.user.txt"

    def request(self, evidence: Evidence, *, model: str, seed: int) -> Request | None:
        """The question about one neuron; None if there is nothing to show."""
        shown = self.show(evidence)
        if shown is None:
            return None
        return Request(
            model=model,
            messages=(*self._beginning(), ("user", self._question(shown))),
            temperature=0.0,
            max_tokens=pairs.MAX_TOKENS * (self.number or 1) + (REASONING_TOKENS if self.reasons else 0),
            seed=seed,
        )

    def read(self, reply: Reply) -> Said:
        """The explanations that a reply holds, or none and the reason."""
        if self.number:
            return _hypotheses(reply, self.number)
        text, reason = pairs.parse(reply, beside=("reasoning",) if self.reasons else ())
        return (() if text is None else (text,)), reason

    def answer(self, *explanations: str, reasoning: str = "") -> str:
        """A reply in the form that is asked for, as worked cases have it."""
        if self.number:
            return prompts.as_data({"explanations": list(explanations)})
        return prompts.as_data({**({"reasoning": reasoning} if self.reasons else {}), "explanation": explanations[0]})

    def parents(self, evidence: Evidence) -> list[str]:
        """Identities of what the question was made from."""
        return [parent for kind in self.kinds for parent in evidence.parents.get(kind, ())]

    def exemplars(self, evidence: Evidence) -> list[str]:
        """Exemplars that were shown."""
        return list(evidence.exemplar_ids) if "excerpts" in self.kinds else []

    def _beginning(self) -> list[tuple[str, str]]:
        """What every request starts with: the same for all neurons, so that providers cache it."""
        messages = [("system", prompts.load(self._files[0]).fill())]
        reasoning = json.loads(prompts.load(REASONING).text) if self.reasons else {}
        others = json.loads(prompts.load(f"{HYPOTHESES}.json").text) if self.number else {}
        for explanation, evidence in _cases(self.cases, self.beside):
            said = [explanation, *others.get(explanation, ())][: self.number]
            messages.append(("user", self._question(self.show(evidence) or "")))
            messages.append(("assistant", self.answer(*said, reasoning=reasoning.get(explanation, ""))))
        return messages

    def _question(self, shown: str) -> str:
        number = {"number": str(self.number)} if self.number else {}
        return prompts.load(self._files[1]).fill(evidence=shown, **number)


def _hypotheses(reply: Reply, number: int) -> Said:
    """At most `number` different explanations; one that is repeated counts once, and fewer are no fault.

    `unparsable`: anything but an object with one list `explanations` of 1 to `number` texts of 1 to 1,000 characters.
    """
    if reply.missing_because is not None or reply.text is None:
        return (), reply.missing_because or "unparsable"
    match prompts.read_object(reply.text):
        case {"explanations": list(found), **others} if not others and 0 < len(found) <= number:
            texts = [pairs.phrase(words) if isinstance(words, str) else None for words in found]
            said = tuple(dict.fromkeys(text for text in texts if text is not None))
            if None not in texts:
                return said, None
    return (), "unparsable"


def _marked(evidence: Evidence, *, values: bool) -> str | None:
    """Each excerpt as pieces of text, the clearly active tokens in brackets of their own."""
    return "\n".join(prompts.as_data(marked(excerpt, values=values)) for excerpt in evidence.excerpts) or None


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


def _contrasted(evidence: Evidence) -> str | None:
    """Marked excerpts, and quiet ones."""
    excerpts = _marked(evidence, values=False)
    if excerpts is None or not evidence.quiet:
        return None
    return "\n".join((excerpts, *(prompts.as_data({"quiet": text}) for text in evidence.quiet)))


def _with_logits(evidence: Evidence) -> str | None:
    """Marked excerpts, and what the neuron's output does to the tokens that come next."""
    excerpts = _marked(evidence, values=False)
    if excerpts is None or not (evidence.promoted or evidence.suppressed):
        return None
    promoted, suppressed = list(evidence.promoted), list(evidence.suppressed)
    return "\n".join((excerpts, prompts.as_data({"promotes": promoted}), prompts.as_data({"suppresses": suppressed})))


def _list(tokens: Sequence[tuple[str, int]]) -> str | None:
    return prompts.as_data(list(tokens)) if tokens else None


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("highlight", lambda evidence: _marked(evidence, values=False)),
        Method("highlight-values", lambda evidence: _marked(evidence, values=True)),
        Method("highlight-reasoning", lambda evidence: _marked(evidence, values=False), reasons=True),
        Method("contrastive", _contrasted, kinds=("excerpts", "quiet"), beside=CONTRAST),
        *(
            Method(f"{HYPOTHESES}:{number}", lambda evidence: _marked(evidence, values=True), number=number)
            for number in range(2, MOST_HYPOTHESES + 1)
        ),
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

CHOOSING = {f"{BEST_OF}:{number}": number for number in range(2, MOST_HYPOTHESES + 1)}
"""The methods that choose among so many hypotheses; see `pipeline.best_of`."""

NAMES = (*ASKING, *CHOOSING, *REVISING, *CONTROLS)


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
    for name in (RANDOM, *REVISING):
        if name in names and not set(names[: names.index(name)]) & set(ASKING):
            raise SettingsError(
                f"--methods (={text!r}): `{name}` takes the words of the first method; name that before it"
            )
    return names


def prompt_hash(name: str, language: str = ENGLISH) -> str:
    """Of every file that a request of the method is made from, in the language of its explanations."""
    if name in REVISING:
        return revision_hash(name, language)
    name = f"{HYPOTHESES}:{CHOOSING[name]}" if name in CHOOSING else name
    found = pairs.PROMPT_HASH if name == pairs.METHOD else METHODS[name].prompt_hash
    return found if language == ENGLISH else content_hash([found, language_hash(language)])


def tables(name: str) -> tuple[str, ...]:
    """The tables that what a method shows, or chooses by, is from."""
    if name in REVISING:
        # What the subject does on new sentences depends on its weights.
        return ("exemplars", "subject_layers" if name == REVISION else "activations")
    if name in CHOOSING:
        return (*tables(f"{HYPOTHESES}:{CHOOSING[name]}"), "activations")
    kinds = ("excerpts",) if name == pairs.METHOD else METHODS[name].kinds
    return tuple(table for kind in kinds for table in SHOWN_FROM[kind])


def read(name: str, reply: Reply) -> Said:
    """The explanations that a reply to the method holds, or none and the reason."""
    if name != pairs.METHOD:
        return METHODS[name].read(reply)
    text, reason = pairs.parse(reply)
    return (() if text is None else (text,)), reason


def answer(name: str, words: str) -> str:
    """A reply to the method in the form that is asked for, with as many explanations as are wanted."""
    if name == pairs.METHOD:
        return prompts.as_data({"explanation": words})
    method = METHODS[name]
    return method.answer(words, *(f"{words}, {place}" for place in range(2, (method.number or 1) + 1)))


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
