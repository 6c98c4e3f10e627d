"""The actors that score. They exchange positions in the run with the driver, but never texts or weights."""

from __future__ import annotations

import os
import pickle
import platform
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, cast

import pandas as pd
import pyterrier as pt
import torch

from ..errors import WorkerError
from ..reranker import CrossEncoderReRanker, TruncationWarning
from ..runs.rankings import Rankings
from ..runs.records import versions
from ..runs.shards import Shard, ShardFolder
from ..runs.text import join_text
from ..set_encoder import LongListWarning
from .cluster import Workers, import_ray, silence

ATTEMPTS = 3
"""How often a shard that kills its worker is started before it is given up."""

BEAT = 5.0
"""Seconds between two signs of life of a worker at work."""

SILENCE = 600.0
"""Seconds without a sign of life of any worker, or a finished shard, after which the work is given up: Ray itself waits
for ever for workers that are stopped, or that it has no room for."""


@dataclass
class Job:
    """How any part of a run is re-ranked. Workers get it once, by reference, together with its weights if it has any.

    Args:
        reranker: The re-ranker.
        rankings: The mapped run; pickles contain only its path.
        text: The source of the passages.
        depth: Number of documents per query; None for all.
    """

    reranker: CrossEncoderReRanker
    rankings: Rankings
    text: pt.Transformer
    depth: int | None

    def candidates(self, positions: Sequence[int], queries: Sequence[str]) -> pd.DataFrame:
        """The first stage's documents for some queries, with texts.

        Args:
            positions: Positions of the queries in the run.
            queries: The texts of the queries.
        """
        frames = []
        for position, query in zip(positions, queries, strict=True):
            found = self.rankings[int(position)]
            frames.append(pd.DataFrame({"qid": found.qid, "query": query, "docno": found.docnos[: self.depth]}))
        return join_text(pd.concat(frames, ignore_index=True), self.text)

    def rerank(self, candidates: pd.DataFrame) -> pd.DataFrame:
        """The run of some candidates: columns qid, docno, score, rank."""
        return self.reranker.transform(candidates)[["qid", "docno", "score", "rank"]]


@dataclass(frozen=True)
class Answer:
    """A worker's answer for a shard.

    Args:
        value: The result of ``do``.
        error: The error, if there was one, as a call in this process would raise it.
        told: The re-ranker's warnings of truncated texts and of long lists, if it gave any.
    """

    value: Any = None
    error: Exception | None = None
    told: tuple[Warning, ...] = ()


class Worker:
    """An actor of Ray Data that holds a job; a batch is one shard.

    Args:
        job: Ray's reference to the job.
        threads: Number of cores that it may use.
        pulse: A folder for signs of life.
        beat: Seconds between two of them.
    """

    def __init__(self, job: Any, threads: int, pulse: Path, beat: float) -> None:
        self._pulse, self._beat = pulse, beat
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # the tokenizers' threads
        torch.set_num_threads(threads)
        self._reference = job
        self._job: Job | None = None

    @property
    def job(self) -> Job:
        if self._job is None:
            self._job = cast(Job, import_ray().get(self._reference))
        return self._job

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Answers with pickles, since Arrow cannot hold every value."""
        shard = Shard(int(batch["index"][0]), tuple(batch["qids"][0]))
        value: Any = None
        error: Exception | None = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            for category in _TOLD:
                warnings.simplefilter("always", category)
            try:
                with self._alive(shard):
                    value = self.do(shard, batch["positions"][0].tolist(), list(batch["queries"][0]))
            except Exception as raised:  # the driver raises it, whatever it is
                error = _portable(raised)
        told = tuple(warning.message for warning in caught if isinstance(warning.message, _TOLD))
        return {"answer": [pickle.dumps(Answer(value, error, told))]}

    def do(self, shard: Shard, positions: list[int], queries: list[str]) -> Any:
        """Does the work of a shard."""
        raise NotImplementedError

    @contextmanager
    def _alive(self, shard: Shard) -> Iterator[None]:
        """Gives signs of life meanwhile: a file that grows."""
        file = self._pulse / f"{shard.index:06d}{_PULSE}"
        ended = threading.Event()

        def beat() -> None:
            while not ended.is_set():
                with suppress(OSError), file.open("ab") as signs:
                    signs.write(b".")
                ended.wait(self._beat)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with suppress(OSError):
                file.unlink(missing_ok=True)


_PULSE = ".pulse"
_TOLD = (TruncationWarning, LongListWarning)


class ReRanker(Worker):
    """Re-ranks shards and saves them in a folder; answers with the number of queries.

    Args:
        job: As for ``Worker``.
        threads: As for ``Worker``.
        pulse: As for ``Worker``.
        beat: As for ``Worker``.
        folder: Where finished shards are saved.
    """

    def __init__(self, job: Any, threads: int, pulse: Path, beat: float, folder: ShardFolder) -> None:
        super().__init__(job, threads, pulse, beat)
        self.folder = folder

    def do(self, shard: Shard, positions: list[int], queries: list[str]) -> int:
        if not self.folder.folder.is_dir():
            raise FileNotFoundError(
                f"rerank_dataset: {self.folder.folder} is not there for a worker on {platform.node()}. Give an "
                f"output in a folder that all machines share."
            )
        if self.folder.begin(shard) > ATTEMPTS:
            raise WorkerError(
                f"rerank_dataset: shard {shard.index} (qids {shard.qids[0]!r} to {shard.qids[-1]!r}) was begun "
                f"{ATTEMPTS} times, and each time its worker died: killed, or out of memory. Lower batch_tokens or "
                f"num_workers, and call again: finished shards are kept."
            )
        started = time.monotonic()
        run = self.job.rerank(self.job.candidates(positions, queries))
        seconds = round(time.monotonic() - started, 3)
        self.folder.save(shard, run, {"versions": versions(), "seconds": seconds})
        return len(shard.qids)


def over_workers(
    worker: type[Worker], job: Job, rows: list[dict[str, Any]], workers: Workers, pulse: Path, **arguments: Any
) -> Iterator[Any]:
    """The workers' answers, as they arrive. Errors are raised; of truncated texts and long lists is warned once.

    Args:
        worker: The class of the workers.
        job: The job that all of them get.
        rows: The work, one row per shard: ``index``, ``qids``, ``positions`` and ``queries``.
        workers: The number of workers, and the resources of each.
        pulse: A folder that all of them see, for signs of life; created if it does not exist.
        arguments: The worker's arguments other than its job, its threads and its pulse.

    Raises:
        WorkerError: Ray gave up, or no worker responded for ``SILENCE`` seconds.
    """
    ray = import_ray()
    if not rows:
        return
    warned: set[type[Warning]] = set()
    with silence():
        # One block per shard, so that any worker can take any shard, and also that of a dead worker. Ray Data repeats
        # this without limit, since it cannot find out why a worker died, so shards count how often they are begun.
        # Blocks are made here, since reading them in tasks would need a core in addition to the workers'.
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            worker,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(workers.number, len(rows))),
            fn_constructor_kwargs={
                "job": ray.put(job),
                "threads": workers.cpus,
                "pulse": pulse,
                "beat": BEAT,
                **arguments,
            },
            num_cpus=workers.cpus,
            num_gpus=workers.gpus or None,
        )
        try:
            for row in _watched(data.iter_rows(), pulse):
                answer: Answer = pickle.loads(row["answer"])
                if answer.error is not None:
                    raise answer.error
                for warning in answer.told:
                    if type(warning) not in warned:
                        warned.add(type(warning))
                        warnings.warn(warning, stacklevel=3)
                yield answer.value
        except ray.exceptions.RayError as error:
            first = next((line for line in str(error).splitlines() if line.strip()), "")
            raise WorkerError(
                f"rerank_dataset: Ray stopped: {type(error).__name__}: {first} Call again: finished shards are kept."
            ) from error


def _watched(rows: Iterator[Any], pulse: Path) -> Iterator[Any]:
    """Rows as they come, from a thread, since nobody else can say that none will."""
    came: SimpleQueue[tuple[Any, BaseException | None] | None] = SimpleQueue()
    before = set(threading.enumerate())
    over = False

    def pull() -> None:
        try:
            for row in rows:
                came.put((row, None))
            came.put(None)
        except BaseException as error:
            came.put((None, error))

    pulse.mkdir(parents=True, exist_ok=True)
    threading.Thread(target=pull, daemon=True).start()
    signs, since = _signs(pulse), time.monotonic()
    try:
        while True:
            try:
                answer = came.get(timeout=min(BEAT, SILENCE / 4))
            except Empty:
                if (now := _signs(pulse)) != signs:
                    signs, since = now, time.monotonic()
                elif time.monotonic() - since > SILENCE:
                    raise WorkerError(
                        f"rerank_dataset: no worker has responded for {SILENCE:.0f} s. Ray has no room for "
                        f"them (`ray status` says what else has it), or they are stopped. Resolve this and call again: "
                        f"finished shards are kept."
                    ) from None
                continue
            if answer is None:
                over = True
                return
            row, error = answer
            if error is not None:
                raise error
            since = time.monotonic()
            yield row
            since = time.monotonic()
    finally:
        # Ray Data gives no other hold on an execution that has not answered yet than that it is a thread, which would
        # keep its workers and go on with the work.
        for thread in set(threading.enumerate()) - before:
            if not over and type(thread).__name__ == "StreamingExecutor":
                cast(Any, thread).shutdown(force=True)


def _signs(pulse: Path) -> dict[str, int]:
    """How many each shard's worker has given."""
    signs = {}
    with suppress(OSError):
        for file in pulse.glob(f"*{_PULSE}"):
            with suppress(FileNotFoundError):
                signs[file.name] = file.stat().st_size
    return signs


def _portable(error: Exception) -> Exception:
    """The error, if it can be pickled; otherwise one with the same message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error.with_traceback(None)
