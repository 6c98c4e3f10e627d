from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def _quick_collections() -> Iterator[None]:
    """Each training ends with a collection of garbage, which need not look at all modules again: half a second."""
    gc.freeze()
    yield
    gc.unfreeze()
