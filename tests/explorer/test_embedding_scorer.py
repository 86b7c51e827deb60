"""The embedding scorer, from a run to its audit: planned, paid for once, kept with reasons, traced."""

import json

import pytest

from explorer.fake_endpoint import FakeEndpoint


def asking(address, scorer="embedding:scripted"):
    return ("--layers", "0", "--explainer", "scripted", "--base-url", f"{address}/v1", "--scorers", scorer)


def test_a_run_asks_what_was_planned_and_its_scores_are_traced(copied, served):
    endpoint = FakeEndpoint()
    with served(endpoint.app()) as address:
        words = asking(address)
        plan = json.loads(copied.type("plan", "--json", *words).stdout)
        result = copied.type("run", *words)
        assert result.exit_code == 0, result.stderr
        assert plan["total"]["to_send"] == endpoint.asked.total() == len(endpoint.asked)
        assert "Everything is fresh" in copied.type("run", *words).stdout
        assert copied.not_fresh(*words) == {}
        assert endpoint.asked.total() == plan["total"]["to_send"]
        assert "judgements" in {row["table"] for row in json.loads(copied.type("cost", "--json").stdout)["rows"]}
    scores = copied.table("scores", layer=0).filter(scorer="embedding_auc").drop_nulls("value")
    assert set(scores["split"]) == {"active_and_quiet"}
    # The scripted vectors are alike as far as texts share words.
    assert scores["value"].median() > 0.6
    one = scores.row(0, named=True)
    judgements = copied.table("judgements", layer=0, neurons=[one["neuron"]]).filter(
        explanation_id=one["explanation_id"]
    )
    chain = {hop["name"]: hop for hop in json.loads(copied.type("why", one["identity"], "--json").stdout)}
    asked = {*judgements["request_id"], *judgements["other_request_ids"].explode()}
    assert {call["request_id"] for call in chain["judgements"]["facts"]["requests"]} == asked
    assert len(asked) == len(judgements) + 1
    assert copied.type("verify", f"0:{one['neuron']}").exit_code == 0
    checks = json.loads(copied.type("audit", "--quick", "--json").stdout)["checks"]
    assert [check for check in checks if check["findings"] and check["id"] != "A18"] == []


def test_failed_answers_are_nulls_with_a_reason(copied, served):
    endpoint = FakeEndpoint({"wrong_length": 0.15}, seed=3)
    with served(endpoint.app()) as address:
        copied.type("run", *asking(address))
    judgements = copied.table("judgements", layer=0)
    assert 0 < judgements["value"].null_count() < len(judgements)
    assert set(judgements["missing_because"].drop_nulls()) == {"wrong_length"}


def test_an_encoder_in_this_process_needs_no_endpoint(copied, served):
    with served(FakeEndpoint().app()) as address:
        copied.type("run", "--neurons", "0:1", *asking(address, "embedding:local:demo")[2:])
    calls = copied.table("language_calls")
    local = calls.filter(model="local:demo")
    assert len(local) > 10
    assert local["endpoint"].str.starts_with("local:").all()
    assert local["cost_usd"].sum() == 0
    scores = copied.table("scores", layer=0, neurons=[1]).filter(scorer="embedding_auc")
    assert scores["simulator"].to_list() == ["local:demo"]
    assert scores["value"].null_count() == 0


@pytest.mark.parametrize(
    ("scorers", "said"), [("embedding", "needs a model's name"), ("detection:gpt", "takes no model of its own")]
)
def test_a_model_is_named_where_one_is_needed_and_nowhere_else(made, scorers, said):
    result = made.type("plan", "--explainer", "scripted", "--scorers", scorers)
    assert result.exit_code == 2
    assert said in result.stderr
