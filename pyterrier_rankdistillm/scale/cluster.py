"""Connects to a running Ray, or starts one for as long as it is needed, and shares it out among workers."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..extras import require

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere; Ray Data reads this whenever it starts
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # otherwise each actor is logged as an error
}


@dataclass(frozen=True)
class Node:
    """The resources of a machine that Ray may use.

    Args:
        cpus: Number of cores.
        gpus: Number of GPUs.
    """

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Workers:
    """How a cluster is shared out among workers.

    Args:
        number: Number of workers.
        cpus: Number of cores per worker, which is also its number of threads.
        gpus: Number of GPUs per worker: 0 or 1.
    """

    number: int
    cpus: int
    gpus: int


@contextmanager
def connected(address: str | None, who: str) -> Iterator[None]:
    """Connects to Ray for as long as the context lasts.

    It uses the Ray that this process uses already, or the one at ``address``, or one that runs here (``ray start``,
    ``RAY_ADDRESS``). Otherwise it starts one, which ends with the context.

    Raises:
        ConnectionError: There is no Ray at ``address``.
        ValueError: This process uses another Ray already.
        ImportError: Ray is not installed.
    """
    ray = import_ray(who)
    with _environment(_QUIET):
        if ray.is_initialized():
            used = ray.get_runtime_context().gcs_address
            if address not in (None, used):
                raise ValueError(
                    f"{who}: address must be None or {used!r}, the Ray that this process uses already, got "
                    f"{address!r}. Call ray.shutdown() first to use another."
                )
            yield
            return
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ConnectionError(
                f"{who}: address must be that of a running Ray, got {address!r}: {error}. Start one with `ray "
                f"start --head`, or give 'local' to start one."
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def nodes() -> list[Node]:
    """The machines of the cluster."""
    alive = [node["Resources"] for node in import_ray().nodes() if node["Alive"]]
    return [Node(int(found.get("CPU", 0)), int(found.get("GPU", 0))) for found in alive]


def share(machines: Sequence[Node], number: int | None, *, gpu: bool, who: str = "rerank_dataset") -> Workers:
    """Shares machines out among equal workers, each of which is on one machine.

    Args:
        machines: The machines of the cluster.
        number: Number of workers; default: one per GPU or, without GPUs, one per machine.
        gpu: Whether workers may use GPUs; if so, and if there are any, each gets one.
        who: The function that messages name.

    Raises:
        ValueError: The machines do not have enough cores or GPUs.
    """
    gpus = 1 if gpu and any(machine.gpus for machine in machines) else 0
    if number is None:
        number = sum(machine.gpus if gpus else machine.cpus > 0 for machine in machines)
    for cpus in range(max((machine.cpus for machine in machines), default=0), 0, -1):
        room = [min(machine.cpus // cpus, machine.gpus) if gpus else machine.cpus // cpus for machine in machines]
        if sum(room) >= number > 0:
            return Workers(number, cpus, gpus)
    most = sum(min(machine.cpus, machine.gpus) if gpus else machine.cpus for machine in machines)
    what, else_ = ("GPUs, each with a core", "use the CPUs with device='cpu'") if gpus else ("cores", "add machines")
    raise ValueError(
        f"{who}: num_workers must be from 1 to {most}, as many as Ray has {what}, got {number}. Ask for "
        f"fewer, or {else_}."
    )


@contextmanager
def silence() -> Iterator[None]:
    """Silences Ray Data's own messages, since this package reports progress and errors itself."""
    data = import_ray().data
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray[.]")  # raised within Ray
        context = data.DataContext.get_current()
    logger = logging.getLogger("ray.data")
    level = logger.level
    shown = context.enable_progress_bars
    logger.setLevel(logging.CRITICAL)
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.enable_progress_bars = shown
        logger.setLevel(level)


def import_ray(who: str = "rerank_dataset") -> Any:
    """Imports Ray with Ray Data.

    Raises:
        ImportError: One of them is not installed.
    """
    ray = require("ray", who)
    require("ray.data", who)
    return ray


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the context and for processes started in it, unless the user has set them."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
