"""Revision: sentences are asked for, half of them are shown with what the neuron does, and the other half to nobody."""

import json
from pathlib import Path

import polars as pl
import pytest

from pipeline import prompts
from pipeline.evidence import Evidence
from pipeline.languages import FILE
from pipeline.ports import Reply
from pipeline.revision import CASES, RANDOM_REVISION, REVISION, drawn, random_rounds, rounds, sentences
from pipeline.rounds import Listening, driven
from pipeline.tables import TABLES
from pipeline.texts import display
from pipeline.token_activation_pairs import NeuronKey

GOLDEN = Path(__file__).parents[1] / "golden"
KEY = NeuronKey(0, 7, "+")
SHOWN = {KEY: Evidence(excerpts=[[("The", 0), (" cat", 10), (" sat", 0)]], exemplar_ids=["x1"], scale_maximum=5.0)}
FITTING, OTHER = [f"fitting {n}" for n in range(10)], [f"other {n}" for n in range(10)]


def parents(*texts, polarity="+"):
    schema = {name: kind for name, kind in TABLES["explanations"].schema.items() if name != "run_id"}
    rows = [
        {
            "layer": 0, "neuron": 7, "polarity": polarity, "explanation_id": f"id {place}", "method": "highlight", "explainer": "m",
            "text": None if text == "dead_neuron" else text, "missing_because": "dead_neuron" if text == "dead_neuron" else None,
            "exemplar_ids": ["x1"], "identity": f"sha256:{place}",
        }
        for place, text in enumerate(texts)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


class Answers:
    """Drives rounds by set replies, and a subject whose neuron gives 4 on the word `fitting` and nothing elsewhere."""

    def __init__(self, written=None, revised='{"explanation": "cats"}'):
        said = written or json.dumps({"fitting": FITTING, "other": OTHER})
        self.replies = [said, revised]
        self.asked = []
        self.listened = []

    def answer(self, asked):
        text = self.replies[len(self.asked)]
        self.asked.append(asked)
        return [
            Reply(f"r{place}", None if text == "timeout" else text, "timeout" if text == "timeout" else None)
            for place, _ in enumerate(asked.requests)
        ]

    def listen(self, asked: Listening):
        self.listened += asked.texts
        return [
            [] if text == "unread" else [(word, 4.0 if word == "fitting" else -3.0) for word in text.split()]
            for _, text in asked.texts
        ]


def revised(answers, *texts, polarity="+"):
    found = parents(*texts, polarity=polarity)
    shown = {NeuronKey(0, 7, polarity): SHOWN[KEY]}
    rows = driven(rounds(found, shown, model="m", seed=0), answers.answer, answers.listen)
    TABLES["explanations"].conform(rows.with_columns(run_id=pl.lit("r")))
    return rows


def rendered(request):
    return "\n".join(f"===== {role}\n{text}" for role, text in request.messages) + "\n"


def test_half_of_each_kind_is_run_and_shown_by_turns():
    answers = Answers()
    (row,) = revised(answers, "tigers").iter_rows(named=True)
    assert answers.listened == [(7, text) for text in (*FITTING[::2], *OTHER[::2])]
    _, second = answers.asked
    shown = second.requests[0].messages[-1][1].splitlines()
    assert shown[1:3] == ['"tigers"', '["The",[" cat",10]," sat"]']
    assert shown[3] == '{"expected":"active","found":[["fitting",8],"0"]}'
    assert shown[8] == '{"expected":"silent","found":["other0"]}'
    assert len(shown) == 13
    assert not any(held in second.requests[0].messages[-1][1] for held in ("fitting1", "other1"))
    assert (row["text"], row["method"], row["parent_id"]) == ("cats", REVISION, "id 0")
    assert row["exemplar_ids"] == ["x1"]


def test_on_the_negative_side_what_is_below_zero_is_found():
    answers = Answers()
    revised(answers, "tigers", polarity="-")
    shown = answers.asked[1].requests[0].messages[-1][1].splitlines()
    assert shown[3] == '{"expected":"active","found":["fitting",["0",6]]}'


@pytest.mark.parametrize(
    ("answers", "texts", "reasons"),
    [
        (Answers("timeout"), ["tigers"], ["timeout"]),
        (Answers("I cannot"), ["tigers"], ["unparsable"]),
        (Answers(revised="timeout"), ["tigers", "lions"], ["timeout", "timeout"]),
        (Answers(), ["tigers", "dead_neuron"], ["dead_neuron"]),
        (Answers(json.dumps({"fitting": ["unread"] * 2, "other": ["unread"] * 2})), ["tigers"], ["no_evidence"]),
    ],
)
def test_what_fails_is_missing_for_its_own_reason(answers, texts, reasons):
    assert revised(answers, *texts)["missing_because"].drop_nulls().to_list() == reasons


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"fitting": ["a", " b\\n c"], "other": ["d", "e"]}', ((["a", "b c"], ["d", "e"]), None)),
        ('{"fitting": ["a"], "other": ["d", "e"]}', (([], []), "unparsable")),
        ('{"fitting": ["a", ""], "other": ["d", "e"]}', (([], []), "unparsable")),
        ('{"fitting": ["a", 5], "other": ["d", "e"]}', (([], []), "unparsable")),
        ('{"fitting": ["a", "b"]}', (([], []), "unparsable")),
        (json.dumps({"fitting": ["a"] * 11, "other": ["b"] * 10}), (([], []), "unparsable")),
        ("Sure! Here they are", (([], []), "unparsable")),
    ],
)
def test_sentences_are_two_lists_of_texts_or_nothing(text, found):
    assert sentences(Reply("r", text, None)) == found


def test_the_requests_read_like_this():
    answers, control = Answers(), Answers()
    control.replies = control.replies[1:]
    revised(answers, "tigers")
    texts = {KEY: [[("A", 0), (" lion", 1)]]}
    driven(random_rounds(parents("tigers"), SHOWN, texts, model="m", seed=0), control.answer, control.listen)
    for name, request in (
        ("sentences", answers.asked[0].requests[0]),
        ("explain_revision", answers.asked[1].requests[0]),
        ("explain_revision-random", control.asked[0].requests[0]),
    ):
        assert rendered(request) == (GOLDEN / f"{name}_request.txt").read_text(encoding="utf-8")


def test_the_control_asks_nothing_where_there_is_no_text():
    answers = Answers()
    rows = driven(random_rounds(parents("tigers"), SHOWN, {}, model="m", seed=0), answers.answer, answers.listen)
    assert rows.select("method", "text", "missing_because").rows() == [(RANDOM_REVISION, None, "no_evidence")]
    assert answers.asked[0].requests == []


def test_the_control_draws_from_texts_that_may_be_shown_and_on_which_the_neuron_is_active(some_corpus, truth, made):
    sequences = some_corpus(80)
    layer = made(sequences, truth(sequences), signed=True)
    texts = display(sequences)
    found = drawn(layer.activations, layer.exemplars, sequences, texts, seed=0)
    assert found
    split = {"".join(texts[name]): split for name, split in sequences.select("sequence_id", "split").iter_rows()}
    shown = layer.exemplars.filter(pl.col("split") == "explain")
    for key, excerpts in found.items():
        assert 0 < len(excerpts) <= 10
        of_it = shown.filter(neuron=key.neuron, polarity=key.polarity)["sequence_id"]
        exemplars = {"".join(texts[name]) for name in of_it}
        for excerpt in excerpts:
            text = "".join(token for token, _ in excerpt)
            assert max(value for _, value in excerpt) >= 1
            assert split[text] == "explain" or list(split).count(text) > 1
            assert text not in exemplars
    assert drawn(layer.activations, layer.exemplars, sequences, texts, seed=0) == found


def test_every_language_has_the_worked_revisions():
    languages = json.loads(prompts.load(FILE).text)
    for case in json.loads(prompts.load(CASES).text):
        assert all(case["explanation"] in words["answers"] for words in languages.values())
