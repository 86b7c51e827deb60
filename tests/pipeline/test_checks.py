"""Checks: right rows pass, and each planted corruption is found by the check that is named for it."""

import numpy as np
import polars as pl
import pytest

from pipeline import checks
from pipeline import explanations as explainer
from pipeline import simulations as simulator
from pipeline.checks import FAILURES_ALLOWED, check, names
from pipeline.connections import connections
from pipeline.ports import Reply
from pipeline.tables import TABLES
from pipeline.texts import display

SEED = 7


@pytest.fixture(scope="module")
def layer(some_corpus, truth, made):
    sequences = some_corpus(100).unique("token_ids", keep="first", maintain_order=True)
    return made(sequences, truth(sequences), signed=True)


def found(table, rows, layer, **changed):
    """{check: passed} with the parents that the assets hand over."""
    parents = {
        "sequences": {},
        "subject_layers": {},
        "activations": {"sequences": layer.sequences, "n_neurons": 6},
        "neuron_statistics": {"n_neurons": 6},
        "token_associations": {"n_neurons": 6},
        "vocabulary": {"n_tokens": 4},
        "connections": {"n_neurons": 4},
        "exemplars": {"sequences": layer.sequences},
        "explanations": {"exemplars": layer.exemplars},
        "simulations": {"explanations": layer.explanations, "exemplars": layer.exemplars},
        "scores": {"simulations": layer.simulations, "explanations": layer.explanations, "seed": SEED},
    }[table]
    findings = check(table, rows, **{**parents, **changed})
    assert [finding.name for finding in findings] == names(table)
    assert all(finding.said for finding in findings)
    return {finding.name: finding.passed for finding in findings}


def failed(*args, **kwargs):
    return [name for name, passed in found(*args, **kwargs).items() if not passed]


def rows_of(layer, table):
    return {
        "sequences": layer.sequences,
        "activations": layer.activations,
        "neuron_statistics": layer.statistics,
        "token_associations": layer.associations,
        "exemplars": layer.exemplars,
        "explanations": layer.explanations,
        "simulations": layer.simulations,
        "scores": layer.scores,
    }[table]


TABLES_CHECKED = (
    "sequences", "activations", "neuron_statistics", "token_associations", "exemplars", "explanations", "simulations",
    "scores",
)  # fmt: skip


@pytest.mark.parametrize("table", TABLES_CHECKED)
def test_right_rows_pass_in_any_order(layer, table):
    rows = rows_of(layer, table)
    assert failed(table, rows, layer) == []
    assert failed(table, rows.sample(fraction=1, shuffle=True, seed=2), layer) == []


@pytest.mark.parametrize("table", TABLES_CHECKED)
def test_a_row_that_is_there_twice_is_found(layer, table):
    rows = rows_of(layer, table)
    assert "keys_are_unique" in failed(table, pl.concat([rows, rows.head(1)]), layer)


def test_a_layer_of_the_subject_has_only_its_key_to_check(layer):
    rows = pl.DataFrame({"layer": [1, 1]})
    assert failed("subject_layers", rows, layer) == ["keys_are_unique"]


@pytest.mark.parametrize("tokens", [[0, 1, 2], [1, 2, 3], [0, 1, 3, 4], [0, 1, 2, 3, 4]])
def test_a_token_that_is_missing_or_too_many_is_found(layer, tokens):
    rows = pl.DataFrame({"token_id": tokens, "bytes": [b"a"] * len(tokens)})
    assert failed("vocabulary", rows, layer) == ["every_token_is_there"]
    right = pl.DataFrame({"token_id": [2, 0, 3, 1]})
    assert failed("vocabulary", right, layer) == []
    assert failed("vocabulary", pl.concat([right, right.head(1)]), layer) == ["keys_are_unique"]


def altered(rows, column, change, where=None):
    """The rows with one value changed: that of the first row where `where` holds."""
    place = rows.with_row_index("place").filter(True if where is None else where)["place"][0]
    values = rows.get_column(column).to_list()
    values[place] = change(values[place])
    return rows.with_columns(pl.Series(column, values, dtype=rows.schema[column]))


@pytest.mark.parametrize("column", ["document_hash", "token_ids"])
def test_text_in_two_splits_is_found(layer, column):
    one, other = (layer.sequences.filter(pl.col("split") == split)[column][0] for split in ("explain", "score"))
    other = other.to_list() if column == "token_ids" else other
    rows = altered(layer.sequences, column, lambda _: other, pl.col("split") == "explain")
    assert one is not None
    assert failed("sequences", rows, layer) == ["splits_share_no_text"]


@pytest.mark.parametrize("table", ["activations", "neuron_statistics", "token_associations"])
def test_a_missing_neuron_is_found(layer, table):
    rows = rows_of(layer, table).filter(pl.col("neuron") != 3)
    assert failed(table, rows, layer) == ["every_neuron_is_there"]


@pytest.mark.parametrize("table", ["activations", "neuron_statistics", "token_associations"])
def test_a_neuron_under_a_wrong_number_is_found(layer, table):
    rows = rows_of(layer, table).with_columns(pl.col("neuron").replace(3, 99))
    assert "every_neuron_is_there" in failed(table, rows, layer)


def test_a_record_of_another_length_than_its_sequence_is_found(layer):
    rows = altered(layer.activations, "activations", lambda xs: [*xs, min(xs)])
    assert "lengths_agree_with_sequences" in failed("activations", rows, layer)


def test_a_record_of_an_unknown_sequence_is_found(layer):
    rows = altered(layer.activations, "sequence_id", lambda _: "nowhere")
    assert failed("activations", rows, layer) == ["lengths_agree_with_sequences"]


@pytest.mark.parametrize("polarity", ["+", "-"])
@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("peak", lambda x: x + 0.5),
        ("peak", lambda x: x - 0.5),
        ("activations", lambda xs: [-9.0, *xs[1:], 9.0][: len(xs)]),
    ],
)
def test_a_peak_that_is_not_the_extreme_is_found(layer, column, change, polarity):
    rows = altered(
        layer.activations, column, change, (pl.col("polarity") == polarity) & (pl.col("activations").list.len() > 2)
    )
    assert failed("activations", rows, layer) == ["peak_is_the_extreme"]


def test_a_peak_past_the_end_is_found(layer):
    rows = altered(layer.activations, "peak_token", lambda _: 99)
    assert failed("activations", rows, layer) == ["peak_is_the_extreme"]


def test_a_leaked_document_is_found(layer):
    shown = layer.exemplars.filter(pl.col("split") == "explain")
    neuron, polarity, sequence_id = shown.select("neuron", "polarity", "sequence_id").row(0)
    same = (pl.col("neuron") == neuron) & (pl.col("polarity") == polarity) & (pl.col("split") == "score")
    assert failed("exemplars", altered(layer.exemplars, "sequence_id", lambda _: sequence_id, same), layer) == [
        "scored_documents_were_not_shown"
    ]
    document = layer.sequences.filter(pl.col("sequence_id") == sequence_id)["document_hash"][0]
    scored = layer.exemplars.filter(same)["sequence_id"][0]
    sequences = layer.sequences.with_columns(
        pl.when(pl.col("sequence_id") == scored)
        .then(pl.lit(document))
        .otherwise(pl.col("document_hash"))
        .alias("document_hash")
    )
    assert failed("exemplars", layer.exemplars, layer, sequences=sequences) == ["scored_documents_were_not_shown"]


def test_an_exemplar_of_an_unknown_document_is_found(layer):
    rows = altered(layer.exemplars, "sequence_id", lambda _: "nowhere")
    assert failed("exemplars", rows, layer) == ["scored_documents_were_not_shown"]


@pytest.mark.parametrize("polarity", ["+", "-"])
def test_an_altered_scaled_activation_is_found(layer, polarity):
    rows = altered(
        layer.exemplars, "scaled_activations", lambda xs: [*xs[:-1], (xs[-1] + 1) % 11], pl.col("polarity") == polarity
    )
    assert failed("exemplars", rows, layer) == ["scale_is_reproduced"]


def test_an_altered_scale_is_found(layer):
    rows = altered(
        layer.exemplars, "scale_maximum", lambda x: 2 * x, (pl.col("split") == "explain") & (pl.col("neuron") == 2)
    )
    assert failed("exemplars", rows, layer) == ["scale_is_reproduced"]


@pytest.mark.parametrize("method", ["token-lookup", "token-linear"])
def test_a_neuron_without_a_baseline_is_found(layer, method):
    lost = (pl.col("neuron") == 2) & (pl.col("polarity") == "-") & (pl.col("method") == method)
    assert failed("explanations", layer.explanations.filter(~lost), layer) == ["every_neuron_is_there"]


def test_an_explanation_that_saw_what_is_scored_is_found(layer):
    scored = layer.exemplars.filter(pl.col("split") == "score")["exemplar_id"][0]
    rows = altered(layer.explanations, "exemplar_ids", lambda _: [scored])
    assert failed("explanations", rows, layer) == ["no_scored_exemplar_was_shown"]


def with_model(layer, *, fail_every=0):
    """Explanations with a language model's beside the baselines', of which every n-th answer is missing."""
    asked = explainer.requests(layer.explanations, layer.exemplars, display(layer.sequences), model="m", seed=0)
    replies = [_reply(place, '{"explanation": "cats"}', fail_every) for place in range(len(asked))]
    written = explainer.rows(asked, replies, layer.explanations, layer.exemplars, model="m")
    rows = pl.concat([layer.explanations.select(written.columns), written])
    return TABLES["explanations"].conform(rows.with_columns(run_id=pl.lit("r")))


def simulated(layer, explanations, *, fail_every=0):
    """Simulations of the baselines and of the language model, of which every n-th answer is missing."""
    asked = simulator.requests(explanations, layer.exemplars, display(layer.sequences), model="m", seed=0)
    lengths = dict(layer.exemplars.select("exemplar_id", pl.col("token_ids").list.len()).iter_rows())
    replies = [
        _reply(place, f'{{"activations": {[[n, n % 3] for n in range(lengths[key[0][0][1]])]}}}', fail_every)
        for place, (key, _) in enumerate(asked)
    ]
    rows = simulator.rows(asked, replies, explanations, layer.exemplars, model="m")
    rows = pl.concat([layer.simulations.select(rows.columns), rows])
    return TABLES["simulations"].conform(rows.with_columns(run_id=pl.lit("r")))


def _reply(place, text, fail_every):
    fails = bool(fail_every) and place % fail_every == 0
    return Reply(f"sha256:{place}", None if fails else text, "refused" if fails else None)


def test_many_missing_explanations_are_found(layer):
    assert FAILURES_ALLOWED < 1 / 2
    assert failed("explanations", with_model(layer, fail_every=2), layer) == ["few_answers_are_missing"]
    assert failed("explanations", with_model(layer), layer) == []


def test_what_a_budget_kept_from_being_asked_is_no_missing_answer(layer):
    rows = with_model(layer, fail_every=2).with_columns(pl.col("missing_because").replace("refused", "budget"))
    assert failed("explanations", rows, layer) == []


def test_dead_neurons_are_not_missing_answers(corpus, truth, made):
    sequences = corpus(("explain", [1, 2]), ("score", [1]), ("explain", [3]))
    arrays = [abs(x) + 1 for x in truth(sequences)]
    for x in arrays:
        x[:, :3] = 0
    half_dead = made(sequences, arrays)
    assert failed("explanations", with_model(half_dead), half_dead) == []


def test_a_missing_and_a_stray_simulation_are_found(layer):
    assert failed("simulations", layer.simulations.tail(-1), layer) == ["every_scored_exemplar_is_simulated"]
    shown = layer.exemplars.filter(pl.col("split") == "explain")["exemplar_id"][0]
    rows = altered(layer.simulations, "exemplar_id", lambda _: shown)
    assert failed("simulations", rows, layer) == ["every_scored_exemplar_is_simulated"]


def test_an_explanation_without_simulations_of_a_language_model_is_found(layer):
    explanations = with_model(layer)
    assert failed("simulations", layer.simulations, layer, explanations=explanations) == [
        "every_scored_exemplar_is_simulated"
    ]
    assert failed("simulations", simulated(layer, explanations), layer, explanations=explanations) == []


def test_many_missing_simulations_of_the_language_model_are_found(layer):
    explanations = with_model(layer)
    rows = simulated(layer, explanations, fail_every=2)
    assert "few_answers_are_missing" in failed("simulations", rows, layer, explanations=explanations)


@pytest.mark.parametrize("column", ["value", "ci_low", "ci_high"])
def test_an_altered_score_is_found(layer, column):
    rows = altered(layer.scores, column, lambda x: x + 1e-12, pl.col(column).is_between(0.1, 0.9))
    assert failed("scores", rows, layer) == ["score_is_reproduced"]


def test_another_reason_and_a_missing_or_added_score_are_found(layer):
    rows = altered(layer.scores, "missing_because", lambda _: "refused", pl.col("value").is_null())
    assert failed("scores", rows, layer) == ["score_is_reproduced"]
    assert failed("scores", layer.scores.tail(-1), layer) == ["score_is_reproduced"]
    added = layer.scores.head(1).with_columns(explanation_id=pl.lit("new"))
    assert failed("scores", pl.concat([layer.scores, added]), layer) == ["score_is_reproduced"]


def test_where_a_draw_is_recomputed_a_neuron_without_scores_is_found_all_the_same(layer, monkeypatch):
    monkeypatch.setattr(checks, "RECOMPUTED", 1)
    assert failed("scores", layer.scores, layer) == []
    for neuron in layer.scores.get_column("neuron").unique():
        assert failed("scores", layer.scores.filter(pl.col("neuron") != neuron), layer) == ["score_is_reproduced"]


def test_scores_of_other_simulations_are_found(layer):
    rows = layer.simulations.with_columns(pl.col("true").list.eval(pl.element() * pl.element()).alias("true"))
    assert failed("scores", layer.scores, layer, simulations=rows) == ["score_is_reproduced"]


@pytest.mark.parametrize("column", ["n_sequences", "n_tokens", "n_failed", "token_lookup", "token_linear"])
def test_an_altered_number_beside_a_score_is_found(layer, column):
    rows = altered(layer.scores, column, lambda x: x + 1, pl.col(column).is_not_null())
    assert failed("scores", rows, layer) == ["score_is_reproduced"]


@pytest.mark.parametrize("table", ["sequences", "exemplars", "simulations", "scores"])
def test_nothing_to_check_is_no_error(layer, table):
    empty = {
        "exemplars": layer.exemplars.head(0),
        "simulations": layer.simulations.head(0),
        "explanations": layer.explanations.head(0),
    }
    parents = {
        "sequences": {},
        "exemplars": {},
        "simulations": {"explanations": empty["explanations"], "exemplars": empty["exemplars"]},
        "scores": {"simulations": empty["simulations"], "explanations": empty["explanations"]},
    }[table]
    assert failed(table, rows_of(layer, table).head(0), layer, **parents) == []


def connected(*, linear=True):
    """Connections of the middle layer of three, each of four neurons; only with output tokens if not linear."""
    draw = np.random.default_rng(0)
    reading, writing = draw.normal(size=(3, 5, 4)).astype(np.float32), draw.normal(size=(3, 4, 5)).astype(np.float32)
    rows = connections(
        1,
        4,
        embeddings=draw.normal(size=(9, 5)).astype(np.float32),
        reading=reading[1] if linear else None,
        writing=writing[1],
        unembedding=draw.normal(size=(5, 9)).astype(np.float32),
        upstream=[writing[0]],
        downstream=[reading[2]],
        fingerprint="sha256:f",
        checkpoint="sha256:c",
    )
    return TABLES["connections"].conform(rows.with_columns(run_id=pl.lit("r")))


@pytest.mark.parametrize("linear", [True, False])
def test_connections_as_they_are_made_pass(layer, linear):
    rows = connected(linear=linear)
    assert failed("connections", rows, layer) == []
    assert failed("connections", rows.sample(fraction=1, shuffle=True, seed=2), layer) == []


def test_a_neuron_without_connections_is_found(layer):
    assert failed("connections", connected().head(3), layer) == ["every_neuron_is_there"]


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("sign", ["positive", "negative"])
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda strengths: strengths.list.reverse(), id="from weak to strong"),
        pytest.param(lambda strengths: strengths * -1, id="of the other sign"),
        pytest.param(lambda strengths: strengths * 0, id="zero"),
        pytest.param(lambda strengths: strengths.list.head(1), id="cut short"),
        pytest.param(lambda strengths: pl.lit(None, pl.List(pl.Float32)), id="null beside tokens"),
    ],
)
def test_a_list_of_connections_that_is_not_ranked_is_found(layer, linear, sign, spoil):
    name = f"output_{sign}_strengths"
    rows = connected(linear=linear).with_columns(
        pl.when(pl.col("neuron") == 2).then(spoil(pl.col(name))).otherwise(name).alias(name)
    )
    assert failed("connections", rows, layer) == ["lists_are_ranked"]


@pytest.mark.parametrize(("kind", "other"), [("upstream", 1), ("downstream", 1), ("upstream", 2), ("downstream", 0)])
def test_a_neuron_upstream_that_is_not_before_or_downstream_that_is_not_after_is_found(layer, kind, other):
    rows = connected().with_columns(pl.col(f"{kind}_negative_layers").list.eval(pl.element() * 0 + other))
    assert failed("connections", rows, layer) == ["layers_are_in_order"]
