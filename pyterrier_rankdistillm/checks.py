"""What an argument has to be, asked in one way everywhere."""

from __future__ import annotations

import operator
from typing import Any


def whole(value: Any) -> Any:
    """A whole number of any kind (numpy's too) as an int; anything else, also True and 5.0, as it is."""
    if isinstance(value, bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def is_whole(value: Any, *, least: int) -> bool:
    """Whether something is a whole number (of numpy's too) and at least ``least``."""
    number = whole(value)
    return isinstance(number, int) and not isinstance(number, bool) and number >= least
