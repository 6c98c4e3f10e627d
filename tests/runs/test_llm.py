"""``RankLlm`` with a fake of rank_llm 0.25.7: its data classes, and a re-ranker that keeps its rules."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_rankdistillm import runs

TOPICS = pd.DataFrame({"qid": ["1", "2", "3"], "query": ["one", "two", "three"]})
RUN = pd.DataFrame(
    [("1", "a", 3.0, 0), ("1", "b", 2.0, 1), ("1", "c", 1.0, 2), ("2", "c", 9.0, 0), ("2", "a", 8.0, 1),
     ("3", "b", 5.0, 0), ("3", "c", 4.0, 1), ("3", "a", 3.0, 2)],
    columns=["qid", "docno", "score", "rank"],
).assign(text=lambda run: "text of " + run["docno"])  # fmt: skip


@dataclass
class Query:
    text: str
    qid: str


@dataclass
class Candidate:
    docid: str
    score: float
    doc: dict[str, Any]


@dataclass
class Request:
    query: Query
    candidates: list[Candidate] = field(default_factory=list)


class Reversing:
    """Gives each list back upside down, its scores in the old order, as a listwise model of rank_llm does."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, list[tuple[str, str]]]] = []
        self.options: list[dict[str, Any]] = []

    def rerank_batch(self, requests: list[Request], rank_start: int = 0, rank_end: int = 100, **kw: Any) -> list[Any]:
        if len({len(request.candidates) for request in requests}) != 1:
            raise ValueError("Batched requests must have the same number of candidates")
        self.options.append({"rank_start": rank_start, "rank_end": rank_end, **kw})
        results = []
        for request in requests:
            documents = [(one.docid, one.doc["contents"]) for one in request.candidates]
            self.asked.append((request.query.qid, request.query.text, documents))
            scores = [one.score for one in request.candidates]
            upside_down = [Candidate(d, s, {}) for (d, _), s in zip(documents[::-1], scores, strict=True)]
            results.append(Request(request.query, upside_down))
        return results


@pytest.fixture
def rank_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    package, data = ModuleType("rank_llm"), ModuleType("rank_llm.data")
    vars(data).update(Query=Query, Candidate=Candidate, Request=Request)
    monkeypatch.setitem(sys.modules, "rank_llm", package)
    monkeypatch.setitem(sys.modules, "rank_llm.data", data)


def plain(run: pd.DataFrame) -> dict[str, list[str]]:
    return {str(qid): rows.sort_values("rank")["docno"].tolist() for qid, rows in run.groupby("qid")}


UPSIDE_DOWN = {qid: docnos[::-1] for qid, docnos in plain(RUN).items()}


@pytest.mark.usefixtures("rank_llm")
def test_an_llm_ranks_in_a_pipeline() -> None:
    llm = Reversing()
    ranker = runs.RankLlm(llm, model="castorini/fake", batched=True)
    shuffled = RUN.sample(frac=1, random_state=0)
    out = (pt.Transformer.from_df(shuffled) >> ranker)(TOPICS)
    assert plain(out) == UPSIDE_DOWN
    assert set(out.columns) == {"qid", "query", "docno", "text", "score", "rank"}
    assert (out["text"] == "text of " + out["docno"]).all()
    assert (out["score"] == -out["rank"]).all()
    assert ("1", "one", [("a", "text of a"), ("b", "text of b"), ("c", "text of c")]) in llm.asked
    assert llm.options == [{"rank_start": 0, "rank_end": n, "batched": True} for n in (2, 3)]
    assert repr(ranker) == "RankLlm('castorini/fake')"
    by_score = ranker(RUN.drop(columns="rank").merge(TOPICS, on="qid"))
    assert plain(by_score) == UPSIDE_DOWN
    pt.inspect.transformer_outputs(ranker, ["qid", "query", "docno", "text", "score", "rank"])


@pytest.mark.usefixtures("rank_llm")
def test_an_llm_is_a_teacher_whose_run_is_kept(tmp_path: Path) -> None:
    def made(llm: Reversing, model: str) -> runs.MadeRun:
        ranker = runs.RankLlm(llm, model=model, settings={"window_size": 20})
        return runs.make_teacher_run(ranker, RUN, TOPICS, tmp_path / "llm.run", depth=3, verbose=False)

    run = made(Reversing(), "castorini/fake")
    assert plain(run.read()) == UPSIDE_DOWN
    again = Reversing()
    assert plain(made(again, "castorini/fake").read()) == UPSIDE_DOWN
    assert again.asked == []  # it is the same teacher
    with pytest.raises(ValueError, match=r"teacher\.model: is another"):
        made(Reversing(), "castorini/other")


@pytest.mark.usefixtures("rank_llm")
def test_documents_that_an_llm_makes_up_or_loses_are_told(tmp_path: Path) -> None:
    class Faulty(Reversing):
        def rerank_batch(self, requests: list[Request], **options: Any) -> list[Any]:  # type: ignore[override]
            results = super().rerank_batch(requests, **options)
            results[0].candidates[0].docid = "z"
            return results

    ranker = runs.RankLlm(Faulty(), model="faulty")
    with pytest.raises(ValueError, match="'2'"):
        runs.make_teacher_run(ranker, RUN, TOPICS, tmp_path / "llm.run", depth=3, verbose=False)


def test_without_rank_llm_it_says_what_to_install() -> None:
    with pytest.raises(ImportError, match="RankLlm needs rank_llm: pip install rank_llm"):
        runs.RankLlm(Reversing(), model="x")(RUN.merge(TOPICS, on="qid"))
