"""A text of one's own: the subject reads it, and pages say what its neurons do, or why it cannot be read."""

import html
import json
import re
import urllib.parse

import pytest

from explorer.kept import Kept
from explorer.live import BusyError, Live, NotAtHandError
from explorer.own_text import MOST_LETTERS
from explorer.server import Explorer
from explorer.staleness import Staleness
from resources.subject import HuggingFaceSubject


@pytest.fixture
def at(served, tmp_path):
    """Serves the pages of a folder with the subject that lies in it, or with another."""

    def serve(folder, subject=None):
        lake = folder.lake
        live = Live(lambda: HuggingFaceSubject(str(subject or folder.home / "subject")))
        return served(Explorer(Kept(lake), Staleness(lake, None), folder.home, tmp_path, {}, None, live).app())

    return serve


def ask(asking, address, path="/text.json", **query):
    status, body = asking(f"{address}{path}?{urllib.parse.urlencode(query)}")
    return (status, json.loads(body)) if path.endswith(".json") else (status, body)


def words(page):
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_every_planted_neuron_fires_exactly_where_it_was_made_to(told, planted, at, asking):
    text = told.table("sequences").item(0, "text")
    with at(told) as address:
        for neuron in planted.neurons:
            name = f"{neuron.layer}:{neuron.neuron}"
            status, shown = ask(asking, address, text=text, neurons=name)
            (one,) = shown["read"]["shown"]
            truth = neuron.fires([token.strip() for token in shown["read"]["tokens"]])
            assert status == 200
            assert [value > 1 for value in one["activations"]] == truth, name


def test_the_numbers_are_those_of_the_record_where_the_text_is_one_of_the_corpus(told, at, asking):
    record = told.table("activations", layer=1, neurons=[5]).sort("stratum", "rank").row(-1, named=True)
    window = told.table("sequences").filter(sequence_id=record["sequence_id"]).row(0, named=True)
    text = b"".join(window["token_bytes"]).decode()
    with at(told) as address:
        shown = ask(asking, address, text=text, neurons="1:5", layer="1")[1]
    assert shown["read"]["token_ids"] == window["token_ids"]
    (one,) = shown["read"]["shown"]
    assert one["activations"] == pytest.approx(record["activations"], rel=2**-11, abs=2**-11)
    assert max(one["activations"]) == pytest.approx(record["peak"])
    # A layer was named, so nothing of another one is among those that fire most.
    assert {row["layer"] for row in shown["read"]["firing"]} == {1}
    most = {row["neuron"]: row for row in shown["read"]["firing"]}
    assert most[5]["share"] == pytest.approx(max(one["activations"]) / one["maximum"])


def test_those_that_fire_most_are_named_with_their_explanations_and_where(told, at, asking):
    text = told.table("sequences").item(3, "text")
    with at(told) as address:
        shown = ask(asking, address, text=text)[1]["read"]
        status, page = ask(asking, address, "/text", text=text, order="z")
    shares = [row["share"] for row in shown["firing"]]
    assert shares == sorted(shares, reverse=True)
    assert {(row["layer"], row["neuron"]) for row in shown["shown"]} <= {
        (row["layer"], row["neuron"]) for row in shown["firing"]
    }
    assert any(row["explanation"] for row in shown["firing"])
    assert len(shown["at"]) == len(shown["tokens"]) == len(shown["counts"])
    assert status == 200
    assert "What fires most" in words(page)
    assert 'href="/1/' in page


def test_a_gated_model_is_shown_on_both_sides(gated, at, asking):
    with at(gated) as address:
        shown = ask(asking, address, text=gated.table("sequences").item(0, "text"), neurons="0:0")[1]["read"]
    assert [one["polarity"] for one in shown["shown"]] == ["+", "-"]
    said = gated.table("explanations", layer=0).filter(method="token-lookup")
    own = {(row["neuron"], row["polarity"]): row["text"] for row in said.iter_rows(named=True)}
    assert own[0, "+"] != own[0, "-"]
    rows = [row for row in [*shown["shown"], *shown["firing"]] if row["layer"] == 0]
    assert {row["polarity"] for row in rows} == {"+", "-"}
    assert [row["explanation"] for row in rows] == [own[row["neuron"], row["polarity"]] for row in rows]


def test_other_weights_are_refused_with_what_differs(told, planted, at, asking, tmp_path_factory):
    from safetensors.numpy import load_file, save_file

    folder = told.copy(tmp_path_factory.mktemp("other"))
    path = folder.home / "subject" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("h.1.mlp.c_fc.bias"))
    save_file(tensors | {name: tensors[name] + 1}, path, metadata={"format": "pt"})
    text = told.table("sequences").item(0, "text")
    with at(folder) as address:
        shown = ask(asking, address, text=text)[1]
        # Layer 0 comes before what changed: it is still the one that was captured.
        assert {row["layer"] for row in shown["read"]["firing"]} == {0}
        assert list(shown["closed"]) == ["1"]
        assert "The weights at hand are not those that layer 1 was captured with" in shown["closed"]["1"]
        page = words(ask(asking, address, "/text", text=text, layer="1", neurons="1:5")[1])
    assert "The weights at hand are not those that layer 1 was captured with" in page
    assert "What fires most" not in page


def test_without_the_model_the_page_says_so_and_all_others_work(told, served, asking, tmp_path):
    lake = told.lake
    for live, why in (
        (Live(), "No model was given"),
        (Live(lambda: HuggingFaceSubject(str(tmp_path / "gone"))), "The model is not at hand"),
    ):
        with served(Explorer(Kept(lake), Staleness(lake, None), told.home, tmp_path, {}, None, live).app()) as address:
            status, shown = ask(asking, address, text="a text")
            assert (status, shown["read"]) == (200, None)
            assert why in shown["why"]
            assert why in words(ask(asking, address, "/text", text="a text")[1])
            assert asking(f"{address}/1/5")[0] == 200


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"text": "a", "neurons": "5"}, "'5' is no neuron; write layer:neuron, such as 5:131."),
        ({"text": "a", "neurons": "1:999"}, "There is no neuron 1:999 in this lake."),
        ({"text": "a", "neurons": " ".join(f"0:{one}" for one in range(13))}, "names 13 of them; give at most 12"),
        ({"text": "a", "layer": "7"}, "There is no layer 7 in this lake."),
        ({"text": "a", "layer": "x"}, "layer (='x') must be a whole number."),
        ({"text": "a", "order": "luck"}, "order (='luck') must be one of share, z."),
        ({"text": "a" * (MOST_LETTERS + 1)}, "The text has 4,001 letters; give at most 4,000."),
    ],
)
def test_what_cannot_be_asked_is_said(told, at, asking, query, said):
    with at(told) as address:
        status, shown = ask(asking, address, **query)
    assert status == 400
    assert said in shown["error"]


def test_nothing_is_asked_of_the_model_without_a_text_and_looking_changes_nothing(told, at, asking):
    before = told.versions()
    with at(told) as address:
        shown = ask(asking, address, text=" \r\n ")[1]
        assert (shown["read"], shown["why"]) == (None, None)
        assert ask(asking, address, text="the " * 900)[1]["read"]["left_out"] > 0
        page = ask(asking, address, "/text", text="<script>alert(1)</script>\r\nend", lang="fr")[1]
    assert "<script>alert(1)" not in page
    assert "Ce qui s&#39;active le plus" in page
    # The text stands in links that keep it, as it was given.
    assert "text=%3Cscript%3E" in page
    assert told.versions() == before


def test_one_text_at_a_time_and_few_wait():
    import threading

    free, begun = threading.Event(), threading.Event()

    def slow():
        begun.set()
        free.wait(10)
        return "a model"

    live = Live(slow)
    with pytest.raises(BusyError, match="being loaded"):
        live.use(lambda _: None, patience=0)
    begun.wait(10)
    for _ in range(3):
        with pytest.raises(BusyError, match="being loaded"):
            live.use(lambda _: None, patience=0.01)
    free.set()
    assert live.use(lambda model: model, patience=10) == "a model"
    live.close()
    with pytest.raises(NotAtHandError, match="No model"):
        Live().use(lambda _: None)
