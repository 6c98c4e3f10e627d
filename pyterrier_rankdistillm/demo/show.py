"""What ``rankdistillm demo`` prints: a table, the time, and one ranking before and after."""

from __future__ import annotations

import time
import warnings

import pandas as pd
import pyterrier as pt
from ir_measures import RR, nDCG

from ..extras import is_installed
from ..reranker import MonoElectra
from .dataset import DemoDataset

DEPTH = 50


def show(model: str = "rankdistillm:demo", device: str | None = None, qid: str = "q01") -> pd.DataFrame:
    """Compares BM25 with BM25 >> MonoElectra on the demo collection, and prints the results.

    Args:
        model: The re-ranker's checkpoint.
        device: Torch device.
        qid: The query whose ranking is printed before and after.

    Returns:
        The table of ``pt.Experiment``.

    Raises:
        ValueError: There is no such query.
    """
    dataset = DemoDataset()
    topics, qrels = dataset.get_topics(), dataset.get_qrels()
    if qid not in set(topics["qid"]):
        raise ValueError(f"qid must be one of {topics['qid'].iloc[0]} to {topics['qid'].iloc[-1]}, got {qid!r}.")
    reranker = MonoElectra(model, device=device)
    reranker.scorer  # opened here, so that the times below are those of re-ranking  # noqa: B018

    bm25, origin = _first_stage(dataset)
    passages = sum(1 for _ in dataset.get_corpus_iter(verbose=False))
    print(f"rankdistillm:demo: {passages} passages, {len(topics)} queries; BM25: {origin}\n")
    started = time.perf_counter()
    with warnings.catch_warnings():
        # BM25 runs twice on purpose, so that each system's time includes it.
        warnings.filterwarnings("ignore", message="There are shared pipeline components")
        table: pd.DataFrame = pt.Experiment(
            [bm25, bm25 >> reranker],
            topics,
            qrels,
            [nDCG @ 10, RR(rel=2) @ 10, "mrt"],
            names=["BM25", "BM25 >> MonoElectra"],
            baseline=0,
        )
    seconds = time.perf_counter() - started
    topic = topics[topics["qid"] == qid]
    before = bm25.transform(topic)
    after = reranker.transform(before)
    columns = {"name": "", "mrt": "ms/query", "nDCG@10 p-value": "p (nDCG@10)"}
    kept = ["name", "nDCG@10", "RR(rel=2)@10", "mrt", "nDCG@10 p-value"]
    printed = table[kept].rename(columns=columns)
    printed["p (nDCG@10)"] = [
        "" if pd.isna(p) else "<0.001" if p < 0.001 else f"{p:.3f}" for p in printed["p (nDCG@10)"]
    ]
    print(printed.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.3f}"))
    print(f"\n{seconds:.1f} s for both on {reranker.scorer.devices}, with {reranker!r}\n")
    print(f"{qid}: {topic['query'].iloc[0]}\n")
    print(_before_and_after(before, after, qrels[qrels["qid"] == qid]).to_string(index=False))
    return table


def _first_stage(dataset: DemoDataset) -> tuple[pt.Transformer, str]:
    """BM25 with text: over a live PISA index if PISA is installed, else the run that ships with the collection."""
    if not is_installed("pyterrier_pisa"):
        run = pt.Transformer.from_df(dataset.get_results())
        return run >> dataset.text_loader(), "the run that ships with it (a live index: pip install pyterrier-pisa)"
    return dataset.get_index().bm25(num_results=DEPTH) >> dataset.text_loader(), "a live PISA index"


def _before_and_after(before: pd.DataFrame, after: pd.DataFrame, qrels: pd.DataFrame, top: int = 5) -> pd.DataFrame:
    """The top of a ranking after re-ranking, with each passage's rank before it (both from 1) and its grade."""
    old_rank = dict(zip(before["docno"], before["rank"] + 1, strict=True))
    grade = dict(zip(qrels["docno"], qrels["label"], strict=True))
    head = after.sort_values("rank").head(top)
    return pd.DataFrame(
        {
            "after": head["rank"] + 1,
            "before": [old_rank[docno] for docno in head["docno"]],
            "grade": [str(grade.get(docno, "-")) for docno in head["docno"]],
            "score": [f"{score:.2f}" for score in head["score"]],
            "docno": head["docno"],
            "text": [text if len(text) <= 70 else text[:67] + "..." for text in head["text"]],
        }
    )
