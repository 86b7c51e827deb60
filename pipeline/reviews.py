"""Reviews: what a person thinks of an explanation, beside what the scores say of it.

A review is never changed: who thinks otherwise later writes another, and the later one of an author counts.
"""

import polars as pl

from pipeline.errors import NeuronLedgerError
from pipeline.provenance import identity, short
from pipeline.tables import TABLES

VERDICTS = ("agree", "wrong", "unsure")
LONGEST_NOTE = 2_000
LONGEST_AUTHOR = 80


class ReviewError(NeuronLedgerError):
    """A verdict is none of the three, or says too much or not who says it."""


def row(
    *,
    layer: int,
    neuron: int,
    explanation: str,
    explanation_id: str,
    verdict: str,
    note: str,
    author: str,
    at: str,
) -> pl.DataFrame:
    """One row of `reviews`. `explanation` is the identity of the explanation; `at` is a moment in UTC, such as
    `2026-01-31T12:00:00.000000+00:00`.

    Raises:
        ReviewError: the verdict is unknown, the note or the author's name is too long, or there is no author.
    """
    author, note = author.strip(), note.strip()
    if verdict not in VERDICTS:
        raise ReviewError(f"the verdict (={verdict[:40]!r}) must be one of {', '.join(VERDICTS)}")
    if not 1 <= len(author) <= LONGEST_AUTHOR:
        raise ReviewError(f"the author must have 1 to {LONGEST_AUTHOR} letters, not {len(author)}")
    if len(note) > LONGEST_NOTE:
        raise ReviewError(f"the note must have at most {LONGEST_NOTE:,} letters, not {len(note):,}")
    made = identity(
        "review",
        explanation=explanation,
        verdict=verdict,
        note=note,
        author=author,
        at=at,
    )
    found = {
        "review_id": short(made), "layer": layer, "neuron": neuron, "explanation_id": explanation_id, "verdict": verdict,
        "note": note or None, "author": author, "at": at, "identity": made,
    }  # fmt: skip
    moment = pl.col("at").str.to_datetime("%+", time_unit="us", time_zone="UTC")
    schema = TABLES["reviews"].schema
    return pl.DataFrame([found], schema={**schema, "at": pl.String}).with_columns(moment).select(list(schema))


def standing(reviews: pl.DataFrame) -> pl.DataFrame:
    """The latest review of each author on each explanation."""
    return reviews.sort("at", "review_id").unique(["explanation_id", "author"], keep="last", maintain_order=True)


def agreement(reviews: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """How scores and people go together: for each verdict how many there are, and the quartiles of the scores.

    `scores` has `explanation_id` and `value`. Verdicts on explanations without a score are counted in `unscored`.
    """
    joined = standing(reviews).join(scores.select("explanation_id", "value"), on="explanation_id", how="left")
    value = pl.col("value")
    found = joined.group_by("verdict").agg(
        pl.len().alias("count"), value.is_null().sum().alias("unscored"), value.quantile(0.25, "linear").alias("quarter"),
        value.median().alias("median"), value.quantile(0.75, "linear").alias("three_quarters"),
    )  # fmt: skip
    order = pl.DataFrame({"verdict": VERDICTS})
    return order.join(found, on="verdict", how="inner", maintain_order="left")


def ordered(reviews: pl.DataFrame, scores: pl.DataFrame) -> float | None:
    """How often an explanation that people agree with has the higher score than one that they find wrong.

    Over all such pairs, equal scores counting half (the area under the ROC curve); None without such a pair.
    """
    joined = standing(reviews).join(scores.select("explanation_id", "value"), on="explanation_id", how="inner")
    values = {
        verdict: joined.filter(pl.col("verdict") == verdict)["value"].drop_nulls() for verdict in ("agree", "wrong")
    }
    pairs = len(values["agree"]) * len(values["wrong"])
    if not pairs:
        return None
    better = sum(
        float((values["wrong"] < one).sum()) + 0.5 * float((values["wrong"] == one).sum()) for one in values["agree"]
    )
    return better / pairs
