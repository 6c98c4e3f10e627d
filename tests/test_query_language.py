"""Queries in Terrier's query language are told where a cross-encoder reads them, and nothing else is."""

from __future__ import annotations

import warnings
from pathlib import Path

import pandas as pd
import pytest
import tiny

from pyterrier_rankdistillm import Distillation, FineTuning, MonoElectra, RewrittenQueryWarning, TrainingDataError
from pyterrier_rankdistillm.query_language import is_rewritten, remedy, rewritten

RM3 = "applypipeline:off bread^0.300000012"

# As Terrier 5.11 and PyTerrier 1.1.2 write them.
WRITTEN = [
    RM3,
    "applypipeline:on bread",
    "#combine:0:0.750000:1:0.250000(#combine(bread) #combine(rise))",
    "bread rise #combine:0=0.1:wmodel=org.terrier.matching.models.dependence.pBiL(#1(bread rise))",
    "#combine(#base64(YnJlYWQ=) #base64(cmlzZQ==))",
    "#1(bread rise)",
    "why #uw8(bread rise)",
    "(bread rise)^0.750000 (why bread)^0.250000",
]
ASKED = [
    "x^2 + y^2", "e^2.718", "C#", "#1 (band)", "#1(a) explained", "#define MAX(a,b)", "std::vector<int>(5)", "f(x)^2",
    "title:egg", "what's 10^6", "why does bread rise", "", "who was #1 (and #2) in 1999",
]  # fmt: skip


@pytest.mark.parametrize("query", WRITTEN)
def test_what_programs_write_is_told(query: str) -> None:
    assert is_rewritten(query)


@pytest.mark.parametrize("query", ASKED)
def test_what_people_ask_is_not(query: str) -> None:
    assert not is_rewritten(query)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["msmarco-queries", "vaswani", "cisi", "trec-dl-2019-pool", "trec-dl-2020-pool"])
def test_no_query_that_was_asked_is_told(name: str, shared: Path) -> None:
    lines = (shared / "data" / name / "queries.tsv").read_text(encoding="utf-8").splitlines()
    queries = [line.split("\t", 1) for line in lines]
    assert len(queries) > 40
    assert rewritten((qid, query) for qid, query in queries) is None


def test_how_many_and_which() -> None:
    assert rewritten([("q1", RM3), ("q1", RM3), ("q2", "bread")]) == (
        f"1 of 2 queries are in Terrier's query language, the first qid 'q1': {RM3!r}"
    )
    assert "add_queries" in remedy(["query"])
    assert "pt.rewrite.reset()" in remedy(["query", "query_0"])


def test_a_reranker_tells_once(model: tiny.Tiny, frame: pd.DataFrame) -> None:
    reranker = MonoElectra(model.folder, query_length=28)
    odd = frame.assign(query_0=frame["query"], query=RM3)
    with pytest.warns(RewrittenQueryWarning, match=r"2 of 2 queries .*first qid 'q2'.*pt\.rewrite\.reset\(\)") as told:
        reranker.transform(odd)
    assert [one.filename for one in told] == [__file__]
    reranker.transform(odd)
    with pytest.warns(RewrittenQueryWarning, match=r"runs\.add_queries"):
        reranker.clone(query_length=29).transform(odd.drop(columns="query_0"))


def test_plain_rewritings_are_the_users_business(model: tiny.Tiny, frame: pd.DataFrame) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MonoElectra(model.folder).transform(frame.assign(query_0=frame["query"], query="bread rises"))


def test_training_refuses_them(model: tiny.Tiny, frame: pd.DataFrame) -> None:
    ranked = frame.assign(score=range(len(frame), 0, -1))
    odd = ranked.assign(query_0=ranked["query"], query=[RM3 if qid == "q1" else "rain" for qid in ranked["qid"]])
    short = {"steps": 1, "batch_size": 1, "verbose": False}
    qrels = pd.DataFrame({"qid": ["q1", "q2"], "docno": ["d2", "d1"], "label": 1})
    told = r"1 of 2 queries are in Terrier's query language, the first qid 'q1'.*pt\.rewrite\.reset\(\)"
    with pytest.raises(TrainingDataError, match=told):
        Distillation(model.folder, **short).fit(odd)
    with pytest.raises(TrainingDataError, match=told):
        FineTuning(model.folder, sample_size=2, **short).fit(odd, qrels)
    with pytest.raises(TrainingDataError, match=f"topics_or_res_va: {told}"):
        Distillation(model.folder, valid_every=1, **short).fit(ranked, None, odd, qrels)
    topics = odd[["qid", "query"]].drop_duplicates()
    with pytest.raises(TrainingDataError, match=r"The topics: 1 of 2 .*runs\.add_queries"):
        Distillation(model.folder, **short).fit(topics, run=ranked[["qid", "docno", "score"]], text=frame)
