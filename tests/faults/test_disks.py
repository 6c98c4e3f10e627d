"""Disks that are full, that take no large files, or none: an error, no half file, the old one kept, and on it goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import child
import pytest
import tiny
import works
from conftest import Rounds

pytestmark = pytest.mark.filterwarnings("ignore")

HALVES = ("out.run.gz", "out.parquet", "in.run.rankings", "teacher.run", "checkpoint")


@pytest.fixture(scope="module")
def work(checkpoint: Callable[[str], tiny.Tiny]) -> works.Works:
    folder = checkpoint("lightning-ir-hub").folder
    return works.Works(folder, folder)


@pytest.mark.parametrize("name", works.NAMES)
def test_no_large_files(name: str, work: works.Works, rounds: Rounds, tmp_path: Path) -> None:
    """As a quota: writes fail with an error at a size that is drawn."""
    (tmp_path / "right").mkdir()
    value = child.run(works.of(work, name, tmp_path / "right")).value
    largest = max(file.stat().st_size for file in (tmp_path / "right").rglob("*") if file.is_file())
    for number, kind in enumerate(rounds.of("refused")):
        folder = tmp_path / str(number)
        folder.mkdir()
        size = rounds.random.randrange(max(2, min(largest, 200_000)))

        def limited(folder: Path = folder, size: int = size) -> Any:
            child.limit_files(size)
            return works.of(work, name, folder)()

        ended = child.run(limited)
        assert not ended.killed
        if ended.error is None:
            assert ended.value == value
        else:
            assert ended.error[0] in ("OSError", "ArrowException", "SafetensorError", "RuntimeError"), ended.error
            assert [found for found in HALVES if (folder / found).exists()] == []
            assert [left for left in works.litter(folder) if not left.endswith(".shards")] == []
            rounds.hit(kind)
        again = child.run(works.of(work, name, folder))
        assert again.error is None, (size, again.error)
        assert again.value == value
        assert works.litter(folder) == []


@pytest.mark.parametrize("name", works.NAMES)
def test_a_small_disk(name: str, work: works.Works, rounds: Rounds, tmp_path: Path) -> None:
    """A file system of its own, that is soon full; where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "right").mkdir()
    value = child.run(works.of(work, name, tmp_path / "right")).value
    used = sum(file.stat().st_size for file in (tmp_path / "right").rglob("*") if file.is_file())
    for kind in rounds.of("full", "read-only"):
        size = 4096 * rounds.random.randrange(2, max(3, used // 4096))

        def small(size: int = size, kind: str = kind) -> tuple[str, list[str], bool]:
            old = {} if name == "save" else {"keep.me": b"x"}
            child.mount_disk(disk, size if kind == "full" else 1 << 20, files=old, read_only=kind == "read-only")
            try:
                works.of(work, name, disk)()
            except Exception as error:
                what = type(error).__name__
            else:
                what = ""
            return (
                what,
                [f for f in HALVES if (disk / f).exists()] if what else [],
                name == "save" or (disk / "keep.me").exists(),
            )

        ended = child.run(small)
        if not ended.available:
            rounds.kinds = []
            pytest.skip("this process may not mount a disk")
        assert ended.error is None, ended.error
        what, halves, kept = ended.value
        assert halves == []
        assert kept
        if what:
            assert what in ("OSError", "PermissionError", "ArrowException", "SafetensorError", "RuntimeError"), what
            rounds.hit(kind)
        elif kind == "read-only":
            pytest.fail("nothing can be written there")
    assert child.run(works.of(work, name, tmp_path / "right")).value == value
