"""A folder that is written whole or not at all."""

import pytest

from pipeline.errors import SettingsError
from resources.export_folder import ExportFolder


def inside(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_stand_under_their_names_when_all_are_written(tmp_path):
    with ExportFolder(tmp_path / "out") as folder:
        folder.write("a/0/1.json", b"one")
        folder.write("b.json", b"two!")
        assert inside(tmp_path) == [".out.unfinished"]
    assert (tmp_path / "out" / "a" / "0" / "1.json").read_bytes() == b"one"
    assert inside(tmp_path) == ["out"]
    assert (folder.files, folder.bytes) == (2, 7)


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_export_leaves_nothing(tmp_path, stop):
    def interrupted():
        with ExportFolder(tmp_path / "out") as folder:
            folder.write("a.json", b"one")
            raise stop

    with pytest.raises(stop):
        interrupted()
    assert inside(tmp_path) == []


def test_what_a_killed_export_left_is_cleared_by_the_next(tmp_path):
    ExportFolder(tmp_path / "out").__enter__().write("old.json", b"")
    with ExportFolder(tmp_path / "out") as folder:
        folder.write("new.json", b"")
    assert not (tmp_path / "out" / "old.json").exists()
    assert inside(tmp_path) == ["out"]


def test_an_earlier_export_is_replaced_only_when_asked_and_stays_until_then(tmp_path):
    with ExportFolder(tmp_path / "out") as folder:
        folder.write("old.json", b"")
    with pytest.raises(SettingsError, match="give --replace to replace it"):
        ExportFolder(tmp_path / "out")
    with pytest.raises(ZeroDivisionError), ExportFolder(tmp_path / "out", replace=True):
        raise ZeroDivisionError
    assert (tmp_path / "out" / "old.json").exists()
    with ExportFolder(tmp_path / "out", replace=True) as folder:
        folder.write("new.json", b"")
    assert not (tmp_path / "out" / "old.json").exists()
    assert inside(tmp_path) == ["out"]


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(SettingsError, match="is no export; give another folder"):
        ExportFolder(tmp_path / "out", replace=True)
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="is no export"):
        ExportFolder(tmp_path / "file", replace=True)


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with ExportFolder(tmp_path / "out") as folder:
        folder.write("a", b"")
    assert (tmp_path / "out" / "a").exists()


@pytest.mark.parametrize("name", ["../a", "/a", "b/../../a"])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="must lie within the export"), ExportFolder(tmp_path / "out") as folder:
        folder.write(name, b"")
