"""The published runs, from a local server, over a small stand-in for MS MARCO."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ir_datasets
import pandas as pd
import pyterrier as pt
import pytest
from ir_datasets.datasets.base import Dataset
from ir_datasets.formats import TrecQrels, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload
from server import Site

from pyterrier_rankdistillm import runs
from pyterrier_rankdistillm.runs import DownloadError, published

TREC = "1 Q0 d1 1 2.0 t\n1 Q0 d0 2 1.0 t\n3 Q0 d2 1 0.5 t\n"


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ir_datasets home with a small msmarco-passage in the registry."""
    home = tmp_path / "home"
    monkeypatch.setenv("IR_DATASETS_HOME", str(home))
    registered = dict(ir_datasets.registry._registered)
    for name in published.NAMES:
        registered.pop(f"msmarco-passage/train/rank-distillm-{name}", None)

    def local(name: str, content: str) -> LocalDownload:
        (home / "raw").mkdir(parents=True, exist_ok=True)
        (home / "raw" / name).write_text(content)
        return LocalDownload(home / "raw" / name)

    docs = TsvDocs(local("docs.tsv", "d0\tZero.\nd1\tOne.\nd2\tTwo.\n"))
    queries = TsvQueries(local("queries.tsv", "1\tone?\n2\ttwo?\n3\tthree?\n"))
    qrels = TrecQrels(local("qrels", "1 0 d1 1\n2 0 d2 1\n"), {1: "relevant"})
    registered["msmarco-passage"] = Dataset(docs)
    registered["msmarco-passage/train"] = Dataset(docs, queries, qrels)
    monkeypatch.setattr(ir_datasets.registry, "_registered", registered)
    return home


@pytest.fixture
def zephyr(home: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:  # noqa: ARG001  (set up before)
    """The local server has RankZephyr's run, as the TREC file, under the second address; the first gives 404."""
    site.files["/zenodo/a.run"] = TREC.encode()
    parquet, trec = published.NAMES["rankzephyr"]
    monkeypatch.setitem(
        published.NAMES,
        "rankzephyr",
        (
            replace(parquet, urls=(site.url("/hub/a.parquet"),)),
            replace(trec, urls=(site.url("/old/a.run"), site.url("/zenodo/a.run")), md5=md5(TREC.encode())),
        ),
    )
    return site


def test_the_table_states_what_is_known() -> None:
    assert len({file.name for file in published.FILES}) == len(published.FILES) == 11
    for file in published.FILES:
        assert file.urls
        assert all(url.startswith("https://") and file.name in url for url in file.urls)
        assert file.md5 is None or (len(file.md5) == 32 and set(file.md5) <= set("0123456789abcdef"))
        assert file.contents
    assert [file.name for file in published.FILES if file.md5 is None] == ["experiments.tar.gz"]
    assert {name: files[0].md5 for name, files in published.NAMES.items()} == {
        "rankzephyr": "38f69a3c8a5ed21c639e882a6c2eff7c",
        "set-encoder": "a47206da7dc551e3ebd4e5b6866be78a",
        "monoelectra": "6561f33476a6c8408737f38ea85c848f",
        "colbert": "1e927d52af085516bf5a3de2865809d5",
    }


def test_one_dataset_in_pyterrier(zephyr: Site, home: Path) -> None:
    dataset = pt.get_dataset("rankdistillm:rankzephyr")
    assert repr(dataset) == "PublishedDataset('rankdistillm:rankzephyr')"
    assert zephyr.asked == []
    assert dataset.get_topics().to_dict("list") == {"qid": ["1", "2", "3"], "query": ["one?", "two?", "three?"]}
    assert dataset.get_qrels()[["qid", "docno", "label"]].to_numpy().tolist() == [["1", "d1", 1], ["2", "d2", 1]]
    assert [record["docno"] for record in dataset.get_corpus_iter(verbose=False)] == ["d0", "d1", "d2"]
    assert zephyr.asked == []
    results = dataset.get_results()
    assert list(results.columns) == ["qid", "query", "docno", "score", "rank"]
    assert results.to_numpy().tolist() == [
        ["1", "one?", "d1", 2.0, 0],
        ["1", "one?", "d0", 1.0, 1],
        ["3", "three?", "d2", 0.5, 0],
    ]
    assert dataset.get_topics("run")["qid"].tolist() == ["1", "3"]
    first_stage = pt.Transformer.from_df(results) >> dataset.text_loader()
    assert first_stage(dataset.get_topics("run"))["text"].tolist() == ["One.", "Zero.", "Two."]
    assert (home / "msmarco-passage" / "train" / "rank-distillm-rankzephyr.run").read_text() == TREC
    assert [path for _, path, _ in zephyr.asked] == ["/hub/a.parquet", "/old/a.run", "/zenodo/a.run"]
    for wrong in (dataset.get_topics, dataset.get_results, dataset.get_qrels):
        with pytest.raises(ValueError, match="got 'x'"):
            wrong("x")


@pytest.mark.usefixtures("zephyr")
def test_one_dataset_in_ir_datasets() -> None:
    runs.register()
    dataset = ir_datasets.load("msmarco-passage/train/rank-distillm-rankzephyr")
    assert ir_datasets.docs_parent_id("msmarco-passage/train/rank-distillm-rankzephyr") == "msmarco-passage"
    assert list(dataset.scoreddocs_iter()) == [("1", "d1", 2.0), ("1", "d0", 1.0), ("3", "d2", 0.5)]
    assert dataset.scoreddocs_handler().scoreddocs_path().name == "rank-distillm-rankzephyr.run"
    assert [query.query_id for query in dataset.queries_iter()] == ["1", "2", "3"]
    assert dataset.docs_store().get("d1").text == "One."
    assert runs.read(io.StringIO(TREC), dataset="msmarco-passage/train")["text"].tolist() == ["One.", "Zero.", "Two."]


@pytest.mark.usefixtures("home")
def test_ids_that_exist_are_left_alone() -> None:
    theirs = Dataset()
    ir_datasets.registry.register("msmarco-passage/train/rank-distillm-colbert", theirs)
    before = ir_datasets.load("msmarco-passage/train/rank-distillm-colbert")
    runs.register()
    runs.register()
    assert ir_datasets.load("msmarco-passage/train/rank-distillm-colbert") is before
    assert ir_datasets.load("msmarco-passage/train/rank-distillm-monoelectra").has_scoreddocs()


def test_the_hubs_parquet_file(zephyr: Site, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    runs.write(runs.read(io.StringIO(TREC)), home / "x.parquet")
    data = (home / "x.parquet").read_bytes()
    zephyr.files["/hub/a.parquet"], zephyr.cut["/hub/a.parquet"] = data, [100]
    first, second = published.NAMES["rankzephyr"]
    monkeypatch.setitem(published.NAMES, "rankzephyr", (replace(first, md5=md5(data)), second))
    assert pt.get_dataset("rankdistillm:rankzephyr").get_results()["docno"].tolist() == ["d1", "d0", "d2"]
    assert zephyr.ranges("/hub/a.parquet") == [None, "bytes=100-"]
    assert runs.verify("rankzephyr")


def test_all_sources_failing_is_one_error(zephyr: Site, home: Path) -> None:
    zephyr.files["/zenodo/a.run"] = TREC.encode()[:-1]
    with pytest.raises(DownloadError) as caught:
        runs.fetch("rankzephyr", verbose=False)
    assert "/hub/a.parquet: the server answers 404" in str(caught.value)
    assert "/zenodo/a.run: the file there has MD5" in str(caught.value)
    assert list((home / "msmarco-passage" / "train").glob("*.run")) == []


def test_preflight_says_what_where_and_how_large(zephyr: Site, home: Path) -> None:
    zephyr.files["/hub/a.parquet"] = b"x" * 1234
    table = runs.preflight("rankzephyr")
    assert table["dataset"].tolist() == ["rankdistillm:rankzephyr", *["msmarco-passage"] * 3]
    first = table.iloc[0]
    assert first["target"] == home / "msmarco-passage" / "train" / "rank-distillm-rankzephyr.parquet"
    assert first["bytes"] is pd.NA
    assert not first["there"]
    assert first["free"] > 0
    assert table["bytes"].tolist()[1:] == [1057717952, 18882551, 10589532]
    assert zephyr.asked == []
    assert runs.preflight("rankzephyr", online=True)["bytes"].iloc[0] == 1234
    assert zephyr.ranges("/hub/a.parquet") == []
    zephyr.files.pop("/hub/a.parquet")
    runs.fetch("rankzephyr", verbose=False)
    after = runs.preflight("rankzephyr").iloc[0]
    assert after["there"]
    assert after["bytes"] == len(TREC)
    assert after["target"].name == "rank-distillm-rankzephyr.run"
    assert runs.preflight()["dataset"].tolist()[:4] == [f"rankdistillm:{name}" for name in published.NAMES]


@pytest.mark.usefixtures("zephyr")
def test_verify_sees_changed_files() -> None:
    with pytest.raises(FileNotFoundError, match="rankdistillm:rankzephyr is not downloaded"):
        runs.verify("rankzephyr")
    path = runs.fetch("rankzephyr", verbose=False)
    assert runs.verify("rankzephyr")
    path.write_text("other")
    assert not runs.verify("rankzephyr")


def test_files_without_checksum_are_not_downloaded(zephyr: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = published.NAMES["rankzephyr"]
    monkeypatch.setitem(published.NAMES, "rankzephyr", (replace(first, md5=None),))
    with pytest.raises(DownloadError, match="has no known checksum"):
        runs.fetch("rankzephyr", verbose=False)
    assert zephyr.asked == []


def test_unknown_names() -> None:
    with pytest.raises(KeyError, match="rankzephyr, set-encoder, monoelectra, colbert"):
        runs.fetch("x")
    names: Any = [
        name for name in pt.datasets.list_datasets(en_only=False)["dataset"] if name.startswith("rankdistillm:")
    ]
    assert names == [f"rankdistillm:{name}" for name in ("demo", *published.NAMES)]


def test_the_provider_knows_the_same_names() -> None:
    from pyterrier_rankdistillm.datasets import PUBLISHED

    assert tuple(published.NAMES) == PUBLISHED


def test_ids_are_registered_by_runs_alone() -> None:
    code = (
        "import ir_datasets, sys, pyterrier_rankdistillm, pyterrier_rankdistillm.datasets\n"
        "ids = lambda: sum('rank-distillm' in i for i in ir_datasets.registry)\n"
        "before = ids()\n"
        "import pyterrier_rankdistillm.runs\n"
        "print(before, ids(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 4 False\n"
    assert done.stderr == ""
