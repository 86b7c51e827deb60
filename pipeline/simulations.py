"""Simulations: what a neuron should do on a sequence, if its explanation were all there is to know.

The simulations of the baselines are made in `pipeline.baselines`, from token tables. Here the replies of a language
model become rows beside them, in one of these ways:

    json            one excerpt to the request
    json-many       five excerpts to the request, which costs about half
    json-sparse     ten excerpts to the request, and only where the neuron is active in the reply, which costs least
    json-closed     as `json-sparse`, and each list says that it went to the end, so that stopping early is not silence
    json-schema     one excerpt to the request, and the endpoint holds the reply to a number for every token
    json-logprobs   as `json`, with what was likely in the place of each number
    all-at-once     a prompt with every activation left out, and what was likely in their places: one request to the excerpt
    one-at-a-time   the same prompt up to each of its tokens, and what was likely to come next: one request to the token

The last three exist as `json-logprobs-9`, `all-at-once-9` and `one-at-a-time-9` too, on a scale from 0 to 9: there every
number is one digit, so a model that spells 10 in two tokens can be asked. `expected` is then from 0 to 9.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import polars as pl

from pipeline import (
    json_many_simulator,
    json_schema_simulator,
    json_simulator,
    json_sparse_simulator,
    logprobs_simulator,
    prompt_simulator,
)
from pipeline.digits import DIGITS_ONLY, Distribution
from pipeline.json_simulator import Simulated
from pipeline.ports import Reply, Request
from pipeline.provenance import identity
from pipeline.tables import TABLES

Way = Literal[
    "json", "json-many", "json-sparse", "json-closed", "json-schema", "json-logprobs", "json-logprobs-9", "all-at-once",
    "all-at-once-9", "one-at-a-time", "one-at-a-time-9",
]  # fmt: skip
PROMPT_HASHES: dict[Way, str] = {
    "json": json_simulator.PROMPT_HASH,
    "json-many": json_many_simulator.PROMPT_HASH,
    "json-sparse": json_sparse_simulator.PROMPT_HASH,
    "json-closed": json_sparse_simulator.CLOSED_PROMPT_HASH,
    "json-schema": json_schema_simulator.PROMPT_HASH,
    "json-logprobs": logprobs_simulator.PROMPT_HASH,
    "json-logprobs-9": logprobs_simulator.DIGITS_PROMPT_HASH,
    "all-at-once": prompt_simulator.PROMPT_HASHES["all-at-once"],
    "all-at-once-9": prompt_simulator.PROMPT_HASHES["all-at-once-9"],
    "one-at-a-time": prompt_simulator.PROMPT_HASHES["one-at-a-time"],
    "one-at-a-time-9": prompt_simulator.PROMPT_HASHES["one-at-a-time-9"],
}
PROBABILITIES: tuple[Way, ...] = ("json-logprobs", "json-logprobs-9")
"""The ways that ask a chat for probabilities, so that a judge may be asked for them too."""
MANY: dict[Way, Any] = {
    "json-many": (json_many_simulator.requests, json_many_simulator.parse),
    "json-sparse": (json_sparse_simulator.requests, json_sparse_simulator.parse),
    "json-closed": (
        partial(json_sparse_simulator.requests, closed=True), partial(json_sparse_simulator.parse, closed=True),
    ),
}  # fmt: skip
"""Those that read several excerpts at once: what they ask, and how they read."""
ONE_BY_ONE: dict[Way, Any] = {
    "json": (json_simulator.requests, json_simulator.parse),
    "json-schema": (json_schema_simulator.requests, json_schema_simulator.parse),
    "json-logprobs": (logprobs_simulator.requests, logprobs_simulator.parse),
    "json-logprobs-9": (
        partial(logprobs_simulator.requests, most=DIGITS_ONLY), partial(logprobs_simulator.parse, most=DIGITS_ONLY),
    ),
    "all-at-once": (prompt_simulator.requests_at_once, prompt_simulator.parse_at_once),
    "all-at-once-9": (
        partial(prompt_simulator.requests_at_once, most=DIGITS_ONLY),
        partial(prompt_simulator.parse_at_once, most=DIGITS_ONLY),
    ),
}  # fmt: skip
"""Those that read one excerpt at a time."""
BY_TOKEN: dict[Way, Any] = {
    "one-at-a-time": (prompt_simulator.requests_by_token, prompt_simulator.parse_by_token),
    "one-at-a-time-9": (
        partial(prompt_simulator.requests_by_token, most=DIGITS_ONLY),
        partial(prompt_simulator.parse_by_token, most=DIGITS_ONLY),
    ),
}  # fmt: skip
"""Those that read the replies for all tokens of an excerpt together."""

PARSER_VERSION = 2
"""Of what is read from a reply: since 2, a reply that lacks some tokens keeps the others."""


def parser_version(way: Way) -> int:
    """The same for one way: since 3, one-at-a-time takes a 1 for a 1 only where a 10 would have been told from it."""
    return 3 if way == "one-at-a-time" else PARSER_VERSION


Keys = tuple[tuple[tuple[str, str], ...], ...]
"""For each excerpt of a request the (explanation_id, exemplar_id) that it answers."""
Asked = list[tuple[Keys, Request]]


def requests(
    explanations: pl.DataFrame,
    exemplars: pl.DataFrame,
    texts: Mapping[str, Sequence[str]],
    *,
    model: str,
    seed: int,
    way: Way = "json",
) -> Asked:
    """The requests to simulate every explanation that a language model wrote, on every exemplar to be scored."""
    written = explanations.filter((pl.col("explainer") != "none") & pl.col("text").is_not_null())
    scored = exemplars.filter(pl.col("split") == "score")
    if way in MANY:
        asked, _ = MANY[way]
        return list(asked(written, scored, texts, model=model, seed=seed))
    asked, _ = (ONE_BY_ONE | BY_TOKEN)[way]
    return [(((key,),), request) for key, request in asked(written, scored, texts, model=model, seed=seed)]


def rows(
    asked: Asked,
    replies: Sequence[Reply],
    explanations: pl.DataFrame,
    exemplars: pl.DataFrame,
    *,
    model: str,
    way: Way = "json",
) -> pl.DataFrame:
    """The `simulations` rows of those replies, without `run_id`."""
    said = {
        row["explanation_id"]: row for row in explanations.select("explanation_id", "identity").iter_rows(named=True)
    }
    shown = {row["exemplar_id"]: row for row in exemplars.filter(pl.col("split") == "score").iter_rows(named=True)}
    found: list[dict[str, object]] = []
    for explanation_id, exemplar_id, simulated, request_ids in _simulated(asked, replies, shown, way):
        exemplar = shown[exemplar_id]
        sign = -1.0 if exemplar["polarity"] == "-" else 1.0
        found.append(
            {
                "layer": exemplar["layer"],
                "neuron": exemplar["neuron"],
                "polarity": exemplar["polarity"],
                "explanation_id": explanation_id,
                "simulator": model,
                "exemplar_id": exemplar_id,
                "stratum": exemplar["stratum"],
                "rank": exemplar["rank"],
                "scale": "scaled",
                "expected": simulated.expected,
                "distribution_values": _each(simulated, lambda found: found.values),
                "distribution_probabilities": _each(simulated, lambda found: found.probabilities),
                "true": [sign * activation for activation in exemplar["activations"]],
                "missing_because": simulated.missing_because,
                "coverage": simulated.coverage,
                "request_ids": request_ids,
                "identity": identity(
                    "simulation",
                    explanation=said[explanation_id]["identity"],
                    exemplar=exemplar["identity"],
                    simulator=model,
                    prompt=PROMPT_HASHES[way],
                    request=request_ids[0] if len(request_ids) == 1 else request_ids,
                    expected=simulated.expected,
                    missing_because=simulated.missing_because,
                ),
            }
        )
    schema = {name: kind for name, kind in TABLES["simulations"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)


def _each(simulated: Simulated, part: Callable[[Distribution], Sequence[float]]) -> list[Sequence[float]] | None:
    """A part of each token's distribution, nothing where nothing is known."""
    if simulated.distributions is None:
        return None
    return [() if found is None else part(found) for found in simulated.distributions]


def _simulated(
    asked: Asked, replies: Sequence[Reply], shown: Mapping[str, Mapping[str, object]], way: Way
) -> Iterator[tuple[str, str, Simulated, list[str]]]:
    """Of each exemplar what its replies predict, and the requests that they answer."""
    if way in BY_TOKEN:
        _, parse_all = BY_TOKEN[way]
        of_exemplar: dict[tuple[str, str], list[Reply]] = {}
        for ((key,),), reply in ((keys, reply) for (keys, _), reply in zip(asked, replies, strict=True)):
            of_exemplar.setdefault(key, []).append(reply)
        for (explanation_id, exemplar_id), found in of_exemplar.items():
            ids = [reply.request_id for reply in found]
            yield explanation_id, exemplar_id, parse_all(found), ids
        return
    _, parse = (MANY | ONE_BY_ONE)[way]
    for (keys, _), reply in zip(asked, replies, strict=True):
        lengths = [len(shown[ids[0][1]]["token_ids"]) for ids in keys]  # type: ignore[arg-type]
        read = parse(reply, lengths) if way in MANY else [parse(reply, lengths[0])]
        for some, simulated in zip(keys, read, strict=True):
            for explanation_id, exemplar_id in some:
                yield explanation_id, exemplar_id, simulated, [reply.request_id]
