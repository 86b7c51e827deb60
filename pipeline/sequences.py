"""A sequence is a fixed-length window of one document: the text that the subject model reads.

    documents -> distinct documents -> (a sample of `limit`) -> tokens -> one window each -> distinct windows

Everything that looks random here is a hash: which split a document falls into, which documents a limit keeps, and
where in a document its window lies. So the table depends on the texts, the tokenizer and three numbers, never on the
order of the corpus, the machine or the run.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl

from pipeline import provenance, tables
from pipeline.errors import CorpusError, SettingsError
from pipeline.ports import Document, Rejected, Tokens

SHARES = {"explain": 4, "calibrate": 1, "score": 2, "test": 1}
"""How many eighths of all documents each split has, in expectation."""

SCHEMA = {name: type_ for name, type_ in tables.sequences.schema.items() if name != "run_id"}

_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 1_000_000
"""A token in a Python list takes some 80 bytes, so this keeps a batch of long documents near 50 MB."""

_EXAMPLES = 5


@dataclass(frozen=True)
class Sequences:
    """The sequences of a corpus, and what became of the documents that are not among them.

    `documents + sum(rejected.values())` is everything that the corpus gave.
    """

    frame: pl.DataFrame
    """Rows of `pipeline.tables.sequences` without `run_id`, sorted by `sequence_id`."""
    documents: int
    """Documents accepted, duplicates included."""
    rejected: dict[str, int]
    """How many documents were rejected for each kind of reason: the part of the sentence before its first colon."""
    first_rejected: tuple[Rejected, ...]
    """The first few of them, with the whole sentence."""
    duplicates: int
    """Documents left out because their text, or the tokens of their window, are those of another document."""
    too_short: int
    """Documents that gave no token at all."""


def document_hash(text: str) -> str:
    """The tagged SHA-256 of a document's UTF-8 bytes."""
    return provenance.TAG + hashlib.sha256(text.encode("utf-8")).hexdigest()


def split_of(document_hash: str) -> str:
    """The split of a document, from its hash alone: one of `pipeline.tables.SPLITS`, with the odds of `SHARES`.

    The last digits decide, because a `limit` sorts by the first ones and must not favour a split.
    """
    eighth = int(document_hash[-8:], 16) % 8
    return [split for split, share in SHARES.items() for _ in range(share)][eighth]


def sequences(
    documents: Iterable[Document | Rejected],
    tokenize: Callable[[Sequence[str]], Sequence[Tokens]],
    *,
    length: int = 64,
    limit: int | None = None,
    seed: int = 0,
) -> Sequences:
    """One window of at most `length` tokens from every distinct document, or from a sample of `limit` of them.

    The window lies anywhere in the document with equal odds, decided by (`seed`, document hash); a document that is
    shorter than `length` is its own window. Of documents with one text the first in the corpus is kept. Of windows
    with the same tokens the one with the smaller document hash is kept, so that what is explained is never what is
    scored.

    `limit` keeps the documents with the smallest hashes: a sample that is the same for any order of the corpus, holds
    every smaller sample, and has the shares of the splits. Texts are held for one batch, or for `limit` documents.

    Raises:
        CorpusError: no document was accepted, or none gave a token.
        SettingsError: `length` or `limit` is not positive.
    """
    if length < 1:
        raise SettingsError(f"`length` (={length}) must be positive: it is the number of tokens of a sequence")
    if limit is not None and limit < 1:
        raise SettingsError(f"`limit` (={limit}) must be positive; leave it out to keep every document")
    tally = _Tally()
    chosen: Iterable[tuple[str, Document]] = _distinct(documents, tally)
    if limit is not None:
        chosen = heapq.nsmallest(limit, chosen, key=lambda pair: pair[0])
    frames = [pl.DataFrame(schema=SCHEMA)]
    too_short = 0
    for batch in _batches(chosen):
        frames.append(_windows(batch, tokenize, length=length, seed=seed))
        too_short += len(batch) - frames[-1].height
    frame = pl.concat(frames)
    if frame.is_empty():
        raise CorpusError(_no_text(tally))
    distinct = frame.sort("document_hash").unique("token_ids", keep="first", maintain_order=True)
    return Sequences(
        frame=distinct.sort("sequence_id"),
        documents=tally.documents,
        rejected=dict(tally.rejected),
        first_rejected=tuple(tally.first_rejected),
        duplicates=tally.duplicates + frame.height - distinct.height,
        too_short=too_short,
    )


@dataclass
class _Tally:
    """What has been counted so far in one pass over the documents."""

    documents: int = 0
    duplicates: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first_rejected: list[Rejected] = field(default_factory=list)


def _distinct(documents: Iterable[Document | Rejected], tally: _Tally) -> Iterator[tuple[str, Document]]:
    """Each text once, with its hash."""
    seen: set[bytes] = set()
    for document in documents:
        if isinstance(document, Rejected):
            tally.rejected[document.reason.partition(":")[0]] += 1
            if len(tally.first_rejected) < _EXAMPLES:
                tally.first_rejected.append(document)
            continue
        tally.documents += 1
        hashed = document_hash(document.text)
        digest = bytes.fromhex(hashed.removeprefix(provenance.TAG))
        if digest in seen:
            tally.duplicates += 1
            continue
        seen.add(digest)
        yield hashed, document


def _batches(documents: Iterable[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    batch: list[tuple[str, Document]] = []
    characters = 0
    for hashed, document in documents:
        batch.append((hashed, document))
        characters += len(document.text)
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _windows(
    batch: Sequence[tuple[str, Document]],
    tokenize: Callable[[Sequence[str]], Sequence[Tokens]],
    *,
    length: int,
    seed: int,
) -> pl.DataFrame:
    """The window of each document of a batch; a document without tokens has none."""
    rows: list[dict[str, object]] = []
    tokenised = tokenize([document.text for _, document in batch])
    for (hashed, document), tokens in zip(batch, tokenised, strict=True):
        if not tokens.ids:
            continue
        offset = _offset(hashed, len(tokens.ids), length=length, seed=seed)
        ids = tokens.ids[offset : offset + length]
        pieces = tokens.pieces[offset : offset + length]
        identity = provenance.identity("sequence", document=hashed, offset=offset, token_ids=ids)
        rows.append(
            {
                "sequence_id": provenance.short(identity),
                "document_id": document.document_id,
                "document_hash": hashed,
                "split": split_of(hashed),
                "offset": offset,
                "token_ids": ids,
                "token_bytes": pieces,
                # A window may begin or end within a character; only there does U+FFFD stand.
                "text": b"".join(pieces).decode("utf-8", errors="replace"),
                "identity": identity,
            }
        )
    return pl.DataFrame(rows, schema=SCHEMA)


def _offset(hashed: str, n_tokens: int, *, length: int, seed: int) -> int:
    """Where the window of a document starts, in tokens: 0 to `n_tokens - length`, each with equal odds."""
    last = max(0, n_tokens - length)
    drawn = hashlib.sha256(f"window:{seed}:{hashed}".encode("ascii")).digest()
    return int.from_bytes(drawn, "big") % (last + 1)


def _no_text(tally: _Tally) -> str:
    found = f"the corpus holds no text: {tally.documents:,} documents accepted, none of which gave a token"
    if tally.documents:
        return f"{found}; the tokenizer must give at least one token for some document"
    rejected = sum(tally.rejected.values())
    if not rejected:
        return "the corpus holds no text: it gave no document at all; choose a corpus with at least one non-empty text"
    first = tally.first_rejected[0]
    return (
        f"the corpus holds no text: all {rejected:,} documents were rejected, the first is `{first.document_id}` "
        f"({first.reason}); choose a corpus with at least one UTF-8 text"
    )
