"""delphi's results as rows: `explanations/{hookpoint}_latent{i}.txt` and `scores/{scorer}/{hookpoint}_latent{i}.txt`.

The layer is the number in the hookpoint (`layers.5.mlp`). What its files do and is undone here:

    "Explanation could not be parsed." is a failure, and becomes a null with a reason
    a correlation may be the text "nan", and R2 and absolute deviation are always 0: neither is taken for a number
    a sequence stands in the simulation of its quantile and in that of all: it is taken once
    judgements without an answer (`prediction` null) count for nothing, and for no mistake
"""

import re
from collections.abc import Mapping
from typing import Any

from pipeline import imports
from pipeline.errors import FormError
from pipeline.imports import Found, listing, mapping, number, numbers, tokens, wrong

FORM = "delphi"
PATH = re.compile(
    r"(?:(?P<root>.*)/)?(?P<kind>explanations|scores/(?P<scorer>[a-z_]+))/"
    r"(?P<hookpoint>(?:[^/]*?[./-])?(?:layers?|h|blocks?)[._](?P<layer>[0-9]{1,6})(?![0-9])[^/]*)_latent(?P<neuron>[0-9]{1,9})\.txt",
    re.ASCII,
)
CONVENTIONS = {
    "site": "the output of the hookpoint in the file's name", "activation_function": "unknown", "number_format": "float16",
    "normaliser": "ceil(10 * x / the strongest activation); true activations of simulations are on this scale", "polarity": "+",
    "splits": "none: windows that an explainer was shown may be scored",
}  # fmt: skip
FAILED = "Explanation could not be parsed."
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
        failed = said == FAILED
        found.add(
            "imported_explanations", **at, method=FORM, explainer="unknown", text=None if failed or not said else said,
            missing_because="unparsable" if failed else None if said else "not_given", path=path,
        )  # fmt: skip
    elif match["scorer"] == "simulation":
        _simulations(found, listing(value, "the file"), at)
    elif match["scorer"] in JUDGED:
        _judgements(found, listing(value, "the file"), at, match["scorer"])
    else:
        raise FormError(
            f"scores of the kind `{match['scorer']}` cannot be read; known are simulation, {', '.join(JUDGED)}"
        )
    return found


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
