from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pyterrier_rankdistillm.scoring import cores as module
from pyterrier_rankdistillm.scoring.cores import cores, processor_share

MOUNTS_2 = "24 1 0:22 / /proc rw - proc proc rw\n30 24 0:26 {inner} {point} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
MOUNTS_1 = (
    "31 24 0:27 {inner} {point}/memory rw,nosuid - cgroup cgroup rw,memory\n"
    "32 24 0:28 {inner} {point}/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
)


def machine(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A tree of files as Linux has it."""
    for name, content in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({}, None),
        ({"job/cpu.max": "max 100000\n"}, None),
        ({"job/cpu.max": "150000 100000\n"}, 1.5),
        ({"job/cpu.max": "max 100000\n", "cpu.max": "50000 200000\n"}, 0.25),  # of the group around it
        ({"job/cpu.max": "400000 100000\n", "cpu.max": "300000 100000\n"}, 3.0),
        ({"other/cpu.max": "100000 100000\n"}, None),
        ({"job/cpu.max": "nonsense\n"}, None),
        ({"job/cpu.max": "100000 0\n"}, None),
    ],
)
def test_version_2(tmp_path: Path, files: dict[str, str], share: float | None) -> None:
    mounts = MOUNTS_2.format(inner="/", point="/sys/fs/cgroup")
    root = machine(tmp_path, "0::/job\n", mounts, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert processor_share(root) == share


def test_a_container_sees_its_own_group_as_the_mounted_one(tmp_path: Path) -> None:
    mounts = MOUNTS_2.format(inner="/", point="/sys/fs/my\\040groups")
    root = machine(tmp_path, "0::/../../elsewhere\n", mounts, {"sys/fs/my groups/cpu.max": "200000 100000"})
    assert processor_share(root) == 2.0


@pytest.mark.parametrize(
    ("quota", "period", "share"), [("-1", "100000", None), ("250000", "100000", 2.5), ("50000", "100000", 0.5)]
)
@pytest.mark.parametrize(("inner", "below"), [("/", "docker/abc/"), ("/docker/abc", "")])
def test_version_1(tmp_path: Path, quota: str, period: str, share: float | None, inner: str, below: str) -> None:
    groups = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n"
    files = {"cfs_quota_us": quota, "cfs_period_us": period}
    mounts = MOUNTS_1.format(inner=inner, point="/sys/fs/cgroup")
    folder = f"sys/fs/cgroup/cpu,cpuacct/{below}cpu."
    root = machine(tmp_path, groups, mounts, {f"{folder}{name}": f"{text}\n" for name, text in files.items()})
    assert processor_share(root) == share


def test_no_linux_has_no_groups(tmp_path: Path) -> None:
    assert processor_share(tmp_path) is None


@pytest.mark.parametrize(
    ("threads", "allowed", "share", "expected"),
    [(8, 16, None, 8), (16, 4, None, 4), (16, 16, 1.5, 2), (16, 16, 0.25, 1), (2, 16, 8.0, 2)],
)
def test_cores_are_the_least_of_threads_affinity_and_share(
    monkeypatch: pytest.MonkeyPatch, threads: int, allowed: int, share: float | None, expected: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(allowed)), raising=False)
    monkeypatch.setattr(module, "processor_share", lambda: share)
    assert cores() == expected


def test_cores_of_this_process() -> None:
    assert 1 <= cores() <= torch.get_num_threads()
