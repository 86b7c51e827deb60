"""The Dagster instance: where runs and events are kept, one folder for each lake.

Events are in SQLite in that folder, or, with an address in `NEURONLEDGER_POSTGRES_URL`, in a database that several
machines share; each of them still has a folder of its own, for logs and what an unfinished forward pass has found.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from urllib.parse import urlsplit

import dagster as dg

from pipeline.errors import NeuronLedgerError, SettingsError
from resources.model_folder import first_line
from resources.settings import Settings

POSTGRES_URL = "NEURONLEDGER_POSTGRES_URL"
UNREACHABLE = frozenset({"OperationalError", "DatabaseError", "DagsterPostgresException"})
"""Errors of libraries that need not be installed."""


def prepare(settings: Settings) -> None:
    """Make the instance folder, with the configuration that ships with the project unless it has one of its own.

    Raises:
        SettingsError: there is an address of a database, and what talks to it is not installed.
    """
    if os.environ.get(POSTGRES_URL) and importlib.util.find_spec("dagster_postgres") is None:
        raise SettingsError(f"{POSTGRES_URL} is set, which needs another package: pip install 'neuronledger[scale]'")
    _name_the_driver()
    settings.instance.mkdir(parents=True, exist_ok=True)
    configuration = settings.instance / "dagster.yaml"
    shipped, postgres = (
        files("resources").joinpath(name).read_text("utf-8") for name in ("dagster.yaml", "postgres.yaml")
    )
    wanted = shipped + postgres if os.environ.get(POSTGRES_URL) else shipped
    # What a user has changed stays as it is.
    if not configuration.exists() or configuration.read_text("utf-8") in (shipped, shipped + postgres):
        configuration.write_text(wanted, encoding="utf-8")


@contextmanager
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of these settings, closed at the end.

    Raises:
        SettingsError: its files are damaged, or its database cannot be reached.
        NeuronLedgerError: its database failed later, such as on a full disk.
    """
    prepare(settings)
    try:
        found = dg.DagsterInstance.from_config(str(settings.instance))
        # Its files are opened when they are first asked.
        found.get_runs_count()
    except Exception as error:
        # An operational error is the disk's, not the files'.
        if not os.environ.get(POSTGRES_URL) and type(error).__name__ != "OperationalError":
            raise SettingsError(
                f"Dagster's folder {settings.instance} cannot be used ({first_line(error)}); move it away, and "
                "`neuronledger doctor` tells Dagster its history again from the lake, which needs none of it"
            ) from error
        if type(error).__name__ not in UNREACHABLE:
            raise
        raise SettingsError(_failed(settings, error)) from None
    try:
        with found as opened:
            yield opened
    except Exception as error:
        if type(error).__name__ not in UNREACHABLE:
            raise
        raise NeuronLedgerError(
            f"{_failed(settings, error)}. What was finished is kept; see to it, and run again"
        ) from None


def _failed(settings: Settings, error: Exception) -> str:
    """Which database cannot be used, and why. Dagster asks again for ten seconds, and then says only that it did."""
    whose = f"of {POSTGRES_URL} at {_place()}" if os.environ.get(POSTGRES_URL) else f"of Dagster in {settings.instance}"
    return f"the database {whose} cannot be used: {_without_secret(str(error.__cause__ or error))}"


def _name_the_driver() -> None:
    """Say which driver to use, for this process and those that it starts: SQLAlchemy's default is one that Dagster lacks."""
    scheme, found, rest = os.environ.get(POSTGRES_URL, "").partition("://")
    if found and scheme in ("postgres", "postgresql"):
        os.environ[POSTGRES_URL] = f"postgresql+psycopg2://{rest}"


def _place() -> str:
    """The database without who asks for it."""
    try:
        parts = urlsplit(os.environ[POSTGRES_URL])
        return f"{parts.hostname}:{parts.port or 5432}{parts.path}"
    except ValueError:
        return "an address that is none"


def _without_secret(words: str) -> str:
    try:
        secret = urlsplit(os.environ.get(POSTGRES_URL, "")).password
    except ValueError:
        secret = None
    line = " ".join(words.split("(Background on this error", maxsplit=1)[0].split())
    return line.replace(secret, "[password]") if secret else line
