"""How many cores this process may use: a container's share of the processor is less than what the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch


def cores() -> int:
    """The cores to compute with in the calling thread, at least 1.

    The least of what torch computes with there, of the cores that the process may run on, and of its control groups'
    share of the processor, rounded up. torch counts the cores of the machine and knows nothing of a container's share
    (``docker run --cpus``, a pod's limit): with more threads than it, all of them are stopped for most of each period.
    """
    known = [torch.get_num_threads()]
    if hasattr(os, "sched_getaffinity"):  # Linux
        known.append(len(os.sched_getaffinity(0)))
    share = processor_share()
    if share is not None:
        known.append(math.ceil(share))
    return max(1, min(known))


def processor_share(root: Path = Path("/")) -> float | None:
    """The cores' time that the control groups of this process may use, in cores; None: as much as there is.

    The smallest limit of the process's group and those around it, in cgroup v2 (``cpu.max``) and v1
    (``cpu.cfs_quota_us``).

    Args:
        root: Where ``proc`` and the mounted control groups lie.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:  # no Linux
        return None
    shares = [
        share
        for group in groups
        for folder in _folders(group, mounts, root)
        if (share := _version_2(folder) or _version_1(folder)) is not None
    ]
    return min(shares, default=None)


def _folders(group: str, mounts: list[str], root: Path) -> Iterator[Path]:
    """The folders of a line of ``/proc/self/cgroup``, from the process's group up to the outermost that is mounted."""
    _, controllers, path = group.split(":", 2)
    if controllers and "cpu" not in controllers.split(","):
        return
    for mount in mounts:
        # See proc_pid_mountinfo(5): ... root, mount point, options, optional fields, "-", type, source, options
        fields, _, rest = mount.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind != "cgroup2" if not controllers else kind != "cgroup" or "cpu" not in options.split(","):
            continue
        inner, point = (Path(_unescaped(field)) for field in fields.split(" ")[3:5])
        # A container sees its own group as the mounted one, whatever it is called outside.
        below = Path(path).relative_to(inner) if Path(path).is_relative_to(inner) else Path()
        below = Path() if ".." in below.parts else below
        top = root / point.relative_to("/")
        for names in (below, *below.parents):
            yield top / names


def _unescaped(field: str) -> str:
    """A path of ``/proc/self/mountinfo``, where blanks and their like are octal numbers."""
    for number, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        field = field.replace(f"\\{number}", character)
    return field


def _version_2(folder: Path) -> float | None:
    fields = _words(folder / "cpu.max")  # such as "150000 100000", or "max 100000"
    return None if len(fields) != 2 or fields[0] == "max" else _ratio(*fields)


def _version_1(folder: Path) -> float | None:
    return _ratio(*_words(folder / "cpu.cfs_quota_us")[:1], *_words(folder / "cpu.cfs_period_us")[:1])


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:  # a group may have no limit, or not be readable
        return []


def _ratio(quota: str = "-1", period: str = "") -> float | None:
    """Microseconds in a period; -1: no limit."""
    if not (quota.isascii() and quota.isdigit() and period.isascii() and period.isdigit()):
        return None
    return int(quota) / int(period) if int(quota) and int(period) else None
