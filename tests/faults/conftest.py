"""What fault tests share. `FAULTS=all` (as `make faults` sets it) runs every case, otherwise a few of each kind."""

import os
from collections.abc import Callable, Iterator

import pytest


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


_said: list[str] = []


@pytest.fixture
def say() -> Callable[[str], None]:
    """Say a figure below the results of the tests."""
    return _said.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _said:
        terminalreporter.write_line(line)
