"""The guard: who is answered, and what a browser is told."""

import asyncio

import pytest
from starlette.responses import PlainTextResponse

from explorer.guard import COOKIE, Guard, check_address, is_loopback
from pipeline.errors import SettingsError

TOKEN = "a secret of some length"


async def inner(scope, receive, send):
    await PlainTextResponse("inside")(scope, receive, send)


def ask(app, path="/", *, method="GET", body=b"", kind="http", **headers):
    """Status, headers and body of an answer; what a WebSocket is told is a status of its own."""
    given = {"host": "127.0.0.1:7575", **{name.replace("_", "-"): value for name, value in headers.items()}}
    raw = [
        (name.encode(), one.encode())
        for name, value in given.items()
        for one in ([value] if isinstance(value, str) else value or [])
    ]
    scope = {"type": kind, "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": raw,
             "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 7575), "root_path": ""}  # fmt: skip
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    if kind == "websocket":
        return sent[0].get("code", sent[0]["type"])
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize("host", ["127.0.0.1:7575", "localhost:7575", "LOCALHOST", "[::1]:7575", "127.0.0.1:9"])
def test_a_request_to_this_machine_is_answered_by_whatever_port_it_comes(host):
    assert ask(Guard(inner), host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "127.0.0.1.evil.example", "", "192.168.0.7:7575", "localhost.evil", None, "[::1].evil.example",
        "127.0.0.1:80.evil.example", "127.0.0.1@evil.example", "localhost.", "127.0.0.1:7575:1",
    ],
)  # fmt: skip
def test_a_request_to_another_name_is_refused_because_any_site_can_point_its_own_here(host):
    status, _, body = ask(Guard(inner), host=host)
    assert status == 421
    assert b"inside" not in body


def test_a_page_of_another_site_neither_reads_nor_writes():
    for method in ("GET", "POST"):
        status, _, _ = ask(Guard(inner), method=method, origin="http://evil.example", content_length="0")
        assert status == 403
    for origin in ("null", "http://[", "127.0.0.1:7575", "ftp://127.0.0.1:7575"):
        assert ask(Guard(inner), origin=origin)[0] == 403
    two = ["http://127.0.0.1:7575", "http://evil.example"]
    assert ask(Guard(inner), method="POST", origin=two, content_length="0")[0] == 403
    assert ask(Guard(inner), sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] == 403
    # Another server on this machine is another site too.
    assert ask(Guard(inner), origin="http://127.0.0.1:8888")[0] == 403
    assert ask(Guard(inner), sec_fetch_site="cross-site", sec_fetch_mode="navigate")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_what_changes_something_must_come_from_one_of_our_pages(method):
    assert ask(Guard(inner), method=method, content_length="0")[0] == 403
    assert ask(Guard(inner), method=method, origin="http://127.0.0.1:7575", content_length="0")[0] == 200


@pytest.mark.parametrize("length", ["1000001", "-1", "many", "²", None])
def test_a_request_says_how_much_it_carries_and_it_is_not_much(length):
    assert ask(Guard(inner), method="POST", origin="http://127.0.0.1:7575", content_length=length)[0] == 413


def test_a_websocket_of_another_site_is_closed():
    assert ask(Guard(inner), kind="websocket", origin="http://evil.example") == 1008
    assert ask(Guard(inner), kind="websocket", host="evil.example") == 1008


def test_every_answer_has_the_policy_and_nothing_in_it_lets_text_run():
    for host in ("127.0.0.1", "evil.example"):
        _, headers, _ = ask(Guard(inner), host=host)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_with_a_token_nothing_is_shown_before_it_is_entered():
    app = Guard(inner, token=TOKEN)
    for path in ("/", "/5/131", "/5/131.json", "/static/explorer.css"):
        status, headers, body = ask(app, path)
        assert status == 401
        assert b"inside" not in body
        assert headers["cache-control"] == "no-store"
    own = {"origin": "http://127.0.0.1:7575", "content_length": "30"}
    assert ask(app, "/enter", method="POST", body=b"token=another", **own)[0] == 401
    status, headers, _ = ask(app, "/enter", method="POST", body=b"token=a+secret+of+some+length", **own)
    assert (status, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    # What the browser keeps does not give the token away.
    assert "secret" not in cookie
    assert ask(app, cookie=cookie.partition(";")[0])[0] == 200
    assert ask(app, cookie=f"{COOKIE}=0")[0] == 401
    assert ask(app, authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(app, authorization=f"Bearer {TOKEN[:-1]}")[0] == 401
    assert ask(app, kind="websocket") == 1008


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("[::1]", True), ("127.9.9.9", True), ("0.0.0.0", False),
     ("::", False), ("10.0.0.1", False), ("example.org", False), ("localhost.example.org", False)],
)  # fmt: skip
def test_which_addresses_this_machine_alone_can_reach(host, alone):
    assert is_loopback(host) == alone


def test_an_address_that_others_can_reach_needs_a_token():
    check_address("127.0.0.1", None)
    check_address("0.0.0.0", TOKEN)
    with pytest.raises(SettingsError, match="can be reached from other machines; set NEURONLEDGER_TOKEN"):
        check_address("0.0.0.0", None)
    with pytest.raises(SettingsError, match="must have 16 letters or more"):
        check_address("127.0.0.1", "short")
