"""Plan: what a run would ask of language models and what that would cost, before anything is sent.

The requests are those that the assets would make, down to their identity, so what is kept already is known exactly.
Simulations depend on explanations that are not written yet: a text of the usual length stands in for each. Tokens are
estimated from the lengths of texts, by what the endpoint counted in replies that are kept.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import compress
from typing import Any

import polars as pl

from assets import ablations, explanations, judgements, scores
from assets.listening import heard
from assets.project import Project
from pipeline import human
from pipeline import simulations as played_by_model
from pipeline.ports import Lake, QuotingLanguageModel, Reply, Request, SubjectModel
from pipeline.rounds import USUAL, Heard, Listening, Round, driven
from pipeline.tables import TABLES
from pipeline.texts import display, token_texts

BYTES_PER_TOKEN = 2.5
"""Until a reply is kept: our prompts are much punctuation and numbers, of which a token holds less than of prose."""

USUAL_SHARE = 0.4
"""Of the most tokens that a reply may have, until one is kept: `[12,0],` is four or five of the twelve that are allowed."""

LATEST = 500
"""Kept replies that estimates are made from."""


@dataclass(frozen=True)
class Planned:
    """The requests of one table of one layer."""

    table: str
    layer: int
    model: str
    requests: int
    kept: int
    """Answered already, and not sent again."""
    prompt_tokens: int
    """About, of what would be sent."""
    completion_tokens: int
    cost_usd: float | None
    seconds: float | None
    """About, one request after the other; None while no reply is kept."""
    passes: int = 0
    """Of the subject, over one window each: what ablations take beside requests, which may be hours."""


@dataclass(frozen=True)
class _Sizes:
    """What the endpoint counted in kept replies of one model."""

    per_byte: float
    completions: dict[int, float] = field(default_factory=dict)
    """Mean tokens of a reply, by the most that the request allowed."""
    seconds: float | None = None

    def prompt(self, request: Request) -> float:
        return self.per_byte * _bytes(request.messages)

    def completion(self, request: Request) -> float:
        return self.completions.get(request.max_tokens, USUAL_SHARE * request.max_tokens)


def planned(
    lake: Lake, project: Project, language: QuotingLanguageModel, subject: SubjectModel, *, layers: Sequence[int]
) -> Iterator[Planned]:
    """What explaining and simulating these layers would ask. A layer that is not `ready` gives nothing.

    The subject reads sentences only if a kept reply holds them.
    """
    replacing = "ablations" in scores.more_inputs(project)
    causal = not replacing or subject.irreplaceable() is None
    for layer in layers:
        if not ready(lake, project, layer):
            continue
        inputs = {
            name: lake.read(name, layer=layer if TABLES[name].by_layer else None)
            for name in explanations.inputs(project)
        }
        written = human.explanations(project.choices.human, layer=layer)
        if (model := project.choices.explainer) is not None:
            requests, said = _explained(project, language, subject, inputs, layer=layer, model=model)
            written = explanations.together(written, said)
            for asked_of in dict.fromkeys((model, *(request.model for request in requests))):
                yield _stage(
                    "explanations", [request for request in requests if request.model == asked_of], layer=layer,
                    model=asked_of, language=language, sizes=_sizes(lake, asked_of),
                )  # fmt: skip
        if (model := project.choices.simulator) is not None and not written.is_empty():
            texts, choices = display(inputs["sequences"]), project.choices
            asked = played_by_model.requests(
                written, inputs["exemplars"], texts, model=model, seed=choices.seed, way=choices.simulation
            )
            requests = [request for _, request in asked]
            sizes = _sizes(lake, model)
            yield _stage("simulations", requests, layer=layer, model=model, language=language, sizes=sizes)
            for table in scores.more_inputs(project):
                found = {**inputs, "activations": lake.read("activations", layer=layer), "explanations": written}
                requests = _further(project, table, found) if causal or table != "ablations" else []
                for asked_of in dict.fromkeys(request.model for request in requests) or (model,):
                    some, sizes = [one for one in requests if one.model == asked_of], _sizes(lake, asked_of)
                    stage = _stage(table, some, layer=layer, model=asked_of, language=language, sizes=sizes)
                    yield replace(stage, passes=_passes(inputs, written)) if table == "ablations" and causal else stage
        elif model is None and replacing and causal:
            passes = _passes(inputs, explanations.baselines(inputs), more=0)
            yield Planned("ablations", layer, "none", 0, 0, 0, 0, 0.0, 0.0, passes=passes)


def _passes(inputs: Mapping[str, pl.DataFrame], written: pl.DataFrame, *, more: int = 2) -> int:
    """Passes of the subject that ablations take: one for each explanation and scored text, those of the `more` baselines
    included, and one for each neuron's mean."""
    at = ["layer", "neuron", "polarity"]
    texts = inputs["exemplars"].filter(pl.col("split") == "score").group_by(at).len("texts")
    found = written.filter(pl.col("text").is_not_null()).group_by(at).len("said").join(texts, on=at)
    return int(found.select(((pl.col("said") + more + 1) * pl.col("texts")).sum()).item() or 0)


def _further(project: Project, table: str, tables: Mapping[str, pl.DataFrame]) -> list[Request]:
    """The requests of a table that only some scorers need."""
    if table == "judgements":
        return [request for asked in judgements.questions(project, tables) for request in asked.requests]
    some = ablations.in_question(project, tables["explanations"])
    return [request for _, request in ablations.questions(project, some, tables, display(tables["sequences"]))]


def ready(lake: Lake, project: Project, layer: int) -> bool:
    """Whether a layer has exemplars, and what else the methods show, so that its requests are known."""
    return all(
        lake.rows(name, layer=layer if TABLES[name].by_layer else None)
        for name in ("exemplars", *explanations.more_inputs(project))
    )


def _explained(
    project: Project,
    language: QuotingLanguageModel,
    subject: SubjectModel,
    inputs: dict[str, pl.DataFrame],
    *,
    layer: int,
    model: str,
) -> tuple[list[Request], pl.DataFrame]:
    """The requests of all rounds of explaining, and the explanations as they are or will be."""
    about = explanations.about(project, explanations.baselines(inputs), inputs, layer=layer, neuron=None)
    requests: list[Request] = []

    def answer(asked: Round) -> list[Reply]:
        before = set(requests)
        requests.extend(request for request in asked.requests if request not in before)
        texts: Sequence[str | None] = asked.usual or [None] * len(asked.requests)
        return [
            reply or Reply(f"not sent {place}", text, missing_because="not_requested" if text is None else None)
            for place, (reply, text) in enumerate(zip(language.recall(asked.requests), texts, strict=True))
        ]

    def listen(asked: Listening) -> list[Heard]:
        real = [USUAL not in text for _, text in asked.texts]
        found = iter(
            heard(subject, Listening(list(compress(asked.texts, real))), layer=layer, length=project.choices.length)
        )
        return [next(found) if is_real else [(text, 0.0)] for is_real, (_, text) in zip(real, asked.texts, strict=True)]

    words = token_texts(inputs["sequences"])
    said = driven(explanations.rounds(project, about, inputs, model=model, words=words), answer, listen)
    # What is chosen among explanations that are not written yet will have words too.
    unknown = pl.col("missing_because") == "not_requested"
    said = said.with_columns(
        text=pl.when(unknown).then(pl.format("{}, {}", pl.lit(USUAL), "explanation_id")).otherwise("text"),
        missing_because=pl.when(~unknown).then("missing_because"),
    )
    return requests, explanations.with_controls(project, said, said, about)


def _stage(
    table: str, requests: Sequence[Request], *, layer: int, model: str, language: QuotingLanguageModel, sizes: _Sizes
) -> Planned:
    # What two neurons ask alike is sent once.
    to_send = {request for request, reply in zip(requests, language.recall(requests), strict=True) if reply is None}
    prompt = round(sum(sizes.prompt(request) for request in to_send))
    completion = round(sum(sizes.completion(request) for request in to_send))
    price = language.price(model)
    return Planned(
        table=table,
        layer=layer,
        model=model,
        requests=len(requests),
        kept=len(requests) - len(to_send),
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_usd=None if price is None else price.cost(prompt=prompt, completion=completion),
        seconds=None if sizes.seconds is None else sizes.seconds * len(to_send),
    )


def _sizes(lake: Lake, model: str) -> _Sizes:
    """Learnt from the latest kept replies of a model."""
    rows = (
        lake.scan("language_calls")
        .filter((pl.col("model") == model) & pl.col("prompt_tokens").is_not_null())
        .select("request", "prompt_tokens", "completion_tokens", "seconds", "answered_at", "batch_id")
        .collect()
        .sort("answered_at")
        .tail(LATEST)
    )
    if rows.is_empty():
        return _Sizes(1 / BYTES_PER_TOKEN)
    requests = [json.loads(request) for request in rows.get_column("request")]
    n_bytes = sum(_bytes(request["messages"]) for request in requests)
    replies = rows.with_columns(most=pl.Series([request["max_tokens"] for request in requests], dtype=pl.Int64))
    means = replies.drop_nulls("completion_tokens").group_by("most").agg(pl.col("completion_tokens").mean())
    # A reply that came in a batch waited for all the others.
    seconds = rows.filter(pl.col("batch_id").is_null()).get_column("seconds").mean()
    return _Sizes(
        per_byte=int(rows.get_column("prompt_tokens").sum()) / n_bytes,
        completions=dict(means.iter_rows()),
        seconds=seconds if isinstance(seconds, float) else None,
    )


def _bytes(messages: Sequence[Sequence[str]]) -> int:
    return sum(len(text.encode("utf-8", errors="replace")) for _, text in messages)


def spent(lake: Lake, *, by_neuron: bool = False) -> pl.DataFrame:
    """What was paid: one row for each table, layer and model, or for each neuron of those.

    A request that two neurons share counts for both. Money is unknown (null) where that of any reply is.
    """
    at = ["layer", "neuron"] if by_neuron else ["layer"]
    asked = pl.concat(
        lake.scan(table)
        .select(pl.lit(table).alias("table"), *at, request_id=requests)
        .explode("request_id", empty_as_null=False, keep_nulls=False)
        .drop_nulls("request_id")
        .unique()
        .collect()
        for table, requests in (
            ("explanations", pl.concat_list("request_id", pl.col("other_request_ids").fill_null([]))),
            ("simulations", pl.col("request_ids")),
            ("judgements", pl.concat_list("request_id", pl.col("other_request_ids").fill_null([]))),
            ("ablations", pl.col("request_ids")),
        )
    )
    calls = (
        lake.scan("language_calls")
        .select("request_id", "model", "batch_id", "prompt_tokens", "completion_tokens", "cost_usd")
        .collect()
    )
    return (
        asked.join(calls, on="request_id", how="inner")
        .group_by("table", *at, "model")
        .agg(
            pl.len().alias("requests"),
            pl.col("batch_id").count().alias("in_batches"),
            pl.col("prompt_tokens").sum(),
            pl.col("completion_tokens").sum(),
            cost_usd=pl.when(pl.col("cost_usd").null_count() == 0).then(pl.col("cost_usd").sum()),
        )
        .sort(*at, "table", "model")
    )


def total(lake: Lake) -> dict[str, Any]:
    """What all kept replies cost together, each counted once: requests, tokens, US dollars (None if any is unknown)."""
    columns = ("batch_id", "prompt_tokens", "completion_tokens", "cost_usd")
    calls = lake.scan("language_calls").select(columns).collect()
    costs = calls.get_column("cost_usd")
    return {
        "requests": len(calls),
        "in_batches": int(calls.get_column("batch_id").count()),
        "prompt_tokens": int(calls.get_column("prompt_tokens").sum() or 0),
        "completion_tokens": int(calls.get_column("completion_tokens").sum() or 0),
        "cost_usd": None if costs.null_count() else float(sum(costs)),
    }


def as_dict(stage: Planned) -> dict[str, Any]:
    """For `--json`."""
    return asdict(stage)
