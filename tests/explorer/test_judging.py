"""Scorers that ask: planned, paid for once, kept, scored, and nothing of it without being chosen."""

import json

import pytest

from explorer.bundle import provenance
from explorer.fake_endpoint import FakeEndpoint
from explorer.why import why
from pipeline.judgements import SCORERS


def asking(address):
    return ("--layers", "0", "--explainer", "scripted", "--base-url", f"{address}/v1")


def test_a_run_asks_what_was_planned_and_finds_the_planted_explanations_right(copied, served):
    endpoint = FakeEndpoint()
    with served(endpoint.app()) as address:
        words = (*asking(address), "--scorers", ",".join(SCORERS))
        plan = json.loads(copied.type("plan", "--json", *words).stdout)
        assert {stage["table"] for stage in plan["layers"]} == {"explanations", "simulations", "judgements"}
        result = copied.type("run", *words)
        assert result.exit_code == 0, result.stderr
        assert plan["total"]["to_send"] == endpoint.asked.total() == len(endpoint.asked)
        again = copied.type("run", *words)
        assert again.exit_code == 0, again.stderr
        assert endpoint.asked.total() == plan["total"]["to_send"]
        assert copied.not_fresh(*words) == {}
        # Rows made with more than is chosen today are no reason to make them again.
        assert copied.not_fresh(*asking(address)) == {}
        costs = json.loads(copied.type("cost", "--json").stdout)["rows"]
        assert "judgements" in {row["table"] for row in costs}
        copied.type("run", "--neurons", "0:1", *words[2:])
        assert endpoint.asked.total() == plan["total"]["to_send"]
    scores = copied.table("scores", layer=0).filter(split="active_and_quiet").drop_nulls("value")
    assert set(scores["scorer"]) == {"detection", "detection_f1", "fuzzing", "fuzzing_f1"}
    # Hostile words are cut otherwise in texts than in tokens, so that the script misses a few.
    assert scores["value"].min() > 0.8
    assert scores["value"].median() == 1
    judgements = copied.table("judgements", layer=0, neurons=[1])
    one = copied.table("scores", layer=0, neurons=[1]).filter(scorer="detection").drop_nulls("value").row(0, named=True)
    chain = {hop["name"]: hop for hop in json.loads(copied.type("why", one["identity"], "--json").stdout)}
    asked = set(judgements.filter(scorer="detection", explanation_id=one["explanation_id"])["request_id"])
    assert {call["request_id"] for call in chain["judgements"]["facts"]["requests"]} == asked
    assert "write of judgements" in chain
    assert not {"simulations", "write of simulations"} & set(chain)
    document = json.loads(provenance({"0-1": why(copied.lake, one)}))
    replies = {entity["nl:request"] for entity in document["entity"].values() if "nl:request" in entity}
    assert asked <= replies
    assert copied.type("verify", "0:1").exit_code == 0
    checks = json.loads(copied.type("audit", "--quick", "--json").stdout)["checks"]
    # A18 tells of a checkout that was changed, as that of who writes this is.
    assert [check for check in checks if check["findings"] and check["id"] != "A18"] == []
    calls = copied.table("language_calls")["request_id"]
    assert copied.table("judgements", layer=0)["request_id"].is_in(calls.implode()).all()


def test_failed_answers_are_nulls_with_a_reason_that_are_counted(copied, served):
    endpoint = FakeEndpoint({"malformed": 0.15}, seed=4)
    with served(endpoint.app()) as address:
        words = (*asking(address), "--scorers", "detection,fuzzing")
        copied.type("run", *words)
        found = json.loads(copied.type("status", "--json", *words).stdout)
    judgements = copied.table("judgements", layer=0)
    failed = judgements.filter(missing_because="unparsable")
    assert 0 < len(failed) == judgements["value"].null_count()
    counted = {row["table"]: row["missing"] for row in found if row["layer"] == 0}
    assert counted["judgements"] == {"unparsable": len(failed)}


def test_nothing_is_judged_unless_it_is_asked_for(made):
    assert ("judgements", 0) not in made.states()


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--scorers", "detection"), "needs a language model that judges"), (("--scorers", "luck"), "no scorer 'luck'")],
)
def test_scorers_without_a_judge_or_of_another_name_are_refused(made, words, said):
    result = made.type("run", *words)
    assert result.exit_code == 2
    assert said in result.stderr
