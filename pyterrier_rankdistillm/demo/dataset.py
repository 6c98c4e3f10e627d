"""The demo collection: passages, queries, graded judgments and a BM25 run, all written for this package."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import pyterrier as pt

from ..extras import require
from ..notebook import card
from ..scratch import replacing_folder

_FOLDER = resources.files(__package__) / "collection"


class DemoDataset(pt.datasets.Dataset):
    """``pt.get_dataset("rankdistillm:demo")``: about 200 passages on everyday and scientific subjects.

    Queries mostly use other words than the passages that answer them, so that BM25 can be improved upon.
    Grades: 3 answers the query, 2 answers it in part, 1 is on its subject, 0 is judged and not relevant.
    """

    def get_corpus_iter(self, *, verbose: bool = True) -> pt.model.IterDict:
        """Records with ``docno`` and ``text``."""
        yield from pt.tqdm(self._passages, desc="rankdistillm:demo", unit="d", disable=not verbose)

    def get_corpus_lang(self) -> str:
        """English."""
        return "en"

    def get_topics(self, variant: str | None = None) -> pd.DataFrame:
        """Columns ``qid`` and ``query``."""
        _no_variant(variant)
        return self._table("queries.tsv", "\t", ["qid", "query"])

    def get_topics_lang(self) -> str:
        """English."""
        return "en"

    def get_qrels(self, variant: str | None = None) -> pd.DataFrame:
        """Columns ``qid``, ``docno``, ``label`` (0 to 3) and ``iteration``."""
        _no_variant(variant)
        qrels = self._table("qrels.txt", " ", ["qid", "iteration", "docno", "label"]).astype({"label": int})
        return qrels[["qid", "docno", "label", "iteration"]]

    def get_results(self, variant: str | None = None) -> pd.DataFrame:
        """The BM25 run that ships with the collection (top 50), with ``query`` but, like most first stages, no text."""
        _no_variant(variant)
        with resources.as_file(_FOLDER / "bm25.run.gz") as file:
            run = pt.io.read_results(str(file), format="trec").drop(columns="name")
        return run.merge(self.get_topics(), on="qid", how="left")

    def get_index(self, variant: str | None = None, **options: Any) -> Any:
        """A live index, for questions of one's own: ``(index.bm25() >> text_loader >> MonoElectra()).search("...")``.

        It is made the first time (in a fraction of a second), in PyTerrier's home.

        Returns:
            A ``pyterrier_pisa.PisaIndex``.

        Raises:
            ImportError: pyterrier-pisa (the extra ``demo``) is not installed.
        """
        _no_variant(variant)
        pisa = require("pyterrier_pisa", "rankdistillm:demo: get_index")
        digest = hashlib.sha256(json.dumps([self._passages, pisa.__version__]).encode()).hexdigest()[:16]
        path = Path(pt.io.pyterrier_home()) / "rankdistillm" / f"demo-{digest}.pisa"
        if not (path / "pt_meta.json").is_file():
            with replacing_folder(path) as new, _silenced():
                index = pisa.PisaIndex(str(new), text_field="text", overwrite=True)
                index.index(self.get_corpus_iter(verbose=False))
                index.bm25().search("the first query has PISA make its block-max data")
        return pisa.PisaIndex(str(path), text_field="text", **options)

    def text_loader(self, fields: list[str] | str | Literal["*"] = "*", *, verbose: bool = False) -> pt.Transformer:
        """A transformer that adds ``text`` by ``docno``."""
        del verbose  # 200 passages need no progress bar
        if fields not in ("*", "text", ["text"]):
            raise ValueError(f"rankdistillm:demo has the field 'text' only, got fields={fields!r}.")
        return DemoTextLoader({passage["docno"]: passage["text"] for passage in self._passages})

    def _repr_html_(self) -> str:
        topics, qrels = self.get_topics(), self.get_qrels()
        grades = ", ".join(f"{number} of grade {grade}" for grade, number in qrels["label"].value_counts().items())
        rows = [
            ("passages", f"{len(self._passages)}, such as {self._passages[0]['text'][:80]}..."),
            ("topics", f"{len(topics)}, such as {topics['query'].iloc[0]}"),
            ("labels", f"{len(qrels)}: {grades}"),
            ("results", "a BM25 run, top 50"),
        ]
        return card("rankdistillm:demo", rows, note="get_index() gives a live index, for questions of your own.")

    def __repr__(self) -> str:
        return "DemoDataset('rankdistillm:demo')"

    @cached_property
    def _passages(self) -> list[dict[str, Any]]:
        lines = (_FOLDER / "passages.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def _table(self, name: str, separator: str, columns: list[str]) -> pd.DataFrame:
        lines = (_FOLDER / name).read_text(encoding="utf-8").splitlines()
        return pd.DataFrame([line.split(separator, len(columns) - 1) for line in lines], columns=columns)


class DemoTextLoader(pt.Transformer):
    """Adds the passages' text to a frame with ``docno``."""

    schematic: ClassVar[dict[str, str | None]] = {"label": "TextLoader", "help_url": None}

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Adds (or replaces) the column ``text``.

        Raises:
            KeyError: A docno is not in the collection.
        """
        pt.validate.columns(inp, includes=["docno"], context=self)
        unknown = [docno for docno in inp["docno"] if docno not in self.texts]
        if unknown:
            raise KeyError(f"rankdistillm:demo has no passage {unknown[0]!r} ({len(unknown)} such rows).")
        return inp.assign(text=[self.texts[docno] for docno in inp["docno"]])

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Lets ``loader % k`` apply the cutoff before it loads texts."""
        return pt.RankCutoff(k) >> self

    def attributes(self) -> list[Any]:
        """Drawings do not carry the collection."""
        return []

    def __repr__(self) -> str:
        return "DemoTextLoader()"


@contextmanager
def _silenced() -> Iterator[None]:
    """Hides the output of PISA's C++ code on the process's stdout and stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with Path(os.devnull).open("wb") as void:
        os.dup2(void.fileno(), 1)
        os.dup2(void.fileno(), 2)
    try:
        yield
    finally:
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def _no_variant(variant: str | None) -> None:
    if variant is not None:
        raise ValueError(f"rankdistillm:demo has no variants, got {variant!r}.")
