"""Which pairs are encoded together."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def plan_batches(lengths: NDArray[np.int64], batch_tokens: int, lanes: int = 1) -> list[NDArray[np.int64]]:
    """Groups pairs of similar length, so that there is little padding.

    Args:
        lengths: Number of tokens of each pair, shape (pairs,).
        batch_tokens: Limit of a batch: its number of pairs times the length of its longest pair. A pair that is longer
            than the limit is a batch by itself.
        lanes: Number of batches that are computed at the same time. Their number is a multiple of it where it can be,
            and they are as equal as can be, so that no lane waits for the others at the end.

    Returns:
        Positions of the pairs of each batch. Every pair is in exactly one batch. The longest come first, so that
        running out of memory shows at once and not after an hour.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order].tolist()
    starts = _starts(ordered, batch_tokens)
    if lanes > 1:
        wanted = math.ceil(len(starts) / lanes) * lanes
        # The smallest limit with so few batches, by bisection: a smaller limit never gives fewer.
        too_low, limit = 0, batch_tokens
        while limit - too_low > 1:
            middle = (too_low + limit) // 2
            tried = _starts(ordered, middle)
            too_low, limit, starts = (too_low, middle, tried) if len(tried) <= wanted else (middle, limit, starts)
    return np.split(order, starts[1:]) if starts else []


REDUCED_MULTIPLE = 16
"""What a CPU's batches in less than float32 are padded to a multiple of. oneDNN makes code for each number of tokens (6
ms for a product that then takes 1), and attention in bfloat16 is fastest with whole tiles. In float32, where products
take longer, neither gained (benchmarks/README.md)."""


def rounded_width(longest: int, multiple: int, most: int | None) -> int:
    """Tokens that a batch is padded to.

    Args:
        longest: Tokens of its longest pair.
        multiple: What the width is rounded up to a multiple of.
        most: The encoder's number of positions; None: there is no limit.
    """
    rounded = -(-longest // multiple) * multiple
    return max(longest, min(rounded, most or rounded))


def _starts(ordered: list[int], batch_tokens: int) -> list[int]:
    """Where batches start in descending lengths, each with as many pairs as the limit allows."""
    starts, start = [], 0
    while start < len(ordered):
        starts.append(start)
        start += max(1, batch_tokens // max(1, ordered[start]))
    return starts
