"""Listening: what a planted neuron does on sentences that are in no corpus."""

import pytest

from assets.listening import heard
from pipeline.rounds import Listening
from pipeline.testing import planted_checkpoint
from resources.subject import HuggingFaceSubject


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "subject"
    planted_checkpoint(folder)
    return HuggingFaceSubject(str(folder), device="cpu")


def firing(found):
    return [word.strip() for word, activation in found if activation > 1]


def test_each_text_is_heard_by_its_own_neuron_in_the_order_of_asking(subject):
    texts = [(1, "the red cat"), (0, "the red cat"), (1, "a dog and a horse went over the road"), (1, "the house")]
    found = heard(subject, Listening(texts), layer=0, length=64)
    assert [firing(one) for one in found] == [["cat"], ["red"], ["dog", "horse"], []]
    assert "".join(word for word, _ in found[2]).strip() == texts[2][1]


def test_what_stands_before_counts(subject):
    found = heard(subject, Listening([(0, "the river bank"), (0, "the bank")]), layer=1, length=64)
    assert [firing(one) for one in found] == [["bank"], []]


def test_a_text_is_cut_to_the_length_of_a_window_and_an_empty_one_is_not_run(subject):
    long, none = heard(subject, Listening([(1, "cat " * 30), (1, "")]), layer=0, length=8)
    assert (len(long), list(none)) == (8, [])
    assert heard(subject, Listening([]), layer=0, length=8) == []


def test_many_lengths_and_repeated_texts_come_out_as_one_by_one(subject):
    texts = [(n % 8, " ".join(["cat", "red", "the", "bread"][: 1 + n % 4] * (1 + n % 3))) for n in range(40)]
    together = heard(subject, Listening(texts), layer=0, length=64)
    assert together == [heard(subject, Listening([one]), layer=0, length=64)[0] for one in texts]
