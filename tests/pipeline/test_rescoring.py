"""Imported explanations, simulated on the records that came with them."""

import polars as pl
import pytest

from pipeline import rescoring
from pipeline.ports import Reply
from pipeline.tables import TABLES

AT = {"layer": 0, "source": "theirs", "neuron": 3, "polarity": "+"}
MADE = {"identity": "sha256:" + "1" * 64, "run_id": "r"}


def record(split, sequence, *, stratum="top", rank=0, **other):
    row = {
        **AT, "stratum": stratum, "rank": rank, "split": split, "sequence_id": sequence, "peak": 2.0,
        "activations": [0.0, 2.0], "identity": f"sha256:{sequence}{rank:063d}", "run_id": "r", **other,
    }  # fmt: skip
    return pl.DataFrame([row], schema=TABLES["imported_records"].schema)


def explanation(**other):
    row = {
        **AT, "explanation_id": "e", "method": "openai", "explainer": "unknown", "text": "dogs", "missing_because": None,
        "path": "p", **MADE, **other,
    }  # fmt: skip
    return pl.DataFrame([row], schema=TABLES["imported_explanations"].schema)


def scored(*records, said=None):
    rows = rescoring.to_score(pl.concat(records), explanation() if said is None else said)
    return rows.select("sequence_id", "stratum").rows()


def test_only_records_that_are_for_scoring_are_scored():
    splits = ("explain", "calibrate", "score", "test", "none")
    rows = [record(split, split, rank=rank) for rank, split in enumerate(splits)]
    assert scored(*rows) == [("score", "top")]


def test_a_text_that_the_explainer_was_shown_is_never_scored_wherever_else_it_stands():
    shown, elsewhere = record("explain", "s"), record("score", "s", stratum="random", rank=1)
    assert scored(shown, elsewhere) == []
    assert scored(record("explain", "s", neuron=4), elsewhere) == [("s", "random")]
    assert scored(record("explain", "s", source="others"), elsewhere) == [("s", "random")]


def test_a_text_that_stands_in_two_lists_is_scored_once():
    assert scored(record("score", "s", stratum="random", rank=1), record("score", "s", rank=2)) == [("s", "top")]


def test_a_neuron_without_words_has_nothing_to_score():
    nothing = explanation(text=None, missing_because="unparsable")
    assert scored(record("score", "s"), said=nothing) == []


def test_simulations_that_came_with_an_import_count_only_for_texts_that_were_not_shown():
    row = {
        **AT, "explanation_id": "e", "simulator": "unknown", "stratum": "top", "rank": 0, "sequence_id": "s", "scale": "scaled",
        "expected": [0.0, 9.0], "distribution_values": None, "distribution_probabilities": None, "true": [0.0, 2.0],
        "missing_because": None, **MADE,
    }  # fmt: skip
    theirs = pl.DataFrame([row], schema=TABLES["imported_simulations"].schema)
    assert len(rescoring.fair(theirs, record("score", "s"))) == 1
    assert len(rescoring.fair(theirs, record("explain", "s"))) == 0


@pytest.mark.parametrize(("polarity", "true"), [("+", [0.0, 2.0]), ("-", [0.0, -2.0])])
def test_a_reply_becomes_a_simulation_of_the_record_in_units_of_the_neuron(polarity, true):
    said, texts = explanation(polarity=polarity), {"s": ["a", " dog"]}
    shown = rescoring.exemplars(record("score", "s", polarity=polarity), texts)
    asked = rescoring.requests(said, shown, texts, model="m", seed=0)
    ((_, request),) = asked
    assert "dogs" in request.messages[-1][1]
    assert " dog" in request.messages[-1][1]
    reply = Reply(request_id="q", text='{"activations": [[0, 0], [1, 9]]}', missing_because=None)
    rows = rescoring.simulations(asked, [reply], said, shown, source="theirs", model="m")
    rows = TABLES["common_simulations"].conform(rows.with_columns(run_id=pl.lit("r")))
    assert rows.select("source", "simulator", "expected", "true", "stratum").row(0) == (
        "theirs", "m", [0.0, 9.0], true, "top",
    )  # fmt: skip
    found = rescoring.common_scores(said, TABLES["imported_simulations"].empty(), rows, seed=0)
    found = TABLES["common_scores"].conform(found.with_columns(run_id=pl.lit("r")))
    assert set(found.get_column("simulator")) == {"m", "none"}
    unsimulated = found.filter(pl.col("simulator") == "none")
    assert set(unsimulated.get_column("missing_because")) == {"no_simulation"}
