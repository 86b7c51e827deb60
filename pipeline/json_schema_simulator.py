"""The simulator whose reply the endpoint holds to its shape: one excerpt to the request, and a number for every index of it.

What is asked is what `pipeline.json_simulator` asks. The reply is an object with one entry for each token, and the request
carries a JSON Schema that requires each of them and allows no other (`response_format` of type `json_schema`). So a small
model, which does not stop at the last token by itself, neither runs on nor leaves one out. The schema keeps to what
OpenAI's strict mode, vLLM and llama.cpp's server share: names, and a closed list of values.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from pipeline import prompts
from pipeline.json_simulator import Simulated, missing, paired, question, read_pairs
from pipeline.ports import Reply, Request
from pipeline.token_activation_pairs import token_texts

PROMPT_HASH = prompts.prompt_hash(("simulate-schema.system.txt", "simulate.user.txt", "cases.json"))
"""Of every file that a request of this simulator is made from."""


def requests(
    explanations: pl.DataFrame,
    exemplars: pl.DataFrame,
    tokens: Mapping[str, Sequence[str]],
    *,
    model: str,
    seed: int,
) -> Iterator[tuple[tuple[str, str], Request]]:
    """For each explanation with a text and each exemplar of its neuron: (explanation_id, exemplar_id) and the request.

    Arguments and errors as in `pipeline.json_simulator.requests`.
    """
    beginning = _beginning()
    for explanation_id, exemplar_id, text, sequence_id, n_tokens in paired(explanations, exemplars).iter_rows():
        yield (
            (explanation_id, exemplar_id),
            Request(
                model=model,
                messages=(*beginning, ("user", question(text, token_texts(tokens, sequence_id, n_tokens)))),
                temperature=0.0,
                max_tokens=64 + 12 * n_tokens,
                seed=seed,
                # Not canonical JSON, which would sort the names: a reply is written in the order that the schema has.
                shape=json.dumps(shape(n_tokens), separators=(",", ":")),
            ),
        )


def shape(n_tokens: int) -> dict[str, Any]:
    """The JSON Schema of a reply about so many tokens."""
    indices = [str(index) for index in range(n_tokens)]
    return {
        "type": "object",
        "properties": {
            "activations": {
                "type": "object",
                "properties": {index: {"$ref": "#/$defs/activation"} for index in indices},
                "required": indices,
                "additionalProperties": False,
            }
        },
        "required": ["activations"],
        "additionalProperties": False,
        "$defs": {"activation": {"type": "integer", "enum": list(range(11))}},
    }


def parse(reply: Reply, n_tokens: int) -> Simulated:
    """A number from 0 to 10 for each of the `n_tokens` tokens of which the reply says one, or nothing and the reason.

    Reasons as in `pipeline.json_simulator.parse`: an endpoint may take a schema and not hold to it.
    """
    if reply.missing_because is not None or reply.text is None:
        return missing(reply.missing_because or "unparsable")
    match prompts.read_object(reply.text):
        case {"activations": dict(found), **others} if not others and all(
            name.isascii() and name.isdigit() and len(name) < 10 for name in found
        ):
            # `01` would be another spelling of 1, which nobody asked for.
            if any(name != str(int(name)) for name in found):
                return missing("unparsable")
            return read_pairs([[int(name), value] for name, value in found.items()], n_tokens)
    return missing("unparsable")


def _beginning() -> list[tuple[str, str]]:
    """What every request starts with, worked cases included: the same for all, so that providers cache it."""
    messages = [("system", prompts.load("simulate-schema.system.txt").fill())]
    for case in prompts.cases():
        excerpt = case.excerpts[0]
        answer = {str(index): activation for index, (_, activation) in enumerate(excerpt)}
        messages.append(("user", question(case.explanation, [token for token, _ in excerpt])))
        messages.append(("assistant", prompts.as_data({"activations": answer})))
    return messages
