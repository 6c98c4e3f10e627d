from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from server import Site, serving

from pyterrier_rankdistillm.runs import download


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(download, "_PATIENCE", 0.0)
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # of processes that are started
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as site:
        yield site
