"""How a cluster is shared out, what goes through it, and texts in Parquet; without a cluster."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny

from pyterrier_rankdistillm import MonoElectra, rerank_dataset, runs
from pyterrier_rankdistillm.runs.parquet_text import ParquetText
from pyterrier_rankdistillm.runs.rankings import Rankings
from pyterrier_rankdistillm.scale.cluster import Node, Workers, share
from pyterrier_rankdistillm.scale.workers import Job

GPU_BOX, SMALL, CPU_BOX = Node(cpus=96, gpus=8), Node(cpus=4, gpus=1), Node(cpus=16, gpus=0)


@pytest.mark.parametrize(
    ("machines", "number", "gpu", "workers"),
    [
        ([GPU_BOX], None, True, Workers(8, 12, 1)),
        ([GPU_BOX], 4, True, Workers(4, 24, 1)),
        ([GPU_BOX] * 8, None, True, Workers(64, 12, 1)),
        ([GPU_BOX, SMALL, CPU_BOX], None, True, Workers(9, 4, 1)),
        ([GPU_BOX, SMALL, CPU_BOX], 8, True, Workers(8, 12, 1)),
        ([GPU_BOX], None, False, Workers(1, 96, 0)),
        ([CPU_BOX, Node(0, 0)], None, True, Workers(1, 16, 0)),
        ([CPU_BOX, CPU_BOX], None, True, Workers(2, 16, 0)),
        ([CPU_BOX, SMALL], 5, False, Workers(5, 4, 0)),
        ([CPU_BOX, SMALL], 6, False, Workers(6, 3, 0)),
        ([CPU_BOX], 16, False, Workers(16, 1, 0)),
    ],
)
def test_no_worker_has_more_than_its_machine(
    machines: list[Node], number: int | None, gpu: bool, workers: Workers
) -> None:
    assert share(machines, number, gpu=gpu) == workers


@pytest.mark.parametrize(
    ("machines", "number", "gpu", "what"),
    [
        ([GPU_BOX], 9, True, r"from 1 to 8, as many as Ray has GPUs, each with a core, got 9. .*device='cpu'"),
        ([CPU_BOX], 17, True, "from 1 to 16, as many as Ray has cores, got 17"),
        ([], None, True, "from 1 to 0, as many as Ray has cores, got 0"),
    ],
)
def test_more_workers_than_there_is_room_for(machines: list[Node], number: int | None, gpu: bool, what: str) -> None:
    with pytest.raises(ValueError, match=f"num_workers must be {what}"):
        share(machines, number, gpu=gpu)


def test_a_job_has_the_run_s_path_and_the_model_s_name(tmp_path: Path, model: tiny.Tiny) -> None:
    run = pd.DataFrame({"qid": "q", "docno": [f"d{n}" for n in range(9999)], "score": range(9999, 0, -1)})
    runs.write(run, tmp_path / "run.parquet")
    job = Job(MonoElectra(model.folder), Rankings.from_file(tmp_path / "run.parquet"), "rankdistillm:demo", None)
    _ = job.reranker.scorer
    assert len(pickle.dumps(job)) < 3_000


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"needs Ray Data: pip install 'pyterrier-rankdistillm\[scale\]'"):
        rerank_dataset("bm25.run", "rankdistillm:demo", tmp_path / "out.run", text="rankdistillm:demo")


# --- texts in Parquet -------------------------------------------------------------------------------------------------

TEXTS = pd.DataFrame({"docno": [f"d{n}" for n in range(30_000)], "text": [f"text {n}" for n in range(30_000)]})


def test_texts_of_a_parquet_file(tmp_path: Path) -> None:
    TEXTS.to_parquet(tmp_path / "texts.parquet", row_group_size=1_000)
    loader = ParquetText(tmp_path / "texts.parquet")
    frame = pd.DataFrame(
        {"qid": "q", "docno": ["d29999", "d7", "d10000", "d7", "nowhere"], "text": "old"}, index=[4, 2, 9, 0, 1]
    )
    loaded = loader(frame)
    assert loaded["text"].tolist() == ["text 29999", "text 7", "text 10000", "text 7", None]
    assert loaded.index.tolist() == [4, 2, 9, 0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.parquet", "texts.parquet.texts"]
    assert len(pickle.dumps(loader)) < 500
    with pytest.raises(KeyError, match=r"ParquetText\(.* has no text for 'nowhere'; 1 are missing"):
        runs.add_text(frame, pickle.loads(pickle.dumps(loader)))


def test_another_file_of_that_name_is_read_anew(tmp_path: Path) -> None:
    for text in ("one", "another"):
        pd.DataFrame({"doc_id": ["d1"], "text": [text]}).to_parquet(tmp_path / "texts.parquet")
        (tmp_path / "kept").mkdir(exist_ok=True)
        loader = ParquetText(tmp_path / "texts.parquet", folder=tmp_path / "kept")
        assert loader(pd.DataFrame({"docno": ["d1"]}))["text"].tolist() == [text]
    (form,) = (tmp_path / "kept").iterdir()
    assert form.name.startswith("texts.parquet.")
    assert form.name.endswith(".texts")


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        (TEXTS.rename(columns={"docno": "number"}), "must have the columns docno and text, it has number, text"),
        (TEXTS.rename(columns={"text": "body"}), "must have the columns docno and text, it has docno, body"),
        (TEXTS.assign(docno="d1"), "has docno 'd1' twice, with different texts"),
    ],
)
def test_parquet_files_without_texts(tmp_path: Path, frame: pd.DataFrame, what: str) -> None:
    frame.to_parquet(tmp_path / "texts.parquet")
    with pytest.raises(ValueError, match=what):
        ParquetText(tmp_path / "texts.parquet")(pd.DataFrame({"docno": ["d1"]}))


def test_a_file_in_the_way_of_the_copy(tmp_path: Path) -> None:
    TEXTS.to_parquet(tmp_path / "texts.parquet")
    (tmp_path / "texts.parquet.texts").write_text("mine")
    with pytest.raises(
        ValueError, match="must be free for texts that are mapped into memory, but it is something else"
    ):
        ParquetText(tmp_path / "texts.parquet")
    assert (tmp_path / "texts.parquet.texts").read_text() == "mine"
