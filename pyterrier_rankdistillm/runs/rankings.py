"""Runs by ranking, for training: random access to any query's documents, without holding the run in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .files import read_parts
from .mapped import MappedForm, arrow
from .published import PREFIX, fetch
from .ranks import Ids, Integers, first_fault, positions

_TOGETHER = 10_000  # rankings that are looked at together


@dataclass(frozen=True, slots=True, eq=False)  # arrays do not compare to a single bool
class Ranking:
    """The ranking of one query.

    Args:
        qid: The query's id.
        docnos: Its documents, best first.
        scores: Their scores, shape (documents,); None if the run has ranks only.
        query: The query's text; None if the run has none.
    """

    qid: str
    docnos: list[str]
    scores: NDArray[np.float64] | None
    query: str | None


class Rankings:
    """A run as a sequence of rankings, one per query: ``rankings[0]`` is the first query's ``Ranking``.

    It is made by ``from_frame`` or ``from_file``. Documents are in the order of the run's ranks. Without ranks, they
    are ordered by descending score, and equal scores by descending docno, as trec_eval does. The documents of a file
    stay on disk and are memory-mapped: a process holds eight bytes per query, and pickles (for a ``DataLoader``'s
    workers) contain only the path.

    Attributes:
        qids: The queries, in the order of the run.
        docnos: The documents of all rows, ranking after ranking, best first. ``docnos[row]`` with a random ``row``
            below ``rows`` draws from all that was retrieved, as for random negatives.
        sizes: The number of documents of each query, shape (queries,).
    """

    qids: Sequence[str]
    docnos: Sequence[str]
    sizes: NDArray[np.int64]

    def __init__(self, columns: _Columns, form: MappedForm | None = None) -> None:
        self.qids, self.docnos = _Strings(columns.qids), _Strings(columns.docnos)
        self.sizes = np.diff(columns.starts)
        self._columns, self._form = columns, form

    @classmethod
    def from_frame(cls, run: pd.DataFrame) -> Rankings:
        """The rankings of a frame, held in memory.

        Args:
            run: Columns ``qid``, ``docno``, at least one of ``rank`` and ``score``, and optionally ``query``.

        Raises:
            ValueError: The frame is not a run, or a query has several texts.
        """
        return cls(_columns(_valid(run)))

    @classmethod
    def from_file(cls, source: str | os.PathLike[str], *, folder: str | os.PathLike[str] | None = None) -> Rankings:
        """The rankings of a run file of any size.

        The file is read once, part by part, into a form that can be memory-mapped (Arrow, about 20 bytes per row). The
        mapped form is kept and reused until the file changes, that is, its size, its time of modification, or its first
        or last 64 KiB. Processes that start together may each make it; it is written atomically, and all get the same.

        Args:
            source: A run file as for ``read_parts``, or a published run (``"rankdistillm:rankzephyr"``), which is
                downloaded if needed.
            folder: Where the mapped form is kept; default: beside the file, with the suffix ``.rankings``.

        Raises:
            RunFileError: The file is malformed, or the rows of a query are not contiguous.
            ValueError: A query has several texts, or another file has the mapped form's name.
            PermissionError: The folder is not writable.
            ImportError: pyarrow is not installed.
        """
        arrow()  # before a download
        if isinstance(source, str) and source.startswith(PREFIX):
            source = fetch(source.removeprefix(PREFIX))
        path = Path(source).expanduser().absolute()
        form = MappedForm.of(path, "rankings", folder)
        if not form.is_there():
            _make(form, path)
        return _open(form)

    @property
    def rows(self) -> int:
        """The number of documents of all rankings together."""
        return len(self.docnos)

    @property
    def has_scores(self) -> bool:
        """Whether rankings have scores."""
        return self._columns.scores is not None

    def contradictions(self) -> list[str]:
        """The qids in whose rankings a document has a higher score than one that is ranked above it."""
        if self._columns.scores is None:
            return []
        odd: list[str] = []
        starts = self._columns.starts
        for first in range(0, len(self), _TOGETHER):
            bounds = starts[first : first + _TOGETHER + 1]
            scores = np.asarray(self._columns.scores[int(bounds[0]) : int(bounds[-1])], dtype=np.float64)
            rises = np.flatnonzero(np.diff(scores) > 0) + 1 + bounds[0]
            places = np.searchsorted(bounds, rises, side="right") - 1
            within = rises != bounds[places]  # the first document of a ranking has none above it
            odd += [self.qids[first + int(place)] for place in np.unique(places[within])]
        return odd

    def __len__(self) -> int:
        return len(self.qids)

    def __getitem__(self, position: int) -> Ranking:
        position = range(len(self))[position]
        columns = self._columns
        rows = slice(*columns.starts[position : position + 2].tolist())
        return Ranking(
            qid=self.qids[position],
            docnos=list(self.docnos[rows]),
            scores=None if columns.scores is None else np.array(columns.scores[rows], dtype=np.float64),
            query=_Strings(columns.queries)[position],
        )

    def __iter__(self) -> Iterator[Ranking]:
        return (self[position] for position in range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Rankings, (self._columns,)) if self._form is None else (_open, (self._form,))

    def __repr__(self) -> str:
        return f"Rankings({len(self):,} queries, {self.rows:,} rows)"


class JoinedRankings(Rankings):
    """Several runs as one sequence of rankings, run after run: a query comes once per run that ranks it.

    Args:
        runs: The runs' rankings; nothing of them is copied.

    Attributes:
        runs: The same.
    """

    def __init__(self, runs: Sequence[Rankings]) -> None:
        self.runs = tuple(runs)
        self.qids = _Chain([run.qids for run in self.runs])
        self.docnos = _Chain([run.docnos for run in self.runs])
        self.sizes = np.concatenate([run.sizes for run in self.runs])
        self._starts = _starts_of(self.runs)

    @property
    def has_scores(self) -> bool:
        """Whether all rankings have scores."""
        return all(run.has_scores for run in self.runs)

    def contradictions(self) -> list[str]:
        """As ``Rankings.contradictions``; a qid once per run in which it is odd."""
        return [qid for run in self.runs for qid in run.contradictions()]

    def __getitem__(self, position: int) -> Ranking:
        run, within = _part_of(self._starts, position)
        return self.runs[run][within]

    def __reduce__(self) -> tuple[Any, ...]:
        return JoinedRankings, (self.runs,)

    def __repr__(self) -> str:
        return f"JoinedRankings({len(self.runs)} runs, {len(self):,} rankings, {self.rows:,} rows)"


@dataclass(frozen=True)
class _Columns:
    """Rankings one after another, in columns of numpy (in memory) or Arrow (mapped).

    Args:
        qids: Strings, shape (queries,).
        queries: Strings or None, shape (queries,).
        starts: The rows at which the rankings begin, and the end of the last one, shape (queries + 1,).
        docnos: Strings, shape (rows,).
        scores: Shape (rows,), or None.
    """

    qids: Any
    queries: Any
    starts: Integers
    docnos: Any
    scores: Any | None


class _Strings(Sequence[str]):
    """A column of strings, converted to Python's strings on access."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return np.asarray(self._column[place]).tolist()  # type: ignore[no-any-return]
        place = range(len(self))[place]
        return self[place : place + 1][0]


class _Chain(Sequence[str]):
    """Sequences one after another."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self._parts = parts
        self._starts = _starts_of(parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            if place == slice(None):
                return [item for part in self._parts for item in part[:]]
            return [self[at] for at in range(len(self))[place]]
        part, within = _part_of(self._starts, place)
        return self._parts[part][within]


def _starts_of(parts: Sequence[Sized]) -> Integers:
    """Where the parts of a whole begin, and where the last one ends, shape (parts + 1,)."""
    return np.append(0, np.cumsum([len(part) for part in parts], dtype=np.int64))


def _part_of(starts: Integers, place: int) -> tuple[int, int]:
    """The part that a place of the whole is in, and the place there; an IndexError beyond the whole."""
    place = range(int(starts[-1]))[place]
    part = int(np.searchsorted(starts, place, side="right")) - 1
    return part, place - int(starts[part])


def _columns(run: pd.DataFrame) -> _Columns:
    """The columns of a valid run with ranks."""
    query, qids = pd.factorize(run["qid"])
    order = np.lexsort([run["rank"].to_numpy(), query])
    starts = np.append(0, np.bincount(query).cumsum())
    run = run.iloc[order]
    texts = run["query"] if "query" in run.columns else pd.Series([None] * len(run), dtype=object)
    text, distinct = pd.factorize(texts)
    first = text[starts[:-1]]
    several = text != first[query[order]]
    if several.any():
        qid = run["qid"].iloc[int(several.argmax())]
        raise ValueError(f"Rankings: query must be one text for each qid, got several for qid {qid!r}. Keep one.")
    queries = np.array([*distinct, None], dtype=object)[first]  # a missing text has the number -1
    return _Columns(
        qids=np.array([str(qid) for qid in qids], dtype=object),
        queries=queries,
        starts=starts,
        docnos=np.array([str(docno) for docno in run["docno"]], dtype=object),
        scores=run["score"].to_numpy(dtype=np.float64) if "score" in run.columns else None,
    )


def _valid(run: pd.DataFrame) -> pd.DataFrame:
    """The frame with ranks; a ValueError if it is not a run."""
    missing = [column for column in ("qid", "docno") if column not in run.columns]
    if missing or not {"rank", "score"} & set(run.columns):
        raise ValueError(
            f"Rankings: a run has the columns qid, docno, and rank or score, got {', '.join(run.columns)}."
        )
    for column, kinds, what in (("rank", "iu", "whole numbers"), ("score", "iuf", "numbers")):
        if column in run.columns and run[column].dtype.kind not in kinds:
            raise ValueError(f"Rankings: {column} must hold {what}, got dtype {run[column].dtype}. Convert it.")
    if run.empty:
        raise ValueError("Rankings: the run has no rows.")
    # A run without scores is treated as one whose scores fall with its ranks.
    scored = run if "score" in run.columns else run.assign(score=-run["rank"])
    ids = Ids.of(scored)
    fault = first_fault(scored, ids)
    if fault is not None:
        raise ValueError(f"Rankings: row {fault.row} (from 0): {fault.what}.{fault.remedy}")
    return run.assign(rank=positions(scored, ids))


# --- mapped: one row per query, whose documents are a list -----------------------------------------------------------


def _make(form: MappedForm, run: Path) -> None:
    pa, _ = arrow()
    strings, numbers = pa.string(), pa.float64()
    kinds = {"qid": strings, "query": strings, "docnos": pa.list_(strings), "scores": pa.list_(numbers)}
    with form.writer(kinds) as append:
        for part in read_parts(run):
            columns = _columns(part)
            starts = pa.array(columns.starts, pa.int32())
            texts = [pa.array(column, strings) for column in (columns.qids, columns.queries)]
            append([*texts, *(pa.ListArray.from_arrays(starts, pa.array(c)) for c in (columns.docnos, columns.scores))])


def _open(form: MappedForm) -> Rankings:
    """The rankings of an existing mapped form."""
    pa, _ = arrow()
    if not form.is_there():
        gone = "is gone, or belongs to another run by now"
        raise FileNotFoundError(f"Rankings: {form.path} {gone}. Open the run file again.")
    table = form.table()
    lists = table["docnos"].chunks
    rows = np.append(0, np.cumsum([len(chunk.flatten()) for chunk in lists]))
    starts = [chunk.offsets.to_numpy()[:-1] + first for chunk, first in zip(lists, rows[:-1], strict=True)]
    docnos, scores = (pa.chunked_array([c.flatten() for c in table[name].chunks]) for name in ("docnos", "scores"))
    columns = _Columns(table["qid"], table["query"], np.concatenate([*starts, rows[-1:]]), docnos, scores)
    return Rankings(columns, form)
