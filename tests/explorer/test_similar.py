"""Similar neurons on their page: who fires on the same windows, has the same weights, is said to do the same."""

import html
import json
import re

import polars as pl
import pytest

from explorer.kept import Kept
from explorer.server import Explorer
from explorer.staleness import Staleness


@pytest.fixture(scope="module")
def address(told, served, tmp_path_factory):
    lake = told.lake
    with served(
        Explorer(Kept(lake), Staleness(lake, None), told.home, tmp_path_factory.mktemp("files")).app()
    ) as address:
        yield address


def words(page):
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_neurons_that_share_strongest_windows_are_counted_as_the_tables_have_them(told, address, asking):
    shown = json.loads(asking(f"{address}/1/5/similar.json")[1])
    top = (pl.col("stratum") == "top") & (pl.col("peak") > 0)
    rows = pl.concat([told.table("activations", layer=layer).filter(top) for layer in (0, 1)])
    own = rows.filter((pl.col("layer") == 1) & (pl.col("neuron") == 5))
    own = dict(own.select("sequence_id", "peak_token").iter_rows())
    (side,) = shown["together"]
    assert shown["layers"] == [0, 1]
    assert side["of"] == len(own)
    for one in side["rows"]:
        theirs = rows.filter((pl.col("layer") == one["layer"]) & (pl.col("neuron") == one["neuron"]))
        theirs = dict(
            theirs.filter(pl.col("polarity") == one["polarity"]).select("sequence_id", "peak_token").iter_rows()
        )
        assert one["windows"] == len(own.keys() & theirs.keys())
        assert one["peaks"] == sum(theirs.get(name) == place for name, place in own.items())
        assert (one["layer"], one["neuron"]) != (1, 5)


def test_weights_and_words_name_others_with_links_and_what_they_mean(told, address, asking):
    shown = json.loads(asking(f"{address}/1/5/similar.json")[1])
    assert all(-1 <= one["cosine"] <= 1 for rows in shown["weights"].values() for one in rows or ())
    (said,) = shown["said"]
    best = next(
        one for one in json.loads(asking(f"{address}/1/5.json")[1])["explanations"] if one["explainer"] == "scripted"
    )
    assert said["text"] == best["text"]
    status, page = asking(f"{address}/1/5/similar")
    assert status == 200
    assert "Compared with the neurons of layers 0, 1." in words(page)
    assert "The lake keeps no joint activations" in words(page)
    assert 'lang="fr"' in asking(f"{address}/1/5/similar?lang=fr")[1]


def test_the_words_of_a_token_list_are_held_against_token_lists(told, address, asking):
    shown = json.loads(asking(f"{address}/0/0/similar.json")[1])
    (said,) = shown["said"]
    assert said["method"] in ("token-lookup", "token-linear")
    assert {one["method"] for one in said["rows"]} <= {said["method"]}
    assert (0, 0) not in {(one["layer"], one["neuron"]) for one in said["rows"]}


def test_a_dead_neuron_and_one_that_is_not_there_are_said(address, asking):
    status, page = asking(f"{address}/0/3/similar")
    assert status == 200
    assert "The lake keeps no window that it fires on." in words(page)
    assert asking(f"{address}/1/999/similar")[0] == 404


def test_a_gated_neuron_is_compared_on_both_sides_and_has_no_input_weights(gated, served, asking, tmp_path):
    lake = gated.lake
    with served(Explorer(Kept(lake), Staleness(lake, None), gated.home, tmp_path).app()) as address:
        shown = json.loads(asking(f"{address}/0/0/similar.json")[1])
    assert [side["polarity"] for side in shown["together"]] == ["+", "-"]
    said = gated.table("explanations").filter(method="token-lookup").iter_rows(named=True)
    own = {(row["layer"], row["neuron"], row["polarity"]): row["text"] for row in said}
    rows = [row for side in shown["together"] for row in side["rows"]]
    assert rows
    assert [row["text"] for row in rows] == [own[row["layer"], row["neuron"], row["polarity"]] for row in rows]
    assert shown["weights"]["input"] is None
