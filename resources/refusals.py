"""Refusals: what an error status of an endpoint means for all that would still be asked, in words with the remedy."""

import re
from collections.abc import Sequence

from pipeline.ports import Request

FORM, OF_A_FORM = "response_format", frozenset({400, 422, 500})
"""What a form of replies that is not taken is answered with; llama-cpp-python's server calls that a fault of its own (500)."""
ELSEWHERE = frozenset({301, 302, 303, 307, 308})
NO_SUCH_MODEL = re.compile(r"\bmodel\b.*(not found|does not exist)", re.DOTALL)


def unusable(
    request: Request, status: int, words: str, codes: Sequence[str | None], *, endpoint: str, key_variable: str
) -> str | None:
    """Why an endpoint that answered so cannot be used, None if another request may fare better.

    `words` are those of the endpoint, without keys; `codes` what it names the error by.
    """
    if status in {400, 422} or (status in OF_A_FORM and FORM in words):
        return _of_a_form(request, words, codes, endpoint)
    if status in {404, 405}:
        return _of_a_place(request, words, endpoint)
    if status == 402 or (status == 429 and "insufficient_quota" in codes):
        return f"the account at {endpoint} has no money left ({words}): add to it, or use another key"
    elsewhere = (
        f"{endpoint} sends us on to another address, and nothing was sent there: check the base URL "
        "(https in place of http, a path that ends in /v1), and give the address itself if you trust it"
    )
    return dict.fromkeys(ELSEWHERE, elsewhere).get(status) or {
        401: f"{endpoint} refused the key ({words}): set the environment variable {key_variable} to a key of this endpoint",
        403: f"{endpoint} forbids `{request.model}` to this key ({words}): use another model, or a key that may use it",
    }.get(status)


def _of_a_form(request: Request, words: str, codes: Sequence[str | None], endpoint: str) -> str | None:
    """What it does not take of how we ask."""
    if request.shape and re.search(r"response_format|schema|grammar", words):
        return (
            f"{endpoint} does not hold replies to a JSON Schema ({words}): "
            "choose another --simulation, such as `json`, or another endpoint"
        )
    if request.logprobs and re.search(r"logprobs|echo", words):
        return (
            f"{endpoint} does not give the probabilities that were asked for ({words}): "
            "choose another --simulation, such as `json`, and --scorers without `surprisal`, or another endpoint"
        )
    if "unsupported_parameter" in codes or "unsupported_value" in codes:
        return f"{endpoint} does not take our requests for `{request.model}` ({words}): use another model"
    if "model_not_found" in codes or NO_SUCH_MODEL.search(words):
        return f"{endpoint} has no model `{request.model}` ({words}): check its name; {endpoint}/models lists models"
    return None


def _of_a_place(request: Request, words: str, endpoint: str) -> str:
    """What it has not, by what was asked for there."""
    match request.messages[0][0]:
        case "embed":
            return (
                f"{endpoint} has no model `{request.model}`, or gives no embeddings ({words}): check the model's "
                "name, or take an encoder in this process, `local:FOLDER`"
            )
        case "prompt":
            return (
                f"{endpoint} has no model `{request.model}`, or no completions of a plain prompt ({words}): check "
                "the model's name, or choose another --simulation, such as `json`, and --scorers without `surprisal`"
            )
    return (
        f"{endpoint} has no model `{request.model}`, or is not a chat endpoint ({words}): check the "
        f"model's name, and the base URL, which usually ends in /v1; {endpoint}/models lists models"
    )
