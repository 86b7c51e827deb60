"""Verdicts and explanations of people, given on pages: kept where they belong, and only from our own pages."""

import json
import urllib.error
import urllib.parse
import urllib.request

import polars as pl
import pytest

from explorer.kept import Kept
from explorer.server import Explorer
from explorer.staleness import Staleness
from resources.people import statements


@pytest.fixture
def folder(told, tmp_path):
    return told.copy(tmp_path)


@pytest.fixture
def address(folder, served):
    lake = folder.lake
    explorer = Explorer(Kept(lake), Staleness(lake, None), folder.home, folder.home / "files", {"lake": "here"})
    with served(explorer.app()) as address:
        yield address


def send(address, path, origin=None, **fields):
    asked = urllib.request.Request(
        address + path, data=urllib.parse.urlencode(fields).encode(), headers={"Origin": origin or address}
    )
    try:
        with urllib.request.urlopen(asked) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def model(asking, address):
    shown = json.loads(asking(f"{address}/1/5.json")[1])
    return next(one for one in shown["explanations"] if one["explainer"] == "scripted")


def test_a_verdict_becomes_a_row_and_stands_beside_its_explanation(address, folder, asking):
    one = model(asking, address)
    for verdict in ("unsure", "wrong"):
        status, page = send(
            address,
            "/1/5/review",
            explanation=one["explanation_id"],
            verdict=verdict,
            author="Ada <b>",
            note="too <i>wide",
        )
        assert status == 200
        assert "too &lt;i&gt;wide" in page
    rows = folder.table("reviews")
    assert rows.get_column("verdict").to_list() == ["unsure", "wrong"]
    assert set(rows.select("layer", "neuron", "explanation_id", "author").iter_rows()) == {
        (1, 5, one["explanation_id"], "Ada <b>")
    }
    # Who thinks again counts once.
    (said,) = model(asking, address)["reviews"]
    assert (said["verdict"], said["note"]) == ("wrong", "too <i>wide")
    found = json.loads(asking(f"{address}/reviews.json")[1])
    assert (found["count"], [row["verdict"] for row in found["rows"]], found["ordered"]) == (2, ["wrong"], None)
    assert "Ada &lt;b&gt;" in asking(f"{address}/reviews")[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"verdict": "maybe"}, "must be one of agree, wrong, unsure"), ({"author": ""}, "the author must have 1 to 80 letters"),
     ({"explanation": "0"}, "has no such explanation any more"), ({"note": "x" * 2001}, "at most 2,000 letters")],
)  # fmt: skip
def test_a_verdict_that_is_none_is_refused_and_nothing_is_kept(address, folder, asking, changes, words):
    fields = {"explanation": model(asking, address)["explanation_id"], "verdict": "agree", "author": "Ada"} | changes
    status, page = send(address, "/1/5/review", **fields)
    assert status == 400
    assert words in page
    assert folder.table("reviews").is_empty()


def test_another_site_cannot_write(address, folder, asking):
    one = model(asking, address)["explanation_id"]
    for path in ("/1/5/review", "/1/5/explanation"):
        status, _ = send(
            address, path, origin="http://evil.example", explanation=one, verdict="agree", author="Mallory"
        )
        assert status == 403
        # Asking for the address, as a link or a picture does, writes nothing either.
        assert asking(f"{address}{path}?explanation={one}&verdict=agree&author=Mallory")[0] == 404
    assert folder.table("reviews").is_empty()
    assert not list(folder.home.glob("*people*"))


def test_an_explanation_of_ones_own_is_noted_and_scored_by_the_command_on_the_page(address, folder, asking, served):
    from explorer.fake_endpoint import FakeEndpoint

    for _ in range(2):
        status, page = send(address, "/1/5/explanation", explanation='the words "hammer" or "saw"', author="Ada")
        assert status == 200
        assert "noted, not scored yet" in page
    path = folder.home / "neuronledger-people.jsonl"
    assert [(one.layer, one.neuron, one.author) for one in statements(path)] == [(1, 5, "Ada")]
    shown = json.loads(asking(f"{address}/1/5.json")[1])["people"]
    assert shown["command"].startswith("neuronledger run --neurons 1:5 --lake here --human-explanations ")
    with served(FakeEndpoint().app()) as endpoint:
        folder.type("run", "--neurons", "1:5", "--human-explanations", str(path), "--simulator", "scripted", "--base-url",
                    f"{endpoint}/v1")  # fmt: skip
    found = json.loads(asking(f"{address}/1/5.json")[1])
    (own,) = [one for one in found["explanations"] if one["method"] == "human"]
    assert own["explainer"] == "Ada"
    assert found["people"]["waiting"] == []
    rows = folder.table("scores", layer=1, neurons=[5]).filter(pl.col("explanation_id") == own["explanation_id"])
    assert sum(len(line["cells"]) for one in own["simulators"] for line in one["scores"]) == len(rows) > 0


@pytest.mark.parametrize("before", ["", '{"neuron": "1:5", "explanation": "by hand", "author": "Bob"}'])
def test_what_is_noted_goes_to_a_line_of_its_own_in_a_file_begun_by_hand(address, folder, before):
    path = folder.home / "neuronledger-people.jsonl"
    path.write_text(before)
    assert send(address, "/1/5/explanation", explanation="saws", author="Ada")[0] == 200
    assert [one.author for one in statements(path)] == (["Bob"] if before else []) + ["Ada"]


def test_a_file_of_people_that_cannot_be_read_is_said_on_the_page_and_left_as_it_is(address, folder, asking):
    path = folder.home / "neuronledger-people.jsonl"
    path.write_text("no JSON\n")
    status, page, *_ = asking(f"{address}/1/5")
    assert (status, "line 1 of" in page) == (200, True)
    assert send(address, "/1/5/explanation", explanation="saws", author="Ada")[0] == 400
    assert path.read_text() == "no JSON\n"


def test_a_form_with_too_many_fields_is_refused(address):
    status, page = send(address, "/1/5/explanation", **{f"field{n}": "x" for n in range(30)})
    assert (status, "at most 20 fields" in page) == (400, True)


def test_an_explanation_without_words_or_author_is_refused(address, folder):
    assert send(address, "/1/5/explanation", explanation=" ", author="Ada")[0] == 400
    assert send(address, "/1/5/explanation", explanation="x", author="nobody")[0] == 400
    assert send(address, "/1/999/explanation", explanation="x", author="Ada")[0] == 404
    assert not list(folder.home.glob("*people*"))
