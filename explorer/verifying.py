"""Verifying: the numbers of a neuron computed again because somebody asked on its page, in the background.

One at a time, in a thread of its own; what came out is kept while the server runs. Model and corpus are opened anew each time,
so that files that changed since are seen. Nothing is written.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Any

from pipeline.errors import NeuronLedgerError

if TYPE_CHECKING:
    from explorer.verify import Link

KEPT = 200
"""Outcomes that are kept."""
WAITING = 8
"""Neurons that may wait at once."""


@dataclass
class Outcome:
    """Where a verification stands: `waiting`, `running`, `done` with its links, or `failed` with the reason in `said`."""

    state: str = "waiting"
    at: str = ""
    """When it began or ended, UTC."""
    said: str = ""
    links: tuple[dict[str, Any], ...] = ()


class Verifying:
    """Asks `check` for the links of a neuron; without it nothing can be verified."""

    def __init__(self, check: "Callable[[int, int, Callable[[str], None]], Sequence[Link]] | None" = None) -> None:
        self._check = check
        self._one_at_a_time = ThreadPoolExecutor(1, thread_name_prefix="verifying")
        self._lock = Lock()
        self._known: OrderedDict[tuple[int, int], Outcome] = OrderedDict()

    def of(self, layer: int, neuron: int) -> dict[str, Any] | None:
        """Where the verification of a neuron stands; None if nobody asked for it."""
        with self._lock:
            found = self._known.get((layer, neuron))
            return None if found is None else asdict(found)

    def begin(self, layer: int, neuron: int) -> None:
        """Verify a neuron once those asked for before are done, unless it waits or runs already."""
        at = (layer, neuron)
        with self._lock:
            known = self._known.get(at)
            if known is not None and known.state in ("waiting", "running"):
                return
            outcome = self._known[at] = Outcome(at=_now())
            self._known.move_to_end(at)
            if self._check is None:
                outcome.state, outcome.said = "failed", "This server was not told how to verify."
                return
            if sum(one.state in ("waiting", "running") for one in self._known.values()) > WAITING:
                outcome.state, outcome.said = "failed", "Other neurons are being verified; ask again in a moment."
                return
            done = [place for place, one in self._known.items() if one.state in ("done", "failed")]
            for place in done[: max(0, len(self._known) - KEPT)]:
                del self._known[place]
        self._one_at_a_time.submit(self._run, layer, neuron, outcome)

    def _run(self, layer: int, neuron: int, outcome: Outcome) -> None:
        assert self._check is not None  # noqa: S101 - for the type checker

        def say(what: str) -> None:
            with self._lock:
                outcome.said = what

        with self._lock:
            outcome.state, outcome.at = "running", _now()
        state, said, links = "failed", "", ()  # type: tuple[str, str, tuple[dict[str, Any], ...]]
        try:
            links = tuple(asdict(link) for link in self._check(layer, neuron, say))
            state = "done"
        except (NeuronLedgerError, OSError) as error:
            said = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the page must not say "running" for ever
            said = f"{type(error).__name__}: {error}"
        with self._lock:
            outcome.state, outcome.said, outcome.links, outcome.at = state, said, links, _now()

    def close(self) -> None:
        """Wait for nothing more."""
        self._one_at_a_time.shutdown(wait=False, cancel_futures=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
