"""The files of other systems: found by the form of their paths, read and parsed by several processes.

The forms are modules of `pipeline`; here files are opened, and what cannot be opened is a rejected file. Parsing is plain
Python, so that a place in a bad file can be named; processes make up for it. Only files of latents, which may be larger
than memory, are read in pieces.
"""

import gc
import gzip
import hashlib
import io
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby, islice
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from typing import Any

from pipeline import delphi_import, delphi_latents, imports, lines_import, neuronpedia_import, openai_import
from pipeline.errors import FormError, SettingsError
from pipeline.imports import Batch, Found
from pipeline.originals import PART, Part, n_parts, parts
from pipeline.ports import Foreign
from pipeline.provenance import TAG
from resources.latents_file import LatentsFile, vocabulary

NEURONS = 64
"""Neurons whose files are a task of one process; the files of a neuron are never in two."""
LARGEST = 2**30
"""Most bytes of a file that is read whole, and of what is packed in it."""
AHEAD = 4
"""Tasks for each process that may be done before their rows are wanted: memory is bounded by them."""

Parse = Callable[..., Found]
FORMS: dict[str, tuple[re.Pattern[str], Parse]] = {
    openai_import.FORM: (openai_import.PATH, openai_import.parse),
    neuronpedia_import.FORM: (neuronpedia_import.PATH, neuronpedia_import.parse),
    delphi_import.FORM: (delphi_import.PATH, delphi_import.parse),
    "csv": (lines_import.CSV, lines_import.parse_csv),
    "jsonl": (lines_import.JSONL, lines_import.parse_jsonl),
}
"""For each form what the paths of its files are like, and how one is parsed."""


@dataclass(frozen=True)
class Task:
    """What one process reads at a time: the files of some neurons, or some of the latents of one file."""

    names: tuple[str, ...]
    latents: range | None = None


class ForeignFiles(Foreign):
    """Files below folders of this machine. `processes` is how many parse; as many as there are CPUs unless given."""

    def __init__(self, *, processes: int | None = None) -> None:
        self._processes = processes or len(os.sched_getaffinity(0))

    def count(self, form: str, place: str) -> int:
        """How many files of the form there are."""
        return len({name for task in _found(form, Path(place)) for name in task.names})

    def batches(
        self, form: str, place: str, *, source: str, tokenizer: str | None = None, originals: bool = True
    ) -> Iterator[Batch]:
        """The rows of all files of the form, layer by layer."""
        root = Path(place)
        found = _found(form, root)
        how = partial(parsed, form, root, source=source, tokenizer=tokenizer, originals=originals)
        for task, batch in zip(found, self._parsed(found, how), strict=True):
            if originals and task.latents is not None:
                # Such a file may be larger than memory, so it comes in parts, and before the rows made of it.
                yield from _in_parts(root, task, batch, source=source)
            yield batch

    def _parsed(self, found: list[Task], how: Callable[[Task], Batch]) -> Iterator[Batch]:
        if len(found) == 1 or self._processes == 1:
            yield from map(how, found)
            return
        # A forked process would inherit locks of threads that it does not have.
        with ProcessPoolExecutor(self._processes, mp_context=get_context("spawn"), initializer=_ready) as pool:
            waiting = iter(found)
            running: list[Future[Batch]] = []

            def start(count: int) -> None:
                running.extend(pool.submit(how, task) for task in islice(waiting, count))

            start(self._processes * AHEAD)
            while running:
                done = running.pop(0).result()
                start(1)
                yield done


def _ready() -> None:
    # Parsing makes millions of lists that live for a moment and never refer to each other; looking for such as do costs time.
    gc.set_threshold(1_000_000)


def parsed(
    form: str, root: Path, task: Task, *, source: str, tokenizer: str | None = None, originals: bool = False
) -> Batch:
    """The rows of some files, and what became of each."""
    if task.latents is not None:
        return _latents(root, task.names[0], task.latents, source, tokenizer)
    pattern, parse = FORMS[form]
    found: list[Found] = []
    files: list[dict[str, Any]] = []
    seen: dict[tuple[str | None, ...], str] = {}
    kept: list[Part] = []
    for name in task.names:
        # A name that is no text stands in no table.
        said = os.fsencode(name).decode("utf-8", "backslashreplace")
        row: dict[str, Any] = {
            "path": said,
            "sha256": "",
            "size": 0,
            "status": "imported",
            "reason": None,
            "offset_in_file": None,
        }
        files.append(row)
        try:
            if said != name:
                raise FormError("its name is not UTF-8; rename it")
            data = _read(_path(root, name))
            row |= {"sha256": imports.file_hash(data), "size": len(data)}
            match = pattern.fullmatch(name)
            assert match is not None  # noqa: S101 - it was found by this pattern
            named = match.groupdict()
            at = tuple(named.get(part) for part in ("kind", "layer", "neuron", "batch", "hookpoint", "source", "name"))
            if at in seen:
                raise FormError(f"{seen[at]} is of the same neuron and was taken")
            found.append(
                parse(imports.decode(_unpacked(name, data)), match, source=source, path=name, file=row["sha256"])
            )
            seen[at] = name
            if originals:
                kept += parts(row["sha256"], data)
            files += [
                {**row, "path": f"{name}: {where}", "status": "rejected", "reason": why, "offset_in_file": offset}
                for where, why, offset in found[-1].rejected
            ]
        except FormError as error:
            row |= {"status": "rejected", "reason": str(error), "offset_in_file": error.offset}
        except OSError as error:
            row |= {"status": "rejected", "reason": f"it cannot be read: {error.strerror}"}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # A file of somebody else can be odd in ways that no reader foresaw; it must not stop the others.
            row |= {"status": "rejected", "reason": f"it is not of this form: {error}"}
    return replace(imports.batch(found, files, source=source), originals=kept)


def _in_parts(root: Path, task: Task, batch: Batch, *, source: str) -> Iterator[Batch]:
    """A file of latents, if it was taken, in parts; with the first of its tasks.

    Raises:
        SettingsError: it changed since it was parsed.
    """
    taken = [row for row in batch.files if row["path"] == task.names[0] and row["status"] == "imported"]
    if not taken:
        return
    nothing = imports.batch([], [], source=source)
    with _path(root, task.names[0]).open("rb") as file:
        before = os.fstat(file.fileno())
        same = TAG + hashlib.file_digest(file, "sha256").hexdigest() == taken[0]["sha256"]
        file.seek(0)
        for part in range(n_parts(before.st_size)):
            content = file.read(PART)
            now = os.fstat(file.fileno())
            # What was read is of the file that was hashed as long as nobody wrote to it since.
            if not same or (now.st_mtime_ns, now.st_size) != (before.st_mtime_ns, before.st_size):
                raise SettingsError(f"{task.names[0]} changed while it was imported; import it again")
            yield replace(nothing, originals=[(taken[0]["sha256"], part, content)])


def _latents(root: Path, name: str, latents: range, source: str, tokenizer: str | None) -> Batch:
    """The rows of some latents of one file. The file is told of with its first; a later part is only if it was rejected."""
    path, match = _path(root, name), delphi_import.PATH.fullmatch(name)
    assert match is not None  # noqa: S101 - it was found by this pattern
    is_first = latents.start == int(match["first"])
    row: dict[str, Any] = {
        "path": name if is_first else f"{name}: latents {latents.start} to {latents.stop - 1}", "sha256": "", "size": 0,
        "status": "imported", "reason": None, "offset_in_file": None,
    }  # fmt: skip
    found: list[Found] = []
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FormError("it is no file, but a device, a pipe or a folder")
        row |= {"sha256": _hash(path, status.st_mtime_ns, status.st_size), "size": status.st_size}
        if len(latents) > LARGEST_FILE:
            raise FormError(f"its name says that it is of {len(latents):,} latents; there may be {LARGEST_FILE:,}")
        words = None if tokenizer is None else vocabulary(tokenizer)
        cached = LatentsFile(path)
        found.append(delphi_latents.parse(cached, match, latents, file=row["sha256"], words=words))
    except FormError as error:
        row |= {"status": "rejected", "reason": str(error)}
    except OSError as error:
        row |= {"status": "rejected", "reason": f"it cannot be read: {error.strerror or error}"}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        row |= {"status": "rejected", "reason": f"it is not of this form: {error}"}
    files = [row] if is_first or row["status"] == "rejected" else []
    return imports.batch(found, files, source=source)


@lru_cache(maxsize=4)
def _hash(path: Path, _changed: int, _size: int) -> str:
    with path.open("rb") as file:
        return TAG + hashlib.file_digest(file, "sha256").hexdigest()


def _found(form: str, root: Path) -> list[Task]:
    """The files of a form as tasks, layer by layer.

    Raises:
        SettingsError: the folder is none, holds no such files, or several sets of them.
    """
    if not root.exists():
        raise SettingsError(f"{root} is not there; give a folder or a file of the form `{form}`")
    matches = _matches(form, _names(root))
    if form == neuronpedia_import.FORM and any(match["kind"] for match in matches.values()):
        # Other files beside the bulk files are about something else.
        matches = {name: match for name, match in matches.items() if match["kind"]}
    if not matches:
        raise SettingsError(f"{root} holds no files of the form `{form}`; they would be such as {EXAMPLES[form]}")
    roots = (
        sorted({match["root"] or "." for match in matches.values()})
        if form != neuronpedia_import.FORM or not any(match["kind"] for match in matches.values())
        else sorted({re.sub(r"/[0-9]+(?=(-[^/]*)?$)", "/*", f"/{match['root']}") for match in matches.values()})
    )
    if len(roots) > 1:
        raise SettingsError(f"{root} holds several sets of data: {', '.join(roots[:5])}; import one of these folders")
    return tasks(form, matches)


def _matches(form: str, names: Iterable[str]) -> dict[str, re.Match[str]]:
    pattern, _ = FORMS[form]
    return {name: match for name in names if (match := pattern.fullmatch(name))}


def tasks(form: str, names: Iterable[str]) -> list[Task]:
    """Files of a form, by their paths, as tasks, layer by layer; the files of a neuron are in one.

    Raises:
        SettingsError: there are latents of several places in the model that would be one layer.
    """
    found: list[tuple[int, int, Task]] = []
    neurons: dict[tuple[int, int], list[str]] = {}
    hookpoints: dict[int, set[str]] = {}
    for name, match in sorted(_matches(form, names).items()):
        named = match.groupdict()
        layer = int(named.get("layer") or 0)
        if named.get("first") is None:
            at = layer, int(named.get("neuron") or named.get("batch") or 0)
            neurons.setdefault(at, []).append(name)
            continue
        hookpoints.setdefault(layer, set()).add(named["hookpoint"])
        first, end = int(named["first"]), int(named["last"]) + 1
        width = NEURONS if end - first <= LARGEST_FILE else end - first
        ranges = [range(start, min(start + width, end)) for start in range(first, end, width)] or [range(first, first)]
        found += [(layer, part.start, Task((name,), part)) for part in ranges]
    for layer, names_of in hookpoints.items():
        if len(names_of) > 1:
            raise SettingsError(
                f"there are latents of {' and '.join(sorted(names_of))}, which would all be neurons of layer {layer}; "
                "import folders that hold one of them each, under a --source of its own"
            )
    for layer, some in groupby(sorted(neurons), key=itemgetter(0)):
        of_layer = list(some)
        for start in range(0, len(of_layer), NEURONS):
            chosen = of_layer[start : start + NEURONS]
            found.append((layer, chosen[0][1], Task(tuple(name for at in chosen for name in neurons[at]))))
    return [task for _, _, task in sorted(found, key=lambda one: one[:2])]


LARGEST_FILE = 2**22
"""Most latents that one file may say it holds."""
EXAMPLES = {
    "openai": "explanations/5/131.jsonl",
    "neuronpedia": "gpt2-small/5/explanations/batch-0.jsonl.gz",
    "delphi": "explanations/layers.5.mlp_latent131.txt",
    "csv": "explanations.csv",
    "jsonl": "explanations.jsonl",
}


def _read(path: Path) -> bytes:
    """The bytes of a file. A pipe or a device, which may never end, is none, whatever its name."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise FormError("it is no file, but a device, a pipe or a folder")
    if status.st_size > LARGEST:
        raise FormError(f"it has more than {LARGEST:,} bytes")
    return path.read_bytes()


def _path(root: Path, name: str) -> Path:
    return root if root.is_file() else root / name


def _unpacked(name: str, data: bytes) -> bytes:
    """The bytes of a file, of one in gzip what is in it."""
    if not name.endswith(".gz"):
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            whole = packed.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FormError(f"it cannot be unpacked: {error}") from None
    if len(whole) > LARGEST:
        raise FormError(f"it unpacks to more than {LARGEST:,} bytes")
    return whole


def _names(root: Path) -> Iterator[str]:
    """Every file below a folder, by its path within it; a file by its name."""
    if root.is_file():
        yield root.name
        return
    for folder, _, files in os.walk(root):
        inside = Path(folder).relative_to(root).as_posix()
        yield from (name if inside == "." else f"{inside}/{name}" for name in files)
