"""A disk that is full for real: what was written stays, the message says why, and with space again the write is done."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from operations import neurons, stored

from pipeline.errors import LakeError, NeuronLedgerError
from resources.delta import DeltaLake
from resources.instance import instance
from resources.settings import load

TABLE = "neuron_statistics"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no small file system can be mounted here, which needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_below_the_events_of_dagster_is_said_in_one_sentence(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.asset
    def scores() -> None:
        pass

    monkeypatch.setenv("NEURONLEDGER_HOME", str(small))
    settings = load(subject="gpt2")
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    sentence = r"the database of Dagster in \S+ cannot be used: (database or disk is full|disk I/O error)\. What was finished is kept"

    def materialized() -> None:
        with instance(settings) as opened:
            (small / "ballast").write_bytes(b"\1" * (shutil.disk_usage(small).free - 20_000))
            dg.materialize([scores], instance=opened, run_config=quiet)

    with pytest.raises(NeuronLedgerError, match=sentence) as said:
        materialized()
    assert "\n" not in str(said.value)
    (small / "ballast").unlink()
    with instance(settings) as opened:
        assert dg.materialize([scores], instance=opened, run_config=quiet).success


def test_a_full_disk_loses_nothing_and_says_so(small: Path) -> None:
    lake = DeltaLake(small / "lake")
    ballast = small / "ballast"
    lake.replace(TABLE, neurons(0, [0, 1], "x"), layer=0, record={})
    ballast.write_bytes(b"\1" * 1_700_000)
    wide = neurons(1, list(range(3_000)), "x").with_columns(pl.lit("y" * 50).alias("identity"))
    wide = wide.with_columns(identity=pl.int_range(pl.len()).hash().cast(pl.String) + pl.col("identity"))
    said, layer = "", 0
    while not said:
        layer += 1
        try:
            lake.replace(TABLE, wide.with_columns(layer=pl.lit(layer, pl.Int32)), layer=layer, record={})
        except LakeError as error:
            said = str(error)
    assert "No space left on device" in said
    assert "\n" not in said
    expected = [(0, 0, "x"), (0, 1, "x"), *((before, n, "x") for before in range(1, layer) for n in range(3_000))]
    assert stored(lake, TABLE) == expected
    ballast.unlink()
    lake.replace(TABLE, neurons(layer, [0], "later"), layer=layer, record={})
    assert stored(DeltaLake(small / "lake"), TABLE) == [*expected, (layer, 0, "later")]
