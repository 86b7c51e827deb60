"""Explanations: one statement about one neuron, from one explainer, or the reason why there is none.

The explanations of the baselines are made in `pipeline.baselines`, without a language model. Here the replies of a
language model become rows beside them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl

from pipeline import methods as ways
from pipeline import token_activation_pairs as pairs
from pipeline.evidence import Evidence
from pipeline.languages import ENGLISH, in_language
from pipeline.methods import METHODS
from pipeline.ports import Reply, Request
from pipeline.provenance import identity, short
from pipeline.tables import TABLES


class Question(NamedTuple):
    """One neuron on one side of zero, asked about by one method."""

    layer: int
    neuron: int
    polarity: str
    method: str = pairs.METHOD

    @property
    def key(self) -> pairs.NeuronKey:
        return pairs.NeuronKey(self.layer, self.neuron, self.polarity)


Asked = list[tuple[Question, Request]]

NEVER_ASKED = ("dead_neuron", "not_seen_firing", "no_exemplars", "no_linear_form", "no_evidence")
"""Reasons that lie in the neuron and not in an answer."""

FOUND_NOTHING = (*NEVER_ASKED, "constant_activation", "constant_simulation")
"""Reasons with which no answer is missing: no hypothesis followed the neuron, so none was chosen (`pipeline.best_of`)."""


def requests(
    baselines: pl.DataFrame,
    exemplars: pl.DataFrame,
    texts: Mapping[str, Sequence[str]],
    *,
    model: str,
    seed: int,
    methods: Sequence[str] = (pairs.METHOD,),
    evidence: Mapping[pairs.NeuronKey, Evidence] | None = None,
    spoken: str = ENGLISH,
) -> Asked:
    """The requests to explain every neuron that has something to show, by each of the methods.

    `baselines` are the rows of `pipeline.baselines.explanations`: a neuron without a token-lookup explanation is
    dead or was never seen firing, and nothing is asked about it. `evidence` is that of `pipeline.evidence`, which all
    methods but `token-activation-pairs` need. `spoken` is the language of the explanations.
    """
    at = ["layer", "neuron", "polarity"]
    alive = baselines.filter((pl.col("method") == "token-lookup") & pl.col("text").is_not_null())
    asked: Asked = []
    for method in methods:
        if method == pairs.METHOD:
            shown = exemplars.filter(pl.col("split") == "explain").join(alive.select(at), on=at, how="semi")
            for key, request in pairs.requests(shown, texts, model=model, seed=seed):
                asked.append((Question(*key, method), in_language(request, spoken)))
        else:
            living = set(alive.select(at).iter_rows())
            for key, found in (evidence or {}).items():
                question = METHODS[method].request(found, model=model, seed=seed) if tuple(key) in living else None
                if question is not None:
                    asked.append((Question(*key, method), in_language(question, spoken)))
    return asked


def rows(
    asked: Asked,
    replies: Sequence[Reply],
    baselines: pl.DataFrame,
    exemplars: pl.DataFrame,
    *,
    model: str,
    methods: Sequence[str] = (pairs.METHOD,),
    evidence: Mapping[pairs.NeuronKey, Evidence] | None = None,
    spoken: str = ENGLISH,
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
    for (question, _), reply in zip(asked, replies, strict=True):
        texts, reason = ways.read(question.method, reply)
        if question.method == pairs.METHOD:
            exemplar_ids, parents = shown[question.key]
        else:
            method, seen = METHODS[question.method], (evidence or {})[question.key]
            exemplar_ids, parents = method.exemplars(seen), method.parents(seen)
        found.extend(
            _row(
                question,
                model=model,
                text=text,
                reason=reason,
                request_id=reply.request_id,
                exemplar_ids=exemplar_ids,
                parents=parents,
                spoken=spoken,
            )
            for text in texts or (None,)
        )
    known = {question for question, _ in asked}
    lookup = baselines.filter(pl.col("method") == "token-lookup")
    for layer, neuron, polarity, text, reason in lookup.select(
        "layer", "neuron", "polarity", "text", "missing_because"
    ).iter_rows():
        for name in methods:
            question = Question(layer, neuron, polarity, name)
            if question not in known:
                # Either nothing is to be said of the neuron, or this method has nothing to show of it.
                why = reason if text is None else "no_evidence"
                found.append(
                    _row(
                        question, model=model, text=None, reason=why, request_id=None, exemplar_ids=[], parents=[],
                        spoken=spoken,
                    )
                )  # fmt: skip
    schema = {name: kind for name, kind in TABLES["explanations"].schema.items() if name != "run_id"}
    return pl.DataFrame(found, schema=schema)


def _row(
    key: Question,
    *,
    model: str,
    text: str | None,
    reason: str | None,
    request_id: str | None,
    exemplar_ids: list[str],
    parents: list[str],
    spoken: str,
) -> dict[str, object]:
    made = identity(
        "explanation",
        layer=key.layer,
        neuron=key.neuron,
        polarity=key.polarity,
        method=key.method,
        explainer=model,
        prompt=ways.prompt_hash(key.method, spoken),
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
        "method": key.method,
        "explainer": model,
        "text": text,
        "missing_because": reason,
        "prompt_hash": ways.prompt_hash(key.method, spoken),
        "request_id": request_id,
        "exemplar_ids": exemplar_ids,
        "identity": made,
    }
