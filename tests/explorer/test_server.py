"""The explorer over HTTP: every number on a page is the one in the table, and nothing is changed by looking."""

import html
import json
import re

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from explorer import neuron_page, simulated
from explorer.cli import main
from explorer.heat import heat, overlaid
from explorer.kept import Kept
from explorer.server import Explorer
from explorer.staleness import Staleness
from pipeline.provenance import frame_hash
from pipeline.tables import TABLES


@pytest.fixture(scope="module")
def lake(told):
    return told.lake


@pytest.fixture(scope="module")
def address(told, lake, served, tmp_path_factory):
    explorer = Explorer(
        Kept(lake), Staleness(lake, None), told.home, tmp_path_factory.mktemp("files"), {"lake": "a lake"}
    )
    with served(explorer.app()) as address:
        yield address


@pytest.fixture(scope="module")
def get(asking):
    return asking


def words(page):
    """What a page says, without its markup."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)))


def test_every_score_of_a_neuron_is_on_its_page_by_its_own_scorer_as_in_the_table(address, lake, get):
    status, page = get(f"{address}/1/5")
    shown = json.loads(get(f"{address}/1/5.json")[1])
    assert status == 200
    said = words(page)
    found = {
        (one["explanation_id"], simulator["simulator"], line["scorer"], cell["split"]): cell
        for one in shown["explanations"]
        for simulator in one["simulators"]
        for line in simulator["scores"]
        for cell in line["cells"]
    }
    rows = lake.read("scores", layer=1, neurons=[5])
    assert len(found) == len(rows)
    for row in rows.iter_rows(named=True):
        cell = found[row["explanation_id"], row["simulator"], row["scorer"], row["split"]]
        for name in (
            "value",
            "ci_low",
            "ci_high",
            "n_sequences",
            "n_tokens",
            "n_failed",
            "missing_because",
            "p_value",
            "token_lookup",
        ):
            assert cell[name] == row[name]
        assert f"{row['value']:.3f}".replace("-", "−") in said
        assert row["scorer"] in said


def test_explanations_are_ranked_and_say_by_whom_how_and_when(address, get):
    shown = json.loads(get(f"{address}/1/5.json")[1])
    values = [neuron_page.main(one) for one in shown["explanations"]]
    assert values == sorted(values, reverse=True)
    (model,) = [one for one in shown["explanations"] if one["explainer"] == "scripted"]
    said = words(get(f"{address}/1/5")[1])
    for part in (
        model["text"],
        "token-activation-pairs",
        model["made_at"][:10],
        model["prompt_hash"].partition(":")[2][:12],
    ):
        assert part in said
    # Two texts that are alike are asked about once.
    assert 7 <= model["cost"]["requests"] <= 11
    gain = neuron_page.main(model) - neuron_page.main(
        next(o for o in shown["explanations"] if o["method"] == "token-lookup")
    )
    assert f"context gain {gain:+.3f}".replace("-", "−") in said


def test_the_prompt_and_the_reply_are_shown_word_for_word(address, lake, get):
    shown = json.loads(get(f"{address}/1/5.json")[1])
    (model,) = [one for one in shown["explanations"] if one["explainer"] == "scripted"]
    (call,) = lake.read("language_calls").filter(pl.col("request_id") == model["request_id"]).iter_rows(named=True)
    page = html.unescape(get(f"{address}/1/5")[1])
    assert call["reply"] in page
    for role, content in json.loads(call["request"])["messages"]:
        # Its first line; control characters of the corpus are shown as symbols.
        assert f'<p class="role">{role}</p>' in page
        assert content.split("\n")[0] in page


def test_a_refused_explanation_is_said_to_be_missing_with_the_reason_and_never_a_number(address, get):
    shown = json.loads(get(f"{address}/1/6.json")[1])
    (model,) = [one for one in shown["explanations"] if one["explainer"] == "scripted"]
    assert (model["text"], model["missing_because"]) == (None, "refused")
    assert neuron_page.main(model) is None
    assert shown["explanations"][-1] is model or shown["explanations"][-1] == model
    said = words(get(f"{address}/1/6")[1])
    assert "No explanation: the language model declined to answer" in said
    assert "undefined: the language model declined to answer" in said


def test_a_dead_neuron_says_so(address, get):
    said = words(get(f"{address}/0/3")[1])
    assert "Neuron 0:3 dead" in said
    assert "the neuron never fires on this corpus in this polarity" in said


def test_texts_are_those_of_the_table_on_one_scale(address, lake, get):
    shown = json.loads(get(f"{address}/1/5.json")[1])
    rows = lake.read("activations", layer=1, neurons=[5])
    (side,) = shown["texts"]
    most = lake.read("neuron_statistics", layer=1, neurons=[5]).item(0, "maximum")
    assert side["maximum"] == most
    for group in side["groups"]:
        wanted = rows.filter(pl.col("stratum") == group["stratum"])
        assert sum(record["copies"] for record in group["records"]) == len(wanted)
        for record in group["records"]:
            (row,) = wanted.filter(pl.col("rank") == record["rank"]).iter_rows(named=True)
            assert record["activations"] == row["activations"]
            assert record["steps"] == [min(10, int(10 * max(0.0, value) / most)) for value in row["activations"]]
    bounds = lake.read("neuron_statistics", layer=1, neurons=[5]).item(0, "quantile_boundaries").to_list()
    (q1,) = [group for group in side["groups"] if group["stratum"] == "q1"]
    assert (q1["from"], q1["to"]) == (bounds[0], bounds[1])


def test_a_simulation_stands_beside_the_neuron_and_its_worst_tokens_come_first(address, lake, get):
    shown = json.loads(get(f"{address}/1/5.json")[1])["compared"]
    rows = lake.read("simulations", layer=1, neurons=[5]).filter(pl.col("explanation_id") == shown["explanation_id"])
    assert [record["true"] for record in shown["records"]] == [
        row["true"]
        for stratum in ("top", "random")
        for row in rows.filter(pl.col("stratum") == stratum).sort("rank").iter_rows(named=True)
    ]
    assert shown["unit"] == "scaled"
    for record in shown["records"]:
        for value, expected in zip(record["in_units"], record["expected"], strict=True):
            assert value == pytest.approx(expected * shown["scale_maximum"] / 10)
    differences = [abs(one["difference"]) for one in shown["worst"]]
    assert differences == sorted(differences, reverse=True)
    worst = max(
        abs(value - true)
        for record in shown["records"]
        for value, true in zip(record["in_units"], record["true"], strict=True)
    )
    assert differences[0] == pytest.approx(worst)


@pytest.mark.parametrize(
    "query", ["", "?view=overlay", "?view=difference", "?scale=own&view=overlay", "?ws=1", "?view=nonsense"]
)
@pytest.mark.parametrize("language", ["en", "fr"])
def test_every_state_of_the_page_can_be_shown(address, query, language, get):
    for neuron in ("1/5", "1/6", "0/3"):
        status, page = get(f"{address}/{neuron}{query}", **{"Accept-Language": language})
        assert status == 200
        assert f'<html lang="{language}"' in page


def test_an_explanation_in_the_address_is_the_one_compared(address, get):
    shown = json.loads(get(f"{address}/1/5.json")[1])
    for one in shown["explanations"]:
        other = json.loads(get(f"{address}/1/5.json?x={one['explanation_id']}")[1])
        assert other["compared"]["explanation_id"] == one["explanation_id"]
        assert other["compared"]["fitted"] == (one["method"] == "token-linear")
    status, page = get(f"{address}/1/5?x=0123")
    assert status == 404
    assert "This neuron has no explanation 0123." in words(page)


def test_every_token_of_a_text_has_its_bytes_id_and_value(address, lake, get):
    row = lake.read("activations", layer=1, neurons=[5]).row(0, named=True)
    window = lake.read("sequences").filter(pl.col("sequence_id") == row["sequence_id"]).row(0, named=True)
    shown = json.loads(get(f"{address}/1/5/{row['sequence_id']}.json")[1])
    assert [token["activation"] for token in shown["tokens"]] == row["activations"]
    assert [token["token_id"] for token in shown["tokens"]] == window["token_ids"]
    assert [bytes.fromhex(token["bytes"]) for token in shown["tokens"]] == window["token_bytes"]
    status, page = get(f"{address}/1/5/{row['sequence_id']}")
    assert status == 200
    assert window["token_bytes"][0].hex() in page


def test_where_it_came_from_is_the_record_that_the_rows_name(address, lake, get):
    shown = json.loads(get(f"{address}/1/5.json")[1])
    chain = {hop["table"]: hop for hop in shown["chain"]}
    for table in ("explanations", "simulations", "scores"):
        assert {chain[table]["run_id"]} == set(lake.read(table, layer=1, neurons=[5]).get_column("run_id"))
        assert chain[table]["alone"]
    said = words(get(f"{address}/1/5")[1])
    assert "neuronledger run --neurons 1:5 --lake 'a lake'" in said
    assert lake.read("subject_layers", layer=1).item(0, "fingerprint") in said


def test_the_lines_of_python_on_the_page_read_what_it_shows(address, lake, get):
    line = json.loads(get(f"{address}/1/5.json")[1])["commands"]["read"]
    found = {}
    exec(line, found)
    for table in neuron_page.PARTS:
        assert frame_hash(found["tables"][table], key=TABLES[table].key) == frame_hash(
            lake.read(table, layer=1, neurons=[5]), key=TABLES[table].key
        )


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/1/999", "There is no neuron 1:999. Layer 1 has neurons 0 to"),
        ("/77/0", "There is no layer 77 in this lake. It has layers 0, 1."),
        ("/1/-1", "'-1' is no index of a layer or a neuron"),
        ("/1/5%20OR%201=1", "'5 OR 1=1' is no index"),
        ("/1/%D9%A5", "is no index of a layer or a neuron"),
        ("/99999999999/0", "is no index of a layer or a neuron"),
        ("/4294967296/0", "is no index of a layer or a neuron"),
        ("/1/5/zz..%22", "is no name of a text"),
        ("/1/5/ffffffffffffffff", "keeps no record of neuron 1:5 on text ffffffffffffffff"),
        ("/static/..%2Fserver.py", "'static' is no index"),
        ("/static/server.py", "There is no file server.py"),
        ("/nothing/of/the/kind", "There is no such page"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_without_a_trace_of_the_code(address, path, said, get):
    status, page = get(address + path)
    assert status == 404
    assert said in words(page)
    assert "Traceback" not in page
    if not path.startswith("/static"):
        assert json.loads(get(f"{address}{path}.json")[1])["error"]


def test_looking_changes_nothing(told, address, get):
    before = told.versions()
    for path in ("/1/5", "/1/6", "/0/3", "/help", "/1/5.json"):
        assert get(address + path)[0] == 200
    assert told.versions() == before


def test_an_empty_lake_says_what_makes_neurons(empty, served, tmp_path, get):
    lake = empty.lake
    with served(Explorer(Kept(lake), Staleness(lake, None), tmp_path, tmp_path).app()) as address:
        status, page = get(f"{address}/0/0")
        assert status == 404
        assert "This lake has no neurons yet. `neuronledger run` makes them." in words(page)


@pytest.mark.parametrize("damaged", ["scores of 0/5", "activations of 1/6"])
def test_a_damaged_table_is_said_and_the_server_goes_on(copied, served, tmp_path, get, damaged):
    lake, (table, _, neuron) = copied.lake, damaged.split()
    with served(Explorer(Kept(lake), Staleness(lake, None), tmp_path, tmp_path).app()) as address:
        assert get(f"{address}/1/5")[0] == 200
        for path in (copied.home / "lake" / "subject" / table).rglob("*.parquet"):
            path.write_bytes(b"PAR1 no more")
        # What was read before the damage is right, and may still be shown.
        status, page = get(f"{address}/{neuron}")
        assert status == 500
        assert table in words(page)
        assert "Traceback" not in page
        assert get(f"{address}/help")[0] == 200


def test_where_nothing_can_be_written_everything_is_shown(lake, served, tmp_path, get):
    (tmp_path / "file").write_text("no folder")
    with served(Explorer(Kept(lake), Staleness(lake, None), tmp_path, tmp_path / "file" / "explorer").app()) as address:
        for path in ("/", "/1", "/1/5", "/search?q=a", "/random", "/1/3/similar"):
            assert get(f"{address}{path}")[0] == 200, path


def test_staleness_names_the_cause_and_forgets_it_when_something_is_written(copied, served):
    from explorer.cli import _looking
    from resources.settings import load

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copied.home)
        settings = load()
        lake = copied.lake
        staleness = Staleness(lake, _looking(settings, lake))
        assert staleness.of(0, patience=60).status == "fresh"
        with (copied.home / "corpus.jsonl").open("a") as corpus:
            corpus.write(json.dumps({"text": "one more text than there was before"}) + "\n")
        # What was found stays until something is written.
        assert staleness.of(0).status == "fresh"
        found = Staleness(lake, _looking(settings, lake)).of(0, patience=60)
        assert found.status == "stale"
        assert found.causes[0]["table"] == "sequences"
        assert "the corpus" in found.causes[0]["cause"]
    (copied.home / "subject" / "config.json").unlink()
    gone = Staleness(lake, _looking(settings, lake)).of(0, patience=60)
    assert gone.status == "unknown"
    assert "subject" in gone.why


def test_the_command_refuses_an_address_that_others_can_reach(made):
    result = made.type("explore", "--host", "0.0.0.0", "--port", "0")
    assert result.exit_code == 2
    assert "set NEURONLEDGER_TOKEN to a secret of 16 letters" in result.stderr
    assert CliRunner().invoke(main, ["explore", "--help"]).exit_code == 0


def test_a_token_that_the_simulator_left_out_is_neither_silent_nor_a_hit():
    values = np.array([np.nan, 1.0])
    assert simulated.steps(values, 1.0) == [None, 10]
    assert simulated.differences(values, [1.0, 1.0], 1.0) == [None, 0]
    assert simulated.differences(values, [0.0, 0.0], 0.0) == [None, 0]
    assert heat(["a", "b"], [None, 0]) == "<u class=unknown>a</u>b"
    assert overlaid(["a", "b"], [3, 0], [None, 0]) == '<u class="k3 unknown">a</u>b'
