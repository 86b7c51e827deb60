"""What the lake promises of one writer: exact slices, rows that obey their table, and no damage without an error."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LakeError
from pipeline.tables import TABLES, Table
from resources import delta, table_form
from resources.delta import DeltaLake, collect
from resources.integrity import integrity
from resources.slices import Slice

FEW = settings(max_examples=12, deadline=None)


@pytest.fixture
def lake(tmp_path: Path) -> DeltaLake:
    return DeltaLake(tmp_path / "lake")


def value(kind: Any, number: int) -> Any:
    """Something of a polars type, different for different numbers."""
    if isinstance(kind, pl.List):
        return [value(kind.inner, number), value(kind.inner, number + 1)]
    if kind == pl.Datetime("us", "UTC"):
        return datetime(2026, 1, 2, 3, 4, 5, 678_901 + number, tzinfo=UTC)
    if kind == pl.Boolean:
        return number % 2 == 0
    if kind == pl.Binary:
        return b"\xff\x00" + bytes([number % 256])
    if kind == pl.String:
        return f"o'ne \N{SNOWMAN} {number}"
    return number / 4 if kind in (pl.Float32, pl.Float64) else number


def rows_of(table: Table, count: int = 3, *, nulls: bool = False, **fixed: Any) -> pl.DataFrame:
    """Rows that the table accepts: every column filled, or null where it may be."""
    reasons = set(table.reasons.values())
    columns = {}
    for name, column in table.columns.items():
        if name in fixed:
            cells = [fixed[name]] * count
        elif name in reasons:
            cells = ["refused" if nulls else None] * count
        elif column.nullable and nulls:
            cells = [None] * count
        else:
            cells = [value(column.type, number) for number in range(count)]
        columns[name] = pl.Series(name, cells, dtype=column.type)
    return pl.DataFrame(columns)


def scores(layer: int, values: Mapping[int, float]) -> pl.DataFrame:
    """One score for each neuron."""
    frame = rows_of(TABLES["scores"], len(values), layer=layer, scorer="rsquared")
    return frame.with_columns(
        pl.Series("neuron", list(values), dtype=pl.Int32),
        pl.Series("value", list(values.values()), dtype=pl.Float64),
        pl.Series("explanation_id", [f"e{layer}.{neuron}" for neuron in values], dtype=pl.String),
    )


def stored(lake: DeltaLake, **part: Any) -> dict[tuple[int, int], float]:
    frame = lake.read("scores", **part)
    assert not frame.select("layer", "neuron").is_duplicated().any()
    return {(layer, neuron): value for layer, neuron, value in frame.select("layer", "neuron", "value").iter_rows()}


def calls(request_ids: Sequence[str], *, reply: str = "r") -> pl.DataFrame:
    return rows_of(TABLES["language_calls"], len(request_ids), reply=reply, missing_because=None).with_columns(
        pl.Series("request_id", request_ids, dtype=pl.String)
    )


def log_of(lake: DeltaLake, table: str) -> Path:
    return Path(lake.uri) / table / "_delta_log"


def data_files(lake: DeltaLake, table: str) -> list[Path]:
    return sorted((Path(lake.uri) / table).rglob("*.parquet"))


# ---- reading and writing


def test_a_lake_never_written_has_no_rows_and_makes_no_files(lake: DeltaLake) -> None:
    for name, table in TABLES.items():
        assert lake.version(name) is None
        assert lake.history(name) == []
        assert lake.rows(name) == 0
        assert lake.find_commit(name, "any") is None
        assert lake.read(name).equals(table.empty())
        assert lake.scan(name).collect_schema() == table.empty().schema
    assert not Path(lake.uri).exists()


@pytest.mark.parametrize("name", TABLES)
def test_every_table_gives_back_what_was_written(lake: DeltaLake, name: str) -> None:
    table = TABLES[name]
    for version, nulls in enumerate((False, True)):
        rows = rows_of(table, 1, nulls=nulls, **({"layer": 2} if table.by_layer else {}))
        if table.by_layer:
            lake.replace(name, rows, layer=2, record={})
        elif name in delta.WHOLE:
            lake.replace(name, rows, record={})
        else:
            rows = rows.with_columns(pl.lit(f"key {version}").alias(table.key[0]))
            lake.add(name, rows, record={})
        new = lake.read(name).filter(pl.col(table.key[0]).is_in(rows.get_column(table.key[0]).implode()))
        assert new.equals(rows)
        assert new.schema == rows.schema


@pytest.mark.parametrize("name", TABLES)
def test_every_table_keeps_its_log_and_files_for_ever(lake: DeltaLake, name: str) -> None:
    table = TABLES[name]
    write = lake.replace if table.by_layer or name in delta.WHOLE else lake.add
    write(
        name,
        rows_of(table, 1, **({"layer": 0} if table.by_layer else {})),
        record={},
        **({"layer": 0} if table.by_layer else {}),
    )
    found = DeltaTable(f"{lake.uri}/{name}")
    configuration = found.metadata().configuration
    assert configuration.items() >= table_form.PROPERTIES.items()
    assert found.metadata().partition_columns == (["layer"] if table.by_layer else [])
    assert {field.name: field.nullable for field in found.schema().fields} == {
        column: declared.nullable for column, declared in table.columns.items()
    }
    numbers = {column for column, declared in table.columns.items() if declared.type in (pl.Float32, pl.Float64)}
    rule = configuration.get("delta.constraints.finite") or ""
    assert all(f"{column} - {column}" in rule for column in numbers)
    assert bool(rule) == bool(numbers)


def test_a_layer_write_leaves_other_layers_alone(lake: DeltaLake) -> None:
    for layer, number in ((0, 1.0), (1, 2.0), (2, 3.0), (1, 4.0)):
        lake.replace("scores", scores(layer, {0: number, 7: number}), layer=layer, record={})
    assert stored(lake) == {(0, 0): 1, (0, 7): 1, (1, 0): 4, (1, 7): 4, (2, 0): 3, (2, 7): 3}
    writes = [commit for commit in lake.history("scores") if commit["commit_uuid"]]
    assert [commit["version"] for commit in writes] == [5, 4, 3, 2]
    assert [commit["operation"] for commit in lake.history("scores")[4:]] == ["ADD CONSTRAINT", "CREATE TABLE"]
    assert lake.version("scores") == 5
    assert [lake.rows("scores"), lake.rows("scores", layer=1), lake.rows("scores", layer=9)] == [6, 2, 0]


def test_a_neuron_write_leaves_every_other_row_as_it_was(lake: DeltaLake) -> None:
    records = pl.concat(
        rows_of(TABLES["activations"], 5, layer=layer, neuron=neuron) for layer in (0, 1) for neuron in range(50)
    )
    for layer in (0, 1):
        lake.replace("activations", records.filter(pl.col("layer") == layer), layer=layer, record={})
    theirs = pl.col("neuron").is_in([4, 9]) & (pl.col("layer") == 1)
    before = lake.read("activations")
    new = rows_of(TABLES["activations"], 2, layer=1, neuron=9, run_id="later")
    lake.replace("activations", new, layer=1, neurons=[9, 4, 9], record={})
    after = lake.read("activations")
    assert after.filter(~theirs).equals(before.filter(~theirs))
    assert after.filter(theirs).equals(new)
    assert lake.read("activations", layer=1, neurons=[4, 9]).equals(new)


def test_rows_of_some_neurons_are_found_and_no_others(lake: DeltaLake) -> None:
    lake.replace("scores", scores(3, {neuron: neuron / 8 for neuron in range(20)}), layer=3, record={})
    assert stored(lake, layer=3, neurons=[5]) == {(3, 5): 0.625}
    assert set(stored(lake, layer=3, neurons=[12, 2, 99])) == {(3, 2), (3, 12)}
    assert stored(lake, layer=4) == {}
    assert lake.scan("scores", layer=3).select(pl.len()).collect().item() == 20


def test_a_neuron_is_found_in_whichever_file_it_lies(lake: DeltaLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_form, "FILE_BYTES", 20_000)
    monkeypatch.setattr(table_form, "ROW_GROUP_BYTES", 20_000)
    one = rows_of(TABLES["activations"], 2, layer=0)
    neurons = pl.DataFrame({"neuron": range(9_000)}, schema={"neuron": pl.Int32})
    rows = one.drop("neuron").join(neurons, how="cross").with_columns(peak=pl.col("neuron").cast(pl.Float32).sin())
    lake.replace("activations", rows.select(one.columns), layer=0, record={})
    lake.replace("activations", one.with_columns(neuron=pl.lit(7, pl.Int32)), layer=0, neurons=[7], record={})
    assert len(data_files(lake, "activations")) > 3
    whole = lake.read("activations")
    for layer, wanted in ((0, [0]), (0, [7]), (0, [8_999]), (0, [3, 4_500, 8_998]), (0, [9_000]), (1, [0])):
        mine = whole.filter((pl.col("layer") == layer) & pl.col("neuron").is_in(wanted))
        assert lake.read("activations", layer=layer, neurons=wanted).equals(mine)
        then = lake.read("activations", layer=layer, neurons=wanted, version=lake.version("activations"))
        assert then.equals(mine)


def test_each_of_many_quick_commits_is_seen_by_another_reader(lake: DeltaLake) -> None:
    other = DeltaLake(lake.uri)
    for place in range(12):
        lake.add("language_calls", calls([f"request {place}"]), record={})
        assert other.rows("language_calls") == place + 1
        assert other.version("language_calls") == lake.version("language_calls")


def test_an_empty_slice_is_written_only_on_purpose(lake: DeltaLake) -> None:
    lake.replace("scores", scores(0, {0: 1.0, 1: 2.0}), layer=0, record={})
    with pytest.raises(
        LakeError, match=r"no rows to write to table `scores`; pass allow_empty=True to empty layer = 0"
    ):
        lake.replace("scores", TABLES["scores"].empty(), layer=0, record={})
    assert len(stored(lake)) == 2
    commit = lake.replace("scores", TABLES["scores"].empty(), layer=0, neurons=[1], record={}, allow_empty=True)
    assert commit.rows == 0
    assert stored(lake) == {(0, 0): 1.0}


def test_an_old_version_can_be_read(lake: DeltaLake) -> None:
    first = lake.replace("scores", scores(0, {0: 1.0}), layer=0, record={})
    lake.replace("scores", scores(0, {0: 2.0}), layer=0, record={})
    assert stored(lake, version=first.version) == {(0, 0): 1.0}
    assert stored(lake) == {(0, 0): 2.0}
    with pytest.raises(LakeError, match="has no version 99"):
        lake.read("scores", version=99)
    with pytest.raises(LakeError, match="has no version 0"):
        lake.read("explanations", version=0)


def test_a_lazy_frame_stays_at_its_version(lake: DeltaLake) -> None:
    lake.replace("scores", scores(0, {0: 1.0}), layer=0, record={})
    before = lake.scan("scores").select("value")
    lake.replace("scores", scores(0, {0: 2.0}), layer=0, record={})
    assert collect(before).item() == 1.0


def test_what_others_wrote_since_the_last_read_is_read(lake: DeltaLake, tmp_path: Path) -> None:
    assert stored(lake) == {}
    other, known = DeltaLake(tmp_path / "lake"), {}
    for number in range(4):
        other.replace("scores", scores(number, {0: float(number)}), layer=number, record={})
        known[number, 0] = float(number)
        assert stored(lake) == stored(lake) == known
        assert (lake.version("scores"), lake.rows("scores")) == (other.version("scores"), number + 1)


def test_a_lake_that_was_removed_and_made_again_is_read_anew(lake: DeltaLake, tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        DeltaLake(tmp_path / "lake").replace("scores", scores(0, {0: value}), layer=0, record={})
        assert stored(lake) == {(0, 0): value}
        shutil.rmtree(lake.uri)
        assert stored(lake) == {}


def test_a_frame_stays_at_its_version_when_the_same_table_is_read_and_written_on(lake: DeltaLake) -> None:
    lake.replace("scores", scores(0, {0: 1.0}), layer=0, record={})
    first, second = lake.scan("scores"), lake.scan("scores")
    lake.replace("scores", scores(0, {0: 2.0}), layer=0, record={})
    assert stored(lake) == {(0, 0): 2.0}
    assert [collect(frame).get_column("value").to_list() for frame in (first, second)] == [[1.0], [1.0]]


def test_a_commit_carries_its_record(lake: DeltaLake) -> None:
    record = {
        "run_id": "r1",
        "inputs": [{"table": "exemplars", "version": 3}],
        "text": "o'ne \N{SNOWMAN}\n",
        "none": None,
    }
    commit = lake.replace("scores", scores(0, {0: 1.0}), layer=0, record=record, commit_uuid="u-1")
    newest = lake.history("scores")[0]
    assert (newest["version"], newest["commit_uuid"], newest["record"]) == (commit.version, "u-1", record)
    assert newest["operation"] == "WRITE"
    assert newest["timestamp"].tzinfo is UTC
    assert lake.find_commit("scores", "u-1") == commit.version
    assert lake.find_commit("scores", "u-1", after=commit.version) is None
    assert lake.find_commit("scores", "u-2") is None


def test_a_record_that_is_not_json_is_refused(lake: DeltaLake) -> None:
    for record in ({"when": datetime(2026, 1, 1, tzinfo=UTC)}, {"score": float("nan")}):
        with pytest.raises(LakeError, match="the record of a write must be JSON"):
            lake.replace("scores", scores(0, {0: 1.0}), layer=0, record=record)
    assert lake.version("scores") is None


@FEW
@given(
    writes=st.lists(
        st.tuples(st.integers(0, 2), st.none() | st.sets(st.integers(0, 3), min_size=1), st.sets(st.integers(0, 3))),
        max_size=6,
    )
)
def test_any_order_of_writes_ends_where_a_dictionary_would(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, set[int] | None, set[int]]]
) -> None:
    lake = DeltaLake(tmp_path_factory.mktemp("lake"))
    model: dict[tuple[int, int], float] = {}
    for number, (layer, neurons, filled) in enumerate(writes):
        written = {neuron: float(number) for neuron in filled if neurons is None or neuron in neurons}
        model = {
            at: was for at, was in model.items() if at[0] != layer or (neurons is not None and at[1] not in neurons)
        }
        model |= {(layer, neuron): number for neuron, number in written.items()}
        part = None if neurons is None else sorted(neurons)
        lake.replace("scores", scores(layer, written), layer=layer, neurons=part, record={}, allow_empty=True)
    assert stored(lake) == model
    assert len([commit for commit in lake.history("scores") if commit["commit_uuid"]]) == len(writes)


# ---- adding


def test_rows_with_a_known_key_are_not_added_again(lake: DeltaLake) -> None:
    first = lake.add("language_calls", calls(["a", "b"], reply="first"), record={"n": 1})
    second = lake.add("language_calls", calls(["b", "c"], reply="second"), record={"n": 2})
    assert (first and first.rows, second and second.rows) == (2, 1)
    assert lake.add("language_calls", calls(["a", "c"]), record={}) is None
    assert lake.add("language_calls", TABLES["language_calls"].empty(), record={}) is None
    kept = lake.read("language_calls").select("request_id", "reply").rows()
    assert kept == [("a", "first"), ("b", "first"), ("c", "second")]
    assert [commit["record"] for commit in lake.history("language_calls")[:2]] == [{"n": 2}, {"n": 1}]


def test_checkpoints_take_no_commit_away(lake: DeltaLake) -> None:
    for number in range(102):
        lake.add(
            "materializations", rows_of(TABLES["materializations"], 1, commit_uuid=str(number)), record={"n": number}
        )
    assert list(log_of(lake, "materializations").glob("*.checkpoint.parquet"))
    records = [commit["record"] for commit in lake.history("materializations")[:-1]]
    assert [record["n"] for record in records if "n" in record] == [*range(101, -1, -1)]
    assert lake.read("materializations").height == lake.rows("materializations") == 102


def test_many_small_files_are_laid_together_and_no_row_version_or_line_is_lost(
    lake: DeltaLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "SMALL_FILES", 4)
    for number in range(11):
        assert lake.add("language_calls", calls([f"{number:02}"]), record={"n": number}) is not None
        assert len(lake.files("language_calls")) <= 4
    assert lake.read("language_calls").get_column("request_id").to_list() == [f"{number:02}" for number in range(11)]
    commits = lake.history("language_calls")
    for commit in commits[:-2]:
        before = [at for at in commits if at["version"] <= commit["version"] and "n" in at["record"]]
        assert len(lake.read("language_calls", version=commit["version"])) == len(before)
    assert [commit["record"].get("n") for commit in commits].count(None) > 2
    assert lake.add("language_calls", calls(["03"]), record={}) is None
    checks, _ = integrity(lake)
    assert [check.findings for check in checks] == [[]] * len(checks)


def test_files_that_cannot_be_laid_together_stay_as_they_are(lake: DeltaLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "SMALL_FILES", 2)
    monkeypatch.setattr(table_form, "layout", lambda rows: 1 / 0 if rows.is_empty() else None)
    for number in range(3):
        lake.add("language_calls", calls([f"{number}"]), record={})
    assert len(lake.files("language_calls")) == 3


# ---- refusing


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (scores(1, {0: 1.0}), "1 of 1 rows lie outside the slice of `scores` to replace: layer = 0 AND neuron IN"),
        (scores(0, {0: 1.0, 2: 1.0}), "1 of 2 rows lie outside the slice"),
        (pl.concat([scores(0, {0: 1.0}), scores(0, {0: 2.0})]), "1 rows of table `scores` repeat a key"),
        (scores(0, {0: float("nan")}), "`scores.value` holds 1 values that are not finite"),
        (scores(0, {}), "no rows to write"),
        (scores(0, {0: 1.0}).drop("value"), "lack columns"),
        (scores(0, {0: 1.0}).with_columns(pl.col("neuron").cast(pl.Int64)), "`scores.neuron` must be Int32"),
    ],
)
def test_rows_that_break_a_rule_are_refused_and_nothing_is_written(
    lake: DeltaLake, rows: pl.DataFrame, message: str
) -> None:
    with pytest.raises(LakeError, match=message):
        lake.replace("scores", rows, layer=0, neurons=[0, 1], record={})
    assert lake.version("scores") is None
    assert not Path(lake.uri).exists()


@pytest.mark.parametrize(
    ("table", "part", "message"),
    [
        ("scores", {}, "say which `layer`"),
        ("scores", {"neurons": [1]}, "need a layer"),
        ("scores", {"layer": 0, "neurons": []}, "no neurons of layer 0 were named"),
        ("scores", {"layer": True}, r"`layer` \(=True\) must be an integer from 0"),
        ("scores", {"layer": -1}, r"`layer` \(=-1\) must be an integer from 0"),
        ("scores", {"layer": 2**31}, "must be an integer from 0 to 2147483647"),
        ("scores", {"layer": "0 OR 1 = 1"}, "must be an integer"),
        ("scores", {"layer": 0, "neurons": [1.0]}, r"`neuron` \(=1.0\) must be an integer"),
        ("subject_layers", {"layer": 0, "neurons": [1]}, "has no neurons"),
        ("sequences", {"layer": 0}, "has no layers"),
        ("language_calls", {}, "`language_calls` only grows.* use `add`"),
        ("materializations", {}, "`materializations` only grows.* use `add`"),
        ("neurons", {}, "there is no table 'neurons'; the tables are sequences, subject_layers"),
        ("../scores", {}, "there is no table"),
    ],
)
def test_a_slice_that_is_none_is_refused(lake: DeltaLake, table: str, part: dict[str, Any], message: str) -> None:
    rows = TABLES[table].empty() if table in TABLES else pl.DataFrame()
    with pytest.raises(LakeError, match=message):
        lake.replace(table, rows, **part, record={}, allow_empty=True)
    assert not Path(lake.uri).exists()


def test_a_table_with_layers_takes_no_loose_rows(lake: DeltaLake) -> None:
    with pytest.raises(LakeError, match="`scores` has layers, so its rows are replaced by slice; use `replace`"):
        lake.add("scores", scores(0, {0: 1.0}), record={})


@given(layer=st.integers(0, 2**31 - 1), neurons=st.none() | st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5))
def test_predicates_hold_words_and_integers_only(layer: int, neurons: list[int] | None) -> None:
    predicate = Slice.of(TABLES["scores"], layer, neurons).predicate
    assert predicate is not None
    words = {
        word for word in predicate.replace("(", " ").replace(")", " ").replace(",", " ").split() if not word.isdigit()
    }
    assert words <= {"layer", "neuron", "AND", "IN", "="}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), None])
def test_delta_itself_refuses_numbers_that_are_not_finite(lake: DeltaLake, number: float | None) -> None:
    rows = rows_of(TABLES["activations"], 1, layer=0)
    lake.replace("activations", rows, layer=0, record={})
    with pytest.raises(Exception, match="validation check"):
        write_deltalake(
            DeltaTable(f"{lake.uri}/activations"),
            rows.with_columns(pl.lit(number, dtype=pl.Float32).alias("peak")),
            mode="append",
        )
    assert lake.read("activations").equals(rows)


def test_the_largest_number_is_finite(lake: DeltaLake) -> None:
    largest = 3.4028234663852886e38
    rows = rows_of(TABLES["activations"], 1, layer=0).with_columns(pl.lit(largest, dtype=pl.Float32).alias("peak"))
    lake.replace("activations", rows, layer=0, record={})
    assert lake.read("activations").get_column("peak").to_list() == [largest]


# ---- layout


def test_reading_one_neuron_touches_few_rows(lake: DeltaLake) -> None:
    neurons = 300
    one = rows_of(TABLES["activations"], 8, layer=0)
    one = one.with_columns(activations=pl.Series([[0.5] * 64] * len(one), dtype=pl.List(pl.Float32)))
    rows = pl.concat(one.with_columns(pl.lit(neuron, dtype=pl.Int32).alias("neuron")) for neuron in range(neurons))
    lake.replace("activations", rows, layer=0, record={})
    (file,) = data_files(lake, "activations")
    assert sum(row_groups(file)) == len(rows)
    # A row is of 64 activations and more, of 4 bytes each.
    assert max(row_groups(file)) <= 2**18 // (64 * 4)
    lake.replace("activations", one.with_columns(neuron=pl.lit(5, pl.Int32)), layer=0, neurons=[5], record={})
    newest = [Path(lake.uri) / "activations" / path for path in added(lake, "activations")]
    assert max(size for file in newest for size in row_groups(file)) <= 2**18 // (64 * 4)
    assert lake.rows("activations") == neurons * 8


def row_groups(file: Path) -> list[int]:
    """Rows in each row group, or part of one: polars reads none together with another."""
    return [len(chunk) for chunk in pl.scan_parquet(file).select("rank").collect_batches(maintain_order=True)]


def test_rows_are_found_by_their_keys_whoever_wrote_them(lake: DeltaLake, tmp_path: Path) -> None:
    sought = pl.DataFrame({"request_id": ["b", "c", "x"]})
    assert collect(lake.find("language_calls", sought)).is_empty()
    for name in "abc":
        other = DeltaLake(lake.uri) if name == "b" else lake
        other.add("language_calls", rows_of(TABLES["language_calls"], 1, request_id=name), record={})
    found = collect(lake.find("language_calls", sought)).sort("request_id")
    assert found["request_id"].to_list() == ["b", "c"]
    assert found.schema == TABLES["language_calls"].schema
    with pytest.raises(LakeError, match="has layers"):
        lake.find("scores", sought)


def added(lake: DeltaLake, table: str) -> list[str]:
    newest = max(log_of(lake, table).glob("*.json"))
    actions = [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()]
    return [action["add"]["path"] for action in actions if "add" in action]


def test_a_small_table_is_one_compressed_file_and_its_texts_stay_out_of_the_log(lake: DeltaLake) -> None:
    lake.add("language_calls", calls(["a"], reply="a long reply " * 1000), record={})
    (path,) = added(lake, "language_calls")
    assert "zstd" in path
    assert "a long reply" not in max(log_of(lake, "language_calls").glob("*.json")).read_text(encoding="utf-8")


# ---- where a lake may be


@pytest.mark.parametrize("folder", ["a b", "caf\u00e9 \u6f22", "it's #1 {ok}", "a/b/../c"])
def test_a_lake_may_be_in_any_ordinary_folder(tmp_path: Path, folder: str) -> None:
    lake = DeltaLake(tmp_path / folder)
    lake.replace("scores", scores(0, {0: 1.0, 1: 1.0}), layer=0, record={})
    lake.replace("scores", scores(0, {1: 2.0}), layer=0, neurons=[1], record={})
    assert stored(DeltaLake(str(tmp_path / folder)), layer=0) == {(0, 0): 1.0, (0, 1): 2.0}
    assert (tmp_path / folder).resolve().joinpath("scores", "_delta_log").is_dir()


@pytest.mark.parametrize("folder", ["100%", "a*", "run=3", "a?", "a[1]", "a\\b", "a\tb"])
def test_a_folder_that_delta_or_polars_would_misread_is_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(LakeError, match="must not hold any of"):
        DeltaLake(tmp_path / folder)


@pytest.mark.parametrize("uri", ["", " ", "file:///tmp/lake"])
def test_an_address_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(LakeError, match="must be a folder such as `lake`"):
        DeltaLake(uri)


# ---- damage


def test_a_truncated_data_file_is_an_error_and_no_panic(lake: DeltaLake) -> None:
    lake.replace("scores", scores(0, {0: 1.0}), layer=0, record={})
    (file,) = data_files(lake, "scores")
    whole = file.read_bytes()
    for length in (0, 3, 4, 8, 12, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(LakeError, match="a data file of the lake cannot be read"):
            lake.read("scores")
    file.unlink()
    with pytest.raises(LakeError, match="a data file of the lake cannot be read"):
        lake.read("scores")
    with pytest.raises(LakeError, match="nothing was written to layer = 0 AND neuron = 0"):
        lake.replace("scores", scores(0, {0: 2.0}), layer=0, neurons=[0], record={})


@pytest.mark.parametrize("which", [0, 2, 3])
def test_a_commit_without_bytes_is_named(lake: DeltaLake, which: int) -> None:
    for number in range(2):
        lake.replace("scores", scores(number, {0: 1.0}), layer=number, record={})
    commit = log_of(lake, "scores") / f"{which:020}.json"
    commit.write_bytes(b"")
    for use in (lake.read, lake.version, lake.history, lake.rows):
        with pytest.raises(LakeError, match=f"{commit.name} has no bytes"):
            use("scores")
    with pytest.raises(LakeError, match=f"{commit.name} has no bytes"):
        lake.replace("scores", scores(5, {0: 1.0}), layer=5, record={})


@pytest.mark.parametrize("damage", [b"\0" * 9, b'{"commitInfo":{"times', b"\xff\n"])
def test_a_torn_commit_is_an_error(lake: DeltaLake, damage: bytes) -> None:
    commit = lake.replace("scores", scores(0, {0: 1.0}), layer=0, record={})
    (log_of(lake, "scores") / f"{commit.version:020}.json").write_bytes(damage)
    with pytest.raises(LakeError, match=r"damaged|cannot be read"):
        lake.read("scores")


@pytest.mark.parametrize("name", ["00000000000000000000.json", "00000000000000000007.json"])
def test_a_log_without_its_beginning_is_damage_and_no_empty_table(lake: DeltaLake, name: str) -> None:
    commit = lake.replace("sequences", rows_of(TABLES["sequences"]), record={})
    log = log_of(lake, "sequences")
    (log / f"{0:020}.json").unlink()
    (log / f"{commit.version:020}.json").rename(log / name)
    with pytest.raises(LakeError, match="is damaged"):
        lake.read("sequences")
    with pytest.raises(LakeError, match="is damaged"):
        lake.replace("sequences", rows_of(TABLES["sequences"]), record={})


def test_a_table_of_another_shape_is_refused(lake: DeltaLake) -> None:
    write_deltalake(f"{lake.uri}/scores", scores(0, {0: 1.0}).drop("value"))
    with pytest.raises(LakeError, match=r"differs from what this version of neuronledger declares in \['value'\]"):
        lake.read("scores")


@pytest.mark.parametrize("killed", [False, True])
def test_a_lake_made_before_a_column_was_added_is_read_and_written(
    lake: DeltaLake, monkeypatch: pytest.MonkeyPatch, *, killed: bool
) -> None:
    now = TABLES["scores"]
    columns = {name: column for name, column in now.columns.items() if not column.added}
    monkeypatch.setitem(TABLES, "scores", replace(now, columns=columns))
    lake.replace("scores", scores(0, {0: 1.0}).select(list(columns)), layer=0, record={})
    monkeypatch.setitem(TABLES, "scores", now)

    old = lake.read("scores")
    assert old.select("value", "p_value").rows() == [(1.0, None)]
    assert {check.id: check.outcome for check in integrity(lake)[0]}["A6"] == "clean"
    if killed:
        DeltaTable(f"{lake.uri}/scores").alter.drop_constraint("finite")
    lake.replace("scores", scores(1, {0: 2.0}), layer=1, record={})

    assert lake.read("scores").select("layer", "value", "p_value").rows() == [(0, 1.0, None), (1, 2.0, 0.0)]
    assert lake.read("scores", layer=0).equals(old)
    stored = DeltaTable(f"{lake.uri}/scores").metadata().configuration["delta.constraints.finite"]
    assert "p_value" in stored
    assert lake.version("scores") == DeltaTable(f"{lake.uri}/scores").version()
    assert {check.id: check.outcome for check in integrity(lake)[0]}["A6"] == "clean"


def test_a_writer_killed_while_it_made_a_table_is_no_harm(lake: DeltaLake) -> None:
    lake.replace("scores", scores(0, {0: 1.0}), layer=0, record={})
    for version in (2, 1):
        (log_of(lake, "scores") / f"{version:020}.json").unlink()
    assert lake.version("scores") is None
    assert lake.read("scores").is_empty()
    lake.replace("scores", scores(0, {0: 2.0}), layer=0, record={})
    assert "delta.constraints.finite" in DeltaTable(f"{lake.uri}/scores").metadata().configuration
    assert stored(lake) == {(0, 0): 2.0}


# ---- on the disk


def test_a_write_is_forced_to_the_disk_before_it_counts(lake: DeltaLake, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: set[Path] = set()

    def note(descriptor: int) -> None:
        forced.add(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(delta.os, "fsync", note)
    lake.replace("scores", scores(3, {0: 1.0, 1: 2.0}), layer=3, record={})
    folder, log = Path(lake.uri) / "scores", log_of(lake, "scores")
    ledger = folder.parent / "_ledger"
    files = {path for path in (*folder.rglob("*"), *ledger.rglob("*.jsonl")) if path.is_file()}
    assert forced == files | {folder, folder / "layer=3", log, ledger, folder.parent, folder.parent.parent}


def test_a_write_that_the_disk_does_not_take_is_no_success(lake: DeltaLake, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(descriptor: int) -> None:
        raise OSError("Input/output error")

    lake.replace("scores", scores(0, {0: 1.0}), layer=0, record={})
    monkeypatch.setattr(delta.os, "fsync", failed)
    with pytest.raises(LakeError, match=r"version 3 of .*scores is written, but may not outlast a power cut: Input/"):
        lake.replace("scores", scores(1, {0: 2.0}), layer=1, record={})


# ---- errors that are not what they seem


def test_an_error_after_the_commit_is_a_commit(lake: DeltaLake, monkeypatch: pytest.MonkeyPatch) -> None:
    def written_then_failed(*args: Any, **kwargs: Any) -> None:
        write_deltalake(*args, **kwargs)
        raise OSError("No space left on device")

    lake.replace("scores", scores(0, {0: 1.0}), layer=0, record={})
    monkeypatch.setattr(delta, "write_deltalake", written_then_failed)
    commit = lake.replace("scores", scores(1, {0: 2.0}), layer=1, record={}, commit_uuid="mine")
    assert lake.history("scores")[0]["commit_uuid"] == "mine"
    assert commit.version == lake.version("scores")


def test_an_error_before_the_commit_says_that_nothing_was_written(
    lake: DeltaLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    lake.replace("scores", scores(0, {0: 1.0}), layer=0, record={})
    monkeypatch.setattr(delta, "write_deltalake", failed)
    with pytest.raises(LakeError, match=r"nothing was written to layer = 1 of .*scores: No space left"):
        lake.replace("scores", scores(1, {0: 2.0}), layer=1, record={})
    assert stored(lake) == {(0, 0): 1.0}


def test_a_wish_to_stop_is_not_taken_for_a_failure(lake: DeltaLake, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(delta, "write_deltalake", stopped)
    with pytest.raises(KeyboardInterrupt):
        lake.replace("scores", scores(0, {0: 1.0}), layer=0, record={})


def test_the_version_is_that_of_our_own_commit(lake: DeltaLake, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(table: DeltaTable, *args: Any, **kwargs: Any) -> None:
        write_deltalake(table, *args, **kwargs)
        theirs = kwargs | {"predicate": "layer = 9", "commit_properties": CommitProperties(custom_metadata={"by": "x"})}
        write_deltalake(table, scores(9, {0: 9.0}), **theirs)

    lake.replace("scores", scores(0, {0: 1.0}), layer=0, record={})
    monkeypatch.setattr(delta, "write_deltalake", overtaken)
    commit = lake.replace("scores", scores(1, {0: 2.0}), layer=1, record={})
    assert lake.version("scores") == commit.version + 1
    assert lake.find_commit("scores", commit.commit_uuid) == commit.version


def test_a_slice_says_which_runs_wrote_it(lake):
    lake.replace("scores", scores(0, {1: 0.1, 2: 0.2}).with_columns(run_id=pl.lit("first")), layer=0, record={})
    lake.replace("scores", scores(0, {2: 0.3}).with_columns(run_id=pl.lit("second")), layer=0, neurons=[2], record={})

    assert lake.run_ids("scores", layer=0) == {"first", "second"}
    assert lake.run_ids("scores", layer=1) == set()


def test_a_slice_says_which_commits_wrote_what_it_holds_now(lake):
    first = lake.replace("scores", scores(0, {1: 0.1, 2: 0.2}), layer=0, record={})
    other = lake.replace("scores", scores(1, {1: 0.4}), layer=1, record={})
    assert lake.slices("scores") == {
        0: (2, frozenset([first.commit_uuid])),
        1: (1, frozenset([other.commit_uuid])),
    }
    again = lake.replace("scores", scores(0, {1: 0.3}), layer=0, record={})
    assert lake.slices("scores")[0] == (1, frozenset([again.commit_uuid]))
    # Laid out anew by somebody else.
    DeltaTable(f"{lake.uri}/scores").optimize.compact()
    lake.replace("scores", scores(1, {1: 0.4, 2: 0.5}), layer=1, neurons=[1, 2], record={})
    DeltaTable(f"{lake.uri}/scores").optimize.z_order(["neuron"])
    assert {by for _, by in lake.slices("scores").values()} == {frozenset([None])}
    assert lake.slices("exemplars") == {}
