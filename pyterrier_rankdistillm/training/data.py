"""From what users have (frames, runs, teachers) to what is trained on, checked beforehand."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import pandas as pd
import pyterrier as pt

from ..checks import is_text
from ..errors import InputError, OrderWarning, TeacherWarning, TrainingDataError
from ..query_language import remedy, rewritten
from ..runs.given import (
    Door,
    GivenRun,
    MappedRun,
    Qrels,
    Ranker,
    Runs,
    Topics,
    checked_run,
    contradiction,
    qrels_of,
    ranker_of,
    runs_of,
    texts_of,
    topics_of,
)
from ..runs.given import (
    Texts as GivenTexts,
)
from ..runs.making import Roles, make_run
from ..runs.rankings import JoinedRankings, Rankings
from .launch import processes
from .lists import Texts, TrainingData, as_relevance
from .losses import Kind, Losses
from .settings import Settings

T = TypeVar("T")


@dataclass
class Problems:
    """What is wrong with the data, gathered to be reported at once.

    Args:
        who: The estimator, for the message.
        what: What is trained on or left out: queries, or the rankings that several runs have of them.
    """

    who: str
    what: str = "queries"
    faults: list[str] = field(default_factory=list)
    unusable: dict[str, list[str]] = field(default_factory=dict)
    hint: str = ""

    def read(self, make: Callable[[], T]) -> T | None:
        """What is made of something that the user gave; None, and noted, where it is wrong."""
        try:
            return make()
        except InputError as error:
            self.faults.append(error.fact)
        return None

    def add(self, what: str) -> None:
        """Something that makes training impossible."""
        self.faults.append(what)

    def as_asked(self, what: str, queries: Mapping[str, str], columns: Collection[str]) -> None:
        """Notes queries that were rewritten: nothing but how to read such strings would be learnt.

        Args:
            what: What they are those of, as the subject of a sentence.
            queries: By qid.
            columns: Of the frame with the queries.
        """
        fact = rewritten(queries.items())
        if fact is not None:
            self.add(f"{what}: {fact}. The model would learn only to read such strings. {remedy(columns)}")

    def skip(self, reason: str, named: Collection[str]) -> None:
        """What cannot be trained on, as messages name it: see ``_named``."""
        if named:
            self.unusable.setdefault(reason, []).extend(named)

    def check(self, total: int, on_unusable: str) -> dict[str, int]:
        """Raises an error that lists everything that is wrong.

        Args:
            total: The number of queries, or of rankings of several runs.
            on_unusable: Whether unusable ones are an error.

        Returns:
            How many are left out, by reason.

        Raises:
            TrainingDataError: Anything is wrong.
        """
        left_out = {one for named in self.unusable.values() for one in named}
        told = list(self.faults)
        if on_unusable == "error" or len(left_out) >= total > 0:
            told += [
                f"{len(named)} of {total} {self.what} {reason} ({', '.join(named[:3])}"
                f"{', ...' if len(named) > 3 else ''})."
                for reason, named in self.unusable.items()
            ]
            told += [self.hint] if self.hint and self.unusable else []
            if self.unusable and len(left_out) < total:
                told.append(f"Correct the data, or leave such {self.what} out with on_unusable='skip'.")
            elif self.unusable:
                told.append("No query is left.")
        if told:
            raise TrainingDataError(f"{self.who}: the training data cannot be used. " + " ".join(told))
        return {reason: len(named) for reason, named in self.unusable.items()}


@dataclass(frozen=True)
class Sourced:
    """Training data.

    Args:
        data: What is trained on.
        left_out: How many queries (of several runs: rankings) were left out of it, by reason.
        about: Where it came from, for the record: ``rankings``, ``teacher``, ``texts``; without local paths.
    """

    data: TrainingData
    left_out: Mapping[str, int]
    about: Mapping[str, str] = field(default_factory=dict)


def labelled_data(
    who: str,
    settings: Settings,
    inp: Topics | None,
    qrels: Qrels | None,
    *,
    run: Runs | None = None,
    text: GivenTexts | None = None,
    text_field: str = "text",
) -> Sourced:
    """A first stage's rankings with relevance labels.

    Args:
        who: The estimator, for messages.
        settings: Those of the training.
        inp: The first stage's results with texts; or, with ``run``, the topics.
        qrels: The labels.
        run: The first stage's run, or several first stages' of the same topics.
        text: Where texts come from that ``inp`` does not have.
        text_field: The column of ``inp`` with the texts.

    Raises:
        TrainingDataError: The data cannot be used.
        TypeError: Something was given that cannot be what it is given as.
    """
    problems = Problems(who)
    found = _found(problems, inp, run, text, text_field)
    if qrels is None:
        qrels = found.dataset
    relevance = _relevance(problems, qrels, found.rankings)
    rankings = found.rankings
    if problems.faults or rankings is None:
        problems.check(0, settings.on_unusable)
    assert rankings is not None
    sampling = settings.to_sampling()
    reasons: dict[str, list[str]] = {}
    members = []
    names = _named(found)
    trainable = _Obtainable(relevance, found.texts)
    for position, qid in enumerate(rankings.qids):
        if qid not in found.queries:
            reason: str | None = "have no query text"
        else:
            reason = sampling.unusable(rankings[position].docnos, trainable.of(qid))
        if reason is None:
            members.append(position)
        else:
            reasons.setdefault(reason, []).append(names[position])
    for reason, named in reasons.items():
        problems.skip(reason, named)
    if not any(qid in relevance for qid in rankings.qids):
        problems.hint = "No qid of the qrels is among the topics: are they of this collection and split?"
    left_out = problems.check(len(rankings), settings.on_unusable)
    data = TrainingData(
        rankings, np.array(members, dtype=np.int64), found.queries, found.texts, trainable.all(), labelled=True
    )
    return Sourced(data, left_out, _about(found, text))


def taught_data(
    who: str,
    settings: Settings,
    inp: Topics | None,
    qrels: Qrels | None,
    *,
    teacher: Ranker | None = None,
    run: Runs | None = None,
    text: GivenTexts | None = None,
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
        teacher: What ranks, or its run; None: the ranking that is given.
        run: The teacher's run, which may be larger than memory; or several, each ranking of which is a list.
        text: Where texts come from that ``inp`` does not have.
        text_field: The column of ``inp`` with the texts.
        reuse: Parts of a kept run of the teacher that may differ, as for ``runs.make_teacher_run``.

    Raises:
        TrainingDataError: The data cannot be used.
        TypeError: Something was given that cannot be what it is given as.
    """
    problems = Problems(who)
    if teacher is not None and run is not None:
        problems.add("There are two teachers: teacher and run. Give one of them.")
    ranker = None if teacher is None else ranker_of(teacher, who=who, argument="teacher")
    has_documents = isinstance(inp, pd.DataFrame) and "docno" in inp.columns
    taken: Runs | None = run
    if run is None and not has_documents and isinstance(ranker, GivenRun):
        taken, ranker = ranker, None  # topics and the teacher's run: its documents are the candidates
    found = _found(problems, inp, taken, text, text_field, learnt=ranker is None)
    losses = Losses.of(settings.loss)
    relevance: Mapping[str, Mapping[str, int]] = {}
    if "relevance" in losses.needs or qrels is not None:
        relevance = _relevance(problems, qrels, found.rankings)
    rankings = found.rankings
    if problems.faults or rankings is None:
        problems.check(0, settings.on_unusable)
    assert rankings is not None
    if isinstance(ranker, pt.Transformer) and processes() > 1:
        problems.add("Several processes would each run the teacher. Make its run first, with runs.make_teacher_run.")
        problems.check(0, settings.on_unusable)
    asked = len(rankings)
    if isinstance(ranker, pt.Transformer):
        rankings = _asked(ranker, problems, settings, found, reuse)
    elif ranker is not None:
        rankings = _looked_up(ranker, problems, settings, rankings)
    there = {"order": True, "values": rankings.has_scores, "relevance": bool(relevance)}
    problems.read(lambda: losses.check([kind for kind in get_args(Kind) if there[kind]]))
    names = _named(replace(found, rankings=rankings))
    without_query = [name for name, qid in zip(names, rankings.qids, strict=True) if qid not in found.queries]
    problems.skip("have no query text", without_query)
    sampling = settings.to_sampling()
    if sampling.strategy == "single_relevant":
        problems.add(
            "sampling='single_relevant' draws by labels, and what is learnt here is the order of a ranking. Choose "
            "another sampling, or FineTuning."
        )
    few = sampling.unlabelled(rankings.sizes) < 2
    within = "" if settings.negative_ranks is None else f" at negative_ranks={settings.negative_ranks}"
    problems.skip(f"have fewer than two documents{within}", [names[place] for place in np.flatnonzero(few).tolist()])
    left_out = problems.check(asked, settings.on_unusable)
    unusable = {name for named in problems.unusable.values() for name in named}
    members = [position for position, name in enumerate(names) if name not in unusable]
    data = TrainingData(
        rankings, np.array(members, dtype=np.int64), found.queries, found.texts, relevance, labelled=False
    )
    # Without a teacher the ranking that is given is the teacher's.
    taught_by = found.name or "the ranking that was given"
    if teacher is None and not found.runs:
        warnings.warn(
            f"{who}.fit: there is no teacher, so what is distilled is the ranking that fit got; in a pipeline that is "
            f"the first stage's. Give {who} a teacher, or, if that ranking is one, give it to fit as run=.",
            TeacherWarning,
            stacklevel=5,
        )
    if teacher is not None:
        taught_by = ranker.name if isinstance(ranker, GivenRun) else _told(teacher)
    return Sourced(data, left_out, {"teacher": taught_by, **_about(found, text)})


def _about(found: _Found, text: GivenTexts | None) -> dict[str, str]:
    texts = text if text is not None else found.dataset
    return {"rankings": found.name or "a frame", "texts": "the frame" if texts is None else _told(texts)}


def _told(given: object) -> str:
    """What something is called in records, which may be published: names, but no folders."""
    if isinstance(given, pd.DataFrame):
        return "a frame"
    if isinstance(given, os.PathLike) or (isinstance(given, str) and Path(given).expanduser().exists()):
        return Path(given).name
    text = given if isinstance(given, str) else repr(given)
    return re.sub(r"(?:~|[.]{0,2})/[^\s'\"]*/", "", text)[:200]


@dataclass(frozen=True)
class _Found:
    """What a first stage found, or a teacher ranked.

    Args:
        rankings: None where something is wrong, which was noted.
        queries: Query texts by qid.
        texts: Document texts.
        runs: The runs that they come from; none where they come from a frame of results.
        frame: The results, where they are a frame.
    """

    rankings: Rankings | None
    queries: Mapping[str, str]
    texts: Texts
    runs: tuple[GivenRun, ...] = ()
    frame: pd.DataFrame | None = None

    @property
    def name(self) -> str:
        """What the runs are called in records; empty where there are none."""
        return ", ".join(run.name for run in self.runs)

    @property
    def dataset(self) -> pt.datasets.Dataset | str | None:
        """The first run's that knows its own: several runs are of the same topics."""
        return next((run.dataset for run in self.runs if run.dataset is not None), None)


def _named(found: _Found) -> list[str]:
    """What messages call each ranking: its qid; of several runs, the run too."""
    assert found.rankings is not None
    told = [repr(qid) for qid in found.rankings.qids[:]]
    if not isinstance(found.rankings, JoinedRankings):
        return told
    numbers = np.repeat(np.arange(len(found.runs)), [len(one) for one in found.rankings.runs])
    return [f"{qid} of {_which(found.runs, number)}" for qid, number in zip(told, numbers.tolist(), strict=True)]


def _which(runs: Sequence[GivenRun], number: int) -> str:
    """What messages call one of several runs: its place in the list that the user gave, and its name."""
    return f"{runs[number].door.argument} ({runs[number].name})"


def _found(
    problems: Problems,
    inp: Topics | None,
    run: Runs | None,
    text: GivenTexts | None,
    text_field: str,
    *,
    learnt: bool = True,
) -> _Found:
    """Rankings, queries and texts, from a frame of results, or from topics and a run.

    Args:
        problems: What is wrong is noted there.
        inp: The results; or, with ``run``, the topics.
        run: The run.
        text: Where texts come from that a frame does not have.
        text_field: The frame's column with texts.
        learnt: Whether the order of the rankings is learnt, or only their depth is cut.
    """
    loader = None if text is None else texts_of(text, who=problems.who, field=text_field)
    if run is not None:
        return _from_runs(problems, inp, runs_of(run, who=problems.who), loader, text_field)
    if inp is None or (isinstance(inp, pd.DataFrame) and inp.empty):
        problems.add("There are no documents: give the first stage's results, or run= and text=.")
        return _Found(None, {}, Texts())
    if not isinstance(inp, pd.DataFrame):
        accepted = "the first stage's results as a frame (with run=: topics as a frame, file, dataset or its name)"
        raise Door(problems.who, "topics_or_res_tr", accepted).refuse(inp, "Give a run of them as run=.")
    missing = [name for name in ("qid", "query", "docno") if name not in inp.columns]
    if missing:
        problems.add(
            f"The frame has no column {', '.join(missing)}, but {', '.join(map(str, inp.columns))}. Fit a pipeline "
            f"(`(first_stage >> estimator).fit(...)`), or its results."
        )
    if "rank" not in inp.columns and "score" not in inp.columns:
        problems.add("The frame has neither rank nor score, so nothing is ranked.")
    if text_field not in inp.columns and loader is None:
        problems.add(
            f"The frame has no column {text_field!r}. Put `>> dataset.text_loader()` (or `>> pt.text.get_text(index, "
            f"'text')`) before the estimator, or give text=."
        )
    if problems.faults:
        return _Found(None, {}, Texts())
    frame = problems.read(lambda: checked_run(inp, Door(problems.who, "the frame", "a frame"), scored=False))
    if frame is None:
        return _Found(None, {}, Texts())
    texts = Texts(_known_texts(frame, text_field), loader)
    without = frame["docno"][[docno not in texts for docno in frame["docno"]]]
    if len(without):
        problems.add(f"{len(without)} of {len(frame)} rows have no text, the first docno {without.iloc[0]!r}.")
    odd = contradiction(frame)
    if odd is not None and learnt:
        problems.add(f"The frame {odd}")
    elif odd is not None:
        warnings.warn(f"{problems.who}: the frame {odd} Its depth is cut by rank.", OrderWarning, stacklevel=5)
    queries = problems.read(lambda: _queries(problems, frame))
    problems.as_asked("The frame's column query", queries or {}, frame.columns)
    return _Found(Rankings.from_frame(_run_of(frame)), queries or {}, texts, frame=frame)


def _from_runs(
    problems: Problems,
    topics: Topics | None,
    runs: tuple[GivenRun, ...],
    loader: pt.Transformer | None,
    text_field: str,
) -> _Found:
    """As ``_found``, of a run or several: what is not given beside them is what they bring along."""
    found = _Found(None, {}, Texts(), runs)
    known: dict[str, str] = {}
    for run in runs:
        if isinstance(run.source, pd.DataFrame):
            known |= _known_texts(run.source.assign(docno=run.source["docno"].astype(str)), text_field)
    if loader is None and found.dataset is not None:
        loader = texts_of(found.dataset, who=problems.who)
    if loader is None and not known:
        problems.add("With run=, texts are needed: give text=, a text loader or a dataset.")
        return found
    several = [run.rankings() for run in runs]
    for number, one in enumerate(several):
        odd = one.contradictions()
        if odd:
            which, what = ("The run", "run") if len(runs) == 1 else (_which(runs, number), runs[number].door.argument)
            problems.add(
                f"{which} has ranks that contradict its scores (a better rank with a lower score) for {len(odd)} of "
                f"{len(one)} queries, the first qid {odd[0]!r}. Give it as runs.read({what}, order='rank') or "
                f"order='score', which says which of them counts."
            )
    if len(runs) > 1:
        problems.what = "rankings"
    found = replace(
        found, rankings=several[0] if len(runs) == 1 else JoinedRankings(several), texts=Texts(known, loader)
    )
    if topics is None and any(one[0].query is not None for one in several):
        return replace(found, queries=_stated(problems, runs, several))
    topics = found.dataset if topics is None else topics
    if topics is None or (isinstance(topics, pd.DataFrame) and "query" not in topics.columns):
        problems.add(
            "With run=, queries are needed: give topics with the columns qid and query (the run is neither published "
            "nor named after its dataset)."
        )
        return replace(found, rankings=None)
    given = topics
    asked = problems.read(lambda: topics_of(given, who=problems.who, missing="drop"))
    if asked is None:
        return replace(found, rankings=None)
    wanted = set(found.rankings.qids[:]) if found.rankings is not None else set()
    used = asked[asked["qid"].isin(wanted)]
    queries = dict(zip(used["qid"], used["query"], strict=True))
    problems.as_asked("The topics", queries, topics.columns if isinstance(topics, pd.DataFrame) else ())
    return replace(found, queries=queries)


def _stated(problems: Problems, runs: Sequence[GivenRun], several: Sequence[Rankings]) -> dict[str, str]:
    """The queries that the runs themselves have, by qid; a qid has one text in all of them."""
    stated: dict[str, str] = {}
    first: dict[str, int] = {}
    for number, rankings in enumerate(several):
        for one in rankings:
            if one.query is None:
                continue
            if stated.setdefault(one.qid, one.query) != one.query:
                problems.add(
                    f"{_which(runs, first[one.qid])} and {_which(runs, number)} have different queries for qid "
                    f"{one.qid!r}: {stated[one.qid]!r} and {one.query!r}. Give runs of the same topics, or the topics."
                )
                return stated
            first.setdefault(one.qid, number)
    problems.as_asked("The run's queries", stated, ())
    return stated


def _known_texts(frame: pd.DataFrame, text_field: str) -> dict[str, str]:
    if text_field not in frame.columns:
        return {}
    return {docno: text for docno, text in zip(frame["docno"], frame[text_field], strict=True) if is_text(text)}


def _queries(problems: Problems, frame: pd.DataFrame) -> dict[str, str]:
    """The frame's queries; those that are missing are left out."""
    asked = frame[["qid", "query"]].drop_duplicates()
    if asked["query"].isna().all():
        return {}
    found = topics_of(asked, who=problems.who, argument="the frame's rows", missing="drop")
    return dict(zip(found["qid"], found["query"], strict=True))


def _looked_up(teacher: GivenRun, problems: Problems, settings: Settings, given: Rankings) -> Rankings:
    """The rankings that a teacher's run has for the first stage's top documents."""
    if teacher.published:
        mapped = MappedRun(teacher.rankings(), teacher.name)
        taught: pd.DataFrame | None = mapped.transform(pd.DataFrame({"qid": list(given.qids)}))
    else:
        taught = problems.read(lambda: teacher.frame(scored=False))
    if taught is None:
        problems.check(len(given), settings.on_unusable)
    assert taught is not None
    taught = _run_of(taught[taught["qid"].isin(set(given.qids))])
    odd = contradiction(taught)
    if odd is not None:
        problems.add(f"The teacher's run {odd}")
        problems.check(len(given), settings.on_unusable)
    ranked: dict[str, set[str]] = {}
    if len(taught):
        ranked = {one.qid: set(one.docnos) for one in Rankings.from_frame(taught)}
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
    problems.skip("are not in the teacher's run", [repr(qid) for qid in unranked])
    reason = "have documents that the teacher did not rank (its run may be shallower: set depth)"
    problems.skip(reason, [repr(qid) for qid in partly])
    if not wanted:
        problems.check(len(given), settings.on_unusable)
    return Rankings.from_frame(taught.merge(pd.concat(wanted), on=["qid", "docno"]))


def _run_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Those columns of a frame that make a run."""
    return frame[[name for name in ("qid", "docno", "score", "rank") if name in frame.columns]]


def _asked(
    teacher: pt.Transformer, problems: Problems, settings: Settings, found: _Found, reuse: Collection[str]
) -> Rankings:
    """Runs the teacher, resumably where there is a folder."""
    assert found.frame is not None
    topics = pd.DataFrame({"qid": list(found.queries), "query": list(found.queries.values())})
    frame = found.frame.drop(columns=["query"])
    if "score" not in frame.columns:
        frame = frame.assign(score=-frame["rank"].astype(np.float64))
    first_stage = pt.Transformer.from_df(frame)
    if "text" not in frame.columns and found.texts.loader is not None:
        first_stage = first_stage >> found.texts.loader
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch if settings.folder is None else settings.folder)
        folder.mkdir(parents=True, exist_ok=True)
        made = make_run(
            teacher,
            first_stage,
            topics,
            folder / "teacher.run.gz",
            roles=Roles(
                problems.who,
                "the teacher",
                "the teacher's ranking",
                "A teacher must be a re-ranker: it ranks just the documents that it is given. "
                "Correct it, or leave such queries out with "
                "on_unusable='skip'.",
            ),
            depth=settings.depth or int(frame.groupby("qid").size().max()),
            seed=settings.seed,
            on_fault=settings.on_unusable,
            reuse=[part for part in reuse if part in ("teacher", "first stage")],
            verbose=settings.verbose,
        )
        problems.skip("were ranked faultily by the teacher", [repr(qid) for qid in made.record["faults"]])
        return Rankings.from_frame(made.read())


def _relevance(problems: Problems, qrels: Qrels | None, rankings: Rankings | None) -> Mapping[str, Mapping[str, int]]:
    if qrels is None:
        problems.add("There are no relevance labels: give qrels with the columns qid, docno and label.")
        return {}
    labels = problems.read(lambda: qrels_of(qrels, who=problems.who))
    return {} if rankings is None or labels is None else as_relevance(labels, rankings.qids)


class _Obtainable:
    """Labels, without those of relevant documents that have no text."""

    def __init__(self, relevance: Mapping[str, Mapping[str, int]], texts: Texts) -> None:
        self._relevance = relevance
        self._texts = texts

    def of(self, qid: str) -> dict[str, int]:
        """The labels of a query."""
        return {d: label for d, label in self._relevance.get(qid, {}).items() if label <= 0 or d in self._texts}

    def all(self) -> dict[str, dict[str, int]]:
        """The labels of all queries."""
        return {qid: self.of(qid) for qid in self._relevance}
