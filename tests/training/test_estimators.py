"""``FineTuning`` and ``Distillation`` in pipelines, on frames, runs and teachers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ir_datasets
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import tiny
import toy
from ir_datasets.datasets.base import Dataset
from ir_datasets.formats import TrecQrels, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload
from pyterrier.measures import nDCG

from pyterrier_rankdistillm import (
    Checkpoint,
    CheckpointError,
    Distillation,
    FineTuning,
    MonoElectra,
    MonoElectraReRanker,
    runs,
)
from pyterrier_rankdistillm.errors import InUseError
from pyterrier_rankdistillm.locks import hold, lock_in
from pyterrier_rankdistillm.runs import published

RUN, QRELS, TRAIN, VALID = toy.RUN, toy.QRELS, toy.TRAIN, toy.VALID
KEPT_AS_IT_WAS = pytest.mark.filterwarnings("ignore:.*no validation was better than that before:UserWarning")
TRAIN_TOPICS, VALID_TOPICS = toy.TOPICS[:6], toy.TOPICS[6:]
BOTH = pytest.mark.parametrize("made", [toy.fine_tuning, toy.distillation])
Made = Callable[..., FineTuning | Distillation]


def fitted(one: Any, run: pd.DataFrame | None = TRAIN, qrels: pd.DataFrame | None = QRELS, **options: Any) -> Any:
    one.fit(run, qrels, **options)
    return one


def trained(one: Any) -> dict[str, Any]:
    return toy.weights(one.reranker)


# --- in pipelines ---


@BOTH
@pytest.mark.parametrize("validated", [False, True])
def test_a_pipeline_is_fitted_and_re_ranks(model: tiny.Tiny, made: Made, validated: bool) -> None:
    one = made(model.folder, steps=6)
    pipeline = toy.first_stage() >> one
    # What the training is sure to make better: else the student would be kept as it was.
    validation = (TRAIN_TOPICS, QRELS if made is toy.fine_tuning else toy.FIRST_TWO) if validated else ()
    pipeline.fit(TRAIN_TOPICS, QRELS, *validation)
    assert ("nDCG@10" in one.training.log) == validated
    assert bool(one.training.best_step) == validated
    ranking = pipeline(VALID_TOPICS)
    expected = one.reranker(VALID)
    pd.testing.assert_frame_equal(ranking, expected)
    untrained = MonoElectra(model.folder)(VALID)
    assert not np.allclose(
        ranking.sort_values(["qid", "docno"])["score"], untrained.sort_values(["qid", "docno"])["score"]
    )
    table = pt.Experiment(
        [toy.first_stage(), toy.first_stage() >> one.reranker, pipeline], VALID_TOPICS, QRELS, [nDCG @ 10]
    )
    assert table["nDCG@10"].iloc[1] == table["nDCG@10"].iloc[2]


def test_labels_count_beside_a_teacher(model: tiny.Tiny) -> None:
    def first_loss(loss: Any) -> float:
        one = fitted(toy.distillation(model.folder, loss=loss, steps=1, batch_size=6, dropout=0.0))
        return float(one.training.log["loss"].iloc[0])

    both = first_loss(["ranknet", {"name": "lce", "weight": 0.5}, {"name": "bce", "weight": 2}])
    assert both == pytest.approx(first_loss("ranknet") + 0.5 * first_loss("lce") + 2 * first_loss("bce"), abs=2e-4)


@pytest.mark.parametrize(("made", "loss"), [(toy.fine_tuning, "lce"), (toy.distillation, "ranknet")])
def test_training_lowers_the_loss(model: tiny.Tiny, made: Made, loss: str) -> None:
    one = fitted(made(model.folder, steps=60, dropout=0.0, log_every=1, batch_size=6, sample_size=None))
    losses = one.training.log["loss"]
    assert losses[-6:].mean() < 0.5 * losses[:3].mean()
    assert str(one.losses) == one.training.losses == loss


def test_distillation_learns_the_teachers_order(model: tiny.Tiny) -> None:
    """A student of reversed rankings reverses them."""
    teacher = TRAIN.assign(rank=5 - TRAIN["rank"]).drop(columns="score")
    one = fitted(toy.distillation(model.folder, teacher=teacher, steps=80, dropout=0.0, batch_size=6), TRAIN, None)
    ranked = one.reranker(TRAIN)
    places = ranked.merge(teacher[["qid", "docno", "rank"]], on=["qid", "docno"], suffixes=("", "_taught"))
    assert places["rank"].corr(places["rank_taught"]) > 0.8


def test_fine_tuning_prefers_relevant_documents(model: tiny.Tiny) -> None:
    one = fitted(toy.fine_tuning(model.folder, steps=80, dropout=0.0, batch_size=6))
    top = one.reranker(TRAIN).merge(QRELS, on=["qid", "docno"], how="left").query("rank < 2")
    assert (top["label"] > 0).mean() > 0.8


# --- students ---


def students(model: tiny.Tiny, backbone: Path) -> dict[str, Any]:
    return {
        "reranker": MonoElectra(model.folder, device="cpu"),
        "open reranker": MonoElectra(Checkpoint.open(model.folder)),
        "checkpoint": Checkpoint.open(model.folder),
        "folder": model.folder,
        "name": str(model.folder),
        "backbone": tiny.backbone(backbone / "backbone"),
    }


@pytest.mark.parametrize("kind", ["reranker", "open reranker", "checkpoint", "folder", "name", "backbone"])
def test_what_is_passed_in_is_not_changed_and_fitting_again_starts_from_it(
    model: tiny.Tiny, tmp_path: Path, kind: str
) -> None:
    student = students(model, tmp_path)[kind]
    folder = tmp_path / "backbone" if kind == "backbone" else model.folder
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    opened = student.checkpoint if isinstance(student, MonoElectraReRanker) else student
    before = {}
    if isinstance(opened, Checkpoint):
        before = {name: tensor.clone() for name, tensor in opened.encoder.state_dict().items()}
    one = toy.fine_tuning(student)
    first = {name: tensor.clone() for name, tensor in trained(fitted(one)).items()}
    again = trained(fitted(one))
    assert toy.same(first, again)
    start = toy.weights(MonoElectra(Checkpoint.open(folder, new_head_seed=42)))
    assert not any(first[name].equal(start[name]) for name in ("linear.weight", "embeddings.word_embeddings.weight"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    if isinstance(opened, Checkpoint):
        assert toy.same(before, opened.encoder.state_dict())
        assert not opened.encoder.training
        assert not any(parameter.requires_grad for parameter in opened.encoder.parameters())
        assert opened.encoder.config.hidden_dropout_prob == 0.1


def test_every_kind_of_student_gives_the_same_weights(model: tiny.Tiny, tmp_path: Path) -> None:
    kinds = students(model, tmp_path)
    expected = trained(fitted(toy.fine_tuning(kinds.pop("folder"))))
    del kinds["backbone"]
    for student in kinds.values():
        assert toy.same(trained(fitted(toy.fine_tuning(student))), expected)


def test_a_new_head_is_drawn_from_the_seed(tmp_path: Path) -> None:
    backbone = tiny.backbone(tmp_path / "backbone")
    seeds = [trained(fitted(toy.fine_tuning(backbone, seed=seed, steps=1, learning_rate=1e-12)))["linear.weight"]
             for seed in (1, 1, 2)]  # fmt: skip
    assert seeds[0].equal(seeds[1])
    assert not seeds[0].allclose(seeds[2], atol=1e-4)
    with pytest.raises(CheckpointError, match="head"):
        MonoElectra(backbone)(VALID)


def test_a_student_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds no weights: expected model\.safetensors"):
        fitted(toy.distillation(tmp_path))


def test_two_losses_from_one_stage_1(model: tiny.Tiny) -> None:
    stage_1 = fitted(toy.fine_tuning(model.folder))
    start = {name: tensor.clone() for name, tensor in trained(stage_1).items()}
    ranknet, adr_mse = (fitted(toy.distillation(stage_1.reranker, loss=loss), TRAIN, None)
                        for loss in ("ranknet", "adr_mse"))  # fmt: skip
    assert toy.same(trained(stage_1), start)
    assert not toy.same(trained(ranknet), trained(adr_mse))
    alone = fitted(toy.distillation(stage_1.reranker, loss="adr_mse"), TRAIN, None)
    assert toy.same(trained(alone), trained(adr_mse))


def test_a_fine_tuning_is_a_student_of_a_distillation(model: tiny.Tiny) -> None:
    """Before it is fitted, too: one pipeline after the other."""
    stage_1 = toy.fine_tuning(MonoElectra(model.folder, text_field="text"))
    stage_2 = toy.distillation(stage_1)
    with pytest.raises(RuntimeError, match=r"^FineTuning: there is no trained re-ranker yet. Call fit first."):
        fitted(stage_2)
    fitted(stage_1)
    assert toy.same(
        trained(fitted(stage_2, TRAIN, None)), trained(fitted(toy.distillation(stage_1.reranker), TRAIN, None))
    )


def test_the_trained_re_ranker_has_the_students_settings(model: tiny.Tiny) -> None:
    student = MonoElectra(model.folder, batch_tokens=99, text_field="body", activation="sigmoid", query_length=5)
    one = fitted(toy.distillation(student, doc_length=9), TRAIN.rename(columns={"text": "body"}), None)
    reranker = one.reranker
    assert (reranker.batch_tokens, reranker.text_field, reranker.activation) == (99, "body", "sigmoid")
    assert (reranker.checkpoint.tokenizer.lengths.query, reranker.checkpoint.tokenizer.lengths.doc) == (6, 9)
    assert not reranker.checkpoint.encoder.training
    kept = fitted(toy.distillation(student, query_length=None), TRAIN.rename(columns={"text": "body"}), None)
    assert kept.reranker.checkpoint.tokenizer.lengths.query == 5


def test_lengths_beyond_the_encoders_positions(model: tiny.Tiny) -> None:
    with pytest.raises(ValueError, match=r"query_length . doc_length must be at most 45 tokens"):
        fitted(FineTuning(model.folder, device="cpu", verbose=False))


# --- before fit ---


@BOTH
def test_before_fit(model: tiny.Tiny, made: Made) -> None:
    one = made(model.folder)
    who = type(one).__name__
    with pytest.raises(RuntimeError, match=f"^{who}: there is nothing to re-rank with yet. Call fit first."):
        one(VALID)
    for attribute in ("reranker", "training"):
        with pytest.raises(RuntimeError, match=f"^{who}: .*Call fit first"):
            getattr(one, attribute)


@BOTH
def test_inspection_before_and_after_fit(model: tiny.Tiny, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTerrier looks up the documentation of its own transformers on the net, here of the first stage.
    monkeypatch.setattr("pyterrier.documentation.objects_inv", dict)
    one = made(model.folder)
    for _ in range(2):
        assert pt.inspect.transformer_outputs(one, ["qid", "query", "docno", "text"]) == [
            "qid", "query", "docno", "text", "score", "rank",
        ]  # fmt: skip
        assert list(one(VALID[:0]).columns) == ["qid", "query", "docno", "text", "score", "rank"]
        with pytest.raises(pt.validate.InputValidationError):
            one(VALID[:0].drop(columns="query"))
        assert pt.schematic.transformer_schematic(one)["label"] == type(one).__name__
        assert type(one).__name__ in pt.schematic.draw(toy.first_stage() >> one)
        one.fit(TRAIN, QRELS)


TestFineTuningContract = pt.testing.transformer_test_class(lambda: FineTuning("webis/monoelectra-base"))
TestDistillationContract = pt.testing.transformer_test_class(lambda: Distillation("webis/monoelectra-base"))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"steps": 0}, "steps must be None or a whole number, at least 1, got 0."),
        ({"lr": 1}, "there is no setting 'lr'"),
        ({"recipe": "other"}, "recipe must be one of rank-distillm"),
    ],
)
def test_bad_settings_are_told_by_the_constructor(settings: dict[str, Any], complaint: str) -> None:
    for kind in (FineTuning, Distillation):
        with pytest.raises(ValueError, match=f"^{kind.__name__}: ") as caught:
            kind("some/model", **settings)
        assert complaint in str(caught.value)


def test_repr_states_what_was_given() -> None:
    one = FineTuning("a/b", recipe="rank-distillm", loss="lce", steps=5)
    assert repr(one) == "FineTuning('a/b', recipe='rank-distillm', loss='lce', steps=5)"
    assert repr(Distillation("a/b")) == "Distillation('a/b')"


# --- the outcome ---


def test_what_is_saved_opens_with_equal_scores(model: tiny.Tiny, tmp_path: Path) -> None:
    one = fitted(toy.distillation(model.folder), TRAIN, None)
    one.reranker.save(tmp_path / "mine")
    pd.testing.assert_frame_equal(MonoElectra(tmp_path / "mine")(RUN), one(RUN), rtol=0, atol=1e-6)
    card = (tmp_path / "mine" / "README.md").read_text()
    assert f"Weights from: {model.folder.name}, distilled with ranknet." in card
    fine_tuned = fitted(toy.fine_tuning(model.folder))
    assert fine_tuned.reranker.checkpoint.source == f"{model.folder.name}, fine-tuned with lce"


def test_dropout_of_the_training_is_not_saved(model: tiny.Tiny) -> None:
    one = fitted(toy.distillation(model.folder, dropout=0.5), TRAIN, None)
    assert one.reranker.checkpoint.encoder.config == Checkpoint.open(model.folder).encoder.config
    assert not toy.same(trained(one), trained(fitted(toy.distillation(model.folder, dropout=0.0), TRAIN, None)))


@KEPT_AS_IT_WAS
def test_the_record(model: tiny.Tiny) -> None:
    one = toy.fine_tuning(model.folder, steps=4, valid_every=2, log_every=1, on_unusable="skip")
    one.fit(TRAIN, QRELS[QRELS["qid"] != "q3"], VALID, QRELS)
    record = one.training
    assert list(record.log.columns) == ["step", "loss", "learning_rate", "nDCG@10"]
    assert record.log["step"].tolist() == [0, 1, 2, 3, 4]
    assert record.log["nDCG@10"].notna().tolist() == [True, False, True, False, True]
    assert record.log["learning_rate"].dropna().tolist() == [1e-3] * 4
    assert (record.stage, record.queries, record.steps) == ("finetune", 5, 4)
    assert record.left_out == {"have no relevant document": 1}
    assert record.settings == one.settings
    table = dict(record.table.itertuples(index=False))
    assert list(record.table.columns) == ["what", "value"]
    assert table["left out: have no relevant document"] == 1
    assert table["first loss"] == f"{record.log['loss'][1]:.4f}"
    assert table["last loss"] == f"{record.log['loss'][4]:.4f}"
    values = record.log.set_index("step")["nDCG@10"]
    assert table["nDCG@10 before"] == f"{values[0]:.4f}"
    assert table["nDCG@10 best, kept"] == f"{values[record.best_step]:.4f} at step {record.best_step}"
    assert table["nDCG@10 last"] == f"{values[4]:.4f} at step 4"
    for name, value in table.items():
        assert name in str(record)
        assert f">{value}</td>" in record._repr_html_().replace("<wbr>", "")
    assert repr(record) == "Training(finetune, lce, 4 steps)"
    assert table["student"] == str(model.folder)
    shown = record._repr_html_()
    assert (shown.count("<svg"), shown.count("<polyline"), shown.count("<circle")) == (2, 2, 3)
    assert f"kept: step {record.best_step}" in shown


@KEPT_AS_IT_WAS
def test_the_plot(model: tiny.Tiny, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one = toy.distillation(model.folder, steps=4, valid_every=1, log_every=1)
    one.fit(TRAIN, None, VALID, QRELS)
    figure = one.training.plot()
    loss, measure = figure.axes
    log = one.training.log
    assert loss.get_lines()[0].get_ydata().tolist() == log["loss"].dropna().tolist()
    assert measure.get_lines()[0].get_ydata().tolist() == log["nDCG@10"].tolist()
    assert measure.get_lines()[1].get_xdata() == [one.training.best_step] * 2
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", "validation nDCG@10"]
    figure.savefig(tmp_path / "plot.png")
    assert len(fitted(toy.distillation(model.folder), TRAIN, None).training.plot().axes) == 1


@KEPT_AS_IT_WAS
def test_verbose_shows_progress_and_the_summary(model: tiny.Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(toy.distillation(model.folder, verbose=False), TRAIN, None)
    assert capsys.readouterr() == ("", "")
    one = toy.distillation(model.folder, verbose=True, steps=3)
    one.fit(TRAIN, None, VALID, QRELS)
    out, err = capsys.readouterr()
    assert str(one.training) in out
    assert "Training: 100%" in err
    assert "nDCG@10=" in err


# --- where the data comes from ---


@BOTH
@pytest.mark.parametrize("change", ["shuffled", "index", "field", "columns", "ranks only"])
def test_what_has_no_influence(model: tiny.Tiny, made: Made, change: str) -> None:
    student: Any = model.folder
    run = {
        "shuffled": TRAIN.sample(frac=1, random_state=3),
        "index": TRAIN.set_axis(["same"] * len(TRAIN)),
        "field": TRAIN.rename(columns={"text": "body"}).assign(text="the cat"),
        "columns": TRAIN.assign(docid=5, url=None),
        "ranks only": TRAIN.assign(score=TRAIN["score"].sample(frac=1, random_state=1).to_numpy()).drop(
            columns="score"
        ),
    }[change]
    if change == "field":
        student = MonoElectra(model.folder, text_field="body")
    before = run.copy(deep=True)
    one = fitted(made(student), run)
    pd.testing.assert_frame_equal(run, before)
    expected = fitted(made(model.folder))
    assert toy.same(trained(one), trained(expected))
    if change != "field":
        pd.testing.assert_frame_equal(one(run), one.reranker(run))


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Arguments of ``fit`` that all say the same."""
    bare = TRAIN[["qid", "docno", "score", "rank"]]
    runs.write(bare, tmp_path / "a.run.gz")
    runs.write(bare, tmp_path / "a.parquet")
    runs.write(TRAIN[["qid", "query", "docno", "score", "rank"]], tmp_path / "with-queries.parquet")
    texts = {"text": toy.Texts()}
    return {
        "frame": {"topics_or_res_tr": TRAIN},
        "frame without text": {"topics_or_res_tr": TRAIN.drop(columns="text"), **texts},
        "trec": {"topics_or_res_tr": toy.TOPICS, "run": tmp_path / "a.run.gz", **texts},
        "parquet": {"topics_or_res_tr": TRAIN_TOPICS, "run": str(tmp_path / "a.parquet"), **texts},
        "with queries": {"run": tmp_path / "with-queries.parquet", **texts},
    }


@BOTH
def test_runs_on_disk_train_as_frames_do(model: tiny.Tiny, sources: dict[str, Any], made: Made) -> None:
    outcomes = {}
    for name, arguments in sources.items():
        one = made(model.folder, log_every=1)
        one.fit(**arguments, qrels_tr=QRELS)
        outcomes[name] = one
    frame = outcomes.pop("frame")
    for name, one in outcomes.items():
        assert one.training.log["loss"].tolist() == frame.training.log["loss"].tolist(), name
        assert toy.same(trained(one), trained(frame)), name


def test_text_is_fetched_by_the_batch(model: tiny.Tiny, sources: dict[str, Any]) -> None:
    loader = sources["trec"]["text"]
    toy.distillation(model.folder, steps=1, batch_size=2).fit(**sources["trec"])
    assert len(loader.asked) == len(set(loader.asked)) <= 12
    assert set(loader.asked) < set(TRAIN["docno"])


def test_text_of_fit_overrules_the_constructors(model: tiny.Tiny) -> None:
    mine, theirs = toy.Texts(), toy.Texts()
    fitted(toy.distillation(model.folder, text=mine), TRAIN.drop(columns="text"), None, text=theirs)
    assert theirs.asked
    assert not mine.asked
    fitted(toy.distillation(model.folder, text=mine), TRAIN.drop(columns="text"), None)
    assert mine.asked


def test_relevant_documents_that_were_not_retrieved_are_trained_on(model: tiny.Tiny) -> None:
    away = pd.DataFrame({"qid": list(toy.QUERIES), "docno": "away", "label": 1})
    loader = toy.Texts({**toy.TEXTS, "away": "the cat sat on the mat"})
    for add in (True, False):
        loader.asked.clear()
        only = pd.concat([QRELS, away])
        one = fitted(toy.fine_tuning(model.folder, add_relevant=add, steps=6, text=loader), TRAIN, only)
        assert ("away" in loader.asked) == add
        assert one.training.left_out == {}


@pytest.fixture
def zephyr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy collection under the names of MS MARCO and of RankZephyr's published run, downloaded."""

    def local(name: str, lines: list[str]) -> LocalDownload:
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        return LocalDownload(tmp_path / name)

    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    docs = TsvDocs(local("docs.tsv", [f"{docno}\t{text}" for docno, text in toy.TEXTS.items()]))
    queries = TsvQueries(local("queries.tsv", [f"{qid}\t{query}" for qid, query in toy.QUERIES.items()]))
    judged = [f"{qid} 0 {docno} {label}" for qid, docno, label in QRELS.itertuples(index=False)]
    qrels = TrecQrels(local("qrels", judged), {1: "relevant"})
    registered = dict(ir_datasets.registry._registered)
    for name in published.NAMES:
        registered.pop(f"msmarco-passage/train/rank-distillm-{name}", None)
    registered["msmarco-passage"] = Dataset(docs)
    registered["msmarco-passage/train"] = Dataset(docs, queries, qrels)
    monkeypatch.setattr(ir_datasets.registry, "_registered", registered)
    place = published._place("rankzephyr", published.NAMES["rankzephyr"][1])
    place.parent.mkdir(parents=True)
    runs.write(TRAIN[["qid", "docno", "score", "rank"]], place)
    monkeypatch.setattr(published, "download", lambda _urls, target, **_: target)


@pytest.mark.usefixtures("zephyr")
@BOTH
def test_a_published_run_needs_nothing_else(model: tiny.Tiny, made: Made) -> None:
    expected = trained(fitted(made(model.folder)))
    one = made(model.folder)
    one.fit(run="rankdistillm:rankzephyr")
    assert toy.same(trained(one), expected)
    given = made(model.folder)
    given.fit(run="rankdistillm:rankzephyr", text=pt.get_dataset("irds:msmarco-passage"))
    assert toy.same(trained(given), expected)


@pytest.mark.usefixtures("zephyr")
def test_a_published_teacher(model: tiny.Tiny) -> None:
    expected = trained(fitted(toy.distillation(model.folder), TRAIN, None))
    first_stage = TRAIN.sample(frac=1, random_state=2).drop(columns=["rank", "score"]).assign(score=0.5)
    one = fitted(toy.distillation(model.folder, teacher="rankdistillm:rankzephyr"), first_stage, None)
    assert toy.same(trained(one), expected)
    alone = toy.distillation(model.folder, teacher="rankdistillm:rankzephyr")
    alone.fit()
    assert toy.same(trained(alone), expected)


@pytest.mark.parametrize("kind", ["transformer", "frame", "trec", "parquet"])
def test_teachers_of_any_kind_teach_the_same(model: tiny.Tiny, tmp_path: Path, kind: str) -> None:
    order = TRAIN[["qid", "docno"]].assign(score=-TRAIN["score"], rank=5 - TRAIN["rank"])
    score = order.set_index(["qid", "docno"])["score"]
    teacher: Any = {
        "transformer": pt.apply.doc_score(lambda row: score[row["qid"], row["docno"]]),
        "frame": order,
        "trec": tmp_path / "teacher.run.gz",
        "parquet": tmp_path / "teacher.parquet",
    }[kind]
    if isinstance(teacher, Path):
        runs.write(order, teacher)
    expected = fitted(toy.distillation(model.folder), TRAIN.drop(columns=["score", "rank"]).merge(order), None)
    assert toy.same(trained(fitted(toy.distillation(model.folder, teacher=teacher), TRAIN, None)), trained(expected))
    assert not toy.same(trained(fitted(toy.distillation(model.folder), TRAIN, None)), trained(expected))


def test_several_processes_need_a_folder(model: tiny.Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"^Distillation: with several processes folder must be given, got None"):
        fitted(toy.distillation(model.folder))


def test_without_accelerate(model: tiny.Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyterrier_rankdistillm.extras.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install 'pyterrier-rankdistillm\[train\]'"):
        fitted(toy.distillation(model.folder))


def test_a_damaged_last_checkpoint_is_passed_over(tmp_path: Path, model: tiny.Tiny) -> None:
    folder = tmp_path / "training"
    settings: dict[str, Any] = {"save_every": 1, "folder": str(folder), "resume": True}
    whole = toy.fine_tuning(model.folder, **settings)
    whole.fit(TRAIN, QRELS)
    file = folder / "checkpoint-3" / "optimizer.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    again = toy.fine_tuning(model.folder, **settings)
    told = r"checkpoint-3/optimizer.pt is damaged: training continues not from checkpoint-3 but"
    with pytest.warns(UserWarning, match=told):
        again.fit(TRAIN, QRELS)
    assert toy.same(toy.weights(whole.reranker), toy.weights(again.reranker))
    assert not list(folder.glob("*.lock"))


def test_a_folder_that_another_process_trains_in(tmp_path: Path, model: tiny.Tiny) -> None:
    tuned = toy.fine_tuning(model.folder, folder=str(tmp_path))
    with (
        hold(lock_in(tmp_path), "somebody"),
        pytest.raises(InUseError, match=r"FineTuning: folder .* is in use by process"),
    ):
        tuned.fit(TRAIN, QRELS)
