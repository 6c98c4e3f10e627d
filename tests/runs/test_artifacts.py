"""Made runs and score caches as PyTerrier artifacts: loaded by their path, packaged, published, brought back."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import pytest
import tiny
from lz4.frame import LZ4FrameFile
from pandas.testing import assert_frame_equal
from server import serving

from pyterrier_rankdistillm import (
    Checkpoint,
    CheckpointError,
    CrossEncoderReRanker,
    KeptWorkError,
    MonoElectra,
    RunFileError,
    runs,
)
from pyterrier_rankdistillm.errors import DataFileError

pytestmark = [pytest.mark.filterwarnings("ignore:.*cut.*beyond"), pytest.mark.filterwarnings("ignore:.*lz4.*")]

TOPICS = pd.DataFrame({"qid": ["1", "2"], "query": ["why does bread rise", "rain"]})
FOUND = pd.DataFrame(
    [(q, d, -float(n), n, text) for q in "12" for n, (d, text) in enumerate([("a", "yeast and bread"), ("b", "rain")])],
    columns=["qid", "docno", "score", "rank", "text"],
)
FRAME = FOUND.merge(TOPICS)


@pytest.fixture
def made(tmp_path: Path) -> runs.MadeRun:
    teacher = pt.apply.doc_score(lambda row: float(len(row["text"])))
    return runs.make_teacher_run(
        teacher, FOUND, TOPICS, tmp_path / "teacher.run.gz", depth=2, settings={"prompt": "/home/me/secret/prompt.txt"},
        verbose=False,
    )  # fmt: skip


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Any]]:
    """Packages an artifact as ``to_hf`` does, and gives what ``from_hf`` makes of the package."""
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path / "home"))
    with serving() as site:

        def fetch(artifact: Any, **options: Any) -> Any:
            package = Path(artifact.build_package(str(tmp_path / "artifact.tar.lz4"), verbose=False))
            site.files = {f"/{file.name}": file.read_bytes() for file in (package, Path(f"{package}.json"))}
            return pt.Artifact.from_url(site.url(f"/{package.name}"), **options)

        yield fetch


def members(package: Path) -> dict[str, bytes]:
    with LZ4FrameFile(package) as stream, tarfile.open(fileobj=stream, mode="r|") as packed:
        return {one.name: packed.extractfile(one).read() for one in packed}  # type: ignore[union-attr]


def test_a_made_run_is_loaded_by_its_path(made: runs.MadeRun) -> None:
    for path in (made.path, str(made.path)):
        loaded = pt.Artifact.load(path)  # type: ignore[arg-type]
        assert loaded == made
        assert isinstance(loaded, runs.MadeRun)
    assert_frame_equal(runs.read(made), made.read())  # it is its file's name wherever a run is given
    found = made.retriever()(TOPICS)
    assert found[["qid", "docno"]].to_numpy().tolist() == made.read()[["qid", "docno"]].to_numpy().tolist()
    with pytest.raises(FileNotFoundError):
        pt.Artifact.load(str(made.path) + ".gz")


def test_a_made_run_is_published_without_local_paths(
    made: runs.MadeRun, fetched: Callable[..., Any], tmp_path: Path
) -> None:
    there = fetched(made)
    assert isinstance(there, runs.MadeRun)
    assert there.path.name == made.path.name
    assert there.path.read_bytes() == made.path.read_bytes()
    assert made.record["settings"] == {"prompt": "/home/me/secret/prompt.txt"}
    assert there.record == made.record | {"settings": {"prompt": "prompt.txt"}}
    packed = members(tmp_path / "artifact.tar.lz4")
    assert sorted(packed) == ["pt_meta.json", "teacher.run.gz", "teacher.run.gz.json"]
    assert json.loads(packed["pt_meta.json"]) == {
        "type": "run", "format": "rankdistillm", "package_hint": "pyterrier-rankdistillm",
    }  # fmt: skip


def test_a_run_is_loaded_with_its_own_record_only(made: runs.MadeRun, tmp_path: Path) -> None:
    record = Path(f"{made.path}.json")
    good = record.read_text(encoding="utf-8")
    made.path.write_bytes(made.path.read_bytes() + b"x")
    with pytest.raises(RunFileError, match=r"is not the run that its record is of: it has MD5 .*, not "):
        pt.Artifact.load(str(made.path))
    for bad, message in (("{", "is not JSON"), ("[]", "is not the record of a made run")):
        record.write_text(bad, encoding="utf-8")
        with pytest.raises(RunFileError, match=message):
            runs.MadeRun.load(made.path)
    record.unlink()
    with pytest.raises(FileNotFoundError, match=r"MadeRun\.load: .*teacher\.run\.gz\.json is not there"):
        runs.MadeRun.load(made.path)
    with pytest.raises(ValueError, match="No implementation found"):
        pt.Artifact.load(str(made.path))
    record.write_text(good, encoding="utf-8")
    shutil.copy(record, tmp_path / "other.run.json")
    (tmp_path / "other.run").touch()
    with pytest.raises(FileNotFoundError, match="must hold one run with its record, got 2"):
        runs.MadeRun.load(tmp_path)


@pytest.fixture
def cache(tmp_path: Path, model: tiny.Tiny) -> runs.ScoreCache:
    pytest.importorskip("pyterrier_caching")
    cache = runs.ScoreCache(MonoElectra(tiny.copy(model.folder, tmp_path / "model"), device="cpu"), tmp_path / "scores")
    cache(FRAME.head(3))
    cache.close()
    return cache


def test_a_cache_that_is_loaded_answers_without_its_model(cache: runs.ScoreCache, tmp_path: Path) -> None:
    right, kept, path = cache.reranker(FRAME), cache(FRAME.head(3)), cache.path
    cache.close()
    shutil.move(tmp_path / "model", tmp_path / "elsewhere")
    with pt.Artifact.load(str(path)) as loaded:  # type: ignore[attr-defined]
        assert isinstance(loaded, runs.ScoreCache)
        assert loaded.path == path
        assert loaded.model_identity == cache.model_identity
        assert_frame_equal(loaded(FRAME.head(3)), kept)
        assert loaded.reranker._opened is None
        with pytest.raises(CheckpointError, match=r"lacks 1 of the scores, and its model, .*, is not here"):
            loaded(FRAME)
    shutil.move(tmp_path / "elsewhere", tmp_path / "model")
    with runs.ScoreCache.load(path) as loaded:
        assert_frame_equal(loaded(FRAME), right)


def test_a_cache_takes_scores_of_its_own_model_only(cache: runs.ScoreCache, tmp_path: Path) -> None:
    path = cache.path
    cache.close()
    with runs.ScoreCache.load(path) as loaded:
        loaded.reranker.doc_length = 3
        with pytest.raises(KeptWorkError, match="holds scores with other settings than"):
            loaded(FRAME.head(1))
    state = tiny.load_state(tmp_path / "model")
    name = next(name for name in state if "word_embeddings" in name)
    tiny.save_state(tmp_path / "model", state | {name: state[name] * 1.5})
    with runs.ScoreCache.load(path) as loaded:
        loaded(FRAME.head(3))
        with pytest.raises(KeptWorkError, match=r"holds scores of .* with weights .*, not .*Give the re-ranker"):
            loaded(FRAME)
    with pytest.raises(KeptWorkError, match="with doc_length"):
        runs.ScoreCache.load(path, reranker=cache.reranker.clone(doc_length=5))


def test_a_cache_is_published_without_local_paths(
    cache: runs.ScoreCache, fetched: Callable[..., Any], tmp_path: Path
) -> None:
    there = fetched(cache)
    assert_frame_equal(there(FRAME.head(3)), cache.reranker(FRAME.head(3)))
    assert there.model_identity["model"] == "model"
    assert str(tmp_path).encode() not in members(tmp_path / "artifact.tar.lz4")["record.json"]
    there.close()
    open_model = CrossEncoderReRanker(Checkpoint.open(tmp_path / "model"), device="cpu")
    with runs.ScoreCache.load(there.path, reranker=open_model) as again:  # wherever its model lies now
        assert_frame_equal(again(FRAME), cache.reranker(FRAME))


def test_what_is_no_whole_cache_is_refused(cache: runs.ScoreCache) -> None:
    path = cache.path
    cache.close()
    with pytest.raises(FileNotFoundError, match=r"must be the folder of one model's cache.*no pt_meta\.json"):
        runs.ScoreCache.load(path.parent)
    for bad, message in (
        ("{}", "is not the record of a score cache"),
        ('{"models": {"reranker": {}}}', "does not say"),
    ):
        (path / "record.json").write_text(bad, encoding="utf-8")
        with pytest.raises(DataFileError, match=message):
            pt.Artifact.load(str(path))
