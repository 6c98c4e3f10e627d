"""The paper's tables: TREC Deep Learning, TIREx and the ablations, measured against published."""

from .reproduce import reproduce
from .result import Reproduction

__all__ = ["Reproduction", "reproduce"]
