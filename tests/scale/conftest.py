"""One Ray for all tests of the scale-out, which ends with them."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

TIMEOUT = 600
"""Seconds after which a test that hangs ends the process, whose Ray ends with it."""


@pytest.fixture(autouse=True)
def no_hanging() -> Iterator[None]:
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray with three cores, whatever the machine has."""
    ray = pytest.importorskip("ray")
    # Ray's workers are nice (15) to other programs, which on a busy machine is to wait for them.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_BACKEND_LOG_LEVEL="fatal", RAY_worker_niceness="0")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=3, object_store_memory=100 << 20, **options)
    yield
    ray.shutdown()
