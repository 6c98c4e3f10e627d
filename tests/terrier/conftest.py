"""Terrier itself, in the one Java of the process: every test here has the marker ``terrier``."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.terrier)
            if not (SHARED / "terrier").is_dir():
                item.add_marker(pytest.mark.skip(reason=f"{SHARED / 'terrier'} is not here"))


@pytest.fixture(scope="session", autouse=True)
def jars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for PyTerrier with Terrier's jars in it, since it writes beside them."""
    home = tmp_path_factory.mktemp("pyterrier")
    for jar in (SHARED / "terrier").glob("*.jar"):
        (home / jar.name).symlink_to(jar)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTERRIER_HOME", os.fspath(home))
        yield home


@pytest.fixture(scope="session")
def passages(shared: Path) -> list[dict[str, str]]:
    """The first 3,000 passages of Vaswani."""
    with gzip.open(shared / "data" / "vaswani" / "passages.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(3000), strict=False)]


@pytest.fixture(scope="session")
def topics(shared: Path) -> pd.DataFrame:
    file = shared / "data" / "vaswani" / "queries.tsv"
    return pd.read_csv(file, sep="\t", names=["qid", "query"], dtype=str, quoting=3)


@pytest.fixture(scope="session")
def folder(passages: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an index with texts, and with positions."""
    from pyterrier_rankdistillm.runs.java import start_java

    start_java("the tests")
    path = tmp_path_factory.mktemp("indexes") / "vaswani"
    pt.terrier.IterDictIndexer(str(path), meta={"docno": 32, "text": 8192}, blocks=True).index(passages)
    return path


@pytest.fixture(scope="session")
def bm25(folder: Path) -> pt.Transformer:
    return pt.terrier.Retriever(pt.IndexFactory.of(str(folder)), wmodel="BM25")
