"""The ablation scorer, from a run to its audit: simulations in the place of their neurons in a causal subject."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM

from explorer.bundle import provenance
from explorer.fake_endpoint import FakeEndpoint
from explorer.why import why

ABLATION = pl.col("scorer") == "ablation"


def writing(folder):
    """The planted model, whose neurons write nothing, with neurons of layer 1 that make their own words likelier."""
    file = folder.home / "subject" / "model.safetensors"
    tensors = load_file(file)
    tensors["ln_f.weight"].fill_(1)
    output = tensors["h.1.mlp.c_proj.weight"]
    for neuron in range(len(output)):
        output[neuron, 7 * neuron : 7 * neuron + 4] = 0.4
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def softmax(logits):
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def entropy(shares):
    return -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=-1)


def divergence(one, other):
    """Jensen-Shannon divergence by entropies, as textbooks also have it."""
    return entropy((one + other) / 2) - (entropy(one) + entropy(other)) / 2


def next_tokens(model, window, layer, neuron=None, values=None):
    """Next-token probabilities of a plain model, with a neuron replaced if one is given."""

    def replace(_module, given):
        changed = given[0].clone()
        changed[0, :, neuron] = torch.tensor(values, dtype=torch.float32)
        return (changed,)

    handles = [] if values is None else [model.transformer.h[layer].mlp.c_proj.register_forward_pre_hook(replace)]
    with torch.no_grad():
        found = model(torch.tensor([window])).logits[0].double().numpy()
    for handle in handles:
        handle.remove()
    return softmax(found)


@pytest.fixture(scope="module")
def ablated(empty, served, tmp_path_factory):
    """A folder in which the neurons of layer 1 were explained, and their simulations put in their places."""
    folder = writing(empty.copy(tmp_path_factory.mktemp("ablated")))
    assert folder.type("run", "--layers", "1").exit_code == 0
    endpoint = FakeEndpoint()
    with served(endpoint.app()) as address:
        words = ("--layers", "1", "--explainer", "scripted", "--base-url", f"{address}/v1", "--scorers", "ablation")
        plan = json.loads(folder.type("plan", "--json", *words).stdout)
        result = folder.type("run", *words)
        assert result.exit_code == 0, result.stderr
        assert plan["total"]["to_send"] == endpoint.asked.total() == len(endpoint.asked)
        assert "Everything is fresh" in folder.type("run", *words).stdout
        assert folder.not_fresh(*words) == {}
        before = folder.table("ablations", layer=1, neurons=[0])
        assert folder.type("run", "--neurons", "1:0", *words[2:]).exit_code == 0
        assert endpoint.asked.total() == plan["total"]["to_send"]
        # A neuron alone gives what it gives among others.
        assert folder.table("ablations", layer=1, neurons=[0]).drop("run_id").equals(before.drop("run_id"))
        costs = json.loads(folder.type("cost", "--json").stdout)["rows"]
        assert "ablations" in {row["table"] for row in costs}
    return folder


def test_scores_are_those_of_a_plain_model_and_plain_arrays(ablated):
    model = AutoModelForCausalLM.from_pretrained(ablated.home / "subject").eval()
    ablations, simulations = ablated.table("ablations"), ablated.table("simulations")
    exemplars, statistics = ablated.table("exemplars"), ablated.table("neuron_statistics", layer=1)
    scores = ablated.table("scores").filter(ABLATION).drop_nulls("value")
    assert scores["split"].n_unique() == 2
    assert len(scores) >= 20
    for score in scores.filter(split="top_and_random").iter_rows(named=True):
        at = (pl.col("explanation_id") == score["explanation_id"]) & (pl.col("simulator") == score["simulator"])
        with_simulation, with_mean = [], []
        for row in ablations.filter(at).iter_rows(named=True):
            here = pl.col("exemplar_id") == row["exemplar_id"]
            (window,) = exemplars.filter(here)["token_ids"].to_list()
            (expected,) = simulations.filter(at & here)["expected"].to_list()
            (mean,) = statistics.filter(neuron=row["neuron"])["mean"].to_list()
            clean = next_tokens(model, window, 1)
            values = row["intercept"] + row["slope"] * np.asarray(expected)
            for found, put in ((with_simulation, values), (with_mean, np.full(len(window), mean))):
                found.append(divergence(clean, next_tokens(model, window, 1, row["neuron"], put)).mean())
            assert row["divergence"] == pytest.approx(with_simulation[-1], rel=1e-3, abs=1e-9)
            assert row["mean_divergence"] == pytest.approx(with_mean[-1], rel=1e-3, abs=1e-9)
        assert score["value"] == pytest.approx(1 - np.mean(with_simulation) / np.mean(with_mean), abs=1e-4)


def test_simulations_that_are_right_score_near_1_and_better_than_tokens_alone(ablated):
    scores = ablated.table("scores").filter(ABLATION & (pl.col("split") == "top_and_random")).drop_nulls("value")
    told = scores.filter(method="token-activation-pairs")
    assert told["value"].median() > 0.99
    # The words are pairs, which tokens alone cannot tell.
    assert (told["token_lookup"] < told["value"]).any()
    assert (told["ci_low"] <= told["value"]).all()
    # One pair stands in no text of split `calibrate`, so nothing can be fitted there.
    assert told["p_value"].median() == pytest.approx(0.001)


def test_the_line_is_fitted_on_texts_that_are_neither_shown_nor_scored(ablated):
    """Its requests read documents of split `calibrate` alone."""
    calls = dict(ablated.table("language_calls").select("request_id", "request").iter_rows())
    texts = {row[0]: row[1] for row in ablated.table("sequences").select("text", "split").iter_rows()}
    asked = {calls[one] for ids in ablated.table("ablations")["request_ids"] for one in ids}
    assert asked
    simulated = {calls[one] for ids in ablated.table("simulations")["request_ids"] for one in ids}
    for requests, split in ((asked, "calibrate"), (simulated, "score")):
        for request in requests:
            words = "".join(token for _, token, *_ in last_excerpt(json.loads(request)))
            assert {texts[text] for text in texts if text.strip() == words.strip()} == {split}


def last_excerpt(request):
    question = request["messages"][-1][1]
    return json.JSONDecoder().raw_decode(question, question.rindex("[[0"))[0]


def test_the_trace_holds_and_is_checked(ablated):
    score = (
        ablated.table("scores").filter(ABLATION & (pl.col("method") == "token-activation-pairs")).drop_nulls("value")
    )
    one = score.row(0, named=True)
    chain = {hop["name"]: hop for hop in json.loads(ablated.type("why", one["identity"], "--json").stdout)}
    assert len(chain["ablations"]["facts"]["ablations"]) == one["n_sequences"]
    assert chain["ablations"]["facts"]["requests"]
    assert {"simulations", "write of ablations", "write of simulations"} <= set(chain)
    assert "fitted on texts of split `calibrate`" in chain["ablations"]["says"]
    document = json.loads(provenance({"1-0": why(ablated.lake, one)}))
    assert any(name.startswith("nl:ablation-") for name in document["entity"])
    links = json.loads(ablated.type("verify", f"1:{one['neuron']}", "--json").stdout)
    links = links if isinstance(links, list) else links["links"]
    assert {link["name"]: link["outcome"] for link in links}["ablations"] == "equal"
    checks = json.loads(ablated.type("audit", "--quick", "--json").stdout)["checks"]
    assert [check for check in checks if check["findings"] and check["id"] != "A18"] == []


def test_without_a_language_model_the_baselines_are_put_in_place(ablated, tmp_path):
    folder = ablated.copy(tmp_path)
    assert folder.type("run", "--neurons", "1:0", "--scorers", "ablation").exit_code == 0
    found = folder.table("scores", layer=1, neurons=[0]).filter(ABLATION)
    assert set(found["simulator"]) == {"token-lookup", "token-linear"}
    assert found["value"].null_count() == 0


def test_an_encoder_has_a_reason_and_no_number(tmp_path, empty):
    folder = empty.copy(tmp_path)
    config = BertConfig(
        vocab_size=400,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=4,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder.home / "subject")
    result = folder.type("run", "--layers", "0", "--scorers", "ablation")
    assert result.exit_code == 0, result.stderr
    found = folder.table("scores").filter(ABLATION)
    assert found["value"].null_count() == len(found) > 0
    assert found["missing_because"].value_counts(sort=True).row(0)[0] == "not_causal"
    status = json.loads(folder.type("status", "--json", "--scorers", "ablation").stdout)
    missing = [row["missing"] for row in status if row["table"] == "ablations" and row["layer"] == 0]
    assert missing[0]["not_causal"] == len(folder.table("ablations"))
