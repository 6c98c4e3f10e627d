"""What it costs to know what made a result: pipelines without weights, weights, frames, and the hash by itself.

    python benchmarks/identity.py
    python benchmarks/identity.py --megabytes 1000 --rows 1000000

The first call in a process looks up the packages that are installed; all other lines are medians of several calls.
Weights are given beside the hash's own speed over as many bytes, in one run.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch

from pyterrier_rankdistillm.runs.kinds import walk

WEIGHTS = {"title": 2.0, "text": 1.0}


def weighted(row: Any) -> float:
    return float(sum(WEIGHTS.get(word, 0.5) * np.log1p(len(word)) for word in row["text"].split()))


class Scorer(pt.Transformer):
    def __init__(self, given: Any) -> None:
        self.given = given

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        return inp


def seconds(action: Callable[[], Any], times: int) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500, help="of weights")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of a frame of qid, docno, score")
    args = parser.parse_args()

    run = pd.DataFrame({"qid": ["1"] * 1000, "docno": [f"d{n}" for n in range(1000)], "score": np.arange(1000.0)})
    pipeline = (
        pt.Transformer.from_df(run) % 100
        >> pt.get_dataset("rankdistillm:demo").text_loader()
        >> pt.text.sliding(text_attr="text", prepend_attr=None)
        >> pt.apply.doc_score(weighted)
        >> pt.text.max_passage()
    )
    print(f"a pipeline without weights, first call   {seconds(lambda: walk().tree(pipeline), 1):8.4f} s")
    print(f"a pipeline without weights               {seconds(lambda: walk().tree(pipeline), 9):8.4f} s")

    layer = torch.nn.Linear(1000, args.megabytes * 250, bias=False)
    content = layer.weight.detach().numpy().data
    alone = seconds(lambda: hashlib.blake2b(content), 3)
    whole = seconds(lambda: walk().tree(Scorer(layer)), 3)
    print(f"{args.megabytes} MB of weights                      {whole:8.4f} s, {whole / alone:.2f} of the hash's time")

    frame = pd.DataFrame(
        {
            "qid": [str(n // 100) for n in range(args.rows)],
            "docno": [f"D{n % 99_991}" for n in range(args.rows)],
            "score": np.arange(float(args.rows)),
        }
    )
    hashed = seconds(lambda: pd.util.hash_pandas_object(frame), 3)
    taken = seconds(lambda: walk().tree(pt.Transformer.from_df(frame)), 3)
    print(f"a run of {args.rows:,} rows                 {taken:8.4f} s, {taken / hashed:.2f} times hash_pandas_object")


if __name__ == "__main__":
    main()
