"""The simulator whose reply the endpoint holds to its shape: the schema takes what is read in full, and nothing else."""

import json

import polars as pl
import pytest

from pipeline.json_schema_simulator import PROMPT_HASH, parse, requests, shape
from pipeline.json_simulator import PROMPT_HASH as PLAIN
from pipeline.ports import Reply

ONE = {"layer": 0, "neuron": 1, "polarity": "+"}


def asked(texts):
    explained = pl.DataFrame([ONE | {"explanation_id": "e", "text": "names of cats"}])
    hidden = pl.DataFrame(
        [ONE | {"exemplar_id": "x", "sequence_id": "s", "split": "score", "token_ids": list(range(len(texts)))}]
    )
    ((_, request),) = requests(explained, hidden, {"s": texts}, model="m", seed=0)
    return request


def said(value):
    return Reply("sha256:0", value if isinstance(value, str) else json.dumps(value), None)


def test_the_shape_has_one_entry_for_every_token_and_no_other():
    found = json.loads(asked(["The", " cat", "\n"]).shape)
    inner = found["properties"]["activations"]
    assert found["required"] == ["activations"]
    assert list(inner["properties"]) == inner["required"] == ["0", "1", "2"]
    assert found["additionalProperties"] is inner["additionalProperties"] is False
    assert found["$defs"]["activation"]["enum"] == list(range(11))
    # Endpoints have a reply written in the order of the schema, which is that of reading.
    many = json.loads(asked([" a"] * 64).shape)
    assert many == shape(64)
    assert list(many["properties"]["activations"]["properties"]) == [str(index) for index in range(64)]
    assert PROMPT_HASH != PLAIN


def test_the_worked_answers_are_read_in_full():
    *worked, _ = asked([" cat"]).messages[1:]
    for (_, question), (role, answer) in zip(worked[::2], worked[1::2], strict=True):
        tokens = json.loads(question.partition("Excerpt:\n")[2])
        assert role == "assistant"
        assert parse(said(answer), len(tokens)).coverage == 1.0


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ({"activations": {"0": 0, "1": 7}}, [0, 7]),
        ({"activations": {"1": 7}}, [None, 7]),
        ({"activations": {"0": 0, "1": 11}}, [0, None]),
        ({"activations": {"0": 0, "1": 7, "2": 1}}, "wrong_length"),
        ({"activations": {"0": 0, "01": 7}}, "unparsable"),
        ({"activations": {"0": 0, "١": 7}}, "unparsable"),
        ({"activations": {"-1": 0}}, "unparsable"),
        ({"activations": {}}, "wrong_length"),
        ({"activations": [[0, 0], [1, 7]]}, "unparsable"),
        ({"activations": {"0": 0}, "note": ""}, "unparsable"),
        ('{"activations": {"0": 0, "0": 7}}', "unparsable"),
        ('{"activations": {"0": NaN}}', "unparsable"),
    ],
)
def test_an_endpoint_that_does_not_hold_to_it_is_read_strictly(reply, read):
    found = parse(said(reply), 2)
    assert (found.missing_because if found.expected is None else found.expected) == read


def test_a_failed_reply_has_its_reason():
    assert parse(Reply("sha256:0", None, "truncated"), 2).missing_because == "truncated"
