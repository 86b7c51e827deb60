"""The environments of peers: made once, with pinned versions, and kept in a folder outside of the project."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
NAMES = ("hooks", "dump", "transformer_lens", "nnsight", "delphi")


@dataclass(frozen=True)
class Peer:
    """A peer, and the Python that has it."""

    name: str
    python: Path

    def ratios(self, model: Path, windows: Path, repetitions: int) -> dict[str, dict[str, list[float]]]:
        """For each of its ways the ratios `wall` and `cpu` to the bare pass; see `benchmarks.peers.turns`."""
        done = subprocess.run(
            [self.python, "-m", f"benchmarks.peers.{self.name}", model, windows, str(repetitions)],
            cwd=PEERS.parents[1],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        found: dict[str, dict[str, list[float]]] = json.loads(done.stdout.splitlines()[-1])
        return found


def peers(home: Path, names: Sequence[str] = NAMES) -> list[Peer]:
    """Those of the peers that can be had here; what is left out is said on standard error."""
    found = []
    for name in names:
        try:
            found.append(Peer(name, _python(name, home)))
        except subprocess.CalledProcessError as error:
            print(f"{name} is left out: {' '.join(map(str, error.cmd))} failed", file=sys.stderr)
    return found


def python_with(requirements: Path, home: Path) -> Path:
    """The Python of an environment under `home` that has what a file requires; made anew when the file has changed."""
    folder = home / requirements.stem
    mark = folder / "installed.txt"
    if not mark.exists() or mark.read_text() != requirements.read_text():
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(requirements)]
        subprocess.run(pip, check=True, stdout=sys.stderr)
        mark.write_text(requirements.read_text())
    return folder / "bin" / "python"


def _python(name: str, home: Path) -> Path:
    requirements = PEERS / "requirements" / f"{name}.txt"
    return python_with(requirements, home) if requirements.exists() else Path(sys.executable)
