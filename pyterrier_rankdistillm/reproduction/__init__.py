"""The paper's tables: TREC Deep Learning, TIREx and the ablations, measured against published."""

from ..errors import ReproductionError
from .catalogue import TABLES, Table, table
from .reproducing import reproduce
from .result import Reproduction

__all__ = ["TABLES", "Reproduction", "ReproductionError", "Table", "reproduce", "table"]
