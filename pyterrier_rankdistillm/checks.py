"""Checks of arguments, the same everywhere."""

from __future__ import annotations

import operator
from typing import Any


def whole(value: Any) -> Any:
    """A whole number of any kind (including numpy's) as an int; anything else, including True and 5.0, unchanged."""
    if isinstance(value, bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def is_whole(value: Any, *, least: int) -> bool:
    """Whether something is a whole number (including numpy's) of at least ``least``."""
    number = whole(value)
    return isinstance(number, int) and not isinstance(number, bool) and number >= least
