"""A toy collection to train on, in words that the tiny tokenizer knows, and what tests do with estimators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import tiny
from torch import Tensor

from pyterrier_rankdistillm import Distillation, FineTuning, MonoElectraReRanker

_rng = np.random.default_rng(0)
_words = np.array(tiny.WORDS.split())

QUERIES = {f"q{n}": " ".join(_rng.choice(_words, 4)) for n in range(8)}
TEXTS = {f"d{n:02}": " ".join(_rng.choice(_words, _rng.integers(4, 14))) for n in range(30)}
TOPICS = pd.DataFrame({"qid": list(QUERIES), "query": list(QUERIES.values())})

RUN = pd.DataFrame(
    [
        (qid, QUERIES[qid], docno, TEXTS[docno], 10.0 - rank, rank)
        for qid in QUERIES
        for rank, docno in enumerate(_rng.choice(sorted(TEXTS), 6, replace=False))
    ],
    columns=["qid", "query", "docno", "text", "score", "rank"],
)
"""Six documents a query."""

TRAIN = RUN[RUN["qid"] < "q6"].reset_index(drop=True)
VALID = RUN[RUN["qid"] >= "q6"].reset_index(drop=True)

QRELS = pd.DataFrame(
    [
        (qid, docno, label)
        for qid, docnos in RUN.groupby("qid")["docno"]
        for docno, label in zip(docnos.iloc[[1, 3, 4]], (1, 0, 1), strict=True)
    ],
    columns=["qid", "docno", "label"],
)
"""Of each query's documents, the second and the fifth are relevant."""

FIRST_TWO = RUN.assign(label=(RUN["rank"] < 2).astype(int))[["qid", "docno", "label"]]
"""What a student that learns the run's order is right about."""

QUICK: dict[str, Any] = {
    "batch_size": 4,
    "learning_rate": 1e-3,
    "query_length": tiny.QUERY_LENGTH,
    "doc_length": tiny.DOC_LENGTH,
    "device": "cpu",
    "verbose": False,
}
"""What the recipes are changed by: the tiny encoder has 48 positions."""


class Texts(pt.Transformer):
    """A text loader of the toy collection; notes the documents that it is asked for."""

    def __init__(self, texts: Mapping[str, str] = TEXTS) -> None:
        self.texts = texts
        self.asked: list[str] = []

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        self.asked += inp["docno"].tolist()
        return inp.assign(text=inp["docno"].map(self.texts))


def first_stage(run: pd.DataFrame = RUN) -> pt.Transformer:
    """A retriever with the toy run's results."""
    return pt.apply.generic(lambda topics: topics[["qid"]].merge(run, on="qid"), required_columns=["qid", "query"])


def fine_tuning(student: Any, **changes: Any) -> FineTuning:
    return FineTuning(student, **{"steps": 3, "sample_size": 4, **QUICK, **changes})


def distillation(student: Any, **changes: Any) -> Distillation:
    return Distillation(student, **{"steps": 3, **QUICK, **changes})


def weights(reranker: MonoElectraReRanker) -> dict[str, Tensor]:
    return reranker.checkpoint.encoder.state_dict()


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether weights are equal bit by bit."""
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
