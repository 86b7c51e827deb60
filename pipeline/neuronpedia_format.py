"""Neuronpedia's form: rows of the lake as the lines of its bulk files, and as bodies of its upload requests.

    v1/config/explanation_type.jsonl, explanation_model_type.jsonl      what the names in explanations stand for
    v1/{model}/{layer}/{release,model,sourceset,source}.jsonl           one line each
    v1/{model}/{layer}/{features,activations,explanations}/batch-N.jsonl.gz   1,024 lines each
    upload/{model}/{layer}/batch-N.json                                 bodies of POST /api/feature/upload-batch

Neuronpedia names the MLP neurons of a layer by the bare number, in a set `neurons`. Its importer takes the columns from the
first line, so every line has the same. The upload takes at most 128 features, 20 tokens a side, 512 characters of
explanation and 1,024 tokens, and no empty token: what is beyond is left out and counted, never cut.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pipeline.activations import QUANTILES
from pipeline.capture import HISTOGRAM_EDGES

SET = "neurons"
CREATOR = "clkht01d40000jv08hvalcvly"
"""The user that Neuronpedia's own seeds create, whom imported rows belong to."""
BATCH = 1024
UPLOADED, LOGITS, LETTERS, LONGEST = 128, 20, 512, 1024
"""Most features of a request, tokens a side, characters of an explanation, tokens of an excerpt."""
STRONGEST = 20
QUANTILE_STRATA = ("q0", "q1", "q2", "q3", "q4")
NOT_CARRIED = (
    "scores: Neuronpedia has no bulk form for them; they are in scores/{layer}.jsonl beside",
    "token ids and bytes, documents and splits; simulations and exemplars",
    "moments and exact quantiles; the histogram has a bar for each of our bins",
    "explanations that are missing, and why",
    "explanations of the negative side of gated neurons (their texts are there, with dataSource `bottom`)",
)
_STRATUM = {name: place for place, name in enumerate(QUANTILE_STRATA)}
_EDGES = (0.0, *QUANTILES, 1.0)


def model_id(subject: str) -> str:
    """The subject's name as Neuronpedia writes one: small letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", subject.rsplit("/", 1)[-1].lower()).strip("-.") or "model"


def metadata(
    *, model: str, layer: int, n_layers: int, n_neurons: int, about: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The single lines of a layer, by file name."""
    made = f"{about['date']}T00:00:00"
    release = f"neuronledger-{model}"
    said = f"MLP neurons of {about['subject']}, explained and scored with Neuron Ledger"
    return {
        "release.jsonl": {
            "name": release, "description": said, "descriptionShort": said, "creatorName": "Neuron Ledger",
            "creatorNameShort": "Neuron Ledger", "creatorId": CREATOR, "visibility": "PUBLIC", "urls": [], "createdAt": made,
        },
        "model.jsonl": {
            "id": model, "instruct": False, "displayNameShort": model, "displayName": str(about["subject"]), "creatorId": CREATOR,
            "visibility": "PUBLIC", "inferenceEnabled": False, "layers": n_layers, "neuronsPerLayer": n_neurons, "owner": "",
            "createdAt": made, "updatedAt": made,
        },
        "sourceset.jsonl": {
            "modelId": model, "name": SET, "creatorId": CREATOR, "creatorName": "Neuron Ledger", "description": said,
            "type": SET, "visibility": "PUBLIC", "hasDashboards": True, "releaseName": release, "urls": [], "createdAt": made,
        },
        "source.jsonl": {
            "id": str(layer), "modelId": model, "setName": SET, "creatorId": CREATOR, "visibility": "PUBLIC", "hasDashboards": True,
            "inferenceEnabled": False, "createdAt": made,
        },
    }  # fmt: skip


def config(*, methods: list[str], explainers: list[str], about: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The lines that say what method and explainer of an explanation are, which its rows refer to, by file name."""
    made = f"{about['date']}T00:00:00"
    shared = {"featured": False, "creatorName": "Neuron Ledger", "createdAt": made, "updatedAt": made}
    return {
        "explanation_type.jsonl": [
            {
                "name": _type(method), "displayName": method, "description": f"Neuron Ledger's method {method}",
                "isAttention": False, "creatorId": CREATOR, **shared,
            }
            for method in methods
        ],
        "explanation_model_type.jsonl": [
            {"name": explainer, "displayName": explainer, "description": explainer, **shared} for explainer in explainers
        ],
    }  # fmt: skip


def features(
    statistics: pl.DataFrame, connections: pl.DataFrame, words: pl.Series, *, model: str, site: str, date: str
) -> pl.DataFrame:
    """One line for each neuron: columns `neuron` and `text`. `words[i]` is how token i looks."""
    bars = bar_positions()
    total = pl.col("histogram").list.sum().clip(1)
    rows = statistics.sort("neuron").join(_promoted(connections, words), on="neuron", how="left", maintain_order="left")
    nothing = [pl.lit([], pl.List(pl.Float64)).alias(name) for name in _EMPTY]
    line = pl.struct(
        *_at(model), pl.lit(SET).alias("sourceSetName"), pl.lit(CREATOR).alias("creatorId"), _date(date),
        pl.col("maximum").alias("maxActApprox"), pl.col("fraction_positive").alias("frac_nonzero"),
        pl.lit(value=False).alias("hasVector"), *nothing, pl.lit(site).alias("hookName"),
        pl.lit(pl.Series([bars], dtype=pl.List(pl.Float64))).first().alias("freq_hist_data_bar_values"),
        (pl.col("histogram") / total).alias("freq_hist_data_bar_heights"),
        pl.col("pos_str", "pos_values", "neg_str", "neg_values").fill_null([]),
    )  # fmt: skip
    return rows.select("neuron", line.struct.json_encode().alias("text"))


def activations(
    records: pl.DataFrame, sequences: pl.DataFrame, statistics: pl.DataFrame, *, model: str, date: str
) -> pl.DataFrame:
    """One line for each of the strongest records and of those between quantiles: columns `neuron` and `text`."""
    rows = _shown(records, sequences, statistics)
    values = pl.col("activations")
    line = pl.struct(
        pl.Series("id", [row_id(made) for made in rows.get_column("identity")], dtype=pl.String),
        *_at(model), "tokens", values.alias("values"), values.list.max().alias("maxValue"),
        values.list.arg_max().alias("maxValueTokenIndex"), values.list.min().alias("minValue"),
        "binMin", "binMax", "binContains", pl.col("peak_token").alias("qualifyingTokenIndex"),
        pl.col("sequence_id").alias("dataIndex"),
        pl.when(pl.col("polarity") == "-").then(pl.lit("bottom")).otherwise(pl.lit("top")).alias("dataSource"),
        pl.lit([], pl.List(pl.Float64)).alias("dfaValues"), pl.lit([], pl.List(pl.Float64)).alias("lossValues"),
        pl.lit(CREATOR).alias("creatorId"), _date(date),
    )  # fmt: skip
    return rows.select("neuron", line.struct.json_encode().alias("text"))


def explanations(said: pl.DataFrame, *, model: str, date: str) -> pl.DataFrame:
    """One line for each explanation that is there: columns `neuron` and `text`."""
    rows = said.filter((pl.col("polarity") == "+") & pl.col("text").is_not_null()).sort(
        "neuron", "method", "explanation_id"
    )
    explainer = pl.when(pl.col("explainer") != "none").then(pl.col("explainer"))
    line = pl.struct(
        pl.Series("id", [row_id(made) for made in rows.get_column("identity")], dtype=pl.String),
        *_at(model), pl.col("text").alias("description"), pl.lit(CREATOR).alias("authorId"),
        _type_of(pl.col("method")).alias("typeName"), explainer.alias("explanationModelName"),
        pl.format("neuronledger {}", "explanation_id").alias("notes"), _date(date),
    )  # fmt: skip
    return rows.select("neuron", line.struct.json_encode().alias("text"))


def scores(scored: pl.DataFrame) -> pl.DataFrame:
    """One line for each score, for the file beside: columns `neuron` and `text`."""
    rows = scored.filter(pl.col("polarity") == "+").sort("neuron", "explanation_id", "simulator", "scorer", "split")
    names = (
        "layer",
        "neuron",
        "explanation_id",
        "method",
        "simulator",
        "scorer",
        "split",
        "value",
        "missing_because",
        "ci_low",
        "ci_high",
    )
    return rows.select("neuron", pl.struct(*names, "identity").struct.json_encode().alias("text"))


def uploads(
    statistics: pl.DataFrame,
    records: pl.DataFrame,
    said: pl.DataFrame,
    connections: pl.DataFrame,
    *,
    sequences: pl.DataFrame,
    words: pl.Series,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """One feature of an upload for each neuron that has an excerpt: `neuron` and `text`; and what was left out, counted."""
    shown = _shown(records.filter(pl.col("polarity") == "+"), sequences, statistics)
    fits = (pl.col("tokens").list.len() <= LONGEST) & ~pl.col("tokens").list.contains("")
    excerpts = (
        shown.filter(fits)
        .group_by("neuron", maintain_order=True)
        .agg(
            pl.struct(
                "tokens", pl.col("activations").alias("values"), pl.col("binMin").alias("quantileMin"),
                pl.col("binMax").alias("quantileMax"), pl.col("binContains").replace(-1.0, None).alias("quantileFraction"),
            ).alias("excerpts")
        )
    )  # fmt: skip
    there = said.filter((pl.col("polarity") == "+") & pl.col("text").is_not_null())
    short = there.filter(pl.col("text").str.len_chars().is_between(1, LETTERS)).sort(
        "neuron", "method", "explanation_id"
    )
    texts = short.group_by("neuron", maintain_order=True).agg(
        # Unknown names of methods or models refuse the whole batch; they stand in the bulk files.
        pl.struct(
            "text", pl.lit(None, pl.String).alias("methodName"), pl.lit(None, pl.String).alias("modelName")
        ).alias("said")
    )
    rows = (
        statistics.sort("neuron")
        .join(excerpts, on="neuron", how="inner", maintain_order="left")
        .join(texts, on="neuron", how="left", maintain_order="left")
        .join(_promoted(connections, words), on="neuron", how="left", maintain_order="left")
    )
    feature = pl.struct(
        pl.col("neuron").alias("index"), pl.col("fraction_positive").alias("density"),
        _logits("pos", rows).alias("topLogits"), _logits("neg", rows).alias("bottomLogits"),
        pl.col("said").fill_null([]).alias("explanations"), pl.col("excerpts").alias("activations"),
    )  # fmt: skip
    left = {
        "explanations_too_long_to_upload": len(there) - len(short),
        "excerpts_with_an_empty_token_or_too_long": len(shown) - shown.filter(fits).height,
        "neurons_without_an_excerpt": len(statistics) - len(rows),
    }
    return rows.select("neuron", feature.struct.json_encode().alias("text")), left


def row_id(made: str) -> str:
    """An id of 25 letters and digits, as Neuronpedia's are, that depends on the row's identity alone."""
    value = int.from_bytes(hashlib.sha256(made.encode()).digest(), "big")
    digits = ""
    while len(digits) < 24:
        value, digit = divmod(value, 36)
        digits += "0123456789abcdefghijklmnopqrstuvwxyz"[digit]
    return f"c{digits}"


def bar_positions() -> list[float]:
    """Where the bars of the histogram stand: in the middle of each bin, at the edge of the two that have one edge."""
    edges = np.asarray(HISTOGRAM_EDGES, dtype=np.float64)
    return [float(edges[0]), *((edges[1:] + edges[:-1]) / 2).tolist(), float(edges[-1])]


_EMPTY = (
    "vector", "topkCosSimIndices", "topkCosSimValues", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1", "correlated_features_indices",
    "correlated_features_pearson", "correlated_features_l1", "logits_hist_data_bar_heights", "logits_hist_data_bar_values",
    "decoder_weights_dist",
)  # fmt: skip
"""Lists that we have nothing for."""


def _shown(records: pl.DataFrame, sequences: pl.DataFrame, statistics: pl.DataFrame) -> pl.DataFrame:
    """The records to show with tokens and bin: the strongest of each neuron, then those between quantiles."""
    boundaries = statistics.select(
        "neuron",
        *(
            pl.col("quantile_boundaries").list.get(place, null_on_oob=True).alias(f"b{place}")
            for place in range(len(QUANTILES))
        ),
    )
    top = pl.col("stratum") == "top"
    place = pl.col("stratum").replace_strict(_STRATUM, default=None, return_dtype=pl.Int32)
    rows = (
        records.filter((top & (pl.col("rank") < STRONGEST)) | pl.col("stratum").is_in(QUANTILE_STRATA))
        .join(sequences, on="sequence_id", how="inner", maintain_order="left")
        .join(boundaries, on="neuron", how="left", maintain_order="left")
        .with_columns(place.alias("place"))
        .sort("neuron", "polarity", ~top, "place", "rank", descending=[False, False, False, True, False])
    )
    low, high, share = pl.lit(None, pl.Float32), pl.lit(None, pl.Float32), pl.lit(None, pl.Float64)
    for number in range(len(QUANTILE_STRATA)):
        here = pl.col("place") == number
        low = pl.when(here).then(pl.col(f"b{number - 1}") if number else pl.col("b0") * 0).otherwise(low)
        high = (
            pl.when(here)
            .then(pl.col(f"b{number}") if number < len(QUANTILES) else pl.col("peak").max().over("neuron"))
            .otherwise(high)
        )
        share = pl.when(here).then(pl.lit(round(_EDGES[number + 1] - _EDGES[number], 6))).otherwise(share)
    return rows.with_columns(
        low.alias("binMin"), high.alias("binMax"), pl.when(top).then(-1.0).otherwise(share).alias("binContains")
    )


def _promoted(connections: pl.DataFrame, words: pl.Series) -> pl.DataFrame:
    """The tokens that each neuron promotes and suppresses most, as Neuronpedia's `pos` and `neg`."""
    frame = connections.select("neuron").sort("neuron")
    rows = connections.sort("neuron")
    for name, sign in (("pos", "positive"), ("neg", "negative")):
        flat = (
            rows.select(
                "neuron",
                pl.col(f"output_{sign}_token_ids").alias("ids"),
                pl.col(f"output_{sign}_strengths").alias("values"),
            )
            .drop_nulls()
            .with_columns(pl.col("ids", "values").list.head(LOGITS))
            .explode("ids", "values")
            .drop_nulls()
        )
        found = (
            flat.with_columns(words.gather(flat.get_column("ids")).alias("texts"))
            .group_by("neuron", maintain_order=True)
            .agg(pl.col("texts").alias(f"{name}_str"), pl.col("values").alias(f"{name}_values"))
        )
        frame = frame.join(found, on="neuron", how="left", maintain_order="left")
    return frame.with_columns(pl.exclude("neuron").fill_null([]))


def _logits(name: str, rows: pl.DataFrame) -> pl.Expr:
    """Token and value side by side, those with an empty text left out."""
    pairs = (
        rows.select("neuron", pl.col(f"{name}_str").alias("token"), pl.col(f"{name}_values").alias("value"))
        .explode("token", "value")
        .filter(pl.col("token").is_not_null() & (pl.col("token") != ""))
        .group_by("neuron", maintain_order=True)
        .agg(pl.struct("token", "value").alias("pairs"))
    )
    joined = rows.select("neuron").join(pairs, on="neuron", how="left", maintain_order="left")
    return pl.lit(joined.get_column("pairs").fill_null([]))


def _at(model: str) -> list[pl.Expr]:
    return [
        pl.lit(model).alias("modelId"),
        pl.col("layer").cast(pl.String),
        pl.col("neuron").cast(pl.String).alias("index"),
    ]


def _date(date: str) -> pl.Expr:
    return pl.lit(f"{date}T00:00:00").alias("createdAt")


def _type(method: str) -> str:
    return f"neuronledger_{method}"


def _type_of(method: pl.Expr) -> pl.Expr:
    return pl.lit("neuronledger_") + method
