"""A forward pass: all windows, once each, with one result however often it was killed on the way."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from assets import forward_pass
from assets.forward_pass import Figures, captured
from pipeline.capture import plan
from pipeline.ports import Document
from pipeline.sequences import sequences
from pipeline.testing import planted_checkpoint, planted_corpus
from resources.partials import PartialFiles
from resources.subject import HuggingFaceSubject

KEY = "sha256:" + "0" * 64

# Killed as the operating system kills: without a word, in the middle of a shard.
KILLED = """
import os, signal, sys
from pathlib import Path
import polars as pl
from assets import forward_pass
from pipeline.capture import plan
from resources.partials import PartialFiles
from resources.subject import HuggingFaceSubject

home, after = Path(sys.argv[1]), int(sys.argv[2])
forward_pass.SHARD, forward_pass.BATCH, forward_pass.KEEP_AFTER = 16, 4, 0.0

def progress(step, done, total, detail=""):
    if done >= after:
        os.kill(os.getpid(), signal.SIGKILL)

list(forward_pass.captured(
    HuggingFaceSubject(str(home / "subject"), device="cpu"),
    plan(pl.read_parquet(home / "sequences.parquet")),
    (0, 1), seed=3, key=sys.argv[3], partials=PartialFiles(home / "captures"), progress=progress,
    figures=forward_pass.Figures(),
))
"""


@pytest.fixture(scope="module", autouse=True)
def alone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A small subject and 90 windows of it."""
    home = tmp_path_factory.mktemp("pass")
    subject = HuggingFaceSubject(str(planted_checkpoint(home / "subject").folder), device="cpu")
    documents = [Document(str(place), text) for place, text in enumerate(planted_corpus(90, seed=2))]
    sequences(documents, subject.tokenize, length=16).frame.write_parquet(home / "sequences.parquet")
    return home


def run(home, partials, *, layers=(0, 1), said=None, device="cpu"):
    figures = Figures()
    found = {
        capture.layer: capture.arrays()
        for capture in captured(
            HuggingFaceSubject(str(home / "subject"), device=device),
            plan(pl.read_parquet(home / "sequences.parquet")),
            layers,
            seed=3,
            key=KEY,
            partials=partials,
            progress=lambda *words: said.append(words) if said is not None else None,
            figures=figures,
        )
    }
    return found, figures


def assert_same(one, other):
    assert list(one) == list(other)
    for layer, arrays in one.items():
        assert list(arrays) == list(other[layer])
        for name, array in arrays.items():
            assert array.tobytes() == other[layer][name].tobytes(), name


@pytest.fixture(scope="module")
def whole(home, tmp_path_factory):
    return run(home, PartialFiles(tmp_path_factory.mktemp("none")))[0]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_size_of_shards_and_batches_changes_no_bit(home, whole, tmp_path, monkeypatch, size):
    monkeypatch.setattr(forward_pass, "SHARD", 3 * size)
    monkeypatch.setattr(forward_pass, "BATCH", size)
    assert_same(run(home, PartialFiles(tmp_path))[0], whole)


@pytest.mark.parametrize("shard", [16, 20, 90])
def test_several_devices_share_the_windows_and_find_the_same_bytes(home, whole, tmp_path, monkeypatch, shard):
    monkeypatch.setattr(forward_pass, "SHARD", shard)
    monkeypatch.setattr(forward_pass, "KEEP_AFTER", 0.0)
    assert_same(run(home, PartialFiles(tmp_path), device="cpu,cpu,cpu")[0], whole)


def test_a_layer_comes_out_the_same_whichever_layers_run_beside_it(home, whole, tmp_path):
    assert_same(run(home, PartialFiles(tmp_path), layers=(1,))[0], {1: whole[1]})


def test_a_pass_that_was_killed_twice_goes_on_and_ends_with_the_same_bytes(home, whole):
    for after in (40, 72):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(home), str(after), KEY], check=False)
        assert killed.returncode == -9
    partials = PartialFiles(home / "captures")
    assert len(partials.found(KEY, (0, 1))) == 2

    found, figures = run(home, partials)

    assert figures.resumed == 64
    assert_same(found, whole)
    assert partials.found(KEY, (0, 1)) == {}


def test_a_pass_that_cannot_keep_anything_ends_all_the_same_and_says_so(home, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(forward_pass, "SHARD", 16)
    monkeypatch.setattr(forward_pass, "KEEP_AFTER", 0.0)
    (tmp_path / "file").touch()
    said = []

    found, figures = run(home, PartialFiles(tmp_path / "file"), said=said)

    assert_same(found, whole)
    assert "cannot be kept in" in figures.metadata()["data/not_kept"]
    assert "cannot be resumed (" in said[-1][3]


@pytest.mark.parametrize("swap", ["layers", "names"])
def test_what_another_pass_kept_is_not_gone_on_from(home, whole, tmp_path, swap):
    partials = PartialFiles(tmp_path)
    kept = {"layers": [(0, whole[1]), (1, whole[0])], "names": [(layer, {"x": np.zeros(2)}) for layer in (0, 1)]}[swap]
    partials.keep(KEY, kept)

    found, figures = run(home, partials)

    assert figures.resumed == 0
    assert_same(found, whole)


def test_progress_says_how_fast_how_long_and_how_much_memory(home, tmp_path):
    said = []
    _, figures = run(home, PartialFiles(tmp_path), said=said)

    windows = [done for _, done, _, _ in said]
    assert windows == sorted(windows)
    assert windows[-1] == {total for _, _, total, _ in said}.pop() == 90
    pace, left, memory = said[-1][3].split(", ")
    assert float(pace.removesuffix(" tokens/s").replace(",", "")) > 0
    assert left == "0:00 left"
    assert float(memory.removesuffix(" MiB").replace(",", "")) > 50
    assert figures.tokens == int(plan(pl.read_parquet(home / "sequences.parquet")).lengths.sum())
    assert figures.metadata()["time/tokens_per_second"] == pytest.approx(figures.tokens / figures.seconds)


def test_the_probe_gives_the_strongest_activation_of_each_neuron(home):
    subject = HuggingFaceSubject(str(home / "subject"), device="cpu")
    windows = subject.probe()
    seen = []
    subject.capture([windows], [1], lambda _, rows, x: seen.append(x.abs().amax(dim=(0, 1)).numpy()))

    found = forward_pass.strongest_on_probe(subject, [0, 1])

    assert set(found) == {0, 1}
    assert np.array_equal(found[1], np.max(seen, axis=0))
