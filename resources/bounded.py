"""Bounded: a body of an HTTP answer, read no further than anything that we asked for can be long.

An endpoint may send a body without end, or one of a megabyte that unpacks to a terabyte. What goes beyond `most` bytes, as
they come and unpacked, is not read; a body that is as long as that is no answer to any request of ours, and whoever reads
it says so. A packing that is not known is left as it is.
"""

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2

PACKED = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
"""What zlib takes each packing for."""

UNPACKED_AT_ONCE = 2**16
"""Bytes."""


def bounded(most: int) -> Callable[[httpx2.Response], Awaitable[None]]:
    """A hook that sees every response before its body is read."""

    async def hook(response: httpx2.Response) -> None:
        if isinstance(response.stream, httpx2.AsyncByteStream):
            packing = response.headers.get("content-encoding", "").strip().lower()
            # It is unpacked here, so that nobody does it again without a bound.
            response.headers.pop("content-encoding", None)
            response.stream = _Bounded(response.stream, most, PACKED.get(packing))

    return hook


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, most: int, packed: int | None) -> None:
        self._stream = stream
        self._most = most
        self._packed = packed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._most
        async for piece in self._stream if self._packed is None else self._unpacked(self._packed):
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return

    async def _unpacked(self, packed: int) -> AsyncIterator[bytes]:
        left, unpacker = self._most, zlib.decompressobj(packed)
        async for piece in self._stream:
            # Headers of packings may go on for ever as well.
            left -= len(piece)
            rest = piece
            while rest:
                try:
                    out = unpacker.decompress(rest, UNPACKED_AT_ONCE)
                except zlib.error as error:
                    raise httpx2.DecodingError(str(error)) from None
                yield out
                rest = unpacker.unconsumed_tail
            if left <= 0 or unpacker.eof:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()
