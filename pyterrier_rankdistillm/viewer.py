"""Rankings to look at: systems over topics, passages before and after, in one HTML page that fetches nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import ir_measures
import pandas as pd
import pyterrier as pt
from ir_measures import Measure

from .checks import is_text, is_whole
from .progress import bar
from .runs.atomic import replacing
from .runs.given import (
    Door,
    GivenRun,
    Qrels,
    Ranker,
    Texts,
    Topics,
    checked_run,
    qrels_of,
    ranker_of,
    texts_of,
    topics_of,
)
from .runs.text import texts_by

_WHO = "view_rankings"
_PLACE = "/*DATA*/"
_LONGEST = 4_000
"""Characters of a text that a page holds."""


def view_rankings(
    systems: Mapping[str, Ranker],
    topics: Topics,
    qrels: Qrels | None = None,
    *,
    text: Texts | None = None,
    depth: int = 20,
    measure: str | Measure = "nDCG@10",
    text_field: str = "text",
    title: str = "Rankings",
    verbose: bool | None = None,
) -> RankingView:
    """Shows what systems rank where: which passages rise and fall, and on which topics that helps.

    ``view_rankings({"BM25": bm25, "MonoElectra": bm25 >> mono}, topics, qrels)`` is a view in a notebook;
    ``.to_html("rankings.html")`` writes the same as a page.

    Args:
        systems: Pipelines, or runs as a frame, a file or a published run, by name. The first is what the others are
            compared with.
        topics: A frame with ``qid`` and ``query``, a file, or a dataset or its name.
        qrels: Relevance labels: a frame, a file, or a dataset or its name. None: topics are ordered by how far
            passages moved, not by a measure.
        text: Where the texts of passages come from that systems do not give; None: they are shown by docno.
        depth: Passages per topic and system that are shown, at most.
        measure: What topics are ordered by, of ir-measures; computed over whole rankings.
        text_field: The column that holds a system's texts.
        title: The page's title.
        verbose: Show a progress bar; None: in a terminal or a notebook.

    Raises:
        ValueError: There is no system, a setting is out of range, or something that was given is faulty.
        TypeError: Something cannot be a system, topics, labels or texts.
    """
    if not isinstance(systems, Mapping) or not systems:
        raise ValueError(f"{_WHO}: systems must be one or more pipelines or runs by name, got {systems!r:.80}.")
    if not is_whole(depth, least=1):
        raise ValueError(f"{_WHO}: depth must be a whole number, at least 1, got {depth!r}.")
    parsed = _measure(measure)
    asked = topics_of(topics, who=_WHO)
    labels = None if qrels is None else qrels_of(qrels, who=_WHO)
    loader = None if text is None else texts_of(text, who=_WHO, field=text_field)
    rankers = {str(name): ranker_of(given, who=_WHO, argument="systems") for name, given in systems.items()}
    texts: dict[str, str] = {}
    rankings: dict[str, pd.DataFrame] = {}
    with bar(verbose, total=len(rankers), desc=_WHO, unit=" systems") as drawn:
        for name, ranker in rankers.items():
            run = _run(ranker, asked, name)
            rankings[name] = run[["qid", "docno", "score", "rank"]]
            if text_field in run.columns:
                shown = run[run["rank"] < depth]
                pairs = zip(shown["docno"], shown[text_field], strict=True)
                texts.update((docno, passage) for docno, passage in pairs if is_text(passage))
            drawn.update()
    cut = {name: run[run["rank"] < depth] for name, run in rankings.items()}
    if loader is not None:
        missing = dict.fromkeys(docno for run in cut.values() for docno in run["docno"] if docno not in texts)
        texts |= texts_by(loader, list(missing))
    values = None if labels is None else {n: _by_topic(run, labels, parsed, asked) for n, run in rankings.items()}
    return RankingView(_data(asked, cut, labels, values, texts, str(parsed), title))


@dataclass(frozen=True)
class RankingView:
    """Rankings of systems over topics, to be looked at in a notebook or as a page; made by ``view_rankings``.

    Args:
        data: What the page shows, as JSON values.
    """

    data: dict[str, Any] = field(repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """The measure by topic: columns ``qid``, ``query`` and one per system (None without labels)."""
        names = self.data["systems"]
        rows = [(topic["qid"], topic["query"], *topic["values"]) for topic in self.data["topics"]]
        return pd.DataFrame(rows, columns=["qid", "query", *names])

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """One self-contained HTML page.

        Args:
            path: A file to write it to as well.
        """
        template = (resources.files(__package__) / "viewer.html").read_text(encoding="utf-8")
        # Inside a script element only "<" could end it; the two separators end lines of JavaScript, but not of JSON.
        data = json.dumps(self.data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        for character in "<>&\u2028\u2029":
            data = data.replace(character, f"\\u{ord(character):04x}")
        page = template.replace("{{title}}", escape(self.data["title"])).replace(_PLACE, data)
        if path is not None:
            with replacing(Path(path).expanduser().absolute()) as scratch:
                scratch.write_text(page, encoding="utf-8")
        return page

    def __repr__(self) -> str:
        return f"RankingView({len(self.data['systems'])} systems, {len(self.data['topics'])} topics)"

    def _repr_html_(self) -> str:
        frame = 'width="100%" height="720" style="border:1px solid rgba(128,128,128,.4);border-radius:4px"'
        return f'<iframe title="{escape(self.data["title"])}" srcdoc="{escape(self.to_html())}" {frame}></iframe>'


def _run(ranker: pt.Transformer | GivenRun, topics: pd.DataFrame, name: str) -> pd.DataFrame:
    if isinstance(ranker, GivenRun):
        found = ranker.frame() if not ranker.published else ranker.retriever().transform(topics)
    else:
        found = checked_run(ranker.transform(topics), Door(_WHO, f"systems[{name!r}]", "a ranking"))
    return found[found["qid"].isin(topics["qid"])]


def _by_topic(run: pd.DataFrame, labels: pd.DataFrame, measure: Measure, topics: pd.DataFrame) -> dict[str, float]:
    """The measure of the topics that are judged; 0 where nothing was found."""
    judged = set(labels["qid"])
    values = dict.fromkeys((qid for qid in topics["qid"] if qid in judged), 0.0)
    qrels = labels.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
    scored = run.rename(columns={"qid": "query_id", "docno": "doc_id"})[["query_id", "doc_id", "score"]]
    for one in ir_measures.iter_calc([measure], qrels[qrels["query_id"].isin(values)], scored):
        if one.query_id in values:
            values[one.query_id] = float(one.value)
    return values


def _data(
    topics: pd.DataFrame,
    rankings: Mapping[str, pd.DataFrame],
    labels: pd.DataFrame | None,
    values: Mapping[str, Mapping[str, float]] | None,
    texts: Mapping[str, str],
    measure: str,
    title: str,
) -> dict[str, Any]:
    """What the page shows. Passages are held once, and rankings name them by their place."""
    places: dict[str, int] = {}
    for run in rankings.values():
        for docno in run["docno"]:
            places.setdefault(docno, len(places))
    by_topic = {name: dict(tuple(run.sort_values("rank").groupby("qid"))) for name, run in rankings.items()}
    judged: dict[str, dict[str, int]] = {}
    if labels is not None:
        for qid, docno, label in zip(labels["qid"], labels["docno"], labels["label"].tolist(), strict=True):
            judged.setdefault(qid, {})[docno] = label
    shown = []
    for qid, query in zip(topics["qid"], topics["query"], strict=True):
        lists = [by_topic[name].get(qid) for name in rankings]
        known = {docno for one in lists if one is not None for docno in one["docno"]}
        shown.append({
            "qid": qid,
            "query": query,
            "values": [None if values is None else values[name].get(qid) for name in rankings],
            "labels": {str(places[docno]): label for docno, label in judged.get(qid, {}).items() if docno in known},
            "lists": [
                [] if one is None
                else [[places[docno], round(score, 4)]
                      for docno, score in zip(one["docno"], one["score"].tolist(), strict=True)]
                for one in lists
            ],
        })  # fmt: skip
    return {
        "title": title, "measure": measure if values is not None else None, "systems": list(rankings),
        "topics": shown,
        "docs": [[docno, _cut(texts.get(docno))] for docno in places],
        "grades": max((label for one in judged.values() for label in one.values()), default=1),
    }  # fmt: skip


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def _measure(measure: str | Measure) -> Measure:
    if isinstance(measure, Measure):
        return measure
    try:
        return ir_measures.parse_measure(measure)
    except (NameError, ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"{_WHO}: measure must be one of ir-measures, got {measure!r}.") from error
