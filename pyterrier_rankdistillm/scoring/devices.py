"""Where batches are computed: devices, the threads that feed them, and how exactly they multiply."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from .cores import cores
from .encoder import Batch

Device = str | torch.device | Sequence[str | torch.device] | None
"""What users give: one device, several, or None."""

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device to score on: CUDA if available, else the CPU; MPS on request only.

    Raises:
        ValueError: torch does not know the device, or it is not available.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises any of these, depending on the device
        raise ValueError(f"device must be one that torch finds here, got {str(device)!r}: {error}") from error
    return resolved


def resolve_devices(device: Device) -> list[torch.device]:
    """The devices to score on, at least one; see ``resolve_device``.

    Raises:
        ValueError: One of them is not available, or there is none.
    """
    if device is None or isinstance(device, str | torch.device):
        return [resolve_device(device)]
    if not len(device):
        raise ValueError(f"device must be a device or several, got {device!r}.")
    return [resolve_device(one) for one in device]


@dataclass(frozen=True)
class Threads:
    """Threads that compute on a device.

    Args:
        launching: Takes what is to be computed.
        reading: Waits for what was launched; None: the thread that launched it does.
        number: How many tasks are computed at the same time.
        ahead: How many tasks are given to the device at a time.
    """

    launching: Executor
    reading: Executor | None
    number: int
    ahead: int

    def submit(self, launch: Callable[[], T], read: Callable[[T], R]) -> Future[R]:
        """Computes ``read(launch())``; the next task is launched while this one is read."""
        if self.reading is None:
            return self.launching.submit(lambda: read(launch()))
        launched = self.launching.submit(launch)
        return self.reading.submit(lambda: read(launched.result()))


class _Here(Executor):
    """Computes at once, in the thread that asks."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


HERE = Threads(_Here(), None, number=1, ahead=1)
"""The caller's thread, with as many cores as torch gives it."""

_POOLS: dict[tuple[str, int], ThreadPoolExecutor] = {}
_LOCK = threading.Lock()


def _forget_pools() -> None:
    global _LOCK
    _LOCK = threading.Lock()
    _POOLS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)  # a forked process has none of its parent's threads


def threads(device: torch.device, tasks: int) -> Threads:
    """The process's threads for a device; all scorers share them, so that concurrent calls do not crowd a device.

    On a CPU each core takes tasks of its own: threads that share the products of one batch wait for each other at each
    of them, which costs little on quiet cores and about half the speed beside one busy process (benchmarks/README.md).
    A GPU computes in order what it is given: one thread launches batches, ahead of those that are computed, and another
    reads scores. (Two that launch would wait for each other's hold of the interpreter at every operation.)

    Args:
        device: The device.
        tasks: Number of tasks there will be. Where they are fewer than half of the cores, cores share each.
    """
    if device.type == "cpu":
        number = cores()
        if number > 1 and tasks >= number / 2:
            return Threads(lanes(number), None, number, ahead=2 * number)
        if number == torch.get_num_threads():
            return HERE
        return Threads(_pool(f"cpu, {number} cores", 1, each=number), None, number=1, ahead=1)  # a container's share
    if device.type == "cuda":
        launching, reading = (_pool(f"{device}, {task}", 1) for task in ("launching", "reading"))
        return Threads(launching, reading, number=1, ahead=3)
    return Threads(_pool(str(device), 1), None, number=1, ahead=2)


def lanes(number: int) -> Executor:
    """The process's threads in which torch computes with one core each; for one it is the caller's thread."""
    return _pool("cpu", number, each=1) if number > 1 else HERE.launching


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """In this thread torch computes with one core; threads that start meanwhile get the number that it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        other = threading.Thread(target=_use_cores, args=(before,))  # see ``_of_cores``
        other.start()
        other.join()
        yield
    finally:
        torch.set_num_threads(before)


def _pool(name: str, number: int, *, each: int | None = None) -> ThreadPoolExecutor:
    with _LOCK:
        pool = _POOLS.get((name, number))
        if pool is None:
            pool = _POOLS[name, number] = ThreadPoolExecutor(number) if each is None else _of_cores(number, each)
        return pool


def _of_cores(number: int, each: int) -> ThreadPoolExecutor:
    """Threads in which torch uses a number of cores each."""
    before = torch.get_num_threads()
    started = threading.Barrier(number + 1)
    pool = ThreadPoolExecutor(number, thread_name_prefix="scoring", initializer=_use_cores, initargs=(each,))
    try:
        for _ in range(number):
            pool.submit(started.wait)
        started.wait()
    except BaseException:  # an interrupt: the others shall not wait for ever
        started.abort()
        raise
    finally:
        # torch keeps one number for threads that are yet to start; it is the caller's again.
        torch.set_num_threads(before)
    return pool


def _use_cores(number: int) -> None:
    """Computes with that many cores in this thread."""
    torch.get_num_threads()  # a thread takes over the process's number at its first question, so that comes before
    torch.set_num_threads(number)


def copied(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """An array on a device. CUDA copies it while the caller goes on: nothing waits for pinned memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def padded_batch(
    device: torch.device, ids: NDArray[np.int64], types: NDArray[np.int64], mask: NDArray[np.bool_]
) -> Batch:
    """What ``PairTokenizer.pad`` gives, on a device; no mask where nothing is padded."""
    return copied(ids, device), copied(types, device), None if mask.all() else copied(mask, device)


# --- float32 products ---

Float32 = Literal["ieee", "tf32"]


class _Products:
    """How CUDA multiplies float32 matrices; one setting of the process, so that calls with others take turns."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._users = 0
        self._now: Float32 = "ieee"
        self._before: Any = None

    @contextlib.contextmanager
    def __call__(self, precision: Float32) -> Iterator[None]:
        with self._free:
            self._free.wait_for(lambda: not self._users or self._now == precision)
            if not self._users:
                self._before = _set_products(precision)
                self._now = precision
            self._users += 1
        try:
            yield
        finally:
            with self._free:
                self._users -= 1
                if not self._users:
                    _set_products(self._before)
                    self._free.notify_all()


def _set_products(precision: Any) -> Any:
    """Sets CUDA's float32 products; returns what was set before."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # torch 2.9; reading the older flag after it raises
        before, matmul.fp32_precision = matmul.fp32_precision, precision
        return before
    older = {False: "ieee", True: "tf32"}[matmul.allow_tf32]
    matmul.allow_tf32 = precision == "tf32"
    return older


float32_products = _Products()
"""``with float32_products("ieee"):`` float32 products are computed in float32, whatever the user's program set."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether smaller batches may help."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()  # the CPU's and MPS's allocators and CUDA's libraries raise plain RuntimeErrors
    return any(sign in message for sign in _SIGNS)


_SIGNS = (
    "out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed", "bad_alloc",
    "bad allocation", "status_not_initialized when calling",  # the last: no room for a handle of cuBLAS or cuDNN
)  # fmt: skip
