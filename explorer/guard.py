"""The guard: who may speak to a server of this project, and what a page may do in a browser.

A page of any site can make a browser on this machine send requests to 127.0.0.1. So a request must be addressed to a
known name (a foreign site that points its own name here is refused), a request that changes something must come from
one of our pages, and where a token is set it must be shown first. Answers carry a strict content security policy, so
that text of a corpus or of a language model can never run, even if a page should fail to escape it.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import SettingsError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
READING = frozenset({"GET", "HEAD"})
COOKIE = "neuronledger"
ENTER = "/enter"
MOST_BYTES = 1_000_000
"""Of what a request may carry."""

POLICY = "; ".join(
    [
        "default-src 'none'", "style-src 'self'", "script-src 'self'", "img-src 'self' data:", "connect-src 'self'",
        "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'",
    ]
)  # fmt: skip
EMBEDDED = POLICY.replace("frame-ancestors 'none'", "frame-ancestors 'self' http://127.0.0.1:* http://localhost:*")
"""For a page without forms, which a notebook on this machine may frame."""

HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def check_address(host: str, token: str | None) -> None:
    """Refuse to listen where others can reach us unless they must show a token.

    Raises:
        SettingsError: `host` is no address of this machine's loopback and there is no token, or one of under 16 letters.
    """
    if token is not None and len(token) < 16:
        raise SettingsError("NEURONLEDGER_TOKEN must have 16 letters or more, such as `openssl rand -hex 16` gives")
    if not is_loopback(host) and token is None:
        raise SettingsError(
            f"--host {host} can be reached from other machines; set NEURONLEDGER_TOKEN to a secret of 16 letters or "
            "more, which visitors must enter, or leave --host out and use an SSH tunnel"
        )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """An ASGI application behind the guard. `names` are host names that a request may be addressed to besides loopback.

    With a `token`, a visitor enters it once on the page `/enter`, and a program sends `Authorization: Bearer TOKEN`.
    The policy is set only on pages of ours: pass `policy=None` in front of an application that has its own.
    """

    def __init__(
        self, app: ASGIApp, *, names: Iterable[str] = (), token: str | None = None, policy: str | None = POLICY
    ) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in (*LOOPBACK, *names))
        self._token = token
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refused(scope, headers)
        if refused is None and self._token is not None and not self._is_known(headers):
            refused = await self._entered(scope, receive)

        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    found[name] = value
                if self._policy is not None and "content-security-policy" not in found:
                    found["Content-Security-Policy"] = self._policy
                if "cache-control" not in found:
                    found["Cache-Control"] = "no-store" if self._token else "no-cache"
            await send(message)

        if refused is None:
            await self._app(scope, receive, careful)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refused(scope, receive, careful)

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or _name(host) not in self._names:
            return _said(421, "This address is not one that the server answers to. Open it as http://127.0.0.1:PORT.")
        origins = headers.getlist("origin")
        is_reading = scope["type"] == "http" and scope["method"] in READING
        # A WebSocket is opened with GET, and browsers let any site open one.
        if len(origins) > 1 or any(
            origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()) for origin in origins
        ):
            return _said(403, "Pages of other sites may not speak to this server.")
        if not is_reading and scope["type"] == "http":
            if not origins:
                return _said(403, f"A request that changes something must carry `Origin: http://{host}`.")
            length = headers.get("content-length", "")
            if not length.isascii() or not length.isdigit() or int(length) > MOST_BYTES:
                return _said(413, f"A request may carry {MOST_BYTES:,} bytes, and must say how many it has.")
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") not in (None, "navigate"):
            return _said(403, "Pages of other sites may not read from this server.")
        return None

    def _is_known(self, headers: Headers) -> bool:
        token = self._token or ""
        given = headers.get("authorization", "")
        if hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return True
        cookies = dict(part.strip().partition("=")[::2] for part in headers.get("cookie", "").split(";"))
        return hmac.compare_digest(cookies.get(COOKIE, "").encode(), _pass(token).encode())

    async def _entered(self, scope: Scope, receive: Receive) -> Response:
        """The page that asks for the token, or, when it was right, the way on."""
        if scope["type"] != "http" or scope["path"] != ENTER:
            return Response(_ENTER, status_code=401, media_type="text/html", headers={"WWW-Authenticate": "Bearer"})
        if scope["method"] != "POST":
            return Response(_ENTER, media_type="text/html")
        given = parse_qs((await body(receive)).decode("utf-8", errors="replace")).get("token", [""])[0]
        if not hmac.compare_digest(given.encode(), (self._token or "").encode()):
            return Response(_ENTER, status_code=401, media_type="text/html")
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(COOKIE, _pass(self._token or ""), httponly=True, samesite="strict", path="/")
        return answer


async def body(receive: Receive) -> bytes:
    """What a request carries, at most `MOST_BYTES` of it."""
    found: Any = bytearray()
    more = True
    while more and len(found) <= MOST_BYTES:
        message = await receive()
        found += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(found[:MOST_BYTES])


def _name(host: str) -> str:
    """The name in a Host header, without its port: a tunnel may come in by another one. Empty if it is of no such form."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^\[\]:]*)(:[0-9]{0,5})?", host.lower(), re.ASCII)
    return found[1] if found else ""


def _pass(token: str) -> str:
    """What a browser keeps in place of the token."""
    return hmac.new(token.encode(), b"neuronledger visitor", hashlib.sha256).hexdigest()


def _said(status: int, words: str) -> Response:
    return PlainTextResponse(f"{words}\n", status_code=status)


_ENTER = f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Neuron Ledger</title>
<meta name="viewport" content="width=device-width,initial-scale=1"></head><body><main><h1>Neuron Ledger</h1>
<form method="post" action="{ENTER}"><p><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required>
<button>Enter</button></p></form></main></body></html>
"""
