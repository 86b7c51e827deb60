"""Everything that the lake knows of one neuron, gathered for whoever looks: terminal, JSON, and later pages."""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from pipeline.errors import NeuronLedgerError, SettingsError
from pipeline.ports import Lake
from pipeline.records import read as records_of
from pipeline.summary import MAIN
from pipeline.tables import CHAIN, MISSING
from pipeline.texts import display, token_texts
from resources.delta import collect


@dataclass(frozen=True)
class Excerpt:
    """One exemplar: its tokens with what the neuron does on each."""

    split: str
    stratum: str
    rank: int
    document_id: str
    sequence_id: str
    exemplar_id: str
    tokens: list[str]
    activations: list[float]
    scaled_activations: list[int]


@dataclass(frozen=True)
class Said:
    """One explanation with its scores."""

    explanation_id: str
    method: str
    explainer: str
    text: str | None
    missing_because: str | None
    scores: list[dict[str, Any]]
    identity: str


@dataclass(frozen=True)
class Side:
    """One polarity of a neuron."""

    polarity: str
    explanations: list[Said]
    excerpts: list[Excerpt]
    tokens: list[dict[str, Any]]


@dataclass(frozen=True)
class Neuron:
    """A neuron: its statistics, what is said of it, the texts, and where each number came from."""

    layer: int
    neuron: int
    site: str
    statistics: dict[str, Any]
    sides: list[Side]
    connections: dict[str, list[dict[str, Any]] | None] | None
    """For each kind and sign, such as `input_positive`, the strongest first; None where the model has none of the kind,
    and None altogether if they were not made yet."""
    chain: list[dict[str, Any]]
    """For each hop, the write that made this neuron's rows."""

    def _repr_html_(self) -> str:
        """What a notebook shows: explanations with their scores, and the strongest texts as heat maps, without a script."""
        from explorer.pages import notebook

        return notebook(self)

    def as_json(self) -> str:
        """The whole of it as JSON."""
        # In ASCII, because some terminals obey control characters above it too.
        return json.dumps(asdict(self), indent=2, default=str)


def parse(name: str) -> tuple[int, int]:
    """Layer and neuron of a name such as `5:131`.

    Raises:
        SettingsError: the name is not of this form.
    """
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", name)
    if not found:
        raise SettingsError(f"{name!r} is no neuron; write layer:neuron, such as 5:131")
    return int(found[1]), int(found[2])


def read(lake: Lake, layer: int, neuron: int) -> Neuron:
    """Gather one neuron from the tables.

    Raises:
        NeuronLedgerError: the lake has no such neuron.
    """
    at: dict[str, Any] = {"layer": layer, "neurons": [neuron]}
    statistics = lake.read("neuron_statistics", **at)
    if statistics.is_empty():
        raise NeuronLedgerError(_not_there(lake, layer, neuron))
    site = lake.read("subject_layers", layer=layer)
    exemplars, explanations = lake.read("exemplars", **at), lake.read("explanations", **at)
    scores, associations = lake.read("scores", **at), lake.read("token_associations", **at)
    connections = lake.read("connections", **at)
    wanted = exemplars.get_column("sequence_id").unique().to_list()
    sequences = lake.read("sequences")
    texts = display(sequences.filter(pl.col("sequence_id").is_in(wanted)))
    documents = dict(sequences.select("sequence_id", "document_id").iter_rows())
    words = token_texts(sequences)
    polarities = associations.get_column("polarity").unique().sort().to_list()
    sides = [
        Side(
            polarity=polarity,
            explanations=_said(
                explanations.filter(pl.col("polarity") == polarity), scores.filter(pl.col("polarity") == polarity)
            ),
            excerpts=[
                Excerpt(
                    split=row["split"],
                    stratum=row["stratum"],
                    rank=row["rank"],
                    document_id=documents.get(row["sequence_id"], "unknown"),
                    sequence_id=row["sequence_id"],
                    exemplar_id=row["exemplar_id"],
                    tokens=texts.get(row["sequence_id"], ["�"] * len(row["token_ids"])),
                    activations=row["activations"],
                    scaled_activations=row["scaled_activations"],
                )
                for row in exemplars.filter(pl.col("polarity") == polarity).iter_rows(named=True)
            ],
            tokens=_tokens(associations.filter(pl.col("polarity") == polarity), words, polarity),
        )
        for polarity in polarities
    ]
    row = statistics.drop("identity", "run_id", "layer", "neuron").row(0, named=True)
    return Neuron(
        layer=layer,
        neuron=neuron,
        site=site.item(0, "site") if len(site) else "unknown",
        statistics=row,
        sides=sides,
        connections=_connections(connections, words | _spelled(lake, connections)),
        chain=_chain(lake, layer, neuron),
    )


def _said(explanations: pl.DataFrame, scores: pl.DataFrame) -> list[Said]:
    found = [
        Said(
            explanation_id=row["explanation_id"],
            method=row["method"],
            explainer=row["explainer"],
            text=row["text"],
            missing_because=row["missing_because"] and f"{row['missing_because']}: {MISSING[row['missing_because']]}",
            scores=scores.filter(pl.col("explanation_id") == row["explanation_id"])
            .select(
                "simulator", "scorer", "split", "value", "missing_because", "ci_low", "ci_high", "p_value",
                "n_sequences", "n_tokens", "n_failed", "identity",
            )
            .to_dicts(),
            identity=row["identity"],
        )
        for row in explanations.iter_rows(named=True)
    ]  # fmt: skip
    main = dict(scores.filter(MAIN).select("explanation_id", "value").iter_rows())
    return sorted(found, key=lambda said: -_or_last(main.get(said.explanation_id)))


def _or_last(score: float | None) -> float:
    return -2.0 if score is None else score


def _tokens(
    associations: pl.DataFrame, words: dict[int, str], polarity: str, *, count: int = 12
) -> list[dict[str, Any]]:
    """The tokens with the highest mean activation that occur often enough to say so."""
    rows = associations.select("token_ids", "counts", "means").explode("token_ids", "counts", "means").drop_nulls()
    if rows.is_empty():
        return []
    often = rows.filter(pl.col("counts") >= pl.col("counts").max().clip(1, 5))
    strongest = often.sort("means", "token_ids", descending=[polarity == "+", False]).head(count)
    return [
        {"token_id": token, "text": words.get(token, ""), "count": seen, "mean": mean}
        for token, seen, mean in strongest.iter_rows()
    ]


def _spelled(lake: Lake, connections: pl.DataFrame) -> dict[int, str]:
    """How the tokens of these connections look by themselves: those that the vocabulary knows."""
    lists = connections.select(pl.col("^.*_token_ids$").explode(empty_as_null=False, keep_nulls=False).implode())
    wanted = [token for tokens in lists.row(0) for token in tokens]
    found = lake.scan("vocabulary").filter(pl.col("token_id").is_in(wanted)).select("token_id", "bytes")
    return {token: piece.decode("utf-8", errors="replace") for token, piece in collect(found).iter_rows() if piece}


def _connections(connections: pl.DataFrame, words: dict[int, str]) -> dict[str, list[dict[str, Any]] | None] | None:
    """What the neuron is joined to, by kind and sign. A token that is not in `words` has no text."""
    if connections.is_empty():
        return None
    row = connections.row(0, named=True)

    def joined(kind: str) -> list[dict[str, Any]] | None:
        if row[f"{kind}_strengths"] is None:
            return None
        if f"{kind}_token_ids" in row:
            pairs = zip(row[f"{kind}_token_ids"], row[f"{kind}_strengths"], strict=True)
            return [{"token_id": token, "text": words.get(token), "strength": value} for token, value in pairs]
        found = zip(*(row[f"{kind}_{name}"] for name in ("layers", "neurons", "strengths")), strict=True)
        return [{"layer": layer, "neuron": neuron, "strength": value} for layer, neuron, value in found]

    kinds = [name.removesuffix("_strengths") for name in row if name.endswith("_strengths")]
    return {kind: joined(kind) for kind in kinds}


def _chain(lake: Lake, layer: int, neuron: int) -> list[dict[str, Any]]:
    """The last finished write of each hop that this neuron's rows are from."""
    records = records_of(lake).filter(
        (pl.col("status") == "done")
        & ((pl.col("layer") == layer) | pl.col("layer").is_null())
        & (pl.col("neurons").is_null() | pl.col("neurons").list.contains(neuron))
    )
    chain: list[dict[str, Any]] = []
    for table in CHAIN:
        made = records.filter(pl.col("table") == table).sort("finished_at").tail(1)
        if made.is_empty():
            continue
        row = made.row(0, named=True)
        chain.append(
            {
                "table": table,
                "version": row["version"],
                "alone": row["neurons"] is not None,
                "run_id": row["run_id"],
                "commit": row["commit_uuid"],
                "finished_at": row["finished_at"].isoformat(timespec="seconds"),
                "content_hash": row["content_hash"],
                "step_key": row["step_key"],
                "inputs": json.loads(row["inputs"]),
                "settings": json.loads(row["settings"]),
                "code": json.loads(row["code"]),
            }
        )
    return chain


def _not_there(lake: Lake, layer: int, neuron: int) -> str:
    sites = collect(lake.scan("neuron_statistics").group_by("layer").agg(pl.col("neuron").max()))
    if sites.is_empty():
        return f"the lake {lake.uri} has no neurons yet; run `neuronledger run` first"
    last = dict(sites.iter_rows())
    if layer not in last:
        captured = ", ".join(str(known) for known in sorted(last))
        return f"layer {layer} is not in the lake {lake.uri}; captured are layers {captured}"
    return f"layer {layer} has neurons 0 to {last[layer]}; there is no {layer}:{neuron}"
