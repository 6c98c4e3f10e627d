"""Software and hardware, for the record."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "pyterrier-rankdistillm", "python-terrier", "ir-measures", "pytrec_eval-terrier", "scipy", "statsmodels", "torch",
    "transformers", "tokenizers", "ir_datasets", "pandas", "numpy",
)  # fmt: skip


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that numbers depend on."""
    found = {package: _version_of(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **{package: v for package, v in found.items() if v is not None}}


def hardware() -> dict[str, Any]:
    """Processor, cores, and the GPUs that torch sees, where it is in use."""
    found: dict[str, Any] = {"machine": platform.machine(), "processor": _processor(), "cores": os.cpu_count()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return found


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
