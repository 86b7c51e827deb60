"""People: the door to a file of explanations that people wrote, CSV or JSON Lines."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import SettingsError
from pipeline.human import Statement, statement

FLAG = "--human-explanations"


def statements(path: Path) -> tuple[Statement, ...]:
    """The statements of a file, in its order.

    Raises:
        SettingsError: the file cannot be read, holds none, or a record is wrong; the message names the line.
    """
    found: list[Statement] = []
    try:
        for line, record in _records(path):
            try:
                found.append(statement(record))
            except SettingsError as error:
                raise SettingsError(f"{FLAG}: line {line} of {path}: {error}") from None
    except OSError as error:
        raise SettingsError(f"{FLAG}: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{FLAG}: {path} is not UTF-8; save it as UTF-8") from None
    except csv.Error as error:
        raise SettingsError(f"{FLAG}: {path} is not valid CSV: {error}") from None
    if not found:
        raise SettingsError(f"{FLAG}: {path} holds no explanation")
    return tuple(found)


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each record with the line on which it ends."""
    # Spreadsheets put a mark in front of UTF-8.
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".csv":
            reader = csv.DictReader(file, strict=True, restkey="more than the columns")
            if len(set(reader.fieldnames or ())) < len(reader.fieldnames or ()):
                raise SettingsError(f"{FLAG}: {path} has a column twice: {', '.join(reader.fieldnames or ())}")
            for record in reader:
                yield reader.line_num, record
        elif path.suffix.lower() in (".jsonl", ".ndjson"):
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _object(line, f"line {number} of {path}")
        else:
            raise SettingsError(f"{FLAG}: {path} must end in .csv, .jsonl or .ndjson")


def _object(line: str, where: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
        # JSON can spell half a character (`\ud800`), which no table can hold.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise SettingsError(f"{FLAG}: {where} is no JSON object, or holds half a character")
    return value
