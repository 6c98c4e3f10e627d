"""What the package can be stopped at: each work writes into a folder; the same call again goes on or does it anew."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import tiny
import toy

from pyterrier_rankdistillm import Checkpoint, MonoElectra, reproduce, runs

_rng = np.random.default_rng(7)
LARGE = pd.DataFrame(
    {
        "qid": np.repeat([f"q{n:03}" for n in range(200)], 100),
        "docno": [f"d{n:06}" for n in range(20_000)],
        "score": _rng.standard_normal(20_000),
    }
)


def shared_words(row: Any) -> float:
    return len(set(row["query"].split()) & set(row["text"].split())) + len(row["text"]) / 1000


def digest(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


class Works:
    """The works, on a tiny model.

    Args:
        model: The folder of a tiny checkpoint.
        other: That of another one, with other weights.
    """

    def __init__(self, model: Path, other: Path) -> None:
        self.model, self.other = model, other

    def write(self, folder: Path) -> Any:
        runs.write(LARGE, folder / "out.run.gz")
        return digest(folder / "out.run.gz")

    def parquet(self, folder: Path) -> Any:
        runs.write(LARGE, folder / "out.parquet")
        return digest(folder / "out.parquet")

    def rankings(self, folder: Path) -> Any:
        if not (folder / "in.run").exists():
            runs.write(LARGE, folder / "in.run")
        os.utime(folder / "in.run", (1e9, 1e9))  # the mapped form knows its file by it
        rankings = runs.Rankings.from_file(folder / "in.run")
        return rankings[3].docnos, rankings.rows, digest(folder / "in.run.rankings")

    def teacher(self, folder: Path) -> Any:
        made = runs.make_teacher_run(
            pt.apply.doc_score(shared_words), toy.RUN, toy.TOPICS, folder / "teacher.run", shard_size=2, verbose=False
        )
        return digest(made.path), made.record["rows"]

    def cache(self, folder: Path) -> Any:
        with runs.ScoreCache(self.reranker(), folder / "scores") as cache:
            return cache(toy.RUN)["score"].round(4).tolist()

    def save(self, folder: Path) -> Any:
        target = folder / "checkpoint"
        (Checkpoint.open(self.other) if target.exists() else Checkpoint.open(self.model)).save(target)
        return digest(target / "model.safetensors")

    def reproduce(self, folder: Path) -> Any:
        result = reproduce(
            "trec-dl-2019",
            {"words": pt.apply.doc_score(shared_words)},
            first_stage=toy.RUN.drop(columns=["query", "text"]),
            topics=toy.TOPICS,
            qrels=toy.QRELS,
            text=toy.RUN[["docno", "text"]].drop_duplicates("docno"),
            folder=folder / "reproduction",
        )
        return result.cells["value"].round(6).tolist()

    def fit(self, folder: Path) -> Any:
        tuned = toy.fine_tuning(
            str(self.model), steps=4, save_every=1, folder=str(folder / "training"), resume=True, dropout=0.1
        )
        tuned.fit(toy.TRAIN, toy.QRELS)
        state = toy.weights(tuned.reranker)
        return hashlib.md5(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()

    def reranker(self) -> MonoElectra:
        return MonoElectra(
            self.model, device="cpu", query_length=tiny.QUERY_LENGTH, doc_length=tiny.DOC_LENGTH, verbose=False
        )


NAMES = ("write", "parquet", "rankings", "teacher", "cache", "save", "reproduce", "fit")


def of(works: Works, name: str, folder: Path) -> Callable[[], Any]:
    return lambda: getattr(works, name)(folder)


def litter(folder: Path) -> list[str]:
    """What a work leaves that nobody asked for."""
    odd = re.compile(r"\..*\.tmp|.*\.lock|.*\.part|.*\.shards")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if odd.fullmatch(path.name))
