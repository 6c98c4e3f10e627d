"""Re-rank passages with the Rank-DistiLLM cross-encoders in PyTerrier pipelines (Schlatt et al., ECIR 2025)."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING

from .errors import (
    CheckpointError,
    DataFileError,
    DownloadError,
    InputError,
    JavaError,
    KeptWorkError,
    OrderWarning,
    PrecisionWarning,
    RankDistillmError,
    RankingError,
    ReproductionError,
    RunFileError,
    ShardError,
    TeacherWarning,
    TrainingDataError,
    WorkerError,
)
from .query_language import RewrittenQueryWarning

if TYPE_CHECKING:
    from . import reproduction, runs, scale, training
    from .reproduction import Reproduction, reproduce
    from .reranker import CrossEncoderReRanker, MonoElectra, MonoElectraReRanker, TruncationWarning
    from .runs.kept import KeptWorkWarning
    from .scale import rerank_dataset
    from .scoring.checkpoint import Checkpoint
    from .set_encoder import LongListWarning, SetEncoderReRanker
    from .training import Distillation, FineTuning
    from .viewer import RankingView, view_rankings

__version__ = version("pyterrier-rankdistillm")

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CrossEncoderReRanker",
    "DataFileError",
    "Distillation",
    "DownloadError",
    "FineTuning",
    "InputError",
    "JavaError",
    "KeptWorkError",
    "KeptWorkWarning",
    "LongListWarning",
    "MonoElectra",
    "MonoElectraReRanker",
    "OrderWarning",
    "PrecisionWarning",
    "RankDistillmError",
    "RankingError",
    "RankingView",
    "Reproduction",
    "ReproductionError",
    "RewrittenQueryWarning",
    "RunFileError",
    "SetEncoderReRanker",
    "ShardError",
    "TeacherWarning",
    "TrainingDataError",
    "TruncationWarning",
    "WorkerError",
    "reproduce",
    "reproduction",
    "rerank_dataset",
    "runs",
    "scale",
    "training",
    "view_rankings",
]

# Importing the package imports neither torch nor pyterrier: names are resolved when they are first used.
_HOME = {
    "Checkpoint": ".scoring.checkpoint",
    "CrossEncoderReRanker": ".reranker",
    "Distillation": ".training",
    "FineTuning": ".training",
    "KeptWorkWarning": ".runs.kept",
    "LongListWarning": ".set_encoder",
    "MonoElectra": ".reranker",
    "MonoElectraReRanker": ".reranker",
    "RankingView": ".viewer",
    "Reproduction": ".reproduction",
    "SetEncoderReRanker": ".set_encoder",
    "TruncationWarning": ".reranker",
    "reproduce": ".reproduction",
    "rerank_dataset": ".scale",
    "view_rankings": ".viewer",
}
_ROOMS = ("reproduction", "runs", "scale", "training")


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
