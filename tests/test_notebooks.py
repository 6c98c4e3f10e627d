"""The notebooks in examples/ run from top to bottom, offline, and what is committed is what such a run gives."""

from __future__ import annotations

import gzip
import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|var|usr|opt|work|workspace|content|Users|private)/|file://")
TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d|\b\d\d:\d\d:\d\d\b")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: nbformat.NotebookNode) -> list[tuple[str, ...]]:
    """What a cell shows: streams, and the forms of what is displayed."""
    return [
        (output.output_type, output.get("name", ""), *sorted(output.get("data", {})))
        for output in cell.outputs
        if output.output_type != "error"
    ]


def committed(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def outputs(path: Path) -> list[Any]:
    return [output for cell in code_cells(committed(path)) for output in cell.outputs]


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["1-rerank", "2-train", "3-cascades", "4-reproduce", "5-terrier"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@each
def test_a_notebook_runs_and_its_committed_outputs_are_of_such_a_run(path: Path) -> None:
    """Errors and what comes on stderr are raised by ``execute``; where the shared data is missing, cells print less."""
    script = runpy.run_path(str(ROOT / "scripts" / "notebooks"))
    if path.stem == "5-terrier" and not (script["jars"]() and shutil.which("java")):
        pytest.skip("Java or Terrier's jars are not here")
    execute = script["execute"]
    ran, kept = code_cells(execute(path)), code_cells(committed(path))
    for new, old in zip(ran, kept, strict=True):
        assert not kinds(new) or kinds(new) == kinds(old), old.source


@each
def test_committed_outputs_are_whole_and_tidy(path: Path) -> None:
    notebook = committed(path)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert any(cell.outputs for cell in code_cells(notebook))
    for output in outputs(path):
        assert output.output_type != "error"
        assert output.get("name") != "stderr"
        shown = json.dumps(output, ensure_ascii=False)
        assert not MACHINE.search(re.sub(r'"image/png": "[^"]*"', "", shown))
        assert not TIME.search(shown)


@each
def test_a_notebook_begins_with_what_changes_on_colab(path: Path) -> None:
    notebook = committed(path)
    assert "Colab" in notebook.cells[0].source
    assert "webis/monoelectra-large" in notebook.cells[0].source
    assert "import google.colab" in notebook.cells[1].source
    assert "%pip install" in notebook.cells[1].source


@pytest.mark.shared
@each
def test_no_text_of_ms_marco_is_committed(path: Path, shared: Path) -> None:
    text = path.read_text(encoding="utf-8")
    with gzip.open(shared / "data" / "trec-dl-2019-pool" / "passages.jsonl.gz", "rt", encoding="utf-8") as file:
        beginnings = {json.dumps(json.loads(line)["text"][:60])[1:-1] for line in file}
    assert not [beginning for beginning in beginnings if beginning in text]
