"""A corpus that grows: only new windows go through the model, and all comes out as if all had been read at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest

from assets import definitions
from assets.run import CAPTURE, materialize
from pipeline.testing import planted_checkpoint, planted_corpus
from resources.settings import load
from resources.subject import HuggingFaceSubject

DOCUMENTS = 60


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows each pass has put through the model, the probe left out."""
    found: list[int] = []
    capture = HuggingFaceSubject.capture

    def counted(self: HuggingFaceSubject, batches: Any, layers: Any, receive: Callable[..., None]) -> None:
        kept = [list(batch) for batch in batches]
        if kept != [self.probe()]:
            found.append(sum(map(len, kept)))
        capture(self, kept, layers, receive)

    monkeypatch.setattr(HuggingFaceSubject, "capture", counted)
    return found


def made(home: Path, subject: Path, instance: dg.DagsterInstance, texts: list[str], **choices: Any) -> dict[str, Any]:
    """The tables of all captured layers of a corpus of these texts, a file for each ten."""
    home.mkdir(exist_ok=True)
    for first in range(0, len(texts), 10):
        lines = (json.dumps({"text": text}) + "\n" for text in texts[first : first + 10])
        (home / f"texts-{first:03}.jsonl").write_text("".join(lines), encoding="utf-8")
    settings = load(
        subject=str(subject), corpus=str(home / "*.jsonl"), device="cpu", lake=str(home / "lake"), **choices
    )
    built = definitions.build(settings)
    materialize(built, instance, ["sequences"])
    materialize(built, instance, ["subject_layers"], layers=[0, 1])
    materialize(built, instance, CAPTURE, layers=[0, 1])
    lake = definitions.open_lake(settings)
    return {name: lake.read(name).drop("run_id") for name in CAPTURE}


def test_new_text_is_merged_into_what_was_captured_and_equals_a_fresh_run_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int]
) -> None:
    monkeypatch.setenv("NEURONLEDGER_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    subject = planted_checkpoint(tmp_path / "subject").folder
    texts = planted_corpus(DOCUMENTS, seed=1)
    with dg.DagsterInstance.ephemeral() as instance:
        made(tmp_path / "grown", subject, instance, texts[:40], grow="yes")
        grown = made(tmp_path / "grown", subject, instance, texts, grow="yes")
        fresh = made(tmp_path / "fresh", subject, instance, texts)
        assert read == [40, 20, 60]
        for name in CAPTURE:
            assert pl.DataFrame(grown[name]).equals(fresh[name], null_equal=True), name
        # Fewer windows than were read: what was kept holds some that are to be read no more.
        made(tmp_path / "grown", subject, instance, texts, grow="yes", windows=30)
        assert read[-1] == 30
    assert not np.allclose(grown["neuron_statistics"]["count"].to_numpy(), 0)
