"""Texts that a Terrier index has, wherever texts are given: by docno."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_rankdistillm import Distillation, MonoElectra, runs
from pyterrier_rankdistillm.cli import main
from pyterrier_rankdistillm.runs.given import texts_of
from pyterrier_rankdistillm.scale.inputs import text_of

GIVEN = ["Index", "IndexRef", "TerrierIndex", "folder", "Path", "properties", "its loader", "get_text"]


def given_as(kind: str, folder: Path) -> Any:
    index = pt.IndexFactory.of(str(folder))
    return {
        "Index": lambda: index,
        "IndexRef": lambda: pt.terrier.J.IndexRef.of(str(folder / "data.properties")),
        "TerrierIndex": lambda: pt.terrier.TerrierIndex(str(folder)),
        "folder": lambda: str(folder),
        "Path": lambda: folder,
        "properties": lambda: folder / "data.properties",
        "its loader": lambda: pt.terrier.TerrierIndex(str(folder)).text_loader(),
        "get_text": lambda: pt.text.get_text(index, "text"),
    }[kind]()


@pytest.fixture
def run(passages: list[dict[str, str]]) -> pd.DataFrame:
    """Some documents, with the docids of another index."""
    docnos = [passage["docno"] for passage in passages[5:9]]
    return pd.DataFrame({"qid": "1", "query": "waves", "docno": docnos, "docid": 0, "score": [4.0, 3.0, 2.0, 1.0]})


@pytest.mark.parametrize("kind", GIVEN)
def test_texts_are_found_by_docno(kind: str, folder: Path, run: pd.DataFrame, passages: list[dict[str, str]]) -> None:
    given = given_as(kind, folder)
    assert runs.add_text(run, given)["text"].tolist() == [passage["text"] for passage in passages[5:9]]
    loader = texts_of(given, who="add_text")
    assert loader.transform(run)["text"].tolist() == [passage["text"] for passage in passages[5:9]]
    with pytest.raises(KeyError, match=r"has no text for 'nowhere'; 1 are missing"):
        runs.add_text(run.assign(docno=["nowhere", *run["docno"][1:]]), given)
    again = pickle.loads(pickle.dumps(loader))  # as it goes to Ray's workers
    assert again.transform(run.head(1))["text"].tolist() == [passages[5]["text"]]
    assert text_of(given, folder, "rerank_dataset").location == folder / "data.properties"


def test_an_index_in_memory(tmp_path: Path, run: pd.DataFrame, passages: list[dict[str, str]]) -> None:
    indexer = pt.terrier.IterDictIndexer(
        str(tmp_path / "m"), meta={"docno": 32, "text": 8192}, type=pt.terrier.IndexingType.MEMORY
    )
    index = pt.IndexFactory.of(indexer.index(passages[:20]))
    assert runs.add_text(run, index)["text"].iloc[0] == passages[5]["text"]
    with pytest.raises(ValueError, match=r"rerank_dataset: text is an index in memory"):
        text_of(index, tmp_path, "rerank_dataset")


def test_what_is_no_source_of_texts(folder: Path, run: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"add_text: text must be .*a Terrier index.*got .*MetaIndex\. Give the index"):
        runs.add_text(run, pt.IndexFactory.of(str(folder)).getMetaIndex())
    with pytest.raises(FileNotFoundError, match=r"is a folder without a Terrier index"):
        runs.add_text(run, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"must be an index, and there is none in"):
        runs.add_text(run, pt.terrier.TerrierIndex(str(tmp_path)))


def test_an_index_without_texts(tmp_path: Path, run: pd.DataFrame, passages: list[dict[str, str]]) -> None:
    texts = [{"docno": p["docno"], "text": p["text"], "body": f"body of {p['docno']}"} for p in passages[:10]]
    pt.terrier.IterDictIndexer(str(tmp_path / "i"), meta={"docno": 32, "body": 99}).index(texts)
    for given in (tmp_path / "i", pt.IndexFactory.of(str(tmp_path / "i"))):
        with pytest.raises(ValueError, match=r"its metadata has docno and body, but no text\. .*'text': 4096"):
            runs.add_text(run, given)
    assert texts_of(tmp_path / "i", who="fit", field="body").transform(run)["text"].iloc[0] == "body of 6"


def test_training_and_the_command_line_take_them(
    folder: Path, run: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = Distillation("rankdistillm:demo", steps=1, batch_size=1, depth=4, verbose=False)
    student.fit(run[["qid", "query"]].head(1), run=run[["qid", "docno", "score"]], text=folder)
    assert student.training.table is not None
    runs.write(run[["qid", "docno", "score"]], tmp_path / "a.run")
    run[["qid", "query"]].head(1).to_csv(tmp_path / "topics.tsv", sep="\t", header=False, index=False)
    arguments = ["rerank", str(tmp_path / "a.run"), str(tmp_path / "b.run"), "--model", "rankdistillm:demo"]
    assert main([*arguments, "--topics", str(tmp_path / "topics.tsv"), "--text", str(folder)]) == 0, capsys.readouterr()
    expected = MonoElectra("rankdistillm:demo").transform(runs.add_text(run, folder))
    assert runs.read(tmp_path / "b.run")["docno"].tolist() == expected["docno"].tolist()
