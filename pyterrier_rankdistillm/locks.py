"""Locks that name their holder and do not outlive it: the system lets go of them when a process ends, in any way."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import weakref
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import InUseError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_LOCKED_BYTE = 1 << 30  # on Windows, where others cannot read what is locked: far behind the holder's name
_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """A lock on a file that is there for nothing else, or on one that is being written.

    It excludes threads and objects of this process as it excludes other processes. A forked child does not have it.
    """

    def __init__(self, file: Path, descriptor: int | None) -> None:
        self.file = file
        self._descriptor = descriptor
        self._process = os.getpid()
        self.made_folder = False
        _HELD.add(self)

    @classmethod
    def take(cls, file: Path) -> Lock | None:
        """The lock, whose file is made where there is none; None where it is held already.

        Raises:
            OSError: The file cannot be made, or its file system has no locks.
        """
        while True:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(descriptor)
                if _is_at(descriptor, file):
                    return cls(file, descriptor)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its holder has removed it meanwhile: it locks nothing any more

    def release(self, *, keep: bool = False) -> None:
        """Lets go, and removes the file unless it is to be kept. Again, or in a forked child, it does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None or self._process != os.getpid():
            return
        if not keep and sys.platform != "win32":  # while it is locked, so that nobody locks what is about to go
            self.file.unlink(missing_ok=True)
        os.close(descriptor)
        if not keep and sys.platform == "win32":  # where open files cannot be removed: not one that another has by now
            with contextlib.suppress(OSError):
                self.file.unlink()
        if self.made_folder:
            with contextlib.suppress(OSError):  # it is not empty: the work has begun
                self.file.parent.rmdir()

    def sign(self) -> None:
        """Writes into the file who holds it."""
        if self._descriptor is None:
            return
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        holder = json.dumps({"process": os.getpid(), "host": platform.node(), "since": since})
        with contextlib.suppress(OSError):  # on a full disk it holds without a name
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.ftruncate(self._descriptor, os.write(self._descriptor, holder.encode()))

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def hold(file: Path, work: str, remedy: str = "Wait until it has ended; what it has finished by then is kept.") -> Lock:
    """Takes the lock on a piece of work, and signs it.

    Where no lock can be had (a folder that is not writable, a full disk, a file system without locks), work goes on
    without.

    Args:
        file: The lock's file; its folder is made where there is none.
        work: What it is that only one may do, in the words of the function that the user called.
        remedy: What to do where another process holds it.

    Returns:
        The lock, a context manager.

    Raises:
        InUseError: Another process (or another thread of this one) holds it; the message says which, and since when.
    """
    there = file.parent.exists()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock.take(file)
    except OSError:
        return Lock(file, None)
    if lock is None:
        raise InUseError(f"{work} is in use by {_holder(file)}. {remedy}")
    lock.made_folder = not there
    lock.sign()
    return lock


def lock_of(target: str | os.PathLike[str]) -> Path:
    """Where the lock on making a file lies: beside it."""
    path = Path(target).expanduser().absolute()
    return path.with_name(f"{path.name}.lock")


def lock_in(folder: str | os.PathLike[str]) -> Path:
    """Where the lock on working in a folder lies: in it, since what is beside it may be somebody else's."""
    return Path(folder).expanduser().absolute() / "in-use.lock"


def _holder(file: Path) -> str:
    try:
        signed: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        here = " (this one)" if (signed["process"], signed["host"]) == (os.getpid(), platform.node()) else ""
        return f"process {signed['process']}{here} on {signed['host']} since {signed['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _lock(descriptor: int) -> None:
    """Raises a BlockingIOError where the file is locked."""
    if sys.platform == "win32":
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _not_in_children() -> None:
    """A forked child closes its copies, which would hold the lock when its parent is gone."""
    for lock in list(_HELD):
        if lock._descriptor is not None:
            os.close(lock._descriptor)
            lock._descriptor = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_not_in_children)
