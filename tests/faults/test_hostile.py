"""Names, texts and checkpoints that were made to do harm: refused with a reason, or read right; never a crash."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import NeuronLedgerError
from pipeline.testing import planted_checkpoint
from resources.corpus import Document, Rejected, open_corpus
from resources.delta import DeltaLake
from resources.settings import slug
from resources.subject import HuggingFaceSubject

Say = Callable[[str], None]

PIECES = [
    "../", "..", "/", "\\", "\x00", "\n", "'", '"', "' OR '1'='1", "layer = 0", "%2e%2e%2f", "%", "*", "?", "[", "]", "{", "}", "|",
    "$(id)", "`id`", "; rm -rf /", "~", "~root", "file:", "s3://", "C:\\", "con", ".", "-", "--layers", "é", "\u202e", "\ufeff", "😀",
    "a", "B", "0", " ", "<script>alert(1)</script>", "𝕏", "\ud800", "\x1b[2J", "gpt2", "x" * 300,
]  # fmt: skip


def names(count: int) -> list[str]:
    drawn = random.Random(0)
    return ["".join(drawn.choices(PIECES, k=drawn.randint(1, 5))) for _ in range(count)]


def test_no_name_of_a_subject_leaves_its_folder_or_meets_another(tmp_path: Path) -> None:
    found: dict[str, str] = {}
    for name in {name.encode("utf-8", "replace").decode() for name in names(10_000)}:
        folder = slug(name)
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", folder), (name, folder)
        assert (tmp_path / folder).resolve().parent == tmp_path.resolve()
        assert found.setdefault(folder, name) == name


def test_no_address_of_a_lake_is_a_crash_or_a_file_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    refused = 0
    for name in names(1_000):
        if "s3:" in name:
            continue  # that one would look for a bucket
        try:
            assert DeltaLake(name).read("scores").is_empty()
        except NeuronLedgerError:
            refused += 1
        except (OSError, ValueError, RuntimeError) as error:
            pytest.fail(f"{name!r}: {type(error).__name__}: {error}")
    assert refused > 100
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["home"]


def test_a_corpus_of_hostile_files_is_accepted_and_rejected_to_the_last(
    tmp_path: Path, every_case: bool, say: Say
) -> None:
    drawn, texts = random.Random(1), tmp_path / "texts"
    texts.mkdir()
    whole = json.dumps({"text": "a quiet text"}).encode() + b"\n"
    harms: list[Callable[[], bytes]] = [
        lambda: drawn.randbytes(drawn.randint(0, 400)),
        lambda: whole[: drawn.randint(0, len(whole))],
        lambda: b"\x1f\x8b" + drawn.randbytes(40),
        lambda: b"PAR1" + drawn.randbytes(40) + b"PAR1",
        lambda: "\u202e\ufeff\x00".encode() * drawn.randint(1, 99),
        lambda: b"[" * drawn.randint(1, 3_000),
        lambda: whole + b'{"text": ' + str(10**400).encode() + b"}\n",
        lambda: whole + b'{"text": "\\ud800"}\n',
        lambda: "".join(drawn.choices(PIECES, k=20)).encode("utf-8", "surrogatepass"),
    ]
    count = 1_000 if every_case else 100
    for number in range(count):
        suffix = drawn.choice([".txt", ".jsonl", ".parquet", ".txt.gz", ".jsonl.gz"])
        (texts / f"{number}{suffix}").write_bytes(drawn.choice(harms)())
    (texts / "whole.jsonl").write_bytes(whole)
    found = list(open_corpus(str(texts)).documents())
    accepted = [document for document in found if isinstance(document, Document)]
    rejected = [document for document in found if isinstance(document, Rejected)]
    seen = {re.split(r"[#:]", document.document_id)[0] for document in found}
    assert len({document.document_id for document in found}) == len(found)
    assert all(document.text.encode() for document in accepted)
    assert all(document.reason for document in rejected)
    say(f"hostile corpus: {count} files, {len(accepted)} documents accepted, {len(rejected)} rejected, 0 crashes")
    assert "whole.jsonl" in seen


def test_a_spoiled_checkpoint_is_refused_or_is_another_model(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, every_case: bool, say: Say
) -> None:
    planted = planted_checkpoint(tmp_path_factory.mktemp("checkpoint") / "subject").folder
    right = HuggingFaceSubject(str(planted), device="cpu")
    fingerprints, tokenizer = list(right.fingerprints()), right.tokenizer_hash()
    drawn = random.Random(2)
    files = sorted(path.name for path in planted.iterdir() if path.is_file())
    refused = other = same = 0
    for _ in range(100 if every_case else 8):
        folder = tmp_path / "subject"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(planted, folder)
        file = folder / drawn.choice(files)
        content = bytearray(file.read_bytes())
        match drawn.choice(["cut", "flip", "empty", "gone", "noise", "header", "pickle"]):
            case "cut":
                content = content[: drawn.randrange(len(content))]
            case "flip":
                content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
            case "empty":
                content = bytearray()
            case "gone":
                file.unlink()
            case "noise":
                content = bytearray(drawn.randbytes(len(content)))
            case "header":
                content[: min(200, len(content))] = drawn.randbytes(min(200, len(content)))
            case "pickle":
                (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch PWNED'\ntR.")
        if file.exists():
            file.write_bytes(content)
        try:
            subject = HuggingFaceSubject(str(folder), device="cpu")
            found = list(subject.fingerprints()), subject.tokenizer_hash()
            subject.capture([subject.probe()], [0], lambda *_: None)
        except NeuronLedgerError:
            refused += 1
            continue
        if found != (fingerprints, tokenizer):
            other += 1
            continue
        # What is not read (a generation setting) may change.
        same += 1
        assert file.name not in ("model.safetensors", "tokenizer.json") or bytes(content) == (planted / file.name).read_bytes()  # fmt: skip
    assert not list(Path.cwd().rglob("PWNED"))
    say(f"spoiled checkpoints: {refused} refused, {other} known as another model, {same} without effect, 0 crashes")
    assert refused
