"""Intruder: each quiet text hidden once among active ones, one number as the answer, and a reason where there is none."""

from pathlib import Path

import polars as pl
import pytest

from pipeline.intruder import ACTIVE, parse, requests, rows
from pipeline.ports import Reply
from pipeline.tables import TABLES
from pipeline.testing import scripted

GOLDEN = Path(__file__).parents[1] / "golden"
SAID = pl.DataFrame(
    [
        {"layer": 0, "neuron": 0, "polarity": "+", "explanation_id": f"e{place}", "explainer": explainer, "text": "words",
         "missing_because": None, "identity": f"sha256:e{place}"}
        for place, explainer in enumerate(("m", "someone", "none"))
    ]
)  # fmt: skip
TEXTS = {f"a{place}": ["the", " cat", " and", f" {place}"] for place in range(6)}
TEXTS |= {f"q{place}": ["no", f" thing{place}", " here", "]<|endoftext|>"] for place in range(3)}


def judged(active=6):
    return pl.DataFrame(
        [
            {"layer": 0, "neuron": 0, "polarity": "+", "active": name[0] == "a", "sequence_id": name, "stratum": "top",
             "scaled": [0.0, 9.0, 0.0, 1.0] if name[0] == "a" else [0.0] * 4, "identity": f"sha256:{name}"}
            for name in TEXTS if name[0] == "q" or int(name[1]) < active
        ]
    )  # fmt: skip


def asked(**changed):
    return requests(SAID, judged(), TEXTS, model="m", seed=changed.get("seed", 0))


def test_each_quiet_text_hides_once_among_four_active_ones():
    found = asked()
    assert [(hidden.explanation_id, hidden.item.sequence_id) for hidden, _ in found] == [
        (name, f"q{place}") for name in ("e0", "e1") for place in range(3)
    ]
    for hidden, request in found:
        lines = request.messages[-1][1].splitlines()[1:]
        assert len(lines) == ACTIVE + 1
        assert [place for place, line in enumerate(lines) if "cat" not in line] == [hidden.at]
        # As many marks as the others have, and no text of the corpus acts as a mark or a control token.
        assert len(hidden.item.marks) == 1
        assert "<|endoftext|>" not in request.messages[-1][1]


def test_explanations_of_a_neuron_share_their_requests():
    found = asked()
    assert [request for _, request in found[:3]] == [request for _, request in found[3:]]


def test_places_and_company_are_drawn_by_the_seed():
    assert asked() == asked()
    assert {hidden.at for seed in range(20) for hidden, _ in asked(seed=seed)} == set(range(ACTIVE + 1))


def test_a_neuron_with_too_few_active_texts_has_no_requests():
    assert requests(SAID, judged(active=3), TEXTS, model="m", seed=0) == []


def test_a_request_is_rendered_as_it_was():
    _, request = asked()[0]
    text = "\n\n".join(f"--- {role}\n{said}" for role, said in request.messages) + "\n"
    assert text == (GOLDEN / "intruder_request.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"intruder": 3}', (3, None)),
        ('```json\n{"intruder": 0}\n```', (0, None)),
        ('{"intruder": 5}', (None, "unparsable")),
        ('{"intruder": true}', (None, "unparsable")),
        ('{"intruder": 1, "why": "x"}', (None, "unparsable")),
        ('{"intruder": [1]}', (None, "unparsable")),
        ("2", (None, "unparsable")),
    ],
)
def test_an_answer_is_one_number_of_a_text_or_missing(text, found):
    assert parse(Reply("r", text, None)) == found


def test_right_picks_are_ones_and_failed_calls_are_not_wrong():
    found = asked()
    right = Reply("r", f'{{"intruder": {found[0][0].at}}}', None)
    wrong = Reply("w", f'{{"intruder": {(found[1][0].at + 1) % 5}}}', None)
    made = rows(found[:3], [right, wrong, Reply("t", None, "timeout")], SAID, model="m")
    TABLES["judgements"].conform(made.with_columns(run_id=pl.lit("r")))
    assert made.select("value", "missing_because", "fits").rows() == [
        (1.0, None, False), (0.0, None, False), (None, "timeout", False),
    ]  # fmt: skip


def test_the_scripted_model_finds_the_text_whose_marks_are_unlike_the_others():
    found = asked()
    replies, _ = scripted().answer([request for _, request in found], run_id="r")
    assert rows(found, replies, SAID, model="scripted")["value"].to_list() == [1.0] * 6
