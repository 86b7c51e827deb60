"""Tiny random models of each family, written to a folder as users have them, and what reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from resources.checkpoint import SINGLE_FILE
from resources.subject import HuggingFaceSubject

VOCABULARY = 320
POSITIONS = 64
SPECIAL = ["<pad>", "<s>", "</s>", "<|endoftext|>"]

MODERN = {
    "num_hidden_layers": 3,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": POSITIONS,
}
HEAD = {**MODERN, "head_dim": 8}
ENCODER = {key: value for key, value in MODERN.items() if key != "num_key_value_heads"}
OLD = {"n_layer": 3, "n_embd": 16, "n_head": 2, "n_positions": POSITIONS}

SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": OLD,
    "gptj": {**OLD, "rotary_dim": 4},
    "codegen": {**OLD, "n_head": 4, "rotary_dim": 4},
    "gpt_neo": {
        "num_layers": 3,
        "hidden_size": 16,
        "num_heads": 2,
        "attention_types": [[["global"], 3]],
        "max_position_embeddings": POSITIONS,
    },
    "gpt_neox": ENCODER,
    "bloom": {"n_layer": 3, "hidden_size": 16, "n_head": 2},
    "falcon": {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 64},
    "opt": {
        "num_hidden_layers": 3,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "max_position_embeddings": POSITIONS,
        "word_embed_proj_dim": 16,
    },
    "phi": MODERN,
    "starcoder2": MODERN,
    "bert": ENCODER,
    "roberta": {**ENCODER, "max_position_embeddings": POSITIONS + 2, "pad_token_id": 1},
    "distilbert": {"n_layers": 3, "dim": 16, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": POSITIONS},
    "llama": MODERN,
    "mistral": MODERN,
    "qwen2": MODERN,
    "qwen3": HEAD,
    "gemma": HEAD,
    "gemma2": HEAD,
    "gemma3_text": HEAD,
    "olmo2": MODERN,
    "phi3": MODERN,
    "modernbert": ENCODER,
}

OTHERS: dict[str, dict[str, Any]] = {
    "lfm2": {**MODERN, "layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "fnet": ENCODER,
    "convbert": {**ENCODER, "embedding_size": 16},
    "longformer": {**ENCODER, "max_position_embeddings": 520},
    "bros": ENCODER,
}
"""Hybrids, and models that are built and run but cannot be read window by window."""

WITH_BOS = {"opt", "llama", "gemma", "gemma2", "gemma3_text", "mistral"}
WITH_BOTH = {"bert", "roberta", "distilbert", "modernbert"}


def byte_level_tokenizer() -> Tokenizer:
    """A byte-level BPE in GPT-2's manner: all 256 bytes and a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet, "Ġt", "he", "Ġthe", "ÃĤ"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ã", "Ĥ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def nfc_tokenizer() -> Tokenizer:
    """A byte-level BPE that composes accents first, in Qwen's manner, and knows a run of spaces as one token."""
    tokenizer = byte_level_tokenizer()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("    ", normalized=False)])
    return tokenizer


def with_special_tokens(tokenizer: Tokenizer, template: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2), ("<pad>", 0)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, **special: str) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def random_model(family: str, *, head: bool = True, **changes: Any) -> torch.nn.Module:
    """A model of the family with every parameter random, norms and biases included."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
    config = CONFIG_MAPPING[family](**{"vocab_size": VOCABULARY, **ids, **(SETTINGS | OTHERS)[family], **changes})
    encoder = family in {"bert", "roberta", "distilbert", "modernbert"}
    head = head and family not in OTHERS
    with_head = AutoModelForMaskedLM if encoder else AutoModelForCausalLM
    model = (with_head if head else AutoModel).from_config(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def save_subject(family: str, folder: Path, *, head: bool = True, **changes: Any) -> Path:
    random_model(family, head=head, **changes).save_pretrained(folder)
    template = "<s> $A </s>" if family in WITH_BOTH else "<s> $A" if family in WITH_BOS else "$A"
    save_tokenizer(with_special_tokens(byte_level_tokenizer(), template), folder, pad_token="<pad>", eos_token="</s>")
    return folder


def captured(subject: HuggingFaceSubject, windows: list[list[int]], layers: list[int]) -> dict[int, np.ndarray]:
    """What `receive` got of one batch: for each layer float32 (sequence, token, neuron)."""
    parts: dict[int, dict[int, np.ndarray]] = {layer: {} for layer in layers}

    def receive(layer: int, rows: slice, activations: torch.Tensor) -> None:
        for row in range(rows.start, rows.stop):
            assert row not in parts[layer], "a window came twice"
            parts[layer][row] = activations[row - rows.start].float().numpy().copy()

    subject.capture([windows], layers, receive)
    return {layer: np.stack([found[row] for row in range(len(windows))]) for layer, found in parts.items()}


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a model on disk."""
    tensors = load_file(folder / SINGLE_FILE)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / SINGLE_FILE)


def set_config(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))
