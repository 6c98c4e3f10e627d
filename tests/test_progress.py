"""Bars: without being asked in a terminal and in a notebook, never in a log, none inside another."""

from __future__ import annotations

import io
import sys
import time
import types

import pandas as pd
import pytest
import tiny

from pyterrier_rankdistillm import MonoElectra, progress


class Stream(io.StringIO):
    """A stderr that is a terminal, or is not."""

    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


@pytest.mark.parametrize("place", ["terminal", "notebook", "log", "switched off"])
def test_who_watches_sees_a_bar(
    place: str, frame: pd.DataFrame, model: tiny.Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = types.SimpleNamespace(kernel=object() if place == "notebook" else None)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: kernel))  # type: ignore[arg-type]
    monkeypatch.setenv("TQDM_DISABLE", "1" if place == "switched off" else "0")
    monkeypatch.setattr(progress, "DELAY", 0.0)
    seen = {}
    for verbose in (None, True, False):
        monkeypatch.setattr(sys, "stderr", stream := Stream(tty=place in ("terminal", "switched off")))
        MonoElectra(model.folder, device="cpu", verbose=verbose)(frame)
        seen[verbose] = "pairs/s" in stream.getvalue()
    assert seen == {None: place in ("terminal", "notebook"), True: True, False: False}


def test_quick_work_and_inner_work_draw_none(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(tty=True)
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.bar(None, total=2) as quick:
        quick.update(2)
    assert stream.getvalue() == ""
    monkeypatch.setattr(progress, "DELAY", 0.05)
    with progress.bar(None, total=3, desc="outer", mininterval=0) as outer:
        for _ in range(3):
            with progress.bar(None, total=1, desc="inner", mininterval=0) as inner:
                time.sleep(0.06)
                inner.update()
            outer.update()
    assert "outer: 100%" in stream.getvalue()
    assert "inner" not in stream.getvalue()


def test_without_a_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert not progress.watched()
