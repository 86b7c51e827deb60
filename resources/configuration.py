"""What of a model's configuration and of its tokenizer can change a neuron's activations, and what cannot.

    config.json             every entry, but for those that the forward pass of no model reads in evaluation
    tokenizer_config.json   every entry, but for those that change neither a text's tokens nor the ones around it
    tokenizer.json          all of it, but for the truncation and the padding of its last use, which are not used here
    other tokenizer files   every byte

An entry that is not named here counts: a layer may be called stale needlessly, never wrongly fresh. The names were read out
of transformers 5.23, and `tests/resources/test_configuration.py` tries those that are common on real models.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import SubjectError
from pipeline.provenance import TAG
from resources import checkpoint

_ABOUT = {
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "processor_class",
    "torch_dtype",
    "transformers_version",
}
"""Where it is from and how it is stored. The number format enters the fingerprint by the one asked for, and the code of a
repository is never run."""

_TRAINING = {
    "aux_loss_coef",
    "gradient_checkpointing",
    "initializer_cutoff_factor",
    "initializer_factor",
    "init_std",
    "initializer_range",
    "output_router_logits",
    "router_aux_loss_coef",
    "router_z_loss_coef",
    "tf_legacy_loss",
}
"""How weights were drawn and what was learned: by then they are what they are."""

_HEADS = {
    "chunk_size_feed_forward",
    "classifier_activation",
    "classifier_bias",
    "classifier_pooling",
    "finetuning_task",
    "id2label",
    "label2id",
    "num_labels",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "torchscript",
}
"""What is done with the stream after the last block, what is handed out, and how many tokens an MLP has at a time (all of
them, here). `tie_word_embeddings` and `final_logit_softcapping` count, for what tokens a neuron writes depends on them."""

_GENERATION = {
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "use_cache",
}
"""How text is generated, which is never done. The special tokens around a text are the tokenizer's; `pad_token_id` and
`sep_token_id` count, for RoBERTa and Longformer find positions by them."""

_WITHOUT_EFFECT = _ABOUT | _TRAINING | _HEADS | _GENERATION
_DROPOUT = re.compile(r"p?drop(out)?((_|$)|path)|layer_?drop", re.IGNORECASE)
_NO_DROPOUT = {"token_dropout", "moe_token_dropout", "normalize_router_prob_before_dropping", "drop_vision_last_layer"}
"""Entries with the name of a dropout that act in evaluation too: ESM scales its embeddings by `token_dropout`."""

_TOKENIZER_WITHOUT_EFFECT = {
    "_commit_hash",
    "auto_map",
    "chat_template",
    "clean_up_tokenization_spaces",
    "is_local",
    "max_length",
    "model_input_names",
    "model_max_length",
    "name_or_path",
    "pad_to_multiple_of",
    "pad_token_type_id",
    "padding",
    "padding_side",
    "processor_class",
    "return_tensors",
    "special_tokens_map_file",
    "stride",
    "tokenizer_file",
    "transformers_version",
    "truncation",
    "truncation_side",
    "truncation_strategy",
}
"""Windows are cut and padded here, by the length that the configuration says, and nothing is decoded."""

FURTHER_FILES = (
    "sentencepiece.model",
    "source.spm",
    "spm.model",
    "spm_char.model",
    "tekken.json",
    "tiktoken.model",
    "vocabulary.json",
)
"""Files from which transformers makes a fast tokenizer where there is no tokenizer.json, besides those of the checkpoint."""


CHOICE = "class in config.json"
"""The part of a tokenizer that says which code reads its files."""


def settings_that_count(folder: Path) -> dict[str, Any]:
    """The entries of config.json that can change an activation; of sections, theirs.

    Raises:
        SubjectError: it cannot be read.
    """
    return _counting(checkpoint.json_object(folder / "config.json"))


def tokenizer_that_counts(folder: Path) -> dict[str, str]:
    """For each part that decides how text becomes tokens, the tagged hash of what counts of it, by the name of its file.

    Raises:
        SubjectError: a file cannot be read.
    """
    found: dict[str, str] = {}
    for name in (*checkpoint.TOKENIZER_FILES, *FURTHER_FILES):
        path = folder / name
        if not path.is_file():
            continue
        if name == "tokenizer_config.json":
            entries = checkpoint.json_object(path)
            found[name] = _hashed({key: entries[key] for key in entries.keys() - _TOKENIZER_WITHOUT_EFFECT})
        elif name == "tokenizer.json":
            entries = checkpoint.json_object(path)
            found[name] = _hashed({key: entries[key] for key in entries.keys() - {"truncation", "padding"}})
        else:
            found[name] = checkpoint.file_hash(path)
    # Where tokenizer_config.json names no class, these say which code reads the files.
    entries = checkpoint.json_object(folder / "config.json")
    chosen: dict[str, Any] = {key: entries[key] for key in ("model_type", "tokenizer_class") if key in entries}
    return found | {CHOICE: _hashed(chosen)}


def is_new_to_older_versions(folder: Path) -> bool:
    """Whether something counts that earlier versions did not look at, so that their hashes say too little.

    Raises:
        SubjectError: config.json cannot be read.
    """
    entries = checkpoint.json_object(folder / "config.json")
    return bool(entries.keys() & _NO_DROPOUT) or any((folder / name).is_file() for name in FURTHER_FILES)


def _counting(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _counting(value) if isinstance(value, dict) else value
        for key, value in entries.items()
        if key not in _WITHOUT_EFFECT and (key in _NO_DROPOUT or not _DROPOUT.search(key))
    }


def _hashed(entries: Mapping[str, Any]) -> str:
    """The tagged hash of a JSON object, whatever the order of its entries. A vocabulary has hundreds of thousands."""
    try:
        text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise SubjectError(f"the tokenizer's files hold what is no JSON: {error}.") from error
    return TAG + hashlib.sha256(text.encode("ascii")).hexdigest()
