"""What rank_llm writes: an LLM's rankings as JSON, one result per query, with ``query`` and ``candidates``.

Its other output, TREC files, is read as any run is. Ranks are the places among the candidates. The scores are those
that rank_llm writes: for listwise models the first stage's, handed out in the new order, which are no margins (read
such runs with ``order="rank"``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
import pyterrier as pt

from ..checks import whole
from ..errors import RunFileError
from .streams import json_of


def is_rank_llm(head: str) -> bool:
    """Whether a file that begins with that line is rank_llm's: a list of results, or a result on each line."""
    if head.startswith("["):
        return head.rstrip() == "[" or head.lstrip("[ ").startswith("{")
    try:
        record = json_of(head)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and {"query", "candidates"} <= record.keys()


def pieces_of(lines: Iterable[tuple[int, str]], name: str) -> Iterator[pd.DataFrame]:
    """The rankings, a frame per query: ``qid``, ``docno``, ``score``, ``rank`` and ``query``.

    Args:
        lines: The file's, numbered.
        name: The file's, for messages.

    Raises:
        RunFileError: A result is malformed.
    """
    for where, result in _results(lines, name):
        try:
            query, candidates = result["query"], result["candidates"]
            rows = [(candidate["docid"], candidate["score"]) for candidate in candidates]
            qid, text = query["qid"], query["text"]
        except (KeyError, TypeError) as error:
            raise RunFileError(
                f"{where}: a result of rank_llm has query (qid, text) and candidates (docid, score), got no {error}."
            ) from error
        if not rows:
            continue
        frame = pd.DataFrame(rows, columns=["docno", "score"]).assign(qid=_id(qid, where), query=text)
        if frame["score"].dtype.kind not in "iuf":
            raise RunFileError(f"{where}: score must be a finite number, got {rows[0][1]!r}.")
        docnos = [_id(docno, where) for docno in frame["docno"]]
        ranks = range(pt.model.FIRST_RANK, pt.model.FIRST_RANK + len(frame))
        frame = frame.assign(
            docno=pd.Series(docnos, dtype=object), rank=list(ranks), score=frame["score"].astype(float)
        )
        yield frame[["qid", "docno", "score", "rank", "query"]]


def _results(lines: Iterable[tuple[int, str]], name: str) -> Iterator[tuple[str, Any]]:
    numbered = iter(lines)
    number, head = next(numbered)
    try:
        if head.startswith("["):
            whole_file = "\n".join([head, *(line for _, line in numbered)])
            for place, result in enumerate(json_of(whole_file), start=1):
                yield f"{name}, result {place}", result
            return
        yield f"{name}, line {number}", json_of(head)
        for number, line in numbered:
            yield f"{name}, line {number}", json_of(line)
    except (ValueError, RecursionError) as error:
        raise RunFileError(f"{name}, line {number}: not valid JSON: {error}.") from error


def _id(value: Any, where: str) -> str:
    number = whole(value)
    if not isinstance(number, str | int) or isinstance(number, bool) or number == "":
        raise RunFileError(f"{where}: ids must be strings or whole numbers, got {value!r}.")
    return str(number)
