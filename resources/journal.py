"""The reply journal: what a language model was asked and has answered, on disk before anyone has read it.

A reply is paid for once it has been sent, so it is written down word for word before it is parsed, and it stays until
the lake has it. A file of SQLite, in WAL mode, for one machine:

    claims     request -> the call that is sending it now; a second process waits instead of paying again
    replies    request -> the raw body that came back; rows go when the lake has them
    batches, batch_requests   what was handed to a provider together; see `resources.batch_records`
    failures   every attempt that brought no reply, for people; its request may be sent again
    flushes    how often replies have moved to the lake

One reader's order makes "never twice" hold: claim, then journal, then (if a flush happened since it last looked) lake.
A reply is never in none of these places: its claim goes in the transaction that adds the reply, and the reply goes
after the lake has it.
"""

import fcntl
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from pipeline.errors import LanguageModelError

VERSION = 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS claims (
    request_id TEXT PRIMARY KEY, owner TEXT NOT NULL, pid INTEGER NOT NULL, started TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS replies (
    request_id TEXT PRIMARY KEY, endpoint TEXT NOT NULL, model TEXT NOT NULL, request TEXT NOT NULL,
    status INTEGER NOT NULL, body BLOB NOT NULL, seconds REAL NOT NULL, attempts INTEGER NOT NULL,
    answered_at TEXT NOT NULL, run_id TEXT NOT NULL, batch_id TEXT
);
CREATE TABLE IF NOT EXISTS batches (
    key TEXT PRIMARY KEY, endpoint TEXT NOT NULL, path TEXT NOT NULL, form TEXT NOT NULL, state TEXT NOT NULL,
    file_id TEXT, batch_id TEXT, begun_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS batch_requests (
    request_id TEXT PRIMARY KEY, key TEXT NOT NULL, request TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_of_batch ON batch_requests (key);
CREATE TABLE IF NOT EXISTS failures (
    request_id TEXT NOT NULL, run_id TEXT NOT NULL, reason TEXT NOT NULL, error TEXT NOT NULL, at TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS failures_of_request ON failures (request_id);
CREATE TABLE IF NOT EXISTS flushes (count INTEGER NOT NULL);
INSERT INTO flushes SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM flushes);
"""

_CLAIM = """
INSERT OR IGNORE INTO claims SELECT ?, ?, ?, ?
WHERE NOT EXISTS (SELECT 1 FROM batch_requests WHERE request_id = ?)
"""


@dataclass(frozen=True)
class Received:
    """One answer of the endpoint, as it came."""

    request_id: str
    endpoint: str
    model: str
    request: str
    """The whole request as canonical JSON."""
    status: int
    """HTTP status."""
    body: bytes
    seconds: float
    """From the first attempt to the last."""
    attempts: int
    """Times it was sent, those of earlier runs included."""
    answered_at: str
    """ISO 8601, UTC."""
    run_id: str
    batch_id: str | None = None
    """The provider's batch in which it came; None for one asked by itself."""


class Journal:
    """The journal, open for one call. Use it as a context manager; leaving it gives back all claims.

    It belongs to one thread, but for `keep`, which waits for the disk and may be called in any.

    Raises:
        LanguageModelError: the file is damaged, or was written by a later version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._one_at_a_time = threading.Lock()
        self._owner = uuid.uuid4().hex
        self._pid = os.getpid()
        self._started = _start_of(self._pid) or ""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.connection = self._connect()
        try:
            self._create()
            # A lost claim costs nothing, a lost reply money: only replies wait for the disk.
            self.connection.execute("PRAGMA synchronous = FULL")
            self._keeping = self._connect(any_thread=True)
            self._keeping.execute("PRAGMA synchronous = FULL")
            self._claims = self._connect()
            self._claims.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.DatabaseError as error:
            self.connection.close()
            raise LanguageModelError(
                f"the reply journal `{path}` cannot be used ({error}); if it is damaged, move it away: "
                "replies that the lake does not have yet are asked for again"
            ) from None
        except BaseException:
            self.connection.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._claims.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))
        finally:
            self._claims.close()
            self._keeping.close()
            self.connection.close()

    def claim(self, request_id: str) -> bool:
        """Whether this call may send the request: nobody else is at it, or who was has died."""
        mine = (request_id, self._owner, self._pid, self._started, request_id)
        if self._claims.execute(_CLAIM, mine).rowcount:
            return True
        row = self._claims.execute(
            "SELECT owner, pid, started FROM claims WHERE request_id = ?", (request_id,)
        ).fetchone()
        if row is None:
            query = "SELECT EXISTS (SELECT 1 FROM batch_requests WHERE request_id = ?)"
            return False if self._claims.execute(query, (request_id,)).fetchone()[0] else self.claim(request_id)
        owner, pid, started = row
        if owner == self._owner:
            return True
        if _start_of(pid) == started:
            return False
        taken = self._claims.execute(
            "UPDATE claims SET owner = ?, pid = ?, started = ? WHERE request_id = ? AND owner = ?",
            (self._owner, self._pid, self._started, request_id, owner),
        )
        return taken.rowcount == 1

    def claimed_by_others(self) -> set[str]:
        """Requests that other calls are sending now; those of calls that died are not among them."""
        rows = self._claims.execute("SELECT request_id, owner, pid, started FROM claims").fetchall()
        alive = {pid: _start_of(pid) for _, _, pid, _ in rows}
        return {name for name, owner, pid, started in rows if owner != self._owner and alive[pid] == started}

    def release(self, request_id: str) -> None:
        """Let others send the request."""
        self._claims.execute("DELETE FROM claims WHERE request_id = ? AND owner = ?", (request_id, self._owner))

    def look(self, request_id: str) -> tuple[Received | None, int]:
        """The reply, if it is here, and how often replies have moved to the lake: both of one moment."""
        row = self.connection.execute(
            "SELECT flushes.count, replies.* FROM flushes LEFT JOIN replies ON request_id = ?", (request_id,)
        ).fetchone()
        return (Received(*row[1:]) if row[1] is not None else None), row[0]

    def flushes(self) -> int:
        """How often replies have moved to the lake."""
        return int(self.connection.execute("SELECT count FROM flushes").fetchone()[0])

    def keep(self, *received: Received) -> None:
        """Write replies to the disk, and give back their claims. Returns when they would survive a power cut."""
        with self._one_at_a_time, transaction(self._keeping):
            _add(self._keeping, received)
            self._keeping.executemany(
                "DELETE FROM claims WHERE request_id = ?", [(one.request_id,) for one in received]
            )

    def add(self, received: Sequence[Received]) -> None:
        """Write replies within a transaction of the caller's."""
        _add(self.connection, received)

    def log_failure(self, request_id: str, *, run_id: str, reason: str, error: str) -> None:
        """Note an attempt that brought no reply."""
        at = datetime.now(UTC).isoformat()
        self._claims.execute("INSERT INTO failures VALUES (?, ?, ?, ?, ?)", (request_id, run_id, reason, error, at))

    def failures(self, request_id: str) -> int:
        """How many attempts at this request have brought no reply, in this run and earlier ones."""
        query = "SELECT count(*) FROM failures WHERE request_id = ?"
        return int(self._claims.execute(query, (request_id,)).fetchone()[0])

    def pending(self, limit: int) -> list[Received]:
        """Up to `limit` replies that the lake may not have yet, those of dead runs included."""
        return [Received(*row) for row in self.connection.execute("SELECT * FROM replies LIMIT ?", (limit,))]

    def settle(self, request_ids: Sequence[str]) -> None:
        """Forget replies that the lake has."""
        rows = [(request_id,) for request_id in request_ids]
        with transaction(self.connection):
            self.connection.executemany("DELETE FROM replies WHERE request_id = ?", rows)
            self.connection.executemany("DELETE FROM failures WHERE request_id = ?", rows)
            self.connection.execute("UPDATE flushes SET count = count + 1")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold off the other processes that would move replies to the lake."""
        with self._path.with_name(self._path.name + ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _connect(self, *, any_thread: bool = False) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=not any_thread)

    def _create(self) -> None:
        version = self.connection.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise LanguageModelError(
                f"the reply journal `{self._path}` has format {version}, and this version reads {VERSION}; "
                "use the later version that wrote it"
            )
        if version < VERSION:
            # Two processes that turn WAL on at once can get "database is locked" without any waiting.
            with self.alone():
                self.connection.execute("PRAGMA journal_mode = WAL")
                if self.connection.execute("PRAGMA user_version").fetchone()[0] == 1:
                    self.connection.execute("ALTER TABLE replies ADD COLUMN batch_id TEXT")
                self.connection.executescript(_SCHEMA)
                self.connection.execute(f"PRAGMA user_version = {VERSION}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _add(connection: sqlite3.Connection, received: Sequence[Received]) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [astuple(one) for one in received]
    )


def _start_of(pid: int) -> str | None:
    """When a living process began, in clock ticks since boot; None if it is dead. A pid alone may be used again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # A killed process whose parent has not looked yet is a zombie (Z): it sends nothing any more.
    return None if fields[0] in {"Z", "X"} else fields[19]
