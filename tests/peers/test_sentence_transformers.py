"""Checkpoints exchanged with an installed Sentence Transformers (6.2), in both directions; see README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import tiny
import torch

from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
from pyterrier_rankdistillm.scoring.scorer import Scorer

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]  # it warns on import
TOLERANCE = 2e-5


def theirs(folder: Path | str, **options: Any) -> Any:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.CrossEncoder(str(folder), device="cpu", **options)


def their_scores(model: Any, pairs: list[tuple[str, str]] = families.PAIRS) -> np.ndarray[Any, Any]:
    found = model.predict(pairs, activation_fn=torch.nn.Identity(), batch_size=4, show_progress_bar=False)
    return np.asarray(found).reshape(len(pairs), -1)[:, -1]


def our_scores(folder: Path, pairs: list[tuple[str, str]] = families.PAIRS) -> np.ndarray[Any, Any]:
    scorer = Scorer(Checkpoint.open(folder), device="cpu")
    return scorer.score([query for query, _ in pairs], [text for _, text in pairs]).scores


@pytest.mark.parametrize("longest", [None, 20])
@pytest.mark.parametrize("name", families.KINDS)
def test_what_they_save_scores_equally_here(name: str, longest: int | None, tmp_path: Path) -> None:
    if longest is None and "roberta" in name:
        longest = 48  # all 50 rows of RoBERTa's table of positions are taken for usable there, an IndexError
    model = theirs(families.make(tmp_path / "made", name), max_length=longest)
    model.save_pretrained(str(tmp_path / "theirs"))
    assert (tmp_path / "theirs" / "modules.json").is_file()
    np.testing.assert_allclose(our_scores(tmp_path / "theirs"), their_scores(model), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", families.KINDS)
def test_what_is_saved_here_scores_equally_there(name: str, tmp_path: Path) -> None:
    made = families.make(tmp_path / "made", name)
    ours = Checkpoint.open(made).save(tmp_path / "ours", format="transformers")
    np.testing.assert_allclose(their_scores(theirs(ours)), our_scores(made), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("name", ["electra", "bert", "roberta", "xlm-roberta", "distilbert"])
def test_modules_score_equally_here_and_again_there(name: str, pooling: str, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    made = families.make(tmp_path / "made", name, architecture="Model")
    dense = Dense(32, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    model = CrossEncoder(modules=[Transformer(str(made), max_seq_length=40), Pooling(32, pooling), dense], device="cpu")
    model.save_pretrained(str(tmp_path / "theirs"))
    expected = their_scores(model)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(our_scores(tmp_path / "theirs"), expected, rtol=0, atol=TOLERANCE)
    ours = Checkpoint.open(tmp_path / "theirs").save(tmp_path / "ours", format="transformers")
    np.testing.assert_allclose(their_scores(theirs(ours)), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["lightning-ir-hub", "lightning-ir-006-bias", "projection", "lengths-none"])
def test_a_linear_head_scores_equally_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    made = tiny.FORMATS[name](tmp_path / "made")
    ours = Checkpoint.open(made.folder).save(tmp_path / "ours", format="transformers")
    pairs = [("why does bread rise", "yeast"), ("cat", "the cat sat on the mat"), ("", ""), ("moon", "[SEP] sun")]
    np.testing.assert_allclose(
        their_scores(theirs(ours), pairs), our_scores(made.folder, pairs), rtol=0, atol=TOLERANCE
    )
