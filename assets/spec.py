"""What every asset says of itself: group, kinds, schema, and the checks that it will answer for."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from assets.step import schema
from pipeline.checks import names
from pipeline.tables import TABLES

# In Dagster each hop after `activations` names one parent, the hop before it. It reads others too (its record names
# all of them by content), but they are ancestors of that parent already; and Dagster puts assets into one run for each
# layer only if they are a chain.
OWNERS = ["team:interpretability"]


def described(table: str) -> dict[str, Any]:
    """Description and metadata of an asset that fills a table."""
    declared = TABLES[table]
    return {
        "description": declared.doc,
        "metadata": {"dagster/column_schema": schema(declared), "dagster/table_name": table},
        "kinds": {"polars", "deltalake"},
        "owners": OWNERS,
    }


def checks(table: str, *, asset: str | None = None) -> Sequence[dg.AssetCheckSpec]:
    """The checks of a table, all blocking: rows that fail one are wrong, and nothing is made from them."""
    return [dg.AssetCheckSpec(name, asset=asset or table, blocking=True) for name in names(table)]
