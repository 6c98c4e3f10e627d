"""Re-ranks a run on Ray Data.

The run is mapped, not read: what goes through Ray is a row a shard, with the places of its queries, and it comes back
as a few bytes. An actor, which holds the model, reads the shard's documents from the map, fetches their texts, scores
and writes the shard; the run's rows and the texts never pass through the driver or Ray's object store. So memory is
that of a shard a worker, whatever the run's size, and a list is never split. What is finished is on disk, in the shards
of ``runs.shards``, which say what is left after any crash.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyterrier as pt

from ..locks import hold, lock_of
from ..runs.making import MadeRun
from ..runs.shards import ShardFolder, Shards, completed, folder_of
from .cluster import connected
from .inputs import Model, Run, Text, Topics
from .plan import planned
from .workers import ReRanker, over_workers


def rerank_dataset(
    run: Run,
    model: Model,
    output: str | os.PathLike[str],
    *,
    text: Text,
    topics: Topics | None = None,
    depth: int | None = None,
    shard_size: int | None = None,
    num_workers: int | None = None,
    address: str | None = None,
    verbose: bool = True,
) -> MadeRun:
    """Re-ranks a run of any size on Ray Data, on every GPU or core of one machine or many.

    ::

        rerank_dataset("bm25.run.gz", "webis/monoelectra-base", "monoelectra.parquet", text="msmarco-passage/train")

    Gives what ``MonoElectra.transform`` gives for the whole run: the same documents and order, scores to 1e-5. The work
    is done in shards of whole queries, kept as Parquet files in ``{output}.shards``. Whenever it stops, the same call
    goes on with the shards that are missing, also with other numbers of workers; what a worker leaves unfinished, when
    it dies, another one takes. Afterwards the record ``{output}.json`` lies beside the run and the shards are deleted.
    A call that finds run and record of the same work returns them.

    On several machines, ``run``, ``output``, texts and checkpoint must lie where all of them see them.

    Args:
        run: The first stage's run: a file as for ``runs.read_parts`` (the rows of a query together), a published run
            (``"rankdistillm:colbert"``), or a ``ray.data.Dataset`` with the columns qid, docno and score (and rank,
            query), which Ray sorts first.
        model: A ``MonoElectra``, or what one is made of: a hub id, a folder. Give a model by name rather than an open
            ``Checkpoint``, whose weights are copied to each machine.
        output: Run file to write; the suffix says the format, as in ``runs.write``.
        text: Where passages come from, fetched shard by shard: a dataset (``"msmarco-passage"``), any text loader, or a
            Parquet file with docno and text, see ``ParquetText``.
        topics: Where queries come from: a frame, a dataset, or a Parquet file with qid and query. Default: the run's
            column query; where it has none, the dataset ``text``.
        depth: Documents a query; default: all of the run's.
        shard_size: Queries a shard: what is lost at most when a worker dies. Default: up to 100, so that there are at
            least 64 shards.
        num_workers: Actors that score. Default: one a GPU, or, without GPUs, one a machine. Each has one GPU, or its
            share of the cores.
        address: Of a running Ray. Default: the one in use or running here, else one is started for this call.
        verbose: Show a progress bar.

    Returns:
        The run and its record, as ``runs.make_teacher_run`` gives them; it can be a student's teacher.

    Raises:
        ValueError, KeyError: What ``runs`` and ``MonoElectra`` say of a run that is none, queries or texts that are
            missing, scores that are not finite; or more workers than Ray has room for.
        WorkerError: Workers died of one shard again and again, or none of them gave a sign of life for ten minutes.
        ShardError: ``{output}.shards`` is of other work.
        FileExistsError: ``output`` is of other work.
        InUseError: Another process makes this run.
        ImportError: Without Ray Data.
    """
    path = Path(output).expanduser().absolute()
    with (
        hold(lock_of(path), f"rerank_dataset: {path}"),
        connected(address),
        planned(run, model, path, text, topics, depth, shard_size, num_workers) as plan,
    ):
        done = completed(path, plan.settings)
        if done is not None:
            return MadeRun(path, done)
        qids, size = plan.asked["qid"].tolist(), plan.settings["shard_size"]
        shards = Shards(folder_of(path), qids, size=size, settings=plan.settings, suffix=".parquet")
        shards.forget_beginnings()
        pending = shards.pending()
        with pt.tqdm(total=len(qids), unit=" queries", desc="MonoElectra", disable=not verbose) as bar:
            bar.update(len(qids) - sum(len(shard.qids) for shard in pending))
            rows = [plan.row(shard) for shard in pending]
            folder = ShardFolder(shards.folder, shards.suffix)
            for queries in over_workers(ReRanker, plan.job, rows, plan.workers, shards.folder, folder=folder):
                bar.update(queries)
        return MadeRun(path, shards.complete(path, plan.settings, tag="monoelectra"))
