"""What other systems say: on pages of its own, each number as in the table of the import, beside ours where there are ours."""

import html
import json
import re

import polars as pl
import pytest

from explorer.kept import Kept
from explorer.server import Explorer
from explorer.staleness import Staleness

CSV = 'neuron,explanation,author,score\n1:5,"mentions of rivers <script>alert(1)</script>",ann,0.25\n1:7,,ben,\n'


def explored(folder, tmp_path):
    return Explorer(Kept(folder.lake), Staleness(folder.lake, None), folder.home, tmp_path).app()


def words(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)))


@pytest.fixture(scope="module")
def alone(told, empty, tmp_path_factory):
    """A folder with an import that has simulations, and our scores of them; without a model or a neuron of its own."""
    home = tmp_path_factory.mktemp("alone")
    out = home / "out"
    assert told.type("export", "openai", str(out), "--layers", "1").exit_code == 0
    (out / "explanations" / "1" / "2.jsonl").write_text("no JSON")
    folder = type(empty)(home)
    (home / "neuronledger.toml").write_text(
        'subject = "no-such-model"\ncorpus = "no-such-text"\nlake = "lake/subject"\n'
    )
    assert folder.type("import", "openai", str(out)).exit_code == 3
    result = folder.type("run", "--stage", "scores")
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def address(alone, served, tmp_path_factory):
    with served(explored(alone, tmp_path_factory.mktemp("files"))) as found:
        yield found


def test_a_lake_of_imports_alone_shows_them_where_its_own_neurons_would_be(address, asking):
    home = words(asking(f"{address}/")[1])
    assert "openai" in home
    assert "explanations/1/2.jsonl" in home
    for path in ("/1", "/1/5"):
        status, page = asking(f"{address}{path}")
        assert (status, "Nothing was imported" in page) == (200, False)
        assert "openai" in words(page)
    assert json.loads(asking(f"{address}/1/5.json")[1])["sources"][0]["source"] == "openai"
    assert asking(f"{address}/77/0")[0] == asking(f"{address}/77/0/imported")[0] == 404


def test_every_score_of_an_import_is_shown_as_in_its_table_and_says_whose_it_is(address, alone, asking):
    shown = json.loads(asking(f"{address}/1/5/imported.json")[1])
    found = {
        (score["whose"], one["explanation_id"], score["scorer"], score["split"]): score
        for source in shown["sources"]
        for one in source["explanations"]
        for score in one["scores"]
    }
    rows = [
        (whose, row)
        for whose, table in (("theirs", "imported_scores"), ("ours", "common_scores"))
        for row in alone.table(table, layer=1, neurons=[5]).iter_rows(named=True)
    ]
    assert len(rows) == len(found) > 5
    said = words(asking(f"{address}/1/5/imported")[1])
    for whose, row in rows:
        score = found[whose, row["explanation_id"], row["scorer"], row["split"]]
        assert (score["value"], score["missing_because"]) == (row["value"], row["missing_because"])
        assert row["value"] is None or f"{row['value']:.3f}".replace("-", "−") in said


def test_texts_and_simulations_of_an_import_are_those_of_its_tables(address, alone, asking):
    shown = json.loads(asking(f"{address}/1/5/imported.json")[1])
    records = [one for side in shown["texts"] for group in side["groups"] for one in group["records"]]
    rows = alone.table("imported_records", layer=1, neurons=[5])
    tokens = dict(alone.table("imported_sequences").select("sequence_id", "tokens").iter_rows())
    key = ("sequence_id", "rank", "peak")
    assert sorted(tuple(one[name] for name in key) for one in records) == sorted(rows.select(key).iter_rows())
    most = max(max(one["activations"]) for one in records)
    for one in records:
        assert one["tokens"] == tokens[one["sequence_id"]]
        assert one["steps"] == [min(10, int(10 * max(0.0, value) / most)) for value in one["activations"]]
    simulations = alone.table("imported_simulations", layer=1, neurons=[5])
    pairs = [(one["expected"], one["true"]) for one in shown["compared"]["records"]]
    assert sorted(pairs) == sorted(simulations.select("expected", "true").iter_rows())
    for one in shown["compared"]["simulations"]:
        assert one["whose"] == "theirs"
        assert one["count"] == len(simulations.filter(pl.col("explanation_id") == one["explanation_id"]))


@pytest.mark.parametrize("query", ["", "?view=overlay", "?view=difference", "?ws=1", "?lang=fr"])
def test_every_state_of_the_page_can_be_shown(address, query, asking):
    assert asking(f"{address}/1/5/imported{query}")[0] == 200


def test_what_others_say_stands_beside_what_we_say_and_is_found(copied, served, tmp_path, asking):
    (tmp_path / "mine.csv").write_text(CSV)
    assert copied.type("import", "csv", str(tmp_path / "mine.csv")).exit_code == 0
    with served(explored(copied, tmp_path)) as address:
        status, page = asking(f"{address}/1/5")
        assert status == 200
        assert "<script>alert" not in page
        assert "mentions of rivers <script>alert(1)</script> csv" in words(page)
        assert "csv:score 0.250" in words(page)
        (one,) = json.loads(asking(f"{address}/1/5.json")[1])["imported"]
        assert (one["source"], one["explainer"], one["scores"][0]["value"]) == ("csv", "ann", 0.25)
        assert "1 imported explanations hold these words" in words(asking(f"{address}/search?q=RIVERS")[1])
        found = json.loads(asking(f"{address}/imported.json?q=rivers%20mentions")[1])
        assert [(row["layer"], row["neuron"]) for row in found["rows"]] == [(1, 5)]
        assert "The same neuron in this lake" in words(asking(f"{address}/1/5/imported")[1])
