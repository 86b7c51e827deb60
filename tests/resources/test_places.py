"""Places: a neuron is read from where its rows stand, and they are the rows that a search finds."""

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tables import TABLES
from resources.delta import DeltaLake
from resources.places import Places


def written(path, neurons):
    pl.DataFrame({"neuron": neurons, "at": range(len(neurons))}, schema_overrides={"neuron": pl.Int32}).write_parquet(
        path
    )
    return str(path)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=40).map(sorted), st.integers(0, 12), st.integers(0, 12))
def test_the_rows_at_a_place_are_those_of_the_neurons(tmp_path_factory, neurons, one, other):
    file = written(tmp_path_factory.mktemp("file") / "a.parquet", neurons)
    first, last = min(one, other), max(one, other)
    places = Places()
    assert places.rows([file], first, last) is None  # once is not worth the look
    found = places.rows([file], first, last)
    rows = pl.read_parquet(file)
    at = [row for _, start, length in found for row in rows.slice(start, length).get_column("at")]
    assert at == rows.filter(pl.col("neuron").is_between(first, last)).get_column("at").to_list()


def test_a_file_that_is_not_sorted_has_no_places(tmp_path):
    places, file = Places(), written(tmp_path / "a.parquet", [2, 1])
    assert [places.rows([file], 1, 1) for _ in range(3)] == [None, None, None]


def test_only_the_files_that_were_asked_for_last_are_kept(tmp_path):
    places = Places(most=1)
    a, b = written(tmp_path / "a.parquet", [1]), written(tmp_path / "b.parquet", [1])
    assert places.rows([a], 1, 1) is None
    assert places.rows([a], 1, 1) == [(a, 0, 1)]
    assert places.rows([b], 1, 1) is None
    assert places.rows([a], 1, 1) is None


def test_a_neuron_that_is_asked_for_again_is_the_same_after_every_write(tmp_path):
    table = TABLES["neuron_statistics"]
    lake = DeltaLake(tmp_path)

    def rows(values):
        known = {
            "layer": 0, "count": 1, "mean": 0.0, "variance": 0.0, "minimum": 0.0, "maximum": 0.0, "fraction_positive": 0.0,
            "histogram": [0], "quantile_boundaries": [0.0], "dead": False, "n_sequences": 1, "n_tokens": 1, "identity": "i",
            "run_id": "r", "skewness": None, "kurtosis": None,
        }  # fmt: skip
        made = [known | {"neuron": neuron, "mean": value} for neuron, value in values.items()]
        return pl.DataFrame(made, schema=table.schema)

    lake.replace("neuron_statistics", rows(dict.fromkeys(range(9), 1.0)), layer=0, record={})
    seen = [lake.read("neuron_statistics", layer=0, neurons=[4]).item(0, "mean") for _ in range(3)]
    lake.replace("neuron_statistics", rows({4: 2.0}), layer=0, neurons=[4], record={})
    seen += [lake.read("neuron_statistics", layer=0, neurons=[4]).item(0, "mean") for _ in range(3)]
    assert seen == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    for neurons in ([3, 4, 5], [0, 8], [7]):
        for _ in range(2):
            found = lake.read("neuron_statistics", layer=0, neurons=neurons)
            assert found.equals(lake.read("neuron_statistics").filter(pl.col("neuron").is_in(neurons)))
