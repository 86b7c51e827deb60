"""Partial captures: what was kept last is found again whole, or nothing is."""

import os

import numpy as np
import pytest

from pipeline.errors import CaptureError
from resources.partials import PartialFiles

KEY = "sha256:" + "a" * 64


def arrays(layer, *, step=0):
    return {
        "ids": np.arange(3, dtype=np.uint64) + np.uint64(2**63),
        "strongest/+/top/steps": np.full((2, 3, 4), layer - step, dtype=np.int16)[:, ::-1],
        "layer": np.asarray(layer),
    }


@pytest.fixture
def partials(tmp_path):
    return PartialFiles(tmp_path / "captures")


def same(found, expected):
    return set(found) == set(expected) and all(
        found[name].dtype == array.dtype and np.array_equal(found[name], array) for name, array in expected.items()
    )


def test_what_was_kept_last_is_found_with_its_types_and_shapes(partials):
    partials.keep(KEY, [(0, arrays(0)), (5, arrays(5))])
    partials.keep(KEY, [(0, arrays(0, step=7)), (5, arrays(5, step=7))])

    found = partials.found(KEY, [0, 5])

    assert list(found) == [0, 5]
    assert all(same(found[layer], arrays(layer, step=7)) for layer in (0, 5))


def test_only_the_last_set_is_kept(partials, tmp_path):
    for step in range(3):
        partials.keep(KEY, [(0, arrays(0, step=step))])
    (home,) = (tmp_path / "captures").iterdir()
    assert [path.name for path in home.iterdir()] == ["0003"]


def test_the_set_that_another_process_is_writing_is_left_alone_and_that_of_a_dead_one_is_not(partials, tmp_path):
    home = tmp_path / "captures" / ("a" * 64)
    alive, dead = home / f"new-{os.getppid()}-x", home / "new-999999999-x"
    alive.mkdir(parents=True)
    dead.mkdir()
    partials.keep(KEY, [(0, arrays(0))])
    assert sorted(path.name for path in home.iterdir()) == ["0001", alive.name]


def test_nothing_is_found_under_another_key_for_other_layers_or_after_it_was_dropped(partials):
    assert partials.found(KEY, [0]) == {}
    partials.keep(KEY, [(0, arrays(0))])
    assert partials.found("sha256:" + "b" * 64, [0]) == {}
    assert partials.found(KEY, [0, 1]) == {}
    partials.drop(KEY)
    assert partials.found(KEY, [0]) == {}
    partials.drop(KEY)


def test_a_set_that_was_not_finished_leaves_the_one_before(partials):
    def interrupted():
        yield 0, arrays(0, step=1)
        raise KeyboardInterrupt

    partials.keep(KEY, [(0, arrays(0)), (1, arrays(1))])
    with pytest.raises(KeyboardInterrupt):
        partials.keep(KEY, interrupted())

    assert same(partials.found(KEY, [0, 1])[0], arrays(0))
    partials.keep(KEY, [(0, arrays(0, step=2)), (1, arrays(1, step=2))])
    assert same(partials.found(KEY, [0, 1])[1], arrays(1, step=2))


@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_a_set_with_a_changed_bit_is_as_good_as_none(partials, tmp_path, place):
    partials.keep(KEY, [(0, arrays(0))])
    (file,) = (tmp_path / "captures").rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)
    assert partials.found(KEY, [0]) == {}


def test_a_truncated_a_missing_and_a_foreign_file_are_as_good_as_none(partials, tmp_path):
    for damage in (lambda file: file.write_bytes(file.read_bytes()[:-5]), lambda file: file.unlink()):
        partials.keep(KEY, [(0, arrays(0))])
        damage(next((tmp_path / "captures").rglob("*.safetensors")))
        assert partials.found(KEY, [0]) == {}
    (tmp_path / "captures" / ("a" * 64) / "0009").write_text("not a folder")
    partials.keep(KEY, [(0, arrays(0))])
    assert same(partials.found(KEY, [0])[0], arrays(0))


def test_what_cannot_be_written_is_said_and_leaves_the_set_before(partials, tmp_path):
    def too_much():
        yield 0, arrays(0, step=1)
        raise OSError(28, "No space left on device")

    partials.keep(KEY, [(0, arrays(0))])
    with pytest.raises(CaptureError, match=r"cannot be kept in .*captures .*No space left"):
        partials.keep(KEY, too_much())
    assert same(partials.found(KEY, [0])[0], arrays(0))
    (tmp_path / "file").touch()
    with pytest.raises(CaptureError, match="see to its space and permissions"):
        PartialFiles(tmp_path / "file").keep(KEY, [(0, arrays(0))])


def test_what_was_forgotten_under_another_key_goes_when_one_is_dropped(partials, tmp_path):
    other = "sha256:" + "b" * 64
    for key in (KEY, other):
        partials.keep(key, [(0, arrays(0))])
    partials.drop(KEY)
    assert len(partials.found(other, [0])) == 1
    os.utime(tmp_path / "captures" / ("b" * 64), (0, 0))
    partials.drop(KEY)
    assert partials.found(other, [0]) == {}
