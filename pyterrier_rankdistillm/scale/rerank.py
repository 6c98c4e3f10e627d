"""Re-ranks a run on Ray Data.

The run is memory-mapped rather than read. Only one row per shard goes through Ray, with the positions of its queries,
and a few bytes come back. An actor, which holds the model, reads the shard's documents from the mapped run, fetches
their texts, scores them and writes the shard. The run's rows and the texts never pass through the driver or Ray's
object store. So each worker needs the memory of one shard, whatever the run's size, and a list is never split. Finished
shards are on disk (see ``runs.shards``), which shows what is left to do after a crash.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from ..locks import hold, lock_of
from ..progress import bar
from ..runs.given import Texts, Topics
from ..runs.kept import made_at
from ..runs.making import Kept, MadeRun
from ..runs.shards import ShardFolder, Shards, completed, folder_of
from .cluster import connected
from .inputs import Model, RayRun
from .plan import planned
from .workers import ReRanker, over_workers


def rerank_dataset(
    run: RayRun,
    model: Model,
    output: str | os.PathLike[str],
    *,
    text: Texts,
    topics: Topics | None = None,
    depth: int | None = None,
    shard_size: int | None = None,
    num_workers: int | None = None,
    address: str | None = None,
    reuse: Collection[str] = (),
    verbose: bool | None = None,
) -> MadeRun:
    """Re-ranks a run of any size on Ray Data, on every GPU or core of one machine or many.

    ::

        model, text = "webis/monoelectra-base", "msmarco-passage/train"
        rerank_dataset("bm25.run.gz", model, "monoelectra.parquet", text=text)

    The result is that of ``MonoElectra.transform`` for the whole run: the same documents and order, and the same scores
    to 1e-5 (in float32; with another ``dtype`` a score depends a little on the pairs that it is batched with, which are
    those of its shard: by up to 0.02 in bfloat16, and 0.07 in int8, with the demo checkpoint). The work is done in
    shards of whole queries, kept as Parquet files in ``{output}.shards``. If it stops, the same call continues with the
    missing shards, also with another number of workers. If a worker dies, another one takes its shard. At the end, the
    record ``{output}.json`` is written beside the run, and the shards are deleted. If run and record of the same work
    exist already, they are returned.

    With several machines, ``run``, ``output``, texts and checkpoint must be where all of them can read them.

    Args:
        run: The first stage's run: a file as for ``runs.read_parts`` (the rows of a query together), a published run
            (``"rankdistillm:colbert"``), or a ``ray.data.Dataset`` with the columns qid, docno and score (and rank,
            query), which Ray sorts first.
        model: A ``MonoElectra`` or another re-ranker of this package, or a hub id or folder for one. Give a model by
            name rather than as an open ``Checkpoint``, whose weights are copied to each machine.
        output: Run file to write; the suffix decides the format, as in ``runs.write``.
        text: The source of the passages, fetched shard by shard: a dataset (``"msmarco-passage"``), any text loader, or
            a Parquet file with docno and text, see ``ParquetText``.
        topics: The source of the queries: a frame, a dataset, or a Parquet file with qid and query. Default: the run's
            column query; if it has none, the dataset ``text``.
        depth: Number of documents per query; default: all of the run's.
        shard_size: Number of queries per shard, which is the most that is lost when a worker dies. Default: up to 100,
            so that there are at least 64 shards.
        num_workers: Number of actors that score. Default: one per GPU or, without GPUs, one per machine. Each has one
            GPU, or its share of the cores.
        address: Address of a running Ray. Default: the one in use or running here; otherwise one is started for this
            call.
        reuse: Parts that differ from what made the saved work (``"reranker"``, ``"text"``), although it is to be used
            anyway. An error names them.
        verbose: Show a progress bar; None: in a terminal or a notebook.

    Returns:
        The run and its record, as from ``runs.make_teacher_run``; it can be a student's teacher.

    Raises:
        ValueError, KeyError: As from ``runs`` and ``MonoElectra``: the run is malformed, queries or texts are missing,
            or scores are not finite; or there are more workers than Ray has room for.
        WorkerError: A shard killed its worker several times, or no worker responded for ten minutes.
        KeptWorkError: ``output`` or ``{output}.shards`` belongs to other work.
        InUseError: Another process makes this run.
        ImportError: Ray Data is not installed.
    """
    path = Path(output).expanduser().absolute()
    who = "rerank_dataset"
    with (
        hold(lock_of(path), f"{who}: {path}"),
        connected(address, who),
        planned(run, model, path, text, topics, depth, shard_size, num_workers, who, reuse) as plan,
    ):
        label = plan.job.reranker.label
        done = completed(path, plan.work)
        if done is not None:
            plan.work.warn()
            return MadeRun(path, done, Kept(done["queries"], made_at(path), tuple(plan.work.notes(done["made by"]))))
        qids, size = plan.asked["qid"].tolist(), plan.settings["shard_size"]
        shards = Shards(folder_of(path), qids, size=size, work=plan.work, suffix=".parquet")
        shards.forget_beginnings()
        pending = shards.pending()
        with bar(verbose, total=len(qids), unit=" queries", desc=label) as drawn:
            drawn.update(len(qids) - sum(len(shard.qids) for shard in pending))
            rows = [plan.row(shard) for shard in pending]
            folder = ShardFolder(shards.folder, shards.suffix)
            try:
                for queries in over_workers(ReRanker, plan.job, rows, plan.workers, shards.folder, folder=folder):
                    drawn.update(queries)
            finally:
                shards.ended(("text",))
        return MadeRun(path, shards.complete(path, plan.settings, tag=label.lower()))
