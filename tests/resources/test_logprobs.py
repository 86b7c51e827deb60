"""Logprobs: both forms of endpoints are read, kept and read again; what is no probability is left out."""

import json

import pytest
from asking import FolderLake
from endpoint import FAULTS, Endpoint
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import LanguageModelError
from pipeline.ports import Likely, Request
from pipeline.provenance import content_hash
from resources import language as door
from resources import logprobs
from resources.language import OpenAICompatible

CHAT = {
    "content": [
        {
            "token": "7",
            "logprob": -0.1,
            "top_logprobs": [{"token": "7", "logprob": -0.1}, {"token": "6", "logprob": -3}],
        },
        {"token": "!", "logprob": -0.5, "top_logprobs": []},
    ]
}
OLDER = {
    "tokens": ["<s>", "a", "7"],
    "token_logprobs": [None, -1.0, -0.1],
    "top_logprobs": [None, {"b": -0.5}, {"7": -0.1, "6": -3, "9": -11.0}],
}


def test_both_forms_are_read_the_likeliest_first_and_what_is_hardly_likely_left_out():
    assert logprobs.read(CHAT) == (Likely("7", (("7", -0.1), ("6", -3.0))), Likely("!", (("!", -0.5),)))
    assert logprobs.read(OLDER) == (
        Likely("<s>", ()),
        Likely("a", (("b", -0.5), ("a", -1.0))),
        Likely("7", (("7", -0.1), ("6", -3.0))),
    )


def test_places_are_counted_from_where_the_prompt_begins():
    found = logprobs.read(OLDER)
    assert logprobs.at_places(found, "a7", [1, 0, 5]) == (found[2], found[1], Likely("", ()))
    assert logprobs.at_places(found, "a8", [1]) is None
    assert logprobs.at_places(None, "a7", [1]) is None


def test_few_probabilities_are_no_sign_of_being_one_token_off():
    """A model in this process gives them for the places of numbers alone, where a line's end may be the likeliest."""
    of_a_number = Likely("?", (("\n", -0.1), ("7", -3.0)))
    found = [Likely("a", ()), Likely("\t", ()), of_a_number, Likely("\n", ()), Likely("b", ())]
    assert logprobs.at_places(found, "a\t?\nb", [2]) == (of_a_number,)


@pytest.mark.parametrize("late", [False, True])
def test_probabilities_that_stand_one_token_off_say_nothing(late):
    """llama-cpp-python's server gives each token of a prompt the probabilities of the one after it."""
    words = ["1", "\t", "7", "\n", "2", "\t", "?", "\n"]
    firsts = [*words[1:], "3"] if late else [*words[:6], "5", "\n"]
    sent = {
        "tokens": words,
        "token_logprobs": [None, *(-9.0 if late else -0.2 for _ in words[1:])],
        "top_logprobs": [None, *({first: -0.1} for first in firsts[1:])],
    }
    prompt = "".join(words)
    found = logprobs.at_places(logprobs.read(sent), prompt, [prompt.index("?")])
    told = logprobs.told(sent, prompt, 3)
    assert (found is None, told is None) == (late, late)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["content", "tokens", "token", "token_logprobs", "logprob", "top_logprobs", "7"]), inner
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_anything_is_read_as_probabilities_or_as_nothing(value):
    found = logprobs.read(value)
    for one in found or ():
        assert all(logprob <= 0 for _, logprob in one.tokens)
    assert logprobs.unpacked(logprobs.packed(found)) == found


def test_a_request_without_probabilities_has_the_identity_that_it_always_had(tmp_path):
    language = OpenAICompatible(
        "http://127.0.0.1:9/v1", journal_path=tmp_path / "j", lake=FolderLake(tmp_path / "lake")
    )
    request = Request("m", (("user", "x"),), 0.0, 5, 1)
    before = {
        "endpoint": "http://127.0.0.1:9/v1", "model": "m", "messages": [["user", "x"]], "temperature": 0.0,
        "max_tokens": 5, "seed": 1, "json_reply": True,
    }  # fmt: skip
    assert language.request_id(request) == content_hash(before)
    with_them = Request("m", (("user", "x"),), 0.0, 5, 1, logprobs=20)
    assert language.request_id(with_them) == content_hash(before | {"logprobs": 20})


def test_an_endpoint_that_gives_no_probabilities_is_said_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(door, "FIRST_PAUSE", 0.01)
    refusal = (400, {}, json.dumps({"error": {"message": "logprobs is not supported here", "type": "x"}}).encode())
    monkeypatch.setitem(FAULTS, "400 logprobs", lambda key, text: refusal)
    with Endpoint(script=["400 logprobs"] * 3) as endpoint:
        language = OpenAICompatible(endpoint.url, journal_path=tmp_path / "j", lake=FolderLake(tmp_path / "lake"))
        with pytest.raises(LanguageModelError, match=r"does not give the probabilities .* such as `json`"):
            language.answer([Request("m", (("user", "x"),), 0.0, 5, 1, logprobs=20)], run_id="r")
