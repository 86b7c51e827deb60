"""Simulations: what a neuron should do on a sequence, if its explanation were all there is to know.

The simulations of the baselines are made in `pipeline.baselines`, from token tables. Here the replies of a language
model become rows beside them.
"""

from collections.abc import Mapping, Sequence

import polars as pl

from pipeline import json_simulator as simulator
from pipeline.ports import Reply, Request
from pipeline.provenance import identity
from pipeline.tables import TABLES

Asked = list[tuple[tuple[str, str], Request]]


def requests(
    explanations: pl.DataFrame, exemplars: pl.DataFrame, texts: Mapping[str, Sequence[str]], *, model: str, seed: int
) -> Asked:
    """The requests to simulate every explanation that a language model wrote, on every exemplar to be scored."""
    written = explanations.filter((pl.col("explainer") != "none") & pl.col("text").is_not_null())
    scored = exemplars.filter(pl.col("split") == "score")
    return list(simulator.requests(written, scored, texts, model=model, seed=seed))


def rows(
    asked: Asked, replies: Sequence[Reply], explanations: pl.DataFrame, exemplars: pl.DataFrame, *, model: str
) -> pl.DataFrame:
    """The `simulations` rows of those replies, without `run_id`."""
    said = {
        row["explanation_id"]: row for row in explanations.select("explanation_id", "identity").iter_rows(named=True)
    }
    shown = {row["exemplar_id"]: row for row in exemplars.filter(pl.col("split") == "score").iter_rows(named=True)}
    found: list[dict[str, object]] = []
    for ((explanation_id, exemplar_id), _), reply in zip(asked, replies, strict=True):
        exemplar = shown[exemplar_id]
        sign = -1.0 if exemplar["polarity"] == "-" else 1.0
        simulated = simulator.parse(reply, len(exemplar["token_ids"]))
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
                    prompt=simulator.PROMPT_HASH,
                    request=reply.request_id,
                    expected=simulated.expected,
                    missing_because=simulated.missing_because,
                ),
            }
        )
    schema = {name: kind for name, kind in TABLES["simulations"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)
