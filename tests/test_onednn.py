from __future__ import annotations

import subprocess
import sys

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyterrier_rankdistillm.scoring import onednn
from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
from pyterrier_rankdistillm.scoring.encoder import ACTIVATIONS
from pyterrier_rankdistillm.scoring.onednn import (
    BFloat16Linear,
    Int7Linear,
    Int8Linear,
    PackedLinear,
    computed_in,
    kind_of,
    replace_linears,
    works,
)

BEST: type[Int8Linear] = Int8Linear if works(Int8Linear) else Int7Linear
needs_vnni = pytest.mark.skipif(not works(Int8Linear), reason="no CPU that sums 8-bit products in 32 bits")
KINDS = [PackedLinear, pytest.param(BFloat16Linear, marks=tiny.needs_bfloat16), BEST]
INT8 = [pytest.param(Int8Linear, 127, marks=needs_vnni), (Int7Linear, 63)]
pytestmark = pytest.mark.skipif(not works(PackedLinear) or not works(Int7Linear), reason="no x86 CPU with oneDNN")


def linear_and_input(outputs: int = 48, inputs: int = 80) -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(5)
    linear = nn.Linear(inputs, outputs).requires_grad_(False)
    linear.bias.normal_()
    return linear, torch.randn(3, 7, inputs) * torch.rand(3, 7, 1) * 10


def rounded_weight(weight: Tensor, steps: int) -> Tensor:
    """To whole steps from zero, 127 (or 63) of them to each row's largest magnitude, in float64."""
    step = weight.double().abs().amax(-1, keepdim=True) / steps
    return (weight.double() / step).round() * step


def rounded_input(x: Tensor, kind: type[Int8Linear]) -> Tensor:
    """To whole steps from zero, 127 of them to each row's largest magnitude, or 254 to its range, in float64."""
    least, most = x.double().aminmax(dim=-1, keepdim=True)
    step = (most - least) / 254 if kind is Int7Linear else torch.maximum(most, -least) / 127
    return (x.double() / step).round() * step


def rounded_activation(x: Tensor, below: int, least: float) -> Tensor:
    """To whole steps, as many of them ``below`` zero as reach ``least``, in float64."""
    step = (x.double().amax(-1, keepdim=True) / (255 - below)).clamp_min(-least / below if below else 0)
    return (x.double() / step).round() * step


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@torch.inference_mode()
def test_packed_equals_the_layer_that_it_replaces(activation: str | None) -> None:
    linear, x = linear_and_input()
    expected = linear(x) if activation is None else ACTIVATIONS[activation](linear(x))
    torch.testing.assert_close(PackedLinear(linear, activation)(x), expected, rtol=1e-5, atol=1e-5)


@tiny.needs_bfloat16
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@torch.inference_mode()
def test_bfloat16_equals_the_product_of_the_rounded_numbers(activation: str | None) -> None:
    linear, x = linear_and_input()
    expected = (x.bfloat16().double() @ linear.weight.bfloat16().double().T + linear.bias).float()
    if activation is not None:
        expected = ACTIVATIONS[activation](expected)
    y = BFloat16Linear(linear, activation)(x)
    assert y.dtype == torch.float32
    # One rounding, of the result; the bias and the sums are not rounded.
    torch.testing.assert_close(y, expected, rtol=2**-8, atol=1e-4)
    half = BFloat16Linear(linear, activation)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.float(), y)


@tiny.needs_bfloat16
@pytest.mark.parametrize("shape", [{}, {"hidden_act": "relu"}, {"embedding_size": 16}], ids=str)
@torch.inference_mode()
def test_residuals_norms_and_head_stay_in_float32(tmp_path: object, shape: dict[str, object]) -> None:
    encoder = Checkpoint.open(tiny.lightning_ir(tmp_path, **shape).folder).encoder  # type: ignore[arg-type]
    twin = encoder.on(torch.device("cpu"))
    replace_linears(twin, BFloat16Linear)
    seen: dict[str, set[torch.dtype]] = {}
    for name, module in twin.named_modules():
        module.register_forward_hook(lambda _m, _i, y, name=name: seen.setdefault(name, set()).add(y.dtype))
    ids = torch.arange(5, 29).reshape(3, 8)
    scores = twin(ids, ids % 2, torch.arange(8) < torch.tensor([[8], [6], [3]]))
    norms = [name for name in seen if name.endswith("LayerNorm")]
    assert len(norms) > 2 * tiny.SHAPE["num_hidden_layers"]
    assert all(seen[name] == {torch.float32} for name in [*norms, "linear"])
    assert seen["encoder.layer.0.attention.self"] == seen["encoder.layer.0.output.dense"] == {torch.bfloat16}
    assert 0 < (scores - encoder(ids, ids % 2, torch.arange(8) < torch.tensor([[8], [6], [3]]))).abs().max() < 0.1


def test_half_precisions_are_computed_where_they_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    able = works(BFloat16Linear)
    assert computed_in("bfloat16") == ("bfloat16" if able else "float32")
    assert computed_in("float16") == computed_in("float32") == "float32"
    assert computed_in("int8").startswith("int8")
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    works.cache_clear()
    try:
        assert computed_in("bfloat16") == "float32"
        assert kind_of("bfloat16") is kind_of("float16") is PackedLinear
    finally:
        works.cache_clear()


@pytest.mark.parametrize(("kind", "steps"), INT8)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@torch.inference_mode()
def test_int8_equals_the_product_of_the_rounded_numbers(
    kind: type[Int8Linear], steps: int, activation: str | None
) -> None:
    linear, x = linear_and_input()
    expected = (rounded_input(x, kind) @ rounded_weight(linear.weight, steps).T + linear.bias).float()
    if activation is not None:
        expected = ACTIVATIONS[activation](expected)
    torch.testing.assert_close(kind(linear, activation)(x), expected, rtol=1e-5, atol=1e-4)


@needs_vnni
@pytest.mark.parametrize(
    ("follows", "below", "least"), [("gelu", 32, -0.17), ("gelu_new", 32, -0.1701), ("relu", 0, 0)]
)
@torch.inference_mode()
def test_int8_of_what_an_activation_gave_wastes_no_steps_below_its_least(
    follows: str, below: int, least: float
) -> None:
    linear, x = linear_and_input()
    for given in (ACTIVATIONS[follows](x), ACTIVATIONS[follows](x / 100)):
        expected = (
            rounded_activation(given, below, least) @ rounded_weight(linear.weight, 127).T + linear.bias
        ).float()
        torch.testing.assert_close(Int8Linear(linear, None, follows)(given), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_activation_gives_less_than_its_least(name: str) -> None:
    found = ACTIVATIONS[name](torch.linspace(-10, 10, 200_001)).min().item()
    assert found - 1e-3 < onednn._LEAST_ACTIVATION[name] <= found


@torch.inference_mode()
def test_int8_inputs_are_rounded_once_for_all_layers_that_read_them() -> None:
    linear, x = linear_and_input()
    int8 = BEST(linear)
    read = int8.read(x)
    assert (read.steps.dtype, read.steps.shape, read.sizes.shape) == (torch.uint8, x.shape, (*x.shape[:-1], 1))
    assert int8.read(read) is read
    assert torch.equal(int8(read), int8(x))


@torch.inference_mode()
def test_int8_is_near_float32() -> None:
    linear, x = linear_and_input()
    expected = linear(x)
    error = (BEST(linear)(x) - expected).std() / expected.std()
    assert 0 < error < 0.02


@torch.inference_mode()
def test_int8_of_a_token_does_not_depend_on_its_company() -> None:
    linear, x = linear_and_input()
    int8 = BEST(linear)
    assert torch.equal(int8(x * 1.0)[1, 2], int8(x[1:2, 2:3])[0, 0])
    x[0] *= 1000
    assert torch.equal(int8(x)[1, 2], int8(x[1:2, 2:3])[0, 0])


@needs_vnni
@torch.inference_mode()
def test_int8_has_more_steps_for_what_an_activation_gave() -> None:
    linear, x = linear_and_input()
    linear.weight.copy_(rounded_weight(linear.weight, 127))  # so that only inputs are rounded
    given = F.gelu(x)
    error, less = ((Int8Linear(linear, None, f)(given) - linear(given)).std().item() for f in (None, "gelu"))
    assert 0 < less < 0.7 * error


@pytest.mark.parametrize("value", [3.0, -2.5, 1e-30])
@torch.inference_mode()
def test_int8_of_equal_inputs_is_exact(value: float) -> None:
    linear, x = linear_and_input()
    x = torch.full_like(x, value)
    expected = (x.double() @ rounded_weight(linear.weight, BEST.weight_steps).T + linear.bias).float()
    torch.testing.assert_close(BEST(linear)(x), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_zeros_give_the_bias(kind: type[nn.Module]) -> None:
    linear, x = linear_and_input()
    precision = torch.bfloat16 if kind is BFloat16Linear else torch.float32
    expected = linear.bias.to(precision).float().expand(3, 7, -1)
    torch.testing.assert_close(kind(linear)(torch.zeros_like(x)), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(kind(nn.Linear(80, 48).requires_grad_(False).apply(_clear))(x), torch.zeros(3, 7, 48))


def _clear(linear: nn.Module) -> None:
    for parameter in linear.parameters():
        parameter.zero_()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@torch.inference_mode()
def test_int8_does_not_hide_what_is_not_finite(bad: float) -> None:
    linear, x = linear_and_input()
    x[0, 3, 5] = bad
    y = BEST(linear)(x)
    assert not y[0, 3].isfinite().any()
    assert y[1:].isfinite().all()
    linear.weight[4, 2] = bad
    assert not BEST(linear)(x[1:])[..., 4].isfinite().any()


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_int8_is_exact_without_vnni_and_eight_bit_weights_would_not_be(isa: str) -> None:
    """Where oneDNN is told to do without the newer instructions, the trial must notice saturation if it happens."""
    code = (
        "from pyterrier_rankdistillm.scoring import onednn\n"
        "print(onednn.works(onednn.Int7Linear), onednn.works(onednn.Int8Linear), onednn.computed_in('int8'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"ONEDNN_MAX_CPU_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "True False int8 (7-bit weights)\n", done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_linears_of_the_layers_are_replaced_and_nothing_else(model: tiny.Tiny, kind: type[nn.Module]) -> None:
    encoder = Checkpoint.open(model.folder).encoder
    before = encoder.state_dict()
    twin = encoder.on(torch.device("cpu"))
    replace_linears(twin, kind)
    assert [name for name, module in twin.named_modules() if isinstance(module, nn.Linear)] == ["linear"]
    replaced = [name for name, module in twin.named_modules() if isinstance(module, kind)]
    assert len(replaced) == 6 * tiny.SHAPE["num_hidden_layers"]
    assert [name for name in twin.state_dict() if name not in before] == []
    after = encoder.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "shape", [{}, {"hidden_act": "relu"}, {"hidden_act": "gelu_new"}, {"embedding_size": 16}], ids=str
)
@torch.inference_mode()
def test_an_encoder_with_packed_layers_gives_equal_scores(tmp_path: object, shape: dict[str, object]) -> None:
    encoder = Checkpoint.open(tiny.lightning_ir(tmp_path, **shape).folder).encoder  # type: ignore[arg-type]
    twin = encoder.on(torch.device("cpu"))
    replace_linears(twin, PackedLinear)
    ids = torch.arange(5, 29).reshape(3, 8)
    mask = torch.arange(8) < torch.tensor([[8], [6], [3]])
    torch.testing.assert_close(twin(ids, ids % 2, mask), encoder(ids, ids % 2, mask), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_other_processors_and_changed_operators_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, kind: type[PackedLinear] | type[Int8Linear]
) -> None:
    try:
        for broken in (lambda *_: F.linear(torch.ones(1), torch.ones(1)) + 1, None):
            works.cache_clear()
            monkeypatch.setattr(kind, "forward", broken)
            assert not works(kind)
            monkeypatch.undo()
        works.cache_clear()
        monkeypatch.setattr(onednn.platform, "machine", lambda: "arm64")
        assert not works(kind)
    finally:
        works.cache_clear()
