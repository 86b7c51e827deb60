"""Where things are in a block, by structure alone, and what a norm multiplies with."""

import numpy as np
import pytest
import torch
from tiny_models import random_model
from torch import nn

from resources.anatomy import find_neurons, gain, matrix


def test_a_linear_map_is_in_by_out_whichever_way_it_is_kept() -> None:
    for family, path in (("gpt2", "h.0.mlp.c_fc"), ("opt", "decoder.layers.0.fc1")):
        model = random_model(family, head=False)
        linear = model.get_submodule(path)
        x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = (linear(x) - linear(torch.zeros_like(x))).numpy()
        np.testing.assert_allclose(x.numpy() @ matrix(linear), expected, atol=1e-5)


class Scaled(nn.Module):
    """A norm of the kind that keeps its gain less `stored_less`."""

    def __init__(self, weight: torch.Tensor, *, stored_less: float, power: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight - stored_less)
        self.stored_less, self.power = stored_less, power

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.abs().pow(self.power).mean(dim=-1, keepdim=True).pow(1 / self.power)
        return (self.weight + self.stored_less) * x / size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gain_of_a_norm_is_seen_in_what_it_does(dtype: torch.dtype) -> None:
    weight = torch.tensor([0.5, -1.0, 2.0, 1.0, 0.25, 3.0])
    plain = nn.LayerNorm(6)
    with torch.no_grad():
        plain.weight.copy_(weight)
        plain.bias.fill_(7)
    for norm in (plain, Scaled(weight, stored_less=0), Scaled(weight, stored_less=1)):
        found = gain(norm.to(dtype))
        assert found is not None
        np.testing.assert_allclose(found, weight.numpy(), rtol=1e-2)


def test_a_norm_of_another_kind_has_no_gain() -> None:
    weight = torch.ones(6)
    assert gain(Scaled(weight, stored_less=0, power=4)) is None
    assert gain(nn.LayerNorm(6, elementwise_affine=False)) is None
    assert gain(nn.Identity()) is None


@pytest.mark.parametrize(
    ("family", "attention", "mlp", "final_norm", "gelu"),
    [
        ("gpt2", "attn.c_proj", "mlp.c_proj", "ln_f", "mlp.act"),
        ("gpt_neox", "attention.dense", "mlp.dense_4h_to_h", "final_layer_norm", "mlp.act"),
        ("llama", "self_attn.o_proj", "mlp.down_proj", "norm", None),
        (
            "gemma2",
            "post_attention_layernorm",
            "post_feedforward_layernorm",
            "norm",
            "mlp.act_fn",
        ),
        (
            "bert",
            "attention.output.dense",
            "output.dense",
            None,
            "intermediate.intermediate_act_fn",
        ),
        ("opt", "self_attn.out_proj", "fc2", "decoder.final_layer_norm", None),
    ],
)
def test_the_places_of_a_block(family: str, attention: str, mlp: str, final_norm: str | None, gelu: str | None) -> None:
    model = random_model(family, head=False)
    anatomy = find_neurons(model.config, model, family)
    assert anatomy.attention is not None
    assert anatomy.mlp is not None
    assert (anatomy.neurons.module, anatomy.neurons.side) == (anatomy.output, "input")
    assert (anatomy.attention.module, anatomy.attention.side) == (attention, "output")
    assert (anatomy.mlp.module, anatomy.mlp.side) == (mlp, "output")
    assert (anatomy.final_norm, anatomy.gelu) == (final_norm, gelu)
    assert (anatomy.count, anatomy.width) == (3, 16)


def test_a_branch_that_is_scaled_on_its_way_to_the_stream_has_no_place() -> None:
    model = random_model("llama", head=False)
    model.config.residual_multiplier = 0.5
    anatomy = find_neurons(model.config, model, "granite")
    assert (anatomy.attention, anatomy.mlp) == (None, None)
