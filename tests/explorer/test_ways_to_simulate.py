"""Every way to simulate, from the command to the score, over real HTTP; and that probabilities are kept with their reply."""

import json

import pytest
from writer import small_writer

from explorer.fake_endpoint import FakeEndpoint
from explorer.kept import Kept
from explorer.server import Explorer
from explorer.staleness import Staleness

NEURON = {"layer": 0, "neurons": [1]}
TOGETHER = {"all-at-once": 1, "json-logprobs": 1, "one-at-a-time": 64}
OF_DIGITS = ("all-at-once-9", "json-logprobs-9", "one-at-a-time-9")
"""Requests to an excerpt."""


def words(url, way):
    return ("--explainer", "scripted", "--base-url", f"{url}/v1", "--simulation", way)


def simulated(folder):
    rows = folder.table("simulations", **NEURON)
    return rows.filter(rows["simulator"] == "scripted")


@pytest.mark.parametrize("way", TOGETHER)
def test_a_simulator_with_probabilities_scores_as_its_explanation_deserves(copied, served, way):
    endpoint = FakeEndpoint()
    with served(endpoint.app()) as url:
        assert copied.type("run", "--neurons", "0:1", *words(url, way)).exit_code == 0
        sent = endpoint.asked.total()
        assert copied.type("run", "--neurons", "0:1", *words(url, way)).exit_code == 0
        # What was likely is kept with the reply, so nothing is asked again.
        assert endpoint.asked.total() == sent
    rows = simulated(copied)
    assert len(rows) == 10
    assert set(rows["coverage"]) == {1.0}
    for row in rows.iter_rows(named=True):
        assert len(row["request_ids"]) == TOGETHER[way]
        assert [round(sum(shares), 5) for shares in row["distribution_probabilities"]] == [1.0] * len(row["true"])
        means = [
            sum(value * share for value, share in zip(values, shares, strict=True))
            for values, shares in zip(row["distribution_values"], row["distribution_probabilities"], strict=True)
        ]
        assert row["expected"] == pytest.approx(means, abs=1e-4)
    found = copied.table("scores", **NEURON)
    (value,) = found.filter(
        (found["simulator"] == "scripted")
        & (found["scorer"] == "ev_correlation")
        & (found["split"] == "top_and_random")
    )["value"]
    assert value > 0.9


@pytest.mark.parametrize("way", ["all-at-once"])
def test_a_plan_counts_the_requests_of_every_way(copied, served, way):
    endpoint = FakeEndpoint()
    with served(endpoint.app()) as url:
        plan = json.loads(copied.type("plan", "--json", "--layers", "0", *words(url, way)).stdout)
        assert endpoint.asked.total() == 0
        assert copied.type("run", "--layers", "0", *words(url, way)).exit_code == 0
        assert plan["total"]["to_send"] == endpoint.asked.total()
        assert copied.not_fresh("--layers", "0", *words(url, way)) == {}
        # Another way is another question, of which the lake holds no answer.
        assert ("simulations", 0) in copied.not_fresh("--layers", "0", *words(url, "json"))


def test_a_model_whose_digits_stand_alone_has_no_answer_where_it_would_be_a_wrong_one(copied, served):
    with served(FakeEndpoint(digits=1).app()) as url:
        result = copied.type("run", "--neurons", "0:1", *words(url, "all-at-once"))
        assert "10 of 10 missing, most often no_probabilities (no probabilities came" in result.stderr
        assert set(simulated(copied)["missing_because"]) == {"no_probabilities"}
        assert copied.type("run", "--neurons", "0:1", *words(url, "json-logprobs")).exit_code == 0
    rows = simulated(copied)
    assert rows["expected"].null_count() == 0
    assert max(max(expected) for expected in rows["expected"]) > 9


@pytest.mark.parametrize("way", [*OF_DIGITS, "json-schema", "json-closed"])
def test_a_model_whose_digits_stand_alone_is_scored_as_its_explanation_deserves_where_numbers_are_digits(
    copied, served, way
):
    with served(FakeEndpoint(digits=1).app()) as url:
        assert copied.type("run", "--neurons", "0:1", *words(url, way)).exit_code == 0
    rows = simulated(copied)
    assert set(rows["coverage"]) == {1.0}
    most = max(max(expected) for expected in rows["expected"])
    assert most == 10 if way in ("json-schema", "json-closed") else 8 < most <= 9
    found = copied.table("scores", **NEURON)
    correlation = (found["simulator"] == "scripted") & (found["scorer"] == "ev_correlation")
    assert found.filter(correlation & (found["split"] == "top_and_random"))["value"][0] > 0.9


def test_a_model_in_this_process_simulates_what_an_endpoint_explains_and_its_score_is_verified(
    copied, served, tmp_path
):
    writer = small_writer(tmp_path / "writer")
    with served(FakeEndpoint().app()) as url:
        asked = (*words(url, "all-at-once"), "--simulator", f"local:{writer}")
        result = copied.type("run", "--neurons", "0:1", *asked)
    assert "few_answers_are_missing" in result.stderr or result.exit_code == 0
    found = copied.table("simulations", **NEURON)
    rows = found.filter(found["simulator"] == f"local:{writer}")
    assert len(rows) == 10
    calls = copied.table("language_calls")
    local = calls.filter(calls["model"] == f"local:{writer}")
    assert set(local["endpoint"].str.head(13)) == {"local:sha256:"}
    assert set(local["cost_usd"]) == {0.0}
    # A random model may hold no number likely at any place; where it does, what is expected is kept.
    for row in rows.iter_rows(named=True):
        assert (row["expected"] is None) == (row["missing_because"] == "no_probabilities")


def test_an_answer_that_lacks_its_last_token_keeps_the_others_in_table_score_and_page(copied, served, asking, tmp_path):
    with served(FakeEndpoint({"wrong_length": 1.0}).app()) as url:
        assert copied.type("run", "--neurons", "0:1", *words(url, "json")).exit_code == 0
    rows = simulated(copied)
    for row in rows.iter_rows(named=True):
        assert row["expected"][-1] is None
        assert None not in row["expected"][:-1]
        assert row["coverage"] == pytest.approx(1 - 1 / len(row["true"]))
    found = copied.table("scores", **NEURON)
    assert found.filter((found["simulator"] == "scripted") & (found["scorer"] == "ev_correlation"))["value"][0] > 0.9
    explorer = Explorer(Kept(copied.lake), Staleness(copied.lake, None), copied.home, tmp_path / "files", {"lake": "x"})
    with served(explorer.app()) as address:
        status, page = asking(f"{address}/0/1.json")
        assert asking(f"{address}/0/1")[0] == status == 200
    explained = next(one for one in json.loads(page)["explanations"] if one["method"] == "token-activation-pairs")
    assert explained["text"] is not None
