"""Baselines: what a neuron's tokens alone explain, without a language model.

    token-lookup  the neuron's mean activation on each token, over documents that are not scored; an unseen token gets
                  the neuron's mean. Bills et al. 2023, "Token lookup table", where it beats GPT-4's explanations at
                  every layer of GPT-2 XL.
    token-linear  the strength of the path from the token's embedding to the neuron by weights alone. Bills et al.
                  2023, "Token-based prediction using weights".

Each is an explanation (its strongest tokens, in words) and a simulator (its whole table).
"""

import polars as pl

from pipeline.associations import SEEN_OFTEN
from pipeline.exemplars import relisted
from pipeline.provenance import content_hash, identities, list_hashes, short

METHODS = ("token-lookup", "token-linear")
WORDS = 10
"""Tokens named in the text of an explanation."""


def explanations(
    associations: pl.DataFrame, exemplars: pl.DataFrame, texts: dict[int, str], *, statistics: pl.DataFrame
) -> pl.DataFrame:
    """The `explanations` rows of both baselines for the neurons in `associations`, without `run_id`.

    `texts` says how each token looks. A neuron without exemplars, or that never fires in this polarity, gets a null with
    the reason.
    """
    state = (
        associations.select("layer", "neuron", "polarity")
        .join(
            statistics.select("layer", "neuron", "minimum", "maximum"),
            on=["layer", "neuron"],
            how="left",
            maintain_order="left",
        )
        .join(
            exemplars.group_by("layer", "neuron", "polarity").agg(
                (pl.col("split") == "explain").any().alias("shown"),
                (pl.col("split") == "score").any().alias("scored"),
                pl.col("scale_maximum").max(),
            ),
            on=["layer", "neuron", "polarity"],
            how="left",
            maintain_order="left",
        )
    )
    frames: list[pl.DataFrame] = []
    for method, values in (("token-lookup", "means"), ("token-linear", "weights")):
        no_form = associations.get_column(values).is_null()
        silent = pl.when(pl.col("polarity") == "-").then(pl.col("minimum") >= 0).otherwise(pl.col("maximum") <= 0)
        reason = (
            pl.when(silent)
            .then(pl.lit("dead_neuron"))
            .when(~pl.col("shown").fill_null(value=False) | ~pl.col("scored").fill_null(value=False))
            .then(pl.lit("no_exemplars"))
            .when(pl.col("scale_maximum") <= 0)
            .then(pl.lit("not_seen_firing"))
            .when(pl.lit(no_form))
            .then(pl.lit("no_linear_form"))
        )
        frame = state.select(
            "layer", "neuron", "polarity", reason.alias("missing_because"), pl.lit(method).alias("method")
        ).with_columns(pl.Series("text", _sentences(associations, values, texts), dtype=pl.String))
        # No token of a document that may be read is left to name.
        frame = frame.with_columns(
            pl.when(pl.col("text").is_null())
            .then(pl.col("missing_because").fill_null("no_exemplars"))
            .otherwise(pl.col("missing_because"))
            .alias("missing_because")
        )
        content = associations.get_column(values).fill_null(pl.lit([], dtype=pl.List(pl.Float32)))
        made_from = frame.select(
            "layer", "neuron", "polarity", "method", pl.col("missing_because").fill_null("")
        ).with_columns(
            pl.Series("tokens", list_hashes(associations.get_column("token_ids")), dtype=pl.String),
            pl.Series("values", list_hashes(content), dtype=pl.String),
            pl.Series("text", [content_hash(text) for text in frame.get_column("text")], dtype=pl.String),
        )
        frames.append(frame.with_columns(pl.Series("identity", identities("explanation", made_from), dtype=pl.String)))
    return pl.concat(frames).with_columns(
        pl.when(pl.col("missing_because").is_null()).then(pl.col("text")).alias("text"),
        pl.col("identity").map_elements(short, return_dtype=pl.String).alias("explanation_id"),
        pl.lit(None, pl.String).alias("parent_id"),
        pl.lit("none").alias("explainer"),
        pl.lit(None, pl.String).alias("prompt_hash"),
        pl.lit(None, pl.String).alias("request_id"),
        pl.lit(None, pl.List(pl.String)).alias("other_request_ids"),
        pl.lit([], pl.List(pl.String)).alias("exemplar_ids"),
    )


def simulations(explanations: pl.DataFrame, exemplars: pl.DataFrame, associations: pl.DataFrame) -> pl.DataFrame:
    """The `simulations` rows of the baselines' explanations on the scored exemplars, without `run_id`.

    Token-lookup predicts in units of the neuron, token-linear in units of its weights.
    """
    scored = exemplars.filter(pl.col("split") == "score")
    frames = [
        _simulated(
            explanations.filter((pl.col("method") == method) & pl.col("text").is_not_null()),
            scored,
            associations,
            values,
            scale,
        )
        for method, values, scale in (("token-lookup", "means", "neuron"), ("token-linear", "weights", "weight"))
    ]
    return pl.concat(frames)


def _simulated(
    explanations: pl.DataFrame, scored: pl.DataFrame, associations: pl.DataFrame, values: str, scale: str
) -> pl.DataFrame:
    at = ["layer", "neuron", "polarity"]
    rows = (
        explanations.select(*at, "explanation_id", "method", pl.col("identity").alias("explanation"))
        .join(
            scored.select(
                *at, "exemplar_id", "stratum", "rank", "token_ids", "activations", pl.col("identity").alias("exemplar")
            ),
            on=at,
            how="inner",
            maintain_order="left_right",
        )
        .join(associations.select(*at, "fallback"), on=at, how="left", maintain_order="left")
    )
    sign = pl.when(pl.col("polarity") == "-").then(-1.0).otherwise(1.0).cast(pl.Float32)
    table = (
        associations.filter(pl.col(values).is_not_null()).select(*at, "token_ids", values).explode("token_ids", values)
    )
    flat = (
        rows.select(
            pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
            *at,
            "fallback",
            "token_ids",
            pl.col("activations").alias("true"),
        )
        .explode("token_ids", "true")
        .join(table, on=[*at, "token_ids"], how="left", maintain_order="left")
        .with_columns(
            (pl.coalesce(values, *(["fallback"] if values == "means" else [])) * sign).alias("expected"),
            (pl.col("true") * sign).alias("true"),
        )
    )
    lengths = rows.get_column("token_ids").list.len()
    made_from = rows.select("explanation", "exemplar")
    return rows.select(
        *at,
        "explanation_id",
        pl.col("method").alias("simulator"),
        "exemplar_id",
        "stratum",
        "rank",
        pl.lit(scale).alias("scale"),
        relisted(flat.get_column("expected"), lengths).alias("expected"),
        pl.lit(None, pl.List(pl.List(pl.Float32))).alias("distribution_values"),
        pl.lit(None, pl.List(pl.List(pl.Float32))).alias("distribution_probabilities"),
        relisted(flat.get_column("true"), lengths).alias("true"),
        pl.lit(None, pl.String).alias("missing_because"),
        pl.lit(1.0, pl.Float32).alias("coverage"),
        pl.lit([], pl.List(pl.String)).alias("request_ids"),
        pl.Series("identity", identities("simulation", made_from), dtype=pl.String),
    )


def _sentences(associations: pl.DataFrame, values: str, texts: dict[int, str]) -> list[str | None]:
    """For each neuron, its strongest tokens in words, such as `tokens "limit" (12), "bound" (7)` with counts."""
    named = (
        associations.select(pl.int_range(pl.len()).alias("row"), "polarity", "token_ids", "counts", values, "fallback")
        .filter(pl.col(values).is_not_null())
        .explode("token_ids", "counts", values)
        .with_columns(pl.when(pl.col("polarity") == "-").then(-1.0).otherwise(1.0).alias("sign"))
        .with_columns(
            (pl.col(values) * pl.col("sign")).alias("strength"),
            (pl.col("fallback") * pl.col("sign") if values == "means" else pl.lit(0.0)).alias("usual"),
        )
        .filter((pl.col("counts") > 0) & pl.col("strength").is_not_null())
        # Tokens above the neuron's own average; all of them where none stands out.
        .with_columns((pl.col("strength") > pl.col("usual")).alias("above"))
        .filter(pl.col("above") | ~pl.col("above").any().over("row"))
        # A mean over few occurrences is used only where no token occurs more often.
        .filter(pl.col("counts") >= pl.col("counts").max().over("row").clip(upper_bound=SEEN_OFTEN))
        .sort("row", "strength", "token_ids", descending=[False, True, False])
        .group_by("row", maintain_order=True)
        .head(WORDS)
    )
    words: dict[int, list[str]] = {}
    for row, token, count in named.select("row", "token_ids", "counts").iter_rows():
        shown = " ".join(texts.get(token, "").split()) or repr(texts.get(token, ""))[1:-1]
        words.setdefault(row, []).append(f'"{shown}" ({count})')
    return [f"tokens {', '.join(words[row])}" if row in words else None for row in range(len(associations))]
