"""Subjects for benchmarks: the shapes of well-known models with random weights, and texts for them.

Weights are drawn as the model's own code draws them before training, so that activations have the usual size. The
text is random tokens, some frequent and most rare as in a language (Zipf). `demo` is real: trained weights and text.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline import tables
from pipeline.provenance import TAG
from pipeline.sequences import sequences, split_of
from resources.corpus import open_corpus
from resources.model_folder import quiet
from resources.subject import HuggingFaceSubject

LENGTH = 64
"""Tokens of a window."""

DEMO = "demo"


@dataclass(frozen=True)
class Shape:
    """A model family with its sizes, in the words of its Hugging Face configuration."""

    family: str
    sizes: dict[str, Any] = field(default_factory=dict)
    around: str = "$A"
    """The special tokens around a window, in the words of the `tokenizers` package."""


SHAPES = {
    "tiny": Shape("gpt2", {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64, "vocab_size": 128}),
    "gpt2": Shape("gpt2"),
    "gpt2-xl": Shape("gpt2", {"n_layer": 48, "n_embd": 1600, "n_head": 25}),
    "pythia": Shape(
        "gpt_neox",
        {
            "num_hidden_layers": 6,
            "hidden_size": 512,
            "num_attention_heads": 8,
            "intermediate_size": 2048,
            "vocab_size": 50304,
        },
    ),
    "llama": Shape(
        "llama",
        {
            "num_hidden_layers": 8,
            "hidden_size": 576,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "vocab_size": 49152,
        },
        around="<s> $A",
    ),
    "bert": Shape(
        "bert",
        {
            "num_hidden_layers": 6,
            "hidden_size": 384,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
            "vocab_size": 30522,
        },
        around="<s> $A </s>",
    ),
}
"""`gpt2` and `gpt2-xl` are those models, `pythia` is Pythia-70m, `llama` is SmolLM with 8 of its 30 layers, and `bert`
is MiniLM-L6. `tiny` is for trying a benchmark out."""


def save(shape: str, folder: Path) -> None:
    """Write a model of this shape with random weights, the same ones every time, and a tokenizer of as many words."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM

    found = SHAPES[shape]
    sizes: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **found.sizes}
    config = CONFIG_MAPPING[found.family](**sizes)
    head: Any = AutoModelForMaskedLM if found.family == "bert" else AutoModelForCausalLM
    torch.manual_seed(0)
    with quiet():
        head.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, vocabulary=config.vocab_size, around=found.around)


def neurons(shape: str) -> tuple[int, int]:
    """How many layers a shape has, and how many neurons each of them has."""
    from transformers import CONFIG_MAPPING

    if shape == DEMO:
        shape = "bert"
    config = CONFIG_MAPPING[SHAPES[shape].family](**SHAPES[shape].sizes)
    return config.num_hidden_layers, getattr(config, "intermediate_size", 4 * config.hidden_size)


def subject(shape: str, folder: Path, **choices: Any) -> HuggingFaceSubject:
    """The subject that `save` wrote to this folder; for `demo` the real one."""
    return HuggingFaceSubject(DEMO if shape == DEMO else str(folder), **choices)


def windows(shape: str, count: int) -> pl.DataFrame:
    """The table `sequences` with this many windows of LENGTH tokens; for `demo` at most as many, of real text."""
    if shape == DEMO:
        made = sequences(open_corpus(DEMO).documents(), HuggingFaceSubject(DEMO).tokenize, length=LENGTH, limit=count)
        return tables.sequences.conform(made.frame.with_columns(pl.lit("benchmark").alias("run_id")))
    vocabulary = int(SHAPES[shape].sizes.get("vocab_size", 50257))
    often = 1 / (np.arange(vocabulary) + 2.7)
    drawn = np.random.default_rng(0).choice(vocabulary, size=(count, LENGTH), p=often / often.sum())
    hashes = [TAG + hashlib.sha256(f"document {number}".encode()).hexdigest() for number in range(count)]
    words = [f" w{token}".encode() for token in range(vocabulary)]
    frame = pl.DataFrame(
        {
            "sequence_id": [found.removeprefix(TAG)[:16] for found in hashes],
            "document_id": [f"document {number}" for number in range(count)],
            "document_hash": hashes,
            "split": [split_of(found) for found in hashes],
            "offset": [0] * count,
            "token_ids": drawn.tolist(),
            "token_bytes": [[words[token] for token in row] for row in drawn],
            "text": "",
            "identity": hashes,
            "run_id": "benchmark",
        },
        schema=tables.sequences.schema,
    )
    return tables.sequences.conform(frame)


def save_tokenizer(folder: Path, *, vocabulary: int, around: str) -> None:
    """A tokenizer of so many words, `w3`, `w4`, ..., behind three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    words = [*special, *(f"Ġw{token}" for token in range(len(special), vocabulary))]
    tokenizer = Tokenizer(models.WordLevel({word: token for token, word in enumerate(words)}, unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[(word, token) for token, word in enumerate(special)]
    )
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>").save_pretrained(folder)
