"""The anatomy of a transformer: its list of blocks, and the places in a block where something can be read.

    stream --+-- norm -- attention --(+)--+-- norm -- W_in -- nonlinearity -*- W_out --(+)-- stream
             |________________________|   |________________________________________|

A *neuron* is one input of the MLP's output projection, the star above. That one rule holds for every architecture:
behind the nonlinearity in GPT-2 and BERT, behind the product of both input maps in gated MLPs. All is found by the
names and sizes of modules, from a model without weights.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.errors import SubjectError
from resources.checkpoint import Blocks

if TYPE_CHECKING:
    import torch

_MLPS = (
    ("mlp.c_proj", ("mlp.c_fc",)),
    ("mlp.dense_4h_to_h", ("mlp.dense_h_to_4h",)),
    ("mlp.fc_out", ("mlp.fc_in",)),
    ("mlp.fc2", ("mlp.fc1",)),
    ("mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.down_proj", ("mlp.gate_up_proj",)),
    ("mlp.down_proj", ("mlp.up_proj",)),
    ("mlp.Wo", ("mlp.Wi",)),
    ("ffn.lin2", ("ffn.lin1",)),
    ("ffn.down_proj", ("ffn.up_proj",)),
    ("fc2", ("fc1",)),
    ("output.dense", ("intermediate.dense",)),
    ("feed_forward.w2", ("feed_forward.w1", "feed_forward.w3")),
)
"""Output projection and input maps of an MLP by their paths in a block. A pair counts only if its sizes fit."""

_ATTENTIONS = (
    "attn.c_proj",
    "attn.out_proj",
    "attn.attention.out_proj",
    "attention.dense",
    "self_attention.dense",
    "self_attn.out_proj",
    "self_attn.o_proj",
    "self_attn.dense",
    "attention.output.dense",
    "attention.out_lin",
    "attn.Wo",
)
"""Output projection of the attention by its path in a block."""

_NORMS_BEFORE_MLP = (
    "ln_2",
    "norm_2",
    "ln_mlp",
    "post_attention_layernorm",
    "attention.output.LayerNorm",
    "attention.LayerNorm",
    "sa_layer_norm",
    "final_layer_norm",
    "ln_1",
    "input_layernorm",
)
"""The norm whose output the MLP reads, first match; the last two where attention and MLP run side by side."""

_NORMS_AFTER_ATTENTION = (
    "ln_2.",
    "norm_2.",
    "ln_mlp.",
    "mlp_norm.",
    "post_attention_layernorm.",
    "pre_feedforward_layernorm.",
    "attention.output.LayerNorm.",
    "attention.LayerNorm.",
    "sa_layer_norm.",
    "final_layer_norm.",
)
_NORMS_AFTER_MLP = ("output.LayerNorm.", "output_layer_norm.", "post_feedforward_layernorm.", "post_mlp_layernorm.")

_NORMS_WITHIN_BRANCHES = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
"""What attention and MLP pass through before they are added to the stream, in the blocks that have the second of both
(Gemma 2, OLMo 2, GLM-4)."""

_FINAL_NORMS = ("ln_f", "norm", "norm_f", "final_norm", "final_layer_norm", "final_layernorm", "embedding_norm")

_BESIDE_MLP = {
    "codegen": ("attn.",),
    "gpt_neox": ("attention.", "input_layernorm."),
    "gptj": ("attn.",),
    "phi": ("self_attn.",),
}
"""Parts of a block that run side by side with the MLP, so that they reach only the next block."""

_POSITIONS_WITHOUT_LIMIT = 2048  # for models without position embeddings and without a stated length (ALiBi)


@dataclass(frozen=True)
class Place:
    """Where in a block a tensor of shape (sequence, token, axis) is taken."""

    module: str
    """Path in the block; empty for the block itself."""
    side: Literal["input", "output"]
    after: tuple[str, ...]
    """Beginnings of the names, within the block, of tensors that cannot reach this place."""


@dataclass(frozen=True)
class Anatomy:
    """Where the neurons of a model are, what is around them, and how much text the model can read."""

    path: str
    """Path of the list of blocks in the model without head, such as `encoder.layer`."""
    output: str
    """Path in a block of the MLP's output projection."""
    inputs: tuple[str, ...]
    widths: tuple[int, ...]
    """Neurons of each layer."""
    width: int
    """Axes of the stream."""
    signed: bool
    """True for gated MLPs."""
    norm: str | None
    """Path in a block of the norm whose output the MLP reads."""
    final_norm: str | None
    """Path in the model of the norm between the last block and the head."""
    gelu: str | None
    """Path in a block of the MLP's nonlinearity, if it is one of the GELU family."""
    vocabulary: int
    """Rows of the token embedding."""
    positions: int
    """Tokens that fit, special tokens included."""
    neurons: Place
    attention: Place | None
    """What the attention adds to the stream."""
    mlp: Place | None
    """What the MLP adds to the stream."""

    stream_before = Place(module="", side="input", after=("",))
    stream_after = Place(module="", side="output", after=())

    @property
    def count(self) -> int:
        """How many layers there are."""
        return len(self.widths)

    def blocks(self, place: Place) -> Blocks:
        """How the tensors of the model are named, and which of a block come after `place`."""
        return Blocks(path=self.path, count=self.count, after=place.after)


def find_neurons(config: Any, skeleton: "torch.nn.Module", name: str) -> Anatomy:
    """Find the list of blocks and, in each block, the MLP's output projection.

    Raises:
        SubjectError: there is no such list, a block has no MLP of a known form (mixtures of experts), or the model reads no
            tokens.
    """
    from torch import nn

    depth, hidden = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    lists = {path: part for path, part in skeleton.named_modules() if isinstance(part, nn.ModuleList)}
    of_depth = {path: part for path, part in lists.items() if len(part) == depth}
    found = {path: [_find_mlp(block, hidden) for block in part] for path, part in of_depth.items()}
    complete = {path: mlps for path, mlps in found.items() if all(mlps)}
    who = f"subject {name!r} ({type(skeleton).__name__})"
    if not of_depth or len(complete) > 1:
        raise SubjectError(
            f"{who}: looked for one list of num_hidden_layers={depth} blocks, found "
            f"{', '.join(f'{path} ({len(part)})' for path, part in lists.items()) or 'none'}. "
            "Text encoders (BERT) and decoders (GPT-2) with one list of blocks are supported."
        )
    if not complete:
        path, mlps = next(iter(found.items()))
        number = next(number for number, mlp in enumerate(mlps) if mlp is None)
        if experts := next((name for name, _ in of_depth[path][number].named_modules() if "expert" in name), None):
            raise SubjectError(
                f"{who}: block {number} of {path!r} is a mixture of experts ({experts}), of whose neurons each token meets "
                "only some; models in which every token goes through one MLP are supported."
            )
        children = [child for child, _ in of_depth[path][number].named_modules() if child and child.count(".") < 2]
        raise SubjectError(
            f"{who}: looked in block {number} of {path!r} for an MLP output projection back to hidden_size={hidden} "
            f"({', '.join(dict.fromkeys(output for output, _ in _MLPS))}) with its input maps, found "
            f"{', '.join(children)}."
        )
    ((path, mlps),) = complete.items()
    if not mlps:
        raise SubjectError(f"{who}: its configuration names no layers; expected at least one.")
    first = mlps[0]
    if first is None or any(mlp is None or (mlp.output, mlp.signed) != (first.output, first.signed) for mlp in mlps):
        raise SubjectError(f"{who}: looked for one form of MLP in all blocks of {path!r}, found several.")
    block = lists[path][0]
    gelus = {_find_gelu(block) for block in lists[path]}
    return Anatomy(
        path=path,
        output=first.output,
        inputs=first.inputs,
        widths=tuple(mlp.width for mlp in mlps if mlp is not None),
        width=int(hidden or 0),
        signed=first.signed,
        norm=_norm_before_mlp(config, block),
        final_norm=_final_norm(skeleton, path),
        gelu=gelus.pop() if len(gelus) == 1 else None,
        vocabulary=_vocabulary(skeleton, who),
        positions=_positions(config, skeleton),
        neurons=Place(
            module=first.output, side="input", after=(f"{first.output}.", *_after_mlp(config), *_beside_mlp(config))
        ),
        attention=_attention(config, block, first),
        mlp=_mlp(config, block, first),
    )


def _vocabulary(skeleton: "torch.nn.Module", who: str) -> int:
    """Rows of the token embedding."""
    try:
        return int(skeleton.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    except (AttributeError, NotImplementedError) as error:
        raise SubjectError(
            f"{who}: looked for a table of token embeddings, found none. Only models of text are supported."
        ) from error


@dataclass(frozen=True)
class _Mlp:
    """One block's MLP: its output projection, its input maps, and how many neurons lie between."""

    output: str
    inputs: tuple[str, ...]
    width: int
    signed: bool


def _find_mlp(block: "torch.nn.Module", hidden: int | None) -> _Mlp | None:
    sizes = {path: _sizes(part) for path, part in block.named_modules()}
    for output, inputs in _MLPS:
        width, back_to = sizes.get(output) or (0, 0)
        ins = [size for path in inputs if (size := sizes.get(path)) is not None]
        if not width or back_to != hidden or len(ins) != len(inputs) or any(size[0] != hidden for size in ins):
            continue
        produced = sum(size[1] for size in ins)
        # Two maps, or one of double width, are multiplied with each other: a gate.
        if produced in (width, 2 * width):
            return _Mlp(output=output, inputs=inputs, width=width, signed=produced == 2 * width)
    return None


def _find_gelu(block: "torch.nn.Module") -> str | None:
    """The one module of the GELU family in a block; transformers has ten of them, all with the name in theirs."""
    found = [path for path, part in block.named_modules() if "gelu" in type(part).__name__.lower()]
    return found[0] if len(found) == 1 else None


def _attention(config: Any, block: "torch.nn.Module", mlp: _Mlp) -> Place | None:
    """Where what the attention adds to the stream can be read; None if that is not found."""
    parts = dict(block.named_modules())
    module = next((path for path in _ATTENTIONS if path in parts), None)
    if module is None or _scaled(config):
        return None
    after = {path.split(".")[0] + "." for path in (mlp.output, *mlp.inputs)} | {*_NORMS_AFTER_ATTENTION}
    if config.model_type == "opt" and not config.do_layer_norm_before:
        after.add("self_attn_layer_norm.")
    within = next((first for first, second in _NORMS_WITHIN_BRANCHES if second in parts and first in parts), None)
    return Place(
        module=within or module,
        side="output",
        after=tuple(sorted({*after, *_NORMS_AFTER_MLP} - {f"{within}."})),
    )


def _mlp(config: Any, block: "torch.nn.Module", mlp: _Mlp) -> Place | None:
    """Where what the MLP adds to the stream can be read; None if that is not found."""
    parts = dict(block.named_modules())
    if _scaled(config):
        return None
    within = next((second for _, second in _NORMS_WITHIN_BRANCHES if second in parts), None)
    after = {*_after_mlp(config), *_beside_mlp(config)} - {f"{within}."}
    return Place(module=within or mlp.output, side="output", after=tuple(sorted(after)))


def _scaled(config: Any) -> bool:
    """Whether attention and MLP are scaled on their way to the stream (Granite)."""
    return getattr(config, "residual_multiplier", 1.0) != 1.0


def _after_mlp(config: Any) -> tuple[str, ...]:
    """Norms behind the MLP, by the beginnings of their tensors' names within a block."""
    if config.model_type == "opt" and not config.do_layer_norm_before:
        return (*_NORMS_AFTER_MLP, "final_layer_norm.")
    return _NORMS_AFTER_MLP


def _beside_mlp(config: Any) -> tuple[str, ...]:
    if config.model_type == "gpt_neox" and not config.use_parallel_residual:
        return ()
    if config.model_type == "falcon" and (config.parallel_attn or config.new_decoder_architecture):
        return ("self_attention.", "ln_attn.")
    return _BESIDE_MLP.get(config.model_type, ())


def _norm_before_mlp(config: Any, block: "torch.nn.Module") -> str | None:
    if config.model_type == "opt" and not config.do_layer_norm_before:
        return "self_attn_layer_norm"
    parts = dict(block.named_modules())
    return next((path for path in _NORMS_BEFORE_MLP if path in parts), None)


def _final_norm(skeleton: "torch.nn.Module", blocks: str) -> str | None:
    """Path of the norm beside the list of blocks."""
    parent = blocks.rpartition(".")[0]
    beside = dict(skeleton.get_submodule(parent).named_children())
    name = next((name for name in _FINAL_NORMS if name in beside), None)
    return name and f"{parent}.{name}".lstrip(".")


def _positions(config: Any, skeleton: "torch.nn.Module") -> int:
    """How many tokens fit, special tokens included."""
    from torch import nn

    for path, part in skeleton.named_modules():
        # RoBERTa counts positions from behind its padding index.
        if path.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part.num_embeddings - part.padding_idx - 1
    stated = (getattr(config, field, None) for field in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((length for length in stated if isinstance(length, int) and length > 0), _POSITIONS_WITHOUT_LIMIT)


def _sizes(module: "torch.nn.Module") -> tuple[int, int] | None:
    """Inputs and outputs of a linear map, or None for anything else."""
    from torch import nn

    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if _is_conv1d(module):
        return module.nx, module.nf  # type: ignore[return-value]
    return None


def _is_conv1d(module: "torch.nn.Module") -> bool:
    """Whether a linear map keeps its weight as (in, out), as GPT-2 does."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def matrix(linear: "torch.nn.Module") -> np.ndarray:
    """The weight of a linear map, float32 (in, out), whichever way it is kept."""
    weight: Any = linear.weight
    return float32(weight if _is_conv1d(linear) else weight.T)


def gain(norm: "torch.nn.Module") -> np.ndarray | None:
    """What a norm multiplies each axis with, float32 (width), after it has scaled (and maybe centred) its input.

    Some families keep the gain less one (Gemma). Which of both it is, is seen in what the norm does. None for a norm
    that does anything else.
    """
    import torch

    weight = getattr(norm, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 1:
        return None
    stored = float32(weight)
    if type(norm) is torch.nn.LayerNorm:
        return stored
    x = torch.linspace(-3, 5, len(weight))
    on_device = x.to(weight.device, weight.dtype)
    with torch.inference_mode():
        # The difference is without the bias.
        does = float32((norm(on_device[None]) - norm(-on_device[None]))[0] / 2)
    for candidate in (stored, stored + 1):
        for centre in (0, x.mean()):
            scaled = ((x - centre) / (x - centre).square().mean().sqrt()).numpy()
            # As wide as half precision needs; the other candidates are off by whole units.
            if np.allclose(does, candidate * scaled, rtol=2e-2, atol=2e-3):
                return candidate
    return None


def float32(tensor: "torch.Tensor") -> np.ndarray:
    """A copy as a float32 array in main memory."""
    import torch

    # Copied, so that no caller can change the model.
    return tensor.detach().to("cpu", torch.float32).numpy().copy()
