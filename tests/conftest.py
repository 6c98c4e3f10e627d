"""Fixtures: tiny checkpoints on disk (made once a session, never changed) and what is made of them."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch

torch.set_num_threads(1)  # tiny models are quicker so, above all on a busy machine
os.environ["PT_TEST_TRANSFORMER_REPORTS"] = "0"  # pt.testing warns with its report otherwise
os.environ["HF_HUB_OFFLINE"] = "1"

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"


TOGETHER = {
    "tests/scale/": "ray",
    "[scale.rst]": "ray",
    "[rerank_dataset a number]": "ray",
    "tests/runs/test_hub.py": "hub",
}
"""With ``pytest -n 2 --dist loadgroup`` one process has the Ray, one asks the hub's client: parts of node ids."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """pytest-xdist 3.8 does not see its own groups where pytest is 9.2."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((group for part, group in TOGETHER.items() if part in nodeid), nodeid)

    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not ((SHARED / "data").is_dir() and (SHARED / "reference").is_dir()):
        for item in items:
            if item.get_closest_marker("shared"):
                item.add_marker(pytest.mark.skip(reason=f"{SHARED} is not here"))


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> None:
    """Trainings and tests of significance collect garbage, which need not look at all modules again: half a second."""
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    return SHARED


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tiny.Tiny]:
    """Gives the tiny checkpoint of a format; see ``tiny.FORMATS``. Read only: tests that change one copy it."""
    made: dict[str, tiny.Tiny] = {}

    def make(name: str) -> tiny.Tiny:
        if name not in made:
            made[name] = tiny.FORMATS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return make


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """The one Ray of all tests, with three cores, whatever the machine has."""
    ray = pytest.importorskip("ray")
    # Ray's workers are nice (15) to other programs, which on a busy machine is to wait for them.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_BACKEND_LOG_LEVEL="fatal", RAY_worker_niceness="0")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE / "scale"), str(HERE), os.environ.get("PYTHONPATH", "")])
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Ray 2.47 leaves a file and its processes to the collector
        ray.init(address="local", num_cpus=3, object_store_memory=100 << 20, **options)
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        ray.shutdown()


@pytest.fixture
def copied(checkpoint: Callable[[str], tiny.Tiny], tmp_path: Path) -> Callable[..., Path]:
    """Gives a copy of a tiny checkpoint's folder that the test may change."""

    def make(name: str = "lightning-ir-hub") -> Path:
        return tiny.copy(checkpoint(name).folder, tmp_path / name)

    return make


@pytest.fixture(scope="session")
def model(checkpoint: Callable[[str], tiny.Tiny]) -> tiny.Tiny:
    """The tiny checkpoint that most tests score with: as Lightning IR's on the hub."""
    return checkpoint("lightning-ir-hub")


@pytest.fixture
def frame() -> pd.DataFrame:
    """Two queries; d1 and d10 have equal texts."""
    bread, rain = "why does bread rise", "why does it rain"
    return pd.DataFrame(
        [
            ("q2", rain, "d1", "Water is in the rain."),
            ("q1", bread, "d1", "Water is in the rain."),
            ("q1", bread, "d2", "Yeast makes bread rise."),
            ("q2", rain, "d3", "The cat sat on the mat."),
            ("q1", bread, "d3", "The cat sat on the mat."),
            ("q1", bread, "d10", "Water is in the rain."),
        ],
        columns=["qid", "query", "docno", "text"],
    )
