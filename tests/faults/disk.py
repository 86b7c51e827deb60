"""A disk that fails at one call: writes of a lake in processes of their own, under `shim.c`.

    with Disk(folder) as disk:
        outcome, calls = disk.do("one neuron", lake, kind="torn", at=7)

`outcome` is what the caller of the write was told, or None if the process was killed. One process has imported
everything, and each write happens in a child of it, which takes milliseconds instead of seconds.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

KINDS = ("nothing", "kill before", "kill after", "torn", "no space", "io error", "short write", "io error after")
"""What can happen to a call, numbered as in `shim.c`. `io error after`: it happened, and the caller is told that it did not."""

FOLDER = Path(__file__).parent


class Disk:
    """A process whose children write to lakes, each with a fault of its own."""

    def __init__(self, folder: Path) -> None:
        self._library = folder / "shim.so"

    @staticmethod
    def is_there() -> bool:
        """Whether a C compiler is there to build the shim."""
        return shutil.which("cc") is not None

    def __enter__(self) -> "Disk":
        build = ["cc", "-shared", "-fPIC", "-O1", "-o", str(self._library), str(FOLDER / "shim.c"), "-ldl"]
        subprocess.run(build, check=True)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(FOLDER / "disk.py"), str(self._library)],
            env={**os.environ, "LD_PRELOAD": str(self._library), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Rust threads of killed children
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def do(self, operation: str, lake: Path, *, kind: str = "nothing", at: int = -1) -> tuple[str | None, int]:
        """Do one of `operations.OPERATIONS`, and give what its caller was told and how many calls changed files."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"operation": operation, "lake": str(lake), "kind": KINDS.index(kind), "at": at}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        outcome, calls = json.loads(self._process.stdout.readline())
        return outcome, calls


def _child(asked: dict[str, Any], shim: ctypes.CDLL, answer: int) -> None:
    """Do what was asked in this process, which may be killed at it."""
    from operations import OPERATIONS, told

    from resources.delta import DeltaLake

    lake = DeltaLake(asked["lake"])
    shim.fault_arm(f"{asked['lake']}/".encode(), asked["at"], asked["kind"])
    try:
        outcome = told(OPERATIONS[asked["operation"]], lake)
    except BaseException as error:  # noqa: BLE001 - a lake raises nothing but its own error, and this is looked at
        outcome = f"raised {type(error).__name__}: {error}"
    os.write(answer, json.dumps([outcome, shim.fault_count()]).encode())
    os._exit(0)


def _serve() -> None:
    sys.path.append(str(FOLDER))
    import operations  # noqa: F401 - so that children have it

    shim = ctypes.CDLL(sys.argv[1])
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _child(json.loads(line), shim, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        print(answer.decode() or "[null, 0]", flush=True)  # noqa: T201 - its answer


if __name__ == "__main__":
    _serve()
