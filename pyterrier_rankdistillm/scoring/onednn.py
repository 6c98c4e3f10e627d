"""Linear layers for scoring on a CPU, on oneDNN's matrix products: packed float32, and int8.

torch multiplies float32 matrices with MKL and packs the weights anew in every call. Packed once, in oneDNN's layout,
they are multiplied in about five sixths of the time (benchmarks/README.md); the price is a copy of the layers' weights.
The operators are those that torch's own compiler emits, and no public interface: each is tried before use.
"""

from __future__ import annotations

import functools
import platform

import torch
from torch import Tensor, nn

from .encoder import ACTIVATIONS, PairEncoder

_FUSED = {None: ("none", ""), "gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh"), "relu": ("relu", "")}
"""What oneDNN's operators call the activations of ``EncoderConfig.hidden_act``: name and variant."""

_LARGEST_WEIGHT, _LARGEST_INPUT = 63, 255
"""Steps from zero to a row's largest weight, and from a token's smallest input to its largest. Processors without VNNI
add two products of such numbers in 16 bits, which saturate: 2 x 255 x 63 = 32,130 fits, with 127 steps for a weight it
would not."""


class PackedLinear(nn.Module):
    """``activation(x @ weight.T + bias)`` in float32, with weights in oneDNN's own layout. For inference only.

    Args:
        linear: The layer that it replaces.
        activation: One of ``EncoderConfig.hidden_act``; None: there is none.
    """

    def __init__(self, linear: nn.Linear, activation: str | None = None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight, None)
        self.bias = linear.bias
        self.activation, self.variant = _FUSED[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., inputs) to (..., outputs)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], self.variant)
        return y


class Int8Linear(nn.Module):
    """``activation(x @ weight.T + bias)`` with weights and inputs rounded to int8. For inference only.

    One scale an output for the weights. One range a token for the inputs, found as they come, so that a token's output
    does not depend on the other tokens of a batch; from the smallest to the largest, since what comes out of an
    activation is mostly on one side of zero. Sums are exact integers, so that they are the same on every processor,
    with VNNI or without.

    Args:
        linear: The layer that it replaces.
        activation: One of ``EncoderConfig.hidden_act``; None: there is none.
    """

    def __init__(self, linear: nn.Linear, activation: str | None = None) -> None:
        super().__init__()
        weight = linear.weight.float()  # (O, I)
        self.scales = _at_least_tiny(weight.abs().amax(dim=-1)) / _LARGEST_WEIGHT  # (O,)
        steps = (weight / self.scales[:, None]).round().to(torch.int8)
        self.sums = steps.sum(dim=-1) * self.scales  # (O,): what each unit of a token's smallest input adds
        self.weight = torch.ops.onednn.qlinear_prepack(steps, None)
        self.weight_zeros = torch.zeros(len(steps), dtype=torch.int64)
        self.bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias
        self.activation = ACTIVATIONS[activation] if activation else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., inputs) to (..., outputs)."""
        least, most = torch.aminmax(x, dim=-1, keepdim=True)  # (..., 1)
        scales = _at_least_tiny(most - least) / _LARGEST_INPUT
        # Truncated to bytes, a half more rounds to the nearest step.
        steps = torch.addcmul(x.new_tensor(0.5), x - least, scales.reciprocal()).to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise(
            *(steps, 1.0, 0, self.weight, self.scales, self.weight_zeros, None),  # input scale and zero; no bias
            *(1.0, 0, torch.float32, "none", [], ""),  # output scale and zero; no activation
        )
        y = torch.addcmul(torch.addcmul(self.bias, least, self.sums), y, scales)
        return y if self.activation is None else self.activation(y)


def replace_linears(encoder: PairEncoder, kind: type[PackedLinear] | type[Int8Linear]) -> None:
    """Replaces all linear maps of the encoder's layers, in place; embeddings, attention and head stay as they are."""
    for module, name, activation in list(encoder.linear_maps()):
        setattr(module, name, kind(getattr(module, name), activation))
    encoder.without_activations()  # they are done in the linear maps before them


def _at_least_tiny(x: Tensor) -> Tensor:
    """So that steps of such a size, and one over them, are no zeros."""
    return x.clamp_min(torch.finfo(torch.float32).tiny * 256)


@functools.cache
def works(kind: type[PackedLinear] | type[Int8Linear]) -> bool:
    """Whether this torch and this processor compute such layers right, found by trying a small one.

    Only x86 is tried: elsewhere torch brings other matrix products, which were not measured. The small layer has the
    largest weights, and all inputs but one the largest, on which int8 sums would saturate if they could.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    linear = nn.Linear(64, 32, device="meta").to_empty(device="cpu")  # draws no random numbers
    with torch.inference_mode():
        linear.weight.fill_(1.0)
        linear.bias.fill_(0.5)
        x = torch.ones(3, 64)
        x[:, 0] = 0.0
        try:
            y = kind(linear)(x)
        except (AttributeError, RuntimeError, TypeError):  # the operator is not there, or takes other arguments
            return False
        return torch.allclose(y, torch.full((3, 32), 63.5), rtol=1e-5)
