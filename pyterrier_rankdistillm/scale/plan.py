"""The plan of the work, which is checked before any work is done."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..checks import is_whole, whole
from ..query_language import RewrittenQueryWarning, remedy, rewritten
from ..reranker import CrossEncoderReRanker
from ..runs.download import md5_of
from ..runs.files import check_target
from ..runs.given import Texts, Topics
from ..runs.kept import Work, check_reuse
from ..runs.kinds import frame
from ..runs.records import describe, frame_digest, model_identity
from ..runs.shards import Shard, folder_of
from ..scoring.checkpoint import Checkpoint
from ..set_encoder import of_its_kind
from .cluster import Workers, nodes, share
from .inputs import Model, RayRun, queries_of, rankings_of, reranker_of, run_file_of, text_of
from .workers import Job

_LARGEST_SHARD, _SHARDS = 100, 64


@dataclass(frozen=True)
class Plan:
    """A run that is to be re-ranked.

    Args:
        job: How each part is re-ranked.
        asked: The queries in the order of the result, by qid: columns qid, query, and position (in the run).
        workers: The workers.
        settings: What the result depends on, for its record, as JSON values, including ``shard_size``.
        work: The same, by content.
    """

    job: Job
    asked: pd.DataFrame
    workers: Workers
    settings: dict[str, Any]
    work: Work

    @cached_property
    def pairs(self) -> int:
        """The number of pairs to be scored."""
        sizes = self.job.rankings.sizes
        return int(sizes.sum() if self.job.depth is None else np.minimum(sizes, self.job.depth).sum())

    def row(self, shard: Shard) -> dict[str, Any]:
        """A shard as a row of Ray Data."""
        start = shard.index * self.settings["shard_size"]
        part = self.asked.iloc[start : start + len(shard.qids)]
        return {
            "index": shard.index,
            "qids": list(shard.qids),
            "positions": part["position"].tolist(),
            "queries": part["query"].tolist(),
        }


@contextmanager
def planned(
    run: RayRun,
    model: Model,
    path: Path,
    text: Texts,
    topics: Topics | None,
    depth: int | None,
    shard_size: int | None,
    num_workers: int | None,
    who: str,
    reuse: Collection[str] = (),
) -> Iterator[Plan]:
    """The plan for ``rerank_dataset``, with the same arguments. An error before the work begins leaves no files.

    Raises:
        ValueError: An argument is out of range.
    """
    for name, value in (("depth", depth), ("shard_size", shard_size), ("num_workers", num_workers)):
        if value is not None and not is_whole(value, least=1):
            raise ValueError(f"{who}: {name} must be None or at least 1, got {value!r}.")
    depth, shard_size, num_workers = whole(depth), whole(shard_size), whole(num_workers)
    check_target(path)  # before days of work
    folder = folder_of(path)
    try:
        reranker = reranker_of(model, who)
        workers = share(nodes(), num_workers, gpu=str(reranker.device) != "cpu", who=who)
        file = run_file_of(run, folder, who)
        rankings = rankings_of(file, folder)
        qids = list(rankings.qids[:])
        order = sorted(range(len(qids)), key=qids.__getitem__)  # the order of transform's result
        found = text_of(text, folder, who)
        queries = queries_of(rankings, order, topics, text, who)
        fact = rewritten(zip((qids[n] for n in order), queries, strict=True))
        if fact is not None:  # here, since warnings of workers are seen by nobody
            warnings.warn(
                f"{who}: {fact}. The model reads that as words, and ranks worse. {remedy(())}", RewrittenQueryWarning,
                stacklevel=4,
            )  # fmt: skip
        asked = pd.DataFrame({"qid": [qids[n] for n in order], "query": queries, "position": order})
        if not isinstance(model, CrossEncoderReRanker):
            reranker = of_its_kind(reranker)
        identity = model_identity(reranker.clone(device="cpu"))  # the driver need not have a GPU
        if not isinstance(reranker.model, Checkpoint):
            reranker = reranker.clone(revision=identity["revision"])  # the same for all workers
        shard_size = shard_size or max(1, min(_LARGEST_SHARD, len(qids) // _SHARDS))
        numbers = {"depth": depth, "shard_size": shard_size}
        settings = {
            "reranker": identity, "run": md5_of(file), "topics": frame_digest(asked[["qid", "query"]]),
            "text": describe(found), **numbers,
        }  # fmt: skip
        work = Work(
            {
                "reranker": reranker,
                "run": Path(file),
                "topics": frame(asked[["qid", "query"]]),
                "text": found,
                **numbers,
            },
            certain=("run", "topics", *numbers),
            reuse=check_reuse(who, reuse, ("reranker", "text")),
            who=who,
        )
        yield Plan(Job(reranker, rankings, found, depth), asked, workers, settings, work)
    finally:
        if folder.is_dir() and not (folder / "manifest.json").exists():
            shutil.rmtree(folder)
