"""Tasks of one corpus as one set of topics, judgements and runs: as the paper's notebook did it, and corrected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

Mode = Literal["corrected", "as_published"]


@dataclass(frozen=True)
class Part:
    """A task and what was run on it.

    Args:
        task: Its name.
        topics: Column ``qid``; the judged topics.
        qrels: Columns ``qid``, ``docno``, ``label``.
        runs: Runs with ``qid``, ``docno``, ``score`` and ``rank``, by system.
        as_found: By what number a topic goes in the first stage's run file, where it is another than in the topics.
    """

    task: str
    topics: pd.DataFrame
    qrels: pd.DataFrame
    runs: Mapping[str, pd.DataFrame]
    as_found: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pool:
    """What is evaluated together.

    Args:
        topics: Column ``qid``.
        qrels: Columns ``qid``, ``docno``, ``label``; of these topics only.
        runs: Runs, by system; of these topics only.
    """

    topics: pd.DataFrame
    qrels: pd.DataFrame
    runs: Mapping[str, pd.DataFrame]


def pool(parts: Sequence[Part], mode: Mode) -> Pool:
    """Pools the tasks of a corpus, all of which hold the same systems.

    ``"as_published"`` concatenates them as they are. Topics of different tasks that have one number fall together: a
    document that was retrieved or judged twice for a number counts as it was the last time. Only topics that every
    system has found documents for are kept.

    ``"corrected"`` gives each task's topics names of their own (``task:qid``, where there are several tasks), so that
    nothing falls together, and keeps all judged topics: one without documents counts as 0.
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
