"""Progress bars, drawn where somebody watches."""

from __future__ import annotations

import os
import sys
from typing import Any

import pyterrier as pt
import tqdm

DELAY = 2.0
"""Seconds before a bar that nobody asked for is drawn."""


def bar(verbose: bool | None, **options: Any) -> Any:
    """A progress bar.

    Args:
        verbose: True draws it, False does not. None draws it in a terminal or a notebook, once the work has taken two
            seconds, unless it is part of work that has a bar; never where stderr is a file or a pipe.
        **options: As for ``tqdm``.
    """
    if verbose is None:
        return pt.tqdm(**options, delay=DELAY, disable=not watched() or _is_inner())
    return pt.tqdm(**options, disable=not verbose)


def watched() -> bool:
    """Whether somebody watches: stderr is a terminal, or this is a notebook. ``TQDM_DISABLE=1`` says no."""
    if os.environ.get("TQDM_DISABLE", "0") not in ("", "0"):
        return False
    return _in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def _is_inner() -> bool:
    """Whether another bar is being drawn."""
    return any(not other.disable for other in list(getattr(tqdm.tqdm, "_instances", ())))
