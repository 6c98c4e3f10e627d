"""Topics, judgments, texts and runs of a task."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyterrier as pt

from ..extras import require
from ..runs.download import md5_of
from ..runs.given import (
    QRELS,
    TEXTS,
    TOPICS,
    Door,
    GivenRun,
    Qrels,
    Texts,
    Topics,
    contradiction,
    qrels_of,
    run_of,
    texts_of,
    topics_of,
)
from ..runs.index_text import index_at
from ..runs.published import PARENT
from ..runs.records import frame_digest
from ..runs.text import texts_by
from .arguments import Arguments
from .catalogue import FIRST_STAGE, Table, Task

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
                f"reproduce: first stage {name!r} is given for {odd[0]!r}, which is not a task of {table.name}. The "
                f"tasks are: {', '.join(task.name for task in table.tasks)}."
            )
    if table.by == "corpus" and len(named) > 1:
        raise ValueError(f"reproduce: {table.name} takes one first stage at a time, got {', '.join(named)}.")
    return {
        name: {task.name: sources.get(task.name, sources.get(task.corpus)) for task in table.tasks}
        if isinstance(sources, Mapping)
        else {task.name: sources for task in table.tasks}
        for name, sources in named.items()
    }


def check_sources(stages: Mapping[str, Mapping[str, Any]], arguments: Arguments) -> None:
    """Finds out, before anything is downloaded, whether what was given can be what it is given as.

    Raises:
        TypeError, FileNotFoundError, InputError: It cannot; or a file is not there.
    """
    for task in arguments.tasks:
        with contextlib.suppress(DataUnavailable):  # which is told of each task when its turn comes
            for sources in stages.values():
                source = sources.get(task.name)
                if source is not None and not isinstance(source, pt.Transformer) and not _is_tira(source):
                    run_for(source, task, "first_stage")
        for argument, given, accepted in (
            ("topics", arguments.topics, TOPICS), ("qrels", arguments.qrels, QRELS), ("text", arguments.text, TEXTS),
        ):  # fmt: skip
            one = of_task(given, task)
            if isinstance(one, str | os.PathLike) and not (argument == "text" and index_at(one)):
                Door("reproduce", argument, accepted).path(one)


def names_each_task(given: str | os.PathLike[str]) -> bool:
    """Whether a name stands for one file per task."""
    return _TASK in os.fspath(given)


def load_topics(given: Topics | None, task: Task) -> pd.DataFrame:
    """Topics with ``qid`` and ``query``; default: those of the task's dataset.

    Raises:
        DataUnavailable: They cannot be had here.
        InputError, DataFileError: They are not topics.
    """
    with available("topics"):
        return topics_of(task.dataset if given is None else given, who="reproduce")


def load_qrels(given: Qrels | None, task: Task) -> pd.DataFrame:
    """Judgments with ``qid``, ``docno`` and ``label``; default: those of the task's dataset.

    Raises:
        DataUnavailable: They cannot be had here.
        InputError, DataFileError: They are not judgments.
    """
    with available("judgments"):
        qrels = qrels_of(task.dataset if given is None else given, who="reproduce")
    if qrels.empty:
        raise Door("reproduce", "qrels", QRELS).wrong(f"of {task.name} must not be empty.")
    return qrels


def add_text(run: pd.DataFrame, given: Texts | None, task: Task) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Adds ``text`` to a run.

    Args:
        run: The documents.
        given: Where texts come from; default: the task's dataset.
        task: The task.

    Returns:
        The run, without the documents that have no text, and the fields that were read.

    Raises:
        DataUnavailable: The texts cannot be had here.
    """
    with available("documents", theirs=given is None):
        loader = texts_of(task.dataset if given is None else given, who="reproduce")
        texts = texts_by(loader, run["docno"].unique().tolist())
        kept = run[run["docno"].isin(texts)].reset_index(drop=True)
        return kept.assign(text=[texts[docno] for docno in kept["docno"]]), tuple(getattr(loader, "fields", ("text",)))


def load_run(source: Any, task: Task, argument: str) -> LoadedRun:
    """A run from a frame, a file (``{task}`` in its name stands for the task, with dashes for slashes), or TIRA.

    Raises:
        DataUnavailable: A file of a pattern is not there, or TIRA does not give the run.
        InputError, RunFileError: It is not a run, or one whose ranks contradict its scores.
    """
    given = run_for(source, task, argument)
    md5 = frame_digest(given.source) if isinstance(given.source, pd.DataFrame) else md5_of(cast(Path, given.file))
    run, again = given.deduplicated()
    odd = contradiction(run)
    if odd is not None:
        raise given.door.wrong(f"({given.name}) {odd}")
    if "score" not in run.columns:
        run = run.assign(score=-run["rank"].astype(np.float64))
    note = f"{given.name} listed documents twice for a topic; the better-ranked were kept, {again} rows were dropped."
    return LoadedRun(run[_RUN_COLUMNS], {"source": given.name, "md5": md5}, note if again else None)


def run_for(source: Any, task: Task, argument: str) -> GivenRun:
    """The run of a task, which is there, but not read yet.

    Raises:
        DataUnavailable: A file of a pattern is not there, or TIRA does not give the run.
        TypeError, FileNotFoundError, InputError: It is not a run.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    if _is_tira(source):
        return run_of(_from_tira(name.partition(":")[2] or TIRA, task), who="reproduce", argument=argument)
    if _TASK in name:
        path = Path(str(of_task(name, task))).expanduser()
        if not path.exists():
            raise DataUnavailable(f"There is no file {path}.")
        return run_of(path, who="reproduce", argument=argument)
    found = run_of(source, who="reproduce", argument=argument)
    if found.published and not task.dataset.startswith(PARENT):
        raise found.door.wrong(
            f"must be of the topics of {task.name}: published runs rank the training queries of MS MARCO, got "
            f"{found.name!r}."
        )
    return found


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


def _is_tira(source: Any) -> bool:
    return isinstance(source, str) and (source == "tira" or source.startswith("tira:"))


def _from_tira(approach: str, task: Task) -> Path:
    if not task.tira:
        raise DataUnavailable("TIRA has no run of it, since it is not a task of TIREx.")
    client = require("tira.rest_api_client", "first_stage='tira' (files, such as 'runs/{task}.run.gz', do not)").Client
    with available(f"run of {approach}"):
        return Path(client().get_run_output(approach, task.tira)) / "run.txt"


@contextmanager
def available(what: str, *, theirs: bool = False) -> Iterator[None]:
    """Failed downloads and missing licensed files are not the user's errors; ir_datasets raises these for them.

    Args:
        what: What is opened, for the message.
        theirs: Whether a missing file is one of ir_datasets, rather than one that the user named.

    Raises:
        DataUnavailable: It cannot be had here.
    """
    try:
        yield
    except DataUnavailable:
        raise
    except FileNotFoundError as error:
        if not theirs:
            raise
        why = f"there is no {error.filename or error}"
        raise DataUnavailable(f"Its {what} could not be obtained here ({why}).") from error
    except (OSError, RuntimeError) as error:
        # ir_datasets adds every source that it tried.
        said = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
        why = f"{type(error).__name__}: {said[:200]}"
        raise DataUnavailable(f"Its {what} could not be obtained here ({why}).") from error


def _label(source: Any) -> str:
    """The name of an unnamed first stage."""
    if isinstance(source, str | os.PathLike):
        return Path(os.fspath(source).partition(":")[0]).name.split(".")[0].strip("-_{}") or FIRST_STAGE
    return FIRST_STAGE
