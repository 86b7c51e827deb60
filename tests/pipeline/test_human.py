"""Human: what people say of a neuron, with their names."""

import csv
import io

import polars as pl
import pytest

from pipeline.csv_format import words
from pipeline.errors import SettingsError
from pipeline.human import Statement, explanations, fingerprint, fit, statement
from pipeline.tables import TABLES

ADA = Statement(5, 131, "+", "words for ships", "Ada")
BOB = Statement(5, 131, "-", "words for trains", "Bob")
EVE = Statement(0, 3, "+", "words for ships", "Eve")


def record(**changed):
    return {"neuron": "5:131", "explanation": " words\n for ships ", "author": "Ada "} | changed


def test_a_record_is_a_statement():
    assert statement(record()) == ADA
    assert statement(record(polarity="")) == ADA
    assert statement(record(polarity="-")).polarity == "-"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"neuron": "5"}, "'5' is no neuron; write layer:neuron, such as 5:131"),
        ({"neuron": 5}, "`neuron` is missing; each record needs neuron, explanation, author as texts"),
        ({"explanation": " \n"}, "`explanation` is missing"),
        ({"author": None}, "`author` is missing"),
        ({"explanation": "x" * 1001}, "has 1,001 characters; 1 to 1,000 are allowed"),
        ({"author": "A\0da"}, r"the author holds the control character '\\x00'; take it out"),
        ({"explanation": "ships\x1b[2J"}, r"the explanation holds the control character '\\x1b'"),
        ({"author": "none"}, "the author 'none' stands for no one"),
        ({"author": "nobody"}, "the author 'nobody' stands for no one"),
        ({"polarity": "up"}, "the polarity 'up' must be"),
        ({"polarty": "-"}, "there is no column 'polarty'; known are neuron, explanation, author, polarity"),
    ],
)
def test_a_record_that_is_wrong_is_refused(changed, said):
    with pytest.raises(SettingsError, match=said):
        statement(record(**changed))


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (Statement(6, 0, "+", "x", "Ada"), "the subject has layers 0 to 5; there is no 6:0"),
        (Statement(5, 200, "+", "x", "Ada"), "layer 5 has neurons 0 to 199; there is no 5:200"),
        (Statement(0, 3, "-", "x", "Ada"), "neuron 0:3 has no negative side to explain"),
    ],
)
def test_a_neuron_that_the_subject_does_not_have_is_refused(one, said):
    with pytest.raises(SettingsError, match=said):
        fit([one], n_neurons=[200] * 6, signed=[False] * 5 + [True])


def test_the_same_statement_twice_is_refused_and_two_people_may_agree():
    with pytest.raises(SettingsError, match="what Ada says of 5:131 is there 2 times"):
        fit([ADA, BOB, ADA], n_neurons=[200] * 6, signed=[True] * 6)
    fit([ADA, BOB, EVE, Statement(5, 131, "+", ADA.text, "Bob")], n_neurons=[200] * 6, signed=[True] * 6)


def test_each_statement_is_a_row_with_its_author():
    rows = explanations([ADA, BOB, EVE], layer=5)
    TABLES["explanations"].conform(rows.with_columns(run_id=pl.lit("r")))
    assert rows.select("neuron", "polarity", "method", "explainer", "text").rows() == [
        (131, "+", "human", "Ada", "words for ships"), (131, "-", "human", "Bob", "words for trains"),
    ]  # fmt: skip
    assert rows["explanation_id"].n_unique() == 2
    assert explanations([ADA, BOB, EVE], layer=5, neuron=131).equals(rows)
    assert explanations([ADA, BOB, EVE], layer=5, neuron=130).is_empty()


def test_the_order_of_statements_does_not_matter_and_their_words_do():
    assert fingerprint([ADA, BOB]) == fingerprint([BOB, ADA])
    assert fingerprint([ADA, BOB]) != fingerprint([ADA, EVE])


def test_imported_words_with_control_characters_come_out_as_words_that_are_accepted():
    row = dict.fromkeys(TABLES["imported_explanations"].columns, "x") | {
        "layer": 5, "neuron": 131, "polarity": "+", "text": "ships\0and\x1b boats", "explainer": "A\0da", "missing_because": None
    }  # fmt: skip
    imported = pl.DataFrame([row], schema=TABLES["imported_explanations"].schema)
    (found,) = csv.DictReader(io.StringIO(words(imported), newline=""))
    assert (statement(found).text, statement(found).author) == ("ships and boats", "A da")
