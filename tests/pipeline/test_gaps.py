"""Gaps: of tokens about which a simulation says nothing, nothing is scored, and too many of them leave no score."""

import numpy as np
import polars as pl
import pytest

from pipeline.errors import LakeError
from pipeline.openai_format import HAS_GAPS
from pipeline.scores import COVERAGE_LIMIT, scores
from pipeline.tables import TABLES

TRUE = [[0.0, 1.0, 5.0, 0.5], [0.0, 0.0, 3.0, 2.0], [1.0, 0.0, 0.0, 4.0]]
SAID = [[0.0, 2.0, 9.0, 1.0], [1.0, 0.0, 8.0, 3.0], [2.0, 0.0, 1.0, 10.0]]
EXPLAINED = pl.DataFrame(
    [
        {"layer": 0, "neuron": 0, "polarity": "+", "explanation_id": "e", "method": "m", "text": "x",
         "missing_because": None, "identity": "sha256:e"}
    ],
    schema_overrides={"layer": pl.Int32, "neuron": pl.Int32, "missing_because": pl.String},
)  # fmt: skip


def played(true, said):
    """Rows of `simulations`, a sequence each."""
    schema = {name: kind for name, kind in TABLES["simulations"].schema.items() if name != "run_id"}
    return pl.DataFrame(
        [
            {
                "layer": 0, "neuron": 0, "polarity": "+", "explanation_id": "e", "simulator": "s", "exemplar_id": str(place),
                "stratum": "top", "rank": place, "scale": "scaled", "expected": expected, "true": activations,
                "coverage": sum(value is not None for value in expected) / len(expected), "request_ids": [],
                "identity": f"sha256:{place}",
            }
            for place, (activations, expected) in enumerate(zip(true, said, strict=True))
        ],
        schema=schema,
    )  # fmt: skip


def scored(frame):
    found = scores(frame, EXPLAINED, seed=0).filter(pl.col("split") == "top_and_random")
    return {row["scorer"]: row for row in found.iter_rows(named=True)}


def test_a_score_is_that_of_the_tokens_about_which_something_is_said():
    with_gaps = [[0.0, None, 9.0, 1.0], [1.0, 0.0, 8.0, None], SAID[2]]
    pairs = [
        (activation, value)
        for activations, said in zip(TRUE, with_gaps, strict=True)
        for activation, value in zip(activations, said, strict=True)
        if value is not None
    ]
    found = scored(played(TRUE, with_gaps))
    assert found["ev_correlation"]["value"] == pytest.approx(np.corrcoef(np.array(pairs).T)[0, 1])
    assert found["ev_correlation"]["n_tokens"] == len(pairs) == 10
    without = played([[0.0, 5.0, 0.5], [0.0, 0.0, 3.0], TRUE[2]], [[0.0, 9.0, 1.0], [1.0, 0.0, 8.0], SAID[2]])
    numbers = ("value", "ci_low", "ci_high", "n_sequences", "n_tokens", "missing_because")
    for scorer, row in scored(without).items():
        assert {name: found[scorer][name] for name in numbers} == {name: row[name] for name in numbers}


def test_where_too_little_is_known_there_is_no_score_and_a_reason():
    sparse = [[0.0, None, None, None], [None, 0.0, None, None], [None, None, None, 10.0]]
    found = scored(played(TRUE, sparse))
    assert COVERAGE_LIMIT > 0.25
    assert {(row["value"], row["missing_because"]) for row in found.values()} == {(None, "low_coverage")}


def test_the_table_takes_gaps_in_what_is_expected_and_nowhere_else():
    frame = played(TRUE, [[0.0, None, 9.0, 1.0], *SAID[1:]]).with_columns(run_id=pl.lit("r"))
    kept = TABLES["simulations"].conform(frame)
    assert kept["expected"].to_list()[0] == [0.0, None, 9.0, 1.0]
    assert kept.select(HAS_GAPS).to_series().to_list() == [True, False, False]
    holed = frame.with_columns(pl.Series("true", [[0.0, None, 1.0, 1.0], *TRUE[1:]], dtype=pl.List(pl.Float32)))
    with pytest.raises(LakeError, match=r"simulations.true` holds 1 nulls inside its lists"):
        TABLES["simulations"].conform(holed)
