"""Staleness as pages show it: what is fresh, what is not and why, found in the background and kept until something is written.

To know it, the subject's weights are hashed and the corpus is looked at, which can take longer than a page may. Where
the subject or the corpus is not at hand, staleness is not known, and the reason is said.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from pipeline.errors import NeuronLedgerError
from pipeline.ports import Lake

if TYPE_CHECKING:
    from assets.freshness import State

PATIENCE = 0.02
"""Seconds that a page waits for an answer."""
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """What is known of one layer: the worst of its states, and those that are not fresh. `why` says why nothing is known."""

    status: str
    causes: tuple[dict[str, str], ...] = ()
    why: str = ""


CHECKING = Verdict(UNKNOWN, why="It is being checked; load the page again in a moment.")
NOT_ASKED = Verdict(UNKNOWN, why="It is not checked here.")


class Staleness:
    """Asks `look` for the states of one layer, once for each version of the records."""

    def __init__(self, lake: Lake, look: Callable[[Sequence[int]], Sequence["State"]] | None) -> None:
        self._lake = lake
        self._look = look
        self._one_at_a_time = ThreadPoolExecutor(1, thread_name_prefix="staleness")
        self._lock = Lock()
        self._known: dict[int, tuple[Any, Future[Verdict]]] = {}

    def of(self, layer: int, *, patience: float = PATIENCE) -> Verdict:
        """The verdict on one layer, or that it is being checked. Waits at most `patience` seconds."""
        if self._look is None:
            return NOT_ASKED
        version = self._lake.version("materializations")
        with self._lock:
            known = self._known.get(layer)
            if known is None or known[0] != version:
                known = self._known[layer] = version, self._one_at_a_time.submit(self._find, layer)
        try:
            return known[1].result(timeout=patience)
        except NotYet:
            return CHECKING

    def _find(self, layer: int) -> Verdict:
        assert self._look is not None  # noqa: S101 - for the type checker
        try:
            states = self._look([layer])
        except (NeuronLedgerError, OSError) as error:
            return Verdict(UNKNOWN, why=str(error))
        bad = [state for state in states if state.status != "fresh"]
        worst = next(
            (name for name in ("failed", "stale", "missing") if any(state.status == name for state in bad)), "fresh"
        )
        causes = tuple({"table": state.table, "status": state.status, "cause": state.cause} for state in bad)
        return Verdict(worst, causes)

    def close(self) -> None:
        """Wait for nothing more."""
        self._one_at_a_time.shutdown(wait=False, cancel_futures=True)
