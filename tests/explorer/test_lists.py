"""Home, layers and searches: counts and order are those of the tables, and every state has an address."""

import json
import re

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer.index import FilterError, Filters, index, query, spread
from explorer.kept import Kept
from explorer.lists import curated
from explorer.server import Explorer
from explorer.staleness import Staleness
from pipeline.errors import SettingsError
from pipeline.summary import MAIN


@pytest.fixture(scope="module")
def get(address, asking):
    return lambda path, **headers: asking(address + path, **headers)


def shown(get, path):
    status, body = get(path)
    assert status == 200, body
    return json.loads(body)


def test_the_first_page_counts_what_the_tables_hold(get, told):
    found = {row["layer"]: row for row in shown(get, "/index.json")["layers"]}
    numbers = told.table("neuron_statistics")
    for layer in (0, 1):
        mine = numbers.filter(pl.col("layer") == layer)
        assert found[layer]["captured"] == len(mine)
        assert found[layer]["dead"] == mine.get_column("dead").sum()
        assert sum(found[layer][state] for state in ("explained", "not_explained", "failed", "dead")) == len(mine)
        lookup = told.table("scores", layer=layer).filter(MAIN & (pl.col("method") == "token-lookup"))
        assert found[layer]["lookup_median"] == pytest.approx(lookup.get_column("value").median())
        assert sum(found[layer]["lookup_spread"]) == lookup.get_column("value").count()
    assert (found[1]["explained"], found[1]["failed"]) == (1, 1)
    assert (found[0]["explained"], found[0]["failed"]) == (0, 0)


def test_the_first_page_says_what_failed_what_it_cost_and_what_is_worth_a_look(get, told):
    found = shown(get, "/index.json")
    assert {"table": "explanations", "reason": "refused", "sentence": "the language model declined to answer", "count": 1} in (
        found["failures"]
    )  # fmt: skip
    calls = told.table("language_calls")
    assert found["cost"]["requests"] == len(calls)
    assert found["cost"]["prompt_tokens"] == calls.get_column("prompt_tokens").sum()
    # The price of a scripted model is not known, and what is not known is not zero.
    assert found["cost"]["usd"] is None
    assert [(row["layer"], row["neuron"]) for row in found["interesting"]["best"]] == [(1, 5)]
    best = [row["value"] for row in found["interesting"]["lookup_best"]]
    assert best == sorted(best, reverse=True)
    status, page = get("/")
    assert status == 200
    assert "not known" in page
    assert "the language model declined to answer" in page


def test_a_layer_lists_every_neuron_once_sorted_as_asked(get, told):
    rows = shown(get, "/1.json?sort=maximum")["rows"]
    numbers = told.table("neuron_statistics", layer=1)
    assert [row["maximum"] for row in rows] == numbers.get_column("maximum").sort(descending=True).to_list()
    assert sorted(row["neuron"] for row in rows) == numbers.get_column("neuron").to_list()
    ascending = [row["maximum"] for row in shown(get, "/1.json?sort=maximum&order=up")["rows"]]
    assert ascending == [row["maximum"] for row in reversed(rows)]
    # By score, what has none comes last in both directions.
    for order in ("up", "down"):
        values = [row["value"] for row in shown(get, f"/1.json?sort=score&order={order}")["rows"]]
        known = [value for value in values if value is not None]
        assert values[: len(known)] == sorted(known, reverse=order == "down")


def test_filters_and_their_counts_agree(get):
    everything = shown(get, "/1.json")
    for facet, values in everything["facets"].items():
        assert sum(count for _, count in values) == everything["count"]
        for value, count in values:
            assert shown(get, f"/1.json?{facet}={value}")["count"] == count
    assert [row["neuron"] for row in shown(get, "/1.json?state=failed")["rows"]] == [6]
    half = shown(get, "/1.json?least=0.5")
    assert all(row["value"] >= 0.5 for row in half["rows"])
    assert half["count"] + shown(get, "/1.json?most=0.4999999")["count"] == sum(
        row["value"] is not None for row in everything["rows"]
    )


def test_a_search_finds_explanations_by_their_words_and_tokens(get, told):
    texts = told.table("explanations").filter(pl.col("method") == "token-lookup").drop_nulls("text")
    word = re.search(r'"([a-z]{4,})"', texts.item(0, "text"))[1]
    found = shown(get, f"/search.json?q={word}&method=token-lookup")
    assert (texts.item(0, "layer"), texts.item(0, "neuron")) in {(row["layer"], row["neuron"]) for row in found["rows"]}
    assert all(word in row["text"].lower() for row in found["rows"])
    assert shown(get, "/search.json?q=zzzzzzzz")["rows"] == []
    assert shown(get, f"/search.json?q={word[:3]}")["count"] >= found["count"]


def test_a_neuron_in_the_search_box_is_gone_to(get):
    for name in ("1:5", "1/5", "%201:5%20"):
        status, page = get(f"/search?q={name}")
        assert status == 200
        assert "<h1>Neuron 1:5" in page


def test_a_random_neuron_passes_the_filters(get):
    for _ in range(3):
        assert "<h1>Neuron 1:6" in get("/random?layer=1&state=failed")[1]
    status, page = get("/random?state=failed&layer=0")
    assert status == 404
    assert "No neuron passes these filters." in page


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/1?sort=identity", "sort (=&#39;identity&#39;) must be one of neuron, score"),
        ("/1?least=nan", "least (=&#39;nan&#39;) must be a number"),
        ("/1?least=1e999", "must be a number"),
        ("/1?state=drop", "state (=&#39;drop&#39;) must be one of"),
        ("/1?page=-1", "page (=&#39;-1&#39;) must be a whole number"),
        ("/search?layer=x", "layer (=&#39;x&#39;) must be a whole number"),
    ],
)
def test_a_filter_that_is_none_is_said(get, path, said):
    status, page = get(path)
    assert status == 400
    assert said in page


@settings(max_examples=60)
@given(st.text(max_size=30))
def test_no_words_are_syntax_of_the_search(told_index, words):
    found = told_index.find(words)
    assert found.columns == [*told_index.explanations.columns, "match"]
    assert query(words) or found.is_empty()


@pytest.fixture(scope="module")
def told_index(told, tmp_path_factory):
    return index(Kept(told.lake), tmp_path_factory.mktemp("index"))


def test_what_is_searched_for_is_words():
    assert query('say "hello" -NOT (world)*') == '"say" "hello" "NOT" "world"*'
    assert query("'; DROP TABLE") == '"DROP" "TABLE"*'
    assert query("!!!") == ""


def test_the_index_is_made_again_when_something_was_written_and_only_then(copied, tmp_path):
    files = tmp_path / "files"
    kept = Kept(copied.lake)
    before = index(kept, files)
    assert index(kept, files) is before
    (made,) = [file.stat().st_mtime_ns for file in files.iterdir()]
    # Another start finds the file there.
    index(Kept(copied.lake), files)
    assert [file.stat().st_mtime_ns for file in files.iterdir()] == [made]
    rows = copied.table("explanations", layer=1, neurons=[5]).with_columns(text=pl.lit("words about a xylophone"))
    copied.lake.replace("explanations", rows, layer=1, neurons=[5], record={})
    after = index(kept, files)
    assert after is not before
    assert set(after.find("xylophones").get_column("neuron")) == {5}
    assert len(list(files.iterdir())) == 1


def test_scores_are_spread_over_all_that_they_can_be():
    assert spread([-1.0, 1.0, 0.0, None, 0.99, -3.0]) == [2, *[0] * 9, 1, *[0] * 8, 2]


def test_filters_are_read_from_an_address_and_cut_short():
    assert Filters.of({"q": " a " + "b" * 500, "least": "0.5", "other": "x"}) == Filters(
        q="a " + "b" * 197, least="0.5"
    )
    with pytest.raises(FilterError):
        Filters(least="half").expression()


def test_lists_of_neurons_come_from_a_file(tmp_path, told, served, asking):
    assert curated(tmp_path) == []
    (tmp_path / "neuronledger-lists.toml").write_text('[[list]]\nname = "<b>Ours</b>"\nneurons = ["1:5", "0:3"]\n')
    assert curated(tmp_path) == [{"name": "<b>Ours</b>", "note": "", "neurons": [(1, 5), (0, 3)]}]
    lake = told.lake
    with served(Explorer(Kept(lake), Staleness(lake, None), tmp_path, tmp_path / "files").app()) as address:
        page = asking(f"{address}/")[1]
        assert "&lt;b&gt;Ours&lt;/b&gt;" in page
        (tmp_path / "neuronledger-lists.toml").write_text('[[list]]\nneurons = ["1:x"]\n')
        status, page = asking(f"{address}/")
    assert status == 500
    assert "must hold tables `[[list]]` with `name` and `neurons`" in page
    with pytest.raises(SettingsError, match="must hold tables"):
        curated(tmp_path)
