"""Set encoders, exchanged with an installed Lightning IR in both directions; see README.md beside this file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import toy

from pyterrier_rankdistillm import Checkpoint, SetEncoderReRanker

# Lightning IR and what it brings warn on import and on opening its own checkpoints.
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

LISTS = [
    ("why does bread rise", ["Yeast makes bread rise.", "", "The cat sat on the mat.", "the rain " * 20]),
    ("cat", ["the sun and the moon"]),
    ("", ["snow", "snow", "is it not"]),
]


def their_scores(folder: Path, lists: list[tuple[str, list[str]]] = LISTS) -> list[float]:
    lightning_ir = pytest.importorskip("lightning_ir")
    module = lightning_ir.CrossEncoderModule(str(folder)).eval()
    with torch.inference_mode():
        return [float(score) for query, texts in lists for score in module.score(query, texts).scores]


def our_scores(folder: Path, lists: list[tuple[str, list[str]]] = LISTS) -> list[float]:
    one = SetEncoderReRanker(folder, device="cpu")
    ranked = [one.rank(query, texts).sort_values("docno")["score"] for query, texts in lists]
    return [float(score) for scores in ranked for score in scores]


@pytest.mark.parametrize("extra_token", [False, True])
@pytest.mark.parametrize("settings", [{}, {"linear_bias": True}, {"scoring_strategy": "mono"}])
@pytest.mark.parametrize("backbone", ["electra", "bert"])
def test_equal_scores_in_both_directions(
    extra_token: bool, settings: dict[str, Any], backbone: str, tmp_path: Path
) -> None:
    lightning_ir, transformers = pytest.importorskip("lightning_ir"), pytest.importorskip("transformers")
    models = pytest.importorskip("lightning_ir.models")
    (tmp_path / "backbone").mkdir()
    rows = len(tiny.VOCAB) + extra_token
    if backbone == "electra":
        tiny.transformers_model(vocab_size=rows).save_pretrained(tmp_path / "backbone")
    else:
        shape = {name: value for name, value in tiny.SHAPE.items() if name != "embedding_size"}
        config = transformers.BertConfig(**shape | {"vocab_size": rows}, initializer_range=0.3)
        torch.manual_seed(3)
        transformers.BertModel(config).save_pretrained(tmp_path / "backbone")
    tiny.write_tokenizer(tmp_path / "backbone")
    config = models.SetEncoderConfig(
        query_length=tiny.QUERY_LENGTH, doc_length=tiny.DOC_LENGTH, depth=10, add_extra_token=extra_token,
        sample_missing_docs=False, **settings,
    )  # fmt: skip
    module = lightning_ir.CrossEncoderModule(str(tmp_path / "backbone"), config=config)
    module.model.linear.weight.data.normal_(0, 0.5)
    module.model.save_pretrained(tmp_path / "theirs")
    module.tokenizer.save_pretrained(tmp_path / "theirs")
    expected = their_scores(tmp_path / "theirs")
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(our_scores(tmp_path / "theirs"), expected, rtol=0, atol=2e-5)
    saved = Checkpoint.open(tmp_path / "theirs").save(tmp_path / "ours")
    np.testing.assert_allclose(their_scores(saved), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("stage", ["finetune", "distill"])
@pytest.mark.parametrize("extra_token_seed", [None, 4])
def test_a_trained_student_scores_equally_in_lightning_ir(
    stage: str, extra_token_seed: int | None, checkpoint: Any, tmp_path: Path
) -> None:
    start = Checkpoint.open(checkpoint("lightning-ir-hub").folder).as_set_encoder(extra_token_seed=extra_token_seed)
    one = {"finetune": toy.fine_tuning, "distill": toy.distillation}[stage](start)
    one.fit(toy.TRAIN, toy.QRELS)
    folder = one.reranker.save(tmp_path / "student")
    ours = one.reranker(toy.VALID).sort_values(["qid", "docno"])
    lists = [(query, texts.tolist()) for query, texts in ours.groupby("query", sort=False)["text"]]
    np.testing.assert_allclose(their_scores(folder, lists), ours["score"], rtol=0, atol=2e-5)
    before = SetEncoderReRanker(start)(toy.VALID).sort_values(["qid", "docno"])
    assert not np.allclose(ours["score"], before["score"], rtol=0, atol=0.01)  # it was changed by the training
