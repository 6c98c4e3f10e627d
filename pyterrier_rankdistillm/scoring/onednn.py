"""Linear layers for scoring on a CPU, with oneDNN's matrix products: packed float32 and bfloat16, and int8.

torch multiplies float32 matrices with MKL and packs the weights again in every call. Packing them once, in oneDNN's
layout, takes about five sixths of the time (benchmarks/README.md), at the cost of a copy of the layers' weights. The
operators are those that torch's own compiler emits. They are not a public interface, so each is tried before use.
"""

from __future__ import annotations

import functools
import platform
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from .encoder import ACTIVATIONS, PairEncoder

_FUSED = {None: ("none", ""), "gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh"), "relu": ("relu", "")}
"""The names and variants of oneDNN's operators for the activations of ``EncoderConfig.hidden_act``."""

_LARGEST_WEIGHT, _LARGEST_INPUT = 63, 255
"""The number of steps from zero to a row's largest weight, and from a token's smallest input to its largest.

Processors without VNNI add two products of such numbers in 16 bits, and saturate. 2 x 255 x 63 = 32,130 fits in 16
bits; with 127 steps for weights the sum would not."""


class PackedLinear(nn.Module):
    """``activation(x @ weight.T + bias)`` with weights in oneDNN's own layout. For inference only.

    Weights and inputs are rounded to ``dtype``; sums, bias and activation are float32.

    Args:
        linear: The layer that it replaces.
        activation: One of ``EncoderConfig.hidden_act``; None: there is none.
    """

    dtype: ClassVar[torch.dtype] = torch.float32

    def __init__(self, linear: nn.Linear, activation: str | None = None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.to(self.dtype), None)
        self.bias = linear.bias
        self.activation, self.variant = _FUSED[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., inputs) to (..., outputs), in the precision of ``x``."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self.dtype), self.weight, self.bias, self.activation, [], self.variant
        )
        return y.to(x.dtype)


class BFloat16Linear(PackedLinear):
    """The same in bfloat16, for processors that multiply it (AMX, AVX512-BF16)."""

    dtype: ClassVar[torch.dtype] = torch.bfloat16


class Int8Linear(nn.Module):
    """``activation(x @ weight.T + bias)`` with weights and inputs rounded to int8. For inference only.

    Weights have one scale per output. Inputs have one range per token, computed on the fly, so that a token's output
    does not depend on the other tokens of its batch. The range goes from the token's smallest input to its largest,
    since the outputs of an activation are mostly on one side of zero. Sums are exact integers, so they are the same on
    every processor, with or without VNNI.

    Args:
        linear: The layer that it replaces.
        activation: One of ``EncoderConfig.hidden_act``; None: there is none.
    """

    def __init__(self, linear: nn.Linear, activation: str | None = None) -> None:
        super().__init__()
        weight = linear.weight.float()  # (O, I)
        self.scales = _at_least_tiny(weight.abs().amax(dim=-1)) / _LARGEST_WEIGHT  # (O,)
        steps = (weight / self.scales[:, None]).round().to(torch.int8)
        self.sums = steps.sum(dim=-1) * self.scales  # (O,): added once per unit of a token's smallest input
        self.weight = torch.ops.onednn.qlinear_prepack(steps, None)
        self.weight_zeros = torch.zeros(len(steps), dtype=torch.int64)
        self.bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias
        self.activation = ACTIVATIONS[activation] if activation else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., inputs) to (..., outputs)."""
        least, most = torch.aminmax(x, dim=-1, keepdim=True)  # (..., 1)
        scales = _at_least_tiny(most - least) / _LARGEST_INPUT
        # Conversion to bytes truncates; adding a half first rounds to the nearest step.
        steps = torch.addcmul(x.new_tensor(0.5), x - least, scales.reciprocal()).to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise(
            *(steps, 1.0, 0, self.weight, self.scales, self.weight_zeros, None),  # input scale and zero; no bias
            *(1.0, 0, torch.float32, "none", [], ""),  # output scale and zero; no activation
        )
        y = torch.addcmul(torch.addcmul(self.bias, least, self.sums), y, scales)
        return y if self.activation is None else self.activation(y)


Kind = type[PackedLinear] | type[Int8Linear]
_KINDS: dict[str, Kind] = {"float32": PackedLinear, "bfloat16": BFloat16Linear, "int8": Int8Linear}


def kind_of(dtype: str) -> Kind | None:
    """The layers of a precision on this CPU; None: it has none, so that torch's own are used, in float32."""
    kind = _KINDS[computed_in(dtype)]
    return kind if works(cast(Any, kind)) else None


def computed_in(dtype: str) -> str:
    """The precision that this CPU computes in where ``dtype`` is asked for: half precisions only where they gain."""
    return "float32" if dtype == "float16" or (dtype == "bfloat16" and not works(BFloat16Linear)) else dtype


def replace_linears(encoder: PairEncoder, kind: Kind) -> None:
    """Replaces all linear maps of the encoder's layers, in place; embeddings, attention and head stay as they are."""
    for module, name, activation in list(encoder.linear_maps()):
        setattr(module, name, kind(getattr(module, name), activation))
    encoder.without_activations()  # they are done in the linear maps before them


def _at_least_tiny(x: Tensor) -> Tensor:
    """At least so large that neither a scale nor its reciprocal is zero."""
    return x.clamp_min(torch.finfo(torch.float32).tiny * 256)


@functools.cache
def works(kind: Kind) -> bool:
    """Whether this torch and this processor compute such layers correctly, found by trying a small one.

    Only x86 is tried. On other processors torch uses other matrix products, which were not measured. In the small layer
    all weights, and all inputs but one, have the largest value, so that int8 sums would saturate if they could.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if kind is BFloat16Linear and not _multiplies_bfloat16():
        return False
    linear = nn.Linear(64, 32, device="meta").to_empty(device="cpu")  # draws no random numbers
    with torch.inference_mode():
        linear.weight.fill_(1.0)
        linear.bias.fill_(0.5)
        x = torch.ones(3, 64)
        x[:, 0] = 0.0
        try:
            y = kind(linear)(x)
        except (AttributeError, RuntimeError, TypeError):  # the operator does not exist, or takes other arguments
            return False
        return torch.allclose(y, torch.full((3, 32), 63.5), rtol=1e-5)


def _multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it: without, oneDNN takes several times as long as in float32."""
    tests = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(test is not None and test() for test in tests)
