"""Work in a forked process, which is killed, starved or watched."""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "sqlite3.connect", "ctypes.dlsym")
UNAVAILABLE = 77
"""Exit status of a child that cannot have what it needs."""


@dataclass
class Ended:
    """How a child ended.

    Args:
        value: What its work gave.
        error: The type of what it raised, and the message.
        killed: Whether a signal ended it.
        hung: Whether it had to be ended, as it took too long.
        available: Whether it could have what it needs.
    """

    value: Any = None
    error: tuple[str, str] | None = None
    killed: bool = False
    hung: bool = False
    available: bool = True


def run(
    work: Callable[[], Any],
    *,
    kill_at_step: int | None = None,
    kill_after: float | None = None,
    by: signal.Signals = signal.SIGKILL,
    seconds: float = 120,
) -> Ended:
    """Does work in a child; kills it at its n-th step on the file system, or by a signal after some seconds."""
    child = start(work, kill_at_step=kill_at_step)
    return child.wait(seconds=seconds, kill_after=kill_after, by=by)


def start(work: Callable[[], Any], *, kill_at_step: int | None = None) -> Child:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, reading)
    status = 1
    try:
        os.close(reading)
        if kill_at_step is not None:
            _kill_at(kill_at_step)
        try:
            answer: tuple[Any, Any] = (work(), None)
        except UnavailableError:
            os._exit(UNAVAILABLE)
        except BaseException as error:
            if os.environ.get("FAULTS_TRACE"):
                traceback.print_exc()
            answer = (None, (type(error).__name__, str(error)))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is over
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
        status = 0
    finally:
        os._exit(status)


@dataclass
class Child:
    pid: int
    pipe: int

    def wait(
        self, *, seconds: float = 120, kill_after: float | None = None, by: signal.Signals = signal.SIGKILL
    ) -> Ended:
        data = b""

        def over_within(limit: float) -> bool:
            nonlocal data
            until = time.monotonic() + limit
            while select.select([self.pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                piece = os.read(self.pipe, 1 << 16)
                data += piece
                if not piece:
                    return True
            return False

        signalled = kill_after is not None and not over_within(kill_after)
        if signalled:
            os.kill(self.pid, by)
        hung = not (signalled and by == signal.SIGKILL) and not over_within(seconds)
        if hung:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status):
            return Ended(killed=True, hung=hung)
        if os.WEXITSTATUS(status) == UNAVAILABLE:
            return Ended(available=False)
        value, error = pickle.loads(data)
        return Ended(value=value, error=error)


def _kill_at(step: int) -> None:
    seen = 0

    def hook(event: str, arguments: Any) -> None:
        nonlocal seen
        if event in _EVENTS and not (event == "open" and _reads(arguments)):
            seen += 1
            if seen >= step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _reads(arguments: tuple[Any, ...]) -> bool:
    """Whether a file is opened to be read only, as modules are."""
    return not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)


class UnavailableError(Exception):
    """The system does not let a child have what it needs."""


def limit_files(size: int) -> None:
    """No file of this process gets larger."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limit_memory(size: int) -> None:
    """This process gets so much more memory, and no more than that."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + size, used + size))


def mount_disk(folder: Path, size: int, *, files: dict[str, bytes] | None = None, read_only: bool = False) -> None:
    """A disk of its own for this process, so small that it is soon full, or read-only."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(0x10000000 | 0x00020000) != 0:  # CLONE_NEWUSER, CLONE_NEWNS
        raise UnavailableError
    for name, content in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path(f"/proc/self/{name}").write_text(content)
    if libc.mount(b"faults", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()) != 0:
        raise UnavailableError
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)
    if read_only and libc.mount(None, os.fsencode(folder), None, 32 | 1, None) != 0:  # MS_REMOUNT, MS_RDONLY
        raise UnavailableError
