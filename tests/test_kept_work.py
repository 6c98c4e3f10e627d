"""The script that found kept work taken for other work, 17 times of 17."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1].parent / "shared" / "reference" / "kept-work.py"


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not SCRIPT.exists(), reason="reads ../shared")
def test_no_kept_work_is_taken_for_other_work() -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False, timeout=1800,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 wrong of 17", done.stdout + done.stderr
