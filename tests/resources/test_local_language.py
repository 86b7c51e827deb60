"""The local language model: its probabilities are those of the model, whatever is in its cache, and it is asked once."""

import pytest
import torch
from asking import FolderLake
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
from writer import small_writer

from pipeline.errors import LanguageModelError
from pipeline.ports import Request
from pipeline.prompt_simulator import parse_at_once, parse_by_token
from resources import local_language, logprobs
from resources.language import OpenAICompatible


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random GPT-2 with a token for each byte, and one for 10."""
    return small_writer(tmp_path_factory.mktemp("writer"))


@pytest.fixture
def ask(tmp_path, folder):
    language = OpenAICompatible(
        "https://model.invalid/v1", journal_path=tmp_path / "journal.sqlite", lake=FolderLake(tmp_path / "lake")
    )

    def answer(*requests):
        return language.answer(requests, run_id="r")

    return answer


def completing(folder, prompt, **more):
    settings = {"max_tokens": 3, "logprobs": 20, "json_reply": False} | more
    return Request(f"local:{folder}", (("prompt", prompt),), 0.0, seed=0, **settings)


def truly(folder, prompt):
    """The log-probabilities after each byte of a prompt, by the model alone."""
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(tokenizer(prompt, return_tensors="pt").input_ids).logits[0]
    return tokenizer, logits.log_softmax(dim=-1)


def test_what_is_likely_at_a_place_is_what_the_model_says_there(ask, folder):
    prompt = "a cat\t?\na dog\t?"
    places = (6, 14)
    ((reply,), usage) = ask(completing(folder, prompt, echo=places))
    tokenizer, exact = truly(folder, prompt)
    for one, place in zip(reply.likely, places, strict=True):
        assert one.token == "?"
        assert len(one.tokens) >= 20
        for text, logprob in one.tokens[:20]:
            token = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
            if len(token) == 1:  # a byte that is no whole character has no text of its own
                assert logprob == pytest.approx(float(exact[place - 1, token[0]]), abs=1e-4)
    assert usage.cost_usd == 0.0


def test_what_requests_share_is_computed_once_and_changes_nothing(folder, tmp_path):
    shared = "the same beginning for all of them: " * 20
    requests = [
        completing(folder, f"{shared}{word} ?", echo=(len(shared) + len(word) + 1,))
        for word in ("cat", "dog", "cat and dog")
    ]

    def fresh(name):
        return OpenAICompatible(
            "http://x.invalid", journal_path=tmp_path / name, lake=FolderLake(tmp_path / f"{name}.lake")
        )

    together, _ = fresh("together").answer(requests, run_id="r")
    for place, request in enumerate(requests):
        ((alone,), _) = fresh(f"alone{place}").answer([request], run_id="r")
        assert [text for text, _ in alone.likely[0].tokens[:5]] == [
            text for text, _ in together[place].likely[0].tokens[:5]
        ]
        assert [p for _, p in alone.likely[0].tokens] == pytest.approx(
            [p for _, p in together[place].likely[0].tokens], abs=1e-4
        )


def test_it_writes_greedily_and_the_same_each_time_and_is_asked_once(ask, folder):
    request = Request(f"local:{folder}", (("system", "You are brief."), ("user", "Hello")), 0.0, 8, 0, logprobs=5)
    ((reply,), usage) = ask(request)
    ((again,), kept) = ask(request)
    assert (usage.requests_sent, kept.requests_sent, kept.requests_kept) == (1, 0, 1)
    assert again == reply
    # A random model mostly runs into the limit, and what it was cut at is no answer.
    assert reply.missing_because in {None, "truncated", "unparsable"}
    ((first,), _) = ask(completing(folder, "system: You are brief.\n\nuser: Hello\n\nassistant:", max_tokens=2))
    _, exact = truly(folder, "system: You are brief.\n\nuser: Hello\n\nassistant:")
    assert first.likely[0].tokens[0][1] == pytest.approx(float(exact[-1].max()), abs=1e-4)


def test_both_ways_of_a_prompt_expect_the_same(ask, folder):
    prompt = 'Explanation: "x"\nExcerpt:\n0\t"10"\t10\n1\t" a"\t?\n2\t"\\u00e9"\t?'
    ten, *places = prompt.index("\t10\n") + 1, *(place for place, sign in enumerate(prompt) if sign == "?")
    ((whole,), _) = ask(completing(folder, prompt, echo=(ten, *places)))
    one_by_one, _ = ask(*(completing(folder, prompt[:place], max_tokens=2) for place in places))
    at_once, by_token = parse_at_once(whole, 2), parse_by_token(one_by_one)
    # A random model holds few of 258 tokens much likelier than the others; what numbers are among them is its affair.
    assert at_once.missing_because == by_token.missing_because
    if at_once.expected is not None:
        assert [one is None for one in at_once.expected] == [one is None for one in by_token.expected]


def test_a_ten_that_is_spelled_in_two_tokens_has_the_probability_of_both(ask, tmp_path, monkeypatch):
    # To a random model each of its tokens is about as likely as the others.
    monkeypatch.setattr(local_language, "LIKELIEST", 300)
    monkeypatch.setattr(logprobs, "LEAST_LOGPROB", -20.0)
    folder = small_writer(tmp_path / "digits", ten=False)
    prompt = 'Explanation: "x"\nExcerpt:\n0\t"10"\t10\n1\t" a"\t?\n2\t"\\u00e9"\t?'
    ten, *places = prompt.index("\t10\n") + 1, *(place for place, sign in enumerate(prompt) if sign == "?")
    ((whole,), _) = ask(completing(folder, prompt, echo=(ten, *places)))
    one_by_one, _ = ask(*(completing(folder, prompt[:place], max_tokens=2) for place in places))
    assert whole.likely[0].token == "10"
    at_once, by_token = parse_at_once(whole, 2), parse_by_token(one_by_one)
    for place, found, alone in zip(places, at_once.distributions, by_token.distributions, strict=True):
        tokenizer, exact = truly(folder, prompt[:place] + "1")
        zero = tokenizer.convert_tokens_to_ids("0")
        chances = {str(n): exact[-2, tokenizer.convert_tokens_to_ids(str(n))].exp().item() for n in range(10)}
        chances["10"] = chances["1"] * exact[-1, zero].exp().item()
        chances["1"] -= chances["10"]
        true = {float(n): chance / sum(chances.values()) for n, chance in chances.items()}
        assert dict(zip(found.values, found.probabilities, strict=True)) == pytest.approx(true, rel=1e-3)
        assert dict(zip(alone.values, alone.probabilities, strict=True)) == pytest.approx(true, rel=1e-3)


def test_what_is_no_model_is_said_and_a_prompt_that_is_too_long_too(ask, folder, tmp_path):
    with pytest.raises(LanguageModelError, match="cannot be used"):
        ask(completing(tmp_path / "nothing", "x"))
    with pytest.raises(LanguageModelError, match="reads at most 8,192 tokens, and a request has 9,000"):
        ask(completing(folder, "x" * 9000))


def test_pickled_weights_are_refused(ask, tmp_path, folder):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(LanguageModelError, match="holds pickled weights only"):
        ask(completing(pickled, "x"))
