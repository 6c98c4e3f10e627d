"""Losses beside those of Lightning IR and Sentence Transformers, each where it is installed; see README.md.

Lists have no ties, all have the same length, and each is given by itself, since the rivals take pairs and documents of
a whole batch together. Values and gradients are then equal but for the factors that the tables state.
"""

from __future__ import annotations

from math import log
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyterrier_rankdistillm.training import losses

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]  # both warn on import

LISTS, DEPTH = 5, 12
PAIRS = DEPTH * (DEPTH - 1) / 2

RELEVANCE = torch.eye(LISTS, DEPTH)
ORDER = torch.stack([-torch.randperm(DEPTH, generator=torch.Generator().manual_seed(n)).float() for n in range(LISTS)])
VALUES = ORDER / 3 + torch.rand(LISTS, DEPTH, generator=torch.Generator().manual_seed(99)) / 10
GRADES = (ORDER + DEPTH - 1) / 4  # from 0, without ties
SCORES = torch.randn(LISTS, DEPTH, generator=torch.Generator().manual_seed(42))


def ours(name: str, scores: Tensor, targets: Tensor, options: dict[str, Any]) -> Tensor:
    mask = torch.ones(1, scores.shape[1], dtype=torch.bool)
    return losses.LOSSES[name].function(scores, targets, mask, **options)[0]


def with_gradient(loss: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The loss of each list, and its gradient with respect to the scores."""
    scores = SCORES.clone().requires_grad_()
    values = torch.stack([loss(scores[n : n + 1], n, *arguments) for n in range(LISTS)])
    values.sum().backward()
    assert scores.grad is not None
    return values.detach(), scores.grad


# Lightning IR: their class and its settings; our name, options and targets; theirs over ours
LIGHTNING_IR: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], Tensor, float]] = {
    "lce": ("InfoNCE", {}, "lce", {}, RELEVANCE, 1),
    "ranknet": ("RankNet", {}, "ranknet", {}, ORDER, 1),
    # ours has no discount by an option, theirs by default
    "adr_mse, none": ("ApproxRankMSE", {}, "adr_mse", {"discount": "none"}, ORDER, 1),
    "adr_mse, log2": ("ApproxRankMSE", {"discount": "log2"}, "adr_mse", {}, ORDER, 1),
    "adr_mse, reciprocal": (
        "ApproxRankMSE",
        {"discount": "reciprocal", "temperature": 0.5},
        "adr_mse",
        {"discount": "reciprocal", "temperature": 0.5},
        ORDER,
        1,
    ),
    "margin_mse, constant": ("ConstantMarginMSE", {"margin": 2.0}, "margin_mse", {"margin": 2.0}, ORDER, 1),
    "margin_mse, teacher": ("SupervisedMarginMSE", {}, "margin_mse", {}, VALUES, 1),
    "kl_divergence": ("KLDivergence", {}, "kl_divergence", {}, VALUES, 1),
    "pearson": ("PearsonCorrelation", {}, "pearson", {}, VALUES, 1),
    "approx_ndcg": ("ApproxNDCG", {"temperature": 0.5}, "approx_ndcg", {"temperature": 0.5}, GRADES, 1),
    "approx_ndcg, linear": ("ApproxNDCG", {"scale_gains": False}, "approx_ndcg", {"gain": "linear"}, GRADES, 1),
    # theirs multiplies reciprocal ranks by labels, which must be 0 or 1 for that
    "approx_mrr": ("ApproxMRR", {"temperature": 0.5}, "approx_mrr", {"temperature": 0.5}, RELEVANCE, 1),
}


@pytest.mark.parametrize("case", LIGHTNING_IR)
def test_lightning_ir(case: str) -> None:
    peer = pytest.importorskip("lightning_ir")
    their_name, settings, name, options, targets, factor = LIGHTNING_IR[case]
    their_loss = getattr(peer, their_name)(**settings)

    def theirs(scores: Tensor, n: int) -> Any:
        return their_loss.compute_loss(SimpleNamespace(scores=scores), SimpleNamespace(targets=targets[n : n + 1]))

    expected, expected_gradient = with_gradient(theirs)
    value, gradient = with_gradient(lambda scores, n: ours(name, scores, targets[n : n + 1], options))
    torch.testing.assert_close(value * factor, expected)
    torch.testing.assert_close(gradient * factor, expected_gradient, rtol=1e-4, atol=1e-6)


def test_lightning_ir_ranknet_multiplies_by_its_temperature() -> None:
    """So a temperature of 2 is scores twice as far apart; ours has none, since a head learns its scale."""
    peer = pytest.importorskip("lightning_ir")
    scores, targets = SCORES[:1], ORDER[:1]
    batch = SimpleNamespace(targets=targets)
    theirs = peer.RankNet(temperature=2.0).compute_loss(SimpleNamespace(scores=scores), batch)
    torch.testing.assert_close(theirs, ours("ranknet", 2 * scores, targets, {}))


def test_lightning_ir_pools_pairs_over_the_batch() -> None:
    """A list in which one document is above all others has 11 pairs, a ranking 66: the mean is weighted so."""
    peer = pytest.importorskip("lightning_ir")
    targets = torch.cat([RELEVANCE[:1], ORDER[1:2]])
    theirs = peer.RankNet().compute_loss(SimpleNamespace(scores=SCORES[:2]), SimpleNamespace(targets=targets))
    few, many = (ours("ranknet", SCORES[n : n + 1], targets[n : n + 1], {}) for n in range(2))
    torch.testing.assert_close(theirs, (11 * few + 66 * many) / 77)


def test_lightning_ir_takes_the_first_of_several_relevant() -> None:
    """Its InfoNCE has one relevant document, the first with the highest label; ours takes the mean over all of them."""
    peer = pytest.importorskip("lightning_ir")
    targets = torch.zeros(1, DEPTH)
    targets[0, [2, 5]] = 1
    theirs = peer.InfoNCE().compute_loss(SimpleNamespace(scores=SCORES[:1]), SimpleNamespace(targets=targets))
    first = torch.nn.functional.one_hot(torch.tensor([2]), DEPTH)
    torch.testing.assert_close(theirs, ours("lce", SCORES[:1], first, {}))
    assert not torch.isclose(theirs, ours("lce", SCORES[:1], targets, {}))


def sentence_transformers_losses() -> Any:
    pytest.importorskip("sentence_transformers", minversion="6.2")  # earlier ones compute some losses otherwise
    return pytest.importorskip("sentence_transformers.cross_encoder.losses")


class Echo(torch.nn.Module):
    """Stands for a Sentence Transformers cross-encoder: the "documents" are the places of given scores."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.given = scores.flatten()

    def preprocess(self, pairs: list[tuple[str, str]], **_: Any) -> dict[str, Tensor]:
        return {"places": torch.tensor([int(document) for _, document in pairs])}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"scores": self.given[features["places"]]}


# Sentence Transformers: their class and its settings; our name, options and targets; theirs over ours
SENTENCE_TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], Tensor, float]] = {
    # binary logarithms
    "ranknet": ("RankNetLoss", {}, "ranknet", {}, ORDER, 1 / log(2)),
    "ranknet, natural": ("RankNetLoss", {"reduction_log": "natural"}, "ranknet", {}, ORDER, 1),
    "adr_mse": ("ADRMSELoss", {}, "adr_mse", {}, ORDER, 1),
    # alpha is one over the temperature
    "adr_mse, temperature": ("ADRMSELoss", {"alpha": 2.0}, "adr_mse", {"temperature": 0.5}, ORDER, 1),
    "list_net": ("ListNetLoss", {}, "list_net", {}, VALUES, 1),
    # the sum over documents, not the mean
    "list_mle": ("ListMLELoss", {"respect_input_order": False}, "list_mle", {}, ORDER, DEPTH),
    "list_mle, position-aware": (
        "PListMLELoss",
        {"respect_input_order": False},
        "list_mle",
        {"position_aware": True},
        ORDER,
        1,
    ),
    # the mean over pairs, not the sum
    "lambdarank": ("LambdaLoss", {"reduction_log": "natural"}, "lambdarank", {}, GRADES, 1 / PAIRS),
}


@pytest.mark.parametrize("case", SENTENCE_TRANSFORMERS)
def test_sentence_transformers(case: str) -> None:
    peer = sentence_transformers_losses()
    their_name, settings, name, options, targets, factor = SENTENCE_TRANSFORMERS[case]
    if their_name == "LambdaLoss":
        settings = {**settings, "weighting_scheme": peer.LambdaRankScheme()}

    def theirs(scores: Tensor, n: int) -> Any:
        documents = [str(place) for place in range(DEPTH)]
        return getattr(peer, their_name)(Echo(scores), **settings)([["query"], [documents]], [targets[n]])

    expected, expected_gradient = with_gradient(theirs)
    value, gradient = with_gradient(lambda scores, n: ours(name, scores, targets[n : n + 1], options))
    torch.testing.assert_close(value * factor, expected)
    torch.testing.assert_close(gradient * factor, expected_gradient, rtol=1e-4, atol=1e-6)


def test_sentence_transformers_averages_tied_ranks_as_we_do() -> None:
    peer = sentence_transformers_losses()
    targets = torch.tensor([3.0, 1, 1, 2, 0, 0, 0, 3, 1, 2, 2, 2])
    theirs = peer.ADRMSELoss(Echo(SCORES[:1]))([["query"], [[str(n) for n in range(DEPTH)]]], [targets])
    torch.testing.assert_close(theirs, ours("adr_mse", SCORES[:1], targets[None], {}))


def test_sentence_transformers_lambdarank_with_a_cut_off_is_another() -> None:
    """With k = 1, theirs weighs a swap of places 1 and r by 1 - 1 / log2(1 + r), though nDCG@1 sees place 1 alone."""
    peer = sentence_transformers_losses()
    scores, targets = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    settings = {"weighting_scheme": peer.LambdaRankScheme(), "k": 1, "reduction_log": "natural"}
    theirs = peer.LambdaLoss(Echo(scores), **settings)([["query"], [["0", "1"]]], [targets[0]])
    torch.testing.assert_close(
        theirs / (1 - 1 / torch.log2(torch.tensor(3.0))), ours("lambdarank", scores, targets, {"k": 1})
    )
