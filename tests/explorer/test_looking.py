"""`search` and `try` in the terminal: the same answers as the pages."""

import json
import re

import polars as pl
import pytest


def test_words_find_the_explanation_that_holds_them(told):
    text = told.table("explanations", layer=1, neurons=[5]).filter(explainer="scripted").item(0, "text")
    result = told.type("search", *text.split()[:3], "--method", "token-activation-pairs")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "1:5" in result.stdout
    found = json.loads(told.type("search", *text.split()[:3], "--json").stdout)
    assert (found["rows"][0]["layer"], found["rows"][0]["neuron"], found["rows"][0]["text"]) == (1, 5, text)


def test_a_token_finds_the_neurons_whose_token_list_names_it(told):
    lists = told.table("explanations").filter(pl.col("method") == "token-lookup").drop_nulls("text")
    one = lists.row(0, named=True)
    token = re.search(r'"(\w+)"', one["text"])[1]
    found = json.loads(told.type("search", "--token", token, "--json").stdout)
    assert (one["layer"], one["neuron"]) in {(row["layer"], row["neuron"]) for row in found["rows"]}
    assert {row["method"] for row in found["rows"]} == {"token-lookup"}


def test_without_words_the_best_scores_come_first_and_a_limit_is_said(told):
    found = json.loads(told.type("search", "--json", "--layer", "1").stdout)["rows"]
    scores = [row["value"] for row in found if row["value"] is not None]
    assert scores == sorted(scores, reverse=True)
    result = told.type("search", "--limit", "1")
    assert "shown (--limit)" in result.stderr
    assert told.type("search", "nowhere-to-be-found").stdout == "Nothing was found.\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("search", "the", "--token", "the"),
            "--token is a search by itself; leave out the words, --method and --meaning",
        ),
        (("search", "--state", "asleep"), "state (='asleep') must be one of explained, not_explained, failed, dead."),
        (("search", "--sort", "luck"), "sort (='luck') must be one of"),
        (("try", "  "), "TEXT is empty; write some words between quotes"),
        (("try", "the", "--neurons", "5"), "'5' is no neuron; write layer:neuron"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(told, words, said):
    result = told.type(*words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_a_text_of_ones_own_is_read_and_told(told, planted):
    neuron = next(one for one in planted.neurons if (one.layer, one.neuron) == (1, 5))
    text = " ".join([*([neuron.after] if neuron.after else []), neuron.tokens[0], "and"])
    result = told.type("try", text, "--neurons", "1:5")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "1:5" in result.stdout.splitlines()[0]
    assert f"«{neuron.tokens[0]}»" in result.stdout
    found = json.loads(told.type("try", text, "--neurons", "1:5", "--json").stdout)
    truth = neuron.fires([token.strip() for token in found["read"]["tokens"]])
    assert [value > 1 for value in found["read"]["shown"][0]["activations"]] == truth


def test_without_the_model_the_text_cannot_be_read_and_why_is_said(told, tmp_path):
    folder = told.copy(tmp_path)
    (folder.home / "subject" / "config.json").unlink()
    result = folder.type("try", "a text")
    assert result.exit_code == 1
    assert "The model is not at hand" in result.stderr
