"""Whole pipelines killed at any time, from the first text to the last score: the doctor and another run set all right.

After them Dagster knows of every slice what the lake has, each table is that of a run that nobody disturbed, and no more
requests were sent twice than can be under way. One run on each push; as many as one likes, and what became of each:

    FAULTS=all NEURONLEDGER_TEST_KILLS=200 python -m pytest tests/faults/test_pipeline_killed.py --log-cli-level=info
"""

import logging
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from runs import Runs, said

from assets.project import layer_key
from assets.step import data_version
from explorer.audit import newest
from pipeline.provenance import frame_hash
from pipeline.tables import TABLES
from resources.delta import DeltaLake
from resources.integrity import integrity

log = logging.getLogger(__name__)
KILLS = int(os.environ.get("NEURONLEDGER_TEST_KILLS", "1"))
AT_ONCE = 4
MADE = (
    "sequences", "subject_layers", "activations", "neuron_statistics", "token_associations", "exemplars", "explanations",
    "simulations", "scores",
)  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    runs = Runs(tmp_path, in_memory=False)
    with runs.endpoint:
        yield runs
        runs.close()


def contents(lake: DeltaLake) -> dict[str, str]:
    return {name: frame_hash(lake.read(name), key=TABLES[name].key) for name in MADE}


def unlike(home: Path, lake: DeltaLake) -> list[str]:
    """The slices of which Dagster knows another content than that with which the lake recorded them last."""
    records = lake.read("materializations").filter(status="done").filter(pl.col("version").is_not_null())
    found = []
    with dg.DagsterInstance.from_config(str(home / "dagster_home" / "subject")) as opened:
        for (table, layer), rows in records.filter(pl.col("neurons").is_null()).group_by("table", "layer"):
            last = rows.sort("finished_at").row(-1, named=True)
            if newest(opened, table, None if layer is None else layer_key(layer)) != data_version(last):
                found.append(f"{table} of layer {layer}")
        started = opened.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        found += [f"run {run.run_id} still counts as started" for run in started]
    return found


def test_pipelines_killed_at_any_time_are_set_right_by_the_doctor_and_another_run(
    runs: Runs, say: Callable[[str], None]
) -> None:
    # The first one may have to compile; how long one takes is known of the second.
    for undisturbed in (runs.copied("first"), runs.copied("undisturbed")):
        begun = len(runs.endpoint.requests)
        assert runs.run(undisturbed) == 0, (undisturbed / "said.txt").read_text()
    seconds, total = runs.used, len(runs.endpoint.requests) - begun
    usual = contents(DeltaLake(undisturbed / "lake" / "subject"))
    assert unlike(undisturbed, DeltaLake(undisturbed / "lake" / "subject")) == []
    doctor = [words if words != "run" else "doctor" for words in runs.words if words not in ("--layers", "0")]
    draw, killed, repaid = random.Random(8), 0, 0
    for number in range(KILLS):
        home, first = runs.copied(f"killed-{number}"), len(runs.endpoint.requests)
        at = draw.uniform(0.02, 0.98) * seconds
        killed += runs.run(home, kill_after=at) == -9
        where = f"pipeline {number}, killed after {at:.2f} of {seconds:.2f} s"
        told = len(runs.endpoint.requests)
        runs.run(home, words=doctor)
        asked_by_doctor = runs.endpoint.requests[told:]
        assert runs.run(home) == 0, f"{where}: {(home / 'said.txt').read_text()}"
        lake = DeltaLake(home / "lake" / "subject")
        assert contents(lake) == usual, where
        assert unlike(home, lake) == [], where
        assert [found for check in integrity(lake)[0] for found in check.findings] == [], where
        sent = Counter(map(said, runs.endpoint.requests[first:])) - Counter(map(said, asked_by_doctor))
        again = sent.total() - total
        assert 0 <= again <= AT_ONCE, where
        repaid += again
        log.info("%s: set right, %d of %d requests sent twice", where, again, total)
        shutil.rmtree(home)
    say(
        f"pipelines killed: {killed} of {KILLS} begun, all set right; {repaid} requests of {total * KILLS:,} sent twice"
    )
    assert killed >= KILLS // 2
