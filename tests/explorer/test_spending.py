"""Spending: what a run will cost is said before, what it may cost is kept to, and what it did cost is known."""

import json
import shutil

import polars as pl
import pytest
from endpoint import Endpoint

from explorer.replay import Records, replay
from pipeline import methods
from pipeline.ports import Request
from pipeline.provenance import frame_hash
from pipeline.tables import TABLES
from pipeline.testing import ScriptedLanguageModel
from resources import language as door
from resources.subject import HuggingFaceSubject

PRICES = '[[price]]\nmodel = "scripted"\ninput = 10\noutput = 30\n'


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(door, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(door, "LONGEST_PAUSE", 0.05)


@pytest.fixture
def truth(planted):
    """Answers of a language model that knows the planted neurons."""
    language = ScriptedLanguageModel(planted)

    def answer(asked):
        messages = tuple((message["role"], message["content"]) for message in asked["messages"])
        replies, _ = language.answer([Request(asked["model"], messages, 0.0, 1, 0)], run_id="r")
        return replies[0].text

    return answer


@pytest.fixture
def folder(copied):
    """A made folder with prices in it."""
    (copied.home / "prices.toml").write_text(PRICES)
    return copied


def asking(endpoint):
    return ("--explainer", "scripted", "--base-url", endpoint.url, "--prices", "prices.toml", "--concurrency", "4")


def planned(folder, *words):
    return json.loads(folder.type("plan", "--json", *words).stdout)


def paid(folder):
    return json.loads(folder.type("cost", "--json").stdout)["total"]


def test_a_plan_sends_nothing_and_says_what_the_run_then_does(folder, truth):
    before = folder.versions()
    with Endpoint(truth, counts=True) as endpoint:
        blind = planned(folder, "--layers", "0", *asking(endpoint))
        assert endpoint.asked.total() == 0
        assert folder.versions() == before
        assert folder.type("run", "--neurons", "0:1", *asking(endpoint)).exit_code == 0
        sent, at_first = endpoint.asked.total(), paid(folder)
        plan = planned(folder, "--layers", "0", *asking(endpoint))
        assert folder.type("run", "--layers", "0", *asking(endpoint)).exit_code == 0
        assert blind["total"]["to_send"] == endpoint.asked.total()
        assert plan["total"]["to_send"] == endpoint.asked.total() - sent
    assert {stage["table"]: stage["kept"] for stage in plan["layers"]}["explanations"] == 1
    then = paid(folder)
    for name in ("prompt_tokens", "completion_tokens", "cost_usd"):
        assert plan["total"][name] == pytest.approx(then[name] - at_first[name], rel=0.1)
    assert plan["total"]["seconds"] > 0
    assert planned(folder, "--layers", "0", *asking(endpoint))["total"]["to_send"] == 0


def test_a_plan_is_printed_with_its_sum_and_says_that_nothing_was_sent(folder, truth):
    with Endpoint(truth) as endpoint:
        shown = folder.type("plan", *asking(endpoint)).stdout
        assert endpoint.asked.total() == 0
    assert "together" in shown
    assert "Nothing was sent." in shown
    assert "$" in shown


def test_a_plan_without_a_language_model_is_refused(folder):
    result = folder.type("plan")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "name one with --explainer" in result.stderr


def test_a_plan_names_the_command_for_layers_that_have_no_exemplars_yet(empty, tmp_path):
    shown = empty.copy(tmp_path).type("plan", "--explainer", "scripted").stdout
    assert "run --layers 0,1 --explainer ''" in shown


def test_an_unknown_price_is_unknown_and_not_zero(folder, truth):
    with Endpoint(truth, counts=True) as endpoint:
        words = ("--explainer", "scripted", "--base-url", endpoint.url)
        assert planned(folder, "--layers", "0", *words)["total"]["cost_usd"] is None
        result = folder.type("run", "--neurons", "0:1", "--budget-usd", "5", *words)
        assert result.exit_code == 1
        assert "the price of `scripted` is not known, so a budget of $5 cannot be kept" in result.stderr
        assert endpoint.asked.total() == 0
        assert folder.type("run", "--neurons", "0:1", *words).exit_code == 0
    assert paid(folder)["cost_usd"] is None
    assert "unknown" in folder.type("cost").stdout


def same(folder, other):
    names = ("explanations", "simulations", "scores")
    hashes = [{name: frame_hash(one.table(name), key=TABLES[name].key) for name in names} for one in (folder, other)]
    return hashes[0] == hashes[1]


@pytest.mark.parametrize("budget", [("--budget-usd", "0.3"), ("--budget-tokens", "30000")])
def test_a_budget_is_kept_to_and_what_is_left_is_asked_for_later(folder, truth, tmp_path_factory, budget):
    other = folder.copy(tmp_path_factory.mktemp("other"))
    with Endpoint(truth, counts=True) as endpoint:
        result = folder.type("run", "--layers", "0", *asking(endpoint), *budget)
        assert result.exit_code == 3, result.stderr
        assert 0 < paid(folder)["cost_usd"] <= 0.3
        assert paid(folder)["prompt_tokens"] + paid(folder)["completion_tokens"] <= 30_000
        reasons = [folder.table(name)["missing_because"] for name in ("explanations", "simulations")]
        assert "budget" in {reason for found in reasons for reason in found}
        causes = folder.not_fresh("--layers", "0", *asking(endpoint))
        assert any("answers are missing (budget)" in cause for cause in causes.values())
        assert result.stderr.splitlines()[-1].endswith(" ".join(budget))
        assert "run --layers 0" in result.stderr.splitlines()[-1]
        assert folder.type("run", "--layers", "0", *asking(endpoint)).exit_code == 0
        assert set(endpoint.asked.values()) == {1}
        asked = endpoint.asked.total()
        assert other.type("run", "--layers", "0", *asking(endpoint)).exit_code == 0
        assert endpoint.asked.total() == 2 * asked
    assert same(folder, other)


def test_no_layer_is_begun_once_the_budget_is_used_up(folder, truth):
    with Endpoint(truth, counts=True) as endpoint:
        result = folder.type("run", *asking(endpoint), "--budget-tokens", "30000")
    assert result.exit_code == 3, result.stderr
    assert "explanations to scores layer 1" not in result.stderr
    assert folder.table("explanations", layer=1).filter(explainer="scripted").is_empty()


def test_a_budget_below_zero_is_refused(folder):
    result = folder.type("run", "--budget-usd", "-1")
    assert result.exit_code == 2
    assert "--budget-usd (=-1.0) must be a number from 0 on" in result.stderr


def test_only_answers_that_failed_in_passing_are_asked_for_again(folder, truth):
    with Endpoint(truth, script=["500"] * door.ATTEMPTS) as endpoint:
        words = (*asking(endpoint), "--concurrency", "1")
        assert folder.type("run", "--layers", "0", *words).exit_code == 0
        missing = folder.table("explanations").filter(missing_because="server_error")
        assert len(missing) == 1
        asked = endpoint.asked.total()
        result = folder.type("run", "--retry-failed", *words)
        assert result.exit_code == 0
        assert "explanations to scores layer 0" in result.stderr
        assert "layer 1" not in result.stderr
        texts = folder.table("exemplars").join(missing, on=["layer", "neuron"], how="semi").filter(split="score")
        assert endpoint.asked.total() == asked + 1 + texts.get_column("sequence_id").n_unique()
        assert folder.table("explanations").filter(missing_because="server_error").is_empty()
        again = folder.type("run", "--retry-failed", *words)
    assert "No answer is missing that could come now" in again.stdout


def test_answers_of_a_model_that_is_no_longer_asked_make_nothing_stale(folder, truth):
    with Endpoint(truth, script=["500"] * door.ATTEMPTS) as endpoint:
        assert folder.type("run", "--layers", "0", *asking(endpoint), "--concurrency", "1").exit_code == 0
        assert ("explanations", 0) in folder.not_fresh(*asking(endpoint))
    assert folder.not_fresh() == {}


def asked_about(folder):
    rows = folder.table("explanations", layer=0).filter(explainer="scripted")
    return set(rows.get_column("neuron"))


def test_a_selection_asks_about_no_others_and_is_recorded(folder, truth):
    with Endpoint(truth) as endpoint:
        assert folder.type("run", "--layers", "0", "--select", "random:2", *asking(endpoint)).exit_code == 0
        first, asked = asked_about(folder), endpoint.asked.total()
        assert len(first) == 2
        assert folder.not_fresh("--layers", "0", "--select", "random:2", *asking(endpoint)) == {}
        causes = folder.not_fresh("--layers", "0", "--select", "random:3", *asking(endpoint))
        assert "setting `select` changed" in causes["explanations", 0]
        assert folder.type("run", "--layers", "0", "--select", "random:3", *asking(endpoint)).exit_code == 0
        assert first < asked_about(folder)
        assert endpoint.asked.total() > asked
        assert set(endpoint.asked.values()) == {1}
    record = (
        folder.table("materializations").filter(table="explanations", layer=0).sort("finished_at").row(-1, named=True)
    )
    assert json.loads(record["settings"])["select"] == {"count": 3, "statistic": None}


def test_the_neurons_that_tokens_tell_least_of_come_first(folder, truth):
    with Endpoint(truth) as endpoint:
        assert folder.type("run", "--layers", "1", "--select", "top:3:context", *asking(endpoint)).exit_code == 0
    rows = folder.table("explanations", layer=1).filter(explainer="scripted")
    chosen = set(rows.get_column("neuron"))
    statistics = folder.table("neuron_statistics", layer=1)
    assert len(chosen) == 3
    assert not statistics.filter(pl.col("neuron").is_in(chosen)).get_column("dead").any()
    # Layer 1 holds neurons that fire on a word only after another one, which no table of tokens can tell.
    after = {neuron.neuron for neuron in truth_of(folder) if neuron.after is not None}
    assert chosen == after or chosen < after or after < chosen


def truth_of(folder):
    from pipeline.testing import _planted_neurons

    return [neuron for neuron in _planted_neurons() if neuron.layer == 1]


def test_a_selection_in_another_form_is_refused(folder):
    result = folder.type("run", "--select", "best:5", "--explainer", "scripted")
    assert result.exit_code == 2
    assert "--select (='best:5') must be `all`, `random:50`, or `top:50:`" in result.stderr


def test_what_was_paid_is_known_by_layer_neuron_and_model(folder, truth):
    with Endpoint(truth, counts=True) as endpoint:
        assert folder.type("run", "--neurons", "0:1,1:2", *asking(endpoint)).exit_code == 0
    found = json.loads(folder.type("cost", "--by", "neuron", "--json").stdout)
    assert {(row["layer"], row["neuron"], row["table"]) for row in found["rows"]} == {
        (layer, neuron, table) for layer, neuron in ((0, 1), (1, 2)) for table in ("explanations", "simulations")
    }
    assert sum(row["cost_usd"] for row in found["rows"]) == pytest.approx(found["total"]["cost_usd"])
    calls = folder.table("language_calls")
    tokens = calls.select(pl.col("prompt_tokens") * 10 + pl.col("completion_tokens") * 30).to_series()
    assert found["total"]["cost_usd"] == pytest.approx(tokens.sum() / 1e6)
    shown = folder.type("cost").stdout
    assert "each paid for once" in shown
    usage = json.loads(
        folder.table("materializations")
        .filter(table="explanations", layer=0)
        .sort("finished_at")
        .row(-1, named=True)["usage"]
    )
    assert usage["cost_usd"] > 0


def test_five_excerpts_to_the_request_cost_about_half_and_score_as_well(folder, truth, tmp_path_factory):
    other = folder.copy(tmp_path_factory.mktemp("other"))
    with Endpoint(truth, counts=True) as endpoint:
        assert folder.type("run", "--neurons", "0:1", *asking(endpoint)).exit_code == 0
        asked = endpoint.asked.total()
        words = (*asking(endpoint), "--simulation", "json-many")
        assert other.type("run", "--neurons", "0:1", *words).exit_code == 0
        # One to explain, two to simulate on ten exemplars.
        assert endpoint.asked.total() - asked == 3

    def simulating(one):
        ids = one.table("simulations", layer=0, neurons=[1]).filter(simulator="scripted").explode("request_ids")
        calls = one.table("language_calls").filter(pl.col("request_id").is_in(ids["request_ids"].to_list()))
        return calls["prompt_tokens"].sum()

    def score(one):
        main = {"method": "token-activation-pairs", "scorer": "ev_correlation", "split": "top_and_random"}
        return one.table("scores", layer=0, neurons=[1]).filter(**main).item(0, "value")

    assert simulating(other) < 0.55 * simulating(folder)
    assert score(other) == score(folder)


def test_methods_stand_side_by_side_and_one_more_asks_for_itself_alone(folder, truth):
    with Endpoint(truth, counts=True) as endpoint:
        words = (*asking(endpoint), "--simulation", "json-many")
        assert folder.type("run", "--neurons", "0:1", *words).exit_code == 0
        asked = endpoint.asked.total()
        names = [name for name in methods.ASKING if not name.startswith(methods.HYPOTHESES)]
        several = (*words, "--methods", ",".join(names))
        assert folder.type("run", "--neurons", "0:1", *several).exit_code == 0
        # More explanations; their simulations are asked for once, because they are the same words. What the planted
        # neurons write is nothing, so there is nothing to say of their logits.
        assert endpoint.asked.total() == asked + len(names) - 2
        assert set(endpoint.asked.values()) == {1}
        shown = folder.type("show", "0:1").stdout
        refused = folder.type("run", "--neurons", "0:1", *words, "--methods", "guess")
    rows = folder.table("explanations", layer=0, neurons=[1]).filter(explainer="scripted")
    assert set(rows["method"]) == set(names)
    assert rows.filter(pl.col("text").is_null()).select("method", "missing_because").rows() == [
        ("logits", "no_evidence")
    ]
    rows = rows.drop_nulls("text")
    assert rows["text"].n_unique() == 1
    main = folder.table("scores", layer=0, neurons=[1]).filter(scorer="ev_correlation", split="top_and_random")
    of_model = main.join(rows.select("explanation_id"), on="explanation_id", how="semi")
    assert len(of_model) == len(names) - 1
    assert of_model["value"].min() > 0.9
    tokens = dict(
        folder.table("language_calls")
        .join(rows.select("request_id", "method"), on="request_id")
        .select("method", "prompt_tokens")
        .iter_rows()
    )
    assert tokens["summary"] < tokens["highlight"] < tokens["token-activation-pairs"]
    assert "highlight-values by scripted" in shown
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--methods (='guess'): there is no 'guess'; known are token-activation-pairs, highlight" in refused.stderr


def test_a_plan_counts_every_method(folder, truth):
    with Endpoint(truth, counts=True) as endpoint:
        words = (*asking(endpoint), "--methods", "highlight,token-space", "--simulation", "json-many")
        plan = planned(folder, "--layers", "0", *words)
        assert folder.type("run", "--layers", "0", *words).exit_code == 0
    explained = next(stage for stage in plan["layers"] if stage["table"] == "explanations")
    rows = folder.table("explanations", layer=0).filter(explainer="scripted")
    assert explained["requests"] == rows["request_id"].drop_nulls().len()
    assert folder.not_fresh("--layers", "0", *words) == {}
    # Fewer methods are part of what is there.
    fewer = (*asking(endpoint), "--methods", "highlight", "--simulation", "json-many")
    assert ("explanations", 0) not in folder.not_fresh("--layers", "0", *fewer)


def test_each_hypothesis_has_a_row_and_a_score_of_its_own_and_a_plan_counts_them(folder, truth):
    with Endpoint(truth, counts=True) as endpoint:
        words = (*asking(endpoint), "--methods", "highlight-reasoning,hypotheses:3", "--simulation", "json-many")
        words = (*words, "--select", "top:1:variance")
        plan = planned(folder, "--layers", "0", *words)
        assert folder.type("run", "--layers", "0", *words).exit_code == 0
        # Two requests to explain, and two to simulate each of four explanations; two of these turn out to be the same.
        assert (plan["total"]["to_send"], endpoint.asked.total()) == (2 + 2 * 4, 2 + 2 * 3)
    rows = folder.table("explanations", layer=0).filter(explainer="scripted")
    several = rows.filter(method="hypotheses:3")
    assert several["text"].n_unique() == 3
    assert several["request_id"].n_unique() == 1
    # The third is the one that the other method gave.
    (right,) = rows.filter(method="highlight-reasoning")["text"]
    scores = folder.table("scores", layer=0).filter(scorer="ev_correlation", split="top_and_random")
    of_each = several.join(scores.select("explanation_id", "value"), on="explanation_id", how="left")
    assert len(of_each) == 3
    (best,) = of_each.filter(text=right)["value"]
    assert best > 0.9
    assert all(value is None or value < 0.5 for value in of_each.filter(pl.col("text") != right)["value"])


def test_the_best_of_three_is_chosen_on_texts_that_are_not_scored(folder, truth):
    with Endpoint(truth, counts=True) as endpoint:
        words = (*asking(endpoint), "--methods", "hypotheses:3,best-of:3", "--select", "top:1:variance")
        words = (*words, "--simulation", "json-many")
        plan = planned(folder, "--layers", "0", *words)
        result = folder.type("run", "--layers", "0", *words)
        assert result.exit_code == 0, result.stderr
        asked = endpoint.asked.total()
        assert set(endpoint.asked.values()) == {1}
        # One request to explain, two to try each of three, two to score each; what is best is among the three.
        assert asked == 1 + 3 * 2 + 3 * 2
        assert plan["total"]["to_send"] == asked + 2
        assert folder.type("run", "--neurons", "0:1", *words[:-4], "--simulation", "json-many").exit_code == 0
    again = replay(folder.lake, Records(folder.lake), "explanations", 0)
    assert (again.outcome, again.said) == ("equal", "")
    # What the choice took is counted for the neuron, and stands in the chain of its score.
    paid_for = json.loads(folder.type("cost", "--json", "--by", "neuron").stdout)["rows"]
    assert sum(row["requests"] for row in paid_for if row["neuron"] == 1) == 1 + 3 * 2 + 3 * 2
    rows = folder.table("explanations", layer=0)
    assert len(rows.filter(method="best-of:3", neuron=1)["other_request_ids"].item()) == 3 * 2
    (best,) = rows.filter(method="best-of:3", neuron=1)["text"]
    assert best == 'the words "cat", "dog", "horse", "sheep", "mouse"'
    assert rows.filter(method="hypotheses:3", neuron=1)["text"].n_unique() == 3
    assert "best-of:3 by scripted" in folder.type("show", "0:1").stdout
    scores = folder.table("scores", layer=0).filter(method="best-of:3", scorer="ev_correlation", split="top_and_random")
    assert scores["value"].min() > 0.9


def test_a_wrong_explanation_is_revised_by_what_the_subject_does_on_new_sentences(folder, planted):
    language = ScriptedLanguageModel(planted, wrong=True)

    def answer(asked):
        messages = tuple((message["role"], message["content"]) for message in asked["messages"])
        replies, _ = language.answer([Request(asked["model"], messages, 0.0, 1, 0)], run_id="r")
        return replies[0].text

    with Endpoint(answer, counts=True) as endpoint:
        words = (*asking(endpoint), "--methods", "highlight,revision,revision-random", "--select", "top:1:variance")
        words = (*words, "--simulation", "json-many")
        plan = planned(folder, "--layers", "0", *words)
        result = folder.type("run", "--layers", "0", *words)
        assert result.exit_code == 0, result.stderr
        asked = endpoint.asked.total()
        control = folder.table("explanations", layer=0).filter(method="revision-random")["request_id"].drop_nulls()
        # To explain, to write sentences, to revise; then two for each of two explanations (both revisions say the same).
        assert asked == 3 + len(control) + 2 * 2
        assert plan["total"]["to_send"] == asked + 2 * len(control)
        assert planned(folder, "--layers", "0", *words)["total"]["to_send"] == 0
        assert folder.not_fresh("--layers", "0", *words) == {}
        assert folder.type("run", "--neurons", "0:1", *words[:6], "--methods", "highlight,revision").exit_code == 0
    # The sentences that were written for it are read again by the subject, if it is at hand and has the same weights.
    again = replay(folder.lake, Records(folder.lake), "explanations", 0)
    assert (again.outcome, again.said.partition(", and ")[2]) == ("not replayed", "it is not at hand")
    subject = HuggingFaceSubject(str(folder.home / "subject"), device="cpu")
    again = replay(folder.lake, Records(folder.lake), "explanations", 0, subject=subject)
    assert (again.outcome, again.said) == ("equal", "")
    links = {link["name"]: link["outcome"] for link in json.loads(folder.type("verify", "0:1", "--json").stdout)}
    assert links["explanations"] == "equal"
    rows = folder.table("explanations", layer=0).filter(explainer="scripted").drop_nulls("text")
    by_method = {row["method"]: row for row in rows.filter(neuron=1).iter_rows(named=True)}
    right, wrong = next((one.what, one.wrong) for one in planted.neurons if (one.layer, one.neuron) == (0, 1))
    assert by_method["highlight"]["text"] == wrong
    assert by_method["revision"]["text"] == right
    assert len(by_method["revision"]["other_request_ids"]) == 1
    assert by_method["revision"]["parent_id"] == by_method["highlight"]["explanation_id"]
    scores = folder.table("scores", layer=0, neurons=[1]).filter(scorer="ev_correlation", split="top_and_random")
    values = dict(scores.select("method", "value").iter_rows())
    assert values["revision"] > 0.9
    assert values["highlight"] is None or values["highlight"] < 0.3
    # False positives were shown: the sentences that the wrong explanation asked for, on which the neuron is silent.
    request = folder.table("language_calls").filter(request_id=by_method["revision"]["request_id"])["request"].item()
    lines = json.loads(request)["messages"][-1][1].splitlines()
    active = [json.loads(line)["found"] for line in lines if '"expected":"active"' in line]
    assert len(active) == 5
    assert all(isinstance(piece, str) for found in active for piece in found)


def test_what_people_wrote_is_simulated_and_scored_without_an_explainer(folder, truth):
    (folder.home / "people.csv").write_text(
        'neuron,explanation,author\n0:1,"the words ""cat"", ""dog"", ""horse"", ""sheep"", ""mouse""",Ada\n0:0,the words,Bob\n'
    )
    with Endpoint(truth, counts=True) as endpoint:
        words = ("--simulator", "scripted", *asking(endpoint)[2:], "--human-explanations", "people.csv")
        plan = planned(folder, "--layers", "0", *words)
        result = folder.type("run", "--layers", "0", *words)
        assert result.exit_code == 0, result.stderr
        # Ten texts for each of the two, or fewer where one is among the strongest and was drawn too.
        asked = endpoint.asked.total()
        assert plan["total"]["to_send"] == asked
        assert 15 < asked <= 20
        assert folder.not_fresh("--layers", "0", *words) == {}
        before = folder.table("explanations", layer=0, neurons=[1]).drop("run_id")
        assert folder.type("run", "--neurons", "0:1", *words).exit_code == 0
        assert endpoint.asked.total() == asked
        shown = folder.type("show", "0:1").stdout
        alone = folder.type("run", "--layers", "0", "--human-explanations", "people.csv")
    assert folder.table("explanations", layer=0, neurons=[1]).drop("run_id").equals(before)
    again = replay(folder.lake, Records(folder.lake), "explanations", 0)
    assert (again.outcome, again.said) == ("equal", "")
    rows = folder.table("explanations", layer=0).filter(method="human")
    assert rows.select("neuron", "explainer").rows() == [(0, "Bob"), (1, "Ada")]
    scores = folder.table("scores", layer=0).filter(method="human", scorer="ev_correlation", split="top_and_random")
    assert scores.filter(neuron=1)["value"].item() > 0.9
    assert scores.filter(neuron=0).select("value", "missing_because").rows() == [(None, "constant_simulation")]
    assert "human by Ada" in shown
    assert (alone.exit_code, alone.stdout) == (2, "")
    assert "--human-explanations needs a language model that simulates them; name one with --simulator" in alone.stderr


def test_weights_that_are_shown_are_made_before_the_explanations_and_until_then_nothing_is_planned(folder, truth):
    shutil.rmtree(folder.home / "lake" / "subject" / "connections")
    with Endpoint(truth, counts=True) as endpoint:
        words = (*asking(endpoint), "--methods", "token-space-weights", "--simulation", "json-many")
        assert planned(folder, "--layers", "0", *words)["without_exemplars"] == [0]
        result = folder.type("run", "--layers", "0", *words)
        assert result.exit_code == 0, result.stderr
        assert planned(folder, "--layers", "0", *words)["total"]["to_send"] == 0
    right = folder.table("explanations", layer=0, neurons=[1]).filter(method="token-space-weights")
    assert right["text"].to_list() == ['the words "cat", "dog", "horse", "sheep", "mouse"']
    assert folder.not_fresh("--layers", "0", *words) == {}


def test_a_control_scores_what_the_words_for_another_neuron_are_worth(folder, truth):
    with Endpoint(truth, counts=True) as endpoint:
        words = (*asking(endpoint), "--simulation", "json-many", "--methods", "highlight,random-explanation,empty")
        plan = planned(folder, "--layers", "0", *words)
        assert folder.type("run", "--layers", "0", *words).exit_code == 0
        asked = endpoint.asked.total()
        assert plan["total"]["to_send"] == pytest.approx(asked, abs=3)
        before = folder.table("explanations", layer=0, neurons=[1]).drop("run_id")
        assert folder.type("run", "--neurons", "0:1", *words).exit_code == 0
        assert endpoint.asked.total() == asked
    assert folder.table("explanations", layer=0, neurons=[1]).drop("run_id").equals(before)
    main = folder.table("scores", layer=0).filter(scorer="ev_correlation", split="top_and_random")
    medians = {name: main.filter(method=name)["value"].median() for name in ("highlight", "random-explanation")}
    assert medians["highlight"] > 0.9
    assert medians["random-explanation"] is None or medians["random-explanation"] < 0.3
    # The script says nothing of a neuron that it is told nothing of.
    empty = main.filter(method="empty", neuron=1)
    assert empty.select("value", "missing_because").rows() == [(None, "constant_simulation")]


def test_explanations_in_french_are_simulated_as_they_are(folder, truth):
    with Endpoint(truth, counts=True) as endpoint:
        english = (*asking(endpoint), "--simulation", "json-many", "--methods", "highlight")
        assert folder.type("run", "--neurons", "0:1", *english).exit_code == 0
        assert folder.type("run", "--neurons", "0:1", *english, "--language", "fr").exit_code == 0
        causes = folder.not_fresh("--layers", "0", *english)
        asked = endpoint.asked.total()
        french = folder.table("explanations", layer=0, neurons=[1]).filter(method="highlight")
        score = folder.table("scores", layer=0, neurons=[1]).filter(
            method="highlight", scorer="ev_correlation", split="top_and_random"
        )
        # Back in English everything is kept.
        assert folder.type("run", "--neurons", "0:1", *english).exit_code == 0
        assert endpoint.asked.total() == asked
        refused = folder.type("plan", *english, "--language", "klingon")
    assert french["text"].to_list() == ['les mots "cat", "dog", "horse", "sheep", "mouse"']
    assert score["value"].item() > 0.9
    assert "explanations" in {table for table, _ in causes}
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--language (='klingon') must be one of de, en, es, fr" in refused.stderr
