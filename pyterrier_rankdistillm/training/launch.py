"""What ``torchrun`` and ``accelerate launch`` say about the processes that train together."""

from __future__ import annotations

import os


def processes() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one that writes files."""
    return os.environ.get("RANK", "0") == "0"
