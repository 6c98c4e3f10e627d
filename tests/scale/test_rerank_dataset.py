"""Re-ranking on Ray: the same as in one process, whoever dies on the way."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faulty
import pandas as pd
import pytest
import tiny

from pyterrier_rankdistillm import (
    LongListWarning,
    MonoElectra,
    RewrittenQueryWarning,
    SetEncoderReRanker,
    TruncationWarning,
    rerank_dataset,
    runs,
)
from pyterrier_rankdistillm.runs import ShardError
from pyterrier_rankdistillm.scale import WorkerError, workers
from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.filterwarnings("ignore:MonoElectraReRanker cut")]

QUERIES = {f"q{n}": f"{faulty.WORDS[n]} {faulty.WORDS[2 * n % 14]} rain" for n in (3, 1, 10, 2, 7, 5, 11)}
TOPICS = pd.DataFrame({"qid": list(QUERIES), "query": list(QUERIES.values())})
RUN = pd.DataFrame(
    [
        (qid, f"d{(7 * place + 3 * int(qid[1:])) % 40}", 9.0 - place, place)
        for qid in QUERIES
        for place in range(3 + int(qid[1:]) % 5)
    ],
    columns=["qid", "docno", "score", "rank"],
)
ONCE = "d99"
"""A document of one query only."""
RUN.loc[RUN.index[RUN["qid"] == "q7"][-1], "docno"] = ONCE
COLUMNS = ["qid", "docno", "score", "rank"]


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    runs.write(RUN, tmp_path / "bm25.run")
    return tmp_path / "bm25.run"


@pytest.fixture
def loader(tmp_path: Path) -> faulty.Texts:
    (tmp_path / "log").mkdir()
    return faulty.Texts(tmp_path / "log")


def expected(model: tiny.Tiny, depth: int | None = None) -> pd.DataFrame:
    """What one process gives for the whole run."""
    frame = RUN.merge(TOPICS)
    frame = frame if depth is None else frame[frame["rank"] < depth]
    frame = frame.assign(text=[faulty.text_of(docno) for docno in frame["docno"]])
    return MonoElectra(model.folder, device="cpu")(frame)[COLUMNS]


def same(path: Path, one_process: pd.DataFrame) -> None:
    run = runs.read(path)
    pd.testing.assert_frame_equal(
        run[["qid", "docno", "rank"]], one_process[["qid", "docno", "rank"]], check_dtype=False
    )
    assert run["score"].tolist() == pytest.approx(one_process["score"].tolist(), abs=1e-5)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def parquet_with_queries(folder: Path) -> Any:
    RUN.assign(rank=RUN["rank"] + 1).merge(TOPICS).to_parquet(folder / "run.parquet")
    return folder / "run.parquet", None


def trec(folder: Path) -> Any:
    runs.write(RUN, folder / "bm25.run.gz")
    return folder / "bm25.run.gz", TOPICS


def ray_dataset(folder: Path) -> Any:
    import ray

    TOPICS.to_parquet(folder / "topics.parquet")
    shuffled = RUN.sample(frac=1, random_state=0)
    return ray.data.from_pandas([shuffled[:9], shuffled[9:]]), folder / "topics.parquet"


@pytest.mark.parametrize(
    ("number", "source", "depth"),
    [
        pytest.param(1, trec, 4, marks=pytest.mark.slow),
        (2, parquet_with_queries, None),
        pytest.param(3, trec, None, marks=pytest.mark.slow),
        pytest.param(1, ray_dataset, None, marks=pytest.mark.slow),  # Ray's sort starts processes of its own
    ],
)
def test_as_many_workers_as_one_process(
    tmp_path: Path, model: tiny.Tiny, number: int, source: Callable[[Path], Any], depth: int | None
) -> None:
    run, topics = source(tmp_path)
    docnos = sorted(RUN["docno"].unique())
    pd.DataFrame({"docno": docnos, "text": [faulty.text_of(docno) for docno in docnos]}).to_parquet(
        tmp_path / "t.parquet"
    )
    reranker = MonoElectra(model.folder, device="cpu")
    options: dict[str, Any] = {"text": tmp_path / "t.parquet", "topics": topics, "depth": depth, "num_workers": number}
    made = rerank_dataset(run, reranker, tmp_path / "out.parquet", **options, verbose=False)
    same(made.path, expected(model, depth))
    assert made.record == json.loads((tmp_path / "out.parquet.json").read_text())
    assert [made.record[name] for name in ("queries", "rows", "depth")] == [7, len(expected(model, depth)), depth]
    assert made.record["reranker"]["weights"]
    assert not [name for name in files(tmp_path) if "shards" in name]
    assert rerank_dataset(run, reranker, tmp_path / "out.parquet", **options, verbose=False) == made
    with pytest.raises(FileExistsError, match=f"is of other work: depth: {json.dumps(depth)}, now 2"):
        rerank_dataset(run, reranker, tmp_path / "out.parquet", **options | {"depth": 2}, verbose=False)
    assert not [name for name in files(tmp_path) if "shards" in name]


def done(texts: faulty.Texts) -> int:
    """How many frames were asked of a loader, by all processes."""
    return sum(len(log.read_text().splitlines()) for log in texts.folder.glob("*.fetched"))


def rerank(
    run: Path, model: tiny.Tiny, text: faulty.Texts, output: Path, *, shard_size: int = 1, **options: Any
) -> runs.MadeRun:
    reranker = MonoElectra(model.folder, device="cpu")
    options = {"text": text, "topics": TOPICS, "shard_size": shard_size, "verbose": False, **options}
    return rerank_dataset(run, reranker, output, **options)


def test_a_worker_that_is_killed_loses_and_doubles_nothing(
    run_file: Path, tmp_path: Path, model: tiny.Tiny, loader: faulty.Texts
) -> None:
    loader.deadly = RUN["docno"].iloc[0]
    made = rerank(run_file, model, loader, tmp_path / "out.run.gz", num_workers=2)
    same(made.path, expected(model))
    assert [path.name for path in loader.folder.glob("death-*")] == ["death-0"]
    # What waited for the dead worker may be begun anew, what was finished is not.
    assert len(QUERIES) < done(loader) <= len(QUERIES) + 3


@pytest.mark.slow
def test_a_shard_that_kills_its_workers_is_named_and_the_others_are_kept(
    run_file: Path, tmp_path: Path, model: tiny.Tiny, loader: faulty.Texts
) -> None:
    loader.deadly, loader.deaths = ONCE, 99
    place = sorted(QUERIES).index("q7")
    with pytest.raises(WorkerError, match=rf"shard {place} \(qids 'q7' to 'q7'\) was begun 3 times, and each time its"):
        rerank(run_file, model, loader, tmp_path / "out.run", num_workers=1)
    assert len(list(loader.folder.glob("death-*"))) == workers.ATTEMPTS == 3
    assert not (tmp_path / "out.run").exists()
    finished = list((tmp_path / "out.run.shards").glob("0*.json"))
    assert finished
    with pytest.raises(ShardError, match=r"depth: null, now 3"):
        rerank(run_file, model, loader, tmp_path / "out.run", depth=3)
    before, loader.deadly = done(loader), ""
    made = rerank(run_file, model, loader, tmp_path / "out.run", num_workers=2)
    same(made.path, expected(model))
    assert done(loader) == before + len(QUERIES) - len(finished)


SCRIPT = """
import sys
import pathlib, faulty, tiny, test_rerank_dataset as here
folder = pathlib.Path(sys.argv[1])
slow = faulty.Texts(folder / "log")
slow.seconds = 0.5
here.rerank(folder / "bm25.run", tiny.Tiny(pathlib.Path(sys.argv[2]), None), slow, folder / "out.run", address="local",
            num_workers=1)
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_where_it_stopped(
    run_file: Path, tmp_path: Path, model: tiny.Tiny, loader: faulty.Texts
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(model.folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        end = time.monotonic() + 240
        while len(list(tmp_path.glob("out.run.shards/0*.json"))) < 2 and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        code = process.wait()
    assert code == -signal.SIGKILL
    assert wait_until(lambda: not workers_of(tmp_path))  # its Ray ends with it
    finished = {path.name for path in (tmp_path / "out.run.shards").glob("0*.json")}
    assert 2 <= len(finished) < len(QUERIES)
    before = done(loader)
    made = rerank(run_file, model, loader, tmp_path / "out.run", num_workers=2)
    same(made.path, expected(model))
    assert done(loader) == before + len(QUERIES) - len(finished)


def workers_of(folder: Path) -> list[int]:
    """Processes of this machine that a loader noted in ``folder`` and that are still there."""
    noted = [int(log.stem) for log in (folder / "log").glob("*.fetched")]
    return [pid for pid in noted if Path(f"/proc/{pid}/stat").exists()]


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return holds()


def test_bad_input_is_told_as_one_process_tells_it(
    run_file: Path, tmp_path: Path, model: tiny.Tiny, loader: faulty.Texts
) -> None:
    import ray

    loader.missing = RUN["docno"].iloc[-1]
    with pytest.raises(KeyError) as here:
        runs.add_text(RUN[RUN["qid"] == RUN["qid"].iloc[-1]], loader)
    with pytest.raises(KeyError) as there:
        rerank(run_file, model, loader, tmp_path / "out.run", shard_size=7)
    assert str(there.value).split(";")[0] == str(here.value).split(";")[0]
    assert wait_until(lambda: ray.available_resources().get("CPU") == 3.0)  # the workers are gone
    runs.write(RUN, tmp_path / "other.run")
    topics = TOPICS[~TOPICS["qid"].isin(["q10", "q5"])]
    with pytest.raises(KeyError, match="the topics have no qid 'q10'; 2 are missing"):
        rerank(tmp_path / "other.run", model, loader, tmp_path / "b.run", topics=topics)
    (tmp_path / "broken.run").write_text("q1 Q0 d1 1\n")
    with pytest.raises(runs.RunFileError, match=r"broken.run, line 1: 4 fields"):
        rerank(tmp_path / "broken.run", model, loader, tmp_path / "b.run")
    assert not [name for name in files(tmp_path) if name.startswith("b.run")]
    assert "out.run" not in files(tmp_path)


def test_a_set_encoder_sees_whole_lists(tmp_path: Path, model: tiny.Tiny) -> None:
    """Its scores would be others if a list were split; its warnings come from the workers, once each."""
    docnos = sorted(RUN["docno"].unique())
    texts = pd.DataFrame({"docno": docnos, "text": [faulty.text_of(docno) for docno in docnos]})
    texts.to_parquet(tmp_path / "t.parquet")
    sets = Checkpoint.open(model.folder).as_set_encoder(depth=5).save(tmp_path / "sets")
    with pytest.warns(LongListWarning):
        here = SetEncoderReRanker(sets, device="cpu")(RUN.merge(TOPICS).merge(texts))[COLUMNS]
    run, topics = parquet_with_queries(tmp_path)
    options: dict[str, Any] = {"text": tmp_path / "t.parquet", "topics": topics, "shard_size": 2, "num_workers": 2}
    with pytest.warns(LongListWarning, match=r"got 6 passages of one query, .* at most 5") as caught:
        made = rerank_dataset(run, str(sets), tmp_path / "out.parquet", **options, verbose=False)
    same(made.path, here)
    assert [warning.category for warning in caught] == [LongListWarning]


@pytest.mark.slow
def test_cut_texts_are_warned_of_once(run_file: Path, tmp_path: Path, model: tiny.Tiny, loader: faulty.Texts) -> None:
    reranker = MonoElectra(model.folder, device="cpu", doc_length=2)
    options: dict[str, Any] = {"text": loader, "topics": TOPICS, "shard_size": 1, "num_workers": 2, "verbose": False}
    with pytest.warns(TruncationWarning, match="of the texts") as caught:
        rerank_dataset(run_file, reranker, tmp_path / "out.run", **options)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_rewritten_queries_are_told_here_and_not_by_workers(
    run_file: Path, tmp_path: Path, model: tiny.Tiny, loader: faulty.Texts
) -> None:
    reranker = MonoElectra(model.folder, device="cpu")
    topics = TOPICS.assign(query=["applypipeline:off rain^0.300000012", *TOPICS["query"][1:]])
    with pytest.warns(RewrittenQueryWarning, match=r"rerank_dataset: 1 of 7 queries .* runs\.add_queries") as caught:
        rerank_dataset(run_file, reranker, tmp_path / "out.run", text=loader, topics=topics, num_workers=1)
    assert [one.filename for one in caught if one.category is RewrittenQueryWarning] == [__file__]


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"depth": 0}, ValueError, "depth must be None or at least 1, got 0"),
        ({"shard_size": 0}, ValueError, "shard_size must be None or at least 1, got 0"),
        ({"num_workers": True}, ValueError, "num_workers must be None or at least 1, got True"),
        ({"num_workers": 4}, ValueError, "num_workers must be from 1 to 3, as many as Ray has cores, got 4"),
        ({"topics": None}, ValueError, "topics must be given, since the run has no column query"),
        ({"topics": TOPICS[["qid"]]}, ValueError, "topics must have the columns qid, query, got no query"),
        ({"text": "no/such/dataset"}, KeyError, "there is no ir_datasets collection 'no/such/dataset'"),
        ({"run": "missing.run"}, FileNotFoundError, "the file missing.run is not there"),
        ({"run": 3}, TypeError, "run must be a frame, a run file .*, or a Ray dataset; got int"),
        ({"output": "out.doc"}, ValueError, "path must end with one of"),
        ({"model": "./nothing"}, ValueError, "nothing is not a folder"),
        ({"device": "cuda:1"}, ValueError, "device of the re-ranker must be None, 'cpu' or 'cuda', got 'cuda:1'"),
        ({"address": "10.0.0.1:6379"}, ValueError, "address must be None or '.*', the Ray that this process uses"),
    ],
)
def test_bad_arguments(
    run_file: Path,
    tmp_path: Path,
    model: tiny.Tiny,
    loader: faulty.Texts,
    options: dict[str, Any],
    error: type[Exception],
    what: str,
) -> None:
    settings = {"device": "cpu"} | {name: options.pop(name) for name in ("device",) if name in options}
    arguments: dict[str, Any] = {"run": run_file, "model": model.folder, "output": "out.run", "text": loader,
                                 "topics": TOPICS, "verbose": False, **options}  # fmt: skip
    run, output = arguments.pop("run"), tmp_path / arguments.pop("output")
    named = arguments.pop("model")
    with pytest.raises(error, match=what):
        rerank_dataset(run, named if str(named)[0] == "." else MonoElectra(named, **settings), output, **arguments)
    assert sorted({"bm25.run", "bm25.run.rankings", "log"} & set(files(tmp_path))) == files(tmp_path)


@pytest.mark.slow
def test_weights_travel_once(
    run_file: Path,
    tmp_path: Path,
    model: tiny.Tiny,
    loader: faulty.Texts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An open checkpoint is put into Ray's store once; a model by name has no weights to send."""
    pickled = []

    def count(checkpoint: Checkpoint) -> dict[str, Any]:
        pickled.append(checkpoint)
        return checkpoint.__dict__

    monkeypatch.setattr(Checkpoint, "__getstate__", count, raising=False)
    options: dict[str, Any] = {"text": loader, "topics": TOPICS, "shard_size": 1, "num_workers": 1, "verbose": False}
    rerank_dataset(run_file, MonoElectra(Checkpoint.open(model.folder), device="cpu"), tmp_path / "a.run", **options)
    same(tmp_path / "a.run", expected(model))
    assert len(pickled) == 1
    assert len(pickle.dumps(MonoElectra(model.folder, device="cpu"))) < 2_000
