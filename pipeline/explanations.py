"""Explanations: one statement about one neuron, from one explainer, or the reason why there is none.

The explanations of the baselines are made in `pipeline.baselines`, without a language model. Here the replies of a
language model become rows beside them.
"""

from collections.abc import Mapping, Sequence

import polars as pl

from pipeline import token_activation_pairs as pairs
from pipeline.ports import Reply, Request
from pipeline.provenance import identity, short
from pipeline.tables import TABLES

Asked = list[tuple[pairs.NeuronKey, Request]]

NEVER_ASKED = ("dead_neuron", "not_seen_firing", "no_exemplars", "no_linear_form")
"""Reasons that lie in the neuron and not in an answer."""


def requests(
    baselines: pl.DataFrame, exemplars: pl.DataFrame, texts: Mapping[str, Sequence[str]], *, model: str, seed: int
) -> Asked:
    """The requests to explain every neuron that has something to show.

    `baselines` are the rows of `pipeline.baselines.explanations`: a neuron without a token-lookup explanation is
    dead or was never seen firing, and nothing is asked about it.
    """
    at = ["layer", "neuron", "polarity"]
    alive = baselines.filter((pl.col("method") == "token-lookup") & pl.col("text").is_not_null())
    shown = exemplars.filter(pl.col("split") == "explain").join(alive.select(at), on=at, how="semi")
    return pairs.requests(shown, texts, model=model, seed=seed)


def rows(
    asked: Asked, replies: Sequence[Reply], baselines: pl.DataFrame, exemplars: pl.DataFrame, *, model: str
) -> pl.DataFrame:
    """The `explanations` rows of the language model for all neurons in `baselines`, without `run_id`."""
    shown = {
        pairs.NeuronKey(layer, neuron, polarity): (ids, made)
        for layer, neuron, polarity, ids, made in exemplars.filter(pl.col("split") == "explain")
        .sort("layer", "neuron", "polarity", "stratum", "rank")
        .group_by("layer", "neuron", "polarity", maintain_order=True)
        .agg("exemplar_id", "identity")
        .iter_rows()
    }
    found: list[dict[str, object]] = []
    for (key, _), reply in zip(asked, replies, strict=True):
        text, reason = pairs.parse(reply)
        exemplar_ids, parents = shown[key]
        found.append(
            _row(
                key,
                model=model,
                text=text,
                reason=reason,
                request_id=reply.request_id,
                exemplar_ids=exemplar_ids,
                parents=parents,
            )
        )
    silent = baselines.filter((pl.col("method") == "token-lookup") & pl.col("text").is_null())
    for layer, neuron, polarity, reason in silent.select("layer", "neuron", "polarity", "missing_because").iter_rows():
        key = pairs.NeuronKey(layer, neuron, polarity)
        found.append(_row(key, model=model, text=None, reason=reason, request_id=None, exemplar_ids=[], parents=[]))
    schema = {name: kind for name, kind in TABLES["explanations"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)


def _row(
    key: pairs.NeuronKey,
    *,
    model: str,
    text: str | None,
    reason: str | None,
    request_id: str | None,
    exemplar_ids: list[str],
    parents: list[str],
) -> dict[str, object]:
    made = identity(
        "explanation",
        layer=key.layer,
        neuron=key.neuron,
        polarity=key.polarity,
        method=pairs.METHOD,
        explainer=model,
        prompt=pairs.PROMPT_HASH,
        request=request_id,
        exemplars=list(parents),
        text=text,
        missing_because=reason,
    )
    return {
        "layer": key.layer,
        "neuron": key.neuron,
        "polarity": key.polarity,
        "explanation_id": short(made),
        "parent_id": None,
        "method": pairs.METHOD,
        "explainer": model,
        "text": text,
        "missing_because": reason,
        "prompt_hash": pairs.PROMPT_HASH,
        "request_id": request_id,
        "exemplar_ids": exemplar_ids,
        "identity": made,
    }
