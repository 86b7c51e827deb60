"""Answers: pages as they were sent, kept while nothing that they show has changed.

A page of a neuron takes 30 ms of processor time to make. Who asks for one that was made a moment ago gets those bytes, and
a browser that still has them is told so (304). Of many who ask for one page at once, the first has it made.
"""

import gzip
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Lock

from starlette.requests import Request
from starlette.responses import Response

MOST_BYTES = 32 * 2**20
"""Of all answers that are kept, compressed."""
LEVEL = 6
"""Of compression: 9 takes half as long again and leaves one part in three hundred less."""
VARY = "Accept-Encoding, Accept-Language"


@dataclass(frozen=True)
class Answer:
    """One page as it is sent: compressed, with what the browser needs to know of it."""

    packed: bytes
    media_type: str
    tag: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, body: bytes, media_type: str, headers: Mapping[str, str] | None = None) -> "Answer":
        """The answer with this body."""
        tag = hashlib.sha256(body).hexdigest()[:32]
        return cls(gzip.compress(body, LEVEL, mtime=0), media_type, f'W/"{tag}"', headers or {})

    def response(self, request: Request) -> Response:
        """The answer to one request, or that what the browser has is still right."""
        headers = {**self.headers, "ETag": self.tag, "Vary": VARY}
        if self.tag in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(gzip.decompress(self.packed), media_type=self.media_type, headers=headers)
        return Response(self.packed, media_type=self.media_type, headers={**headers, "Content-Encoding": "gzip"})


class Answers:
    """The latest answers, at most `most` bytes of them, and as many being made at once as there are processors."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, Answer] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()
        self._making = [Lock() for _ in range(64)]
        # More threads than processors would only take turns in the interpreter.
        self._turns = BoundedSemaphore(len(os.sched_getaffinity(0)) + 1)

    def answer(self, key: Hashable, make: Callable[[], Answer]) -> Answer:
        """The answer kept under this key, or made now. `key` holds all that it depends on."""
        with self._making[hash(key) % len(self._making)]:
            found = self._found(key)
            if found is None:
                with self._turns:
                    found = make()
                self._keep(key, found)
            return found

    def _found(self, key: Hashable) -> Answer | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def _keep(self, key: Hashable, answer: Answer) -> None:
        with self._lock:
            self._kept[key] = answer
            self._bytes += len(answer.packed)
            while self._bytes > self._most:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest.packed)
