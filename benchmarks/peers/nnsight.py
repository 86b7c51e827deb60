"""nnsight: the activations of one batch, saved from a trace."""

from typing import Any

import torch
from nnsight import LanguageModel  # type: ignore[import-not-found]

from benchmarks.peers.turns import Ways, main


def ways(folder: str, _model: Any) -> Ways:
    """The input of each output projection in a trace of the language model, which runs its head unless stopped."""
    model = LanguageModel(folder, dispatch=True)

    def traced(ids: torch.Tensor) -> object:
        with torch.inference_mode(), model.trace(ids):
            found = list().save()  # type: ignore[attr-defined]  # noqa: C408 (nnsight gives `list` this method)
            for block in model.transformer.h:
                found.append(block.mlp.c_proj.input)
        return found

    def stopped(ids: torch.Tensor) -> object:
        with torch.inference_mode(), model.trace(ids) as tracer:
            found = list().save()  # type: ignore[attr-defined]  # noqa: C408
            for block in model.transformer.h:
                found.append(block.mlp.c_proj.input)
            tracer.stop()
        return found

    return {"with the head": traced, "stopped before the head": stopped}


if __name__ == "__main__":
    main(ways)
