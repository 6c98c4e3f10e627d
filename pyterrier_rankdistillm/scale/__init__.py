"""The same scoring on Ray Data: on every core and GPU of one machine, or of many."""

from .estimate import Estimate, estimate_rerank
from .rerank import rerank_dataset
from .workers import WorkerError

__all__ = ["Estimate", "WorkerError", "estimate_rerank", "rerank_dataset"]
