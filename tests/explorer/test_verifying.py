"""Verifying from the page: begun by a form of ours alone, run in the background, and told as it came out."""

import html
import json
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

from explorer.cli import _verifies
from explorer.kept import Kept
from explorer.server import Explorer
from explorer.staleness import Staleness
from explorer.verify import EQUAL, Link
from explorer.verifying import WAITING, Verifying
from pipeline.errors import NeuronLedgerError
from resources.settings import load


@pytest.fixture
def pages(told, served, tmp_path):
    def serve(verifying):
        lake = told.lake
        return served(Explorer(Kept(lake), Staleness(lake, None), told.home, tmp_path, verifying=verifying).app())

    return serve


def send(address, path, origin=None):
    asked = urllib.request.Request(address + path, data=b"lang=en", headers={"Origin": origin or address})
    try:
        with urllib.request.urlopen(asked) as reply:
            return reply.status, " ".join(html.unescape(re.sub(r"<[^>]*>", " ", reply.read().decode())).split())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def settled(verifying, *at):
    for _ in range(6000):
        found = verifying.of(*at)
        if found["state"] not in ("waiting", "running"):
            return found
        time.sleep(0.01)
    raise AssertionError("it did not end")


def test_a_neuron_is_verified_as_the_command_does_and_nothing_is_written(told, pages, asking, monkeypatch):
    monkeypatch.chdir(told.home)
    before = told.versions()
    verifying = Verifying(_verifies(load(), told.lake))
    with pages(verifying) as address:
        assert json.loads(asking(f"{address}/1/7.json")[1])["verified"] is None
        status, page = send(address, "/1/7/verify")
        assert status == 200
        assert "Verify it now" in page
        found = settled(verifying, 1, 7)
        assert found["state"] == "done", found
        assert {link["name"]: link["outcome"] for link in found["links"]} == dict.fromkeys(("weights", "documents", "activations", "exemplars", "explanations", "simulations", "scores"), EQUAL)  # fmt: skip
        page = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", asking(f"{address}/1/7")[1])).split())
        assert "7 of 7 links are equal." in page
        assert json.loads(asking(f"{address}/1/7.json")[1])["verified"]["state"] == "done"
    assert told.versions() == before


def test_what_differs_is_told_and_so_is_what_could_not_run(pages, asking):
    def check(layer, neuron, say):
        say("weights")
        if neuron == 5:
            return [
                Link("weights", "1:5", "differs", "the <b>fingerprint</b> is another"),
                Link("documents", "1:5", "not checked", "gone"),
            ]
        raise NeuronLedgerError("the model is not at hand")

    verifying = Verifying(check)
    with pages(verifying) as address:
        for neuron in (5, 6):
            send(address, f"/1/{neuron}/verify")
            settled(verifying, 1, neuron)
        page = asking(f"{address}/1/5")[1]
        assert "1 of 2 links differ." in page
        assert "1 were not checked." in page
        assert "the &lt;b&gt;fingerprint&lt;/b&gt; is another" in page
        assert "It could not be verified: the model is not at hand" in html.unescape(asking(f"{address}/1/6")[1])


def test_only_our_own_pages_begin_it_and_only_of_neurons_that_there_are(pages, asking):
    with pages(Verifying()) as address:
        assert send(address, "/1/5/verify", origin="http://evil.example")[0] == 403
        assert asking(f"{address}/1/5/verify")[0] in (404, 405)
        assert send(address, "/1/999/verify")[0] == 404
        assert json.loads(asking(f"{address}/1/5.json")[1])["verified"] is None
        assert "This server was not told how to verify." in send(address, "/1/5/verify")[1]


def test_it_says_that_it_is_running_and_few_wait(pages, asking):
    free, begun = threading.Event(), threading.Event()

    def check(layer, neuron, say):
        say("1:0: activations")
        begun.set()
        free.wait(30)
        return []

    verifying = Verifying(check)
    with pages(verifying) as address:
        send(address, "/1/0/verify")
        assert begun.wait(10)
        page = html.unescape(asking(f"{address}/1/0")[1])
        assert "It is being verified: 1:0: activations" in page
        assert 'action="/1/0/verify"' not in page
        for neuron in range(1, WAITING + 1):
            verifying.begin(0, neuron)
        assert verifying.of(0, 1)["state"] == "waiting"
        assert verifying.of(0, WAITING)["said"] == "Other neurons are being verified; ask again in a moment."
        free.set()
        assert settled(verifying, 0, WAITING - 1)["state"] == "done"
    verifying.close()
