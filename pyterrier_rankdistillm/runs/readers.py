"""Files of topics, judgments and texts, read as strictly as runs are: what is odd is an error with file and line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..checks import is_text, told, whole
from ..errors import DataFileError
from .parquet import ParquetFile
from .streams import fields_of, json_of, lines_of, opened

QID, DOCNO = ("qid", "query_id", "_id"), ("docno", "doc_id", "docid", "id", "_id")
QUERY, TEXT = ("query", "text"), ("text",)
"""Names of columns, the canonical one first: another one counts only where those before it are missing."""

PARQUET = (".parquet", ".pq")
_HEADERS = {(qid, query) for qid in QID for query in QUERY}


def read_topics(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The topics of a file, in its order: columns ``qid`` and ``query``.

    Args:
        path: Lines of qid, tab, query; or JSON lines or Parquet with ``qid`` (or query_id, _id) and ``query`` (or
            text). Plain or gz.

    Raises:
        DataFileError: A line is malformed, or a qid has two queries.
    """
    return _read(path, "topics", "query", (QID, QUERY), _topic)


def read_texts(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The texts of a file, in its order: columns ``docno`` and ``text``.

    Args:
        path: JSON lines or Parquet with ``docno`` (or doc_id, docid, id, _id) and ``text``. Plain or gz.

    Raises:
        DataFileError: A line is malformed, or a docno has two texts.
    """
    return _read(path, "texts", "text", (DOCNO, TEXT), None)


def read_qrels(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The judgments of a TREC file, in its order: columns ``qid``, ``docno`` and ``label``.

    Args:
        path: Lines of qid, iteration, docno and label, separated by spaces or tabs. Plain or gz.

    Raises:
        DataFileError: A line is malformed, or a document is judged twice, with different labels.
    """
    rows: dict[tuple[str, str], tuple[int, int]] = {}
    with opened(path) as (stream, name):
        for number, line in lines_of(stream, name):
            fields = fields_of(line)
            where = f"{name}, line {number}"
            if len(fields) != 4:
                raise DataFileError(
                    f"{where}: {len(fields)} fields, TREC judgments have 4 (qid iteration docno label)."
                )
            qid, _, docno, stated = fields
            if not re.fullmatch("-?[0-9]{1,18}", stated):
                raise DataFileError(
                    f"{where}: the label must be a whole number, got {stated!r}, and of 18 digits at most."
                )
            label, first = rows.setdefault((qid, docno), (int(stated), number))
            if label != int(stated):
                raise DataFileError(
                    f"{where}: docno {docno!r} is judged {int(stated)} for qid {qid!r}, and {label} in line {first}. "
                    f"Keep one."
                )
    if not rows:
        raise DataFileError(f"{os.fspath(path)} has no judgments.")
    return pd.DataFrame([(qid, docno, label) for (qid, docno), (label, _) in rows.items()],
                        columns=["qid", "docno", "label"])  # fmt: skip


def _topic(line: str) -> tuple[Any, Any] | None:
    """A line of a TSV file; None where it is a header."""
    qid, tab, query = line.partition("\t")
    if not tab:
        raise ValueError("topics are lines of qid, tab, query, and there is no tab")
    return None if (qid.lower(), query.lower()) in _HEADERS else (qid, query)


def _read(
    path: str | os.PathLike[str],
    what: str,
    value: str,
    names: tuple[Sequence[str], Sequence[str]],
    plain: Callable[[str], tuple[Any, Any] | None] | None,
) -> pd.DataFrame:
    """Keys with one string each; ``plain`` reads a line that is not JSON."""
    key = names[0][0]
    found: dict[str, str] = {}
    for where, given in _rows(Path(path).expanduser(), what, names, plain):
        identifier, text = whole(given[0]), given[1]
        identifier = str(identifier) if isinstance(identifier, int) and not isinstance(identifier, bool) else identifier
        if not is_text(identifier) or not identifier:
            raise DataFileError(f"{where}: {key} is {told(identifier)}.")
        if not is_text(text):
            raise DataFileError(f"{where}: {value} of {key} {identifier!r} is {told(text)}.")
        if found.setdefault(identifier, text) != text:
            raise DataFileError(f"{where}: {key} {identifier!r} comes a second time, with another {value}. Keep one.")
    if not found:
        raise DataFileError(f"{os.fspath(path)} has no {what}.")
    return pd.DataFrame({key: list(found), value: list(found.values())}, dtype=object)


def _rows(
    path: Path,
    what: str,
    names: tuple[Sequence[str], Sequence[str]],
    plain: Callable[[str], tuple[Any, Any] | None] | None,
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """What a file's rows hold, and what to call each in messages."""
    if path.name.removesuffix(".gz").endswith(PARQUET):
        with opened(path) as (stream, name), ParquetFile.opened(stream, name) as parquet:
            columns = [column for choices in names if (column := pick(parquet.names, choices)) is not None]
            if len(columns) < len(names):
                raise DataFileError(f"{path}: {what} have the columns {names[0][0]} and {names[1][0]}, got "
                                    f"{', '.join(parquet.names)}.")  # fmt: skip
            before = 0
            for batch in parquet.batches(columns):
                pairs = zip(*(batch.column(column).to_pylist() for column in columns), strict=True)
                yield from ((f"{path}, row {row}", pair) for row, pair in enumerate(pairs, start=before + 1))
                before += batch.num_rows
        return
    with opened(path) as (stream, name):
        for number, line in lines_of(stream, name):
            where = f"{name}, line {number}"
            if line.startswith("{"):
                yield where, _record(line, where, names)
            elif plain is None:
                raise DataFileError(f"{where}: {what} are JSON lines with {names[0][0]} and {names[1][0]}, got "
                                    f"{line[:60]!r}.")  # fmt: skip
            else:
                try:
                    row = plain(line)
                except ValueError as error:
                    raise DataFileError(f"{where}: {error}.") from error
                if row is not None:
                    yield where, row


def _record(line: str, where: str, names: tuple[Sequence[str], Sequence[str]]) -> tuple[Any, Any]:
    try:
        record = json_of(line)
    except (ValueError, RecursionError) as error:
        raise DataFileError(f"{where}: not valid JSON: {error}.") from error
    keys = [pick(record, choices) for choices in names]
    for key, choices in zip(keys, names, strict=True):
        if key is None:
            raise DataFileError(f"{where}: {choices[0]} is missing; there are: {', '.join(record)}.")
    return record[keys[0]], record[keys[1]]


def pick(columns: Any, choices: Sequence[str]) -> str | None:
    """Which of some names is there; the canonical one, which comes first, before its aliases."""
    return next((name for name in choices if name in columns), None)
