"""Losses that train a re-ranker: pure functions of a batch of lists, and their choice by name.

Every loss has the signature ``loss(scores, targets, mask, *, options)`` and is computed in float32:

- ``scores``: the student's logits, shape (queries, depth), any float dtype;
- ``targets``: what they are compared with, same shape, higher is more relevant, finite where ``mask`` is True. They are
  labels, a teacher's scores, or its negated ranks: ``Kind`` says which a loss needs;
- ``mask``: bool, same shape, True for documents, False for padding. Values under the padding have no influence.

It returns one loss per list, shape (queries,), at least 0 and lower for better scores. A list from which nothing can be
learned (no pair, no relevant document, a single document) gives 0 with a gradient of 0; but ``mse`` and ``bce``, which
are pointwise, learn from each document by itself. The caller takes the mean over the lists, so that each list has the
same weight, whatever its length. The order of the documents has no influence. Ranks count from 1, and documents with
equal targets ("ties") share the average of their ranks. In the formulas s and t are scores and targets, i and j
documents of a list, and log is the natural logarithm.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import is_whole
from ..errors import InputError

Kind = Literal["relevance", "order", "values"]
"""What the targets of a loss must be: relevance labels (relevant where positive), values of which only the order
counts, or scores of which the differences count. Labels are targets of every kind; a teacher's ranks give the order."""

Discount = Literal["log2", "reciprocal", "none"]
Gain = Literal["exponential", "linear", "rank"]
Relevant = Literal["best", "positive"]

Spec: TypeAlias = "str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | Losses"
"""A loss by name, with its options and weight (``{"name": "adr_mse", "discount": "none", "weight": 0.5}``), or several
whose weighted sum is wanted."""

_FAR = -1e30  # stands for minus infinity, which would make gradients NaN
_TINY = torch.finfo(torch.float32).tiny  # stands for 0 where it divides 0


def lce(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Localised contrastive estimation (Gao et al., 2021), the InfoNCE of a list (van den Oord et al., 2018).

    The mean over the relevant documents i (t_i > 0) of ``-log(exp s_i / (exp s_i + sum over non-relevant j of
    exp s_j))``. Relevant documents do not compete with each other; targets count only as positive or not. 0 without a
    relevant or without a non-relevant document.

    Raises:
        ValueError: Shapes differ.

    https://arxiv.org/abs/2101.08751, https://arxiv.org/abs/1807.03748
    """
    scores, targets, mask = _checked("lce", scores, targets, mask)
    relevant = mask & (targets > 0)
    others = scores.masked_fill(~mask | relevant, _FAR).logsumexp(dim=-1, keepdim=True)
    return _mean(F.softplus(others - scores), relevant)


def ranknet(scores: Tensor, targets: Tensor, mask: Tensor, *, teacher_temperature: float | None = None) -> Tensor:
    """RankNet (Burges et al., 2005).

    The mean over the ordered pairs (t_i > t_j) of ``softplus(-(s_i - s_j))``. Ties are not pairs; 0 without a pair.

    Args:
        scores: See the module.
        targets: Of kind "order"; of kind "values" with ``teacher_temperature``.
        mask: See the module.
        teacher_temperature: T, above 0: the targets become probabilities ``p = sigmoid((t_i - t_j) / T)``, and the
            loss the mean over all pairs of their cross-entropy with ``sigmoid(s_i - s_j)``. Ties then have p = 1/2,
            which pulls their scores together. Default: None, hard pairs.

    Raises:
        ValueError: Shapes differ, or the temperature is not above 0.

    https://doi.org/10.1145/1102351.1102363
    """
    if teacher_temperature is not None:
        _check_positive("ranknet", "teacher_temperature", teacher_temperature)
    scores, targets, mask = _checked("ranknet", scores, targets, mask)
    margins = _differences(scores)
    if teacher_temperature is None:
        return _mean(F.softplus(-margins), _ordered_pairs(targets, mask))
    probabilities = torch.sigmoid(_differences(targets) / teacher_temperature)
    return _mean(F.softplus(margins) - probabilities * margins, _pairs(mask))  # (i, j) costs the same as (j, i)


def adr_mse(
    scores: Tensor, targets: Tensor, mask: Tensor, *, discount: Discount = "log2", temperature: float = 1.0
) -> Tensor:
    """Approximate discounted rank mean squared error (Schlatt et al., 2025).

    The mean over documents of ``d(r_i) (r_i - a_i)^2``, with r the ranks by target and a the approximate ranks by score
    (Qin et al., 2010), ``a_i = 1 + sum over j != i of sigmoid((s_j - s_i) / T)``. Ties share their average rank, which
    pulls their scores together.

    Args:
        scores: See the module.
        targets: Of kind "order".
        mask: See the module.
        discount: d(r): "log2" (``1 / log2(r + 1)``), "reciprocal" (``1 / r``) or "none" (1).
        temperature: T, above 0: the lower, the closer approximate ranks are to ranks, and the smaller the gradients.

    Raises:
        ValueError: Shapes differ, there is no such discount, or the temperature is not above 0.

    https://arxiv.org/abs/2405.07920
    """
    _check_choice("adr_mse", "discount", discount, get_args(Discount))
    _check_positive("adr_mse", "temperature", temperature)
    scores, targets, mask = _checked("adr_mse", scores, targets, mask)
    ranks = _ranks(targets, mask)
    errors = (ranks - _approximate_ranks(scores, mask, temperature)).square()
    if discount == "log2":
        errors = errors / torch.log2(ranks + 1)
    elif discount == "reciprocal":
        errors = errors / ranks
    return _mean(errors, mask)


def margin_mse(
    scores: Tensor, targets: Tensor, mask: Tensor, *, margin: Literal["teacher"] | float = "teacher"
) -> Tensor:
    """Margin mean squared error (Hofstätter et al., 2020).

    The mean over the ordered pairs (t_i > t_j) of ``(s_i - s_j - m)^2``. Ties are not pairs; 0 without a pair.

    Args:
        scores: See the module.
        targets: Of kind "values"; of kind "order" with a constant margin.
        mask: See the module.
        margin: m: "teacher" (``t_i - t_j``), or one number above 0 for all pairs.

    Raises:
        ValueError: Shapes differ, or the margin is neither "teacher" nor a number above 0.

    https://arxiv.org/abs/2010.02666
    """
    if margin != "teacher" and not _is_positive(margin):
        raise ValueError(f"margin_mse: margin must be 'teacher' or a number above 0, got {margin!r}.")
    scores, targets, mask = _checked("margin_mse", scores, targets, mask)
    wanted = _differences(targets) if isinstance(margin, str) else margin
    return _mean((_differences(scores) - wanted).square(), _ordered_pairs(targets, mask))


def kl_divergence(
    scores: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    teacher_temperature: float = 1.0,
    student_temperature: float = 1.0,
) -> Tensor:
    """Kullback-Leibler divergence of the student's distribution from the teacher's (Hinton et al., 2015).

    ``sum over i of p_i (log p_i - log q_i)`` with ``p = softmax(t / T)`` and ``q = softmax(s / S)`` over the documents
    of a list. Ties have equal probabilities, which pulls their scores together.

    Args:
        scores: See the module.
        targets: Of kind "values".
        mask: See the module.
        teacher_temperature: T, above 0: the higher, the more even the teacher's distribution.
        student_temperature: S, above 0. The loss is not multiplied by temperatures; use weights.

    Raises:
        ValueError: Shapes differ, or a temperature is not above 0.

    https://arxiv.org/abs/1503.02531
    """
    _check_positive("kl_divergence", "teacher_temperature", teacher_temperature)
    _check_positive("kl_divergence", "student_temperature", student_temperature)
    scores, targets, mask = _checked("kl_divergence", scores, targets, mask)
    wanted = _log_softmax(targets / teacher_temperature, mask)
    given = _log_softmax(scores / student_temperature, mask)
    return (wanted.exp() * (wanted - given) * mask).sum(dim=-1)


def list_net(scores: Tensor, targets: Tensor, mask: Tensor, *, teacher_temperature: float = 1.0) -> Tensor:
    """ListNet with top-one probabilities (Cao et al., 2007).

    ``-sum over i of p_i log q_i`` with ``p = softmax(t / T)`` and ``q = softmax(s)`` over the documents of a list: the
    Kullback-Leibler divergence plus the entropy of p, with the same gradients. Ties have equal probabilities, which
    pulls their scores together.

    Args:
        scores: See the module.
        targets: Of kind "values".
        mask: See the module.
        teacher_temperature: T, above 0: the higher, the more even p.

    Raises:
        ValueError: Shapes differ, or the temperature is not above 0.

    https://doi.org/10.1145/1273496.1273513
    """
    _check_positive("list_net", "teacher_temperature", teacher_temperature)
    scores, targets, mask = _checked("list_net", scores, targets, mask)
    wanted = _log_softmax(targets / teacher_temperature, mask).exp()
    return -(wanted * _log_softmax(scores, mask) * mask).sum(dim=-1)


def list_mle(scores: Tensor, targets: Tensor, mask: Tensor, *, position_aware: bool = False) -> Tensor:
    """ListMLE (Xia et al., 2008), and its position-aware form (Lan et al., 2014).

    The mean over documents of ``log(sum over j with t_j <= t_i of exp s_j) - s_i``: the negative log-likelihood of
    drawing the documents one by one in the order of the targets. (The papers take the sum.) Each of several ties is
    drawn from all of them, which pulls their scores together.

    Args:
        scores: See the module.
        targets: Of kind "order".
        mask: See the module.
        position_aware: Weight the documents by ``2^(n - r) - 1``, with n documents and r the rank by target: each
            position has about half the weight of the one before.

    Raises:
        ValueError: Shapes differ, or ``position_aware`` is not a bool.

    https://doi.org/10.1145/1390156.1390306, https://auai.org/uai2014/proceedings/individuals/164.pdf
    """
    if not isinstance(position_aware, bool):
        raise ValueError(f"list_mle: position_aware must be True or False, got {position_aware!r}.")
    scores, targets, mask = _checked("list_mle", scores, targets, mask)
    remaining = mask[:, None, :] & (_differences(targets) >= 0)  # (queries, i, j): j is not drawn before i
    surprise = scores[:, None, :].masked_fill(~remaining, _FAR).logsumexp(dim=-1) - scores
    if not position_aware:
        return _mean(surprise, mask)
    documents = mask.sum(dim=-1, keepdim=True)
    weights = (torch.exp2(-_ranks(targets, mask)) - torch.exp2(-documents.float())) * mask  # over 2^n, which overflows
    return (weights * surprise).sum(dim=-1) / weights.sum(dim=-1).clamp(min=_TINY)


def lambdarank(
    scores: Tensor, targets: Tensor, mask: Tensor, *, k: int | None = None, gain: Gain = "exponential"
) -> Tensor:
    """LambdaRank for nDCG (Burges et al., 2006; as a loss: Wang et al., 2018).

    The sum over the pairs with g_i > g_j of ``|change of nDCG@k if i and j swapped places| softplus(-(s_i - s_j))``.
    Places are those by the current scores (for equal scores, the document with the lower target comes first); no
    gradient flows through them. Ties are not pairs; 0 without a pair.

    Args:
        scores: See the module.
        targets: Of kind "relevance"; of kind "order" with ``gain="rank"``.
        mask: See the module.
        k: nDCG's cut-off, at least 1; default: None, the whole list.
        gain: g: "exponential" (``2^t - 1``) or "linear" (t) of labels, with labels below 0 counting as 0; or "rank"
            (``1 / r``, with r the rank by target) for a teacher's order instead of labels.

    Raises:
        ValueError: Shapes differ, k is not a whole number above 0, or there is no such gain.

    https://papers.nips.cc/paper/2971, https://doi.org/10.1145/3269206.3271784
    """
    if k is not None and not is_whole(k, least=1):
        raise ValueError(f"lambdarank: k must be None or a number of documents, at least 1, got {k!r}.")
    _check_choice("lambdarank", "gain", gain, get_args(Gain))
    scores, targets, mask = _checked("lambdarank", scores, targets, mask)
    gains = _gains(targets, mask, gain)
    places = _ranks(scores, mask, lower_first=targets)
    discounts = (1 / torch.log2(1 + places)).masked_fill(places > (k or math.inf), 0.0)
    changes = _differences(gains).clamp(min=0) * _differences(discounts).abs() * _pairs(mask)
    changes = changes / _ideal_dcg(gains, k)[:, None, None]
    return (changes * F.softplus(-_differences(scores))).sum(dim=(-2, -1))


def approx_ndcg(
    scores: Tensor, targets: Tensor, mask: Tensor, *, temperature: float = 1.0, gain: Gain = "exponential"
) -> Tensor:
    """ApproxNDCG (Qin et al., 2010).

    ``1 - nDCG`` of the approximate ranks ``a_i = 1 + sum over j != i of sigmoid((s_j - s_i) / T)``, which is
    ``1 - (sum over i of g_i / log2(1 + a_i)) / (the same with the best ranks)``. Ties have equal gains. 0 where all
    gains are equal, since nDCG is then the same for all rankings.

    Args:
        scores: See the module.
        targets: Of kind "relevance"; of kind "order" with ``gain="rank"``.
        mask: See the module.
        temperature: T, above 0: the lower, the closer approximate ranks are to ranks, and the smaller the gradients.
        gain: g, as for ``lambdarank``.

    Raises:
        ValueError: Shapes differ, the temperature is not above 0, or there is no such gain.

    https://doi.org/10.1007/s10791-009-9124-x
    """
    _check_positive("approx_ndcg", "temperature", temperature)
    _check_choice("approx_ndcg", "gain", gain, get_args(Gain))
    scores, targets, mask = _checked("approx_ndcg", scores, targets, mask)
    gains = _gains(targets, mask, gain)
    dcg = (gains / torch.log2(1 + _approximate_ranks(scores, mask, temperature))).sum(dim=-1)
    differ = (_differences(gains) * _pairs(mask) > 0).any(dim=-1).any(dim=-1)
    return (1 - dcg / _ideal_dcg(gains, None)).masked_fill(~differ, 0.0)


def approx_mrr(
    scores: Tensor, targets: Tensor, mask: Tensor, *, temperature: float = 1.0, relevant: Relevant = "best"
) -> Tensor:
    """ApproxMRR: the reciprocal rank by the approximate ranks of Qin et al. (2010).

    ``1 - max over relevant i of 1 / a_i`` with ``a_i = 1 + sum over j != i of sigmoid((s_j - s_i) / T)``. 0 without a
    relevant or without a non-relevant document.

    Args:
        scores: See the module.
        targets: Of kind "order"; of kind "relevance" with ``relevant="positive"``.
        mask: See the module.
        temperature: T, above 0: the lower, the closer approximate ranks are to ranks, and the smaller the gradients.
        relevant: "best": the documents with the highest target; "positive": those with t_i > 0.

    Raises:
        ValueError: Shapes differ, the temperature is not above 0, or ``relevant`` is something else.

    https://doi.org/10.1007/s10791-009-9124-x
    """
    _check_positive("approx_mrr", "temperature", temperature)
    _check_choice("approx_mrr", "relevant", relevant, get_args(Relevant))
    scores, targets, mask = _checked("approx_mrr", scores, targets, mask)
    if relevant == "best":
        targets = (targets == targets.masked_fill(~mask, _FAR).amax(dim=-1, keepdim=True)).float()
    sought = mask & (targets > 0)
    usable = sought.any(dim=-1) & (mask & ~sought).any(dim=-1)
    reciprocal = (sought / _approximate_ranks(scores, mask, temperature)).amax(dim=-1)
    return (1 - reciprocal).masked_fill(~usable, 0.0)


def pearson(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """One minus Pearson's correlation of scores and targets over the documents of a list: between 0 and 2.

    Targets of kind "values". Ties are not treated specially. If all targets are equal there is no correlation, and the
    loss is 0. If all scores are equal the correlation counts as 0, and the gradient points towards the targets.

    Raises:
        ValueError: Shapes differ.
    """
    scores, targets, mask = _checked("pearson", scores, targets, mask)
    scores, targets = _centred(scores, mask), _centred(targets, mask)
    products = (scores * targets).sum(dim=-1)
    squares, target_squares = scores.square().sum(dim=-1), targets.square().sum(dim=-1)
    lengths = squares.masked_fill(squares == 0, 1.0).sqrt()  # a root has no gradient at 0
    target_lengths = target_squares.masked_fill(target_squares == 0, 1.0).sqrt()
    return (1 - products / lengths / target_lengths).masked_fill(target_squares == 0, 0.0)


def mse(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of the scores: pointwise distillation, by matching logits (Hinton et al., 2015).

    The mean over the documents of ``(s_i - t_i)^2``. The student's scores become those of the teacher, its scale and
    offset included, so a teacher with scores of another kind (BM25's, probabilities) is better learnt by ``pearson``.

    Raises:
        ValueError: Shapes differ.

    https://arxiv.org/abs/1503.02531
    """
    scores, targets, mask = _checked("mse", scores, targets, mask)
    return _mean((scores - targets).square(), mask)


def bce(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of the logits: pointwise training on labels (Nogueira and Cho, 2019).

    The mean over the documents of ``log(1 + exp(-s_i))`` for relevant ones (t_i > 0), ``log(1 + exp(s_i))`` for others.

    Raises:
        ValueError: Shapes differ.

    https://arxiv.org/abs/1901.04085
    """
    scores, targets, mask = _checked("bce", scores, targets, mask)
    return _mean(F.softplus(torch.where(targets > 0, -scores, scores)), mask)


@dataclass(frozen=True)
class Variant:
    """Options with which a loss needs another kind of targets.

    Args:
        needs: The kind of targets that it then needs.
        option: The options, in words.
        holds: Whether given options are these.
    """

    needs: Kind
    option: str
    holds: Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Loss:
    """A loss that can be chosen by name.

    Args:
        function: A loss of this module.
        needs: The kind of targets that it needs.
        variant: Options with which it needs another kind.
    """

    function: Callable[..., Tensor]
    needs: Kind
    variant: Variant | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The names of its options, with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


_BY_RANK = Variant("order", "gain='rank'", lambda options: options["gain"] == "rank")

LOSSES: dict[str, Loss] = {
    "lce": Loss(lce, "relevance"),
    "ranknet": Loss(
        ranknet, "order", Variant("values", "a teacher_temperature", lambda o: o["teacher_temperature"] is not None)
    ),
    "adr_mse": Loss(adr_mse, "order"),
    "margin_mse": Loss(
        margin_mse, "values", Variant("order", "a number as margin", lambda options: options["margin"] != "teacher")
    ),
    "kl_divergence": Loss(kl_divergence, "values"),
    "list_net": Loss(list_net, "values"),
    "list_mle": Loss(list_mle, "order"),
    "lambdarank": Loss(lambdarank, "relevance", _BY_RANK),
    "approx_ndcg": Loss(approx_ndcg, "relevance", _BY_RANK),
    "approx_mrr": Loss(
        approx_mrr, "order", Variant("relevance", "relevant='positive'", lambda o: o["relevant"] == "positive")
    ),
    "pearson": Loss(pearson, "values"),
    "mse": Loss(mse, "values"),
    "bce": Loss(bce, "relevance"),
}
"""The losses by name."""


@dataclass(frozen=True)
class Term:
    """One summand of a weighted sum of losses.

    Args:
        name: Its name in ``LOSSES``.
        weight: The factor that it is multiplied by, above 0.
        options: All its options, as (name, value), defaults included.
    """

    name: str
    weight: float
    options: tuple[tuple[str, Any], ...]

    @property
    def needs(self) -> Kind:
        """The kind of its targets."""
        loss = LOSSES[self.name]
        return loss.variant.needs if loss.variant and loss.variant.holds(dict(self.options)) else loss.needs

    def __str__(self) -> str:
        """Weight, name and options, without defaults."""
        weight = "" if self.weight == 1 else f"{self.weight:g}·"
        defaults = LOSSES[self.name].options
        changed = ", ".join(f"{name}={value}" for name, value in self.options if value != defaults[name])
        return f"{weight}{self.name}" + (f"({changed})" if changed else "")


@dataclass(frozen=True)
class Losses:
    """A weighted sum of losses: ``Losses.of(["lce", {"name": "adr_mse", "discount": "none", "weight": 0.5}])``.

    Args:
        terms: At least one; see ``of``.
    """

    terms: tuple[Term, ...]

    @classmethod
    def of(cls, spec: Spec) -> Losses:
        """The losses that a user specifies.

        Args:
            spec: A name in ``LOSSES``; or a mapping with ``name``, the loss's options, and ``weight`` (above 0,
                default: 1); or a sequence of those, which are added up; or ``Losses``, which are returned as they are.

        Raises:
            ValueError: Names, options or values are invalid. The message lists all of them.
        """
        if isinstance(spec, Losses):
            return spec
        parts = [spec] if isinstance(spec, str | Mapping) or not isinstance(spec, Sequence) else spec
        read = [_read_term(part) for part in parts]
        problems = [problem for _, found in read for problem in found]
        if not read:
            problems = [f"loss must be at least one of {', '.join(LOSSES)}, got {spec!r}."]
        if problems:
            raise InputError("Losses", " ".join(problems))
        return cls(tuple(term for term, _ in read if term is not None))

    @property
    def spec(self) -> list[dict[str, Any]]:
        """The argument for ``of`` that gives these losses, with every option and weight, as JSON values."""
        return [{"name": term.name, "weight": term.weight, **dict(term.options)} for term in self.terms]

    @property
    def needs(self) -> frozenset[Kind]:
        """The kinds of targets that must be given."""
        return frozenset(term.needs for term in self.terms)

    def check(self, kinds: Collection[Kind]) -> None:
        """Raises an InputError, which says what to do, where a loss needs targets of none of these kinds."""
        had = " and ".join(_MEANING[kind] for kind in get_args(Kind) if kind in kinds) or "none"
        problems = []
        for term in self.terms:
            if term.needs in kinds:
                continue
            variant = LOSSES[term.name].variant
            remedy = "Choose another loss."
            if variant is not None and variant.needs in kinds:
                remedy = f"Give it {variant.option}, or choose another loss."
            elif LOSSES[term.name].needs in kinds:
                remedy = f"Leave out {variant.option if variant else ''}, or choose another loss."
            problems.append(f"targets of {term} must be {_MEANING[term.needs]}, got {had}. {remedy}")
        if problems:
            raise InputError("Losses", " ".join(problems))

    def __call__(self, scores: Tensor, targets: Mapping[Kind, Tensor], mask: Tensor) -> Tensor:
        """The weighted sum of the losses.

        Args:
            scores: Logits, shape (queries, depth).
            targets: By kind, each of shape (queries, depth); those that no loss needs are ignored.
            mask: Bool, shape (queries, depth), True for documents.

        Returns:
            One loss per list, float32, shape (queries,).

        Raises:
            ValueError: Targets of a needed kind are missing, or shapes differ.
        """
        self.check(targets.keys())
        losses = [
            term.weight * LOSSES[term.name].function(scores, targets[term.needs], mask, **dict(term.options))
            for term in self.terms
        ]
        return torch.stack(losses).sum(dim=0)

    def __str__(self) -> str:
        """A short name for tables."""
        return " + ".join(map(str, self.terms))


_MEANING: dict[Kind, str] = {"relevance": "relevance labels", "order": "an order", "values": "scores"}


def _read_term(spec: object) -> tuple[Term | None, list[str]]:
    """A loss that a user specifies, or what is wrong with it."""
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        return None, [f"loss must be a name, a mapping with a name, or several of them, got {spec!r}."]
    options = {**spec}
    name, weight = options.pop("name", None), options.pop("weight", 1.0)
    if not isinstance(name, str) or name not in LOSSES:
        return None, [f"name of a loss must be one of {', '.join(LOSSES)}, got {name!r}."]
    problems = []
    if not _is_positive(weight):
        problems.append(f"weight of {name} must be a number above 0, got {weight!r}. Leave out a loss with weight 0.")
    loss = LOSSES[name]
    unknown = [option for option in options if option not in loss.options]
    if unknown:
        known = " or ".join(["weight", *loss.options])
        problems.append(f"option of {name} must be {known}, got {', '.join(map(repr, unknown))}.")
    known_options = {option: options.get(option, default) for option, default in loss.options.items()}
    try:  # the loss knows the rules of its options
        loss.function(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), **known_options)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        return None, problems
    return Term(name, float(weight), tuple(known_options.items())), []


def _checked(who: str, scores: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and targets in float32, 0 under the padding, and the mask."""
    if scores.ndim != 2 or not scores.is_floating_point():
        raise ValueError(
            f"{who}: scores must be floats of shape (queries, depth), got {scores.dtype} of {tuple(scores.shape)}."
        )
    for name, tensor in (("targets", targets), ("mask", mask)):
        if tensor.shape != scores.shape:
            raise ValueError(
                f"{who}: {name} must be of the shape of scores, {tuple(scores.shape)}, got {tuple(tensor.shape)}."
            )
    if mask.dtype != torch.bool:
        raise ValueError(f"{who}: mask must be of dtype torch.bool, got {mask.dtype}. True stands for a document.")
    return scores.float().masked_fill(~mask, 0.0), targets.float().masked_fill(~mask, 0.0), mask


def _check_positive(who: str, name: str, value: object) -> None:
    if not _is_positive(value):
        raise ValueError(f"{who}: {name} must be a number above 0, got {value!r}.")


def _check_choice(who: str, name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{who}: {name} must be one of {', '.join(choices)}, got {value!r}.")


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _differences(values: Tensor) -> Tensor:
    """``[:, i, j]`` is value i minus value j: (queries, depth) -> (queries, depth, depth)."""
    return values[:, :, None] - values[:, None, :]


def _pairs(mask: Tensor) -> Tensor:
    """Which (i, j) are two different documents, shape (queries, depth, depth)."""
    return mask[:, :, None] & mask[:, None, :] & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)


def _ordered_pairs(targets: Tensor, mask: Tensor) -> Tensor:
    """Which (i, j) are documents with t_i > t_j, shape (queries, depth, depth)."""
    return _pairs(mask) & (_differences(targets) > 0)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """The mean of some values of each list, or 0 without any; values elsewhere must be finite. Shape (queries,)."""
    values, where = values.flatten(1), where.flatten(1)
    return (values * where).sum(dim=-1) / where.sum(dim=-1).clamp(min=1)


def _ranks(values: Tensor, mask: Tensor, lower_first: Tensor | None = None) -> Tensor:
    """Ranks from 1, the highest value first; ties share the average of theirs, unless ``lower_first`` orders them."""
    ahead, tied = _differences(values) < 0, _differences(values) == 0  # (queries, i, j): j is ahead of i
    if lower_first is not None:
        ahead = ahead | (tied & (_differences(lower_first) > 0))
        tied = tied & (_differences(lower_first) == 0)
    documents = mask[:, None, :]
    return (ahead & documents).sum(dim=-1) + ((tied & documents).sum(dim=-1) + 1) / 2


def _approximate_ranks(scores: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """One plus the number of others ahead, where each counts between 0 and 1, by how far it is ahead."""
    ahead = torch.sigmoid(-_differences(scores) / temperature)  # (queries, i, j): j is ahead of i
    return 1 + (ahead * _pairs(mask)).sum(dim=-1)


def _gains(targets: Tensor, mask: Tensor, gain: Gain) -> Tensor:
    """Gains of nDCG, 0 under the padding; nDCG does not depend on their scale."""
    if gain == "rank":
        return mask / _ranks(targets, mask)
    labels = targets.clamp(min=0)
    if gain == "linear":
        return labels
    highest = labels.amax(dim=-1, keepdim=True)
    return torch.exp2(labels - highest) - torch.exp2(-highest)  # 2^label - 1, over 2^highest, which could overflow


def _ideal_dcg(gains: Tensor, k: int | None) -> Tensor:
    """DCG@k of the best ranking, but never 0, since it divides. Shape (queries,)."""
    places = torch.arange(1, gains.shape[1] + 1, device=gains.device)
    best = gains.sort(dim=-1, descending=True).values / torch.log2(1.0 + places)
    return best[:, :k].sum(dim=-1).clamp(min=_TINY)


def _log_softmax(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, _FAR).log_softmax(dim=-1)


def _centred(values: Tensor, mask: Tensor) -> Tensor:
    """Values minus their mean, 0 under the padding, and all exactly 0 where all are equal."""
    highest = values.masked_fill(~mask, _FAR).amax(dim=-1, keepdim=True).detach()  # does not change the result, but ...
    values = (values - highest) * mask  # ... the mean of equal values can be off by a rounding
    return (values - values.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp(min=1)) * mask
