"""The simulator: what it is shown, what it never sees, and that a reply is read whole or not at all."""

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import LakeError
from pipeline.json_simulator import PROMPT_HASH, Simulated, parse, requests
from pipeline.ports import Reply
from pipeline.provenance import TAG
from pipeline.tables import MISSING, exemplars, explanations

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS = {"s1": ["The", " cat", "<|endoftext|>"], "s2": [" a", "\n"]}


def explained(*rows):
    """Explanation rows from (layer, neuron, polarity, explanation_id, text)."""
    columns = ("layer", "neuron", "polarity", "explanation_id", "text")
    filled = [
        {
            **dict(zip(columns, row, strict=True)),
            "parent_id": None,
            "method": "token-activation-pairs",
            "explainer": "m",
            "missing_because": None if row[4] is not None else "refused",
            "prompt_hash": None,
            "request_id": None,
            "exemplar_ids": [],
            "identity": "sha256:0",
            "run_id": "r",
        }
        for row in rows
    ]
    return explanations.conform(pl.DataFrame(filled, schema=explanations.schema))


def hidden(*rows, split="score"):
    """Exemplar rows from (layer, neuron, polarity, rank, exemplar_id, sequence_id, activations)."""
    columns = ("layer", "neuron", "polarity", "rank", "exemplar_id", "sequence_id", "activations")
    filled = [
        {
            **dict(zip(columns, row, strict=True)),
            "split": split,
            "stratum": "top",
            "token_ids": list(range(len(row[6]))),
            "scaled_activations": [min(10, int(value)) for value in row[6]],
            "scale_maximum": 10.0,
            "identity": "sha256:0",
            "run_id": "r",
        }
        for row in rows
    ]
    return exemplars.conform(pl.DataFrame(filled, schema=exemplars.schema))


def said(text):
    return Reply(request_id="sha256:0", text=text, missing_because=None)


def wrote(pairs):
    return said(json.dumps({"activations": pairs}))


def test_each_explanation_meets_each_exemplar_of_its_own_neuron():
    words = explained(
        (0, 1, "+", "e1", "cats"), (0, 1, "+", "e2", "dogs"), (0, 2, "+", "e3", "mats"), (0, 1, "-", "e4", "x")
    )
    records = hidden(
        (0, 1, "+", 0, "x1", "s1", [0, 1, 2]), (0, 1, "+", 1, "x2", "s2", [1, 0]), (0, 2, "+", 0, "x3", "s2", [0, 0])
    )

    made = dict(requests(words, records, TOKENS, model="m", seed=4))

    assert sorted(made) == [("e1", "x1"), ("e1", "x2"), ("e2", "x1"), ("e2", "x2"), ("e3", "x3")]
    assert {(request.model, request.temperature, request.seed) for request in made.values()} == {("m", 0.0, 4)}
    _, explanation, _, tokens = _question(made["e1", "x1"])
    assert (explanation, tokens) == ("cats", [[0, "The"], [1, " cat"], [2, "<|endoftext|>"]])


def _question(request):
    first, label, tokens = request.messages[-1][1].split("\n")
    return "Explanation:", json.loads(first.removeprefix("Explanation: ")), label, json.loads(tokens)


def test_a_missing_explanation_is_not_simulated():
    assert (
        list(
            requests(
                explained((0, 1, "+", "e1", None)),
                hidden((0, 1, "+", 0, "x1", "s1", [0, 1, 2])),
                TOKENS,
                model="m",
                seed=0,
            )
        )
        == []
    )


@given(st.lists(st.floats(0, 10, width=32), min_size=3, max_size=3))
def test_no_activation_is_in_the_request(activations):
    def made(values):
        words = explained((0, 1, "+", "e1", "cats"))
        return list(requests(words, hidden((0, 1, "+", 0, "x1", "s1", values)), TOKENS, model="m", seed=0))

    assert made(activations) == made([0.0, 0.0, 0.0])


def test_what_was_explained_is_never_scored_on():
    records = hidden((0, 1, "+", 0, "x1", "s1", [0, 1, 2]), split="explain")

    with pytest.raises(LakeError, match=r"split \['explain'\] must never be scored on"):
        list(requests(explained((0, 1, "+", "e1", "cats")), records, TOKENS, model="m", seed=0))


def test_tokens_that_do_not_fit_their_exemplar_are_an_error():
    records = hidden((0, 1, "+", 0, "x1", "s2", [0, 1, 2]))

    with pytest.raises(LakeError, match="`s2` has 2 tokens where its exemplar has 3"):
        list(requests(explained((0, 1, "+", "e1", "cats")), records, TOKENS, model="m", seed=0))


@given(st.text(min_size=1), st.lists(st.text(), min_size=1, max_size=8))
def test_any_text_arrives_as_it_is(explanation, texts):
    records = hidden((0, 1, "+", 0, "x1", "s", [0] * len(texts)))

    ((_, request),) = requests(explained((0, 1, "+", "e1", explanation)), records, {"s": texts}, model="m", seed=0)

    _, words, label, tokens = _question(request)
    assert (words, label, tokens) == (explanation, "Excerpt:", [[index, text] for index, text in enumerate(texts)])
    assert "<" not in request.messages[-1][1]


def test_a_whole_request_reads_like_this():
    records = hidden((0, 1, "+", 0, "x1", "s1", [0, 1, 2]))

    ((_, request),) = requests(explained((0, 1, "+", "e1", "names of cats")), records, TOKENS, model="m", seed=0)

    rendered = "\n".join(f"===== {role}\n{text}" for role, text in request.messages)
    assert rendered + "\n" == (GOLDEN / "simulate_request.txt").read_text(encoding="utf-8")


def test_the_worked_cases_hold_to_the_form_that_is_asked_for():
    ((_, request),) = requests(
        explained((0, 1, "+", "e1", "cats")), hidden((0, 1, "+", 0, "x1", "s1", [0, 1, 2])), TOKENS, model="m", seed=0
    )

    asked, answered = request.messages[1:-1:2], request.messages[2:-1:2]
    assert len(asked) == len(answered) == 3
    for (_, question), (_, answer) in zip(asked, answered, strict=True):
        n_tokens = len(json.loads(question.split("\n")[2]))
        simulated = parse(said(answer), n_tokens)
        assert simulated.missing_because is None
        assert 0 < sum(value > 0 for value in simulated.expected) < n_tokens / 2


def test_the_simulator_has_a_hash_of_its_prompts():
    assert PROMPT_HASH.startswith(TAG)


@given(st.lists(st.integers(0, 10) | st.floats(0, 10), min_size=1, max_size=40), st.randoms())
def test_one_number_for_each_token_is_read_in_any_order(values, shuffle):
    pairs = [[index, value] for index, value in enumerate(values)]
    shuffle.shuffle(pairs)

    assert parse(wrote(pairs), len(values)) == Simulated([float(value) for value in values], None, 1.0)


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [[0, 1], [2, 1]],
        [[-1, 1], [0, 1]],
        [[0, 1], [1, 1], [2, 1]],
    ],
)
def test_a_reply_that_counts_wrong_has_the_wrong_length(pairs):
    assert parse(wrote(pairs), 2) == Simulated(None, "wrong_length", 0.0)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([[0, 1]], [1, None]),
        ([[1, 3]], [None, 3]),
        ([[0, 1], [0, 1]], [1, None]),
        ([[0, 1], [1, 2], [0, 1]], [1, 2]),
        ([[0, 1], [1, 2], [1, 3]], [1, None]),
        ([[0, 1], [1, 2], [1, 3], [1, 2]], [1, None]),
        ([[0, 0], [1, 11]], [0, None]),
        ([[0, 0], [1, -0.5]], [0, None]),
        ([[0, 0], [1, True]], [0, None]),
        ([[0, 0], [1, "5"]], [0, None]),
        ([[0, 0], [1, None]], [0, None]),
        ([[0, 0], [1, 10**400]], [0, None]),
    ],
)
def test_a_reply_that_lacks_some_tokens_keeps_what_is_certain(pairs, expected):
    coverage = sum(value is not None for value in expected) / 2
    assert parse(wrote(pairs), 2) == Simulated(expected, None, coverage)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "[[0,0],[1,0]]",
        '{"activations": [0, 0]}',
        '{"activations": {"0": 0, "1": 0}}',
        '{"activations": null}',
        '{"activations": [[0,0],[1,0]], "note": "x"}',
        '{"values": [[0,0],[1,0]]}',
        '{"activations": [[0,0],[true,1]]}',
        '{"activations": [[0,0],[1.0,5]]}',
        '{"activations": [[0,0],["1",5]]}',
        '{"activations": [[0,0],[1,0,0]]}',
        '{"activations": [[0,0],[1]]}',
        '{"activations": [[0,0],[1,NaN]]}',
        '{"activations": [[0,0],[1,5]]',
        'Here: {"activations": [[0,0],[1,5]]}',
    ],
)
def test_anything_else_is_unparsable(text):
    assert parse(said(text), 2) == Simulated(None, "unparsable", 0.0)


def test_the_reason_of_a_missing_reply_is_passed_on():
    reply = Reply(request_id="sha256:0", text=None, missing_because="truncated")

    assert parse(reply, 2) == Simulated(None, "truncated", 0.0)


LEAF = st.none() | st.booleans() | st.integers(-2, 12) | st.floats() | st.text(max_size=3)
REPLIES = st.text(st.characters(exclude_categories=())) | st.builds(
    lambda pairs: json.dumps({"activations": pairs}),
    st.lists(st.lists(LEAF | st.integers(0, 4), min_size=1, max_size=3) | LEAF, max_size=5),
)


@given(REPLIES, st.integers(1, 5))
def test_any_reply_gives_its_own_numbers_for_all_tokens_or_a_reason(text, n_tokens):
    simulated = parse(said(text), n_tokens)

    if simulated.expected is None:
        assert simulated.missing_because in MISSING
        assert simulated.coverage == 0.0
    else:
        said_of = json.loads(text)["activations"]
        assert len(simulated.expected) == n_tokens
        known = [(index, value) for index, value in enumerate(simulated.expected) if value is not None]
        assert all(0 <= value <= 10 and [index, value] in said_of for index, value in known)
        assert simulated.coverage == len(known) / n_tokens > 0
