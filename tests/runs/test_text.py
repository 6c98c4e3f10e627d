"""Queries and texts of ir_datasets collections with one field and with several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import ir_datasets
import pandas as pd
import pyterrier as pt
import pytest
from ir_datasets.datasets.base import Dataset
from ir_datasets.formats import BaseDocs, BaseQueries, GenericDoc, GenericQuery

from pyterrier_rankdistillm import runs


class Paper(NamedTuple):
    doc_id: str
    title: str
    authors: tuple[str, ...]
    abstract: str

    def default_text(self) -> str:
        return f"{self.title} {self.abstract}"


class Topic(NamedTuple):
    query_id: str
    title: str
    description: str

    def default_text(self) -> str:
        return self.title


class Silent(NamedTuple):
    doc_id: str
    title: str
    body: str


class Docs(BaseDocs):
    def __init__(self, records: list[Any]) -> None:
        self.records = records

    def get_many_iter(self, ids: list[str]) -> Iterator[Any]:
        return (record for record in reversed(self.records) if record[0] in set(ids))

    def docs_iter(self) -> Iterator[Any]:
        return iter(self.records)

    def docs_cls(self) -> Any:
        return type(self.records[0])

    def docs_store(self) -> Any:
        return self

    def docs_handler(self) -> Any:
        return self


class Queries(BaseQueries):
    def __init__(self, records: list[Any]) -> None:
        self.records = records

    def queries_iter(self) -> Iterator[Any]:
        return iter(self.records)

    def queries_cls(self) -> Any:
        return type(self.records[0])

    def queries_handler(self) -> Any:
        return self


@pytest.fixture(autouse=True)
def collections(monkeypatch: pytest.MonkeyPatch) -> None:
    papers = [Paper("a", "Bread", ("A.",), "rises."), Paper("b", "Rain", (), "falls.")]
    made = {
        "test-papers": Dataset(Docs(papers), Queries([Topic("1", "bread", "why it rises"), Topic("2", "rain", "")])),
        "test-plain": Dataset(Docs([GenericDoc("a", "Yeast.")]), Queries([GenericQuery("1", "bread?")])),
        "test-silent": Dataset(Docs([Silent("a", "t", "b")])),
    }
    for name, dataset in made.items():
        monkeypatch.setitem(ir_datasets.registry._registered, name, dataset)


def test_topics_follow_default_text_and_record_the_fields() -> None:
    topics = runs.load_topics("test-papers")
    assert topics.to_dict("list") == {"qid": ["1", "2"], "query": ["bread", "rain"]}
    assert topics.attrs == {"dataset": "test-papers", "query_fields": ("title",)}
    assert runs.load_topics("irds:test-plain").attrs == {"dataset": "test-plain", "query_fields": ("text",)}
    assert runs.load_topics(pt.get_dataset("irds:test-plain"))["query"].tolist() == ["bread?"]


def test_fields_can_be_chosen() -> None:
    topics = runs.load_topics("test-papers", fields=["title", "description"])
    assert topics["query"].tolist() == ["bread why it rises", "rain "]
    assert topics.attrs["query_fields"] == ("title", "description")
    loader = runs.text_loader("test-papers", fields=["abstract"])
    assert loader(pd.DataFrame({"docno": ["b"]}))["text"].tolist() == ["falls."]


def test_texts_follow_default_text_and_record_the_fields() -> None:
    loader = runs.text_loader("test-papers")
    frame = pd.DataFrame({"docno": ["b", "a", "b"], "text": ["old"] * 3}, index=[7, 7, 8])
    loaded = loader(frame)
    assert loaded["text"].tolist() == ["Rain falls.", "Bread rises.", "Rain falls."]
    assert loaded.index.tolist() == [7, 7, 8]
    assert loaded["text"].iloc[0] is loaded["text"].iloc[2]
    assert loader.fields == ("title", "abstract")
    assert frame["text"].tolist() == ["old"] * 3
    assert list(runs.documents("test-papers")) == [
        {"docno": "a", "text": "Bread rises."},
        {"docno": "b", "text": "Rain falls."},
    ]


def test_the_loader_is_a_good_transformer() -> None:
    loader = runs.text_loader("test-papers")
    assert pt.inspect.transformer_inputs(loader) == [["docno"]]
    assert pt.inspect.transformer_outputs(loader, ["qid", "docno"]) == ["qid", "docno", "text"]
    first_stage = pt.Transformer.from_df(
        pd.DataFrame({"qid": ["1", "1"], "docno": ["a", "zz"], "score": [2.0, 1.0], "rank": [0, 1]})
    )
    topics = pd.DataFrame({"qid": ["1"], "query": ["x"]})
    assert (first_stage >> loader % 1).compile()(topics)["text"].tolist() == ["Bread rises."]


def test_missing_documents_and_queries_are_named() -> None:
    with pytest.raises(KeyError, match="test-papers has no document 'zz'; 1 are missing"):
        runs.text_loader("test-papers")(pd.DataFrame({"docno": ["a", "zz", "zz"]}))
    with pytest.raises(KeyError, match="the topics have no qid '3'; 1 are missing"):
        runs.add_queries(pd.DataFrame({"qid": ["1", "3"]}), "test-papers")


@pytest.mark.parametrize(
    ("call", "error", "what"),
    [
        (lambda: runs.load_topics("no-such"), KeyError, "there is no ir_datasets collection 'no-such'"),
        (lambda: runs.load_topics("test-silent"), ValueError, "'test-silent' has no topics"),
        (lambda: runs.load_qrels("test-silent"), ValueError, "'test-silent' has no relevance judgments"),
        (lambda: runs.text_loader("test-silent"), ValueError, r"Give fields, of \['title', 'body'\]"),
        (lambda: runs.text_loader("test-papers", fields=["x"]), ValueError, r"fields must be .*, got \['x'\]"),
        (lambda: runs.text_loader("test-papers", fields=[]), ValueError, r"fields must be .*, got \[\]"),
        (lambda: runs.load_topics("test-papers", fields="title"), ValueError, "fields must be .*, got 'title'"),
        (lambda: runs.load_topics("rankdistillm:demo", fields=["x"]), ValueError, "fields must be None"),
        (lambda: runs.text_loader("rankdistillm:demo", fields=["x"]), ValueError, "text_loader: fields must be None"),
        (lambda: list(runs.documents("rankdistillm:demo", fields=["x"])), ValueError, "documents: fields must be None"),
    ],
)
def test_what_cannot_be_loaded(call: Any, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        call()


def test_any_dataset_and_any_loader_will_do() -> None:
    demo = pt.get_dataset("rankdistillm:demo")
    assert runs.load_topics("rankdistillm:demo").equals(demo.get_topics())
    passages = {doc["docno"]: doc["text"] for doc in runs.documents("rankdistillm:demo")}
    assert passages == {doc["docno"]: doc["text"] for doc in demo.get_corpus_iter(verbose=False)}
    docnos = demo.get_results()["docno"].head(3).tolist()
    run = pd.DataFrame({"qid": ["1"] * 3, "docno": docnos})
    expected = demo.text_loader()(run)["text"].tolist()
    assert runs.add_text(run, "rankdistillm:demo")["text"].tolist() == expected
    asked = []

    def load(frame: pd.DataFrame) -> pd.DataFrame:
        asked.append(frame["docno"].tolist())
        return demo.text_loader()(frame)

    doubled = pd.concat([run, run])
    assert runs.add_text(doubled, pt.apply.generic(load))["text"].tolist() == expected * 2
    assert asked == [docnos]
    with pytest.raises(ValueError, match="gives no column 'text'"):
        runs.add_text(run, pt.apply.generic(lambda frame: frame))
    with pytest.raises(KeyError, match="has no text for"):
        runs.add_text(run, pt.apply.generic(lambda frame: frame.assign(text=None)))


def test_drawing_needs_no_network() -> None:
    for transformer in (runs.TextLoader, runs.ScoreCache):
        assert "help_url" in transformer.schematic  # else PyTerrier looks one up on the net
