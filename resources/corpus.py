"""A corpus is a collection of documents: text to run the subject model on.

    demo                      prose of the docstrings of the standard library and of installed packages
    a path, folder or glob    text, JSON Lines and Parquet files
    name, owner/name          a dataset of the Hugging Face hub, through the optional package `datasets`

Every piece of a corpus comes out exactly once, as a `Document` or as a `Rejected`. The reason of a `Rejected` begins
with its kind, one of a few words, up to the first colon; what follows is about this piece alone.
"""

import ast
import fnmatch
import gzip
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import re
import stat
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.errors import CorpusError
from pipeline.ports import Corpus, Document, Rejected
from pipeline.provenance import TAG, content_hash

PACK = 2_000
"""Characters up to which the paragraphs of a text file are packed into one document."""

PACKAGES = (
    "numpy",
    "scipy",
    "sklearn",
    "networkx",
    "sympy",
    "mpmath",
    "polars",
    "sqlalchemy",
    "pydantic",
    "click",
    "rich",
    "jinja2",
    "huggingface_hub",
    "torch",
    "transformers",
)
"""Where the demo corpus looks beside the standard library: a fixed list of what the project itself brings along, so
that nothing else that is installed changes the corpus."""

_READER = 1
"""Enters every fingerprint. Raise it when the same bytes give other documents than before."""

_FILES_LISTED = 1_000
_FILE_ENDS = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".parquet", ".gz")
_ROWS = 4_096
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?")


def open_corpus(name: str, *, column: str = "text") -> Corpus:
    """The corpus called `name`: `demo`, something on disk, or a dataset of the Hugging Face hub.

    What is on disk comes first, and `./demo` is a folder of that name. A folder stands for all files in it, at any
    depth; a glob may use `*`, `?`, `[...]` and `**`. Hidden files are left out unless named, symbolic links to folders
    are not followed. `column` is the field of JSON Lines, Parquet and hub datasets that holds the text.

    A hub dataset is written `owner/name`, or `owner/name:config` where it has several configurations; its split
    `train` is read.

    Raises:
        CorpusError: nothing has this name, nothing matches the glob, or `datasets` is needed and not installed.
    """
    if name == "demo":
        return DemoCorpus.installed()
    if not name.strip() or "\0" in name:
        raise CorpusError(f"{name!r} names no corpus; give `demo`, a path, a glob or a Hugging Face dataset name")
    path = _home(name)
    if _exists(path):
        found = _files_under(path) if path.is_dir() else [path]
        if not found:
            raise CorpusError(f"the folder `{name}` holds no files; put text, JSON Lines or Parquet files in it")
        return FileCorpus(name=name, root=path if path.is_dir() else path.parent, paths=tuple(found), column=column)
    if any(character in name for character in "*?["):
        root, patterns = _fixed_part(path)
        found = sorted(set(_matching(root, patterns)))
        if not found:
            raise CorpusError(f"no file matches `{name}`; check the pattern, and quote it so that the shell leaves it")
        return FileCorpus(name=name, root=root, paths=tuple(found), column=column)
    hub = _HUB_NAME.fullmatch(name)
    if not hub or name.startswith(".") or path.suffix.lower() in _FILE_ENDS:
        raise CorpusError(f"there is no file or folder `{name}`; check the path (it is read from {Path.cwd()})")
    return HubCorpus.found(hub["name"], config=hub["config"], column=column)


# --- files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileCorpus:
    """Files, in the order of their paths.

    Text (`.txt`, `.md` and every name not listed below): paragraphs, which blank lines separate, are packed into
    documents of up to `PACK` characters, `book.txt:1`, `book.txt:2`, so that a book gives many; a paragraph longer
    than that is cut at line ends. A file that fits into one document is `note.txt`. Line ends become `\\n`.

    JSON Lines (`.jsonl`, `.ndjson`, `.json`): one document per line, `file.jsonl:12`, from `column` of an object or
    from a bare string. Blank lines are skipped.

    Parquet (`.parquet`): one document per row, `file.parquet:12`.

    Text and JSON Lines may be gzipped (`.gz`). Text must be UTF-8; a byte order mark is dropped, NUL characters stay.
    A text file with one wrong byte is rejected as a whole, of the other kinds only the line or row is. A file that
    breaks off is rejected after what could be read of it.
    """

    name: str
    root: Path
    paths: tuple[Path, ...]
    column: str = "text"

    def documents(self) -> Iterator[Document | Rejected]:
        """Each document once, by path and then by position.

        Raises:
            CorpusError: a Parquet file has no column `column`, or it does not hold text.
        """
        for path in self.paths:
            document_id = _relative(path, self.root)
            try:
                yield from _kind(path)(path, document_id, self.column)
            except _UnreadableError as fault:
                yield Rejected(document_id, str(fault))

    def fingerprint(self) -> str:
        """Tagged hash over the path below the common folder, size and SHA-256 of each file, and the column."""
        return self._fingerprint([self._file(path) for path in self.paths])

    def provenance(self) -> Mapping[str, Any]:
        """What the fingerprint is made from; of the files, the first 1,000 are listed."""
        files = [self._file(path) for path in self.paths]
        return {
            "kind": "files",
            "name": self.name,
            "column": self.column,
            "n_files": len(files),
            "bytes": sum(file["bytes"] or 0 for file in files),
            "files": files[:_FILES_LISTED],
            "fingerprint": self._fingerprint(files),
        }

    def _fingerprint(self, files: list[dict[str, Any]]) -> str:
        return content_hash({"reader": _READER, "column": self.column, "files": files})

    def _file(self, path: Path) -> dict[str, Any]:
        name = _relative(path, self.root)
        try:
            with _opened(path) as stored:
                digest = hashlib.file_digest(stored, "sha256").hexdigest()
                return {"path": name, "bytes": stored.tell(), "sha256": digest}
        except (_UnreadableError, OSError):
            return {"path": name, "bytes": None, "sha256": None}


class _UnreadableError(Exception):
    """A file that cannot be read to its end; the message is the reason of its `Rejected`."""


def _kind(path: Path) -> Callable[[Path, str, str], Iterator[Document | Rejected]]:
    """How the documents of a file are read, by the end of its name."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return _json_documents
    if path.name.lower().endswith(".parquet"):
        return _parquet_documents
    return _text_documents


def _text_documents(path: Path, document_id: str, column: str) -> Iterator[Document | Rejected]:  # noqa: ARG001 one signature for all kinds
    # Read twice rather than held: nothing of a file may be used before all of it is known to be text.
    size = nuls = 0
    for offset, line in _lines(path):
        _decoded(line, offset)
        size += len(line)
        nuls += line.count(0)
    if nuls * 10 > size:
        raise _UnreadableError(f"binary: {nuls:,} of its {size:,} bytes are NUL")
    packs = _packs(_paragraphs(_decoded(line, offset) for offset, line in _lines(path)))
    first, second = next(packs, None), next(packs, None)
    if first is None:
        yield Rejected(document_id, "empty")
    elif second is None:
        yield Document(document_id, first)
    else:
        yield Document(f"{document_id}:1", first)
        yield Document(f"{document_id}:2", second)
        for number, pack in enumerate(packs, start=3):
            yield Document(f"{document_id}:{number}", pack)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Lines between blank lines, cut at a line end before they grow beyond `PACK` characters."""
    paragraph: list[str] = []
    size = 0
    for ended in lines:
        line = ended.removesuffix("\n").removesuffix("\r")
        blank = not line.strip()
        if paragraph and (blank or size + len(line) > PACK):
            yield "\n".join(paragraph)
            paragraph, size = [], 0
        if not blank:
            paragraph.append(line)
            size += len(line) + 1
    if paragraph:
        yield "\n".join(paragraph)


def _packs(paragraphs: Iterable[str]) -> Iterator[str]:
    """Paragraphs with a blank line between them, as many as stay within `PACK` characters together."""
    pack = ""
    for paragraph in paragraphs:
        if pack and len(pack) + 2 + len(paragraph) > PACK:
            yield pack
            pack = ""
        pack = f"{pack}\n\n{paragraph}" if pack else paragraph
    if pack:
        yield pack


def _json_documents(path: Path, document_id: str, column: str) -> Iterator[Document | Rejected]:
    empty = True
    for number, (offset, line) in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        empty = False
        line_id = f"{document_id}:{number}"
        try:
            value = json.loads(_decoded(line.rstrip(b"\r\n"), offset))
        except _UnreadableError as fault:
            yield Rejected(line_id, str(fault))
        except json.JSONDecodeError as fault:
            yield Rejected(line_id, f"broken JSON: {fault.msg} (character {fault.pos})")
        except (ValueError, RecursionError) as fault:  # a number of thousands of digits, or a list too deep
            yield Rejected(line_id, f"broken JSON: {fault}")
        else:
            yield _json_document(line_id, value, column)
    if empty:
        yield Rejected(document_id, "empty")


def _json_document(line_id: str, value: Any, column: str) -> Document | Rejected:
    if isinstance(value, dict):
        if column not in value:
            return Rejected(line_id, f"no column: `{column}` is not among {_listed(value)}")
        return _checked(line_id, value[column], column)
    if isinstance(value, str):
        return _checked(line_id, value, column)
    return Rejected(line_id, f"not text: the line is of JSON type {type(value).__name__}, not an object or a string")


def _parquet_documents(path: Path, document_id: str, column: str) -> Iterator[Document | Rejected]:
    with _opened(path):  # gives the reasons that all kinds of files share
        pass
    if not _has_utf8(str(path)):
        raise _UnreadableError("cannot be read: the path of a Parquet file must be UTF-8; rename it")
    try:
        # `glob=False`: a file name may hold brackets.
        scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        schema = scan.collect_schema()
        rows = int(scan.select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as fault:
        raise _UnreadableError(f"broken Parquet: {_first_line(fault)}") from None
    if column not in schema:
        raise CorpusError(f"`{path}` has no column `{column}`; its columns are {_listed(schema)}: name one of them")
    if schema[column] != pl.String:
        raise CorpusError(f"column `{column}` of `{path}` holds {schema[column]}, not text; name a column of strings")
    if not rows:
        yield Rejected(document_id, "empty")
    for start in range(0, rows, _ROWS):
        try:
            texts = scan.select(column).slice(start, _ROWS).collect().get_column(column).to_list()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as fault:
            raise _UnreadableError(f"broken Parquet: from row {start + 1:,} on: {_first_line(fault)}") from None
        for number, text in enumerate(texts, start=start + 1):
            yield _checked(f"{document_id}:{number}", text, column)


def _checked(document_id: str, value: Any, column: str) -> Document | Rejected:
    """A document, if the value is a text that has a UTF-8 form and is not blank."""
    if value is None:
        return Rejected(document_id, f"null: column `{column}` holds no text here")
    if not isinstance(value, str):
        return Rejected(document_id, f"not text: column `{column}` holds a value of type {type(value).__name__} here")
    if not value.strip():
        return Rejected(document_id, "empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as fault:
        found = f"U+{ord(value[fault.start]):04X} at character {fault.start:,}"
        return Rejected(document_id, f"lone surrogate: {found} is half a character, which has no UTF-8 form")
    return Document(document_id, value)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line with its end, and the byte where it starts. No byte of a UTF-8 character is a line feed."""
    offset = 0
    with _opened(path) as stored:
        try:
            for line in gzip.GzipFile(fileobj=stored) if path.name.lower().endswith(".gz") else stored:
                start = 0
                if offset == 0:
                    if line.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
                        raise _UnreadableError(
                            "not UTF-8: it is UTF-16 or UTF-32 by its byte order mark; save as UTF-8"
                        )
                    start = 3 if line.startswith(b"\xef\xbb\xbf") else 0
                yield start + offset, line[start:]
                offset += len(line)
        except (gzip.BadGzipFile, EOFError, zlib.error) as fault:
            raise _UnreadableError(f"broken gzip: {fault}") from None
        except OSError as fault:
            raise _UnreadableError(f"cannot be read: {fault.strerror or fault}") from None


def _opened(path: Path) -> BufferedReader:
    """The file's bytes as they are stored. A pipe or device is refused: it might never end."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise _UnreadableError("cannot be read: the folder may not be listed by this user")
        if not stat.S_ISREG(mode):
            raise _UnreadableError("cannot be read: it is not a regular file")
        return path.open("rb")
    except OSError as fault:
        raise _UnreadableError(f"cannot be read: {fault.strerror or fault}") from None


def _decoded(line: bytes, offset: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as fault:
        where = f"byte 0x{line[fault.start]:02x} at offset {offset + fault.start}"
        raise _UnreadableError(f"not UTF-8: {where}; save the text as UTF-8") from None


def _has_utf8(text: str) -> bool:
    """False for text with half a character: a file name that is not UTF-8, or an escape in a docstring."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _listed(names: Iterable[str]) -> str:
    """Names from a stranger's file, in ASCII and not without end."""
    every = [f"`{ascii(name)[1:-1][:60]}`" for name in names]
    return ", ".join(every[:10]) + (f" and {len(every) - 10:,} more" if len(every) > 10 else "") or "no columns at all"


def _first_line(fault: BaseException) -> str:
    return (str(fault) or type(fault).__name__).splitlines()[0][:200]


# --- paths ----------------------------------------------------------------------------------------------------------


def _home(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # `~stranger`
        return Path(name)


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        raise CorpusError(f"`{path}` may not be read by this user; change its permissions") from None
    except (OSError, ValueError):
        return False
    return True


def _files_under(folder: Path) -> list[Path]:
    """All files below a folder in order, hidden ones left out. A folder that cannot be listed stands for itself."""
    found: list[Path] = []
    closed: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=closed.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    found += [Path(os.fsdecode(fault.filename)) for fault in closed if fault.filename]
    return sorted(found)


def _fixed_part(path: Path) -> tuple[Path, list[str]]:
    """A glob as the folder before its first wildcard, and the patterns of the parts after it."""
    parts = path.parts
    wild = next(index for index, part in enumerate(parts) if any(character in part for character in "*?["))
    return Path(*parts[:wild]), list(parts[wild:])


def _matching(folder: Path, patterns: list[str]) -> Iterator[Path]:
    """Files that match, and files below folders that match. Unlike `glob`, `**` never follows a symbolic link."""
    try:
        with os.scandir(folder) as listing:
            entries = list(listing)
    except PermissionError:
        yield folder
        return
    except OSError:
        return
    pattern, *rest = patterns
    if pattern == "**":
        yield from _matching(folder, rest or ["*"])
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _matching(Path(entry.path), patterns)
        return
    for entry in entries:
        hidden = entry.name.startswith(".") and not pattern.startswith(".")
        if hidden or not fnmatch.fnmatchcase(entry.name, pattern):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _matching(Path(entry.path), rest) if rest else _files_under(Path(entry.path))
        elif not rest and not _links_to_folder(entry):
            yield Path(entry.path)


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a link to itself
        return False


def _relative(path: Path, root: Path) -> str:
    """The path below `root`, as text that any table can hold: a file name need not be UTF-8."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", errors="backslashreplace")


# --- demo -----------------------------------------------------------------------------------------------------------

_PROSE_CHARACTERS = 300
_PLAIN_WORD = re.compile(r"""[("'`*]*[A-Za-z][A-Za-z'’-]*[.,;:!?)"'`*]*""")
_FOLDERS_LEFT_OUT = {
    "test", "tests", "testing", "site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo",
    # The docstrings of transformers' three hundred models are copies of each other.
    "models",
}  # fmt: skip


@dataclass(frozen=True)
class DemoCorpus:
    """English prose that is on every machine: docstrings of the standard library and of `PACKAGES`.

    A document is one docstring, or one of the topics that `help()` knows, reduced to its paragraphs of prose and kept
    if at least 300 characters are left. A paragraph is prose if three of four of its words are plain words and its
    lines have five words on average; one that an earlier docstring had is left out, because packages repeat
    themselves. Folders with tests and private folders (`_core`) are not read. Source is parsed, never imported.

    The texts differ with the versions installed, so `provenance` names them. In order of the texts' SHA-256.
    """

    sources: Mapping[str, Path]
    """Import name of each package, `stdlib` for the standard library, and the folder where its source is."""

    @classmethod
    def installed(cls) -> "DemoCorpus":
        """The standard library and those of `PACKAGES` that are installed."""
        paths = sysconfig.get_paths()
        sources = {"stdlib": Path(paths["stdlib"])}
        for package in PACKAGES:
            for folder in (Path(paths["purelib"], package), Path(paths["platlib"], package)):
                if folder.is_dir():
                    sources.setdefault(package, folder)
        return cls(sources)

    def documents(self) -> Iterator[Document | Rejected]:
        """Each document once; none is ever rejected."""
        yield from self._found.values()

    def fingerprint(self) -> str:
        """Tagged hash over the bytes of every source file, and the version of Python that parses them."""
        digest = hashlib.sha256(f"{_READER} {sys.version_info[:2]}".encode())
        for package, folder in self.sources.items():
            for path in _sources(folder):
                digest.update(f"\n{package} {_relative(path, folder)} ".encode())
                digest.update(hashlib.sha256(_bytes_of(path)).digest())
        return TAG + digest.hexdigest()

    def provenance(self) -> Mapping[str, Any]:
        """Version of Python and of each package, and one hash over the hashes of all documents.

        Reads the documents, if that has not been done yet.
        """
        return {
            "kind": "demo",
            "name": "demo",
            "python": platform.python_version(),
            "packages": {package: _version(package) for package in self.sources if package != "stdlib"},
            "n_documents": len(self._found),
            "content_hash": content_hash(list(self._found)),
            "fingerprint": self.fingerprint(),
        }

    @cached_property
    def _found(self) -> dict[str, Document]:
        """The documents by hash, in order of it."""
        found: dict[str, Document] = {}
        seen: set[str] = set()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stranger's source may hold escapes that Python advises against
            for package, folder in self.sources.items():
                for name, docstring in _docstrings(package, folder):
                    text = _prose(docstring, seen)
                    if len(text) >= _PROSE_CHARACTERS:
                        digest = TAG + hashlib.sha256(text.encode("utf-8")).hexdigest()
                        found.setdefault(digest, Document(name, text))
        return dict(sorted(found.items()))


def _docstrings(package: str, folder: Path) -> Iterator[tuple[str, str]]:
    """The dotted name and the dedented docstring of each module, class and function below a folder."""
    for path in _sources(folder):
        module = [*([] if package == "stdlib" else [package]), *path.relative_to(folder).with_suffix("").parts]
        name = ".".join(module[:-1] if module[-1] == "__init__" and len(module) > 1 else module)
        try:
            source = _bytes_of(path)
            # Parsing is what takes the time, and half of all files have no docstring that is long enough.
            if not any(len(part) >= _PROSE_CHARACTERS for part in re.split(b"\"\"\"|'''", source)[1::2]):
                continue
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if name == "pydoc_data.topics":
            yield from _topics(tree)
        yield from _documented(tree, name)


def _sources(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(("_", ".")) and name not in _FOLDERS_LEFT_OUT
        )
        for name in sorted(files):
            if name.endswith(".py") and not name.startswith("test_"):
                yield Path(parent, name)


def _bytes_of(path: Path) -> bytes:
    """The source, or nothing where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring and len(docstring) >= _PROSE_CHARACTERS:
            yield name, docstring
        for inner in node.body:
            if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _documented(inner, f"{name}.{inner.name}")


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The entries of the one dict of `pydoc_data.topics`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield f"pydoc_data.topics.{key.value!s}", inspect.cleandoc(value.value)


def _prose(docstring: str, seen: set[str]) -> str:
    """The paragraphs that are prose and not in `seen`, which learns all of them."""
    kept: list[str] = []
    for paragraph in re.split(r"\n\s*\n", docstring):
        words = paragraph.split()
        normal = " ".join(words)
        if not words or normal in seen:
            continue
        seen.add(normal)
        plain = sum(1 for word in words if _PLAIN_WORD.fullmatch(word))
        if plain / len(words) >= 0.75 and len(words) / (paragraph.count("\n") + 1) >= 5 and _has_utf8(normal):
            kept.append(paragraph)
    return "\n\n".join(kept)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version({"sklearn": "scikit-learn"}.get(package, package))
    except importlib.metadata.PackageNotFoundError:
        return None


# --- Hugging Face hub -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubCorpus:
    """The split `train` of a dataset on the Hugging Face hub at one revision, streamed in its own order."""

    name: str
    config: str | None
    revision: str
    column: str = "text"

    @classmethod
    def found(cls, name: str, *, config: str | None, column: str) -> "HubCorpus":
        """The dataset at its newest revision, which is asked for once, so that all later reads see the same rows.

        Raises:
            CorpusError: `datasets` is not installed, or the hub does not know the name or cannot be reached.
        """
        _datasets(name)
        try:
            revision = importlib.import_module("huggingface_hub").HfApi().dataset_info(name).sha
        except Exception as fault:  # errors of the hub, of HTTP and of the disk, without a common root
            raise CorpusError(
                f"there is no file or folder `{name}` (read from {Path.cwd()}), and the Hugging Face hub gives no "
                f"dataset of this name: {_first_line(fault)}; check the name and the network, or give a path"
            ) from fault
        return cls(name=name, config=config, revision=str(revision), column=column)

    def documents(self) -> Iterator[Document | Rejected]:
        """Each row once, `owner/name:12`.

        Raises:
            CorpusError: the dataset cannot be opened or read to its end, or has no column `column`.
        """
        datasets = _datasets(self.name)
        try:
            rows = iter(
                datasets.load_dataset(self.name, self.config, split="train", streaming=True, revision=self.revision)
            )
            for number, row in enumerate(rows, start=1):
                if self.column not in row:
                    raise CorpusError(
                        f"dataset `{self.name}` has no column `{self.column}`; its columns are {_listed(row)}: "
                        "name one of them"
                    )
                yield _checked(f"{self.name}:{number}", row[self.column], self.column)
        except CorpusError:
            raise
        except Exception as fault:  # errors of `datasets`, of HTTP and of file formats, without a common root
            raise CorpusError(
                f"dataset `{self.name}` could not be read: {_first_line(fault)}; a dataset with several "
                f"configurations is written `{self.name}:config`"
            ) from fault

    def fingerprint(self) -> str:
        """Tagged hash of what `provenance` tells: the revision decides every row."""
        return str(self.provenance()["fingerprint"])

    def provenance(self) -> Mapping[str, Any]:
        """Name, configuration, split and the revision (a git commit) of the dataset."""
        read = {
            "kind": "hub",
            "name": self.name,
            "config": self.config,
            "split": "train",
            "revision": self.revision,
            "column": self.column,
        }
        return {**read, "fingerprint": content_hash({"reader": _READER, **read})}


def _datasets(name: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise CorpusError(
            f"there is no file or folder `{name}` (read from {Path.cwd()}); as a Hugging Face dataset it needs the "
            "package `datasets`: run `pip install 'neuronledger[hub]'`, or give a path, a glob or `demo`"
        ) from None
