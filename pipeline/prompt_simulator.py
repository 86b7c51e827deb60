"""The simulators that complete a prompt: an explanation and a text whose activations are left out, and what was likely there.

    all-at-once     one request to the excerpt: `?` stands for every activation, the endpoint echoes the prompt, and the
                    likely tokens in the place of each `?` are read
    one-at-a-time   one request to the token: the same prompt up to the place of its activation, and the likely tokens
                    that come next are read; for endpoints without `echo`

Both are of Bills et al. 2023 (`ExplanationNeuronSimulator`, `ExplanationTokenByTokenSimulator`). As there, the worked
cases show `?` first and activations from some token on, so that the model knows what `?` stands for. Where we differ:

- A token stands in its line as JSON in ASCII, so none can end a line, look like another, or be read as a control token,
  and places counted in characters are right whatever bytes the model's tokens hold. Nothing is found by its text.
- The sign for what is left out is `?` after a tab: in the tokenizers in use it begins a token there, as a digit does. The
  word `unknown` takes the tab along in newer ones, and then what would be read is not the place of a number.
- One-at-a-time asks with the whole layout, so both read the same places of the same prompt.

Where 10 is no token of the model, all-at-once cannot tell it from 1 and gives `no_probabilities`; a worked case shows
which. One-at-a-time asks for one more token, and can where the model wrote a 1; a 1 that was only likely is left out.
Both ask on the scale from 0 to 9 as well (`most`), where every number is one digit and is always told from the others. A
model in this process gives a 10 whole however it spells it (`resources.local_language`), so it needs no other scale.
"""

from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from pipeline import prompts
from pipeline.digits import distribution
from pipeline.json_simulator import Simulated, missing, of_distributions, paired
from pipeline.logprobs_simulator import LIKELY
from pipeline.ports import Likely, Reply, Request
from pipeline.provenance import content_hash
from pipeline.token_activation_pairs import token_texts

_FILES = prompts.prompt_hash(("simulate-prompt.txt", "cases.json"))
_DIGITS_FILES = prompts.prompt_hash(("simulate-prompt-9.txt", "cases.json"))
PROMPT_HASHES = {
    "all-at-once": content_hash(["all-at-once", _FILES]),
    "one-at-a-time": content_hash(["one-at-a-time", _FILES]),
    "all-at-once-9": content_hash(["all-at-once-9", _DIGITS_FILES]),
    "one-at-a-time-9": content_hash(["one-at-a-time-9", _DIGITS_FILES]),
}
"""Of every file that a request is made from, and of the simulator's name."""

LEFT_OUT = "?"


def requests_at_once(
    explanations: pl.DataFrame,
    exemplars: pl.DataFrame,
    tokens: Mapping[str, Sequence[str]],
    *,
    model: str,
    seed: int,
    most: int = 10,
) -> Iterator[tuple[tuple[str, str], Request]]:
    """For each explanation with a text and each exemplar: (explanation_id, exemplar_id) and the request.

    The places to read are that of a 10 in a worked case, if there are any, and that of each activation. Arguments and errors as in
    `pipeline.json_simulator.requests`.
    """
    for explanation_id, exemplar_id, text, sequence_id, n_tokens in paired(explanations, exemplars).iter_rows():
        prompt, places = _prompt(text, token_texts(tokens, sequence_id, n_tokens), most)
        ten = [_place_of_ten(prompt)] if most == 10 else []
        yield (
            (explanation_id, exemplar_id),
            _request(prompt, model=model, seed=seed, max_tokens=1, echo=(*ten, *places)),
        )


def requests_by_token(
    explanations: pl.DataFrame,
    exemplars: pl.DataFrame,
    tokens: Mapping[str, Sequence[str]],
    *,
    model: str,
    seed: int,
    most: int = 10,
) -> Iterator[tuple[tuple[str, str], Request]]:
    """The same, a request for each token in reading order."""
    for explanation_id, exemplar_id, text, sequence_id, n_tokens in paired(explanations, exemplars).iter_rows():
        prompt, places = _prompt(text, token_texts(tokens, sequence_id, n_tokens), most)
        # The second token says whether a 1 goes on to 10.
        max_tokens = 2 if most == 10 else 1
        for place in places:
            yield (explanation_id, exemplar_id), _request(prompt[:place], model=model, seed=seed, max_tokens=max_tokens)


def parse_at_once(reply: Reply, n_tokens: int, *, most: int = 10) -> Simulated:
    """What is expected at each of the `n_tokens` tokens, or nothing and the reason.

    `no_probabilities`: none came, they do not fit the prompt, or 10 is no token of the model.
    """
    if reply.missing_because is not None:
        return missing(reply.missing_because)
    before = int(most == 10)
    if reply.likely is None or len(reply.likely) != before + n_tokens:
        return missing("no_probabilities")
    if any(ten.token.rstrip("\r\n") != "10" for ten in reply.likely[:before]):
        return missing("no_probabilities")
    return of_distributions(
        [distribution(one, most=most) if one.token.startswith(LEFT_OUT) else None for one in reply.likely[before:]]
    )


def parse_by_token(replies: Sequence[Reply], *, most: int = 10) -> Simulated:
    """The same from the replies for all tokens, in reading order; nothing if one of them is missing, for its reason."""
    for reply in replies:
        if reply.missing_because is not None:
            return missing(reply.missing_because)
    next_ones = [reply.likely or () for reply in replies]
    alone = most == 10 and not _whole(next_ones)
    return of_distributions(
        [distribution(likely[0], *likely[1:2], alone=alone, most=most) if likely else None for likely in next_ones]
    )


def _whole(next_ones: Sequence[Sequence[Likely]]) -> bool:
    """Whether a 10 comes as one token: it was likely somewhere, or no reply goes on after its number."""
    seen = any(text == "10" for likely in next_ones for text, _ in (likely[0].tokens if likely else ()))
    return seen or all(len(likely) <= 1 for likely in next_ones)


def _request(prompt: str, *, model: str, seed: int, max_tokens: int, echo: tuple[int, ...] = ()) -> Request:
    return Request(
        model=model,
        messages=(("prompt", prompt),),
        temperature=0.0,
        max_tokens=max_tokens,
        seed=seed,
        json_reply=False,
        logprobs=LIKELY,
        echo=echo,
    )


def _prompt(explanation: str, texts: Sequence[str], most: int) -> tuple[str, list[int]]:
    """The prompt, and the place in it of each activation, in characters, all of which are ASCII."""
    excerpt = _lines([(text, LEFT_OUT) for text in texts])
    prompt = prompts.load("simulate-prompt.txt" if most == 10 else f"simulate-prompt-{most}.txt").fill(
        cases=_cases(most), explanation=prompts.as_data(explanation, ascii_only=True), excerpt=excerpt
    )
    places, end = [], len(prompt) - len(excerpt)
    for line in excerpt.split("\n"):
        end += len(line) + 1
        places.append(end - 1 - len(LEFT_OUT))
    return prompt, places


def _cases(most: int) -> str:
    """The worked cases: up to a third of each excerpt with its activations left out, then with them, the first that is
    not 0 among these."""
    shown = []
    for case in prompts.cases():
        excerpt = case.excerpts[0]
        active = [place for place, (_, activation) in enumerate(excerpt) if activation]
        shown_from = min(len(excerpt) // 3, *active)
        pairs = [
            (token, str(min(activation, most)) if place >= shown_from else LEFT_OUT)
            for place, (token, activation) in enumerate(excerpt)
        ]
        words = prompts.as_data(case.explanation, ascii_only=True)
        shown.append(f"\nExplanation: {words}\nExcerpt:\n{_lines(pairs)}\n")
    return "".join(shown).removesuffix("\n")


def _lines(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(
        f"{place}\t{prompts.as_data(token, ascii_only=True)}\t{activation}"
        for place, (token, activation) in enumerate(pairs)
    )


def _place_of_ten(prompt: str) -> int:
    """Where a worked case has an activation of 10."""
    return prompt.index("\t10\n") + 1
