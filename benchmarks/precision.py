"""What less precision does to scores and rankings: real pairs, a trained checkpoint, each precision beside float32.

    python benchmarks/precision.py --data ../shared/data
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/precision.py --data ../shared/data --dtypes int8

``--data`` holds ``trec-dl-2019-pool``, ``trec-dl-2020-pool`` and ``trec-dl-runs``; BM25's top 100 is condensed to the
documents that have a text there. ``ONEDNN_MAX_CPU_ISA`` holds oneDNN to what older processors have, such as AVX2, where
int8 has 7-bit weights. Changes are those of single scores; a rank moves where its document changes; a query has another
top ten where its ten documents are not the same set.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd
import pyterrier as pt
from measuring import describe, table_head, table_row
from pyterrier.measures import nDCG
from scoring import condensed_run

from pyterrier_rankdistillm import MonoElectra

YEARS = (2019, 2020)
COLUMNS = ("nDCG@10", "largest change", "root mean square", "ranks that move", "queries with another top ten")


def judged_run(data: Path, year: int, depth: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """BM25's top documents of the judged topics, and the judgments."""
    pool = data / f"trec-dl-{year}-pool"
    run, qrels = condensed_run(pool, depth), pt.io.read_qrels(str(pool / "qrels.txt"))
    return run[run["qid"].isin(qrels["qid"])], qrels


def compare(exact: pd.DataFrame, other: pd.DataFrame, qrels: pd.DataFrame) -> list[str]:
    """The cells of one precision and one year, in the order of ``COLUMNS``."""
    both = exact.merge(other, on=["qid", "docno"], suffixes=("", "_other"), validate="one_to_one")
    change = (both["score_other"] - both["score"]).abs()
    at_ranks = exact.merge(other, on=["qid", "rank"], suffixes=("", "_other"), validate="one_to_one")
    one, two = (run[run["rank"] < 10].groupby("qid")["docno"].agg(frozenset) for run in (exact, other))
    return [
        f"{pt.Evaluate(other, qrels, metrics=[nDCG @ 10])['nDCG@10']:.4f}",
        f"{change.max():.3f}",
        f"{(change**2).mean() ** 0.5:.4f}",
        f"{(at_ranks['docno'] != at_ranks['docno_other']).mean():.0%}",
        f"{(one != two.reindex(one.index)).sum()} of {len(one)}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the pools and runs of TREC DL")
    parser.add_argument("--model", default="rankdistillm:demo")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8"])
    parser.add_argument("--depth", type=int, default=100)
    args = parser.parse_args()
    describe()
    print(f"{args.model}; instructions: {os.environ.get('ONEDNN_MAX_CPU_ISA', 'all')}\n")
    print(table_head("pool", "pairs", "precision", *COLUMNS))
    for year in YEARS:
        run, qrels = judged_run(args.data, year, args.depth)
        exact = MonoElectra(args.model, device="cpu")(run)
        for dtype in ["float32", *args.dtypes]:
            other = exact if dtype == "float32" else MonoElectra(args.model, device="cpu", dtype=dtype)(run)
            print(table_row(year, len(run), dtype, *compare(exact, other, qrels)), flush=True)


if __name__ == "__main__":
    main()
