"""A process that does the same again and again, made to be watched while it does.

python soak.py HOME URL     runs the pipeline of a project, each time with another seed, and prints a line after each
"""

import os
import sys

from explorer import cli


def main(home: str, url: str) -> None:
    """Run until killed. Each line is the seed of a run and its exit code."""
    os.chdir(home)
    for seed in range(1, 1_000_000):
        words = ["run", "--layers", "0", "--explainer", "scripted", "--base-url", url, "--select", "random:2"]
        try:
            cli.main([*words, "--seed", str(seed)], standalone_mode=False)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        print("run", seed, code, file=sys.__stderr__, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
