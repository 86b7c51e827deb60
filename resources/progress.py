"""Progress: where a step says how far it has come. In Dagster's own processes that is the log."""

import logging
import time

_logger = logging.getLogger("neuronledger")


class LoggedProgress:
    """Writes a line to the log, at most one for each step in ten seconds, and one when the step ends."""

    def __init__(self, *, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._last: dict[str, float] = {}

    def __call__(self, step: str, done: int, total: int, detail: str = "") -> None:
        """Say that `done` of `total` are done; a `total` of 0 means that nobody knows how many there are."""
        now = time.monotonic()
        if done != total and now - self._last.get(step, 0.0) < self._seconds:
            return
        self._last[step] = now
        _logger.info("%s: %s%s %s", step, f"{done:,}", f" of {total:,}" if total else "", detail)
