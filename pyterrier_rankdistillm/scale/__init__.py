"""The same scoring on Ray Data: on every core and GPU of one machine, or of many."""

from ..errors import WorkerError
from .estimate import Estimate, estimate_rerank
from .rerank import rerank_dataset

__all__ = ["Estimate", "WorkerError", "estimate_rerank", "rerank_dataset"]
