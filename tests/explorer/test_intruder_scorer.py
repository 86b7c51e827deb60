"""The intruder scorer, from a run to its page: planned, paid for once, traced, and its chance stated."""

import json

from explorer.fake_endpoint import FakeEndpoint
from explorer.kept import Kept
from explorer.server import Explorer
from explorer.staleness import Staleness


def test_a_run_asks_what_was_planned_and_its_scores_are_traced(copied, served, asking, tmp_path):
    endpoint = FakeEndpoint()
    with served(endpoint.app()) as address:
        words = ("--layers", "0", "--explainer", "scripted", "--base-url", f"{address}/v1", "--scorers", "intruder")
        plan = json.loads(copied.type("plan", "--json", *words).stdout)
        result = copied.type("run", *words)
        assert result.exit_code == 0, result.stderr
        assert plan["total"]["to_send"] == endpoint.asked.total() == len(endpoint.asked)
        assert "Everything is fresh" in copied.type("run", *words).stdout
        assert endpoint.asked.total() == plan["total"]["to_send"]
    scores = copied.table("scores", layer=0).filter(scorer="intruder").drop_nulls("value")
    assert scores["value"].median() > 0.9
    assert scores["p_value"].median() < 0.01
    one = scores.row(0, named=True)
    chain = {hop["name"]: hop for hop in json.loads(copied.type("why", one["identity"], "--json").stdout)}
    assert len(chain["judgements"]["facts"]["requests"]) == one["n_sequences"]
    assert copied.type("verify", f"0:{one['neuron']}").exit_code == 0
    checks = json.loads(copied.type("audit", "--quick", "--json").stdout)["checks"]
    assert [check for check in checks if check["findings"] and check["id"] != "A18"] == []
    explorer = Explorer(Kept(copied.lake), Staleness(copied.lake, None), tmp_path, tmp_path)
    with served(explorer.app()) as address:
        status, page = asking(f"{address}/0/{one['neuron']}")
    assert status == 200
    assert '<code>intruder</code> <span class="quiet">chance 0.2</span>' in page
