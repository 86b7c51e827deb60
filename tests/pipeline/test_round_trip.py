"""What is exported comes back by an import: laws over whatever explanations, activations and tokens may hold."""

import io

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import (
    csv_format,
    imports,
    lines_import,
    neuronpedia_format,
    neuronpedia_import,
    openai_format,
    openai_import,
)
from pipeline.tables import TABLES

NEURONS = [3, 4]
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
NUMBERS = st.floats(-(2.0**20), 2.0**20, width=32)
law = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def lake(some_corpus, truth, made):
    sequences = some_corpus(160, seed=4)
    return made(sequences, truth(sequences))


def replaced(rows, name, draw, strategy, *, count=None):
    """The rows with a column of drawn values."""
    drawn = draw(st.lists(strategy, min_size=1, max_size=8))
    values = [drawn[place % len(drawn)] for place in range(len(rows))]
    return rows.with_columns(pl.Series(name, values, dtype=rows.schema[name]))


@st.composite
def lakes(draw, lake):
    """Two neurons of a lake with drawn words, tokens and activations."""
    mine = pl.col("neuron").is_in(NEURONS)
    explanations = replaced(lake.explanations.filter(mine), "text", draw, WORDS)
    explanations = explanations.with_columns(pl.lit(None, pl.String).alias("missing_because"))
    spelled = draw(st.lists(st.binary(max_size=4), min_size=1, max_size=6))
    sequences = lake.sequences.with_columns(
        pl.Series("token_bytes", [[spelled[place % len(spelled)] + str(row).encode() for place in range(len(ids))]
                                  for row, ids in enumerate(lake.sequences.get_column("token_ids"))])
    )  # fmt: skip
    numbers = draw(st.lists(NUMBERS, min_size=1, max_size=9))

    def numbered(rows, name):
        values = [
            [numbers[(row + place) % len(numbers)] for place in range(length)]
            for row, length in enumerate(rows.get_column(name).list.len())
        ]
        return rows.with_columns(pl.Series(name, values, dtype=pl.List(pl.Float32)))

    activations = numbered(lake.activations.filter(mine), "activations")
    simulations = numbered(numbered(lake.simulations.filter(mine), "expected"), "true")
    return {
        "explanations": explanations, "sequences": sequences, "texts": openai_format.texts(sequences), "activations": activations,
        "simulations": simulations, "scores": lake.scores.filter(mine), "exemplars": lake.exemplars.filter(mine),
        "statistics": lake.statistics.filter(mine),
    }  # fmt: skip


def back(*found):
    batch = imports.batch(found, [], source="s")
    rows = {name: TABLES[name].conform(frame.with_columns(run_id=pl.lit("r"))) for name, frame in batch.frames.items()}
    return rows, dict(batch.sequences.select("sequence_id", "tokens").iter_rows())


def as_files(rows, kind):
    for neuron, text in rows.select("neuron", "text").iter_rows():
        yield openai_import.parse(
            text, openai_import.PATH.fullmatch(f"{kind}/3/{neuron}.json"), source="s", path="p", file=imports.file_hash(text.encode())
        )  # fmt: skip


@law
@given(data=st.data())
def test_openais_form_brings_back_records_words_and_simulations(lake, data):
    ours = data.draw(lakes(lake))
    written = openai_format.neuron_records(ours["activations"], ours["texts"], ours["statistics"])
    said = openai_format.explanations(
        ours["explanations"], ours["simulations"], ours["scores"], ours["exemplars"], ours["texts"]
    )
    found, tokens = back(*as_files(written, "collated-activations"), *as_files(said, "explanations"))
    words = dict(ours["texts"].select("sequence_id", "tokens").iter_rows())
    split = dict(ours["texts"].select("sequence_id", "split").iter_rows())

    stored = {
        (
            row["neuron"],
            row["stratum"],
            tuple(words[row["sequence_id"]]),
            tuple(row["activations"]),
            split[row["sequence_id"]],
        )
        for row in ours["activations"].iter_rows(named=True)
    }
    records = [
        (row["neuron"], row["stratum"], tuple(tokens[row["sequence_id"]]), tuple(row["activations"]), row["split"])
        for row in found["imported_records"].iter_rows(named=True)
    ]
    # Quantile records are for nothing in their form; of the others each comes back in the split that it has.
    assert {one[:4] for one in records} <= {one[:4] for one in stored}
    assert {one for one in records if one[1] in ("top", "random")} <= stored
    assert sum(one[1] == "top" for one in records) == len(NEURONS) * 20

    at = ["neuron", "text"]
    assert found["imported_explanations"].select(at).sort(at).equals(ours["explanations"].select(at).sort(at))
    carried = ours["simulations"].filter(pl.col("scale") != "weight")
    texts_of = dict(ours["explanations"].select("explanation_id", "text").iter_rows())
    theirs = dict(found["imported_explanations"].select("explanation_id", "text").iter_rows())

    def played(rows, names):
        return sorted(
            (names[row["explanation_id"]], row["stratum"], tuple(row["expected"]), tuple(row["true"]))
            for row in rows.iter_rows(named=True)
        )

    assert played(found["imported_simulations"], theirs) == played(carried, texts_of)
    moments = ["neuron", "mean", "variance", "skewness", "kurtosis", "quantile_boundaries"]
    assert (
        found["imported_neurons"]
        .select(moments)
        .sort("neuron")
        .equals(ours["statistics"].select(moments).sort("neuron"))
    )


@law
@given(data=st.data())
def test_neuronpedias_form_brings_back_words_and_the_strongest_records(lake, data):
    ours = data.draw(lakes(lake))
    how = {"model": "m", "date": "2026-01-01"}
    written = {
        "activations": neuronpedia_format.activations(ours["activations"], ours["texts"], ours["statistics"], **how),
        "explanations": neuronpedia_format.explanations(ours["explanations"], **how),
    }
    parsed = [
        neuronpedia_import.parse(
            "\n".join(rows.get_column("text")), neuronpedia_import.PATH.fullmatch(f"v1/m/3/{kind}/batch-0.jsonl.gz"),
            source="s", path="p", file=kind,
        )
        for kind, rows in written.items()
    ]  # fmt: skip
    assert [one.rejected for one in parsed] == [[], []]
    found, tokens = back(*parsed)
    at = ["neuron", "text"]
    assert found["imported_explanations"].select(at).sort(at).equals(ours["explanations"].select(at).sort(at))
    assert len(found["imported_records"]) == len(written["activations"]) > len(NEURONS) * 20
    words = dict(ours["texts"].select("sequence_id", "tokens").iter_rows())
    stored = {
        (row["neuron"], tuple(words[row["sequence_id"]]), tuple(row["activations"]))
        for row in ours["activations"].iter_rows(named=True)
    }
    assert {
        (row["neuron"], tuple(tokens[row["sequence_id"]]), tuple(row["activations"]))
        for row in found["imported_records"].iter_rows(named=True)
    } <= stored


@law
@given(data=st.data())
def test_csv_brings_back_every_explanation_with_its_author_method_and_side(lake, data):
    ours = data.draw(lakes(lake))["explanations"]
    gone = data.draw(st.integers(0, len(ours)))
    rows = ours.with_row_index("row").with_columns(
        pl.when(pl.col("row") >= gone).then("text").alias("text"),
        pl.when(pl.col("row") < gone).then(pl.lit("refused")).alias("missing_because"),
    )
    text = csv_format.text("explanations", rows.drop("row"), header=True)
    found = lines_import.parse_csv(text, lines_import.CSV.fullmatch("explanations.csv"), source="s", path="p", file="f")
    assert found.rejected == []
    came = back(found)[0]["imported_explanations"]
    at = ["neuron", "polarity", "method", "explainer", "text"]
    assert sorted(map(str, came.select(at).rows())) == sorted(map(str, rows.select(at).rows()))
    assert pl.read_csv(io.StringIO(text), infer_schema=False).columns[:3] == ["neuron", "explanation", "author"]


CARRIED = {
    "activations": {
        "layer", "neuron", "polarity", "stratum", "sequence_id", "activations", "peak",
    },
    "explanations": {"layer", "neuron", "polarity", "text"},
    "simulations": {
        "layer", "neuron", "polarity", "explanation_id", "stratum", "scale", "expected", "distribution_values",
        "distribution_probabilities", "true",
    },
    "neuron_statistics": {"layer", "neuron", "mean", "variance", "skewness", "kurtosis", "quantile_boundaries"},
}  # fmt: skip
"""Columns whose content OpenAI's files have a field for; an id stands for what it names."""
SAID = {
    "statistics other than four moments": {
        "count", "minimum", "maximum", "fraction_positive", "histogram", "dead", "n_sequences", "n_tokens",
    },
    "explanations that are missing, and why": {"missing_because", "coverage"},
    "method, explainer, simulator, prompts, requests": {
        "method", "explainer", "simulator", "prompt_hash", "request_id", "request_ids", "other_request_ids", "parent_id", "exemplar_ids", "exemplar_id",
        "explanation_id", "identity", "run_id",
    },
    "the order of the records stands for the split": {"rank"},
    "token ids and bytes": {"peak_token"},
}  # fmt: skip
"""Which line of the list that is printed speaks of each column that does not come back."""


def test_each_column_comes_back_or_is_in_the_list_of_what_openais_form_does_not_carry():
    said = " ".join(openai_format.NOT_CARRIED)
    for line in SAID:
        assert line in said
    spoken_of = set().union(*SAID.values())
    for table, carried in CARRIED.items():
        assert set(TABLES[table].columns) - carried <= spoken_of, table
