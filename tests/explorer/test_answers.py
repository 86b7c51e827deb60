"""Answers: what was made once is sent again as long as it is right, and only so long."""

import gzip
import threading
import urllib.error
import urllib.request
from contextlib import suppress

import polars as pl

from explorer.answers import Answer, Answers
from explorer.kept import Kept
from explorer.server import Explorer
from explorer.staleness import Staleness


def fetch(address, **headers):
    """Status, headers and body of an answer, as it was sent."""
    asked = urllib.request.Request(address, headers={"Accept-Language": "en", **headers})
    try:
        with urllib.request.urlopen(asked) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_a_browser_that_has_a_page_is_told_so_until_something_is_written(copied, served, tmp_path):
    lake = copied.lake
    with served(Explorer(Kept(lake), Staleness(lake, None), tmp_path, tmp_path).app()) as address:
        for path in ("/1/5", "/1/5.json", "/1/5?view=difference&lang=fr"):
            status, headers, body = fetch(address + path)
            assert (status, len(body) > 1000) == (200, True)
            had = {"If-None-Match": headers["etag"]}
            status, headers, body = fetch(address + path, **had)
            assert (status, body, headers["etag"]) == (304, b"", had["If-None-Match"])
        # Another language or view is another page.
        assert fetch(f"{address}/1/5", **had)[0] == 200
        _, first, _ = fetch(f"{address}/1/5")
        scores = lake.read("scores", layer=1, neurons=[5])
        # Another process writes.
        other = scores.with_columns(value=pl.when(pl.col("value").is_not_null()).then(pl.lit(0.1234)))
        copied.lake.replace("scores", other, layer=1, neurons=[5], record={})
        status, _, body = fetch(f"{address}/1/5", **{"If-None-Match": first["etag"]})
        assert status == 200
        assert b"0.123" in body


def test_it_is_sent_packed_to_those_who_can_unpack_it_and_is_the_same(address):
    _, plain, body = fetch(f"{address}/1/5")
    _, packed, smaller = fetch(f"{address}/1/5", **{"Accept-Encoding": "gzip"})
    assert plain["content-encoding"] is None
    assert packed["content-encoding"] == "gzip"
    assert gzip.decompress(smaller) == body
    assert "Accept-Language" in packed["vary"]


def test_of_many_who_ask_for_one_page_at_once_the_first_has_it_made():
    answers, made, ready = Answers(), [], threading.Event()

    def make():
        made.append(1)
        ready.wait(5)
        return Answer.of(b"a page", "text/html")

    found = []
    users = [threading.Thread(target=lambda: found.append(answers.answer("a", make))) for _ in range(8)]
    for user in users:
        user.start()
    ready.set()
    for user in users:
        user.join()
    assert made == [1]
    assert {gzip.decompress(one.packed) for one in found} == {b"a page"}


def test_what_was_not_asked_for_longest_goes_first_and_what_failed_is_asked_again():
    def page(name):
        return lambda: Answer.of(name.encode() * 100, "text/html")

    size = len(page("a")().packed)
    answers = Answers(most=2 * size)
    first = answers.answer("a", page("a"))
    answers.answer("b", page("b"))
    assert answers.answer("a", page("x")) is first
    answers.answer("c", page("c"))
    assert answers.answer("a", page("x")) is first
    assert gzip.decompress(answers.answer("b", page("y")).packed) == b"y" * 100

    def fail():
        raise OSError("not now")

    with suppress(OSError):
        answers.answer("d", fail)
    assert gzip.decompress(answers.answer("d", page("d")).packed) == b"d" * 100


class Remote:
    """A lake on an object store, as far as versions go."""

    uri = "s3://bucket/lake"

    def __init__(self):
        self.asked, self.now = 0, 1

    def version(self, table):
        self.asked += 1
        return self.now


def test_an_object_store_is_not_asked_for_the_same_version_again_and_again(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("explorer.kept.time.monotonic", lambda: clock[0])
    lake = Remote()
    kept = Kept(lake)
    first = kept.state()
    lake.now, before = 2, lake.asked
    assert kept.state() == first
    assert kept.once("thing", ["scores"], lambda: "read") == "read"
    assert lake.asked == before
    # What was written here is seen at once; what others wrote, soon.
    kept.look_again()
    assert kept.version("reviews") == 2
    assert kept.version("scores") == 2
    lake.now = 3
    assert kept.version("scores") == 2
    clock[0] += 3
    assert kept.version("scores") == 3
