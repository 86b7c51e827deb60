"""A forward pass: every window through the subject once, each layer reduced as it comes.

The windows go through in shards. Now and then, between two shards, what was captured so far is kept outside of the
process, so that a pass that was killed goes on from there, with the same result to the bit.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from resource import RUSAGE_SELF, getrusage
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.capture import LayerCapture, Plan
from pipeline.ports import Partials, Progress, SubjectModel

if TYPE_CHECKING:
    import torch

    from pipeline.reduction import LayerReduction

SHARD = 1_024
"""Windows that are captured, or lost in a crash, as one."""

BATCH = 256
"""Windows handed to the subject at a time; it cuts them to fit its memory."""

KEEP_AFTER = 120.0
"""Seconds of work that a crash may cost, besides the shard under way."""


@dataclass
class Figures:
    """What a pass came to. `tokens` and `seconds` are of this process alone."""

    tokens: int = 0
    seconds: float = 0.0
    resumed: int = 0
    """Windows that an earlier, killed pass had already captured."""

    def metadata(self) -> dict[str, Any]:
        """The figures for the asset page."""
        return {
            "time/capture_seconds": self.seconds,
            "time/tokens_per_second": self.tokens / self.seconds if self.seconds else 0.0,
            "memory/peak_mib": peak_mib(),
            "data/windows_resumed": self.resumed,
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
) -> Iterator[LayerCapture]:
    """The capture of each layer, one at a time so that only one is there twice. `key` is what they are made from.

    What was kept on the way is given up when the last one was taken.
    """
    kept = {layer: LayerCapture.from_arrays(arrays) for layer, arrays in partials.found(key, layers).items()}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        reductions = _reductions(subject, plan, layers, seed=seed, start=kept, pool=pool)
        done = np.isin(plan.ids, kept[layers[0]].ids) if kept else np.zeros(plan.n_windows, dtype=bool)
        kept.clear()
        figures.resumed = int(done.sum())
        _streamed(
            subject,
            plan,
            reductions,
            done,
            save=lambda: _keep(partials, key, reductions),
            progress=progress,
            figures=figures,
        )
    for layer in layers:
        yield reductions.pop(layer).result()
    partials.drop(key)


def strongest_on_probe(subject: SubjectModel, layers: Sequence[int]) -> dict[int, NDArray[np.float32]]:
    """The strongest |activation| of each neuron (neuron,) of each layer on the subject's probe, units of the neuron."""
    found: dict[int, NDArray[np.float32]] = {}

    def receive(layer: int, _: slice, activations: "torch.Tensor") -> None:
        strongest = activations.abs().amax(dim=(0, 1)).numpy(force=True)
        found[layer] = np.maximum(found[layer], strongest) if layer in found else strongest

    subject.capture([subject.probe()], layers, receive)
    return found


def _reductions(
    subject: SubjectModel,
    plan: Plan,
    layers: Sequence[int],
    *,
    seed: int,
    start: Mapping[int, LayerCapture],
    pool: ThreadPoolExecutor,
) -> "dict[int, LayerReduction]":
    # Not at the top: whoever only reads the definitions needs neither torch nor compiled kernels.
    from pipeline.reduction import LayerReduction

    sites, probe = subject.layers(), strongest_on_probe(subject, layers)
    return {
        layer: LayerReduction(
            plan,
            layer=layer,
            signed=sites[layer].signed,
            seed=seed,
            probe=probe[layer],
            start=start.get(layer),
            pool=pool,
        )
        for layer in layers
    }


def _streamed(
    subject: SubjectModel,
    plan: Plan,
    reductions: "Mapping[int, LayerReduction]",
    done: NDArray[np.bool_],
    *,
    save: Callable[[], None],
    progress: Progress,
    figures: Figures,
) -> None:
    """Run every window that is not `done` through the subject, shard by shard."""
    left = np.flatnonzero(~done)
    total = int(plan.lengths[left].sum())
    started = kept_at = time.monotonic()
    batch: NDArray[np.int64] = left[:0]

    def batches(shard: NDArray[np.int64]) -> Iterator[list[list[int]]]:
        nonlocal batch
        for batch in plan.batches(shard, BATCH):
            yield [plan.tokens[window].tolist() for window in batch]
            figures.tokens += int(plan.lengths[batch].sum())
            figures.seconds = time.monotonic() - started
            done[batch] = True
            progress("capture", int(done.sum()), plan.n_windows, _pace(figures, total))

    for at in range(0, len(left), SHARD):
        subject.capture(
            batches(left[at : at + SHARD]),
            list(reductions),
            lambda layer, rows, activations: reductions[layer].receive(batch[rows], activations),
        )
        if time.monotonic() - kept_at >= KEEP_AFTER and at + SHARD < len(left):
            save()
            kept_at = time.monotonic()


def _keep(partials: Partials, key: str, reductions: "Mapping[int, LayerReduction]") -> None:
    partials.keep(key, ((layer, reduction.result().arrays()) for layer, reduction in reductions.items()))


def _pace(figures: Figures, total: int) -> str:
    """How fast it goes, how long it will take, and what memory it needs."""
    pace = figures.tokens / max(figures.seconds, 1e-9)
    left = round((total - figures.tokens) / max(pace, 1e-9))
    minutes, seconds = divmod(left, 60)
    return f"{pace:,.0f} tokens/s, {minutes}:{seconds:02d} left, {peak_mib():,.0f} MiB"


def peak_mib() -> float:
    """The most memory that this process ever had, in MiB."""
    return getrusage(RUSAGE_SELF).ru_maxrss / 1024
