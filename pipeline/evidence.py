"""Evidence: what of a neuron an explainer may be shown, gathered once and rendered by each method in its own way.

    excerpts   the exemplars of split `explain`
    quiet      texts on which the neuron is nowhere clearly active (`pipeline.contrast`)
    tokens     the tokens with the highest mean activation
    weights    the tokens that excite it most, and those that it promotes and suppresses

All of it is from documents that are not scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from pipeline import token_activation_pairs as pairs
from pipeline.associations import SEEN_OFTEN
from pipeline.tables import STRATA

TOKENS = 25
"""Tokens that the token-space methods show."""

OUTPUTS = 15
"""Promoted and suppressed tokens that `logits` shows, of each."""

Kind = Literal["excerpts", "quiet", "tokens", "weights"]
SHOWN_FROM: dict[Kind, tuple[str, ...]] = {
    "excerpts": ("exemplars",),
    "quiet": ("activations",),
    "tokens": ("token_associations",),
    "weights": ("connections", "vocabulary"),
}
"""Where each kind of evidence is from."""


CLEARLY = 3
"""Scaled activation from which a token is marked (delphi marks from 0.3 of the strongest)."""


@dataclass(frozen=True)
class Evidence:
    """What of one neuron on one side of zero may be shown: all of it is from documents that are not scored."""

    excerpts: Sequence[pairs.Excerpt] = ()
    exemplar_ids: Sequence[str] = ()
    scale_maximum: float = 0.0
    """The strongest activation of the excerpts, units of the neuron: 10 on the scale."""
    quiet: Sequence[str] = ()
    """Texts on which the neuron is nowhere clearly active, the hardest first; see `pipeline.contrast`."""
    tokens: Sequence[tuple[str, int]] = ()
    """(token, mean activation from 0 to 10), strongest first."""
    exciting: Sequence[tuple[str, int]] = ()
    """(token, weight from its embedding, from 0 to 10), strongest first."""
    promoted: Sequence[str] = ()
    suppressed: Sequence[str] = ()
    """Tokens whose logits the neuron raises, and lowers, most when it is active on this side."""
    parents: Mapping[Kind, Sequence[str]] = field(default_factory=dict)
    """Identities of the rows that each kind of evidence is from."""


def evidence(
    exemplars: pl.DataFrame,
    associations: pl.DataFrame,
    texts: Mapping[str, Sequence[str]],
    words: Mapping[int, str],
    *,
    connections: pl.DataFrame | None = None,
    spelled: Mapping[int, str] | None = None,
    quiet: pl.DataFrame | None = None,
) -> dict[pairs.NeuronKey, Evidence]:
    """What may be shown of each neuron that has exemplars of split `explain`, by layer, neuron and polarity.

    `texts` has the display strings of each sequence, `words` that of each token of the corpus. `connections` are rows of
    that table and `spelled` has every token of the vocabulary; without them there is no evidence of weights. `quiet` is
    that of `pipeline.contrast`.
    """
    order = {stratum: place for place, stratum in enumerate(STRATA)}
    shown = exemplars.filter(pl.col("split") == "explain").sort(
        "layer", "neuron", "polarity", pl.col("stratum").replace_strict(order, return_dtype=pl.Int8), "rank"
    )
    by_neuron = shown.group_by("layer", "neuron", "polarity", maintain_order=True).agg(
        "sequence_id", "scaled_activations", "exemplar_id", "identity", pl.col("scale_maximum").first()
    )
    rows = by_neuron.join(
        associations.select(
            "layer", "neuron", "polarity", "token_ids", "counts", "means", pl.col("identity").alias("table")
        ),
        on=["layer", "neuron", "polarity"],
        how="left",
        maintain_order="left",
    )
    joined = (
        {} if connections is None else {(row["layer"], row["neuron"]): row for row in connections.iter_rows(named=True)}
    )
    silent = _by_neuron(quiet)
    found: dict[pairs.NeuronKey, Evidence] = {}
    for row in rows.iter_rows(named=True):
        key = pairs.NeuronKey(row["layer"], row["neuron"], row["polarity"])
        weights = _weights(joined.get((key.layer, key.neuron), {}), key.polarity, spelled or {})
        found[key] = Evidence(
            excerpts=[
                list(zip(pairs.token_texts(texts, sequence_id, len(scaled)), scaled, strict=True))
                for sequence_id, scaled in zip(row["sequence_id"], row["scaled_activations"], strict=True)
            ],
            exemplar_ids=row["exemplar_id"],
            scale_maximum=row["scale_maximum"],
            quiet=["".join(texts[sequence_id]) for sequence_id, _ in silent.get(key, ())],
            tokens=_strongest(row, words),
            exciting=_scaled(weights["input"][:TOKENS]),
            promoted=[word for word, _ in weights["promoted"][:OUTPUTS]],
            suppressed=[word for word, _ in weights["suppressed"][:OUTPUTS]],
            parents={
                "excerpts": row["identity"],
                "quiet": [identity for _, identity in silent.get(key, ())],
                "tokens": [row["table"]] if row["table"] is not None else [],
                "weights": weights["identity"],
            },
        )
    return found


def marked(excerpt: pairs.Excerpt, *, values: bool, least: int = CLEARLY) -> list[Any]:
    """An excerpt as pieces of text, tokens of scaled activation `least` or more in lists of their own."""
    pieces: list[Any] = []
    for token, activation in excerpt:
        if activation >= least:
            pieces.append([token, activation] if values else [token])
        elif pieces and isinstance(pieces[-1], str):
            pieces[-1] += token
        else:
            pieces.append(token)
    return pieces


def _by_neuron(quiet: pl.DataFrame | None) -> dict[tuple[int, int, str], list[tuple[str, str]]]:
    """(sequence_id, identity) of the quiet records of each neuron, in their order."""
    found: dict[tuple[int, int, str], list[tuple[str, str]]] = {}
    for layer, neuron, polarity, *record in () if quiet is None else quiet.iter_rows():
        found.setdefault((layer, neuron, polarity), []).append((record[0], record[1]))
    return found


def _weights(row: Mapping[str, Any], polarity: str, spelled: Mapping[int, str]) -> dict[str, Any]:
    """What the weights of one neuron say on one side of zero: (token, strength above zero), strongest first.

    On the negative side what it writes is negated, and so is what excites it. A token that is no whole text is left out.
    """
    same, other = ("negative", "positive") if polarity == "-" else ("positive", "negative")

    def listed(name: str) -> list[tuple[str, float]]:
        ranked = zip(row.get(f"{name}_token_ids") or (), row.get(f"{name}_strengths") or (), strict=True)
        words = ((spelled.get(token, ""), abs(strength)) for token, strength in ranked)
        return [(word, strength) for word, strength in words if word and "\ufffd" not in word]

    return {
        "input": listed(f"input_{same}"),
        "promoted": listed(f"output_{same}"),
        "suppressed": listed(f"output_{other}"),
        "identity": [row["identity"]] if row else [],
    }


def _strongest(row: Mapping[str, Any], words: Mapping[int, str]) -> list[tuple[str, int]]:
    """The tokens with the largest means on this side of zero, scaled so that the first has 10; none below a half.

    They are the strongest of all that were seen often in documents that are not scored: the table holds twice as many of
    these. Others stand in it because of a text that may be scored, and are not shown.
    """
    if row["means"] is None:
        return []
    sign = -1.0 if row["polarity"] == "-" else 1.0
    means = [
        (sign * mean, words[token])
        for token, count, mean in zip(row["token_ids"], row["counts"], row["means"], strict=True)
        if token in words and count >= SEEN_OFTEN
    ]
    return _scaled([(word, mean) for mean, word in sorted(means, key=lambda one: (-one[0], one[1]))[:TOKENS]])


def _scaled(ranked: Sequence[tuple[str, float]]) -> list[tuple[str, int]]:
    """These values, strongest first, as whole numbers of which the first is 10; none below a half."""
    if not ranked or ranked[0][1] <= 0:
        return []
    return [(word, scaled) for word, value in ranked if (scaled := round(10 * value / ranked[0][1])) >= 1]
