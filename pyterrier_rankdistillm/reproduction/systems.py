"""The first stage's documents for a task, and the systems' runs over them, kept as files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyterrier as pt

from .. import runs
from ..errors import ReproductionError
from ..reranker import CrossEncoderReRanker
from ..runs.java import start_java
from ..runs.kept import Record, Refusal, Work, refused
from ..runs.making import FIRST_STAGE as FIRST_PART
from ..runs.making import MadeRun, Roles, make_run
from ..runs.ranks import Ids, positions
from ..runs.records import frame_digest
from ..runs.shards import kept_at
from . import tasks as task_data
from .arguments import Arguments, file_name
from .bm25 import Bm25, Index
from .catalogue import FIRST_STAGE, Task
from .pooling import Part
from .tasks import DataUnavailable
from .texts import OwnTexts

_SHARD = 8  # topics that are lost at most when a run is interrupted


@dataclass
class TaskRuns:
    """A first stage on a task, and the systems' runs over it.

    Args:
        stage: The user's name for the first stage.
        task: The task.
        topics: Its judged topics.
        all_topics: The number of topics that were given, judged or not.
        qrels: Its judgements.
        found: The first stage's run.
        as_found: The number of a topic in the first stage's run file, by its qid, if the two differ.
        record: The sources of all of this.
        kept: The part of ``found`` that the systems rank: all of it or, for condensed lists, the documents with a text.
        runs: The systems' runs.
    """

    stage: str
    task: Task
    topics: pd.DataFrame
    all_topics: int
    qrels: pd.DataFrame
    found: pd.DataFrame
    as_found: dict[str, str]
    record: dict[str, Any]
    kept: pd.DataFrame
    runs: dict[str, pd.DataFrame] = field(default_factory=dict)

    def part(self, runs: Mapping[str, pd.DataFrame]) -> Part:
        """The task with some of its runs, to be pooled."""
        return Part(self.task.name, self.topics, self.qrels, runs, self.as_found)

    @property
    def topic_counts(self) -> tuple[int, int]:
        """The actual and the expected number of topics."""
        wanted = self.task.topics
        whole = wanted in (0, len(self.topics), self.all_topics)
        return (wanted, wanted) if whole else (len(self.topics), wanted)

    @property
    def usual_depth(self) -> int:
        """The usual number of documents per topic; some topics have fewer if the collection has no more."""
        return int(self.found.groupby("qid").size().median())


def left_out(not_run: Iterable[tuple[str, str, str]]) -> list[str]:
    """What was not run, why, and what to do about it, as lines; tasks with the same reason share a line."""
    tasks: dict[tuple[str, str], list[str]] = {}
    for task, why, what_to_do in not_run:
        tasks.setdefault((why, what_to_do), []).append(task)
    return [f"{', '.join(names)}: not run. {why} {what_to_do}" for (why, what_to_do), names in tasks.items()]


class Systems:
    """Makes and collects the runs of one reproduction: first stages' and systems'.

    Args:
        arguments: What was asked for.
        folder: Where run files are made.
    """

    def __init__(self, arguments: Arguments, folder: Path) -> None:
        self.arguments = arguments
        self.folder = folder
        self.notes: list[str] = []
        self.not_run: dict[tuple[str, str, str], None] = {}
        self.made_with: dict[str, Any] = {}
        self._taken: dict[str, Record] = {}
        self._taken_stages: dict[Path, Record] = {}
        self._kept: dict[str, list[str]] = {}
        self._data: dict[str, Any] = {}

    def compare(self, stages: Mapping[str, Mapping[str, Any]]) -> None:
        """Compares all systems, and first stages that are run here, with what made the runs that are kept.

        It takes what they are once, for the whole call.

        Args:
            stages: The first stages' sources, by name and task.

        Raises:
            KeptWorkError: Runs of other work are kept; all are named.
        """
        parts = {part_of(name): system for name, system in self.arguments.systems.items() if _is_run_here(system)}
        reuse = self.arguments.reuse
        work = Work(parts, reuse=reuse, who="reproduce")
        self._taken = work.trees
        found: list[Refusal | None] = []
        for stage, sources in stages.items():
            for task in self.arguments.tasks:
                source = sources.get(task.name)
                path = self._path(stage, task, FIRST_STAGE)
                kept = kept_at(path) if _is_run_here(source) else None
                if kept is not None:
                    first = Work({FIRST_PART: source}, reuse=reuse)
                    self._taken_stages[path] = first.trees[FIRST_PART]
                    found.append(first.refusal(*kept, only=[FIRST_PART]))
                for name in self.arguments.systems:
                    kept = kept_at(self._path(stage, task, name)) if part_of(name) in parts else None
                    if kept is not None:
                        found.append(work.refusal(*kept, only=[part_of(name)]))
        refusals = [one for one in found if one is not None]
        if refusals:
            raise refused(
                "reproduce",
                refusals,
                remedy="Choose another folder, or remove these runs.",
                reusable=self.arguments.reusable,
            )

    def prepare(self, stages: Mapping[str, Mapping[str, Any]]) -> None:
        """Opens all that can be missing where first stages are made here, before the first index is made.

        Args:
            stages: The first stages' sources, by name and task.

        Raises:
            JavaError: Java or Terrier cannot be started.
            InputError: An index is there, but of other documents, or made otherwise.
        """
        wanted: dict[str, Index] = {}
        for stage, sources in stages.items():
            for task in self.arguments.tasks:
                source = sources.get(task.name)
                if isinstance(source, Bm25) and not self._is_kept(stage, task):
                    with contextlib.suppress(DataUnavailable):  # which is told of each task when its turn comes
                        self._opened(task)
                        self._open_documents(source.index)
                        wanted[str(source.index)] = source.index
        if wanted:
            start_java("reproduce")
        for index in wanted.values():
            index.check()

    def _is_kept(self, stage: str, task: Task) -> bool:
        """Whether the first stage's run is finished: it is that of this work, or ``compare`` has refused it."""
        return self._path(stage, task, FIRST_STAGE).is_file()

    def _opened(self, task: Task) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Topics and judgments, opened once."""
        arguments = self.arguments

        def opened() -> tuple[pd.DataFrame, pd.DataFrame]:
            topics = task_data.load_topics(task_data.of_task(arguments.topics, task), task)
            return topics, task_data.load_qrels(task_data.of_task(arguments.qrels, task), task)

        return cast(tuple[pd.DataFrame, pd.DataFrame], self._once(task.name, opened))

    def _open_documents(self, index: Index) -> None:
        self._once(str(index), index.open_documents)

    def _once(self, name: str, opened: Callable[[], Any]) -> Any:
        """What a function gave, or that it cannot be had, without asking again."""
        if name not in self._data:
            try:
                self._data[name] = opened()
            except DataUnavailable as error:
                self._data[name] = error
        if isinstance(self._data[name], DataUnavailable):
            raise self._data[name]
        return self._data[name]

    def first_stage(self, stage: str, task: Task, source: Any) -> TaskRuns | None:
        """A first stage's documents for a task; None, with a note, if they are not available."""
        arguments = self.arguments
        if source is None:
            self._leave_out(task, "No first stage was given for it.", f"Give one, by task or corpus. {task.what_to_do}")
            return None
        try:
            topics, qrels = self._opened(task)
            if isinstance(source, Bm25) and not self._is_kept(stage, task):
                self._open_documents(source.index)
            judged = topics[topics["qid"].isin(qrels["qid"])].reset_index(drop=True)
            if judged.empty:
                raise ValueError(
                    f"reproduce: topics and qrels of {task.name} must share topics, got none that they do."
                )
            found, as_found, origin = self._first_stage(stage, task, source, topics, judged)
        except DataUnavailable as error:
            self._leave_out(task, str(error), task.what_to_do)
            return None
        record = {
            "first stage": stage, "task": task.name, "topics": len(judged), "topics md5": frame_digest(judged),
            "query fields": list(topics.attrs.get("query_fields", ("query",))), "qrels md5": frame_digest(qrels),
            "first stage's run": origin, "depth": arguments.depth, "documents": len(found), "systems": {},
        }  # fmt: skip
        return TaskRuns(stage, task, judged, len(topics), qrels, found, as_found, record, kept=found)

    def rank(self, ranked: TaskRuns) -> bool:
        """Makes or reads the systems' runs; False, with a note, if texts are not available."""
        with_text = ranked.found
        wanting = self.arguments.wanting_text
        if self.arguments.condensed or wanting:
            try:
                with_text = self._with_text(ranked)
            except DataUnavailable as error:
                self._leave_out(ranked.task, str(error), ranked.task.what_to_do)
                return False
        ranked.kept = with_text.drop(columns="text", errors="ignore")
        for name, system in self.arguments.systems.items():
            path = self._path(ranked.stage, ranked.task, name)
            if isinstance(system, pt.Transformer):
                candidates = with_text if name in wanting else ranked.kept
                run, record = self._make(name, system, candidates, ranked.topics, path)
                device = system.scorer.devices if isinstance(system, CrossEncoderReRanker) else None
                self.made_with[name] = {**record["teacher"], "device": device}
                about = {key: record[key] for key in ("rows", "md5", "seconds")}
            else:
                run, about = self._finished(name, system, ranked)
                self._keep(run, path)
            ranked.runs[name] = run
            ranked.record["systems"][name] = about
        return True

    def nothing_ran(self) -> ReproductionError:
        """An error that says why nothing could be run, and what to do."""
        why = "\n".join(f"- {line}" for line in left_out(self.not_run))
        return ReproductionError(f"reproduce: nothing of {self.arguments.table.name} could be run:\n{why}")

    def note(self, note: str | None) -> None:
        """Records, once, something that a reader of the numbers needs to know."""
        if note and note not in self.notes:
            self.notes.append(note)

    def _first_stage(
        self, stage: str, task: Task, source: Any, topics: pd.DataFrame, judged: pd.DataFrame
    ) -> tuple[pd.DataFrame, dict[str, str], dict[str, Any]]:
        path = self._path(stage, task, FIRST_STAGE)
        if isinstance(source, pt.Transformer):
            found, record = self._make(
                FIRST_STAGE, pt.Transformer.identity(), source, judged, path, keep=OwnTexts(path).add
            )
            return found, {}, {"made by": record["first_stage"], "md5": record["md5"]}
        loaded = task_data.load_run(source, task, "first_stage")
        self.note(loaded.note)
        found, as_found = task_data.matching_numbers(loaded.frame, topics, task)
        found = found[found["qid"].isin(judged["qid"]) & (found["rank"] < self.arguments.depth)].reset_index(drop=True)
        if found.empty:
            raise DataUnavailable(f"The first stage has none of its {len(judged)} judged topics.")
        self._keep(found, path)
        return found, as_found, loaded.origin

    def _with_text(self, ranked: TaskRuns) -> pd.DataFrame:
        task = ranked.task
        if self.arguments.text is None:
            own = OwnTexts(self._path(ranked.stage, task, FIRST_STAGE)).of(ranked.found)
            if own is not None:
                ranked.record["document fields"] = ["the first stage's text"]
                return own
        with_text, fields = task_data.add_text(ranked.found, task_data.of_task(self.arguments.text, task), task)
        there, wanted = len(with_text), len(ranked.found)
        if there == 0 or (there < wanted and not self.arguments.condensed):
            raise ReproductionError(
                f"reproduce: text must have the {wanted} documents to be ranked for {task.name}, got {there} of them. "
                f"Give all texts, or rank those that are there with condensed=True."
            )
        ranked.record["document fields"] = list(fields)
        return with_text

    def _make(
        self,
        name: str,
        system: pt.Transformer,
        first_stage: pt.Transformer | pd.DataFrame,
        topics: pd.DataFrame,
        path: Path,
        *,
        keep: Callable[[pd.DataFrame], None] | None = None,
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Makes a system's run in resumable, checked shards, like a teacher's run."""
        arguments = self.arguments
        roles = Roles(
            "reproduce",
            repr(name),
            f"{name!r} cannot be evaluated: its ranking",
            "Systems re-rank what the first stage found: give the re-ranker alone, not a pipeline that retrieves.",
            ReproductionError,
            part="re-ranker" if name == FIRST_STAGE else part_of(name),
        )
        # The documents that systems rank are the first stage's, which was compared by itself.
        reuse = [part for part in arguments.reuse if part in (roles.part, FIRST_PART)]
        taken = self._taken | ({FIRST_PART: self._taken_stages[path]} if path in self._taken_stages else {})
        made = make_run(
            system, first_stage, topics, path, roles=roles, depth=arguments.depth, shard_size=_SHARD, reuse=reuse,
            taken=taken, keep=keep, verbose=arguments.verbose,
        )  # fmt: skip
        self._note_kept(name, made, len(topics))
        return made.read(), made.record

    def _note_kept(self, name: str, made: MadeRun, topics: int) -> None:
        """Notes that a run, or a part of it, is an earlier call's."""
        if made.kept is None:
            return
        part = "" if made.kept.queries == topics else f"{made.kept.queries} of {topics} topics of "
        where = made.path.relative_to(self.folder.parent).as_posix()
        self._kept.setdefault(name, []).append(f"{part}{where}, made {made.kept.made}")
        for note in made.kept.notes:
            self.note(f"{name}: {note}.")

    @property
    def kept(self) -> list[str]:
        """Which systems were taken from where, in sentences."""
        return [f"{name} was not run again, but taken from {'; '.join(places)}." for name, places in self._kept.items()]

    def _finished(self, name: str, system: Any, ranked: TaskRuns) -> tuple[pd.DataFrame, dict[str, Any]]:
        """A run that was made elsewhere, of the documents that the other systems rank."""
        loaded = task_data.load_run(system, ranked.task, f"system {name!r}")
        self.note(loaded.note)
        run, _ = task_data.matching_numbers(loaded.frame, ranked.topics, ranked.task)
        run = run[run["qid"].isin(ranked.topics["qid"])]
        # The paper's notebook does the same: its TIREx runs hold 1,000 documents per topic, of which the first stage's
        # top 100 count.
        pairs, candidates = (pd.MultiIndex.from_frame(frame[["qid", "docno"]]) for frame in (run, ranked.kept))
        kept = run[pairs.isin(candidates)].reset_index(drop=True)
        if kept.empty:
            raise ReproductionError(
                f"reproduce: the run of {name!r} must rank documents of the first stage on {ranked.task.name}, got "
                f"none of them. Is it a run of these topics?"
            )
        gone = len(run) - len(kept)
        if gone:
            place = ranked.task.name if ranked.stage == FIRST_STAGE else f"{ranked.stage}/{ranked.task.name}"
            self.note(
                f"{name!r} on {place}: {gone} of the {len(run)} rows of its run are not among what the "
                f"first stage found (top {self.arguments.depth}), and do not count."
            )
        kept = kept.assign(rank=positions(kept, Ids.of(kept)))
        return kept, {**loaded.origin, "rows": len(kept), "rows outside the first stage": gone}

    def _keep(self, run: pd.DataFrame, path: Path) -> None:
        """Saves a run that was made elsewhere beside those that are made here."""
        if self.arguments.folder is None:
            return
        if not path.exists():
            runs.write(run, path)
        elif not _same(runs.read(path), run):
            raise FileExistsError(f"{os.fspath(path)} exists and is another run. Choose another folder, or remove it.")

    def _path(self, stage: str, task: Task, system: str) -> Path:
        return self.folder / file_name(stage) / file_name(task.name) / f"{file_name(system)}.run.gz"

    def _leave_out(self, task: Task, why: str, what_to_do: str) -> None:
        self.not_run[task.name, why, what_to_do] = None


def part_of(system: str) -> str:
    """What a system is called as a part of the work."""
    return f"systems.{system}"


def _is_run_here(source: Any) -> bool:
    return isinstance(source, pt.Transformer)


def _same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    columns = ["qid", "docno", "score"]
    return len(one) == len(other) and all(one[name].tolist() == other[name].tolist() for name in columns)
