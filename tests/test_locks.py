"""Locks name their holder and do not outlive it; what dead processes left is swept; folders are replaced whole."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyterrier_rankdistillm import scratch
from pyterrier_rankdistillm.errors import InUseError, RankDistillmError
from pyterrier_rankdistillm.locks import Lock, hold
from pyterrier_rankdistillm.runs.atomic import replacing, write_json
from pyterrier_rankdistillm.scratch import replacing_folder, sweep

HOLDER = """
import os, sys
from pathlib import Path
from pyterrier_rankdistillm.locks import hold
lock = hold(Path(sys.argv[1]), "work")
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    file = tmp_path / "x.lock"
    command = [sys.executable, "-c", HOLDER, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        what = rf"my work is in use by process {pid} on {re.escape(platform.node())} since 20\d\d-.* UTC\. Wait until"
        with pytest.raises(InUseError, match=what) as caught:
            hold(file, "my work")
        assert isinstance(caught.value, RankDistillmError)
        process.kill()
        process.wait()
    assert file.exists()
    with hold(file, "my work"):
        with pytest.raises(InUseError, match=rf"by process {os.getpid()} \(this one\) on"):
            hold(file, "my work")
        assert names(tmp_path) == ["x.lock"]
    assert names(tmp_path) == []


def test_a_lock_that_was_removed_is_no_lock(tmp_path: Path) -> None:
    """Whoever opened the file before its holder removed it locks the new one."""
    first = Lock.take(tmp_path / "x.lock")
    assert first is not None
    (tmp_path / "x.lock").unlink()
    second = Lock.take(tmp_path / "x.lock")
    assert second is not None
    assert Lock.take(tmp_path / "x.lock") is None
    second.release()
    first.release()
    first.release()


def test_where_nothing_can_be_locked_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks here")

    with hold(tmp_path / "new" / "x.lock", "work"):
        assert names(tmp_path / "new") == ["x.lock"]
    assert names(tmp_path) == []
    monkeypatch.setattr("pyterrier_rankdistillm.locks._lock", refuse)
    with hold(tmp_path / "x.lock", "work"), hold(tmp_path / "x.lock", "work"):
        pass
    with replacing(tmp_path / "file") as written:
        written.write_text("new")
    assert (tmp_path / "file").read_text() == "new"


def test_the_next_writer_sweeps_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out.run"
    (tmp_path / ".out.run.01234567.tmp").write_text("half")
    (tmp_path / ".out.run.89abcdef.tmp").mkdir()
    others = [".out.run.mine.tmp", ".other.run.01234567.tmp", "out.run.01234567.tmp"]
    for name in others:
        (tmp_path / name).write_text("mine")
    with replacing(target) as alive:
        alive.write_text("one")
        write_json(target, {})
        assert alive.exists()
    assert target.read_text() == "one"
    assert names(tmp_path) == sorted([*others, "out.run"])


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(scratch, "_exchanged", lambda *_: False)
    target = tmp_path / "folder"
    for text in ("old", "new"):
        with replacing_folder(target) as new:
            (new / "file").write_text(text)
            assert not target.exists() or (target / "file").read_text() == "old"
        assert (target / "file").read_text() == text
    with pytest.raises(KeyError), replacing_folder(target) as new:
        raise KeyError
    assert (target / "file").read_text() == "new"
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_was_about_to_be_replaced_is_put_back(tmp_path: Path) -> None:
    left = tmp_path / ".folder.01234567.tmp"
    for part in ("new", "old"):
        (left / part).mkdir(parents=True)
        (left / part / "file").write_text(part)
    (left / "lock").touch()
    sweep(tmp_path / "folder")
    assert (tmp_path / "folder" / "file").read_text() == "old"
    assert names(tmp_path) == ["folder"]
