"""Reviews: the latest of an author counts, and people are set beside scores without a number that is made up."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pipeline.reviews import ReviewError, agreement, ordered, row, standing
from pipeline.tables import TABLES

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def said(verdict, explanation_id="a", *, author="Ada", minutes=0, note=""):
    return row(layer=5, neuron=131, explanation=f"sha256:{explanation_id}", explanation_id=explanation_id, verdict=verdict,
               note=note, author=author, at=(MOMENT + timedelta(minutes=minutes)).isoformat(timespec="microseconds"))  # fmt: skip


def test_a_verdict_is_a_row_of_the_table():
    found = TABLES["reviews"].conform(said("wrong", note=" too wide "))
    assert found.row(0, named=True)["note"] == "too wide"
    assert said("wrong").equals(said("wrong"))
    assert said("wrong").item(0, "review_id") != said("agree").item(0, "review_id")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"verdict": "maybe"}, "must be one of agree, wrong, unsure"), ({"author": "  "}, "1 to 80 letters, not 0"),
     ({"author": "x" * 81}, "not 81"), ({"note": "x" * 2001}, "at most 2,000 letters, not 2,001")],
)  # fmt: skip
def test_what_is_no_verdict_is_refused(changes, words):
    with pytest.raises(ReviewError, match=words):
        said(**{"verdict": "agree", **changes})


def test_who_thinks_again_counts_once():
    reviews = pl.concat([said("agree", minutes=2), said("wrong", minutes=1), said("unsure", author="Bo")])
    assert set(standing(reviews).select("author", "verdict").iter_rows()) == {("Ada", "agree"), ("Bo", "unsure")}


def test_scores_of_each_verdict_and_those_without_one():
    scores = pl.DataFrame({"explanation_id": ["a", "b", "c"], "value": [0.9, 0.5, None]})
    reviews = pl.concat([said("agree", "a"), said("agree", "b"), said("wrong", "c"), said("wrong", "gone")])
    found = {one["verdict"]: one for one in agreement(reviews, scores).iter_rows(named=True)}
    assert (found["agree"]["count"], found["agree"]["unscored"], found["agree"]["median"]) == (2, 0, pytest.approx(0.7))
    assert (found["wrong"]["count"], found["wrong"]["unscored"], found["wrong"]["median"]) == (2, 2, None)
    assert "unsure" not in found
    assert ordered(reviews, scores) is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=20))
def test_the_order_of_people_and_scores_is_the_area_under_the_curve(verdicts):
    names = [str(place) for place in range(len(verdicts))]
    reviews = pl.concat(
        [said("agree" if good else "wrong", name) for name, (good, _) in zip(names, verdicts, strict=True)]
    )
    scores = pl.DataFrame({"explanation_id": names, "value": [value / 5 for _, value in verdicts]})
    found = ordered(reviews, scores)
    if len({good for good, _ in verdicts}) < 2:
        assert found is None
    else:
        assert found == pytest.approx(roc_auc_score([good for good, _ in verdicts], [value for _, value in verdicts]))
