"""Every public transformer can be drawn, and says in its box what it is; loaders compile with ``% k``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import pytest
import tiny

import pyterrier_rankdistillm
from pyterrier_rankdistillm import (
    Checkpoint,
    CrossEncoderReRanker,
    Distillation,
    FineTuning,
    MonoElectra,
    SetEncoderReRanker,
    runs,
)
from pyterrier_rankdistillm.runs.given import texts_of

DEMO = pt.get_dataset("rankdistillm:demo")
BM25 = pt.Transformer.from_df(DEMO.get_results())
LOADERS = ("demo", "TextLoader", "ParquetText", "FrameText", "IndexText")


def made(name: str, folder: Path) -> pt.Transformer:
    mono = MonoElectra("rankdistillm:demo")
    corpus = pd.DataFrame(DEMO.get_corpus_iter(verbose=False))
    if name == "ParquetText":
        pytest.importorskip("pyarrow")
        corpus.to_parquet(folder / "passages.parquet")
    if name == "MappedRun":
        runs.write(DEMO.get_results(), folder / "bm25.run.gz")
    if name == "ScoreCache":
        pytest.importorskip("pyterrier_caching")
    ways: dict[str, Any] = {
        "CrossEncoderReRanker": lambda: CrossEncoderReRanker("BAAI/bge-reranker-base"),
        "MonoElectraReRanker": lambda: mono,
        "SetEncoderReRanker": SetEncoderReRanker,
        "FineTuning": lambda: FineTuning(mono, steps=1, sample_size=2),
        "Distillation": lambda: Distillation(mono, steps=1, teacher=SetEncoderReRanker()),
        "ScoreCache": lambda: runs.ScoreCache(mono, folder),
        "demo": lambda: DEMO.text_loader(),
        "TextLoader": lambda: runs.text_loader("vaswani"),
        "ParquetText": lambda: runs.ParquetText(folder / "passages.parquet"),
        "FrameText": lambda: texts_of(corpus, who="test"),
        "RankLlm": lambda: runs.RankLlm(object(), model="an LLM"),
        "IndexText": lambda: runs.IndexText(folder / "index" / "data.properties"),
        "MappedRun": lambda: runs.MappedRun(runs.Rankings.from_file(folder / "bm25.run.gz"), "bm25.run.gz"),
    }
    return ways[name]()  # type: ignore[no-any-return]


PUBLIC = sorted(
    name
    for place in (pyterrier_rankdistillm, runs)
    for name in place.__all__
    if isinstance(one := getattr(place, name), type) and issubclass(one, pt.Transformer) and name != "MonoElectra"
)


@pytest.mark.parametrize("name", [*PUBLIC, "demo"])
def test_it_can_be_drawn(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyterrier.documentation.objects_inv", dict)  # PyTerrier looks up its own on the net
    one = made(name, tmp_path)
    empty = len(pt.schematic.draw(BM25 >> BM25))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = (BM25 >> one >> MonoElectra("rankdistillm:demo") % 10)._repr_html_()
        label = pt.schematic.transformer_schematic(one)["label"]
    assert drawn is not None
    assert len(label) <= 20
    assert label in drawn
    assert len(drawn) < empty + 20_000  # no collection, no run


@pytest.mark.parametrize(
    ("reranker", "label"),
    [
        (MonoElectra(), "MonoElectra base"),
        (MonoElectra("webis/monoelectra-large", doc_length=64), "monoelectra-lar… d64"),
        (MonoElectra("rankdistillm:demo", query_length=16, doc_length=64), "demo q16 d64"),
        (CrossEncoderReRanker("cross-encoder/ms-marco-MiniLM-L6-v2"), "ms-marco-MiniLM-L6-…"),
        (CrossEncoderReRanker("me/mine"), "CrossEncoder mine"),
        (SetEncoderReRanker("webis/set-encoder-base"), "set-encoder-base"),
    ],
    ids=repr,
)
def test_a_box_says_which_model_and_which_lengths(reranker: CrossEncoderReRanker, label: str) -> None:
    assert pt.schematic.transformer_schematic(reranker)["label"] == label


def test_a_box_of_open_weights_says_what_they_came_from(model: tiny.Tiny) -> None:
    checkpoint = Checkpoint.open(model.folder)
    label = pt.schematic.transformer_schematic(CrossEncoderReRanker(checkpoint))["label"]
    assert label.startswith(model.folder.name[:10])


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_compiles_with_a_cutoff(name: str, tmp_path: Path) -> None:
    one = made(name, tmp_path)
    assert str((BM25 >> one % 3).compile()).endswith(f"RankCutoff(3) >> {one!r})")
    if name not in ("TextLoader", "IndexText"):  # whose collections are not here
        topics = DEMO.get_topics().head(2)
        pd.testing.assert_frame_equal((BM25 >> one % 3).compile()(topics), (BM25 >> one % 3)(topics))
