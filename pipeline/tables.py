"""Every table of the lake, once: its columns, types, units, key, and what one row is.

No column is declared anywhere else. The store creates tables from these declarations, assets show them as schemas,
and `Table.conform` holds every frame to them before it is written.

Tables are partitioned by `layer` unless `by_layer` is False, and sorted so that one neuron is a small read.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import polars as pl

from pipeline.errors import LakeError

Type = pl.DataType | type[pl.DataType]

POLARITIES = ("+", "-")
SPLITS = ("explain", "calibrate", "score", "test")
STRATA = ("top", "random", "q0", "q1", "q2", "q3", "q4")

CHAIN = (
    "sequences", "subject_layers", "activations", "neuron_statistics", "token_associations", "vocabulary", "connections",
    "exemplars", "explanations", "simulations", "judgements", "ablations", "scores",
)  # fmt: skip
"""The tables that a neuron's rows are from, parents first."""

MISSING = {
    "dead_neuron": "the neuron never fires on this corpus in this polarity",
    "not_seen_firing": "the neuron fires in no document that may be shown to an explainer",
    "no_exemplars": "too few documents of the split to choose exemplars from",
    "no_evidence": "the method has nothing to show of this neuron",
    "no_linear_form": "the neuron is not one linear map of its input followed by a nonlinearity",
    "constant_simulation": "the simulation is the same at every token, so no correlation is defined",
    "constant_activation": "the true activations are the same at every token, so no correlation is defined",
    "no_simulation": "no sequence of the split was simulated",
    "low_coverage": "too few tokens of the set have a usable prediction",
    "one_kind": "there are not both texts on which the neuron is active and others, so no judge can be right or wrong",
    "too_few_texts": "there are too few texts on which the neuron is active, or none on which it is not, to hide one among others",
    "too_few_sequences": "there is no other sequence to find the neuron's units by",
    "not_causal": "the subject gives no next-token probabilities, as an encoder, so nothing can be ablated in it",
    "not_replaceable": "only neurons of MLPs can be replaced in the subject, not what other sites read",
    "no_effect": "the next-token probabilities are the same with the neuron's mean in its place",
    "refused": "the language model declined to answer",
    "filtered": "the provider's content filter withheld the answer",
    "truncated": "the answer reached the token limit before it ended",
    "unparsable": "the answer is not in the form that the prompt asks for",
    "wrong_length": "the answer does not hold one value for each token",
    "no_probabilities": "no probabilities came with the answer, or its tokens do not tell the numbers apart",
    "timeout": "no answer came in time",
    "rate_limited": "the endpoint kept asking to slow down",
    "server_error": "the endpoint failed to answer",
    "not_requested": "the request was never sent",
    "budget": "the budget of the run was used up before the request was sent",
    "not_given": "the source of an import leaves it out",
}
"""Why a value can be missing: the closed list, with the sentence that people see. No other reason is ever stored."""

IN_PASSING = ("timeout", "rate_limited", "server_error", "not_requested", "budget")
"""Reasons for a missing answer that may be gone tomorrow; the others come with the reply, and replies are kept."""


@dataclass(frozen=True)
class Column:
    """One column: its type, and what it holds with its unit."""

    type: Type
    doc: str
    nullable: bool = False
    gaps: bool = False
    """Whether its lists may hold nulls: places about which nothing is known."""
    added: bool = False
    """Declared after lakes were made without it: their rows have null there, and the next write adds it. Nullable."""


@dataclass(frozen=True)
class Table:
    """One table of the lake.

    `key` names the columns that tell rows apart. `lengths` names lists that must be equally long in every row.
    `reasons` maps a nullable column to the column that says why it is null.
    """

    name: str
    doc: str
    key: tuple[str, ...]
    columns: dict[str, Column]
    by_layer: bool = True
    sort: tuple[str, ...] = ()
    lengths: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def schema(self) -> dict[str, Type]:
        """Column names and polars types, in order."""
        return {name: column.type for name, column in self.columns.items()}

    def empty(self) -> pl.DataFrame:
        """A frame of this table with no rows."""
        return pl.DataFrame(schema=self.schema)

    def conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with this table's columns in order and its rows sorted, or an error that names the first fault.

        Columns that were added later may be left out; they are null then.

        Raises:
            LakeError: a column is missing, unknown or of another type; a value is null or not finite where it must
                not be; lists that belong together differ in length; a key occurs twice; a null has no reason.
        """
        later = [name for name, column in self.columns.items() if column.added and name not in frame.columns]
        frame = frame.with_columns(pl.lit(None, self.columns[name].type).alias(name) for name in later)
        missing = sorted(set(self.columns) - set(frame.columns))
        unknown = sorted(set(frame.columns) - set(self.columns))
        if missing or unknown:
            raise LakeError(f"rows for table `{self.name}` lack columns {missing} and have unknown columns {unknown}")
        frame = frame.select(list(self.columns))
        for name, column in self.columns.items():
            if frame.schema[name] != column.type:
                raise LakeError(f"`{self.name}.{name}` must be {column.type}, not {frame.schema[name]}")
            if not column.nullable and (nulls := frame.get_column(name).null_count()):
                raise LakeError(f"`{self.name}.{name}` is null in {nulls:,} of {len(frame):,} rows and must not be")
            if not column.gaps and (holes := _nulls_in_lists(frame.get_column(name))):
                raise LakeError(f"`{self.name}.{name}` holds {holes:,} nulls inside its lists and must hold none")
            if wrong := _not_finite(frame.get_column(name)):
                raise LakeError(f"`{self.name}.{name}` holds {wrong:,} values that are not finite numbers")
        self._check_rows(frame)
        return frame.sort(list(self.sort or self.key), maintain_order=True)

    def _check_rows(self, frame: pl.DataFrame) -> None:
        if duplicates := len(frame) - frame.select(self.key).n_unique():
            raise LakeError(f"{duplicates:,} rows of table `{self.name}` repeat a key {self.key}")
        if self.lengths:
            lengths = [pl.col(name).list.len() for name in self.lengths]
            unequal = pl.any_horizontal(*(length != lengths[0] for length in lengths[1:])).fill_null(value=False)
            if wrong := frame.filter(unequal).height:
                raise LakeError(f"{wrong:,} rows of table `{self.name}` have {self.lengths} of unequal lengths")
        for value, reason in self.reasons.items():
            both = pl.col(value).is_null() == pl.col(reason).is_null()
            if wrong := frame.filter(both).height:
                raise LakeError(
                    f"{wrong:,} rows of table `{self.name}` must have either `{value}` or `{reason}`, never both or neither"
                )
            if strangers := set(frame.get_column(reason).drop_nulls().unique()) - set(MISSING):
                raise LakeError(
                    f"`{self.name}.{reason}` holds {sorted(strangers)}; known reasons are {sorted(MISSING)}"
                )


def _nulls_in_lists(series: pl.Series) -> int:
    """How many items of the column's lists are null, at any depth."""
    found = 0
    while isinstance(series.dtype, pl.List):
        series = series.drop_nulls().explode(empty_as_null=False, keep_nulls=False)
        found += series.null_count()
    return found


def _not_finite(series: pl.Series) -> int:
    """How many numbers in the column, inside lists too, are NaN or infinite."""
    while isinstance(series.dtype, pl.List):
        series = series.drop_nulls().explode(empty_as_null=False, keep_nulls=False)
    if not series.dtype.is_float():
        return 0
    return int((~series.drop_nulls().is_finite()).sum())


LAYER = Column(pl.Int32, "layer of the subject model, from 0")
NEURON = Column(pl.Int32, "index in the layer's MLP hidden dimension, from 0")
POLARITY = Column(pl.String, "`+` for the positive side, `-` for the negative side of a gated (signed) neuron")
SEQUENCE_ID = Column(pl.String, "the sequence, 16 hex digits of its identity")
EXPLANATION_ID = Column(pl.String, "the explanation, 16 hex digits of its identity")
EXEMPLAR_ID = Column(pl.String, "the exemplar, 16 hex digits of its identity")
STRATUM = Column(
    pl.String,
    "how the record was chosen: `top` (strongest windows), `random` (drawn before the run), or `q0`..`q4` (drawn from "
    "the window maxima between the quantiles 0, .5, .9, .99, .999 and 1)",
)
MISSING_BECAUSE = Column(pl.String, "why the value is missing, one word of a closed list", nullable=True)
MADE = {
    "identity": Column(pl.String, "tagged hash of what the row was made from, parents included"),
    "run_id": Column(pl.String, "the Dagster run that wrote the row"),
}

sequences = Table(
    name="sequences",
    doc="A fixed-length window of one document: the text that the subject model reads.",
    key=("sequence_id",),
    by_layer=False,
    lengths=("token_ids", "token_bytes"),
    columns={
        "sequence_id": SEQUENCE_ID,
        "document_id": Column(pl.String, "where the document is from, such as `file.jsonl:12` or `json.dumps`"),
        "document_hash": Column(pl.String, "tagged SHA-256 of the document's UTF-8 bytes"),
        "split": Column(pl.String, "`explain`, `calibrate`, `score` or `test`; one per document"),
        "offset": Column(pl.Int32, "where the window starts in the document, in tokens"),
        "token_ids": Column(pl.List(pl.Int32), "tokens of the window, without the model's special tokens"),
        "token_bytes": Column(pl.List(pl.Binary), "the UTF-8 bytes of the text that each token covers"),
        "text": Column(pl.String, "the window as text, for people; the truth is `token_ids`"),
        **MADE,
    },
)

subject_layers = Table(
    name="subject_layers",
    doc="A layer of the subject model: where its neurons are, and the fingerprint of the weights behind them.",
    key=("layer",),
    columns={
        "layer": LAYER,
        "subject": Column(pl.String, "name or folder of the subject model"),
        "site": Column(pl.String, "module whose input the neurons are: the MLP's output projection"),
        "n_neurons": Column(pl.Int32, "neurons of the layer"),
        "signed": Column(pl.Boolean, "whether the MLP is gated, so that both signs of a neuron carry meaning"),
        "fingerprint": Column(pl.String, "tagged chain hash of all weights that can reach this layer's neurons"),
        **MADE,
    },
)

activations = Table(
    name="activations",
    doc="An activation record worth keeping: what one neuron did on one sequence.",
    key=("layer", "neuron", "polarity", "stratum", "rank"),
    columns={
        "layer": LAYER,
        "neuron": NEURON,
        "polarity": POLARITY,
        "stratum": STRATUM,
        "rank": Column(
            pl.Int32,
            "from 0 within the stratum; in `top` the first twenty are the strongest of the corpus, and any later ones "
            "complete five for each split",
        ),
        "sequence_id": SEQUENCE_ID,
        "peak": Column(pl.Float32, "strongest activation of the window in this polarity, units of the neuron"),
        "peak_token": Column(pl.Int32, "position of the strongest of `activations`, from 0; the first of equals"),
        "activations": Column(
            pl.List(pl.Float32),
            "activation at each token, units of the neuron, rounded to whole steps of a power of two, 2**11 to 2**12 of "
            "which make the strongest of the window; `peak` is not rounded, but of `random` records in polarity `-`",
        ),
        **MADE,
    },
)

neuron_statistics = Table(
    name="neuron_statistics",
    doc="A neuron over the whole corpus: exact moments and extremes of its activation at every token.",
    key=("layer", "neuron"),
    columns={
        "layer": LAYER,
        "neuron": NEURON,
        "count": Column(pl.Int64, "activations that the moments are taken over"),
        "mean": Column(pl.Float64, "units of the neuron"),
        "variance": Column(pl.Float64, "population variance, squared units of the neuron"),
        "skewness": Column(
            pl.Float64, "third standardised moment; null for a neuron that hardly varies about its mean", nullable=True
        ),
        "kurtosis": Column(
            pl.Float64, "fourth standardised moment, 3 for a normal; null as skewness is", nullable=True
        ),
        "minimum": Column(pl.Float32, "units of the neuron"),
        "maximum": Column(pl.Float32, "units of the neuron"),
        "fraction_positive": Column(pl.Float64, "share of tokens with an activation above zero"),
        "histogram": Column(
            pl.List(pl.Int64),
            "tokens in each of 99 bins, over a sample of the windows (all of a small corpus); the edges are 1 and 1.5 times "
            "each power of two from 2**-12 to 2**12, negative and positive, units of the neuron; zero is in the middle one",
        ),
        "quantile_boundaries": Column(
            pl.List(pl.Float32), "quantiles .5, .9, .99 and .999 of the window maximum, units of the neuron"
        ),
        "dead": Column(pl.Boolean, "never above zero (a signed neuron: never other than zero)"),
        "n_sequences": Column(pl.Int32, "sequences read"),
        "n_tokens": Column(pl.Int64, "tokens read"),
        **MADE,
    },
)

token_associations = Table(
    name="token_associations",
    doc=(
        "The tokens of one neuron: mean activation over the documents that are not scored, and the weight from the "
        "token's embedding. Holds the strongest tokens and every token of a record that may be scored."
    ),
    key=("layer", "neuron", "polarity"),
    lengths=("token_ids", "counts", "means", "weights"),
    columns={
        "layer": LAYER,
        "neuron": NEURON,
        "polarity": POLARITY,
        "token_ids": Column(pl.List(pl.Int32), "tokens, ascending"),
        "counts": Column(pl.List(pl.Int32), "occurrences in documents that are not scored; 0 if unseen"),
        "means": Column(
            pl.List(pl.Float32),
            "mean activation on the token, to 14 significant bits, units of the neuron; `fallback` if unseen",
        ),
        "weights": Column(
            pl.List(pl.Float32),
            "strength of embedding -> neuron by weights, to 12 significant bits; null without a linear form",
            nullable=True,
        ),
        "fallback": Column(
            pl.Float32,
            "mean activation of the neuron over all tokens not scored, units of the neuron; null if there are none",
            nullable=True,
        ),
        **MADE,
    },
)

vocabulary = Table(
    name="vocabulary",
    doc="A token of the subject model by itself: one row for each of its embeddings, met in the corpus or not.",
    key=("token_id",),
    by_layer=False,
    columns={
        "token_id": Column(pl.Int32, "row of the embedding, from 0"),
        "bytes": Column(
            pl.Binary,
            "the UTF-8 bytes that the token stands for, with a space where it begins a word; none if the tokenizer does "
            "not know it",
        ),
        **MADE,
    },
)

_CONNECTED, _STRENGTHS = pl.List(pl.Int32), pl.List(pl.Float32)
connections = Table(
    name="connections",
    doc=(
        "The strongest connections of one neuron by the weights alone: with tokens, and with neurons of other layers. "
        "Each list begins with the strongest. A null list: the model has no such connections (gated MLPs have only "
        "those with output tokens, models without a linear head all others). An empty one: it has, but this neuron "
        "has none of this sign, or there is no layer on that side."
    ),
    key=("layer", "neuron"),
    columns={
        "layer": LAYER,
        "neuron": NEURON,
        "input_positive_token_ids": Column(
            _CONNECTED, "tokens whose embeddings excite the neuron most, at most 50", nullable=True
        ),
        "input_positive_strengths": Column(_STRENGTHS, "their strengths, all above zero; no unit", nullable=True),
        "input_negative_token_ids": Column(
            _CONNECTED, "tokens whose embeddings inhibit the neuron most, at most 50", nullable=True
        ),
        "input_negative_strengths": Column(_STRENGTHS, "their strengths, all below zero; no unit", nullable=True),
        "output_positive_token_ids": Column(
            _CONNECTED, "tokens that the neuron promotes most in the output, at most 50", nullable=True
        ),
        "output_positive_strengths": Column(_STRENGTHS, "their strengths, all above zero; no unit", nullable=True),
        "output_negative_token_ids": Column(
            _CONNECTED, "tokens that the neuron suppresses most in the output, at most 50", nullable=True
        ),
        "output_negative_strengths": Column(_STRENGTHS, "their strengths, all below zero; no unit", nullable=True),
        "upstream_positive_layers": Column(
            _CONNECTED, "layers of the neurons of earlier layers that excite it most, at most 10", nullable=True
        ),
        "upstream_positive_neurons": Column(_CONNECTED, "their indices in those layers", nullable=True),
        "upstream_positive_strengths": Column(_STRENGTHS, "their strengths, all above zero; no unit", nullable=True),
        "upstream_negative_layers": Column(
            _CONNECTED, "layers of the neurons of earlier layers that inhibit it most, at most 10", nullable=True
        ),
        "upstream_negative_neurons": Column(_CONNECTED, "their indices in those layers", nullable=True),
        "upstream_negative_strengths": Column(_STRENGTHS, "their strengths, all below zero; no unit", nullable=True),
        "downstream_positive_layers": Column(
            _CONNECTED, "layers of the neurons of later layers that it excites most, at most 10", nullable=True
        ),
        "downstream_positive_neurons": Column(_CONNECTED, "their indices in those layers", nullable=True),
        "downstream_positive_strengths": Column(_STRENGTHS, "their strengths, all above zero; no unit", nullable=True),
        "downstream_negative_layers": Column(
            _CONNECTED, "layers of the neurons of later layers that it inhibits most, at most 10", nullable=True
        ),
        "downstream_negative_neurons": Column(_CONNECTED, "their indices in those layers", nullable=True),
        "downstream_negative_strengths": Column(_STRENGTHS, "their strengths, all below zero; no unit", nullable=True),
        **MADE,
    },
)

exemplars = Table(
    name="exemplars",
    doc="A record chosen to show to an explainer or to score an explanation on.",
    key=("layer", "neuron", "polarity", "split", "stratum", "rank"),
    lengths=("token_ids", "activations", "scaled_activations"),
    columns={
        "layer": LAYER,
        "neuron": NEURON,
        "polarity": POLARITY,
        "split": Column(pl.String, "`explain` (shown) or `score` (hidden); never the same document"),
        "stratum": STRATUM,
        "rank": Column(pl.Int32, "from 0 within split and stratum, strongest first"),
        "sequence_id": SEQUENCE_ID,
        "token_ids": Column(pl.List(pl.Int32), "tokens of the sequence"),
        "activations": Column(pl.List(pl.Float32), "activation at each token, units of the neuron"),
        "scaled_activations": Column(pl.List(pl.Int8), "0 to 10 against `scale_maximum`"),
        "scale_maximum": Column(pl.Float32, "strongest activation shown to the explainer; 10 on the scale"),
        "exemplar_id": EXEMPLAR_ID,
        **MADE,
    },
)

explanations = Table(
    name="explanations",
    doc="What one explainer says of one neuron, or why it says nothing.",
    key=("layer", "explanation_id"),
    sort=("layer", "neuron", "polarity", "method", "explanation_id"),
    reasons={"text": "missing_because"},
    columns={
        "layer": LAYER,
        "neuron": NEURON,
        "polarity": POLARITY,
        "explanation_id": EXPLANATION_ID,
        "parent_id": Column(pl.String, "the explanation that this one is made from", nullable=True),
        "method": Column(pl.String, "how it was made: `token-lookup`, `token-linear`, or a name of `pipeline.methods`"),
        "explainer": Column(
            pl.String,
            "who wrote it: a language model, the author (`human`), `nobody` (the control `empty`), or `none` (baselines)",
        ),
        "text": Column(pl.String, "the explanation", nullable=True),
        "missing_because": MISSING_BECAUSE,
        "prompt_hash": Column(
            pl.String, "tagged hash of the prompt's files; null without a language model", nullable=True
        ),
        "request_id": Column(pl.String, "the request in `language_calls`", nullable=True),
        "other_request_ids": Column(
            pl.List(pl.String),
            "further requests that it took: sentences to test an explanation on, simulations to choose among several",
            nullable=True,
            added=True,
        ),
        "exemplar_ids": Column(pl.List(pl.String), "exemplars shown to the explainer"),
        **MADE,
    },
)

simulations = Table(
    name="simulations",
    doc="One explanation simulated on one exemplar: what the neuron should do, beside what it does.",
    key=("layer", "explanation_id", "simulator", "exemplar_id"),
    sort=("layer", "neuron", "polarity", "explanation_id", "simulator", "stratum", "rank", "exemplar_id"),
    lengths=("expected", "true"),
    reasons={"expected": "missing_because"},
    columns={
        "layer": LAYER,
        "neuron": NEURON,
        "polarity": POLARITY,
        "explanation_id": EXPLANATION_ID,
        "simulator": Column(pl.String, "what predicted: `token-lookup`, `token-linear`, or a language model's name"),
        "exemplar_id": EXEMPLAR_ID,
        "stratum": STRATUM,
        "rank": Column(pl.Int32, "of the exemplar"),
        "scale": Column(
            pl.String, "unit of `expected`: `neuron` (units of the neuron), `scaled` (0 to 10) or `weight` (arbitrary)"
        ),
        "expected": Column(
            pl.List(pl.Float32),
            "expected activation at each token; null where nothing is known",
            nullable=True,
            gaps=True,
        ),
        "distribution_values": Column(
            pl.List(pl.List(pl.Float32)),
            "scaled activations with a known probability, at each token; none where nothing is known",
            nullable=True,
        ),
        "distribution_probabilities": Column(
            pl.List(pl.List(pl.Float32)), "their probabilities, summing to 1 at each token", nullable=True
        ),
        "true": Column(
            pl.List(pl.Float32), "true activation at each token, units of the neuron, negated for polarity `-`"
        ),
        "missing_because": MISSING_BECAUSE,
        "coverage": Column(pl.Float32, "share of tokens with a usable prediction, 0 to 1"),
        "request_ids": Column(pl.List(pl.String), "the requests in `language_calls`"),
        **MADE,
    },
)

judgements = Table(
    name="judgements",
    doc="One text held against one explanation by a model: what it was asked, what is true, what it said.",
    key=("layer", "explanation_id", "judge", "scorer", "item"),
    sort=("layer", "neuron", "polarity", "explanation_id", "judge", "scorer", "item"),
    reasons={"value": "missing_because"},
    columns={
        "layer": LAYER,
        "neuron": NEURON,
        "polarity": POLARITY,
        "explanation_id": EXPLANATION_ID,
        "scorer": Column(pl.String, "a scorer of `pipeline.scorers` that asks about texts, such as `detection`"),
        "judge": Column(pl.String, "the language model that was asked"),
        "item": Column(pl.Int32, "place of the text among those that the scorer reads of the neuron, from 0"),
        "sequence_id": SEQUENCE_ID,
        "stratum": STRATUM,
        "marked_tokens": Column(pl.List(pl.Int32), "positions of the marked tokens, from 0; none in `detection`"),
        "fits": Column(pl.Boolean, "what is true: the neuron is active on the text, or where the marks stand"),
        "value": Column(
            pl.Float64,
            "what the judge said: 1 for yes, 0 for no; of `intruder` 1 if it found the text; of `embedding` the cosine between "
            "the vectors, -1 to 1; of `surprisal` what the explanation takes off the loss, nats per token",
            nullable=True,
        ),
        "probability": Column(pl.Float64, "of yes, where the endpoint says so", nullable=True),
        "missing_because": MISSING_BECAUSE,
        "request_id": Column(pl.String, "the request in `language_calls`"),
        "other_request_ids": Column(
            pl.List(pl.String),
            "further requests that it took, such as for the vector of the explanation",
            nullable=True,
            added=True,
        ),
        **MADE,
    },
)

ablations = Table(
    name="ablations",
    doc="One simulation put in the place of its neuron in the subject: how far next-token probabilities move.",
    key=("layer", "explanation_id", "simulator", "exemplar_id"),
    sort=("layer", "neuron", "polarity", "explanation_id", "simulator", "stratum", "rank", "exemplar_id"),
    reasons={"divergence": "missing_because", "mean_divergence": "missing_because"},
    columns={
        "layer": LAYER,
        "neuron": NEURON,
        "polarity": POLARITY,
        "explanation_id": EXPLANATION_ID,
        "simulator": Column(pl.String, "what predicted, as in `simulations`"),
        "exemplar_id": EXEMPLAR_ID,
        "stratum": STRATUM,
        "rank": Column(pl.Int32, "of the exemplar"),
        "slope": Column(
            pl.Float64,
            "of the line from simulation to neuron, fitted on split `calibrate`: units of the neuron for one of the simulation",
            nullable=True,
        ),
        "intercept": Column(pl.Float64, "of the same line, units of the neuron", nullable=True),
        "n_tokens": Column(pl.Int64, "tokens of the sequence"),
        "coverage": Column(pl.Float32, "share of them with a prediction; the others get the neuron's mean"),
        "divergence": Column(
            pl.Float64,
            "Jensen-Shannon divergence of next-token probabilities, with the simulation in the neuron's place from "
            "those of the subject as it is; mean over tokens, nats",
            nullable=True,
        ),
        "mean_divergence": Column(
            pl.Float64, "the same with the neuron's mean over all tokens in its place", nullable=True
        ),
        "missing_because": MISSING_BECAUSE,
        "request_ids": Column(pl.List(pl.String), "the requests of the line's simulations in `language_calls`"),
        **MADE,
    },
)

scores = Table(
    name="scores",
    doc="How well one explanation predicts one neuron, by one scorer on one set of sequences.",
    key=("layer", "explanation_id", "simulator", "scorer", "split"),
    sort=("layer", "neuron", "polarity", "explanation_id", "simulator", "scorer", "split"),
    reasons={"value": "missing_because"},
    columns={
        "layer": LAYER,
        "neuron": NEURON,
        "polarity": POLARITY,
        "explanation_id": EXPLANATION_ID,
        "method": Column(pl.String, "method of the explanation"),
        "simulator": Column(pl.String, "what predicted"),
        "scorer": Column(
            pl.String,
            "a formula of `pipeline.scores`, `pipeline.judged_scores` or `pipeline.ablation_scores`, such as `ev_correlation`",
        ),
        "formula_version": Column(pl.Int32, "version of the scorer's formula"),
        "split": Column(
            pl.String, "`top_and_random`, `random_only`, or the texts of a judge: `active_and_quiet`, `active`"
        ),
        "value": Column(
            pl.Float64, "the score, without unit, where 1 is perfect; of `surprisal` nats per token", nullable=True
        ),
        "missing_because": MISSING_BECAUSE,
        "ci_low": Column(pl.Float64, "2.5th percentile of a cluster bootstrap by sequence", nullable=True),
        "ci_high": Column(pl.Float64, "97.5th percentile of the same", nullable=True),
        "p_value": Column(
            pl.Float64,
            "share of permutations of whole sequences (`ablation`, `surprisal`: of changes of sign) that score as much, "
            "one-sided; null for scorers without one",
            nullable=True,
            added=True,
        ),
        "n_sequences": Column(pl.Int32, "sequences scored"),
        "n_tokens": Column(pl.Int64, "tokens scored"),
        "n_failed": Column(pl.Int32, "sequences of the split whose simulation is missing"),
        "token_lookup": Column(pl.Float64, "the same score of the token-lookup baseline", nullable=True),
        "token_linear": Column(pl.Float64, "the same score of the token-linear baseline", nullable=True),
        **MADE,
    },
)

explanation_embeddings = Table(
    name="explanation_embeddings",
    doc="An explanation as a vector of one encoder, so that explanations that mean alike are near each other.",
    key=("layer", "explanation_id"),
    sort=("layer", "neuron", "polarity", "explanation_id"),
    reasons={"vector": "missing_because"},
    columns={
        "layer": LAYER,
        "neuron": NEURON,
        "polarity": POLARITY,
        "explanation_id": EXPLANATION_ID,
        "encoder": Column(pl.String, "the encoder as it was named: `local:FOLDER`, or a model of an endpoint"),
        "fingerprint": Column(pl.String, "what the encoder is: hash of weights and pooling, or of endpoint and name"),
        "vector": Column(pl.List(pl.Float32), "of length 1, no unit", nullable=True),
        "missing_because": MISSING_BECAUSE,
        "request_id": Column(
            pl.String, "the request in `language_calls`; null for an encoder in this process", nullable=True
        ),
        **MADE,
    },
)

language_calls = Table(
    name="language_calls",
    doc="One request to a language model, with its reply word for word.",
    key=("request_id",),
    by_layer=False,
    columns={
        "request_id": Column(pl.String, "tagged hash of the whole request"),
        "endpoint": Column(pl.String, "base URL asked, without credentials"),
        "model": Column(pl.String, "model asked for"),
        "model_served": Column(pl.String, "model that answered, as the endpoint names it", nullable=True),
        "request": Column(pl.String, "the whole request as canonical JSON"),
        "reply": Column(pl.String, "the reply's text, word for word", nullable=True),
        "logprobs": Column(
            pl.String,
            "JSON: for each token of the reply, or each place of the prompt that was asked about, the token, and the "
            "likeliest ones there with the logarithms of their probabilities; null unless asked for",
            nullable=True,
            added=True,
        ),
        "finish_reason": Column(pl.String, "why the model stopped, as the endpoint says", nullable=True),
        "prompt_tokens": Column(pl.Int64, "tokens", nullable=True),
        "cached_tokens": Column(pl.Int64, "of them, read from the provider's cache", nullable=True),
        "completion_tokens": Column(pl.Int64, "tokens", nullable=True),
        "cost_usd": Column(pl.Float64, "US dollars; null when the price is not known", nullable=True),
        "seconds": Column(pl.Float64, "from the first attempt to the last"),
        "attempts": Column(pl.Int32, "times it was sent"),
        "batch_id": Column(
            pl.String,
            "the provider's batch in which it came, at the price of batches; null for one asked by itself",
            nullable=True,
            added=True,
        ),
        "missing_because": MISSING_BECAUSE,
        "error": Column(pl.String, "the endpoint's error, secrets removed", nullable=True),
        "answered_at": Column(pl.Datetime("us", "UTC"), "when the last attempt ended"),
        **MADE,
    },
)

reviews = Table(
    name="reviews",
    doc="A person's verdict on one explanation. Rows are only added; the latest of an author counts.",
    key=("review_id",),
    by_layer=False,
    sort=("at", "review_id"),
    columns={
        "review_id": Column(pl.String, "the review, 16 hex digits of its identity"),
        "layer": LAYER,
        "neuron": NEURON,
        "explanation_id": EXPLANATION_ID,
        "verdict": Column(pl.String, "`agree`, `wrong` or `unsure`"),
        "note": Column(pl.String, "what the author adds", nullable=True),
        "author": Column(pl.String, "who says so, as they signed"),
        "at": Column(pl.Datetime("us", "UTC"), "when it was said"),
        "identity": MADE["identity"],
    },
)

materializations = Table(
    name="materializations",
    doc="One write, finished or failed: the provenance record of every slice of every table.",
    key=("commit_uuid",),
    by_layer=False,
    sort=("started_at", "commit_uuid"),
    columns={
        "commit_uuid": Column(pl.String, "stands in the Delta commit too"),
        "run_id": Column(pl.String, "the Dagster run"),
        "table": Column(pl.String, "the table written"),
        "version": Column(pl.Int64, "its Delta version; null if nothing was written", nullable=True),
        "layer": Column(pl.Int32, "the layer written; null for a table without layers", nullable=True),
        "neurons": Column(pl.List(pl.Int32), "the neurons written; null for all of the layer", nullable=True),
        "step_key": Column(pl.String, "tagged hash of code version, settings and inputs", nullable=True),
        "content_hash": Column(pl.String, "tagged hash of the rows written", nullable=True),
        "rows": Column(pl.Int64, "rows written"),
        "inputs": Column(pl.String, "JSON: each table read, with its version and content hash"),
        "settings": Column(pl.String, "JSON: what was asked for"),
        "code": Column(pl.String, "JSON: package version, git commit, whether it was changed, asset's code version"),
        "environment": Column(pl.String, "JSON: versions, device and number format; recorded, never compared"),
        "usage": Column(pl.String, "JSON: requests, tokens and money of this write"),
        "started_at": Column(pl.Datetime("us", "UTC"), "when the step began"),
        "finished_at": Column(pl.Datetime("us", "UTC"), "when it ended"),
        "status": Column(pl.String, "`done` or `failed`"),
        "error": Column(pl.String, "why it failed", nullable=True),
    },
)

SOURCE = Column(pl.String, "the import that the row is from, by the name it was given")
imports = Table(
    name="imports",
    doc="What was taken over from another system: the form it had, where it was, and what its numbers mean.",
    key=("source", "files_hash"),
    by_layer=False,
    columns={
        "source": SOURCE,
        "form": Column(pl.String, "`openai`, `neuronpedia`, `delphi`, `csv` or `jsonl`"),
        "folder": Column(pl.String, "last part of the folder or file that was read"),
        "files_hash": Column(pl.String, "tagged hash of the path and content of every file"),
        "conventions": Column(
            pl.String,
            "JSON: site, activation function, number format, normaliser, polarity, as the source declares them",
        ),
        "imported": Column(pl.Int64, "files whose rows were taken over"),
        "rejected": Column(pl.Int64, "files that were not, see `imported_files`"),
        **MADE,
    },
)

imported_files = Table(
    name="imported_files",
    doc="A file of another system that was read, and why nothing was taken from it if so.",
    key=("source", "path", "sha256"),
    by_layer=False,
    columns={
        "source": SOURCE,
        "path": Column(pl.String, "within the folder that was imported"),
        "sha256": Column(pl.String, "tagged hash of its bytes; empty if it could not be read"),
        "size": Column(pl.Int64, "bytes"),
        "status": Column(pl.String, "`imported` or `rejected`"),
        "reason": Column(pl.String, "why it was rejected", nullable=True),
        "offset_in_file": Column(
            pl.Int64, "where, in characters from its start, if a place is to blame", nullable=True
        ),
        **MADE,
    },
)

imported_originals = Table(
    name="imported_originals",
    doc="A file of another system as it was, byte for byte, or the list of the files of an import; each kept once.",
    key=("sha256", "part"),
    by_layer=False,
    columns={
        "sha256": Column(pl.String, "tagged hash of the whole file; of a list, `files_hash` in `imports`"),
        "part": Column(pl.Int32, "place of this part of the file, from 0"),
        "content": Column(pl.Binary, "the bytes of the part, 8 MiB unless it is the last"),
        **MADE,
    },
)

imported_sequences = Table(
    name="imported_sequences",
    doc="A sequence of another system: tokens as text, because its files have no ids.",
    key=("sequence_id",),
    by_layer=False,
    columns={
        "sequence_id": SEQUENCE_ID,
        "tokens": Column(pl.List(pl.String), "tokens as the source writes them"),
        **MADE,
    },
)

imported_neurons = Table(
    name="imported_neurons",
    doc="What another system says of a neuron besides its records: moments, quantiles, related tokens and neurons.",
    key=("layer", "source", "neuron"),
    columns={
        "layer": LAYER,
        "source": SOURCE,
        "neuron": NEURON,
        "mean": Column(pl.Float64, "units of the neuron", nullable=True),
        "variance": Column(pl.Float64, "squared units of the neuron", nullable=True),
        "skewness": Column(pl.Float64, "third standardised moment", nullable=True),
        "kurtosis": Column(pl.Float64, "fourth standardised moment, as the source defines it", nullable=True),
        "quantile_boundaries": Column(
            pl.List(pl.Float32),
            "boundaries of the strata q0, q1, ... in units of the neuron, those that are numbers",
            nullable=True,
        ),
        "token_means": Column(pl.String, "JSON, word for word: tokens by mean activation", nullable=True),
        "token_weights": Column(pl.String, "JSON, word for word: tokens by weight", nullable=True),
        "neuron_weights": Column(pl.String, "JSON, word for word: neurons by weight", nullable=True),
        "original": Column(pl.String, "JSON: what else the source says of the neuron", nullable=True),
        **MADE,
    },
)

imported_records = Table(
    name="imported_records",
    doc="An activation record of another system.",
    key=("layer", "source", "neuron", "polarity", "stratum", "rank"),
    columns={
        "layer": LAYER,
        "source": SOURCE,
        "neuron": NEURON,
        "polarity": POLARITY,
        "stratum": STRATUM,
        "rank": Column(pl.Int32, "place in the source's list, from 0"),
        "split": Column(
            pl.String,
            "what the source uses the record for, in our words: `explain`, `calibrate`, `score`, `test`, or `none`",
        ),
        "sequence_id": Column(pl.String, "the sequence in `imported_sequences`"),
        "peak": Column(pl.Float32, "strongest activation, units of the neuron"),
        "activations": Column(
            pl.List(pl.Float32), "activation at each token, units of the neuron, as the source has it"
        ),
        **MADE,
    },
)

imported_explanations = Table(
    name="imported_explanations",
    doc="What another system, or a person, says of a neuron.",
    key=("layer", "explanation_id"),
    sort=("layer", "neuron", "polarity", "source", "explanation_id"),
    reasons={"text": "missing_because"},
    columns={
        "layer": LAYER,
        "source": SOURCE,
        "neuron": NEURON,
        "polarity": POLARITY,
        "explanation_id": EXPLANATION_ID,
        "method": Column(pl.String, "how it was made, as the source names it, after the name of the form"),
        "explainer": Column(pl.String, "who wrote it, as the source says; `unknown` if it does not"),
        "text": Column(pl.String, "the explanation, word for word", nullable=True),
        "missing_because": MISSING_BECAUSE,
        "path": Column(pl.String, "the file, in `imported_files`"),
        **MADE,
    },
)

imported_simulations = Table(
    name="imported_simulations",
    doc="A simulation that another system made and kept.",
    key=("layer", "explanation_id", "simulator", "rank"),
    sort=("layer", "neuron", "polarity", "explanation_id", "simulator", "rank"),
    lengths=("expected", "true"),
    reasons={"expected": "missing_because"},
    columns={
        "layer": LAYER,
        "source": SOURCE,
        **{name: simulations.columns[name] for name in ("neuron", "polarity", "explanation_id")},
        "simulator": Column(pl.String, "what predicted, as the source says; `unknown` if it does not"),
        "stratum": STRATUM,
        "rank": Column(pl.Int32, "place in the source's list of sequences, from 0"),
        "sequence_id": Column(pl.String, "the sequence in `imported_sequences`"),
        "scale": simulations.columns["scale"],
        "expected": Column(pl.List(pl.Float32), "expected activation at each token", nullable=True),
        **{name: simulations.columns[name] for name in ("distribution_values", "distribution_probabilities")},
        "true": Column(pl.List(pl.Float32), "true activation at each token, as the source has it"),
        "missing_because": MISSING_BECAUSE,
        **MADE,
    },
)

imported_scores = Table(
    name="imported_scores",
    doc="A score that another system gave, under its own name: never one of ours.",
    key=("layer", "explanation_id", "simulator", "scorer", "split"),
    sort=("layer", "neuron", "polarity", "explanation_id", "simulator", "scorer", "split"),
    reasons={"value": "missing_because"},
    columns={
        "layer": LAYER,
        "source": SOURCE,
        "neuron": NEURON,
        "polarity": POLARITY,
        "explanation_id": EXPLANATION_ID,
        "simulator": Column(pl.String, "what predicted, or judged, as the source says; `unknown` if it does not"),
        "scorer": Column(pl.String, "the form's name, a colon and the source's name, such as `openai:ev_correlation`"),
        "split": Column(pl.String, "the set of sequences, as the source names it, or `all`"),
        "value": Column(pl.Float64, "the score as it was given", nullable=True),
        "missing_because": MISSING_BECAUSE,
        "n_sequences": Column(pl.Int32, "sequences that it was taken over, 0 if the source does not say"),
        **MADE,
    },
)

common_simulations = Table(
    name="common_simulations",
    doc="An imported explanation, simulated by us on a record of its source that its explainer was not shown.",
    key=simulations.key,
    sort=simulations.sort,
    lengths=simulations.lengths,
    reasons=simulations.reasons,
    columns={
        "layer": LAYER,
        "source": SOURCE,
        **{name: simulations.columns[name] for name in simulations.columns if name != "layer"},
        "exemplar_id": Column(pl.String, "the record: 16 hex digits of its identity in `imported_records`"),
        "rank": Column(pl.Int32, "place in the source's list of records, from 0"),
    },
)

common_scores = Table(
    name="common_scores",
    doc="Our formulas on simulations of imported explanations, theirs and ours: the same names as in `scores`.",
    key=scores.key,
    sort=scores.sort,
    reasons=scores.reasons,
    columns={
        "layer": LAYER,
        "source": SOURCE,
        **{name: scores.columns[name] for name in scores.columns if name != "layer"},
    },
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        sequences,
        subject_layers,
        activations,
        neuron_statistics,
        token_associations,
        vocabulary,
        connections,
        exemplars,
        explanations,
        simulations,
        judgements,
        ablations,
        scores,
        explanation_embeddings,
        language_calls,
        reviews,
        materializations,
        imports,
        imported_files,
        imported_originals,
        imported_sequences,
        imported_neurons,
        imported_records,
        imported_explanations,
        imported_simulations,
        imported_scores,
        common_simulations,
        common_scores,
    )
}


OF_IMPORTS = tuple(name for name in TABLES if name.startswith(("import", "common_")))
"""Tables of what other systems found: their assets have no partitions, and no model or text stands behind them."""


def stamped(frame: pl.DataFrame, *, run_id: str, identities: Iterable[str]) -> pl.DataFrame:
    """The rows with the two columns that every made row carries."""
    return frame.with_columns(
        pl.Series("identity", list(identities), dtype=pl.String), pl.lit(run_id, dtype=pl.String).alias("run_id")
    )
