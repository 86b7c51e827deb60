"""Lines of CSV and JSON, Neuronpedia's batches and delphi's results as rows."""

import json

import polars as pl
import pytest

from pipeline import delphi_import, imports, lines_import, neuronpedia_import
from pipeline.errors import FormError
from pipeline.tables import TABLES


def frames(found):
    batch = imports.batch([found], [], source="s")
    return {name: TABLES[name].conform(frame.with_columns(run_id=pl.lit("r"))) for name, frame in batch.frames.items()}


def csv(text):
    return lines_import.parse_csv(text, None, source="s", path="p", file="sha256:f")


def test_a_line_is_an_explanation_with_its_author_and_its_score():
    found = csv('neuron,explanation,author,score\n5:131,"dogs, and\ncats",ann,0.5\n5:132,birds,,\n')
    rows = frames(found)["imported_explanations"].sort("neuron").to_dicts()
    assert [(row["layer"], row["neuron"], row["text"], row["explainer"]) for row in rows] == [
        (5, 131, "dogs, and\ncats", "ann"), (5, 132, "birds", "unknown")
    ]  # fmt: skip
    scores = frames(found)["imported_scores"].to_dicts()
    assert [(row["neuron"], row["scorer"], row["value"]) for row in scores] == [(131, "csv:score", 0.5)]


def test_a_column_for_the_layer_and_other_names_are_read_too():
    found = csv("\ufeffLayer,Neuron,Text,Explainer,Extra\r\n5, 131 ,dogs,gpt-4,x\r\n")
    row = frames(found)["imported_explanations"].row(0, named=True)
    assert (row["layer"], row["neuron"], row["text"], row["explainer"]) == (5, 131, "dogs", "gpt-4")


def test_an_explanation_that_is_empty_is_missing():
    row = frames(csv("neuron,explanation\n5:1,\n"))["imported_explanations"].row(0, named=True)
    assert (row["text"], row["missing_because"]) == (None, "not_given")


def test_a_wrong_line_is_named_and_the_others_are_taken():
    found = csv("neuron,explanation,score\n5:1,a,1\nfive,b,1\n5:3,c,much\n5:4,d\n5:5,e,2\n")
    assert sorted(frames(found)["imported_explanations"].get_column("neuron")) == [1, 5]
    assert [(where, why) for where, why, _ in found.rejected] == [
        ("line 3", 'neuron must be such as 5:131, or an index beside a column `layer`, not "five"'),
        ("line 4", 'score must be a number, not "much"'),
        ("line 5", "there must be 3 fields, as in the first line, not 2"),
    ]


@pytest.mark.parametrize("inside", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_only_a_line_break_ends_a_line(inside):
    found = csv(f"neuron,explanation\n5:1,dogs{inside}cats\n5:2,birds\n")
    assert found.rejected == []
    assert frames(found)["imported_explanations"].sort("neuron").get_column("text").to_list() == [
        f"dogs{inside}cats", "birds"
    ]  # fmt: skip


def test_a_csv_without_the_columns_is_rejected():
    with pytest.raises(FormError, match="it lacks neuron"):
        csv("a,explanation\n")
    with pytest.raises(FormError, match="it lacks neuron, explanation"):
        csv("")


def test_json_lines_have_the_same_fields():
    text = '{"layer": 5, "neuron": 1, "explanation": "a", "score": 0.25, "scorer": "mine"}\n\n{"neuron": }\n[]\n'
    found = lines_import.parse_jsonl(text, None, source="s", path="p", file="sha256:f")
    assert frames(found)["imported_scores"].item(0, "scorer") == "jsonl:mine"
    assert [(where, offset) for where, _, offset in found.rejected] == [("line 3", 11), ("line 4", None)]


def neuronpedia(kind, *rows, batch=0):
    path = f"v1/gpt2-small/5/{kind}/batch-{batch}.jsonl.gz"
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    match = neuronpedia_import.PATH.fullmatch(path)
    return neuronpedia_import.parse(text, match, source="s", path=path, file="sha256:f")


AT = {"modelId": "gpt2-small", "layer": "5", "index": "131"}


def test_activations_are_records_of_the_top_or_of_a_bin():
    found = neuronpedia(
        "activations",
        AT | {"tokens": [" a", "b"], "values": [0, 2.5], "binMin": 0, "binMax": 1, "binContains": -1},
        AT | {"tokens": [" a", "b"], "values": [0.5, 0], "binMin": 0.25, "binMax": 0.5, "binContains": 0.125},
        AT | {"tokens": [" a", "b"], "values": [-3.0, 0], "dataSource": "bottom"},
        batch=2,
    )
    rows = frames(found)["imported_records"].sort("rank").to_dicts()
    assert [(row["stratum"], row["polarity"], row["peak"]) for row in rows] == [
        ("top", "+", 2.5), ("0.25 to 0.5", "+", 0.5), ("top", "-", 3.0)
    ]  # fmt: skip
    assert [row["rank"] - 2 * neuronpedia_import.LINES for row in rows] == [0, 1, 2]
    assert {row["split"] for row in rows} == {"none"}


def test_explanations_keep_method_and_model_and_features_keep_what_they_promote():
    found = neuronpedia(
        "explanations", AT | {"description": "dogs", "typeName": "np_max-act", "explanationModelName": "gpt-4o"}
    )
    row = frames(found)["imported_explanations"].row(0, named=True)
    assert (row["text"], row["method"], row["explainer"]) == ("dogs", "np_max-act", "gpt-4o")
    found = neuronpedia(
        "features", AT | {"pos_str": [" dog"], "pos_values": [1.5], "frac_nonzero": 0.25, "vector": [1, 2]}
    )
    row = frames(found)["imported_neurons"].row(0, named=True)
    assert json.loads(row["token_weights"]) == {"pos_str": [" dog"], "pos_values": [1.5]}
    assert json.loads(row["original"])["frac_nonzero"] == 0.25
    assert "vector" not in json.loads(row["original"])


def test_a_wrong_line_of_a_batch_is_named():
    found = neuronpedia(
        "explanations", "{", AT | {"layer": "6", "description": "x"}, AT | {"description": 5}, AT | {"description": "y"}
    )
    assert [where for where, _, _ in found.rejected] == ["line 1", "line 2", "line 3"]
    assert len(frames(found)["imported_explanations"]) == 1


@pytest.mark.parametrize(("source", "layer"), [("5", "5"), ("12-res-jb", "12"), ("0-att-kk__x", "0")])
def test_the_layer_begins_the_name_of_a_source(source, layer):
    assert neuronpedia_import.PATH.fullmatch(f"gpt2-small/{source}/features/batch-0.jsonl")["layer"] == layer


def delphi(path, value):
    text = value if isinstance(value, str) and value.startswith("{") else json.dumps(value)
    match = delphi_import.PATH.fullmatch(path)
    assert match, path
    return delphi_import.parse(text, match, source="s", path=path, file="sha256:f")


def test_what_delphi_could_not_parse_is_missing():
    good = frames(delphi("explanations/layers.5.mlp_latent131.txt", "dogs"))["imported_explanations"].row(0, named=True)
    assert (good["layer"], good["neuron"], good["text"]) == (5, 131, "dogs")
    bad = frames(delphi("explanations/layers.5.mlp_latent131.txt", "Explanation could not be parsed."))
    assert bad["imported_explanations"].select("text", "missing_because").row(0) == (None, "unparsable")


def test_judgements_without_an_answer_are_no_mistakes():
    judged = [(True, True), (True, None), (False, True), (False, False)]
    value = [
        {"str_tokens": ["a"], "activations": [1], "distance": 1, "activating": a, "prediction": p} for a, p in judged
    ]
    row = frames(delphi("scores/fuzz/layers.5.mlp_latent131.txt", value))["imported_scores"].row(0, named=True)
    assert (row["scorer"], row["value"], row["n_sequences"]) == ("delphi:fuzz.balanced_accuracy", 0.75, 3)
    row = frames(delphi("scores/fuzz/layers.5.mlp_latent131.txt", value[:2]))["imported_scores"].row(0, named=True)
    assert (row["value"], row["missing_because"]) == (None, "not_given")


def simulated(distance, *parts, score):
    sequences = [
        {
            "distance": far, "true_activations": true, "ev_correlation_score": "nan", "rsquared_score": 0,
            "absolute_dev_explained_score": 0,
            "simulation": {"tokens": ["a", "b"], "expected_activations": expected, "activation_scale": None},
        }
        for far, expected, true in parts
    ]  # fmt: skip
    return {
        "distance": distance, "scored_sequence_simulations": sequences, "ev_correlation_score": score, "rsquared_score": 0,
        "absolute_dev_explained_score": 0,
    }  # fmt: skip


def test_a_sequence_that_stands_in_two_simulations_is_taken_once_and_zeros_are_no_scores():
    one, two = (1, [0.0, 9.0], [0, 10]), (-1, [0.0, 1.0], [0, 0])
    value = [simulated(1, one, score=0.9), simulated(-1, two, score="nan"), simulated(0, one, two, score=0.8)]
    found = frames(delphi("scores/simulation/model--layers.5.mlp_latent131.txt", value))
    assert [(row["stratum"], row["expected"]) for row in found["imported_simulations"].sort("rank").to_dicts()] == [
        ("top", [0.0, 9.0]), ("random", [0.0, 1.0])
    ]  # fmt: skip
    scores = {row["split"]: (row["scorer"], row["value"]) for row in found["imported_scores"].to_dicts()}
    assert scores == {
        "quantile 1": ("delphi:simulation.ev_correlation", 0.9), "quantile -1": ("delphi:simulation.ev_correlation", None),
        "all": ("delphi:simulation.ev_correlation", 0.8),
    }  # fmt: skip


def counted(scorer, *rows):
    found = frames(delphi(f"scores/{scorer}/layers.5.mlp_latent131.txt", list(rows)))["imported_scores"]
    return {row["scorer"]: (row["value"], row["n_sequences"]) for row in found.to_dicts()}


def test_an_intruder_test_that_failed_is_no_mistake():
    done = [
        {"interpretation": "", "sample": {"examples": []}, "prediction": said, "correct_index": 1, "correct": said == 1}
        for said in (1, 1, 1, 0)
    ]
    failed = {"interpretation": "", "sample": None, "prediction": 0, "correct_index": -1, "correct": False}
    assert counted("intruder", *done, failed) == {"delphi:intruder.accuracy": (0.75, 4)}
    assert counted("intruder", failed) == {"delphi:intruder.accuracy": (None, 0)}


def test_embeddings_are_scored_by_how_often_the_right_text_is_nearer():
    activating = [{"text": "a", "distance": quantile, "similarity": value} for quantile, value in ((0, 0.9), (3, 0.5))]
    others = [{"text": "b", "distance": -1.0, "similarity": value} for value in (0.5, 0.1)]
    assert counted("embedding", *activating, *others) == {"delphi:embedding.auc": (0.875, 4)}
    # A neighbour's distance may be 0.0, and is a float.
    assert counted("embedding", activating[0], {"distance": 0.0, "similarity": 0.95}) == {
        "delphi:embedding.auc": (0.0, 2)
    }
    assert counted("embedding", *others) == {"delphi:embedding.auc": (None, 2)}


def test_examples_and_surprisal_give_means_under_names_that_say_so():
    batches = [{"batch": {}, "delta_plus": plus, "delta_minus": minus} for plus, minus in ((0.5, -0.25), (0.25, 0.25))]
    assert counted("example_embedding", *batches) == {
        "delphi:example_embedding.mean_delta_plus": (0.375, 2), "delphi:example_embedding.mean_delta_minus": (0.0, 2),
    }  # fmt: skip
    texts = [
        {
            "text": "a",
            "distance": 1,
            "no_explanation": [3.0, 2.0],
            "explanation": [1.0, 2.0],
            "activations": [1.0, 0.0],
        },
        {"text": "b", "distance": -1.0, "no_explanation": [2.0], "explanation": [2.5], "activations": [0.0]},
    ]
    assert counted("surprisal", *texts) == {
        "delphi:surprisal.mean_gain_activating": (1.0, 1), "delphi:surprisal.mean_gain_others": (-0.5, 1),
    }  # fmt: skip


def test_a_score_is_of_the_explanation_of_the_same_latent():
    said = frames(delphi("explanations/h.5_latent131.txt", "dogs"))["imported_explanations"]
    score = frames(delphi("scores/detection/h.5_latent131.txt", []))["imported_scores"]
    assert said.item(0, "explanation_id") == score.item(0, "explanation_id")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("explanations/layers.5.mlp_latent1.txt", 5, "must be text"),
        ("scores/recall/layers.5.mlp_latent1.txt", [], "of the kind `recall` cannot be read"),
        (
            "scores/intruder/layers.5.mlp_latent1.txt",
            [{"sample": {}, "prediction": 1, "correct_index": 1}],
            "must be True",
        ),
        ("scores/embedding/layers.5.mlp_latent1.txt", [{"similarity": 1.0, "distance": None}], "must be a number"),
        ("scores/embedding/layers.5.mlp_latent1.txt", [{"similarity": "1"}], "similarity of part 0 must be a number"),
        (
            "scores/surprisal/layers.5.mlp_latent1.txt",
            [{"no_explanation": [1.0], "explanation": [1.0, 2.0], "distance": 0}],
            "must have 1 numbers, as without it, and has 2",
        ),
        ("scores/fuzz/layers.5.mlp_latent1.txt", [{"activating": 1}], "must be true or false, not 1"),
        ("scores/fuzz/layers.5.mlp_latent1.txt", [{"activating": True, "prediction": "yes"}], "true, false or null"),
        ("scores/simulation/layers.5.mlp_latent1.txt", [{"scored_sequence_simulations": 1}], "must be a list"),
    ],
)
def test_what_is_not_delphis_is_rejected(path, value, said):
    with pytest.raises(FormError, match=said):
        delphi(path, value)


def test_a_column_under_another_name_counts_where_the_usual_one_is_not_there():
    found = csv("layer,feature,label,f1_score\n19,7,dogs,0.5\n")
    assert frames(found)["imported_explanations"].select("layer", "neuron", "text").row(0) == (19, 7, "dogs")
    assert frames(found)["imported_scores"].is_empty()
    found = csv("index,layer,neuron,text,explanation\n99,1,2,other,dogs\n")
    assert frames(found)["imported_explanations"].select("layer", "neuron", "text").row(0) == (1, 2, "dogs")


def test_a_column_that_is_there_twice_is_refused():
    with pytest.raises(FormError, match="one column `explanation`, not 2"):
        csv("neuron,explanation,Explanation\n0:1,a,b\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Explanation could not be parsed.", "unparsable"),
        ("Explanation generation failed (vLLM connection error).", "server_error"),
    ],
)
def test_a_failure_that_a_form_writes_as_a_sentence_is_no_explanation(text, reason):
    row = frames(delphi("explanations/layers.5_latent1.txt", text))["imported_explanations"].row(0, named=True)
    assert (row["text"], row["missing_because"]) == (None, reason)
