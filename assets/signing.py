"""Signing: the head of the ledger after each run that Dagster's UI or its daemon started, as a run of the command signs its own.

It is the daemon that signs, some time after the run ended. What changed the lake without a run is not signed by it.
"""

from collections.abc import Callable

import dagster as dg

INTERVAL = 30
"""Seconds between two looks, at least."""
ENDS = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


def sensors(sign: Callable[[], str | None]) -> list[dg.SensorDefinition]:
    """One for each way in which a run can end. `sign` signs the head and gives it; None if there is none."""
    return [_after(status, sign) for status in ENDS]


def _after(status: dg.DagsterRunStatus, sign: Callable[[], str | None]) -> dg.SensorDefinition:
    @dg.run_status_sensor(
        status,
        name=f"sign_the_head_after_{status.value.lower()}",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=INTERVAL,
        description="Signs the head of the ledger with the key of --sign-with, and keeps the signature beside it.",
    )
    def signed(context: dg.RunStatusSensorContext) -> dg.SkipReason:
        head = sign()
        said = "the lake has no ledger yet" if head is None else f"signed {head}"
        return dg.SkipReason(f"{said}, after run {context.dagster_run.run_id}")

    return signed
