"""The explainer: what it is shown of a neuron, and that it can only say what its reply says."""

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import LakeError
from pipeline.ports import Reply
from pipeline.provenance import TAG
from pipeline.tables import MISSING, exemplars
from pipeline.token_activation_pairs import METHOD, PROMPT_HASH, NeuronKey, parse, requests

GOLDEN = Path(__file__).parents[1] / "golden"


def shown(*rows, split="explain"):
    """Exemplar rows from (layer, neuron, polarity, rank, sequence_id, scaled activations)."""
    columns = ("layer", "neuron", "polarity", "rank", "sequence_id", "scaled_activations")
    filled = [
        {
            **dict(zip(columns, row, strict=True)),
            "split": split,
            "stratum": "top",
            "token_ids": [0] * len(row[5]),
            "activations": [0.25 * value for value in row[5]],
            "scale_maximum": 2.5,
            "exemplar_id": f"{row[4]}-{row[1]}",
            "identity": "sha256:0",
            "run_id": "r",
        }
        for row in rows
    ]
    return exemplars.conform(pl.DataFrame(filled, schema=exemplars.schema))


def said(text):
    return Reply(request_id="sha256:0", text=text, missing_because=None)


def question(request):
    """The data of the last message, as the JSON lists that it holds."""
    text = request.messages[-1][1]
    return [json.loads(f"[{part}]") for part in _lists(text)]


def _lists(text):
    lists, current = [], None
    for line in text.splitlines():
        if line == "[":
            current = []
        elif line == "]":
            lists.append("".join(current))
            current = None
        elif current is not None:
            current.append(line)
    return lists


TOKENS = {
    "s1": ["The", " cat", " sat", " on", " a", " mat"],
    "s2": [" No", " cat", "<|endoftext|>", "\t", " here", "."],
}


def test_each_neuron_has_one_request_with_its_own_excerpts_strongest_first():
    rows = shown(
        (3, 7, "+", 1, "s2", [0, 5, 0, 0, 4, 3]),
        (3, 7, "+", 0, "s1", [0, 10, 1, 0, 0, 2]),
        (3, 7, "-", 0, "s2", [10, 1, 1, 1, 1, 1]),
        (2, 9, "+", 0, "s1", [9, 9, 9, 9, 9, 10]),
    )

    made = dict(requests(rows, TOKENS, model="m", seed=5))

    assert list(made) == [NeuronKey(2, 9, "+"), NeuronKey(3, 7, "+"), NeuronKey(3, 7, "-")]
    first, second = question(made[3, 7, "+"])[0]
    assert first == [["The", 0], [" cat", 10], [" sat", 1], [" on", 0], [" a", 0], [" mat", 2]]
    assert [token for token, _ in second] == TOKENS["s2"]
    assert {request.model for request in made.values()} == {"m"}
    assert {(request.temperature, request.seed, request.json_reply) for request in made.values()} == {(0.0, 5, True)}


def test_the_order_of_rows_does_not_matter():
    rows = shown(*((0, neuron, "+", rank, f"s{rank + 1}", [0, 1, 2, 3, 4, 5]) for neuron in (4, 1) for rank in (1, 0)))

    assert requests(rows, TOKENS, model="m", seed=0) == requests(rows.reverse(), TOKENS, model="m", seed=0)


@pytest.mark.parametrize(
    ("scaled", "repeated"),
    [
        ([0, 10, 0, 0, 0, 0], [[[" cat", 10]]]),
        ([0, 10, 0, 0, 0, 1], None),
        ([0, 0, 0, 0, 0, 0], None),
    ],
)
def test_active_pairs_are_repeated_when_fewer_than_a_fifth_are_active(scaled, repeated):
    ((_, request),) = requests(shown((0, 0, "+", 0, "s1", scaled)), TOKENS, model="m", seed=0)

    assert question(request)[1:] == ([repeated] if repeated else [])


def test_exactly_a_fifth_is_not_fewer():
    tokens = {"s": ["a", "b", "c", "d", "e"]}

    ((_, request),) = requests(shown((0, 0, "+", 0, "s", [10, 0, 0, 0, 0])), tokens, model="m", seed=0)

    assert len(question(request)) == 1


def test_what_is_scored_never_reaches_the_explainer():
    with pytest.raises(LakeError, match=r"split \['score'\] must never reach an explainer"):
        requests(shown((0, 0, "+", 0, "s1", [1] * 6), split="score"), TOKENS, model="m", seed=0)


def test_tokens_that_do_not_fit_their_exemplar_are_an_error():
    with pytest.raises(LakeError, match="sequence `s3`, which has no tokens"):
        requests(shown((0, 0, "+", 0, "s3", [1])), TOKENS, model="m", seed=0)
    with pytest.raises(LakeError, match="`s1` has 6 tokens where its exemplar has 2"):
        requests(shown((0, 0, "+", 0, "s1", [1, 2])), TOKENS, model="m", seed=0)


def test_no_exemplars_make_no_requests():
    assert requests(exemplars.empty(), {}, model="m", seed=0) == []


@given(st.lists(st.tuples(st.text(), st.integers(0, 10)), min_size=1, max_size=12))
def test_any_tokens_arrive_as_they_are(pairs):
    tokens = {"s": [token for token, _ in pairs]}

    ((_, request),) = requests(shown((0, 0, "+", 0, "s", [value for _, value in pairs])), tokens, model="m", seed=0)

    assert question(request)[0] == [[[token, value] for token, value in pairs]]
    assert "<" not in request.messages[-1][1]


def test_a_whole_request_reads_like_this():
    rows = shown((3, 7, "+", 0, "s1", [0, 10, 0, 0, 0, 0]), (3, 7, "+", 1, "s2", [0, 8, 0, 0, 0, 0]))

    ((_, request),) = requests(rows, TOKENS, model="m", seed=0)

    rendered = "\n".join(f"===== {role}\n{text}" for role, text in request.messages)
    assert rendered + "\n" == (GOLDEN / "explain_request.txt").read_text(encoding="utf-8")


def test_the_method_has_a_name_and_a_hash_of_its_prompts():
    assert METHOD == "token-activation-pairs"
    assert PROMPT_HASH.startswith(TAG)


@pytest.mark.parametrize(
    "text",
    [
        '{"explanation": "names of  cats\\n"}',
        '```json\n{"explanation": " names of cats"}\n```',
        '```\n{"explanation":"names of cats"}\n```',
    ],
)
def test_an_explanation_is_read_with_white_space_collapsed(text):
    assert parse(said(text)) == ("names of cats", None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "names of cats",
        "I'm sorry, but I cannot help with that.",
        'The answer: {"explanation": "cats"}',
        '{"explanation": "cats"',
        '{"explanation": ""}',
        '{"explanation": " \\n "}',
        '{"explanation": null}',
        '{"explanation": ["cats"]}',
        '{"explanation": "cats", "confidence": 1}',
        '{"explanation": "cats", "explanation": "dogs"}',
        '{"Explanation": "cats"}',
        '["cats"]',
        '{"explanation": "\\ud800"}',
        json.dumps({"explanation": "x" * 1001}),
    ],
)
def test_anything_else_is_unparsable(text):
    assert parse(said(text)) == (None, "unparsable")


def test_the_reason_of_a_missing_reply_is_passed_on():
    assert parse(Reply(request_id="sha256:0", text=None, missing_because="refused")) == (None, "refused")


@given(st.text(max_size=1000).filter(lambda text: text.split()))
def test_an_explanation_that_is_written_is_read(text):
    words = " ".join(text.split())

    assert parse(said(json.dumps({"explanation": text}))) == (words, None)


@given(st.text(st.characters(exclude_categories=())))
def test_any_reply_is_words_of_its_own_or_a_reason(text):
    words, reason = parse(said(text))

    assert (words is None) == (reason in MISSING)
