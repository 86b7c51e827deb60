"""Everything to disk: each activation of each layer in float16, in the order of the text."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.turns import Ways, main


def ways(_folder: str, model: Any) -> Ways:
    """A file for each layer, written anew with each batch, so that the disk does not fill up."""
    home = tempfile.TemporaryDirectory()

    def write(layer: int, values: torch.Tensor) -> None:
        values.to(torch.float16).numpy().tofile(Path(home.name) / f"{layer}.bin")

    def dumped(ids: torch.Tensor) -> object:
        handles = [
            block.mlp.c_proj.register_forward_pre_hook(lambda _, inputs, layer=layer: write(layer, inputs[0]))
            for layer, block in enumerate(model.h)
        ]
        with torch.inference_mode():
            model(ids)
        for handle in handles:
            handle.remove()
        return None

    return {"float16, not forced to the disk": dumped}


if __name__ == "__main__":
    main(ways)
