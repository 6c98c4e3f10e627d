"""What re-ranking a run would take, from a sample that is measured where the work would be done."""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checks import is_whole
from ..runs.shards import Shard
from .cluster import connected
from .inputs import Model, Run, Text, Topics
from .plan import Plan, planned
from .workers import Worker, over_workers

_GB = 1e9


@dataclass(frozen=True)
class Estimate:
    """What re-ranking a run would take.

    Args:
        queries: Queries of the run.
        pairs: Pairs to be scored: counted.
        tokens: Tokens of all pairs, special tokens among them: by the sample's mean.
        hours: From the first pair to the last, with ``num_workers``: by the sample's speed.
        num_workers: Actors.
        cpus_per_worker: Cores of each.
        gpus_per_worker: GPUs of each.
        pairs_per_second: Of one worker, while the others score too: the sample's median.
        sampled_pairs: Pairs of the sample.
        worker_gb: The most memory that a worker of the sample took, in 10^9 bytes; mapped files among it. NaN on
            Windows, which does not tell.
        gpu_gb: The most of a GPU's memory that one allocated; 0 without GPUs.
        driver_gb: The most memory that this process took so far; NaN on Windows.
        disk_gb: What the shards and the run take together, at some 30 bytes a row and copy.
    """

    queries: int
    pairs: int
    tokens: int
    hours: float
    num_workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    pairs_per_second: float
    sampled_pairs: int
    worker_gb: float
    gpu_gb: float
    driver_gb: float
    disk_gb: float

    def __str__(self) -> str:
        has = f"{self.gpus_per_worker} GPU and {self.cpus_per_worker}" if self.gpus_per_worker else self.cpus_per_worker
        gpu = f", {self.gpu_gb:.1f} GB of its GPU" if self.gpus_per_worker else ""
        return (
            f"{self.pairs:,} pairs of {self.queries:,} queries, some {self.tokens:,} tokens\n"
            f"{self.hours:,.2f} hours with {self.num_workers} workers (each {has} cores) at "
            f"{self.pairs_per_second:,.1f} pairs a second each, measured on {self.sampled_pairs:,} pairs\n"
            f"memory: {self.worker_gb:.1f} GB a worker{gpu}, {self.driver_gb:.1f} GB here; disk: {self.disk_gb:.1f} GB"
        )


class Sampler(Worker):
    """Scores a sample twice, since the first time warms up; answers what it measured the second time."""

    def do(self, shard: Shard, positions: list[int], queries: list[str]) -> dict[str, float]:
        del shard
        self.job.rerank(self.job.candidates(positions, queries))
        started = time.monotonic()
        candidates = self.job.candidates(positions, queries)
        self.job.rerank(candidates)
        seconds = time.monotonic() - started
        tokenizer = self.job.reranker.checkpoint.tokenizer
        tokens = [
            len(tokenizer.join(query, doc).ids)
            for query, doc in zip(
                tokenizer.encode_queries(candidates["query"].tolist()),
                tokenizer.encode_docs(candidates["text"].tolist()),
                strict=True,
            )
        ]
        return {
            "pairs": len(candidates),
            "tokens": sum(tokens),
            "seconds": seconds,
            "memory": _peak(),
            "gpu_memory": _gpu_peak(),
        }


def estimate_rerank(
    run: Run,
    model: Model,
    output: str | os.PathLike[str],
    *,
    text: Text,
    topics: Topics | None = None,
    depth: int | None = None,
    num_workers: int | None = None,
    address: str | None = None,
    sample: int = 4,
) -> Estimate:
    """What ``rerank_dataset`` with the same arguments would take: pairs, tokens, hours, memory. Writes no run.

    All workers start, and each scores ``sample`` queries, drawn evenly from the run. The hours follow from their
    speed: starting (some seconds, and the download of a model) and joining the shards (seconds a million rows) come
    on top, and whatever else the machines do later is not foreseen.

    Args:
        run: As for ``rerank_dataset``.
        model: As for ``rerank_dataset``.
        output: As for ``rerank_dataset``; nothing is left there.
        text: As for ``rerank_dataset``.
        topics: As for ``rerank_dataset``.
        depth: As for ``rerank_dataset``.
        num_workers: As for ``rerank_dataset``.
        address: As for ``rerank_dataset``.
        sample: Queries that each worker scores, twice.

    Raises:
        ValueError: As ``rerank_dataset``; or ``sample`` is less than 1.
    """
    if not is_whole(sample, least=1):
        raise ValueError(f"estimate_rerank: sample must be at least 1 query, got {sample!r}.")
    path = Path(output).expanduser().absolute()
    with connected(address), planned(run, model, path, text, topics, depth, None, num_workers) as plan:
        rows = _sample(plan, sample)
        measured: list[dict[str, float]] = list(over_workers(Sampler, plan.job, rows, plan.workers))
    pairs = sum(one["pairs"] for one in measured)
    speed = statistics.median(one["pairs"] / one["seconds"] for one in measured)
    return Estimate(
        queries=len(plan.asked),
        pairs=plan.pairs,
        tokens=round(plan.pairs * sum(one["tokens"] for one in measured) / pairs),
        hours=plan.pairs / (speed * plan.workers.number) / 3600,
        num_workers=plan.workers.number,
        cpus_per_worker=plan.workers.cpus,
        gpus_per_worker=plan.workers.gpus,
        pairs_per_second=speed,
        sampled_pairs=int(pairs),
        worker_gb=max(one["memory"] for one in measured) / _GB,
        gpu_gb=max(one["gpu_memory"] for one in measured) / _GB,
        driver_gb=_peak() / _GB,
        disk_gb=2 * 30 * plan.pairs / _GB,
    )


def _sample(plan: Plan, size: int) -> list[dict[str, Any]]:
    """A row a worker: queries drawn evenly, dealt out in turn."""
    number = plan.workers.number
    places = np.unique(np.linspace(0, len(plan.asked) - 1, num=number * size).round().astype(int))
    hands = [hand for hand in (places[worker::number] for worker in range(number)) if len(hand)]
    rows = []
    for index, hand in enumerate(hands):
        part = plan.asked.iloc[hand]
        rows.append({
            "index": index, "qids": part["qid"].tolist(), "positions": part["position"].tolist(),
            "queries": part["query"].tolist(),
        })  # fmt: skip
    return rows


def _peak() -> float:
    """The most memory that this process was resident with, in bytes; NaN where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _gpu_peak() -> float:
    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0.0
