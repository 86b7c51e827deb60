"""Exports: a lake written in the form of another tool, a few hundred neurons at a time, so that memory is bounded.

The forms are modules of `pipeline`: here tables are read, handed over, and the texts put into a folder. The same lake
gives the same bytes: nothing of the day, the machine or the run enters.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import polars as pl

from pipeline import csv_format, huggingface_format, openai_format
from pipeline.capture import PER_SPLIT
from pipeline.errors import LakeError
from pipeline.ports import Lake, Progress
from pipeline.tables import SPLITS, TABLES

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


def huggingface(
    lake: Lake,
    folder: Folder,
    progress: Progress,
    *,
    layers: Sequence[int] | None = None,
    name: str | None = None,
    licence: str = "unknown",
    version: str = "1.0.0",
) -> dict[str, Any]:
    """Write the lake as a dataset for the Hugging Face hub. Returns what was written.

    Raises:
        LakeError: the lake has no captured neurons in those layers.
    """
    found = _neurons(lake, layers)
    files: list[tuple[str, str, str, int]] = []
    rows: dict[str, int] = {}
    for done, table in enumerate(huggingface_format.PUBLISHED):
        for place, frame in _slices(lake, table, found):
            buffer = io.BytesIO()
            frame.select(huggingface_format.columns(table)).write_parquet(buffer, compression="zstd", statistics=True)
            data, path = buffer.getvalue(), f"data/{table}/{place}.parquet"
            folder.write(path, data)
            files.append((table, path, hashlib.sha256(data).hexdigest(), len(data)))
            rows[table] = rows.get(table, 0) + len(frame)
        progress("export huggingface", done + 1, len(huggingface_format.PUBLISHED), table)
    about = described(lake, layers=list(found))
    inside = pl.col("layer").is_in(list(found))

    def counted(table: str, *names: str) -> pl.DataFrame:
        return lake.scan(table).filter(inside).select(names).collect()

    said = counted("explanations", "method", "explainer", "missing_because")
    played = counted("simulations", "simulator", "missing_because")
    scored = counted("scores", "method", "scorer", "split", "value", "missing_because")
    about |= {
        "format": "huggingface", "files": {"data files": len(files)}, "rows": rows,
        "not_carried": list(huggingface_format.NOT_CARRIED),
        "explainers": sorted(set(said.get_column("explainer")) - {"none"}),
        "simulators": sorted(set(played.get_column("simulator"))),
    }  # fmt: skip
    title = name or f"Neurons of {about['subject']}, explained"
    splits = lake.scan("sequences").group_by("split").len().collect()
    card = huggingface_format.card(
        about=about, name=title, licence=licence, rows=rows,
        splits=dict(sorted(splits.iter_rows(), key=lambda pair: SPLITS.index(pair[0]))),
        missing=huggingface_format.failures(said, played, scored), medians=huggingface_format.summary(scored),
    )  # fmt: skip
    folder.write("README.md", card.encode())
    described_as = huggingface_format.croissant(about=about, name=title, licence=licence, version=version, files=files)
    folder.write("croissant.json", _json(described_as))
    folder.write("neuronledger.json", _json(about))
    return about


def csv(lake: Lake, folder: Folder, progress: Progress, *, layers: Sequence[int] | None = None) -> dict[str, Any]:
    """Write explanations, scores and statistics of each neuron as CSV, a file for each. Returns what was written.

    Raises:
        LakeError: the lake has no captured neurons in those layers.
    """
    found = _neurons(lake, layers)
    rows: dict[str, int] = {}
    for done, table in enumerate(csv_format.WRITTEN):
        parts: list[bytes] = []
        for _, frame in _slices(lake, table, found):
            parts.append(csv_format.text(table, frame, header=not parts).encode())
            rows[table] = rows.get(table, 0) + len(frame)
        folder.write(f"{table}.csv", b"".join(parts))
        progress("export csv", done + 1, len(csv_format.WRITTEN), table)
    about = {
        **described(lake, layers=list(found)), "format": "csv", "files": rows, "not_carried": list(csv_format.NOT_CARRIED)
    }  # fmt: skip
    folder.write("neuronledger.json", _json(about))
    return about


def _slices(lake: Lake, table: str, found: Mapping[int, Sequence[int]]) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows of a table, as many as fit into memory at a time, each with a name for its file; none that are empty."""
    declared = TABLES[table]
    if not declared.by_layer:
        rows = lake.read(table)
        if len(rows):
            yield "000", rows
        return
    for layer, neurons in found.items():
        parts = _chunks(neurons, size=1024) if "neuron" in declared.columns else iter([None])
        for place, some in enumerate(parts):
            rows = lake.read(table, layer=layer, neurons=some)
            if len(rows):
                yield f"layer-{layer:02d}-{place:03d}", rows


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
        "date": made.get_column("finished_at").sort().dt.to_string("%Y-%m-%d").item(-1) if len(made) else None,
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


def _chunks(neurons: Sequence[int], *, size: int = CHUNK) -> Iterator[list[int]]:
    for start in range(0, len(neurons), size):
        yield list(neurons[start : start + size])


def _words(lake: Lake) -> pl.Series:
    """How each token of the vocabulary looks, by its id; those of the corpus look as they do in it."""
    spelled = dict(lake.scan("vocabulary").select("token_id", "bytes").collect().iter_rows())
    size = max(spelled, default=-1) + 1
    return pl.Series([spelled.get(token, b"").decode("utf-8", errors="replace") for token in range(size)])


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
