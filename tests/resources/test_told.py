"""Own probabilities of a prompt's tokens: where they stand in any text, and the exact ones of a local model."""

import pytest
import torch
from tiny_models import save_subject
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.ports import Likely, Reply
from pipeline.provenance import canonical_json
from pipeline.surprisal import loss, request
from resources import logprobs
from resources.answers import read
from resources.language import sent
from resources.local_language import LocalModel


def value(*pairs):
    return {"tokens": [token for token, _ in pairs], "token_logprobs": [logprob for _, logprob in pairs]}


def test_tokens_from_a_place_on_each_with_itself_alone():
    found = logprobs.told(value(("ab", None), ("c ", -1.0), ("d", -2.0)), "abc d", 4)
    assert found == (Likely("d", (("d", -2.0),)),)
    # One that begins before the place counts, and what the model writes after the prompt does not.
    assert len(logprobs.told(value(("ab", None), ("c ", -1.0), ("d", -2.0), ("e", -3.0)), "abc d", 3)) == 2


def test_places_are_characters_whatever_bytes_they_take():
    split = value(("é", None), ("bytes:\\xe2\\x82", -1.0), ("bytes:\\xac", -2.0), (" x", -3.0))
    assert [one.token for one in logprobs.told(split, "é€ x", 1)] == ["bytes:\\xe2\\x82", "bytes:\\xac", " x"]
    assert [one.token for one in logprobs.told(split, "é€ x", 2)] == [" x"]


@pytest.mark.parametrize(
    "found",
    [
        None, {}, {"tokens": ["a"], "token_logprobs": []}, value(("x", -1.0)), value(("a", None), ("b", None)),
        value(("a", None), ("b", float("nan"))), value(("a", None), ("b", True)), value((1, -1.0), ("b", -1.0)),
        {"content": [{"token": "ab", "logprob": -1.0}]},
    ],
)  # fmt: skip
def test_what_does_not_hold_the_prompt_is_not_known(found):
    assert logprobs.told(found, "ab", 1) is None


def test_a_local_model_gives_the_exact_loss(tmp_path):
    folder = save_subject("gpt2", tmp_path, n_positions=512)
    text = " of the café \n\n€"
    asked = request("the end", text, model=f"local:{folder}", seed=0)
    answer = read(200, LocalModel(str(folder)).respond(asked), canonical_json(sent(asked, endpoint="local:x")))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(asked.messages[0][1])["input_ids"]])
    with torch.no_grad():
        own = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    count = len(tokenizer(text)["input_ids"])
    assert loss(Reply("r", answer.text, None, likely=answer.likely)) == (
        pytest.approx(-float(own[-count:].sum())),
        count,
    )
    assert answer.prompt_tokens == ids.shape[1]
