"""Peak memory of one pass in a process of its own: `python -m benchmarks.peak_memory FOLDER SHAPE WINDOWS bare|full`.

Prints the most memory that the process ever had, in MiB. The bare pass makes the same plan and runs two batches, since
it keeps nothing from one to the next.
"""

import sys
from itertools import islice
from pathlib import Path

from benchmarks import subjects
from benchmarks.passes import Capturing, batches, run
from pipeline.capture import plan


def main(folder: str, shape: str, windows: str, leg: str) -> None:
    """Run the pass and print its peak."""
    subject = subjects.subject(shape, Path(folder), device="cpu")
    planned = plan(subjects.windows(shape, int(windows)))
    layers = [site.layer for site in subject.layers()]
    if leg == "bare":
        for batch in islice(batches(planned, "cpu"), 2):
            run(subject, planned, layers, [batch], lambda *_: None)
    else:
        with Capturing(subject, planned, layers) as capturing:
            for batch in batches(planned, "cpu"):
                capturing.take([batch])
            for _ in capturing.results():
                pass
    print(_peak_mib())


def _peak_mib() -> float:
    # Not `ru_maxrss`, which begins with what the parent process had.
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
