"""People: a file of explanations as people write it, and what is wrong with one that cannot be read."""

import json

import pytest

from pipeline.errors import SettingsError
from pipeline.human import Statement
from resources.people import statements

ADA = Statement(5, 131, "+", 'words for "ships", and boats', "Ada Lovelace")
BOB = Statement(0, 3, "-", "words for trains", "Bob")


@pytest.fixture
def file(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_csv_and_json_lines_say_the_same(file):
    table = 'neuron,explanation,author,polarity\n5:131,"words for ""ships"",\n and boats",Ada Lovelace,\n0:3,words for trains,Bob,-\n'
    lines = [
        {"neuron": "5:131", "explanation": ADA.text, "author": ADA.author},
        {"neuron": "0:3", "explanation": BOB.text, "author": "Bob", "polarity": "-"},
    ]
    assert statements(file("a.csv", table)) == (ADA, BOB)
    assert statements(file("b.csv", "\ufeff" + table.replace("\n", "\r\n"))) == (ADA, BOB)
    assert statements(file("c.jsonl", "\n\n".join(map(json.dumps, lines)))) == (ADA, BOB)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "neuron,explanation,author\n5:131,x,Ada\n5,x,Ada\n", "line 3 of .*a.csv: '5' is no neuron"),
        ("a.csv", "neuron,explanation\n5:131,x\n", "line 2 of .*a.csv: `author` is missing"),
        ("a.csv", "neuron,explanation,author\n5:131,x,Ada,more\n", "there is no column 'more than the columns'"),
        ("a.csv", 'neuron,explanation,author\n5:131,"x,Ada\n', "is not valid CSV"),
        ("a.csv", "neuron,explanation,author\n", "holds no explanation"),
        ("a.csv", b"neuron,explanation,author\n5:131,\xe9,Ada\n", "is not UTF-8; save it as UTF-8"),
        ("a.csv", "neuron,neuron,explanation,author\n5:1,5:2,x,Ada\n", "has a column twice"),
        ("a.jsonl", '{"neuron": "5:131", "explanation": "\\ud800", "author": "Ada"}', "holds half a character"),
        ("a.jsonl", "[]\n", "line 1 of .*a.jsonl is no JSON object"),
        ("a.jsonl", '{"neuron": "5:131"}\n', "line 1 of .*a.jsonl: `explanation` is missing"),
        ("a.txt", "x", "must end in .csv, .jsonl or .ndjson"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_line(file, name, text, said):
    with pytest.raises(SettingsError, match=f"--human-explanations: .*{said}"):
        statements(file(name, text))


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(SettingsError, match=r"a.csv cannot be read: No such file or directory"):
        statements(tmp_path / "a.csv")
