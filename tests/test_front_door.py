"""Whatever a user has, every function takes it, and says the same of what it does not take."""

from __future__ import annotations

import inspect
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import tiny

from pyterrier_rankdistillm import (
    Distillation,
    DownloadError,
    FineTuning,
    MonoElectra,
    RankDistillmError,
    TrainingDataError,
    cli,
    reproduce,
    rerank_dataset,
    runs,
)
from pyterrier_rankdistillm.training import sampling
from pyterrier_rankdistillm.training.data import taught_data
from pyterrier_rankdistillm.training.lists import Lists
from pyterrier_rankdistillm.training.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::pyterrier_rankdistillm.TruncationWarning")

DEMO, PUBLISHED = "rankdistillm:demo", "rankdistillm:colbert"
SHORT: dict[str, Any] = {"steps": 1, "batch_size": 1, "depth": 5, "verbose": False, "query_length": 8, "doc_length": 30}


class Given(NamedTuple):
    """What a user has."""

    demo: Any
    topics: pd.DataFrame
    qrels: pd.DataFrame
    run: pd.DataFrame
    passages: pd.DataFrame
    model: MonoElectra
    folder: Path

    @property
    def bm25(self) -> pt.Transformer:
        return pt.Transformer.from_df(self.run)

    @property
    def with_text(self) -> pd.DataFrame:
        found: pd.DataFrame = (self.bm25 >> self.demo.text_loader())(self.topics)
        return found


@pytest.fixture(scope="module")
def has(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], tiny.Tiny]) -> Given:
    folder, demo = tmp_path_factory.mktemp("has"), pt.get_dataset(DEMO)
    topics, run = demo.get_topics().head(4), demo.get_results()
    run = run[run["rank"] < 6].reset_index(drop=True)
    passages = pd.DataFrame(list(demo.get_corpus_iter(verbose=False)))[["docno", "text"]]
    (folder / "passages.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in passages.to_dict("records")), encoding="utf-8"
    )
    passages.to_parquet(folder / "passages.parquet")
    runs.write(run, folder / "bm25.run.gz")
    topics.to_csv(folder / "topics.tsv", sep="\t", header=False, index=False)
    topics.to_parquet(folder / "topics.parquet")
    (folder / "topics.jsonl").write_text(topics.to_json(orient="records", lines=True), encoding="utf-8")
    qrels = demo.get_qrels()
    lines = qrels.assign(zero=0)[["qid", "zero", "docno", "label"]]
    lines.to_csv(folder / "qrels.txt", sep=" ", header=False, index=False)
    model = MonoElectra(checkpoint("lightning-ir-hub").folder)
    return Given(demo, topics, qrels, run, passages, model, folder)


@pytest.fixture(scope="module")
def value(has: Given) -> float:
    """What a reproduction gives, whatever form the data has."""
    return reproduced(has)


@pytest.fixture(scope="module")
def loss(has: Given) -> list[float]:
    """The losses of a training, whatever form the data has."""
    losses: list[float] = fit(has).training.log["loss"].tolist()
    return losses


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> Any:
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # downloads pause between tries


class Indexed:
    """As an index that keeps texts."""

    def text_loader(self, fields: Any = "*", *, verbose: bool = False) -> pt.Transformer:
        del fields, verbose
        return pt.get_dataset(DEMO).text_loader()


def texts(has: Given) -> dict[str, Any]:
    lines, columns = has.folder / "passages.jsonl", has.folder / "passages.parquet"
    return {
        "dataset": has.demo, "name": DEMO, "loader": has.demo.text_loader(), "frame": has.passages, "index": Indexed(),
        "JSON lines": lines, "JSON lines, str": str(lines), "Parquet": columns, "Parquet, str": str(columns),
    }  # fmt: skip


def topics(has: Given) -> dict[str, Any]:
    files = {name: has.folder / f"topics.{name}" for name in ("tsv", "parquet", "jsonl")}
    return {"frame": has.topics, **files, "tsv, str": str(files["tsv"]), "dataset": has.demo, "name": DEMO}


def qrels(has: Given) -> dict[str, Any]:
    file = has.folder / "qrels.txt"
    return {"frame": has.qrels, "file": file, "str": str(file), "dataset": has.demo, "name": DEMO}


def made(has: Given) -> Iterator[Path]:
    number = len(list(has.folder.glob("made*")))
    while True:
        yield has.folder / f"made{number}.run"
        number += 1


def fit(has: Given, **changes: Any) -> Any:
    given = {"topics": has.topics, "qrels": has.qrels, "run": has.folder / "bm25.run.gz", "text": has.demo, **changes}
    estimator = FineTuning(has.model, sample_size=2, on_unusable="skip", **SHORT)
    estimator.fit(given["topics"], given["qrels"], run=given["run"], text=given["text"])
    return estimator


def reproduced(has: Given, **changes: Any) -> float:
    given = {"topics": has.topics, "qrels": has.qrels, "first_stage": has.run, "text": has.demo, "depth": 3, **changes}
    systems = given.pop("systems", {"m": has.model})
    return float(reproduce(DEMO, systems, **given).cells["value"].iloc[-1])


def teacher_run(has: Given, **changes: Any) -> pd.DataFrame:
    given = {"teacher": pt.Transformer.identity(), "first_stage": has.bm25, "topics": has.topics, **changes}
    return runs.make_teacher_run(output=next(made(has)), depth=3, verbose=False, **given).read()


# --- every form, everywhere, with one outcome -------------------------------------------------------------------------

TEXTS = ("dataset", "name", "loader", "frame", "index", "JSON lines", "JSON lines, str", "Parquet", "Parquet, str")
TOPICS = ("frame", "tsv", "tsv, str", "jsonl", "parquet", "dataset", "name")
QRELS = ("frame", "file", "str", "dataset", "name")


@pytest.mark.parametrize("form", TEXTS)
def test_texts(has: Given, value: float, loss: list[float], form: str) -> None:
    given = texts(has)[form]
    expected = has.demo.text_loader()(has.run.head(3))["text"].tolist()
    assert runs.add_text(has.run.head(3), given)["text"].tolist() == expected
    assert reproduced(has, text=given) == value
    assert fit(has, text=given).training.log["loss"].tolist() == loss


@pytest.mark.parametrize("form", TOPICS)
def test_topics(has: Given, value: float, form: str) -> None:
    given = topics(has)[form]
    run = has.run[has.run["qid"].isin(has.topics["qid"])]
    bare = run.drop(columns="query", errors="ignore")
    assert set(runs.add_queries(bare, given)["query"]) == set(has.topics["query"])
    asked = teacher_run(has, topics=given)
    assert set(asked["qid"]) >= set(has.topics["qid"])
    fit(has, topics=given)
    if form not in ("dataset", "name"):  # which have more topics
        assert reproduced(has, topics=given) == value


@pytest.mark.parametrize("form", QRELS)
def test_qrels(has: Given, value: float, loss: list[float], form: str) -> None:
    given = qrels(has)[form]
    assert reproduced(has, qrels=given) == value
    assert fit(has, qrels=given).training.log["loss"].tolist() == loss


@pytest.mark.parametrize("form", ["frame", "file", "file, str", "demo"])
def test_runs(has: Given, value: float, form: str) -> None:
    file = has.folder / "bm25.run.gz"
    given = {"frame": has.run, "file": file, "file, str": str(file), "demo": DEMO}[form]
    read = runs.read(given)
    top = read[read["rank"] < 6].reset_index(drop=True)[["qid", "docno", "score", "rank"]]
    pd.testing.assert_frame_equal(top, runs.read(file), check_dtype=False)
    assert reproduced(has, first_stage=given) == value
    fit(has, run=given)
    expected = teacher_run(has)
    pd.testing.assert_frame_equal(teacher_run(has, first_stage=given), expected)
    Distillation(has.model, teacher=given, **SHORT).fit(has.with_text)


@pytest.mark.parametrize("system", ["re-ranker", "folder", "checkpoint", "estimator", "pipeline", "run", "run file"])
def test_systems_and_teachers(has: Given, system: str) -> None:
    given = {
        "re-ranker": has.model, "folder": has.model.model, "checkpoint": has.model.checkpoint,
        "estimator": fit(has), "pipeline": has.model % 100, "run": has.run, "run file": has.folder / "bm25.run.gz",
    }[system]  # fmt: skip
    assert 0 <= reproduced(has, systems={"x": given}) <= 1
    Distillation(has.model, teacher=given, **SHORT).fit(has.with_text)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("door", ["fit", "make_teacher_run", "read", "teacher", "fetched"])
def test_published_runs_are_downloaded_when_they_are_needed(
    has: Given, door: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path))
    calls: dict[str, Callable[[], Any]] = {
        "fit": lambda: fit(has, run=PUBLISHED),
        "make_teacher_run": lambda: teacher_run(has, first_stage=PUBLISHED),
        "read": lambda: runs.read(PUBLISHED),
        "teacher": lambda: Distillation(has.model, teacher=PUBLISHED, **SHORT).fit(has.with_text),
        "fetched": lambda: runs.Rankings.from_file(PUBLISHED),
    }
    with pytest.raises(DownloadError, match="could not be downloaded"):
        calls[door]()


NOTHING: dict[str, Callable[[Given], Any]] = {
    "read dataset=loader": lambda has: runs.read(has.folder / "bm25.run.gz", dataset=has.demo.text_loader()),
    "read dataset=frame": lambda has: runs.read(has.folder / "bm25.run.gz", dataset=has.passages),  # type: ignore[arg-type]
    "read dataset=JSON lines": lambda has: runs.read(
        has.folder / "bm25.run.gz", dataset=str(has.folder / "passages.jsonl")
    ),
    "read dataset=path": lambda has: runs.read(has.folder / "bm25.run.gz", dataset=has.folder / "passages.parquet"),  # type: ignore[arg-type]
    "read transformer": lambda has: runs.read(has.bm25),  # type: ignore[arg-type]
    "read list": lambda _: runs.read([1, 2]),  # type: ignore[arg-type]
    "fit run=transformer": lambda has: fit(has, run=has.bm25),
    "fit text=number": lambda has: fit(has, text=3),
    "fit topics=number": lambda has: fit(has, topics=3),
    "fit qrels=list": lambda has: fit(has, qrels=[1]),
    "fit of a path": lambda has: FineTuning(has.model, sample_size=2, **SHORT).fit(has.folder / "bm25.run.gz"),
    "reproduce a training run": lambda has: reproduced(has, first_stage=PUBLISHED),
    "reproduce text=number": lambda has: reproduced(has, text=3),
    "reproduce a list": lambda has: reproduced(has, systems={"x": [has.model]}),
    "a retriever as a teacher": lambda has: Distillation(has.model, teacher=has.bm25, **SHORT).fit(has.with_text),
    "teachers in a list": lambda has: Distillation(has.model, teacher=[has.model], **SHORT),  # type: ignore[arg-type]
    "a pipeline as a student": lambda has: FineTuning(has.bm25 >> has.model, **SHORT),  # type: ignore[arg-type]
    "a number as a student": lambda _: Distillation(3, **SHORT),  # type: ignore[arg-type]
    "make a run of a run": lambda has: teacher_run(has, teacher=has.run),
    "rerank_dataset a number": lambda has: rerank_dataset(3, has.model, next(made(has)), text=DEMO),
}


@pytest.mark.parametrize("call", NOTHING.values(), ids=NOTHING)
@pytest.mark.usefixtures("offline")
def test_what_cannot_mean_anything_is_refused_with_what_is_accepted(
    has: Given, call: Callable[[Given], Any], request: pytest.FixtureRequest
) -> None:
    if "rerank_dataset" in str(call.__code__.co_names):
        request.getfixturevalue("cluster")
    with pytest.raises((TypeError, RankDistillmError), match=r"must be|accept"):
        call(has)


def test_a_missing_file_is_told_in_one_way_everywhere(has: Given) -> None:
    for call in (
        lambda: runs.read("no.run.gz"),
        lambda: fit(has, run="no.run.gz"),
        lambda: reproduced(has, first_stage="no.run.gz"),
        lambda: teacher_run(has, first_stage="no.run.gz"),
        lambda: Distillation(has.model, teacher="no.run.gz", **SHORT),
        lambda: runs.add_text(has.run, "no.jsonl"),
        lambda: runs.add_queries(has.run, Path("no.tsv")),
        lambda: fit(has, qrels="no.qrels"),
    ):
        with pytest.raises(FileNotFoundError, match=r"^\w+: \w+ must be .*the file no\.[a-z.]+ is not there"):
            call()


# --- ids, ranks and scores --------------------------------------------------------------------------------------------


def numbered(has: Given) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Results, qrels, topics and texts with whole numbers as ids."""
    ids = {qid: number for number, qid in enumerate(has.topics["qid"])}
    docs = {docno: number for number, docno in enumerate(sorted(has.passages["docno"]))}
    frame, judged = has.with_text, has.qrels[has.qrels["qid"].isin(ids)]

    def both(f: pd.DataFrame) -> pd.DataFrame:
        changed = f.assign(qid=f["qid"].map(ids)) if "qid" in f else f
        return changed.assign(docno=changed["docno"].map(docs)) if "docno" in f else changed

    return both(frame), both(judged), both(has.topics), both(has.passages)


def test_whole_numbers_as_ids_train_as_their_strings_do(has: Given) -> None:
    frame, judged, asked, passages = numbered(has)
    losses = []
    for as_ids in (lambda f: f, lambda f: f.astype({n: str for n in ("qid", "docno") if n in f})):
        given = [as_ids(f) for f in (frame, judged, asked, passages)]
        tuned = FineTuning(has.model, sample_size=2, on_unusable="skip", **SHORT)
        tuned.fit(given[0], given[1])
        distilled = Distillation(has.model, teacher=given[0][["qid", "docno", "score"]], **SHORT)
        distilled.fit(given[0])
        from_run = Distillation(has.model, **SHORT)
        from_run.fit(given[2], run=given[0][["qid", "docno", "score"]], text=given[3])
        losses.append([e.training.log["loss"].tolist() for e in (tuned, distilled, from_run)])
    assert losses[0] == losses[1]


def test_ids_of_mixed_kinds_agree(has: Given) -> None:
    frame, judged, *_ = numbered(has)
    tuned = FineTuning(has.model, sample_size=2, **SHORT | {"on_unusable": "skip"})
    tuned.fit(frame.astype({"qid": str}), judged)  # qids as strings here, as numbers there
    assert tuned.training.queries > 0
    with pytest.raises(TrainingDataError, match="must have strings or whole numbers as qid, but one is not a string"):
        tuned.fit(frame.assign(qid=frame["qid"] + 0.5), judged)


@pytest.mark.parametrize("number", [np.int64(5), np.int32(5)])
def test_whole_numbers_of_numpy(has: Given, number: Any) -> None:
    assert len(runs.subsample(has.run, depth=number)) == len(runs.subsample(has.run, depth=5))
    Distillation(has.model, **SHORT | {"depth": number}).fit(has.with_text)
    assert reproduced(has, depth=number) == reproduced(has, depth=5)
    assert MonoElectra(has.model.model, batch_tokens=number).batch_tokens == 5
    teacher_run(has, seed=number)
    with pytest.raises(ValueError, match="depth must be None or at least 1, got True"):
        runs.subsample(has.run, depth=True)


def stale(has: Given) -> pd.DataFrame:
    """Scores that were replaced, with the old ranks."""
    frame = has.with_text
    return frame.assign(score=3.0 * frame["rank"])


def test_a_run_whose_ranks_contradict_its_scores_is_not_learnt(has: Given, tmp_path: Path) -> None:
    frame = stale(has)
    run = frame[["qid", "docno", "score", "rank"]]
    runs.write(run, tmp_path / "stale.run")
    for call in (
        lambda: Distillation(has.model, **SHORT).fit(frame),
        lambda: FineTuning(has.model, sample_size=2, **SHORT).fit(frame, has.qrels),
        lambda: Distillation(has.model, teacher=run, **SHORT).fit(has.with_text),
        lambda: Distillation(has.model, **SHORT).fit(has.topics, run=run, text=has.demo),
        lambda: Distillation(has.model, **SHORT).fit(has.topics, run=tmp_path / "stale.run", text=has.demo),
        lambda: reproduced(has, first_stage=run),
        lambda: reproduced(has, systems={"x": run}),
        lambda: reproduced(has, systems={"x": tmp_path / "stale.run"}),
    ):
        with pytest.raises(ValueError, match=r"contradict its scores .*first qid '\w+'.*order='rank'.*order='score'"):
            call()


def test_what_counts_can_be_said(has: Given) -> None:
    run = stale(has)[["qid", "docno", "score", "rank"]]
    by_score, by_rank = runs.read(run, order="score"), runs.read(run, order="rank")
    first = {order: frame[frame["rank"] == 0].set_index("qid")["docno"] for order, frame in
             (("score", by_score), ("rank", by_rank))}  # fmt: skip
    worst = run.loc[run.groupby("qid")["rank"].idxmax()].set_index("qid")["docno"]
    best = run.loc[run.groupby("qid")["rank"].idxmin()].set_index("qid")["docno"]
    assert first["score"].to_dict() == worst.to_dict()
    assert first["rank"].to_dict() == best.to_dict()
    assert "score" not in by_rank
    for taught in (by_score, by_rank):
        Distillation(has.model, teacher=taught, **SHORT).fit(has.with_text)
    with pytest.raises(TrainingDataError, match="targets of margin_mse must be scores, got an order"):
        Distillation(has.model, teacher=by_rank, **SHORT | {"loss": "margin_mse"}).fit(has.with_text)


def test_equal_scores_of_a_teacher_are_ties(has: Given) -> None:
    one = has.with_text[has.with_text["qid"] == has.topics["qid"].iloc[0]].head(5).drop(columns="rank")
    settings = Settings.of("distill", steps=1, batch_size=1)
    for scores, order in (([1.0, 1.0, 0.0, 0.0, 0.0], [0, 0, -1, -1, -1]), ([1.0] * 5, [0] * 5),
                          ([5.0, 4.0, 3.0, 2.0, 1.0], [0, -1, -2, -3, -4])):  # fmt: skip
        data = taught_data("x", settings, one.assign(score=scores), None).data
        lists = Lists(data, has.model.checkpoint.tokenizer, sampling.Sampling(), total=1, seed=42)
        assert lists[0].targets["order"].tolist() == order
    equal = Distillation(has.model, **SHORT | {"loss": "ranknet"})
    equal.fit(one.assign(score=1.0))
    assert equal.training.log["loss"].tolist() == [0.0]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "jsonl.gz"])
@pytest.mark.parametrize("columns", [["qid", "docno", "docid", "score"], ["qid", "docid", "docno", "score"],
                                     ["docid", "query_id", "qid", "score", "doc_id", "docno"]])  # fmt: skip
def test_terriers_own_columns_survive(tmp_path: Path, suffix: str, columns: list[str]) -> None:
    run = pd.DataFrame({"qid": ["1", "1"], "docno": ["0", "1"], "docid": [1, 0], "score": [2.0, 1.0],
                        "query_id": ["8", "9"], "doc_id": ["x", "y"]})[columns]  # fmt: skip
    runs.write(run, tmp_path / f"r.{suffix}")
    read = runs.read(tmp_path / f"r.{suffix}")
    assert read[["qid", "docno", "score"]].to_numpy().tolist() == [["1", "0", 2.0], ["1", "1", 1.0]]
    assert read["docid"].tolist() == [1, 0]
    assert runs.Rankings.from_file(tmp_path / f"r.{suffix}")[0].docnos == ["0", "1"]


def test_a_byte_order_mark_quotes_and_na_are_read_right(has: Given, tmp_path: Path) -> None:
    rows = [('"a b', "NA"), ("NA", 'why "bread" rises'), ("3", "NaN")]
    path = tmp_path / "t.tsv"
    path.write_text("".join(f"{q}\t{x}\n" for q, x in rows) + "\n", "utf-8-sig")
    run = pd.DataFrame({"qid": [q for q, _ in rows], "docno": "d", "score": 1.0})
    assert runs.add_queries(run, path)["query"].tolist() == [x for _, x in rows]
    judged = tmp_path / "q.txt"
    judged.write_text('NA 0 "d"_(album) 1\nNA 0 NA 0\n\n', "utf-8-sig")
    two = pd.DataFrame({"qid": "NA", "docno": ["NA", '"d"_(album)'], "score": [2.0, 1.0]})
    value = reproduce(
        DEMO, {}, first_stage=two, topics=pd.DataFrame({"qid": ["NA"], "query": ["x"]}), qrels=judged
    ).cells["value"]
    assert value.tolist() == pytest.approx([1 / np.log2(3)])
    lines = tmp_path / "p.jsonl"
    lines.write_text("".join(json.dumps(r) + "\n" for r in has.passages.to_dict("records")) + "\n \n", "utf-8-sig")
    assert reproduced(has, text=lines) == reproduced(has)


MALFORMED = {
    "a topic without a tab": ("t.tsv", "1\tx\n2 y\n", r"t.tsv, line 2: topics are lines of qid, tab, query"),
    "one qid, two queries": ("t.tsv", "1\tx\n1\ty\n", r"line 2: qid '1' comes a second time, with another query"),
    "no queries": ("t.tsv", "\n", "t.tsv has no topics"),
    "a label that is none": ("q.txt", "1 0 a 1\n1 0 b x\n", r"line 2: the label must be a whole number, got 'x'"),
    "BEIR's header": ("q.txt", "query-id\tcorpus-id\tscore\n", r"q.txt, line 1: 3 fields, TREC judgments have 4"),
    "judged twice": ("q.txt", "1 0 a 1\n1 0 a 0\n", r"line 2: docno 'a' is judged 0 for qid '1', and 1 in line 1"),
    "no JSON": ("p.jsonl", '{"docno": "a", "text": "x"}\n{"docno"\n', r"p.jsonl, line 2: not valid JSON"),
    "no text": ("p.jsonl", '{"docno": "a"}\n', r"p.jsonl, line 1: text is missing"),
    "half an emoji": ("p.jsonl", '{"docno": "a", "text": "\\ud83d"}\n', r"text of docno 'a' is not valid Unicode"),
    "another encoding": ("t.tsv", "1\tcaf\xe9\n", r"t.tsv, line 1: not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_files_are_errors_with_file_and_line(
    has: Given, tmp_path: Path, name: str, content: str, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1"))
    argument = {"t.tsv": "topics", "q.txt": "qrels", "p.jsonl": "text"}[name]
    for call in (lambda: reproduced(has, **{argument: path}), lambda: fit(has, **{argument: path})):
        with pytest.raises(runs.DataFileError, match=said):
            call()


def test_conflicts_in_frames_are_errors(has: Given) -> None:
    two = pd.concat([has.topics, has.topics.assign(query="something else")])
    both = pd.concat([has.qrels, has.qrels.assign(label=0)])
    agreeing = pd.concat([has.qrels, has.qrels])
    for call, said in (
        (lambda: runs.add_queries(has.run, two), r"two queries for qid 'q01'"),
        (lambda: reproduced(has, topics=two), r"two queries for qid 'q01'"),
        (lambda: fit(has, topics=two), r"two queries for qid 'q01'"),
        (lambda: reproduced(has, qrels=both), r"judge docno '\w+' twice for qid '\w+'"),
        (lambda: fit(has, qrels=both), r"judge docno '\w+' twice for qid '\w+'"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    assert reproduced(has, qrels=agreeing) == reproduced(has)


HALF = json.loads('"bread \\ud83d rises"')


@pytest.mark.parametrize("column", ["text", "query", "docno", "qid"])
def test_a_lone_surrogate_is_told_before_any_work(has: Given, column: str) -> None:
    frame = has.with_text.astype(dict.fromkeys(("qid", "docno", "query", "text"), object))
    odd = frame.assign(**{column: pd.Series([HALF, *frame[column].iloc[1:]], index=frame.index, dtype=object)})
    with pytest.raises(ValueError, match=r"lone surrogate"):
        has.model(odd)
    with pytest.raises(ValueError, match=r"lone surrogate|have no text"):
        Distillation(has.model, **SHORT).fit(odd)


# --- what is given reaches where it is needed -------------------------------------------------------------------------


def test_the_teacher_gets_the_texts_too(has: Given) -> None:
    Distillation(has.model, teacher=has.model, text=has.demo, **SHORT).fit(has.bm25(has.topics))


def test_a_student_reranks_with_the_texts_that_it_was_fitted_with(has: Given) -> None:
    estimator = FineTuning(has.model, sample_size=2, text=has.demo, on_unusable="skip", **SHORT)
    (has.bm25 >> estimator).fit(has.topics, has.qrels)
    bare = (has.bm25 >> estimator)(has.topics)
    pd.testing.assert_frame_equal(bare[["qid", "docno", "score"]], estimator(has.with_text)[["qid", "docno", "score"]])


def test_a_topic_without_a_query_is_told_well_with_a_run_too(has: Given) -> None:
    with pytest.raises(TrainingDataError, match=r"4 of \d+ queries have no query text|have no query text"):
        FineTuning(has.model, sample_size=2, **SHORT).fit(
            has.topics.assign(query=np.nan), has.qrels, run=has.folder / "bm25.run.gz", text=has.demo
        )


def test_texts_that_a_loader_lacks_are_told_with_qid_and_docno(has: Given) -> None:
    gone = has.run[has.run["qid"] == "q01"]["docno"].iloc[0]
    some = has.passages[has.passages["docno"] != gone]
    run = has.run[has.run["qid"].isin(has.topics["qid"])][["qid", "docno", "score"]]
    every = {**SHORT, "steps": 2, "batch_size": len(has.topics)}
    with pytest.raises(TrainingDataError, match=rf"no text of docno '{gone}', which is in the list of qid"):
        Distillation(has.model, **every).fit(has.topics, run=run, text=some)
    skipping = Distillation(has.model, on_unusable="skip", **every)
    skipping.fit(has.topics, run=run, text=some)
    assert skipping.training.steps == 2


def test_finished_runs_are_restricted_to_the_first_stages_top() -> None:
    rng = np.random.default_rng(0)
    qids = [str(q) for q in range(1, 21)]
    stage = pd.concat([pd.DataFrame({"qid": q, "docno": [f"d{i}" for i in range(300)],
                                     "score": np.linspace(100, 1, 300)}) for q in qids])  # fmt: skip
    stage["rank"] = stage.groupby("qid").cumcount()
    deep = stage.assign(score=rng.normal(size=len(stage))).drop(columns="rank")
    judged = pd.DataFrame([(q, f"d{i}", int(rng.integers(0, 3))) for q in qids
                           for i in rng.choice(300, 60, replace=False)], columns=["qid", "docno", "label"])  # fmt: skip
    cut = deep.merge(stage[stage["rank"] < 100][["qid", "docno"]], on=["qid", "docno"])
    given: dict[str, Any] = {
        "first_stage": {"vaswani": stage}, "topics": {"vaswani": pd.DataFrame({"qid": qids, "query": "q"})},
        "qrels": {"vaswani": judged}, "mode": "as_published",
    }  # fmt: skip
    whole, by_hand = (reproduce("tirex", {"webis/monoelectra-base": run}, **given) for run in (deep, cut))
    assert whole.cells["value"].tolist() == by_hand.cells["value"].tolist()
    assert any("4000 of the 6000 rows of its run are not among what the first stage found" in n for n in whole.notes)


# --- the command line -------------------------------------------------------------------------------------------------


def test_every_command_takes_files(has: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {n: str(has.folder / f) for n, f in (("topics", "topics.tsv"), ("qrels", "qrels.txt"),
                                                 ("text", "passages.jsonl"))}  # fmt: skip
    run = tmp_path / "bm25.run.gz"
    runs.write(has.run[has.run["qid"].isin(has.topics["qid"])], run)
    model = str(has.model.model)
    topics_text = ["--topics", files["topics"], "--text", files["text"]]
    short = ["--steps", "1", "--batch-size", "1", "--no-verbose", "--on-unusable", "skip",
             "--query-length", "8", "--doc-length", "30", "--depth", "5"]  # fmt: skip
    assert cli.main(["rerank", str(run), str(tmp_path / "out.run"), "--model", model, *topics_text]) == 0
    expected = has.model(has.with_text)
    written = runs.read(tmp_path / "out.run").merge(expected, on=["qid", "docno"])
    assert len(written) == len(expected)
    np.testing.assert_allclose(written["score_x"], written["score_y"], atol=1e-5)
    assert cli.main(["distill", model, str(run), str(tmp_path / "d"), *topics_text, *short]) == 0
    labels = ["--qrels", files["qrels"], "--sample-size", "2"]
    assert cli.main(["finetune", model, str(run), str(tmp_path / "f"), *topics_text, *labels, *short]) == 0
    command = ["reproduce", DEMO, "--first-stage", str(run), "--system", f"m={model}", "--depth", "3"]
    assert cli.main([*command, *topics_text, "--qrels", files["qrels"]]) == 3
    capsys.readouterr()


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["rerank", "a.run", "b.run", "--dev", "cpu"], ["distill", "m", "r", "o", "--step", "1"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("all sources failed"), TypeError("odd"), RecursionError("deep"),
                                   MemoryError()])  # fmt: skip
def test_any_error_is_a_message_and_no_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "_demo", fails)
    assert cli.main(["demo"]) == 1
    said = capsys.readouterr().err
    assert said == f"rankdistillm demo: {str(error) or type(error).__name__}\n"
    assert cli.main(["demo", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_demo", stopped)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "rankdistillm demo: stopped.\n"


def test_targets_are_tried_before_the_work(
    has: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scored(*_: Any, **__: Any) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(MonoElectra, "transform", scored)
    run, model = tmp_path / "bm25.run", str(has.model.model)
    runs.write(has.run, run)
    (tmp_path / "folder.run.gz").mkdir()
    (tmp_path / "file").write_text("")
    for output in ("folder.run.gz", "file/out.run", "x" * 242 + ".run", "out.nothing"):
        arguments = ["rerank", str(run), str(tmp_path / output), "--model", model, "--dataset", DEMO]
        assert cli.main(arguments) == 1, output
        assert "the work has begun" not in capsys.readouterr().err
    spaced = has.run.assign(docno=has.run["docno"] + " b")
    runs.write(spaced, tmp_path / "spaced.jsonl")
    assert cli.main(["rerank", str(tmp_path / "spaced.jsonl"), str(tmp_path / "o.run"), "--model", model,
                     "--dataset", DEMO]) == 1  # fmt: skip
    assert "has white space, which separates the fields of a TREC file" in capsys.readouterr().err
    command = ["reproduce", DEMO, "--first-stage", str(run), "--html", str(tmp_path / "file" / "x.html")]
    assert cli.main(command) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bm25.run", "file", "folder.run.gz", "spaced.jsonl"]


def test_ids_that_only_unicode_calls_spaced_are_written(tmp_path: Path) -> None:
    run = pd.DataFrame({"qid": ["q\u00a01"], "docno": ["d\u30001"], "score": [1.0]})
    runs.write(run, tmp_path / "r.run")
    assert runs.read(tmp_path / "r.run")[["qid", "docno"]].to_numpy().tolist() == [["q\u00a01", "d\u30001"]]


# --- estimators as PyTerrier sees them --------------------------------------------------------------------------------


def test_inspection_sees_student_teacher_and_settings(has: Given) -> None:
    distillation = Distillation(has.model, teacher=has.model, steps=1, verbose=False)
    seen = {a.name: a.value for a in pt.inspect.transformer_attributes(distillation)}
    assert seen["student"] is has.model
    assert seen["teacher"] is has.model
    assert (seen["steps"], seen["recipe"]) == (1, None)
    assert set(pt.inspect.subtransformers(distillation)) == {"student", "teacher"}
    other = pt.inspect.transformer_apply_attributes(distillation, text=has.demo, learning_rate=1e-4)
    assert (other.text, other.settings.learning_rate, other.settings.steps) == (has.demo, 1e-4, 1)


def test_a_changed_setting_makes_an_estimator_unfitted(has: Given) -> None:
    estimator = fit(has)
    estimator.set_parameter("learning_rate", 1e-4)
    assert estimator.get_parameter("learning_rate") == 1e-4
    with pytest.raises(RuntimeError, match="Call fit first"):
        _ = estimator.reranker
    with pytest.raises(ValueError, match=r"there is no setting 'lr'\. Did you mean learning_rate"):
        estimator.set_parameter("lr", 1e-4)


@pytest.mark.parametrize("loader", ["demo", "frame", "dataset"])
def test_pipelines_with_our_loaders_are_drawn_without_the_collection(
    has: Given, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyterrier.documentation.objects_inv", dict)
    texts_from = {
        "demo": has.demo.text_loader(), "dataset": runs.text_loader("vaswani"),
        "frame": runs.FrameText({"a": "some text"}, "a frame"),
    }[loader]  # fmt: skip
    drawn = (has.bm25 >> texts_from >> has.model)._repr_html_()
    assert drawn is not None
    assert len(drawn) < 40_000
    assert has.passages["text"].iloc[0] not in drawn


@pytest.mark.parametrize(("name", "ours"), [("batch_size", "batch_tokens"), ("max_length", "doc_length")])
def test_habits_from_elsewhere_are_answered_with_our_names(name: str, ours: str) -> None:
    with pytest.raises(TypeError, match=rf"MonoElectraReRanker: there is no {name}, .*Give {ours}"):
        MonoElectra("rankdistillm:demo", **{name: 8})
    assert list(inspect.signature(MonoElectra.__init__).parameters)[1:3] == ["model", "revision"]


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Distillation. no validation was better")
def test_a_trained_checkpoint_says_what_made_it(has: Given, tmp_path: Path) -> None:
    settings = {**SHORT, "steps": 2, "valid_every": 1}
    student = Distillation(has.model, teacher=has.folder / "bm25.run.gz", **settings)
    student.fit(has.with_text, None, has.with_text, has.qrels)
    folder = student.reranker.save(tmp_path / "student")
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    assert record["settings"]["loss"] == "ranknet"
    assert record["data"] == {"teacher": "bm25.run.gz", "rankings": "a frame", "texts": "the frame"}
    assert record["training"]["validation"]["measure"] == "nDCG@10"
    assert record["models"]["student"]["model"] == Path(str(has.model.model)).name
    assert {"by", "settings", "models", "data", "versions", "hardware"} <= record.keys()
    assert {"torch", "transformers", "python"} <= record["versions"].keys()
    card = (folder / "README.md").read_text(encoding="utf-8")
    header, body = card.split("---\n", 2)[1:]
    yaml = pytest.importorskip("yaml")
    index = yaml.safe_load(header)["model-index"][0]["results"][0]
    assert index["metrics"][0]["name"] == "nDCG@10"
    assert "| teacher | bm25.run.gz |" in body
    for text in (card, json.dumps(record)):
        assert str(has.folder) not in text
        assert str(has.model.model) not in text
    again = MonoElectra(folder)
    assert again.checkpoint.record == record
    second = FineTuning(again, sample_size=2, on_unusable="skip", **SHORT)
    second.fit(has.with_text, has.qrels)
    assert second.reranker.checkpoint.record is not None
    assert second.reranker.checkpoint.record["student's record"] == record
