"""Software and hardware, for the record."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "pyterrier-rankdistillm", "python-terrier", "ir-measures", "pytrec_eval-terrier", "scipy", "statsmodels", "torch",
    "transformers", "tokenizers", "ir_datasets", "pandas", "numpy",
)  # fmt: skip
"""The packages that results depend on."""


def hardware() -> dict[str, Any]:
    """Processor, cores, and the GPUs that torch sees, if torch is in use."""
    found: dict[str, Any] = {"machine": platform.machine(), "processor": _processor(), "cores": os.cpu_count()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
