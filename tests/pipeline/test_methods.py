"""Methods: what each shows of a neuron, what it never shows, and that the default one asks as it always did."""

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import prompts
from pipeline import token_activation_pairs as pairs
from pipeline.errors import SettingsError
from pipeline.evidence import TOKENS, Evidence, evidence
from pipeline.explanations import requests, rows
from pipeline.methods import (
    ASKING,
    CLEARLY,
    CONTRAST,
    LOGITS,
    METHODS,
    REASONING,
    answer,
    parse,
    prompt_hash,
    read,
    tables,
)  # fmt: skip
from pipeline.ports import Reply
from pipeline.revision import sentences
from pipeline.tables import TABLES
from pipeline.texts import display, token_texts


def _cut(text):
    return st.integers(0, len(text)).map(lambda place: text[:place])


GOLDEN = Path(__file__).parents[1] / "golden"
SHOWN = Evidence(
    excerpts=[[("The", 0), (" old", 2), (" cat", 10), (" sat", 0)], [(" a", 0), ("\n", 0), ("cats", 5), ("!", 4)]],
    exemplar_ids=["x1", "x2"],
    tokens=[(" cat", 10), ("cats", 7)],
    quiet=["A dog sat.", "<s>"],
    exciting=[(" cat", 10), (" tom", 6)],
    promoted=[" purred", " fur"],
    suppressed=["<s>"],
    parents={
        "excerpts": ["sha256:1", "sha256:2"],
        "quiet": ["sha256:5"],
        "tokens": ["sha256:3"],
        "weights": ["sha256:4"],
    },
)
EXPECTED = {
    "highlight": '["The old",[" cat"]," sat"]\n[" a\\n",["cats"],["!"]]',
    "highlight-values": '["The old",[" cat",10]," sat"]\n[" a\\n",["cats",5],["!",4]]',
    "highlight-reasoning": '["The old",[" cat"]," sat"]\n[" a\\n",["cats"],["!"]]',
    "next-token-pairs": '[" cat"," sat",10]\n["cats","!",5]',
    "summary": '["The old"," cat",10]\n[" a\\n","cats",5]\n[" a\\ncats","!",4]',
    "contrastive": '["The old",[" cat"]," sat"]\n[" a\\n",["cats"],["!"]]\n{"quiet":"A dog sat."}\n'
    '{"quiet":"\\u003cs>"}',
    **dict.fromkeys(
        ("hypotheses:2", "hypotheses:3", "hypotheses:4", "hypotheses:5"),
        '["The old",[" cat",10]," sat"]\n[" a\\n",["cats",5],["!",4]]',
    ),
    "logits": '["The old",[" cat"]," sat"]\n[" a\\n",["cats"],["!"]]\n{"promotes":[" purred"," fur"]}\n'
    '{"suppresses":["\\u003cs>"]}',
    "token-space-weights": '[[" cat",10],[" tom",6]]',
    "token-space": '[[" cat",10],["cats",7]]',
}


@pytest.fixture(scope="module")
def layer(some_corpus, truth, made):
    sequences = some_corpus(60)
    return made(sequences, truth(sequences), signed=True)


@pytest.fixture(scope="module")
def weights():
    """Rows of `connections`: tokens 1 and 2 excite every neuron and 3 inhibits it, which promotes 4 and suppresses 5."""
    schema = {name: kind for name, kind in TABLES["connections"].schema.items() if name != "run_id"}
    lists = {
        "input_positive": ([1, 2], [4.0, 2.0]), "input_negative": ([3], [-1.0]),
        "output_positive": ([9, 4], [8.0, 1.0]), "output_negative": ([5], [-3.0]),
    }  # fmt: skip
    columns = {f"{name}_token_ids": ids for name, (ids, _) in lists.items()} | {
        f"{name}_strengths": strengths for name, (_, strengths) in lists.items()
    }
    rows = [{"layer": 3, "neuron": neuron, "identity": f"sha256:w{neuron}", **columns} for neuron in range(6)]
    return pl.DataFrame(rows, schema=schema)


SPELLED = {1: " one", 2: " two", 3: " three", 4: " four", 5: " five", 9: "\ufffd"}


def found_in(layer, connections=None):
    texts, words = display(layer.sequences), token_texts(layer.sequences)
    return evidence(
        layer.exemplars,
        layer.associations,
        texts,
        words,
        connections=connections,
        spelled=SPELLED if connections is not None else None,
    )


def asked_of(layer, *methods, connections=None):
    return requests(
        layer.explanations, layer.exemplars, display(layer.sequences), model="m", seed=0, methods=methods,
        evidence=found_in(layer, connections),
    )  # fmt: skip


def question(request):
    return request.messages[-1][1].partition("\n")[2]


@pytest.mark.parametrize("name", METHODS)
def test_each_method_shows_its_kind_of_evidence(name):
    assert METHODS[name].show(SHOWN) == EXPECTED[name]


@pytest.mark.parametrize("name", sorted({*METHODS} - {"hypotheses:2", "hypotheses:4", "hypotheses:5"}))
def test_a_whole_request_reads_like_this(name):
    request = METHODS[name].request(SHOWN, model="m", seed=0)
    rendered = "\n".join(f"===== {role}\n{text}" for role, text in request.messages)
    if name.startswith("hypotheses:") and name != "hypotheses:3":
        return  # as for three
    assert rendered + "\n" == (GOLDEN / f"explain_{name.replace(':', '-')}_request.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", METHODS)
def test_without_evidence_nothing_is_asked(name):
    assert METHODS[name].request(Evidence(), model="m", seed=0) is None


def test_no_two_methods_ask_alike():
    asked = {METHODS[name].request(SHOWN, model="m", seed=0).messages for name in METHODS}
    assert len(asked) == len(METHODS)
    kinds = {name.partition(":")[0] for name in ASKING}
    assert len({prompt_hash(name) for name in ASKING}) == len(kinds)


@pytest.mark.parametrize("name", METHODS)
def test_the_worked_cases_answer_in_the_form_that_is_asked_for(name):
    messages = METHODS[name].request(SHOWN, model="m", seed=0).messages
    answers = messages[2:-1:2]
    assert len(answers) == 3
    for _, worked in answers:
        assert len(read(name, Reply("r", worked, None))[0]) == (METHODS[name].number or 1)


@given(st.lists(st.tuples(st.text(max_size=4), st.integers(0, 10)), min_size=1, max_size=8))
def test_marked_text_is_the_text_whatever_is_in_it(excerpt):
    for name in ("highlight", "highlight-values"):
        shown = METHODS[name].show(Evidence(excerpts=[excerpt]))
        pieces = json.loads(shown)
        text = "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces)
        assert text == "".join(token for token, _ in excerpt)
        marked = [piece[0] for piece in pieces if isinstance(piece, list)]
        assert marked == [token for token, activation in excerpt if activation >= CLEARLY]
        assert "<" not in shown


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"reasoning": "cats", "explanation": " a\\n cat "}', (("a cat",), None)),
        ('{"explanation": "a cat"}', ((), "unparsable")),
        ('{"reasoning": 5, "explanation": "a cat"}', ((), "unparsable")),
        ('{"reasoning": "", "explanation": " "}', ((), "unparsable")),
        ('{"reasoning": "cats", "explanation": "a cat", "more": "x"}', ((), "unparsable")),
    ],
)
def test_a_reply_that_reasons_holds_both_and_its_phrase_is_the_explanation(text, found):
    assert read("highlight-reasoning", Reply("r", text, None)) == found
    assert read("highlight", Reply("r", '{"reasoning": "", "explanation": "a cat"}', None)) == ((), "unparsable")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"explanations": ["a cat", " a\\n dog "]}', (("a cat", "a dog"), None)),
        ('{"explanations": ["a cat", "a  cat"]}', (("a cat",), None)),
        ('{"explanations": ["a", "b", "c", "d"]}', ((), "unparsable")),
        ('{"explanations": []}', ((), "unparsable")),
        ('{"explanations": ["a", ""]}', ((), "unparsable")),
        ('{"explanations": ["a", 5]}', ((), "unparsable")),
        ('{"explanations": "a"}', ((), "unparsable")),
        ('{"explanation": "a cat"}', ((), "unparsable")),
    ],
)
def test_hypotheses_are_at_most_as_many_as_were_wanted_and_each_counts_once(text, found):
    assert read("hypotheses:3", Reply("r", text, None)) == found


@given(st.text(max_size=60) | st.just('{"reasoning": "a", "explanation": "b"}').flatmap(_cut))
def test_no_reply_makes_a_method_fail_or_invent(text):
    for name in ASKING:
        found, reason = read(name, Reply("r", text, None))
        assert (not found) == (reason is not None)
        assert all(explanation in text for explanation in found)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["explanation", "explanations", "reasoning", "fitting", "other", "x"]), JSON))
def test_no_object_of_the_wrong_shape_makes_a_method_fail_or_invent(answered):
    text = json.dumps(answered)
    strings = {" ".join(leaf.split()) for leaf in _texts(answered)}
    for name in ASKING:
        found, reason = read(name, Reply("r", text, None))
        assert (not found) == (reason is not None)
        assert strings.issuperset(found)
    (fitting, other), reason = sentences(Reply("r", text, None))
    assert (not fitting) == (not other) == (reason is not None)
    assert strings.issuperset({*fitting, *other})


def _texts(value):
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for one in inner for text in _texts(one)]


def test_what_stands_beside_the_worked_cases_is_of_them():
    for file in (REASONING, LOGITS, CONTRAST, "hypotheses.json"):
        assert list(json.loads(prompts.load(file).text)) == [case.explanation for case in prompts.cases()]


def test_the_default_method_asks_as_it_does_alone(layer):
    alone = requests(layer.explanations, layer.exemplars, display(layer.sequences), model="m", seed=0)
    among = [(key, request) for key, request in asked_of(layer, *ASKING) if key.method == pairs.METHOD]
    assert alone == among
    assert prompt_hash(pairs.METHOD) == pairs.PROMPT_HASH


def test_every_method_asks_about_every_neuron_that_fires_and_has_a_row_for_each(layer):
    asked = asked_of(layer, *ASKING)
    replies = [Reply(f"sha256:{place}", answer(key.method, "cats"), None) for place, (key, _) in enumerate(asked)]
    made = rows(
        asked, replies, layer.explanations, layer.exemplars, model="m", methods=ASKING, evidence=found_in(layer)
    )
    made = TABLES["explanations"].conform(made.with_columns(run_id=pl.lit("r")))
    neurons = layer.explanations.select("layer", "neuron", "polarity").n_unique()
    several = made.filter(pl.col("method") == "hypotheses:3").drop_nulls("text")
    assert several.group_by("neuron", "polarity").len()["len"].unique().to_list() == [3]
    assert made.select("layer", "neuron", "polarity", "method").n_unique() == neurons * len(ASKING)
    made = made.unique(["layer", "neuron", "polarity", "method"], keep="any")
    by_method = made.drop_nulls("text").group_by("method").len()
    assert dict(by_method.iter_rows())["highlight"] == len(asked_of(layer, pairs.METHOD))
    assert set(made.filter(pl.col("text").is_null())["missing_because"]) <= {
        "dead_neuron", "not_seen_firing", "no_exemplars", "no_evidence",
    }  # fmt: skip
    # Token-space shows no excerpt, and says so.
    assert set(made.filter(method="token-space")["exemplar_ids"].list.len()) == {0}
    assert made.filter(method="highlight").drop_nulls("text")["exemplar_ids"].list.len().min() > 0


def test_no_method_shows_a_text_that_is_scored(layer):
    scored = layer.exemplars.filter(pl.col("split") == "score")
    other = layer.exemplars.with_columns(
        token_ids=pl.when(pl.col("split") == "score").then(pl.col("token_ids").list.reverse()).otherwise("token_ids"),
        scaled_activations=pl.when(pl.col("split") == "score")
        .then(pl.col("scaled_activations").list.eval(pl.element() * 0))
        .otherwise("scaled_activations"),
    )
    assert len(scored) > 0
    texts, words = display(layer.sequences), token_texts(layer.sequences)
    assert evidence(other, layer.associations, texts, words) == found_in(layer)


def test_token_space_takes_the_strongest_of_the_side_that_is_asked_about(layer):
    found = found_in(layer)
    by_neuron = {
        (row["neuron"], row["polarity"]): dict(zip(row["token_ids"], row["means"], strict=True))
        for row in layer.associations.iter_rows(named=True)
    }
    words = token_texts(layer.sequences)
    for key, one in found.items():
        assert len(one.tokens) <= TOKENS
        if not one.tokens:
            continue
        assert one.tokens[0][1] == 10
        means = by_neuron[key.neuron, key.polarity]
        sign = -1 if key.polarity == "-" else 1
        strongest = max(means, key=lambda token: sign * means[token])
        assert max(sign * mean for mean in means.values()) > 0
        assert words[strongest] in {word for word, value in one.tokens if value == 10}


def test_weights_are_of_the_side_that_is_asked_about(layer, weights):
    found = found_in(layer, weights)
    assert {key.polarity for key in found} == {"+", "-"}
    for key, one in found.items():
        # Token 9 is no whole text.
        expected = (
            ([(" one", 10), (" two", 5)], [" four"], [" five"])
            if key.polarity == "+"
            else ([(" three", 10)], [" five"], [" four"])
        )
        assert (one.exciting, one.promoted, one.suppressed) == expected
        assert one.parents["weights"] == [f"sha256:w{key.neuron}"]


@pytest.mark.parametrize("name", ["logits", "token-space-weights"])
def test_without_connections_there_is_no_evidence_of_weights(layer, weights, name):
    assert len(asked_of(layer, name, connections=weights)) == len(asked_of(layer, "highlight")) > 0
    assert asked_of(layer, name) == []
    # A gated model has no input tokens, an encoder no output tokens: the lists are null.
    kind = "output" if name == "logits" else "input"
    none = weights.with_columns(
        pl.lit(None, weights[column].dtype).alias(column) for column in weights.columns if kind in column
    )
    assert asked_of(layer, name, connections=none) == []
    found = rows(
        [], [], layer.explanations, layer.exemplars, model="m", methods=(name,), evidence=found_in(layer, none)
    )
    assert "no_evidence" in set(found["missing_because"])
    assert found["text"].null_count() == len(found)


def test_a_method_knows_the_tables_that_it_shows():
    assert tables(pairs.METHOD) == ("exemplars",)
    assert tables("logits") == ("exemplars", "connections", "vocabulary")
    assert tables("best-of:3") == ("exemplars", "activations")
    assert tables("revision") == ("exemplars", "subject_layers")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no ''; known are token-activation-pairs, highlight"),
        ("highlight,nobody", "there is no 'nobody'"),
        ("highlight, highlight", "names a method twice"),
        ("random-explanation, highlight", "takes the words of the first method; name that before it"),
        ("empty, revision", "`revision` takes the words of the first method; name that before it"),
    ],
)
def test_unknown_methods_and_those_named_twice_are_refused(text, said):
    with pytest.raises(SettingsError, match=said):
        parse(text)


def test_methods_are_named_in_a_list():
    assert parse("summary, token-space") == ("summary", "token-space")
