"""How a neuron was: older states are those of the tables, say that they are old, and stay among themselves."""

import html
import json
import re

import polars as pl
import pytest

from explorer.history import why
from explorer.moments import LakeThen, moment
from explorer.neuron_page import PARTS
from pipeline.errors import LakeError, SettingsError
from pipeline.provenance import frame_hash
from pipeline.tables import TABLES


@pytest.fixture(scope="module")
def lake(told):
    return told.lake


@pytest.fixture(scope="module")
def earlier(told):
    """The run that made the last table of layer 1, before a language model explained 1:5."""
    scored = told.table("materializations").filter((pl.col("table") == "scores") & (pl.col("layer") == 1))
    return scored.sort("finished_at").get_column("run_id")[0]


@pytest.fixture(scope="module")
def before(told, earlier):
    """The runs up to that one: a command makes one for each of its steps."""
    records = told.table("materializations").sort("finished_at")
    last = records.filter(pl.col("run_id") == earlier).get_column("finished_at").max()
    return set(records.filter(pl.col("finished_at") <= last).get_column("run_id"))


@pytest.fixture(scope="module")
def get(address, asking):
    return lambda path, **headers: asking(address + path, **headers)


def shown(get, path):
    status, body = get(path)
    assert status == 200, body
    return json.loads(body)


def words(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)))


def test_an_older_page_shows_the_rows_that_there_were(get, lake, earlier, before):
    then = moment(lake, earlier)
    old, new = shown(get, f"/1/5.json?v={earlier}"), shown(get, "/1/5.json")
    assert old["then"]["run_id"] == earlier
    assert "then" not in new
    ids = {one["explanation_id"] for one in old["explanations"]}
    rows = lake.read("explanations", layer=1, neurons=[5], version=then.versions["explanations"])
    assert ids == set(rows.get_column("explanation_id"))
    assert "scripted" in {one["explainer"] for one in new["explanations"]}
    assert "scripted" not in {one["explainer"] for one in old["explanations"]}
    scores = lake.read("scores", layer=1, neurons=[5], version=then.versions["scores"])
    cells = [
        cell["value"]
        for one in old["explanations"]
        for simulator in one["simulators"]
        for line in simulator["scores"]
        for cell in line["cells"]
        if cell
    ]
    assert sorted(map(str, cells)) == sorted(map(str, scores.get_column("value")))
    # Records of writes that came later are not told of.
    assert {hop["run_id"] for hop in old["chain"]} <= before


def test_an_older_page_says_so_keeps_to_its_time_and_takes_no_verdict(get, earlier):
    _, page = get(f"/1/5?v={earlier[:8]}")
    assert f"This is how it was, after run {earlier[:8]}" in words(page)
    assert f'href="/1/4?v={earlier[:8]}"' in page
    assert f'href="/1?v={earlier[:8]}"' in page
    assert 'href="/1/5">How it is today' in page
    assert '<form method="post' not in page
    assert "Voici ce qu" in get(f"/1/5?v={earlier[:8]}&lang=fr")[1]
    for path in ("/", "/1", "/search?q=the", "/reviews"):
        status, page = get(f"{path}{'&' if '?' in path else '?'}v={earlier[:8]}")
        assert (status, "This is how it was" in page) == (200, True), path
    row = shown(get, "/1/5.json")["texts"][0]["groups"][0]["records"][0]
    assert "This is how it was" in get(f"/1/5/{row['sequence_id']}?v={earlier[:8]}")[1]


def test_a_moment_is_named_by_a_run_a_time_a_commit_or_the_ledger(get, lake, earlier):
    then = moment(lake, earlier)
    heads = [line.content | {"hash": line.hash} for line, _ in lake.ledger.lines()]
    head = next(
        one["hash"]
        for one in reversed(heads)
        if one.get("table") == "scores" and one["version"] == then.versions["scores"]
    )
    wanted = {one["explanation_id"] for one in shown(get, f"/1/5.json?v={earlier}")["explanations"]}
    time = then.until.isoformat().replace("+", "%2B")
    for said in (earlier[:6], time, f"scores@{then.versions['scores']}", head, head[:20]):
        found = {one["explanation_id"] for one in shown(get, f"/1/5.json?v={said}")["explanations"]}
        assert found == wanted, said


@pytest.mark.parametrize(
    ("said", "answer"),
    [("nothing", "is neither a run of"), ("scores@999", "there is no commit 'scores@999'"), ("nowhere@1", "there is no commit"),
     ("sha256:0000000000", "no line of the ledger"), ("<script>", "is neither a run"), ("ab", "is neither a run")],
)  # fmt: skip
def test_what_names_no_moment_is_said_and_not_taken_along(get, said, answer):
    status, page = get(f"/1/5?v={said}")
    assert status == 400
    assert answer in words(page)
    assert "v=" not in re.search(r'<nav aria-label="Where.*?</nav>', page, re.S)[0]
    assert answer in json.loads(get(f"/1/5.json?v={said}")[1])["error"]


def test_before_a_table_was_made_there_is_nothing(get, lake):
    status, page = get("/1/5?v=2001-01-01")
    assert (status, "This lake has no neurons yet" in page) == (404, True)
    then = LakeThen(lake, moment(lake, "2001-01-01"))
    assert {name: then.rows(name) for name in TABLES} == dict.fromkeys(TABLES, 0)


def test_the_past_is_not_written_to(lake, earlier):
    then = LakeThen(lake, moment(lake, earlier))
    with pytest.raises(LakeError, match="cannot be written to"):
        then.replace("scores", pl.DataFrame(), layer=0, record={})
    with pytest.raises(LakeError, match="cannot be written to"):
        then.add("reviews", pl.DataFrame(), record={})
    with pytest.raises(LakeError, match="had no version 1000000 yet"):
        then.scan("scores", version=10**6)
    with pytest.raises(SettingsError, match="is neither a run"):
        moment(lake, "..")


def test_the_lines_of_python_on_an_older_page_read_what_it_shows(get, lake, earlier):
    then = moment(lake, earlier)
    found = {}
    exec(shown(get, f"/1/5.json?v={earlier}")["commands"]["read"], found)
    assert set(found["tables"]) == {name for name in PARTS if name in then.versions}
    for table, rows in found["tables"].items():
        wanted = lake.read(table, layer=1, neurons=[5], version=then.versions[table])
        assert frame_hash(rows, key=TABLES[table].key) == frame_hash(wanted, key=TABLES[table].key)


def test_history_tells_what_each_write_changed_by_which_run_and_code(get, told, earlier, before):
    found = shown(get, "/1/5/history.json")
    (model,) = [one for one in shown(get, "/1/5.json")["explanations"] if one["explainer"] == "scripted"]
    explained = [event for event in found["events"] if event["table"] == "explanations"]
    assert [event["run_id"] in before for event in explained] == [False, True]
    assert explained[0]["run_id"] == model["run_id"]
    (change,) = explained[0]["changed"]
    assert (change["by"], change["before"], change["after"]["text"]) == ("scripted", None, model["text"])
    assert explained[0]["code"]["code_version"]
    assert any("explainer" in cause for cause in explained[0]["causes"])
    assert all(one["before"] is None for one in explained[1]["changed"])
    scored = [event for event in found["events"] if event["table"] == "scores"]
    rows = told.table("scores", layer=1, neurons=[5]).filter(
        (pl.col("explanation_id") == model["explanation_id"]) & (pl.col("scorer") == "ev_correlation") & (pl.col("split") == "top_and_random")
    )  # fmt: skip
    assert [one["after"]["value"] for one in scored[0]["changed"]] == rows.get_column("value").to_list()
    said = words(get("/1/5/history")[1])
    assert model["text"] in said
    assert earlier[:8] in said
    # As of the earlier run, only that one is told of.
    assert {event["run_id"] for event in shown(get, f"/1/5/history.json?v={earlier}")["events"]} <= before
    # Another neuron of the layer has nothing of that run.
    assert {event["run_id"] for event in shown(get, "/1/4/history.json")["events"]} <= before
    assert get("/1/999/history")[0] == 404


def test_the_page_of_a_neuron_lists_the_runs_that_wrote_it(get, earlier, before):
    runs = shown(get, "/1/5.json")["history"]
    first = [run for run in runs if run["run_id"] in before]
    assert earlier in {run["run_id"] for run in first}
    assert all(run["first"] and not run["alone"] for run in first)
    alone = [run for run in runs if run["run_id"] not in before]
    assert {one["table"] for run in alone for one in run["tables"]} >= {"explanations", "simulations", "scores"}
    assert any("explainer" in cause for run in alone for cause in run["causes"])
    page = get("/1/5")[1]
    assert f"v={earlier}" in page
    assert "/1/5/history" in page


def test_a_write_is_told_from_the_one_before_by_code_settings_and_what_it_read():
    def row(code, settings, content):
        inputs = {"exemplars": {"version": 3, "content_hash": content}}
        return {
            "code": json.dumps({"code_version": code}),
            "settings": json.dumps(settings),
            "inputs": json.dumps(inputs),
        }

    before = row("1", {"explainer": None, "seed": 0}, "sha256:a")
    assert why(before, None) == []
    assert why(before, before) == []
    assert why(row("2", {"explainer": "gpt", "seed": 0}, "sha256:b"), before) == [
        "its code changed from version 1 to 2", "setting `explainer` changed from None to gpt", "exemplars changed",
    ]  # fmt: skip
