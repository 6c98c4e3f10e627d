"""What is written beside its target until it takes the target's place; what dead processes left of it is swept."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .locks import Lock

_LOCK, _NEW, _OLD = "lock", "new", "old"  # in a scratch folder


@contextmanager
def scratch_file(target: Path) -> Iterator[Path]:
    """An empty file beside a target, in a folder that is made where needed. At the end it goes, if it is still there.

    A process that is killed leaves it, as ``.{name}.*.tmp``: the next one that writes this target removes it, as it is
    locked while its process lives.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    scratch, lock = _new_file(target)
    try:
        yield scratch
    finally:
        if lock is not None:
            lock.release(keep=True)  # by now it may be the target
        scratch.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A new folder to write to, which takes the target's place at the end, and vanishes after an error.

    The target is the old folder or the new one, whole, at any moment, also when the process is killed: the two are
    exchanged in one step. Where the system cannot (Windows; some network file systems) there is a moment between two
    steps, and what a kill leaves then is mended by ``sweep``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    scratch = _name(target)
    scratch.mkdir()
    lock = _taken(scratch / _LOCK)
    try:
        new = scratch / _NEW
        new.mkdir()
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                sync(file)
        _put(new, target, scratch / _OLD)
    finally:
        if lock is not None:
            lock.release()
        shutil.rmtree(scratch, ignore_errors=True)


def sweep(target: Path) -> None:
    """Removes what dead processes left beside a target, and puts back a folder that one was about to replace."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{8}\.tmp")
    try:
        names = [path.name for path in target.parent.iterdir()]
    except OSError:
        return
    for name in filter(pattern.fullmatch, names):
        left = target.with_name(name)
        with contextlib.suppress(OSError):  # somebody else is quicker, or it is not ours to remove
            if left.is_dir():
                _sweep_folder(left, target)
            else:
                _sweep_file(left)


def sync(file: Path) -> None:
    """Has the system write a file to the disk."""
    with file.open("r+b") as written:  # Windows wants a handle that can write
        os.fsync(written.fileno())


def _name(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def _new_file(target: Path) -> tuple[Path, Lock | None]:
    while True:
        scratch = _name(target)
        if sys.platform == "win32":  # where what is being written can be neither removed nor locked by another handle
            scratch.touch(exist_ok=False)
            return scratch, None
        os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        lock = _taken(scratch)
        if scratch.exists():  # else it was swept before it was locked
            return scratch, lock


def _taken(file: Path) -> Lock | None:
    try:
        return Lock.take(file)
    except OSError:  # a file system without locks: nobody can sweep there either
        return None


def _sweep_file(left: Path) -> None:
    if sys.platform == "win32":
        left.unlink()  # fails where it is being written
        return
    lock = Lock.take(left)
    if lock is not None:
        lock.release()


def _sweep_folder(left: Path, target: Path) -> None:
    lock = Lock.take(left / _LOCK)
    if lock is None:
        return
    old = left / _OLD
    if old.exists() and not target.exists():
        old.rename(target)
    lock.release(keep=True)
    shutil.rmtree(left, ignore_errors=True)


def _put(new: Path, target: Path, old: Path) -> None:
    if not target.exists():
        new.rename(target)
    elif not _exchanged(new, target):
        target.rename(old)
        try:
            new.rename(target)
        except BaseException:
            old.rename(target)
            raise


def _exchanged(one: Path, other: Path) -> bool:
    """Exchanges two paths in one step, where the system can."""
    paths = os.fsencode(one), os.fsencode(other)
    here, swap = -100, 2  # AT_FDCWD; RENAME_EXCHANGE, and RENAME_SWAP on macOS
    try:
        if sys.platform == "linux":
            return ctypes.CDLL(None).renameat2(here, paths[0], here, paths[1], swap) == 0  # type: ignore[no-any-return]
        if sys.platform == "darwin":
            return ctypes.CDLL(None).renamex_np(*paths, swap) == 0  # type: ignore[no-any-return]
    except (OSError, AttributeError):
        pass
    return False
