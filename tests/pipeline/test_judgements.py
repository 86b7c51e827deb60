"""Judgements: which texts are held against an explanation, how they are shown, and what becomes of the answers."""

import json
import math
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.judgements import SCORERS, parse, probabilities, requests, rows, texts_to_judge
from pipeline.ports import Likely, Reply
from pipeline.tables import TABLES
from pipeline.testing import Planted, PlantedNeuron, ScriptedLanguageModel

GOLDEN = Path(__file__).parents[1] / "golden"
# Activations of one neuron on windows of split `score` (s) and `explain` (e); 4 is the strongest that is shown.
WINDOWS = {
    "s1": [0, 4, 1, 0],
    "s2": [0, 0, 2, 2],
    "s3": [0, 1, 0, 0],
    "s4": [0, 0, 0, 0.5],
    "s5": [-1, 0, 0, 0],
    "e1": [4, 0, 0, 0],
    "e2": [0, 0, 0, 0],
}
WORDS = {"s1": ["A", " red", " fox", "\n"], "s2": [" b", " c", " red", " red"], "s3": ["<s>", " x", " y", "."],
         "s4": [" p", " q", " r", " s"], "s5": [" t", " u", " v", " w"]}  # fmt: skip
SEQUENCES = pl.DataFrame(
    {"sequence_id": list(WINDOWS), "split": ["score" if i[0] == "s" else "explain" for i in WINDOWS]}
)
EXPLANATION = 'the word "red"'


def table(name, *filled):
    schema = {column: kind for column, kind in TABLES[name].schema.items() if column != "run_id"}
    at = {"layer": 0, "neuron": 0, "polarity": "+"}
    return pl.DataFrame([at | row for row in filled], schema=schema)


def records(*, sign=1.0, polarity="+", neuron=0):
    return table(
        "activations",
        *(
            {
                "neuron": neuron,
                "polarity": polarity,
                "stratum": "random",
                "sequence_id": name,
                "peak": max(values) * sign,
                "activations": [value * sign for value in values],
                "identity": f"sha256:{name}",
            }
            for name, values in WINDOWS.items()
        ),
    )


def exemplars(*, polarity="+", neuron=0):
    return table(
        "exemplars",
        {"neuron": neuron, "polarity": polarity, "split": "explain", "sequence_id": "e1", "scale_maximum": 4.0},
    )


SAID = table(
    "explanations",
    {"explanation_id": "e", "explainer": "m", "text": EXPLANATION, "identity": "sha256:e"},
    {"explanation_id": "b", "explainer": "none", "text": "tokens", "identity": "sha256:b"},
    {"explanation_id": "n", "explainer": "m", "missing_because": "refused", "identity": "sha256:n"},
)


def asked(*scorers, seed=0, said=SAID):
    judged = texts_to_judge(records(), exemplars(), SEQUENCES)
    return requests(said, judged, WORDS, scorers=scorers or SCORERS, model="m", seed=seed)


def items(*scorers, **more):
    return {(q.scorer, i.sequence_id, i.fits): i.marks for q, _ in asked(*scorers, **more) for i in q.items}


def test_only_texts_that_no_explainer_may_read_are_judged_and_a_text_is_active_from_3_on_the_scale():
    found = dict(texts_to_judge(records(), exemplars(), SEQUENCES).select("sequence_id", "active").rows())
    assert found == {"s1": True, "s2": True, "s3": False, "s4": False, "s5": False}


def test_the_negative_side_of_a_neuron_is_active_below_zero():
    judged = texts_to_judge(records(sign=-1.0, polarity="-"), exemplars(polarity="-"), SEQUENCES)
    assert dict(judged.select("sequence_id", "active").rows())["s1"] is True
    assert judged.filter(sequence_id="s1")["scaled"].to_list() == [[0.0, 10.0, 2.5, 0.0]]


def test_a_neuron_without_quiet_texts_is_not_asked_about():
    only = records().filter(pl.col("peak") > 1)
    assert texts_to_judge(only, exemplars(), SEQUENCES).is_empty()


def test_explanations_of_baselines_and_missing_ones_are_not_judged():
    assert {question.explanation_id for question, _ in asked()} == {"e"}


def test_detection_shows_every_text_once_and_marks_nothing():
    assert items("detection") == {("detection", name, name in ("s1", "s2")): () for name in WORDS}


def test_fuzzing_marks_active_texts_where_the_neuron_is_above_a_third_and_quiet_ones_at_random():
    found = items("fuzzing")
    assert found["fuzzing", "s1", True] == (1,)
    assert found["fuzzing", "s2", True] == (2, 3)
    # One and two marks are true, so that each quiet text has two.
    assert {len(found["fuzzing", name, False]) for name in ("s3", "s4", "s5")} == {2}
    assert len(found) == 5


def test_the_other_fuzzing_marks_wrong_words_of_the_same_texts():
    found = items("fuzzing_active")
    assert found["fuzzing_active", "s2", True] == (2, 3)
    assert found["fuzzing_active", "s2", False] == (0, 1)
    assert len(found["fuzzing_active", "s1", False]) == 1
    assert found["fuzzing_active", "s1", False] != (1,)


def test_a_neuron_alone_is_asked_what_it_is_asked_among_others():
    more = table(
        "explanations", {"neuron": 1, "explanation_id": "o", "explainer": "m", "text": "x", "identity": "sha256:o"}
    )
    judged = texts_to_judge(
        pl.concat([records(), records(neuron=1)]), pl.concat([exemplars(), exemplars(neuron=1)]), SEQUENCES
    )
    both = requests(pl.concat([SAID, more]), judged, WORDS, scorers=SCORERS, model="m", seed=0)
    assert [one for one in both if one[0].explanation_id == "e"] == asked()


def test_another_seed_draws_other_marks_or_another_order():
    assert asked(seed=1) != asked(seed=2)


@pytest.mark.parametrize("scorer", ["detection", "fuzzing"])
def test_the_rendered_request(scorer):
    (_, request), *_ = asked(scorer)
    shown = "\n\n".join(f"--- {role}\n{text}" for role, text in request.messages) + "\n"
    assert shown == (GOLDEN / f"judge_{scorer}_request.txt").read_text(encoding="utf-8")
    assert (request.temperature, request.json_reply) == (0.0, True)


def test_the_worked_cases_hold_right_answers_and_both_of_them():
    for scorer in SCORERS:
        (_, request), *_ = asked(scorer)
        for role, text in request.messages:
            if role == "assistant":
                answers = [answer for _, answer in json.loads(text)["answers"]]
                assert set(answers) == {0, 1}


def replied(text, reason=None, count=3):
    return parse(Reply("r", text, reason), count)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"answers": [[0, 1], [2, 0], [1, 1]]}', [(1.0, None), (1.0, None), (0.0, None)]),
        ('{"answers": [[0, 1], [2, 0]]}', [(1.0, None), (None, "wrong_length"), (0.0, None)]),
        ('{"answers": [[0, 1], [1, 0], [2, 0], [3, 0]]}', [(None, "wrong_length")] * 3),
        ('{"answers": [[0, 1], [0, 0], [1, 0]]}', [(None, "wrong_length")] * 3),
        ('{"answers": []}', [(None, "wrong_length")] * 3),
        ('{"answers": [[0, true], [1, 0], [2, 0]]}', [(None, "unparsable")] * 3),
        ('{"answers": [[0, 2], [1, 0], [2, 0]]}', [(None, "unparsable")] * 3),
        ('{"answers": [[0, 0.5], [1, 0], [2, 0]]}', [(None, "unparsable")] * 3),
        ('{"answers": [1, 0, 1]}', [(None, "unparsable")] * 3),
        ('{"answers": [[0, 1], [1, 0], [2, 0]], "note": ""}', [(None, "unparsable")] * 3),
        ("I think: yes, no, no", [(None, "unparsable")] * 3),
        (None, [(None, "unparsable")] * 3),
    ],
)
def test_an_answer_is_taken_only_where_it_is_sure(text, expected):
    assert replied(text) == expected


def test_a_failed_request_has_its_own_reason():
    assert replied(None, "timeout") == [(None, "timeout")] * 3


ODD = st.one_of(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers(-2, 4) | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.just("answers") | st.text(max_size=2), inner),
        max_leaves=12,
    ).map(json.dumps),
)


@given(ODD, st.integers(1, 5))
def test_no_reply_crashes_the_parser_or_becomes_another_number(text, count):
    found = replied(text, count=count)
    assert len(found) == count
    for value, reason in found:
        assert (value is None) != (reason is None)
        assert value in (None, 0.0, 1.0)


def test_a_model_that_knows_the_truth_is_right_about_every_text_by_every_scorer():
    neuron = PlantedNeuron(0, 0, EXPLANATION, "", ("red",), None, "tokens", "+")
    language = ScriptedLanguageModel(Planted(Path(), (neuron,)))
    questions = asked()
    replies, _ = language.answer([request for _, request in questions], run_id="r")
    found = rows(questions, replies, SAID, model="m")
    table_rows = TABLES["judgements"].conform(found.with_columns(run_id=pl.lit("r")))
    assert table_rows.filter(pl.col("value") != pl.col("fits").cast(pl.Float64)).is_empty()
    assert len(table_rows) == 5 + 5 + 4
    assert set(table_rows["explanation_id"]) == {"e"}


def likely(*tokens):
    """A reply from its tokens: plain ones, or (token, its rivals with probabilities)."""
    spelled = [Likely(t, ((t, 0.0),)) if isinstance(t, str) else Likely(t[0], tuple((r, math.log(p)) for r, p in t[1].items()))
               for t in tokens]  # fmt: skip
    return Reply("r", "".join(one.token for one in spelled), None, likely=tuple(spelled))


def test_the_probability_of_yes_is_that_of_1_among_0_and_1_in_the_place_of_the_answer():
    reply = likely(
        '{"answers": [[', "0", ",", ("1", {"1": 0.6, "0": 0.2, "2": 0.1}), "], [", "1", ", ", ("0]", {"0]": 0.5, "1]": 0.5, "1": 0.1}),
        ", [2,1", "]]}",
    )  # fmt: skip
    assert parse(reply, 3) == [(1.0, None), (0.0, None), (1.0, None)]
    # Of the last only that it was said is known.
    assert probabilities(reply) == pytest.approx({0: 0.75, 1: 0.5, 2: 1.0})


def test_without_probabilities_or_with_those_of_another_text_none_is_known():
    assert probabilities(Reply("r", '{"answers": [[0, 1]]}', None)) == {}
    assert probabilities(Reply("r", '{"answers": [[0, 1]]}', None, likely=(Likely("x", ()),))) == {}
    assert probabilities(Reply("r", None, "timeout")) == {}


def test_probabilities_are_asked_for_and_kept_where_they_are_wanted():
    neuron = PlantedNeuron(0, 0, EXPLANATION, "", ("red",), None, "tokens", "+")
    language = ScriptedLanguageModel(Planted(Path(), (neuron,)))
    judged = texts_to_judge(records(), exemplars(), SEQUENCES)
    questions = requests(SAID, judged, WORDS, scorers=["detection"], model="m", seed=0, likely=True)
    assert {request.logprobs for _, request in questions} == {5}
    replies, _ = language.answer([request for _, request in questions], run_id="r")
    found = rows(questions, replies, SAID, model="m")
    assert (found["probability"] > 0.5).to_list() == found["fits"].to_list()
