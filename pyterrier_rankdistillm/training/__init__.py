"""Training cross-encoders: a run with targets in, a trained re-ranker out."""

from ..errors import TrainingDataError
from .estimators import Distillation, FineTuning
from .losses import (
    Losses,
    adr_mse,
    approx_mrr,
    approx_ndcg,
    bce,
    kl_divergence,
    lambdarank,
    lce,
    list_mle,
    list_net,
    margin_mse,
    mse,
    pearson,
    ranknet,
)
from .record import Training
from .sampling import Sampling
from .settings import RECIPES, Settings

__all__ = [
    "RECIPES",
    "Distillation",
    "FineTuning",
    "Losses",
    "Sampling",
    "Settings",
    "Training",
    "TrainingDataError",
    "adr_mse",
    "approx_mrr",
    "approx_ndcg",
    "bce",
    "kl_divergence",
    "lambdarank",
    "lce",
    "list_mle",
    "list_net",
    "margin_mse",
    "mse",
    "pearson",
    "ranknet",
]
