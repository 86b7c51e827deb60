"""Where Dagster keeps its runs and events."""

import os

import dagster as dg
import pytest
import yaml

from resources.instance import instance, prepare
from resources.settings import load


@pytest.fixture
def settings(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("NEURONLEDGER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NEURONLEDGER_HOME", str(tmp_path))
    return load(subject="gpt2")


def test_a_new_folder_gets_the_configuration_of_the_project_and_keeps_one_that_was_changed(settings):
    prepare(settings)
    file = settings.instance / "dagster.yaml"
    shipped = yaml.safe_load(file.read_text("utf-8"))
    assert shipped["telemetry"] == {"enabled": False}
    assert shipped["run_monitoring"]["enabled"]
    assert shipped["concurrency"]["pools"] == {"granularity": "run", "default_limit": 1}
    file.write_text("telemetry:\n  enabled: false\n# mine\n")
    prepare(settings)
    assert file.read_text().endswith("# mine\n")


def test_runs_are_found_again_by_whoever_opens_the_folder_next(settings):
    @dg.asset
    def scores() -> None:
        pass

    with instance(settings) as opened:
        assert not opened.telemetry_enabled
        run_id = dg.materialize([scores], instance=opened, run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}).run_id  # fmt: skip
    with instance(settings) as opened:
        assert [run.run_id for run in opened.get_runs()] == [run_id]
    assert any(settings.instance.rglob("*.db"))
    with instance(load(subject="other")) as opened:
        assert list(opened.get_runs()) == []
