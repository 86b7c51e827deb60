"""Meaning: texts become vectors once, whatever explanation says them, and the nearest come first."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.meaning import nearest, rows, unit, unknown, unpacked, wanted
from pipeline.ports import Vector
from pipeline.tables import TABLES

TABLE = TABLES["explanation_embeddings"]


def explanations(*texts):
    return pl.DataFrame(
        {
            "layer": [0] * len(texts), "neuron": range(len(texts)), "polarity": ["+"] * len(texts),
            "explanation_id": [f"{place:016x}" for place in range(len(texts))], "text": list(texts),
        },
        schema={"layer": pl.Int32, "neuron": pl.Int32, "polarity": pl.String, "explanation_id": pl.String, "text": pl.String},
    )  # fmt: skip


def vector(*values):
    return Vector(np.asarray(values, dtype=np.float32))


def made(said, found, known=None):
    frame = rows(said, TABLE.empty() if known is None else known, found, encoder="local:x", fingerprint="f")
    return TABLE.conform(frame.with_columns(pl.lit("r").alias("run_id")))


def test_what_says_nothing_is_not_embedded_and_the_same_text_is_embedded_once():
    said = wanted(explanations("cats", None, "  ", "cats", "dogs"), fingerprint="f")
    assert said.get_column("neuron").to_list() == [0, 3, 4]
    assert unknown(said, TABLE.empty()) == ["cats", "dogs"]
    table = made(said, {"cats": vector(1, 0), "dogs": vector(0, 1)})
    assert table.get_column("vector").to_list() == [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]


def test_a_text_that_is_embedded_keeps_its_vector_and_another_encoder_begins_anew():
    known = made(wanted(explanations("cats"), fingerprint="f"), {"cats": vector(1, 0)})
    said = wanted(explanations("dogs", "cats"), fingerprint="f")
    assert unknown(said, known) == ["dogs"]
    assert made(said, {"dogs": vector(0, 1)}, known).get_column("vector").to_list() == [[0.0, 1.0], [1.0, 0.0]]
    assert unknown(wanted(explanations("cats"), fingerprint="g"), known) == ["cats"]


def test_a_text_without_a_vector_says_why_and_is_asked_about_again():
    said = wanted(explanations("cats"), fingerprint="f")
    table = made(said, {"cats": Vector(None, "timeout", "sha256:1")})
    assert table.select("vector", "missing_because", "request_id").rows() == [(None, "timeout", "sha256:1")]
    assert unknown(said, table) == ["cats"]


def test_a_vector_has_length_one_and_what_has_no_direction_is_none():
    assert unit(np.asarray([3.0, 4.0], dtype=np.float32)).tolist() == pytest.approx([0.6, 0.8])
    assert unit(np.zeros(3, dtype=np.float32)) is None
    assert unit(np.asarray([np.nan, 1.0], dtype=np.float32)) is None


@pytest.mark.parametrize(
    "text", ["", "no list", "[]", "[0.0, 0.0]", "[1, [2]]", "{}", "3", "[null]", '["a"]', "[1e400]"]
)
def test_a_reply_that_is_no_vector_is_none(text):
    assert unpacked(text) is None


def test_a_reply_is_read_as_it_was_sent():
    assert unpacked("[3.0, 4]").tolist() == pytest.approx([0.6, 0.8])


@given(arrays(np.float32, st.tuples(st.integers(1, 30), st.just(3)), elements=st.integers(-2, 2)), st.integers(0, 40))
def test_the_nearest_are_those_of_a_whole_sort(vectors, most):
    one = np.asarray([1.0, 0.0, -1.0], dtype=np.float32)
    places, cosines = nearest(vectors, one, most=most)
    order = sorted(range(len(vectors)), key=lambda place: (-float(vectors[place] @ one), place))[:most]
    assert places.tolist() == order
    assert cosines.tolist() == [float(vectors[place] @ one) for place in order]
