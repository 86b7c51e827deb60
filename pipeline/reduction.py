"""Reduction: the activations of one layer, taken in batch by batch and reduced at once, on the device where they are.

What is kept, and why it stays bounded, is in `pipeline.capture`. This is the only module of the science that needs torch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.capture import NOT_SCORED, PER_SPLIT, QUANTILE_WINDOWS, TOP, LayerCapture, Plan, Records
from pipeline.errors import SubjectError
from pipeline.tables import SPLITS

_PIECE = 256
"""Tokens reduced at a time: 256 x 1536 float32 values fit a second-level cache."""


class LayerReduction:
    """Reduces the batches of one layer as they come. `receive` each window once, then ask for the `result`."""

    def __init__(self, plan: Plan, *, layer: int, n_neurons: int, signed: bool, seed: int, device: str = "cpu") -> None:
        self.plan = plan
        self.layer = layer
        self.signed = signed
        self._n = n_neurons
        self._length = max((len(tokens) for tokens in plan.tokens), default=0)
        self._count = 0
        self._shift: torch.Tensor | None = None
        self._powers = torch.zeros((4, n_neurons), dtype=torch.float64, device=device)
        self._scratch = torch.empty((2, _PIECE, n_neurons), device=device)
        self._minimum = torch.full((n_neurons,), torch.inf, device=device)
        self._maximum = torch.full((n_neurons,), -torch.inf, device=device)
        self._positive = torch.zeros(n_neurons, dtype=torch.float64, device=device)
        self._open_count = 0
        self._open_sum = torch.zeros(n_neurons, dtype=torch.float64, device=device)
        self._token_sums = torch.zeros((len(plan.lookup), n_neurons), device=device)
        self._random_pairs = _pairs_by_window(
            plan.random_windows(layer=layer, n_neurons=n_neurons, seed=seed), plan.n_windows
        )
        self._random: list[Records] = []
        self._maxima = {
            polarity: torch.zeros((min(plan.n_windows, QUANTILE_WINDOWS), n_neurons), device=device)
            for polarity in (("+", "-") if signed else ("+",))
        }
        names = ["top", *SPLITS, *(str(level) for level in plan.levels)]
        self._strongest = {
            polarity: {
                name: _Strongest(PER_SPLIT if name in SPLITS else TOP, n_neurons, device=device) for name in names
            }
            for polarity in self._maxima
        }

    def receive(self, windows: NDArray[np.int64], activations: torch.Tensor) -> None:
        """Take in one batch: the windows, and their activations (window, token, neuron).

        Raises:
            SubjectError: an activation is NaN or infinite.
        """
        with _one_thread():
            self._receive(windows, activations)

    def _receive(self, windows: NDArray[np.int64], activations: torch.Tensor) -> None:
        tokens = [self.plan.tokens[window] for window in windows]
        lengths = np.asarray([len(ids) for ids in tokens])
        real = None
        if (lengths < activations.shape[1]).any():
            position = torch.arange(activations.shape[1], device=activations.device)
            real = position < torch.as_tensor(lengths, device=activations.device)[:, None]
        rows = activations.flatten(0, 1) if real is None else activations[real]
        self._add_moments(rows)
        self._add_tokens(windows, np.concatenate(tokens), lengths, rows)
        self._add_records(windows, activations, real)

    def result(self) -> LayerCapture:
        """What was kept, as numpy arrays."""
        mean, m2, m3, m4 = self._central_moments()
        return LayerCapture(
            layer=self.layer,
            signed=self.signed,
            count=self._count,
            mean=mean,
            m2=m2,
            m3=m3,
            m4=m4,
            minimum=self._minimum.cpu().numpy(),
            maximum=self._maximum.cpu().numpy(),
            positive=self._positive.cpu().numpy().astype(np.int64),
            strongest={
                polarity: {name: kept.result() for name, kept in groups.items()}
                for polarity, groups in self._strongest.items()
            },
            maxima={polarity: maxima.cpu().numpy() for polarity, maxima in self._maxima.items()},
            random=_joined(self._random, self._length),
            token_sums=self._token_sums.cpu().numpy(),
            open_mean=(self._open_sum / self._open_count if self._open_count else self._open_sum * torch.nan)
            .cpu()
            .numpy(),
        )

    def _central_moments(self) -> list[NDArray[np.float64]]:
        """The mean, and the sums of (x - mean) to the powers 2, 3 and 4, from those about the shift."""
        n = self._count
        s1, s2, s3, s4 = self._powers
        shift = torch.zeros_like(s1) if self._shift is None else self._shift.double()
        d = s1 / n
        moments = (
            shift + d,
            s2 - n * d**2,
            s3 - 3 * d * s2 + 2 * n * d**3,
            s4 - 4 * d * s3 + 6 * d**2 * s2 - 3 * n * d**4,
        )
        return [moment.cpu().numpy() for moment in moments]

    def _add_moments(self, rows: torch.Tensor) -> None:
        """Add a batch (token, neuron) to the sums of powers of x - shift.

        The shift is the mean of the first tokens seen: near the true mean, so that little is lost to cancellation
        when the central moments are taken. Rows go through in pieces that fit the processor's cache, some ten times
        as fast as whole batches; each piece is summed in float32, the pieces in float64.
        """
        if self._shift is None:
            self._shift = rows[:64].mean(0)
        lowest, highest = rows.amin(0), rows.amax(0)
        most = torch.maximum(highest - self._shift, self._shift - lowest)
        if not torch.isfinite(most).all():
            self._refuse(rows)
        # In units of the batch's own power of two, so that no fourth power leaves the range of float32.
        unit = torch.exp2(torch.where(most > 0, most, 1.0).log2().floor().clamp(-120, 120))
        powers = torch.zeros_like(self._powers)
        for start in range(0, rows.shape[0], _PIECE):
            x = rows[start : start + _PIECE]
            d = torch.sub(x, self._shift, out=self._scratch[0, : len(x)]).div_(unit)
            square = torch.mul(d, d, out=self._scratch[1, : len(x)])
            powers[0] += d.sum(0)
            powers[1] += square.sum(0)
            powers[2] += d.mul_(square).sum(0)
            powers[3] += square.mul_(square).sum(0)
            self._positive += torch.gt(x, 0, out=d).sum(0)
        for power in range(4):
            self._powers[power] += powers[power] * unit.double() ** (power + 1)
        self._count += rows.shape[0]
        torch.minimum(self._minimum, lowest, out=self._minimum)
        torch.maximum(self._maximum, highest, out=self._maximum)

    def _add_tokens(
        self, windows: NDArray[np.int64], tokens: NDArray[np.int32], lengths: NDArray[np.int64], rows: torch.Tensor
    ) -> None:
        """Add the rows of documents that are not scored to the sums of their tokens."""
        is_open = np.isin(self.plan.split[windows], [SPLITS.index(name) for name in NOT_SCORED])
        if not is_open.any():
            return
        chosen = np.repeat(is_open, lengths)
        if not chosen.all():
            tokens, rows = tokens[chosen], rows[torch.as_tensor(chosen, device=rows.device)]
        # Summing each token within the batch first keeps float32 exact to about seven digits for common tokens.
        distinct, inverse = np.unique(tokens, return_inverse=True)
        partial = torch.zeros((len(distinct), self._n), device=rows.device)
        partial.index_add_(0, torch.as_tensor(inverse, device=rows.device), rows)
        self._open_count += len(tokens)
        self._open_sum += partial.sum(0, dtype=torch.float64)
        place = np.searchsorted(self.plan.lookup, distinct)
        place = np.minimum(place, max(len(self.plan.lookup) - 1, 0))
        known = self.plan.lookup[place] == distinct
        self._token_sums.index_add_(
            0,
            torch.as_tensor(place[known], device=rows.device),
            partial[torch.as_tensor(known, device=rows.device)],
        )

    def _add_records(self, windows: NDArray[np.int64], activations: torch.Tensor, real: torch.Tensor | None) -> None:
        device = activations.device
        index = torch.as_tensor(windows, device=device)
        for polarity, groups in self._strongest.items():
            signed = activations if polarity == "+" else -activations
            shown = signed if real is None else signed.masked_fill(~real[:, :, None], -torch.inf)
            peaks = shown.amax(1)
            early = index < QUANTILE_WINDOWS
            self._maxima[polarity][index[early]] = peaks[early]
            for name, kept in groups.items():
                members = np.ones(len(windows), dtype=bool)
                if name in SPLITS:
                    members = self.plan.split[windows] == SPLITS.index(name)
                elif name != "top":
                    members = self.plan.level[windows] >= int(name)
                if members.all():
                    kept.offer(index, peaks, activations)
                elif members.any():
                    some = torch.as_tensor(np.flatnonzero(members), device=device)
                    kept.offer(index[some], peaks[some], activations, rows=some)
            if polarity == "+":
                self._random.append(self._drawn(windows, peaks, activations))

    def _drawn(self, windows: NDArray[np.int64], peaks: torch.Tensor, activations: torch.Tensor) -> Records:
        """The records of this batch that were drawn before the run."""
        order, starts = self._random_pairs
        pieces = [order[starts[window] : starts[window + 1]] for window in windows]
        neuron = np.concatenate(pieces)
        row = np.repeat(np.arange(len(windows)), [len(piece) for piece in pieces])
        at = (torch.as_tensor(row, device=peaks.device), torch.as_tensor(neuron, device=peaks.device))
        return Records(
            neuron=neuron,
            window=windows[row],
            peak=peaks[at].cpu().numpy(),
            activations=_padded(activations[at[0], :, at[1]], self._length).cpu().numpy(),
        )

    def _refuse(self, rows: torch.Tensor) -> None:
        bad = ~torch.isfinite(rows)
        neuron = int(bad.any(0).nonzero()[0])
        raise SubjectError(
            f"layer {self.layer} gave {int(bad.sum()):,} activations that are NaN or infinite, first in neuron {neuron}; "
            "check the weights, or load the model in float32"
        )


class _Strongest:
    """The `k` strongest windows of every neuron among those offered, with their activations.

    Candidates that beat the weakest window kept so far wait in a buffer; now and then it is sorted and cut. A
    neuron meets about k * (1 + ln(n / k)) candidates in n windows, so the buffer is seldom sorted.
    """

    def __init__(self, k: int, n_neurons: int, *, device: str) -> None:
        self._k = k
        self._weakest = torch.full((n_neurons,), -torch.inf, device=device)
        self._weakest_window = torch.full((n_neurons,), torch.iinfo(torch.int64).max, device=device)
        self._kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._waiting = 0
        self._limit = 8 * n_neurons

    def offer(
        self,
        windows: torch.Tensor,
        peaks: torch.Tensor,
        activations: torch.Tensor,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Windows (window,), their maxima (window, neuron), and the batch's activations, whose rows they are."""
        better = (peaks > self._weakest) | ((peaks == self._weakest) & (windows[:, None] < self._weakest_window))
        row, neuron = better.nonzero(as_tuple=True)
        source = row if rows is None else rows[row]
        self._kept.append((neuron, windows[row], peaks[row, neuron], activations[source, :, neuron]))
        self._waiting += len(neuron)
        if self._waiting > self._limit:
            self._cut()

    def result(self) -> Records:
        self._cut()
        neuron, window, peak, vectors = self._kept[0]
        return Records(
            neuron=neuron.cpu().numpy(),
            window=window.cpu().numpy(),
            peak=peak.cpu().numpy(),
            activations=vectors.cpu().numpy(),
        )

    def _cut(self) -> None:
        """Keep the k strongest of each neuron, sorted by (neuron, -peak, window)."""
        device = self._weakest.device
        if not self._kept:
            nothing = torch.empty(0, dtype=torch.int64, device=device)
            self._kept = [(nothing, nothing, torch.empty(0, device=device), torch.empty((0, 0), device=device))]
            return
        longest = max(vectors.shape[1] for *_, vectors in self._kept)
        neuron, window, peak = (torch.cat([entry[i] for entry in self._kept]) for i in range(3))
        order = torch.argsort(window, stable=True)
        order = order[torch.argsort(peak[order], descending=True, stable=True)]
        order = order[torch.argsort(neuron[order], stable=True)]
        counts = torch.bincount(neuron, minlength=len(self._weakest))
        starts = torch.cumsum(counts, 0) - counts
        rank = torch.arange(len(order), device=device) - starts[neuron[order]]
        order = order[rank < self._k]
        vectors = torch.cat([_padded(entry[3], longest) for entry in self._kept])[order]
        neuron, window, peak = neuron[order], window[order], peak[order]
        self._kept = [(neuron, window, peak, vectors)]
        self._waiting = 0
        full = (rank == self._k - 1).nonzero(as_tuple=True)[0]
        if len(full):
            last = torch.cumsum(torch.clamp(counts, max=self._k), 0)[counts >= self._k] - 1
            self._weakest[neuron[last]] = peak[last]
            self._weakest_window[neuron[last]] = window[last]


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for many small sums: threads that wait for each other cost more than they add.

    Measured on two busy cores: 1.2 times the bare forward pass, against 2.8 with two threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _padded(vectors: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(vectors, (0, length - vectors.shape[1]))


def _joined(pieces: Sequence[Records], length: int) -> Records:
    if not pieces:
        empty = np.empty(0, np.int64)
        return Records(empty, empty, np.empty(0, np.float32), np.empty((0, length), np.float32))
    return Records(
        neuron=np.concatenate([piece.neuron for piece in pieces]),
        window=np.concatenate([piece.window for piece in pieces]),
        peak=np.concatenate([piece.peak for piece in pieces]),
        activations=np.concatenate([piece.activations for piece in pieces]),
    )


def _pairs_by_window(windows: NDArray[np.int64], n_windows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Neurons sorted by the window they drew, and where each window's neurons start."""
    neuron, draw = np.nonzero(windows >= 0)
    drawn = windows[neuron, draw]
    order = np.argsort(drawn, kind="stable")
    starts = np.searchsorted(drawn[order], np.arange(n_windows + 1))
    return neuron[order], starts
