"""TransformerLens: the activations of one batch in its cache."""

from typing import Any

import torch
from transformer_lens import TransformerBridge  # type: ignore[import-not-found]

from benchmarks.peers.turns import Ways, main


def ways(folder: str, _model: Any) -> Ways:
    """`run_with_cache` on the hook behind the nonlinearity.

    The head runs too: `stop_at_layer` ends a pass at the beginning of a block, which for the last one is too early.
    """
    bridge = TransformerBridge.boot_transformers(folder)
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(bridge.cfg.n_layers)]

    def cached(ids: torch.Tensor) -> object:
        with torch.inference_mode():
            return bridge.run_with_cache(ids, names_filter=names)

    return {"with the head": cached}


if __name__ == "__main__":
    main(ways)
