"""Benchmark of exchange: how many neurons a second are exported as OpenAI's files and imported from them, and the memory.

    python -m benchmarks.exchange --lake lake/demo --neurons 36864
    python -m benchmarks.exchange --lake lake/demo --mutilated 1000

The rows are those of a lake that was made (of `make demo`), repeated under other layers and indices until there are enough
neurons of them. Export and import each run in a process of their own, import with two that parse.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.figures import Figure, as_json, as_text
from resources.delta import DeltaLake
from resources.export_folder import ExportFolder
from resources.foreign_files import ForeignFiles

GOAL, MEMORY = 500, 1024
OF_NEURONS = (
    "activations", "neuron_statistics", "token_associations", "connections", "exemplars", "explanations", "simulations", "scores",
)  # fmt: skip
WIDTH = 3072
"""Neurons of a layer of GPT-2 small."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", default="lake/demo", help="a lake that was made")
    parser.add_argument("--neurons", type=int, default=36_864)
    parser.add_argument(
        "--mutilated", type=int, help="instead of speed: spoil so many files, and count what becomes of them"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--leg", nargs=3, metavar=("NAME", "FROM", "TO"), help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.leg:
        print(json.dumps(leg(*asked.leg)))
        return
    figures = mutilated(asked.lake, asked.mutilated) if asked.mutilated else speed(asked.lake, asked.neurons)
    print(as_json(figures) if asked.json else "\n".join(map(as_text, figures)))


def speed(lake: str, neurons: int) -> list[Figure]:
    """Neurons a second and peak memory of export and import."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as home:
        repeated, files, taken = (str(Path(home) / name) for name in ("lake", "files", "taken"))
        repeat(DeltaLake(lake), DeltaLake(repeated), neurons)
        for name, source, target in (("export", repeated, files), ("import", files, taken)):
            command = [sys.executable, "-m", "benchmarks.exchange", "--leg", name, source, target]
            found = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            if found["neurons"] != neurons:
                raise RuntimeError(f"{found['neurons']:,} of {neurons:,} neurons came through {name}")
            figures += [
                Figure(
                    f"{name}_neurons_per_second", neurons / found["seconds"], "neurons a second", GOAL, higher_is_better=True,
                    detail=f"{neurons:,} neurons in {found['seconds']:,.0f} s, {1e3 * found['cpu'] / neurons:.2f} ms of processor "
                    f"time each (two cores free of other work would give {2 * neurons / found['cpu']:,.0f} a second at most)",
                ),
                Figure(
                    f"{name}_peak_memory", found["mib"], "MiB", MEMORY, higher_is_better=False,
                    detail="of the process and of those that parse for it, each at its own peak",
                ),
            ]  # fmt: skip
    return figures


def repeat(lake: DeltaLake, target: DeltaLake, neurons: int) -> None:
    """Write the rows of a lake into another, under layers of `WIDTH` neurons, until there are `neurons` of them."""
    for table in ("sequences", "vocabulary"):
        target.replace(table, lake.read(table), record={})
    sites = lake.read("subject_layers")
    of_layer = [(row["layer"], row["n_neurons"]) for row in sites.sort("layer").to_dicts()]
    done = place = 0
    while done < neurons:
        layer, parts, width = done // WIDTH, {name: [] for name in OF_NEURONS}, min(WIDTH, neurons - done)  # type: ignore[var-annotated]
        first = 0
        while first < width:
            of, n = of_layer[place % len(of_layer)]
            count, place = min(n, width - first), place + 1
            for name in OF_NEURONS:
                rows = lake.read(name, layer=of).filter(pl.col("neuron") < count)
                parts[name].append(rows.with_columns(pl.lit(layer, pl.Int32).alias("layer"), pl.col("neuron") + first))
            first += count
        for name, frames in parts.items():
            target.replace(name, pl.concat(frames), layer=layer, record={}, allow_empty=True)
        site = sites.head(1).with_columns(
            pl.lit(layer, pl.Int32).alias("layer"), pl.lit(width, pl.Int32).alias("n_neurons")
        )
        target.replace("subject_layers", site, layer=layer, record={})
        done += width


def unheard(step: str, done: int, total: int, detail: str = "") -> None:
    """Nobody watches."""


def leg(name: str, source: str, target: str) -> dict[str, Any]:
    """One half of the way, timed, with the peak memory of this process and of its children.

    Dagster is imported here, as the command does: processes that parse begin with what this file imports, and need none.
    """
    from assets import exports, imports

    begun = time.perf_counter()
    if name == "export":
        with ExportFolder(Path(target)) as folder:
            neurons = exports.openai(DeltaLake(source), folder, unheard)["files"]["collated-activations"]
    else:
        lake = DeltaLake(target)
        imports.take_over(
            lake, ForeignFiles(processes=2), unheard, form="openai", folder=source, source="s", conventions={}, run_id="r", code={}
        )  # fmt: skip
        neurons = lake.rows("imported_neurons")
    seconds = time.perf_counter() - begun
    times = os.times()
    own = next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")
    )
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if name == "import" else 0
    cpu = times.user + times.system + times.children_user + times.children_system
    return {"neurons": neurons, "seconds": seconds, "cpu": cpu, "mib": (own + 2 * children) / 1024}


def mutilated(lake: str, count: int) -> list[Figure]:
    """Files of which a piece is gone, doubled, put elsewhere or of another kind: each is imported or rejected."""
    from assets import exports, imports

    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "files"
        with ExportFolder(folder) as out:
            exports.openai(DeltaLake(lake), out, unheard, layers=[0])
        draw = np.random.default_rng(0)
        paths = sorted(folder.glob("[ce]*/*/*.json*"))
        for path in paths[:count]:
            path.write_bytes(spoiled(path.read_bytes(), draw))
        for path in [*paths[count:], *folder.glob("related-*/*/*/*.json")]:
            path.unlink()
        target = DeltaLake(str(Path(home) / "taken"))
        taken = imports.take_over(
            target, ForeignFiles(processes=2), unheard, form="openai", folder=str(folder), source="s", conventions={},
            run_id="r", code={},
        )  # fmt: skip
        listed = target.rows("imported_files")
    placed = sum(file["offset_in_file"] is not None for file in taken.rejected)
    return [
        Figure(
            "mutilated_files_accounted_for", (taken.imported + len(taken.rejected)) / count, "of all", 1.0, higher_is_better=True,
            detail=f"{count:,} files: {taken.imported:,} could still be read, {len(taken.rejected):,} were rejected with a reason, "
            f"{placed:,} of them with the place; {listed:,} are in `imported_files`",
        )
    ]  # fmt: skip


def spoiled(data: bytes, draw: np.random.Generator) -> bytes:
    """A file as disks, transfers and careless writers leave it."""
    place, other = sorted(int(value) for value in draw.integers(len(data), size=2))
    words = (b"0.", b"null", b'"tokens"', b"[", b":", b"}", b'"activations"', b"5")
    kinds = (
        data[:place],
        data[:place] + data[other:],
        data[:place] + draw.bytes(int(draw.integers(1, 9))) + data[place:],
        data[:other] + data[place:],
        data.replace(words[int(draw.integers(len(words)))], (b"NaN", b"{}", b"1e999", b"")[int(draw.integers(4))], 1),
        data[::-1],
    )
    return kinds[int(draw.integers(len(kinds)))]


if __name__ == "__main__":
    main()
