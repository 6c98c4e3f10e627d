"""From what users have (runs, Ray datasets, topics, texts) to what workers read by place."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt

from ..reranker import CrossEncoderReRanker, MonoElectraReRanker
from ..runs.atomic import replacing
from ..runs.parquet_text import ParquetText
from ..runs.published import fetch
from ..runs.rankings import Rankings
from ..runs.records import describe
from ..runs.text import Dataset, add_queries, text_loader
from ..scoring.checkpoint import Checkpoint
from ..scoring.folders import DEMO, looks_like_path
from .cluster import import_ray, silence

Run = Any
"""A run file, the name of a published run, or a ``ray.data.Dataset``."""
Topics = pd.DataFrame | Dataset | os.PathLike[str]
Text = pt.Transformer | Dataset | os.PathLike[str]
Model = CrossEncoderReRanker | Checkpoint | str | os.PathLike[str]

_PUBLISHED = "rankdistillm:"
_PARQUET = (".parquet", ".pq")
_COLUMNS = ("qid", "query_id", "docno", "doc_id", "docid", "score", "rank", "query")
_BATCH = 100_000  # rows of a Ray dataset that are written together


def reranker_of(model: Model) -> CrossEncoderReRanker:
    """The re-ranker as workers can open it: on whatever device they have, without a progress bar, by absolute path.

    Raises:
        ValueError: It names one GPU of a machine.
    """
    reranker = model if isinstance(model, CrossEncoderReRanker) else MonoElectraReRanker(model)
    if str(reranker.device) not in ("None", "cpu", "cuda"):
        raise ValueError(
            f"rerank_dataset: device of the re-ranker must be None, 'cpu' or 'cuda', got {str(reranker.device)!r}. "
            f"Which GPU a worker has is Ray's to say."
        )
    where = reranker.model
    if not isinstance(where, Checkpoint) and where != DEMO and (looks_like_path(where) or Path(where).is_dir()):
        where = str(Path(where).expanduser().absolute())
    return reranker.clone(model=where, verbose=False, text_field="text")


def run_file_of(run: Run, folder: Path) -> Path:
    """The file of a run.

    A Ray dataset becomes one, ``run.parquet`` in ``folder``: sorted by Ray, so that a query's documents lie together,
    and written as it streams by.

    Raises:
        ValueError: The dataset lacks a column.
        FileNotFoundError: There is no such file.
    """
    if not isinstance(run, str | os.PathLike):
        ray = import_ray()
        if isinstance(run, ray.data.Dataset):
            with silence():
                return _written(run, folder / "run.parquet")
        raise TypeError(f"rerank_dataset: run must be a run file, a published run or a Ray dataset, got {run!r}.")
    if isinstance(run, str) and run.startswith(_PUBLISHED):
        return fetch(run.removeprefix(_PUBLISHED))
    path = Path(run).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"rerank_dataset: run must be a run file, a published run or a Ray dataset; there is "
                                f"no {path}.")  # fmt: skip
    return path


def rankings_of(file: Path, folder: Path) -> Rankings:
    """A run file, mapped; the mapped form lies beside it, or in ``folder`` where that cannot be written to."""
    beside = os.access(file.parent, os.W_OK)
    return Rankings.from_file(file, folder=None if beside else folder)


def text_of(text: Text, folder: Path) -> pt.Transformer | Dataset:
    """Where texts come from, as workers open it; already opened once, since what is wrong is told here.

    Raises:
        KeyError: There is no such dataset.
        ValueError: It has no documents.
    """
    if isinstance(text, pt.Transformer):
        return text
    if _is_parquet(text):
        file = Path(str(text)).expanduser().absolute()
        beside = os.access(file.parent, os.W_OK)
        return ParquetText(file, folder=None if beside else folder)
    dataset: Any = text
    text_loader(dataset)
    return dataset  # type: ignore[no-any-return]


def named(text: pt.Transformer | Dataset) -> Any:
    """What texts are known by in the record."""
    if isinstance(text, ParquetText):
        return {"parquet": text.source.name, "bytes": text.source.stat().st_size}
    return describe(text) if isinstance(text, pt.Transformer) else str(text)


def queries_of(rankings: Rankings, order: list[int], topics: Topics | None, text: Any) -> list[str]:
    """The queries of a run, in ``order``.

    Args:
        rankings: The run.
        order: Places in it.
        topics: Where they come from; None for the run itself, or the dataset ``text`` where it has none.
        text: The dataset with the texts.

    Raises:
        KeyError: A qid has no query.
        ValueError: There are no topics.
    """
    if topics is None and rankings[0].query is not None:
        topics = pd.DataFrame([(one.qid, one.query) for one in rankings], columns=["qid", "query"])
    elif topics is None:
        if isinstance(text, pt.Transformer):
            raise ValueError(
                f"rerank_dataset: topics must be given, since the run has no column query and {text!r} no topics. "
                f"Give a frame with qid and query, a dataset, or a Parquet file."
            )
        topics = text
    frame: Any = topics
    if isinstance(topics, str | os.PathLike) and _is_parquet(topics):
        frame = pd.read_parquet(topics)
    if isinstance(frame, pd.DataFrame):
        frame = frame.rename(columns={"query_id": "qid", "text": "query"} if "query" not in frame.columns else {})
        missing = [name for name in ("qid", "query") if name not in frame.columns]
        if missing:
            raise ValueError(
                f"rerank_dataset: topics must have the columns qid and query, got no {', '.join(missing)}."
            )
    qids = list(rankings.qids[:])
    asked = pd.DataFrame({"qid": [qids[position] for position in order]})
    return add_queries(asked, frame)["query"].tolist()


def _is_parquet(source: object) -> bool:
    return isinstance(source, str | os.PathLike) and Path(source).suffix in _PARQUET


def _written(dataset: Any, target: Path) -> Path:
    names = dataset.schema().names
    columns = [name for name in _COLUMNS if name in names]
    missing = [ids[0] for ids in (_COLUMNS[:2], _COLUMNS[2:5], ("score",)) if not set(ids) & set(columns)]
    if missing:
        raise ValueError(f"rerank_dataset: the Ray dataset has no column {', '.join(missing)}, but {', '.join(names)}.")
    ids = [next(name for name in columns if name in group) for group in (_COLUMNS[:2], _COLUMNS[2:5])]
    parquet = import_module("pyarrow.parquet")
    rows = dataset.select_columns(columns).sort(ids).iter_batches(batch_size=_BATCH, batch_format="pyarrow")
    with replacing(target) as scratch:
        sink: Any = None
        for table in rows:
            sink = sink or parquet.ParquetWriter(scratch, table.schema)
            sink.write_table(table)
        if sink is None:
            raise ValueError("rerank_dataset: the Ray dataset has no rows.")
        sink.close()
    return target
