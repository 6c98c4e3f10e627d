"""A student of every family learns the order that it is taught, and is saved in its family's own format."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pandas as pd
import pytest
import toy
from scipy.stats import kendalltau

from pyterrier_rankdistillm import Checkpoint, CrossEncoderReRanker, Distillation

pytestmark = pytest.mark.filterwarnings("ignore::pyterrier_rankdistillm.reranker.TruncationWarning")


def agreement(scored: pd.DataFrame) -> float:
    """The mean over topics of Kendall's tau between scores and the order that is taught."""
    by_topic = scored.groupby("qid")
    return float(np.mean([kendalltau(topic["score"], -topic["taught"]).statistic for _, topic in by_topic]))


QUICK = ("distilbert", "albert")
"""Families whose tests are not ``slow``: one that is written out here, and one of transformers' modules."""


def by_family(names: Iterable[str]) -> list[Any]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", by_family(families.KINDS))
def test_every_family_learns_its_teachers_order(name: str, tmp_path: Path) -> None:
    folder = families.make(tmp_path / "start", name)
    run = toy.TRAIN.assign(taught=toy.TRAIN["rank"])
    lengths = {"query_length": None, "doc_length": None}
    start = CrossEncoderReRanker(folder, device="cpu")
    distillation = Distillation(start, **toy.QUICK | lengths | {"steps": 40, "learning_rate": 3e-3, "dropout": 0.0})
    distillation.fit(run[["qid", "query"]].drop_duplicates(), None, run=run)
    before, after = agreement(start(run)), agreement(distillation(run))
    assert after > max(0.6, before + 0.3)

    saved = distillation.reranker.save(tmp_path / "student", format="transformers")
    config, theirs = (json.loads((path / "config.json").read_text()) for path in (saved, folder))
    assert (config["model_type"], config["architectures"]) == (theirs["model_type"], theirs["architectures"])
    pairs = list(zip(run["query"], run["text"], strict=True))
    scored = (
        distillation(run).set_index(["qid", "docno"]).loc[list(zip(run["qid"], run["docno"], strict=True)), "score"]
    )
    np.testing.assert_allclose(families.scores(saved, pairs), scored, rtol=0, atol=2e-5)
    assert Checkpoint.open(saved).encoder.config.model_type == theirs["model_type"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert-cls", "albert"])
def test_a_bare_backbone_of_every_kind_learns(name: str, tmp_path: Path) -> None:
    folder = families.make(tmp_path / "start", name, architecture="Model")
    run = toy.TRAIN.assign(taught=toy.TRAIN["rank"])
    settings = toy.QUICK | {"query_length": None, "doc_length": None, "learning_rate": 3e-3, "dropout": 0.0}
    students = [Distillation(str(folder), steps=steps, **settings) for steps in (1, 60)]
    for student in students:
        student.fit(run[["qid", "query"]].drop_duplicates(), None, run=run)
    first, last = (agreement(student(run)) for student in students)
    assert last > max(0.5, first + 0.2)
