"""Benchmark of lineage: is the stale set exact, and what does it cost to know it?

    python -m benchmarks.lineage                      # GPT-2 small's shape, 500 MB with random weights
    python -m benchmarks.lineage --shape tiny --layers 4 --json

Five questions. Of which layers does the fingerprint change when one tensor changes, against the layers whose
activations change, tensor by tensor? How long do all fingerprints take, against one SHA-256 over the same bytes? How
long does `status` take for a lake of many layers? How much longer does a write take for its line in the ledger? What does
it cost to capture the layers again that a change made stale, against the share of the blocks that the pass must go through?
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from assets.freshness import HOPS, Outside, looked_at, states
from assets.project import Choices, Project
from benchmarks import passes, subjects
from benchmarks.figures import Figure, as_json, as_text
from pipeline.capture import plan as planned
from pipeline.ports import Lake
from pipeline.provenance import TAG, content_hash
from pipeline.tables import TABLES
from resources import checkpoint, configuration
from resources.delta import DeltaLake
from resources.subject import HuggingFaceSubject

ROWS = {"activations": 57, "exemplars": 15, "explanations": 2, "simulations": 20, "scores": 36}
"""Rows of a neuron in a run without a language model; one where nothing is said."""

NO_CHANGE = 1e-6
"""Of the strongest activation of a layer: less is the noise of another order of summation."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=subjects.SHAPES, default="gpt2")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--layers", type=int, default=48, help="layers of the lake that `status` looks at")
    parser.add_argument("--parts", default="exact,fingerprint,status,ledger,recapture")
    parser.add_argument("--windows", type=int, default=256, help="windows of text that `recapture` reads")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    parts = asked.parts.split(",")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "subject"
        if {"exact", "fingerprint", "recapture"} & set(parts):
            subjects.save(asked.shape, folder)
        if "fingerprint" in parts:
            figures.append(fingerprint(folder, asked.repetitions))
        if "exact" in parts:
            figures.append(exact(folder))
        if "recapture" in parts:
            figures.extend(recapture(folder, asked.shape, asked.windows, asked.repetitions))
        if "status" in parts:
            figures.append(status(Path(home) / "lake", asked.layers))
        if "ledger" in parts:
            figures.append(ledger(Path(home), asked.repetitions))
    print(as_json(figures) if asked.json else "\n".join(map(as_text, figures)))


def fingerprint(folder: Path, repetitions: int) -> Figure:
    """All fingerprints of a checkpoint over one SHA-256 of its file, by turns; the file is read once before."""
    file = folder / checkpoint.SINGLE_FILE
    anatomy = HuggingFaceSubject(str(folder))
    anatomy.layers()  # the model's shape, which needs transformers and no weights
    _whole(file)
    pairs = [(_seconds(lambda: _whole(file)), _seconds(lambda: _all(folder))) for _ in range(repetitions)]
    whole, ours = (median(side) for side in zip(*pairs, strict=True))
    return Figure(
        "fingerprint_over_sha256",
        median(ours / whole for whole, ours in pairs),
        "of one SHA-256 over the same bytes",
        1.5,
        higher_is_better=False,
        detail=f"{ours:.2f} s against {whole:.2f} s for {file.stat().st_size / 1e6:,.0f} MB",
    )


def exact(folder: Path) -> Figure:
    """The share of tensors for which the layers that change and the layers that become stale are the same.

    Every tensor is changed in turn, in the model that is in memory and in the hashes that the fingerprints are made
    from; the file stays as it is.
    """
    import torch

    subject = HuggingFaceSubject(str(folder), device="cpu")
    model: Any = subject._model
    anatomy = subject._anatomy
    hashes = dict(subject._tensor_hashes)
    blocks = anatomy.blocks(anatomy.neurons)
    before = _fingerprints(folder, blocks, hashes)
    windows = subject.probe()[:1]
    was = _activations(subject, windows)
    parameters = dict(model.named_parameters())
    right: list[str] = []
    wrong: list[str] = []
    # A head comes after all neurons, and is no part of the model that is run.
    for name in hashes:
        place = blocks.place(name)
        within = name.removeprefix(place[0]) if place else name.removeprefix("transformer.")
        parameter = parameters.get(within)
        changed: list[int] = []
        if parameter is not None:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * parameter.std().clip(
                0.02
            )
            with _added(parameter, noise):
                now = _activations(subject, windows)
            changed = [
                layer for layer in was if np.abs(now[layer] - was[layer]).max() > NO_CHANGE * np.abs(was[layer]).max()
            ]
        after = _fingerprints(folder, blocks, hashes | {name: TAG + "0" * 64})
        stale = [layer for layer in was if after[layer] != before[layer]]
        (right if stale == changed else wrong).append(name)
    return Figure(
        "stale_sets_exact",
        len(right) / len(hashes),
        "of tensors",
        1.0,
        higher_is_better=True,
        detail=f"{len(right)} of {len(hashes)} tensors" + (f"; not {', '.join(wrong[:5])}" if wrong else ""),
    )


def recapture(folder: Path, shape: str, windows: int, repetitions: int) -> Iterator[Figure]:
    """Processor time of capturing some layers over that of all, by turns, over the share of blocks that the pass needs.

    A pass starts at the first block, because nobody keeps the residual stream of a corpus (for 3,072 windows of GPT-2
    small it would take 0.6 GB at each depth), and it ends with the last stale layer.
    """
    subject = subjects.subject(shape, folder, device="cpu")
    plan = planned(subjects.windows(shape, windows))
    n_layers = len(subject.layers())
    every = list(range(n_layers))
    passes.warm_up(subject, plan, every)
    stale = {f"a change of block {n_layers - 2}": every[-2:], f"layer {n_layers // 2 - 1} alone": [n_layers // 2 - 1]}

    def captured(layers: Sequence[int]) -> float:
        leg = passes.Leg()
        with leg.timed("cpu"), passes.Capturing(subject, plan, layers) as capturing:
            for batch in passes.batches(plan, "cpu"):
                capturing.take([batch])
            for _ in capturing.results():
                pass
        return leg.cpu

    for what, layers in stale.items():
        share = (layers[-1] + 1) / n_layers
        pairs = [(captured(layers), captured(every)) for _ in range(repetitions)]
        some, all_of_them = (median(side) for side in zip(*pairs, strict=True))
        yield Figure(
            f"recapture_{'late_block' if len(layers) > 1 else 'one_layer'}_over_share",
            median(few / full for few, full in pairs) / share,
            f"of {share:.2f} of a full capture",
            1.15,
            higher_is_better=False,
            detail=f"{what}: {some:.1f} s against {all_of_them:.1f} s of processor time, {plan.n_windows} windows",
        )


def status(home: Path, n_layers: int) -> Figure:
    """How long it takes to know the state of every slice of a lake: a subject of `n_layers` x 6,400 neurons.

    The records are those of a whole run. The tables hold as many rows for each neuron as such a run gives, with
    nothing in them: `status` reads no values but which run wrote them.
    """
    project = Project(
        n_neurons=(6_400,) * n_layers,
        choices=Choices(windows=3072, length=64, seed=0, explainer=None, simulator=None),
        code={},
    )
    outside = Outside("c", "t", [f"w{layer}" for layer in range(n_layers)], "k")
    lake = DeltaLake(str(home))
    _fill(lake, project, outside)
    seconds = [_seconds(lambda: _stale(lake, project, outside)) for _ in range(3)]
    edited = replace(outside, weights=[*outside.weights[:-1], "other"])
    found = _stale(lake, project, edited)
    return Figure(
        f"status_of_{n_layers}_layers",
        median(seconds),
        "s",
        2.0,
        higher_is_better=False,
        detail=f"{n_layers * 6_400:,} neurons; after a change of the last layer {len(found)} slices are stale, all of it: "
        f"{set(found) == {n_layers - 1}}; starting Python and hashing weights come on top",
    )


def ledger(home: Path, repetitions: int) -> Figure:
    """A write of one layer with its line in the ledger over one without, by turns in two lakes of the same rows."""
    generator = np.random.default_rng(0)
    rows = _thin("token_associations", 0, 3_072, 1).with_columns(
        pl.Series("token_ids", [list(range(400))] * 3_072, dtype=pl.List(pl.Int32)),
        pl.Series("counts", [[1] * 400] * 3_072, dtype=pl.List(pl.Int32)),
        pl.Series("means", generator.normal(size=(3_072, 400)).astype(np.float32)).arr.to_list(),
        pl.Series("weights", generator.normal(size=(3_072, 400)).astype(np.float32)).arr.to_list(),
    )
    sealed, bare = DeltaLake(home / "sealed"), DeltaLake(home / "bare")
    bare.ledger = None

    def write(lake: DeltaLake) -> float:
        return _seconds(lambda: lake.replace("token_associations", rows, layer=0, record={}))

    pairs = [(write(bare), write(sealed)) for _ in range(4 * repetitions)]
    without, with_line = (median(side) for side in zip(*pairs, strict=True))
    size = sum(file.stat().st_size for file in (home / "sealed").rglob("*.parquet")) / len(pairs)
    return Figure(
        "write_with_ledger",
        median(line / alone for alone, line in pairs),
        "of a write without",
        1.1,
        higher_is_better=False,
        detail=f"{1000 * with_line:.0f} ms against {1000 * without:.0f} ms for {size / 1e6:.1f} MB, forced to the disk both times",
    )


def _stale(lake: Lake, project: Project, outside: Outside) -> list[int | None]:
    found = states(lake, project, outside, layers=range(len(project.n_neurons)))
    return [state.layer for state in found if state.status != "fresh"]


def _fill(lake: DeltaLake, project: Project, outside: Outside) -> None:
    """The tables of a whole run, as thin as they can be, and its records."""
    now = datetime.now(UTC)
    records: list[dict[str, Any]] = []
    contents: dict[tuple[str, int | None], str] = {}
    weights = {"corpus": outside.corpus, "tokenizer": outside.tokenizer, "checkpoint": outside.checkpoint}
    for table in looked_at(project):
        hop, declared = HOPS[table], TABLES[table]
        for layer in range(len(project.n_neurons)) if declared.by_layer else (None,):
            rows = _thin(table, layer, 6_400 if "neuron" in declared.columns else 1, ROWS.get(table, 1))
            commit = lake.replace(table, rows, layer=layer, record={})
            contents[table, layer] = content_hash([table, layer])
            outer = weights | ({} if layer is None else {"weights": outside.weights[layer]})
            inputs = {name: contents[name, layer if TABLES[name].by_layer else None] for name in hop.inputs} | outer
            records.append(
                {
                    "commit_uuid": commit.commit_uuid,
                    "run_id": "r",
                    "table": table,
                    "version": commit.version,
                    "layer": layer,
                    "neurons": None,
                    "step_key": None,
                    "content_hash": contents[table, layer],
                    "rows": len(rows),
                    "inputs": json.dumps({name: {"content_hash": found} for name, found in inputs.items()}),
                    "settings": json.dumps(dict(hop.settings(project))),
                    "code": json.dumps({"code_version": hop.code_version}),
                    "environment": "{}",
                    "usage": "{}",
                    "started_at": now,
                    "finished_at": now + timedelta(seconds=len(records)),
                    "status": "done",
                    "error": None,
                }
            )
    frame = pl.DataFrame(records, schema=TABLES["materializations"].schema, orient="row")
    lake.add("materializations", frame, record={})


def _thin(table: str, layer: int | None, neurons: int, rows: int) -> pl.DataFrame:
    """Rows that break no rule of a table and say nothing."""
    declared, count = TABLES[table], neurons * rows
    columns = {
        name: pl.repeat(_nothing(column.type, nullable=column.nullable), count, dtype=column.type, eager=True)
        for name, column in declared.columns.items()
    }
    columns["run_id"] = pl.repeat("r", count, dtype=pl.String, eager=True)
    for name in declared.reasons.values():
        columns[name] = pl.repeat("dead_neuron", count, dtype=pl.String, eager=True)
    if layer is not None:
        columns["layer"] = pl.repeat(layer, count, dtype=pl.Int32, eager=True)
    told_apart = next(name for name in reversed(declared.key) if name != "layer" or len(declared.key) == 1)
    if told_apart != "layer":
        columns[told_apart] = pl.int_range(count, eager=True).cast(declared.columns[told_apart].type)
    if "neuron" in columns:
        columns["neuron"] = (pl.int_range(count, eager=True) // rows).cast(pl.Int32)
    return pl.DataFrame(columns)


def _nothing(kind: Any, *, nullable: bool) -> Any:
    if nullable:
        return None
    if isinstance(kind, pl.List):
        return []
    if kind == pl.Boolean:
        return False
    return "" if kind == pl.String else b"" if kind == pl.Binary else 0


def _whole(file: Path) -> None:
    with file.open("rb") as opened:
        hashlib.file_digest(opened, "sha256")


def _all(folder: Path) -> None:
    """The fingerprints of a folder that was never looked at."""
    HuggingFaceSubject(str(folder)).fingerprints()


def _fingerprints(folder: Path, blocks: checkpoint.Blocks, hashes: dict[str, str]) -> list[str]:
    return checkpoint.layer_fingerprints(
        folder, blocks=blocks, number_format="float32", hashes=hashes,
        settings=configuration.settings_that_count(folder), tokenizer=configuration.tokenizer_that_counts(folder),
    )  # fmt: skip


def _activations(subject: HuggingFaceSubject, windows: Sequence[Sequence[int]]) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}

    def receive(layer: int, _: slice, activations: Any) -> None:
        found[layer] = activations.float().numpy().copy()

    subject.capture([windows], range(len(subject.layers())), receive)
    return found


@contextmanager
def _added(parameter: Any, noise: Any) -> Iterator[None]:
    """The parameter with something added, for the time of a `with`."""
    kept = parameter.data.clone()
    parameter.data.add_(noise)
    try:
        yield
    finally:
        parameter.data.copy_(kept)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
