"""The kept files of imports: given back byte for byte, and parsed again to see that the rows are still what they say.

What was taken last counts: rows of an earlier import are held against its own files, as far as no later one replaced them.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from assets.imports import TOGETHER
from explorer.verify import DIFFERS, EQUAL, NOT_CHECKED, Link
from pipeline.errors import LakeError, SettingsError
from pipeline.imports import BY_LAYER, Batch
from pipeline.originals import PART, TABLE, differences, listed, n_parts, newest_first, whole
from pipeline.ports import Folder, Lake, Progress
from pipeline.provenance import TAG
from pipeline.tables import TABLES
from resources.delta import collect
from resources.foreign_files import parsed, tasks

AT_ONCE = 32 * 2**20
"""Bytes of files that are read from the lake at a time."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Kept:
    """One import whose files are kept: its record, and the path, hash and size of each file that was taken."""

    record: Mapping[str, str]
    files: pl.DataFrame
    not_kept: int = 0
    """Files of which the lake holds no bytes."""


def sources(lake: Lake) -> dict[str, list[Mapping[str, str]]]:
    """For each source its imports, the last one first."""
    return newest_first(lake.read("materializations"))


def kept(lake: Lake, source: str, record: Mapping[str, str]) -> Kept | None:
    """The files of an import; None if they were not kept."""
    list_of_files = _list(lake, record["files_hash"])
    if list_of_files is None:
        return None
    named = pl.DataFrame(list_of_files, schema={"path": pl.String, "sha256": pl.String}, orient="row")
    told = collect(
        lake.scan("imported_files")
        .filter((pl.col("source") == source) & (pl.col("status") == "imported"))
        .select("path", "sha256", "size")
    )
    files = named.join(told, on=["path", "sha256"], how="inner").unique(maintain_order=True)
    have = collect(lake.scan(TABLE).select("sha256").unique())
    return Kept(record, files, not_kept=files.join(have, on="sha256", how="anti").height)


def _list(lake: Lake, files_hash: str) -> list[tuple[str, str]] | None:
    # Part by part, each found by its key: nothing else of the files is read.
    pieces: list[bytes] = []
    while not pieces or len(pieces[-1]) == PART:
        rows = _part(lake, files_hash, len(pieces))
        if rows.is_empty():
            break
        pieces.append(rows.item(0, "content"))
    if not pieces:
        return None
    data = b"".join(pieces)
    if TAG + hashlib.sha256(data).hexdigest() != files_hash:
        raise LakeError(f"the list of files {files_hash} is not as it was written; restore the lake from a copy")
    return listed(data)


def _part(lake: Lake, sha256: str, part: int) -> pl.DataFrame:
    key = pl.DataFrame({"sha256": [sha256], "part": [part]}, schema={"sha256": pl.String, "part": pl.Int32})
    return collect(lake.find(TABLE, key))


def contents(lake: Lake, files: pl.DataFrame) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Each file (path, hash, size) with its bytes in pieces. Use up the pieces of one before the next.

    Raises:
        LakeError: the bytes are not there, or not those of the hash.
    """
    waiting: list[tuple[str, str]] = []
    size = 0
    for path, sha256, length in files.select("path", "sha256", "size").iter_rows():
        if length > PART:
            yield path, _in_parts(lake, path, sha256, n_parts(length))
            continue
        waiting.append((path, sha256))
        size += length
        if size >= AT_ONCE:
            yield from _small(lake, waiting)
            waiting, size = [], 0
    yield from _small(lake, waiting)


def _small(lake: Lake, files: Sequence[tuple[str, str]]) -> Iterator[tuple[str, Iterator[bytes]]]:
    if not files:
        return
    wanted = pl.DataFrame({"sha256": sorted({sha256 for _, sha256 in files})}).with_columns(
        pl.lit(0, pl.Int32).alias("part")
    )
    found = whole(collect(lake.find(TABLE, wanted)))
    for path, sha256 in files:
        if sha256 not in found:
            raise _lost(path, sha256)
        yield path, iter((found[sha256],))


def _in_parts(lake: Lake, path: str, sha256: str, count: int) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for part in range(count):
        rows = _part(lake, sha256, part)
        if rows.is_empty():
            raise _lost(path, sha256)
        content = rows.item(0, "content")
        digest.update(content)
        yield content
    if TAG + digest.hexdigest() != sha256:
        raise _lost(path, sha256)


def _lost(path: str, sha256: str) -> LakeError:
    return LakeError(
        f"the bytes of {path} ({sha256}) are not in `{TABLE}`, or not as they were; restore the lake from a copy"
    )


# ---- given back


def give_back(lake: Lake, folder: Folder, progress: Progress, *, source: str | None = None) -> dict[str, Any]:
    """Write the files of the last import of a source (of each unless given) as they were, below a folder of its name.

    Raises:
        SettingsError: nothing was imported under this name, or its files were not kept.
        LakeError: bytes are missing or changed.
    """
    known = sources(lake)
    if source is not None and source not in known:
        said = f"; there are {', '.join(sorted(known))}" if known else ""
        raise SettingsError(f"nothing was imported under the name {source!r}{said}")
    counts: dict[str, int] = {}
    left: list[str] = []
    for name in sorted(known if source is None else [source]):
        found = kept(lake, name, known[name][0])
        if found is None or found.not_kept:
            left.append(name)
            continue
        done = 0
        for path, pieces in contents(lake, found.files):
            folder.stream(f"{name}/{path}", pieces)
            done += 1
            progress("export originals", done, len(found.files), name)
        counts[name] = done
    if not counts:
        raise SettingsError(
            f"no files are kept of {', '.join(left) or 'any import'}: they were imported with --keep-originals no, or by an "
            "older version; import them again to keep them"
        )
    return {
        "format": "originals",
        "files": counts,
        "not_carried": [f"the files of `{name}`: they were not kept" for name in left],
    }


# ---- parsed again


def links(lake: Lake, source: str, *, say: Say = lambda _: None) -> list[Link]:
    """Whether the rows of a source are what its kept files say, an entry for each of its imports.

    Raises:
        SettingsError: nothing was imported under this name.
    """
    known = sources(lake)
    if source not in known:
        said = f"; there are {', '.join(sorted(known))}" if known else ""
        raise SettingsError(f"nothing was imported under the name {source!r}{said}")
    found: list[Link] = []
    later: Neurons = {}
    for record in known[source]:
        name = f"{source} ({record['form']}, run {record['run_id'][:8]})"
        again = _Again(lake, source, record, later)
        try:
            outcome, said = again.compare(say)
        except LakeError as error:
            outcome, said = DIFFERS, str(error)
        found.append(Link("originals", name, outcome, said))
        if outcome == NOT_CHECKED:
            # Which rows it brought is not known, so neither is which of earlier ones it replaced.
            break
        for at, neurons in again.brought.items():
            later.setdefault(at, set()).update(neurons)
    return found


Neurons = dict[tuple[str, int], set[int]]
"""By table and layer."""


class _Again:
    """One import, parsed again from its kept files and held against the rows that it wrote and no later one replaced."""

    def __init__(self, lake: Lake, source: str, record: Mapping[str, str], later: Neurons) -> None:
        self._lake, self._source, self._record, self._later = lake, source, record, later
        self.brought: Neurons = {}
        """The neurons of which it had rows."""
        self._rows: dict[str, int] = {}
        self._faults: dict[str, int] = {}

    def compare(self, say: Say) -> tuple[str, str]:
        """How it came out, and in words."""
        files = kept(self._lake, self._source, self._record)
        if files is None or files.not_kept:
            said = "its files were not kept" if files is None else f"{files.not_kept:,} of its files were not kept"
            return NOT_CHECKED, said
        tokenizer = self._record["tokenizer"]
        if tokenizer and not Path(tokenizer).exists():
            return NOT_CHECKED, f"the tokenizer that it was read with is not at {tokenizer} any more"
        for batch in self._parsed(files, say):
            # Parts of a file, such as lines, that were rejected are rejected again; a whole file was taken before.
            taken = set(files.files.get_column("path"))
            self._fault("files are not of the form any more", sum(
                file["status"] == "rejected" and file["path"] in taken for file in batch.files
            ))  # fmt: skip
            if len(batch.sequences):
                stored = collect(self._lake.find("imported_sequences", batch.sequences.select("sequence_id")))
                for what, count in differences("imported_sequences", stored, batch.sequences).items():
                    self._fault(f"sequences {what}", count)
            for together in TOGETHER:
                self._tables({name: batch.frames[name] for name in together})
        self._counted()
        if self._faults:
            return DIFFERS, "; ".join(f"{count:,} {what}" for what, count in self._faults.items())
        n, rows = len(files.files), sum(self._rows.values())
        return EQUAL, f"{n:,} kept {'file gives' if n == 1 else 'files give'} the same {rows:,} rows again"

    def _fault(self, said: str, count: int) -> None:
        if count:
            self._faults[said] = self._faults.get(said, 0) + count

    def _parsed(self, files: Kept, say: Say) -> Iterator[Batch]:
        """The files, laid down and parsed by the code that takes them over, some neurons at a time."""
        by_path = files.files.rows_by_key("path", named=True, unique=True, include_key=True)
        form, latents = self._record["form"], None
        with TemporaryDirectory(prefix="neuronledger-") as home:
            root = Path(home)
            for task in tasks(form, by_path):
                say(f"parsing {task.names[0]} of {self._source} again")
                # Several tasks are of one file of latents, which is laid down once.
                if latents is None or task.names[0] != latents:
                    _clear(root)
                    wanted = pl.DataFrame([by_path[name] for name in task.names], schema=files.files.schema)
                    for path, pieces in contents(self._lake, wanted):
                        place = root / path
                        place.parent.mkdir(parents=True, exist_ok=True)
                        with place.open("wb") as file:
                            file.writelines(pieces)
                    latents = task.names[0] if task.latents is not None else None
                yield parsed(form, root, task, source=self._source, tokenizer=self._record["tokenizer"] or None)

    def _tables(self, again: Mapping[str, pl.DataFrame]) -> None:
        """The rows of tables that come in the same files."""
        keys = pl.concat([rows.select("layer", "neuron") for rows in again.values()]).unique()
        for layer in keys.get_column("layer").unique().sort().to_list():
            of_layer = set(keys.filter(pl.col("layer") == layer).get_column("neuron").to_list())
            for name, rows in again.items():
                at = name, layer
                neurons = sorted(of_layer - self._later.get(at, set()))
                before = self.brought.setdefault(at, set())
                wanted = rows.filter((pl.col("layer") == layer) & pl.col("neuron").is_in(neurons))
                if name == "imported_neurons":
                    # Where a neuron is in several batches of a form, the first says what it is.
                    wanted = wanted.filter(~pl.col("neuron").is_in(list(before)))
                if neurons and len(wanted):
                    self._table(name, layer, neurons, wanted)
                before |= of_layer

    def _table(self, name: str, layer: int, neurons: Sequence[int], again: pl.DataFrame) -> None:
        mine = (pl.col("source") == self._source) & (pl.col("run_id") == self._record["run_id"])
        stored = self._lake.read(name, layer=layer, neurons=neurons).filter(mine)
        for what, count in differences(name, stored, again).items():
            self._fault(f"rows of {name} {what}", count)
        self._rows[name] = self._rows.get(name, 0) + again.select(TABLES[name].key).n_unique()

    def _counted(self) -> None:
        """Rows that the import wrote and that no kept file holds."""
        mine = (pl.col("source") == self._source) & (pl.col("run_id") == self._record["run_id"])
        for name in BY_LAYER:
            stored = int(collect(self._lake.scan(name).filter(mine).select(pl.len())).item())
            if not any(f" {name} " in said for said in self._faults):
                self._fault(f"rows of {name} are in none of the kept files", max(0, stored - self._rows.get(name, 0)))


def _clear(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            path.unlink()
