"""Records that somebody changed are refused, and none that a write leaves."""

import json

import polars as pl
import pytest

from pipeline.errors import LakeError
from pipeline.records import OBJECTS, check

RECORD = {
    "commit_uuid": "u",
    "inputs": json.dumps({"activations": {"content_hash": "sha256:0", "version": 3}}),
    "settings": "{}",
    "code": json.dumps({"code_version": "1"}),
    "environment": json.dumps({"made": {"values_hash": "sha256:1"}, "parts": {"a": "b"}}),
    "usage": json.dumps({"failures": {"refused": 2}}),
}


def test_what_a_write_leaves_is_a_record():
    check(pl.DataFrame([RECORD, {**RECORD, "usage": "{}"}]))
    of_a_release = json.dumps({"scores": {"content_hash": None, "version": 3}})
    check(pl.DataFrame([RECORD, {**RECORD, "inputs": of_a_release}]))
    check(pl.DataFrame(schema=dict.fromkeys(RECORD, pl.String)))


@pytest.mark.parametrize("column", OBJECTS)
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "[" * 5000])
def test_anything_but_an_object_was_put_there_by_somebody(column, text):
    with pytest.raises(LakeError, match=rf"`{column}` of the record v in .* not what a write leaves .* audit --quick"):
        check(pl.DataFrame([RECORD, {**RECORD, "commit_uuid": "v", column: text}]))


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("inputs", '{"a": 1}'),
        ("inputs", '{"a": {"content_hash": null}}'),
        ("usage", '{"failures": []}'),
        ("usage", '{"failures": {"refused": "2"}}'),
        ("environment", '{"made": 1}'),
        ("environment", '{"subject": []}'),
    ],
)
def test_an_object_of_another_form_is_none_of_ours(column, text):
    with pytest.raises(LakeError, match=f"`{column}` of the record u"):
        check(pl.DataFrame([{**RECORD, column: text}]))
