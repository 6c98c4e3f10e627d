"""Measures a checkpoint on real collections: the numbers in the README and in the demo's model card.

    pip install pyterrier-rankdistillm[demo]
    python examples/evaluate_demo_checkpoint.py --data ../shared/data

``--data`` holds ``trec-dl-2019-pool``, ``vaswani`` and ``cisi`` (each with passages.jsonl.gz, queries.tsv, qrels.txt)
and ``trec-dl-runs`` (first stages with qrels). First stages are live BM25 (PISA) over each collection, and the runs. Of
a run over all of MS MARCO only the documents in the pool have text: these lists are condensed, and marked so.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import warnings
from pathlib import Path

import pandas as pd
import pyterrier as pt
from pyterrier.measures import RR, nDCG
from pyterrier_pisa import PisaIndex

from pyterrier_rankdistillm import MonoElectra

RUNS = {
    "TREC DL 2019, BM25 (Pyserini), condensed": "bm25-pyserini.trec-dl-2019.run.gz",
    "TREC DL 2019, BM25 (PyTerrier), condensed": "bm25-pyterrier.trec-dl-2019.run.gz",
    "TREC DL 2019, ColBERTv2, condensed": "colbertv2.trec-dl-2019.run.gz",
}


class Collection:
    """Passages, topics and qrels of a folder."""

    def __init__(self, folder: Path) -> None:
        with gzip.open(folder / "passages.jsonl.gz", "rt", encoding="utf-8") as file:
            self.texts = {row["docno"]: row["text"] for row in map(json.loads, file)}
        self.qrels = pt.io.read_qrels(str(folder / "qrels.txt"))
        lines = (folder / "queries.tsv").read_text(encoding="utf-8").splitlines()
        topics = pd.DataFrame([line.split("\t", 1) for line in lines], columns=["qid", "query"])
        self.topics = topics[topics["qid"].isin(self.qrels["qid"])].reset_index(drop=True)

    def with_text(self, run: pd.DataFrame) -> pd.DataFrame:
        return run.assign(text=[self.texts[docno] for docno in run["docno"]])

    def condensed(self, run_file: Path, depth: int) -> pt.Transformer:
        run = pt.io.read_results(str(run_file)).drop(columns="name").merge(self.topics, on="qid")
        run = run.sort_values(["qid", "score", "docno"], ascending=[True, False, False]).groupby("qid").head(depth)
        return pt.Transformer.from_df(self.with_text(run[run["docno"].isin(self.texts)]))

    def live_bm25(self, folder: Path, depth: int) -> pt.Transformer:
        index = PisaIndex(str(folder / "index.pisa"), text_field="text")
        index.index({"docno": docno, "text": text} for docno, text in self.texts.items())
        return index.bm25(num_results=depth) >> pt.apply.generic(self.with_text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="rankdistillm:demo")
    parser.add_argument("--live-depth", type=int, default=50)
    args = parser.parse_args()
    monoelectra = MonoElectra(args.model)
    rows = []

    def evaluate(name: str, first_stage: pt.Transformer, collection: Collection) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There are shared pipeline components")
            table = pt.Experiment(
                [first_stage, first_stage >> monoelectra],
                collection.topics,
                collection.qrels,
                [nDCG @ 10, RR(rel=2) @ 10] if "DL" in name else [nDCG @ 10, RR @ 10],
                baseline=0,
            )
        before, after = table["nDCG@10"]
        p = table["nDCG@10 p-value"].iloc[1]
        rows.append({"collection, first stage": name, "first stage": before, "MonoElectra": after, "p": p})
        print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3f}"), flush=True)

    pool = Collection(args.data / "trec-dl-2019-pool")
    for name, file in RUNS.items():
        evaluate(name, pool.condensed(args.data / "trec-dl-runs" / file, depth=100), pool)
    for name, folder in (("TREC DL 2019 pool", "trec-dl-2019-pool"), ("Vaswani", "vaswani"), ("CISI", "cisi")):
        collection = Collection(args.data / folder)
        with tempfile.TemporaryDirectory() as scratch:
            live = collection.live_bm25(Path(scratch), args.live_depth)
            evaluate(f"{name}, BM25 (PISA, live), top {args.live_depth}", live, collection)


if __name__ == "__main__":
    main()
