"""Sparse autoencoders in both layouts, at the places that they name, against the formulas written out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import captured, save_subject
from transformers import AutoModel

from pipeline.errors import SubjectError
from resources.checkpoint import SINGLE_FILE
from resources.subject import HuggingFaceSubject

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW = list(range(40, 60))
WIDTH, LATENTS = 16, 24

MODERN = {
    "architecture": "standard",
    "d_in": WIDTH,
    "d_sae": LATENTS,
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny"},
}
OLD = {
    "d_in": WIDTH,
    "d_sae": LATENTS,
    "hook_name": "blocks.1.hook_resid_pre",
    "hook_layer": 1,
    "activation_fn_str": "relu",
    "apply_b_dec_to_input": False,
    "normalize_activations": None,
    "model_from_pretrained_kwargs": {"center_writing_weights": False},
}


def parts(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "W_enc": (WIDTH, LATENTS),
        "b_enc": (LATENTS,),
        "W_dec": (LATENTS, WIDTH),
        "b_dec": (WIDTH,),
        "threshold": (LATENTS,),
    }
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def saelens(folder: Path, config: dict[str, Any], **tensors: torch.Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(parts() | tensors, folder / "sae_weights.safetensors")
    return folder


def sparsify(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps({"d_in": WIDTH, "k": 4, "activation": "topk", **config}))
    has = parts()
    tensors = {"encoder.weight": has["W_enc"].T.contiguous(), "encoder.bias": has["b_enc"]}
    save_file(tensors | {name: has[name] for name in ("W_dec", "b_dec")}, folder / "sae.safetensors")
    return folder


def module_outputs(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModel.from_pretrained(folder).eval()
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _m, _a, output, name=name: seen.update({name: output[0] if isinstance(output, tuple) else output})
        )
    with torch.inference_mode():
        model(input_ids=torch.tensor([WINDOW]))
    return {name: value for name, value in seen.items() if isinstance(value, torch.Tensor)}


def latents(folder: Path, sae: Path, layer: int = 1) -> np.ndarray:
    return captured(HuggingFaceSubject(str(folder), site=f"sae:{sae}"), [WINDOW], [layer])[layer][0]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def largest(x: np.ndarray, k: int) -> np.ndarray:
    return np.where(x >= np.sort(x, axis=-1)[:, -k][:, None], relu(x), 0)


HAS = {name: part.numpy() for name, part in parts().items()}


@pytest.mark.parametrize(
    ("config", "where", "formula"),
    [
        (MODERN, "h.1", lambda x: relu((x - HAS["b_dec"]) @ HAS["W_enc"] + HAS["b_enc"])),
        (OLD, "h.0", lambda x: relu(x @ HAS["W_enc"] + HAS["b_enc"])),
        (
            MODERN | {"architecture": "jumprelu", "metadata": {"hook_name": "blocks.1.hook_mlp_out"}},
            "h.1.mlp",
            lambda x: (
                (pre := (x - HAS["b_dec"]) @ HAS["W_enc"] + HAS["b_enc"]) * (pre > np.maximum(HAS["threshold"], 0))
            ),
        ),
        (
            MODERN | {"architecture": "topk", "k": 3, "metadata": {"hook_name": "blocks.1.hook_attn_out"}},
            "h.1.attn",
            lambda x: largest((x - HAS["b_dec"]) @ HAS["W_enc"] + HAS["b_enc"], 3),
        ),
        (
            MODERN | {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True},
            "h.1",
            lambda x: largest(
                ((x - HAS["b_dec"]) @ HAS["W_enc"] + HAS["b_enc"]) * np.linalg.norm(HAS["W_dec"], axis=1), 3
            ),
        ),
        (
            OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}},
            "h.0",
            lambda x: largest(x @ HAS["W_enc"] + HAS["b_enc"], 2),
        ),
    ],
    ids=["standard", "old standard", "jumprelu", "topk", "topk by decoder norm", "old topk"],
)
def test_latents_of_saelens_follow_its_formula(
    config: dict[str, Any],
    where: str,
    formula: Callable[[np.ndarray], np.ndarray],
    folder_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    found = latents(folder_of("gpt2"), saelens(tmp_path / "sae", config))
    x = module_outputs(folder_of("gpt2"))[where].reshape(len(WINDOW), WIDTH).numpy()
    np.testing.assert_allclose(found, formula(x), atol=2e-4)
    assert (found == 0).any()
    assert (found > 0).any()


@pytest.mark.parametrize(
    ("family", "name", "where"),
    [
        ("gpt2", "h.1.mlp", "h.1.mlp"),
        ("gpt2", "transformer.h.1", "h.1"),
        ("gpt_neox", "layers.1.attention", "layers.1.attention"),
        ("gpt_neox", "layers.1.mlp", "layers.1.mlp"),
    ],
)
def test_latents_of_sparsify_are_the_largest_at_the_module_that_the_folder_names(
    family: str, name: str, where: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    found = latents(folder_of(family), sparsify(tmp_path / name))
    x = module_outputs(folder_of(family))[where].reshape(len(WINDOW), WIDTH).numpy()
    np.testing.assert_allclose(found, largest((x - HAS["b_dec"]) @ HAS["W_enc"] + HAS["b_enc"], 4), atol=2e-4)
    assert ((found > 0).sum(axis=1) <= 4).all()


def test_a_folder_of_autoencoders_has_one_for_each_of_its_layers(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    for layer in (0, 2):
        sparsify(tmp_path / f"h.{layer}")
    subject = HuggingFaceSubject(str(folder_of("gpt2")), site=f"sae:{tmp_path}")
    assert [(site.n_neurons, site.signed) for site in subject.layers()] == [(LATENTS, False)] * 3
    assert captured(subject, [WINDOW], [0, 2])[2].shape == (1, 20, LATENTS)
    with pytest.raises(SubjectError, match=r"no autoencoder for layer 1, only for 0, 2\. Ask for those layers alone"):
        captured(subject, [WINDOW], [0, 1])
    sparsify(tmp_path / "again.h.2")
    with pytest.raises(SubjectError, match=r"h\.2 are both for layer 2; give one of them"):
        HuggingFaceSubject(str(folder_of("gpt2")), site=f"sae:{tmp_path}").layers()


def test_a_latent_writes_its_decoder_row_and_reads_nothing_alone(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    subject = HuggingFaceSubject(str(folder_of("gpt2")), site=f"sae:{saelens(tmp_path, MODERN)}")
    writing = subject.writing(1)
    assert writing is not None
    np.testing.assert_array_equal(writing, HAS["W_dec"])
    assert subject.reading(1) is None
    assert subject.unembedding() is not None


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("hook", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
def test_a_changed_tensor_makes_exactly_the_layers_that_it_reaches_stale(
    family: str, hook: str, tmp_path: Path
) -> None:
    model = save_subject(family, tmp_path / "model")
    for layer in range(3):
        saelens(tmp_path / "sae" / str(layer), MODERN | {"metadata": {"hook_name": f"blocks.{layer}.hook_{hook}"}})
    tensors = load_file(model / SINGLE_FILE)

    def state() -> tuple[dict[int, np.ndarray], list[str]]:
        subject = HuggingFaceSubject(str(model), site=f"sae:{tmp_path / 'sae'}")
        return captured(subject, [WINDOW], [0, 1, 2]), list(subject.fingerprints())

    was, fingerprints = state()
    assert len(set(fingerprints)) == 3
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)) * 0.3
        save_file(tensors | {name: tensor + noise}, model / SINGLE_FILE)
        now, again = state()
        changed = [layer for layer in range(3) if np.abs(now[layer] - was[layer]).max() > 1e-5]
        assert [layer for layer in range(3) if again[layer] != fingerprints[layer]] == changed, name


def test_another_autoencoder_makes_its_layer_stale_and_no_other(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    def fingerprints() -> list[str]:
        return list(HuggingFaceSubject(str(folder_of("gpt2")), site=f"sae:{tmp_path}").fingerprints())

    saelens(tmp_path, MODERN)
    before = fingerprints()
    for change in ({"b_enc": torch.ones(LATENTS)}, {}):
        config = MODERN if change else MODERN | {"apply_b_dec_to_input": False}
        saelens(tmp_path, config, **change)
        after = fingerprints()
        assert [layer for layer in range(3) if before[layer] != after[layer]] == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gated"}, "architecture is 'gated', expected standard or jumprelu or topk"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm', expected none"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z', expected none"),
        ({"activation_fn": "tanh-relu"}, "activation_fn is 'tanh-relu', expected relu"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor is True"),
        ({"metadata": {"hook_name": "blocks.1.attn.hook_z"}}, "hook_name is 'blocks.1.attn.hook_z', expected blocks.L"),
        (
            {"metadata": MODERN["metadata"] | {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},  # type: ignore[operator]
            "center_writing_weights is True, expected False",
        ),
        ({"architecture": "topk", "k": 0}, "its k is 0, expected a whole number from 1"),
        ({"d_sae": "many"}, "its d_sae is 'many', expected a whole number"),
        ({"d_in": 17}, "is for 17 axes at layer 1, but the subject has 16 axes and layers 0 to 2"),
        ({"metadata": {"hook_name": "blocks.3.hook_resid_post"}}, "at layer 3, but the subject has 16 axes and layers"),
    ],
)
def test_an_autoencoder_of_another_kind_is_refused(
    change: dict[str, Any], message: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    saelens(tmp_path, MODERN | change)
    with pytest.raises(SubjectError, match=message):
        HuggingFaceSubject(str(folder_of("gpt2")), site=f"sae:{tmp_path}").layers()


def test_what_is_no_autoencoder_is_refused(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    def ask(folder: Path) -> None:
        captured(HuggingFaceSubject(str(folder_of("gpt2")), site=f"sae:{folder}"), [WINDOW], [1])

    with pytest.raises(SubjectError, match=r"holds no sparse autoencoder: expected cfg.json with sae_weights"):
        ask(tmp_path)
    with pytest.raises(SubjectError, match=r"the folder's name is 'mine', expected a block or module such as layers.5"):
        ask(sparsify(tmp_path / "mine"))
    with pytest.raises(SubjectError, match="transcode is True, expected False"):
        ask(sparsify(tmp_path / "h.1", transcode=True))
    with pytest.raises(SubjectError, match="activation is 'groupmax', expected topk"):
        ask(sparsify(tmp_path / "h.1", activation="groupmax"))
    other = saelens(tmp_path / "other", MODERN, W_enc=torch.ones(LATENTS, WIDTH))
    with pytest.raises(SubjectError, match=r"W_enc.*\(24, 16\).*expected .*\(16, 24\)"):
        ask(other)
    (other / "sae_weights.safetensors").unlink()
    (other / "sae_weights.pt").write_bytes(b"a pickle")
    with pytest.raises(SubjectError, match=r"holds neither sae_weights.safetensors nor sae.safetensors"):
        ask(other)


def test_a_module_that_the_subject_lacks_is_refused(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match=r"h\.1 of the subject has no module 'ffn'"):
        captured(
            HuggingFaceSubject(str(folder_of("gpt2")), site=f"sae:{sparsify(tmp_path / 'h.1.ffn')}"), [WINDOW], [1]
        )
