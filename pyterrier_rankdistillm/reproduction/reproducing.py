"""Runs the paper's tables with ``pt.Experiment``, and compares the results with the published ones."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ir_datasets
import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import Measure, nDCG

from ..errors import ReproductionError
from ..locks import hold, lock_in
from ..runs.given import GivenRun, Qrels, Ranker, Run, Texts, Topics, ranker_of
from ..runs.records import hardware, versions
from . import tasks as task_data
from .arguments import CONDENSED, Arguments
from .bm25 import bm25_of, default_indices, is_bm25
from .catalogue import (
    ARITHMETIC,
    ARTEFACTS,
    CRANFIELD,
    DEPTH,
    FIRST_STAGE,
    GEOMETRIC,
    TABLES,
    YEARS,
    Table,
    Task,
    table,
    tasks,
)
from .comparison import MeasuredCell, compare, identify, mismatches
from .evaluation import CELL, MAIN, by_query, evaluate, geometric_mean, parse, with_relevance
from .pooling import Mode, Pool, pool
from .result import Reproduction
from .systems import Systems, TaskRuns


def reproduce(
    name: str | pt.datasets.Dataset,
    systems: Mapping[str, Ranker],
    *,
    first_stage: pt.Transformer | Run | Mapping[str, Any],
    measures: Sequence[str | Measure] = (nDCG @ 10,),
    baseline: str | None = None,
    mode: Mode = "corrected",
    depth: int = DEPTH,
    published: Mapping[str, str] | None = None,
    topics: Topics | Mapping[str, Topics] | None = None,
    qrels: Qrels | Mapping[str, Qrels] | None = None,
    text: Texts | Mapping[str, Texts] | None = None,
    condensed: bool = False,
    tasks: Sequence[str] | None = None,
    indices: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    reuse: Sequence[str] = (),
    verbose: bool | None = None,
) -> Reproduction:
    """Evaluates systems as in a table of the paper, and compares each cell with the published one.

    ::

        base = MonoElectra("webis/monoelectra-base")
        result = reproduce("trec-dl-2019", {"base": base}, first_stage="colbert.run.gz")
        result.table, result.comparison, result.to_html("report.html")

    A cell is reproduced if it is within the tolerance of a published one, and number of topics, depth and first stage
    are the paper's. The tolerance is 0.0005 for run files, and 0.004 for models, whose published values come from
    bf16-mixed runs. A first stage is recognised by its own nDCG@10, which is checked before any system runs.

    Args:
        name: ``"trec-dl-2019"``, ``"trec-dl-2020"``, ``"trec-dl"`` (both years and their mean), ``"tirex"``,
            ``"ablation-loss"`` or ``"ablation-size"`` (queries x depth; both on TREC DL); or any other ir_datasets id
            or PyTerrier dataset, for which nothing was published.
        systems: Re-rankers by name (any transformer, a hub id or folder, a fitted estimator), which get ``qid``,
            ``query``, ``docno``, ``text``, ``score`` and ``rank``; or finished runs (files or frames). Of a finished
            run only the documents count that the first stage has among its top ``depth``, as in the paper's notebook.
            None: the first stage alone.
        first_stage: A run (file or frame) or a retriever; or a mapping of first stages by name (``"bm25"``,
            ``"colbertv2"``), or by task or corpus, or by name and then by task. In a file name, ``{task}`` is replaced
            by the task, with dashes instead of slashes. ``"tira"`` (or ``"tira:task/team/software"``) fetches TIRA's.
            ``"bm25"`` makes the paper's here: each corpus is indexed by Terrier, once, and searched with BM25 (on
            TREC DL by PyTerrier's ready-made index); it needs Java. ``"bm25:FOLDER"`` searches an index of your own.
            (A file of that name is ``"./bm25"``.)
        measures: Measures of ir-measures, as objects or names; nDCG@10 is always added. Binary ones without a relevance
            level of their own get the task's (2 on TREC DL).
        baseline: The system to test the others against, by paired t-test with Holm's correction over the systems of
            the call; default: the first system, and for a single system the first stage (``"first stage"``).
        mode: How the tasks of a TIREx corpus are pooled: ``"corrected"``, or ``"as_published"``, which is
            comparable with published cells (of corpora with one task both may be); see ``pooling.pool``.
        depth: Largest number of documents per topic.
        published: The published row that a system is compared with, by the system's name; default: that of the model it
            was loaded from, or of its own name. ``table(name).systems`` of ``reproduction.catalogue`` lists them.
        topics: A frame, a file (qid, tab, query) or a dataset, or a mapping of those by task or corpus; default:
            ir_datasets'. Topics without judgements are left out.
        qrels: Likewise: a frame, a TREC file or a dataset.
        text: Likewise: a frame with ``docno`` and ``text``, a file (JSON lines), a dataset, or a text loader. Needed
            for systems that are not runs.
        condensed: Rank only the documents that ``text`` has. Such cells are marked as condensed lists, and are not
            comparable with published values.
        tasks: Which tasks or corpora of the table to run; default: all. Means and parts are counted against the whole
            table. Calls for other tasks go on in the same ``folder``.
        indices: The folder of the indexes that ``first_stage="bm25"`` makes, one per corpus; default: under
            ir_datasets' home. Each is an ordinary Terrier index.
        folder: Where to keep runs (TREC files), ``result.json`` and ``per_query.parquet``. The same call continues
            where an earlier one stopped. Needs pyarrow.
        reuse: Parts that differ from what made the runs in ``folder`` (``"systems.base"``, ``"first stage"``), although
            the runs are to be used anyway; the result says so. An error names them.
        verbose: Report results on stderr, and show progress bars. None: bars only, in a terminal or a notebook.

    Raises:
        ValueError: Arguments are invalid or contradict each other. The message names all of them.
        ReproductionError: Nothing could be run; the message says what to do for each task. Or a system omits, repeats
            or adds documents, or gives scores that are not numbers.
        KeptWorkError: ``folder`` holds runs of other work. All are named, before anything is run.
        JavaError: ``first_stage="bm25"`` needs Java and Terrier, and they cannot be started.
        InUseError: Another process works in ``folder``.

    Method: Schlatt et al., Rank-DistiLLM, ECIR 2025, https://arxiv.org/abs/2405.07920.
    """
    chosen, topics, qrels, text = _table(name, topics, qrels, text)
    if not isinstance(systems, Mapping):
        raise ValueError(f"reproduce: systems must be a mapping of names to systems, got {type(systems).__name__}.")
    arguments = Arguments(
        table=chosen,
        systems={name: _system(name, system) for name, system in systems.items()},
        measures=parse(measures),
        baseline=baseline,
        mode=mode,
        depth=depth,
        published=dict(published or {}),
        topics=topics,
        qrels=qrels,
        text=text,
        condensed=condensed,
        folder=None if folder is None else Path(folder).expanduser().absolute(),
        verbose=verbose,
        reuse=(reuse,) if isinstance(reuse, str) else tuple(reuse),
        only=None if tasks is None else (tasks,) if isinstance(tasks, str) else tuple(tasks),
    )
    stages = _with_bm25(task_data.first_stages(first_stage, chosen), arguments, indices)
    task_data.check_sources(stages, arguments)
    with ExitStack() as stack:
        if arguments.folder is not None:
            stack.enter_context(hold(lock_in(arguments.folder), f"reproduce: folder {arguments.folder}"))
        scratch = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        result = _Reproducing(arguments, Systems(arguments, scratch / "runs")).run(stages)
        if arguments.folder is not None:
            result.save(arguments.folder)
    return result


def _system(name: str, given: Any) -> pt.Transformer | GivenRun | str:
    """What ranks or has ranked; the name of a file with ``{task}`` in it stays, since a task says which file it is."""
    if isinstance(given, str | os.PathLike) and task_data.names_each_task(given):
        return os.fspath(given)
    return ranker_of(given, who="reproduce", argument=f"system {name!r}")


def _with_bm25(
    stages: dict[str, dict[str, Any]], arguments: Arguments, indices: str | os.PathLike[str] | None
) -> dict[str, dict[str, Any]]:
    """First stages, where words stand for what they stand for."""
    words = {source for sources in stages.values() for source in sources.values() if is_bm25(source)}
    if indices is not None and "bm25" not in words:
        raise ValueError("reproduce: indices is where first_stage='bm25' makes indexes, and no first stage is 'bm25'.")
    made: dict[tuple[str, str], Any] = {}
    folder = default_indices() if indices is None else Path(indices).expanduser().absolute()
    for sources in stages.values():
        corpora = {task.corpus for task in arguments.tasks if str(sources[task.name]).startswith("bm25:")}
        if len(corpora) > 1 and len({str(sources[task.name]) for task in arguments.tasks}) == 1:
            raise ValueError(
                f"reproduce: first_stage {next(iter(sources.values()))!r} is an index of one corpus, and "
                f"{len(corpora)} are to be searched. Choose one with tasks=, or give a mapping by corpus."
            )
        for task in arguments.tasks:
            source = sources[task.name]
            if is_bm25(source):
                given = task_data.of_task(arguments.text, task)
                one = bm25_of(source, task, given, folder, verbose=arguments.verbose)
                sources[task.name] = made.setdefault((source, str(one.index)), one)  # tasks of a corpus share it
    return stages


class _Reproducing:
    """One call of ``reproduce``: first stages, then systems, then numbers."""

    def __init__(self, arguments: Arguments, systems: Systems) -> None:
        self.arguments = arguments
        self.table = arguments.table
        self.systems = systems
        self.pools_tasks = arguments.table.by == "corpus"
        self.mode: Mode = arguments.mode if self.pools_tasks else "corrected"
        self.cells: list[dict[str, Any]] = []
        self.task_cells: list[dict[str, Any]] = []
        self.per_query: list[pd.DataFrame] = []
        self.measured: list[MeasuredCell] = []
        self._alike: set[str] = set()

    def run(self, stages: Mapping[str, Mapping[str, Any]]) -> Reproduction:
        """Runs everything.

        Args:
            stages: The first stages' sources, by name and task.
        """
        self.systems.compare(stages)
        self.systems.prepare(stages)
        found: dict[str, tuple[list[TaskRuns], tuple[str, ...]]] = {}
        for stage, sources in stages.items():
            found |= self._first_stage(stage, sources, taken=found)
        ran: dict[str, list[TaskRuns]] = {}
        for setting, (candidates, problems) in found.items():
            ranked = []
            for task_runs in candidates:
                if self.systems.rank(task_runs):
                    ranked.append(task_runs)  # noqa: PERF401  (ranking is the work, not a filter)
            if ranked:
                self._evaluate(setting, ranked, problems)
                ran[setting] = ranked
        if not ran:
            raise self.systems.nothing_ran()
        self._add_means(ran)
        return self._result([r for ranked in ran.values() for r in ranked])

    def _first_stage(
        self, stage: str, sources: Mapping[str, Any], taken: Mapping[str, Any]
    ) -> dict[str, tuple[list[TaskRuns], tuple[str, ...]]]:
        """A first stage's documents by setting, and why its cells do not compare with the paper's."""
        candidates = [self.systems.first_stage(stage, task, sources.get(task.name)) for task in self.arguments.tasks]
        ranked = [found for found in candidates if found is not None]
        if self.pools_tasks:
            corpora = {r.task.corpus: [other for other in ranked if other.task.corpus == r.task.corpus] for r in ranked}
            return {corpus: (parts, self._checked(stage, corpus, parts)[1]) for corpus, parts in corpora.items()}
        by_setting = {}
        for r in ranked:
            name, problems = self._checked(stage, r.task.name, [r])
            # A run that is recognised as one of the paper's gets the paper's name, unless another one has it.
            known = f"{name}/{r.task.name}"
            by_setting[known if name and known not in taken else f"{stage}/{r.task.name}"] = ([r], problems)
        return by_setting

    def _checked(self, stage: str, place: str, ranked: list[TaskRuns]) -> tuple[str | None, tuple[str, ...]]:
        """The paper's name for a first stage, and why its cells are not comparable with the paper's."""
        pooled = self._pool(place, ranked, {FIRST_STAGE: "found"})
        value = evaluate(pooled, (MAIN,))[0]["value"]
        identified = identify(self.table, stage, place, value)
        problem = identified.problem
        if problem and place == CRANFIELD and not any(r.as_found for r in ranked):
            problem = ARTEFACTS[CRANFIELD]  # a first stage whose numbers match cannot have the published value
        problems = mismatches(
            first_stage=problem,
            topics={r.task.name: r.topic_counts for r in ranked},
            # Small corpora have fewer documents to find, so only the requested depth counts there.
            depths=[self.arguments.depth if self.pools_tasks else r.usual_depth for r in ranked],
        )
        problems = problems if self.table.cells else ()
        if self.arguments.verbose:
            what = "; ".join(problems) or (f"the paper's {identified.name}" if identified.name else "not published")
            print(f"{stage} on {place}: {MAIN} {value:.3f}, {what}", file=sys.stderr)
        return identified.name, problems

    def _evaluate(self, setting: str, ranked: list[TaskRuns], problems: tuple[str, ...]) -> None:
        """The cells of a setting."""
        arguments = self.arguments
        measures = with_relevance(arguments.measures, ranked[0].task.relevant)
        found, kept = sum(len(r.found) for r in ranked), sum(len(r.kept) for r in ranked)
        part = self._part_of(setting, ranked)
        if self._is_alike(setting, ranked):
            self._alike.add(setting)
        if arguments.condensed:  # the whole first stage is not one of the systems that are compared
            whole = self._pool(setting, ranked, {FIRST_STAGE: "found"})
            self._add(setting, ranked, whole, measures, None, (found, found))
            self._to_compare(setting, FIRST_STAGE, (*part, *problems))
        pooled = self._pool(setting, ranked, {arguments.first_row: "kept", **dict.fromkeys(arguments.systems, "runs")})
        self._add(setting, ranked, pooled, measures, arguments.tested_against, (kept, found))
        condensed = (f"condensed: {kept} of {found} documents",) if kept != found else ()
        alone = len(self._pool(setting, ranked, {FIRST_STAGE: "found"}).topics)
        shared = (f"{len(pooled.topics)} of {alone} topics that every system has",) * (len(pooled.topics) != alone)
        for system in pooled.runs:
            self._to_compare(setting, system, (*part, *problems, *condensed, *shared))
        if self.pools_tasks:
            self._add_tasks(ranked)

    def _pool(self, setting: str, ranked: list[TaskRuns], rows: Mapping[str, str]) -> Pool:
        """Pools tasks with the runs of some rows: the first stage's ``"found"`` or ``"kept"``, or the ``"runs"``."""
        parts = [
            r.part({row: r.runs[row] if which == "runs" else getattr(r, which) for row, which in rows.items()})
            for r in ranked
        ]
        pooled = pool(parts, self.mode)
        if pooled.topics.empty:
            raise ReproductionError(f"reproduce: {setting} has no judged topic that every run has documents for.")
        return pooled

    def _add(
        self,
        setting: str,
        ranked: list[TaskRuns],
        pooled: Pool,
        measures: Sequence[Measure],
        baseline: str | None,
        documents: tuple[int, int],
    ) -> None:
        """Evaluates runs in two ways: means with their tests, and query by query."""
        counts = {"setting": setting, "documents": documents[0], "retrieved": documents[1]}
        self.cells += [{**counts, **cell} for cell in evaluate(pooled, measures, baseline)]
        frame = by_query(pooled, measures)
        queries = _queries(ranked, self.mode)
        frame.insert(0, "setting", setting)
        frame.insert(3, "query", [queries.get(qid, "") for qid in frame["qid"]])
        self.per_query.append(frame)

    def _add_tasks(self, ranked: list[TaskRuns]) -> None:
        """Evaluates task by task, each on its own topics."""
        for r in ranked:
            alone = pool([r.part({self.arguments.first_row: r.kept, **r.runs})], "corrected")
            measures = with_relevance(self.arguments.measures, r.task.relevant)
            self.task_cells += [{"task": r.task.name, **cell} for cell in evaluate(alone, measures)]

    def _to_compare(self, setting: str, system: str, problems: tuple[str, ...]) -> None:
        """Records a cell for the comparison."""
        cell = next(c for c in self.cells if (c["setting"], c["system"], c["measure"]) == (setting, system, str(MAIN)))
        self.measured.append(
            MeasuredCell(
                setting=setting,
                system=system,
                published_as=self.arguments.published_as(system),
                value=cell["value"],
                tolerance=self.arguments.tolerance(system),
                significant=cell.get("significant"),
                mismatches=problems,
                alike=setting in self._alike,
            )
        )

    def _is_alike(self, corpus: str, ranked: list[TaskRuns]) -> bool:
        """Whether a corpus is pooled alike in both modes: of one task, all of whose topics have documents."""
        if not self.pools_tasks or corpus in ARTEFACTS or len(ranked) > 1:
            return False
        rows = {self.arguments.first_row: ranked[0].kept, **ranked[0].runs}
        return set(ranked[0].topics["qid"]) == set(pool([ranked[0].part(rows)], "as_published").topics["qid"])

    def _part_of(self, corpus: str, ranked: list[TaskRuns]) -> tuple[str, ...]:
        """A reason if not all tasks of a corpus were run."""
        wanted = [task for task in self.table.tasks if task.corpus == corpus] if self.pools_tasks else ranked
        return () if len(ranked) == len(wanted) else (f"{len(ranked)} of {len(wanted)} tasks",)

    def _add_means(self, ran: Mapping[str, list[TaskRuns]]) -> None:
        """Means over the corpora, or over the two years; those over fewer get another name than the paper's."""
        places = list(ran)
        if self.pools_tasks and len(places) > 1:
            corpora = {task.corpus for task in self.table.tasks}
            part = "" if len(places) == len(corpora) else f" ({len(places)} of {len(corpora)} corpora)"
            self._add_mean(f"{ARITHMETIC}{part}", places, np.mean)
            self._add_mean(f"{GEOMETRIC}{part}", places, geometric_mean)
        elif not self.pools_tasks and len(self.table.tasks) > 1:
            for stage in dict.fromkeys(ranked[0].stage for ranked in ran.values()):
                years = [setting for setting, ranked in ran.items() if ranked[0].stage == stage]
                names = {setting.rpartition("/")[0] for setting in years}
                if len(years) == len(self.table.tasks):
                    self._add_mean(f"{names.pop() if len(names) == 1 else stage}/{YEARS}", years, np.mean)

    def _add_mean(self, mean: str, places: list[str], of: Callable[[list[float]], Any]) -> None:
        """Adds a mean over settings, for every system and measure."""
        for system, measure in dict.fromkeys((cell["system"], cell["measure"]) for cell in self.cells):
            cells = [
                cell
                for cell in self.cells
                if (cell["system"], cell["measure"]) == (system, measure) and cell["setting"] in places
            ]
            if len(cells) < len(places):  # relevance levels differ, and with them the measures
                self.systems.note(f"There is no {mean} of {measure}, since not every setting has it.")
                continue
            totals = {key: sum(cell[key] for cell in cells) for key in ("topics", "documents", "retrieved")}
            value = float(of([cell["value"] for cell in cells]))
            self.cells.append({"setting": mean, "system": system, "measure": measure, "value": value, **totals})
        for system in dict.fromkeys(cell.system for cell in self.measured):
            odd = [m.setting for m in self.measured if m.system == system and m.setting in places and m.mismatches]
            self._to_compare(mean, system, (f"{len(odd)} of {len(places)} settings not comparable",) if odd else ())

    def _result(self, ran: list[TaskRuns]) -> Reproduction:
        arguments, systems = self.arguments, self.systems
        if self.table.name == "tirex":
            for corpus in dict.fromkeys(r.task.corpus for r in ran):
                systems.note(f"{corpus}: {ARTEFACTS[corpus]}" if corpus in ARTEFACTS else None)
        if arguments.condensed:
            systems.note(
                f"Condensed lists: the systems ranked only the documents whose text was given. Their cells compare "
                f"with {CONDENSED!r}, and with nothing that was published."
            )
        by_corrected = self.pools_tasks and self.mode == "corrected"
        rows = [FIRST_STAGE, CONDENSED, *arguments.systems]
        cells = pd.DataFrame(self.cells, columns=list(CELL)).astype(CELL)
        cells = cells.sort_values("system", key=lambda column: column.map(rows.index), kind="stable", ignore_index=True)
        return Reproduction(
            name=self.table.name,
            mode=self.mode,
            measures=tuple(dict.fromkeys(cells["measure"])),
            baseline=arguments.tested_against if cells["p_value"].notna().any() else None,
            cells=cells,
            comparison=compare(
                self.table,
                self.measured,
                baseline=None if arguments.tested_against is None else arguments.published_as(arguments.tested_against),
                not_compared="published cells hold for mode='as_published'" if by_corrected else None,
            ),
            per_query=pd.concat(self.per_query, ignore_index=True),
            tasks=pd.DataFrame(self.task_cells, columns=["task", "system", "measure", "value", "topics"]),
            not_run=pd.DataFrame(list(systems.not_run), columns=["task", "why", "what to do"]),
            notes=(*systems.notes, *systems.kept),
            provenance={
                "table": self.table.name,
                "mode": self.mode,
                "depth": arguments.depth,
                "condensed": arguments.condensed,
                "significance": "paired t-test, Holm over the systems of the call, alpha 0.05",
                "systems": systems.made_with,
                "runs": [r.record for r in ran],
                "versions": versions(),
                "hardware": hardware(),
            },
        )


def _queries(ranked: Sequence[TaskRuns], mode: Mode) -> dict[str, str]:
    """The queries of the topics of a pool."""
    several = mode == "corrected" and len(ranked) > 1
    queries: dict[str, str] = {}
    for r in ranked:
        for qid, query in zip(r.topics["qid"], r.topics["query"], strict=True):
            name = f"{r.task.name}:{qid}" if several else r.as_found.get(qid, qid) if mode == "as_published" else qid
            queries[name] = f"{queries[name]} / {query}" if queries.get(name, query) != query else query
    return queries


def _table(name: str | pt.datasets.Dataset, topics: Any, qrels: Any, text: Any) -> tuple[Table, Any, Any, Any]:
    """A table of the paper, or a table for another dataset, which then provides what is not given as an argument."""
    if isinstance(name, str):
        if name in TABLES:
            return table(name), topics, qrels, text
        plain = name.removeprefix("irds:")
        known = {task.dataset: task for task in tasks().values()}
        if plain in known and known[plain].name in TABLES:
            return table(known[plain].name), topics, qrels, text
        if ":" not in plain and plain not in ir_datasets.registry:
            raise ValueError(
                f"reproduce: name must be one of {', '.join(TABLES)}, an ir_datasets id, or a PyTerrier dataset, got "
                f"{name!r}."
            )
        task = known.get(plain, Task(name=plain, corpus=plain))
    else:
        task = Task(name=repr(name), corpus=repr(name))
    topics, qrels, text = (name if given is None else given for given in (topics, qrels, text))
    return Table(task.name, (task,)), topics, qrels, text
