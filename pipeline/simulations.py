"""Simulations: what a neuron should do on a sequence, if its explanation were all there is to know.

The simulations of the baselines are made in `pipeline.baselines`, from token tables. Here the replies of a language
model become rows beside them, in one of these ways:

    json        one excerpt to the request
    json-many   five excerpts to the request, which costs about half
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import polars as pl

from pipeline import json_many_simulator, json_simulator
from pipeline.json_simulator import Simulated
from pipeline.ports import Reply, Request
from pipeline.provenance import identity
from pipeline.tables import TABLES

Way = Literal["json", "json-many"]
PROMPT_HASHES: dict[Way, str] = {"json": json_simulator.PROMPT_HASH, "json-many": json_many_simulator.PROMPT_HASH}

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
    if way == "json-many":
        return list(json_many_simulator.requests(written, scored, texts, model=model, seed=seed))
    return [
        (((key,),), request) for key, request in json_simulator.requests(written, scored, texts, model=model, seed=seed)
    ]


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
    for explanation_id, exemplar_id, simulated, reply in _simulated(asked, replies, shown, way):
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
                "distribution_values": None,
                "distribution_probabilities": None,
                "true": [sign * activation for activation in exemplar["activations"]],
                "missing_because": simulated.missing_because,
                "coverage": simulated.coverage,
                "request_ids": [reply.request_id],
                "identity": identity(
                    "simulation",
                    explanation=said[explanation_id]["identity"],
                    exemplar=exemplar["identity"],
                    simulator=model,
                    prompt=PROMPT_HASHES[way],
                    request=reply.request_id,
                    expected=simulated.expected,
                    missing_because=simulated.missing_because,
                ),
            }
        )
    schema = {name: kind for name, kind in TABLES["simulations"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)


def _simulated(
    asked: Asked, replies: Sequence[Reply], shown: Mapping[str, Mapping[str, object]], way: Way
) -> Iterator[tuple[str, str, Simulated, Reply]]:
    """Of each exemplar what its reply predicts."""
    for (keys, _), reply in zip(asked, replies, strict=True):
        lengths = [len(shown[ids[0][1]]["token_ids"]) for ids in keys]  # type: ignore[arg-type]
        found = (
            json_many_simulator.parse(reply, lengths)
            if way == "json-many"
            else [json_simulator.parse(reply, lengths[0])]
        )
        for ids, simulated in zip(keys, found, strict=True):
            for explanation_id, exemplar_id in ids:
                yield explanation_id, exemplar_id, simulated, reply
