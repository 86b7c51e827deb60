"""The form of a table in Delta: its schema, the rules that Delta holds all writers to, and how its files are laid out.

What a table is stands in `pipeline.tables`; this is how Delta is told. Where a rule surprises, its reason stands beside
it, from measurements on deltalake 1.6 and polars 2.1.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import cast

import polars as pl
from deltalake import ColumnProperties, DeltaTable, Field, Schema, WriterProperties
from deltalake.schema import ArrayType, PrimitiveType

from pipeline.tables import Table, Type

PROPERTIES: dict[str, str | None] = {
    # Delta's defaults drop commits, and the provenance in them, after 30 days.
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
    "delta.checkpointInterval": "100",
}

OFTEN: dict[str, str | None] = {"delta.checkpointInterval": "10"}
"""On an object store, where opening a table costs two requests for each commit since the last checkpoint."""

FILE_BYTES = 4 * 2**20
"""Size of a data file: rewriting one neuron rewrites one file, and reading one opens few."""
ROW_GROUP_BYTES = 2**18
"""Size of a row group before it is compressed. To read a neuron, one is decoded, and what all of them are is read first:
larger groups cost in the one, smaller ones in the other."""
OTHER_ROW_GROUP = 4096
"""Rows in a row group where rows belong to no neuron."""
LARGE_ROW_GROUP_BYTES = 4 * 2**20
"""Most bytes of such a row group where rows hold files: to read one of them, no more than this is decoded."""

_DELTA_TYPES: dict[Type, str] = {
    pl.Int8: "byte",
    pl.Int32: "integer",
    pl.Int64: "long",
    pl.Float32: "float",
    pl.Float64: "double",
    pl.String: "string",
    pl.Binary: "binary",
    pl.Boolean: "boolean",
    pl.Datetime("us", "UTC"): "timestamp",
}


def schema_of(spec: Table) -> Schema:
    return Schema(
        [Field(name, _delta_type(column.type), nullable=column.nullable) for name, column in spec.columns.items()]
    )


def _delta_type(kind: Type) -> PrimitiveType | ArrayType:
    if isinstance(kind, pl.List):
        return ArrayType(_delta_type(cast(Type, kind.inner)), contains_null=True)
    return PrimitiveType(_DELTA_TYPES[kind])


def properties(spec: Table) -> dict[str, str | None]:
    """What a table is made with. Statistics are for finding rows: of all columns, they would copy texts into the log."""
    sought = [name for name in dict.fromkeys(("neuron", *spec.key)) if name in spec.columns and name != "layer"]
    return PROPERTIES | ({"delta.dataSkippingStatsColumns": ",".join(sought)} if sought else {})


def rules(spec: Table, *, columns: Collection[str] | None = None, stored: bool = False) -> dict[str, str | None]:
    """Properties and constraints that a table must have, `stored` in an object store or not.

    One with these columns only is of an older version.
    """
    had = {
        name: column for name, column in spec.columns.items() if not column.added or name in (columns or spec.columns)
    }
    declared = replace(spec, columns=had)
    properties = PROPERTIES | (OFTEN if stored else {})
    return properties | {f"delta.constraints.{name}": rule for name, rule in constraints(declared).items()}


def absent(spec: Table, found: DeltaTable) -> list[str]:
    """Columns that were declared after this table was made; its rows have nothing there."""
    later = [name for name, column in spec.columns.items() if column.added]
    return sorted(set(later) - {field.name for field in found.schema().fields}) if later else []


def constraints(spec: Table) -> dict[str, str]:
    """What Delta holds all writers to: numbers are finite. One constraint for all columns, since each is a commit."""
    # Infinity less itself is NaN, and NaN equals nothing.
    rules = [
        f"({name} IS NULL OR {name} - {name} = 0)" if column.nullable else f"{name} - {name} = 0"
        for name, column in spec.columns.items()
        if column.type in (pl.Float32, pl.Float64)
    ]
    return {"finite": " AND ".join(rules)} if rules else {}


def missing_constraints(spec: Table, found: DeltaTable) -> dict[str, str]:
    """Those that a writer, killed while it made the table, did not come to."""
    present = found.metadata().configuration
    return {name: rule for name, rule in constraints(spec).items() if f"delta.constraints.{name}" not in present}


def layout(rows: pl.DataFrame) -> WriterProperties:
    """How parquet files are laid out. Delta keeps none of this, so it goes with every write."""
    group = OTHER_ROW_GROUP
    if "neuron" in rows.columns and len(rows):
        per_neuron = -(-len(rows) // rows.get_column("neuron").n_unique())
        per_row = max(1, int(rows.estimated_size()) // len(rows))
        group = max(per_neuron, ROW_GROUP_BYTES // per_row)
    elif pl.Binary in rows.dtypes and len(rows):
        per_row = max(1, int(rows.estimated_size()) // len(rows))
        group = min(group, max(1, LARGE_ROW_GROUP_BYTES // per_row))
    default, columns = _encodings(rows.schema)
    return WriterProperties(
        compression="ZSTD",
        compression_level=3,
        max_row_group_size=group,
        default_column_properties=default,
        column_properties=columns,
    )


def _encodings(schema: pl.Schema) -> tuple[ColumnProperties | None, dict[str, ColumnProperties] | None]:
    """Numbers byte by byte (all first bytes, then all second ones), which leaves a third less of lists of activations.

    Delta finds a column that is a list by no name, so it is the default or nothing; and texts know no such encoding.
    """
    leaves = {name: _leaf(kind) for name, kind in schema.items()}
    texts = [name for name, leaf in leaves.items() if leaf in (pl.String, pl.Binary, pl.Boolean)]
    if not any(isinstance(kind, pl.List) for kind in schema.values()):
        return None, None
    if any(isinstance(schema[name], pl.List) for name in texts):
        return None, None
    split = ColumnProperties(dictionary_enabled=False, encoding="BYTE_STREAM_SPLIT")
    return split, {name: ColumnProperties(dictionary_enabled=False, encoding="PLAIN") for name in texts}


def _leaf(kind: Type) -> Type:
    return _leaf(cast(Type, kind.inner)) if isinstance(kind, pl.List) else kind
