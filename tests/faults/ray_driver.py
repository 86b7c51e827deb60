"""The command of a cluster, made to be killed: what it has kept by then, the next one goes on from.

python ray_driver.py capture HOME FOLDER PIECES     a forward pass, killed once so many of its pieces are finished
python ray_driver.py ask FOLDER URL HOP...          neurons explained, simulated and judged, until the test kills it
"""

import os
import signal
import sys
from pathlib import Path

from assets import forward_pass, pieces
from resources.machines import RayMachines


def capture(home: str, folder: str, most: str) -> None:
    """Keep what is found after every piece, and die."""
    from test_ray import SMALL, run

    vars(forward_pass).update(SMALL | {"KEEP_AFTER": 0.0})
    heard = 0

    def progress(*_: object) -> None:
        nonlocal heard
        heard += 1
        if heard > int(most):
            os.kill(os.getpid(), signal.SIGKILL)

    run(Path(home), Path(folder), RayMachines(device="cpu"), progress=progress)


def ask(folder: str, url: str, *hops: str) -> None:
    """Make these hops of the layer that the test has laid down."""
    from test_ray_asking import OneLayer

    pieces.NEURONS = 2
    OneLayer(Path(folder), url, RayMachines(device="cpu")).make(*hops)


if __name__ == "__main__":
    {"capture": capture, "ask": ask}[sys.argv[1]](*sys.argv[2:])
