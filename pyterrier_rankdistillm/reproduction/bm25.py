"""The paper's first stage, made here: BM25 of Terrier over an index of a task's corpus, made where there is none."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import ir_datasets
import pandas as pd
import pyterrier as pt

from ..errors import InputError
from ..locks import hold, lock_of
from ..progress import bar
from ..runs.atomic import write_json
from ..runs.index_text import PROPERTIES, index_at, properties_of
from ..runs.java import start_java
from ..runs.text import documents
from ..scratch import replacing_folder
from .arguments import file_name
from .catalogue import Task
from .tasks import available

WORD = "bm25"
RECORD = "record.json"
DOCNO_LENGTH = 100
"""Characters that are reserved for a docno; Terrier cuts longer ones without a word."""

_WHO = "reproduce"
_INDEXER = {"indexer": "pt.terrier.IterDictIndexer", "meta": {"docno": DOCNO_LENGTH}, "else": "defaults"}
_READY_MADE = {"msmarco-passage": ("msmarco_passage", "terrier_stemmed")}
"""Indexes that PyTerrier has ready-made: dataset and variant, by corpus."""


def is_bm25(source: Any) -> bool:
    """Whether a first stage is given as ``"bm25"`` or ``"bm25:FOLDER"``."""
    return isinstance(source, str) and (source == WORD or source.startswith(f"{WORD}:"))


class Bm25(pt.Transformer):
    """BM25 of Terrier, with its defaults, over queries as the tokeniser reads them; gives queries back as they were.

    Nothing is opened before queries come: not the index, nor Java.

    Args:
        index: What is searched.
    """

    schematic: ClassVar[dict[str, str | None]] = {"label": "BM25", "help_url": None}

    def __init__(self, index: Index) -> None:
        self.index = index

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The best 1,000 documents for each query: ``qid``, ``query``, ``docid``, ``docno``, ``score`` and ``rank``."""
        pt.validate.columns(inp, includes=["qid", "query"], context=self)
        if inp.empty:
            return inp.assign(docid=[], docno=[], score=[], rank=[])
        found: pd.DataFrame = self._pipeline.transform(inp[["qid", "query"]])
        return found

    @cached_property
    def _pipeline(self) -> pt.Transformer:
        start_java(_WHO)
        retriever = pt.terrier.Retriever(os.fspath(self.index.place()), wmodel="BM25")
        # What looks like Terrier's query language (title:egg, 10^6) is not meant so.
        pipeline: pt.Transformer = pt.rewrite.tokenise() >> retriever >> pt.rewrite.reset()
        return pipeline

    def results_depend_on(self) -> dict[str, Any]:
        """What the rankings follow from."""
        return {"model": "BM25", "index": self.index.identity()}

    def attributes(self) -> list[Any]:
        """For records and drawings."""
        return [pt.inspect.TransformerAttribute("index", str(self.index))]

    def __repr__(self) -> str:
        return f"Bm25({self.index})"


class Index(ABC):
    """An index that can be searched."""

    def open_documents(self) -> None:  # noqa: B027  (an index that is there needs none)
        """Finds out whether the documents to be indexed can be had, if they are to be.

        Raises:
            DataUnavailable: They cannot be had here.
        """

    def check(self) -> None:  # noqa: B027  (what is not made here is not checked)
        """Finds out whether an index that is there is the one that is wanted.

        Raises:
            InputError: It is not.
        """

    @abstractmethod
    def place(self) -> Path:
        """The folder of the index, which is made or fetched where needed; Java runs by then."""

    @abstractmethod
    def identity(self) -> Any:
        """What it is; said without opening it."""


class OwnIndex(Index):
    """An index of the user's.

    Args:
        folder: Where it lies.
    """

    def __init__(self, folder: str) -> None:
        properties = index_at(folder)
        if properties is None:
            raise FileNotFoundError(
                f"{_WHO}: first_stage must name an index, as {WORD}:FOLDER; there is no {PROPERTIES} in {folder!r}."
            )
        self.properties = properties

    def place(self) -> Path:
        return self.properties.parent if self.properties.name == PROPERTIES else self.properties

    def identity(self) -> Any:
        return pt.terrier.TerrierIndex(self.place())

    def __str__(self) -> str:
        return f"the index {self.properties.parent.name}"


class ReadyMade(Index):
    """An index that PyTerrier fetches.

    Args:
        dataset: PyTerrier's name of the dataset.
        variant: Which of its indexes.
    """

    def __init__(self, dataset: str, variant: str) -> None:
        self.dataset, self.variant = dataset, variant

    def place(self) -> Path:
        with available("ready-made index"):
            dataset: Any = pt.get_dataset(self.dataset)
            return Path(str(dataset.get_index(variant=self.variant)))

    def identity(self) -> Any:
        return {"dataset": self.dataset, "variant": self.variant}

    def __str__(self) -> str:
        return f"PyTerrier's {self.dataset} ({self.variant})"


class CorpusIndex(Index):
    """The index of a corpus, made of ``runs.documents`` by Terrier's indexer with its defaults.

    Args:
        dataset: The corpus: an ir_datasets id or a PyTerrier dataset.
        folder: Where it lies, or will.
        verbose: Whether to show a bar of documents.
    """

    def __init__(self, dataset: str | pt.datasets.Dataset, folder: Path, *, verbose: bool | None = None) -> None:
        self.dataset, self.folder, self.verbose = dataset, folder, verbose
        self.name = dataset if isinstance(dataset, str) else repr(dataset)

    @cached_property
    def _first(self) -> str:
        with available("documents", theirs=True):
            first = next(iter(documents(self.dataset)), None)
        if first is None:
            raise InputError(_WHO, f"{self.name} has no documents to index.")
        return _digest([first])

    def open_documents(self) -> None:
        _ = self._first

    def check(self) -> None:
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return
        differences = list(self._differences())
        if differences:
            raise InputError(
                _WHO,
                f"the index in {self.folder} is not the one of {self.name} that {WORD!r} stands for: "
                f"{'; '.join(differences)}. Remove it, choose another folder with indices=, or search it as "
                f"first_stage='{WORD}:FOLDER'.",
            )

    def _differences(self) -> Iterator[str]:
        try:
            record: Mapping[str, Any] = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
            made, whole, lines = record["documents"], record["indexer"], record["properties"]
        except (OSError, ValueError, KeyError, TypeError):
            yield f"it has no record of how it was made ({RECORD})"
            return
        if not (self.folder / PROPERTIES).is_file():
            yield f"it has no {PROPERTIES}"
            return
        if made["dataset"] != self.name:
            yield f"it is of {made['dataset']}"
        elif made["first"] != self._first:
            yield "its first document is another one"
        if whole != _INDEXER:
            yield f"it was made by {json.dumps(whole)}, not {json.dumps(_INDEXER)}"
        if lines != _lines(self.folder):
            yield f"its {PROPERTIES} was changed since, or is another index's"

    def place(self) -> Path:
        # Whoever else makes it meanwhile: then it is there when the lock is ours.
        with hold(lock_of(self.folder), f"{_WHO}: the index {self.folder}"):
            self.check()
            if not (self.folder / PROPERTIES).is_file():
                self._make()
        return self.folder

    def _make(self) -> None:
        with replacing_folder(self.folder) as scratch:
            stream = _Stream(documents(self.dataset), self.name, self.verbose)
            _index(stream, scratch)
            there = int(properties_of(scratch / PROPERTIES).get("num.Documents", "0"))
            if there != stream.number:
                raise InputError(_WHO, f"Terrier holds {there} of {stream.number} documents of {self.name}. Try again.")
            about = {"dataset": self.name, "number": stream.number, "first": self._first, "digest": stream.digest}
            write_json(
                scratch / RECORD,
                {"by": f"reproduce, first_stage={WORD!r}", "documents": about, "indexer": _INDEXER,
                 "terrier": str(pt.terrier.version()), "properties": _lines(scratch)},
            )  # fmt: skip

    def identity(self) -> Any:
        # A name is not a path, whatever lies in the working directory.
        corpus = f"the corpus {self.name}" if isinstance(self.dataset, str) else self.dataset
        return {"documents": corpus, **_INDEXER}

    def __str__(self) -> str:
        return f"Terrier's index of {self.name}"


def bm25_of(source: str, task: Task, documents_of: Any, indices: Path, *, verbose: bool | None) -> Bm25:
    """The first stage that a word stands for.

    Args:
        source: ``"bm25"`` or ``"bm25:FOLDER"``.
        task: The task.
        documents_of: The dataset with its documents, for tasks that are not of the paper.
        indices: The folder of the indexes that are made here.
        verbose: Whether to show a bar of documents.

    Raises:
        FileNotFoundError: There is no index in FOLDER.
        ValueError: The task has no documents that could be indexed.
    """
    folder = source.partition(":")[2]
    if source != WORD:
        return Bm25(OwnIndex(folder))
    if task.corpus in _READY_MADE:
        return Bm25(ReadyMade(*_READY_MADE[task.corpus]))
    dataset = task.dataset or documents_of
    if not isinstance(dataset, str | pt.datasets.Dataset):
        raise InputError(_WHO, f"first_stage={WORD!r} must have a dataset to index, and {task.name} names none.")
    if isinstance(dataset, str):
        dataset = dataset.removeprefix("irds:")
    if isinstance(dataset, str) and ":" not in dataset:
        dataset = ir_datasets.docs_parent_id(dataset) or dataset  # several tasks have the same documents
    name = dataset if isinstance(dataset, str) else repr(dataset)
    return Bm25(CorpusIndex(dataset, indices / file_name(name), verbose=verbose))


def default_indices() -> Path:
    """Where indexes are made: beside what else is downloaded and made of ir_datasets' collections."""
    return Path(ir_datasets.util.home_path()) / "rank-distillm-indices"


class _Stream:
    """Documents on their way to Terrier, which reads them in a thread where an error would go unseen.

    Args:
        source: The documents.
        name: What they are of.
        verbose: Whether to show a bar.
    """

    def __init__(self, source: Iterable[dict[str, str]], name: str, verbose: bool | None) -> None:
        self.number = 0
        self.error: BaseException | None = None
        self.stopped = threading.Event()
        self._source, self._name, self._verbose = source, name, verbose
        self._content = hashlib.blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        return self._content.hexdigest()

    def __iter__(self) -> Iterator[dict[str, str]]:
        with bar(self._verbose, desc=f"Indexing {self._name}", unit=" documents") as drawn:
            try:
                for document in self._source:
                    if self.stopped.is_set():
                        return
                    docno = document["docno"]
                    if len(docno) > DOCNO_LENGTH:
                        raise InputError(
                            _WHO, f"docnos of {self._name} must have at most {DOCNO_LENGTH} characters, got {docno!r}."
                        )
                    self._content.update(_framed(document))
                    self.number += 1
                    drawn.update()
                    yield document
            except BaseException as error:
                self.error = error  # raised by whoever waits for the index


def _index(stream: _Stream, folder: Path) -> None:
    """Indexes, in another thread: Java holds on to the one that calls it, which could not be interrupted.

    Raises:
        DataUnavailable: The stream broke.
        InputError: A document cannot be indexed, or Terrier failed.
    """
    import jnius  # which starts Java: that runs by now

    failed: list[Exception] = []
    ended = threading.Event()

    def work() -> None:
        try:
            _given_to_terrier(stream, folder)
        except Exception as error:
            failed.append(error)
        finally:
            with contextlib.suppress(Exception):
                jnius.detach()
            ended.set()

    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
    except BaseException:
        stream.stopped.set()  # Terrier ends with what it has
        ended.wait()  # not join: the thread may be about to start
        raise
    with available("documents", theirs=True):
        if stream.error is not None:
            raise stream.error
    if failed:
        raise InputError(_WHO, f"Terrier could not index {stream._name} ({failed[0]}).") from failed[0]


def _given_to_terrier(stream: _Stream, folder: Path) -> None:
    """A frame of its own, with which Java's objects go before their thread lets go of Java."""
    pt.terrier.IterDictIndexer(os.fspath(folder), meta={"docno": DOCNO_LENGTH}).index(iter(stream))


def _lines(folder: Path) -> str:
    """What an index says of itself, without dates and places."""
    return hashlib.blake2b(json.dumps(properties_of(folder / PROPERTIES), sort_keys=True).encode()).hexdigest()[:32]


def _framed(document: Mapping[str, str]) -> bytes:
    return json.dumps([document["docno"], document["text"]]).encode()


def _digest(some: Iterable[Mapping[str, str]]) -> str:
    content = hashlib.blake2b(digest_size=16)
    for document in some:
        content.update(_framed(document))
    return content.hexdigest()
