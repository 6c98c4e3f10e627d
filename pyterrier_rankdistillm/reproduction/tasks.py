"""Topics, judgements, texts and first stages, in whatever form a user has them."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd
import pyterrier as pt

from .. import runs
from ..extras import require
from ..runs.download import md5_of
from ..runs.ranks import Ids, check_columns, first_fault, positions
from ..runs.records import frame_digest
from .catalogue import FIRST_STAGE, Table, Task

Given: TypeAlias = "pd.DataFrame | str | os.PathLike[str] | pt.datasets.Dataset"
Text: TypeAlias = "Given | pt.Transformer"
Run: TypeAlias = "pd.DataFrame | str | os.PathLike[str] | pt.Transformer"

TIRA = "ir-benchmarks/tira-ir-starter/BM25 (tira-ir-starter-pyterrier)"
"""The first stage that ``first_stage="tira"`` stands for."""

_TASK = "{task}"
_RUN_COLUMNS = ["qid", "docno", "score", "rank"]


class DataUnavailable(Exception):  # noqa: N818  (a state of the world, which is listed and not raised)
    """A task cannot be run here; the message says why."""


@dataclass(frozen=True)
class LoadedRun:
    """A run that was made elsewhere.

    Args:
        frame: Columns ``qid``, ``docno``, ``score``, ``rank`` (from 0, without gaps).
        origin: Where it came from and its checksum, for the record.
        note: What was changed in it, if anything.
    """

    frame: pd.DataFrame
    origin: dict[str, Any]
    note: str | None = None


def of_task(given: Any, task: Task) -> Any:
    """The value for a task in a mapping by task or corpus; anything that is not a mapping applies to all tasks.

    In a file name, ``{task}`` is replaced by the task, with dashes instead of slashes.
    """
    if isinstance(given, Mapping):
        given = given.get(task.name, given.get(task.corpus))
    return given.replace(_TASK, task.name.replace("/", "-")) if isinstance(given, str) else given


def first_stages(given: Any, table: Table) -> dict[str, dict[str, Any]]:
    """First stages by name, each with its sources by task; a first stage may lack a source for some tasks.

    Raises:
        ValueError: A mapping has keys that are neither all tasks (or corpora) nor all names.
    """
    places = {task.name for task in table.tasks} | {task.corpus for task in table.tasks}
    if not isinstance(given, Mapping):
        named: dict[str, Any] = {_label(given): given}
    elif not given:
        raise ValueError("reproduce: first_stage must not be empty. Give a run, a transformer, or a mapping of them.")
    elif all(key in places for key in given):
        named = {FIRST_STAGE: given}
    elif any(key in places for key in given):
        odd = [key for key in given if key not in places]
        raise ValueError(
            f"reproduce: the keys of first_stage must be all tasks (or corpora), or all names of first stages, got "
            f"{odd} beside tasks. The tasks are: {', '.join(task.name for task in table.tasks)}."
        )
    else:
        named = dict(given)
    for name, sources in named.items():
        odd = [key for key in sources if key not in places] if isinstance(sources, Mapping) else []
        if odd:
            raise ValueError(
                f"reproduce: first stage {name!r} is given for {odd[0]!r}, which is no task of {table.name}. The tasks "
                f"are: {', '.join(task.name for task in table.tasks)}."
            )
    if table.by == "corpus" and len(named) > 1:
        raise ValueError(f"reproduce: {table.name} takes one first stage at a time, got {', '.join(named)}.")
    return {
        name: {task.name: sources.get(task.name, sources.get(task.corpus)) for task in table.tasks}
        if isinstance(sources, Mapping)
        else {task.name: sources for task in table.tasks}
        for name, sources in named.items()
    }


def is_path(given: Any) -> bool:
    """Whether something names a file, rather than a dataset."""
    return isinstance(given, os.PathLike) or (isinstance(given, str) and Path(given).expanduser().is_file())


def load_topics(given: Given | None, task: Task) -> pd.DataFrame:
    """Topics with ``qid`` and ``query``; default: those of the task's dataset.

    Raises:
        DataUnavailable: They cannot be had here.
        ValueError: They are no topics.
    """
    with _available("topics"):
        if isinstance(given, pd.DataFrame):
            topics = given
        elif is_path(given):
            with _opened(cast(str, given)) as lines:
                rows = [line.rstrip("\r\n").split("\t", 1) for line in lines if not line.isspace()]
            if any(len(row) != 2 for row in rows):
                raise ValueError(f"reproduce: topics must be lines of qid, tab, query; {given} has others.")
            topics = pd.DataFrame(rows, columns=["qid", "query"])
        else:
            topics = runs.load_topics(cast(Any, task.dataset if given is None else given))
    missing = [column for column in ("qid", "query") if column not in topics.columns]
    if missing or topics.empty:
        what = f"no column {', '.join(missing)}" if missing else "no row"
        raise ValueError(f"reproduce: the topics of {task.name} must have the columns qid and query, got {what}.")
    return topics[["qid", "query"]].astype({"qid": str}).drop_duplicates("qid").reset_index(drop=True)


def load_qrels(given: Given | None, task: Task) -> pd.DataFrame:
    """Judgements with ``qid``, ``docno`` and ``label``; default: those of the task's dataset.

    Raises:
        DataUnavailable: They cannot be had here.
        ValueError: They are no judgements.
    """
    with _available("judgements"):
        if isinstance(given, pd.DataFrame):
            qrels = given
        elif is_path(given):
            qrels = pt.io.read_qrels(os.fspath(Path(cast(str, given)).expanduser()))
        else:
            qrels = runs.load_qrels(cast(Any, task.dataset if given is None else given))
    missing = [column for column in ("qid", "docno", "label") if column not in qrels.columns]
    if missing or qrels.empty:
        what = f"no column {', '.join(missing)}" if missing else "no row"
        raise ValueError(f"reproduce: the qrels of {task.name} must have qid, docno and label, got {what}.")
    if not pd.api.types.is_integer_dtype(qrels["label"]):
        raise ValueError(f"reproduce: the labels of {task.name} must be whole numbers, got {qrels['label'].dtype}.")
    return qrels[["qid", "docno", "label"]].astype({"qid": str, "docno": str}).reset_index(drop=True)


def add_text(run: pd.DataFrame, given: Text | None, task: Task) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Adds ``text`` to a run.

    Returns:
        The run, without the documents that a frame (or file) of texts lacks, and the fields that were read.

    Raises:
        DataUnavailable: The texts cannot be had here.
        KeyError: A dataset lacks a document.
    """
    with _available("documents"):
        frame = _texts(given)
        if frame is not None:
            texts = dict(zip(frame["docno"].astype(str), frame["text"], strict=True))
            kept = run[run["docno"].isin(texts)].reset_index(drop=True)
            return kept.assign(text=[texts[docno] for docno in kept["docno"]]), ("text",)
        loader: Any = task.dataset if given is None else given
        loader = loader if isinstance(loader, pt.Transformer) else runs.text_loader(loader)
        run = runs.add_text(run, loader)
        return run, tuple(getattr(loader, "fields", ("text",)))


def load_run(source: Any, task: Task) -> LoadedRun:
    """A run from a frame, a file (``{task}`` in its name stands for the task, with dashes for slashes), or TIRA.

    Raises:
        DataUnavailable: A file of a pattern is not there, or TIRA does not give the run.
        ValueError: It is no run.
    """
    if isinstance(source, pd.DataFrame):
        return _checked(source, {"source": "a frame", "md5": frame_digest(source)})
    name = os.fspath(source)
    if name == "tira" or name.startswith("tira:"):
        path = _from_tira(name.partition(":")[2] or TIRA, task)
    else:
        path = Path(of_task(name, task)).expanduser()
        if _TASK in name and not path.exists():
            raise DataUnavailable(f"There is no file {path}.")
    origin = {"source": os.fspath(path) if path.name == name else path.name, "md5": md5_of(path)}
    try:
        return LoadedRun(runs.read(path)[_RUN_COLUMNS], origin)
    except runs.RunFileError as error:
        if "twice" not in str(error):
            raise
    note = f"{path.name} lists documents twice for a topic; the better-ranked of them were kept."
    return LoadedRun(runs.read(path, duplicates="drop")[_RUN_COLUMNS], origin, note)


def matching_numbers(run: pd.DataFrame, topics: pd.DataFrame, task: Task) -> tuple[pd.DataFrame, dict[str, str]]:
    """Cranfield's queries have two numberings: 1 to 225, as the judgements', and the collection's own, with gaps.

    Returns:
        The run, in the topics' numbering, and the number in the run of each topic for which the two differ.

    Raises:
        ValueError: The run has the collection's own numbers, but not all of them, so that they cannot be matched.
    """
    if task.name != "cranfield" or run["qid"].isin(topics["qid"]).all():
        return run, {}
    ours, theirs = (sorted(frame["qid"].unique(), key=int) for frame in (topics, run))
    if len(ours) != len(theirs):
        raise ValueError(
            f"reproduce: the run of cranfield numbers its queries by the collection's .I numbers and lacks some of "
            f"them: {len(theirs)} of {len(ours)} are there, so that they cannot be matched. Give a run of all queries."
        )
    numbers = dict(zip(theirs, ours, strict=True))
    as_found = {ours: theirs for theirs, ours in numbers.items() if theirs != ours}
    return run.assign(qid=[numbers[qid] for qid in run["qid"]]), as_found


def _checked(run: pd.DataFrame, origin: dict[str, Any]) -> LoadedRun:
    check_columns(run, "reproduce")
    deduplicated = runs.deduplicate(run)
    again = len(run) - len(deduplicated)
    run = deduplicated.astype({"qid": str, "docno": str, "score": np.float64})
    ids = Ids.of(run)
    fault = first_fault(run, ids)
    if fault is not None:
        raise ValueError(f"reproduce: row {fault.row} of a run: {fault.what}.")
    note = f"A run listed documents twice for a topic; {again} rows were dropped." if again else None
    return LoadedRun(run.assign(rank=positions(run, ids))[_RUN_COLUMNS], origin, note)


def _from_tira(approach: str, task: Task) -> Path:
    if not task.tira:
        raise DataUnavailable("TIRA has no run of it, since it is no task of TIREx.")
    client = require("tira.rest_api_client", "first_stage='tira' (files, such as 'runs/{task}.run.gz', do not)").Client
    with _available(f"run of {approach}"):
        return Path(client().get_run_output(approach, task.tira)) / "run.txt"


def _texts(given: Text | None) -> pd.DataFrame | None:
    if isinstance(given, pd.DataFrame):
        missing = [column for column in ("docno", "text") if column not in given.columns]
        if missing:
            raise ValueError(f"reproduce: text must have the columns docno and text, got no {', '.join(missing)}.")
        return given
    if not is_path(given):
        return None
    with _opened(cast(str, given)) as lines:
        records = [json.loads(line) for line in lines]
    try:
        return pd.DataFrame({name: [record[name] for record in records] for name in ("docno", "text")}, dtype=object)
    except (KeyError, TypeError) as error:
        raise ValueError(f"reproduce: {given} must hold lines of JSON with docno and text, got no {error}.") from error


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    path = Path(path).expanduser()
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        yield lines


@contextmanager
def _available(what: str) -> Iterator[None]:
    """Failed downloads and missing licensed files are not the user's errors; ir_datasets raises these for them."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # ir_datasets adds every source that it tried.
        said = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
        raise DataUnavailable(f"Its {what} cannot be had here ({type(error).__name__}: {said[:200]}).") from error


def _label(source: Any) -> str:
    """The name of an unnamed first stage."""
    if isinstance(source, str | os.PathLike):
        return Path(os.fspath(source).partition(":")[0]).name.split(".")[0].strip("-_{}") or FIRST_STAGE
    return FIRST_STAGE
