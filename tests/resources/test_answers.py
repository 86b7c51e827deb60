"""Answers: embeddings, as endpoints send them."""

import base64
import json
import struct

import pytest

from resources.answers import read

USAGE = {"prompt_tokens": 5, "total_tokens": 5}


def body(data):
    return json.dumps({"object": "list", "model": "m", "data": data, "usage": USAGE}).encode()


def test_a_vector_is_kept_as_the_numbers_came():
    found = read(200, body([{"object": "embedding", "index": 0, "embedding": [0.1, -2, 3e-05]}]))
    assert (found.text, found.missing_because) == ("[0.1,-2,3e-05]", None)
    assert (found.prompt_tokens, found.completion_tokens, found.model_served) == (5, 0, "m")


def test_a_vector_in_base_64_is_float32():
    packed = base64.b64encode(struct.pack("<2f", 0.5, -1.25)).decode()
    assert json.loads(read(200, body([{"embedding": packed}])).text) == [0.5, -1.25]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ([], "wrong_length"),
        ([{"embedding": []}], "unparsable"),
        ([{"embedding": [1, None]}], "unparsable"),
        ([{"embedding": "no base 64!"}], "unparsable"),
        ([{"embedding": "AAA="}], "unparsable"),
        ([{"embedding": {"values": [1]}}], "unparsable"),
        ([{"embedding": [1]}, {"embedding": [2]}], "unparsable"),
    ],
)
def test_what_is_no_single_vector_is_missing_with_a_reason(data, reason):
    found = read(200, body(data))
    assert (found.text, found.missing_because) == (None, reason)
    assert found.error
