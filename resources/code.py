"""Code: which program made a row. Its version, the git commit if there is one, and what it ran on.

What cannot be found out is written as "unknown", so that an audit sees that it was not known.
"""

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("dagster", "deltalake", "numpy", "openai", "polars", "pydantic", "torch", "transformers", "tokenizers")


def code() -> dict[str, Any]:
    """Package version, git commit, whether files differ from that commit, and the hash of the lock file."""
    folder = Path(__file__).resolve().parent.parent
    commit = _git(folder, "rev-parse", "HEAD") if (folder / ".git").exists() else None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        "package": _version("neuronledger"),
        "git_commit": commit or "unknown",
        "changed": "unknown" if changed is None else bool(changed),
        "lock": _hash(folder / "requirements.lock"),
    }


def environment() -> dict[str, Any]:
    """Versions of Python and of the packages that compute, and the kind of machine."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _hash(path: Path) -> str:
    """The tagged hash of the list of pinned packages; they may not be those that are installed."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" if path.is_file() else "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 (fixed arguments)
            ["git", "-C", str(folder), *arguments],  # noqa: S607 (the user's own git)
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
