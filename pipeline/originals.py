"""Originals: the files of an import as they were, byte for byte, and whether its rows still are what they say.

A file is known by its hash and kept once, in parts of at most `PART` bytes. The list of the files of an import is kept in the
same way: its hash is `files_hash` in `imports`. So from an import one comes to its list, from the list to each file, and
from the files, parsed again, to the rows.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from pipeline.errors import LakeError
from pipeline.provenance import TAG, canonical_json, identities
from pipeline.tables import TABLES

PART = 8 * 2**20
"""Bytes of a part. A file may be larger than memory; a part is not."""

TABLE = "imported_originals"

Part = tuple[str, int, bytes]
"""The hash of a file, the place of a part in it, and the bytes of that part."""


def parts(sha256: str, data: bytes) -> Iterator[Part]:
    """A file in parts; one that is empty has one."""
    if len(data) <= PART:
        yield sha256, 0, data
        return
    for part, start in enumerate(range(0, len(data), PART)):
        yield sha256, part, data[start : start + PART]


def n_parts(size: int) -> int:
    """How many parts a file of so many bytes has."""
    return max(1, -(-size // PART))


def frame(some: Sequence[Part]) -> pl.DataFrame:
    """Parts as rows of their table, without `run_id`; each once."""
    once = {(sha256, part): content for sha256, part, content in some}
    rows = pl.DataFrame(
        {"sha256": [at[0] for at in once], "part": [at[1] for at in once], "content": list(once.values())},
        schema={name: TABLES[TABLE].columns[name].type for name in ("sha256", "part", "content")},
    )
    return rows.with_columns(
        pl.Series("identity", identities("imported_original", rows.select("sha256", "part")), dtype=pl.String)
    )


def listing(files: Sequence[tuple[str, str]]) -> tuple[str, bytes]:
    """The list of the files of an import (path and hash of each), as it is kept, and its own hash."""
    data = canonical_json([list(pair) for pair in sorted(files)]).encode("ascii")
    return TAG + hashlib.sha256(data).hexdigest(), data


def listed(data: bytes) -> list[tuple[str, str]]:
    """What `listing` was made of.

    Raises:
        LakeError: the bytes are no such list, or a path in it leaves the folder.
    """
    try:
        files = [(str(path), str(sha256)) for path, sha256 in json.loads(data)]
    except (ValueError, TypeError):
        raise LakeError("the list of the files of an import cannot be read; restore the lake from a copy") from None
    for path, _ in files:
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise LakeError(f"the path {path!r} in the list of the files of an import leaves its folder")
    return files


def whole(rows: pl.DataFrame) -> dict[str, bytes]:
    """The files whose parts are all among these rows and have the hash that they are known by."""
    found: dict[str, bytes] = {}
    for sha256, places, contents in (
        rows.sort("sha256", "part").group_by("sha256", maintain_order=True).agg("part", "content").iter_rows()
    ):
        data = contents[0] if len(contents) == 1 else b"".join(contents)
        if places == list(range(len(places))) and TAG + hashlib.sha256(data).hexdigest() == sha256:
            found[sha256] = data
    return found


def differences(table: str, stored: pl.DataFrame, again: pl.DataFrame) -> dict[str, int]:
    """How many rows of a table, parsed again, are not stored, or are stored with other values. Nothing if none.

    `stored` may hold more rows than `again`. Who wrote a row is not compared.
    """
    key = list(TABLES[table].key)
    columns = [name for name in TABLES[table].columns if name != "run_id"]
    again = again.unique(key, keep="first", maintain_order=True).select(columns).sort(key)
    same = stored.select(columns).join(again.select(key), on=key, how="semi").sort(key)
    if same.equals(again):
        return {}
    missing = again.join(same.select(key), on=key, how="anti")
    both = again.join(same.select(key), on=key, how="semi").sort(key)
    changed = pl.Series(
        [one != other for one, other in zip(both.iter_rows(), same.iter_rows(), strict=True)], dtype=pl.Boolean
    )
    found = {"are missing": len(missing), "have other values": int(changed.sum())}
    return {what: count for what, count in found.items() if count}


def newest_first(records: pl.DataFrame) -> dict[str, list[Mapping[str, str]]]:
    """For each source its imports, the last one first: run, form, hash of the list of files, and tokenizer if there was one.

    `records` are the rows of `materializations`.
    """
    found: dict[str, list[Mapping[str, str]]] = {}
    made = records.filter((pl.col("table") == "imports") & (pl.col("status") == "done")).sort("finished_at")
    for row in made.reverse().select("run_id", "inputs", "settings").iter_rows(named=True):
        settings, inputs = json.loads(row["settings"]), json.loads(row["inputs"])
        found.setdefault(settings["source"], []).append(
            {
                "run_id": row["run_id"],
                "form": settings["form"],
                "files_hash": inputs["files"]["content_hash"],
                "tokenizer": settings.get("tokenizer") or "",
            }
        )
    return found
