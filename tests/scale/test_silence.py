"""Ray waits for ever for a worker that is stopped, and for room: here that is an error, in bounded time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import faulty
import pytest
import tiny
from test_rerank_dataset import ONCE, RUN, TOPICS, expected, files, loader, run_file, same  # noqa: F401  (fixtures)

from pyterrier_rankdistillm import MonoElectra, rerank_dataset, runs
from pyterrier_rankdistillm.scale import WorkerError, workers

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.filterwarnings("ignore:MonoElectraReRanker cut"),
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "BEAT", 0.2)
    monkeypatch.setattr(workers, "SILENCE", 45.0)


@pytest.fixture(scope="module", autouse=True)
def warm(cluster: None, tmp_path_factory: pytest.TempPathFactory, model: tiny.Tiny) -> None:  # noqa: ARG001
    """The first workers of a cluster take a while to start on a busy machine."""
    folder = tmp_path_factory.mktemp("warm")
    runs.write(RUN, folder / "in.run")
    texts = faulty.Texts(folder)
    reranker = MonoElectra(model.folder, device="cpu")
    rerank_dataset(folder / "in.run", reranker, folder / "out.run", text=texts, topics=TOPICS, verbose=False)


@pytest.mark.parametrize("number", [1, 2])
def test_a_stopped_worker(run_file: Path, tmp_path: Path, model: tiny.Tiny, loader: faulty.Texts, number: int) -> None:  # noqa: F811
    loader.stopping = ONCE
    output = tmp_path / "out.run"
    options = {"text": loader, "topics": TOPICS, "shard_size": 1, "num_workers": number, "verbose": False}
    started = time.monotonic()
    try:
        with pytest.raises(WorkerError, match="no worker has given a sign of life for 45 s"):
            rerank_dataset(run_file, MonoElectra(model.folder, device="cpu"), output, **options)
    finally:
        os.kill(int((loader.folder / "stopped").read_text()), signal.SIGKILL)
    assert time.monotonic() - started < 300
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
        with pytest.raises(WorkerError, match="Ray has no room for them"):
            rerank_dataset(run_file, MonoElectra(model.folder, device="cpu"), output, **options)
    finally:
        ray.kill(busy)
    rerank_dataset(run_file, MonoElectra(model.folder, device="cpu"), output, **options)
    same(output, expected(model))
