"""The actors that score, and what passes between them and the driver: places in the run, never texts or weights."""

from __future__ import annotations

import os
import pickle
import platform
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pandas as pd
import pyterrier as pt
import torch

from ..errors import WorkerError
from ..reranker import CrossEncoderReRanker, TruncationWarning
from ..runs.rankings import Rankings
from ..runs.records import versions
from ..runs.shards import Shard, ShardFolder
from ..runs.text import Dataset, add_text, text_loader
from .cluster import Workers, import_ray, silence

ATTEMPTS = 3
"""How often a shard is begun, by workers that die of it, before it is given up."""


@dataclass
class Job:
    """How any part of a run is re-ranked. Workers get it once, by reference: its weights, if it has any, with it.

    Args:
        reranker: The re-ranker.
        rankings: The run, mapped; pickles carry its path.
        text: Where passages come from.
        depth: Documents a query; None for all.
    """

    reranker: CrossEncoderReRanker
    rankings: Rankings
    text: pt.Transformer | Dataset
    depth: int | None
    _loader: pt.Transformer | None = field(default=None, init=False, repr=False)

    def candidates(self, positions: Sequence[int], queries: Sequence[str]) -> pd.DataFrame:
        """What the first stage found for some queries, with texts.

        Args:
            positions: Places of the queries in the run.
            queries: Their texts.
        """
        frames = []
        for position, query in zip(positions, queries, strict=True):
            found = self.rankings[int(position)]
            frames.append(pd.DataFrame({"qid": found.qid, "query": query, "docno": found.docnos[: self.depth]}))
        if self._loader is None:
            self._loader = self.text if isinstance(self.text, pt.Transformer) else text_loader(self.text)
        return add_text(pd.concat(frames, ignore_index=True), self._loader)

    def rerank(self, candidates: pd.DataFrame) -> pd.DataFrame:
        """The run of some candidates: columns qid, docno, score, rank."""
        return self.reranker.transform(candidates)[["qid", "docno", "score", "rank"]]


@dataclass(frozen=True)
class Answer:
    """What a worker answers for a shard.

    Args:
        value: What it did.
        error: What went wrong, if anything did, as a call in this process would raise it.
        truncation: The re-ranker's warning that texts were cut, if it gave one.
    """

    value: Any = None
    error: Exception | None = None
    truncation: str | None = None


class Worker:
    """An actor of Ray Data that holds a job; a batch is one shard.

    Args:
        job: Ray's reference to the job.
        threads: Cores that it may use.
    """

    def __init__(self, job: Any, threads: int) -> None:
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
        """Answers in pickles: what Arrow cannot hold is not lost on the way."""
        shard = Shard(int(batch["index"][0]), tuple(batch["qids"][0]))
        value: Any = None
        error: Exception | None = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", TruncationWarning)
            try:
                value = self.do(shard, batch["positions"][0].tolist(), list(batch["queries"][0]))
            except Exception as raised:  # whatever it is, the driver raises it
                error = _portable(raised)
        truncation = next((str(warning.message) for warning in caught), None)
        return {"answer": [pickle.dumps(Answer(value, error, truncation))]}

    def do(self, shard: Shard, positions: list[int], queries: list[str]) -> Any:
        """Does a shard's work."""
        raise NotImplementedError


class ReRanker(Worker):
    """Re-ranks shards into a folder; answers the number of queries.

    Args:
        job: As for ``Worker``.
        threads: As for ``Worker``.
        folder: Where finished shards go.
    """

    def __init__(self, job: Any, threads: int, folder: ShardFolder) -> None:
        super().__init__(job, threads)
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
    worker: type[Worker], job: Job, rows: list[dict[str, Any]], workers: Workers, **arguments: Any
) -> Iterator[Any]:
    """What workers did, as they answer. What went wrong is raised; that texts were cut is warned of once.

    Args:
        worker: What each is.
        job: What all of them get.
        rows: The work, one a shard: ``index``, ``qids``, ``positions`` and ``queries``.
        workers: How many, and what each has.
        arguments: Those of the worker, beside its job and its threads.

    Raises:
        WorkerError: Ray gave up.
    """
    ray = import_ray()
    if not rows:
        return
    warned = False
    with silence():
        # A block a shard, so that any worker takes any shard, and another one takes a dead worker's: again and again,
        # since Ray Data cannot tell what a worker died of. Shards count by themselves how often they are begun. Blocks
        # are made here, since reading them in tasks would need a core beside the workers'.
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            worker,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(workers.number, len(rows))),
            fn_constructor_kwargs={"job": ray.put(job), "threads": workers.cpus, **arguments},
            num_cpus=workers.cpus,
            num_gpus=workers.gpus or None,
        )
        try:
            for row in data.iter_rows():
                answer: Answer = pickle.loads(row["answer"])
                if answer.error is not None:
                    raise answer.error
                if answer.truncation is not None and not warned:
                    warned = True
                    warnings.warn(answer.truncation, TruncationWarning, stacklevel=3)
                yield answer.value
        except ray.exceptions.RayError as error:
            first = next((line for line in str(error).splitlines() if line.strip()), "")
            raise WorkerError(
                f"rerank_dataset: Ray stopped: {type(error).__name__}: {first} Call again: finished shards are kept."
            ) from error


def _portable(error: Exception) -> Exception:
    """The error, if it can travel; else one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error.with_traceback(None)
