"""The commands `verify` and `why`: what comes out again, which link is named when one does not, and the chain of a score."""

import json
import re
import shutil

import polars as pl
import pytest

from explorer.replay import Records, compared, replay
from explorer.why import as_text, find, why

LINKS = ["weights", "documents", "activations", "exemplars", "explanations", "simulations", "scores"]


def verified(folder, *words):
    result = folder.type("verify", "--json", *words)
    return result.exit_code, {(link["name"], link["at"]): link for link in json.loads(result.stdout)}


def outcomes(links):
    return {name: link["outcome"] for (name, _), link in links.items()}


@pytest.fixture(scope="session")
def replied(made, tmp_path_factory):
    """A made folder in which a scripted language model has explained one neuron, by an endpoint that is gone."""
    import threading
    import time

    import uvicorn

    from explorer.fake_endpoint import FakeEndpoint

    folder = made.copy(tmp_path_factory.mktemp("replied"))
    server = uvicorn.Server(uvicorn.Config(FakeEndpoint({}, seed=0, seconds=0).app(), port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    asking = ("--explainer", "scripted", "--base-url", url)
    methods = ("--methods", "token-activation-pairs,random-explanation,empty")
    assert folder.type("run", "--layers", "0", "--select", "random:2", *methods, *asking).exit_code == 0
    done = folder.type("run", "--neurons", "0:1", *asking)
    server.should_exit = True
    thread.join()
    assert done.exit_code == 0, done.stderr
    return folder


def test_a_neuron_comes_out_again_link_by_link(made):
    code, links = verified(made, "0:1")
    assert code == 0
    assert list(outcomes(links)) == LINKS
    assert set(outcomes(links).values()) == {"equal"}
    assert made.type("verify", "0:1").stdout.splitlines()[-1] == "equal"


def test_all_layers_come_out_again(made):
    code, links = verified(made, "--all", "--recompute", "8")
    assert code == 0
    assert {at for _, at in links if at.startswith("layer")} == {"layer 0", "layer 1"}
    assert {link["outcome"] for link in links.values()} == {"equal"}


def test_prompts_and_replies_of_a_language_model_come_out_again_without_it(replied):
    code, links = verified(replied, "0:1")
    assert code == 0, links
    assert set(outcomes(links).values()) == {"equal"}
    found = replay(replied.lake, Records(replied.lake), "explanations", 0, 1)
    assert len(found.requests) == 1
    assert verified(replied, "--layer", "0")[0] == 0


def test_neurons_that_nobody_asked_about_have_no_rows_too_many(replied):
    explained = replied.table("explanations", layer=0).filter(pl.col("explainer") == "scripted")
    asked = set(explained.get_column("neuron"))
    neurons = set(replied.table("explanations", layer=0).get_column("neuron"))
    for neuron in (min(neurons - asked), min(asked - {1})):
        found = replay(replied.lake, Records(replied.lake), "explanations", 0, neuron)
        assert (found.outcome, found.said) == ("equal", "")


def test_a_reply_that_was_changed_is_named(replied, tmp_path):
    folder = replied.copy(tmp_path)
    rows = folder.table("language_calls")
    shutil.rmtree(folder.home / "lake" / "subject" / "language_calls")
    reply = pl.col("reply").str.replace(r'("explanation": ?")', "${1}not ")
    folder.lake.add("language_calls", rows.with_columns(reply), record={})
    code, links = verified(folder, "0:1")
    assert code == 1
    assert outcomes(links)["explanations"] == "differs"
    said = folder.type("verify", "0:1").stdout.splitlines()[-1]
    assert said.startswith("The first broken link is explanations of 0:1")


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("scores", "value", 0.5),
        ("scores", "ci_low", 0.25),
        ("simulations", "coverage", 0.5),
        ("explanations", "text", "something else"),
        ("exemplars", "scale_maximum", 3.0),
    ],
)
def test_a_number_or_word_that_was_changed_names_its_link(copied, table, column, value):
    lake = copied.lake
    rows = lake.read(table, layer=0)
    changed = (
        pl.when((pl.col("neuron") == 1) & pl.col(column).is_not_null()).then(pl.lit(value)).otherwise(pl.col(column))
    )
    lake.replace(table, rows.with_columns(changed.cast(rows.schema[column]).alias(column)), layer=0, record={})
    code, links = verified(copied, "0:1")
    assert code == 1
    assert outcomes(links)[table] == "differs"
    assert f"`{column}`" in links[table, "0:1"]["said"]


def test_an_activation_that_was_changed_is_found_where_it_is_run_again(copied):
    lake = copied.lake
    rows = lake.read("activations", layer=1)
    up = pl.when((pl.col("neuron") == 2) & (pl.col("rank") == 0)).then(pl.col("peak") * 1.001).otherwise(pl.col("peak"))
    lake.replace("activations", rows.with_columns(up.cast(pl.Float32).alias("peak")), layer=1, record={})
    _, links = verified(copied, "1:2")
    assert outcomes(links)["activations"] == "differs"
    assert links["activations", "1:2"]["neurons"] == [2]


def test_another_model_of_the_same_shape_is_found(copied, planted):
    file = copied.home / "subject" / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-5] ^= 1
    file.write_bytes(whole)
    code, links = verified(copied, "--all")
    assert code == 1
    assert links["weights", "layer 0"]["outcome"] == "differs" or links["weights", "layer 1"]["outcome"] == "differs"


def test_what_is_not_at_hand_is_not_called_equal(copied):
    shutil.rmtree(copied.home / "subject")
    (copied.home / "corpus.jsonl").unlink()
    code, links = verified(copied, "0:1")
    assert code == 0
    assert [outcomes(links)[name] for name in LINKS] == ["not checked"] * 3 + ["equal"] * 4
    said = copied.type("verify", "0:1").stdout.splitlines()[-1]
    assert said.startswith("equal, but for what was not checked: weights of layer 0; ")


def test_documents_that_changed_are_found(copied):
    path = copied.home / "corpus.jsonl"
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[1:]) + "\n", encoding="utf-8")
    code, links = verified(copied, "--layer", "0")
    assert code == 1
    assert links["documents", "all"]["said"].startswith("1 of 60 documents are not in the corpus any more")


def test_wrong_use_exits_with_2(made):
    assert made.type("verify").exit_code == 2
    assert made.type("verify", "0:1", "--all").exit_code == 2
    nobody = made.type("verify", "0:999")
    assert nobody.exit_code == 2
    assert "neuron 0:999 is not in the lake" in nobody.stderr


def test_a_zero_with_another_sign_is_no_equal_number(made):
    rows = made.table("scores", layer=0, neurons=[1]).head(1).with_columns(pl.lit(0.0).alias("value"))
    other = rows.with_columns(pl.lit(-0.0).alias("value"))
    assert compared("scores", rows, rows) == ((), "")
    assert compared("scores", rows, other)[0] == (1,)


def test_the_chain_of_a_score_leads_to_files_and_is_the_same_by_any_name(replied):
    lake = replied.lake
    row = find(lake, "0:1", layer=0, neuron=1)
    assert find(lake, row["identity"]) == row
    assert find(lake, row["identity"].removeprefix("sha256:")[:16]) == row
    hops = why(lake, row)
    said = as_text(hops)
    assert [hop.name for hop in hops][:6] == ["score", "simulations", "explanation", "exemplars", "documents", "model"]
    assert row["explanation_id"] == hops[0].facts["explanation_id"]
    assert "model.safetensors (sha256:" in said
    assert re.search(r"whose bytes have the hash sha256:[0-9a-f]{64} by the ledger", said)
    assert hops[-1].facts["hash"] is not None


def test_the_chain_holds_prompt_and_reply_word_for_word(replied):
    lake = replied.lake
    rows = lake.read("scores", layer=0, neurons=[1]).filter(pl.col("simulator") == "scripted")
    hops = {hop.name: hop for hop in why(lake, rows.row(0, named=True))}
    calls = lake.read("language_calls")
    (request,) = hops["explanation"].facts["requests"]
    stored = calls.filter(pl.col("request_id") == request["request_id"]).row(0, named=True)
    assert (request["request"], request["reply"]) == (stored["request"], stored["reply"])
    assert len(hops["simulations"].facts["requests"]) == len(hops["simulations"].facts["simulations"])


def test_why_is_typed_with_an_identity_or_a_neuron_and_says_when_there_is_none(made):
    result = made.type("why", "0:1")
    assert result.exit_code == 0
    assert result.stdout.startswith("Neuron 0:1 has the score ")
    assert json.loads(made.type("why", "0:1", "--json").stdout)[0]["name"] == "score"
    assert "no score of the lake" in made.type("why", "sha256:" + 64 * "0").stderr
    assert "is no score; give its identity" in made.type("why", "abc").stderr


def test_where_nothing_can_be_compared_nothing_is_called_equal(copied):
    shutil.rmtree(copied.home / "lake" / "subject" / "materializations")
    code, links = verified(copied, "0:1")
    assert (code, set(outcomes(links).values())) == (2, {"not checked"})
    assert copied.type("verify", "0:1").stdout.splitlines()[-1] == "nothing could be compared"
