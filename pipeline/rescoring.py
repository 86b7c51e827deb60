"""Rescoring: what other systems said of neurons, simulated and scored as ours is, so that sources can be compared.

Their explanations are played back on their own records, so that neither a model nor a corpus is needed. A record is
played back only if its source says that it is for scoring, and none of those that the explainer was shown has its
text. Sources that do not say what was shown have none.
"""

from collections.abc import Mapping, Sequence

import polars as pl

from pipeline import simulations as played_by_model
from pipeline.ports import Reply
from pipeline.provenance import short
from pipeline.scores import scores
from pipeline.simulations import Asked, Way

AT = ["layer", "source", "neuron", "polarity"]


def to_score(records: pl.DataFrame, explanations: pl.DataFrame) -> pl.DataFrame:
    """Those records of explained neurons that the explainer was not shown, each text once; rows of `imported_records`."""
    shown = records.filter(pl.col("split") == "explain")
    explained = explanations.filter(pl.col("text").is_not_null()).select(AT).unique()
    return (
        records.filter(pl.col("split") == "score")
        .join(explained, on=AT, how="semi", maintain_order="left")
        .join(shown, on=[*AT, "sequence_id"], how="anti", maintain_order="left")
        .sort(*AT, pl.col("stratum") != "top", "rank")
        .unique([*AT, "sequence_id"], keep="first", maintain_order=True)
    )


def exemplars(records: pl.DataFrame, texts: Mapping[str, Sequence[str]]) -> pl.DataFrame:
    """Records as exemplars to be scored on. Tokens have no ids here: `token_ids` are their places."""
    lengths = [len(texts[name]) for name in records.get_column("sequence_id")]
    return records.with_columns(
        pl.col("identity").map_elements(short, return_dtype=pl.String).alias("exemplar_id"),
        pl.int_ranges(0, pl.Series(lengths, dtype=pl.Int64), dtype=pl.Int32).alias("token_ids"),
    )


def requests(
    explanations: pl.DataFrame,
    exemplars: pl.DataFrame,
    texts: Mapping[str, Sequence[str]],
    *,
    model: str,
    seed: int,
    way: Way = "json",
) -> Asked:
    """The requests to simulate explanations of one source on its exemplars."""
    return played_by_model.requests(explanations, exemplars, texts, model=model, seed=seed, way=way)


def simulations(
    asked: Asked,
    replies: Sequence[Reply],
    explanations: pl.DataFrame,
    exemplars: pl.DataFrame,
    *,
    source: str,
    model: str,
    way: Way = "json",
) -> pl.DataFrame:
    """The `common_simulations` rows of those replies, without `run_id`."""
    rows = played_by_model.rows(asked, replies, explanations, exemplars, model=model, way=way)
    return rows.with_columns(pl.lit(source, pl.String).alias("source"))


def fair(simulations: pl.DataFrame, records: pl.DataFrame) -> pl.DataFrame:
    """Those simulations that came with an import and are not of a text that the explainer was shown, as far as is known."""
    shown = records.filter(pl.col("split") == "explain")
    return simulations.join(shown, on=[*AT, "sequence_id"], how="anti", maintain_order="left")


def common_scores(explanations: pl.DataFrame, imported: pl.DataFrame, ours: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """Our scores of imported explanations that were simulated, without `run_id`.

    `imported` are simulations that came with them, `ours` rows of `common_simulations`. `random_only` and
    `top_and_random` are by the strata that the source gives its sequences.
    """
    played = pl.concat(
        [
            imported.with_columns(
                pl.col("rank").cast(pl.String).str.zfill(9).alias("exemplar_id"),
                pl.col("expected").is_not_null().cast(pl.Float32).alias("coverage"),
            ).select(USED),
            ours.select(USED),
        ]
    )
    simulated = explanations.join(
        played.select("layer", "explanation_id").unique(), on=["layer", "explanation_id"], how="semi"
    )
    rows = scores(played, simulated, seed=seed)
    return rows.join(
        explanations.select("layer", "explanation_id", "source"), on=["layer", "explanation_id"], how="left"
    )


USED = [
    "layer", "neuron", "polarity", "explanation_id", "simulator", "exemplar_id", "stratum", "rank", "scale", "expected", "true",
    "missing_because", "coverage", "identity",
]  # fmt: skip
