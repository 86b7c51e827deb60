"""The simulator that says only where a neuron is active: silence is said too, and what is left out is not made up."""

import json
from pathlib import Path

import polars as pl
import pytest

from pipeline import explanations as explainer
from pipeline.json_sparse_simulator import AT_ONCE, PROMPT_HASH, parse, requests
from pipeline.ports import Reply
from pipeline.simulations import requests as asked_in
from pipeline.simulations import rows
from pipeline.tables import TABLES
from pipeline.texts import display

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def layer(some_corpus, truth, made):
    sequences = some_corpus(60)
    return made(sequences, truth(sequences), signed=True)


@pytest.fixture(scope="module")
def words(layer):
    """Explanations of a language model."""
    asked = explainer.requests(layer.explanations, layer.exemplars, display(layer.sequences), model="m", seed=0)
    replies = [Reply(f"sha256:{place}", '{"explanation": "names of cats"}', None) for place in range(len(asked))]
    return explainer.rows(asked, replies, layer.explanations, layer.exemplars, model="m").drop_nulls("text")


def simulated(layer, words, way):
    """Simulations by one who knows the scaled activations."""
    hidden = {row["exemplar_id"]: row["scaled_activations"] for row in layer.exemplars.iter_rows(named=True)}
    asked = asked_in(words, layer.exemplars, display(layer.sequences), model="s", seed=0, way=way)
    replies = []
    for place, (keys, _) in enumerate(asked):
        found = {
            str(n): [[i, value] for i, value in enumerate(hidden[ids[0][1]]) if value or way != "json-sparse"]
            for n, ids in enumerate(keys)
        }
        replies.append(Reply(f"sha256:{place}", json.dumps({"excerpts": found}), None))
    frame = rows(asked, replies, words, layer.exemplars, model="s", way=way)
    length = sum(len(reply.text) for reply in replies)
    return TABLES["simulations"].conform(frame.with_columns(run_id=pl.lit("r"))), len(asked), length


def said(value):
    return Reply("sha256:0", value if isinstance(value, str) else json.dumps(value), None)


def expected(found):
    return [one.expected if one.expected is not None else one.missing_because for one in found]


def test_who_knows_the_neuron_says_the_same_as_with_every_zero_written_out(layer, words):
    sparse, asked, length = simulated(layer, words, "json-sparse")
    many, asked_many, length_many = simulated(layer, words, "json-many")
    columns = ["explanation_id", "exemplar_id", "expected", "true", "coverage", "missing_because"]
    assert sparse.select(columns).equals(many.select(columns))
    assert sparse["expected"].null_count() == 0
    assert asked <= asked_many
    assert length < length_many


def test_a_request_has_at_most_ten_excerpts_and_no_activation_is_in_it(layer, words):
    scored = layer.exemplars.filter(pl.col("split") == "score")
    silent = scored.with_columns(
        pl.col("activations").list.eval(pl.element() * 0), pl.col("scaled_activations").list.eval(pl.element() * 0)
    )
    texts = display(layer.sequences)
    first, second = (list(requests(words, frame, texts, model="m", seed=0)) for frame in (scored, silent))
    assert first == second
    assert all(1 <= len(keys) <= AT_ONCE for keys, _ in first)


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ({"excerpts": {"0": [[1, 7]], "1": []}}, [[0, 7, 0], [0, 0]]),
        ({"excerpts": {"1": [[0, 2.5], [1, 10]], "0": []}}, [[0, 0, 0], [2.5, 10]]),
        ({"excerpts": {"0": [[1, 7]]}}, [[0, 7, 0], "wrong_length"]),
        ({"excerpts": {"0": [[3, 7]], "1": []}}, ["wrong_length", [0, 0]]),
        ({"excerpts": {"0": [[-1, 7]], "1": []}}, ["wrong_length", [0, 0]]),
        ({"excerpts": {"0": [[1, 11], [2, 3]], "1": [[0, True]]}}, [[0, None, 3], [None, 0]]),
        ({"excerpts": {"0": [[1, 7], [1, 8]], "1": [[1, 7], [1, 7]]}}, [[0, None, 0], [0, 7]]),
        ({"excerpts": {"0": [["1", 7]], "1": [7]}}, ["unparsable", "unparsable"]),
        ({"excerpts": {"0": "none", "1": None}}, ["unparsable", "unparsable"]),
        ({"excerpts": {"0": [], "1": [], "2": []}}, ["unparsable", "unparsable"]),
        ({"excerpts": {}}, ["wrong_length", "wrong_length"]),
        ({"excerpts": []}, ["unparsable", "unparsable"]),
        ({}, ["unparsable", "unparsable"]),
        ('{"excerpts": {"0": [[1, 7]', ["unparsable", "unparsable"]),
    ],
)
def test_a_token_that_nothing_is_said_of_is_silent_only_where_its_excerpt_was_answered(reply, read):
    assert expected(parse(said(reply), [3, 2])) == read


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ({"excerpts": {"0": [[1, 7], [2, "end"]], "1": [[1, "end"]]}}, [[0, 7, 0], [0, 0]]),
        # It stopped early: silence is known between the pairs alone.
        ({"excerpts": {"0": [[1, 7]], "1": [[0, 3], [1, "end"]]}}, [[0, 7, None], [3, 0]]),
        ({"excerpts": {"0": [], "1": []}}, ["wrong_length", "wrong_length"]),
        # It counted wrong, so that nothing of its list is certain.
        ({"excerpts": {"0": [[1, 7], [3, "end"]], "1": [[1, "end"]]}}, ["wrong_length", [0, 0]]),
        ({"excerpts": {"0": [[2, 7], [0, 3]], "1": [[1, "end"], [1, 4]]}}, [[3, None, 7], "unparsable"]),
        ({"excerpts": {"0": [[True, "end"]], "1": [[1, "END"]]}}, ["unparsable", "unparsable"]),
        ({"excerpts": {"0": [[2, "end"], [2, "end"]], "1": {"1": "end"}}}, ["unparsable", "unparsable"]),
    ],
)
def test_with_a_mark_at_the_end_stopping_early_is_not_silence(reply, read):
    assert expected(parse(said(reply), [3, 2], closed=True)) == read


def test_a_failed_reply_has_its_reason_for_every_excerpt():
    assert expected(parse(Reply("sha256:0", None, "truncated"), [3, 2])) == ["truncated", "truncated"]


def test_the_worked_answers_of_the_marked_form_are_read_as_complete(layer, words):
    scored = layer.exemplars.filter(pl.col("split") == "score")
    (_, request), *_ = requests(words, scored, display(layer.sequences), model="m", seed=0, closed=True)
    (_, plain), *_ = requests(words, scored, display(layer.sequences), model="m", seed=0)
    for (role, question), (_, closed), (_, open_) in zip(
        request.messages[1:-1], request.messages[2:], plain.messages[2:], strict=False
    ):
        if role == "user":
            lengths = [len(json.loads(line.partition(": ")[2])) for line in question.splitlines()[2:]]
            assert parse(said(closed), lengths, closed=True) == parse(said(open_), lengths)


def test_the_request_reads_as_in_its_golden_file(layer, words):
    texts = display(layer.sequences)
    scored = layer.exemplars.filter(pl.col("split") == "score")
    (_, request), *_ = requests(words, scored, texts, model="m", seed=0)
    rendered = "\n".join(f"===== {role}\n{text.rstrip()}" for role, text in request.messages[:-1])
    assert rendered + "\n" == (GOLDEN / "simulate_sparse_request.txt").read_text(encoding="utf-8")
    assert PROMPT_HASH.startswith("sha256:")
