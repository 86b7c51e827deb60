"""A forward pass on a real cluster of which a worker, a node or the driver is killed: the same bytes as on one machine."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from assets import forward_pass
from assets.forward_pass import Figures, Work, captured, reduced_piece
from pipeline.capture import Plan, plan
from pipeline.errors import MachinesError, SubjectError
from pipeline.ports import Document
from pipeline.sequences import sequences
from pipeline.testing import planted_checkpoint, planted_corpus
from resources.machines import RayMachines, ThisMachine
from resources.partials import PartialFiles
from resources.subject import HuggingFaceSubject

KEY = "sha256:" + "0" * 64
LAYERS = (0, 1)
SMALL = {"SHARD": 12, "BATCH": 4}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small subject, and 90 windows of it."""
    home = tmp_path_factory.mktemp("pass")
    subject = HuggingFaceSubject(str(planted_checkpoint(home / "subject").folder), device="cpu")
    documents = [Document(str(place), text) for place, text in enumerate(planted_corpus(90, seed=2))]
    sequences(documents, subject.tokenize, length=16).frame.write_parquet(home / "sequences.parquet")
    return home


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in SMALL.items():
        monkeypatch.setattr(forward_pass, name, size)


def the_plan(home: Path) -> Plan:
    return plan(pl.read_parquet(home / "sequences.parquet"))


def run(
    home: Path, folder: Path, machines: Any, *, progress: Callable[..., None] = lambda *_: None
) -> tuple[Any, Figures]:
    figures = Figures()
    found = {
        capture.layer: capture.arrays()
        for capture in captured(
            HuggingFaceSubject(str(home / "subject"), device="cpu"),
            the_plan(home),
            LAYERS,
            seed=3,
            key=KEY,
            partials=PartialFiles(folder),
            progress=progress,
            figures=figures,
            machines=machines,
        )
    }
    return found, figures


def assert_same(one: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]]) -> None:
    assert list(one) == list(other)
    for layer, arrays in one.items():
        assert list(arrays) == list(other[layer])
        for name, array in arrays.items():
            assert array.tobytes() == other[layer][name].tobytes(), name


class Turns(ThisMachine):
    """Works here, on pieces in another order, as if for three machines; after `lost` pieces all is lost."""

    def __init__(self, *, lost: int | None = None) -> None:
        self.lost = lost

    def count(self) -> int:
        return 3

    def reduce(
        self, work: Any, shared: object, pieces: Any, join: Any, *, n_results: int, finished: Any
    ) -> Iterator[Any]:
        order = np.random.default_rng(0).permutation(len(pieces)).tolist()

        def heard(places: Any, numbers: Any, so_far: Any) -> None:
            finished([order[place] for place in places], numbers, so_far)
            if len(places) == self.lost:
                raise MachinesError("lost")

        return super().reduce(work, shared, [pieces[at] for at in order], join, n_results=n_results, finished=heard)


def test_a_subject_is_found_by_processes_with_other_working_folders(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(home)
    kept = pickle.dumps(HuggingFaceSubject("subject", device="cpu"))
    monkeypatch.chdir(tmp_path)
    found = pickle.loads(kept)
    assert found.name == str(home / "subject")
    assert found.fingerprints() == HuggingFaceSubject(str(home / "subject"), device="cpu").fingerprints()


def test_pieces_in_any_order_end_in_the_bytes_of_one_pass(home: Path, tmp_path: Path) -> None:
    undisturbed, _ = run(home, tmp_path / "one", None)
    said: list[tuple[int, int]] = []
    pieces, figures = run(
        home, tmp_path / "pieces", Turns(), progress=lambda _, done, total, __="": said.append((done, total))
    )
    assert_same(pieces, undisturbed)
    assert [total for _, total in said] == [90] * 8
    assert [done for done, _ in said] == sorted({done for done, _ in said})
    assert said[-1] == (90, 90)
    assert figures.tokens == int(the_plan(home).lengths.sum())
    assert not (tmp_path / "pieces").exists()


def test_a_pass_whose_machines_were_lost_goes_on_from_what_was_kept(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, _ = run(home, tmp_path / "one", None)
    monkeypatch.setattr(forward_pass, "KEEP_AFTER", 0.0)
    with pytest.raises(MachinesError):
        run(home, tmp_path / "kept", Turns(lost=5))
    found, figures = run(home, tmp_path / "kept", Turns())
    assert_same(found, undisturbed)
    assert figures.resumed >= 4 * 12


# On a cluster. A piece may kill the process that works on it, once, as an operating system short of memory does.


def killed_once(work: Work, windows: Any) -> Any:
    mark = Path(os.environ["KILLED_ONCE"])
    if 40 in windows and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return reduced_piece(work, windows)


def refused(work: Work, windows: Any) -> Any:
    raise SubjectError("this subject is refused")


@pytest.mark.filterwarnings("ignore")
def test_a_pass_on_two_nodes_with_a_killed_worker_ends_in_the_bytes_of_one_machine(
    cluster: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = RayMachines(device="cpu")
    assert machines.count() == 2
    undisturbed, _ = run(home, tmp_path / "one", None)
    monkeypatch.setattr(forward_pass, "reduced_piece", killed_once)
    spread, figures = run(home, tmp_path / "spread", machines)
    assert_same(spread, undisturbed)
    assert Path(os.environ["KILLED_ONCE"]).exists()
    assert figures.reduced == "2 places on other machines"

    monkeypatch.setattr(forward_pass, "reduced_piece", refused)
    with pytest.raises(SubjectError, match="this subject is refused"):
        run(home, tmp_path / "refused", machines)


@pytest.mark.filterwarnings("ignore")
def test_a_pass_of_which_a_node_is_killed_ends_in_the_bytes_of_one_machine(
    cluster: Any, home: Path, tmp_path: Path
) -> None:
    undisturbed, _ = run(home, tmp_path / "one", None)
    third = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    finished = 0

    def progress(*_: object) -> None:
        nonlocal finished
        finished += 1
        if finished == 4:
            # What it is at, and what was found on it and is needed yet, has to be made elsewhere.
            cluster.remove_node(third, allow_graceful=False)

    machines = RayMachines(device="cpu")
    assert machines.count() == 3
    spread, _ = run(home, tmp_path / "spread", machines, progress=progress)
    assert finished >= 4
    assert_same(spread, undisturbed)


@pytest.mark.filterwarnings("ignore")
def test_a_pass_whose_driver_was_killed_goes_on_from_the_pieces_that_were_finished(
    cluster: Any, home: Path, tmp_path: Path
) -> None:
    undisturbed, _ = run(home, tmp_path / "one", None)
    words = ["capture", str(home), str(tmp_path / "killed"), "3"]
    driver = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("ray_driver.py")), *words],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert driver.returncode == -signal.SIGKILL, driver.stderr
    found, figures = run(home, tmp_path / "killed", RayMachines(device="cpu"))
    # Three pieces, of which one may be the last, which is shorter.
    assert figures.resumed >= 12 + 12 + 6
    assert_same(found, undisturbed)
