"""Every family of encoders scores as transformers does, opened from its own files and from those written here."""

from __future__ import annotations

import json
from pathlib import Path

import families
import numpy as np
import pytest

from pyterrier_rankdistillm import Checkpoint
from pyterrier_rankdistillm.scoring.encoder import CrossEncoder
from pyterrier_rankdistillm.scoring.scorer import Scorer


def scores(opened: Checkpoint, pairs: list[tuple[str, str]] = families.PAIRS, batch_tokens: int = 200) -> np.ndarray:
    scorer = Scorer(opened, device="cpu", batch_tokens=batch_tokens)
    return scorer.score([query for query, _ in pairs], [text for _, text in pairs]).scores


@pytest.mark.parametrize("name", families.KINDS)
def test_scores_equal_transformers_and_so_do_those_of_what_is_written(name: str, tmp_path: Path) -> None:
    folder = families.make(tmp_path / "theirs", name)
    expected = families.scores(folder, families.PAIRS)
    assert np.ptp(expected) > 0.1
    opened = Checkpoint.open(folder)
    assert isinstance(opened.encoder, CrossEncoder) == name.startswith(families.WRITTEN_OUT)
    assert not any(parameter.requires_grad for parameter in opened.encoder.parameters())
    for batch_tokens in (1, 200):
        np.testing.assert_allclose(scores(opened, batch_tokens=batch_tokens), expected, rtol=0, atol=2e-5)
    written = opened.save(tmp_path / "ours", format="transformers")
    np.testing.assert_allclose(families.scores(written, families.PAIRS), expected, rtol=0, atol=2e-5)
    again = Checkpoint.open(written)
    assert again.tokenizer.lengths == opened.tokenizer.lengths
    np.testing.assert_allclose(scores(again), expected, rtol=0, atol=2e-5)
    assert again.encoder is opened.encoder  # equal weights are held once
    assert json.loads((written / "config.json").read_text())["model_type"] == opened.encoder.config.model_type
