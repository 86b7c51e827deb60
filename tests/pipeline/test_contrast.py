"""Contrast: texts that may be shown, on which the neuron is quiet, the hardest first."""

import polars as pl
import pytest

from pipeline.contrast import QUIET, quiet
from pipeline.tables import TABLES

LIKED, OTHER = 7, 1


def sequence(name, split, tokens):
    return {"sequence_id": name, "split": split, "token_ids": tokens}


def record(name, peak, *, polarity="+", stratum="random", rank=0):
    return {
        "layer": 0, "neuron": 0, "polarity": polarity, "stratum": stratum, "rank": rank, "sequence_id": name, "peak": peak,
        "identity": f"sha256:{name}",
    }  # fmt: skip


def shown(name, *, polarity="+"):
    return {
        "layer": 0, "neuron": 0, "polarity": polarity, "split": "explain", "sequence_id": name, "scale_maximum": 10.0,
        "token_ids": [LIKED, OTHER], "scaled_activations": [10, 2],
    }  # fmt: skip


def frame(table, rows):
    schema = TABLES[table].schema
    return pl.DataFrame(rows, schema={name: schema[name] for name in rows[0]})


def chosen(sequences, records, *, polarity="+"):
    found = quiet(
        frame("activations", records),
        frame("exemplars", [shown("shown", polarity=polarity)]),
        frame("sequences", [sequence("shown", "explain", [LIKED, OTHER]), *sequences]),
        clearly=3,
    )
    return found["sequence_id"].to_list()


def test_the_text_that_holds_what_the_neuron_likes_comes_first():
    sequences = [sequence("a", "explain", [OTHER, OTHER]), sequence("b", "explain", [OTHER, LIKED])]
    assert chosen(sequences, [record("a", 0.0), record("b", 2.9, rank=1)]) == ["b", "a"]


def test_a_text_with_a_clearly_active_token_is_not_quiet():
    assert chosen([sequence("a", "explain", [LIKED])], [record("a", 3.0)]) == []


def test_on_the_negative_side_what_is_positive_is_quiet():
    sequences = [sequence(name, "explain", [LIKED]) for name in "ab"]
    records = [record("a", -5.0, polarity="-"), record("b", 5.0, polarity="-", rank=1)]
    assert chosen(sequences, records, polarity="-") == ["b"]


@pytest.mark.parametrize("split", ["score", "calibrate", "test"])
def test_no_text_of_another_split_is_shown(split):
    assert chosen([sequence("a", split, [LIKED])], [record("a", 0.0)]) == []


def test_a_text_is_shown_once_and_not_if_it_is_an_exemplar():
    records = [record("a", 0.0), record("a", 0.0, stratum="q0"), record("shown", 0.0, rank=1)]
    assert chosen([sequence("a", "explain", [LIKED])], records) == ["a"]


def test_there_are_at_most_five():
    names = "abcdefgh"
    sequences = [sequence(name, "explain", [LIKED]) for name in names]
    assert chosen(sequences, [record(name, 0.0, rank=rank) for rank, name in enumerate(names)]) == list(names[:QUIET])


def test_of_a_layer_all_that_is_chosen_is_quiet_and_of_split_explain(some_corpus, truth, made):
    sequences = some_corpus(60)
    layer = made(sequences, truth(sequences), signed=True)
    found = quiet(layer.activations, layer.exemplars, sequences, clearly=3)
    assert len(found) > 0
    splits = found.join(sequences, on="sequence_id")["split"]
    assert set(splits) == {"explain"}
    at = ["neuron", "polarity", "sequence_id"]
    assert found.join(layer.exemplars, on=at).is_empty()
    peaks = found.join(layer.activations.unique(at), on=at).join(
        layer.exemplars.select("neuron", "polarity", "scale_maximum").unique(), on=["neuron", "polarity"]
    )
    sign = pl.when(pl.col("polarity") == "-").then(-1).otherwise(1)
    assert peaks.select((sign * pl.col("peak") * 10 / pl.col("scale_maximum")).max()).item() < 3
