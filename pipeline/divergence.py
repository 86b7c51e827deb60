"""Divergence: how far one distribution over next tokens is from another."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def jensen_shannon(one: "torch.Tensor", other: "torch.Tensor") -> "torch.Tensor":
    """Jensen-Shannon divergence in nats, from 0 to log 2, of distributions given as logits over the last axis.

    It is computed in float64, where the device has that, since what one neuron moves may be a millionth of a nat.
    Lin 1991, "Divergence measures based on the Shannon entropy", with equal weights.
    """
    import torch

    if one.device.type == "mps":
        one, other = one.cpu(), other.cpu()
    one, other = one.double().log_softmax(dim=-1), other.double().log_softmax(dim=-1)
    middle = torch.logaddexp(one, other) - torch.log(torch.tensor(2.0, dtype=torch.float64, device=one.device))
    # Tokens that are ruled out have no probability, and the logarithm of nothing.
    apart = torch.where(one > -torch.inf, one.exp() * (one - middle), 0.0)
    apart = apart + torch.where(other > -torch.inf, other.exp() * (other - middle), 0.0)
    # A sum of what only rounding leaves may be below zero.
    return (apart.sum(dim=-1) / 2).clamp(min=0)
