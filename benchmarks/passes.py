"""Passes over a corpus, side by side: one that only runs the model, and one that captures all its neurons.

Both go through the same door (`SubjectModel.capture`) and end before the last output projection. On a CPU they take
turns batch by batch, each first every other time, so that what else the machine does weighs on both alike. On a GPU
each runs through at once, as in use, for the host prepares a batch while the device is at the one before.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from assets.forward_pass import batch_size, reductions, strongest_on_probe
from pipeline.capture import LayerCapture, Plan
from resources.subject import HuggingFaceSubject

if TYPE_CHECKING:
    import torch

PIECE = 64
"""Windows in a batch on a CPU: what the subject runs at once there. On a GPU a batch is what the assets hand over."""

Windows = NDArray[np.int64]
Batches = list[Windows]


@dataclass
class Leg:
    """Time spent on one side."""

    wall: float = 0.0
    """Seconds on the clock."""
    cpu: float = 0.0
    """Seconds of processor time, in all threads."""

    @contextmanager
    def timed(self, device: str) -> Iterator[None]:
        """Add the time of what is done inside, on the device too."""
        import torch

        wall, cpu = time.perf_counter(), time.process_time()
        yield
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


@dataclass
class SideBySide:
    """Both sides over one corpus."""

    tokens: int
    bare: Leg = field(default_factory=Leg)
    full: Leg = field(default_factory=Leg)
    ends: Leg = field(default_factory=Leg)
    """What the full one spent before the first window and after the last, which does not grow with the corpus."""
    captured: list[tuple[int, int]] = field(default_factory=list)
    """Each layer with the tokens that were captured of it. The captures themselves are dropped."""


class Capturing:
    """The subject with the reductions of some layers. A context manager, for its threads."""

    def __init__(self, subject: HuggingFaceSubject, plan: Plan, layers: Sequence[int]) -> None:
        self._subject, self._plan = subject, plan
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        probe = strongest_on_probe(subject, layers)
        self._reductions, self.reduced = reductions(
            subject, plan, layers, seed=0, probe=probe, start={}, pool=self._pool
        )

    def __enter__(self) -> "Capturing":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def take(self, some: Batches) -> None:
        """Run these windows and reduce what their neurons do."""

        def receive(layer: int, windows: Windows, activations: "torch.Tensor") -> None:
            self._reductions[layer].receive(windows, activations)

        run(self._subject, self._plan, list(self._reductions), some, receive)

    def results(self) -> Iterator[LayerCapture]:
        """What was captured of each layer, one at a time, as the assets take it: only one is then there twice."""
        for layer in list(self._reductions):
            yield self._reductions.pop(layer).result()


def side_by_side(subject: HuggingFaceSubject, plan: Plan, layers: Sequence[int]) -> SideBySide:
    """Both passes over all windows of the plan. The full one begins with the probe and ends with the result."""
    device = subject.device()
    found = SideBySide(tokens=int(plan.lengths.sum()))
    with found.full.timed(device), found.ends.timed(device):
        capturing = Capturing(subject, plan, layers)

    def bare(some: Batches) -> None:
        with found.bare.timed(device):
            run(subject, plan, layers, some, _nothing)

    def full(some: Batches) -> None:
        with found.full.timed(device):
            capturing.take(some)

    every = list(batches(plan, device))
    with capturing:
        for turn, some in enumerate([every] if device.startswith("cuda") else [[batch] for batch in every]):
            for side in (bare, full) if turn % 2 else (full, bare):
                side(some)
        with found.full.timed(device), found.ends.timed(device):
            for captured in capturing.results():
                found.captured.append((captured.layer, captured.count))
    return found


def warm_up(subject: HuggingFaceSubject, plan: Plan, layers: Sequence[int]) -> None:
    """Load the model, and compile every kernel, before anything is timed: one batch of the plan, both ways."""
    some = [next(batches(plan, subject.device()))]
    run(subject, plan, layers, some, _nothing)
    with Capturing(subject, plan, layers) as capturing:
        capturing.take(some)
        for _ in capturing.results():
            pass


def batches(plan: Plan, device: str) -> Iterator[Windows]:
    """All windows of the plan."""
    return plan.batches(np.arange(plan.n_windows), batch_size(device) if device.startswith("cuda") else PIECE)


def run(
    subject: HuggingFaceSubject,
    plan: Plan,
    layers: Sequence[int],
    some: Batches,
    receive: "Callable[[int, Windows, torch.Tensor], None]",
) -> None:
    """Run batches of windows through the subject."""
    before: Windows = np.empty(0, dtype=np.int64)

    def asked() -> Iterator[list[list[int]]]:
        nonlocal before
        for before in some:
            yield [plan.tokens[window].tolist() for window in before]

    subject.capture(asked(), layers, lambda layer, rows, activations: receive(layer, before[rows], activations))


def _nothing(_layer: int, _windows: Windows, _activations: "torch.Tensor") -> None:
    """Look at nothing and keep nothing."""
