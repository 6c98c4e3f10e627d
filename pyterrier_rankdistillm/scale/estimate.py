"""Estimates what re-ranking a run would take, from a sample that is measured on the same workers."""

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
from ..runs.given import Texts, Topics
from ..runs.shards import Shard, folder_of
from .cluster import connected
from .inputs import Model, RayRun
from .plan import Plan, planned
from .workers import Worker, over_workers

_GB = 1e9


@dataclass(frozen=True)
class Estimate:
    """What re-ranking a run would take.

    Args:
        queries: Number of queries of the run.
        pairs: Number of pairs to be scored, counted.
        tokens: Number of tokens of all pairs, including special tokens, from the sample's mean.
        hours: Time from the first pair to the last, with ``num_workers``, from the sample's speed.
        num_workers: Number of actors.
        cpus_per_worker: Number of cores per actor.
        gpus_per_worker: Number of GPUs per actor.
        pairs_per_second: Speed of one worker while the others also score, the sample's median.
        sampled_pairs: Number of pairs of the sample.
        worker_gb: Peak memory of a worker in the sample, in 10^9 bytes, including mapped files; NaN on Windows.
        gpu_gb: Peak GPU memory that a worker allocated; 0 without GPUs.
        driver_gb: Peak memory of this process so far; NaN on Windows.
        disk_gb: Disk space of the shards and the run together, at about 30 bytes per row and copy.
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
            f"{self.pairs:,} pairs of {self.queries:,} queries, about {self.tokens:,} tokens\n"
            f"{self.hours:,.2f} hours with {self.num_workers} workers (each {has} cores) at "
            f"{self.pairs_per_second:,.1f} pairs per second each, measured on {self.sampled_pairs:,} pairs\n"
            f"memory: {self.worker_gb:.1f} GB per worker{gpu}, {self.driver_gb:.1f} GB here; "
            f"disk: {self.disk_gb:.1f} GB"
        )


class Sampler(Worker):
    """Scores a sample twice, and returns the measurements of the second time, since the first is a warm-up."""

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
    run: RayRun,
    model: Model,
    output: str | os.PathLike[str],
    *,
    text: Texts,
    topics: Topics | None = None,
    depth: int | None = None,
    num_workers: int | None = None,
    address: str | None = None,
    sample: int = 4,
) -> Estimate:
    """Estimates what ``rerank_dataset`` with the same arguments would take: pairs, tokens, hours, memory.

    It writes no run. All workers start, and each scores ``sample`` queries, drawn evenly from the run. The hours are
    computed from their speed. Starting (some seconds, and the download of a model) and joining the shards (seconds per
    million rows) come on top. Other work that the machines do later is not accounted for.

    Args:
        run: As for ``rerank_dataset``.
        model: As for ``rerank_dataset``.
        output: As for ``rerank_dataset``; no file remains there.
        text: As for ``rerank_dataset``.
        topics: As for ``rerank_dataset``.
        depth: As for ``rerank_dataset``.
        num_workers: As for ``rerank_dataset``.
        address: As for ``rerank_dataset``.
        sample: Number of queries that each worker scores, twice.

    Raises:
        ValueError: As for ``rerank_dataset``; or ``sample`` is less than 1.
    """
    if not is_whole(sample, least=1):
        raise ValueError(f"estimate_rerank: sample must be at least 1 query, got {sample!r}.")
    path = Path(output).expanduser().absolute()
    who = "estimate_rerank"
    with connected(address, who), planned(run, model, path, text, topics, depth, None, num_workers, who) as plan:
        rows = _sample(plan, sample)
        measured: list[dict[str, float]] = list(over_workers(Sampler, plan.job, rows, plan.workers, folder_of(path)))
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
    """One row per worker: queries drawn evenly, and assigned to the workers in turn."""
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
    """The peak resident memory of this process, in bytes; NaN where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _gpu_peak() -> float:
    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0.0
