"""Pools the tasks of a corpus into one set of topics, judgements and runs, as in the paper's notebook or corrected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

Mode = Literal["corrected", "as_published"]


@dataclass(frozen=True)
class Part:
    """A task and the runs on it.

    Args:
        task: Its name.
        topics: Column ``qid``; the judged topics.
        qrels: Columns ``qid``, ``docno``, ``label``.
        runs: Runs with ``qid``, ``docno``, ``score`` and ``rank``, by system.
        as_found: The number of a topic in the first stage's run file, by its qid, if the two differ.
    """

    task: str
    topics: pd.DataFrame
    qrels: pd.DataFrame
    runs: Mapping[str, pd.DataFrame]
    as_found: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pool:
    """Topics, judgements and runs that are evaluated together.

    Args:
        topics: Column ``qid``.
        qrels: Columns ``qid``, ``docno``, ``label``; of these topics only.
        runs: Runs, by system; of these topics only.
    """

    topics: pd.DataFrame
    qrels: pd.DataFrame
    runs: Mapping[str, pd.DataFrame]


def pool(parts: Sequence[Part], mode: Mode) -> Pool:
    """Pools the tasks of a corpus, all of which have the same systems.

    ``"as_published"`` concatenates them as they are. Topics of different tasks with the same number are merged: if a
    document was retrieved or judged twice for a number, the last time counts. Only topics for which every system found
    documents are kept.

    ``"corrected"`` gives the topics of each task distinct names (``task:qid``, if there are several tasks), so that
    none are merged. It keeps all judged topics: a topic without documents counts as 0.
    """
    if mode == "as_published":
        return _as_published(parts)
    if len(parts) == 1:
        return Pool(parts[0].topics[["qid"]], parts[0].qrels, parts[0].runs)
    systems = parts[0].runs
    return Pool(
        topics=pd.concat([_named(part, part.topics[["qid"]]) for part in parts], ignore_index=True),
        qrels=pd.concat([_named(part, part.qrels) for part in parts], ignore_index=True),
        runs={name: pd.concat([_named(p, p.runs[name]) for p in parts], ignore_index=True) for name in systems},
    )


def _named(part: Part, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(qid=[f"{part.task}:{qid}" for qid in frame["qid"]])


def _as_published(parts: Sequence[Part]) -> Pool:
    qrels = _last(pd.concat([part.qrels for part in parts], ignore_index=True))
    runs = {
        name: _last(pd.concat([_as_found(part, part.runs[name]) for part in parts], ignore_index=True))
        for name in parts[0].runs
    }
    shared = set(qrels["qid"]).intersection(*(set(run["qid"]) for run in runs.values()))
    return Pool(
        topics=pd.DataFrame({"qid": sorted(shared)}, dtype=object),
        qrels=_only(qrels, shared),
        runs={name: _only(run, shared) for name, run in runs.items()},
    )


def _as_found(part: Part, run: pd.DataFrame) -> pd.DataFrame:
    return run.assign(qid=[part.as_found.get(qid, qid) for qid in run["qid"]])


def _last(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop_duplicates(["qid", "docno"], keep="last")


def _only(frame: pd.DataFrame, qids: set[str]) -> pd.DataFrame:
    return frame[frame["qid"].isin(qids)].reset_index(drop=True)
