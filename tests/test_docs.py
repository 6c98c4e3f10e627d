"""The documentation's code runs as it stands (blocks that need a network are marked), and its pages are complete."""

from __future__ import annotations

import ast
import os
import re
import warnings
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch

import pyterrier_rankdistillm
from pyterrier_rankdistillm import TruncationWarning, errors, runs
from pyterrier_rankdistillm.scoring import folders

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "pyterrier_rankdistillm" / "pt_docs"
WITHOUT_CODE = ("api", "maintaining")
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.rst"))]
MARKDOWN = re.compile(r"(?P<mark><!-- not tested: [^\n]*-->\n)?^```python\n(?P<code>.*?)^```", re.M | re.S)
REST = re.compile(r"^\.\. code-block:: python\n\n(?P<code>(?:    [^\n]*\n|\n)+)", re.M)
AUTODOC = re.compile(r"^\.\. auto(?:class|function|exception):: pyterrier_rankdistillm\.(?P<name>\S+)$", re.M)


def blocks(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return [found["code"] for found in MARKDOWN.finditer(text) if not found["mark"]]
    found = [re.sub(r"^    ", "", found["code"], flags=re.M) for found in REST.finditer(text)]
    assert len(found) == text.count(".. code-block:: python"), f"{page.name}: blocks are indented by four spaces"
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that reads as much as the demo's does."""
    config = {**tiny.LIGHTNING_IR_HUB, "query_length": 32, "doc_length": 256}
    return tiny.lightning_ir(tmp_path_factory.mktemp("small"), config=config, max_position_embeddings=512).folder


def run(page: Path) -> None:
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        # PyTerrier's advice about plans, and pandas' about what PyTerrier's sliding does.
        warnings.filterwarnings("ignore", message="There are shared pipeline components")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=TruncationWarning)  # the cascade shows shorter passages
        warnings.filterwarnings("ignore", message=".*no validation was better")  # chance, after four steps
        for block in blocks(page):
            exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in WITHOUT_CODE], ids=lambda page: page.name)
def test_the_code_of_a_page_runs_from_top_to_bottom(
    page: Path, small: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """With a tiny checkpoint in the place of the demo's."""
    code = blocks(page)
    assert code
    if any("rerank_dataset" in block for block in code):
        request.getfixturevalue("cluster")  # whose workers open the demo's own
    else:
        monkeypatch.setattr(folders, "demo_folder", lambda: small)
    run(page)


@pytest.mark.slow
def test_the_code_of_readme_runs_with_the_demo_checkpoint(request: pytest.FixtureRequest) -> None:
    """On all cores: its training takes a minute."""
    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(os.cpu_count() or 1)
    run(ROOT / "README.md")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index", "reranking"])
def test_a_page_shows_what_its_code_gives(name: str) -> None:
    """The first block's last line, with the demo checkpoint."""
    text = (DOCS / f"{name}.rst").read_text(encoding="utf-8")
    shown = re.search(r"^\.\. code-block:: text\n\n((?:    [^\n]*\n)+)", text, re.M)
    assert shown
    *first, last = ast.parse(blocks(DOCS / f"{name}.rst")[0]).body
    assert isinstance(last, ast.Expr)
    names: dict[str, object] = {}
    with warnings.catch_warnings(), pd.option_context("display.width", 120, "display.max_columns", None):
        warnings.simplefilter("ignore")
        exec(compile(ast.Module(first, []), name, "exec"), names)
        given = str(eval(compile(ast.Expression(last.value), name, "eval"), names))
    lines = [line.rstrip() for line in given.splitlines()]
    assert lines == [line[4:].rstrip() for line in shown[1].splitlines()]


def test_links_of_readme_work_where_it_is_shown() -> None:
    """On a package index there is no repository beside it."""
    targets = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []


def test_every_page_of_the_documentation_is_in_the_index() -> None:
    index = (DOCS / "index.rst").read_text(encoding="utf-8")
    for page in DOCS.glob("*.rst"):
        assert page.stem == "index" or f"    {page.stem}\n" in index


def test_every_public_name_is_in_the_reference_once() -> None:
    found = [match["name"] for page in DOCS.glob("*.rst") for match in AUTODOC.finditer(page.read_text("utf-8"))]
    assert len(found) == len(set(found))
    public = {*pyterrier_rankdistillm.__all__, *(f"runs.{name}" for name in runs.__all__)}
    rooms = {"reproduction", "runs", "scale", "training"}
    # Errors are on the page as the members of their module, once, though several rooms export them.
    tree = {name for name in public if hasattr(errors, name.removeprefix("runs."))}
    assert ".. automodule:: pyterrier_rankdistillm.errors" in (DOCS / "api.rst").read_text("utf-8")
    assert public - rooms - tree <= set(found)
