"""Replies that an endpoint holds to a JSON Schema: asked for as documented, in the identity, and refused in words."""

import json

import pytest
from asking import FolderLake
from endpoint import FAULTS, Endpoint

from pipeline.errors import LanguageModelError
from pipeline.ports import Request
from pipeline.provenance import canonical_json, content_hash
from resources.language import OpenAICompatible, sent

SHAPE = canonical_json({"type": "object", "properties": {"0": {"type": "integer"}}})


def shaped(shape=SHAPE):
    return Request("m", (("user", "x"),), 0.0, 5, 1, shape=shape)


@pytest.fixture
def ask(tmp_path):
    return lambda url: OpenAICompatible(url, journal_path=tmp_path / "j", lake=FolderLake(tmp_path / "lake"))


def test_the_schema_is_sent_as_documented_and_a_request_without_one_is_what_it_was(ask):
    with Endpoint() as endpoint:
        ask(endpoint.url).answer([shaped(), shaped("")], run_id="r")
    found = sorted((request["response_format"] for request in endpoint.requests), key=lambda one: one["type"])
    assert found == [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": json.loads(SHAPE)}},
    ]
    before = {
        "endpoint": "http://e", "model": "m", "messages": [["user", "x"]], "temperature": 0.0, "max_tokens": 5, "seed": 1,
        "json_reply": True,
    }  # fmt: skip
    assert content_hash(sent(shaped(""), endpoint="http://e")) == content_hash(before)
    assert content_hash(sent(shaped(), endpoint="http://e")) == content_hash(before | {"shape": SHAPE})


@pytest.mark.parametrize("status", [400, 422, 500])
def test_an_endpoint_that_takes_no_schema_is_said_with_the_remedy_and_keeps_its_plain_form(ask, monkeypatch, status):
    words = "{'loc': ('body', 'response_format', 'type'), 'msg': \"Input should be 'text' or 'json_object'\"}"
    refusal = (status, {}, json.dumps({"error": {"message": words, "type": "x"}}).encode())
    monkeypatch.setitem(FAULTS, "400 schema", lambda key, text: refusal)
    with Endpoint(script=["400 schema"]) as endpoint:
        language = ask(endpoint.url)
        with pytest.raises(LanguageModelError, match=r"does not hold replies to a JSON Schema .* such as `json`"):
            language.answer([shaped()], run_id="r")
        assert language.answer([shaped("")], run_id="r")[0][0].text == "answer to x"
    assert [request["response_format"]["type"] for request in endpoint.requests] == ["json_schema", "json_object"]
