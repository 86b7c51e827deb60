"""What of config.json and of the tokenizer's files counts: tried on tiny models, all that should change nothing at once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import captured, save_subject, set_config

from resources import checkpoint, configuration
from resources.configuration import CHOICE, settings_that_count, tokenizer_that_counts
from resources.subject import HuggingFaceSubject

pytestmark = pytest.mark.usefixtures("one_thread")

OTHERWISE: dict[str, Any] = {
    "_name_or_path": "elsewhere",
    "architectures": ["Another"],
    "auto_map": {"AutoConfig": "evil.Evil"},
    "chunk_size_feed_forward": 4,
    "dtype": "bfloat16",
    "initializer_range": 0.3,
    "id2label": {"0": "no", "1": "perhaps", "2": "yes"},
    "label2id": {"no": 0, "perhaps": 1, "yes": 2},
    "problem_type": "regression",
    "return_dict": False,
    "output_hidden_states": True,
    "suppress_tokens": [5],
    "summary_type": "mean",
    "task_specific_params": {"text-generation": {"do_sample": True}},
    "torch_dtype": "bfloat16",
    "use_cache": False,
}
NUMBERS = ("bos_token_id", "eos_token_id", "max_length", "num_beams", "temperature", "top_k", "top_p")


def dropouts(folder: Path) -> dict[str, float]:
    entries = json.loads((folder / "config.json").read_text())
    return {name: 0.7 for name, value in entries.items() if "drop" in name and isinstance(value, float | None)}


def activations(folder: Path) -> list[np.ndarray]:
    return list(captured(HuggingFaceSubject(str(folder)), [list(range(40, 60))], [0, 1, 2]).values())


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "bert", "opt", "modernbert"])
def test_what_generates_text_trains_or_labels_reaches_no_neuron_and_no_fingerprint(
    family: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folder_of(family), tmp_path / family)
    before, fingerprints = activations(folder), HuggingFaceSubject(str(folder)).fingerprints()
    set_config(folder, **OTHERWISE, **dict.fromkeys(NUMBERS, 3), **dropouts(folder))
    after = activations(folder)
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    assert HuggingFaceSubject(str(folder)).fingerprints() == fingerprints


@pytest.mark.parametrize(
    "entry", ["pad_token_id", "sep_token_id", "tie_word_embeddings", "tokenizer_class", "token_dropout", "unheard_of"]
)
def test_an_entry_counts_unless_it_is_known_to_change_nothing(entry: str, gpt2: Path) -> None:
    before = settings_that_count(gpt2)
    set_config(gpt2, **{entry: 7})
    assert settings_that_count(gpt2) != before


def test_dropouts_of_a_section_of_the_configuration_do_not_count_and_the_rest_of_it_does(gpt2: Path) -> None:
    set_config(gpt2, attn_config={"attn_pdrop": 0.1, "clip_qkv": 8})
    before = settings_that_count(gpt2)
    assert before["attn_config"] == {"clip_qkv": 8}
    set_config(gpt2, attn_config={"attn_pdrop": 0.2, "clip_qkv": 8})
    assert settings_that_count(gpt2) == before


IDLE = {
    "chat_template": "{{ messages }}",
    "model_max_length": 5,
    "padding_side": "left",
    "truncation_side": "left",
    "clean_up_tokenization_spaces": True,
    "name_or_path": "elsewhere",
}
TEXT = "  The cat, the thé sat.  1234"


def test_a_chat_template_and_the_truncation_of_its_last_use_change_no_token_and_no_hash(gpt2: Path) -> None:
    def tokens() -> tuple[list[int], tuple[int, ...], str]:
        subject = HuggingFaceSubject(str(gpt2))
        return subject.tokenize([TEXT])[0].ids, subject._tokenizer.prefix, subject.tokenizer_hash()

    before = tokens()
    for name, more in (
        ("tokenizer_config.json", IDLE),
        ("tokenizer.json", {
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 40}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "<pad>"},
        }),
    ):  # fmt: skip
        entries = json.loads((gpt2 / name).read_text())
        # In another order and with other spaces, too.
        (gpt2 / name).write_text(json.dumps(dict(sorted({**entries, **more}.items(), reverse=True)), indent=1))
    assert tokens() == before


def test_every_token_merge_and_rule_of_a_tokenizer_counts(gpt2: Path) -> None:
    before = tokenizer_that_counts(gpt2)
    entries = json.loads((gpt2 / "tokenizer.json").read_text())
    assert {"model", "added_tokens", "pre_tokenizer", "decoder", "post_processor"} <= entries.keys()
    for name, value in entries.items():
        if name in ("truncation", "padding"):
            continue
        (gpt2 / "tokenizer.json").write_text(json.dumps(entries | {name: [value]}))
        assert tokenizer_that_counts(gpt2)["tokenizer.json"] != before["tokenizer.json"], name
    swapped = entries["model"]["merges"][::-1]
    (gpt2 / "tokenizer.json").write_text(json.dumps(entries | {"model": entries["model"] | {"merges": swapped}}))
    assert tokenizer_that_counts(gpt2)["tokenizer.json"] != before["tokenizer.json"]


def test_the_class_that_reads_the_tokenizer_and_a_file_that_only_some_classes_read_count(gpt2: Path) -> None:
    before = HuggingFaceSubject(str(gpt2)).tokenizer_hash()
    set_config(gpt2, tokenizer_class="BertTokenizer")
    with_class = HuggingFaceSubject(str(gpt2)).tokenizer_hash()
    (gpt2 / "spm.model").write_bytes(b"pieces")
    assert len({before, with_class, HuggingFaceSubject(str(gpt2)).tokenizer_hash()}) == 3
    assert tokenizer_that_counts(gpt2).keys() >= {"tokenizer.json", "spm.model", CHOICE}


def as_before(folder: Path) -> HuggingFaceSubject:
    """The subject as a lake knows it that an earlier version wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configuration, "settings_that_count", checkpoint.all_settings)
        patch.setattr(configuration, "tokenizer_that_counts", checkpoint.tokenizer_files)
        subject = HuggingFaceSubject(str(folder))
        names = {subject.tokenizer_hash(), *subject.fingerprints()}
    names.add(checkpoint.weights_hash(number_format="float32", hashes=subject._tensor_hashes))
    return HuggingFaceSubject(str(folder), known=lambda: names)


@pytest.mark.parametrize("entry", ["tie_word_embeddings", "final_logit_softcapping"])
def test_the_hash_of_the_checkpoint_counts_what_the_head_does_with_the_weights(entry: str, gpt2: Path) -> None:
    before = HuggingFaceSubject(str(gpt2)).weights_hash()
    set_config(gpt2, **{entry: 7})
    assert HuggingFaceSubject(str(gpt2)).weights_hash() != before


def test_a_model_keeps_the_hashes_by_which_a_lake_knows_it(gpt2: Path) -> None:
    now, before = HuggingFaceSubject(str(gpt2)), as_before(gpt2)
    assert now.weights_hash() != before.weights_hash()
    assert not {now.tokenizer_hash(), *now.fingerprints()} & {before.tokenizer_hash(), *before.fingerprints()}
    known = {before.tokenizer_hash(), before.fingerprints()[1]}
    some = HuggingFaceSubject(str(gpt2), known=lambda: known)
    assert some.tokenizer_hash() == before.tokenizer_hash()
    assert some.fingerprints() == [now.fingerprints()[0], before.fingerprints()[1], now.fingerprints()[2]]


def test_a_hash_that_left_out_what_counts_is_no_name_any_more(tmp_path: Path) -> None:
    folder = save_subject("gpt2", tmp_path)
    set_config(folder, token_dropout=True)
    before = as_before(folder)
    assert before.fingerprints() == HuggingFaceSubject(str(folder)).fingerprints()
