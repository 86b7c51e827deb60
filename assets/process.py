"""A process: which one makes a run, so that a run whose process is gone is told from one that is under way.

    4711 8812345 0b4e6c1a-... ada's-laptop       number, start in ticks since the boot, boot, machine

Numbers are used again, so the start and the boot belong to the name; and another machine's processes cannot be seen from here.
"""

import os
import platform
from pathlib import Path
from typing import Literal

PROCESS_TAG = "neuronledger/process"
"""The tag of a run that names its process."""


def process_name(pid: int) -> str | None:
    """A running process, told from every other that had or will have its number; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # A killed process whose parent has not looked yet is a zombie (Z).
    return None if fields[0] in {"Z", "X"} else f"{pid} {fields[19]} {_boot()} {_machine()}"


def whereabouts(name: str) -> Literal["running", "gone", "elsewhere"]:
    """Whether a process, as `process_name` has it, still runs; `elsewhere` if that cannot be seen from this machine."""
    number, start, boot, machine = [*name.split(), "", "", "", ""][:4]
    if not number.isdecimal() or (machine and machine != _machine()) or process_name(os.getpid()) is None:
        return "elsewhere"
    if boot != _boot():
        # The machine was started again since; earlier versions did not say which machine it was.
        return "gone" if machine else "elsewhere"
    now = process_name(int(number))
    return "running" if now is not None and now.split()[1] == start else "gone"


def started_after(pid: int, moment: float) -> bool:
    """Whether the process with this number began after a time (seconds since 1970), or there is none.

    A second is left for the rounding of the boot's time.
    """
    now = process_name(pid)
    if now is None:
        return process_name(os.getpid()) is not None
    lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    booted = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
    return booted + int(now.split()[1]) / os.sysconf("SC_CLK_TCK") > moment + 1


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _machine() -> str:
    return platform.node().replace(" ", "-") or "unknown"
