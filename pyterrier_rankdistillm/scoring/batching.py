"""Which pairs are encoded together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def plan_batches(lengths: NDArray[np.int64], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Groups pairs of similar length, so that there is little padding.

    Args:
        lengths: Number of tokens of each pair, shape (pairs,).
        batch_tokens: Limit of a batch: its number of pairs times the length of its longest pair. A pair that is longer
            than the limit is a batch by itself.

    Returns:
        Positions of the pairs of each batch. Every pair is in exactly one batch. The longest come first, so that
        running out of memory shows at once and not after an hour.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches
