"""Misbehaviour: what an endpoint can do wrong on purpose, each kind for a share of the requests.

Whether a request goes wrong is drawn from a seed, its content and how often it came, so a run can be repeated.
"""

import hashlib
from collections.abc import Iterable, Mapping

from pipeline.errors import SettingsError

KINDS = {
    "rate_limited": "status 429 with Retry-After",
    "server_error": "status 500",
    "cut_off": "the connection ends in the middle of the answer",
    "refused": "a refusal in place of an answer",
    "truncated": "an answer that ends at the token limit",
    "empty": "an answer without text",
    "malformed": "an answer that is not the JSON that was asked for",
    "wrong_length": "an answer in the right form that lacks its last value",
    "slow": "an answer that comes in drops",
    "filtered": "status 400 because of a content filter",
}
"""Kinds of faults of a request, in the order in which they are drawn."""

LINE_KINDS = {
    "line_missing": "a line of a batch that is in neither of its files",
    "line_doubled": "a line of a batch that is in its file twice",
}
"""Further ones of a request that comes in a batch."""

BATCH_KINDS = {
    "batch_failed": "a batch that is refused once it is made",
    "batch_expired": "a batch that ends with half of its requests answered",
    "batch_cut_off": "a batch whose file of answers ends in the middle",
    "batch_unheard": "a batch that is made, and status 500 in place of its name",
}
"""Kinds of faults of a batch as a whole."""

ALL_KINDS = KINDS | LINE_KINDS | BATCH_KINDS


def check(rates: Mapping[str, float]) -> None:
    """See that these are shares of known kinds.

    Raises:
        SettingsError: a kind is unknown, a share is none, or together they are more than all requests.
    """
    for kind, share in rates.items():
        if kind not in ALL_KINDS:
            raise SettingsError(f"there is no fault {kind!r}; known are {', '.join(ALL_KINDS)}")
        if not 0 <= share <= 1:
            raise SettingsError(f"--{kind.replace('_', '-')} (={share:g}) must be a share from 0 to 1 of all requests")
    for kinds, what in ((KINDS, "requests"), (LINE_KINDS, "lines"), (BATCH_KINDS, "batches")):
        if (share := sum(rates.get(kind, 0.0) for kind in kinds)) > 1:
            raise SettingsError(f"the shares of faults add up to {share:g}, more than all {what}")


def drawn(
    rates: Mapping[str, float], content: bytes, *, times: int, seed: int, kinds: Iterable[str] = KINDS
) -> str | None:
    """The fault of a request that came so many times before, None for none."""
    digest = hashlib.sha256(b"%d %d " % (seed, times) + content).digest()
    left = int.from_bytes(digest[:8], "big") / 2**64
    for kind in kinds:
        left -= rates.get(kind, 0.0)
        if left < 0:
            return kind
    return None
