"""OpenAI's files: rows of the lake as the JSON that `automated-interpretability` reads, one text for each neuron.

    collated-activations/{layer}/{neuron}.json           NeuronRecord
    explanations/{layer}/{neuron}.jsonl                  NeuronSimulationResults, one line
    related-tokens/activation-based/{layer}/{neuron}.json    TokenLookupTableSummaryOfNeuron
    related-tokens/weight-based/{layer}/{neuron}.json        WeightBasedSummaryOfNeuron
    related-neurons/weight-based/{layer}/{neuron}.json       no class: `c_fc` upstream, `c_proj` downstream

The loaders take the record lists apart by position: the strongest records `[i::4]` are train, calibration, valid and
test, the random ones `[i::3]` calibration, valid and test (`activations.py`, `get_slices_for_splits`). So records are
written in an order that gives their train split our `explain` documents and their valid split our `score` documents,
and a neuron gets equally many of each. An unknown key is an error to the loaders: what the format has no field for goes
into `provenance`, which is written beside.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.capture import PER_SPLIT
from pipeline.scores import SETS
from pipeline.tables import SPLITS

RANDOM_SPLITS = SPLITS[1:]
"""Splits that have random records, in OpenAI's order."""
QUANTILE_STRATA = ("q0", "q1", "q2", "q3", "q4")
TOKENS = 50
"""Tokens of the activation-based list."""
SCALES = {"neuron": "neuron_activations", "scaled": "simulated_normalized_activations"}
"""Units that the format can name. Those of weights it cannot."""
SCORERS = {
    "ev_correlation": "ev_correlation_score",
    "rsquared": "rsquared_score",
    "absolute_dev_explained": "absolute_dev_explained_score",
}
"""Our scorers that are OpenAI's formulas, with the names of their fields."""

NOT_CARRIED = (
    "token ids and bytes: a token is text, and a byte that is no whole character is U+FFFD",
    "documents, offsets and splits of sequences: the order of the records stands for the split",
    "activations of the negative side of gated neurons",
    "statistics other than four moments and four quantile boundaries",
    "explanations that are missing, and why; sequences whose simulation failed, and why",
    "simulations in units of weights (token-linear): their explanations are written without sequences",
    "method, explainer, simulator, prompts, requests and replies; see provenance/",
    "scores by other formulas or on random sequences alone, confidence intervals, baselines beside a score",
)
"""What of a lake the format has no field for; the sidecar files hold part of it."""

HAS_GAPS = pl.col("expected").list.eval(pl.element().is_null()).list.any().fill_null(value=False)
"""Whether a simulation knows nothing of some of its tokens."""


def texts(sequences: pl.DataFrame) -> pl.DataFrame:
    """For each sequence its split and its tokens as text: what the functions below need of `sequences`."""
    flat = sequences.select("sequence_id", "split", "token_bytes").explode("token_bytes")
    words = [piece.decode("utf-8", errors="replace") for piece in flat.get_column("token_bytes")]
    return (
        flat.with_columns(pl.Series("tokens", words, dtype=pl.String))
        .group_by("sequence_id", "split", maintain_order=True)
        .agg("tokens")
    )


def neuron_records(activations: pl.DataFrame, sequences: pl.DataFrame, statistics: pl.DataFrame) -> pl.DataFrame:
    """One NeuronRecord for each neuron of `statistics`: columns `neuron`, `text`, `n` records to the split, `records`.

    `activations` are rows of one layer, `sequences` those of `texts`. A neuron with fewer than PER_SPLIT records in
    some split gets that many in each, and none is put into a split that it does not belong to. `records` names the rows
    of `activations` that the two lists were made from, in their order.
    """
    rows = activations.filter(pl.col("polarity") == "+").join(
        sequences, on="sequence_id", how="inner", maintain_order="left"
    )
    rows = rows.with_columns(_record().alias("record"))
    top = _interleaved(rows.filter(pl.col("stratum") == "top"), SPLITS)
    random = _interleaved(
        rows.filter((pl.col("stratum") == "random") & pl.col("split").is_in(RANDOM_SPLITS)), RANDOM_SPLITS
    )
    frame = (
        statistics.sort("neuron")
        .join(top.rename({"records": "top", "identities": "of_top"}), on="neuron", how="left", maintain_order="left")
        .join(
            random.drop("n").rename({"records": "random", "identities": "of_random"}),
            on="neuron",
            how="left",
            maintain_order="left",
        )
        .join(_by_quantile(rows, statistics), on="neuron", how="left", maintain_order="left")
        .with_columns(pl.col("top", "random", "of_top", "of_random").fill_null([]), pl.col("n").fill_null(0))
    )
    text = pl.struct(
        _neuron_id(),
        pl.col("random").alias("random_sample"),
        pl.col("strata").alias("random_sample_by_quantile"),
        "quantile_boundaries",
        "mean",
        "variance",
        "skewness",
        "kurtosis",
        pl.col("top").alias("most_positive_activation_records"),
        _named("NeuronRecord"),
    )
    made_from = pl.struct(
        pl.col("of_top").alias("most_positive_activation_records"), pl.col("of_random").alias("random_sample")
    )
    return frame.select("neuron", text.struct.json_encode().alias("text"), "n", made_from.alias("records"))


def explanations(
    said: pl.DataFrame,
    simulations: pl.DataFrame,
    scores: pl.DataFrame,
    exemplars: pl.DataFrame,
    sequences: pl.DataFrame,
) -> pl.DataFrame:
    """One NeuronSimulationResults for each neuron that something is said of: columns `neuron` and `text`.

    All frames hold rows of one layer. The explanations of language models stand first, the best score first: the viewer
    shows the first alone. Of each the strongest sequences stand before the random ones, as the viewer takes them apart.
    """
    written = said.filter((pl.col("polarity") == "+") & pl.col("text").is_not_null())
    played = _scored_sequences(simulations, exemplars, sequences)
    overall = _overall(scores)
    rows = (
        written.select("layer", "neuron", "explanation_id", "explainer", pl.col("text").alias("explanation"))
        .join(played, on="explanation_id", how="left", maintain_order="left")
        .join(overall, on=["explanation_id", "simulator"], how="left", maintain_order="left")
        .with_columns(pl.col("sequences").fill_null([]))
        .sort(
            "neuron",
            pl.col("explainer") == "none",
            "ev_correlation_score",
            "explanation_id",
            "simulator",
            descending=[False, False, True, False, False],
            nulls_last=True,
        )
    )
    scored = pl.struct(
        "explanation",
        pl.struct(
            pl.col("sequences").alias("scored_sequence_simulations"), *SCORERS.values(), _named("ScoredSimulation")
        ).alias("scored_simulation"),
        _named("ScoredExplanation"),
    )
    frame = rows.group_by("layer", "neuron", maintain_order=True).agg(scored.alias("scored_explanations"))
    text = pl.struct(_neuron_id(), "scored_explanations", _named("NeuronSimulationResults"))
    return frame.select("neuron", text.struct.json_encode().alias("text"))


def tokens_by_activation(associations: pl.DataFrame, words: pl.Series) -> pl.DataFrame:
    """One TokenLookupTableSummaryOfNeuron for each neuron: the tokens with the highest means. `words[i]` is token i."""
    rows = (
        associations.filter(pl.col("polarity") == "+")
        .select("neuron", "token_ids", "counts", "means")
        .explode("token_ids", "counts", "means")
        .filter(pl.col("counts") > 0)
        .sort("neuron", "means", "token_ids", descending=[False, True, False])
        .group_by("neuron", maintain_order=True)
        .head(TOKENS)
    )
    frame = (
        rows.with_columns(words.gather(rows.get_column("token_ids")).alias("tokens"))
        .group_by("neuron", maintain_order=True)
        .agg("tokens", pl.col("means").alias("average_activations"))
    )
    text = pl.struct("tokens", "average_activations", _named("TokenLookupTableSummaryOfNeuron"))
    return frame.select("neuron", text.struct.json_encode().alias("text"))


def tokens_by_weight(connections: pl.DataFrame, words: pl.Series) -> pl.DataFrame:
    """One WeightBasedSummaryOfNeuron for each neuron whose model has connections with tokens on both sides."""
    kinds = ("input_positive", "input_negative", "output_positive", "output_negative")
    rows = connections.drop_nulls([f"{kind}_strengths" for kind in kinds]).sort("neuron")
    parts = [
        pl.struct(
            _spelled(rows.get_column(f"{kind}_token_ids"), words).alias("tokens"),
            pl.col(f"{kind}_strengths").alias("strengths"),
            _named("TokensAndWeights"),
        ).alias(kind)
        for kind in kinds
    ]
    text = pl.struct(*parts, _named("WeightBasedSummaryOfNeuron"))
    return rows.select("neuron", text.struct.json_encode().alias("text"))


def neurons_by_weight(connections: pl.DataFrame, *, last_layer: int) -> pl.DataFrame:
    """The neurons joined to each neuron, as `{layer}_{neuron}`: `c_fc` from earlier layers, `c_proj` to later ones.

    Null where there is no layer on that side. Only for models that have such connections.
    """
    rows = connections.drop_nulls(["upstream_positive_strengths", "downstream_positive_strengths"]).sort("neuron")
    sides = []
    for name, kind, outermost in (("c_fc", "upstream", 0), ("c_proj", "downstream", last_layer)):
        fields: list[pl.Expr] = []
        for sign in ("positive", "negative"):
            pairs = rows.select(
                "neuron",
                pl.col(f"{kind}_{sign}_layers").alias("at"),
                pl.col(f"{kind}_{sign}_neurons").alias("index"),
            )
            joined = (
                pairs.with_row_index("row")
                .explode("at", "index")
                .drop_nulls()
                .group_by("row", maintain_order=True)
                .agg(pl.format("{}_{}", "at", "index").alias("names"))
            )
            names = pairs.with_row_index("row").join(joined, on="row", how="left", maintain_order="left")
            fields += [
                pl.lit(names.get_column("names").fill_null([])).alias(f"top_{sign}_neurons"),
                pl.col(f"{kind}_{sign}_strengths").alias(f"top_{sign}_weights"),
            ]
        sides.append(pl.when(pl.col("layer") != outermost).then(pl.struct(*fields)).alias(name))
    return rows.select("neuron", pl.struct(*sides).struct.json_encode().alias("text"))


def provenance(
    said: pl.DataFrame, simulations: pl.DataFrame, statistics: pl.DataFrame, records: pl.DataFrame
) -> pl.DataFrame:
    """Where each neuron's files are from: columns `neuron` and `text`, a JSON object for each neuron of `statistics`.

    `records` is what `neuron_records` gave. Explanations without a text, and sequences whose simulation failed, which
    or of which some tokens are not known (reason null), which the format has no place for, are named here with the reason.
    """
    failed = (
        simulations.filter(pl.col("expected").is_null() | HAS_GAPS)
        .group_by("explanation_id", "simulator", maintain_order=True)
        .agg(pl.struct("exemplar_id", "missing_because").alias("failed"))
    )
    played = (
        simulations.group_by("explanation_id", "simulator", maintain_order=True)
        .agg("exemplar_id", "identity")
        .rename({"exemplar_id": "exemplar_ids", "identity": "simulation_identities"})
        .join(failed, on=["explanation_id", "simulator"], how="left", maintain_order="left")
    )
    rows = (
        said.select(
            "neuron", "polarity", "explanation_id", "method", "explainer", "missing_because", "prompt_hash", "request_id", "identity",
        )
        .join(played, on="explanation_id", how="left", maintain_order="left")
        .sort("neuron", "polarity", "method", "explanation_id", "simulator")
    )  # fmt: skip
    explained = rows.group_by("neuron", maintain_order=True).agg(pl.struct(pl.exclude("neuron")).alias("explanations"))
    frame = (
        statistics.sort("neuron")
        .select("layer", "neuron", pl.col("identity").alias("statistics_identity"))
        .join(records.select("neuron", "records"), on="neuron", how="left", maintain_order="left")
        .join(explained, on="neuron", how="left", maintain_order="left")
        .with_columns(pl.col("explanations").fill_null([]))
    )
    return frame.select(
        "neuron",
        pl.struct("layer", "neuron", "statistics_identity", "records", "explanations")
        .struct.json_encode()
        .alias("text"),
    )


def _named(name: str) -> pl.Expr:
    return pl.lit(name).alias("dataclass_name")


def _neuron_id() -> pl.Expr:
    return pl.struct(
        pl.col("layer").alias("layer_index"), pl.col("neuron").alias("neuron_index"), _named("NeuronId")
    ).alias("neuron_id")


def _record() -> pl.Expr:
    return pl.struct("tokens", "activations", _named("ActivationRecord"))


def _interleaved(rows: pl.DataFrame, splits: tuple[str, ...]) -> pl.DataFrame:
    """Equally many records of each split, at most PER_SPLIT, the splits taking turns."""
    order = {split: place for place, split in enumerate(splits)}
    rows = rows.sort("neuron", "split", "peak", "sequence_id", descending=[False, False, True, False]).with_columns(
        pl.int_range(pl.len(), dtype=pl.Int32).over("neuron", "split").alias("place"),
        pl.col("split").replace_strict(order, return_dtype=pl.Int32).alias("turn"),
    )
    counts = rows.group_by("neuron", "split").len()
    fewest = counts.group_by("neuron").agg(
        pl.when(pl.len() == len(splits)).then(pl.col("len").min().clip(0, PER_SPLIT)).otherwise(0).alias("n")
    )
    chosen = rows.join(fewest, on="neuron").filter(pl.col("place") < pl.col("n"))
    return (
        chosen.sort("neuron", "place", "turn")
        .group_by("neuron", maintain_order=True)
        .agg(pl.col("n").first(), pl.col("record").alias("records"), pl.col("identity").alias("identities"))
    )


def _by_quantile(rows: pl.DataFrame, statistics: pl.DataFrame) -> pl.DataFrame:
    """For each neuron five lists of records, one for each stratum between quantiles; an empty one where there is none."""
    grid = statistics.select("neuron").join(pl.DataFrame({"stratum": QUANTILE_STRATA}), how="cross")
    found = (
        rows.filter(pl.col("stratum").is_in(QUANTILE_STRATA))
        .sort("neuron", "stratum", "rank")
        .group_by("neuron", "stratum", maintain_order=True)
        .agg("record")
    )
    return (
        grid.join(found, on=["neuron", "stratum"], how="left")
        .with_columns(pl.col("record").fill_null([]))
        .sort("neuron", "stratum")
        .group_by("neuron", maintain_order=True)
        .agg(pl.col("record").alias("strata"))
    )


def _scored_sequences(simulations: pl.DataFrame, exemplars: pl.DataFrame, sequences: pl.DataFrame) -> pl.DataFrame:
    """For each (explanation, simulator) its ScoredSequenceSimulations, of those that did not fail."""
    shown = exemplars.filter(pl.col("split") == "score").select("exemplar_id", "sequence_id")
    rows = (
        simulations.filter(pl.col("expected").is_not_null() & ~HAS_GAPS & pl.col("scale").is_in(list(SCALES)))
        .join(shown.unique("exemplar_id"), on="exemplar_id", how="inner", maintain_order="left")
        .join(sequences, on="sequence_id", how="inner", maintain_order="left")
        .sort("explanation_id", "simulator", pl.col("stratum") != "top", "rank", "exemplar_id")
    )
    rows = rows.with_columns(*sequence_scores(rows.get_column("true"), rows.get_column("expected")))
    simulation = pl.struct(
        "tokens",
        pl.col("expected").alias("expected_activations"),
        pl.col("scale").replace_strict(SCALES, return_dtype=pl.String).alias("activation_scale"),
        pl.col("distribution_values").fill_null([]),
        pl.col("distribution_probabilities").fill_null([]),
        pl.lit(None, pl.String).alias("uncalibrated_simulation"),
        _named("SequenceSimulation"),
    ).alias("simulation")
    scored = pl.struct(
        simulation, pl.col("true").alias("true_activations"), *SCORERS.values(), _named("ScoredSequenceSimulation")
    )
    return rows.group_by("explanation_id", "simulator", maintain_order=True).agg(scored.alias("sequences"))


def _overall(scores: pl.DataFrame) -> pl.DataFrame:
    """The three scores of each (explanation, simulator) over the strongest and the random sequences together."""
    both = next(iter(SETS))
    rows = scores.filter((pl.col("split") == both) & pl.col("scorer").is_in(list(SCORERS)))
    return rows.group_by("explanation_id", "simulator").agg(
        pl.col("value").filter(pl.col("scorer") == ours).first().alias(theirs) for ours, theirs in SCORERS.items()
    )


def sequence_scores(true: pl.Series, expected: pl.Series) -> list[pl.Series]:
    """OpenAI's three scores of each sequence by itself, null where one is not defined. Lists are equally long.

    The formulas are those of `pipeline.scores`; here one sequence is all there is.
    """
    lengths = true.list.len().to_numpy().astype(np.int64)
    if not len(lengths):
        return [pl.Series(name, [], dtype=pl.Float64) for name in SCORERS.values()]
    y, s = (_flat(column) for column in (true, expected))
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.add.reduceat(values, starts) / lengths)

    def about(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(values - np.repeat(mean(values), lengths))

    with np.errstate(divide="ignore", invalid="ignore"):
        centred_y, centred_s = about(y), about(s)
        correlation = mean(centred_y * centred_s) / np.sqrt(mean(centred_y**2) * mean(centred_s**2))
        values = [
            np.clip(correlation, -1, 1),
            1 - mean((y - s) ** 2) / mean(y**2),
            1 - mean(np.abs(y - s)) / mean(np.abs(y)),
        ]
    low, high = np.minimum.reduceat, np.maximum.reduceat
    values[0] = np.where((low(y, starts) == high(y, starts)) | (low(s, starts) == high(s, starts)), np.nan, values[0])
    return [
        pl.Series(name, np.where(np.isfinite(value), value, np.nan)).fill_nan(None)
        for name, value in zip(SCORERS.values(), values, strict=True)
    ]


def _flat(lists: pl.Series) -> NDArray[np.float64]:
    return lists.explode(empty_as_null=False, keep_nulls=False).cast(pl.Float64).to_numpy()


def _spelled(token_ids: pl.Series, words: pl.Series) -> pl.Series:
    """Lists of tokens as lists of their texts."""
    rows = pl.DataFrame({"ids": token_ids}).with_row_index("row")
    flat = rows.explode("ids").drop_nulls()
    found = (
        flat.with_columns(words.gather(flat.get_column("ids")).alias("texts"))
        .group_by("row", maintain_order=True)
        .agg("texts")
    )
    joined = rows.join(found, on="row", how="left", maintain_order="left")
    return joined.get_column("texts").fill_null(pl.lit([], dtype=pl.List(pl.String)))
