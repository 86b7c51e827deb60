"""Corpora: every piece of a folder, a dataset or the demo comes out once, as a document or as a reason why not."""

import ast
import gzip
import hashlib
import json
import os
import re
import sys
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import CorpusError
from pipeline.ports import Document, Rejected
from pipeline.provenance import canonical_json
from resources.corpus import PACK, DemoCorpus, HubCorpus, open_corpus


def read(path: Path | str, *, column: str = "text") -> list[Document | Rejected]:
    return list(open_corpus(str(path), column=column).documents())


def ids(path: Path | str) -> list[str]:
    return [document.document_id for document in read(path)]


def written(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- text files -----------------------------------------------------------------------------------------------------


def test_a_short_text_file_is_one_document(tmp_path):
    path = written(tmp_path / "note.txt", "Dear all,\n\nno news.\n")

    assert read(path) == [Document("note.txt", "Dear all,\n\nno news.")]


def test_a_book_is_cut_at_blank_lines_into_documents_of_about_equal_size(tmp_path):
    paragraphs = [f"{number} " + "word " * 99 + "end" for number in range(10)]
    path = written(tmp_path / "book.txt", "\n\n".join(paragraphs))

    documents = read(path)

    assert [document.document_id for document in documents] == ["book.txt:1", "book.txt:2", "book.txt:3", "book.txt:4"]
    assert "\n\n".join(document.text for document in documents) == "\n\n".join(paragraphs)
    assert all(len(document.text) <= PACK for document in documents)


def test_a_long_paragraph_is_cut_at_line_ends(tmp_path):
    lines = [f"line {number} " + "x" * 90 for number in range(50)]
    path = written(tmp_path / "lines.txt", "\n".join(lines))

    documents = read(path)

    assert "\n".join(document.text for document in documents) == "\n".join(lines)
    assert all(len(document.text) <= PACK for document in documents)


def test_a_line_of_a_megabyte_is_one_document(tmp_path):
    assert read(written(tmp_path / "long.txt", "a" * 1_000_000)) == [Document("long.txt", "a" * 1_000_000)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0")), max_size=8))
def test_every_line_of_a_text_file_that_is_not_blank_is_in_one_document(tmp_path, lines):
    documents = read(written(tmp_path / "a.txt", b"\xef\xbb\xbf" + "\n".join(lines).encode()))

    given = [line for line in lines if line.strip()]
    if given:
        assert [line for d in documents for line in d.text.split("\n") if line.strip()] == given
    else:
        assert documents == [Rejected("a.txt", "empty")]


def test_a_byte_order_mark_is_dropped(tmp_path):
    assert read(written(tmp_path / "a.txt", b"\xef\xbb\xbfone")) == [Document("a.txt", "one")]
    assert read(written(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "one"}')) == [Document("a.jsonl:1", "one")]


def test_line_ends_become_line_feeds(tmp_path):
    assert read(written(tmp_path / "a.txt", "one\r\ntwo\r\n\r\nthree\r\n")) == [Document("a.txt", "one\ntwo\n\nthree")]


def test_a_nul_character_is_text(tmp_path):
    assert read(written(tmp_path / "a.txt", "one two three\0four")) == [Document("a.txt", "one two three\0four")]


@pytest.mark.parametrize("content", [b"", b" \n\t\n", b"\xef\xbb\xbf"])
def test_a_file_without_text_is_empty(tmp_path, content):
    assert read(written(tmp_path / "a.txt", content)) == [Rejected("a.txt", "empty")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"fine\nquoted \x93word", "not UTF-8: byte 0x93 at offset 12; save the text as UTF-8"),
        (b"\xef\xbb\xbf\xff", "not UTF-8: byte 0xff at offset 3; save the text as UTF-8"),
        ("text".encode("utf-16"), "not UTF-8: it is UTF-16 or UTF-32 by its byte order mark; save as UTF-8"),
        ("text".encode("utf-16-le"), "binary: 4 of its 8 bytes are NUL"),
        (b"GIF89a\x01\x00\x01\x00\x80\xff", "not UTF-8: byte 0x80 at offset 10; save the text as UTF-8"),
        (b"\0" * 5_000, "binary: 5,000 of its 5,000 bytes are NUL"),
    ],
)
def test_a_file_that_is_not_text_is_rejected_as_a_whole(tmp_path, content, reason):
    assert read(written(tmp_path / "a.txt", content)) == [Rejected("a.txt", reason)]


def test_gzipped_text_is_read(tmp_path):
    assert read(written(tmp_path / "a.txt.gz", gzip.compress(b"one"))) == [Document("a.txt.gz", "one")]
    assert read(written(tmp_path / "a.jsonl.gz", gzip.compress(b'"one"\n"two"'))) == [
        Document("a.jsonl.gz:1", "one"),
        Document("a.jsonl.gz:2", "two"),
    ]


# Without a time in its header, so that processes that collect the tests a second apart name them alike.
@pytest.mark.parametrize(
    "content", [b"not zipped", gzip.compress(b"one" * 99, mtime=0)[:-9], gzip.compress(b"one", mtime=0)[:12] + b"\7"]
)
def test_a_broken_gzip_file_is_rejected(tmp_path, content):
    (rejected,) = read(written(tmp_path / "a.txt.gz", content))

    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith("broken gzip: ")


# --- JSON Lines -----------------------------------------------------------------------------------------------------


def test_each_line_of_json_is_a_document(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"text": "one", "n": 1}\n\n"two"\r\n{"text": "th\\nree"}')

    assert read(path) == [Document("a.jsonl:1", "one"), Document("a.jsonl:3", "two"), Document("a.jsonl:4", "th\nree")]


def test_the_column_is_chosen_by_name(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"text": "no", "body": "yes"}')

    assert read(path, column="body") == [Document("a.jsonl:1", "yes")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"body": 1, "title": 2}', "no column: `text` is not among `body`, `title`"),
        (b"{}", "no column: `text` is not among no columns at all"),
        (b'{"text": null}', "null: column `text` holds no text here"),
        (b'{"text": 3}', "not text: column `text` holds a value of type int here"),
        (b'{"text": " \\n"}', "empty"),
        (b"[1]", "not text: the line is of JSON type list, not an object or a string"),
        (b'{"text": "cut', "broken JSON: Unterminated string starting at (character 9)"),
        (b'{"text": "\\ud800 "}', "lone surrogate: U+D800 at character 0 is half a character, which has no UTF-8 form"),
        (b'{"text": "\x93"}', "not UTF-8: byte 0x93 at offset 18; save the text as UTF-8"),
    ],
)
def test_a_bad_line_is_rejected_and_its_neighbours_survive(tmp_path, line, reason):
    path = written(tmp_path / "a.jsonl", b'"first"\n' + line + b'\n"last"\n')

    assert read(path) == [Document("a.jsonl:1", "first"), Rejected("a.jsonl:2", reason), Document("a.jsonl:3", "last")]


@pytest.mark.parametrize("line", ["[" * 100_000, "9" * 5_000])
def test_a_line_that_the_json_reader_gives_up_on_is_rejected(tmp_path, line):
    (rejected,) = read(written(tmp_path / "a.jsonl", line))

    assert rejected.reason.startswith("broken JSON: ")


def test_a_reason_never_holds_what_a_table_could_not(tmp_path):
    (rejected,) = read(
        written(tmp_path / "a.jsonl", json.dumps({"\ud800" + "k" * 10_000: 1, **dict.fromkeys("abcdefghijkl")}))
    )

    assert rejected.reason.encode()
    assert len(rejected.reason) < 300
    assert rejected.reason.endswith(" and 3 more")


def test_what_was_read_before_a_gzip_file_breaks_off_is_kept(tmp_path):
    lines = "".join(json.dumps(hashlib.sha256(bytes([n])).hexdigest()) + "\n" for n in range(200)).encode()

    *documents, last = read(written(tmp_path / "a.jsonl.gz", gzip.compress(lines)[:-2_000]))

    assert documents[0] == Document("a.jsonl.gz:1", hashlib.sha256(b"\0").hexdigest())
    assert last == Rejected(
        "a.jsonl.gz", "broken gzip: Compressed file ended before the end-of-stream marker was reached"
    )


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_break_the_reader(tmp_path, content):
    for name in ("a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz", "a.parquet"):
        documents = read(written(tmp_path / name, content))
        assert documents
        for document in documents:
            (document.text if isinstance(document, Document) else document.reason).encode()


# --- Parquet --------------------------------------------------------------------------------------------------------


def test_each_row_of_a_parquet_file_is_a_document_or_a_reason(tmp_path):
    pl.DataFrame({"text": ["one", None, " ", "tw\0o"]}).write_parquet(tmp_path / "a[1].parquet")

    assert read(tmp_path / "a[1].parquet") == [
        Document("a[1].parquet:1", "one"),
        Rejected("a[1].parquet:2", "null: column `text` holds no text here"),
        Rejected("a[1].parquet:3", "empty"),
        Document("a[1].parquet:4", "tw\0o"),
    ]


def test_a_large_parquet_file_is_read_in_order(tmp_path):
    texts = [str(number) for number in range(10_000)]
    pl.DataFrame({"text": texts}).write_parquet(tmp_path / "a.parquet", row_group_size=999)

    documents = read(tmp_path / "a.parquet")

    assert [document.text for document in documents] == texts
    assert documents[-1].document_id == "a.parquet:10000"


def test_a_parquet_file_without_rows_is_empty(tmp_path):
    pl.DataFrame(schema={"text": pl.String}).write_parquet(tmp_path / "a.parquet")

    assert read(tmp_path / "a.parquet") == [Rejected("a.parquet", "empty")]


def test_a_parquet_file_without_the_column_is_an_error_that_lists_its_columns(tmp_path):
    pl.DataFrame({"title": ["one"], "body": ["two"]}).write_parquet(tmp_path / "a.parquet")

    with pytest.raises(CorpusError, match="has no column `text`; its columns are `title`, `body`: name one of them"):
        read(tmp_path / "a.parquet")


def test_a_column_of_numbers_is_an_error(tmp_path):
    pl.DataFrame({"text": [1]}).write_parquet(tmp_path / "a.parquet")

    with pytest.raises(CorpusError, match="holds Int64, not text; name a column of strings"):
        read(tmp_path / "a.parquet")


def test_a_damaged_parquet_file_is_rejected_and_its_neighbours_survive(tmp_path):
    pl.DataFrame({"text": ["one"]}).write_parquet(tmp_path / "b.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    written(tmp_path / "a.parquet", whole[: len(whole) // 2])

    damaged, document = read(tmp_path)

    assert damaged.reason.startswith("broken Parquet: ")
    assert document == Document("b.parquet:1", "one")


# --- folders and globs ----------------------------------------------------------------------------------------------


def test_a_folder_is_all_its_files_in_order_of_path(tmp_path):
    for name in ("b.txt", "a/z.md", "a/README", "c.jsonl", ".hidden.txt", ".git/config"):
        written(tmp_path / name, '"text"')

    assert ids(tmp_path) == ["a/README", "a/z.md", "b.txt", "c.jsonl:1"]


def test_accepted_and_rejected_are_everything_in_a_folder(tmp_path):
    for number in range(100):
        written(tmp_path / f"{number:03}.txt", [b"text", b"", b"\xff", b"\xff\xfea\0"][number % 4])

    documents = read(tmp_path)

    assert len(documents) == 100
    assert sum(isinstance(document, Document) for document in documents) == 25


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("**/*.txt", ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]),
        ("**", ["a.txt", "b.txt", "note.md", "sub/c.txt", "sub/deep/d.txt"]),
        ("sub/**/*.txt", ["c.txt", "deep/d.txt"]),
        ("s*/c.txt", ["sub/c.txt"]),
        ("s?b", ["sub/c.txt", "sub/deep/d.txt"]),
        ("[ab].*", ["a.txt", "b.txt"]),
        (".*/*", [".git/config"]),
    ],
)
def test_a_glob_is_the_files_that_match(tmp_path, pattern, expected):
    for name in ("b.txt", "a.txt", "note.md", "sub/c.txt", "sub/deep/d.txt", ".git/config"):
        written(tmp_path / name, "text")

    assert sorted(ids(tmp_path / pattern)) == expected


def test_the_home_folder_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "a.txt", "text")

    assert ids("~/a.txt") == ids("~/*.txt") == ["a.txt"]


def test_a_relative_path_is_read_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "demo" / "a.txt", "text")

    assert ids("./demo") == ids("demo/a.txt") == ["a.txt"]
    assert ids("*/*.txt") == ["demo/a.txt"]


@pytest.mark.parametrize("pattern", ["", "**", "**/*", "*/*/*"])
def test_links_that_form_a_ring_are_not_followed(tmp_path, pattern):
    written(tmp_path / "one" / "two" / "a.txt", "text")
    for name in ("x", "y"):
        (tmp_path / "one" / name).symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "one" / "two" / name).symlink_to(tmp_path, target_is_directory=True)

    assert ids(tmp_path / pattern) == ["one/two/a.txt"]


def test_a_linked_file_is_read_and_one_that_cannot_be_opened_is_rejected(tmp_path):
    written(tmp_path / "a.txt", "text")
    (tmp_path / "b.txt").symlink_to("a.txt")
    (tmp_path / "c.txt").symlink_to("nowhere")
    (tmp_path / "d.txt").symlink_to("d.txt")

    expected = [
        Document("a.txt", "text"),
        Document("b.txt", "text"),
        Rejected("c.txt", "cannot be read: No such file or directory"),
        Rejected("d.txt", "cannot be read: Too many levels of symbolic links"),
    ]
    assert read(tmp_path) == expected
    assert read(tmp_path / "*") == expected


def test_a_pipe_is_rejected_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "b.parquet")

    assert [document.reason for document in read(tmp_path)] == ["cannot be read: it is not a regular file"] * 2
    assert open_corpus(str(tmp_path)).provenance()["files"][0]["sha256"] is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_rejected(tmp_path):
    written(tmp_path / "a.txt", "text").chmod(0)
    written(tmp_path / "b" / "c.txt", "text").parent.chmod(0)

    for path in (tmp_path, tmp_path / "**" / "*"):
        file, folder = read(path)
        assert file == Rejected("a.txt", "cannot be read: Permission denied")
        assert folder.document_id.startswith("b")
        assert folder.reason.startswith("cannot be read: ")
    with pytest.raises(CorpusError, match="may not be read by this user"):
        open_corpus(str(tmp_path / "b" / "c.txt"))
    (tmp_path / "b").chmod(0o700)


def test_a_file_that_vanished_is_rejected(tmp_path):
    path = written(tmp_path / "a.txt", "text")
    corpus = open_corpus(str(tmp_path))
    path.unlink()

    assert list(corpus.documents()) == [Rejected("a.txt", "cannot be read: No such file or directory")]


def test_a_file_name_that_is_not_utf8_becomes_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    try:
        Path(os.fsdecode(path)).write_bytes(b"text")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    Path(os.fsdecode(path.replace(b".txt", b".parquet"))).write_bytes(b"text")

    parquet, text = read(tmp_path)

    assert parquet == Rejected(
        "caf\\xe9.parquet", "cannot be read: the path of a Parquet file must be UTF-8; rename it"
    )
    assert text == Document("caf\\xe9.txt", "text")


@pytest.mark.parametrize("name", ["missing.txt", "missing.jsonl.gz", "a/b/c", "./missing", "/missing", "~no-one/a"])
def test_a_missing_path_is_an_error(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(CorpusError, match=f"there is no file or folder `{re.escape(name)}`; check the path"):
        open_corpus(name)


def test_a_glob_without_a_match_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match=r"no file matches `.*/\*\.txt`; check the pattern"):
        open_corpus(str(tmp_path / "*.txt"))


def test_a_folder_without_files_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="holds no files"):
        open_corpus(str(tmp_path))


@pytest.mark.parametrize("name", ["", " ", "a\0b"])
def test_a_blank_name_is_an_error(name):
    with pytest.raises(CorpusError, match="names no corpus; give `demo`"):
        open_corpus(name)


def test_provenance_names_every_file_with_its_size_and_hash(tmp_path):
    written(tmp_path / "a.txt", "one")
    zipped = gzip.compress(b"two")
    written(tmp_path / "b" / "c.txt.gz", zipped)

    provenance = open_corpus(str(tmp_path)).provenance()

    assert provenance["files"] == [
        {"path": "a.txt", "bytes": 3, "sha256": hashlib.sha256(b"one").hexdigest()},
        {"path": "b/c.txt.gz", "bytes": len(zipped), "sha256": hashlib.sha256(zipped).hexdigest()},
    ]
    assert (provenance["kind"], provenance["n_files"], provenance["bytes"]) == ("files", 2, 3 + len(zipped))
    assert canonical_json(provenance)


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    for folder in ("here", "there"):
        written(tmp_path / folder / "a.txt", "one")
    here, there = (open_corpus(str(tmp_path / folder)) for folder in ("here", "there"))

    before = here.fingerprint()
    assert there.fingerprint() == before == here.provenance()["fingerprint"]
    assert open_corpus(str(tmp_path / "here"), column="body").fingerprint() != before
    written(tmp_path / "here" / "a.txt", "two")
    assert here.fingerprint() != before


def test_a_long_list_of_files_is_cut_and_hashed_whole(tmp_path):
    for number in range(1_002):
        written(tmp_path / f"{number:04}.txt", "text")
    corpus = open_corpus(str(tmp_path))
    provenance = corpus.provenance()
    written(tmp_path / "1001.txt", "changed")

    assert len(provenance["files"]) == 1_000
    assert provenance["n_files"] == 1_002
    assert corpus.fingerprint() != provenance["fingerprint"]


# --- demo -----------------------------------------------------------------------------------------------------------

SENTENCE = "The quick brown fox jumps over the lazy dog and then it sleeps under the old tree until noon. "
PROSE = SENTENCE * 4


def demo(folder: Path) -> list[Document | Rejected]:
    return list(DemoCorpus({"pack": folder}).documents())


def test_the_demo_is_the_prose_of_docstrings_and_never_runs_their_code(tmp_path):
    written(
        tmp_path / "__init__.py",
        f'''"""{PROSE}package"""\nraise SystemExit\nclass A:\n    def f(self):\n        """{PROSE}method\n\n        >>> f(1)\n        2\n\n        The end of it, as all of you can see.\n        """\n''',
    )
    written(tmp_path / "b.py", f'"""{PROSE}module"""\nasync def g():\n    """Too short."""\n')

    documents = {document.document_id: document.text for document in demo(tmp_path)}

    assert documents == {
        "pack": f"{PROSE}package",
        "pack.A.f": f"{PROSE}method\n\nThe end of it, as all of you can see.",
        "pack.b": f"{PROSE}module",
    }


def test_the_demo_leaves_out_tests_private_folders_and_source_that_cannot_be_parsed(tmp_path):
    for name in ("tests/a.py", "test_a.py", "_private/a.py", ".hidden/a.py"):
        written(tmp_path / name, f'"""{PROSE}{name}"""')
    written(tmp_path / "broken.py", f'"""{PROSE}"""\nprint "no"')
    written(tmp_path / "binary.py", f'"""{PROSE}"""\0')
    written(tmp_path / "latin.py", b'"""' + PROSE.encode() + b'\xe9"""')
    written(tmp_path / "half.py", f'"""{PROSE}\\ud800"""')

    assert demo(tmp_path) == []


def test_a_paragraph_that_packages_repeat_is_in_the_demo_once(tmp_path):
    written(tmp_path / "a.py", f'"""{PROSE}one\n\n{PROSE}shared"""')
    written(tmp_path / "b.py", f'"""{PROSE}two\n\n{PROSE}shared"""')
    written(tmp_path / "c.py", f'"""{PROSE}shared"""')

    assert {document.document_id: document.text for document in demo(tmp_path)} == {
        "pack.a": f"{PROSE}one\n\n{PROSE}shared",
        "pack.b": f"{PROSE}two",
    }


def test_advice_about_other_peoples_source_stays_unheard(tmp_path):
    written(tmp_path / "a.py", f'"""{PROSE}\\d"""\nassert (1, "always true")\n1 is 1\n')

    assert len(demo(tmp_path)) == 1


def test_the_demo_is_in_order_of_the_texts_hashes(tmp_path):
    for number in range(9):
        written(tmp_path / f"m{number}.py", f'"""{PROSE}{number}"""')

    hashes = [hashlib.sha256(document.text.encode()).hexdigest() for document in demo(tmp_path)]

    assert len(hashes) == 9
    assert hashes == sorted(hashes)


def test_the_topics_of_help_are_in_the_demo(tmp_path):
    topics = Path(sysconfig.get_paths()["stdlib"], "pydoc_data", "topics.py")
    written(tmp_path / "pydoc_data" / "topics.py", topics.read_bytes())

    documents = {d.document_id: d.text for d in DemoCorpus({"stdlib": tmp_path}).documents()}

    assert len(documents) > 40
    assert "Assert statements are a convenient way" in documents["pydoc_data.topics.assert"]


def test_the_demo_finds_prose_in_the_standard_library():
    (folder,) = {Path(ast.__file__).parent / "email"}

    documents = list(DemoCorpus({"email": folder}).documents())

    assert len(documents) > 20
    assert all(len(document.text) >= 300 for document in documents)


def test_the_demo_looks_at_what_is_installed_here():
    sources = DemoCorpus.installed().sources

    assert next(iter(sources)) == "stdlib"
    assert {"numpy", "polars", "click"} <= set(sources)
    assert isinstance(open_corpus("demo"), DemoCorpus)


def test_the_demos_provenance_names_versions_and_hashes_the_texts(tmp_path):
    written(tmp_path / "a.py", f'"""{PROSE}one"""')
    first = DemoCorpus({"stdlib": tmp_path / "none", "numpy": tmp_path, "pack": tmp_path / "none"}).provenance()
    written(tmp_path / "a.py", f'"""{PROSE}two"""')
    second = DemoCorpus({"numpy": tmp_path}).provenance()

    assert first["packages"]["numpy"].count(".") == 2
    assert first["packages"]["pack"] is None
    assert first["python"] == sys.version.split()[0].rstrip("+")
    assert first["n_documents"] == second["n_documents"] == 1
    assert first["content_hash"] != second["content_hash"]
    assert canonical_json(first)


def test_the_demos_fingerprint_follows_every_source_file(tmp_path):
    corpus = DemoCorpus({"pack": tmp_path})
    prints = [corpus.fingerprint()]
    for content in ("a", "b"):
        written(tmp_path / "a.py", content)
        prints.append(corpus.fingerprint())
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    prints.append(corpus.fingerprint())
    written(tmp_path / "tests" / "test_a.py", "not read")

    assert len(set(prints)) == 4
    assert corpus.fingerprint() == prints[-1]


# --- Hugging Face hub -----------------------------------------------------------------------------------------------


class Hub(ModuleType):
    """Stands for both `datasets` and `huggingface_hub`: one dataset at one revision, which may break off."""

    def __init__(self, rows: list[dict[str, object]], *, breaks_off: bool = False) -> None:
        super().__init__("hub")
        self.rows = rows
        self.breaks_off = breaks_off

    def HfApi(self) -> "Hub":  # noqa: N802 the hub's own name
        return self

    def dataset_info(self, name: str) -> SimpleNamespace:
        if name != "owner/known":
            raise RuntimeError(f"404: {name}\nmore lines")
        return SimpleNamespace(sha="c0ffee")

    def load_dataset(self, name, config, *, split, streaming, revision):
        assert (name, config, split, streaming, revision) == ("owner/known", "en", "train", True, "c0ffee")
        yield from self.rows
        if self.breaks_off:
            raise ConnectionError("the line is dead")


@pytest.fixture
def hub(monkeypatch):
    def published(*rows: dict[str, object], breaks_off: bool = False) -> None:
        module = Hub(list(rows), breaks_off=breaks_off)
        monkeypatch.setitem(sys.modules, "datasets", module)
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)

    return published


@pytest.mark.parametrize("name", ["wikitext", "owner/name", "owner/name:config"])
def test_a_dataset_of_the_hub_needs_its_package(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(
        CorpusError, match=r"needs the package `datasets`: run `pip install 'neuronledger\[hub\]'`, or give a path"
    ):
        open_corpus(name)


def test_a_dataset_of_the_hub_is_read_at_one_revision(hub):
    hub({"text": "one"}, {"text": None}, {"text": "two"})

    corpus = open_corpus("owner/known:en")

    assert list(corpus.documents()) == [
        Document("owner/known:1", "one"),
        Rejected("owner/known:2", "null: column `text` holds no text here"),
        Document("owner/known:3", "two"),
    ]
    assert corpus.provenance()["revision"] == "c0ffee"
    assert corpus.provenance()["config"] == "en"
    assert corpus.fingerprint() == corpus.provenance()["fingerprint"]
    assert corpus.fingerprint() != HubCorpus(name="owner/known", config="en", revision="beef").fingerprint()
    assert canonical_json(corpus.provenance())


def test_a_dataset_that_the_hub_does_not_know_is_an_error(hub):
    hub()

    with pytest.raises(CorpusError, match="gives no dataset of this name: 404: owner/unknown; check the name"):
        open_corpus("owner/unknown")


def test_a_dataset_without_the_column_is_an_error(hub):
    hub({"body": "one"})

    with pytest.raises(CorpusError, match="dataset `owner/known` has no column `text`; its columns are `body`"):
        read("owner/known:en")


def test_a_dataset_that_breaks_off_is_an_error_and_never_a_shorter_corpus(hub):
    hub({"text": "one"}, breaks_off=True)
    documents = HubCorpus(name="owner/known", config="en", revision="c0ffee").documents()

    assert next(documents) == Document("owner/known:1", "one")
    with pytest.raises(CorpusError, match="could not be read: the line is dead"):
        next(documents)
