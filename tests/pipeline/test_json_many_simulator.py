"""The simulator of several excerpts: what it is shown, and that each excerpt of a reply stands by itself."""

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import explanations as explainer
from pipeline import json_simulator
from pipeline.errors import LakeError
from pipeline.json_many_simulator import AT_ONCE, PROMPT_HASH, parse, requests
from pipeline.json_simulator import Simulated
from pipeline.ports import Reply
from pipeline.scores import scores
from pipeline.simulations import requests as asked_in
from pipeline.simulations import rows
from pipeline.tables import MISSING, TABLES
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


def asked_of(layer, words):
    return asked_in(words, layer.exemplars, display(layer.sequences), model="s", seed=0, way="json-many")


def knows(layer, keys):
    """A reply of a simulator that knows the scaled activations."""
    hidden = {row["exemplar_id"]: row["scaled_activations"] for row in layer.exemplars.iter_rows(named=True)}
    return {str(place): list(map(list, enumerate(hidden[ids[0][1]]))) for place, ids in enumerate(keys)}


def made_of(layer, words, answer):
    asked = asked_of(layer, words)
    replies = [
        Reply(f"sha256:{place}", json.dumps({"excerpts": answer(knows(layer, keys))}), None)
        for place, (keys, _) in enumerate(asked)
    ]
    frame = rows(asked, replies, words, layer.exemplars, model="s", way="json-many")
    return TABLES["simulations"].conform(frame.with_columns(run_id=pl.lit("r")))


def said(value):
    return Reply("sha256:0", value if isinstance(value, str) else json.dumps(value), None)


def test_every_exemplar_is_asked_about_once_however_many_strata_it_is_of(layer, words):
    keys = [ids for keys, _ in asked_of(layer, words) for excerpts in keys for ids in excerpts]
    scored = layer.exemplars.filter(pl.col("split") == "score")
    at = ["layer", "neuron", "polarity"]
    wanted = words.select(*at, "explanation_id").join(scored.select(*at, "exemplar_id", "sequence_id"), on=at)
    assert sorted(keys) == sorted(wanted.select("explanation_id", "exemplar_id").rows())
    excerpts = sum(len(keys) for keys, _ in asked_of(layer, words))
    assert excerpts == wanted.select("explanation_id", "sequence_id").n_unique()


def test_a_request_has_at_most_five_excerpts_of_one_explanation(layer, words):
    for keys, request in asked_of(layer, words):
        assert 1 <= len(keys) <= AT_ONCE
        assert len({explanation_id for ids in keys for explanation_id, _ in ids}) == 1
        assert len(request.messages[-1][1].splitlines()) == 2 + len(keys)


def test_the_order_of_excerpts_says_nothing_of_their_strength(layer, words):
    ranks = {row["exemplar_id"]: row["sequence_id"] for row in layer.exemplars.iter_rows(named=True)}
    for keys, _ in asked_of(layer, words):
        order = [ranks[ids[0][1]] for ids in keys]
        assert order == sorted(order)


def test_no_activation_is_in_a_request(layer, words):
    silent = layer.exemplars.with_columns(
        pl.col("activations").list.eval(pl.element() * 0), pl.col("scaled_activations").list.eval(pl.element() * 0)
    )
    texts = display(layer.sequences)
    hidden = (frame.filter(pl.col("split") == "score") for frame in (layer.exemplars, silent))
    first, second = (list(requests(words, frame, texts, model="m", seed=0)) for frame in hidden)
    assert first == second


def test_what_was_explained_is_never_scored_on(layer, words):
    with pytest.raises(LakeError, match=r"split \['explain', 'score'\]|split \['explain'\]"):
        list(requests(words, layer.exemplars, display(layer.sequences), model="m", seed=0))


def test_it_takes_less_than_half_of_what_one_excerpt_at_a_time_does_for_short_texts(layer, words):
    texts = display(layer.sequences)

    def length(way):
        asked = asked_in(words, layer.exemplars, texts, model="s", seed=0, way=way)
        return sum(len(text) for _, request in asked for _, text in request.messages)

    assert length("json-many") < length("json") / 2


def test_a_simulator_that_knows_the_neuron_says_the_same_in_both_ways(layer, words):
    many = made_of(layer, words, lambda truth: truth)
    texts = display(layer.sequences)
    asked = asked_in(words, layer.exemplars, texts, model="s", seed=0)
    replies = [
        Reply(f"sha256:{place}", json.dumps({"activations": knows(layer, keys)["0"]}), None)
        for place, (keys, _) in enumerate(asked)
    ]
    alone = rows(asked, replies, words, layer.exemplars, model="s")
    columns = ["explanation_id", "exemplar_id", "expected", "true", "coverage"]
    assert many.select(columns).sort(columns[:2]).equals(alone.select(columns).sort(columns[:2]))
    assert set(scores(many, words, seed=0)["missing_because"].drop_nulls()) <= {"constant_activation"}


def test_what_is_wrong_with_one_excerpt_makes_no_other_missing(layer, words):
    def without_the_first(truth):
        return {place: pairs for place, pairs in truth.items() if place != "0"}

    found = made_of(layer, words, without_the_first)
    assert set(found["missing_because"]) == {None, "wrong_length"}
    assert found.filter(pl.col("expected").is_null())["coverage"].unique().to_list() == [0.0]


def test_excerpts_are_read_in_any_order_and_each_by_itself():
    excerpts = {"2": [[0, 3]], "0": [[1, 0], [0, 10]], "1": [[0, 1], [0, 1]]}
    assert parse(said({"excerpts": excerpts}), [2, 2, 1]) == [
        Simulated([10.0, 0.0], None, 1.0),
        Simulated([1.0, None], None, 0.5),
        Simulated([3.0], None, 1.0),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "", "no", "[]", "{}", '{"excerpts": []}', '{"excerpts": null}', '{"excerpts": {"2": [[0, 0]]}}',
        '{"excerpts": {"0": [[0, 0]], "0": [[0, 1]]}}', '{"excerpts": {"0": [[0, 0]]}, "note": "x"}',
        '{"excerpts": {"00": [[0, 0]]}}', '{"activations": [[0, 0]]}',
    ],
)  # fmt: skip
def test_what_is_not_in_the_form_is_unparsable(text):
    assert parse(said(text), [1, 1]) == [Simulated(None, "unparsable", 0.0)] * 2


@pytest.mark.parametrize("reason", ["timeout", "refused", "truncated", "budget"])
def test_a_reply_that_is_missing_makes_all_its_excerpts_missing_for_its_reason(reason):
    assert parse(Reply("sha256:0", None, reason), [1, 2]) == [Simulated(None, reason, 0.0)] * 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-20, 20) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["0", "1", "excerpts", "activations"]), inner, max_size=3)
    ),
    max_leaves=12,
)
MALFORMED = (
    JSON
    | st.dictionaries(st.just("excerpts"), JSON)
    | st.builds(
        lambda pairs: {"excerpts": {"0": pairs}}, st.lists(st.lists(st.integers(-1, 12), max_size=3), max_size=4)
    )
)


@settings(max_examples=2_000, deadline=None)
@given(value=MALFORMED, cut=st.integers(0, 60), whole=st.booleans())
def test_no_reply_invents_a_number_and_every_excerpt_is_accounted_for(value, cut, whole):
    text = json.dumps(value)
    text = text if whole else text[:cut]
    for parser, lengths in ((parse, [2, 1]), (lambda reply, lengths: [json_simulator.parse(reply, lengths[0])], [2])):
        found = parser(said(text), lengths)
        assert len(found) == len(lengths)
        for simulated, length in zip(found, lengths, strict=True):
            if simulated.expected is None:
                assert simulated.missing_because in MISSING
                assert simulated.coverage == 0
            else:
                assert len(simulated.expected) == length
                known = [number for number in simulated.expected if number is not None]
                assert all(0 <= number <= 10 for number in known)
                assert simulated.coverage == len(known) / length > 0


def test_a_whole_request_reads_like_this(layer, words):
    (_, request), *_ = asked_of(layer, words.head(1))
    rendered = "\n".join(f"===== {role}\n{text}" for role, text in request.messages[:-1])
    assert rendered + "\n" == (GOLDEN / "simulate_many_request.txt").read_text(encoding="utf-8")


def test_the_worked_cases_hold_to_the_form_that_is_asked_for(layer, words):
    (_, request), *_ = asked_of(layer, words.head(1))
    asked, answered = request.messages[1:-1:2], request.messages[2:-1:2]
    for (_, question), (_, answer) in zip(asked, answered, strict=True):
        lengths = [len(json.loads(line.partition(": ")[2])) for line in question.splitlines()[2:]]
        assert all(simulated.missing_because is None for simulated in parse(said(answer), lengths))


def test_it_has_a_hash_of_its_own():
    assert PROMPT_HASH != json_simulator.PROMPT_HASH
