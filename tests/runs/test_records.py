"""What a record says of the machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from pyterrier_rankdistillm.runs.records import hardware


def test_gpus_are_recorded_where_torch_sees_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "gpus" not in hardware()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    assert hardware()["gpus"] == ["GPU 0", "GPU 1"]


@pytest.mark.parametrize(
    ("cpuinfo", "processor"),
    [("vendor_id : A\nmodel name\t: A 64-Core: Two\n", "A 64-Core: Two"), ("", ""), (None, "arm")],
)
def test_the_processor_s_name_comes_from_linux_or_from_python(
    cpuinfo: str | None, processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(path: Path, **_: Any) -> str:
        assert path == Path("/proc/cpuinfo")
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    found = hardware()
    assert (found["processor"], found["cores"]) == (processor, os.cpu_count())
