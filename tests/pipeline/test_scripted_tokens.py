"""Scripted tokens: they are as awkward as real ones, and their probabilities add up."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scripted_tokens import DIMENSIONS, embedding, pieces, spelled, tokens, top


@given(st.text(st.characters(exclude_categories=("Cs",))), st.integers(1, 3))
def test_the_tokens_of_a_text_joined_are_the_text(text, digits):
    assert b"".join(pieces(text, digits=digits)) == text.encode()
    assert [token.piece for token in tokens(text, digits=digits)] == pieces(text, digits=digits)


def test_long_words_characters_and_signs_are_cut_as_real_tokenizers_cut_them():
    assert pieces('"unbelievable"') == [b'"unbeli', b"evable", b'"']
    assert pieces("é!") == [b"\xc3", b"\xa9", b"!"]
    assert pieces("10 2024") == [b"10", b" ", b"202", b"4"]
    assert pieces("10", digits=1) == [b"1", b"0"]
    assert spelled(b"\xc3") == "bytes:\\xc3"


@given(st.text(st.sampled_from("01234567890 ,[]a")), st.integers(1, 3))
def test_probabilities_never_add_up_to_more_than_one(text, digits):
    for token in tokens(text, digits=digits):
        assert 0 < sum(token.chances.values()) <= 1.00001
        assert math.log(token.chances[token.piece]) == token.logprob


def test_a_number_is_given_with_its_neighbours():
    (token,) = tokens("7")
    assert dict(token.chances) == pytest.approx({b"7": 0.8, b"6": 0.1, b"8": 0.1})
    assert [piece for piece, _ in top(token, 2)] == [b"7", b"6"]


def test_where_digits_stand_alone_the_second_says_whether_one_means_ten():
    one, zero, end = tokens("10]", digits=1)
    assert one.chances == pytest.approx({b"1": 0.8, b"9": 0.2})
    assert zero.chances == pytest.approx({b"0": 1.0})
    assert end.piece == b"]"
    one, end = tokens("1]", digits=1, values={0: {1: 0.3, 10: 0.7}})
    assert one.chances == pytest.approx({b"1": 1.0})
    assert end.chances == pytest.approx({b"]": 0.3, b"0": 0.7})


@given(st.text())
def test_a_vector_has_length_one_and_depends_on_the_text_alone(text):
    vector = embedding(text)
    assert len(vector) == DIMENSIONS
    assert math.hypot(*vector) == pytest.approx(1)
    assert vector == embedding(text)


def test_texts_that_share_words_are_nearer_than_texts_that_do_not():
    def near(one, other):
        return sum(a * b for a, b in zip(embedding(one), embedding(other), strict=True))

    assert near("the red cat", "a red cat") > near("the red cat", "blue ships sail")
