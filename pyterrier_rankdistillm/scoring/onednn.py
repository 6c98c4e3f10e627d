"""Linear layers for scoring on a CPU, with oneDNN's matrix products: packed float32 and bfloat16, and int8.

torch multiplies float32 matrices with MKL and packs the weights again in every call. Packing them once, in oneDNN's
layout, takes about five sixths of the time (benchmarks/README.md), at the cost of a copy of the layers' weights. The
operators are those that torch's own compiler emits. They are not a public interface, so each is tried before use.
"""

from __future__ import annotations

import functools
import platform
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from .encoder import ACTIVATIONS, PairEncoder, without_weights

_FUSED = {None: ("none", ""), "gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh"), "relu": ("relu", "")}
"""The names and variants of oneDNN's operators for the activations of ``EncoderConfig.hidden_act``."""

_ROUND = 1.5 * 2.0**23
"""Added to a float32 of magnitude below 2^22, it leaves the nearest whole number in the low bits of the sum."""

_LEAST_ACTIVATION = {"gelu": -0.17, "gelu_new": -0.1701, "relu": 0.0}
"""The least value (rounded down) of each activation of ``EncoderConfig.hidden_act``."""


class PackedLinear(nn.Module):
    """``activation(x @ weight.T + bias)`` with weights in oneDNN's own layout. For inference only.

    Weights and inputs are rounded to ``dtype``; sums, bias and activation are float32.

    Args:
        linear: The layer that it replaces.
        activation: One of ``EncoderConfig.hidden_act``; None: there is none.
        follows: The activation that its inputs come from; None: from none.
    """

    dtype: ClassVar[torch.dtype] = torch.float32

    def __init__(self, linear: nn.Linear, activation: str | None = None, follows: str | None = None) -> None:
        super().__init__()
        del follows  # of no account
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.to(self.dtype), None)
        self.bias = linear.bias
        self.activation, self.variant = _FUSED[activation]

    def read(self, x: Tensor) -> Tensor:
        """Its input as it multiplies it: once for all layers with the same input."""
        return x.to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., inputs) to (..., outputs), in the precision of ``x``."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            self.read(x), self.weight, self.bias, self.activation, [], self.variant
        )
        return y.to(x.dtype)


class BFloat16Linear(PackedLinear):
    """The same in bfloat16, for processors that multiply it (AMX, AVX512-BF16)."""

    dtype: ClassVar[torch.dtype] = torch.bfloat16


class Steps(NamedTuple):
    """Inputs of ``Int8Linear`` in whole steps.

    Args:
        steps: uint8, shape (..., inputs).
        sizes: The size of a token's steps, shape (..., 1).
        least: What step 0 stands for, shape (..., 1); None: the layer has a zero of its own, the same for all tokens.
    """

    steps: Tensor
    sizes: Tensor
    least: Tensor | None = None


class Int8Linear(nn.Module):
    """``activation(x @ weight.T + bias)`` with weights and inputs rounded to whole steps. For inference only.

    Weights have one scale per output. Inputs have one scale per token, computed on the fly, so that a token's output
    does not depend on the other tokens of its batch, and a fixed zero: in the middle of the 256 steps, or near their
    lower end for what an activation gave, whose least value is known. Sums are exact integers, so they are the same on
    every processor with as many steps for weights.

    Args:
        linear: The layer that it replaces.
        activation: One of ``EncoderConfig.hidden_act``; None: there is none.
        follows: The activation that its inputs come from; None: from none.
    """

    weight_steps: ClassVar[int] = 127
    """From zero to a row's largest weight."""

    def __init__(self, linear: nn.Linear, activation: str | None = None, follows: str | None = None) -> None:
        super().__init__()
        weight = linear.weight.float()  # (O, I)
        self.scales = _at_least_tiny(weight.abs().amax(dim=-1)) / self.weight_steps  # (O,)
        steps = (weight / self.scales[:, None]).round().to(torch.int8)
        self.sums = steps.sum(dim=-1) * self.scales  # (O,): added once per unit of a token's least input
        self.weight = torch.ops.onednn.qlinear_prepack(steps, None)
        self.weight_zeros = torch.zeros(len(steps), dtype=torch.int64)
        self.bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias
        self.activation = ACTIVATIONS[activation] if activation else None
        self.least = _LEAST_ACTIVATION[follows] if follows else None
        self.zero = 128 if self.least is None else 32 if self.least else 0
        # A row, since torch adds a single number several times slower than one per column.
        self.shift = weight.new_full((weight.shape[1],), _ROUND + self.zero)

    def read(self, x: Tensor | Steps) -> Steps:
        """Its input as it multiplies it: once for all layers with the same input."""
        if isinstance(x, Steps):
            return x
        most = x.amax(dim=-1, keepdim=True)  # (..., 1); aminmax is several times slower than amax and amin
        if self.least is None:
            sizes = torch.maximum(most, -x.amin(dim=-1, keepdim=True)) / 127
        else:
            sizes = most / (255 - self.zero)
            if self.zero:
                sizes = sizes.clamp_min(-self.least / self.zero)
        sizes = _at_least_tiny(sizes)
        steps = torch.addcmul(self.shift, x, sizes.reciprocal()).view(torch.int32).to(torch.uint8)  # the low bits
        return Steps(steps, sizes)

    def forward(self, x: Tensor | Steps) -> Tensor:
        """Maps (..., inputs) to (..., outputs)."""
        steps, sizes, least = self.read(x)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(steps, 1.0, self.zero, self.weight, self.scales, self.weight_zeros, None),  # no bias
            *(1.0, 0, torch.float32, "none", [], ""),  # output scale and zero; no activation
        )
        bias = self.bias if least is None else torch.addcmul(self.bias, least, self.sums)
        y = torch.addcmul(bias, y, sizes)
        return y if self.activation is None else self.activation(y)


class Int7Linear(Int8Linear):
    """The same with half the steps for weights, and a zero per token so that inputs waste none of theirs.

    Processors without VNNI add two products of an input and a weight in 16 bits, and saturate: 2 x 255 x 63 = 32,130
    fits, with 127 steps for weights the sum would not. A zero per token takes longer, and makes up for some of it.
    """

    weight_steps: ClassVar[int] = 63

    def __init__(self, linear: nn.Linear, activation: str | None = None, follows: str | None = None) -> None:
        super().__init__(linear, activation, follows)
        self.zero = 0

    def read(self, x: Tensor | Steps) -> Steps:
        """See ``Int8Linear.read``."""
        if isinstance(x, Steps):
            return x
        least, most = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)  # (..., 1)
        largest = torch.maximum(most, -least)
        # One step less than there are, for roundings at both ends; large enough for the zero to be a whole number.
        sizes = _at_least_tiny(torch.maximum((most - least) / 254, largest * 2.0**-20))
        inverse = sizes.reciprocal()
        zeros = (least * inverse).round()
        steps = x.mul(inverse).add_(_ROUND - zeros).view(torch.int32).to(torch.uint8)  # the low bits
        return Steps(steps, sizes, zeros * sizes)


Kind = type[PackedLinear] | type[Int8Linear]
_KINDS: dict[str, Kind] = {
    "float32": PackedLinear, "bfloat16": BFloat16Linear, "int8": Int8Linear, "int8 (7-bit weights)": Int7Linear
}  # fmt: skip


def kind_of(dtype: str) -> Kind | None:
    """The layers of a precision on this CPU; None: it has none, so that torch's own are used, in float32."""
    kind = _KINDS[computed_in(dtype)]
    return kind if works(cast(Any, kind)) else None


def kind_in(encoder: nn.Module) -> type[nn.Module] | None:
    """The layers that an encoder has; None: torch's own."""
    return next((type(module) for module in encoder.modules() if isinstance(module, PackedLinear | Int8Linear)), None)


def computed_in(dtype: str) -> str:
    """The precision that this CPU computes in where ``dtype`` is asked for: half precisions only where they gain."""
    if dtype == "float16" or (dtype == "bfloat16" and not works(BFloat16Linear)):
        return "float32"
    return "int8 (7-bit weights)" if dtype == "int8" and not works(Int8Linear) else dtype


def replace_linears(encoder: PairEncoder, kind: Kind) -> None:
    """Replaces all linear maps of the encoder's layers, in place; embeddings, attention and head stay as they are."""
    for module, name, activation, follows in list(encoder.linear_maps()):
        setattr(module, name, kind(getattr(module, name), activation, follows))
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
    with without_weights():
        linear = nn.Linear(64, 32)
    linear.load_state_dict({"weight": torch.ones(32, 64), "bias": torch.full((32,), 0.5)}, assign=True)
    with torch.inference_mode():
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
