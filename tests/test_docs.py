"""The documentation's code runs as it stands (blocks that need a network are marked there)."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from pyterrier_rankdistillm import TruncationWarning

ROOT = Path(__file__).parents[1]
MARKDOWN = re.compile(r"(?P<mark><!-- not tested: [^\n]*-->\n)?^```python\n(?P<code>.*?)^```", re.M | re.S)
REST = re.compile(r"^\.\. code-block:: python\n\n(?P<code>(?:    [^\n]*\n|\n)+)", re.M)
DOCS = ROOT / "pyterrier_rankdistillm" / "pt_docs"


def blocks(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return [found["code"] for found in MARKDOWN.finditer(text) if not found["mark"]]
    return [re.sub(r"^    ", "", found["code"], flags=re.M) for found in REST.finditer(text)]


@pytest.mark.parametrize("page", ["README.md", "index.rst", "reranking.rst", "training.rst", "reproduction.rst"])
def test_the_code_of_a_page_runs_from_top_to_bottom(page: str) -> None:
    code = blocks(ROOT / page if page == "README.md" else DOCS / page)
    assert code
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        # PyTerrier's advice about plans, and pandas' about what PyTerrier's sliding does.
        warnings.filterwarnings("ignore", message="There are shared pipeline components")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=TruncationWarning)  # the cascade shows shorter passages
        for block in code:
            exec(compile(block, page, "exec"), names)


def test_every_page_of_the_documentation_is_in_the_index() -> None:
    index = (DOCS / "index.rst").read_text(encoding="utf-8")
    for page in DOCS.glob("*.rst"):
        assert page.stem == "index" or f"    {page.stem}\n" in index
