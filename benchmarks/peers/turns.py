"""One peer and the bare forward pass by turns, batch by batch in one process.

`python -m benchmarks.peers.NAME FOLDER WINDOWS REPETITIONS` prints, as JSON, for each of the peer's ways the ratios of
its time to that of the bare pass: `{"way": {"wall": [1.6, 1.5], "cpu": [1.6, 1.6]}}`, one number for each repetition.
The bare pass is the model without its head, as Hugging Face loads it, and ends before the last output projection.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

BATCH = 32
"""Windows in a batch. With more, delphi's cache of a single batch outgrows a machine of 16 GB."""

Ways = dict[str, Callable[[torch.Tensor], object]]


class _PassEndedError(Exception):
    """Ends the bare pass."""


def main(ways: Callable[[str, Any], Ways]) -> None:
    """Time the ways that `ways(folder, model)` gives, each a function of a batch of token ids (window, token)."""
    folder, windows, repetitions = sys.argv[1:]
    model = AutoModel.from_pretrained(folder).eval()
    ids = np.load(Path(windows), allow_pickle=False)
    batches = [torch.from_numpy(ids[start : start + BATCH]) for start in range(0, len(ids), BATCH)]
    sides = {"bare": lambda ids: _bare(model, ids)} | ways(folder, model)
    for side in sides.values():
        side(batches[0])
    found: dict[str, dict[str, list[float]]] = {way: {"wall": [], "cpu": []} for way in sides}
    for _ in range(int(repetitions)):
        spent = {way: [0.0, 0.0] for way in sides}
        for turn, batch in enumerate(batches):
            for way in list(sides) if turn % 2 else reversed(sides):
                wall, cpu = time.perf_counter(), time.process_time()
                sides[way](batch)
                spent[way][0] += time.perf_counter() - wall
                spent[way][1] += time.process_time() - cpu
        for way, (wall, cpu) in spent.items():
            found[way]["wall"].append(wall / spent["bare"][0])
            found[way]["cpu"].append(cpu / spent["bare"][1])
    del found["bare"]
    print(json.dumps(found))


def _bare(model: Any, ids: torch.Tensor) -> None:
    def stop(*_: object) -> None:
        raise _PassEndedError

    handle = model.h[-1].mlp.c_proj.register_forward_pre_hook(stop)
    try:
        with torch.inference_mode():
            model(ids, use_cache=False)
    except _PassEndedError:
        pass
    finally:
        handle.remove()
