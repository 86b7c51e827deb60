"""Imports: what another system found, taken over as rows of tables that are kept apart from ours.

A form's own module (`pipeline.openai_import`, ...) turns the text of one file into a `Found`. Here many of them become
frames (`pipeline.rescoring` scores them by our formulas). A file is taken over whole or rejected with a reason; no
value in it is guessed.
"""

import codecs
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any, NoReturn

import numpy as np
import orjson
import polars as pl

from pipeline.errors import FormError
from pipeline.originals import Part
from pipeline.provenance import TAG, content_hash, identities, identity, short
from pipeline.tables import TABLES

BY_LAYER = (
    "imported_neurons", "imported_records", "imported_explanations", "imported_simulations", "imported_scores",
)  # fmt: skip


@dataclass
class Found:
    """The rows of one file (known by the hash of its bytes), by table, and the sequences that they name."""

    file: str
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    sequences: dict[str, list[str]] = field(default_factory=dict)
    rejected: list[tuple[str, str, int | None]] = field(default_factory=list)
    """Parts that were not taken, in forms that have parts: where, why, and the place in it if one is to blame."""

    def reject(self, where: str, reason: str, offset: int | None = None) -> None:
        """Leave out a part of the file, such as a line."""
        self.rejected.append((where, reason, offset))

    def add(self, table: str, **row: Any) -> None:
        """Add one row."""
        self.rows.setdefault(table, []).append({**row, "file": self.file})

    def sequence(self, tokens: list[str]) -> str:
        """The id of a sequence of these tokens.

        Raises:
            FormError: a token holds half a character (a lone surrogate), which no file can hold.
        """
        found = sequence_id(tokens)
        self.sequences.setdefault(found, tokens)
        return found


@dataclass(frozen=True)
class Lists:
    """Lists of numbers (float32) one after the other, and how long each is."""

    numbers: np.ndarray
    lengths: np.ndarray


@dataclass
class Batch:
    """The rows of many files as frames, and what became of each file (rows of `imported_files`)."""

    frames: dict[str, pl.DataFrame]
    sequences: pl.DataFrame
    files: list[dict[str, Any]]
    file_identities: list[str]
    originals: Sequence[Part] = ()
    """The files that were taken, as they are (`pipeline.originals`)."""


def sequence_id(tokens: Sequence[str]) -> str:
    """Sixteen hex digits that tell one sequence of tokens from another."""
    joined = "\0".join(tokens)
    text = "n" + joined if joined.count("\0") == len(tokens) - 1 else "j" + json.dumps(list(tokens))
    try:
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    except UnicodeEncodeError as error:
        raise FormError(
            f"a token holds half a character: {json.dumps(error.object[error.start : error.end])}"
        ) from None


def batch(found: Iterable[Found], files: list[dict[str, Any]], *, source: str) -> Batch:
    """Many files as frames, without `run_id`."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in BY_LAYER}
    sequences: dict[str, list[str]] = {}
    for one in found:
        for name, some in one.rows.items():
            rows[name] += some
        sequences |= one.sequences
    words = pl.Series("tokens", list(chain.from_iterable(sequences.values())), dtype=pl.String)
    texts = pl.DataFrame(
        [
            pl.Series("sequence_id", list(sequences), dtype=pl.String),
            _lists("tokens", words, [len(one) for one in sequences.values()], None),
        ]
    )
    made = identities("imported_sequence", texts.select("sequence_id"))
    return Batch(
        frames={name: _frame(name, some, source=source) for name, some in rows.items()},
        sequences=texts.with_columns(pl.Series("identity", made, dtype=pl.String)),
        files=files,
        file_identities=_of_files(files),
    )


def _of_files(files: list[dict[str, Any]]) -> list[str]:
    """The identity of each row of `imported_files`; all at once where nothing was rejected."""
    nothing = {"reason": None, "offset_in_file": None}
    if files and all(file.items() >= nothing.items() for file in files):
        with suppress(TypeError):  # a path may hold what JSON has to escape
            return identities("imported_file", pl.DataFrame(files).drop(nothing), **nothing)
    return [identity("imported_file", **file) for file in files]


def explanation_id(*, source: str, file: str, layer: int, neuron: int, polarity: str, place: int) -> str:
    """The id of an explanation: its place in a file of this content."""
    return short(
        identity(
            "imported_explanation", source=source, file=file, layer=layer, neuron=neuron, polarity=polarity, place=place
        )
    )


def _frame(table: str, rows: list[dict[str, Any]], *, source: str) -> pl.DataFrame:
    """The rows as a frame of the table, with the source, and identities: the file's content, and the place in it."""
    if table == "imported_neurons":
        rows = _merged(rows)
    schema = {name: kind for name, kind in TABLES[table].schema.items() if name not in ("run_id", "identity", "source")}
    frame = pl.DataFrame([_column(name, [row.get(name) for row in rows], kind) for name, kind in schema.items()])
    key = [name for name in TABLES[table].key if name != "source"]
    made_from = frame.select(key)
    for name in set(key) & set(FREE):
        hashes = {word: content_hash(word) for word in made_from.get_column(name).unique()}
        made_from = made_from.with_columns(pl.col(name).replace_strict(hashes, return_dtype=pl.String))
    files = pl.Series("file", [row["file"] for row in rows], dtype=pl.String)
    made = identities(table, made_from.with_columns(files), source=source)
    return frame.with_columns(pl.lit(source, pl.String).alias("source"), pl.Series("identity", made, dtype=pl.String))


FREE = ("simulator", "scorer", "split")
"""Parts of keys that are words of the source."""


def _merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each neuron of what several files say of it."""
    merged: dict[tuple[int, int], dict[str, Any]] = {}
    for row in rows:
        at = row["layer"], row["neuron"]
        before = merged.get(at, {"file": ""})
        merged[at] = before | row | {"file": f"{before['file']}{row['file']},"}
    return list(merged.values())


def _column(name: str, values: list[Any], kind: Any) -> pl.Series:
    if not isinstance(kind, pl.List) or all(value is None for value in values):
        return pl.Series(name, values, dtype=kind)
    known = [value for value in values if value is not None]
    missing = [value is None for value in values]
    if kind == pl.List(pl.Float32):
        flat = np.concatenate([np.asarray(value, dtype=np.float32) for value in known])
        lengths = [0 if value is None else len(value) for value in values]
        return _lists(name, pl.Series(flat), lengths, missing)
    if kind == pl.List(pl.List(pl.Float32)):
        inner = pl.Series(np.concatenate([value.numbers for value in known]))
        counts = np.concatenate([value.lengths for value in known])
        lengths = [0 if value is None else len(value.lengths) for value in values]
        return _lists(name, _lists(name, inner, counts, None), lengths, missing)
    return pl.Series(name, values, dtype=kind)


def _lists(
    name: str, flat: pl.Series, lengths: Sequence[int] | np.ndarray, missing: Sequence[bool] | None
) -> pl.Series:
    """A column of lists that stand one after the other in `flat`. polars builds one from Python lists 20 times slower."""
    sizes = np.asarray(lengths, dtype=np.int64)
    if missing is not None and not any(missing):
        missing = None
    if missing is None and len(sizes) and sizes[0] and (sizes == sizes[0]).all() and not flat.dtype.is_nested():
        # Sequences are mostly of one length.
        return flat.reshape((len(sizes), int(sizes[0]))).arr.to_list().alias(name)
    places = pl.DataFrame({"row": np.arange(len(sizes))})
    grouped = pl.DataFrame({"row": np.repeat(np.arange(len(sizes)), sizes), name: flat})
    found = places.join(grouped.group_by("row").agg(name), on="row", how="left", maintain_order="left")
    column = found.get_column(name)
    filled = column.fill_null(pl.lit([], dtype=column.dtype))
    if missing is None:
        return filled
    return pl.select(pl.when(~pl.Series(missing)).then(filled).alias(name)).to_series()


# ---- what every form checks of the values that it finds


def parse_json(text: str) -> Any:
    """The value of a JSON text; NaN and infinities, which Python's own writer lets through, come as floats.

    Raises:
        FormError: the text is no JSON, with the offset; or it is nested too deeply.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass  # the standard library's reader is slower, but takes what is NaN, and tells the place of what is no JSON
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FormError(f"no JSON: {error.msg}", error.pos) from None
    except RecursionError:
        raise FormError("no JSON that can be read: it is nested too deeply") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise FormError(f"no JSON that can be read: {error}") from None


def decode(data: bytes) -> str:
    """The bytes as UTF-8 text, without the mark that some programs put before it.

    Raises:
        FormError: they are none; the offset is in bytes.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FormError("no UTF-8 but UTF-16; write it as UTF-8", 0)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormError(f"no UTF-8: {error.reason}", error.start) from None


def wrong(where: str, expected: str, found: Any) -> NoReturn:
    """Reject a value: where it is, what was expected, and the beginning of what is there."""
    said = "nothing" if found is None else json.dumps(found, default=str)[:60]
    raise FormError(f"{where} must be {expected}, not {said}")


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """The value, if it is an object."""
    return value if isinstance(value, dict) else wrong(where, "an object", value)


def listing(value: Any, where: str) -> list[Any]:
    """The value, if it is a list."""
    return value if isinstance(value, list) else wrong(where, "a list", value)


def index(value: Any, where: str) -> int:
    """The value, if it is a whole number from 0 to 2**31 - 1; as text too, which some files have."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 11:
        value = int(value)
    if type(value) is int and 0 <= value < 2**31:
        return value
    wrong(where, "a whole number from 0", value)


def text(value: Any, where: str) -> str:
    """The value, if it is text that can be written."""
    if not isinstance(value, str):
        wrong(where, "text", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FormError(f"{where} holds half a character") from None
    return value


def written(value: Any, where: str) -> str:
    """The value as JSON text."""
    return text(json.dumps(value, ensure_ascii=False, sort_keys=True), where)


def number(value: Any, where: str) -> float | None:
    """The value, if it is a number or null. What is not finite is null, as JSON has no other way to say it."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if type(value) in (int, float) and abs(value) < 1.7e308:
        return float(value)
    wrong(where, "a number or null", value)


def tokens(value: Any, where: str) -> list[str]:
    """The value, if it is a list of one text or more."""
    found = listing(value, where)
    if set(map(type, found)) != {str}:
        wrong(
            where, "a list of texts, and not empty", next((token for token in found if type(token) is not str), found)
        )
    return found


def numbers(value: Any, where: str, *, count: int | None = None) -> np.ndarray:
    """The value as float32, if it is a list of finite numbers, as many as `count`."""
    found = listing(value, where)
    if count is not None and len(found) != count:
        raise FormError(f"{where} must have one number for each of {count} tokens, and has {len(found)}")
    kinds = set(map(type, found))
    if not kinds <= {int, float}:
        wrong(where, "a list of numbers", next(one for one in found if type(one) not in (int, float)))
    with np.errstate(over="ignore"):
        try:
            values = np.array(found, dtype=np.float64).astype(np.float32)
        except OverflowError:
            raise FormError(f"{where} holds a number that is too large") from None
    if not np.isfinite(values).all():
        raise FormError(f"{where} holds a number that is not finite, or too large for 32 bits")
    return values


def number_lists(values: Sequence[Any], names: Iterable[str], counts: Sequence[int]) -> list[np.ndarray]:
    """`numbers` of each of these values. All at once while nothing is wrong, which takes a third of the time."""
    if all(type(value) is list and len(value) == count for value, count in zip(values, counts, strict=True)):
        flat = list(chain.from_iterable(values))
        if set(map(type, flat)) <= {int, float}:
            with np.errstate(over="ignore"), suppress(OverflowError):
                together = np.array(flat, dtype=np.float64).astype(np.float32)
                if np.isfinite(together).all():
                    ends = list(accumulate(counts))
                    return [together[end - count : end] for end, count in zip(ends, counts, strict=True)]
    return [numbers(value, name, count=count) for value, name, count in zip(values, names, counts, strict=True)]


def token_lists(values: Sequence[Any], names: Iterable[str]) -> list[list[str]]:
    """`tokens` of each of these values, all at once while nothing is wrong."""
    if all(type(value) is list and value for value in values) and set(map(type, chain.from_iterable(values))) <= {str}:
        return list(values)
    return [tokens(value, name) for value, name in zip(values, names, strict=True)]


def file_hash(data: bytes) -> str:
    """The tagged hash of a file's bytes."""
    return TAG + hashlib.sha256(data).hexdigest()
