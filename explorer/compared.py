"""What the pages that compare show: two moments of a lake, or two lakes, and one neuron of both.

The numbers are those of `pipeline.comparison`, as the command `compare` prints them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from explorer.index import FilterError, whole
from explorer.kept import Kept
from explorer.neuron_page import NotThereError
from pipeline import comparison
from pipeline.comparison import PARTS, TABLES, Comparison
from pipeline.ports import Lake
from resources.delta import collect

COLUMNS = {
    "exemplars": ("layer", "neuron", "polarity", "exemplar_id", "sequence_id", "activations"),
    "explanations": ("layer", "neuron", "polarity", "explanation_id", "text"),
    "simulations": ("layer", "explanation_id", "simulator", "exemplar_id", "expected", "true"),
    "scores": ("layer", "neuron", "polarity", "method", "simulator", "explanation_id", "scorer", "split", "value"),
}
"""What of each table a comparison reads."""
PAGE = 50
ALL = "all"
"""What an address names all layers by."""
MOST = 20_000
"""Neurons that a page compares; 6,400 take 3 s."""
AT_ONCE = 1_024
"""Neurons that are compared at a time."""


def side(lake: Lake, *, layer: int, neurons: Sequence[int]) -> dict[str, pl.DataFrame]:
    """What some neurons of a lake are compared by."""
    scans = [lake.scan(name, layer=layer, neurons=neurons).select(COLUMNS[name]) for name in TABLES]
    return dict(zip(TABLES, map(collect, scans), strict=True))


def whole_layers(a: Lake, b: Lake, layers: Sequence[int], *, seed: int = 0) -> Comparison:
    """The comparison of whole layers, some neurons at a time: what they are compared by is as large as the lakes."""
    wanted = pl.col("layer").is_in(list(layers))
    simulators, last = [], dict.fromkeys(layers, -1)
    for lake in (a, b):
        simulators.append(
            set(collect(lake.scan("scores").filter(wanted).select(pl.col("simulator").unique())).to_series())
        )
        ends = lake.scan("explanations").filter(wanted).group_by("layer").agg(pl.col("neuron").max())
        for layer, neuron in collect(ends).iter_rows():
            last[layer] = max(last[layer], neuron)
    blocks = [
        (layer, range(start, min(start + AT_ONCE, last[layer] + 1)))
        for layer in sorted(layers)
        for start in range(0, last[layer] + 1, AT_ONCE)
    ]
    parts = (
        comparison.compare(
            *(side(lake, layer=layer, neurons=block) for lake in (a, b)), by_simulator=simulators[0] == simulators[1]
        )
        for layer, block in blocks or [(min(layers), range(1))]
    )
    return comparison.together(list(parts), seed=seed)


def layers(a: Kept, b: Kept) -> list[int]:
    """The layers that both have."""
    known = [set(kept.layers().get_column("layer")) for kept in (a, b)]
    return sorted(set.intersection(*known))


def summary(a: Kept, b: Kept, query: Mapping[str, str], *, seed: int = 0) -> dict[str, Any]:
    """One layer of two sides, or all, method by method, and their neurons, those first whose scores differ most.

    `query` may hold `layer` (the first common one unless it does, `all` for all of them), `method`, and `page`.

    Raises:
        NotThereError: the sides have no layer in common, or not this one.
        FilterError: a filter is of no use, or all layers are more than a page can wait for.
    """
    both = layers(a, b)
    if not both:
        raise NotThereError("The two have no layer in common.")
    wanted = query.get("layer", "") or str(both[0])
    count = sum(a.n_neurons()[one] for one in both)
    if wanted == ALL and count > MOST:
        raise FilterError(
            f"all layers are {count:,} neurons, more than {MOST:,}; `neuronledger compare` compares them."
        )
    chosen = both if wanted == ALL else [whole(wanted, "layer")]
    if not set(chosen) <= set(both):
        raise NotThereError(f"Layer {wanted} is not in both; these are: {', '.join(map(str, both))}.")
    found = whole_layers(a.lake, b.lake, chosen, seed=seed)
    methods = found.methods.get_column("method").to_list()
    method = query.get("method", "")
    if method and method not in methods:
        raise FilterError(f"method (={method!r}) must be one of {', '.join(methods)}.")
    rows = found.scores.filter(pl.col("method") == method) if method else found.scores
    changed = rows.filter(
        pl.col("text_a").ne_missing(pl.col("text_b")) | pl.col("value_a").ne_missing(pl.col("value_b"))
    )
    changed = changed.sort(
        pl.col("difference").abs(), "layer", "neuron", "method", descending=[True, False, False, False], nulls_last=True
    )
    in_both = found.neurons.filter(pl.col("in_a") & pl.col("in_b"))
    pages = max(1, -(-len(changed) // PAGE))
    page = min(max(1, whole(query.get("page") or "1", "page")), pages)
    return {
        "layer": ALL if wanted == ALL else chosen[0],
        "layers": both,
        "can_all": len(both) > 1 and count <= MOST,
        "method": method,
        "neurons": {
            "in_both": len(in_both),
            "in_a_only": len(found.neurons.filter(pl.col("in_a") & ~pl.col("in_b"))),
            "in_b_only": len(found.neurons.filter(pl.col("in_b") & ~pl.col("in_a"))),
            "exemplar_overlap": in_both.get_column("exemplar_overlap").mean(),
            "activation_correlation": in_both.get_column("activation_correlation").mean(),
        },
        "methods": found.methods.to_dicts(),
        "parts": list(PARTS),
        "compared": len(rows),
        "same_words": len(rows.filter(pl.col("text_a").eq_missing(pl.col("text_b")))),
        "changed": len(changed),
        "page": page,
        "pages": pages,
        "rows": changed.slice((page - 1) * PAGE, PAGE).to_dicts(),
    }


def neuron(a: Kept, b: Kept, layer: int, number: int, *, seed: int = 0) -> dict[str, Any]:
    """One neuron of two sides: how far its texts are the same, and each method's words and score on either side.

    Raises:
        NotThereError: neither side has it.
    """
    sides = [side(kept.lake, layer=layer, neurons=[number]) for kept in (a, b)]
    known = [_numbers(kept, layer, number) for kept in (a, b)]
    if known == [None, None]:
        raise NotThereError(f"Neither of the two has neuron {layer}:{number}.")
    found = comparison.compare(*sides, seed=seed)
    return {
        "layer": layer,
        "neuron": number,
        "statistics": dict(zip("ab", known, strict=True)),
        "sides_of": found.neurons.to_dicts(),
        "parts_of": list(PARTS),
        "scores": found.scores.to_dicts(),
        "only": {
            name: _said(mine, other) for name, mine, other in (("a", sides[0], sides[1]), ("b", sides[1], sides[0]))
        },
    }


def _numbers(kept: Kept, layer: int, number: int) -> dict[str, Any] | None:
    columns = ("minimum", "maximum", "mean", "variance", "fraction_positive", "n_tokens")
    rows = collect(kept.lake.scan("neuron_statistics", layer=layer, neurons=[number]).select(columns))
    return rows.row(0, named=True) if len(rows) else None


def _said(mine: Mapping[str, pl.DataFrame], other: Mapping[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """Explanations whose words the other side does not have."""
    at = ["polarity", "text"]
    texts = mine["explanations"].drop_nulls("text").join(other["explanations"].select(at), on=at, how="anti")
    return texts.select("polarity", "explanation_id", "text").sort("polarity", "explanation_id").to_dicts()
