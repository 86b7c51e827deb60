"""A sparse autoencoder on disk, in one of two layouts: its latents from what passes at one place of a block.

    SAELens    cfg.json (hook_name says where) and sae_weights.safetensors: W_enc, b_enc, W_dec, b_dec, threshold
    sparsify   cfg.json (k) in a folder named after a module, and sae.safetensors: encoder.weight, encoder.bias, b_dec

    latents = activation((x - b_dec) W_enc + b_enc),    b_dec only where the configuration says so

Computed in float32, whatever the number format of the files. What is not understood is refused.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import SubjectError
from resources import checkpoint
from resources.anatomy import Anatomy, Place

if TYPE_CHECKING:
    import torch

CONFIGURATION = "cfg.json"
SAELENS, SPARSIFY = "sae_weights.safetensors", "sae.safetensors"
BRANCHES = ("mlp", "attn", "self_attn", "attention", "self_attention")


@dataclass(frozen=True)
class SparseAutoencoder:
    """One autoencoder: where it reads, and how its latents are computed."""

    folder: Path
    weights: str
    """Name of its safetensors file."""
    hook: str
    """Where it reads: `resid_pre`, `resid_post`, `attn_out` or `mlp_out`, or `module:PATH` for a module's output."""
    width: int
    latents: int
    k: int | None
    """How many latents are kept at each token; None for all."""
    thresholds: bool
    """Whether a latent counts only above a threshold of its own (JumpReLU)."""
    centred: bool
    """Whether `b_dec` is taken from the input."""
    by_decoder_norm: bool
    """Whether latents are multiplied with the length of their decoder row before the largest are taken."""

    def place(self, anatomy: Anatomy) -> Place:
        """Where in the block it reads.

        Raises:
            SubjectError: the model has no such place.
        """
        known = {
            "resid_pre": anatomy.stream_before,
            "resid_post": anatomy.stream_after,
            "attn_out": anatomy.attention,
            "mlp_out": anatomy.mlp,
        }
        kind, _, module = self.hook.partition(":")
        if kind != "module":
            found = known[kind]
        elif not module:
            found = anatomy.stream_after
        else:
            branch = anatomy.mlp if module == "mlp" else anatomy.attention if module in BRANCHES else None
            after = branch.after if branch else ()
            found = Place(module, "output", tuple(name for name in after if not name.startswith(f"{module}.")))
        if found is None:
            raise SubjectError(f"{self.folder} reads {self.hook}, which was not found in the subject.")
        return found

    def content(self) -> Mapping[str, str]:
        """The tagged hashes of its files."""
        return {name: checkpoint.file_hash(self.folder / name) for name in (CONFIGURATION, self.weights)}

    def encode(self, x: "torch.Tensor") -> "torch.Tensor":
        """The latents, float32 (sequence, token, latent), of what passed at the place: (sequence, token, width)."""
        import torch

        parts = self._parts
        if parts["W_enc"].device != x.device:
            parts.update({name: part.to(x.device) for name, part in parts.items()})
        latents = (x - parts["b_dec"] if self.centred else x) @ parts["W_enc"] + parts["b_enc"]
        if self.by_decoder_norm:
            latents = latents * parts["W_dec"].norm(dim=-1)
        if self.thresholds:
            return torch.where(latents > parts["threshold"], latents.relu(), 0.0)
        if self.k is None or self.k >= self.latents:
            return latents.relu()
        kept = latents.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(latents).scatter_(-1, kept.indices, kept.values.relu())

    def decoder(self) -> np.ndarray | None:
        """What each latent writes, float32 (latent, width)."""
        decoder = self._parts.get("W_dec")
        return None if decoder is None else decoder.cpu().numpy().copy()

    @cached_property
    def _parts(self) -> "dict[str, torch.Tensor]":
        """The tensors by SAELens' names and in its orientation, float32."""
        import torch

        stored = {tensor.name: tensor for tensor in checkpoint.header(self.folder / self.weights)}
        names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}
        wanted = {"W_enc", "b_enc", "b_dec", "W_dec", "threshold", *names}
        parts = {
            names.get(name, name): torch.from_numpy(checkpoint.read_float32(tensor))
            for name, tensor in stored.items()
            if name in wanted
        }
        if self.weights == SPARSIFY and "W_enc" in parts:
            parts["W_enc"] = parts["W_enc"].T
        shapes = {"W_enc": (self.width, self.latents), "b_enc": (self.latents,)}
        if self.centred:
            shapes["b_dec"] = (self.width,)
        if self.thresholds:
            shapes["threshold"] = (self.latents,)
        if self.by_decoder_norm:
            shapes["W_dec"] = (self.latents, self.width)
        has = {name: tuple(part.shape) for name, part in parts.items()}
        if any(has.get(name) != shape for name, shape in shapes.items()):
            raise SubjectError(
                f"{self.folder / self.weights} holds {has}, expected {shapes}; its {CONFIGURATION} does not fit it."
            )
        return parts


def find_autoencoders(path: Path) -> dict[int, SparseAutoencoder]:
    """The autoencoders of a folder, or of the folders in it, by layer.

    Raises:
        SubjectError: there are none, two are for one layer, or one is of a kind that is not understood.
    """
    folders = (
        [path] if (path / CONFIGURATION).is_file() else sorted(file.parent for file in path.glob(f"*/{CONFIGURATION}"))
    )
    if not folders:
        raise SubjectError(
            f"{path} holds no sparse autoencoder: expected {CONFIGURATION} with {SAELENS} (SAELens) or {SPARSIFY} "
            "(sparsify), or folders with them."
        )
    found: dict[int, SparseAutoencoder] = {}
    for folder in folders:
        layer, sae = _read(folder)
        if layer in found:
            raise SubjectError(f"{found[layer].folder} and {folder} are both for layer {layer}; give one of them.")
        found[layer] = sae
    return found


def _read(folder: Path) -> tuple[int, SparseAutoencoder]:
    folder = folder.resolve()
    config = checkpoint.json_object(folder / CONFIGURATION)
    if (folder / SAELENS).is_file():
        return _saelens(folder, config)
    if (folder / SPARSIFY).is_file():
        return _sparsify(folder, config)
    raise SubjectError(f"{folder} holds neither {SAELENS} nor {SPARSIFY}; other formats are not read.")


def _saelens(folder: Path, config: Mapping[str, Any]) -> tuple[int, SparseAutoencoder]:
    # Before version 6 all entries lay side by side, and some had other names.
    entries = {**config, **(config.get("metadata") or {})}
    arguments = entries.get("activation_fn_kwargs") or {}
    activation = entries.get("activation_fn", entries.get("activation_fn_str", "relu"))
    architecture = entries.get("architecture", "standard")
    if architecture == "standard" and activation == "topk":
        architecture = "topk"
    hook = str(entries.get("hook_name", entries.get("hook_point", "")))
    named = re.fullmatch(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|attn_out|mlp_out)", hook)
    k = entries.get("k", arguments.get("k"))
    processing = entries.get("model_from_pretrained_kwargs") or {}
    _only(
        folder,
        architecture=(architecture, ("standard", "jumprelu", "topk")),
        activation_fn=(activation, ("topk",) if architecture == "topk" and "k" not in entries else ("relu", "topk")),
        normalize_activations=(entries.get("normalize_activations") or "none", ("none",)),
        reshape_activations=(entries.get("reshape_activations", "none"), ("none",)),
        finetuning_scaling_factor=(bool(entries.get("finetuning_scaling_factor")), (False,)),
        hook_head_index=(entries.get("hook_head_index", entries.get("hook_point_head_index")), (None,)),
        **{
            # These change the stream itself, so that the model's own is not what the autoencoder was trained on.
            name: (bool(processing.get(name)), (False,))
            for name in ("center_writing_weights", "fold_ln", "fold_value_biases", "refactor_factored_attn_matrices")
        },
    )
    if named is None:
        raise _not_understood(folder, "hook_name", hook, "blocks.L.hook_(resid_pre, resid_post, attn_out or mlp_out)")
    return int(named[1]), SparseAutoencoder(
        folder=folder,
        weights=SAELENS,
        hook=named[2],
        width=_whole(folder, "d_in", entries.get("d_in")),
        latents=_whole(folder, "d_sae", entries.get("d_sae")),
        k=_whole(folder, "k", k) if architecture == "topk" else None,
        thresholds=architecture == "jumprelu",
        centred=bool(entries.get("apply_b_dec_to_input", True)),
        by_decoder_norm=architecture == "topk" and bool(entries.get("rescale_acts_by_decoder_norm")),
    )


def _sparsify(folder: Path, config: Mapping[str, Any]) -> tuple[int, SparseAutoencoder]:
    named = re.fullmatch(r"(?:.*\.)?(?:layers|layer|h|blocks)\.(\d+)(?:\.(.+))?", folder.name)
    _only(
        folder,
        activation=(config.get("activation", "topk"), ("topk",)),
        transcode=(bool(config.get("transcode")), (False,)),
    )
    if named is None:
        raise _not_understood(folder, "the folder's name", folder.name, "a block or module such as layers.5.mlp")
    stored = {tensor.name: tensor.shape for tensor in checkpoint.header(folder / SPARSIFY)}
    latents, width = (*stored.get("encoder.weight", ()), 0, 0)[:2]
    return int(named[1]), SparseAutoencoder(
        folder=folder,
        weights=SPARSIFY,
        hook=f"module:{named[2] or ''}",
        width=_whole(folder, "width of encoder.weight", width),
        latents=_whole(folder, "height of encoder.weight", latents),
        k=_whole(folder, "k", config.get("k")),
        thresholds=False,
        centred=True,
        by_decoder_norm=False,
    )


def _only(folder: Path, **entries: tuple[Any, tuple[Any, ...]]) -> None:
    for name, (value, known) in entries.items():
        if value not in known:
            raise _not_understood(folder, name, value, " or ".join(map(str, known)))


def _not_understood(folder: Path, name: str, value: Any, expected: str) -> SubjectError:
    return SubjectError(
        f"{folder / CONFIGURATION}: {name} is {value!r}, expected {expected}; autoencoders of other kinds are not read."
    )


def _whole(folder: Path, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SubjectError(f"{folder}: its {name} is {value!r}, expected a whole number from 1.")
    return value
