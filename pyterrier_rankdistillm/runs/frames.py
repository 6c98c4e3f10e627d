"""Runs as frames: sub-sampling, merging, removing duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import numpy as np
import pandas as pd
import pyterrier as pt

from ..checks import is_whole
from .ranks import Ids, check_columns, positions


def subsample(
    run: pd.DataFrame,
    *,
    queries: int | None = None,
    depth: int | None = None,
    seed: int = 42,
    first_stage: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A sample of a run: some queries, and the top of each ranking, as varied in the paper (10,000 x 100 documents).

    Samples are nested: with the same seed, a sample of 100 queries is part of that of 1,000. The choice does not depend
    on the order of the rows or on numpy's version. Queries are chosen by a hash of seed and qid.

    Args:
        run: Columns ``qid``, ``docno``, ``score``, and optionally ``rank``.
        queries: The number of queries; default: all.
        depth: The number of documents per query, counted in ``first_stage`` if it is given, else in the run itself;
            default: all. Shorter rankings stay as they are.
        seed: Decides which queries are chosen.
        first_stage: The run that a teacher re-ranked. The paper's shallower sets contain what the teacher would have
            seen of a shallower first stage: its top ``depth``, in the teacher's order.

    Returns:
        A new frame in the run's order, with ranks from 0.

    Raises:
        ValueError: There are fewer queries than asked for, or no ranking has ``depth`` documents.
    """
    for name, value in (("queries", queries), ("depth", depth)):
        if value is not None and not is_whole(value, least=1):
            raise ValueError(f"subsample: {name} must be None or at least 1, got {value!r}.")
    if first_stage is not None and depth is None:
        raise ValueError("subsample: first_stage says what depth counts, but depth is None. Give a depth.")
    run = _with_ranks(run, "subsample")
    if queries is not None:
        qids = run["qid"].unique()
        if len(qids) < queries:
            raise ValueError(f"subsample: queries must be at most {len(qids)}, as many as the run has, got {queries}.")
        run = run[run["qid"].isin(sorted(qids, key=lambda qid: _draw(seed, qid))[:queries])]
    if depth is not None:
        reference = run if first_stage is None else _with_ranks(first_stage, "subsample")
        deepest = int(reference.groupby("qid", sort=False).size().max()) if len(reference) else 0
        if deepest < depth:
            which = "run" if first_stage is None else "first stage"
            raise ValueError(f"subsample: depth must be at most {deepest}, as deep as the {which} is, got {depth}.")
        top = reference.loc[reference["rank"] < depth + pt.model.FIRST_RANK, ["qid", "docno"]]
        kept = pd.MultiIndex.from_frame(run[["qid", "docno"]]).isin(pd.MultiIndex.from_frame(top))
        run = run[kept]
    run = run.reset_index(drop=True)
    return run.assign(rank=positions(run, Ids.of(run)))


def merge(runs: Iterable[pd.DataFrame], *, overlap: Literal["error", "first"] = "error") -> pd.DataFrame:
    """Joins runs of different queries into one: parts of a teacher's run, several collections, old and new queries.

    Args:
        runs: Runs with the same columns.
        overlap: What to do with a query that is in several runs: raise an error, or keep the ranking of the first run
            that has it. (Rankings are never mixed, since scores of different systems are not comparable. Fuse runs with
            PyTerrier.)

    Returns:
        A new frame, run after run.

    Raises:
        ValueError: Runs overlap, or differ in their columns.
    """
    if overlap not in ("error", "first"):
        raise ValueError(f"merge: overlap must be 'error' or 'first', got {overlap!r}.")
    kept: list[pd.DataFrame] = []
    seen: set[str] = set()
    for run in runs:
        check_columns(run, "merge")
        if kept and set(run.columns) != set(kept[0].columns):
            raise ValueError(
                f"merge: the runs must have the same columns, got {list(kept[0].columns)} and {list(run.columns)}. "
                f"Drop what only one of them has."
            )
        qids = set(run["qid"].unique())
        again = seen & qids
        if again and overlap == "error":
            raise ValueError(
                f"merge: qid {min(again)!r} is in several runs ({len(again)} such queries). overlap='first' keeps the "
                f"ranking of the first run."
            )
        kept.append(run[~run["qid"].isin(again)] if again else run)
        seen |= qids
    if not kept:
        raise ValueError("merge: there are no runs.")
    return pd.concat(kept, ignore_index=True)


def deduplicate(run: pd.DataFrame) -> pd.DataFrame:
    """Keeps the better-ranked of rows with the same (qid, docno), and closes the gaps in the ranks.

    Args:
        run: Columns ``qid``, ``docno``, ``score``, and optionally ``rank``.

    Returns:
        A new frame in the run's order, with ranks from 0; ``len(run) - len(result)`` rows were duplicates.
    """
    run = _with_ranks(run, "deduplicate")
    by_rank = run.iloc[np.argsort(run["rank"].to_numpy(), kind="stable")]
    again = pd.Series(Ids.of(by_rank).repeated(), index=by_rank.index)
    run = run[~again.sort_index()].reset_index(drop=True)
    return run.assign(rank=positions(run, Ids.of(run)))


def _with_ranks(run: pd.DataFrame, context: str) -> pd.DataFrame:
    check_columns(run, context)
    run = run.reset_index(drop=True)
    return run.assign(rank=positions(run, Ids.of(run)))


def _draw(seed: int, qid: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{qid}".encode()).digest()
