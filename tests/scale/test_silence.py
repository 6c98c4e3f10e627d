"""Ray waits for ever for a worker that is stopped, and for room: here that is an error, in bounded time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faulty
import pytest
import tiny
from test_rerank_dataset import ONCE, RUN, TOPICS, expected, files, loader, run_file, same  # noqa: F401  (fixtures)

from pyterrier_rankdistillm import MonoElectra, rerank_dataset
from pyterrier_rankdistillm.scale import WorkerError, workers

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.filterwarnings("ignore:MonoElectraReRanker cut"),
]


@contextmanager
def impatient(since: Path) -> Iterator[None]:
    """Five seconds of silence are enough once a file is there: until then, workers may start as slowly as they like."""
    over = threading.Event()

    def wait() -> None:
        while not since.exists() and not over.wait(0.05):
            pass
        patch.setattr(workers, "SILENCE", 5.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "BEAT", 0.2)
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize("number", [1, 2])
def test_a_stopped_worker(run_file: Path, tmp_path: Path, model: tiny.Tiny, loader: faulty.Texts, number: int) -> None:  # noqa: F811
    loader.stopping = ONCE
    output = tmp_path / "out.run"
    options = {"text": loader, "topics": TOPICS, "shard_size": 1, "num_workers": number, "verbose": False}
    stopped = loader.folder / "stopped"
    try:
        with impatient(stopped), pytest.raises(WorkerError, match="no worker has responded for 5 s"):
            rerank_dataset(run_file, MonoElectra(model.folder, device="cpu"), output, **options)
        assert time.time() - stopped.stat().st_mtime < 60
    finally:
        if stopped.exists():
            os.kill(int(stopped.read_text()), signal.SIGKILL)
    assert not output.exists()
    loader.stopping = ""
    rerank_dataset(run_file, MonoElectra(model.folder, device="cpu"), output, **options)
    same(output, expected(model))
    assert "out.run.lock" not in files(tmp_path)


def test_no_room(run_file: Path, tmp_path: Path, model: tiny.Tiny, loader: faulty.Texts) -> None:  # noqa: F811
    ray = pytest.importorskip("ray")

    @ray.remote(num_cpus=3)
    class Busy:
        def ready(self) -> bool:
            return True

    busy = Busy.remote()
    ray.get(busy.ready.remote())
    output = tmp_path / "out.run"
    options = {"text": loader, "topics": TOPICS, "num_workers": 1, "verbose": False}
    try:
        with impatient(run_file), pytest.raises(WorkerError, match="Ray has no room for them"):
            rerank_dataset(run_file, MonoElectra(model.folder, device="cpu"), output, **options)
    finally:
        ray.kill(busy)
    rerank_dataset(run_file, MonoElectra(model.folder, device="cpu"), output, **options)
    same(output, expected(model))
