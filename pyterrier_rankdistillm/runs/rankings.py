"""Runs by ranking, for training: any query's documents at random, without the run in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no one truth to compare by
class Ranking:
    """What a run has for one query.

    Args:
        qid: The query's id.
        docnos: Its documents, best first.
        scores: Their scores, shape (documents,); None where the run has ranks only.
        query: The query's text; None where the run has none.
    """

    qid: str
    docnos: list[str]
    scores: NDArray[np.float64] | None
    query: str | None


class Rankings:
    """A run as one ranking a query, by position: ``rankings[0]`` is the first query's ``Ranking``.

    Made by ``from_frame`` or ``from_file``. Documents are in the order of the run's ranks; where it has none, by
    descending score, equal ones by docno, descending, as trec_eval orders them. From a file, the documents stay on
    disk and are mapped into memory: a process holds eight bytes a query, and pickles (for a ``DataLoader``'s workers)
    carry the path.

    Attributes:
        qids: The queries, in the order of the run.
        docnos: The documents of all rows, ranking after ranking, best first; ``docnos[row]`` for any ``row`` below
            ``rows`` is a draw from all that was retrieved, as for random negatives.
        sizes: How many documents each query has, shape (queries,).
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
            run: Columns ``qid``, ``docno``, at least one of ``rank`` and ``score``, and ``query`` where there is one.

        Raises:
            ValueError: The frame is no run, or a query has several texts.
        """
        return cls(_columns(_valid(run)))

    @classmethod
    def from_file(cls, source: str | os.PathLike[str], *, folder: str | os.PathLike[str] | None = None) -> Rankings:
        """The rankings of a run file of any size.

        The file is read once, part by part, into a form that can be mapped into memory (Arrow, some 20 bytes a row),
        which is kept and used again until the file changes: its size, its time of modification, or its first or last
        64 KiB. Processes that start together may each make it; it appears whole, and theirs are equal.

        Args:
            source: A run file as for ``read_parts``, or a published run: ``"rankdistillm:rankzephyr"``, downloaded if
                it is not there.
            folder: Where the mapped form is kept; default: beside the file, under its name and ``.rankings``.

        Raises:
            RunFileError: The file is malformed, or the rows of a query do not lie together.
            ValueError: A query has several texts, or something else has the mapped form's name.
            PermissionError: The folder is not writable.
            ImportError: Without pyarrow.
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
        """Documents of all rankings together."""
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


@dataclass(frozen=True)
class _Columns:
    """Rankings one after another; columns are numpy's (in memory) or Arrow's (mapped).

    Args:
        qids: Strings, shape (queries,).
        queries: Strings or None, shape (queries,).
        starts: The row where each ranking begins, and where the last one ends, shape (queries + 1,).
        docnos: Strings, shape (rows,).
        scores: Shape (rows,), or None.
    """

    qids: Any
    queries: Any
    starts: Integers
    docnos: Any
    scores: Any | None


class _Strings(Sequence[str]):
    """A column of strings, as Python's strings when asked for."""

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
    """The frame with ranks; a ValueError where it is no run."""
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
    # A run without scores is one whose scores fall with its ranks.
    scored = run if "score" in run.columns else run.assign(score=-run["rank"])
    ids = Ids.of(scored)
    fault = first_fault(scored, ids)
    if fault is not None:
        raise ValueError(f"Rankings: row {fault.row} (from 0): {fault.what}.{fault.remedy}")
    return run.assign(rank=positions(scored, ids))


# --- mapped: a row a query, whose documents are a list ---------------------------------------------------------------


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
    """The rankings of a form that is there, mapped."""
    pa, _ = arrow()
    if not form.is_there():
        raise FileNotFoundError(f"Rankings: {form.path} is gone or of another run by now. Open the run file again.")
    table = form.table()
    lists = table["docnos"].chunks
    rows = np.append(0, np.cumsum([len(chunk.flatten()) for chunk in lists]))
    starts = [chunk.offsets.to_numpy()[:-1] + first for chunk, first in zip(lists, rows[:-1], strict=True)]
    docnos, scores = (pa.chunked_array([c.flatten() for c in table[name].chunks]) for name in ("docnos", "scores"))
    columns = _Columns(table["qid"], table["query"], np.concatenate([*starts, rows[-1:]]), docnos, scores)
    return Rankings(columns, form)
