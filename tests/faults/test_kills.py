"""Any work, stopped at any step on the file system or at any time: nothing half, nothing lost, nothing left."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import child
import pytest
import tiny
import works
from conftest import Rounds

from pyterrier_rankdistillm import Checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def work(checkpoint: Callable[[str], tiny.Tiny], tmp_path_factory: pytest.TempPathFactory) -> works.Works:
    other = tiny.copy(checkpoint("lightning-ir-hub").folder, tmp_path_factory.mktemp("other") / "model")
    state = tiny.load_state(other)
    tiny.save_state(other, {name: tensor * 0.5 for name, tensor in state.items()})
    return works.Works(checkpoint("lightning-ir-hub").folder, other)


@pytest.fixture(scope="module")
def right(work: works.Works, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, int]]:
    """What each work gives when nothing stops it (``save``: over another checkpoint), and in how many steps."""
    found = {}
    for name in works.NAMES:
        folder = tmp_path_factory.mktemp(name)
        if name == "save":
            work.save(folder)
        ended = child.run(works.of(work, name, folder))
        assert ended.error is None, (name, ended.error)
        assert works.litter(folder) == []
        found[name] = (ended.value, STEPS[name])
    return found


STEPS = {"write": 6, "parquet": 6, "rankings": 8, "teacher": 60, "cache": 14, "save": 22, "reproduce": 60, "fit": 70}
"""Up to which step a work is killed; some of them are over by then."""


@pytest.mark.parametrize("name", works.NAMES)
def test_a_killed_work(
    name: str, work: works.Works, right: dict[str, tuple[Any, int]], rounds: Rounds, tmp_path: Path
) -> None:
    value, steps = right[name]
    for number, kind in enumerate(rounds.of("at a step", "at a time", "Ctrl-C", "SIGTERM")):
        folder = tmp_path / str(number)
        folder.mkdir()
        if name == "save":
            work.save(folder)
        for _ in range(rounds.random.choice((1, 1, 2))):
            chosen: dict[str, Any] = {"kill_at_step": rounds.random.randint(1, steps)}
            if kind != "at a step":
                by = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}.get(kind, signal.SIGKILL)
                longest = 0.4 if name not in ("reproduce", "fit") else 2.0
                chosen = {"kill_after": rounds.random.uniform(0.0, longest), "by": by}
            ended = child.run(works.of(work, name, folder), **chosen)
            assert not ended.hung
            interrupted = kind == "Ctrl-C" and ended.error is not None and ended.error[0] == "KeyboardInterrupt"
            assert ended.error is None or interrupted, (chosen, ended.error)
            if interrupted:
                assert [left for left in works.litter(folder) if not left.endswith(".shards")] == []
            if ended.killed or interrupted:
                rounds.hit(kind)
        if name == "save":
            with warnings.catch_warnings():
                Checkpoint.open(folder / "checkpoint")
            assert works.digest(folder / "checkpoint" / "model.safetensors") in {
                works.digest(f / "model.safetensors") for f in (work.model, work.other)
            } | {value}
        again = child.run(works.of(work, name, folder))
        assert again.error is None, (chosen, again.error)
        assert again.value == value, chosen
        assert works.litter(folder) == [], chosen
