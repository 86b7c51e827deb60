"""The lake: one Delta table for each table of `pipeline.tables`, in a local folder or under an object-store prefix.

    {uri}/{table}/layer=5/part-….parquet     the rows: sorted by neuron, about 256 KiB to a row group
    {uri}/{table}/_delta_log/….json          the commits: each with its `commit_uuid` and provenance record
    {uri}/_ledger/…                          a line for each commit, hash-chained (`resources.ledger`)

A write replaces one slice or adds rows with new keys, and is wholly there or not there at all. Two writers may meet:
Delta refuses the later one, which then starts again from the newer version. On a local disk a write is forced to the
medium before it counts as done.

What surprises has its reason beside it, from measurements on deltalake 1.6 and polars 2.1. How a table looks to Delta is in
`resources.table_form`, what single commits say in `resources.commits`.
"""

import os
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote
from uuid import uuid4

import polars as pl
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from pipeline.errors import LakeError
from pipeline.ports import Commit, Lake
from pipeline.tables import TABLES, Table
from resources import table_form
from resources.commits import COMMIT_UUID, LAID_TOGETHER, Commits, Log, described, metadata
from resources.delta_errors import failure, said
from resources.known_keys import KnownKeys
from resources.ledger import Ledger, LocalLedger, StoredLedger
from resources.places import Places
from resources.slices import LARGEST_INDEX, Slice, index

WHOLE = frozenset({"sequences", "vocabulary"})
"""Tables without layers whose content is one unit, so that a write may replace all of it. The others only grow."""

SYNTAX = frozenset("%=*?[]\\^|")
"""Characters that may not stand in the address of a lake: Delta decodes or refuses some, polars expands the others."""

OLDER_KEPT = 64
"""Tables that stay open at a version that is not the newest."""
TICK_NS = 200_000_000
"""A folder that changed less than this ago may change again under the same time: some file systems count in jiffies."""

SMALL_FILES = 64
"""Files of less than half of the usual size that a table which grows may have; then they are laid together."""

TRIES = 30
LONGEST_PAUSE = 2.0
"""Seconds. A writer that lost to another waits a random time up to this before it starts again."""

_Reaches = Mapping[int | None, Sequence[tuple[str, int, int]]]
"""For each layer its files, each with the first and the last neuron that it can hold."""


class DeltaLake(Lake):
    """The tables of `pipeline.tables` as Delta tables.

    `uri` is a local folder, or a prefix such as `s3://bucket/prefix`. An object store is reached with what the
    environment says (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...), so no credential is ever an argument here. Nothing
    is created before the first write.

    Raises:
        LakeError: `uri` is empty, a `file:` address, or holds a character that Delta or polars takes for syntax.
    """

    uri: str

    def __init__(self, uri: str | Path) -> None:
        text = str(uri)
        if not text.strip() or text.startswith("file:"):
            raise LakeError(
                f"`uri` (={text!r}) must be a folder such as `lake`, or a prefix such as `s3://bucket/lake`"
            )
        _without_syntax(text, text)
        try:
            self._folder = None if "://" in text else Path(text).expanduser().resolve()
        except RuntimeError as error:
            raise LakeError(f"`uri` (={text!r}) names no folder: {error}; write it in full") from error
        if self._folder is not None:
            text = _without_syntax(str(self._folder), text)
        self.uri = text.rstrip("/")
        self._opened: dict[str, tuple[Log | str, DeltaTable]] = {}
        self._settled: dict[str, tuple[int, int]] = {}
        """The folder of the commits of each table that was opened, by place and time, if it had been at rest."""
        self._older: dict[tuple[str, int, int | None], DeltaTable] = {}
        self._files: dict[str, tuple[DeltaTable, _Reaches | None]] = {}
        self._known_commits: dict[str, Commits] = {}
        self._places = Places()
        self._keys: dict[str, KnownKeys] = {}
        self.ledger: Ledger | None = StoredLedger(self.uri) if self._folder is None else LocalLedger(self._folder)
        """Its line seals each commit; None for a lake that is written without one."""

    def scan(
        self, table: str, *, layer: int | None = None, neurons: Sequence[int] | None = None, version: int | None = None
    ) -> pl.LazyFrame:
        """The rows of a table, of one layer, or of some neurons of it, in no promised order; none if never written.

        The frame stays at the version that was newest (or asked for) when it was made. Hand it to `collect`, which
        tells a damaged file from a bug.

        Raises:
            LakeError: no such table or version, an index is none, or the table is damaged.
        """
        spec = declaration(table)
        part = Slice.of(spec, layer, neurons)
        found = self._newest(spec) if version is None else self._at_version(spec, version)
        if found is None:
            return spec.empty().lazy()
        rows = self._directly(spec, found, part)
        if rows is None:
            rows = pl.scan_delta(found)
            if absent := table_form.absent(spec, found):
                rows = rows.with_columns(pl.lit(None, spec.columns[name].type).alias(name) for name in absent)
            rows = rows.filter(part.expression)
        return rows.select(list(spec.columns))

    def read(
        self, table: str, *, layer: int | None = None, neurons: Sequence[int] | None = None, version: int | None = None
    ) -> pl.DataFrame:
        """The rows that `scan` gives, in the order that the table declares.

        Raises:
            LakeError: as in `scan`, or a data file is damaged or gone.
        """
        spec = declaration(table)
        return collect(self.scan(table, layer=layer, neurons=neurons, version=version)).sort(spec.sort or spec.key)

    def find(self, table: str, keys: pl.DataFrame) -> pl.LazyFrame:
        """The rows of a table without layers that have these keys. Only files with any of them are read.

        Raises:
            LakeError: no such table, it has layers, or it is damaged.
        """
        spec = declaration(table)
        if spec.by_layer:
            raise LakeError(f"table `{table}` has layers; read it by slice")
        found = self._newest(spec)
        return spec.empty().lazy() if found is None else self._rows_with(spec, found, keys)

    def _rows_with(self, spec: Table, found: DeltaTable, keys: pl.DataFrame) -> pl.LazyFrame:
        key = list(spec.key)
        known = self._keys.setdefault(
            spec.name, KnownKeys(key, lambda files: collect(pl.scan_parquet(list(files), glob=False).select(key)))
        )
        files = known.files_with(keys, found.file_uris())
        if not files:
            return spec.empty().lazy()
        rows = pl.scan_parquet(files, glob=False, schema=spec.schema, missing_columns="insert")
        return rows.join(keys.lazy().select(key).unique(), on=key, how="semi").select(list(spec.columns))

    def rows(self, table: str, *, layer: int | None = None) -> int:
        """How many rows a table, or one layer of it, has. Reads the commits, no data.

        Raises:
            LakeError: no such table, it has no layers, or it is damaged.
        """
        spec = declaration(table)
        part = Slice.of(spec, layer, None)
        found = self._newest(spec)
        if found is None:
            return 0
        files = pl.DataFrame(found.get_add_actions(flatten=True))
        if part.layer is not None:
            files = files.filter(pl.col("partition.layer") == part.layer)
        return int(files.get_column("num_records").sum())

    def files(self, table: str, *, layer: int | None = None) -> list[str]:
        """The Parquet files that hold the rows of a table, or of one layer of it, now; none if never written.

        Their partition, `layer`, stands in the names of their folders and not in the files.

        Raises:
            LakeError: no such table, it has no layers, or it is damaged.
        """
        spec = declaration(table)
        part = Slice.of(spec, layer, None)
        found = self._newest(spec)
        if found is None:
            return []
        return sorted(file for file in found.file_uris() if part.layer is None or f"/layer={part.layer}/" in file)

    def slices(self, table: str) -> dict[int | None, tuple[int, frozenset[str | None]]]:
        """For each layer of a table (None for one without layers), its rows now and the commits that wrote them.

        A commit is its `commit_uuid`, None if it is not one of ours or its file is gone. Reads the log, no data.

        Raises:
            LakeError: no such table, or it is damaged.
        """
        spec = declaration(table)
        found = self._newest(spec)
        if found is None:
            return {}
        files = pl.DataFrame(found.get_add_actions(flatten=True))
        layers = files.get_column("partition.layer").to_list() if spec.by_layer else [None] * len(files)
        wrote: dict[str, str | None] = {unquote(path): None for path in files.get_column("path")}
        sought = set(wrote)
        for version in range(found.version(), -1, -1):
            if not sought:
                break
            try:
                actions = self._commits(spec).actions(version)
            except LakeError:
                break
            commit_uuid = next(
                (action["commitInfo"].get(COMMIT_UUID) for action in actions if "commitInfo" in action), None
            )
            for path in sought & {unquote(action["add"]["path"]) for action in actions if "add" in action}:
                wrote[path] = commit_uuid
                sought.discard(path)
        rows: dict[int | None, int] = {}
        commits: dict[int | None, set[str | None]] = {}
        for layer, path, count in zip(layers, files.get_column("path"), files.get_column("num_records"), strict=True):
            rows[layer] = rows.get(layer, 0) + int(count)
            commits.setdefault(layer, set()).add(wrote[unquote(path)])
        return {layer: (count, frozenset(commits[layer])) for layer, count in rows.items()}

    def run_ids(self, table: str, *, layer: int | None = None) -> set[str]:
        """The runs that wrote the rows of a table, or of one layer of it. Reads that column alone.

        Raises:
            LakeError: no such table, it has no layers, or it is damaged.
        """
        found = collect(self.scan(table, layer=layer).select(pl.col("run_id").unique()))
        return set(found.get_column("run_id"))

    def version(self, table: str) -> int | None:
        """The Delta version of a table, or None when it was never written.

        Raises:
            LakeError: no such table, or it is damaged.
        """
        spec = declaration(table)
        found = self._newest(spec)
        # The first versions only say what the table is like.
        return None if found is None or found.version() < 1 + len(table_form.constraints(spec)) else found.version()

    def ledger_head(self) -> str | None:
        """The hash that stands for all that was ever written here; None before the first write.

        Raises:
            LakeError: the ledger is damaged.
        """
        return None if self.ledger is None else self.ledger.head()

    def replace(
        self,
        table: str,
        frame: pl.DataFrame,
        *,
        layer: int | None = None,
        neurons: Sequence[int] | None = None,
        record: Mapping[str, Any],
        commit_uuid: str | None = None,
        allow_empty: bool = False,
    ) -> Commit:
        """Replace exactly one slice: a layer, some neurons of a layer, or (only for tables of `WHOLE`) all.

        `record` goes into the Delta commit as JSON, beside `commit_uuid`. When another writer came first, the write
        starts again from the newer version, so the later of two writes to one slice stands. An empty frame, which
        would empty the slice, is refused unless `allow_empty`.

        Raises:
            LakeError: the rows break a rule of the table, lie outside the slice or are none; the table only grows;
                `record` is not JSON; the table is damaged; or the write failed.
        """
        spec = declaration(table)
        part = Slice.of(spec, layer, neurons)
        if spec.by_layer and part.layer is None:
            raise LakeError(f"a write to table `{table}` replaces one layer or some neurons of it; say which `layer`")
        if not spec.by_layer and table not in WHOLE:
            raise LakeError(f"table `{table}` only grows, so nothing in it is replaced; use `add`")
        rows = spec.conform(frame)
        if rows.is_empty() and not allow_empty:
            raise LakeError(f"no rows to write to table `{table}`; pass allow_empty=True to empty {part}")
        if outside := rows.filter(~part.expression).height:
            raise LakeError(f"{outside:,} of {len(rows):,} rows lie outside the slice of `{table}` to replace: {part}")
        commit = self._commit(
            spec, lambda _: rows, mode="overwrite", part=part, record=record, commit_uuid=commit_uuid or str(uuid4())
        )
        assert commit is not None  # noqa: S101 - for the type checker: there are always rows, if only none of them
        return commit

    def add(self, table: str, frame: pl.DataFrame, *, record: Mapping[str, Any]) -> Commit | None:
        """Add those rows whose key is not in the table yet (a table without layers); None if there were none.

        Of two writers that add one key, the first wins, and its row stays as it is.

        Raises:
            LakeError: the rows break a rule of the table, the table has layers, `record` is not JSON, the table is
                damaged, or the write failed.
        """
        spec = declaration(table)
        if spec.by_layer:
            raise LakeError(f"table `{table}` has layers, so its rows are replaced by slice; use `replace`")
        rows = spec.conform(frame)
        key = list(spec.key)

        def new(found: DeltaTable) -> pl.DataFrame | None:
            known = self._rows_with(spec, found, rows.select(key))
            fresh = rows.join(collect(known.select(key)), on=key, how="anti", maintain_order="left")
            return None if fresh.is_empty() else fresh

        if rows.is_empty():
            return None
        commit = self._commit(spec, new, mode="append", part=Slice(), record=record, commit_uuid=str(uuid4()))
        if commit is not None and commit.version >= SMALL_FILES:
            self._lay_together(spec)
        return commit

    def history(self, table: str) -> list[dict[str, Any]]:
        """The commits of a table, newest first: version, timestamp (UTC), operation, commit_uuid and record.

        `commit_uuid` is None and `record` is empty for commits that wrote no rows of ours. Each version's own commit
        file is read, because Delta's `history()` gives commits wrong numbers while others write.

        Raises:
            LakeError: no such table, or it is damaged.
        """
        spec = declaration(table)
        found = self._newest(spec)
        newest = -1 if found is None else found.version()
        return [described(version, self._commits(spec).actions(version)) for version in range(newest, -1, -1)]

    def version_at(self, table: str, moment: datetime) -> int | None:
        """The version of a table that was the newest at a time, by the times in its commits; None if it had none then.

        Raises:
            LakeError: no such table, or it is damaged.
        """
        spec = declaration(table)
        found = self._newest(spec)
        if found is None:
            return None
        versions, until = range(found.version() + 1), round(moment.timestamp() * 1000)
        version = bisect_right(versions, until, key=lambda version: self._commits(spec).stamp(version)) - 1
        return None if version < 1 + len(table_form.constraints(spec)) else version

    def written_at(self, table: str, version: int) -> datetime:
        """When a version of a table was written.

        Raises:
            LakeError: no such table or version, or its commit is damaged.
        """
        return datetime.fromtimestamp(self._commits(declaration(table)).stamp(version) / 1000, UTC)

    def commits_of(self, table: str, layer: int, neuron: int) -> Iterator[dict[str, Any]]:
        """Those entries of `history` whose commits may have changed the rows of a neuron, newest first.

        Raises:
            LakeError: as in `history`, or an index is none.
        """
        spec = declaration(table)
        part = Slice.of(spec, layer, [neuron])
        found = self._newest(spec)
        for version in range(-1 if found is None else found.version(), -1, -1):
            actions = self._commits(spec).actions(version)
            paths = [action[kind]["path"] for action in actions for kind in ("add", "remove") if kind in action]
            if any(path.startswith(f"layer={part.layer}/") for path in paths):
                entry = described(version, actions)
                neurons = entry["record"].get("neurons")
                if neurons is None or neuron in neurons:
                    yield entry

    def find_commit(self, table: str, commit_uuid: str, *, after: int = -1) -> int | None:
        """The version of the commit with this uuid, the newest versions looked at first; None if there is none.

        Only versions greater than `after` are looked at.

        Raises:
            LakeError: no such table, or it is damaged.
        """
        spec = declaration(table)
        found = self._newest(spec)
        newest = -1 if found is None else found.version()
        versions = range(newest, after, -1)
        return next((version for version in versions if self._commits(spec).carries(version, commit_uuid)), None)

    # ---- writing

    def _commit(
        self,
        spec: Table,
        choose: Callable[[DeltaTable], pl.DataFrame | None],
        *,
        mode: Literal["append", "overwrite"],
        part: Slice,
        record: Mapping[str, Any],
        commit_uuid: str,
    ) -> Commit | None:
        """Write what `choose` picks for the version at hand, and again for a newer one as long as others come first."""
        carried = metadata(commit_uuid, record)
        fault: BaseException | None = None
        if self.ledger is not None:
            self.ledger.check()
        for pause in _pauses():
            time.sleep(pause)
            found = self._open_to_write(spec)
            before = found.version()
            rows = choose(found)
            if rows is None:
                return None
            # Without a predicate nothing makes two writers conflict: both would append, or both fill an empty table.
            # Delta refuses the second of two concurrent commits that name one application transaction.
            same = None if part.predicate else [Transaction(f"neuronledger.{spec.name}", before + 1)]
            fault = None
            try:
                write_deltalake(
                    found,
                    rows,
                    mode=mode,  # type: ignore[arg-type]  # the overloads know literals only
                    predicate=part.predicate,
                    target_file_size=table_form.FILE_BYTES,
                    writer_properties=table_form.layout(rows),
                    commit_properties=CommitProperties(custom_metadata=carried, app_transactions=same),
                )
            except BaseException as error:  # noqa: BLE001 - a Rust panic is no Exception
                fault = failure(error)
            version = self._written(spec, commit_uuid, after=before, likely=None if fault else found.version())
            if version is not None:
                # A writer that died before it came to this may have left the versions under ours in memory only.
                for each in range(version, before - 1, -1):
                    self._make_durable(spec, each)
                head = self._seal(spec, version)
                return Commit(spec.name, version=version, commit_uuid=commit_uuid, rows=len(rows), ledger_head=head)
            if not isinstance(fault, CommitFailedError):
                raise LakeError(
                    f"nothing was written to {part} of {self._at(spec)}: {said(fault) if fault else 'no such commit'}"
                ) from fault
        raise LakeError(
            f"nothing was written to {part} of {self._at(spec)}: other writers came first {TRIES} times; "
            "let them finish, then try again"
        ) from fault

    def _lay_together(self, spec: Table) -> None:
        """Lay the rows of many small files out in few. Each write that adds rows adds a file, and a read opens all of them.

        The rows and their older versions stay as they are, so what cannot be done now may be done after a later write.

        Raises:
            LakeError: it was done, but is not on the disk or has no line in the ledger.
        """
        found = self._open(spec)
        if found is None:
            return
        sizes = pl.DataFrame(found.get_add_actions(flatten=True)).get_column("size_bytes")
        if int((sizes < table_form.FILE_BYTES // 2).sum()) < SMALL_FILES:
            return
        before, commit_uuid = found.version(), str(uuid4())
        try:
            found.optimize.compact(
                target_size=table_form.FILE_BYTES,
                writer_properties=table_form.layout(spec.empty()),
                commit_properties=CommitProperties(custom_metadata=metadata(commit_uuid, {LAID_TOGETHER: len(sizes)})),
            )
        except BaseException as error:  # noqa: BLE001 - a Rust panic is no Exception
            failure(error)
        version = self._written(spec, commit_uuid, after=before, likely=None)
        if version is not None:
            self._make_durable(spec, version)
            self._seal(spec, version)

    def _written(self, spec: Table, commit_uuid: str, *, after: int, likely: int | None) -> int | None:
        """The version that our write became, or None when it did not.

        An error can come after the commit, and another writer's commit can be the newest by now: only the commit
        itself can tell.
        """
        if likely is not None and self._commits(spec).carries(likely, commit_uuid):
            return likely
        try:
            return self.find_commit(spec.name, commit_uuid, after=after)
        except LakeError as error:
            raise LakeError(
                f"it is not known whether commit {commit_uuid} of {self._at(spec)} was written: {error}; "
                "look for it in the table's history before you write again"
            ) from error

    def _open_to_write(self, spec: Table) -> DeltaTable:
        """The table at its newest version, made first if need be."""
        fault: BaseException | None = None
        for pause in _pauses():
            time.sleep(pause)
            found = self._open(spec)
            absent = [] if found is None else table_form.absent(spec, found)
            if found is not None and not absent and not (missing := table_form.missing_constraints(spec, found)):
                return found
            if fault is not None and not isinstance(fault, CommitFailedError):
                break
            try:
                if found is None:
                    found = self._create(spec)
                elif absent:
                    # The rule about numbers is of the columns that there were; without it, it is made anew below.
                    if "finite" not in table_form.missing_constraints(spec, found):
                        found.alter.drop_constraint("finite")
                        self._make_durable(spec, found.version())
                        self._seal(spec, found.version())
                    found.alter.add_columns(
                        [field for field in table_form.schema_of(spec).fields if field.name in absent]
                    )
                elif missing:
                    found.alter.add_constraint(missing)
            except BaseException as error:  # noqa: BLE001 - a Rust panic is no Exception
                # Two writers may make one table at once. The slower is refused, looks again and finds it made.
                fault = failure(error)
            else:
                self._make_durable(spec, found.version())
                self._seal(spec, found.version())
        raise LakeError(f"the table {self._at(spec)} cannot be made: {said(fault)}") from fault

    def _create(self, spec: Table) -> DeltaTable:
        return DeltaTable.create(
            self._at(spec),
            schema=table_form.schema_of(spec),
            mode="ignore",
            partition_by=["layer"] if spec.by_layer else None,
            name=spec.name,
            description=spec.doc,
            configuration=table_form.properties(spec) | ({} if self._folder else table_form.OFTEN),
        )

    def _make_durable(self, spec: Table, version: int) -> None:
        """Force one commit and its data to the disk: Delta does not, and a power cut then loses rows without a word."""
        if self._folder is None:
            return
        folder = self._folder / spec.name
        log = folder / "_delta_log"
        added = [
            folder / unquote(action["add"]["path"])
            for action in self._commits(spec).actions(version)
            if "add" in action
        ]
        # A checkpoint is written with some commits, and a torn one makes the table unreadable.
        files = [*added, *log.glob(f"{version:020}.*"), *log.glob("_last_checkpoint")]
        folders = {log, folder, *(file.parent for file in added)}
        if version == 0:
            folders |= {self._folder, self._folder.parent}
        try:
            for path in (*files, *folders):
                _fsync(path)
        except OSError as error:
            raise LakeError(
                f"version {version} of {folder} is written, but may not outlast a power cut: {error}"
            ) from error

    def _seal(self, spec: Table, version: int) -> str | None:
        """Last of all, so that what is sealed is on the disk."""
        return None if self.ledger is None else self.ledger.seal(spec.name, version)

    # ---- reading

    def _at(self, spec: Table) -> str:
        return f"{self.uri}/{spec.name}"

    def _commits(self, spec: Table) -> Commits:
        if spec.name not in self._known_commits:
            folder = None if self._folder is None else self._folder / spec.name
            self._known_commits[spec.name] = Commits(self._at(spec), folder)
        return self._known_commits[spec.name]

    def _directly(self, spec: Table, found: DeltaTable, part: Slice) -> pl.LazyFrame | None:
        """Some neurons of a table in a folder, from those files alone that can hold them; None if it is not so simple.

        Polars asks Delta anew for each frame, which takes longer than to read the neuron.
        """
        if part.neurons is None or self._folder is None:
            return None
        known = self._files.get(spec.name)
        if known is None or known[0] is not found:
            known = self._files[spec.name] = found, _reaches(found)
        files = known[1]
        if files is None:
            return None
        low, high = part.neurons[0], part.neurons[-1]
        names = [name for name, first, last in files.get(part.layer, ()) if first <= high and last >= low]
        if not names:
            return spec.empty().lazy()
        schema = {name: kind for name, kind in spec.schema.items() if name != "layer"}

        def scan(files: list[str]) -> pl.LazyFrame:
            return pl.scan_parquet(files, schema=schema, glob=False, hive_partitioning=False, missing_columns="insert")

        paths = [f"{self._folder}/{spec.name}/{name}" for name in names]
        try:
            places = self._places.rows(paths, low, high)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
            places = None  # whoever reads the file is told what is wrong with it
        if places is None:
            rows = scan(paths)
        elif places:
            rows = pl.concat([scan([file]).slice(start, length) for file, start, length in places])
        else:
            return spec.empty().lazy()
        rows = rows.with_columns(pl.lit(part.layer, pl.Int32).alias("layer"))
        is_exact = places is not None and high - low + 1 == len(part.neurons)
        return rows if is_exact else rows.filter(part.expression)

    def _at_version(self, spec: Table, version: int) -> DeltaTable | None:
        """The table at an older version, which never changes, so the last few are kept."""
        # A lake may have been removed and made again in the same place.
        at = (spec.name, version, None if self._folder is None else (self._commits(spec).changed() or (0, 0))[0])
        known = self._older.get(at)
        if known is not None:
            return known
        found = self._open(spec, version=version)
        if found is not None:
            while len(self._older) >= OLDER_KEPT:
                self._older.pop(next(iter(self._older)), None)
            self._older[at] = found
        return found

    def _newest(self, spec: Table) -> DeltaTable | None:
        """The table at its newest version, to read only; None when there is no table.

        To open it takes longer than to read a neuron, and on an object store two requests for each commit, so the last
        one is kept until its log is another. It is shared with frames that stay at its version: whoever writes opens
        one of his own.
        """
        known = self._opened.get(spec.name)
        log: Log | str
        if self._folder is not None:
            seen, at = time.time_ns(), self._commits(spec).changed()
            if known is not None and at is not None and self._settled.get(spec.name) == at:
                return known[1]
            log = self._commits(spec).files()
            if at is None and not log:
                return None
            # Two commits can come within one tick of the clock that folders are stamped by.
            if at is not None and seen - at[1] > TICK_NS and at == self._commits(spec).changed():
                self._settled[spec.name] = at
            else:
                self._settled.pop(spec.name, None)
            if known is not None and known[0] == log:
                return known[1]
        elif known is not None and self._is_newest(spec, *known):
            return known[1]
        found = self._open(spec)
        if found is not None:
            # What was written since the log was read makes it another next time.
            self._opened[spec.name] = log if self._folder else self._commits(spec).text(found.version()) or "", found
        return found

    def _is_newest(self, spec: Table, log: Log | str, found: DeltaTable) -> bool:
        """Whether the newest commit of a table on an object store is still the one that it was opened at: two reads."""
        version = found.version()
        return self._commits(spec).text(version) == log and self._commits(spec).text(version + 1) is None

    def _open(self, spec: Table, *, version: int | None = None) -> DeltaTable | None:
        """The table at a version, the newest if None; None when there is no table."""
        if version is not None:
            index(version, "version")
        self._commits(spec).files()
        try:
            found = (_LocalTable if self._folder else DeltaTable)(self._at(spec), version=version)
        except TableNotFoundError as error:
            if version is None and not self._commits(spec).exist():
                return None
            what = "is damaged" if version is None else f"has no version {version}"
            raise LakeError(f"the table {self._at(spec)} {what}: {said(error)}") from error
        except BaseException as error:  # noqa: BLE001 - a Rust panic is no Exception
            what = "is damaged or out of reach" if version is None else f"has no version {version}, or is damaged"
            cause = failure(error)
            words = f"{said(error)}{self._commits(spec).damaged_checkpoint()}"
            raise LakeError(f"the table {self._at(spec)} {what}: {words}") from cause
        stored = {field.name: field.type for field in found.schema().fields}
        declared = {field.name: field.type for field in table_form.schema_of(spec).fields}
        if stored != {name: kind for name, kind in declared.items() if name not in table_form.absent(spec, found)}:
            other = sorted(name for name in stored.keys() | declared.keys() if stored.get(name) != declared.get(name))
            raise LakeError(
                f"the table {self._at(spec)} differs from what this version of neuronledger declares in {other}; "
                "use the version that wrote it, or start a new lake"
            )
        return found


class _LocalTable(DeltaTable):
    """A table in a folder. Delta gives its files percent-encoded, where polars expects plain paths."""

    def file_uris(self, *args: Any, **kwargs: Any) -> list[str]:
        return [unquote(uri) for uri in super().file_uris(*args, **kwargs)]


def _reaches(found: DeltaTable) -> _Reaches | None:
    """Where neurons are; None if the log does not say it, names files of another folder, or has files read with exceptions."""
    if found.protocol().min_reader_version > 1:
        return None
    files = pl.DataFrame(found.get_add_actions(flatten=True))
    if not {"partition.layer", "min.neuron", "max.neuron"} <= set(files.columns):
        return None
    reaches: dict[int | None, list[tuple[str, int, int]]] = {}
    for path, layer, first, last in files.select("path", "partition.layer", "min.neuron", "max.neuron").iter_rows():
        if "://" in path:
            return None
        reach = (0, LARGEST_INDEX) if first is None or last is None else (first, last)
        reaches.setdefault(layer, []).append((unquote(path), *reach))
    return reaches


def _without_syntax(address: str, given: str) -> str:
    if wrong := {letter for letter in address if letter in SYNTAX or not letter.isprintable()}:
        raise LakeError(f"`uri` (={given!r}) must not hold any of {sorted(wrong)}; choose another folder or prefix")
    return address


def declaration(table: str) -> Table:
    """The declaration of a table.

    Raises:
        LakeError: there is no such table.
    """
    if table not in TABLES:
        raise LakeError(f"there is no table {table!r}; the tables are {', '.join(TABLES)}")
    return TABLES[table]


def collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """The rows of a lazy frame over the lake.

    Raises:
        LakeError: a data file is damaged or gone. Polars has three kinds of error for that, one of them not even an
            `Exception`.
    """
    try:
        return frame.collect()
    except (pl.exceptions.ComputeError, pl.exceptions.PanicException, OSError) as error:
        raise LakeError(
            f"a data file of the lake cannot be read: {said(error)}; restore it from a copy; or remove the folder of its table, and "
            "run again: what is missing is made again"
        ) from error


def _pauses() -> Iterator[float]:
    """Seconds to wait before each try: none, then random times with a growing bound, so that losers part ways."""
    yield 0.0
    for attempt in range(1, TRIES):
        yield random.uniform(0, min(LONGEST_PAUSE, 0.02 * 2**attempt))  # noqa: S311 - jitter, not a secret


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
