"""Sequences: one window per distinct document, decided by hashes alone, with splits that never share a text."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import provenance, tables
from pipeline.errors import CorpusError, SettingsError
from pipeline.ports import Document, Rejected, Tokens
from pipeline.sequences import SHARES, document_hash, sequences, split_of


def words(texts: Sequence[str]) -> list[Tokens]:
    """A tokenizer whose tokens are words with the white space before them; white space alone gives no token."""
    return [
        Tokens(
            ids=[int(hashlib.sha256(piece.encode()).hexdigest()[:6], 16) for piece in pieces],
            pieces=[piece.encode() for piece in pieces],
        )
        for pieces in (re.findall(r"\s*\S+", text) for text in texts)
    ]


def bytewise(texts: Sequence[str]) -> list[Tokens]:
    """A tokenizer with one token per UTF-8 byte, so that windows can cut characters."""
    return [Tokens(ids=list(text.encode()), pieces=[bytes([byte]) for byte in text.encode()]) for text in texts]


def corpus(*texts: str) -> list[Document | Rejected]:
    return [Document(f"d{number}", text) for number, text in enumerate(texts)]


texts = st.lists(st.text(st.sampled_from("ab \né"), max_size=30), min_size=1, max_size=30).filter(
    lambda texts: any(text.strip() for text in texts)
)


def test_a_short_document_is_its_own_window():
    row = sequences(corpus("One."), words).frame.row(0, named=True)

    assert row["document_id"] == "d0"
    assert row["document_hash"] == "sha256:" + hashlib.sha256(b"One.").hexdigest()
    assert row["offset"] == 0
    assert row["token_bytes"] == [b"One."]
    assert row["text"] == "One."


def test_the_rows_are_those_of_the_table_once_a_run_signs_them():
    frame = sequences(corpus("one two", "three"), words).frame

    signed = frame.with_columns(run_id=pl.lit("run"))

    assert tables.sequences.conform(signed).drop("run_id").equals(frame)


def test_the_identity_is_made_from_the_document_the_offset_and_the_tokens():
    row = sequences(corpus("one two three"), words, length=2).frame.row(0, named=True)

    expected = provenance.identity(
        "sequence", document=row["document_hash"], offset=row["offset"], token_ids=row["token_ids"]
    )
    assert row["identity"] == expected
    assert row["sequence_id"] == expected.removeprefix("sha256:")[:16]


def test_sequences_are_what_they_were_when_this_was_written():
    row = sequences(corpus("one two three four five"), words, length=2).frame.row(0, named=True)

    assert (row["split"], row["offset"], row["text"], row["sequence_id"]) == (
        "score",
        3,
        " four five",
        "be78ecdf8f29ddf5",
    )


def test_windows_start_anywhere_in_a_long_document():
    documents = corpus(*(" ".join(f"{number}.{word}" for word in range(5)) for number in range(300)))

    offsets = Counter(sequences(documents, words, length=3).frame["offset"])

    assert sorted(offsets) == [0, 1, 2]
    assert min(offsets.values()) > 60


def test_another_seed_draws_other_windows_and_leaves_splits_alone():
    documents = corpus(*(" ".join(f"{number}.{word}" for word in range(9)) for number in range(50)))

    first = sequences(documents, words, length=3, seed=0).frame.sort("document_id")
    second = sequences(documents, words, length=3, seed=1).frame.sort("document_id")

    assert first["offset"].to_list() != second["offset"].to_list()
    assert first["split"].to_list() == second["split"].to_list()


@given(texts, st.randoms(use_true_random=False), st.integers(1, 5), st.none() | st.integers(1, 10))
def test_the_order_of_the_corpus_changes_nothing(texts, random, length, limit):
    documents = [Document(document_hash(text), text) for text in texts]
    shuffled = random.sample(documents, len(documents))
    limit = limit if limit is None or any(text.strip() for text in texts) else None

    def made(documents):
        try:
            return sequences(documents, words, length=length, limit=limit)
        except CorpusError:  # the documents that a limit keeps may all be white space
            return None

    one, other = made(documents), made(shuffled)

    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.frame.equals(other.frame)
        assert (one.documents, one.duplicates, one.too_short) == (other.documents, other.duplicates, other.too_short)


@given(texts, st.integers(1, 5), st.integers(0, 3))
def test_a_window_is_a_run_of_its_documents_tokens(texts, length, seed):
    documents = corpus(*texts)
    by_id = {document.document_id: document.text for document in documents if isinstance(document, Document)}

    for row in sequences(documents, words, length=length, seed=seed).frame.iter_rows(named=True):
        (whole,) = words([by_id[row["document_id"]]])
        start = row["offset"]
        assert 1 <= len(row["token_ids"]) <= length
        assert len(row["token_ids"]) == min(length, len(whole.ids))
        assert row["token_ids"] == whole.ids[start : start + length]
        assert row["token_bytes"] == whole.pieces[start : start + length]
        assert row["text"] == b"".join(row["token_bytes"]).decode()


@given(texts, st.integers(1, 3))
def test_every_document_is_counted_once(texts, length):
    documents = [*corpus(*texts), Rejected("x", "empty")]

    made = sequences(documents, words, length=length)

    assert made.documents + sum(made.rejected.values()) == len(documents)
    assert made.documents == made.frame.height + made.duplicates + made.too_short


@given(texts, st.integers(1, 2))
def test_no_text_and_no_window_is_in_two_splits(texts, length):
    frame = sequences(corpus(*texts), words, length=length).frame

    assert frame["document_hash"].is_unique().all()
    assert frame.group_by("token_ids").agg(pl.col("split").n_unique())["split"].max() == 1


@given(st.lists(st.text(), min_size=1, max_size=20), st.integers(1, 4))
def test_a_window_that_cuts_a_character_is_still_text(texts, length):
    documents = corpus("é", *texts)

    for row in sequences(documents, bytewise, length=length).frame.iter_rows(named=True):
        assert row["text"] == b"".join(row["token_bytes"]).decode("utf-8", errors="replace")
        row["text"].encode("utf-8")


def test_a_repeated_document_is_kept_under_its_first_name():
    made = sequences([Document("b", "same"), Document("a", "same"), Document("c", "other")], words)

    assert sorted(made.frame["document_id"]) == ["b", "c"]
    assert made.documents == 3
    assert made.duplicates == 1


def test_of_two_equal_windows_the_smaller_document_hash_is_kept():
    # One token long, each window of these documents is the word `a`, although the texts differ.
    documents = [Document(repr(text), text) for text in ("a", "a ", "a\n", "a  ")]

    made = sequences(documents, words, length=1)

    assert made.frame["document_hash"].to_list() == [min(document_hash(text) for text in ("a", "a ", "a\n", "a  "))]
    assert made.duplicates == 3


def test_a_document_without_tokens_is_counted_as_too_short():
    made = sequences(corpus("one", "  "), words)

    assert made.frame["text"].to_list() == ["one"]
    assert made.too_short == 1


def test_rejected_documents_are_counted_by_the_kind_of_their_reason():
    made = sequences(
        [
            Rejected("a.txt", "not UTF-8: byte 0x93 at byte 7"),
            Document("b.txt", "one"),
            Rejected("c.txt", "not UTF-8: byte 0xff at byte 0"),
            Rejected("d.txt", "empty"),
        ],
        words,
    )

    assert made.rejected == {"not UTF-8": 2, "empty": 1}
    assert made.first_rejected[0] == Rejected("a.txt", "not UTF-8: byte 0x93 at byte 7")


def test_a_limit_keeps_the_documents_with_the_smallest_hashes():
    documents = corpus(*(str(number) for number in range(40)))

    frame = sequences(documents, words, limit=7).frame

    everything = sequences(documents, words).frame
    assert sorted(frame["document_hash"]) == sorted(everything["document_hash"])[:7]


def test_a_limit_reads_no_document_into_the_tokenizer_that_it_leaves_out():
    read: list[str] = []

    def watched(texts: Sequence[str]) -> list[Tokens]:
        read.extend(texts)
        return words(texts)

    sequences(corpus(*(str(number) for number in range(40))), watched, limit=7)

    assert len(read) == 7


def test_long_documents_are_tokenised_in_small_batches():
    sizes: list[int] = []

    def watched(texts: Sequence[str]) -> list[Tokens]:
        sizes.append(len(texts))
        return words(texts)

    sequences(corpus(*(f"{number} " + "a" * 600_000 for number in range(4)), *map(str, range(300))), watched)

    assert sizes == [2, 2, 256, 44]


def test_the_shares_of_the_splits_are_as_declared():
    splits = Counter(split_of(document_hash(str(number))) for number in range(8_000))

    assert set(splits) == set(tables.SPLITS) == set(SHARES)
    for split, share in SHARES.items():
        assert abs(splits[split] - share * 1_000) < 150


def test_a_limit_favours_no_split():
    documents = corpus(*(str(number) for number in range(8_000)))

    splits = Counter(sequences(documents, words, limit=800).frame["split"])

    for split, share in SHARES.items():
        assert abs(splits[split] - share * 100) < 60


def test_a_split_depends_on_the_text_alone():
    assert [split_of(document_hash(text)) for text in ("one", "two", "three", "four")] == [
        "score",
        "explain",
        "test",
        "explain",
    ]


def test_a_corpus_of_rejects_says_how_many_and_why():
    rejects = [Rejected("a.txt", "empty"), Rejected("b.txt", "not UTF-8: byte 0xff at byte 0")]

    with pytest.raises(CorpusError, match=r"all 2 documents were rejected, the first is `a.txt` \(empty\)"):
        sequences(rejects, words)


def test_a_corpus_without_documents_is_an_error():
    with pytest.raises(CorpusError, match="it gave no document at all"):
        sequences([], words)


def test_a_corpus_without_tokens_is_an_error():
    with pytest.raises(CorpusError, match="2 documents accepted, none of which gave a token"):
        sequences(corpus(" ", "\n"), words)


@pytest.mark.parametrize("length", [0, -1])
def test_a_length_must_be_positive(length):
    with pytest.raises(SettingsError, match=rf"`length` \(={length}\) must be positive"):
        sequences(corpus("one"), words, length=length)


def test_a_limit_must_be_positive():
    with pytest.raises(SettingsError, match=r"`limit` \(=0\) must be positive"):
        sequences(corpus("one"), words, limit=0)
