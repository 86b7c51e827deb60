"""What capture costs beside the pass that it rides on, and what it leaves behind.

python -m benchmarks.capture                            ratio, growth, lake and memory for the shape of GPT-2 small
python -m benchmarks.capture --parts ratio --peers      beside other ways to the same activations
python -m benchmarks.capture --shape demo --json

ratio    time of a full capture over that of the bare pass: on a GPU, where there is one, in three precisions
growth   the same per token for much more text, and the time to merge two captures of it, on layer 0 alone
lake     bytes that a neuron takes in the lake, and the time to read one neuron's records
memory   what capture needs above the model and one batch, in processes of their own, at two sizes of the corpus
state    what the reductions of all layers hold for a corpus of 50,000 windows; runs no model
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks import subjects
from benchmarks.environments import Peer, peers
from benchmarks.figures import Figure, as_json, as_text
from benchmarks.passes import PIECE, Capturing, SideBySide, batches, side_by_side, warm_up
from pipeline.activations import activations
from pipeline.activations import statistics as neuron_statistics
from pipeline.associations import associations
from pipeline.capture import LayerCapture, Plan, merge, plan
from pipeline.tables import TABLES
from resources.subject import HuggingFaceSubject

if TYPE_CHECKING:
    from resources.delta import DeltaLake

PARTS = ("ratio", "growth", "lake", "memory", "state")
NEED_NO_MODEL = {"state"}

RATIO_GOAL = {512: 1.10, 4096: 1.05, 16384: 1.03}
GPU_RATIO_GOAL = 1.05
"""Full over bare, for a corpus of at least so many windows: the first few hundred alone pay for the strongest windows."""

GROWTH_GOAL = 1.05
"""Linear work, with some room for noise."""

BYTES_GOAL = 12 * 1024
"""Bytes of a neuron with 60 records of 64 tokens, its statistics and its tokens; OpenAI's JSON takes about 100 KiB."""

READ_GOAL = 10.0
"""Milliseconds to read one neuron of a lake of 12 layers."""

MEMORY_GOAL = 1536.0
"""MiB above the model and one batch for all neurons of GPT-2 small."""

STATE_GOAL = 8.0
"""GiB that all neurons of GPT-2 XL hold between two batches."""

STATE_WINDOWS = 50_000

MEMORY_GROWTH_GOAL = 64.0
"""MiB more for twice the text: nothing but slots of one more nested sample, and noise."""

READS = 200
MERGES = 5
PRECISIONS = {"float32": ("float32", "highest"), "tf32": ("float32", "high"), "bfloat16": ("bfloat16", "highest")}
"""Number format of the subject, and torch's precision of float32 products, on a GPU."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for, and print each figure as it comes; as JSON all at the end."""
    asked = _parser().parse_args(arguments)
    figures: list[Figure] = []
    for figure in measured(asked):
        figures.append(figure)
        if not asked.json:
            print(as_text(figure), flush=True)
    if asked.json:
        print(as_json(figures))


def measured(asked: argparse.Namespace) -> Iterator[Figure]:
    """The figures of the parts that were asked for, with a model in a folder that is gone afterwards."""
    least = min(asked.windows)
    with tempfile.TemporaryDirectory() as home:
        model = Path(home) / "model"
        if asked.shape != subjects.DEMO and (asked.peers or set(asked.parts) - NEED_NO_MODEL):
            subjects.save(asked.shape, model)
        if "ratio" in asked.parts:
            yield from ratios(asked.shape, model, asked.windows, asked.repetitions)
        if "growth" in asked.parts:
            yield from growth(asked.shape, model, 2 * least, 8 * least)
        if "lake" in asked.parts:
            yield from lake(asked.shape, model, least, Path(home) / "lake")
        if "memory" in asked.parts:
            yield from memory(asked.shape, model, 2 * least, 4 * least)
        if "state" in asked.parts:
            yield from (state(asked.shape, STATE_WINDOWS, signed=signed) for signed in (False, True))
        if asked.peers:
            yield from beside(peers(asked.peers_home), asked.shape, model, least, repetitions=asked.repetitions)


def ratios(shape: str, model: Path, sizes: Sequence[int], repetitions: int) -> Iterator[Figure]:
    """Time of a full capture over time of the bare pass, for each size of the corpus."""
    import torch

    places = {"": ("cpu", "float32", "highest")}
    if torch.cuda.is_available():
        places = {f"_cuda_{name}": ("cuda", *choices) for name, choices in PRECISIONS.items()}
    plans = {size: plan(subjects.windows(shape, size)) for size in sizes}
    for place, (device, dtype, products) in places.items():
        torch.set_float32_matmul_precision(products)
        subject = subjects.subject(shape, model, device=device, dtype=dtype)
        for size, planned in plans.items():
            warm_up(subject, planned, _layers(subject))
            found = [side_by_side(subject, planned, _layers(subject)) for _ in range(repetitions)]
            goal = next((goal for least, goal in sorted(RATIO_GOAL.items(), reverse=True) if size >= least), None)
            name = f"{shape}_{planned.n_windows}{place}"
            wall = [one.full.wall / one.bare.wall for one in found]
            if device == "cuda":
                yield _ratio(f"wall_over_bare_{name}", wall, GPU_RATIO_GOAL, found)
                yield from _on_gpu(name, found)
            else:
                yield _ratio(f"wall_over_bare_{name}", wall, goal, found)
                yield _ratio(f"cpu_over_bare_{name}", [one.full.cpu / one.bare.cpu for one in found], goal, found)


def _ratio(figure: str, values: list[float], goal: float | None, found: list[SideBySide]) -> Figure:
    bare = statistics.median(one.tokens / one.bare.wall for one in found)
    full = statistics.median(one.tokens / one.full.wall for one in found)
    ends = statistics.median(one.ends.wall for one in found)
    return Figure(
        figure,
        statistics.median(values),
        "of the bare pass",
        goal,
        higher_is_better=False,
        detail=f"{_spread(values)}; {bare:,.0f} tokens/s bare, {full:,.0f} captured, {ends:.2f} s of it before the first "
        "window and after the last",
    )


def _on_gpu(name: str, found: list[SideBySide]) -> Iterator[Figure]:
    import torch

    pace = [one.tokens / one.full.wall for one in found]
    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    held = f"the most that torch held on {torch.cuda.get_device_name()}, model included"
    yield Figure(
        f"tokens_per_second_{name}",
        statistics.median(pace),
        "tokens/s",
        None,
        higher_is_better=True,
        detail=_spread(pace),
    )
    yield Figure(f"gpu_memory_{name}", peak, "MiB", None, higher_is_better=False, detail=held)


def growth(shape: str, model: Path, small: int, large: int) -> Iterator[Figure]:
    """How time per token and the time of a merge grow with the corpus, on layer 0."""
    subject = subjects.subject(shape, model, device="cpu")
    over_bare, per_token, merging = [], [], []
    for size in (small, large):
        planned = plan(subjects.windows(shape, size))
        warm_up(subject, planned, [0])
        found = side_by_side(subject, planned, [0])
        over_bare.append(found.full.wall / found.bare.wall)
        per_token.append(1e6 * found.full.wall / found.tokens)
        merging.append(_merge_seconds(_halves(subject, planned)))
    yield Figure(
        "growth_per_token",
        over_bare[1] / over_bare[0],
        f"of that at {small:,} windows",
        GROWTH_GOAL,
        higher_is_better=False,
        detail=f"layer 0 over its bare pass: {over_bare[0]:.3f} at {small:,} windows ({per_token[0]:.1f} us/token), "
        f"{over_bare[1]:.3f} at {large:,} ({per_token[1]:.1f} us/token)",
    )
    yield Figure(
        "growth_of_merge",
        merging[1] / merging[0],
        f"of that at {small:,} windows",
        None,
        higher_is_better=False,
        detail=f"two halves of layer 0: {1e3 * merging[0]:.0f} ms at {small:,} windows, {1e3 * merging[1]:.0f} ms at "
        f"{large:,}; medians of {MERGES}",
    )


def _halves(subject: HuggingFaceSubject, planned: Plan) -> list[LayerCapture]:
    """Layer 0 captured from one half of the windows, and from the other."""
    found: list[LayerCapture] = []
    everything = list(batches(planned, "cpu"))
    for half in (everything[::2], everything[1::2]):
        with Capturing(subject, planned, [0]) as capturing:
            for batch in half:
                capturing.take([batch])
            found.extend(capturing.results())
    return found


def _merge_seconds(halves: list[LayerCapture]) -> float:
    spent = []
    for _ in range(MERGES):
        started = time.perf_counter()
        merge(halves)
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def lake(shape: str, model: Path, size: int, folder: Path) -> Iterator[Figure]:
    """What all layers take in a lake, and how long the records of one neuron take to read."""
    from resources.delta import DeltaLake

    subject = subjects.subject(shape, model, device="cpu")
    sequences = subjects.windows(shape, size)
    planned = plan(sequences)
    store = DeltaLake(folder)
    neurons: list[tuple[int, int]] = []
    records, started = 0, time.perf_counter()
    with Capturing(subject, planned, _layers(subject)) as capturing:
        for batch in batches(planned, "cpu"):
            capturing.take([batch])
        for captured in capturing.results():
            neurons += [(captured.layer, neuron) for neuron in range(captured.n_neurons)]
            rows = tables_of(captured, planned, sequences, subject)
            records += len(rows["activations"])
            for table, frame in rows.items():
                store.replace(table, frame, layer=captured.layer, record={})
    seconds = time.perf_counter() - started
    sizes = {table: sum(file.stat().st_size for file in (folder / table).rglob("*.parquet")) for table in rows}
    yield Figure(
        "bytes_per_neuron",
        sum(sizes.values()) / len(neurons),
        "bytes",
        BYTES_GOAL,
        higher_is_better=False,
        detail=", ".join(f"{table} {found / len(neurons):,.0f}" for table, found in sizes.items())
        + f"; {records / len(neurons):.1f} records of {subjects.LENGTH} tokens; captured, made and written in {seconds:.0f} s",
    )
    drawn = np.random.default_rng(0).choice(len(neurons), size=READS)
    through, raw = _read_milliseconds(store, folder, [neurons[place] for place in drawn])
    for percent in (50, 95):
        floor = np.percentile(raw, percent)
        yield Figure(
            f"read_one_neuron_p{percent}",
            float(np.percentile(through, percent)),
            "ms",
            READ_GOAL,
            higher_is_better=False,
            detail=f"of {READS} reads by turns, files in memory; polars alone on the files of the layer: {floor:.1f} ms",
        )


def tables_of(
    captured: LayerCapture, planned: Plan, sequences: pl.DataFrame, subject: HuggingFaceSubject
) -> dict[str, pl.DataFrame]:
    """The rows of the three tables that a pass fills, as `assets.activations` makes them."""
    origin = {"fingerprint": subject.fingerprints()[captured.layer], "corpus": "sha256:benchmark"}
    records = activations(captured, planned, sequences, fingerprint=origin["fingerprint"])
    rows = {
        "activations": records,
        "neuron_statistics": neuron_statistics(captured, planned, **origin),
        "token_associations": associations(
            captured,
            planned,
            records,
            sequences,
            embeddings=subject.embeddings(),
            reading=subject.reading(captured.layer),
            **origin,
        ),
    }
    return {
        table: TABLES[table].conform(frame.with_columns(pl.lit("benchmark").alias("run_id")))
        for table, frame in rows.items()
    }


def _read_milliseconds(
    store: "DeltaLake", folder: Path, neurons: Sequence[tuple[int, int]]
) -> tuple[list[float], list[float]]:
    """Each neuron's records read through the lake, and from the files of its layer."""
    through, raw = [], []
    for layer, neuron in neurons:
        started = time.perf_counter()
        store.read("activations", layer=layer, neurons=[neuron])
        between = time.perf_counter()
        files = folder / "activations" / f"layer={layer}" / "*.parquet"
        pl.scan_parquet(files).filter(pl.col("neuron") == neuron).collect()
        through.append(1e3 * (between - started))
        raw.append(1e3 * (time.perf_counter() - between))
    return through, raw


def memory(shape: str, model: Path, small: int, large: int) -> Iterator[Figure]:
    """What a full capture of all layers needs above a bare pass, for two sizes of the corpus."""
    subject = subjects.subject(shape, model, device="cpu")
    # A process that compiles kernels needs memory for that; the next one finds them compiled.
    warm_up(subject, plan(subjects.windows(shape, 2)), [0])
    above = {}
    for size in (small, large):
        bare, full = (peak_mib(shape, model, size, leg) for leg in ("bare", "full"))
        above[size] = full - bare
        yield Figure(
            f"memory_above_bare_{shape}_{size}",
            above[size],
            "MiB",
            MEMORY_GOAL if shape == "gpt2" else None,
            higher_is_better=False,
            detail=f"peak of the process {full:,.0f} MiB, of a bare pass {bare:,.0f} MiB",
        )
    yield Figure(
        f"memory_growth_{shape}",
        above[large] - above[small],
        "MiB",
        MEMORY_GROWTH_GOAL,
        higher_is_better=False,
        detail=f"more at {large:,} windows than at {small:,}",
    )


def state(shape: str, size: int, *, signed: bool) -> Figure:
    """What the reductions of all layers hold once all windows were read.

    Of a layer of full width what it holds before the first window; of POOLED neurons what grows while windows come:
    their activations are noise of another strength in each window, for what is kept depends on ranks alone.
    """
    import torch

    from pipeline.record_pool import POOLED
    from pipeline.reduction import LayerReduction

    n_layers, n_neurons = subjects.neurons(shape)
    planned = plan(subjects.windows(shape, size))
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(PIECE, subjects.LENGTH, POOLED)).astype(np.float32)
    every = list(batches(planned, "cpu"))

    def received(reduction: LayerReduction, windows: NDArray[np.int64]) -> None:
        strength = draw.random((len(windows), 1, POOLED), dtype=np.float32)
        reduction.receive(windows, torch.from_numpy(noise[: len(windows)] * strength))

    def of(layer: int, n: int = n_neurons) -> LayerReduction:
        return LayerReduction(planned, layer=layer, signed=signed, seed=0, probe=np.ones(n, np.float32))

    tracemalloc.start()
    # The first one compiles what it needs, and makes what a plan keeps for all layers.
    received(of(0, POOLED), every[0])
    # numpy tells of its arrays, whether or not they were written to.
    before = tracemalloc.get_traced_memory()[0]
    held_by = of(0)
    held = tracemalloc.get_traced_memory()[0] - before
    del held_by
    few = of(0, POOLED)
    before = tracemalloc.get_traced_memory()[0]
    for windows in every:
        received(few, windows)
    grown = (tracemalloc.get_traced_memory()[0] - before) * n_neurons // POOLED
    tracemalloc.stop()
    return Figure(
        f"state_{shape}_{planned.n_windows}{'_both' if signed else ''}",
        (held + grown) * n_layers / 2**30,
        "GiB",
        STATE_GOAL if shape == "gpt2-xl" else None,
        higher_is_better=False,
        detail=f"{(held + grown) / n_neurons:,.0f} bytes for each of {n_layers} x {n_neurons:,} neurons, in "
        f"{'both polarities' if signed else 'one polarity'}; {grown / n_neurons:,.0f} of them came with the windows",
    )


def peak_mib(shape: str, model: Path, windows: int, leg: str) -> float:
    """The peak memory of a `bare` or a `full` pass of all layers in a process of its own, MiB."""
    command = [sys.executable, "-m", "benchmarks.peak_memory", str(model), shape, str(windows), leg]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def beside(found: Sequence[Peer], shape: str, model: Path, size: int, *, repetitions: int) -> Iterator[Figure]:
    """Each peer's time over that of the bare pass, in its own process."""
    windows = model / "windows.npy"
    np.save(windows, np.asarray(subjects.windows(shape, size).get_column("token_ids").to_list()))
    for peer in found:
        for way, ratio in peer.ratios(model, windows, repetitions).items():
            wall, cpu = (ratio[kind] for kind in ("wall", "cpu"))
            yield Figure(
                f"wall_over_bare_{shape}_{size} [{peer.name}, {way}]",
                statistics.median(wall),
                "of the bare pass",
                None,
                higher_is_better=False,
                detail=f"{_spread(wall)}; processor time {statistics.median(cpu):.3f}",
            )


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):,.4g} to {max(values):,.4g} in {len(values)}"


def _layers(subject: HuggingFaceSubject) -> list[int]:
    return [site.layer for site in subject.layers()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capture", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--shape", choices=[*subjects.SHAPES, subjects.DEMO], default="gpt2")
    parser.add_argument("--windows", type=_sizes, default=[512], help="sizes of the corpus, such as 512,4096")
    parser.add_argument("--repetitions", type=int, default=3, help="of `ratio` and of the peers, for the median")
    parser.add_argument("--parts", type=_parts, default=list(PARTS), help=f"some of {','.join(PARTS)}; `none` for none")
    parser.add_argument("--peers", action="store_true", help="measure peers too; each needs some GB once")
    parser.add_argument(
        "--peers-home", type=Path, default=Path.home() / ".cache" / "neuronledger-peers", help="their environments"
    )
    parser.add_argument("--json", action="store_true", help="a list of objects instead of lines")
    return parser


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def _parts(text: str) -> list[str]:
    named = [] if text == "none" else text.split(",")
    if unknown := set(named) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)} are no parts; choose from {', '.join(PARTS)}")
    return named


if __name__ == "__main__":
    main()
