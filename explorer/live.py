"""Live: a model in this process, at hand for whoever looks: the subject of a lake, to read a text with it, or an encoder.

It is opened when it is first asked for and kept, in one thread of its own, so that the server goes on answering and no two
texts are in memory at once. A subject answers only as the model that the lake was captured with: where its weights or its
tokenizer are others, it says so.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from threading import BoundedSemaphore
from typing import Generic, TypeVar

import polars as pl

from explorer.kept import Kept
from pipeline.errors import LanguageModelError, NeuronLedgerError, SettingsError, SubjectError
from pipeline.ports import SubjectModel
from pipeline.provenance import frame_hash
from pipeline.tables import TABLES

M = TypeVar("M")
T = TypeVar("T")

PATIENCE = 25.0
"""Seconds that a page waits for the model."""
WAITING = 4
"""Texts that may wait at once."""


class NotAtHandError(NeuronLedgerError):
    """A model cannot read a text here, and why."""


class BusyError(NotAtHandError):
    """A model cannot read a text yet."""


class Live(Generic[M]):
    """The model that `look` opens; none without it."""

    def __init__(self, look: Callable[[], M] | None = None) -> None:
        self._look = look
        self._opened: M | None = None
        self._one_at_a_time = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._room = BoundedSemaphore(WAITING)

    def use(self, work: Callable[[M], T], *, patience: float | None = PATIENCE) -> T:
        """What `work` makes of the model. Waits at most `patience` seconds; without it as long as it takes.

        Raises:
            NotAtHandError: there is no model, or it cannot be opened, or cannot do this.
            BusyError: it is still being loaded, or reads other texts.
        """
        if self._look is None:
            raise NotAtHandError("No model was given to this server.")
        if not self._room.acquire(blocking=False):
            raise BusyError("The model reads other texts; load the page again in a moment.")
        future = self._one_at_a_time.submit(self._used, work)
        future.add_done_callback(self._leave)
        try:
            return future.result(timeout=patience)
        except NotYet:
            future.cancel()
            raise BusyError("The model is being loaded; load the page again in a moment.") from None

    def _leave(self, _: "Future[T]") -> None:
        self._room.release()

    def _used(self, work: Callable[[M], T]) -> T:
        assert self._look is not None  # noqa: S101 - for the type checker
        try:
            if self._opened is None:
                self._opened = self._look()
            return work(self._opened)
        except (SubjectError, LanguageModelError, SettingsError, OSError) as error:
            raise NotAtHandError(f"The model is not at hand, or cannot read this: {error}") from error

    def close(self) -> None:
        """Wait for nothing more."""
        self._one_at_a_time.shutdown(wait=False, cancel_futures=True)


def strange(kept: Kept, subject: SubjectModel) -> Mapping[int, str]:
    """The captured layers that this subject cannot stand for, each with the reason.

    Raises:
        NotAtHandError: it makes other tokens of texts than the subject of the lake did.
    """
    done = kept.records().filter((pl.col("status") == "done") & pl.col("neurons").is_null()).sort("finished_at")
    made = done.filter(pl.col("table") == "sequences").get_column("inputs")
    if len(made) and _content(made[-1], "tokenizer") not in (None, subject.tokenizer_hash()):
        raise NotAtHandError(
            "The model at hand has another tokenizer than the one that the texts of this lake were read with."
        )
    shape = {site.layer: site.n_neurons for site in subject.layers()}
    fingerprints = subject.fingerprints()
    found: dict[int, str] = {}
    for layer, n_neurons, fingerprint in kept.layers().select("layer", "n_neurons", "fingerprint").iter_rows():
        written = done.filter((pl.col("table") == "activations") & (pl.col("layer") == layer)).get_column("inputs")
        if shape.get(layer) != n_neurons:
            found[layer] = (
                f"The model at hand has {shape.get(layer, 'no')} neurons in layer {layer}, and the lake {n_neurons}."
            )
        elif fingerprints[layer] != fingerprint:
            found[layer] = (
                f"The weights at hand are not those that layer {layer} was captured with (fingerprint {fingerprints[layer]}, "
                f"and {fingerprint} in the lake)."
            )
        elif len(written) and _content(written[-1], "subject_layers") not in (None, _layer_hash(kept, layer)):
            found[layer] = (
                f"Layer {layer} was captured before its weights changed; `neuronledger run --layers {layer}` does it again."
            )
    return found


def _content(inputs: str, name: str) -> str | None:
    found: str | None = json.loads(inputs).get(name, {}).get("content_hash")
    return found


def _layer_hash(kept: Kept, layer: int) -> str:
    return frame_hash(kept.layers().filter(pl.col("layer") == layer), key=TABLES["subject_layers"].key)
