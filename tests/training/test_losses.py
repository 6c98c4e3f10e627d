"""Losses: values worked by hand, what all of them promise, and their choice by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import e, inf, log, log2, nan, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from pyterrier_rankdistillm.training import losses
from pyterrier_rankdistillm.training.losses import LOSSES, Losses

# Scores whose exponentials are 1, 2 and 4, so that sigmoid(s_i - s_j) is e_i / (e_i + e_j).
SCORES = [log(1), log(2), log(4)]
# The approximate ranks of these scores: one plus e_j / (e_i + e_j) over the others.
A = (1 + 2 / 3 + 4 / 5, 1 + 1 / 3 + 4 / 6, 1 + 1 / 5 + 2 / 6)
SIGMOID_1 = 1 / (1 + 1 / e)

BY_HAND: dict[str, tuple[Callable[..., Tensor], dict[str, Any], list[float], float]] = {
    "lce": (losses.lce, {}, [1, 0, 0], log(7 / 1)),
    "lce, two relevant": (losses.lce, {}, [1, 0, 2], (log((1 + 2) / 1) + log((4 + 2) / 4)) / 2),
    "lce, a label below 0": (losses.lce, {}, [1, -1, 0], log(7 / 1)),
    "mse": (losses.mse, {}, [1, 0.5, -1], ((0 - 1) ** 2 + (log(2) - 0.5) ** 2 + (log(4) + 1) ** 2) / 3),
    "bce": (losses.bce, {}, [2, 0, -1], (log(1 + 1 / 1) + log(1 + 2) + log(1 + 4)) / 3),
    # softplus(-(s_i - s_j)) = log(1 + e_j / e_i)
    "ranknet": (losses.ranknet, {}, [3, 1, 2], (log(1 + 2) + log(1 + 4) + log(1 + 2 / 4)) / 3),
    "ranknet, ties": (losses.ranknet, {}, [1, 0, 0], (log(1 + 2) + log(1 + 4)) / 2),
    # with d = s_i - s_j: log(1 + exp d) - p d; p = sigmoid(2 / 2) for the first two pairs, and 1/2 for the tie
    "ranknet, probabilities": (
        losses.ranknet,
        {"teacher_temperature": 2.0},
        [3, 1, 1],
        (log(3 / 2) + SIGMOID_1 * log(2) + log(5 / 4) + SIGMOID_1 * log(4) + log(3 / 2) + log(2) / 2) / 3,
    ),
    "adr_mse": (
        losses.adr_mse,
        {},
        [3, 1, 2],
        ((1 - A[0]) ** 2 + (3 - A[1]) ** 2 / log2(4) + (2 - A[2]) ** 2 / log2(3)) / 3,
    ),
    "adr_mse, reciprocal": (
        losses.adr_mse,
        {"discount": "reciprocal"},
        [3, 1, 2],
        ((1 - A[0]) ** 2 + (3 - A[1]) ** 2 / 3 + (2 - A[2]) ** 2 / 2) / 3,
    ),
    "adr_mse, no discount": (
        losses.adr_mse,
        {"discount": "none"},
        [3, 1, 2],
        ((1 - A[0]) ** 2 + (3 - A[1]) ** 2 + (2 - A[2]) ** 2) / 3,
    ),
    "adr_mse, ties share rank 2.5": (
        losses.adr_mse,
        {},
        [1, 0, 0],
        ((1 - A[0]) ** 2 + (2.5 - A[1]) ** 2 / log2(3.5) + (2.5 - A[2]) ** 2 / log2(3.5)) / 3,
    ),
    # sigmoid(2 (s_i - s_j)) = e_i^2 / (e_i^2 + e_j^2)
    "adr_mse, temperature": (
        losses.adr_mse,
        {"temperature": 0.5, "discount": "none"},
        [3, 1, 2],
        ((4 / 5 + 16 / 17) ** 2 + (3 - 1 - 1 / 5 - 16 / 20) ** 2 + (2 - 1 - 1 / 17 - 4 / 20) ** 2) / 3,
    ),
    "kl_divergence": (
        losses.kl_divergence,
        {},
        [log(4), log(2), log(2)],
        log((1 / 2) / (1 / 7)) / 2 + log((1 / 4) / (2 / 7)) / 4 + log((1 / 4) / (4 / 7)) / 4,
    ),
    # teacher: exponents doubled; student: halved, so that q is 1, sqrt 2, 2 over their sum
    "kl_divergence, temperatures": (
        losses.kl_divergence,
        {"teacher_temperature": 0.5, "student_temperature": 2.0},
        [log(2), log(sqrt(2)), log(sqrt(2))],
        log((1 / 2) * (3 + sqrt(2))) / 2
        + log((1 / 4) / sqrt(2) * (3 + sqrt(2))) / 4
        + log((1 / 4) / 2 * (3 + sqrt(2))) / 4,
    ),
    "list_net": (losses.list_net, {}, [log(4), log(2), log(2)], log(7) / 2 + log(7 / 2) / 4 + log(7 / 4) / 4),
    "list_net, temperature": (
        losses.list_net,
        {"teacher_temperature": 0.5},
        [log(2), log(sqrt(2)), log(sqrt(2))],
        log(7) / 2 + log(7 / 2) / 4 + log(7 / 4) / 4,
    ),
    # draws: 1 of (1, 2, 4), 4 of (2, 4), 2 of (2)
    "list_mle": (losses.list_mle, {}, [3, 1, 2], (log(7) + log(6 / 4) + log(1)) / 3),
    "list_mle, ties": (losses.list_mle, {}, [1, 0, 0], (log(7) + log(6 / 4) + log(6 / 2)) / 3),
    "list_mle, position-aware": (
        losses.list_mle,
        {"position_aware": True},
        [3, 1, 2],
        ((2**2 - 1) * log(7) + (2**1 - 1) * log(6 / 4) + (2**0 - 1) * log(1)) / (3 + 1 + 0),
    ),
    "list_mle, position-aware, ties": (
        losses.list_mle,
        {"position_aware": True},
        [1, 0, 0],
        (3 * log(7) + (2**0.5 - 1) * (log(6 / 4) + log(6 / 2))) / (3 + 2 * (2**0.5 - 1)),
    ),
    # gains 3, 0, 1; places 3, 2, 1; discounts 1/log2(4), 1/log2(3), 1/log2(2)
    "lambdarank": (
        losses.lambdarank,
        {},
        [2, 0, 1],
        (
            (3 - 1) * (1 - 1 / 2) * log(1 + 4)
            + (3 - 0) * (1 / log2(3) - 1 / 2) * log(1 + 2)
            + (1 - 0) * (1 - 1 / log2(3)) * log(1 + 2 / 4)
        )
        / (3 + 1 / log2(3)),
    ),
    # only the first place counts
    "lambdarank, k": (losses.lambdarank, {"k": 1}, [2, 0, 1], (2 * log(1 + 4) + 1 * log(1 + 2 / 4)) / 3),
    "lambdarank, linear": (
        losses.lambdarank,
        {"k": 1, "gain": "linear"},
        [2, -1, 1],
        (1 * log(1 + 4) + 1 * log(1 + 2 / 4)) / 2,
    ),
    "lambdarank, ties are no pairs": (losses.lambdarank, {"k": 1}, [1, 0, 0], log(1 + 4)),
    # gains 1, 1/3, 1/2
    "lambdarank, by rank": (
        losses.lambdarank,
        {"k": 1, "gain": "rank"},
        [-1, -3, -2],
        (1 - 1 / 2) * log(1 + 4) + (1 / 2 - 1 / 3) * log(1 + 2 / 4),
    ),
    "approx_ndcg": (
        losses.approx_ndcg,
        {},
        [2, 0, 1],
        1 - (3 / log2(1 + A[0]) + 1 / log2(1 + A[2])) / (3 + 1 / log2(3)),
    ),
    "approx_ndcg, linear, ties": (
        losses.approx_ndcg,
        {"gain": "linear"},
        [0, 1, 1],
        1 - (1 / log2(1 + A[1]) + 1 / log2(1 + A[2])) / (1 + 1 / log2(3)),
    ),
    # gains 1 / 1.5, 1 / 3, 1 / 1.5
    "approx_ndcg, by rank, ties": (
        losses.approx_ndcg,
        {"gain": "rank"},
        [5, 1, 5],
        1
        - ((2 / 3) / log2(1 + A[0]) + (1 / 3) / log2(1 + A[1]) + (2 / 3) / log2(1 + A[2]))
        / (2 / 3 + (2 / 3) / log2(3) + (1 / 3) / log2(4)),
    ),
    "approx_mrr": (losses.approx_mrr, {}, [3, 1, 2], 1 - 1 / A[0]),
    "approx_mrr, ties": (losses.approx_mrr, {}, [-1, -1, -2], 1 - 1 / A[1]),
    "approx_mrr, labels": (losses.approx_mrr, {"relevant": "positive"}, [2, 0, 1], 1 - 1 / A[2]),
    # sigmoid(2 (s_i - s_j)) as above
    "approx_mrr, temperature": (losses.approx_mrr, {"temperature": 0.5}, [3, 1, 2], 1 - 1 / (1 + 4 / 5 + 16 / 17)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    loss, options, targets, expected = BY_HAND[name]
    mask = torch.ones(1, 3, dtype=torch.bool)
    value = loss(torch.tensor([SCORES]), torch.tensor([targets]), mask, **options)
    assert value.tolist() == [pytest.approx(expected, rel=1e-5)]


@pytest.mark.parametrize(
    ("options", "targets", "expected"),
    [
        # score margins: 1 - 2 = -1, 1 - 4 = -3, 4 - 2 = 2; teacher margins: 5, 3, 2
        ({}, [6.0, 1.0, 3.0], ((-1 - 5) ** 2 + (-3 - 3) ** 2 + (2 - 2) ** 2) / 3),
        ({"margin": "teacher"}, [6.0, 1.0, 1.0], ((-1 - 5) ** 2 + (-3 - 5) ** 2) / 2),
        ({"margin": 1.5}, [6.0, 1.0, 3.0], ((-1 - 1.5) ** 2 + (-3 - 1.5) ** 2 + (2 - 1.5) ** 2) / 3),
        ({"margin": 2}, [6.0, 1.0, 1.0], ((-1 - 2) ** 2 + (-3 - 2) ** 2) / 2),
    ],
)
def test_margin_mse_by_hand(options: dict[str, Any], targets: list[float], expected: float) -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    value = losses.margin_mse(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([targets]), mask, **options)
    assert value.tolist() == [pytest.approx(expected)]


def test_pearson_by_hand() -> None:
    # around their means: (-1, 0, 1) and (-5, 1, 4) / 3, so r = (9/3) / (sqrt(2) sqrt(42)/3)
    scores, targets = (
        torch.tensor([[1.0, 2.0, 3.0]] * 4),
        torch.tensor([[2.0, 4, 5], [-2, -4, -5], [7, 8, 9], [4, 4, 4]]),
    )
    value = losses.pearson(scores, targets, torch.ones(4, 3, dtype=torch.bool))
    r = 9 / sqrt(84)
    assert value.tolist() == pytest.approx([1 - r, 1 + r, 0, 0], abs=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.7, 1234.567])
@pytest.mark.parametrize("depth", range(2, 12))
def test_pearson_of_equal_scores(value: float, depth: int) -> None:
    """The mean of equal scores is often off by a rounding, of which a correlation must not be made."""
    scores = torch.full((1, depth), value, requires_grad=True)
    loss = losses.pearson(scores, torch.arange(depth)[None], torch.ones(1, depth, dtype=torch.bool))
    loss.sum().backward()
    assert loss.tolist() == [1.0]
    assert scores.grad is not None
    assert scores.grad[0].diff().max() < 0  # down for the last, by the gradient, is up
    assert scores.grad.norm().item() == pytest.approx(1)


def test_lambdarank_learns_from_equal_scores() -> None:
    """Of equal scores the worse document comes first: places 3, 1, 2 here, and discounts 1/2, 1, 1/log2(3)."""
    scores, targets = torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 1.0]])
    changes = 2 * (1 / log2(3) - 1 / 2) + 3 * (1 - 1 / 2) + 1 * (1 - 1 / log2(3))
    value = losses.lambdarank(scores, targets, torch.ones(1, 3, dtype=torch.bool))
    assert value.tolist() == [pytest.approx(changes * log(2) / (3 + 1 / log2(3)))]


@pytest.mark.parametrize("name", ["lambdarank", "approx_ndcg"])
def test_gains_of_high_labels_do_not_overflow(name: str) -> None:
    """2^200 is no float32; the second label is 2^-1 of the first."""
    mask = torch.ones(1, 3, dtype=torch.bool)
    high = LOSSES[name].function(torch.tensor([SCORES]), torch.tensor([[0.0, 200.0, 199.0]]), mask)
    low = LOSSES[name].function(torch.tensor([SCORES]), torch.tensor([[0.0, 2.0, 1.0]]), mask, gain="linear")
    assert high.tolist() == pytest.approx(low.tolist())


# What all losses promise

SPECS: list[dict[str, Any]] = [
    *({"name": name} for name in LOSSES),
    {"name": "ranknet", "teacher_temperature": 2.0},
    {"name": "adr_mse", "discount": "none", "temperature": 0.5},
    {"name": "adr_mse", "discount": "reciprocal"},
    {"name": "margin_mse", "margin": 1.0},
    {"name": "kl_divergence", "teacher_temperature": 2.0, "student_temperature": 0.5},
    {"name": "list_mle", "position_aware": True},
    {"name": "lambdarank", "k": 2},
    {"name": "lambdarank", "gain": "rank"},
    {"name": "approx_ndcg", "gain": "linear", "temperature": 0.5},
    {"name": "approx_ndcg", "gain": "rank"},
    {"name": "approx_mrr", "relevant": "positive"},
]
every_loss = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(Losses.of(spec)))

LISTS = [
    ([0.3, -1.2, 2.0, 0.1, 0.7], [2.0, 0.0, 1.0, 0.0, 3.0]),
    ([1.5, 0.2, -0.4], [0.0, 1.0, 2.0]),
    ([-0.5, 0.5], [1.0, 0.0]),
    ([0.4, -0.3, 0.9], [-1.0, -3.0, -2.0]),  # as a teacher's negated ranks
]


def compute(spec: dict[str, Any], scores: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of the lists, and their gradients."""
    scores = scores.clone().requires_grad_()
    loss = Losses.of(spec)(scores, dict.fromkeys(("relevance", "order", "values"), targets), mask)
    loss.sum().backward()
    assert scores.grad is not None
    return loss.detach(), scores.grad


def one(spec: dict[str, Any], scores: list[float], targets: list[float]) -> tuple[Tensor, Tensor]:
    """The loss of a list without padding, and its gradient."""
    mask = torch.ones(1, len(scores), dtype=torch.bool)
    loss, gradient = compute(spec, torch.tensor([scores]), torch.tensor([targets]), mask)
    return loss[0], gradient[0]


def padded(lists: list[tuple[list[float], list[float]]], depth: int, under: float) -> tuple[Tensor, Tensor, Tensor]:
    def rows(place: int) -> Tensor:
        return torch.tensor([one[place] + [under] * (depth - len(one[place])) for one in lists])

    return rows(0), rows(1), torch.tensor([[n < len(scores) for n in range(depth)] for scores, _ in lists])


@every_loss
@pytest.mark.parametrize("under", [0.0, 9.0, -inf, inf, nan])
def test_a_batch_is_its_lists_and_padding_is_nothing(spec: dict[str, Any], under: float) -> None:
    loss, gradient = compute(spec, *padded(LISTS, 7, under))
    for row, (scores, targets) in enumerate(LISTS):
        alone, alone_gradient = one(spec, scores, targets)
        assert loss[row].item() == pytest.approx(alone.item(), rel=1e-5, abs=1e-7)
        assert gradient[row, : len(scores)].tolist() == pytest.approx(alone_gradient.tolist(), rel=1e-4, abs=1e-6)
        assert gradient[row, len(scores) :].tolist() == [0.0] * (7 - len(scores))


@every_loss
def test_padding_may_be_anywhere(spec: dict[str, Any]) -> None:
    scores, targets, mask = padded(LISTS, 7, nan)
    order = torch.tensor([6, 2, 0, 5, 1, 4, 3])
    loss, gradient = compute(spec, scores, targets, mask)
    moved, moved_gradient = compute(spec, scores[:, order], targets[:, order], mask[:, order])
    torch.testing.assert_close(moved, loss)
    torch.testing.assert_close(moved_gradient, gradient[:, order])


@every_loss
def test_the_order_of_the_documents_does_not_count(spec: dict[str, Any]) -> None:
    """Also not where scores, targets or both are equal."""
    scores, targets = torch.tensor([[0.5, 0.5, -1.0, 0.5, 0.5, 2.0]]), torch.tensor([[1.0, 0.0, 1.0, 2.0, 0.0, 0.0]])
    mask = torch.ones(1, 6, dtype=torch.bool)
    loss, gradient = compute(spec, scores, targets, mask)
    for seed in range(5):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        moved, moved_gradient = compute(spec, scores[:, order], targets[:, order], mask)
        torch.testing.assert_close(moved, loss)
        torch.testing.assert_close(moved_gradient, gradient[:, order])


@every_loss
def test_a_small_step_leads_towards_the_targets(spec: dict[str, Any]) -> None:
    scores, targets = [0.1, -0.1, 0.0, 0.05], [0.0, 1.0, 2.0, 3.0]
    loss, gradient = one(spec, scores, targets)
    stepped = torch.tensor(scores) - 0.01 * gradient
    assert one(spec, stepped.tolist(), targets)[0] < loss

    def agreement(values: Tensor) -> float:
        """How much higher a document is than those below it in the targets, over all pairs."""
        return sum(float(values[i] - values[j]) for i in range(4) for j in range(i))

    assert agreement(stepped) > agreement(torch.tensor(scores))
    assert gradient[3] < 0 < gradient[0]


@every_loss
def test_steps_lead_to_the_targets(spec: dict[str, Any]) -> None:
    targets = [0.0, 1.0, 2.0, 3.0]
    scores = torch.tensor([0.3, 0.2, 0.1, 0.0])
    for _ in range(300):
        scores = scores - 0.1 * one(spec, scores.tolist(), targets)[1]
    ranking = scores.argsort(descending=True).tolist()
    if spec["name"] in ("lce", "bce") or spec.get("relevant") == "positive":  # that three are relevant is all they see
        assert (ranking[0] != 0) if "relevant" in spec else (ranking[-1] == 0)
    elif spec["name"] == "approx_mrr" or "k" in spec:  # nothing orders the documents below
        assert ranking[0] == 3
    else:
        assert ranking == [3, 2, 1, 0]


@every_loss
def test_gradients_are_those_of_the_values(spec: dict[str, Any]) -> None:
    """Central differences, on scores so far apart that none overtakes another."""
    step = 1e-2
    for scores, targets in LISTS:
        gradient = one(spec, scores, targets)[1]
        for place in range(len(scores)):
            up, down = ([s + sign * step * (n == place) for n, s in enumerate(scores)] for sign in (1, -1))
            difference = (one(spec, up, targets)[0] - one(spec, down, targets)[0]) / (2 * step)
            assert gradient[place].item() == pytest.approx(difference.item(), rel=5e-3, abs=1e-3)


POINTWISE = {"mse", "bce"}
DRAW_TOGETHER = {"adr_mse", "kl_divergence", "list_net", "list_mle"}


@every_loss
def test_a_list_without_anything_to_learn_is_0(spec: dict[str, Any]) -> None:
    scores = torch.tensor([[0.5, -1.0, 2.0], [0.5, -1.0, 2.0], [0.1, 0.1, 0.1]])
    targets = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[False, False, False], [False, True, False], [True, True, True]])
    loss, gradient = compute(spec, scores, targets, mask)
    if spec["name"] in POINTWISE:  # but from no document at all
        assert loss[0] == 0 < loss[1]
        assert gradient[0].tolist() == [0.0] * 3
        return
    assert loss[:2].tolist() == [0.0, 0.0]
    assert gradient[:2].tolist() == [[0.0] * 3] * 2
    assert gradient[2].tolist() == pytest.approx([0.0] * 3, abs=1e-6)


@every_loss
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_list_of_ties(spec: dict[str, Any], label: float) -> None:
    """Ties are no preference; losses of whole lists draw the scores of ties together."""
    loss, gradient = one(spec, [0.5, -1.0, 2.0], [label] * 3)
    if spec["name"] == "bce":  # all are driven up, or down
        assert (gradient < 0).all() if label else (gradient > 0).all()
    elif spec["name"] == "mse":
        assert gradient.tolist() == pytest.approx([2 / 3 * (s - label) for s in (0.5, -1.0, 2.0)])
    elif spec["name"] in DRAW_TOGETHER or "teacher_temperature" in spec:
        assert loss > 0
        assert gradient[1] < 0 < gradient[2]
    else:
        assert loss == 0
        assert gradient.tolist() == [0.0] * 3


@every_loss
@pytest.mark.parametrize(
    "scores",
    [[0.1] * 5, [1e4, -1e4, 3e4, 0.0, -3e4], [1e-30, 0.0, 0.0, 0.0, 0.0], [1e4, 1e4, 1e4, 1e4, 1e4 + 0.01]],
    ids=["equal", "far apart", "tiny", "high"],
)
def test_values_and_gradients_are_finite(spec: dict[str, Any], scores: list[float]) -> None:
    loss, gradient = one(spec, scores, [2.0, 0.0, 1.0, 0.0, 3.0])
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert loss >= 0


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_is_computed_in_float32(spec: dict[str, Any], dtype: torch.dtype) -> None:
    scores, targets, mask = padded(LISTS, 5, 0.0)
    scores = scores.to(dtype)
    loss, gradient = compute(spec, scores, targets.int(), mask)
    expected, expected_gradient = compute(spec, scores.float(), targets, mask)
    assert loss.dtype == torch.float32
    assert loss.tolist() == expected.tolist()
    assert gradient.tolist() == expected_gradient.to(dtype).tolist()


@every_loss
def test_tensors_that_do_not_fit(spec: dict[str, Any]) -> None:
    scores, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    who = spec["name"]
    for tensors, what in (
        ((scores, torch.zeros(2, 4), mask), rf"{who}: targets must be of the shape of scores, \(2, 3\), got \(2, 4\)"),
        ((scores, scores, mask[:1]), rf"{who}: mask must be of the shape of scores, \(2, 3\), got \(1, 3\)"),
        ((scores, scores, mask.int()), f"{who}: mask must be of dtype torch.bool, got torch.int32"),
        ((scores[0], scores[0], mask[0]), rf"{who}: scores must be floats of shape .*, got torch.float32 of \(3,\)"),
        ((mask, scores, mask), f"{who}: scores must be floats of shape .*, got torch.bool"),
    ):
        with pytest.raises(ValueError, match=what):
            compute_plainly(spec, *tensors)


def compute_plainly(spec: dict[str, Any], scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    options = {option: value for option, value in spec.items() if option != "name"}
    return LOSSES[spec["name"]].function(scores, targets, mask, **options)


# Their choice by name


def test_every_loss_has_its_name() -> None:
    assert {name: loss.function.__name__ for name, loss in LOSSES.items()} == {name: name for name in LOSSES}
    assert {losses.__dict__[name] for name in LOSSES} == {loss.function for loss in LOSSES.values()}


@pytest.mark.parametrize(
    ("spec", "needs", "name"),
    [
        ("lce", "relevance", "lce"),
        ("ranknet", "order", "ranknet"),
        ({"name": "ranknet", "teacher_temperature": 2}, "values", "ranknet(teacher_temperature=2)"),
        ("adr_mse", "order", "adr_mse"),
        ({"name": "adr_mse", "discount": "log2", "temperature": 1}, "order", "adr_mse"),
        ("margin_mse", "values", "margin_mse"),
        ({"name": "margin_mse", "margin": 1}, "order", "margin_mse(margin=1)"),
        ("kl_divergence", "values", "kl_divergence"),
        ("list_net", "values", "list_net"),
        ("list_mle", "order", "list_mle"),
        ("lambdarank", "relevance", "lambdarank"),
        ({"name": "lambdarank", "gain": "rank", "k": 10}, "order", "lambdarank(k=10, gain=rank)"),
        ({"name": "lambdarank", "gain": "linear"}, "relevance", "lambdarank(gain=linear)"),
        ("approx_ndcg", "relevance", "approx_ndcg"),
        ({"name": "approx_ndcg", "gain": "rank"}, "order", "approx_ndcg(gain=rank)"),
        ("approx_mrr", "order", "approx_mrr"),
        ({"name": "approx_mrr", "relevant": "positive"}, "relevance", "approx_mrr(relevant=positive)"),
        ("pearson", "values", "pearson"),
        ("mse", "values", "mse"),
        ("bce", "relevance", "bce"),
        ({"name": "pearson", "weight": 0.25}, "values", "0.25·pearson"),
    ],
)
def test_names_and_needs(spec: Any, needs: str, name: str) -> None:
    chosen = Losses.of(spec)
    assert (chosen.needs, str(chosen)) == ({needs}, name)
    assert Losses.of(chosen.spec) == Losses.of([spec]) == Losses.of(chosen) == chosen
    assert hash(Losses.of(json.loads(json.dumps(chosen.spec)))) == hash(chosen)


def test_the_spec_holds_every_option() -> None:
    assert Losses.of(["lce", {"name": "adr_mse", "discount": "none", "weight": 2}]).spec == [
        {"name": "lce", "weight": 1.0},
        {"name": "adr_mse", "weight": 2.0, "discount": "none", "temperature": 1.0},
    ]
    assert Losses.of("adr_mse") != Losses.of({"name": "adr_mse", "discount": "none"})


def test_the_weighted_sum() -> None:
    """The values are those worked out above."""
    chosen = Losses.of([{"name": "lce", "weight": 0.5}, {"name": "ranknet", "weight": 3}])
    assert str(chosen) == "0.5·lce + 3·ranknet"
    assert chosen.needs == {"relevance", "order"}
    mask = torch.ones(1, 3, dtype=torch.bool)
    targets = {"relevance": torch.tensor([[1, 0, 0]]), "order": torch.tensor([[-1, -3, -2]])}
    value = chosen(torch.tensor([SCORES]), targets, mask)
    assert value.tolist() == [pytest.approx(0.5 * log(7) + 3 * (log(3) + log(5) + log(1.5)) / 3)]


def test_targets_that_are_not_there() -> None:
    chosen = Losses.of(["adr_mse", "lambdarank", "kl_divergence", {"name": "ranknet", "teacher_temperature": 1}])
    with pytest.raises(ValueError, match="targets of lambdarank must be relevance labels, got an order") as caught:
        chosen(torch.zeros(1, 2), {"order": torch.zeros(1, 2)}, torch.ones(1, 2, dtype=torch.bool))
    assert str(caught.value) == (
        "Losses: targets of lambdarank must be relevance labels, got an order. "
        "Give it gain='rank', or choose another loss. "
        "targets of kl_divergence must be scores, got an order. Choose another loss. "
        "targets of ranknet(teacher_temperature=1) must be scores, got an order. "
        "Leave out a teacher_temperature, or choose another loss."
    )
    with pytest.raises(ValueError, match="must be relevance labels, got an order and scores"):
        chosen.check({"order", "values"})
    chosen.check({"relevance", "order", "values"})


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("ranknett", "name of a loss must be one of lce, ranknet, .*bce, got 'ranknett'"),
        ({"discount": "log2"}, "name of a loss must be one of lce, ranknet, .*bce, got None"),
        ([], r"loss must be at least one of lce, ranknet, .*bce, got \[\]"),
        (3, "loss must be a name, a mapping with a name, or several of them, got 3"),
        (["lce", ["ranknet"]], r"loss must be a name, a mapping with a name, or several of them, got \['ranknet'\]"),
        ({"name": "lce", "weight": 0}, "weight of lce must be a number above 0, got 0"),
        ({"name": "lce", "weight": "1"}, "weight of lce must be a number above 0, got '1'"),
        ({"name": "lce", "weight": nan}, "weight of lce must be a number above 0, got nan"),
        ({"name": "adr_mse", "alpha": 1}, "option of adr_mse must be weight or discount or temperature, got 'alpha'"),
        ({"name": "adr_mse", "discount": None}, "adr_mse: discount must be one of log2, reciprocal, none, got None"),
        ({"name": "adr_mse", "temperature": 0}, "adr_mse: temperature must be a number above 0, got 0"),
        ({"name": "adr_mse", "temperature": inf}, "adr_mse: temperature must be a number above 0, got inf"),
        ({"name": "ranknet", "teacher_temperature": -1}, "teacher_temperature must be a number above 0, got -1"),
        ({"name": "margin_mse", "margin": "x"}, "margin must be 'teacher' or a number above 0, got 'x'"),
        ({"name": "margin_mse", "margin": True}, "margin must be 'teacher' or a number above 0, got True"),
        ({"name": "kl_divergence", "teacher_temperature": 0}, "teacher_temperature must be a number above 0, got 0"),
        ({"name": "kl_divergence", "student_temperature": 0}, "student_temperature must be a number above 0, got 0"),
        ({"name": "list_net", "teacher_temperature": 0}, "list_net: teacher_temperature must be a number above 0"),
        ({"name": "list_mle", "position_aware": "no"}, "position_aware must be True or False, got 'no'"),
        ({"name": "lambdarank", "k": 0}, "k must be None or a number of documents, at least 1, got 0"),
        ({"name": "lambdarank", "k": 2.0}, "k must be None or a number of documents, at least 1, got 2.0"),
        ({"name": "lambdarank", "gain": "x"}, "lambdarank: gain must be one of exponential, linear, rank, got 'x'"),
        ({"name": "approx_ndcg", "gain": "x"}, "approx_ndcg: gain must be one of exponential, linear, rank, got 'x'"),
        ({"name": "approx_ndcg", "temperature": 0}, "approx_ndcg: temperature must be a number above 0, got 0"),
        ({"name": "approx_mrr", "temperature": 0}, "approx_mrr: temperature must be a number above 0, got 0"),
        ({"name": "approx_mrr", "relevant": 1}, "approx_mrr: relevant must be one of best, positive, got 1"),
    ],
)
def test_specs_that_are_wrong(spec: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Losses.of(spec)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"got 'x'.*weight of adr_mse.*got 'alpha'.*temperature must be"):
        Losses.of(["x", {"name": "adr_mse", "weight": -1, "alpha": 2, "temperature": 0}])
