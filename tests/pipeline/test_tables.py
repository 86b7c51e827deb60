"""Tables: every rule of a table is held to, and the message names what broke it."""

import math
from dataclasses import replace

import polars as pl
import pytest

from pipeline.errors import LakeError
from pipeline.tables import TABLES, Column, Table, stamped

T = Table(
    name="t",
    doc="A table for tests.",
    key=("layer", "id"),
    sort=("layer", "x", "id"),
    lengths=("a", "b"),
    reasons={"value": "why"},
    columns={
        "layer": Column(pl.Int32, "a layer"),
        "id": Column(pl.String, "an id"),
        "x": Column(pl.Float32, "a number"),
        "a": Column(pl.List(pl.Float32), "numbers"),
        "b": Column(pl.List(pl.List(pl.Float32)), "lists of numbers", nullable=True),
        "value": Column(pl.Float64, "a value", nullable=True),
        "why": Column(pl.String, "a reason", nullable=True),
    },
)


def rows(*changes):
    """As many rows as there are changes, each right but for its change."""
    right = {"layer": 0, "x": 1.0, "a": [1.0, 2.0], "b": [[1.0], []], "value": 0.5, "why": None}
    return pl.DataFrame(
        [{"id": str(place), **right, **change} for place, change in enumerate(changes)], schema=T.schema
    )


def test_right_rows_come_back_sorted_with_columns_in_order():
    frame = T.conform(rows({"x": 3.0}, {"x": 1.0}, {"x": 2.0, "b": None}).select(reversed(T.schema)))
    assert frame.columns == list(T.schema)
    assert frame.get_column("id").to_list() == ["1", "2", "0"]


def test_a_column_that_was_added_later_may_be_left_out_and_is_null_then():
    later = replace(T, columns=T.columns | {"late": Column(pl.String, "a text", nullable=True, added=True)})
    assert later.conform(rows({})).get_column("late").to_list() == [None]


def test_no_rows_are_right_for_every_table():
    for table in TABLES.values():
        assert table.conform(table.empty()).is_empty()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (rows({}).drop("x"), r"`t` lack columns \['x'\] and have unknown columns \[\]"),
        (rows({}).with_columns(y=1), r"unknown columns \['y'\]"),
        (rows({}).rename({"x": "y"}), r"lack columns \['x'\] and have unknown columns \['y'\]"),
        (rows({}).cast({"layer": pl.Int64}), "`t.layer` must be Int32, not Int64"),
        (rows({}).cast({"a": pl.List(pl.Float64)}), r"`t.a` must be List\(Float32\), not List\(Float64\)"),
        (rows({}, {"x": None}), "`t.x` is null in 1 of 2 rows and must not be"),
        (rows({}, {"a": None}), "`t.a` is null in 1 of 2 rows"),
        (rows({"x": math.nan}, {"x": -math.inf}), "`t.x` holds 2 values that are not finite"),
        (rows({"a": [math.inf, 1.0]}), "`t.a` holds 1 values that are not finite"),
        (rows({"b": [[], [1.0, math.nan]]}), "`t.b` holds 1 values that are not finite"),
        (rows({"value": math.nan}), "`t.value` holds 1 values that are not finite"),
        (
            rows({"id": "q"}, {"id": "q"}, {"id": "q", "layer": 1}),
            r"1 rows of table `t` repeat a key \('layer', 'id'\)",
        ),
        (rows({"a": [1.0]}), r"1 rows of table `t` have \('a', 'b'\) of unequal lengths"),
        (rows({"a": [], "b": [[]]}), "of unequal lengths"),
        (rows({"value": None}), "1 rows of table `t` must have either `value` or `why`, never both or neither"),
        (rows({"why": "refused"}), "never both or neither"),
        (
            rows({"value": None, "why": "tired"}),
            r"`t.why` holds \['tired'\]; known reasons are \['budget', 'constant_activation'",
        ),
    ],
)
def test_each_fault_is_refused_by_name(frame, message):
    with pytest.raises(LakeError, match=message):
        T.conform(frame)


def test_a_null_inside_a_list_is_refused():
    with pytest.raises(LakeError, match=r"`t\.a`"):
        T.conform(rows({"a": [1.0, None]}))


def test_stamped_rows_carry_where_they_are_from():
    frame = stamped(pl.DataFrame({"x": [1, 2]}), run_id="r", identities=iter(["i", "j"]))
    assert frame.rows() == [(1, "i", "r"), (2, "j", "r")]
    assert stamped(pl.DataFrame({"x": []}), run_id="r", identities=[]).schema["run_id"] == pl.String
