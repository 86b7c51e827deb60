"""Folders with tiny models, for all tests of what reads models."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Tests are no package, so that they find one another's helpers only by the path.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small are slower on many threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of a family, which no test may change."""
    from tiny_models import save_subject

    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_subject(family, tmp_path_factory.mktemp(family))
        return made[family]

    return folder


@pytest.fixture
def gpt2(folder_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the tiny GPT-2 that a test may damage."""
    return shutil.copytree(folder_of("gpt2"), tmp_path / "gpt2")
