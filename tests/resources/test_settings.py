"""Where a setting comes from, and what is said of a wrong one."""

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SettingsError
from resources.settings import Settings, home, load, slug


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """An empty project folder to stand in, and nothing chosen."""
    for name in [name for name in os.environ if name.upper().startswith("NEURONLEDGER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, text):
    (folder / "neuronledger.toml").write_text(text, encoding="utf-8")


def test_a_flag_goes_before_the_environment_before_the_file_before_the_default(project, monkeypatch):
    assert load(windows=None).windows == 3072
    write(project, "windows = 1\nseed = 1\nlength = 11\n")
    assert load().windows == 1
    monkeypatch.setenv("NEURONLEDGER_WINDOWS", "2")
    monkeypatch.setenv("NEURONLEDGER_SEED", "2")
    assert load().windows == 2
    found = load(windows=3)
    assert (found.windows, found.seed, found.length, found.subject) == (3, 2, 11, "demo")


def test_an_empty_text_takes_back_a_choice_that_may_be_left_out(project, monkeypatch):
    write(project, 'explainer = "m"\nlake = "elsewhere"\n')
    assert load().explainer == "m"
    assert load(explainer="").explainer is None
    monkeypatch.setenv("NEURONLEDGER_LAKE", "")
    assert load().lake_uri == str(project / "lake" / "demo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "colour = 1",
            "`colour` is no setting; known are automation_budget_usd, base_url, batch, column, concurrency, ",
        ),
        ("[lake]\npath = 'a'", "`lake` in {file} (={{'path': 'a'}}): input should be a valid string. It means: folder"),
        ("seed = 4294967296", "`seed` in {file} (=4294967296): input should be less than 4294967296. It means: seed"),
        ('device = "cpu', "{file} is not valid TOML: "),
        ("seed = 1\nseed = 2", "{file} is not valid TOML: "),
    ],
)
def test_a_wrong_file_is_said_with_line_and_remedy(project, text, message):
    write(project, text)
    with pytest.raises(SettingsError, match="^" + re.escape(message.format(file=project / "neuronledger.toml"))):
        load()


def test_a_file_that_is_no_text_is_said_to_be_so(project):
    (project / "neuronledger.toml").write_bytes(b"subject = '\xff'\n")
    with pytest.raises(SettingsError, match="is not valid TOML: 'utf-8' codec"):
        load()


def test_a_wrong_value_names_the_flag_or_variable_that_it_came_from(monkeypatch):
    with pytest.raises(SettingsError, match=r"^--base-url .*|^--windows \(=0\): input should be greater than or equal"):
        load(windows=0)
    monkeypatch.setenv("NEURONLEDGER_WINDOWS", "many")
    with pytest.raises(SettingsError, match=r"^NEURONLEDGER_WINDOWS \(='many'\): input should be a valid integer"):
        load()
    assert load(windows=5).windows == 5


def test_the_project_is_the_nearest_folder_upwards_with_a_file(project, monkeypatch, tmp_path_factory):
    below = project / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert home() == below
    write(project, "windows = 7\n")
    assert home() == project
    assert load().windows == 7
    assert load().lake_uri == str(project / "lake" / "demo")
    write(project / "a", "")
    assert home() == project / "a"
    assert load().windows == 3072
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("NEURONLEDGER_HOME", str(elsewhere))
    write(elsewhere, "windows = 9\n")
    assert home() == elsewhere
    assert load().windows == 9


def test_a_lake_is_a_folder_of_the_project_or_where_it_is_said_to_be(project, monkeypatch):
    monkeypatch.setenv("HOME", "/users/ada")
    assert load(subject="gpt2").lake_uri == str(project / "lake" / "gpt2")
    assert load(lake="l").lake_uri == str(project / "l")
    assert load(lake="/l/../m").lake_uri == "/m"
    assert load(lake="~/l").lake_uri == "/users/ada/l"
    assert load(lake="s3://bucket/l").lake_uri == "s3://bucket/l"


def test_two_sites_of_a_subject_never_share_a_lake(project):
    sites = ["mlp", "residual", "attention", "random-directions:8", "random-directions:9", "sae:a/b", "sae:a-b"]
    found = [load(subject="gpt2", site=site) for site in sites]
    found += [load(subject="gpt2-residual"), load(subject="gpt2 residual"), load(subject="gpt2\\nresidual")]
    assert found[0].lake_uri == str(project / "lake" / "gpt2")
    assert found[1].lake_uri.startswith(str(project / "lake" / "gpt2-residual-"))
    assert len({settings.lake_uri for settings in found}) == len(found)
    assert len({settings.instance for settings in found}) == len(found)
    assert load(site="residual", lake="l").lake_uri == str(project / "l")


def test_each_lake_has_a_dagster_folder_of_its_own(project):
    found = [load(), load(subject="gpt2"), load(lake="l"), load(lake="m"), load(lake="s3://a/b"), load(lake="s3://a-b")]
    assert len({settings.instance for settings in found}) == len(found)
    assert {settings.instance.parent for settings in found} == {project / "dagster_home"}
    assert load(lake="l").instance == load(lake=str(project / "l"), subject="gpt2").instance


def test_children_see_the_same_settings_from_anywhere(project, monkeypatch, tmp_path_factory):
    write(project, 'explainer = "m"\n')
    chosen = load(subject="gpt2", site="sae:a b", windows=5, seed=3, explainer="", base_url="http://127.0.0.1:1/v1")
    for name, value in chosen.for_children().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load() == chosen
    assert load().lake_uri == chosen.lake_uri
    assert os.environ["DAGSTER_HOME"] == str(chosen.instance)


def test_no_setting_is_a_key():
    assert not any(re.search("key|token|secret|password", name) for name in Settings.model_fields)


@given(st.text(min_size=1), st.text(min_size=1))
def test_two_names_never_share_a_folder(name, other):
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}|[a-z0-9_][a-z0-9._-]{0,63}", slug(name))
    assert (slug(name) == slug(other)) == (name == other)


@pytest.mark.parametrize("name", ["gpt2", "a.b-c_d", "demo"])
def test_a_plain_name_is_its_own_folder(name):
    assert slug(name) == name
