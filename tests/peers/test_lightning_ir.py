"""Fresh random checkpoints, exchanged with an installed Lightning IR; see README.md beside this file."""

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

# Lightning IR and what it brings warn on import and on opening its own checkpoints.
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({}, {}),
    "linear-bias": ({"linear_bias": True}, {}),
    "mono-two-rows": ({"scoring_strategy": "mono"}, {}),
    "mono-two-rows-bias": ({"scoring_strategy": "mono", "linear_bias": True}, {}),
    "projection": ({}, {"embedding_size": 16}),
    "mean": ({"pooling_strategy": "mean"}, {}),
    "max": ({"pooling_strategy": "max"}, {}),
    "sum": ({"pooling_strategy": "sum"}, {}),
    "bert-pool": ({"pooling_strategy": "bert_pool", "linear_bias": True}, {}),
    "no-lengths": ({"query_length": None, "doc_length": None}, {"max_position_embeddings": 256}),
}
PAIRS = [pair for pair in tiny.PAIRS if pair != tiny.PAIRS[6]]  # Lightning IR leaves overlong pairs to the tokenizer


def their_module(folder: Path, **options: Any) -> Any:
    lightning_ir = pytest.importorskip("lightning_ir")
    return lightning_ir.CrossEncoderModule(str(folder), **options).eval()


def their_scores(folder: Path, pairs: list[tuple[str, str]] = PAIRS) -> list[float]:
    module = their_module(folder)
    with torch.inference_mode():
        return [float(module.score(query, [text]).scores[0]) for query, text in pairs]


def our_scores(folder: Path, pairs: list[tuple[str, str]] = PAIRS) -> np.ndarray[Any, Any]:
    scorer = Scorer(Checkpoint.open(folder), device="cpu")
    return scorer.score([query for query, _ in pairs], [text for _, text in pairs]).scores


def made_by_them(kind: str, tmp_path: Path) -> Path:
    """A random checkpoint, made and saved by Lightning IR's own classes."""
    models = pytest.importorskip("lightning_ir.models")
    settings, shape = KINDS[kind]
    backbone = tmp_path / "backbone"
    backbone.mkdir()
    tiny.transformers_model(**shape).save_pretrained(backbone)
    tiny.write_tokenizer(backbone)
    lengths = {"query_length": tiny.QUERY_LENGTH, "doc_length": tiny.DOC_LENGTH}
    module = their_module(backbone, config=models.MonoConfig(**{**lengths, **settings}))
    rows = 2 if settings.get("scoring_strategy") == "mono" else 1
    module.model.linear.load_state_dict(
        {
            name.removeprefix("linear."): tensor
            for name, tensor in tiny.linear_head(rows, bias=settings.get("linear_bias", False)).items()
        }
    )
    if settings.get("pooling_strategy") == "bert_pool":  # its own first weights are small
        module.model.bert_pool[0].weight.data.copy_(tiny.linear_head(32)["linear.weight"])
    folder = tmp_path / "theirs"
    module.model.save_pretrained(folder)
    module.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_lightning_ir_saves_scores_equally_here(kind: str, tmp_path: Path) -> None:
    folder = made_by_them(kind, tmp_path)
    expected = their_scores(folder)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(our_scores(folder), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_here_scores_equally_in_lightning_ir(kind: str, tmp_path: Path) -> None:
    opened = made_by_them(kind, tmp_path)
    expected = their_scores(opened)
    saved = Checkpoint.open(opened).save(tmp_path / "ours")
    np.testing.assert_allclose(their_scores(saved), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "name",
    ["lightning-ir-hub", "lightning-ir-hub-bias", "port-electra-prefix", "port-no-prefix", "sharded", "vocab-txt"],
)
def test_other_formats_saved_here_open_in_lightning_ir(name: str, tmp_path: Path) -> None:
    (tmp_path / "origin").mkdir()
    made = tiny.FORMATS[name](tmp_path / "origin")
    saved = Checkpoint.open(made.folder).save(tmp_path / "ours")
    np.testing.assert_allclose(
        their_scores(saved), [made.score(query, text) for query, text in PAIRS], rtol=0, atol=2e-5
    )


def test_changed_lengths_are_kept_by_lightning_ir(tmp_path: Path) -> None:
    (tmp_path / "origin").mkdir()
    opened = Checkpoint.open(tiny.FORMATS["lightning-ir-hub"](tmp_path / "origin").folder).with_lengths(query=2, doc=3)
    saved = opened.save(tmp_path / "ours")
    np.testing.assert_allclose(their_scores(saved), our_scores(saved), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "xlm-roberta"])
def test_other_backbones_score_equally_in_both_directions(name: str, tmp_path: Path) -> None:
    models = pytest.importorskip("lightning_ir.models")
    backbone = families.make(tmp_path / "backbone", name, architecture="Model")
    config = models.MonoConfig(query_length=tiny.QUERY_LENGTH, doc_length=tiny.DOC_LENGTH)
    module = their_module(backbone, config=config)
    module.model.linear.weight.data.copy_(tiny.linear_head()["linear.weight"])
    module.model.save_pretrained(tmp_path / "theirs")
    module.tokenizer.save_pretrained(tmp_path / "theirs")
    # Lightning IR cuts by decoding and tokenising again, which changes what is no WordPiece: unknown characters, cuts.
    known = [("why does bread rise", "the bread and the water"), ("cat", "the cat sat on mat"), ("sun moon", "rain")]
    pairs = PAIRS if name in ("bert", "distilbert") else known
    with torch.inference_mode():
        expected = [float(module.eval().score(query, [text]).scores[0]) for query, text in pairs]
    np.testing.assert_allclose(our_scores(tmp_path / "theirs", pairs), expected, rtol=0, atol=2e-5)
    saved = Checkpoint.open(tmp_path / "theirs").save(tmp_path / "ours")
    np.testing.assert_allclose(their_scores(saved, pairs), expected, rtol=0, atol=2e-5)
