"""Runs and events in a real PostgreSQL: machines with folders of their own share them, and the password is in none."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from pipeline.errors import SettingsError
from resources.instance import POSTGRES_URL, instance, prepare
from resources.settings import Settings, load

PASSWORD = "canary-password-7a6b5c"
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def binaries() -> Path | None:
    """Where the server's programs are; Debian keeps them off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a database on a server of its own on loopback."""
    pytest.importorskip("dagster_postgres", reason="dagster-postgres is not installed (extra `scale`)")
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    # The server refuses to be root; Debian's package brings a user for it.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(folder, "postgres")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    data = folder / "data"
    subprocess.run(
        [*as_user, programs / "initdb", "-D", data, "-U", "ledger", "-A", "scram-sha-256", "--no-sync",
         f"--pwfile={folder / 'password'}"], check=True, **quiet,
    )  # fmt: skip
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*as_user, programs / "pg_ctl", "-D", data, "-w"]
    subprocess.run([*control, "-o", options, "-l", folder / "log", "start"], check=True, **quiet)
    yield f"postgresql://ledger:{PASSWORD}@127.0.0.1:{port}/postgres"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, **quiet)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("NEURONLEDGER_")]:
        monkeypatch.delenv(name)


def machine(monkeypatch: pytest.MonkeyPatch, home: Path) -> Settings:
    """The settings of one machine."""
    monkeypatch.setenv("NEURONLEDGER_HOME", str(home))
    settings = load(subject="gpt2")
    prepare(settings)
    return settings


@dg.asset
def scores() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"data/rows": 3}, data_version=dg.DataVersion("abc"))


def test_machines_share_runs_and_events_and_keep_no_password(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POSTGRES_URL, server)
    with instance(machine(monkeypatch, tmp_path / "one")) as opened:
        done = dg.materialize([scores], instance=opened, run_config=QUIET)
    other = machine(monkeypatch, tmp_path / "two")
    with instance(other) as opened:
        assert [run.run_id for run in opened.get_runs()] == [done.run_id]
        (record,) = opened.fetch_materializations(dg.AssetRecordsFilter(asset_key=scores.key), limit=1).records
        assert record.asset_materialization is not None
        assert record.asset_materialization.metadata["data/rows"].value == 3
        assert not opened.telemetry_enabled
        assert opened.run_monitoring_enabled
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".db"]
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]


def test_a_folder_follows_the_environment_unless_its_user_changed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dagster_postgres", reason="dagster-postgres is not installed (extra `scale`)")
    file = machine(monkeypatch, tmp_path).instance / "dagster.yaml"
    assert "storage" not in yaml.safe_load(file.read_text())
    monkeypatch.setenv(POSTGRES_URL, "postgresql://somewhere/else")
    machine(monkeypatch, tmp_path)
    assert yaml.safe_load(file.read_text())["storage"] == {"postgres": {"postgres_url": {"env": POSTGRES_URL}}}
    file.write_text("telemetry:\n  enabled: false\n# mine\n")
    monkeypatch.delenv(POSTGRES_URL)
    machine(monkeypatch, tmp_path)
    assert file.read_text().endswith("# mine\n")


def test_a_database_that_does_not_answer_is_named_without_its_password(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POSTGRES_URL, server.replace(PASSWORD, f"{PASSWORD}x"))
    settings = machine(monkeypatch, tmp_path)
    with (
        pytest.raises(
            SettingsError, match=r"the database of NEURONLEDGER_POSTGRES_URL at 127.0.0.1:\d+/postgres"
        ) as said,
        instance(settings),
    ):
        pass
    assert PASSWORD not in str(said.value)
    assert "\n" not in str(said.value)
