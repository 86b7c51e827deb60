"""The Dagster instance: where runs and events are kept, one folder for each lake."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

import dagster as dg

from resources.settings import Settings


def prepare(settings: Settings) -> None:
    """Make the instance folder, with the configuration that ships with the project unless it has one of its own."""
    settings.instance.mkdir(parents=True, exist_ok=True)
    configuration = settings.instance / "dagster.yaml"
    if not configuration.exists():
        configuration.write_text(files("resources").joinpath("dagster.yaml").read_text("utf-8"), encoding="utf-8")


@contextmanager
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of these settings, closed at the end."""
    prepare(settings)
    with dg.DagsterInstance.from_config(str(settings.instance)) as opened:
        yield opened
