"""A lake from Python."""

import re
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from neuronledger import open_lake
from pipeline.errors import LakeError, NeuronLedgerError, SettingsError

RECIPES = Path(__file__).parents[2] / "docs" / "reading.md"


@pytest.fixture(scope="module")
def lake(made):
    return open_lake(made.lake.uri)


def test_a_table_is_lazy_and_holds_what_the_store_holds(lake, made):
    frame = lake.table("scores", layer=1)
    assert isinstance(frame, pl.LazyFrame)
    assert_frame_equal(frame.collect(), made.table("scores", layer=1), check_row_order=False)


def test_a_neuron_is_found_by_its_name(lake):
    neuron = lake["0:5"]
    assert (neuron.layer, neuron.neuron) == (0, 5)
    assert any(said.scores for side in neuron.sides for said in side.explanations)


def test_a_name_that_is_none_and_a_neuron_that_is_not_there_are_said(lake):
    with pytest.raises(SettingsError, match="write layer:neuron, such as 5:131"):
        lake["five"]
    with pytest.raises(NeuronLedgerError, match="there is no 0:999999"):
        lake["0:999999"]


def test_a_folder_without_a_lake_is_refused_and_stays_empty(tmp_path):
    with pytest.raises(LakeError, match="there is no lake at"):
        open_lake(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_lake_says_what_is_in_it(lake):
    assert "scores" in lake
    assert repr(lake).startswith(f"<lake {lake.uri}: sequences, ")


def test_the_files_of_a_table_hold_its_rows_and_of_old_versions_none(copied):
    copied.type("run", "--neurons", "0:1")
    lake = open_lake(copied.lake.uri)
    rows = pl.concat([pl.read_parquet(file, hive_partitioning=True) for file in lake.files("scores")])
    assert len(rows) == copied.lake.rows("scores")
    assert lake.files("sequences")
    assert all("layer=1" in file for file in lake.files("scores", layer=1))


def recipe(number):
    """The lines of the Python block after the number."""
    text = RECIPES.read_text(encoding="utf-8")
    return re.search(rf"\*\*{re.escape(number)}.*?```python\n(.*?)```", text, re.DOTALL)[1]


@pytest.mark.parametrize(
    ("number", "name", "columns"),
    [
        ("2.", "best", {"layer", "neuron", "method", "value", "text"}),
        ("3.", "gain", {"context_gain", "token_lookup"}),
        ("4.", "missing", {"method", "missing_because", "len"}),
        ("5.", "before", {"scorer", "value"}),
    ],
)
def test_each_recipe_of_the_documentation_gives_rows(lake, number, name, columns):
    said = {"lake": lake, "pl": pl}
    exec(recipe(number), said)
    assert len(said[name])
    assert columns <= set(said[name].columns)


def test_the_recipe_for_one_neuron_gives_its_numbers(lake):
    said = {"lake": lake}
    exec(recipe("1."), said)
    assert said["neuron"].statistics["n_tokens"] > 0


def test_duckdb_reads_the_files_of_a_table(lake):
    duckdb = pytest.importorskip("duckdb")
    line = recipe("DuckDB").replace("duckdb.sql", "found = duckdb.sql")
    said = {"lake": lake}
    exec(line, said)
    rows = said["found"].fetchall()
    expected = lake.table("scores").select(pl.struct("layer", "method").n_unique()).collect().item()
    assert duckdb.__version__
    assert len(rows) == expected


def test_pandas_reads_the_files_of_a_table(lake):
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    said = {"lake": lake}
    exec(recipe("pandas"), said)
    assert len(said["scores"]) == lake.table("scores", layer=0).collect().height
