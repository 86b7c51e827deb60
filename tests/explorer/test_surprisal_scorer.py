"""The surprisal scorer, from a run to its audit: planned, paid for once, traced; and a model in this process."""

import json

from explorer.fake_endpoint import FakeEndpoint


def asking(address, scorer="surprisal"):
    return ("--layers", "0", "--explainer", "scripted", "--base-url", f"{address}/v1", "--scorers", scorer)


def test_a_run_asks_what_was_planned_and_its_scores_are_traced(copied, served):
    endpoint = FakeEndpoint({"server_error": 0.02}, seed=1)
    with served(endpoint.app()) as address:
        words = asking(address)
        plan = json.loads(copied.type("plan", "--json", *words).stdout)
        result = copied.type("run", *words)
        assert result.exit_code == 0, result.stderr
        assert plan["total"]["to_send"] == len(endpoint.asked)
        assert "Everything is fresh" in copied.type("run", *words).stdout
        assert copied.not_fresh(*words) == {}
    scores = copied.table("scores", layer=0).drop_nulls("value")
    gains, areas = (scores.filter(scorer=name) for name in ("surprisal", "surprisal_auc"))
    assert gains["value"].median() > 0
    assert areas["value"].median() > 0.9
    one = gains.row(0, named=True)
    judgements = copied.table("judgements", layer=0, neurons=[one["neuron"]]).filter(
        explanation_id=one["explanation_id"]
    )
    chain = {hop["name"]: hop for hop in json.loads(copied.type("why", one["identity"], "--json").stdout)}
    asked = {*judgements["request_id"], *judgements["other_request_ids"].explode()}
    assert {call["request_id"] for call in chain["judgements"]["facts"]["requests"]} == asked
    assert len(asked) == 2 * len(judgements)
    assert copied.type("verify", f"0:{one['neuron']}").exit_code == 0
    checks = json.loads(copied.type("audit", "--quick", "--json").stdout)["checks"]
    assert [check for check in checks if check["findings"] and check["id"] != "A18"] == []
