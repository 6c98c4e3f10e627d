"""What cannot be trained on is told before training, all at once, with counts and examples."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import tiny
import toy

from pyterrier_rankdistillm import Distillation, runs
from pyterrier_rankdistillm.errors import TeacherWarning
from pyterrier_rankdistillm.runs.given import run_of
from pyterrier_rankdistillm.training.data import (
    Sourced,
    TrainingDataError,
    labelled_data,
    taught_data,
)
from pyterrier_rankdistillm.training.settings import Settings

RUN, QRELS = toy.RUN, toy.QRELS
QIDS = list(toy.QUERIES)


def labelled(
    inp: pd.DataFrame | None = RUN, qrels: pd.DataFrame | None = QRELS, *, given: Any = None, **settings: Any
) -> Sourced:
    made = Settings.of("finetune", **{"steps": 1, **settings})
    return labelled_data("FineTuning", made, inp, qrels, **given or {})


def taught(
    inp: pd.DataFrame | None = RUN, qrels: pd.DataFrame | None = None, *, given: Any = None, **settings: Any
) -> Sourced:
    made = Settings.of("distill", **{"steps": 1, "verbose": False, **settings})
    return taught_data("Distillation", made, inp, qrels, **given or {})


def without(frame: pd.DataFrame, **where: str) -> pd.DataFrame:
    keep = np.ones(len(frame), dtype=bool)
    for column, value in where.items():
        keep &= (frame[column] == value).to_numpy()
    return frame[~keep].reset_index(drop=True)


def members(sourced: Sourced) -> list[str]:
    return [sourced.data.rankings.qids[int(position)] for position in sourced.data.members]


def plain(sourced: Sourced) -> dict[str, list[str]]:
    return {one.qid: one.docnos for one in sourced.data.rankings}


# --- what is there ---


@pytest.mark.parametrize("source", [labelled, taught])
def test_all_queries_of_a_good_run(source: Callable[..., Sourced]) -> None:
    found = source()
    assert members(found) == QIDS
    assert found.left_out == {}
    assert plain(found) == {qid: docnos.tolist() for qid, docnos in RUN.groupby("qid")["docno"]}
    assert found.data.queries == toy.QUERIES
    assert found.data.texts.of(["d03"] if "d03" in set(RUN["docno"]) else [RUN["docno"][0]])


def test_labels_of_other_queries_and_of_texts_that_cannot_be_had_are_left_out() -> None:
    more = pd.DataFrame({"qid": ["q0", "q0", "q9"], "docno": ["elsewhere", "nowhere", "d01"], "label": [1, 0, 1]})
    qrels = pd.concat([QRELS, more])
    relevance = labelled(qrels=qrels).data.relevance
    assert set(relevance) == set(QIDS)
    assert "elsewhere" not in relevance["q0"]
    assert relevance["q0"]["nowhere"] == 0  # it is not relevant, so it is never drawn from the labels
    loader = toy.Texts({**toy.TEXTS, "elsewhere": "the cat"})
    assert labelled(qrels=qrels, given={"text": loader}).data.relevance["q0"]["elsewhere"] == 1


# --- what is missing ---

BAD_FRAMES: list[tuple[Any, dict[str, Any], list[str]]] = [
    (None, {}, ["There are no documents: give the first stage's results, or run= and text=."]),
    (RUN[:0], {}, ["There are no documents"]),
    (toy.TOPICS, {}, ["no column docno, but qid, query. Fit a pipeline", "neither rank nor score", "no column 'text'"]),
    (RUN.drop(columns=["query", "text"]), {}, ["no column query, but", "no column 'text'. Put `>> dataset.text_lo"]),
    (RUN.drop(columns=["rank", "score"]), {}, ["The frame has neither rank nor score, so nothing is ranked."]),
    (RUN.assign(text=RUN["text"].where(RUN["rank"] > 0, None), docno=RUN["qid"] + RUN["docno"]), {},
     [f"8 of 48 rows have no text, the first docno 'q0{RUN['docno'][0]}'"]),
    (pd.concat([RUN, RUN[:1]]), {}, ["q0", "twice"]),
    (RUN.assign(score="high"), {}, ["score must hold numbers"]),
    (RUN.assign(score=np.nan), {}, ["score"]),
    (toy.TOPICS, {"run": RUN[["qid", "docno", "score"]]},
     ["With run=, texts are needed: give text=, a text loader or a dataset."]),
]  # fmt: skip


@pytest.mark.parametrize(("inp", "given", "complaints"), BAD_FRAMES, ids=range(len(BAD_FRAMES)))
@pytest.mark.parametrize("source", [labelled, taught])
def test_bad_frames(source: Callable[..., Sourced], inp: Any, given: dict[str, Any], complaints: list[str]) -> None:
    who = {labelled: "FineTuning", taught: "Distillation"}[source]
    for on_unusable in ("error", "skip"):
        with pytest.raises(TrainingDataError, match=f"^{who}: the training data cannot be used. ") as caught:
            source(inp, given=given, on_unusable=on_unusable)
        for complaint in complaints:
            assert complaint in str(caught.value)


def test_bad_labels_are_told_with_a_bad_frame() -> None:
    with pytest.raises(TrainingDataError) as caught:
        labelled(RUN.drop(columns="text"), None)
    assert "no column 'text'" in str(caught.value)
    assert "There are no relevance labels: give qrels with the columns qid, docno and label." in str(caught.value)
    with pytest.raises(
        TrainingDataError, match="qrels must have the columns qid, docno, label, got no docno, label, but qid, rel"
    ):
        labelled(RUN, pd.DataFrame({"qid": ["q0"], "rel": [1]}))
    with pytest.raises(TrainingDataError, match="There are no relevance labels"):
        taught(RUN, None, loss="lambdarank")


# --- queries that cannot be used ---


@pytest.fixture
def spoilt() -> tuple[pd.DataFrame, pd.DataFrame]:
    """No query text: q0, q1; no label: q2; nothing relevant: q3; nothing else: q4; nothing relevant retrieved: q5."""
    run = RUN.assign(query=RUN["query"].where(~RUN["qid"].isin(["q0", "q1"]), None))
    only = QRELS.loc[(QRELS["qid"] == "q4") & (QRELS["label"] > 0), "docno"]
    run = run[(run["qid"] != "q4") | run["docno"].isin(only)].reset_index(drop=True)
    labels = QRELS["label"].where(QRELS["qid"] != "q3", 0)
    qrels = without(QRELS.assign(label=labels), qid="q2")
    qrels.loc[(qrels["qid"] == "q5") & (qrels["label"] > 0), "docno"] = ["away", "far"]
    return run, qrels


def test_unusable_queries_are_told_at_once_with_counts_and_examples(spoilt: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    with pytest.raises(TrainingDataError) as caught:
        labelled(*spoilt, add_relevant=False, given={"text": toy.Texts()})
    said = str(caught.value)
    for complaint in (
        "2 of 8 queries have no query text ('q0', 'q1').",
        "2 of 8 queries have no relevant document ('q2', 'q3').",
        "1 of 8 queries have no document that is not relevant ('q4').",
        "1 of 8 queries have no relevant document that was retrieved ('q5').",
        "Correct the data, or leave such queries out with on_unusable='skip'.",
    ):
        assert complaint in said


def test_unusable_queries_are_left_out_only_if_told_so_and_counted(spoilt: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    found = labelled(*spoilt, add_relevant=False, on_unusable="skip", given={"text": toy.Texts()})
    assert members(found) == ["q6", "q7"]
    assert found.left_out == {
        "have no query text": 2,
        "have no relevant document": 2,
        "have no document that is not relevant": 1,
        "have no relevant document that was retrieved": 1,
    }
    loader = toy.Texts({**toy.TEXTS, "away": "the cat", "far": "the mat"})
    added = labelled(*spoilt, add_relevant=True, on_unusable="skip", given={"text": loader})
    assert members(added) == ["q5", "q6", "q7"]


def test_relevant_documents_are_added_only_where_their_text_can_be_had(
    spoilt: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    found = labelled(*spoilt, add_relevant=True, on_unusable="skip")
    assert members(found) == ["q6", "q7"]
    assert found.left_out["have no relevant document"] == 3  # q5's have no text


def test_more_than_three_examples_are_cut() -> None:
    with pytest.raises(TrainingDataError, match=r"7 of 8 queries have no relevant .*\('q1', 'q2', 'q3', \.\.\.\)"):
        labelled(RUN, QRELS[QRELS["qid"] == "q0"])


@pytest.mark.parametrize("on_unusable", ["error", "skip"])
def test_no_query_is_left(on_unusable: str) -> None:
    with pytest.raises(TrainingDataError, match=r"8 of 8 queries have no relevant document .*No query is left\."):
        labelled(RUN, QRELS[:0], on_unusable=on_unusable)


# --- teachers ---


class Reversing(pt.Transformer):
    """A teacher that turns rankings round; asked for some qids it leaves out a document."""

    def __init__(self, leaves_out: str = "") -> None:
        self.leaves_out = leaves_out
        self.asked: list[int] = []

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        self.asked.append(len(inp))
        out = pt.model.add_ranks(inp.drop(columns="rank").assign(score=-inp["score"].to_numpy()))
        return out[~((out["qid"] == self.leaves_out) & (out["rank"] == 0))]


TEACHER = RUN[["qid", "docno"]].assign(score=-RUN["score"], rank=5 - RUN["rank"])
REVERSED = {qid: docnos.tolist()[::-1] for qid, docnos in RUN.groupby("qid")["docno"]}


@pytest.mark.parametrize("kind", ["transformer", "frame", "ranks", "scores", "trec", "parquet"])
@pytest.mark.parametrize("depth", [4, 100, None])
def test_teachers(tmp_path: Path, kind: str, depth: int | None) -> None:
    teacher: Any = {
        "transformer": Reversing(),
        "frame": TEACHER.sample(frac=1, random_state=0),
        "ranks": TEACHER.drop(columns="score"),
        "scores": TEACHER.drop(columns="rank"),
        "trec": tmp_path / "teacher.run.gz",
        "parquet": str(tmp_path / "teacher.parquet"),
    }[kind]
    if kind in ("trec", "parquet"):
        runs.write(TEACHER, teacher)
    found = taught(given={"teacher": teacher}, depth=depth)
    assert plain(found) == {qid: docnos[-(depth or 100) :] for qid, docnos in REVERSED.items()}
    assert sorted(members(found)) == QIDS
    assert found.data.rankings.has_scores == (kind != "ranks")


def test_the_documents_of_a_teachers_file_are_the_candidates_where_there_are_only_topics(tmp_path: Path) -> None:
    runs.write(TEACHER, tmp_path / "teacher.run")
    by_teacher = taught(toy.TOPICS, given={"teacher": tmp_path / "teacher.run", "text": toy.Texts()})
    assert plain(by_teacher) == REVERSED
    by_run = taught(toy.TOPICS, given={"run": tmp_path / "teacher.run", "text": toy.Texts()})
    assert plain(by_run) == REVERSED
    assert by_run.data.queries == toy.QUERIES


def test_what_a_teacher_did_not_rank() -> None:
    teacher = without(without(TEACHER, qid="q3"), qid="q5", docno=RUN["docno"][31])
    with pytest.raises(TrainingDataError) as caught:
        taught(given={"teacher": teacher})
    for complaint in (
        "1 of 8 queries are not in the teacher's run ('q3').",
        "1 of 8 queries have documents that the teacher did not rank (its run may be shallower: set depth) ('q5').",
        "Correct the data, or leave such queries out with on_unusable='skip'.",
    ):
        assert complaint in str(caught.value)
    found = taught(given={"teacher": teacher}, on_unusable="skip")
    assert members(found) == [qid for qid in QIDS if qid not in ("q3", "q5")]
    assert sum(found.left_out.values()) == 2
    with pytest.raises(TrainingDataError, match=r"8 of 8 queries are not in the teacher's run .*No query is left"):
        taught(given={"teacher": TEACHER.assign(qid="x" + TEACHER["qid"])}, on_unusable="skip")


def test_a_shallower_teacher_fits_a_shallower_depth() -> None:
    teacher = TEACHER[TEACHER["rank"] > 2]  # of the first stage's top three
    with pytest.raises(TrainingDataError, match="8 of 8 queries have documents that the teacher did not rank"):
        taught(given={"teacher": teacher})
    assert plain(taught(given={"teacher": teacher}, depth=3)) == {q: d[-3:] for q, d in REVERSED.items()}


def test_a_teacher_that_ranks_faultily() -> None:
    with pytest.raises(ValueError, match="q2"):
        taught(given={"teacher": Reversing(leaves_out="q2")})
    found = taught(given={"teacher": Reversing(leaves_out="q2")}, on_unusable="skip")
    assert members(found) == [qid for qid in QIDS if qid != "q2"]
    assert found.left_out == {"were ranked faultily by the teacher": 1}


def test_a_teacher_is_not_asked_again_where_there_is_a_folder(tmp_path: Path) -> None:
    for asked in (True, False):
        teacher = Reversing()
        taught(given={"teacher": teacher}, folder=tmp_path / "kept")
        assert bool(teacher.asked) == asked


def test_two_teachers_are_refused(tmp_path: Path) -> None:
    runs.write(TEACHER, tmp_path / "a.run")
    with pytest.raises(TrainingDataError, match=r"There are two teachers: teacher and run. Give one of them."):
        taught(given={"teacher": TEACHER, "run": tmp_path / "a.run", "text": toy.Texts()})


@pytest.mark.parametrize("columns", [["qid", "score"], ["docno", "score"], ["qid", "docno"]])
def test_a_teachers_frame_that_is_no_run(columns: list[str]) -> None:
    with pytest.raises(TrainingDataError, match=r"teacher must have the columns qid, docno, and rank or score"):
        taught(given={"teacher": TEACHER[columns]})


def test_several_processes_would_ask_the_teacher_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingDataError, match=r"Make its run first, with runs.make_teacher_run"):
        taught(given={"teacher": Reversing()})


def test_queries_with_one_document() -> None:
    run = RUN[(RUN["qid"] != "q4") | (RUN["rank"] == 0)]
    with pytest.raises(TrainingDataError, match=r"1 of 8 queries have fewer than two documents \('q4'\)"):
        taught(run)
    found = taught(run, on_unusable="skip")
    assert found.left_out == {"have fewer than two documents": 1}
    assert members(found) == [qid for qid in QIDS if qid != "q4"]


def test_a_ranking_without_a_teacher_is_told() -> None:
    with pytest.warns(
        TeacherWarning, match=r"^Distillation\.fit: there is no teacher, so what is distilled is the ranking"
    ):
        taught()
    with warnings.catch_warnings():
        warnings.simplefilter("error", TeacherWarning)
        taught(None, given={"run": RUN})
        taught(given={"teacher": TEACHER})


def test_negatives_from_ranks_that_no_ranking_has() -> None:
    with pytest.raises(TrainingDataError, match=r"have fewer than two documents at negative_ranks=\(5, 9\)"):
        taught(negative_ranks=(5, 9))
    assert len(members(taught(negative_ranks=(4, 9)))) == 8


@pytest.mark.parametrize("qrels", [None, QRELS])
def test_a_teacher_s_ranking_is_not_drawn_from_by_labels(qrels: pd.DataFrame | None) -> None:
    with pytest.raises(
        TrainingDataError, match=r"sampling='single_relevant' draws by labels.*another sampling, or Fine"
    ):
        taught(RUN, qrels, sampling="single_relevant", sample_size=2)


@pytest.mark.parametrize(
    ("loss", "has_scores", "has_labels", "complaint"),
    [
        ("margin_mse", False, False, "targets of margin_mse must be scores, got an order. Give it a number as margin"),
        ("kl_divergence", False, False, "targets of kl_divergence must be scores, got an order. Choose another loss."),
        (["ranknet", "list_net"], False, True, "got relevance labels and an order"),
        ({"name": "margin_mse", "margin": 1.0}, False, False, ""),
        ("kl_divergence", True, False, ""),
        ("lambdarank", False, True, ""),
        ({"name": "lambdarank", "gain": "rank"}, False, False, ""),
    ],
    ids=str,
)
def test_losses_need_their_targets(loss: Any, has_scores: bool, has_labels: bool, complaint: str) -> None:
    run = RUN if has_scores else RUN.drop(columns="score")
    qrels = QRELS if has_labels else None
    if not complaint:
        assert members(taught(run, qrels, loss=loss)) == QIDS
        return
    with pytest.raises(TrainingDataError) as caught:
        taught(run, qrels, loss=loss)
    assert complaint in str(caught.value)


# --- runs on disk ---


def test_a_run_without_topics(tmp_path: Path) -> None:
    runs.write(RUN[["qid", "docno", "score", "rank"]], tmp_path / "some.run")
    given = {"run": tmp_path / "some.run", "text": toy.Texts()}
    for source in (labelled, taught):
        with pytest.raises(
            TrainingDataError, match=r"queries are needed.*neither published nor named after its dataset"
        ):
            source(None, given=given)
        with pytest.raises(TrainingDataError, match="queries are needed: give topics with the columns qid and query"):
            source(toy.TOPICS[["qid"]], given=given)
        with pytest.raises(TrainingDataError, match=r"2 of 8 queries have no query text \('q6', 'q7'\)"):
            source(toy.TOPICS[:6], given=given)


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.run"):
        taught(toy.TOPICS, given={"run": tmp_path / "absent.run", "text": toy.Texts()})


def test_a_malformed_run(tmp_path: Path) -> None:
    (tmp_path / "some.run").write_text("q0 Q0 d01 1\n")
    with pytest.raises(runs.RunFileError, match=r"some\.run"):
        taught(toy.TOPICS, given={"run": tmp_path / "some.run", "text": toy.Texts()})


@pytest.mark.parametrize(
    ("run", "published"),
    [
        ("rankdistillm:rankzephyr", True),
        ("rankzephyr", False),
        ("some.run", False),
        (Path("rankdistillm:colbert"), True),
    ],
)
def test_is_published(run: Any, published: bool) -> None:
    if published:
        assert run_of(run, who="f").published
    else:
        with pytest.raises((TypeError, FileNotFoundError, ValueError)):
            run_of(run, who="f")


# --- nothing is begun where data is bad ---


@pytest.mark.parametrize("estimator", [toy.fine_tuning, toy.distillation])
def test_bad_data_leaves_nothing_behind(
    model: tiny.Tiny, tmp_path: Path, estimator: Callable[..., Distillation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("training was begun")

    monkeypatch.setattr("pyterrier_rankdistillm.training.estimators.train", opened)
    one = estimator(model.folder, folder=tmp_path / "kept")
    alone = RUN[(RUN["qid"] != "q4") | (RUN["rank"] == 0)]
    for arguments in (
        (RUN[:0], QRELS),
        (alone, QRELS[:0]),
        (toy.TRAIN, QRELS, toy.VALID, None),
        (toy.TRAIN, QRELS, None, QRELS),
        (toy.TRAIN, QRELS, toy.VALID.drop(columns="text"), QRELS),
        (toy.TRAIN, QRELS, toy.VALID, QRELS.drop(columns="label")),
        (toy.TRAIN, QRELS, toy.VALID, QRELS[QRELS["qid"] == "q0"]),
        (toy.TRAIN, QRELS, toy.VALID[:0], QRELS),
    ):
        with pytest.raises(TrainingDataError, match=f"^{type(one).__name__}: "):
            one.fit(*arguments)
    assert toy.names(tmp_path) == []


@pytest.mark.parametrize(
    ("valid", "qrels", "complaint"),
    [
        (toy.VALID, None, "There are validation topics, but no validation qrels. Give both or neither."),
        (None, QRELS, "There are validation qrels, but no validation topics. Give both or neither."),
        (toy.VALID[["qid", "docno"]], QRELS, "The validation results have no column query, score, text."),
        (toy.VALID, QRELS[["qid"]], "qrels_va must have the columns qid, docno, label, got no docno, label, but qid."),
        (toy.VALID, QRELS[:0], "none of the validation topics has documents and qrels."),
    ],
)
def test_bad_validation(model: tiny.Tiny, valid: Any, qrels: Any, complaint: str) -> None:
    with pytest.raises(TrainingDataError) as caught:
        toy.distillation(model.folder).fit(toy.TRAIN, None, valid, qrels)
    assert str(caught.value) == f"Distillation: {complaint}"


# --- several runs ---

SECOND = TEACHER[TEACHER["qid"] < "q6"].reset_index(drop=True)
"""Another ranking of six of the topics."""


def several(*given: Any, inp: pd.DataFrame | None = toy.TOPICS, **settings: Any) -> Sourced:
    return taught(inp, given={"run": list(given), "text": toy.Texts()}, **settings)


def test_several_runs_are_several_lists_of_a_topic_each_in_its_own_order(tmp_path: Path) -> None:
    runs.write(SECOND, tmp_path / "second.run.gz")
    found = several(RUN, tmp_path / "second.run.gz")
    assert members(found) == [*QIDS, *QIDS[:6]]
    orders = [(one.qid, one.docnos) for one in found.data.rankings]
    assert orders == [*plain(taught()).items(), *((qid, REVERSED[qid]) for qid in QIDS[:6])]
    assert found.data.distinct == 8
    assert (found.about["teacher"], found.about["rankings"]) == ("a frame, second.run.gz",) * 2
    assert members(several(SECOND)) == QIDS[:6]  # one in a list is one


def test_what_is_wrong_with_one_of_several_runs_names_it(tmp_path: Path) -> None:
    short = SECOND[(SECOND["qid"] != "q2") | (SECOND["rank"] == 0)]
    runs.write(short, tmp_path / "short.run")
    expected = (
        r"1 of 14 rankings have fewer than two documents \('q2' of run\[1\] \(short.run\)\). Correct the data, or "
        r"leave such rankings out with on_unusable='skip'."
    )
    with pytest.raises(TrainingDataError, match=expected):
        several(RUN, tmp_path / "short.run")
    found = several(RUN, tmp_path / "short.run", on_unusable="skip")
    assert members(found) == [*QIDS, *(qid for qid in QIDS[:6] if qid != "q2")]  # the other run's q2 stays
    assert found.left_out == {"have fewer than two documents": 1}
    labels = QRELS[QRELS["qid"] != "q7"]
    with pytest.raises(TrainingDataError, match=r"of 14 rankings .*'q7' of run\[0\] \(a frame\)"):
        labelled(toy.TOPICS, labels, given={"run": [RUN, SECOND], "text": toy.Texts()})


@pytest.mark.parametrize(
    ("given", "error", "complaint"),
    [
        ([], ValueError, r"^Distillation: run is an empty list. Give at least one run.$"),
        ([RUN, 3], TypeError, r"^Distillation: run\[1\] must be a frame, a run file"),
        ([RUN, "nowhere.run"], FileNotFoundError, r"^Distillation: run\[1\] must be .*nowhere.run is not there"),
        (
            [RUN, SECOND.assign(score=-SECOND["score"])],
            TrainingDataError,
            r"run\[1\] \(a frame\) has ranks that contradict its scores .*runs.read\(run\[1\], order='rank'\)",
        ),
    ],
    ids=["none", "no run", "no file", "contradiction"],
)
def test_several_runs_that_are_none(given: list[Any], error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        several(*given)


def test_several_runs_have_one_query_per_topic() -> None:
    asked = SECOND.assign(query=SECOND["qid"].map(toy.QUERIES))
    assert several(RUN, asked, inp=None).data.queries == toy.QUERIES
    other = asked.assign(query=asked["query"] + " again")
    expected = (
        r"run\[0\] \(a frame\) and run\[1\] \(a frame\) have different queries for qid 'q0': .* again'. Give runs"
    )
    with pytest.raises(TrainingDataError, match=expected):
        several(RUN, other, inp=None)


def test_a_loss_over_scores_needs_those_of_all_runs() -> None:
    ranks = SECOND.drop(columns="score")
    several(RUN, SECOND, loss="margin_mse")
    with pytest.raises(TrainingDataError, match="margin_mse"):
        several(RUN, ranks, loss="margin_mse")
    several(RUN, ranks, loss="ranknet")


def test_a_teacher_is_one_thing(model: tiny.Tiny) -> None:
    expected = (
        r"^Distillation: teacher must be .*; got list. Several runs .* fit as run=\[...\]. An ensemble is one pipe"
    )
    with pytest.raises(TypeError, match=expected):
        Distillation(model.folder, teacher=[RUN, TEACHER])  # type: ignore[arg-type]


def test_an_ensemble_of_teachers_is_a_pipeline(model: tiny.Tiny) -> None:
    by_length = pt.apply.doc_score(lambda row: -len(row["text"]))
    by_docno = pt.apply.doc_score(lambda row: int(row["docno"][1:]))
    expected = {
        qid: rows.assign(s=rows["docno"].str[1:].astype(int) * 0.9 - rows["text"].str.len() * 0.1)
        .sort_values(["s", "docno"], ascending=[False, False])["docno"]
        .tolist()
        for qid, rows in RUN.groupby("qid")
    }
    ensemble = 0.1 * by_length + 0.9 * by_docno
    assert plain(taught(given={"teacher": ensemble})) == expected
    one = toy.distillation(model.folder, steps=1, teacher=ensemble)
    (toy.first_stage() >> one).fit(toy.TOPICS, None)
    assert "teacher" in one.training.about


def test_a_fusion_of_runs_is_a_teacher() -> None:
    pta = pytest.importorskip("pyterrier_alpha")
    fusion = pta.RRFusion(pt.Transformer.from_df(RUN), pt.Transformer.from_df(TEACHER), k=60)
    fused = fusion(toy.TOPICS)
    found = taught(toy.TOPICS, given={"run": fused, "text": toy.Texts()})
    assert members(found) == QIDS
    assert found.data.rankings.has_scores
    by_teacher = taught(given={"teacher": fused})
    assert plain(by_teacher) == plain(found)
