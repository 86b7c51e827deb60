"""Sites on tiny random models: what is read at each, held against a plain pass of transformers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import SETTINGS, captured, save_subject
from transformers import AutoModel

from pipeline.errors import SubjectError
from resources.checkpoint import SINGLE_FILE
from resources.sites import find_site
from resources.subject import HuggingFaceSubject

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW = list(range(40, 60))

BETWEEN = {"bert": "attention.output", "roberta": "attention.output", "distilbert": "sa_layer_norm"}
"""Where the stream can be seen between attention and MLP, in models that normalise it there."""

BOTH = {"bert", "roberta", "distilbert", "modernbert"}
BEGIN = {"opt", "llama", "gemma", "gemma2", "gemma3_text", "mistral"}


def opened(folder: Path, site: str, **arguments: Any) -> HuggingFaceSubject:
    return HuggingFaceSubject(str(folder), site=site, **arguments)


def a_plain_pass(family: str, folder: Path) -> tuple[Any, dict[str, Any], slice]:
    """What every module got and gave for the window, by its path, and where the window is among the tokens."""
    before, after = [1] * (family in BOTH | BEGIN), [2] * (family in BOTH)
    model = AutoModel.from_pretrained(folder).eval()
    seen: dict[str, Any] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _m, args, named, output, name=name: seen.update(
                {name: (_copy(args or (named.get("hidden_states"),)), _copy(output))}
            ),
            with_kwargs=True,
        )
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([before + WINDOW + after]), output_hidden_states=True)
    return out, seen, slice(len(before), len(before) + len(WINDOW))


def _copy(tensors: Any) -> Any:
    """A copy, because some models go on to change what they have (Falcon)."""
    first = tensors[0] if isinstance(tensors, tuple) else tensors
    return first.clone() if isinstance(first, torch.Tensor) else None


def block_of(site: str) -> str:
    found = re.match(r".*?\.?\d+", site)
    assert found is not None
    return found[0]


def close(found: np.ndarray, expected: torch.Tensor, rows: slice) -> None:
    np.testing.assert_allclose(found, expected.reshape(-1, found.shape[-1])[rows].numpy(), atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("family", SETTINGS)
def test_the_residual_is_the_stream_after_each_block(family: str, folder_of: Callable[[str], Path]) -> None:
    subject = opened(folder_of(family), "residual")
    sites = subject.layers()
    found = captured(subject, [WINDOW], [0, 1, 2])
    out, seen, rows = a_plain_pass(family, folder_of(family))
    assert [(site.n_neurons, site.signed, site.site.endswith(f".{site.layer} residual")) for site in sites] == [
        (16, True, True)
    ] * 3
    for site in sites:
        close(found[site.layer][0], seen[site.site.removesuffix(" residual")][1], rows)
    # Of the last hidden state transformers shows what the final norm makes of it.
    for layer in (0, 1):
        close(found[layer][0], out.hidden_states[layer + 1], rows)


@pytest.mark.parametrize("family", SETTINGS)
def test_attention_is_what_the_stream_has_more_behind_it(family: str, folder_of: Callable[[str], Path]) -> None:
    subject = opened(folder_of(family), "attention")
    found = captured(subject, [WINDOW], [0, 1, 2])
    _, seen, rows = a_plain_pass(family, folder_of(family))
    plain = HuggingFaceSubject(str(folder_of(family)))
    anatomy = plain._anatomy
    assert anatomy.mlp is not None
    for site in subject.layers():
        assert (site.n_neurons, site.signed, site.site.endswith(" attention")) == (16, True, True)
        block = block_of(site.site)
        before, after = seen[block]
        if family in BETWEEN:
            # Post-norm: the norm behind the attention reads the stream with the attention in it.
            norm = f"{block}.{BETWEEN[family]}" + (".LayerNorm" if family != "distilbert" else "")
            adds = seen[norm][0] - before
        else:
            # All that a block adds is from its attention and its MLP.
            adds = (after - before).reshape(1, -1, 16) - seen[f"{block}.{anatomy.mlp.module}"][1].reshape(1, -1, 16)
        np.testing.assert_allclose(found[site.layer][0], adds.reshape(-1, 16)[rows].numpy(), atol=2e-4, rtol=1e-3)


def test_directions_are_projections_of_the_mlp_neurons(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    for family in ("gpt2", "llama", "bert"):
        neurons = captured(HuggingFaceSubject(str(folder_of(family))), [WINDOW], [0, 1, 2])
        width = neurons[0].shape[-1]
        vectors = {layer: torch.randn(5, width, generator=torch.Generator().manual_seed(layer)) for layer in range(3)}
        save_file({f"layer.{layer}": vectors[layer] for layer in vectors}, tmp_path / "each.safetensors")
        save_file({"directions": vectors[0].to(torch.bfloat16)}, tmp_path / "one.safetensors")
        each = captured(opened(folder_of(family), f"directions:{tmp_path / 'each.safetensors'}"), [WINDOW], [0, 2])
        one = captured(opened(folder_of(family), f"directions:{tmp_path / 'one.safetensors'}"), [WINDOW], [0, 2])
        for layer in (0, 2):
            np.testing.assert_allclose(each[layer], neurons[layer] @ vectors[layer].numpy().T, atol=1e-4)
            rounded = vectors[0].to(torch.bfloat16).float().numpy()
            np.testing.assert_allclose(one[layer], neurons[layer] @ rounded.T, atol=1e-4)


def test_random_directions_are_unit_vectors_of_the_layer_and_the_same_every_time(
    folder_of: Callable[[str], Path],
) -> None:
    neurons = captured(HuggingFaceSubject(str(folder_of("gpt2"))), [WINDOW], [0, 1])
    subject = opened(folder_of("gpt2"), "random-directions:9")
    assert [(site.n_neurons, site.signed) for site in subject.layers()] == [(9, True)] * 3
    assert subject.layers()[1].site == "h.1.mlp.c_proj random-directions:9"
    found = captured(subject, [WINDOW], [0, 1])
    again = captured(opened(folder_of("gpt2"), "random-directions:9"), [WINDOW], [1])
    assert np.array_equal(found[1], again[1])
    vectors = [subject._site.vectors(subject._anatomy, layer) for layer in (0, 1)]  # type: ignore[attr-defined]
    for layer in (0, 1):
        np.testing.assert_allclose(np.linalg.norm(vectors[layer], axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(found[layer], neurons[layer] @ vectors[layer].T, atol=1e-4)
    assert not np.allclose(vectors[0], vectors[1])
    fewer = find_site("random-directions:8").vectors(subject._anatomy, 0)  # type: ignore[attr-defined]
    assert not np.allclose(vectors[0][:8], fewer)


@pytest.mark.parametrize("site", ["residual", "attention"])
def test_the_pass_stops_behind_the_last_site_asked_for(site: str, folder_of: Callable[[str], Path]) -> None:
    subject = opened(folder_of("gpt2"), site)
    captured(subject, [WINDOW], [0, 1])  # the first time it sees what the model does with padding
    reached: list[str] = []
    for name, module in subject._model.named_modules():
        if name in ("h.1.mlp.c_fc", "h.1.mlp.c_proj", "h.2.ln_1"):
            module.register_forward_pre_hook(lambda _m, _a, name=name: reached.append(name))
    captured(subject, [WINDOW], [0, 1])
    assert reached == (["h.1.mlp.c_fc", "h.1.mlp.c_proj"] if site == "residual" else [])


@pytest.mark.parametrize("site", ["residual", "attention", "random-directions:6"])
def test_only_the_mlps_neurons_read_and_write_by_weights(site: str, folder_of: Callable[[str], Path]) -> None:
    subject = opened(folder_of("gpt2"), site)
    assert (subject.reading(1), subject.writing(1), subject.unembedding()) == (None, None, None)
    assert subject.embeddings().shape == (320, 16)


def test_bits_of_a_projection_do_not_depend_on_the_batch(folder_of: Callable[[str], Path]) -> None:
    subject = opened(folder_of("gpt2"), "random-directions:7")
    windows = np.random.default_rng(0).integers(5, 300, (7, 12)).tolist()
    together = captured(subject, windows, [2])[2]
    for row, window in enumerate(windows):
        assert np.array_equal(captured(subject, [window], [2])[2][0], together[row])


# Fingerprints

# A bias added to every key shifts all scores of a row alike, so attention does not change.
WITHOUT_EFFECT = "self.key.bias"


@pytest.mark.parametrize("site", ["residual", "attention", "random-directions:30"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gptj", {}),
        ("llama", {}),
        ("gemma2", {}),
        ("olmo2", {}),
        ("bert", {}),
        ("distilbert", {}),
        ("opt", {}),
        ("opt", {"do_layer_norm_before": False}),
    ],
)
def test_a_changed_tensor_makes_exactly_the_layers_that_it_reaches_stale(
    site: str, family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    save_subject(family, tmp_path, **changes)
    tensors = load_file(tmp_path / SINGLE_FILE)

    def state() -> tuple[dict[int, np.ndarray], list[str]]:
        subject = opened(tmp_path, site)
        return captured(subject, [WINDOW], [0, 1, 2]), list(subject.fingerprints())

    was, fingerprints = state()
    assert len(set(fingerprints)) == 3
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)) * 0.3
        save_file(tensors | {name: tensor + noise}, tmp_path / SINGLE_FILE)
        now, again = state()
        changed = [layer for layer in range(3) if np.abs(now[layer] - was[layer]).max() > 1e-5]
        stale = [layer for layer in range(3) if again[layer] != fingerprints[layer]]
        if name.endswith((WITHOUT_EFFECT, "k_proj.bias", "k_lin.bias")):
            assert changed == [], name
        else:
            assert stale == changed, name


def test_every_site_has_fingerprints_of_its_own(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    vectors = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    sites = ["mlp", "residual", "attention", "random-directions:5", "random-directions:6"]
    for name, given in (("a", vectors), ("b", vectors + 1), ("c", vectors)):
        save_file({"directions": given}, tmp_path / f"{name}.safetensors")
        sites.append(f"directions:{tmp_path / name}.safetensors")
    found = [tuple(opened(folder_of("gpt2"), site).fingerprints()) for site in sites]
    # A file under another name is the same file.
    assert found[-1] == found[-3]
    assert len({fingerprint for layers in found[:-1] for fingerprint in layers}) == 3 * (len(sites) - 1)


# What is refused


@pytest.mark.parametrize(
    "site",
    [
        "",
        "mpl",
        "mlp:x",
        "residual:1",
        "directions",
        "directions:",
        "sae",
        "random-directions:0",
        "random-directions:x",
    ],
)
def test_a_site_that_is_not_known_is_refused_at_once(site: str) -> None:
    with pytest.raises(SubjectError, match=re.escape(f"site {site!r} is not known; use one of mlp, residual")):
        HuggingFaceSubject("gpt2", site=site)


def test_directions_that_do_not_fit_are_refused(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "d.safetensors"
    subject = lambda: opened(folder_of("gpt2"), f"directions:{file}")  # noqa: E731
    with pytest.raises(SubjectError, match=r"d.safetensors is no file; expected a safetensors file"):
        subject().layers()
    for tensors in ({"vectors": torch.ones(2, 64)}, {"directions": torch.ones(64)}, {"layer.0": torch.ones(0, 64)}):
        save_file(tensors, file)
        with pytest.raises(SubjectError, match=r"expected `layer.0`, `layer.1`, ... or `directions`, each of shape"):
            subject().layers()
    save_file({"directions": torch.ones(2, 63)}, file)
    with pytest.raises(SubjectError, match=r"directions has shape \(2, 63\), but layer 0 has 64 MLP neurons"):
        subject().layers()
    save_file({"directions": torch.ones(2, 64, dtype=torch.int32)}, file)
    with pytest.raises(SubjectError, match=r"directions is stored as I32, expected F64, F32, F16, BF16"):
        captured(subject(), [WINDOW], [0])


def test_a_layer_without_directions_is_refused_when_it_is_asked_for(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    save_file({"layer.1": torch.ones(2, 64)}, tmp_path / "d.safetensors")
    subject = opened(folder_of("gpt2"), f"directions:{tmp_path / 'd.safetensors'}")
    assert [site.n_neurons for site in subject.layers()] == [2, 2, 2]
    assert captured(subject, [WINDOW], [1])[1].shape == (1, 20, 2)
    for layers in ([0], [0, 1]):
        with pytest.raises(SubjectError, match=r"holds no directions for layer 0, only layer\.1"):
            captured(subject, [WINDOW], layers)


def test_provenance_names_the_site_and_what_made_it(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    assert opened(folder_of("gpt2"), "mlp").provenance()["site"] == "mlp"
    save_file({"layer.1": torch.ones(2, 64)}, tmp_path / "d.safetensors")
    record = opened(folder_of("gpt2"), f"directions:{tmp_path / 'd.safetensors'}").provenance()
    assert record["site"] == f"directions:{tmp_path / 'd.safetensors'}"
    assert list(record["site_made_with"]) == ["1"]
