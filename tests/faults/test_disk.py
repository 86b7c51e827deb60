"""Every call by which a lake changes files is killed, torn, refused, or done and denied: nothing is lost or doubled."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disk import KINDS, Disk
from operations import OPERATIONS, wrong

from resources import ledger
from resources.delta import DeltaLake


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    if not Disk.is_there():
        pytest.skip("no C compiler is installed (cc), and the shim before the disk is C")
    with Disk(tmp_path_factory.mktemp("shim")) as running:
        yield running


def test_whatever_happens_to_a_call_nothing_is_lost_or_doubled(
    disk: Disk, tmp_path: Path, every_case: bool, say: Callable[[str], None]
) -> None:
    kinds = KINDS[1:] if every_case else ("torn", "io error after")
    cases, bad, found = 0, [], Counter[str]()
    for name in OPERATIONS if every_case else ("replies",):
        operation = OPERATIONS[name]
        before, folder = tmp_path / "before", tmp_path / "lake"
        operation.prepare(DeltaLake(before))

        def again(before: Path = before, folder: Path = folder) -> DeltaLake:
            shutil.rmtree(folder, ignore_errors=True)
            if before.exists():
                shutil.copytree(before, folder)
            return DeltaLake(folder)

        lake = again()
        outcome, calls = disk.do(name, folder)
        assert (outcome, wrong(operation, lake, outcome)) == ("done", [])
        assert calls >= 20
        for kind in kinds:
            for at in range(calls):
                lake = again()
                outcome, _ = disk.do(name, folder, kind=kind, at=at)
                said = wrong(operation, lake, outcome) + _chain(folder)
                bad += [f"{name}, {kind} at call {at}: {what}" for what in said]
                found.update(what.split()[0].rstrip(":") for what in said)
                cases += 1
        shutil.rmtree(before, ignore_errors=True)
    counts = ", ".join(f"{word} {found[word]}" for word in ("lost", "duplicated", "unreadable", "told"))
    say(f"disk: {cases} calls met a fault: {counts} (told: the caller was told something wrong)")
    assert not bad, "\n".join(bad)
    assert cases >= (500 if every_case else 40)


def _chain(folder: Path) -> list[str]:
    """Lines of the ledger that are none, after a write was done again."""
    lines = list(ledger.read(folder / ledger.FOLDER / ledger.FILE))
    return [f"lost line of the ledger: {raw!r}" for line, raw in lines if line is None]
