"""The tables' contents: against ir_datasets, and against where they were written down."""

from __future__ import annotations

import json
from pathlib import Path

import ir_datasets
import pytest

from pyterrier_rankdistillm.reproduction.catalogue import ARTEFACTS, FIRST_STAGE, TABLES, Task, table, tasks

NAMES = {
    "first_stage": FIRST_STAGE,
    "webis/monoelectra-base (dual-rank-distillm-colbert, RankNet)": "webis/monoelectra-base",
    "monoelectra-base(LCE)": "monoelectra-base (LCE only)",
    "arithmetic-mean": "arithmetic mean",
    "geometric-mean": "geometric mean",
}


def test_tirex_has_29_tasks_over_13_corpora() -> None:
    tirex = table("tirex")
    assert len(tirex.tasks) == 29
    assert len({task.corpus for task in tirex.tasks}) == 13
    assert set(ARTEFACTS) < {task.corpus for task in tirex.tasks}


@pytest.mark.parametrize("task", tasks().values(), ids=lambda task: task.name)
def test_datasets_fields_and_topics_are_ir_datasets(task: Task) -> None:
    dataset = ir_datasets.load(task.dataset)
    assert set(task.query_fields) <= set(dataset.queries_cls()._fields)
    assert set(task.doc_fields) <= set(dataset.docs_cls()._fields)
    assert dataset.has_qrels()
    assert dataset.metadata()["queries"]["count"] == task.topics
    query = dataset.queries_cls()(*[f"<{name}>" for name in dataset.queries_cls()._fields])
    assert query.default_text() == " ".join(f"<{name}>" for name in task.query_fields)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_its_first_stages(name: str) -> None:
    found = table(name)
    assert found.systems
    assert any(cell.system == FIRST_STAGE for cell in found.cells)
    rows = [(cell.source, cell.system, cell.setting) for cell in found.cells]
    assert len(set(rows)) == len(rows)


def test_two_published_sets() -> None:
    cells = table("trec-dl").published("webis/monoelectra-large", "colbertv2/trec-dl-2020")
    assert {source: cell.value for source, cell in cells.items()} == {"paper": 0.799, "readme": 0.796}


def test_set_encoders_stand_beside_monoelectra() -> None:
    found = {year: table(f"trec-dl-{year}") for year in (2019, 2020)}
    assert {"webis/monoelectra-base", "webis/set-encoder-base", "webis/set-encoder-large"} <= set(found[2019].systems)
    cells = found[2020].published("webis/set-encoder-base", "colbertv2/trec-dl-2020")
    assert {source: cell.value for source, cell in cells.items()} == {"readme": 0.768}


def test_what_to_do_for_licensed_documents() -> None:
    assert "data agreement with NIST" in tasks()["disks45/nocr/trec7"].what_to_do
    assert "downloads" in tasks()["vaswani"].what_to_do


@pytest.mark.shared
def test_cells_are_those_of_the_reference(shared: Path) -> None:
    written = json.loads((shared / "reference" / "published-tables.json").read_text(encoding="utf-8"))
    expected = {}
    for section, table_name in (("trec_dl", "trec-dl"), ("tirex", "tirex")):
        for system, row in written[section]["rows"].items():
            for setting, cell in row.items():
                significant = None if setting.endswith("mean") else cell["significant_vs_baseline"]
                key = (table_name, "paper", NAMES.get(system, system), NAMES.get(setting, setting))
                expected[key] = (cell["nDCG@10"], significant)
    successor = written["successor_readme"]
    for system in ("webis/monoelectra-base", "webis/monoelectra-large"):
        for setting, value in zip(successor["columns"], successor[system], strict=True):
            expected["trec-dl", "readme", system, setting] = (value, None)
        expected["trec-dl", "readme", system, "bm25/mean"] = (written["model_zoo_readme"][system][0], None)
    cards = written["set_encoder"]
    for system in ("webis/set-encoder-base", "webis/set-encoder-large"):
        for setting, value in zip(cards["columns"], cards[system], strict=True):
            expected["trec-dl", "readme", system, setting] = (value, None)
    sizes = written["ablation_queries_x_depth"]
    for stage in ("bm25", "colbertv2"):
        names = {f"{n} queries x 100 passages": v for n, v in sizes["depth_100"][stage].items()}
        names |= {f"10000 queries x {n} passages": v for n, v in sizes["queries_10000"][stage].items()}
        for system, value in names.items():
            expected["ablation-size", "paper", system, f"{stage}/mean"] = (value, None)
    found = {
        (name, cell.source, cell.system, cell.setting): (cell.value, cell.significant)
        for name in ("trec-dl", "tirex", "ablation-size")
        for cell in table(name).cells
        if not (name == "ablation-size" and cell.system == FIRST_STAGE)
    }
    assert found == expected
    corpora = {task.name: task.corpus for task in table("tirex").tasks}
    assert corpora == written["tirex"]["tasks"]
