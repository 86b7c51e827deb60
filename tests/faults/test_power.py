"""What a power cut can leave of a table on a disk that was not told to keep it: each state is found and named.

The lake forces a write to the disk before it counts, so these states need a disk that lies, or a hand that slips. They
are made by hand here. None may be read as if nothing were missing, and what the message says to do must work.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from operations import neurons, stored

from pipeline.errors import LakeError
from resources import ledger, table_form
from resources.delta import DeltaLake
from resources.lake_files import LocalFiles

TABLE = "neuron_statistics"
Harm = Callable[[Path], object]


def empty(path: Path) -> None:
    path.write_bytes(b"")


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def first_line_only(path: Path) -> None:
    path.write_bytes(path.read_bytes().split(b"\n")[0])


def zeros(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def gone(path: Path) -> None:
    path.unlink()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with layers 0 to 4 in versions 2 to 6, and a checkpoint at version 5."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(table_form.PROPERTIES, "delta.checkpointInterval", "6")
        for layer in range(5):
            DeltaLake(folder).replace(TABLE, neurons(layer, [0], "x"), layer=layer, record={})
    assert (folder / TABLE / "_delta_log" / f"{5:020}.checkpoint.parquet").exists()
    return folder


@pytest.fixture
def lake(whole: Path, tmp_path: Path) -> DeltaLake:
    shutil.copytree(whole, tmp_path / "lake")
    return DeltaLake(tmp_path / "lake")


def log(lake: DeltaLake) -> Path:
    return Path(lake.uri) / TABLE / "_delta_log"


@pytest.mark.parametrize("harm", [empty, torn, first_line_only, zeros])
@pytest.mark.parametrize("version", [3, 6], ids=["a middle commit", "the newest commit"])
def test_a_commit_that_a_power_cut_spoiled_is_named(lake: DeltaLake, version: int, harm: Harm) -> None:
    commit = log(lake) / f"{version:020}.json"
    copy = commit.read_bytes()
    harm(commit)
    for use in (lake.read, lake.version, DeltaLake(lake.uri).rows):
        with pytest.raises(LakeError, match=f"{commit.name} .* as after a power cut"):
            use(TABLE)
    with pytest.raises(LakeError, match=f"{commit.name} .* as after a power cut"):
        lake.replace(TABLE, neurons(7, [0], "x"), layer=7, record={})
    commit.write_bytes(copy)
    assert len(stored(lake, TABLE)) == 5


@pytest.mark.parametrize("harm", [empty, torn, first_line_only, zeros])
def test_the_newest_commit_may_be_removed_and_made_again(lake: DeltaLake, harm: Harm) -> None:
    harm(log(lake) / f"{6:020}.json")
    (log(lake) / f"{6:020}.json").unlink()
    assert len(stored(lake, TABLE)) == 4
    lake.replace(TABLE, neurons(4, [0], "again"), layer=4, record={})
    assert stored(lake, TABLE)[-1] == (4, 0, "again")


def test_a_middle_commit_that_is_gone_is_named(lake: DeltaLake) -> None:
    gone(log(lake) / f"{3:020}.json")
    with pytest.raises(LakeError, match=f"{3:020}.json is gone, and later ones are there"):
        lake.read(TABLE)
    with pytest.raises(LakeError, match=f"{3:020}.json is gone"):
        DeltaLake(lake.uri).replace(TABLE, neurons(7, [0], "x"), layer=7, record={})


def test_a_newest_commit_that_is_gone_is_known_to_the_ledger(lake: DeltaLake) -> None:
    gone(log(lake) / f"{6:020}.json")
    folder = Path(lake.uri)
    lines = [line for line, _ in ledger.read(folder / ledger.FOLDER / ledger.FILE)]
    sealed = max(line.at for line in lines if line is not None and line.at is not None)
    assert sealed == (TABLE, 6)
    assert ledger.versions(LocalFiles(folder)) == {TABLE: 5}


@pytest.mark.parametrize("harm", [empty, torn, zeros])
def test_a_spoiled_checkpoint_is_named_and_costs_nothing(lake: DeltaLake, harm: Harm) -> None:
    checkpoint = log(lake) / f"{5:020}.checkpoint.parquet"
    harm(checkpoint)
    with pytest.raises(LakeError, match=f"its checkpoint {checkpoint.name} cannot be read: remove that"):
        lake.read(TABLE)
    checkpoint.unlink()
    (log(lake) / "_last_checkpoint").unlink()
    assert len(stored(lake, TABLE)) == 5


def test_a_spoiled_note_of_the_last_checkpoint_is_no_harm(lake: DeltaLake) -> None:
    zeros(log(lake) / "_last_checkpoint")
    assert len(stored(lake, TABLE)) == 5


def test_a_note_of_a_checkpoint_that_is_gone_is_named_and_costs_nothing(lake: DeltaLake) -> None:
    gone(log(lake) / f"{5:020}.checkpoint.parquet")
    with pytest.raises(LakeError, match="remove `_last_checkpoint` in its `_delta_log`, and nothing is lost"):
        lake.read(TABLE)
    (log(lake) / "_last_checkpoint").unlink()
    assert len(stored(lake, TABLE)) == 5


@pytest.mark.parametrize("harm", [empty, torn, zeros, gone])
def test_a_spoiled_data_file_is_named(lake: DeltaLake, harm: Harm) -> None:
    (file,) = (Path(lake.uri) / TABLE / "layer=2").glob("*.parquet")
    harm(file)
    with pytest.raises(LakeError, match="a data file of the lake cannot be read"):
        lake.read(TABLE)
    assert lake.read(TABLE, layer=1).height == 1
