"""Which program made a row, as far as it can be found out."""

import hashlib
import platform
import subprocess
from importlib.metadata import version

import pytest

from resources import code as door


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of the program, apart from any repository."""
    monkeypatch.setattr(door, "__file__", str(tmp_path / "resources" / "code.py"))
    return tmp_path


def git(folder, *words):
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *author, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_named_and_whether_files_differ_from_it(folder):
    (folder / "file").write_text("1")
    git(folder, "init", "--quiet")
    git(folder, "add", "file")
    git(folder, "commit", "--quiet", "--message", "one")
    commit = git(folder, "rev-parse", "HEAD")
    found = door.code()
    assert (found["package"], found["git_commit"], found["changed"]) == (version("neuronledger"), commit, False)
    (folder / "results").write_text("files that git does not know are no code")
    assert door.code()["changed"] is False
    (folder / "file").write_text("2")
    assert door.code()["changed"] is True


def test_what_cannot_be_known_is_said_to_be_unknown(folder, monkeypatch):
    unknown = {"package": version("neuronledger"), "git_commit": "unknown", "changed": "unknown", "lock": "unknown"}
    assert door.code() == unknown
    # A repository without a commit, and then without a git to ask.
    git(folder, "init", "--quiet")
    assert door.code() == unknown
    monkeypatch.setenv("PATH", "")
    assert door.code() == unknown


def test_the_list_of_pinned_packages_is_known_by_its_hash(folder):
    (folder / "requirements.lock").write_bytes(b"polars==2.1.0\n")
    assert door.code()["lock"] == "sha256:" + hashlib.sha256(b"polars==2.1.0\n").hexdigest()


def test_the_environment_names_what_computes():
    found = door.environment()
    assert found["python"] == platform.python_version()
    assert found["packages"]["polars"] == version("polars")
    assert set(found["packages"]) == set(door.PACKAGES)


def test_a_package_that_is_not_installed_is_said_to_be_so(monkeypatch):
    monkeypatch.setattr(door, "PACKAGES", ("no-such-package-here",))
    assert door.environment()["packages"] == {"no-such-package-here": "not installed"}
