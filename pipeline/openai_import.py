"""OpenAI's files as rows: activation records, explanations with simulations and scores, related tokens and neurons.

Read are the public data of GPT-2 XL and GPT-2 small, what transformer-debugger writes (it renamed fields), and our own
exports; `pipeline.openai_format` describes the form. The files differ in this:

    splits      train, calibration, valid and test are places in a list, five of each, so they are told here by place.
                Old data have ten random records, five for calibration and five for valid.
    boundaries  `quantile_boundaries` begin and end with null in some data; the numbers between are kept
    scores      null where they are undefined; kept as a null with a reason
    `dataclass_name` is not needed: an object is known by where it stands
"""

import re
from collections.abc import Iterator, Mapping
from itertools import accumulate, chain
from typing import Any

import numpy as np

from pipeline import imports
from pipeline.capture import PER_SPLIT
from pipeline.errors import FormError
from pipeline.imports import Found, Lists, index, listing, mapping, number, numbers
from pipeline.tables import SPLITS

FORM = "openai"
PATH = re.compile(
    r"(?:(?P<root>.*)/)?(?P<kind>collated-activations|explanations|related-tokens/activation-based|"
    r"related-tokens/weight-based|related-neurons/weight-based)/(?:neurons/)?(?P<layer>[0-9]{1,6})/(?P<neuron>[0-9]{1,9})"
    r"\.jsonl?",
    re.ASCII,
)
"""A file of this form: `root` tells several sets of data apart."""

CONVENTIONS = {
    "site": "MLP neuron after the nonlinearity",
    "activation_function": "unknown; in OpenAI's public GPT-2 data x * sigmoid(1.702 x)",
    "number_format": "unknown; in OpenAI's public GPT-2 data float16, written with 4 decimals",
    "normaliser": "min(10, floor(10 * max(0, x) / the strongest activation shown))",
    "polarity": "+",
    "splits": "by place in the list of records, from one pool of sequences",
}
"""What the numbers of this form mean. A user who knows more says so."""

SCORES = ("ev_correlation", "rsquared", "absolute_dev_explained")
SCALES = {"neuron_activations": "neuron", "simulated_normalized_activations": "scaled"}
STRATA = ("q0", "q1", "q2", "q3", "q4")
RENAMED = {
    "sequence_simulation": "simulation",
    "unit": "activation_scale",
    "explanation_or_baseline": "explanation",
    "scored_explanation_or_baseline_list": "scored_explanations",
    "layer": "layer_index",
    "idx": "neuron_index",
}
"""Fields as transformer-debugger and older data name them, and as they are named here."""


def parse(text: str, match: re.Match[str], *, source: str, path: str, file: str) -> Found:
    """The rows of one file. `match` is that of PATH, `file` the hash of its bytes.

    Raises:
        FormError: the file is not of this form, is of another neuron than its path says, or holds a value that cannot be.
    """
    layer, neuron, kind = int(match["layer"]), int(match["neuron"]), match["kind"]
    found, at = Found(file), {"layer": layer, "neuron": neuron}
    if kind in ("related-tokens/activation-based", "related-tokens/weight-based", "related-neurons/weight-based"):
        name = {
            "related-tokens/activation-based": "token_means",
            "related-tokens/weight-based": "token_weights",
            "related-neurons/weight-based": "neuron_weights",
        }[kind]
        mapping(imports.parse_json(text), "the file")
        found.add("imported_neurons", **at, **{name: imports.text(text.strip(), "the file")})
        return found
    lines = [line for line in text.split("\n") if line.strip()]
    if kind == "explanations" and len(lines) != 1:
        raise FormError(
            f"there must be one line, not {len(lines)}",
            text.index(lines[1], text.index(lines[0]) + len(lines[0])) if lines else 0,
        )
    value = _named(imports.parse_json(text))
    of = mapping(_named(value.get("neuron_id")), "neuron_id")
    said = (
        index(of.get("layer_index"), "neuron_id.layer_index"),
        index(of.get("neuron_index"), "neuron_id.neuron_index"),
    )
    if said != (layer, neuron):
        raise FormError(f"the file is of neuron {said[0]}:{said[1]}, its name says {layer}:{neuron}")
    if kind == "explanations":
        _explanations(found, value, at, source=source, path=path, file=file)
    else:
        _records(found, value, at)
    return found


def _records(found: Found, value: Mapping[str, Any], at: Mapping[str, int]) -> None:
    boundaries = value.get("quantile_boundaries")
    moments = {name: number(value.get(name), name) for name in ("mean", "variance", "skewness", "kurtosis")}
    known = (
        []
        if boundaries is None
        else [number(one, "quantile_boundaries") for one in listing(boundaries, "quantile_boundaries")]
    )
    found.add(
        "imported_neurons", **at, **moments,
        quantile_boundaries=None if boundaries is None else [one for one in known if one is not None],
    )  # fmt: skip
    strata: dict[str, Any] = {
        "top": value.get("most_positive_activation_records", []),
        "random": value.get("random_sample", []),
    }
    by_quantile = value.get("random_sample_by_quantile")
    lists = [] if by_quantile is None else listing(by_quantile, "random_sample_by_quantile")
    if len(lists) > len(STRATA):
        raise FormError(f"random_sample_by_quantile must have at most {len(STRATA)} lists, and has {len(lists)}")
    strata |= dict(zip(STRATA, lists, strict=False))
    places: list[tuple[str, int, str]] = []
    parts: list[Mapping[str, Any]] = []
    for stratum, given in strata.items():
        records = listing(given, f"the records `{stratum}`")
        places += [(stratum, rank, split) for rank, split in enumerate(_splits(stratum, len(records)))]
        if set(map(type, records)) <= {dict}:
            parts += records
        else:
            parts += [mapping(one, f"record {rank} of `{stratum}`") for rank, one in enumerate(records)]
    if not parts:
        return

    def names(of: str) -> Iterator[str]:
        """Made only when something is wrong."""
        return (f"{of} of record {rank} of `{stratum}`" for stratum, rank, _ in places)

    words = imports.token_lists([one.get("tokens") for one in parts], names("tokens"))
    lengths = [len(said) for said in words]
    activations = imports.number_lists([one.get("activations") for one in parts], names("activations"), lengths)
    peaks = np.maximum.reduceat(np.concatenate(activations), list(accumulate(lengths[:-1], initial=0))).tolist()
    for (stratum, rank, split), said, values, peak in zip(places, words, activations, peaks, strict=True):
        found.add(
            "imported_records", **at, polarity="+", stratum=stratum, rank=rank, split=split, sequence_id=found.sequence(said),
            peak=peak, activations=values,
        )  # fmt: skip


def _splits(stratum: str, count: int) -> list[str]:
    """What each record of a list is for, by its place: those after the last that the loaders take are for nothing."""
    used: tuple[str, ...] = ()
    if stratum == "top":
        used = SPLITS
    elif stratum == "random":
        used = SPLITS[1:] if count >= 3 * PER_SPLIT else SPLITS[1:3]
    each = min(PER_SPLIT, count // len(used)) if used else 0
    return [used[rank % len(used)] if rank < each * len(used) else "none" for rank in range(count)]


def _explanations(
    found: Found, value: Mapping[str, Any], at: Mapping[str, int], *, source: str, path: str, file: str
) -> None:
    said = listing(value.get("scored_explanations"), "scored_explanations")
    for place, item in enumerate(said):
        where = f"explanation {place}"
        one = _named(item)
        words = imports.text(one.get("explanation"), where)
        key = imports.explanation_id(source=source, file=file, **at, polarity="+", place=place)
        found.add(
            "imported_explanations", **at, polarity="+", explanation_id=key, method=FORM, explainer="unknown",
            text=words, missing_because=None, path=path,
        )  # fmt: skip
        simulation = mapping(_named(one.get("scored_simulation")), f"the simulation of {where}")
        parts = listing(simulation.get("scored_sequence_simulations"), f"the sequences of {where}")
        _simulations(found, [_named(part) for part in parts], where, **at, explanation_id=key)
        for name in SCORES:
            score = number(simulation.get(f"{name}_score"), f"{name}_score of {where}")
            found.add(
                "imported_scores", **at, polarity="+", explanation_id=key, simulator="unknown", scorer=f"{FORM}:{name}",
                split="top_and_random", value=score, missing_because=None if score is not None else "not_given",
                n_sequences=len(parts),
            )  # fmt: skip


def _simulations(found: Found, parts: list[dict[str, Any]], where: str, **row: Any) -> None:
    names = [f"sequence {rank} of {where}" for rank in range(len(parts))]
    played = [
        mapping(_named(part.get("simulation")), f"the simulation of {name}")
        for part, name in zip(parts, names, strict=True)
    ]
    words = imports.token_lists([one.get("tokens") for one in played], [f"tokens of {name}" for name in names])
    lengths = [len(said) for said in words]

    def lists(name: str, of: list[Any]) -> list[np.ndarray]:
        return imports.number_lists([one.get(name) for one in of], [f"{name} of {one}" for one in names], lengths)

    expected, true = lists("expected_activations", played), lists("true_activations", parts)
    for rank, (one, name) in enumerate(zip(played, names, strict=True)):
        scale = one.get("activation_scale")
        if not isinstance(scale, str) or scale not in SCALES:
            imports.wrong(f"activation_scale of {name}", f"one of {sorted(SCALES)}", scale)
        values, shares = (
            _distribution(one.get(kind), f"{kind} of {name}", lengths[rank])
            for kind in ("distribution_values", "distribution_probabilities")
        )
        known = values is not None and shares is not None
        found.add(
            "imported_simulations", **row, polarity="+", simulator="unknown",
            # The viewer takes the first five as the strongest and the others as random; there are as many of each.
            stratum="top" if rank < len(parts) // 2 else "random", rank=rank,
            sequence_id=found.sequence(words[rank]), scale=SCALES[scale], expected=expected[rank], true=true[rank],
            distribution_values=values if known else None, distribution_probabilities=shares if known else None,
            missing_because=None,
        )  # fmt: skip


def _distribution(value: Any, where: str, count: int) -> Lists | None:
    """A list for each token; None where there is none at all, as with simulators without probabilities."""
    if value is None or value == []:
        return None
    found = listing(value, where)
    if len(found) != count:
        raise FormError(f"{where} must have one list for each of {count} tokens, and has {len(found)}")
    lengths = [len(listing(one, where)) for one in found]
    return Lists(numbers(list(chain.from_iterable(found)), where), np.array(lengths))


def _named(value: Any) -> dict[str, Any]:
    """An object with its fields under the names that are used here."""
    if not isinstance(value, dict):
        imports.wrong("the value", "an object", value)
    return {RENAMED.get(str(name), str(name)): one for name, one in value.items()}
