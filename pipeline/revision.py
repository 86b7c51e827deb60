"""Revision: an explanation tested on sentences written for it, and said again with what was found.

    revision          the language model writes ten sentences that fit the explanation and ten that do not; the subject reads
                      them; half of each is shown with the neuron's activations, and the explanation is revised
    revision-random   the control: revised with random texts on which the neuron is active at all, in place of sentences

Both are of Bills et al. 2023 ("Revising explanations"). The point is false positives: top activations never show where an
explanation claims too much. Where we differ: sentences that should not fit are asked for too; and a neuron's activations
are on the scale of its exemplars. The other half of the sentences is kept in the reply and shown to nobody, for a score
on sentences of this kind, which there is not yet: a revision is scored as its parent is, on documents of split `score`.

A revision has the explanation that it is made from as its parent. It sees no scored text.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import polars as pl

from pipeline import prompts
from pipeline.contrast import AT
from pipeline.evidence import Evidence, marked
from pipeline.languages import ENGLISH, in_language, language_hash
from pipeline.ports import Reply, Request
from pipeline.provenance import content_hash, identity, short
from pipeline.rounds import Listening, Round, Rounds, usual
from pipeline.scale import scale
from pipeline.tables import IN_PASSING, TABLES
from pipeline.token_activation_pairs import MAX_TOKENS, Excerpt, NeuronKey, parse, phrase

REVISION, RANDOM_REVISION = "revision", "revision-random"
NAMES = (REVISION, RANDOM_REVISION)

SENTENCES = 10
"""Asked for of each kind (Bills et al. 2023: ten that fit)."""

SENTENCE_TOKENS = 1_500
RANDOM_TEXTS = 10
"""Shown by the control: as many as sentences are shown."""

CASES = "revision-cases.json"


def prompt_hash(name: str, spoken: str = ENGLISH) -> str:
    """Of every file that the requests of the method are made from, in the language of its explanations."""
    files = [f"explain-{name}.system.txt", f"explain-{name}.user.txt", "cases.json", CASES]
    files += ["sentences.system.txt", "sentences.user.txt"] if name == REVISION else []
    found = prompts.prompt_hash(files)
    return found if spoken == ENGLISH else content_hash([found, language_hash(spoken)])


def rounds(
    parents: pl.DataFrame, evidence: Mapping[NeuronKey, Evidence], *, model: str, seed: int, spoken: str = ENGLISH
) -> Rounds:
    """Test each explanation of `parents` (rows of one method) with sentences, and end with the revised ones as rows."""
    said = parents.filter(pl.col("text").is_not_null())
    asked = [_for_sentences(text, model=model, seed=seed) for text in said.get_column("text")]
    replies: Sequence[Reply] = yield Round(asked, [_usual_sentences(request) for request in asked])
    written = [sentences(reply) for reply in replies]
    # The halves are cut by turns, because the last of a list tend to be the weakest.
    shown = [[*fitting[::2], *other[::2]] for (fitting, other), _ in written]
    neurons = said.get_column("neuron").to_list()
    heard = iter((yield Listening([(n, text) for n, texts in zip(neurons, shown, strict=True) for text in texts])))
    tested: list[list[str]] = []
    for row, texts, ((fitting, _), _) in zip(said.iter_rows(named=True), shown, written, strict=True):
        of_it = evidence[NeuronKey(row["layer"], row["neuron"], row["polarity"])]
        tested.append([])
        for place in range(len(texts)):
            if found := next(heard):
                expected = "active" if place < len(fitting[::2]) else "silent"
                pieces = marked(_scaled(found, of_it, row["polarity"]), values=True)
                tested[-1].append(prompts.as_data({"expected": expected, "found": pieces}))
    found = [
        (lines, reason, None if reason in IN_PASSING else reply.request_id)
        for lines, (_, reason), reply in zip(tested, written, replies, strict=True)
    ]
    return (yield from _revised(REVISION, parents, found, evidence, model=model, seed=seed, spoken=spoken))


def random_rounds(
    parents: pl.DataFrame,
    evidence: Mapping[NeuronKey, Evidence],
    texts: Mapping[NeuronKey, Sequence[Excerpt]],
    *,
    model: str,
    seed: int,
    spoken: str = ENGLISH,
) -> Rounds:
    """The control: each explanation of `parents` revised with the texts that `drawn` gives."""
    said = parents.filter(pl.col("text").is_not_null())
    found: list[tuple[list[str], str | None, str | None]] = []
    for key in said.select(AT).iter_rows():
        excerpts = texts.get(NeuronKey(*key), ())
        found.append(([prompts.as_data({"found": marked(one, values=True, least=1)}) for one in excerpts], None, None))
    return (yield from _revised(RANDOM_REVISION, parents, found, evidence, model=model, seed=seed, spoken=spoken))


def sentences(reply: Reply) -> tuple[tuple[list[str], list[str]], str | None]:
    """Sentences that fit and others, or none and the reason.

    `unparsable`: anything but an object of two lists `fitting` and `other`, each of 2 to 10 texts of 1 to 1,000 characters.
    """
    if reply.missing_because is not None or reply.text is None:
        return ([], []), reply.missing_because or "unparsable"
    match prompts.read_object(reply.text):
        case {"fitting": list(fitting), "other": list(other), **more} if not more:
            both = [[phrase(text) if isinstance(text, str) else None for text in texts] for texts in (fitting, other)]
            if all(2 <= len(texts) <= SENTENCES and None not in texts for texts in both):
                first, second = ([text for text in texts if text is not None] for texts in both)
                return (first, second), None
    return ([], []), "unparsable"


def drawn(
    records: pl.DataFrame,
    exemplars: pl.DataFrame,
    sequences: pl.DataFrame,
    texts: Mapping[str, Sequence[str]],
    *,
    seed: int,
) -> dict[NeuronKey, list[Excerpt]]:
    """For each neuron at most ten texts of split `explain` on which it is active, that are no exemplars, drawn by `seed`.

    Of the records that were drawn at random or by quantile. Active is 1 or more on the scale of the exemplars.
    """
    shown = exemplars.filter(pl.col("split") == "explain")
    found = (
        records.filter(pl.col("stratum") != "top")
        .join(shown.group_by(AT).agg(pl.col("scale_maximum").first()), on=AT)
        .join(sequences.filter(pl.col("split") == "explain").select("sequence_id"), on="sequence_id")
        .join(shown, on=[*AT, "sequence_id"], how="anti")
        .unique([*AT, "sequence_id"], keep="any")
        .select(*AT, "sequence_id", "activations", "scale_maximum")
    )
    ranked: dict[NeuronKey, list[tuple[bytes, Excerpt]]] = {}
    for layer, neuron, polarity, sequence_id, activations, maximum in found.iter_rows():
        key = NeuronKey(layer, neuron, polarity)
        scaled = _on_scale(activations, maximum, polarity)
        if max(scaled) >= 1:
            draw = hashlib.sha256(f"{seed} {layer} {neuron} {polarity} {sequence_id}".encode()).digest()
            excerpt = list(zip(texts[sequence_id], scaled, strict=True))
            ranked.setdefault(key, []).append((draw, excerpt))
    return {
        key: [excerpt for _, excerpt in sorted(several, key=lambda one: one[0])[:RANDOM_TEXTS]]
        for key, several in ranked.items()
    }


def _revised(
    name: str,
    parents: pl.DataFrame,
    found: Sequence[tuple[Sequence[str], str | None, str | None]],
    evidence: Mapping[NeuronKey, Evidence],
    *,
    model: str,
    seed: int,
    spoken: str,
) -> Rounds:
    """Ask for the revisions of those `parents` that have words, and end with a row for each parent.

    `found` has for each of those, in their order, what was found since, or the reason why nothing was; and the request
    that it took.
    """
    since = dict(zip(parents.filter(pl.col("text").is_not_null()).get_column("explanation_id"), found, strict=True))
    requests: dict[str, Request] = {}
    for row in parents.iter_rows(named=True):
        lines, *_ = since.get(row["explanation_id"], ((), None, None))
        if lines:
            of_it = evidence[NeuronKey(row["layer"], row["neuron"], row["polarity"])]
            request = _to_revise(name, row["text"], of_it.excerpts, lines, model=model, seed=seed)
            requests[row["explanation_id"]] = in_language(request, spoken)
    supposed = [prompts.as_data({"explanation": usual(request)}) for request in requests.values()]
    replies: Sequence[Reply] = yield Round(list(requests.values()), supposed)
    answered = dict(zip(requests, replies, strict=True))
    made: list[dict[str, Any]] = []
    for parent in parents.iter_rows(named=True):
        _, reason, before = since.get(parent["explanation_id"], ((), parent["missing_because"], None))
        text, reply = None, answered.get(parent["explanation_id"])
        if reply is not None:
            text, reason = parse(reply)
        request_id = None if reply is None else reply.request_id
        said = {"text": text, "missing_because": None if text is not None else reason or "no_evidence"}
        row = _row(name, parent, said, request_id=request_id, model=model, spoken=spoken)
        made.append(row | {"other_request_ids": None if before is None else [before]})
    schema = {column: kind for column, kind in TABLES["explanations"].schema.items() if column != "run_id"}
    return pl.DataFrame(made, schema=schema)


def _row(
    name: str,
    parent: Mapping[str, Any],
    said: dict[str, Any],
    *,
    request_id: str | None,
    model: str,
    spoken: str,
) -> dict[str, Any]:
    at = {column: parent[column] for column in AT} | {"method": name, "explainer": model}
    prompt = prompt_hash(name, spoken)
    made = identity("explanation", **at, **said, prompt=prompt, request=request_id, parent=parent["identity"])
    return (
        at
        | said
        | {"explanation_id": short(made), "identity": made, "prompt_hash": prompt, "request_id": request_id}
        | {"parent_id": parent["explanation_id"] if parent["text"] is not None else None}
        | {"exemplar_ids": parent["exemplar_ids"] if request_id is not None else []}
    )


def _for_sentences(explanation: str, *, model: str, seed: int) -> Request:
    question = prompts.load("sentences.user.txt").fill(explanation=prompts.as_data(explanation))
    return Request(
        model=model,
        messages=(("system", prompts.load("sentences.system.txt").fill()), ("user", question)),
        temperature=0.0,
        max_tokens=SENTENCE_TOKENS,
        seed=seed,
    )


def _usual_sentences(request: Request) -> str:
    words = usual(request)
    texts = [f"{words}, {place}" for place in range(SENTENCES)]
    return prompts.as_data({"fitting": texts, "other": texts})


def _to_revise(
    name: str, explanation: str, excerpts: Sequence[Excerpt], lines: Sequence[str], *, model: str, seed: int
) -> Request:
    return Request(
        model=model,
        messages=(*_beginning(name), ("user", _question(name, explanation, excerpts, lines))),
        temperature=0.0,
        max_tokens=MAX_TOKENS,
        seed=seed,
    )


@cache
def _beginning(name: str) -> tuple[tuple[str, str], ...]:
    """What every request to revise starts with, worked cases included."""
    excerpts = {case.explanation: case.excerpts for case in prompts.cases()}
    messages = [("system", prompts.load(f"explain-{name}.system.txt").fill())]
    for case in json.loads(prompts.load(CASES).text):
        found = [prompts.as_data(line) for line in case["sentences" if name == REVISION else "random"]]
        messages.append(("user", _question(name, case["before"], excerpts[case["explanation"]], found)))
        messages.append(("assistant", prompts.as_data({"explanation": case["explanation"]})))
    return tuple(messages)


def _question(name: str, explanation: str, excerpts: Sequence[Excerpt], lines: Sequence[str]) -> str:
    shown = [prompts.as_data(marked(excerpt, values=True)) for excerpt in excerpts]
    return prompts.load(f"explain-{name}.user.txt").fill(
        explanation=prompts.as_data(explanation), evidence="\n".join((*shown, *lines))
    )


def _scaled(heard: Sequence[tuple[str, float]], evidence: Evidence, polarity: str) -> Excerpt:
    """What was heard, on the scale of the neuron's exemplars."""
    values = _on_scale([activation for _, activation in heard], evidence.scale_maximum, polarity)
    return list(zip([token for token, _ in heard], values, strict=True))


def _on_scale(activations: Sequence[float], maximum: float, polarity: str) -> list[int]:
    sign = -1.0 if polarity == "-" else 1.0
    return [int(value) for value in scale(sign * np.asarray(activations, dtype=np.float64), maximum)]
