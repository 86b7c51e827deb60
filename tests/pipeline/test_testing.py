"""The planted models do what is claimed of them when they are run, and the scripted language model knows it."""

import json
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import json_simulator, token_activation_pairs
from pipeline.errors import SettingsError
from pipeline.ports import LanguageModel, Request
from pipeline.testing import (
    POSITIONS,
    Planted,
    ScriptedLanguageModel,
    planted_checkpoint,
    planted_corpus,
    planted_gated_checkpoint,
)
from resources.subject import HuggingFaceSubject


@pytest.fixture(scope="session", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    return planted_checkpoint(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return planted_gated_checkpoint(tmp_path_factory.mktemp("llama"))


TRUTH = Planted(folder=Path(), neurons=())


def ran(planted: Planted, texts: list[str]) -> tuple[list[list[str]], dict[int, torch.Tensor]]:
    """The words of each text's first window, and the activations of each layer: (window, token, neuron)."""
    subject = HuggingFaceSubject(str(planted.folder), device="cpu")
    tokens = [made for made in subject.tokenize(texts) if len(made.ids) >= POSITIONS]
    seen: dict[int, torch.Tensor] = {}
    windows = [made.ids[:POSITIONS] for made in tokens]

    def receive(layer: int, rows: slice, x: torch.Tensor) -> None:
        seen.setdefault(layer, torch.empty(len(windows), *x.shape[1:]))[rows] = x

    subject.capture([windows], range(len(subject.layers())), receive)
    return [[piece.decode() for piece in made.pieces[:POSITIONS]] for made in tokens], seen


def explain(words: list[str], scaled: list[int]) -> Request:
    exemplar = pl.DataFrame(
        {
            "layer": [0], "neuron": [0], "polarity": ["+"], "split": ["explain"], "stratum": ["top"], "rank": [0],
            "sequence_id": ["s"], "scaled_activations": [scaled],
        }
    )  # fmt: skip
    ((_, request),) = token_activation_pairs.requests(exemplar, {"s": words}, model="m", seed=0)
    return request


def simulate(explanation: str, words: list[str]) -> Request:
    neuron = {"layer": [0], "neuron": [0], "polarity": ["+"]}
    explanations = pl.DataFrame({**neuron, "explanation_id": ["e"], "text": [explanation]})
    exemplars = pl.DataFrame(
        {**neuron, "exemplar_id": ["x"], "sequence_id": ["s"], "split": ["score"], "token_ids": [[0] * len(words)]}
    )
    ((_, request),) = json_simulator.requests(explanations, exemplars, {"s": words}, model="m", seed=0)
    return request


def simulated(model: ScriptedLanguageModel, explanation: str, words: list[str]) -> list[float] | None:
    (reply,), _ = model.answer([simulate(explanation, words)], run_id="r")
    return json_simulator.parse(reply, len(words)).expected


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_neuron_fires_where_it_is_said_to_and_nowhere_else(name, request):
    planted = request.getfixturevalue(name)
    texts, seen = ran(planted, planted_corpus(60, seed=3))
    assert len(texts) == 60
    for neuron in planted.neurons:
        x = seen[neuron.layer][:, :, neuron.neuron] * (-1 if neuron.polarity == "-" else 1)
        fires = torch.tensor([neuron.fires(words) for words in texts])
        assert (x[fires] > 2.9).all()
        assert (x[~fires] <= 0).all()
        if neuron.kind in ("tokens", "after", "both"):
            assert 0 < fires.float().mean() < 0.1


def test_every_neuron_of_a_checkpoint_is_accounted_for(gpt2, llama):
    for planted in (gpt2, llama):
        sites = HuggingFaceSubject(str(planted.folder), device="cpu").layers()
        assert {(site.layer, neuron) for site in sites for neuron in range(site.n_neurons)} == {
            (neuron.layer, neuron.neuron) for neuron in planted.neurons
        }


def test_a_constant_neuron_is_constant_to_the_bit(gpt2, llama):
    for planted in (gpt2, llama):
        _, seen = ran(planted, planted_corpus(20, seed=0))
        for neuron in planted.neurons:
            if neuron.kind == "always":
                assert seen[neuron.layer][:, :, neuron.neuron].unique().numel() == 1


def test_a_word_in_context_fires_at_every_position_but_the_first(gpt2):
    (bank,) = [neuron for neuron in gpt2.neurons if neuron.tokens == ("bank",)]
    for first, expected in (("river", True), ("bank", False), ("road", False)):
        _, seen = ran(
            gpt2, [" ".join([first, "bank", *["the"] * (POSITIONS - 2)]), " ".join(["the"] * 62 + [first, "bank"])]
        )
        x = seen[bank.layer][:, :, bank.neuron] > 0
        assert x.nonzero().tolist() == ([[0, 1], [1, POSITIONS - 1]] if expected else [])
    _, seen = ran(gpt2, [" ".join(["bank", *["river"] * (POSITIONS - 1)])])
    assert not (seen[bank.layer][:, :, bank.neuron] > 0).any()


def test_a_gated_neuron_of_two_signs_is_silent_to_the_bit_elsewhere(llama):
    words, seen = ran(llama, planted_corpus(20, seed=0))
    plus, minus = (neuron for neuron in llama.neurons if neuron.kind == "both")
    assert (plus.neuron, plus.polarity, minus.neuron, minus.polarity) == (0, "+", 0, "-")
    x = seen[0][:, :, 0]
    either = torch.tensor([plus.fires(text) for text in words]) | torch.tensor([minus.fires(text) for text in words])
    assert (x[~either] == 0).all()
    assert (x > 0).any()
    assert (x < 0).any()


def test_two_checkpoints_of_one_kind_are_the_same(gpt2, tmp_path):
    again = planted_checkpoint(tmp_path)
    subjects = [HuggingFaceSubject(str(planted.folder), device="cpu") for planted in (gpt2, again)]
    assert len({tuple(subject.fingerprints()) for subject in subjects}) == 1
    assert len({subject.tokenizer_hash() for subject in subjects}) == 1
    assert again.neurons == gpt2.neurons


def test_words_keep_the_space_before_them_and_strangers_are_unknown(gpt2):
    subject = HuggingFaceSubject(str(gpt2.folder), device="cpu")
    (tokens,) = subject.tokenize(["river bank."])
    assert tokens.pieces == [b"river", b" bank", b"."]
    assert len(set(tokens.ids)) == 3
    (strange,) = subject.tokenize(["the zeppelin bank"])
    assert strange.ids[1] == 0
    assert b"".join(strange.pieces) == b"the zeppelin bank"


def test_a_corpus_is_distinct_texts_of_known_words_long_enough_for_a_window(gpt2):
    texts = planted_corpus(100, seed=5)
    assert len(set(texts)) == 100
    assert texts == planted_corpus(100, seed=5) != planted_corpus(100, seed=6)
    for tokens in HuggingFaceSubject(str(gpt2.folder), device="cpu").tokenize(texts):
        assert 64 < len(tokens.ids) <= 122
        assert 0 not in tokens.ids


def test_a_word_in_context_stands_more_often_without_it():
    words = " ".join(planted_corpus(100, seed=5)).replace(".", "").split()
    banks = [before for before, word in pairwise(words) if word == "bank"]
    assert 0.2 < banks.count("river") / len(banks) < 0.5


def test_no_wrong_explanation_shares_a_word_with_the_right_one(gpt2, llama):
    for neuron in (*gpt2.neurons, *llama.neurons):
        assert not {word for word in neuron.tokens if f'"{word}"' in neuron.wrong}


def test_it_explains_the_neuron_whose_words_are_active(gpt2):
    model: LanguageModel = ScriptedLanguageModel(gpt2)
    questions = {
        'the word "bank" right after "river"': explain(["the", " river", " bank", " bank"], [0, 0, 10, 0]),
        'the words "cat", "dog", "horse", "sheep", "mouse"': explain(["cat", " the", " dog"], [8, 0, 10]),
        "every token": explain(["the", " of", " cat"], [10, 10, 10]),
    }
    replies, usage = model.answer(list(questions.values()), run_id="r")
    assert [token_activation_pairs.parse(reply) for reply in replies] == [(text, None) for text in questions]
    assert (usage.requests_sent, usage.requests_kept, usage.failures) == (3, 0, {})


def test_it_declines_to_explain_what_was_not_planted(gpt2):
    (reply,), usage = ScriptedLanguageModel(gpt2).answer([explain(["the", " of", " and"], [0, 10, 0])], run_id="r")
    assert (reply.text, reply.missing_because) == (None, "refused")
    assert usage.failures == {"refused": 1}


def test_it_gives_the_explanation_of_another_neuron_when_told_to_be_wrong(gpt2):
    (reply,), _ = ScriptedLanguageModel(gpt2, wrong=True).answer(
        [explain(["a", " cat", " dog"], [0, 9, 10])], run_id="r"
    )
    assert json.loads(reply.text) == {"explanation": 'the words "bread", "cheese", "soup", "apple", "rice"'}


def test_it_simulates_each_planted_neuron_from_its_explanation_alone(gpt2, llama):
    blind = ScriptedLanguageModel(TRUTH)
    for text in planted_corpus(5, seed=2):
        words = [f" {word}" for word in text.removesuffix(".").split()]
        for neuron in (*gpt2.neurons, *llama.neurons):
            assert simulated(blind, neuron.what, words) == [10 * fires for fires in neuron.fires(words)]


@given(st.text())
def test_words_that_name_no_token_simulate_silence(explanation):
    expected = simulated(ScriptedLanguageModel(TRUTH), f"something {explanation}".replace('"', ""), ["the", " cat"])
    assert expected == [0, 0]


def test_the_same_question_twice_is_answered_once(gpt2):
    model = ScriptedLanguageModel(gpt2)
    question, other = simulate("every token", ["a"]), simulate("every token", ["a", " cat"])
    first, usage = model.answer([question, question], run_id="r")
    assert (usage.requests_sent, usage.requests_kept) == (1, 1)
    again, usage = model.answer([other, question], run_id="s")
    assert (usage.requests_sent, usage.requests_kept) == (1, 1)
    assert first[0] == first[1] == again[1] != again[0]
    assert (model.sent, model.kept) == (2, 2)


def test_a_share_of_requests_fails_and_always_the_same_ones(gpt2):
    questions = [simulate("every token", ["the"] * n) for n in range(1, 201)]
    model = ScriptedLanguageModel(gpt2, failing=0.25, reason="rate_limited")
    replies, usage = model.answer(questions, run_id="r")
    failed = [reply.request_id for reply in replies if reply.text is None]
    assert 25 < len(failed) < 75
    assert usage.failures == {"rate_limited": len(failed)}
    again, usage = model.answer(questions, run_id="s")
    assert [reply.request_id for reply in again if reply.text is None] == failed
    assert (usage.requests_sent, usage.requests_kept) == (len(failed), 200 - len(failed))
    other, _ = ScriptedLanguageModel(gpt2, failing=0.25, seed=1).answer(questions, run_id="r")
    assert [reply.request_id for reply in other if reply.text is None] != failed


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 20)])
def test_no_request_fails_or_all_do_if_told_so(gpt2, share, count):
    questions = [simulate("every token", ["the"] * n) for n in range(1, 21)]
    replies, _ = ScriptedLanguageModel(gpt2, failing=share).answer(questions, run_id="r")
    assert sum(reply.missing_because == "timeout" for reply in replies) == count


def test_a_share_or_a_reason_that_cannot_be_is_refused(gpt2):
    with pytest.raises(SettingsError, match=r"`failing` \(=1.5\) must be a share from 0 to 1"):
        ScriptedLanguageModel(gpt2, failing=1.5)
    with pytest.raises(SettingsError, match=r"`reason` \(='bored'\) is not known; use one of .*'timeout'"):
        ScriptedLanguageModel(gpt2, reason="bored")


def test_another_kind_of_question_is_declined(gpt2):
    chat = Request(model="m", messages=(("user", "How are you?"),), temperature=0.0, max_tokens=10, seed=0)
    (reply,), _ = ScriptedLanguageModel(gpt2).answer([chat], run_id="r")
    assert (reply.text, reply.missing_because) == (None, "refused")
