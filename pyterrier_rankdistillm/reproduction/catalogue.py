"""The paper's tables: their tasks (``collections.csv``) and their cells (``published.csv``)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

DEPTH = 100
"""The largest number of documents per query, in all tables."""

FIRST_STAGE = "first stage"
BASELINE = "webis/monoelectra-base"
"""The row that the paper tests the others against."""
"""The row of a table that holds the first stage itself."""

CRANFIELD = "cranfield"

ARITHMETIC, GEOMETRIC, YEARS = "arithmetic mean", "geometric mean", "mean"


@dataclass(frozen=True)
class Task:
    """Topics with judgements over a corpus.

    Args:
        name: The task's name in the tables.
        corpus: The corpus under which it is pooled.
        dataset: ir_datasets id of topics, qrels and documents; empty for tasks that are not in the paper.
        topics: The number of topics of ``dataset``; 0 if it is not known.
        query_fields: The fields that ``default_text()`` of its queries reads.
        doc_fields: The fields that ``default_text()`` of its documents reads.
        relevant: The lowest label that is relevant in binary measures.
        tira: The task's id on TIRA.
        access: ``"download"``, or who has to be asked for the documents.
    """

    name: str
    corpus: str
    dataset: str = ""
    topics: int = 0
    query_fields: tuple[str, ...] = ()
    doc_fields: tuple[str, ...] = ()
    relevant: int = 1
    tira: str = ""
    access: str = "download"

    @property
    def what_to_do(self) -> str:
        """What to do if the task's data is missing."""
        if self.access == "download":
            return "ir_datasets downloads it; or give topics, qrels and text."
        return f"Its documents need a {self.access}; then see ir-datasets.com for where they go, or give text."


@dataclass(frozen=True)
class Cell:
    """A published value: nDCG@10.

    Args:
        source: ``"paper"``, or ``"readme"``: the model zoos of its two repositories, and the set encoders' cards.
        system: The table's row.
        setting: First stage and task (``"bm25/trec-dl-2019"``), corpus, or a mean.
        value: The value, with the digits that were published.
        significant: Whether it was marked as different from webis/monoelectra-base; None if no cells were marked.
    """

    source: str
    system: str
    setting: str
    value: float
    significant: bool | None


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Args:
        name: Its name in ``reproduce``.
        tasks: Its tasks.
        cells: Its published cells.
        by: Whether a setting is a first stage on a task, or a corpus whose tasks are pooled.
    """

    name: str
    tasks: tuple[Task, ...]
    cells: tuple[Cell, ...] = ()
    by: Literal["first stage/task", "corpus"] = "first stage/task"

    @property
    def systems(self) -> list[str]:
        """The published rows, without the first stage."""
        return list(dict.fromkeys(cell.system for cell in self.cells if cell.system != FIRST_STAGE))

    def published(self, system: str, setting: str) -> dict[str, Cell]:
        """The cells of a row and setting, by source."""
        return {c.source: c for c in self.cells if c.system == system and c.setting == setting}


TABLES = ("trec-dl-2019", "trec-dl-2020", "trec-dl", "tirex", "ablation-loss", "ablation-size")

ARTEFACTS = {
    CRANFIELD: "The published cells of 0.008 to 0.012 come from runs that number the queries by the collection's own "
    ".I numbers, and qrels that number them 1 to 225. With matching numbers (mode='corrected') BM25 gives 0.343.",
    "medline": "genomics-2004 (topics 1-50), pm-2017 (1-30) and pm-2018 (1-50) share topic numbers. Pooled as "
    "published, different topics fall together; mode='corrected' keeps them apart.",
    "disks45/nocr": "The topics of trec7 and trec8 recur in trec-robust-2004. Pooled as published, each counts once; "
    "mode='corrected' counts each task's own.",
}
"""Corpora where the published way of pooling and the corrected one give different numbers, and why."""

_LOSSES = ("webis/monoelectra-base", "monoelectra-base-dual-rank-distillm-colbert-adrmse")  # RankNet, ADR-MSE


@cache
def tasks() -> dict[str, Task]:
    """All tasks, by name."""
    return {
        row["task"]: Task(
            name=row["task"],
            corpus=row["corpus"],
            dataset=row["dataset"],
            topics=int(row["topics"]),
            query_fields=tuple(row["query_fields"].split()),
            doc_fields=tuple(row["doc_fields"].split()),
            relevant=int(row["relevant"]),
            tira=row["tira"],
            access=row["access"],
        )
        for row in _rows("collections.csv")
    }


def table(name: str) -> Table:
    """The table of that name, one of ``TABLES``."""
    if name == "tirex":
        tirex = tuple(task for task in tasks().values() if not task.name.startswith("trec-dl"))
        return Table(name, tirex, tuple(_cells("tirex")), "corpus")
    years = tuple(task for task in tasks().values() if task.name.startswith(name if name in tasks() else "trec-dl"))
    cells = _cells("trec-dl")
    if name in tasks():
        cells = [cell for cell in cells if cell.setting.endswith(f"/{name}")]
    elif name == "ablation-loss":
        cells = [cell for cell in cells if cell.system in (FIRST_STAGE, *_LOSSES)]
    elif name == "ablation-size":
        cells = [cell for cell in cells if cell.system == FIRST_STAGE] + _cells("ablation-size")
    return Table(name, years, tuple(cells))


def _cells(name: str) -> list[Cell]:
    return [
        Cell(
            source=row["source"],
            system=row["system"],
            setting=row["setting"],
            value=float(row["value"]),
            significant=bool(int(row["significant"])) if row["significant"] else None,
        )
        for row in _rows("published.csv")
        if row["table"] == name
    ]


@cache
def _rows(file: str) -> list[dict[str, str]]:
    lines = (resources.files(__package__) / file).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(lines))
