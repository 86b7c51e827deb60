"""Where a row comes from: content hashes that say so, and nothing else.

An *identity* is a tagged hash of everything a row is made from, the identities of its parents included. The same
inputs give the same identity on any machine, and a changed input changes the identity of everything after it. This
is the idea of a commit in git, applied to rows.

The tag ("sha256:") names the algorithm, so that a later one can stand beside it.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import polars as pl

TAG = "sha256:"


def canonical_json(value: Any) -> str:
    """The one text form of a value: keys sorted, no spaces, floats as the hex of their IEEE 754 bytes.

    Decimal text is not used for floats because two libraries may print one float in two ways.

    Raises:
        TypeError: the value holds something other than None, bool, int, float, str, bytes, list, tuple or dict.
    """
    return json.dumps(_exact(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def content_hash(value: Any) -> str:
    """The tagged hash of a value's canonical JSON."""
    return TAG + hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def identity(kind: str, **made_from: Any) -> str:
    """The identity of one row: what sort of row it is, and everything it is made from."""
    return content_hash({"kind": kind, **made_from})


def identities(kind: str, rows: pl.DataFrame, **made_from: Any) -> list[str]:
    """The identity of every row: `identity(kind, **row, **made_from)` for each, some ten times as fast.

    `rows` holds whole numbers and plain text only (ids, hashes, names), no nulls. Numbers with fractions enter as
    hashes of their bytes, see `list_hashes`.

    Raises:
        TypeError: a column is of another type, has a null, or text that JSON would have to escape.
    """
    fields: dict[str, str | pl.Expr] = {key: canonical_json(value) for key, value in made_from.items()}
    fields["kind"] = canonical_json(kind)
    for name, dtype in rows.schema.items():
        column = rows.get_column(name)
        if dtype.is_integer() and not column.null_count():
            fields[name] = pl.col(name).cast(pl.String)
        elif dtype == pl.String and column.str.contains(r"^[ !#-\[\]-~]*$").all(ignore_nulls=False):
            fields[name] = pl.concat_str(pl.lit('"'), pl.col(name), pl.lit('"'))
        else:
            raise TypeError(f"column `{name}` must hold whole numbers or plain text without nulls, not {dtype}")
    parts: list[pl.Expr] = []
    for position, key in enumerate(sorted(fields)):
        value = fields[key]
        parts.append(pl.lit(("{" if position == 0 else ",") + canonical_json(key) + ":"))
        parts.append(pl.lit(value) if isinstance(value, str) else value)
    texts = rows.select(pl.concat_str(*parts, pl.lit("}")).alias("json")).get_column("json")
    return [TAG + hashlib.sha256(text.encode("ascii")).hexdigest() for text in texts]


def list_hashes(series: pl.Series) -> list[str]:
    """The untagged hash of each row's list of numbers, taken over their little-endian bytes."""
    flat = series.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    width = flat.dtype.itemsize
    data = flat.tobytes()
    ends = series.list.len().fill_null(0).cum_sum().to_list()
    return [hashlib.sha256(data[start * width : end * width]).hexdigest() for start, end in pairwise([0, *ends])]


def short(tagged: str) -> str:
    """Sixteen hex digits of a tagged hash: enough to be unique in one lake, short enough for a key."""
    return tagged.removeprefix(TAG)[:16]


def frame_hash(frame: pl.DataFrame, *, key: Sequence[str], ignore: Iterable[str] = ("run_id",)) -> str:
    """The tagged hash of a table's content: the same rows in another order, or written by another run, hash alike.

    Rows are sorted by `key`; columns are taken by name. `run_id` is left out because the same content may be written
    twice. Floats enter as their bytes, so a change in the last bit changes the hash.
    """
    columns = sorted(set(frame.columns) - set(ignore))
    rows = frame.select(columns).sort(list(key))
    digest = hashlib.sha256(
        canonical_json([len(rows), [[name, str(rows.schema[name])] for name in columns]]).encode("ascii")
    )
    for name in columns:
        _hash_series(digest, rows.get_column(name))
    return TAG + digest.hexdigest()


def fingerprint_chain(base: str, own: Sequence[str], carried: Sequence[str]) -> list[str]:
    """The fingerprint of each layer's MLP activations: what can influence them, and nothing after them.

    `base` is the hash of what every layer rests on (configuration, tokenizer, embeddings). `own[L]` is the hash of
    the tensors of block L that come before its neurons, `carried[L]` of those that come after them (the output
    projection): they reach the neurons of block L + 1 and later.
    """
    fingerprints: list[str] = []
    before = base
    for layer, tensors in enumerate(own):
        after_previous = carried[layer - 1] if layer else ""
        before = content_hash([before, after_previous, tensors])
        fingerprints.append(before)
    return fingerprints


def step_key(*, asset: str, code_version: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """What one step of the pipeline is made from; the step is fresh while today's key equals the stored one.

    `inputs` maps each table read to the content hash of the slice read. Only what can change a result enters:
    the version of torch is recorded beside the key, not in it.
    """
    return content_hash(
        {"asset": asset, "code_version": code_version, "settings": dict(settings), "inputs": dict(inputs)}
    )


def _exact(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"f64": struct.pack(">d", value).hex()}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, list | tuple):
        return [_exact(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _exact(item) for key, item in value.items()}
    raise TypeError(f"a {type(value).__name__} has no canonical form; pass numbers, text, bytes, lists or mappings")


def _hash_series(digest: "hashlib._Hash", series: pl.Series) -> None:
    """Feed one column into a running hash: where it is null, how long its lists are, and its plain values."""
    digest.update(series.name.encode("utf-8") + b"\0")
    digest.update(series.is_null().to_numpy().tobytes())
    if isinstance(series.dtype, pl.List):
        digest.update(series.list.len().fill_null(0).cast(pl.UInt32).to_numpy().tobytes())
        filled = series.drop_nulls()
        filled = filled.filter(filled.list.len() > 0)
        if len(filled):
            _hash_series(digest, filled.explode(empty_as_null=False, keep_nulls=True).alias("item"))
        return
    plain = series.drop_nulls()
    if series.dtype == pl.String:
        plain = plain.cast(pl.Binary)
    if plain.dtype == pl.Binary:
        digest.update(plain.bin.size().cast(pl.UInt32).to_numpy().tobytes())
        for piece in plain:
            digest.update(piece)
        return
    if plain.dtype == pl.Boolean:
        plain = plain.cast(pl.UInt8)
    digest.update(plain.to_numpy().tobytes())
