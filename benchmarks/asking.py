"""Benchmark of asking at the size of GPT-2 XL: whole layers explained, simulated and scored, through the real assets.

    python -m benchmarks.asking --layers 48 --neurons 6400

What a forward pass would leave is made up: windows of words, and for each neuron fifteen of them as exemplars with
activations that are strong on words of its own. From there on everything is real: the assets `explanations`,
`simulations` and `scores` by layer, through Dagster, into a lake in a temporary folder, and every request goes to the
scripted endpoint, which is a process of its own on this machine. Processor time is of this process; the endpoint's is
said beside it.

The last figures say what a run that goes on for 48 layers depends on: whether a later layer takes more time or memory
than an early one, with all the rows and replies of the others in the lake.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl

from assets import explanations, run, scores, simulations
from assets.forward_pass import peak_mib
from assets.project import Choices, Project
from benchmarks.figures import Figure, as_json, as_text
from benchmarks.scale import filled, lists
from explorer.fake_endpoint import MODEL
from resources.delta import DeltaLake
from resources.language import OpenAICompatible
from resources.machines import ThisMachine

WINDOWS, TOKENS, WORDS, KINDS = 2_000, 64, 500, 97
"""Words of the made-up text are of so many kinds, and each neuron is strong on one of them."""
SHOWN, STRONG, RANDOM = 5, 5, 5
"""Exemplars of a neuron: those to explain it, and those to score on."""
HOPS = ("explanations", "simulations", "scores")


@dataclass(frozen=True)
class Layer:
    """What one layer took. Seconds are of the processor, but for `wall`."""

    wall: float
    ours: float
    endpoint: float
    peak: float
    """MiB, of all layers so far."""
    stored: dict[str, float]
    """MiB in the lake of each table, of all layers so far."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the layers, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--neurons", type=int, default=6_400, help="of each layer")
    parser.add_argument("--simulation", default="json-many", help="how the simulator is asked")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument(
        "--processor-minutes", type=float, help="begin no layer after so many, here and at the endpoint"
    )
    parser.add_argument("--folder", type=Path, help="where the lake is made; a temporary folder unless given")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder, Endpoint() as endpoint:
        layers = measured(Path(folder), endpoint, asked)
        counts = endpoint.counts()
    found = figures(layers, asked.neurons, counts, asked.simulation)
    print(as_json(found) if asked.json else "\n".join(map(as_text, found)))


def measured(folder: Path, endpoint: "Endpoint", asked: argparse.Namespace) -> list[Layer]:
    """What each layer took, until all are made or the processor's time is up."""
    layers, neurons, limit = asked.layers, asked.neurons, 60 * (asked.processor_minutes or float("inf"))
    choices = Choices(
        windows=WINDOWS, length=TOKENS, seed=0, explainer=MODEL, simulator=MODEL, simulation=asked.simulation,
    )  # fmt: skip
    project = Project(n_neurons=(neurons,) * layers, choices=choices, code={})
    lake = DeltaLake(folder / "lake")
    door = OpenAICompatible(
        endpoint.url, journal_path=folder / "journal.sqlite", lake=lake, concurrency=asked.concurrency
    )
    definitions = dg.Definitions(
        assets=[asset.define(project) for asset in (explanations, simulations, scores)],
        resources={
            "lake": lake,
            "language": door,
            "machines": ThisMachine(),
            "subject": dg.ResourceDefinition.none_resource(),
        },
        executor=dg.in_process_executor,
    )
    words = text()
    lake.replace("sequences", windows(words), record={})
    found: list[Layer] = []
    spent = 0.0
    with dg.DagsterInstance.local_temp(str(folder), overrides={"telemetry": {"enabled": False}}) as instance:
        for layer in range(layers):
            if spent > limit:
                break
            for table, rows in of_layer(words, layer, neurons).items():
                lake.replace(table, rows, layer=layer, record={})
            wall, ours, theirs = time.perf_counter(), time.process_time(), endpoint.processor_seconds()
            run.materialize(definitions, instance, HOPS, layers=[layer])
            took = Layer(
                time.perf_counter() - wall, time.process_time() - ours, endpoint.processor_seconds() - theirs,
                peak_mib(), {table: _mib(folder / "lake" / table) for table in ("language_calls", *HOPS)},
            )  # fmt: skip
            spent += took.ours + took.endpoint
            found.append(took)
            print(f"layer {layer}: {took}", file=sys.stderr, flush=True)
    missing = lake.scan("simulations").select(pl.col("expected").is_null().sum()).collect().item()
    if missing:
        raise RuntimeError(f"{missing:,} simulations are missing")
    return found


def figures(layers: list[Layer], neurons: int, counts: dict[str, int], simulation: str) -> list[Figure]:
    """The figures of so many layers; those of growth need four of them."""
    count = neurons * len(layers)
    ours, theirs, wall = (sum(getattr(layer, name) for layer in layers) for name in ("ours", "endpoint", "wall"))
    third = max(1, len(layers) // 3)
    early, late = layers[1 : 1 + third] or layers, layers[-third:]
    each = {table: 2**20 * size / count for table, size in layers[-1].stored.items()}
    pace = np.mean([layer.ours for layer in late]) / np.mean([layer.ours for layer in early])
    return [
        Figure("neurons explained, simulated and scored", count, "neurons", 307_200, higher_is_better=True,
               detail=f"{len(layers)} layers of {neurons:,}, {simulation}; {counts['requests']:,} requests, "
                      f"{counts['different']:,} different ones; {wall:,.0f} s by the clock"),
        Figure("processor time of each request", 1e3 * ours / counts["requests"], "ms", None, higher_is_better=False,
               detail=f"{ours:,.0f} s here in all, and {theirs:,.0f} s at the endpoint"),
        Figure("a late layer over an early one, in time", float(pace), "", 1.1, higher_is_better=False,
               detail=f"processor seconds of each: {', '.join(f'{layer.ours:,.0f}' for layer in layers)}"),
        Figure("a late layer over an early one, in peak memory", layers[-1].peak / early[0].peak, "", 1.1,
               higher_is_better=False, detail=f"{early[0].peak:,.0f} MiB, then {layers[-1].peak:,.0f} MiB"),
        Figure("in the lake of each neuron", sum(each.values()), "bytes", None, higher_is_better=False,
               detail=", ".join(f"{table} {size:,.0f}" for table, size in each.items()) + "; every reply word for word"),
    ]  # fmt: skip


class Endpoint:
    """The scripted endpoint as a process of its own."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> "Endpoint":
        command = [sys.executable, "-W", "ignore", "-c", "from explorer.cli import main; main()"]
        self._process = subprocess.Popen(
            [*command, "fake-endpoint", "--port", str(self._port)], stderr=subprocess.DEVNULL
        )
        for _ in range(1_000):
            try:
                self.counts()
            except OSError:
                threading.Event().wait(0.05)
            else:
                return self
        raise RuntimeError("the endpoint did not start")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def counts(self) -> dict[str, int]:
        """What it was asked so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/counts") as answer:
            return dict(json.load(answer))

    def processor_seconds(self) -> float:
        """What it has taken of the processor."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def text() -> np.ndarray:
    """Token ids (window, token): words drawn at random."""
    return np.random.default_rng(0).integers(0, WORDS, (WINDOWS, TOKENS), dtype=np.int32)


def windows(words: np.ndarray) -> pl.DataFrame:
    """The rows of `sequences`."""
    spelled = [f" word{token}".encode() for token in range(WORDS)]
    return filled("sequences", {
        "sequence_id": [f"{place:016x}" for place in range(WINDOWS)],
        "document_id": [str(place) for place in range(WINDOWS)],
        "split": ["explain" if place % 2 else "score" for place in range(WINDOWS)],
        "token_ids": lists(words),
        "token_bytes": [[spelled[token] for token in window] for window in words.tolist()],
        "identity": [f"{place:016x}" for place in range(WINDOWS)],
        "run_id": ["r"] * WINDOWS,
    })  # fmt: skip


def of_layer(words: np.ndarray, layer: int, neurons: int) -> dict[str, pl.DataFrame]:
    """What a forward pass and the choice of exemplars would leave of a layer, as far as it is read later."""
    drawn = np.random.default_rng([1, layer])
    neuron = np.arange(neurons, dtype=np.int32)
    kind = drawn.integers(0, KINDS, neurons)
    each = SHOWN + STRONG + RANDOM
    # Windows of odd number are shown, those of even number are scored on.
    place = 2 * drawn.integers(0, WINDOWS // 2, (neurons, each)) + (np.arange(each) < SHOWN)
    place = place.reshape(-1)
    owner = np.repeat(neuron, each)
    strong = words[place] % KINDS == kind[owner][:, None]
    # Even of a word of its kind a neuron may have none in a window: then it is strong on the first one.
    strong[:, 0] |= ~strong.any(axis=1)
    strength = drawn.gamma(4.0, 1.0, strong.shape)
    activations = np.where(strong, strength, -0.1).astype(np.float32)
    most = activations.reshape(neurons, each, TOKENS)[:, :SHOWN].max(axis=(1, 2))
    scaled = np.clip(np.floor(10 * np.maximum(activations, 0) / most[owner][:, None]), 0, 10).astype(np.int8)
    within = np.tile(np.arange(each), neurons)
    name = pl.Series([f"{layer:04x}{n:08x}{w:04x}" for n, w in zip(owner.tolist(), within.tolist(), strict=True)])
    exemplars = filled("exemplars", {
        "layer": np.full(len(owner), layer, dtype=np.int32), "neuron": owner,
        "split": np.where(within < SHOWN, "explain", "score"),
        "stratum": np.where(within < SHOWN + STRONG, "top", "random"), "rank": (within % 5).astype(np.int32),
        "sequence_id": [f"{one:016x}" for one in place.tolist()], "token_ids": lists(words[place]),
        "activations": lists(activations), "scaled_activations": lists(scaled), "scale_maximum": most[owner],
        "exemplar_id": name, "identity": name, "run_id": ["r"] * len(owner),
    })  # fmt: skip
    # The table of a neuron holds every token of the records that it may be scored on.
    tokens = [np.unique(words[some[SHOWN:]]).astype(np.int32) for some in place.reshape(neurons, each)]
    likes = [some % KINDS == one for some, one in zip(tokens, kind.tolist(), strict=True)]
    associations = filled("token_associations", {
        "layer": np.full(neurons, layer, dtype=np.int32), "neuron": neuron, "token_ids": tokens,
        "counts": [np.full(len(some), 60, dtype=np.int32) for some in tokens],
        "means": [np.where(some, 4, -0.1).astype(np.float32) for some in likes],
        "weights": [some.astype(np.float32) for some in likes],
        "fallback": np.zeros(neurons, dtype=np.float32),
        "identity": [f"{layer}:{n}" for n in range(neurons)], "run_id": ["r"] * neurons,
    })  # fmt: skip
    statistics = filled("neuron_statistics", {
        "layer": np.full(neurons, layer, dtype=np.int32), "neuron": neuron,
        "minimum": np.full(neurons, -0.1, dtype=np.float32), "maximum": most,
        "identity": [f"{layer}:{n}" for n in range(neurons)], "run_id": ["r"] * neurons,
    })  # fmt: skip
    return {"exemplars": exemplars, "token_associations": associations, "neuron_statistics": statistics}


def _mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


if __name__ == "__main__":
    main()
