"""What a value is, found by a typed walk over all that it holds: values, code, files. Imports nothing of ours."""

from .secrecy import is_secret
from .trees import Difference, differences
from .walk import SAYS, Kind, Shape, Walk, framed_together

__all__ = ["SAYS", "Difference", "Kind", "Shape", "Walk", "differences", "framed_together", "is_secret"]
