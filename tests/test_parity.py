"""Our scores equal Lightning IR's (0.0.6), as it gave them for checkpoints that it saved itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
from pyterrier_rankdistillm.scoring.scorer import Scorer

OURS = Path(__file__).parent / "parity"  # see parity/make_fixture.py
TOLERANCE = 2e-5


def read_pairs(file: Path) -> tuple[list[str], list[str], np.ndarray[Any, Any]]:
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    scores = np.array([record["score"] for record in records])
    return [record["query"] for record in records], [record["text"] for record in records], scores


def assert_parity(folder: Path, pairs: Path, batch_tokens: int | None, order: int | None) -> None:
    queries, texts, expected = read_pairs(pairs)
    some = np.arange(len(queries)) if order is None else np.random.default_rng(order).permutation(len(queries))
    scorer = Scorer(Checkpoint.open(folder), device="cpu", batch_tokens=batch_tokens)
    scored = scorer.score([queries[i] for i in some], [texts[i] for i in some])
    np.testing.assert_allclose(scored.scores, expected[some], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("batch_tokens", "order"), [(None, None), (1, None), (300, 1), (1_000, 2), (10**6, 3)])
def test_equals_lightning_ir_on_our_fixture(batch_tokens: int | None, order: int | None) -> None:
    assert_parity(OURS / "checkpoint", OURS / "pairs.jsonl", batch_tokens, order)


@pytest.mark.shared
@pytest.mark.parametrize(("batch_tokens", "order"), [(None, None), (1, None), (1_000, 2), (10**6, 3)])
def test_equals_lightning_ir_on_ms_marco_pairs(shared: Path, batch_tokens: int | None, order: int | None) -> None:
    fixture = shared / "reference" / "lightning-ir-parity"
    assert len(read_pairs(fixture / "pairs.jsonl")[0]) == 74
    assert_parity(fixture, fixture / "pairs.jsonl", batch_tokens, order)


def test_saved_again_by_us_our_fixture_scores_the_same(tmp_path: Path) -> None:
    folder = Checkpoint.open(OURS / "checkpoint").save(tmp_path / "saved")
    assert_parity(folder, OURS / "pairs.jsonl", None, None)


def test_our_fixture_covers_what_is_hard() -> None:
    queries, texts, scores = read_pairs(OURS / "pairs.jsonl")
    tokenizer = Checkpoint.open(OURS / "checkpoint").tokenizer
    assert (tokenizer.lengths.query, tokenizer.lengths.doc) == (32, 256)
    assert len(scores) >= 40
    assert np.ptp(scores) > 3
    query_cuts = [tokens.cut for tokens in tokenizer.encode_queries(queries)]
    text_cuts = [tokens.cut for tokens in tokenizer.encode_docs(texts)]
    assert {(True, True), (True, False), (False, True), (False, False)} <= set(zip(query_cuts, text_cuts, strict=True))
    assert "" in queries
    assert "" in texts
    assert any("[SEP]" in text for text in texts)
    assert any(not text.isascii() for text in texts)
    assert sum(file.stat().st_size for file in (OURS / "checkpoint").iterdir()) < 700_000


@pytest.mark.hub
@pytest.mark.parametrize("model", ["cross-encoder/monoelectra-base", "webis/monoelectra-base"])
def test_published_weights_give_the_published_scores(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example on the page of cross-encoder/monoelectra-base; conftest keeps the other tests off the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    query = "How many people live in Berlin?"
    texts = [
        "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
        "Berlin is well known for its museums.",
    ]
    scores = Scorer(Checkpoint.open(model), device="cpu").score([query, query], texts).scores
    np.testing.assert_allclose(scores, [8.122868, -4.292924], rtol=0, atol=1e-3)
