"""From what users have (frames, run files, published runs, teachers) to what is trained on, checked beforehand."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pyterrier as pt

from ..datasets import PUBLISHED
from ..errors import TrainingDataError
from ..runs.files import dataset_of, read
from ..runs.making import Roles, make_run
from ..runs.rankings import Rankings
from ..runs.text import Dataset, load_topics, text_loader
from .launch import processes
from .lists import Texts, TrainingData, as_relevance
from .losses import Kind, Losses
from .settings import Settings

RunFile = str | os.PathLike[str]
Teacher = pt.Transformer | pd.DataFrame | RunFile


@dataclass
class Problems:
    """What is wrong with the data, gathered to be told at once.

    Args:
        who: The estimator, for the message.
    """

    who: str
    faults: list[str] = field(default_factory=list)
    unusable: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str) -> None:
        """Something that makes training impossible."""
        self.faults.append(what)

    def skip(self, reason: str, qids: Collection[str]) -> None:
        """Queries that cannot be trained on."""
        if qids:
            self.unusable.setdefault(reason, []).extend(qids)

    def check(self, queries: int, on_unusable: str) -> dict[str, int]:
        """Raises what is wrong.

        Args:
            queries: How many queries there are in all.
            on_unusable: Whether unusable queries are an error.

        Returns:
            How many queries are left out, by reason.

        Raises:
            TrainingDataError: Anything is wrong.
        """
        left_out = {qid for qids in self.unusable.values() for qid in qids}
        told = list(self.faults)
        if on_unusable == "error" or len(left_out) >= queries > 0:
            told += [
                f"{len(qids)} of {queries} queries {reason} ({', '.join(map(repr, qids[:3]))}"
                f"{', ...' if len(qids) > 3 else ''})."
                for reason, qids in self.unusable.items()
            ]
            if self.unusable and len(left_out) < queries:
                told.append("Mend the data, or leave such queries out with on_unusable='skip'.")
            elif self.unusable:
                told.append("No query is left.")
        if told:
            raise TrainingDataError(f"{self.who}: the training data cannot be used. " + " ".join(told))
        return {reason: len(qids) for reason, qids in self.unusable.items()}


@dataclass(frozen=True)
class Sourced:
    """Training data, and how many queries were left out of it, by reason."""

    data: TrainingData
    left_out: Mapping[str, int]


def labelled_data(
    who: str,
    settings: Settings,
    inp: pd.DataFrame | None,
    qrels: pd.DataFrame | None,
    *,
    run: RunFile | None = None,
    text: pt.Transformer | Dataset | None = None,
    text_field: str = "text",
) -> Sourced:
    """A first stage's rankings with relevance labels.

    Args:
        who: The estimator, for messages.
        settings: Those of the training.
        inp: The first stage's results with texts; or, with ``run``, the topics.
        qrels: Columns ``qid``, ``docno``, ``label``.
        run: The first stage's run file, or a published run.
        text: Where texts come from that ``inp`` does not have.
        text_field: The column of ``inp`` with the texts.

    Raises:
        TrainingDataError: The data cannot be used.
    """
    problems = Problems(who)
    rankings, queries, texts = _rankings(problems, inp, run, text, text_field)
    if qrels is None and run is not None and is_published(run):
        qrels = pt.get_dataset(str(run)).get_qrels()
    relevance = _relevance(problems, qrels, rankings)
    if problems.faults or qrels is None or rankings is None:
        problems.check(0, settings.on_unusable)
    assert rankings is not None
    sampling = settings.to_sampling()
    reasons: dict[str, list[str]] = {}
    members = []
    trainable = _Obtainable(relevance, texts)
    for position, qid in enumerate(rankings.qids):
        if qid not in queries:
            reason: str | None = "have no query text"
        else:
            reason = sampling.unusable(rankings[position].docnos, trainable.of(qid))
        if reason is None:
            members.append(position)
        else:
            reasons.setdefault(reason, []).append(qid)
    for reason, qids in reasons.items():
        problems.skip(reason, qids)
    left_out = problems.check(len(rankings), settings.on_unusable)
    data = TrainingData(rankings, np.array(members, dtype=np.int64), queries, texts, trainable.all(), labelled=True)
    return Sourced(data, left_out)


def taught_data(
    who: str,
    settings: Settings,
    inp: pd.DataFrame | None,
    qrels: pd.DataFrame | None,
    *,
    teacher: Teacher | None = None,
    run: RunFile | None = None,
    text: pt.Transformer | Dataset | None = None,
    text_field: str = "text",
    reuse: Collection[str] = (),
) -> Sourced:
    """A teacher's rankings.

    Args:
        who: The estimator, for messages.
        settings: Those of the training.
        inp: The first stage's results with texts, which the teacher ranks; the teacher's own ranking where there is no
            ``teacher``; or, with ``run``, the topics.
        qrels: For losses that need labels.
        teacher: A re-ranker, its run (a frame, file or published run), or None.
        run: The teacher's run, a file or published, which may be larger than memory.
        text: Where texts come from that ``inp`` does not have.
        text_field: The column of ``inp`` with the texts.
        reuse: Parts of a kept run of the teacher that may differ, as for ``runs.make_teacher_run``.

    Raises:
        TrainingDataError: The data cannot be used.
    """
    problems = Problems(who)
    if teacher is not None and run is not None:
        problems.add("There are two teachers: teacher and run. Give one of them.")
    has_documents = inp is not None and "docno" in inp.columns
    if run is None and not has_documents and isinstance(teacher, str | os.PathLike):
        run, teacher = teacher, None  # topics and the teacher's run: its documents are the candidates
    rankings, queries, texts = _rankings(problems, inp, run, text, text_field)
    losses = Losses.of(settings.loss)
    relevance: Mapping[str, Mapping[str, int]] = {}
    if "relevance" in losses.needs or qrels is not None:
        relevance = _relevance(problems, qrels, rankings)
    if problems.faults or rankings is None:
        problems.check(0, settings.on_unusable)
    assert rankings is not None
    if isinstance(teacher, pt.Transformer) and processes() > 1:
        problems.add("Several processes would each run the teacher. Make its run first, with runs.make_teacher_run.")
        problems.check(0, settings.on_unusable)
    asked = len(rankings)
    if teacher is not None:
        assert inp is not None
        rankings = _ranked_by(teacher, problems, settings, inp, queries, reuse)
    there = {"order": True, "values": rankings.has_scores, "relevance": bool(relevance)}
    try:
        losses.check([kind for kind in get_args(Kind) if there[kind]])
    except ValueError as error:
        problems.add(str(error))
    without_query = [qid for qid in rankings.qids if qid not in queries]
    problems.skip("have no query text", without_query)
    alone = [qid for qid, size in zip(rankings.qids, rankings.sizes, strict=True) if size < 2]
    problems.skip("have fewer than two documents", alone)
    left_out = problems.check(asked, settings.on_unusable)
    unusable = {qid for qids in problems.unusable.values() for qid in qids}
    members = [position for position, qid in enumerate(rankings.qids) if qid not in unusable]
    data = TrainingData(rankings, np.array(members, dtype=np.int64), queries, texts, relevance, labelled=False)
    return Sourced(data, left_out)


def _rankings(
    problems: Problems,
    inp: pd.DataFrame | None,
    run: RunFile | None,
    text: pt.Transformer | Dataset | None,
    text_field: str,
) -> tuple[Rankings | None, Mapping[str, str], Texts]:
    """Rankings, queries and texts, from a frame or a run."""
    loader = text if text is None or isinstance(text, pt.Transformer) else text_loader(text)
    if run is not None:
        return _from_run(problems, inp, run, loader)
    if inp is None or inp.empty:
        problems.add("There are no documents: give the first stage's results, or run= and text=.")
        return None, {}, Texts()
    missing = [name for name in ("qid", "query", "docno") if name not in inp.columns]
    if missing:
        problems.add(
            f"The frame has no column {', '.join(missing)}, but {', '.join(map(str, inp.columns))}. Fit a pipeline "
            f"(`(first_stage >> estimator).fit(...)`), or its results."
        )
    if "rank" not in inp.columns and "score" not in inp.columns:
        problems.add("The frame has neither rank nor score, so nothing is ranked.")
    known: dict[str, str] = {}
    if text_field in inp.columns:
        known = {d: t for d, t in zip(inp["docno"], inp[text_field], strict=True) if isinstance(t, str)}
    elif loader is None:
        problems.add(
            f"The frame has no column {text_field!r}. Put `>> dataset.text_loader()` before the estimator, or give "
            f"text=."
        )
    texts = Texts(known, loader)
    if problems.faults:
        return None, {}, texts
    without = inp["docno"][[docno not in texts for docno in inp["docno"]]]
    if len(without):
        problems.add(f"{len(without)} of {len(inp)} rows have no text, the first docno {without.iloc[0]!r}.")
    by_qid = inp.drop_duplicates("qid")
    queries = {q: t for q, t in zip(by_qid["qid"], by_qid["query"], strict=True) if isinstance(t, str)}
    try:
        return Rankings.from_frame(_run_of(inp)), queries, texts
    except ValueError as error:
        problems.add(str(error))
        return None, queries, texts


def _from_run(
    problems: Problems, topics: pd.DataFrame | None, run: RunFile, loader: pt.Transformer | None
) -> tuple[Rankings | None, Mapping[str, str], Texts]:
    published = is_published(run)
    if loader is None and published:
        loader = text_loader(str(run))
    if loader is None:
        problems.add("With run=, texts are needed: give text=, a text loader or a dataset.")
        return None, {}, Texts()
    rankings = Rankings.from_file(run)
    if topics is None and rankings[0].query is not None:
        stated = {one.qid: one.query for one in rankings if one.query is not None}
        return rankings, stated, Texts(loader=loader)
    if topics is None:
        topics = pt.get_dataset(str(run)).get_topics() if published else _topics_of(problems, run)
    if topics is None or "query" not in topics.columns:
        problems.add("With run=, queries are needed: give topics with the columns qid and query.")
        return None, {}, Texts(loader=loader)
    wanted = set(rankings.qids)
    used = topics[topics["qid"].isin(wanted)]
    return rankings, dict(zip(used["qid"], used["query"], strict=True)), Texts(loader=loader)


def _topics_of(problems: Problems, run: RunFile) -> pd.DataFrame | None:
    try:
        return load_topics(dataset_of(run))
    except (ValueError, KeyError) as error:
        problems.add(f"The run's topics are not given, and its file name does not say them: {error}")
        return None


def _ranked_by(
    teacher: Teacher,
    problems: Problems,
    settings: Settings,
    inp: pd.DataFrame,
    queries: Mapping[str, str],
    reuse: Collection[str],
) -> Rankings:
    """The teacher's rankings of the first stage's top documents."""
    if isinstance(teacher, pt.Transformer):
        return _asked(teacher, problems, settings, inp, queries, reuse)
    given = Rankings.from_frame(_run_of(inp))
    if isinstance(teacher, pd.DataFrame):
        taught = teacher
    elif is_published(teacher):
        taught = pt.get_dataset(str(teacher)).get_results()
    else:
        taught = read(teacher)
    taught = _run_of(taught)
    if "qid" in taught.columns:
        taught = taught[taught["qid"].isin(set(given.qids))]
    ranked: dict[str, set[str]] = {}
    try:
        if len(taught):
            ranked = {one.qid: set(one.docnos) for one in Rankings.from_frame(taught)}
    except ValueError as error:
        problems.add(f"The teacher's run is none. {error}")
        problems.check(len(given), settings.on_unusable)
    unranked, partly, wanted = [], [], []
    for one in given:
        top = one.docnos[: settings.depth]
        missing = [docno for docno in top if docno not in ranked.get(one.qid, ())]
        if one.qid not in ranked:
            unranked.append(one.qid)
        elif missing:
            partly.append(one.qid)
        else:
            wanted.append(pd.DataFrame({"qid": one.qid, "docno": top}))
    problems.skip("are not in the teacher's run", unranked)
    problems.skip("have documents that the teacher did not rank (its run may be shallower: set depth)", partly)
    if not wanted:
        problems.check(len(given), settings.on_unusable)
    return Rankings.from_frame(taught.merge(pd.concat(wanted), on=["qid", "docno"]))


def _run_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Those columns of a frame that make a run."""
    return frame[[name for name in ("qid", "docno", "score", "rank") if name in frame.columns]]


def _asked(
    teacher: pt.Transformer,
    problems: Problems,
    settings: Settings,
    inp: pd.DataFrame,
    queries: Mapping[str, str],
    reuse: Collection[str],
) -> Rankings:
    """Runs the teacher, resumably where there is a folder."""
    topics = pd.DataFrame({"qid": list(queries), "query": list(queries.values())})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch if settings.folder is None else settings.folder)
        folder.mkdir(parents=True, exist_ok=True)
        made = make_run(
            teacher,
            inp.drop(columns=["query"]),
            topics,
            folder / "teacher.run.gz",
            roles=Roles(
                problems.who,
                "the teacher",
                "the teacher's ranking",
                "Mend the teacher, or leave such queries out with on_unusable='skip'.",
            ),
            depth=settings.depth or int(inp.groupby("qid").size().max()),
            seed=settings.seed,
            on_fault=settings.on_unusable,
            reuse=[part for part in reuse if part in ("teacher", "first stage")],
            verbose=settings.verbose,
        )
        problems.skip("were ranked faultily by the teacher", list(made.record["faults"]))
        return Rankings.from_frame(made.read())


def _relevance(
    problems: Problems, qrels: pd.DataFrame | None, rankings: Rankings | None
) -> Mapping[str, Mapping[str, int]]:
    if qrels is None:
        problems.add("There are no relevance labels: give qrels with the columns qid, docno and label.")
        return {}
    missing = [name for name in ("qid", "docno", "label") if name not in qrels.columns]
    if missing:
        problems.add(f"The qrels have no column {', '.join(missing)}, but {', '.join(map(str, qrels.columns))}.")
        return {}
    return {} if rankings is None else as_relevance(qrels, rankings.qids)


class _Obtainable:
    """Labels, without those of relevant documents whose text cannot be had."""

    def __init__(self, relevance: Mapping[str, Mapping[str, int]], texts: Texts) -> None:
        self._relevance = relevance
        self._texts = texts

    def of(self, qid: str) -> dict[str, int]:
        """The labels of a query."""
        return {d: label for d, label in self._relevance.get(qid, {}).items() if label <= 0 or d in self._texts}

    def all(self) -> dict[str, dict[str, int]]:
        """The labels of all queries."""
        return {qid: self.of(qid) for qid in self._relevance}


def is_published(run: object) -> bool:
    """Whether that is the name of a published run."""
    provider, separator, name = str(run).partition(":")
    return bool(separator) and provider == "rankdistillm" and name in PUBLISHED
