"""Pipelines over real Terrier: queries as they were asked, and what holds with every retriever."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import nDCG

from pyterrier_rankdistillm import Distillation, MonoElectra, RewrittenQueryWarning, TrainingDataError, reproduce, runs
from pyterrier_rankdistillm.query_language import is_rewritten
from pyterrier_rankdistillm.reproduction.texts import wants_text

M = MonoElectra("rankdistillm:demo")


@pytest.fixture(scope="module")
def index(folder: Path) -> pt.terrier.J.Index:
    return pt.IndexFactory.of(str(folder))


@pytest.fixture(scope="module")
def get(index: pt.terrier.J.Index) -> pt.Transformer:
    return pt.text.get_text(index, "text")


REWRITINGS: dict[str, Callable[[pt.Transformer, pt.terrier.J.Index], pt.Transformer]] = {
    "RM3": lambda bm25, index: bm25 >> pt.rewrite.RM3(index),
    "Bo1": lambda bm25, index: bm25 >> pt.rewrite.Bo1QueryExpansion(index),
    "KL": lambda bm25, index: bm25 >> pt.rewrite.KLQueryExpansion(index),
    "SDM": lambda _, __: pt.rewrite.SDM(),
    "linear": lambda _, __: pt.apply.query(lambda _: "waves") >> pt.rewrite.linear(0.75, 0.25),
    "linear, matchop": lambda _, __: pt.apply.query(lambda _: "wave") >> pt.rewrite.linear(0.75, 0.25, "matchopql"),
}


@pytest.mark.parametrize("name", REWRITINGS)
def test_rewritten_queries_are_told_and_reset_restores_them(
    name: str, bm25: pt.Transformer, index: pt.terrier.J.Index, topics: pd.DataFrame
) -> None:
    asked = topics.head(2)
    rewritten = REWRITINGS[name](bm25, index).transform(asked)
    assert all(map(is_rewritten, rewritten["query"])), rewritten["query"].tolist()
    resets = pt.rewrite.reset() >> pt.rewrite.reset() if "linear" in name else pt.rewrite.reset()
    assert sorted(resets.transform(rewritten)["query"]) == sorted(asked["query"])


def test_re_ranking_after_rm3(
    bm25: pt.Transformer, index: pt.terrier.J.Index, get: pt.Transformer, topics: pd.DataFrame, shared: Path
) -> None:
    rm3 = bm25 >> pt.rewrite.RM3(index) >> bm25 % 5
    reranker = M.clone()
    with pytest.warns(RewrittenQueryWarning, match=r"2 of 2 queries .*applypipeline:off.*pt\.rewrite\.reset\(\)"):
        (rm3 >> get >> reranker).transform(topics.head(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RewrittenQueryWarning)
        restored = (rm3 >> pt.rewrite.reset() >> get >> M.clone()).transform(topics.head(2))
        by_hand = M.clone().transform(get.transform(runs.add_queries(rm3.transform(topics.head(2)), topics)))
    same = ["qid", "docno", "score"]
    assert restored[same].to_dict() == by_hand[same].to_dict()
    with pytest.raises(TrainingDataError, match="in Terrier's query language"):
        (rm3 >> get >> Distillation(M, steps=1, batch_size=1, verbose=False)).fit(topics.head(2), None)
    # A Terrier teacher reads the language rightly; reproduce gives systems the queries that were asked.
    qrels = pt.io.read_qrels(str(shared / "data" / "vaswani" / "qrels.txt"))
    given = {"topics": {"vaswani": topics.head(2)}, "qrels": {"vaswani": qrels}, "text": {"vaswani": index}}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RewrittenQueryWarning)
        reproduce("tirex", {"m": M.clone()}, first_stage={"vaswani": rm3}, **given)


def test_texts_are_fetched_where_they_are_wanted(
    bm25: pt.Transformer, get: pt.Transformer, topics: pd.DataFrame, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyterrier_rankdistillm.reproduction import tasks

    def refuse(*_: object) -> None:
        raise AssertionError("the collection was opened")

    monkeypatch.setattr(tasks, "add_text", refuse)
    assert not wants_text(get >> M)
    assert not wants_text(bm25)
    assert wants_text(pt.text.scorer(wmodel="BM25"))
    assert wants_text(pt.rewrite.reset() >> get >> M)
    qrels = pt.io.read_qrels(str(shared / "data" / "vaswani" / "qrels.txt"))
    given = {"topics": {"vaswani": topics.head(2)}, "qrels": {"vaswani": qrels}}
    own = reproduce("tirex", {"m": get >> M}, first_stage={"vaswani": bm25 % 5}, **given)
    theirs = reproduce("tirex", {"m": M}, first_stage={"vaswani": bm25 % 5 >> get}, **given)
    assert own.cells["value"].tolist() == theirs.cells["value"].tolist()


RETRIEVERS: dict[str, Callable[[pt.terrier.J.Index], pt.Transformer]] = {
    "BM25": lambda index: pt.terrier.Retriever(index, wmodel="BM25", num_results=5),
    "PL2": lambda index: pt.terrier.Retriever(index, wmodel="PL2") % 5,
    "with metadata": lambda index: pt.terrier.Retriever(index, wmodel="BM25", metadata=["docno", "text"]) % 5,
    "threads": lambda index: pt.terrier.Retriever(index, wmodel="BM25", threads=2, num_results=5),
    "a sum": lambda index: (
        (pt.terrier.Retriever(index, wmodel="BM25") + 0.5 * pt.terrier.Retriever(index, wmodel="PL2")) % 5
    ),
    "features": lambda index: pt.terrier.FeaturesRetriever(index, ["WMODEL:Tf", "WMODEL:PL2"], wmodel="BM25") % 5,
}


@pytest.mark.filterwarnings("ignore:Multi-threaded retrieval is experimental", "ignore:Upgrading indexref")
@pytest.mark.parametrize("name", RETRIEVERS)
def test_frames_of_every_retriever_are_re_ranked(
    name: str, index: pt.terrier.J.Index, get: pt.Transformer, topics: pd.DataFrame, tmp_path: Path
) -> None:
    first = RETRIEVERS[name](index)
    ranked = (first >> get >> M).transform(topics.head(3))
    assert ranked.groupby("qid").size().tolist() == [5, 5, 5]
    assert ranked.groupby("qid")["rank"].apply(list).tolist() == [[0, 1, 2, 3, 4]] * 3
    found = first.transform(topics.head(3))
    runs.write(found, tmp_path / "a.run")
    back = runs.add_text(runs.add_queries(runs.read(tmp_path / "a.run"), topics), index)
    assert dict(zip(back["docno"], back["text"], strict=True)) == dict(
        zip(ranked["docno"], ranked["text"], strict=True)
    )
    again = M.transform(back)
    assert again[["qid", "docno", "score"]].to_dict() == ranked[["qid", "docno", "score"]].to_dict()


def test_passages_caches_and_fits(
    bm25: pt.Transformer, get: pt.Transformer, topics: pd.DataFrame, tmp_path: Path
) -> None:
    sliding = pt.text.sliding(text_attr="text", length=20, stride=10, prepend_attr=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # pandas', of what PyTerrier's sliding does
        passages = (bm25 % 3 >> get >> sliding >> M >> pt.text.max_passage()).transform(topics.head(2))
    assert passages.groupby("qid").size().tolist() == [3, 3]
    with runs.ScoreCache(M, tmp_path / "cache") as cache:
        cached = (bm25 % 3 >> get >> cache).transform(topics.head(2))
    assert sorted(cached["docno"]) == sorted(passages["docno"])
    student = Distillation(M, teacher=bm25, steps=1, batch_size=2, depth=3, verbose=False)
    (bm25 % 3 >> get >> student).fit(topics.head(2), None)
    assert pickle.loads(pickle.dumps(student.reranker)) is not None


@pytest.mark.filterwarnings("ignore:There are shared pipeline components", "ignore::DeprecationWarning")
def test_tuning_experiments_and_operators(
    index: pt.terrier.J.Index, get: pt.Transformer, topics: pd.DataFrame, shared: Path, tmp_path: Path
) -> None:
    qrels, asked = pt.io.read_qrels(str(shared / "data" / "vaswani" / "qrels.txt")), topics.head(3)
    bm25 = pt.terrier.Retriever(index, wmodel="BM25", controls={"bm25.b": 0.75})
    pipeline = bm25 % 5 >> get >> M
    expected = pipeline.transform(asked)
    same = ["qid", "docno", "score"]
    assert pipeline.compile().transform(asked)[same].to_dict() == expected[same].to_dict()

    options = {"eval_metrics": [nDCG @ 5], "names": ["BM25", "m"]}
    plain = pt.Experiment([bm25 % 5, pipeline], asked, qrels, **options)
    saved = {"save_dir": str(tmp_path), "save_mode": "reuse"}
    for more in (saved, saved, {"precompute_prefix": True}):  # written, and read
        measured = pt.Experiment([bm25 % 5, pipeline], asked, qrels, **options, **more)
        pd.testing.assert_frame_equal(measured, plain)
    assert {file.name for file in tmp_path.glob("*.res.gz")} == {"BM25.res.gz", "m.res.gz"}

    features = (bm25 % 5 >> get >> (M ** pt.apply.doc_score(lambda row: len(row["text"])))).transform(asked)
    scores = expected.set_index(["qid", "docno"])["score"]
    for row in features.itertuples():
        assert row.features.tolist() == pytest.approx([scores[row.qid, row.docno], len(row.text)], abs=1e-5)
    best = pt.GridSearch(pipeline, {bm25: {"bm25.b": [0.1, 0.75]}}, asked, qrels, "ndcg_cut_5", verbose=False)
    assert set(best.transform(asked)["docno"]) <= set(bm25.transform(asked)["docno"])


def test_the_top_of_raw_questions_with_punctuation(
    index: pt.terrier.J.Index, get: pt.Transformer, topics: pd.DataFrame
) -> None:
    asked = topics.head(2).assign(query=["what's the effect of waves?", "e.g. title:wave (10^6), isn't it?"])
    bm25 = pt.terrier.Retriever(index, wmodel="BM25")
    ranked = (pt.rewrite.tokenise() >> bm25 % 100 >> pt.rewrite.reset() >> get >> M % 3).transform(asked)
    assert ranked.groupby("qid").size().tolist() == [3, 3]
    assert set(ranked["query"]) == set(asked["query"])


@pytest.mark.filterwarnings("ignore:There are shared pipeline components")
def test_the_first_example_of_the_readme_over_a_terrier_index(tmp_path: Path) -> None:
    dataset = pt.get_dataset("rankdistillm:demo")
    pt.terrier.IterDictIndexer(str(tmp_path / "i"), meta={"docno": 100, "text": 8192}).index(dataset.get_corpus_iter())
    index = pt.terrier.TerrierIndex(str(tmp_path / "i"))
    first = pt.rewrite.tokenise() >> index.bm25(num_results=5) >> pt.rewrite.reset() >> dataset.text_loader()
    topics, qrels = dataset.get_topics().head(8), dataset.get_qrels()
    measured = pt.Experiment([first, first >> M], topics, qrels, [nDCG @ 10], names=["BM25", "MonoElectra"])
    before, after = measured["nDCG@10"]
    assert after > before > 0.1
    given = {"first_stage": "bm25", "topics": topics, "depth": 5, "indices": tmp_path / "indices"}
    ours = reproduce("rankdistillm:demo", {"m": M}, **given)
    assert ours.cells.set_index("system")["value"].to_dict() == pytest.approx({"first stage": before, "m": after})
