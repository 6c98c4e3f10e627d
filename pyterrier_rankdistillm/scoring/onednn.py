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

from .encoder import ACTIVATIONS, CrossEncoder

_FUSED = {None: ("none", ""), "gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh"), "relu": ("relu", "")}
"""What oneDNN's operators call the activations of ``EncoderConfig.hidden_act``: name and variant."""

_LARGEST_WEIGHT, _LARGEST_INPUT = 63, 127
"""Steps from zero to the largest magnitude. Inputs are stored as unsigned bytes (1 to 255, zero is 128). Processors
without VNNI add two products of such a byte and a weight in 16 bits, which saturate: 2 x 255 x 63 = 32,130 fits, with
127 steps for a weight it would not."""


class PackedLinear(nn.Module):
    """``activation(x @ weight.T + bias)`` in float32, with weights in oneDNN's own layout. For inference only.

    Args:
        linear: The layer that it replaces; with a bias.
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

    Symmetric: one scale an output for the weights, one scale a token for the inputs, found as they come. So a token's
    output does not depend on the other tokens of a batch. Sums are exact integers, so that they are the same on every
    processor, with VNNI or without.

    Args:
        linear: The layer that it replaces; with a bias.
        activation: One of ``EncoderConfig.hidden_act``; None: there is none.
    """

    def __init__(self, linear: nn.Linear, activation: str | None = None) -> None:
        super().__init__()
        weight = linear.weight.float()  # (O, I)
        self.scales = _scales(weight, _LARGEST_WEIGHT).squeeze(-1)  # (O,)
        steps = (weight / self.scales[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(steps, None)
        self.weight_zeros = torch.zeros(len(steps), dtype=torch.int64)
        self.bias = linear.bias
        self.activation = ACTIVATIONS[activation] if activation else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., inputs) to (..., outputs)."""
        scales = _scales(x, _LARGEST_INPUT)  # (..., 1)
        # Truncated to bytes, 128.5 rounds to the nearest step from the zero at 128.
        steps = torch.addcmul(x.new_tensor(128.5), x, scales.reciprocal()).to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise(
            *(steps, 1.0, 128, self.weight, self.scales, self.weight_zeros, None),  # input scale and zero; no bias
            *(1.0, 0, torch.float32, "none", [], ""),  # output scale and zero; no activation
        )
        y = torch.addcmul(self.bias, y, scales)
        return y if self.activation is None else self.activation(y)


def replace_linears(encoder: CrossEncoder, kind: type[PackedLinear] | type[Int8Linear]) -> None:
    """Replaces all linear maps of the encoder's layers, in place; embeddings, attention and head stay as they are."""
    for layer in encoder.encoder.layer:
        for module in list(layer.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    fused = encoder.config.hidden_act if module is layer.intermediate else None
                    setattr(module, name, kind(child, fused))
        layer.activation = nn.Identity()  # it is done in the linear map before it


def _scales(x: Tensor, steps: int) -> Tensor:
    """The size of a step in each row, (..., 1)."""
    return x.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * steps) / steps


@functools.cache
def works(kind: type[PackedLinear] | type[Int8Linear]) -> bool:
    """Whether this torch and this processor compute such layers right, found by trying a small one.

    Only x86 is tried: elsewhere torch brings other matrix products, which were not measured. The small layer has the
    largest weights and inputs, on which int8 sums would saturate if they could.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    linear = nn.Linear(64, 32, device="meta").to_empty(device="cpu")  # draws no random numbers
    with torch.inference_mode():
        linear.weight.fill_(1.0)
        linear.bias.fill_(0.5)
        try:
            y = kind(linear)(torch.ones(3, 64))
        except (AttributeError, RuntimeError, TypeError):  # the operator is not there, or takes other arguments
            return False
        return torch.allclose(y, torch.full((3, 32), 64.5), rtol=1e-5)
