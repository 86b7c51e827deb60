"""The causal subject: a model that is loaded without its language-model head, and the head that its folder has for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import SubjectError
from resources import checkpoint
from resources.checkpoint import StoredTensor
from resources.model_folder import quiet

OLDER = {"lm_head.": "embed_out."}
"""How heads are called in files of GPT-NeoX."""


def has_head(config: Any, folder: Path) -> bool:
    """Whether a model foretells the next token: no encoder, and with a head that is stored or is its embedding.

    Reads the configuration and the headers of the weights alone.
    """
    whole = _skeleton(config)
    if whole is None:
        return False
    stored = checkpoint.stored_tensors(folder)
    return all(_found(stored, name) is not None or _is_tied(whole, name) for name in _of_head(whole))


def with_head(config: Any, model: Any, folder: Path) -> Any:
    """The whole model around the loaded `model`, whose weights it shares, on the same device and in its number format.

    Raises:
        SubjectError: the head is not there, or has another shape than the configuration says.
    """
    import torch

    whole = _skeleton(config)
    if whole is None:
        raise SubjectError(f"a {config.model_type} model has no head that foretells the next token")
    setattr(whole, whole.base_model_prefix, model)
    stored = checkpoint.stored_tensors(folder)
    some = next(model.parameters())
    for name in _of_head(whole):
        path, _, leaf = name.rpartition(".")
        module = whole.get_submodule(path)
        shape = tuple(getattr(module, leaf).shape)
        tensor = _found(stored, name)
        if tensor is not None:
            found = torch.from_numpy(checkpoint.read_float32(tensor)).to(some)
        elif _is_tied(whole, name):
            found = model.get_input_embeddings().weight
        else:
            raise SubjectError(f"the weights lack {name}, without which the next token cannot be foretold")
        if tuple(found.shape) != shape:
            raise SubjectError(f"{name} has the shape {tuple(found.shape)} where config.json says {shape}")
        setattr(module, leaf, torch.nn.Parameter(found, requires_grad=False))
    return whole.eval()


def _found(stored: Mapping[str, StoredTensor], name: str) -> StoredTensor | None:
    """The tensor of a parameter of the head, under its own or its older name."""
    older = next((old + name.removeprefix(new) for new, old in OLDER.items() if name.startswith(new)), name)
    return stored.get(name) or stored.get(older)


def _skeleton(config: Any) -> Any:
    """The model with its head, without weights; None if it has none or is an encoder."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoModelForCausalLM

    kind = type(config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    # BERT and its like can be built as decoders, and are encoders unless their configuration says so.
    if kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return None
    with quiet(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]


def _of_head(whole: Any) -> list[str]:
    """The names of the parameters that the model without head does not have."""
    return [
        name
        for name, _ in whole.named_parameters(remove_duplicate=False)
        if not name.startswith(f"{whole.base_model_prefix}.")
    ]


def _is_tied(whole: Any, name: str) -> bool:
    """Whether a parameter of the head is the token embedding."""
    head = whole.get_output_embeddings()
    tied = getattr(whole.config, "tie_word_embeddings", False)
    return (
        bool(tied)
        and head is not None
        and whole.get_submodule(name.rpartition(".")[0]) is head
        and name.endswith("weight")
    )
