"""``first_stage="bm25"``: the paper's first stage, made here."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import pytest
import slow_corpus
from slow_corpus import TOPICS, Corpus, made

from pyterrier_rankdistillm import KeptWorkError, ReproductionError, reproduce
from pyterrier_rankdistillm.reproduction.catalogue import tasks
from pyterrier_rankdistillm.runs.index_text import properties_of

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from pyterrier_rankdistillm.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,  # on a busy machine
    )


@pytest.fixture(scope="module")
def home(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ir_datasets' home, with the files of vaswani."""
    path = tmp_path_factory.mktemp("ir-datasets")
    shutil.copytree(shared / "data" / "ir-datasets" / "vaswani", path / "vaswani")
    for file in [path / "vaswani", *(path / "vaswani").iterdir()]:
        file.chmod(0o755)
    return path


@pytest.mark.timeout(600)
def test_vaswani_s_cell_from_an_empty_cache(home: Path, tmp_path: Path) -> None:
    offline = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    offline |= {"IR_DATASETS_HOME": str(home), "IR_DATASETS_DL_TRIES": "1"}
    call = ["reproduce", "tirex", "--first-stage", "bm25", "--folder", str(tmp_path / "kept")]
    first = command(*call, "--mode", "as_published", **offline)
    assert first.returncode == 0, first.stderr
    assert "vaswani  first stage  0.447     0.447" in first.stdout
    assert "(1 reproduced; 119 published cells were not run)" in first.stdout
    assert "11429 documents" in first.stderr
    for task in tasks().values():
        if not task.name.startswith(("trec-dl", "vaswani")):  # what is not run, is said
            why = r"Its \w+ could not be obtained here"
            assert re.search(rf"^(.*, )?{task.name}(, .*)?: not run\. {why}", first.stdout, re.M)
    index = home / "rank-distillm-indices" / "vaswani"
    assert properties_of(index / "data.properties")["index.meta.value-lengths"] == "100"
    # A call for one task goes on in the folder, in the other mode too. It needs no jars, no Java, no index.
    shutil.rmtree(index)
    nothing = {"PYTERRIER_HOME": str(tmp_path / "none"), "JAVA_HOME": str(tmp_path), **offline}
    again = command(*call, "--task", "vaswani", **nothing)
    assert again.returncode == 0, again.stderr
    assert "tasks pooled corrected" in again.stdout
    assert "vaswani  first stage  0.447     0.447" in again.stdout
    assert "first stage was not run again" in again.stdout
    assert "Java" not in again.stderr
    assert not index.exists()


def test_queries_are_words_and_reach_the_result_as_they_were(tmp_path: Path) -> None:
    result = made(Corpus(), tmp_path)
    assert result.cells["value"].tolist() == [1.0]  # each topic's document is the only one with its words
    assert set(result.per_query["query"]) == set(TOPICS["query"])
    index = next(tmp_path.iterdir())
    assert (index / "record.json").is_file()
    retriever = pt.terrier.Retriever(str(index), wmodel="BM25")  # an ordinary index
    assert retriever.search("rain")["docno"].tolist() == ["d3"]
    before = {file.name: file.stat().st_mtime_ns for file in index.iterdir()}
    made(Corpus(), tmp_path)
    assert {file.name: file.stat().st_mtime_ns for file in index.iterdir()} == before


@pytest.mark.parametrize(
    ("corpus", "error", "what"),
    [
        (Corpus(breaks=20), ReproductionError, "Its documents could not be obtained here .*the download broke"),
        (Corpus(breaks=0), ReproductionError, "Its documents could not be obtained here .*the download broke"),
        (Corpus(length=100), ValueError, "must have at most 100 characters, got 'd3xxx"),
        (Corpus(number=0), ValueError, "has no documents to index"),
    ],
)
def test_half_an_index_is_none(corpus: Corpus, error: type[Exception], what: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=what):
        made(corpus, tmp_path / "indices")
    assert not list((tmp_path / "indices").glob("*")) if (tmp_path / "indices").exists() else True


def test_long_docnos_are_kept_whole(tmp_path: Path) -> None:
    made(Corpus(length=97), tmp_path)
    index = pt.terrier.Retriever(str(next(tmp_path.iterdir())), wmodel="BM25")
    assert index.search("rain")["docno"].tolist() == ["d3" + "x" * 97]


def test_an_index_that_is_another_one(tmp_path: Path) -> None:
    made(Corpus(), tmp_path)
    index = next(tmp_path.iterdir())

    class Other(Corpus):
        def get_corpus_iter(self, *, verbose: bool = True) -> Any:  # noqa: ARG002
            yield {"docno": "other", "text": "another first document"}

    with pytest.raises(ValueError, match=rf"the index in {index} is not .*its first document is another one"):
        made(Other(), tmp_path)
    pt.terrier.IterDictIndexer(str(index), stemmer=None, overwrite=True).index([{"docno": "a", "text": "b"}])
    with pytest.raises(ValueError, match=r"data\.properties was changed since"):
        made(Corpus(), tmp_path)
    (index / "record.json").unlink()
    with pytest.raises(ValueError, match=r"has no record of how it was made .*bm25:FOLDER"):
        made(Corpus(), tmp_path)


def test_an_index_of_one_s_own(folder: Path, topics: pd.DataFrame, shared: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "topics": {"vaswani": topics.head(5)},
        "qrels": {"vaswani": shared / "data" / "vaswani" / "qrels.txt"},
        "tasks": ["vaswani"],
        "folder": tmp_path,
    }
    ours = reproduce("tirex", {}, first_stage=f"bm25:{folder}", **given)
    by_hand = pt.rewrite.tokenise() >> pt.terrier.Retriever(str(folder), wmodel="BM25") >> pt.rewrite.reset()
    theirs = reproduce("tirex", {}, first_stage=by_hand, **given | {"folder": None})
    assert ours.cells["value"].tolist() == theirs.cells["value"].tolist()
    other = tmp_path / "other"
    pt.terrier.IterDictIndexer(str(other), meta={"docno": 32}, stemmer=None).index([{"docno": "1", "text": "waves"}])
    with pytest.raises(KeptWorkError, match="index"):
        reproduce("tirex", {}, first_stage=f"bm25:{other}", **given)
    with pytest.raises(FileNotFoundError, match=r"must name an index, as bm25:FOLDER"):
        reproduce("tirex", {}, first_stage=f"bm25:{tmp_path / 'none'}", **given)


def test_one_index_s_run_is_not_another_s(folder: Path, topics: pd.DataFrame, shared: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    pt.terrier.IterDictIndexer(str(other), meta={"docno": 32}, stemmer=None).index([{"docno": "1", "text": "waves"}])
    given: dict[str, Any] = {
        "topics": {"vaswani": topics.head(5)},
        "qrels": {"vaswani": shared / "data" / "vaswani" / "qrels.txt"},
        "folder": tmp_path / "kept",
    }
    retriever = pt.terrier.Retriever(pt.IndexFactory.of(str(folder)), wmodel="BM25")
    reproduce("tirex", {}, first_stage={"vaswani": retriever}, **given)
    another = pt.terrier.Retriever(pt.IndexFactory.of(str(other)), wmodel="BM25")
    with pytest.raises(KeptWorkError, match="first stage"):
        reproduce("tirex", {}, first_stage={"vaswani": another}, **given)


def test_trec_dl_takes_the_ready_made_index(
    folder: Path, passages: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class StandIn:
        def get_index(self, variant: str) -> str:
            asked.append(variant)
            return str(folder)

    get_dataset = pt.get_dataset
    monkeypatch.setattr(pt, "get_dataset", lambda n: StandIn() if n == "msmarco_passage" else get_dataset(n))
    topics = pd.DataFrame({"qid": ["1"], "query": [passages[0]["text"].split(".")[0]]})
    qrels = pd.DataFrame({"qid": ["1"], "docno": [passages[0]["docno"]], "label": [3]})
    result = reproduce("trec-dl-2019", {}, first_stage={"bm25": "bm25"}, topics=topics, qrels=qrels)
    assert asked == ["terrier_stemmed"]
    assert result.cells["value"].tolist() == [1.0]


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_indexing_that_is_stopped_leaves_no_index(stop: signal.Signals, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, slow_corpus.__file__, str(tmp_path / "indices")],
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    while child.stdout.readline().strip() != "indexing":
        assert child.poll() is None
    child.send_signal(stop)
    out, err = child.communicate(timeout=200)
    if stop == signal.SIGINT:  # Ctrl-C is Python's
        assert (child.returncode, out.split()) == (7, ["interrupted", "finally"]), err
        assert not (tmp_path / "indices").exists()
    assert not (tmp_path / "indices" / "Corpus").exists()
    result = made(Corpus(), tmp_path / "indices")
    assert result.cells["value"].tolist() == [1.0]
    assert [file.name for file in (tmp_path / "indices").iterdir()] == ["Corpus"]


def test_java_that_is_not_there_is_told_twice(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; from slow_corpus import *\n"
        "for _ in range(2):\n"
        "    try: made(Corpus(), Path(sys.argv[1]))\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "i"), str(Path(__file__).parent)],
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT), "JAVA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    told = done.stdout.splitlines()
    assert len(told) == 2, done
    assert all(line.startswith(f"JavaError reproduce: there is no Java in JAVA_HOME={tmp_path}.") for line in told)
    assert not (tmp_path / "i").exists()
