"""A forward pass: every window through the subject once, each layer reduced as it comes.

The windows go through in shards. Now and then, between two shards, what was captured so far is kept outside of the
process, so that a pass that was killed goes on from there, with the same result to the bit.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.capture import LayerCapture, Plan, merge
from pipeline.errors import CaptureError
from pipeline.ports import Machines, Partials, Progress, SubjectModel

if TYPE_CHECKING:
    import torch

    from pipeline.device_reduction import DeviceReduction
    from pipeline.reduction import LayerReduction

    Reduction = LayerReduction | DeviceReduction

SHARD = 1_024
"""Windows that are captured, or lost in a crash, as one. A GPU is handed all of them at a time, and cuts them to fit."""

BATCH = 256
"""Windows handed to a subject on a CPU at a time, which tells more often how far it has come."""

PIECES = 4
"""Pieces of a pass over several machines for each that can be worked on at a time: what a lost machine costs."""

KEEP_AFTER = 120.0
"""Seconds of work that a crash may cost, besides the shard under way."""


@dataclass
class Figures:
    """What a pass came to. `tokens` and `seconds` are of this process alone."""

    tokens: int = 0
    seconds: float = 0.0
    resumed: int = 0
    """Windows that an earlier, killed pass had already captured."""
    grown: int = 0
    """Windows that were captured when the corpus was smaller."""
    reduced: str = ""
    """Where activations were reduced: on the device that computed them, or on the CPU and why."""
    not_kept: str = ""
    """Why what was found so far could not be kept on the way, if so: a kill would then have cost all of it."""

    def metadata(self) -> dict[str, Any]:
        """The figures for the asset page."""
        return {
            "time/capture_seconds": self.seconds,
            "time/tokens_per_second": self.tokens / self.seconds if self.seconds else 0.0,
            "memory/peak_mib": peak_mib(),
            "data/windows_resumed": self.resumed,
            "data/windows_of_smaller_corpus": self.grown,
            "data/reduced_on": self.reduced,
            **({"data/not_kept": self.not_kept} if self.not_kept else {}),
        }


def captured(
    subject: SubjectModel,
    plan: Plan,
    layers: Sequence[int],
    *,
    seed: int,
    key: str,
    partials: Partials,
    progress: Progress,
    figures: Figures,
    machines: Machines | None = None,
    earlier: Mapping[int, LayerCapture] | None = None,
) -> Iterator[LayerCapture]:
    """The capture of each layer, one at a time so that only one is there twice. `key` is what they are made from.

    Where `machines` are several, pieces of the corpus go to them. What was kept on the way is given up when the last one
    was taken. `earlier` has captures of some of the windows, which one machine then reads no more; see
    `pipeline.capture.can_grow`.
    """
    if machines is not None and machines.count():
        yield from _on_machines(
            machines,
            Work(subject, plan, tuple(layers), seed, strongest_on_probe(subject, layers), key),
            partials=partials,
            progress=progress,
            figures=figures,
        )
        return
    earlier = dict(earlier or {})
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        kept = partials.found(key, layers)
        if kept and earlier and np.isin(kept[layers[0]]["ids"], earlier[layers[0]].ids).any():
            # A pass that had not found the earlier captures has read their windows once more.
            earlier = {}
        try:
            workers = _workers(subject, plan, layers, seed=seed, start=kept, pool=pool)
        except (CaptureError, KeyError, TypeError, ValueError):
            # Not what this pass would have kept, whoever put it there: it is worth less than a fresh start.
            kept = {}
            workers = _workers(subject, plan, layers, seed=seed, start=kept, pool=pool)
        done = np.isin(plan.ids, kept[layers[0]]["ids"]) if kept else np.zeros(plan.n_windows, dtype=bool)
        kept = {}
        figures.resumed = int(done.sum())
        if earlier:
            grown = np.isin(plan.ids, earlier[layers[0]].ids)
            figures.grown = int(grown.sum())
            done |= grown
        figures.reduced = "; ".join(worker.reduced for worker in workers)
        _streamed(workers, plan, done, save=lambda: _keep(partials, key, workers), progress=progress, figures=figures)
    for layer in layers:
        found = _result(workers, layer)
        yield merge([earlier.pop(layer), found]) if layer in earlier else found
        for worker in workers:
            worker.reductions.pop(layer)
    partials.drop(key)


@dataclass(frozen=True)
class Work:
    """What every piece of a pass over several machines needs."""

    subject: SubjectModel
    plan: Plan
    layers: tuple[int, ...]
    seed: int
    probe: Mapping[int, NDArray[np.float32]]
    """From one machine for all, since another processor may give other last bits."""
    key: str


_loaded: dict[str, SubjectModel] = {}
"""The subject of the pass that this process last worked for: the next piece finds its weights there."""


def reduced_piece(work: Work, windows: NDArray[np.int64]) -> tuple[int, list[dict[str, NDArray[Any]]]]:
    """Tokens of these windows, and what is kept of them in each layer. Runs on any machine."""
    if work.key not in _loaded:
        _loaded.clear()
        _loaded[work.key] = work.subject
    subject, plan = _loaded[work.key], work.plan
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found, _ = reductions(subject, plan, work.layers, seed=work.seed, probe=work.probe, start={}, pool=pool)
        batch = windows[:0]

        def batches() -> Iterator[list[list[int]]]:
            nonlocal batch
            for batch in plan.batches(windows, batch_size(subject.device())):
                yield [plan.tokens[window].tolist() for window in batch]

        subject.capture(
            batches(),
            list(work.layers),
            lambda layer, rows, activations: found[layer].receive(batch[rows], activations),
        )
        return int(plan.lengths[windows].sum()), [found[layer].result().arrays() for layer in work.layers]


def joined(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What is kept of the windows of both. Runs on any machine."""
    return merge([LayerCapture.from_arrays(one), LayerCapture.from_arrays(other)]).arrays()


def _on_machines(
    machines: Machines, work: Work, *, partials: Partials, progress: Progress, figures: Figures
) -> Iterator[LayerCapture]:
    """The capture of each layer, from pieces of the corpus that are worked on elsewhere."""
    plan, key = work.plan, work.key
    kept = partials.found(key, work.layers)
    try:
        before = {layer: LayerCapture.from_arrays(arrays).arrays() for layer, arrays in kept.items()}
    except (CaptureError, KeyError, TypeError, ValueError):
        before = {}
    done = np.isin(plan.ids, before[work.layers[0]]["ids"]) if before else np.zeros(plan.n_windows, dtype=bool)
    left = np.flatnonzero(~done)
    size = max(SHARD, -(-len(left) // (PIECES * machines.count())))
    pieces = [left[at : at + size] for at in range(0, len(left), size)]
    figures.resumed, figures.reduced = int(done.sum()), f"{machines.count()} places on other machines"
    started = kept_at = time.monotonic()

    def finished(places: Sequence[int], tokens: Sequence[int], so_far: Callable[[], Iterator[Any]]) -> None:
        nonlocal kept_at
        figures.tokens, figures.seconds = sum(tokens), time.monotonic() - started
        windows = int(done.sum()) + sum(len(pieces[place]) for place in places)
        progress("capture", windows, plan.n_windows, _pace(figures, int(plan.lengths[left].sum())))
        if time.monotonic() - kept_at >= KEEP_AFTER and len(places) < len(pieces):
            try:
                partials.keep(key, ((layer, with_kept(layer, found)) for layer, found in zip(work.layers, so_far(), strict=True)))  # fmt: skip
            except CaptureError as error:
                figures.not_kept = str(error)
            kept_at = time.monotonic()

    def with_kept(layer: int, found: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        return joined(before[layer], found) if before else found

    if not pieces:
        yield from (LayerCapture.from_arrays(before[layer]) for layer in work.layers)
    else:
        results = machines.reduce(reduced_piece, work, pieces, joined, n_results=len(work.layers), finished=finished)
        for layer, found in zip(work.layers, results, strict=True):
            yield LayerCapture.from_arrays(with_kept(layer, found))
    partials.drop(key)


@dataclass(frozen=True)
class _Worker:
    """The subject on one device, with what it has found so far."""

    subject: SubjectModel
    reductions: "dict[int, Reduction]"
    reduced: str
    """Where it reduces activations."""


def strongest_on_probe(subject: SubjectModel, layers: Sequence[int]) -> dict[int, NDArray[np.float32]]:
    """The strongest |activation| of each neuron (neuron,) of each layer on the subject's probe, units of the neuron."""
    found: dict[int, NDArray[np.float32]] = {}

    def receive(layer: int, _: slice, activations: "torch.Tensor") -> None:
        strongest = activations.abs().amax(dim=(0, 1)).float().numpy(force=True)
        found[layer] = np.maximum(found[layer], strongest) if layer in found else strongest

    subject.capture([subject.probe()], layers, receive)
    return found


def _workers(
    subject: SubjectModel,
    plan: Plan,
    layers: Sequence[int],
    *,
    seed: int,
    start: Mapping[int, Mapping[str, NDArray[Any]]],
    pool: ThreadPoolExecutor,
) -> list[_Worker]:
    """A worker for each device of the subject; the first goes on from `start`, the arrays of captures."""
    subjects = subject.workers()
    # On each of them, so that all are loaded before the first works; the first one's answer stands for all.
    probe, *_ = [strongest_on_probe(one, layers) for one in subjects]
    return [
        _Worker(
            one,
            *reductions(one, plan, layers, seed=seed, probe=probe, start=start if one is subject else {}, pool=pool),
        )
        for one in subjects
    ]


def reductions(
    subject: SubjectModel,
    plan: Plan,
    layers: Sequence[int],
    *,
    seed: int,
    probe: Mapping[int, NDArray[np.float32]],
    start: Mapping[int, Mapping[str, NDArray[Any]]],
    pool: ThreadPoolExecutor,
) -> "tuple[dict[int, Reduction], str]":
    """A reduction for each layer, on the subject's device if it can, and where that is in words.

    `start` has the arrays of captures to go on from, or is empty.
    """
    # Not at the top: whoever only reads the definitions needs neither torch nor compiled kernels.
    from pipeline.reduction import LayerReduction

    def of(layer: int) -> dict[str, Any]:
        known = LayerCapture.from_arrays(start[layer]) if start else None
        return {"layer": layer, "signed": signed[layer], "seed": seed, "probe": probe[layer], "start": known}

    device, signed = subject.device(), {site.layer: site.signed for site in subject.layers()}
    if not device.startswith("cuda"):
        return {layer: LayerReduction(plan, **of(layer), pool=pool) for layer in layers}, "cpu"
    if (reason := _no_kernels(device)) is not None:
        return {layer: LayerReduction(plan, **of(layer), pool=pool) for layer in layers}, f"cpu, since {reason}"
    from pipeline.device_reduction import DeviceReduction, TextsOnDevice

    texts = TextsOnDevice(plan, device)
    return {layer: DeviceReduction(texts, **of(layer)) for layer in layers}, device


def _no_kernels(device: str) -> str | None:
    """Why kernels cannot be compiled for a GPU, if so; the reduction on a CPU then does the same, slower."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    from pipeline.device_reduction import try_out

    return try_out(device)


def batch_size(device: str) -> int:
    """Windows handed to a subject on this device at a time."""
    return SHARD if device.startswith("cuda") else BATCH


def _streamed(
    workers: Sequence[_Worker],
    plan: Plan,
    done: NDArray[np.bool_],
    *,
    save: Callable[[], None],
    progress: Progress,
    figures: Figures,
) -> None:
    """Run every window that is not `done` through the subject, a shard on each device at a time."""
    left, size = np.flatnonzero(~done), batch_size(workers[0].subject.device())
    total = int(plan.lengths[left].sum())
    started = kept_at = time.monotonic()
    one_at_a_time = Lock()

    def run(worker: _Worker, shard: NDArray[np.int64]) -> None:
        batch = shard[:0]

        def batches() -> Iterator[list[list[int]]]:
            nonlocal batch
            for batch in plan.batches(shard, size):
                yield [plan.tokens[window].tolist() for window in batch]
                with one_at_a_time:
                    figures.tokens += int(plan.lengths[batch].sum())
                    figures.seconds = time.monotonic() - started
                    done[batch] = True
                    progress("capture", int(done.sum()), plan.n_windows, _pace(figures, total))

        worker.subject.capture(
            batches(),
            list(worker.reductions),
            lambda layer, rows, activations: worker.reductions[layer].receive(batch[rows], activations),
        )

    shards = [left[at : at + SHARD] for at in range(0, len(left), SHARD)]
    with ThreadPoolExecutor(len(workers)) as devices:
        for first in range(0, len(shards), len(workers)):
            # Fewer shards than workers are left at the end.
            list(devices.map(run, workers, shards[first : first + len(workers)]))
            if time.monotonic() - kept_at >= KEEP_AFTER and first + len(workers) < len(shards):
                try:
                    save()
                except CaptureError as error:
                    figures.not_kept = str(error)
                kept_at = time.monotonic()


def _result(workers: Sequence[_Worker], layer: int) -> LayerCapture:
    return merge([worker.reductions[layer].result() for worker in workers])


def _keep(partials: Partials, key: str, workers: Sequence[_Worker]) -> None:
    partials.keep(key, ((layer, _result(workers, layer).arrays()) for layer in workers[0].reductions))


def _pace(figures: Figures, total: int) -> str:
    """How fast it goes, how long it will take, and what memory it needs."""
    pace = figures.tokens / max(figures.seconds, 1e-9)
    left = round((total - figures.tokens) / max(pace, 1e-9))
    minutes, seconds = divmod(left, 60)
    said = f"{pace:,.0f} tokens/s, {minutes}:{seconds:02d} left, {peak_mib():,.0f} MiB"
    return f"{said}, cannot be resumed ({figures.not_kept})" if figures.not_kept else said


def peak_mib() -> float:
    """The most memory that this process ever had, in MiB."""
    # Not `ru_maxrss`, which begins with what the parent process had.
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
