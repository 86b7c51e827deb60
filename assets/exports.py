"""Exports: a lake written in the form of another tool, a few hundred neurons at a time, so that memory is bounded.

The forms are modules of `pipeline`: here tables are read, handed over, and the texts put into a folder. The same lake
gives the same bytes: nothing of the day, the machine or the run enters.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import polars as pl

from pipeline import openai_format
from pipeline.capture import PER_SPLIT
from pipeline.errors import LakeError
from pipeline.ports import Lake, Progress

CHUNK = 256
"""Neurons read at a time."""


class Folder(Protocol):
    """Where an export goes."""

    def write(self, name: str, data: bytes) -> None:
        """Write one file under a relative name."""
        ...


def openai(lake: Lake, folder: Folder, progress: Progress, *, layers: Sequence[int] | None = None) -> dict[str, Any]:
    """Write every captured neuron of these layers (all unless given) as OpenAI's files. Returns what was written.

    Raises:
        LakeError: the lake has no captured neurons in those layers.
    """
    found = _neurons(lake, layers)
    n_layers = len(lake.read("subject_layers"))
    sequences = openai_format.texts(lake.read("sequences"))
    words = _words(lake)
    counts: dict[str, int] = {}
    fewer: list[str] = []

    def write(kind: str, end: str, layer: int, rows: pl.DataFrame) -> None:
        for neuron, text in rows.select("neuron", "text").iter_rows():
            folder.write(f"{kind}/{layer}/{neuron}.{end}", text.encode() + (b"\n" if end == "jsonl" else b""))
        counts[kind] = counts.get(kind, 0) + len(rows)

    total, done = sum(len(neurons) for neurons in found.values()), 0
    for layer, neurons in found.items():
        sidecar: list[str] = []
        for some in _chunks(neurons):
            at: dict[str, Any] = {"layer": layer, "neurons": some}
            statistics, connections = lake.read("neuron_statistics", **at), lake.read("connections", **at)
            explanations, simulations = lake.read("explanations", **at), lake.read("simulations", **at)
            records = openai_format.neuron_records(lake.read("activations", **at), sequences, statistics)
            fewer += [
                f"{layer}:{neuron} ({n})" for neuron, n in records.select("neuron", "n").iter_rows() if n < PER_SPLIT
            ]  # fmt: skip
            write("collated-activations", "json", layer, records)
            write(
                "explanations", "jsonl", layer,
                openai_format.explanations(
                    explanations, simulations, lake.read("scores", **at), lake.read("exemplars", **at), sequences
                ),
            )  # fmt: skip
            write(
                "related-tokens/activation-based", "json", layer,
                openai_format.tokens_by_activation(lake.read("token_associations", **at), words),
            )  # fmt: skip
            write(
                "related-tokens/weight-based", "json", layer, openai_format.tokens_by_weight(connections, words)
            )  # fmt: skip
            write(
                "related-neurons/weight-based", "json", layer,
                openai_format.neurons_by_weight(connections, last_layer=n_layers - 1),
            )  # fmt: skip
            sidecar += (
                openai_format.provenance(explanations, simulations, statistics, records).get_column("text").to_list()
            )
            done += len(some)
            progress("export openai", done, total, f"layer {layer}")
        folder.write(f"provenance/{layer}.jsonl", "".join(line + "\n" for line in sidecar).encode())
    about = {
        **described(lake, layers=list(found)),
        "format": "openai",
        "files": counts,
        "records_per_split": PER_SPLIT,
        "neurons_with_fewer_records_per_split": fewer,
        "not_carried": list(openai_format.NOT_CARRIED),
    }
    folder.write("neuronledger.json", _json(about))
    return about


def described(lake: Lake, *, layers: Sequence[int]) -> dict[str, Any]:
    """What any export says of where it is from: subject, conventions, and the version of each table that was read."""
    sites = lake.read("subject_layers")
    made = lake.read("materializations").filter((pl.col("table") == "activations") & (pl.col("status") == "done"))
    origin = json.loads(made.sort("finished_at").item(-1, "environment")) if len(made) else {}
    subject = {name: origin.get("subject", {}).get(name) for name in ("source", "revision", "dtype", "activation")}
    return {
        "subject": sites.item(0, "subject") if len(sites) else None,
        "conventions": {
            "site": {str(row["layer"]): row["site"] for row in sites.filter(pl.col("layer").is_in(layers)).to_dicts()},
            "signed": bool(sites.get_column("signed").any()),
            "polarity": "+",
            "number_format": subject,
            "normaliser": "min(10, floor(10 * max(0, x) / the strongest activation shown to the explainer))",
            "splits": "by document",
        },
        "layers": list(layers),
        "tables": {name: lake.version(name) for name in TABLES_READ},
    }


TABLES_READ = (
    "sequences", "subject_layers", "activations", "neuron_statistics", "token_associations", "vocabulary", "connections",
    "exemplars", "explanations", "simulations", "scores",
)  # fmt: skip


def _neurons(lake: Lake, layers: Sequence[int] | None) -> dict[int, list[int]]:
    """The captured neurons of each layer."""
    rows = lake.scan("neuron_statistics").select("layer", "neuron").collect().sort("layer", "neuron")
    if layers is not None:
        rows = rows.filter(pl.col("layer").is_in(list(layers)))
    if rows.is_empty():
        where = "" if layers is None else f" in layers {list(layers)}"
        raise LakeError(f"the lake {lake.uri} has no captured neurons{where}; run `neuronledger run` first")
    found = rows.group_by("layer", maintain_order=True).agg("neuron")
    return {layer: list(neurons) for layer, neurons in found.iter_rows()}


def _chunks(neurons: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(neurons), CHUNK):
        yield list(neurons[start : start + CHUNK])


def _words(lake: Lake) -> pl.Series:
    """How each token of the vocabulary looks, by its id; those of the corpus look as they do in it."""
    spelled = dict(lake.scan("vocabulary").select("token_id", "bytes").collect().iter_rows())
    size = max(spelled, default=-1) + 1
    return pl.Series([spelled.get(token, b"").decode("utf-8", errors="replace") for token in range(size)])


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
