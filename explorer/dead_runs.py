"""Dead runs: those that Dagster takes to be under way, and whose process is gone.

Dagster's own monitoring does not see them: the launcher that starts runs as processes of one machine has no health check, so
that such a run is ended only after the most time that any run may take (a day, in the `dagster.yaml` that ships), and keeps its
place in the queue until then. Here a run is ended if it is sure that nobody runs it:

    its tag names a process of this machine    each step puts it there, whoever started the run
    or it died before its first step           Dagster noted the number of its process, in files of this machine

What another machine runs cannot be seen from here, and is reported.
"""

from collections.abc import Iterator

import dagster as dg

from assets.process import PROCESS_TAG, started_after, whereabouts
from explorer.condition import ILL, LEFT, MENDED, WELL, Condition

UNDER_WAY = (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING)


def dead_runs(opened: dg.DagsterInstance, *, mend: bool = True) -> Iterator[Condition]:
    """What is known of each run that is under way for Dagster. Dead ones are ended, or only reported unless `mend`."""
    dead = 0
    for run in opened.get_runs(dg.RunsFilter(statuses=list(UNDER_WAY))):
        found, why = _found(opened, run)
        if found == "running":
            yield Condition("runs", WELL, f"run {run.run_id} is under way")
        elif found == "elsewhere":
            yield Condition("runs", LEFT, f"run {run.run_id} is under way or dead: {why}")
        elif mend:
            opened.report_run_failed(run, f"{why}; `neuronledger` ended the run")
            dead += 1
        else:
            yield Condition("runs", ILL, f"Dagster takes run {run.run_id} to be under way, and {why}")
    if dead:
        said = "1 run whose process is gone is ended" if dead == 1 else f"{dead:,} runs whose process is gone are ended"
        yield Condition("runs", MENDED, said)


def _found(opened: dg.DagsterInstance, run: dg.DagsterRun) -> tuple[str, str]:
    """Whether a run is `running`, `gone` or `elsewhere`, and in words what says so."""
    noted = _noted(opened, run.run_id) if _is_of_this_machine(opened) else None
    # Where either process is there, nothing is sure.
    if noted is not None and not started_after(*noted):
        return "running", ""
    if PROCESS_TAG in run.tags:
        found = whereabouts(run.tags[PROCESS_TAG])
        if found == "elsewhere":
            return found, f"its process ({run.tags[PROCESS_TAG]}) is not one of this machine"
        return found, f"its process ({run.tags[PROCESS_TAG]}) is gone"
    if noted is None:
        return "elsewhere", "nobody noted which process of this machine runs it"
    return "gone", f"its process ({noted[0]}) is gone"


def _noted(opened: dg.DagsterInstance, run_id: str) -> tuple[int, float] | None:
    """Number of the process that Dagster noted for a run that it launched, and when it did."""
    for entry in opened.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event is not None and event.engine_event_data else None
        if pid is not None and str(pid.value).isdecimal():
            return int(str(pid.value)), entry.timestamp
    return None


def _is_of_this_machine(opened: dg.DagsterInstance) -> bool:
    """Whether the instance keeps its events in files, which only one machine can use."""
    return type(opened.event_log_storage).__name__ in ("SqliteEventLogStorage", "ConsolidatedSqliteEventLogStorage")
