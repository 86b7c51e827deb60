"""delphi's results as rows: explanations, scores, and the activations of its latents.

    explanations/{hookpoint}_latent{i}.txt          a text
    scores/{scorer}/{hookpoint}_latent{i}.txt       what a scorer was shown and said of each text
    latents/{hookpoint}/{first}_{last}.safetensors  sparse activations, see `pipeline.delphi_latents`

The layer is the number in the hookpoint (`layers.5.mlp`). What its files do and is undone here:

    "Explanation could not be parsed." is a failure, and becomes a null with a reason; so does "Explanation generation
    failed ...", which forks of it write
    a correlation may be the text "nan", and R2 and absolute deviation are always 0: neither is taken for a number
    a sequence stands in the simulation of its quantile and in that of all: it is taken once
    judgements without an answer (`prediction` null) count for nothing, and for no mistake
    an intruder test that failed has no sample, and is written as wrong: it counts for nothing
    a text that activates the latent is told by its `distance`, a whole number from 0 (its quantile); others have a float
    or a negative number

Where delphi's own code makes one number of a file, it is made here in the same way. Of embeddings and surprisal it makes
none: the area under the curve of similarities, and means, are given under names that say so.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import polars as pl

from pipeline import imports
from pipeline.errors import FormError
from pipeline.imports import Found, index, listing, mapping, number, numbers, tokens, wrong

FORM = "delphi"
PATH = re.compile(
    r"(?:(?P<root>.*)/)?(?P<kind>explanations|scores/(?P<scorer>[a-z_]+)|latents)/"
    r"(?P<hookpoint>(?:[^/]*?[./-])?(?:layers?|h|blocks?)[._](?P<layer>[0-9]{1,6})(?![0-9])[^/]*?)"
    r"(?:_latent(?P<neuron>[0-9]{1,9})\.txt|/(?P<first>[0-9]{1,9})_(?P<last>[0-9]{1,9})\.safetensors)",
    re.ASCII,
)
CONVENTIONS = {
    "site": "the output of the hookpoint in the file's name", "activation_function": "unknown", "number_format": "float16",
    "normaliser": "ceil(10 * x / the strongest activation); true activations of simulations are on this scale", "polarity": "+",
    "splits": "none: windows that an explainer was shown may be scored", "tokenizer": "token ids, where latents are imported",
}  # fmt: skip
FAILED = {"Explanation could not be parsed.": "unparsable", "Explanation generation failed": "server_error"}
"""How a text begins that stands for a failure, and the reason in our words."""
JUDGED = ("detection", "fuzz")


def parse(text: str, match: re.Match[str], *, source: str, path: str, file: str) -> Found:
    """The rows of one file.

    Raises:
        FormError: the file is not of this form.
    """
    found = Found(file)
    at: dict[str, Any] = {"layer": int(match["layer"]), "neuron": int(match["neuron"]), "polarity": "+"}
    # The explanation is another file: both must come to the same id.
    at["explanation_id"] = imports.explanation_id(
        source=source, file=match["hookpoint"].replace("--", "/"), **at, place=0
    )
    value = imports.parse_json(text)
    if match["kind"] == "explanations":
        said = imports.text(value, "the file").strip()
        failed = next((reason for start, reason in FAILED.items() if said.startswith(start)), None)
        missing = failed or (None if said else "not_given")
        found.add(
            "imported_explanations", **at, method=FORM, explainer="unknown", text=None if missing else said,
            missing_because=missing, path=path,
        )  # fmt: skip
    elif match["scorer"] == "simulation":
        _simulations(found, listing(value, "the file"), at)
    elif match["scorer"] in JUDGED:
        _judgements(found, listing(value, "the file"), at, match["scorer"])
    elif match["scorer"] in COUNTED:
        rows = [mapping(one, f"part {place}") for place, one in enumerate(listing(value, "the file"))]
        for name, score, count in COUNTED[match["scorer"]](rows):
            found.add(
                "imported_scores", **at, simulator="unknown", scorer=f"{FORM}:{match['scorer']}.{name}", split="all",
                value=score, missing_because=None if score is not None else "not_given", n_sequences=count,
            )  # fmt: skip
    else:
        known = ", ".join(("simulation", *JUDGED, *COUNTED))
        raise FormError(f"scores of the kind `{match['scorer']}` cannot be read; known are {known}")
    return found


Counted = Iterator[tuple[str, float | None, int]]
"""Names of scores, with their values and how many texts or tests they are of."""


def _intruder(rows: list[Mapping[str, Any]]) -> Counted:
    """The share of tests in which the text that does not belong was found; chance is one in as many as were shown."""
    right: list[bool] = []
    for place, row in enumerate(rows):
        if row.get("sample") is None:
            continue
        said, truth = (index(row.get(name), f"{name} of part {place}") for name in ("prediction", "correct_index"))
        if row.get("correct") is not (said == truth):
            wrong(f"correct of part {place}", f"{said == truth}, as its numbers say", row.get("correct"))
        right.append(said == truth)
    yield "accuracy", sum(right) / len(right) if right else None, len(right)


def _embedding(rows: list[Mapping[str, Any]]) -> Counted:
    """How often a text that activates the latent is more like the explanation than one that does not (ties count half)."""
    similar: dict[bool, list[float]] = {True: [], False: []}
    for place, row in enumerate(rows):
        value = number(row.get("similarity"), f"similarity of part {place}")
        if value is not None:
            similar[_activates(row, place)].append(value)
    both = all(similar.values())
    ranks = pl.Series([*similar[True], *similar[False]], dtype=pl.Float64).rank()
    n, others = len(similar[True]), len(similar[False])
    above = float(ranks.head(n).sum()) - n * (n + 1) / 2
    yield "auc", above / (n * others) if both else None, n + others


def _example_embedding(rows: list[Mapping[str, Any]]) -> Counted:
    """Means of how much nearer a text is to texts that activate the latent than to others."""
    for name in ("delta_plus", "delta_minus"):
        values = [number(row.get(name), f"{name} of part {place}") for place, row in enumerate(rows)]
        yield f"mean_{name}", *_mean(values)


def _surprisal(rows: list[Mapping[str, Any]]) -> Counted:
    """Nats by which the explanation makes a token of a text less surprising, of texts that activate the latent and others."""
    gains: dict[bool, list[float | None]] = {True: [], False: []}
    for place, row in enumerate(rows):
        without, with_it = (
            numbers(row.get(name), f"{name} of part {place}") for name in ("no_explanation", "explanation")
        )
        if len(without) != len(with_it):
            raise FormError(
                f"explanation of part {place} must have {len(without)} numbers, as without it, and has {len(with_it)}"
            )
        gains[_activates(row, place)].append(float((without - with_it).mean()) if len(without) else None)
    yield "mean_gain_activating", *_mean(gains[True])
    yield "mean_gain_others", *_mean(gains[False])


COUNTED: dict[str, Callable[[list[Mapping[str, Any]]], Counted]] = {
    "intruder": _intruder, "embedding": _embedding, "example_embedding": _example_embedding, "surprisal": _surprisal,
}  # fmt: skip


def _activates(row: Mapping[str, Any], place: int) -> bool:
    distance = row.get("distance")
    if type(distance) not in (int, float):
        wrong(f"distance of part {place}", "a number", distance)
    return type(distance) is int and distance >= 0


def _mean(values: list[float | None]) -> tuple[float | None, int]:
    known = [value for value in values if value is not None]
    return (sum(known) / len(known) if known else None), len(known)


def _judgements(found: Found, value: list[Any], at: Mapping[str, Any], scorer: str) -> None:
    """Balanced accuracy over the judgements that have an answer."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    for place, one in enumerate(value):
        row = mapping(one, f"judgement {place}")
        truth, said = row.get("activating"), row.get("prediction")
        if not isinstance(truth, bool):
            wrong(f"activating of judgement {place}", "true or false", truth)
        if said is None or said == -1:
            continue
        if said not in (True, False):
            wrong(f"prediction of judgement {place}", "true, false or null", said)
        right[truth].append(bool(said) == truth)
    both = all(right.values())
    score = sum(sum(answers) / len(answers) for answers in right.values()) / 2 if both else None
    found.add(
        "imported_scores", **at, simulator="unknown", scorer=f"{FORM}:{scorer}.balanced_accuracy", split="all", value=score,
        missing_because=None if both else "not_given", n_sequences=sum(map(len, right.values())),
    )  # fmt: skip


def _simulations(found: Found, value: list[Any], at: Mapping[str, Any]) -> None:
    wholes = [mapping(one, f"simulation {place}") for place, one in enumerate(value)]
    sizes = [len(listing(one.get("scored_sequence_simulations"), "its sequences")) for one in wholes]
    seen: set[tuple[str, bytes, bytes]] = set()
    for one, size in zip(wholes, sizes, strict=True):
        score = one.get("ev_correlation_score")
        score = None if score == "nan" else number(score, "ev_correlation_score")
        everything = size == max(sizes) and size == sum(sizes) - size if len(sizes) > 1 else True
        distance = number(one.get("distance"), "distance")
        split = "all" if everything or distance is None else f"quantile {distance:g}"
        found.add(
            "imported_scores", **at, simulator="unknown", scorer=f"{FORM}:simulation.ev_correlation", split=split, value=score,
            missing_because=None if score is not None else "not_given", n_sequences=size,
        )  # fmt: skip
        for part in one["scored_sequence_simulations"]:
            row = mapping(part, "a sequence")
            played = mapping(row.get("simulation"), "a simulation")
            words = tokens(played.get("tokens"), "tokens")
            expected = numbers(played.get("expected_activations"), "expected_activations", count=len(words))
            true = numbers(row.get("true_activations"), "true_activations", count=len(words))
            key = found.sequence(words), expected.tobytes(), true.tobytes()
            if key in seen:
                continue
            seen.add(key)
            far = number(row.get("distance"), "distance")
            found.add(
                "imported_simulations", **at, simulator="unknown", stratum="random" if far is not None and far < 0 else "top",
                rank=len(seen) - 1, sequence_id=key[0], scale="scaled", expected=expected, true=true, missing_because=None,
            )  # fmt: skip
