"""The assets `import_*`: explanations, records, simulations and scores of another system, in tables of their own.

Each takes a folder over under a name, the `source`. Rows of other sources stay; the same source read again replaces its
rows of the neurons that are read. What the files are (by hash) and what was rejected (with the reason) is in
`imported_files`, what the numbers mean in `imports`. The files themselves are in `imported_originals`, byte for byte.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field

from assets.spec import OWNERS
from assets.step import add_record
from pipeline import delphi_import, lines_import, neuronpedia_import, openai_import
from pipeline.imports import BY_LAYER, Batch
from pipeline.originals import TABLE, Part, listing, parts
from pipeline.originals import frame as originals
from pipeline.ports import Foreign, Lake, Progress
from pipeline.provenance import frame_hash, identity
from pipeline.tables import TABLES

CODE_VERSION = "1"
NEURONS = 512
"""Neurons written at a time: each write is a commit of several tables."""
SEQUENCES = 20_000
ORIGINALS = 24 * 2**20
"""Bytes of files written at a time."""
SHOWN = 20
"""Rejected files that the asset page names."""

FORMS: dict[str, Mapping[str, str]] = {
    openai_import.FORM: openai_import.CONVENTIONS,
    neuronpedia_import.FORM: neuronpedia_import.CONVENTIONS,
    delphi_import.FORM: delphi_import.CONVENTIONS,
    "csv": lines_import.CONVENTIONS,
    "jsonl": lines_import.CONVENTIONS,
}
"""The forms, with what their numbers mean."""

TOGETHER = (
    ("imported_neurons",),
    # A neuron's related tokens may be read again where its records could not be.
    ("imported_records",),
    ("imported_explanations", "imported_simulations", "imported_scores"),
)
"""Tables whose rows come in the same files."""


@dataclass
class Taken:
    """What an import came to."""

    imported: int = 0
    rejected: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    conventions: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for `--json`."""
        return {
            "imported": self.imported, "rejected": self.rejected, "rows": self.rows, "conventions": dict(self.conventions)
        }  # fmt: skip


class ImportConfig(dg.Config):
    """Where the files are, under which name their rows go, and what is known of the numbers besides."""

    folder: str
    source: str
    conventions: dict[str, str] = Field(default_factory=dict)
    keep_originals: bool = True


def take_over(
    lake: Lake,
    foreign: Foreign,
    progress: Progress,
    *,
    form: str,
    folder: str,
    source: str,
    conventions: Mapping[str, str],
    run_id: str,
    code: Mapping[str, Any],
    keep_originals: bool = True,
) -> Taken:
    """Take over everything of a form in a folder; the files themselves too, unless `keep_originals` is False.

    Raises:
        SettingsError: there is nothing of this form.
        LakeError: the rows cannot be written.
    """
    started = datetime.now(UTC)
    taken = Taken(conventions={**FORMS[form], **conventions})
    writer = _Writer(
        lake, source=source, run_id=run_id, record={"form": form, "source": source, "run_id": run_id}, taken=taken
    )
    total, done = foreign.count(form, folder), 0
    hashes: list[tuple[str, str]] = []
    for batch in foreign.batches(
        form, folder, source=source, tokenizer=conventions.get("tokenizer"), originals=keep_originals
    ):
        writer.add(batch)
        for file in batch.files:
            hashes.append((file["path"], file["sha256"]))
            if file["status"] == "rejected":
                taken.rejected.append(file)
            else:
                taken.imported += 1
        done += len(batch.files)
        progress(f"import {form}", done, total, f"{len(taken.rejected):,} rejected")
    files_hash, files = listing(hashes)
    if keep_originals:
        for part in parts(files_hash, files):
            writer.keep([part])
    writer.close()
    said = json.dumps(taken.conventions, sort_keys=True)
    writer.only_add(
        "imports",
        pl.DataFrame(
            [
                {
                    "source": source, "form": form, "folder": folder.rstrip("/").rsplit("/", 1)[-1], "files_hash": files_hash,
                    "conventions": said, "imported": taken.imported, "rejected": len(taken.rejected),
                    "identity": identity("import", form=form, source=source, files=files_hash, conventions=said),
                }
            ]
        ),
    )  # fmt: skip
    add_record(
        lake,
        {
            "commit_uuid": str(uuid4()), "run_id": run_id, "table": "imports", "version": lake.version("imports"),
            "layer": None, "neurons": None, "step_key": None, "rows": sum(taken.rows.values()),
            "content_hash": frame_hash(lake.read("imports"), key=TABLES["imports"].key),
            "inputs": json.dumps({"files": {"content_hash": files_hash, "version": None}}),
            "settings": json.dumps(
                {"form": form, "source": source, "conventions": dict(taken.conventions), "keep_originals": keep_originals,
                 "tokenizer": conventions.get("tokenizer")},
                sort_keys=True,
            ),
            "code": json.dumps({**code, "code_version": CODE_VERSION}, sort_keys=True),
            "environment": "{}", "usage": "{}", "started_at": started, "finished_at": datetime.now(UTC),
            "status": "done", "error": None,
        },
    )  # fmt: skip
    return taken


class _Writer:
    """Gathers batches until they are worth a commit. Rows of other sources are put back with those that replace them."""

    def __init__(self, lake: Lake, *, source: str, run_id: str, record: Mapping[str, Any], taken: Taken) -> None:
        self._lake, self._source, self._run_id, self._record, self._taken = lake, source, run_id, record, taken
        self._waiting: dict[int, list[dict[str, pl.DataFrame]]] = {}
        self._neurons: dict[int, set[int]] = {}
        self._sequences: list[pl.DataFrame] = []
        self._files: list[pl.DataFrame] = []
        self._originals: list[Part] = []
        self._held = 0
        """Bytes of originals that wait."""
        self._known = np.zeros(0, dtype=np.uint64)
        self._had = {name: lake.version(name) is not None for name in BY_LAYER}
        self._done: set[tuple[int, int]] = set()

    def add(self, batch: Batch) -> None:
        """Take a batch; its sequences and files are written before its rows, which name them."""
        self.keep(batch.originals)
        self._sequence_rows(batch.sequences)
        schema = {n: k for n, k in TABLES["imported_files"].schema.items() if n not in ("source", "identity", "run_id")}
        files = pl.DataFrame(batch.files, schema=schema)
        self._files.append(
            files.with_columns(
                pl.lit(self._source).alias("source"), pl.Series("identity", batch.file_identities, dtype=pl.String)
            )
        )
        keys = pl.concat([frame.select("layer", "neuron") for frame in batch.frames.values()]).unique()
        for layer in keys.get_column("layer").unique().sort().to_list():
            # Layers come one after the other, so what waits of others is complete.
            for other in [other for other in self._waiting if other != layer]:
                self._write(other)
            self._waiting.setdefault(layer, []).append(
                {name: frame.filter(pl.col("layer") == layer) for name, frame in batch.frames.items()}
            )
            found = self._neurons.setdefault(layer, set())
            found.update(keys.filter(pl.col("layer") == layer).get_column("neuron").to_list())
            if len(found) >= NEURONS:
                self._write(layer)

    def keep(self, parts_of_files: Sequence[Part]) -> None:
        """Take files as they are. They are written before what is said of them."""
        for part in parts_of_files:
            self._originals.append(part)
            self._held += len(part[2])
            if self._held >= ORIGINALS:
                self._keep()

    def close(self) -> None:
        """Write what is left."""
        for layer in list(self._waiting):
            self._write(layer)
        self._flush()

    def only_add(self, table: str, rows: pl.DataFrame) -> None:
        """Add rows to a table without layers."""
        self._lake.add(table, rows.with_columns(pl.lit(self._run_id).alias("run_id")), record=self._record)

    def _write(self, layer: int) -> None:
        neurons, waiting = sorted(self._neurons.pop(layer)), self._waiting.pop(layer)
        self._flush()
        # What a form has in several files of a neuron may have been written a moment ago.
        again = not self._done.isdisjoint((layer, neuron) for neuron in neurons)
        self._done.update((layer, neuron) for neuron in neurons)
        brought = _brought(waiting)
        for name in BY_LAYER:
            # What is written is let go before the next table is put together.
            rows = pl.concat([frames.pop(name) for frames in waiting]).with_columns(
                pl.lit(self._run_id).alias("run_id")
            )
            kept = len(rows)
            if self._had[name] or again:
                others = self._lake.read(name, layer=layer, neurons=neurons).filter(
                    (pl.col("source") != self._source)
                    | (pl.col("run_id") == self._run_id)
                    | ~pl.col("neuron").is_in(brought[name].implode())
                )
                rows = pl.concat([others, rows.select(others.columns)])
            elif rows.is_empty():
                continue
            rows = rows.unique(TABLES[name].key, keep="first", maintain_order=True)
            self._lake.replace(name, rows, layer=layer, neurons=neurons, record=self._record, allow_empty=True)
            self._taken.rows[name] = self._taken.rows.get(name, 0) + kept

    def _sequence_rows(self, rows: pl.DataFrame) -> None:
        # Millions of names are known in the end; as numbers they take a tenth of the memory.
        names = np.frombuffer(bytes.fromhex("".join(rows.get_column("sequence_id"))), dtype=">u8").astype(np.uint64)
        places = np.searchsorted(self._known, names)
        is_new = (np.append(self._known, 0)[places] != names) | (places == len(self._known))
        new = rows.filter(pl.Series(is_new))
        ordered = np.sort(names[is_new])
        self._known = np.insert(self._known, np.searchsorted(self._known, ordered), ordered)
        self._sequences.append(new)
        if sum(map(len, self._sequences)) >= SEQUENCES:
            self._flush()

    def _keep(self) -> None:
        if self._originals:
            self.only_add(TABLE, originals(self._originals))
        self._originals.clear()
        self._held = 0

    def _flush(self) -> None:
        self._keep()
        for table, waiting in (("imported_files", self._files), ("imported_sequences", self._sequences)):
            if sum(map(len, waiting)):
                self.only_add(table, pl.concat(waiting))
            waiting.clear()


def _brought(waiting: Sequence[Mapping[str, pl.DataFrame]]) -> dict[str, pl.Series]:
    """For each table the neurons of which there are new rows in it, or in one that comes in the same files as it.

    Only their rows of an earlier import are given up: a file that was rejected this time takes away nothing.
    """
    found: dict[str, pl.Series] = {}
    for together in TOGETHER:
        neurons = pl.concat([frames[name].get_column("neuron") for name in together for frames in waiting]).unique()
        found |= dict.fromkeys(together, neurons)
    return found


def define(code: Mapping[str, Any]) -> list[dg.AssetsDefinition]:
    """One asset for each form."""
    return [_asset(form, code) for form in FORMS]


def _asset(form: str, code: Mapping[str, Any]) -> dg.AssetsDefinition:
    @dg.asset(
        name=f"import_{form}",
        group_name="imports",
        code_version=CODE_VERSION,
        kinds={"polars", "deltalake"},
        owners=OWNERS,
        description=f"Files of the form `{form}`, taken over into the tables `imported_*` with their hashes and conventions.",
    )
    def imported(
        context: dg.AssetExecutionContext,
        config: ImportConfig,
        lake: dg.ResourceParam[Lake],
        foreign: dg.ResourceParam[Foreign],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult:
        taken = take_over(
            lake, foreign, progress, form=form, folder=config.folder, source=config.source,
            conventions=config.conventions, run_id=context.run.run_id, code=code, keep_originals=config.keep_originals,
        )  # fmt: skip
        return dg.MaterializeResult(value=taken.as_dict(), metadata=dict(_metadata(taken)))

    return imported


def _metadata(taken: Taken) -> Iterator[tuple[str, Any]]:
    yield "files/imported", taken.imported
    yield "files/rejected", len(taken.rejected)
    yield "conventions", dg.MetadataValue.json(dict(taken.conventions))
    yield from ((f"rows/{name}", count) for name, count in taken.rows.items())
    if taken.rejected:
        columns = [dg.TableColumn(name=name, type="string") for name in ("path", "reason", "offset_in_file")]
        records = [
            dg.TableRecord({column.name: json.dumps(file[column.name]) for column in columns})
            for file in taken.rejected[:SHOWN]
        ]
        yield "rejected", dg.MetadataValue.table(records=records, schema=dg.TableSchema(columns=columns))
