"""What makes a frame a run: no missing ids, finite scores, no duplicate documents, and ranks from 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyterrier as pt
from numpy.typing import NDArray

Integers = NDArray[np.int64]

REQUIRED = ("qid", "docno", "score")


FaultKind = Literal["id", "score", "rank", "twice"]


@dataclass(frozen=True)
class Fault:
    """What is wrong with a run.

    Args:
        row: In which of its rows (from 0).
        kind: An id that is missing, a score that is not finite, a rank that is not a whole number, or a document that
            is twice in a ranking.
        what: The same in words.
    """

    row: int
    kind: FaultKind
    what: str

    @property
    def remedy(self) -> str:
        """What to do about it in a frame, as another sentence; empty where there is nothing to say."""
        return " runs.deduplicate(run) keeps the better-ranked one." if self.kind == "twice" else ""


@dataclass(frozen=True)
class Ids:
    """The distinct queries and documents of a run, and the query and document of each row.

    Args:
        qids: Distinct qids in order of appearance.
        docnos: Distinct docnos in order of appearance.
        query: Index into ``qids``, shape (rows,).
        document: Index into ``docnos``, shape (rows,).
    """

    qids: pd.Index
    docnos: pd.Index
    query: Integers
    document: Integers

    @classmethod
    def of(cls, run: pd.DataFrame) -> Ids:
        """The ids of a frame with ``qid`` and ``docno``."""
        query, qids = pd.factorize(run["qid"])
        document, docnos = pd.factorize(run["docno"])
        return cls(pd.Index(qids), pd.Index(docnos), query.astype(np.int64), document.astype(np.int64))

    def repeated(self) -> NDArray[np.bool_]:
        """Which rows repeat the (qid, docno) of an earlier one, shape (rows,)."""
        return pd.Series(self.query * max(len(self.docnos), 1) + self.document).duplicated().to_numpy()


def check_columns(run: pd.DataFrame, context: str) -> None:
    """Raises a ValueError, which begins with ``context``, if a frame lacks a column that every run has."""
    missing = [column for column in REQUIRED if column not in run.columns]
    if missing:
        raise ValueError(f"{context}: a run has the columns {', '.join(REQUIRED)}, got no {', '.join(missing)}.")


def first_fault(run: pd.DataFrame, ids: Ids, *, repeated: bool = True) -> Fault | None:
    """The first reason why a frame with ``qid``, ``docno`` and ``score`` is not a run.

    Args:
        run: Any frame; ``score`` must be numeric.
        ids: Its ids.
        repeated: Whether a duplicate document in a ranking counts as a fault.
    """
    for name, code, values in (("qid", ids.query, ids.qids), ("docno", ids.document, ids.docnos)):
        missing = (code < 0) | np.isin(code, np.flatnonzero(values.to_numpy(dtype=object) == ""))
        if missing.any():
            return Fault(int(missing.argmax()), "id", f"{name} is missing")
    scores = run["score"].to_numpy(dtype=np.float64)
    odd = ~np.isfinite(scores)
    if odd.any():
        row = int(odd.argmax())
        return Fault(row, "score", f"score must be a finite number, got {scores[row]}")
    if "rank" in run.columns:
        bad = not_whole(run["rank"])
        if bad.any():
            row = int(bad.argmax())
            return Fault(row, "rank", f"rank must be a whole number of 64 bits, got {run['rank'].iloc[row]}")
    if repeated:
        again = ids.repeated()
        if again.any():
            row = int(again.argmax())
            return Fault(
                row,
                "twice",
                f"docno {run['docno'].iloc[row]!r} occurs twice in the ranking of qid {run['qid'].iloc[row]!r}",
            )
    return None


def positions(run: pd.DataFrame, ids: Ids) -> Integers:
    """Ranks from 0 without gaps, shape (rows,): in the order of ``rank`` if there is one, else of the scores.

    Equal ranks are ordered by score, and equal scores by docno, descending, as trec_eval does.
    """
    first = pt.model.FIRST_RANK
    if "rank" in run.columns:
        rank = run["rank"].to_numpy(dtype=np.int64)
        in_order = _positions_if_in_order(rank, ids.query)
        if in_order is not None:
            return in_order + first
        keys = [rank]
    else:
        keys = []
    by_docno = np.empty(len(ids.docnos), dtype=np.int64)
    by_docno[np.argsort(ids.docnos.astype(str).to_numpy(dtype=object), kind="stable")] = np.arange(len(ids.docnos))
    score = run["score"].to_numpy(dtype=np.float64)
    order = np.lexsort([-by_docno[ids.document], -score, *keys, ids.query])
    ranks = np.empty(len(run), dtype=np.int64)
    ranks[order] = _count_within(ids.query[order])
    return ranks + first


def order_disagrees(run: pd.DataFrame) -> pd.Index:
    """The qids in whose rankings a document has a better ``rank`` but a lower ``score`` than another."""
    by_rank = run.sort_values(["qid", "rank"], kind="stable")
    query, score = by_rank["qid"].to_numpy(), by_rank["score"].to_numpy(dtype=np.float64)
    rises = (query[1:] == query[:-1]) & (score[1:] > score[:-1])
    return pd.Index(query[1:][rises].tolist()).unique()  # type: ignore[no-any-return]


def not_whole(values: pd.Series) -> NDArray[np.bool_]:
    """Which values are not whole numbers that a signed integer of 64 bits holds, shape (rows,)."""
    kind = values.dtype.kind
    if kind == "i" and not values.hasnans:
        return np.zeros(len(values), dtype=bool)
    if kind == "u" and not values.hasnans:
        return values.to_numpy() >= 2**63
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return ~((numbers == np.floor(numbers)) & (np.abs(numbers) < 2.0**63))  # type: ignore[no-any-return]


def _positions_if_in_order(rank: Integers, query: Integers) -> Integers | None:
    """The ranks of files in the usual order (query after query, ranks rising by one), found quickly; else None."""
    if not len(rank):
        return rank
    place = _count_within(query)
    starts = np.flatnonzero(place == 0)
    if len(starts) != query.max() + 1:  # a query's rows are not contiguous
        return None
    first_ranks = np.repeat(rank[starts], np.diff(np.append(starts, len(rank))))
    return place if np.array_equal(rank, first_ranks + place) else None


def _count_within(query: Integers) -> Integers:
    """0, 1, 2, ... in every sequence of equal numbers."""
    rows = np.arange(len(query))
    new = np.ones(len(query), dtype=bool)
    new[1:] = query[1:] != query[:-1]
    return rows - np.maximum.accumulate(np.where(new, rows, 0))
