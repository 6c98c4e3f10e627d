"""Checks of arguments, the same everywhere."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, TypeGuard


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


def is_text(value: Any) -> TypeGuard[str]:
    """Whether something is a string that can be written: one with a lone surrogate (half of an emoji) cannot."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def first_no_text(values: Sequence[Any]) -> int | None:
    """The place of the first value that is not a string that can be written."""
    try:
        "".join(values).encode()  # nearly always, and at the speed of a copy
    except (TypeError, UnicodeEncodeError):
        return next(place for place, value in enumerate(values) if not is_text(value))
    return None


def told(value: Any) -> str:
    """What is wrong with a value that should have been a string, for messages."""
    if value is None or str(value) in ("<NA>", "NaT") or (isinstance(value, float) and value != value):
        return "missing"
    if isinstance(value, str):
        return "empty" if not value else f"not valid Unicode (a lone surrogate): {value!r}"
    return f"not a string but {value!r}"
