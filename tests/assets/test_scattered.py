"""Stale layers that are no neighbours: one pass for all of them, and the layers between left as they are."""

import json
from pathlib import Path

import dagster as dg
import pytest
from polars.testing import assert_frame_equal
from safetensors.torch import load_file, save_file

from assets import definitions
from assets.run import CAPTURE, materialize
from pipeline.testing import planted_checkpoint, planted_corpus
from resources.delta import DeltaLake
from resources.settings import load

LAYERS = [0, 1, 2, 3]


@pytest.fixture
def four_layers(tmp_path: Path) -> Path:
    """A subject whose third and fourth block are copies of the first and the second."""
    planted_checkpoint(tmp_path / "subject")
    config = json.loads((tmp_path / "subject" / "config.json").read_text("utf-8"))
    (tmp_path / "subject" / "config.json").write_text(json.dumps(config | {"n_layer": 4}), "utf-8")
    tensors = load_file(tmp_path / "subject" / "model.safetensors")
    copies = {
        name.replace("h.0.", "h.2.").replace("h.1.", "h.3."): tensor.clone()
        for name, tensor in tensors.items()
        if "h." in name
    }
    save_file(tensors | copies, tmp_path / "subject" / "model.safetensors", metadata={"format": "pt"})
    lines = (json.dumps({"text": text}) + "\n" for text in planted_corpus(20, seed=1))
    (tmp_path / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def test_one_run_captures_scattered_layers_and_leaves_those_between(four_layers: Path) -> None:
    settings = load(
        subject=str(four_layers / "subject"), corpus=str(four_layers / "corpus.jsonl"), device="cpu", lake=str(four_layers / "lake")
    )  # fmt: skip
    lake = DeltaLake(four_layers / "lake")
    with dg.DagsterInstance.ephemeral() as instance:

        def make(*assets: str, layers: list[int] | None = None) -> dg.ExecuteInProcessResult:
            return materialize(definitions.build(settings), instance, assets, layers=layers or ())

        make("sequences")
        make("subject_layers", layers=LAYERS)
        make(*CAPTURE, layers=LAYERS)
        before = {table: lake.read(table) for table in CAPTURE}
        told = make(*CAPTURE, layers=[1, 3])
    events = {
        (event.asset_key.to_user_string(), event.partition) for event in told.asset_materializations_for_node("capture")
    }
    assert events == {(table, key) for table in CAPTURE for key in ("L01", "L03")}
    written = lake.read("materializations").filter(run_id=told.run_id)
    assert set(written.select("table", "layer").rows()) == {(table, layer) for table in CAPTURE for layer in (1, 3)}
    for table in CAPTURE:
        assert_frame_equal(lake.read(table), before[table])
