"""Misbehaviour: what an endpoint can do wrong on purpose, each kind for a share of the requests.

Whether a request goes wrong is drawn from a seed, its content and how often it came, so a run can be repeated.
"""

import hashlib
from collections.abc import Mapping

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
}
"""Kinds of faults, in the order in which they are drawn."""


def check(rates: Mapping[str, float]) -> None:
    """See that these are shares of known kinds.

    Raises:
        SettingsError: a kind is unknown, a share is none, or together they are more than all requests.
    """
    for kind, share in rates.items():
        if kind not in KINDS:
            raise SettingsError(f"there is no fault {kind!r}; known are {', '.join(KINDS)}")
        if not 0 <= share <= 1:
            raise SettingsError(f"--{kind.replace('_', '-')} (={share:g}) must be a share from 0 to 1 of all requests")
    if sum(rates.values()) > 1:
        raise SettingsError(f"the shares of faults add up to {sum(rates.values()):g}, more than all requests")


def drawn(rates: Mapping[str, float], content: bytes, *, times: int, seed: int) -> str | None:
    """The fault of a request that came so many times before, None for none."""
    digest = hashlib.sha256(b"%d %d " % (seed, times) + content).digest()
    left = int.from_bytes(digest[:8], "big") / 2**64
    for kind in KINDS:
        left -= rates.get(kind, 0.0)
        if left < 0:
            return kind
    return None
