"""Re-rank passages with the Rank-DistiLLM cross-encoders in PyTerrier pipelines (Schlatt et al., ECIR 2025)."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .reproduction.reproduce import reproduce
    from .reproduction.result import Reproduction
    from .reranker import MonoElectra, MonoElectraReRanker, TruncationWarning
    from .scale.rerank import rerank_dataset
    from .scoring.checkpoint import Checkpoint
    from .scoring.files import CheckpointError
    from .training.estimators import Distillation, FineTuning

__version__ = version("pyterrier-rankdistillm")

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Distillation",
    "FineTuning",
    "MonoElectra",
    "MonoElectraReRanker",
    "Reproduction",
    "TruncationWarning",
    "reproduce",
    "rerank_dataset",
]

# Importing the package imports neither torch nor pyterrier: names are resolved when they are first used.
_HOME = {
    "Checkpoint": ".scoring.checkpoint",
    "CheckpointError": ".scoring.files",
    "Distillation": ".training.estimators",
    "FineTuning": ".training.estimators",
    "MonoElectra": ".reranker",
    "MonoElectraReRanker": ".reranker",
    "Reproduction": ".reproduction.result",
    "TruncationWarning": ".reranker",
    "reproduce": ".reproduction.reproduce",
    "rerank_dataset": ".scale.rerank",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
