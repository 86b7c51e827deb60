"""Which families of models are read right: every one of text that the installed transformers can build small.

python -m benchmarks.families                 all of them, a line each
python -m benchmarks.families llama fnet      some

Each is built with random weights, its three windows of 13 tokens are read through the door (padded, in a batch), and the
neurons are compared with those of a plain pass of transformers over each window alone. A family is `read` if they agree to
1e-4 of its strongest neuron, `refused` if the door says in a sentence why it will not, `wrong` otherwise. What cannot be built
from these few sizes is `not built`, and says nothing of the family.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import subjects
from pipeline.errors import SubjectError
from resources.model_folder import quiet
from resources.subject import HuggingFaceSubject

VOCABULARY, WINDOWS, TOKENS = 320, 3, 13
AGREES = 1e-4
MOST_WEIGHTS = 3_000_000

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64,
    "n_positions": 64, "hidden_size": 16, "d_model": 16, "n_embd": 16, "dim": 16, "embedding_size": 16,
    "word_embed_proj_dim": 16, "head_dim": 8, "num_hidden_layers": 3, "num_layers": 3, "n_layer": 3, "n_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 2, "attention_heads": 2, "num_heads": 2, "n_head": 2, "n_heads": 2,
    "intermediate_size": 37, "ffn_dim": 37, "d_inner": 37, "hidden_dim": 37, "rotary_dim": 4, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "moe_intermediate_size": 12,
}  # fmt: skip
"""Entries of a configuration by all the names that families have for them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the families, print a line for each and what it came to, and fail if one is read wrongly."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("families", nargs="*", help="by their `model_type`; all of them unless given")
    from transformers import CONFIG_MAPPING

    found: Counter[str] = Counter()
    for family in parser.parse_args(arguments).families or list(CONFIG_MAPPING):
        with tempfile.TemporaryDirectory() as home:
            said = tried(family, Path(home))
        if said:
            found[said.partition(":")[0]] += 1
            print(f"{family}  {said}", flush=True)
    print(", ".join(f"{count} {word}" for word, count in sorted(found.items())))
    sys.exit(1 if found["wrong"] else 0)


def tried(family: str, folder: Path) -> str | None:
    """`read`, `refused`, `wrong` or `not built`, with the reason behind a colon; None for what is no model of text."""
    try:
        with quiet():
            model = _model(family)
    except Exception as error:  # noqa: BLE001 (a family may ask anything of its configuration)
        return f"not built: {str(error).partition(chr(10))[0][:100]}"
    if model is None:
        return None
    with quiet():
        model.save_pretrained(folder)
    subjects.save_tokenizer(folder, vocabulary=VOCABULARY, around="$A")
    windows = np.random.default_rng(2).integers(5, VOCABULARY, (WINDOWS, TOKENS)).tolist()
    through: dict[int, np.ndarray] = {}
    try:
        subject = HuggingFaceSubject(str(folder))
        sites = subject.layers()
        layers = [site.layer for site in sites]
        subject.capture([windows], layers, lambda layer, _rows, x: through.update({layer: x.numpy().copy()}))
    except SubjectError as error:
        return f"refused: {error}"
    apart = max(
        float(np.abs(through[layer] - plain).max() / np.abs(plain).max())
        for layer, plain in enumerate(_plain(subject, [site.site for site in sites], windows))
    )
    return f"read: {sites[0].site}" if apart <= AGREES else f"wrong: {apart:.1g} apart at {sites[0].site}"


def _model(family: str) -> Any:
    """A small model of a family; None if it reads no text alone."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModel

    default = CONFIG_MAPPING[family]()
    names = {*vars(default), *getattr(default, "attribute_map", {})}
    config = CONFIG_MAPPING[family](**{name: size for name, size in SIZES.items() if name in names})
    if config.is_encoder_decoder or not hasattr(config, "vocab_size") or hasattr(config, "vision_config"):
        return None
    with torch.device("meta"):
        if sum(part.numel() for part in AutoModel.from_config(config).parameters()) > MOST_WEIGHTS:  # type: ignore[no-untyped-call]
            raise ValueError("it is large even so")
    torch.manual_seed(0)
    model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


def _plain(subject: HuggingFaceSubject, modules: Sequence[str], windows: list[list[int]]) -> list[np.ndarray]:
    """The inputs of these modules in a pass of transformers over each window alone: for each (window, token, neuron)."""
    import torch

    model = subject._model
    found: list[list[np.ndarray]] = [[] for _ in modules]
    for kept, path in zip(found, modules, strict=True):

        def keep(_module: Any, given: Any, kept: list[np.ndarray] = kept) -> None:
            kept.append(given[0].detach().reshape(TOKENS, -1).numpy().copy())

        model.get_submodule(path).register_forward_pre_hook(keep)
    with torch.inference_mode():
        for window in windows:
            model(input_ids=torch.tensor([window]))
    return [np.stack(kept) for kept in found]


if __name__ == "__main__":
    main()
