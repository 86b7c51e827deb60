"""A small random GPT-2 that writes: a token for each byte, and one for 10 if it is to have one."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


def small_writer(home: Path, *, ten: bool = True) -> Path:
    """Write it to a folder."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    more, merges = (["10"], [("1", "0")]) if ten else ([], [])
    vocabulary = {text: place for place, text in enumerate([*alphabet, *more, "<|end|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(home)
    torch.manual_seed(0)
    end = vocabulary["<|end|>"]
    config = GPT2Config(
        vocab_size=len(vocabulary), n_positions=8192, n_embd=32, n_layer=2, n_head=2, bos_token_id=end, eos_token_id=end
    )
    GPT2LMHeadModel(config).save_pretrained(home)
    return home
