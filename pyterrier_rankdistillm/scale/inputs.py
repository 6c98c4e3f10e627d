"""From what users have (runs, Ray datasets, topics, texts) to what workers read by place."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt

from ..errors import InputError
from ..reranker import CrossEncoderReRanker, MonoElectraReRanker
from ..runs.atomic import replacing
from ..runs.files import write
from ..runs.given import RUN, TOPICS, Texts, Topics, described, names_a_file, run_of, texts_of, topics_of
from ..runs.index_text import IndexText
from ..runs.rankings import Rankings
from ..runs.text import join_queries
from ..scoring.checkpoint import Checkpoint
from ..scoring.folders import DEMO, looks_like_path
from .cluster import import_ray, silence

RayRun = Any
"""A run, or a ``ray.data.Dataset``."""
Model = CrossEncoderReRanker | Checkpoint | str | os.PathLike[str]

_COLUMNS = ("qid", "query_id", "docno", "doc_id", "docid", "score", "rank", "query")
_BATCH = 100_000  # rows of a Ray dataset that are written together


def reranker_of(model: Model, who: str) -> CrossEncoderReRanker:
    """The re-ranker as workers can open it: on whatever device they have, without a progress bar, by absolute path.

    Raises:
        ValueError: It names one GPU of a machine.
    """
    reranker = model if isinstance(model, CrossEncoderReRanker) else MonoElectraReRanker(model)
    if str(reranker.device) not in ("None", "cpu", "cuda"):
        raise ValueError(
            f"{who}: device of the re-ranker must be None, 'cpu' or 'cuda', got {str(reranker.device)!r}. "
            f"Ray decides which GPU a worker gets."
        )
    where = reranker.model
    if not isinstance(where, Checkpoint) and where != DEMO and (looks_like_path(where) or Path(where).is_dir()):
        where = str(Path(where).expanduser().absolute())
    return reranker.clone(model=where, verbose=False, text_field="text")


def run_file_of(run: RayRun, folder: Path, who: str) -> Path:
    """The file of a run.

    A Ray dataset or a frame becomes one, ``run.parquet`` in ``folder``; a Ray dataset is sorted by Ray, so that a
    query's documents lie together, and written as it streams by.

    Raises:
        TypeError: Something that cannot be a run.
        InputError: The dataset lacks a column.
        FileNotFoundError: There is no such file.
    """
    if not isinstance(run, str | os.PathLike | pd.DataFrame):
        ray = import_ray()
        if isinstance(run, ray.data.Dataset):
            with silence():
                return _written(run, folder / "run.parquet", who)
    given = run_of(run, who=who, accepted=f"{RUN}, or a Ray dataset")
    if given.file is not None:
        return given.file.absolute()
    frame = given.frame()
    columns = [name for name in ("qid", "docno", "score", "rank", "query") if name in frame.columns]
    target = folder / "run.parquet"
    write(frame.sort_values("qid", kind="stable")[columns], target)
    return target


def rankings_of(file: Path, folder: Path) -> Rankings:
    """A run file, mapped; the mapped form is kept beside it, or in ``folder`` if that is not writable."""
    beside = os.access(file.parent, os.W_OK)
    return Rankings.from_file(file, folder=None if beside else folder)


def text_of(text: Texts, folder: Path, who: str) -> pt.Transformer:
    """Where texts come from, as workers open it; opened once here, where faults can be reported.

    Raises:
        TypeError, KeyError, ValueError: As ``runs.add_text``.
    """
    found = texts_of(text, who=who, folder=folder)
    if isinstance(found, IndexText) and found.location is None:
        raise InputError(who, "text is an index in memory, which workers cannot open. Index to disk.")
    return found


def queries_of(rankings: Rankings, order: list[int], topics: Topics | None, given: Any, who: str) -> list[str]:
    """The queries of a run, in ``order``.

    Args:
        rankings: The run.
        order: Places in it.
        topics: Where they come from; None for the run itself, or where the texts come from if the run has none.
        given: Where texts come from, as the user said it.
        who: The function that messages name.

    Raises:
        KeyError: A qid has no query.
        ValueError: There are no topics.
    """
    qids = list(rankings.qids[:])
    if topics is None and rankings[0].query is not None:
        found = {one.qid: one.query for one in rankings}
        return [str(found[qids[position]]) for position in order]
    if topics is None:
        if not isinstance(given, str | pt.datasets.Dataset) or names_a_file(given):
            raise InputError(
                who,
                f"topics must be given, since the run has no column query and {described(given)} no topics. Give "
                f"{TOPICS}.",
            )
        topics = given
    asked = pd.DataFrame({"qid": [qids[position] for position in order]})
    found_topics = topics_of(topics, who=who, missing="drop")
    joined: list[str] = join_queries(asked, found_topics)["query"].tolist()
    return joined


def _written(dataset: Any, target: Path, who: str) -> Path:
    names = dataset.schema().names
    columns = [name for name in _COLUMNS if name in names]
    missing = [ids[0] for ids in (_COLUMNS[:2], _COLUMNS[2:5], ("score",)) if not set(ids) & set(columns)]
    if missing:
        raise ValueError(f"{who}: the Ray dataset has no column {', '.join(missing)}, but {', '.join(names)}.")
    ids = [next(name for name in columns if name in group) for group in (_COLUMNS[:2], _COLUMNS[2:5])]
    parquet = import_module("pyarrow.parquet")
    rows = dataset.select_columns(columns).sort(ids).iter_batches(batch_size=_BATCH, batch_format="pyarrow")
    with replacing(target) as scratch:
        sink: Any = None
        for table in rows:
            sink = sink or parquet.ParquetWriter(scratch, table.schema)
            sink.write_table(table)
        if sink is None:
            raise ValueError(f"{who}: the Ray dataset has no rows.")
        sink.close()
    return target
