"""Exports: a lake written in the form of another tool, a few hundred neurons at a time, so that memory is bounded.

The forms are modules of `pipeline`: here tables are read, handed over, and the texts put into a folder. The same lake
gives the same bytes: nothing of the day, the machine or the run enters.
"""

import gzip
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from pipeline import csv_format, huggingface_format, neuronpedia_format, openai_format
from pipeline.capture import PER_SPLIT
from pipeline.errors import LakeError
from pipeline.ports import Folder, Lake, Progress
from pipeline.records import read as records_of
from pipeline.tables import SPLITS, TABLES

CHUNK = 256
"""Neurons read at a time."""


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
        "bytes": sum(size for *_, size in files), "sha256": {path: digest for _, path, digest, _ in files},
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


def neuronpedia(
    lake: Lake, folder: Folder, progress: Progress, *, layers: Sequence[int] | None = None, model: str | None = None
) -> dict[str, Any]:
    """Write the lake as Neuronpedia's bulk files and upload requests. Returns what was written.

    Raises:
        LakeError: the lake has no captured neurons in those layers.
    """
    found = _neurons(lake, layers)
    about = described(lake, layers=list(found))
    about["date"] = date = about["date"] or "1970-01-01"
    model = model or neuronpedia_format.model_id(str(about["subject"]))
    sequences, words = openai_format.texts(lake.read("sequences")), _words(lake)
    sites = {row["layer"]: row for row in lake.read("subject_layers").to_dicts()}
    counts: dict[str, int] = {}
    left: dict[str, int] = {}
    done, total = 0, sum(len(neurons) for neurons in found.values())
    for layer, neurons in found.items():
        place = f"v1/{model}/{layer}"
        for name, line in neuronpedia_format.metadata(
            model=model, layer=layer, n_layers=len(sites), n_neurons=sites[layer]["n_neurons"], about=about
        ).items():
            folder.write(f"{place}/{name}", _line(line))
        batches = {
            kind: _Batches(folder, f"{place}/{kind}", counts, kind=kind)
            for kind in ("features", "activations", "explanations")
        }
        beside: list[str] = []
        uploaded = _Uploads(folder, f"upload/{model}/{layer}", counts, model=model, layer=layer)
        for some in _chunks(neurons):
            at: dict[str, Any] = {"layer": layer, "neurons": some}
            statistics, connections = lake.read("neuron_statistics", **at), lake.read("connections", **at)
            records, said = lake.read("activations", **at), lake.read("explanations", **at)
            batches["features"].add(
                neuronpedia_format.features(
                    statistics, connections, words, model=model, site=sites[layer]["site"], date=date
                )
            )
            batches["activations"].add(
                neuronpedia_format.activations(records, sequences, statistics, model=model, date=date)
            )
            batches["explanations"].add(neuronpedia_format.explanations(said, model=model, date=date))
            beside += neuronpedia_format.scores(lake.read("scores", **at)).get_column("text").to_list()
            features, out = neuronpedia_format.uploads(
                statistics, records, said, connections, sequences=sequences, words=words
            )
            uploaded.add(features)
            left = {name: left.get(name, 0) + count for name, count in out.items()}
            done += len(some)
            progress("export neuronpedia", done, total, f"layer {layer}")
        for batch in batches.values():
            batch.close()
        uploaded.close()
        folder.write(f"scores/{layer}.jsonl", "".join(f"{line}\n" for line in beside).encode())
    names = lake.scan("explanations").filter(pl.col("layer").is_in(list(found)) & pl.col("text").is_not_null())
    known = names.select("method", "explainer").unique().collect()
    lines = neuronpedia_format.config(
        methods=sorted(set(known.get_column("method"))),
        explainers=sorted(set(known.get_column("explainer")) - {"none"}),
        about=about,
    )
    for name, some_lines in lines.items():
        folder.write(f"v1/config/{name}", b"".join(map(_line, some_lines)))
    about |= {
        "format": "neuronpedia", "model": model, "files": counts, "left_out_of_uploads": left,
        "not_carried": list(neuronpedia_format.NOT_CARRIED),
    }  # fmt: skip
    folder.write("neuronledger.json", _json(about))
    return about


class _Batches:
    """Lines put into packed files of `BATCH` each."""

    def __init__(self, folder: Folder, place: str, counts: dict[str, int], *, kind: str) -> None:
        self._folder, self._place, self._counts, self._kind = folder, place, counts, kind
        self._lines: list[str] = []
        self._number = 0

    def add(self, rows: pl.DataFrame) -> None:
        """Add the lines of `text`, and write those batches that are full."""
        self._lines += rows.get_column("text").to_list()
        self._counts[self._kind] = self._counts.get(self._kind, 0) + len(rows)
        while len(self._lines) >= neuronpedia_format.BATCH:
            self._write(neuronpedia_format.BATCH)

    def close(self) -> None:
        """Write what is left."""
        if self._lines:
            self._write(len(self._lines))

    def _write(self, count: int) -> None:
        data = "".join(f"{line}\n" for line in self._lines[:count]).encode()
        # The time of day is left out of the packed file, so that the same lines give the same bytes.
        self._folder.write(
            f"{self._place}/batch-{self._number}.jsonl.gz", gzip.compress(data, compresslevel=5, mtime=0)
        )
        self._lines = self._lines[count:]
        self._number += 1


class _Uploads:
    """Features put into bodies of requests, as many to each as one may have."""

    def __init__(self, folder: Folder, place: str, counts: dict[str, int], *, model: str, layer: int) -> None:
        self._folder, self._place, self._counts = folder, place, counts
        self._head = f'{{"modelId":{json.dumps(model)},"source":"{layer}","features":['
        self._features: list[str] = []
        self._number = 0

    def add(self, rows: pl.DataFrame) -> None:
        """Add features, and write those requests that are full."""
        self._features += rows.get_column("text").to_list()
        while len(self._features) >= neuronpedia_format.UPLOADED:
            self._write(neuronpedia_format.UPLOADED)

    def close(self) -> None:
        """Write what is left."""
        if self._features:
            self._write(len(self._features))

    def _write(self, count: int) -> None:
        body = f"{self._head}{','.join(self._features[:count])}]}}"
        self._folder.write(f"{self._place}/batch-{self._number}.json", body.encode())
        self._counts["upload requests"] = self._counts.get("upload requests", 0) + 1
        self._features = self._features[count:]
        self._number += 1


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


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
    made = records_of(lake).filter((pl.col("table") == "activations") & (pl.col("status") == "done"))
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
