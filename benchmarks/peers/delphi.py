"""EleutherAI's delphi: its cache of activations with their places, which in use grows with the corpus."""

from typing import Any

import torch
from delphi.latents.cache import LatentCache  # type: ignore[import-not-found]

from benchmarks.peers.turns import Ways, main


def ways(_folder: str, model: Any) -> Ways:
    """The cache filled from one batch and dropped. `transcode` makes it read the input of a module.

    It keeps what is further than 1e-5 from zero, so nearly all neurons. Made for sparse latents, it has less to do
    where most are zero: above 1, as about one in fifty here.
    """
    places = [f"h.{layer}.mlp.c_proj" for layer in range(len(model.h))]

    def cached(ids: torch.Tensor, threshold: float | None = None) -> object:
        def latents(values: torch.Tensor) -> torch.Tensor:
            return values if threshold is None else values * (values > threshold)

        cache = LatentCache(model, dict.fromkeys(places, latents), batch_size=len(ids), transcode=True)
        cache.run(ids.numel(), ids)
        return cache

    return {"all activations": cached, "activations above 1": lambda ids: cached(ids, 1.0)}


if __name__ == "__main__":
    main(ways)
