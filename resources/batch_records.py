"""Batch records: which requests were handed to a provider together, on disk before they are, until they are answered.

A batch that was submitted is paid for, so its name is written down before anyone waits for it. Two tables of the reply
journal:

    batches           a batch: what it is called here and at the provider, and how far it has come
    batch_requests    request -> the batch that holds it; nobody else may send it meanwhile

    begun -> (upload) -> uploaded -> creating -> (create) -> created -> (wait, download) -> gone, in the transaction
                                                                       that keeps its replies

Only in `creating` it is not known whether the provider has the batch; its list then says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from resources.journal import Journal, Received, transaction

BEGUN, UPLOADED, CREATING, CREATED = "begun", "uploaded", "creating", "created"


@dataclass(frozen=True)
class BatchRecord:
    """One batch that is not over."""

    key: str
    """Its name here, which the provider repeats as metadata."""
    endpoint: str
    path: str
    """Of each of its requests, such as `/v1/chat/completions`."""
    form: str
    """How its requests were written, of what endpoints differ in."""
    state: str
    file_id: str | None
    batch_id: str | None
    """Its name at the provider."""
    begun_at: str
    """ISO 8601, UTC."""


class BatchRecords:
    """The batches of an open journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._rows = journal.connection

    def begin(self, record: BatchRecord, requests: Mapping[str, str], *, flushes: int) -> set[str] | None:
        """Write down a batch of `requests` (each with all that is sent, as JSON), and say which of them are in it.

        Not in it are those that another process sends now, that another batch holds, or whose reply is here. None, and
        no batch, if replies have moved to the lake since there were so many `flushes`: then look there first.
        """
        with transaction(self._rows):
            if self._journal.flushes() != flushes:
                return None
            taken = self.held() | {request_id for (request_id,) in self._rows.execute("SELECT request_id FROM replies")}
            taken |= self._journal.claimed_by_others()
            mine = [
                (request_id, record.key, asked) for request_id, asked in requests.items() if request_id not in taken
            ]
            if mine:
                self._rows.execute(
                    "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (record.key, record.endpoint, record.path, record.form, record.state, record.file_id,
                     record.batch_id, record.begun_at),
                )  # fmt: skip
                self._rows.executemany("INSERT INTO batch_requests VALUES (?, ?, ?)", mine)
        return {request_id for request_id, *_ in mine}

    def holding(self, request_ids: Sequence[str]) -> list[BatchRecord]:
        """The batches that hold any of these requests, the oldest first."""
        if not self._rows.execute("SELECT EXISTS (SELECT 1 FROM batches)").fetchone()[0]:
            return []
        wanted = set(request_ids)
        members = self._rows.execute("SELECT request_id, key FROM batch_requests")
        keys = {key for request_id, key in members if request_id in wanted}
        rows = self._rows.execute("SELECT * FROM batches ORDER BY begun_at, key").fetchall()
        return [BatchRecord(*row) for row in rows if row[0] in keys]

    def held(self) -> set[str]:
        """Every request that a batch holds."""
        return {request_id for (request_id,) in self._rows.execute("SELECT request_id FROM batch_requests")}

    def waiting(self) -> list[tuple[BatchRecord, int]]:
        """Every batch that is not over, with the number of its requests."""
        counts = dict(self._rows.execute("SELECT key, count(*) FROM batch_requests GROUP BY key").fetchall())
        rows = self._rows.execute("SELECT * FROM batches ORDER BY begun_at, key").fetchall()
        return [(BatchRecord(*row), counts.get(row[0], 0)) for row in rows]

    def find(self, key: str) -> BatchRecord | None:
        """A batch by its name here, None if it is over."""
        row = self._rows.execute("SELECT * FROM batches WHERE key = ?", (key,)).fetchone()
        return None if row is None else BatchRecord(*row)

    def requests(self, key: str) -> dict[str, str]:
        """The requests of a batch in the order of its file, each with all that is sent as JSON."""
        query = "SELECT request_id, request FROM batch_requests WHERE key = ? ORDER BY request_id"
        return dict(self._rows.execute(query, (key,)).fetchall())

    def note(self, key: str, state: str, *, file_id: str | None = None, batch_id: str | None = None) -> None:
        """Write down how far a batch has come."""
        with transaction(self._rows):
            self._rows.execute(
                "UPDATE batches SET state = ?, file_id = coalesce(?, file_id), batch_id = coalesce(?, batch_id) "
                "WHERE key = ?",
                (state, file_id, batch_id, key),
            )

    def finish(self, key: str, received: Sequence[Received]) -> None:
        """Keep the replies of a batch and forget it, both or neither."""
        with transaction(self._rows):
            self._journal.add(received)
            self._rows.execute("DELETE FROM batch_requests WHERE key = ?", (key,))
            self._rows.execute("DELETE FROM batches WHERE key = ?", (key,))


def begun(key: str, *, endpoint: str, path: str, form: str) -> BatchRecord:
    """A batch of which the provider knows nothing yet."""
    return BatchRecord(key, endpoint, path, form, BEGUN, None, None, datetime.now(UTC).isoformat())
