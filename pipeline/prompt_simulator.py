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
which. One-at-a-time asks for one more token, and can.
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
PROMPT_HASHES = {name: content_hash([name, _FILES]) for name in ("all-at-once", "one-at-a-time")}
"""Of every file that a request is made from, and of the simulator's name."""

LEFT_OUT = "?"


def requests_at_once(
    explanations: pl.DataFrame,
    exemplars: pl.DataFrame,
    tokens: Mapping[str, Sequence[str]],
    *,
    model: str,
    seed: int,
) -> Iterator[tuple[tuple[str, str], Request]]:
    """For each explanation with a text and each exemplar: (explanation_id, exemplar_id) and the request.

    The places to read are that of a 10 in a worked case, and that of each activation. Arguments and errors as in
    `pipeline.json_simulator.requests`.
    """
    for explanation_id, exemplar_id, text, sequence_id, n_tokens in paired(explanations, exemplars).iter_rows():
        prompt, places = _prompt(text, token_texts(tokens, sequence_id, n_tokens))
        yield (
            (explanation_id, exemplar_id),
            _request(prompt, model=model, seed=seed, max_tokens=1, echo=(_place_of_ten(prompt), *places)),
        )


def requests_by_token(
    explanations: pl.DataFrame,
    exemplars: pl.DataFrame,
    tokens: Mapping[str, Sequence[str]],
    *,
    model: str,
    seed: int,
) -> Iterator[tuple[tuple[str, str], Request]]:
    """The same, a request for each token in reading order."""
    for explanation_id, exemplar_id, text, sequence_id, n_tokens in paired(explanations, exemplars).iter_rows():
        prompt, places = _prompt(text, token_texts(tokens, sequence_id, n_tokens))
        for place in places:
            # The second token says whether a 1 goes on to 10.
            yield (explanation_id, exemplar_id), _request(prompt[:place], model=model, seed=seed, max_tokens=2)


def parse_at_once(reply: Reply, n_tokens: int) -> Simulated:
    """What is expected at each of the `n_tokens` tokens, or nothing and the reason.

    `no_probabilities`: none came, they do not fit the prompt, or 10 is no token of the model.
    """
    if reply.missing_because is not None:
        return missing(reply.missing_because)
    if reply.likely is None or len(reply.likely) != n_tokens + 1:
        return missing("no_probabilities")
    ten, *places = reply.likely
    if ten.token.rstrip("\r\n") != "10":
        return missing("no_probabilities")
    return of_distributions([distribution(one) if one.token.startswith(LEFT_OUT) else None for one in places])


def parse_by_token(replies: Sequence[Reply]) -> Simulated:
    """The same from the replies for all tokens, in reading order; nothing if one of them is missing, for its reason."""
    for reply in replies:
        if reply.missing_because is not None:
            return missing(reply.missing_because)
    next_ones = [reply.likely or () for reply in replies]
    alone = any(_is_begun_ten(likely) for likely in next_ones)
    return of_distributions(
        [distribution(likely[0], *likely[1:2], alone=alone) if likely else None for likely in next_ones]
    )


def _is_begun_ten(likely: Sequence[Likely]) -> bool:
    """Whether a 1 came, and a 0 may come after it."""
    return len(likely) > 1 and likely[0].token in {"1"} and any(text.startswith("0") for text, _ in likely[1].tokens)


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


def _prompt(explanation: str, texts: Sequence[str]) -> tuple[str, list[int]]:
    """The prompt, and the place in it of each activation, in characters, all of which are ASCII."""
    excerpt = _lines([(text, LEFT_OUT) for text in texts])
    prompt = prompts.load("simulate-prompt.txt").fill(
        cases=_cases(), explanation=prompts.as_data(explanation, ascii_only=True), excerpt=excerpt
    )
    places, end = [], len(prompt) - len(excerpt)
    for line in excerpt.split("\n"):
        end += len(line) + 1
        places.append(end - 1 - len(LEFT_OUT))
    return prompt, places


def _cases() -> str:
    """The worked cases: up to a third of each excerpt with its activations left out, then with them, the first that is
    not 0 among these."""
    shown = []
    for case in prompts.cases():
        excerpt = case.excerpts[0]
        active = [place for place, (_, activation) in enumerate(excerpt) if activation]
        shown_from = min(len(excerpt) // 3, *active)
        pairs = [
            (token, str(activation) if place >= shown_from else LEFT_OUT)
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
