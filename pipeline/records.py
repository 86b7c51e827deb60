"""Records: the rows of `materializations`, whose texts hold what a write was made from, as JSON.

Only our own writes make them, so one that holds anything else was changed by somebody, and nothing is concluded from it.
"""

import json
from typing import Any

import polars as pl

from pipeline.errors import LakeError
from pipeline.ports import Lake

OBJECTS = ("inputs", "settings", "code", "environment", "usage")
"""Columns of JSON objects."""


def read(lake: Lake) -> pl.DataFrame:
    """The records of a lake.

    Raises:
        LakeError: as `Lake.read`, or a record is not one that a write leaves.
    """
    rows = lake.read("materializations")
    check(rows)
    return rows


def check(rows: pl.DataFrame) -> None:
    """Look at every text of some records once.

    Raises:
        LakeError: one is no object, or not one that a write leaves.
    """
    for column in OBJECTS:
        for text in rows.get_column(column).unique():
            if not _is_record(column, text):
                first = rows.filter(pl.col(column) == text).item(0, "commit_uuid")
                raise LakeError(
                    f"`{column}` of the record {first} in `materializations` is not what a write leaves there, so somebody changed it: "
                    "`neuronledger audit --quick` names the files that were changed; restore them from a copy"
                )


def _is_record(column: str, text: str) -> bool:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(found, dict):
        return False
    if column == "inputs":
        return all(map(_is_input, found.values()))
    if column == "usage":
        return _counts(found.get("failures", {}))
    if column == "environment":
        return all(isinstance(found.get(name, {}), dict) for name in ("corpus", "made", "parts", "subject"))
    return True


def _is_input(found: Any) -> bool:
    if not isinstance(found, dict):
        return False
    # A release names its tables by their versions alone.
    by_version = found.get("content_hash", "") is None and type(found.get("version")) is int
    return by_version or isinstance(found.get("content_hash"), str)


def _counts(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(count, int) for count in found.values())
