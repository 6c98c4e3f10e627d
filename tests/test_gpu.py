"""Scoring and training on a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import families
import numpy as np
import pandas as pd
import pytest
import torch

from pyterrier_rankdistillm import Checkpoint, Distillation, FineTuning, MonoElectra
from pyterrier_rankdistillm.scoring.scorer import ListScorer, Precision, Scorer

pytestmark = pytest.mark.gpu

QUERIES, TEXTS = (list(texts) for texts in zip(*families.PAIRS, strict=True))
HALF: dict[Precision, float] = {"tf32": 0.05, "bfloat16": 0.15, "float16": 0.05}


@pytest.fixture
def demo() -> Checkpoint:
    return Checkpoint.open("rankdistillm:demo")


@pytest.fixture
def little_memory() -> Iterator[None]:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3e8) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("name", families.KINDS)
def test_every_family_scores_as_on_the_cpu(name: str, tmp_path: Path) -> None:
    opened = Checkpoint.open(families.make(tmp_path / "model", name))
    expected = Scorer(opened, device="cpu").score(QUERIES, TEXTS).scores
    for batch_tokens in (60, None):
        scores = Scorer(opened, device="cuda", batch_tokens=batch_tokens).score(QUERIES, TEXTS).scores
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
    for dtype, near in HALF.items():
        scores = Scorer(opened, device="cuda", dtype=dtype).score(QUERIES, TEXTS).scores
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected, rtol=0, atol=near)


@pytest.mark.parametrize("packed", [True, False])
def test_the_demo_checkpoint_scores_as_on_the_cpu(demo: Checkpoint, packed: bool) -> None:
    texts = [
        ("the cat sat on the mat, and the sun rose over the sea. " * (n % 20 + 1))[: 40 + 37 * n] for n in range(300)
    ]
    queries = ["why does the sun rise", "cat"] * 150
    expected = Scorer(demo, device="cpu").score(queries, texts).scores
    for dtype, near in ({"float32": 1e-4} | HALF).items():
        scorer = Scorer(demo, device="cuda", dtype=dtype)  # type: ignore[arg-type]
        (place,) = scorer.places
        assert place.kernel is not None
        if not packed:
            place.kernel = None
        np.testing.assert_allclose(scorer.score(queries, texts).scores, expected, rtol=0, atol=near)


def test_float32_is_float32_where_the_program_allows_tf32(demo: Checkpoint) -> None:
    expected = Scorer(demo, device="cpu").score(QUERIES, TEXTS).scores
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        scores = Scorer(demo, device="cuda").score(QUERIES, TEXTS).scores
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def test_weights_are_half_once(demo: Checkpoint) -> None:
    scorer = Scorer(demo, device="cuda", dtype="bfloat16")
    kinds = {getattr(m, name).weight.dtype for m, name, *_ in scorer.encoder.linear_maps()}
    assert kinds == {torch.bfloat16}
    assert Scorer(demo, device="cuda", dtype="bfloat16").encoder is scorer.encoder


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_out_of_memory_makes_batches_smaller(demo: Checkpoint, dtype: Precision) -> None:
    texts = [f"{n} " + "the cat sat on the mat " * 40 for n in range(1500)]
    scorer = Scorer(demo, device="cuda", dtype=dtype, batch_tokens=400_000)
    scores = scorer.score(["cat"] * len(texts), texts).scores
    assert scorer.batch_tokens < 400_000
    few = Scorer(demo, device="cuda", dtype=dtype, batch_tokens=4_000).score(["cat"] * 40, texts[:40]).scores
    np.testing.assert_allclose(scores[:40], few, rtol=0, atol=1e-4 if dtype == "float32" else 0.15)


def test_two_places_share_the_work(demo: Checkpoint) -> None:
    expected = Scorer(demo, device="cuda").score(QUERIES, TEXTS).scores
    scorer = Scorer(demo, device=["cuda:0", "cuda:0", "cpu"], batch_tokens=100)
    np.testing.assert_allclose(scorer.score(QUERIES, TEXTS).scores, expected, rtol=0, atol=1e-4)
    assert scorer.devices == "cuda:0, cuda:0, cpu"


def test_set_encoders_score_as_on_the_cpu() -> None:
    import test_set_encoder

    opened = Checkpoint.open(test_set_encoder.FIXTURE / "with-token")
    lists = [[f"the cat sat {n}" * (n + 1) for n in range(size)] for size in (3, 5, 2, 40)]
    queries = ["cat", "sun", "rain", "moon"]
    expected = ListScorer(opened, device="cpu").score_lists(queries, lists).scores
    for dtype, near in ({"float32": 1e-4} | HALF).items():
        scorer = ListScorer(opened, device="cuda", dtype=dtype, batch_tokens=200)  # type: ignore[arg-type]
        np.testing.assert_allclose(scorer.score_lists(queries, lists).scores, expected, rtol=0, atol=near)


def frame() -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = [
        {
            "qid": str(q),
            "query": query,
            "docno": f"{q}-{n}",
            "text": f"{query} {word} on the mat {n}",
            "score": -n,
            "rank": n,
        }
        for q, query in enumerate(["cat", "sun", "rain", "moon"])
        for n, word in enumerate(["sat", "rose", "is", "not", "the", "why"])
    ]
    run = pd.DataFrame(rows)
    qrels = pd.DataFrame({"qid": [str(q) for q in range(4)], "docno": [f"{q}-2" for q in range(4)], "label": 1})
    return run, qrels


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("memory_tokens", [None, 60])
def test_training_changes_weights_and_stays_finite(dtype: str, memory_tokens: int | None, demo: Checkpoint) -> None:
    run, qrels = frame()
    more: dict[str, Any] = {} if memory_tokens is None else {"memory_tokens": memory_tokens}
    for kind, data in (
        (FineTuning, {"sample_size": 4, "negative_ranks": (1, 6), "depth": 6}),
        (Distillation, {"depth": 5, "teacher": run[["qid", "docno", "score", "rank"]]}),
    ):
        student = MonoElectra(demo)
        stage = kind(student, steps=4, batch_size=2, dtype=dtype, verbose=False, learning_rate=1e-3, **data, **more)
        fitted = stage.fit(run, qrels) if kind is FineTuning else stage.fit(run, None)
        scores = fitted.transform(run)["score"] if fitted is not None else stage.transform(run)["score"]
        assert np.isfinite(scores).all()
        assert np.abs(scores.to_numpy() - MonoElectra(demo).transform(run)["score"].to_numpy()).max() > 1e-4


def test_a_re_ranker_uses_the_gpu_by_default(demo: Checkpoint) -> None:
    assert MonoElectra(demo).scorer.devices.startswith("cuda")
