"""Dead runs: ended where it is sure that nobody runs them, and reported where it is not."""

import os
import platform
import subprocess
import sys
import time

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from assets.process import PROCESS_TAG, process_name, started_after, whereabouts
from explorer.dead_runs import dead_runs

NO_PROCESS = 2**22 + 1


@dg.job
def nothing():
    pass


@pytest.fixture
def opened(tmp_path):
    """An instance that keeps its events in files, as ours does."""
    with dg.DagsterInstance.from_config(str(tmp_path), "none.yaml") as instance:
        yield instance


def begun(opened, *, tag=None, pid=None):
    """A run that is under way for Dagster: with the tag of its process, and with the process that Dagster noted for it."""
    tags = {} if tag is None else {PROCESS_TAG: tag}
    run = opened.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED, tags=tags)
    if pid is not None:
        opened.report_engine_event(f"Started process for run (pid: {pid}).", run, EngineEventData.in_process(pid))
    return run


def gone():
    """The name of a process that was, and its number."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        name = process_name(process.pid)
    return name, process.pid


def test_a_run_is_ended_if_its_process_is_gone_and_no_other(opened):
    name, pid = gone()
    me = os.getpid()
    number, start, boot, machine = process_name(me).split()
    dead = [
        begun(opened, tag=name),
        begun(opened, tag=name, pid=pid),
        # Another process has the number by now, or the machine was started again.
        begun(opened, tag=f"{number} {int(start) + 1} {boot} {machine}"),
        begun(opened, tag=f"{number} {start} another-boot {machine}"),
        # It died before its first step.
        begun(opened, pid=pid),
    ]
    left = [
        begun(opened, tag=process_name(me)),
        begun(opened, pid=me),
        # A step that had a process of its own is done, and the run goes on.
        begun(opened, tag=name, pid=me),
        begun(opened, tag=f"{number} {start} another-boot another-machine"),
        # What versions before the last one wrote, which did not name the machine.
        begun(opened, tag=f"{number} {start} another-boot"),
        begun(opened, tag="unknown"),
        begun(opened),
    ]
    reported = list(dead_runs(opened, mend=False))
    assert {opened.get_run_by_id(run.run_id).status for run in (*dead, *left)} == {dg.DagsterRunStatus.STARTED}
    assert sorted(each.outcome for each in reported) == ["ill"] * 5 + ["not checked"] * 4 + ["well"] * 3
    found = list(dead_runs(opened))
    assert [each.said for each in found if each.outcome == "mended"] == ["5 runs whose process is gone are ended"]
    assert {opened.get_run_by_id(run.run_id).status for run in dead} == {dg.DagsterRunStatus.FAILURE}
    assert {opened.get_run_by_id(run.run_id).status for run in left} == {dg.DagsterRunStatus.STARTED}


def test_what_dagster_noted_in_a_database_of_several_machines_ends_no_run():
    with dg.DagsterInstance.ephemeral() as opened:
        run = begun(opened, pid=gone()[1])
        assert [each.outcome for each in dead_runs(opened)] == ["not checked"]
        assert opened.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.STARTED


def test_a_process_is_told_from_a_later_one_with_its_number_and_from_those_of_other_machines():
    name = process_name(os.getpid())
    pid, start, boot, machine = name.split()
    assert machine == platform.node()
    assert whereabouts(name) == whereabouts(f"{pid} {start} {boot}") == "running"
    assert whereabouts(f"{pid} {int(start) + 1} {boot} {machine}") == "gone"
    assert whereabouts(f"{NO_PROCESS} {start} {boot} {machine}") == "gone"
    assert whereabouts(f"{pid} {start} {boot} elsewhere") == whereabouts("unknown") == "elsewhere"
    assert process_name(NO_PROCESS) is None


def test_a_process_that_has_the_number_of_an_earlier_one_started_after_it():
    moment = time.time()
    assert not started_after(os.getpid(), moment)
    assert started_after(os.getpid(), moment - 10 * 365 * 86400)
    assert started_after(NO_PROCESS, moment)
