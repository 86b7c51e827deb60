"""What fault tests share. `FAULTS=all` (as `make faults` sets it) runs every case, otherwise a few of each kind."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray writes another address for 127.0.0.1
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
}


@pytest.fixture(scope="session")
def every_case() -> bool:
    """Whether the full set was asked for."""
    return os.environ.get("FAULTS") == "all"


@pytest.fixture(scope="session")
def store() -> "Iterator[object]":
    """A running object store, shared by tests that make buckets of their own."""
    from object_store import Store

    with Store() as running:
        yield running


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes on loopback, of one core each."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra `scale`)")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRONMENT | {"KILLED_ONCE": str(tmp_path_factory.mktemp("killed") / "once")}).items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)]))
        each = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
        running = Cluster(initialize_head=True, head_node_args=each | {"include_dashboard": False})
        running.add_node(**each)
        patch.setenv("RAY_ADDRESS", running.address)
        yield running
        ray.shutdown()
        running.shutdown()


_said: list[str] = []


@pytest.fixture
def say() -> Callable[[str], None]:
    """Say a figure below the results of the tests."""
    return _said.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _said:
        terminalreporter.write_line(line)
