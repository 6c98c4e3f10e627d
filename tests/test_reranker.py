from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import huggingface_hub
import ir_measures
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import tiny
import torch
from pandas.testing import assert_frame_equal
from pyterrier.measures import nDCG

import pyterrier_rankdistillm
from pyterrier_rankdistillm import (
    Checkpoint,
    CheckpointError,
    CrossEncoderReRanker,
    MonoElectra,
    MonoElectraReRanker,
    PrecisionWarning,
    TruncationWarning,
)
from pyterrier_rankdistillm.runs.records import describe, model_identity
from pyterrier_rankdistillm.scoring import onednn

BREAD, RAIN = "why does bread rise", "why does it rain"
COLUMNS = ["qid", "query", "docno", "text"]


@pytest.fixture
def mono(model: tiny.Tiny) -> MonoElectraReRanker:
    return MonoElectra(model.folder, device="cpu")


@pytest.fixture
def base(checkpoint: Callable[[str], tiny.Tiny]) -> MonoElectraReRanker:
    """Another model than ``mono``."""
    return MonoElectra(checkpoint("projection").folder, device="cpu")


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pairs of each forward pass."""
    from pyterrier_rankdistillm.scoring.encoder import CrossEncoder

    rows: list[int] = []
    forward = CrossEncoder.forward

    def counted(self: CrossEncoder, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(ids))
        return forward(self, ids, *rest)

    monkeypatch.setattr(CrossEncoder, "forward", counted)
    return rows


@pytest.fixture
def never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("the model was opened")

    monkeypatch.setattr(Checkpoint, "open", opened)
    monkeypatch.setattr("huggingface_hub.snapshot_download", opened)


def ranked(frame: pd.DataFrame, score: tiny.Scoring) -> pd.DataFrame:
    """What the re-ranker should return, by the scores of transformers, written without pandas."""
    rows = [row | {"score": score(row["query"], row["text"])} for row in frame.to_dict(orient="records")]
    rows.sort(key=lambda row: str(row["docno"]), reverse=True)
    rows.sort(key=lambda row: (row["qid"], -round(row["score"], 4)))
    ranks = [sum(other["qid"] == row["qid"] for other in rows[:i]) for i, row in enumerate(rows)]
    names = [name for name in frame.columns if name not in ("score", "rank")]
    return pd.DataFrame(rows)[names].assign(score=[row["score"] for row in rows], rank=ranks)


def assert_equal(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Equal columns, types, index and values; scores to 1e-5."""
    assert_frame_equal(one, other, rtol=0, atol=1e-5)


# --- frames ---


def test_exact_frame(mono: MonoElectraReRanker, frame: pd.DataFrame, model: tiny.Tiny) -> None:
    out = mono(frame)
    assert list(out.columns) == ["qid", "query", "docno", "text", "score", "rank"]
    assert out["qid"].tolist() == ["q1"] * 4 + ["q2"] * 2
    assert out["rank"].tolist() == [0, 1, 2, 3, 0, 1]
    assert (out["score"].dtype, out["rank"].dtype) == (np.float64, np.int64)
    assert out["score"].max() - out["score"].min() > 1
    assert_equal(out, ranked(frame, model.score))


def test_scores_are_float32_logits_in_float64(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    scores = mono(frame)["score"]
    assert (scores == scores.astype(np.float32).astype(np.float64)).all()


@pytest.mark.parametrize(
    "index",
    [
        [3, 1, 0, 5, 4, 2],
        [10, 20, 35, 70, 71, 900],
        [0, 0, 0, 1, 1, 1],
        [7] * 6,
        [-1, 2.5, 3.5, 0, 9, 8],
        list("fedcba"),
        pd.MultiIndex.from_tuples([(1, "b"), (1, "a"), (0, "b"), (0, "a"), (0, "a"), (2, "z")], names=["qid", "rank"]),
        pd.date_range("2025-04-06", periods=6),
        pd.Index(range(6), name="docno"),
    ],
    ids=["permuted", "gapped", "duplicated", "constant", "float", "string", "multi", "dates", "named"],
)
def test_rows_are_addressed_by_position(mono: MonoElectraReRanker, frame: pd.DataFrame, index: Any) -> None:
    assert_equal(mono(frame.set_axis(index, axis=0)), mono(frame))


@pytest.mark.parametrize("seed", range(4))
def test_shuffled_input_gives_the_same_output(mono: MonoElectraReRanker, frame: pd.DataFrame, seed: int) -> None:
    shuffled = frame.sample(frac=1, random_state=seed)
    assert_equal(mono(shuffled), mono(frame))
    assert_equal(mono(shuffled.reset_index(drop=True)), mono(frame))


def test_a_part_of_the_rows_gets_the_same_scores(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    whole = mono(frame).drop(columns="rank")
    part = mono(frame[frame["docno"] != "d1"]).drop(columns="rank")
    assert_equal(part, whole[whole["docno"] != "d1"].reset_index(drop=True))


def test_the_input_is_not_changed(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    frame = frame.assign(score=1.5, rank=7).set_index(pd.Index([9, 9, 3, 1, 0, 2]))
    before = frame.copy(deep=True)
    out = mono(frame)
    assert_frame_equal(frame, before)
    out.loc[:, "text"] = "changed"
    out.loc[:, "score"] = 0.0
    assert_frame_equal(frame, before)


def test_other_columns_are_kept(mono: MonoElectraReRanker, frame: pd.DataFrame, model: tiny.Tiny) -> None:
    vectors = [np.array([i, i + 1]) for i in range(6)]
    frame = frame.assign(docid=[5, 3, 8, 1, 2, 9], url=[None, "b", "c", "d", "e", "f"], vector=vectors)
    out = mono(frame)
    assert list(out.columns) == [*COLUMNS, "docid", "url", "vector", "score", "rank"]
    expected = ranked(frame, model.score)
    assert out["docid"].tolist() == expected["docid"].tolist()
    assert out["docid"].dtype == np.int64
    assert [vector.tolist() for vector in out["vector"]] == [vector.tolist() for vector in expected["vector"]]


def test_old_scores_and_ranks_are_replaced(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    scored = frame.assign(rank=range(6), score=[9.0, 8.0, 7.0, 6.0, 5.0, 4.0])[
        ["rank", "qid", "query", "score", "docno", "text"]
    ]
    out = mono(scored)
    assert list(out.columns) == ["qid", "query", "docno", "text", "score", "rank"]
    assert_equal(out, mono(frame))


def test_column_order_is_kept(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    assert list(mono(frame[["text", "docno", "query", "qid"]]).columns) == [
        *("text", "docno", "query", "qid"),
        *("score", "rank"),
    ]


def test_one_row(mono: MonoElectraReRanker, model: tiny.Tiny) -> None:
    out = mono(pd.DataFrame([["q1", BREAD, "d1", "Yeast."]], columns=COLUMNS))
    expected = pd.DataFrame(
        [["q1", BREAD, "d1", "Yeast.", model.score(BREAD, "Yeast."), 0]], columns=[*COLUMNS, "score", "rank"]
    )
    assert_equal(out, expected)


def test_a_query_frame_with_equal_queries_under_two_qids(mono: MonoElectraReRanker) -> None:
    out = mono(pd.DataFrame([["q2", BREAD, "d1", "sun"], ["q1", BREAD, "d1", "sun"]], columns=COLUMNS))
    assert out[["qid", "rank"]].to_numpy().tolist() == [["q1", 0], ["q2", 0]]
    assert out["score"].iloc[0] == out["score"].iloc[1]


def test_one_qid_with_different_queries_scores_each_with_its_own(mono: MonoElectraReRanker, model: tiny.Tiny) -> None:
    frame = pd.DataFrame([["q1", BREAD, "d1", "sun"], ["q1", RAIN, "d2", "sun"]], columns=COLUMNS)
    assert_equal(mono(frame), ranked(frame, model.score))


def test_whole_number_ids_are_kept_and_tied_docnos_compared_as_trec_eval_does(mono: MonoElectraReRanker) -> None:
    frame = pd.DataFrame([[1, BREAD, 9, "sun"], [1, BREAD, 10, "sun"], [1, BREAD, 100, "sun"]], columns=COLUMNS)
    out = mono(frame)
    assert out["docno"].tolist() == [9, 100, 10]  # as text, descending
    assert out["docno"].dtype == np.int64


def test_pairs_of_query_and_text_are_scored_once(
    mono: MonoElectraReRanker, frame: pd.DataFrame, forwards: list[int]
) -> None:
    mono(pd.concat([frame, frame]))
    assert sum(forwards) == 5  # of 12 rows


def test_duplicate_rows_are_kept_with_equal_scores(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    out = mono(pd.concat([frame, frame.iloc[:3]]))
    assert len(out) == 9
    assert out.groupby(["qid", "docno"])["score"].nunique().eq(1).all()
    assert [group["rank"].tolist() for _, group in out.groupby("qid")] == [list(range(6)), list(range(3))]


# --- ties ---


def test_ties_are_broken_by_docno_descending(mono: MonoElectraReRanker) -> None:
    docnos = ["d2", "d10", "D3", "d1", "e", "d9"]
    frame = pd.DataFrame([["q1", BREAD, docno, "The sun."] for docno in docnos], columns=COLUMNS)
    assert mono(frame)["docno"].tolist() == ["e", "d9", "d2", "d10", "d1", "D3"]


@pytest.mark.parametrize("k", range(1, 7))
def test_ranks_agree_with_the_order_that_measures_use(mono: MonoElectraReRanker, k: int) -> None:
    texts = ["The sun.", "The sun.", "The moon.", "The sun.", "The moon.", "Rain."]
    docnos = ["d2", "d10", "d1", "d9", "d3", "d4"]
    labels = [3, 0, 1, 1, 2, 0]
    frame = pd.DataFrame([["q1", BREAD, *row] for row in zip(docnos, texts, strict=True)], columns=COLUMNS)
    qrels = pd.DataFrame({"query_id": "q1", "doc_id": docnos, "relevance": labels})
    out = mono(frame)
    run = out.rename(columns={"qid": "query_id", "docno": "doc_id"})
    grades = dict(zip(docnos, labels, strict=True))

    def dcg(gains: list[int]) -> float:
        return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains[:k]))

    ours = dcg([grades[docno] for docno in out["docno"]]) / dcg(sorted(labels, reverse=True))
    measured = ir_measures.calc_aggregate([nDCG @ k], qrels, run)[nDCG @ k]
    assert ours == pytest.approx(measured, abs=1e-6)
    cut = (mono % k)(frame).rename(columns={"qid": "query_id", "docno": "doc_id"})
    assert ir_measures.calc_aggregate([nDCG @ k], qrels, cut)[nDCG @ k] == pytest.approx(measured, abs=1e-6)


# --- empty frames ---


@pytest.mark.parametrize("extra", [[], ["score", "rank"], ["rank", "url"]])
@pytest.mark.usefixtures("never_opened")
def test_empty_frames_have_the_right_columns_and_types(frame: pd.DataFrame, extra: list[str]) -> None:
    mono = MonoElectra("webis/monoelectra-base")
    for empty in (
        pd.DataFrame(columns=[*COLUMNS, *extra]),
        frame.assign(score=1.0, rank=0, url="x")[[*COLUMNS, *extra]].iloc[:0],
    ):
        out = mono(empty)
        assert len(out) == 0
        kept = [name for name in extra if name not in ("score", "rank")]
        assert list(out.columns) == [*COLUMNS, *kept, "score", "rank"]
        assert (out["score"].dtype, out["rank"].dtype) == (np.float64, np.int64)
        assert out["docno"].dtype == empty["docno"].dtype


# --- validation ---


@pytest.mark.usefixtures("never_opened")
def test_a_missing_text_column_is_an_error_that_says_how_to_get_it(frame: pd.DataFrame) -> None:
    with pytest.raises(pt.validate.InputValidationError) as error:
        MonoElectra("webis/monoelectra-base")(frame.drop(columns="text"))
    text = str(error.value)
    for part in ("'text'", "text_loader()", "pt.text.get_text(", "text_field", "MonoElectra"):
        assert part in text
    assert [mode.missing_columns for mode in error.value.modes] == [["text"]]


@pytest.mark.parametrize("column", ["qid", "query", "docno"])
@pytest.mark.usefixtures("never_opened")
def test_other_missing_columns_are_named(frame: pd.DataFrame, column: str) -> None:
    with pytest.raises(pt.validate.InputValidationError) as error:
        MonoElectra("webis/monoelectra-base")(frame.drop(columns=column))
    assert [mode.missing_columns for mode in error.value.modes] == [[column]]
    assert "text_loader" not in str(error.value)


@pytest.mark.usefixtures("never_opened")
def test_doubled_columns_are_an_error(frame: pd.DataFrame) -> None:
    doubled = pd.concat([frame, frame[["text"]]], axis=1)
    with pytest.raises(ValueError, match="more than one column 'text'"):
        MonoElectra("webis/monoelectra-base")(doubled)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "missing"),
        (float("nan"), "missing"),
        (pd.NA, "missing"),
        (3, "not a string but 3"),
        (b"sun", "not a string"),
    ],
    ids=["None", "nan", "NA", "number", "bytes"],
)
@pytest.mark.usefixtures("never_opened")
def test_texts_that_are_no_strings_are_errors_that_name_the_docno(frame: pd.DataFrame, value: Any, what: str) -> None:
    texts: list[Any] = frame["text"].tolist()
    texts[4] = value
    frame = frame.assign(text=pd.Series(texts, dtype=object))
    with pytest.raises(ValueError, match=f"text of docno 'd3' \\(qid 'q1'\\) is {what}.*1 of 6 rows.*dropna"):
        MonoElectra("webis/monoelectra-base")(frame)


@pytest.mark.usefixtures("never_opened")
def test_missing_texts_in_a_string_column_are_errors_too(frame: pd.DataFrame) -> None:
    texts = [*frame["text"].tolist()[:5], None]
    with pytest.raises(ValueError, match=r"text of docno 'd10'.* is missing"):
        MonoElectra("webis/monoelectra-base")(frame.assign(text=pd.Series(texts, dtype="string")))


@pytest.mark.parametrize("value", [None, 7])
@pytest.mark.usefixtures("never_opened")
def test_queries_that_are_no_strings_are_errors(frame: pd.DataFrame, value: Any) -> None:
    queries: list[Any] = frame["query"].tolist()
    queries[0] = value
    with pytest.raises(ValueError, match=r"query of docno 'd1' \(qid 'q2'\) is .*every topic a query"):
        MonoElectra("webis/monoelectra-base")(frame.assign(query=pd.Series(queries, dtype=object)))


@pytest.mark.parametrize("column", ["qid", "docno"])
@pytest.mark.usefixtures("never_opened")
def test_missing_ids_are_errors_that_name_the_row(frame: pd.DataFrame, column: str) -> None:
    values: list[Any] = frame[column].tolist()
    values[2] = None
    with pytest.raises(ValueError, match=f"{column} is missing in 1 of 6 rows, first in row 2"):
        MonoElectra("webis/monoelectra-base")(frame.assign(**{column: values}))


def test_the_remedy_for_missing_texts_works(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    texts = [*frame["text"].tolist()[:5], None]
    pipeline = pt.apply.generic(lambda df: df.dropna(subset=["text"])) >> mono
    assert len(pipeline(frame.assign(text=texts))) == 5


def test_empty_text_and_empty_query_are_scored(mono: MonoElectraReRanker, model: tiny.Tiny) -> None:
    frame = pd.DataFrame([["q1", BREAD, "d1", ""], ["q1", BREAD, "d2", "sun"], ["q2", "", "d1", ""]], columns=COLUMNS)
    assert_equal(mono(frame), ranked(frame, model.score))


# --- lengths ---


def test_truncation_is_said_once_with_its_share(mono: MonoElectraReRanker) -> None:
    long_text, long_query = "sun " * 17, "sun " * 7
    frame = pd.DataFrame(
        [
            ["q1", BREAD, "d1", "sun"],
            ["q1", BREAD, "d2", long_text],
            ["q1", BREAD, "d3", long_text],
            ["q2", long_query, "d1", "sun"],
            ["q2", long_query, "d2", long_text],
        ],
        columns=COLUMNS,
    )
    with pytest.warns(TruncationWarning) as said:
        mono(frame)
    assert len(said) == 1
    text = str(said[0].message)
    for part in ("50.0% of the queries (beyond 6 tokens)", "50.0% of the texts (beyond 16 tokens)", "4 pairs"):
        assert part in text
    assert "pt.text.sliding(text_attr='text', prepend_attr=None) >> ... >> pt.text.max_passage()" in text
    mono(frame)  # warnings are errors here


def test_only_the_side_that_was_cut_is_named(mono: MonoElectraReRanker) -> None:
    with pytest.warns(TruncationWarning, match=r"cut 100\.0% of the texts \(beyond 16 tokens\) in 1 pairs"):
        mono(pd.DataFrame([["q1", BREAD, "d1", "sun " * 17]], columns=COLUMNS))


def test_a_cut_among_many_texts_is_not_none_of_them(mono: MonoElectraReRanker) -> None:
    texts = ["sun " * 17, *(f"sun {n}" for n in range(1001))]
    with pytest.warns(TruncationWarning, match=r"cut less than 0\.1% of the texts"):
        mono.rank(BREAD, texts)


def test_nothing_is_said_where_nothing_is_cut(mono: MonoElectraReRanker) -> None:
    mono(pd.DataFrame([["q1", "sun " * 6, "d1", "sun " * 16]], columns=COLUMNS))


def test_lengths_can_be_set(model: tiny.Tiny, tmp_path: Path) -> None:
    mono = MonoElectra(model.folder, device="cpu", query_length=2, doc_length=30)
    assert (mono.checkpoint.tokenizer.lengths.query, mono.checkpoint.tokenizer.lengths.doc) == (2, 30)
    frame = pd.DataFrame([["q1", "sun cat mat", "d1", "moon " * 30]], columns=COLUMNS)
    with pytest.warns(TruncationWarning, match=r"100\.0% of the queries \(beyond 2 tokens\) in 1 pairs"):
        out = mono(frame)
    longer = {**tiny.LIGHTNING_IR_HUB, "query_length": 2, "doc_length": 30}
    score = tiny.scoring(tiny.transformers_model(), tiny.write_tokenizer(tmp_path), longer, tiny.linear_head())
    assert out["score"].tolist() == pytest.approx([score("sun cat mat", "moon " * 30)], abs=1e-5)


def test_lengths_beyond_the_model_are_an_error_with_the_limit(model: tiny.Tiny, frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="at most 45 tokens"):
        MonoElectra(model.folder, doc_length=100)(frame)


def test_checkpoints_without_lengths_name_the_limit_of_the_pair(
    checkpoint: Callable[[str], tiny.Tiny],
) -> None:
    mono = MonoElectra(checkpoint("classification-1").folder, device="cpu")
    frame = pd.DataFrame([["q1", BREAD, "d1", "sun " * 60]], columns=COLUMNS)
    with pytest.warns(TruncationWarning, match=r"100\.0% of the texts"):
        mono(frame)


# --- scores ---


@pytest.fixture
def broken(model: tiny.Tiny, tmp_path: Path) -> Path:
    """A checkpoint that makes no number of a text with "cat"."""
    folder = tiny.copy(model.folder, tmp_path / "broken")
    state = tiny.load_state(folder)
    state["embeddings.word_embeddings.weight"][tiny.VOCAB.index("cat")] = float("nan")
    tiny.save_state(folder, state)
    return folder


def test_a_non_finite_score_is_an_error_that_names_the_docno(broken: Path, frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"score of docno 'd3' \(qid 'q2'\) is nan; 2 of 6 .*not finite.*weights"):
        MonoElectra(broken, device="cpu")(frame)
    with pytest.raises(ValueError, match="Use dtype='float32' instead of 'int8'"):
        MonoElectra(broken, device="cpu", dtype="int8")(frame)


@tiny.needs_bfloat16
def test_a_score_that_half_precision_breaks_asks_for_float32(broken: Path, frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="Use dtype='float32' instead of 'bfloat16'"):
        MonoElectra(broken, device="cpu", dtype="bfloat16")(frame)


def test_sigmoid_maps_to_0_1_and_keeps_the_order(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    logits = mono(frame)
    out = mono.clone(activation="sigmoid")(frame)
    assert_equal(out, logits.assign(score=1 / (1 + np.exp(-logits["score"]))))
    assert out["score"].between(0, 1).all()
    assert out["score"].dtype == np.float64


@tiny.needs_bfloat16
def test_bfloat16_ranks_with_near_scores(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    by_row = ["qid", "docno"]
    near = mono.clone(dtype="bfloat16")(frame).sort_values(by_row)["score"].to_numpy()
    exact = mono(frame).sort_values(by_row)["score"].to_numpy()
    assert 0 < np.abs(near - exact).max() < 0.3


@pytest.mark.parametrize("batch_tokens", [1, 20, 100_000])
def test_the_batch_budget_does_not_change_the_result(
    mono: MonoElectraReRanker, frame: pd.DataFrame, batch_tokens: int
) -> None:
    assert_equal(mono.clone(batch_tokens=batch_tokens)(frame), mono(frame))


def test_verbose_draws_a_bar(
    mono: MonoElectraReRanker, frame: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    mono(frame)
    assert capsys.readouterr().err == ""
    mono.clone(verbose=True)(frame)
    drawn = capsys.readouterr().err
    assert "MonoElectra" in drawn
    assert "6/6" in drawn
    assert "pairs/s" in drawn


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float64"}, "dtype must be one of float32, bfloat16, float16, int8, tf32, got 'float64'"),
        ({"dtype": torch.float16}, "dtype must be one of"),
        ({"activation": "softmax"}, "activation must be None or one of sigmoid, got 'softmax'"),
        ({"batch_tokens": 0}, "batch_tokens must be .*at least 1, got 0"),
        ({"batch_tokens": 2.5}, "batch_tokens must be .*got 2.5"),
        ({"batch_tokens": True}, "batch_tokens must be .*got True"),
        ({"query_length": -1}, "query_length must be .*got -1"),
        ({"doc_length": "256"}, "doc_length must be .*got '256'"),
        ({"text_field": ""}, "text_field must be the name of a column, got ''"),
        ({"text_field": None}, "text_field must be the name of a column, got None"),
        ({"model": "/no/such/folder"}, "MonoElectraReRanker: /no/such/folder is not a folder"),
        ({"model": Path("none")}, "none is not a folder"),
    ],
    ids=str,
)
def test_impossible_settings_are_errors_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MonoElectra(**settings)


def test_revision_with_a_folder_is_an_error_at_once(model: tiny.Tiny) -> None:
    with pytest.raises(CheckpointError, match=r"revision='v1' was given, but .* is a folder"):
        MonoElectra(model.folder, revision="v1")
    with pytest.raises(ValueError, match="revision must be None where model is an open Checkpoint, got 'v1'"):
        MonoElectra(Checkpoint.open(model.folder), revision="v1")


def test_a_device_that_is_not_there_is_an_error(model: tiny.Tiny, frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="device must be one that torch finds here, got 'cuda:99'"):
        MonoElectra(model.folder, device="cuda:99")(frame)


def test_set_parameter_takes_effect(mono: MonoElectraReRanker, base: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    first = mono(frame)
    mono.set_parameter("model", base.model)
    assert_equal(mono(frame), base(frame))
    assert not np.allclose(mono(frame)["score"], first["score"], atol=0.1)
    mono.set_parameter("text_field", "body")
    assert_equal(mono(frame.rename(columns={"text": "body"})).rename(columns={"body": "text"}), base(frame))
    mono.set_parameter("dtype", "float63")
    with pytest.raises(ValueError, match="dtype must be one of"):
        mono(frame.rename(columns={"text": "body"}))


@pytest.mark.parametrize(("name", "value"), [("activation", "softmax"), ("dtype", "int4"), ("batch_tokens", -1)])
def test_impossible_settings_by_set_parameter_are_errors(
    mono: MonoElectraReRanker, frame: pd.DataFrame, name: str, value: Any
) -> None:
    mono(frame)
    mono.set_parameter(name, value)
    with pytest.raises(ValueError, match=f"{name} must be"):
        mono(frame)


def test_the_model_is_opened_once(
    mono: MonoElectraReRanker, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    mono(frame)
    monkeypatch.setattr(Checkpoint, "open", None)
    mono(frame)
    mono.set_parameter("verbose", False)
    mono.set_parameter("activation", "sigmoid")
    mono(frame)


def test_a_custom_text_field(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    other = frame.rename(columns={"text": "body"}).assign(text="not read")
    out = mono.clone(text_field="body")(other)
    assert_equal(out[["qid", "docno", "score", "rank"]], mono(frame)[["qid", "docno", "score", "rank"]])
    with pytest.raises(pt.validate.InputValidationError, match="'title'"):
        mono.clone(text_field="title")(frame)


def test_an_open_checkpoint_is_a_model(mono: MonoElectraReRanker, frame: pd.DataFrame, model: tiny.Tiny) -> None:
    opened = Checkpoint.open(model.folder)
    ours = MonoElectra(opened, device="cpu")
    assert_equal(ours(frame), mono(frame))
    assert ours.checkpoint is opened
    assert ours.scorer.encoder.linear.weight.data_ptr() == opened.encoder.linear.weight.data_ptr()
    assert repr(ours) == f"MonoElectraReRanker(Checkpoint({str(model.folder)!r}), device='cpu')"


def test_repr_shows_the_settings_that_are_not_default() -> None:
    assert repr(MonoElectra()) == "MonoElectraReRanker('webis/monoelectra-base')"
    settings = {
        "revision": "0123abc",
        "device": "cpu",
        "dtype": "int8",
        "query_length": 16,
        "doc_length": 128,
        "text_field": "body",
        "activation": "sigmoid",
    }
    shown = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    mono = MonoElectra("webis/monoelectra-large", **settings)
    assert repr(mono) == f"MonoElectraReRanker('webis/monoelectra-large', {shown})"
    assert repr(eval(repr(mono))) == repr(mono)


def test_repr_and_records_say_which_precision_runs(
    model: tiny.Tiny, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = MonoElectra(model.folder, device="cpu", dtype="bfloat16")
    able = onednn.works(onednn.BFloat16Linear)
    assert asked.precision == ("bfloat16" if able else "float32")
    assert MonoElectra(model.folder, device="meta", dtype="bfloat16").precision == "bfloat16"
    works = onednn.works
    monkeypatch.setattr(onednn, "works", lambda kind: kind is not onednn.BFloat16Linear and works(kind))
    assert asked.precision == "float32"
    assert asked.dtype == "bfloat16"
    assert repr(asked) == f"MonoElectraReRanker({str(model.folder)!r}, device='cpu', dtype='float32')"
    whole = MonoElectra(model.folder, device="cpu")
    with pytest.warns(PrecisionWarning):
        assert_equal(asked(frame), whole(frame))
    assert model_identity(asked) == model_identity(whole)
    assert describe(asked)["dtype"] == "float32"


def test_repr_of_a_path_is_its_text(model: tiny.Tiny) -> None:
    assert repr(MonoElectra(model.folder)) == f"MonoElectraReRanker({str(model.folder)!r})"


# --- copies ---


def test_clone_changes_settings_and_shares_the_weights(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    mono(frame)
    twin = mono.clone(activation="sigmoid", verbose=False)
    assert twin.scorer is mono.scorer
    assert (twin.activation, mono.activation) == ("sigmoid", None)
    assert twin.model == mono.model
    shorter = mono.clone(doc_length=2)
    assert shorter.scorer is not mono.scorer
    assert (shorter.doc_length, mono.doc_length) == (2, None)


def test_clone_before_opening_opens_its_own(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    assert_equal(mono.clone()(frame), mono(frame))


def test_clone_rejects_what_the_constructor_rejects(mono: MonoElectraReRanker) -> None:
    with pytest.raises(ValueError, match="dtype must be"):
        mono.clone(dtype="int4")
    with pytest.raises(Exception, match="lenght"):
        mono.clone(doc_lenght=3)


def test_pickles_carry_the_name_and_not_the_weights(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    expected = mono(frame)
    pickled = pickle.dumps(mono)
    assert len(pickled) < 2_000
    again = pickle.loads(pickled)
    assert repr(again) == repr(mono)
    assert_equal(again(frame), expected)


def test_pickles_of_an_open_checkpoint_score_equally(frame: pd.DataFrame, model: tiny.Tiny) -> None:
    mono = MonoElectra(Checkpoint.open(model.folder), device="cpu")
    assert_equal(pickle.loads(pickle.dumps(mono))(frame), mono(frame))


def test_deep_copies_score_equally(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    expected = mono(frame)
    for twin in (copy.deepcopy(mono), copy.copy(mono), copy.deepcopy(mono >> mono)):
        assert_equal(twin(frame), expected)


# --- records ---


def test_transform_iter_gives_records_in_the_order_of_the_frame(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    records = frame.to_dict(orient="records")
    out = list(mono.transform_iter(iter(records)))
    assert_equal(pd.DataFrame(out), mono(frame))
    assert mono(records) == out


@pytest.mark.usefixtures("never_opened")
def test_transform_iter_of_nothing_is_nothing() -> None:
    mono = MonoElectra("webis/monoelectra-base")
    assert list(mono.transform_iter([])) == []
    assert mono([]) == []


@pytest.mark.usefixtures("never_opened")
def test_transform_iter_validates(frame: pd.DataFrame) -> None:
    with pytest.raises(pt.validate.InputValidationError, match="text_loader"):
        list(MonoElectra("webis/monoelectra-base").transform_iter(frame.drop(columns="text").to_dict("records")))


# --- pipelines ---


@pytest.fixture
def first_stage(frame: pd.DataFrame) -> pt.Transformer:
    scored = frame.drop(columns="query").assign(score=[1.0, 4.0, 3.0, 2.0, 2.0, 1.0])
    return pt.Transformer.from_df(pt.model.add_ranks(scored))


@pytest.fixture
def topics() -> pd.DataFrame:
    return pd.DataFrame([["q1", BREAD], ["q2", RAIN]], columns=["qid", "query"])


def test_re_ranks_a_first_stage(
    mono: MonoElectraReRanker, first_stage: pt.Transformer, topics: pd.DataFrame, frame: pd.DataFrame
) -> None:
    assert_equal((first_stage >> mono)(topics)[list(mono(frame).columns)], mono(frame))


def test_rank_cutoff_keeps_the_best(mono: MonoElectraReRanker, frame: pd.DataFrame) -> None:
    out = mono(frame)
    assert_equal((mono % 2)(frame), out[out["rank"] < 2].reset_index(drop=True))


def test_cascades_score_what_is_left_with_the_next_model(
    mono: MonoElectraReRanker,
    base: MonoElectraReRanker,
    checkpoint: Callable[[str], tiny.Tiny],
    first_stage: pt.Transformer,
    topics: pd.DataFrame,
) -> None:
    out = (first_stage >> mono % 3 >> base % 2)(topics)
    left = (first_stage >> mono)(topics).query("rank < 3")
    expected = ranked(left[["qid", "query", "docno", "text"]], checkpoint("projection").score).query("rank < 2")
    assert_equal(out[list(expected.columns)], expected.reset_index(drop=True))


def test_sum_adds_scores_of_two_models(
    mono: MonoElectraReRanker, base: MonoElectraReRanker, frame: pd.DataFrame
) -> None:
    both = (mono + base)(frame).set_index(["qid", "docno"])["score"]
    expected = mono(frame).set_index(["qid", "docno"])["score"] + base(frame).set_index(["qid", "docno"])["score"]
    assert both.sort_index().tolist() == pytest.approx(expected.sort_index().tolist(), abs=1e-5)


def test_feature_union_reads_it_as_a_feature(
    mono: MonoElectraReRanker, base: MonoElectraReRanker, frame: pd.DataFrame
) -> None:
    out = (mono**base)(frame)
    scores = mono(frame).set_index(["qid", "docno"])["score"]
    got = {(row.qid, row.docno): row.features[0] for row in out.itertuples()}
    assert got == pytest.approx(scores.to_dict(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:There are shared pipeline components")  # PyTerrier's hint to plan="tree"
def test_experiment(mono: MonoElectraReRanker, first_stage: pt.Transformer, topics: pd.DataFrame) -> None:
    best = (first_stage >> mono)(topics).query("rank == 0")
    qrels = best[["qid", "docno"]].assign(label=1)
    table = pt.Experiment(
        [first_stage, first_stage >> mono], topics, qrels, [nDCG @ 10], names=["first", "mono"], baseline=0
    ).set_index("name")
    assert table.loc["mono", "nDCG@10"] == pytest.approx(1.0)
    assert table.loc["first", "nDCG@10"] < 1


def test_experiment_names_tell_settings_apart(model: tiny.Tiny) -> None:
    assert str(MonoElectra(model.folder)) != str(MonoElectra(model.folder, doc_length=2))
    assert hash(MonoElectra(model.folder)) != hash(MonoElectra(model.folder, doc_length=2))


def test_search(mono: MonoElectraReRanker, first_stage: pt.Transformer) -> None:
    assert (first_stage >> mono).search(BREAD, qid="q1")["rank"].tolist() == [0, 1, 2, 3]


def test_long_documents_by_their_best_passage(mono: MonoElectraReRanker, model: tiny.Tiny) -> None:
    parts = ["the sun and the moon", "yeast and bread in water", "the cat sat on mat"]
    frame = pd.DataFrame([["q1", BREAD, "d1", " ".join(parts)], ["q1", BREAD, "d2", parts[2]]], columns=COLUMNS).assign(
        score=0.0, rank=[0, 1]
    )
    sliding = pt.text.sliding(text_attr="text", length=5, stride=5, prepend_attr=None)
    out = (sliding >> mono >> pt.text.max_passage())(frame)
    best = {"d1": max(model.score(BREAD, part) for part in parts), "d2": model.score(BREAD, parts[2])}
    assert dict(zip(out["docno"], out["score"], strict=True)) == pytest.approx(best, abs=1e-5)
    assert out.sort_values("rank")["docno"].tolist() == sorted(best, key=lambda docno: (-best[docno], docno))


def test_a_score_cache_around_it(
    mono: MonoElectraReRanker, frame: pd.DataFrame, forwards: list[int], tmp_path: Path
) -> None:
    caching = pytest.importorskip("pyterrier_caching")
    expected = mono(frame)
    with caching.ScorerCache(tmp_path / "cache", mono) as cache:
        forwards.clear()
        cache(frame)
        assert sum(forwards) == 5
        forwards.clear()
        again = cache(frame)
        assert forwards == []
    keys = ["qid", "docno"]
    assert again.set_index(keys)["score"].to_dict() == pytest.approx(
        expected.set_index(keys)["score"].to_dict(), abs=1e-5
    )


# --- inspection ---


@pytest.mark.usefixtures("never_opened")
def test_inspection_gives_inputs_outputs_and_attributes() -> None:
    mono = MonoElectra("webis/monoelectra-base", text_field="body", doc_length=128)
    assert pt.inspect.transformer_inputs(mono) == [["qid", "query", "docno", "body"]]
    assert pt.inspect.transformer_outputs(mono, ["qid", "query", "docno", "body", "rank", "score"]) == [
        *("qid", "query", "docno", "body"),
        *("score", "rank"),
    ]
    with pytest.raises(pt.validate.InputValidationError):
        pt.inspect.transformer_outputs(mono, ["qid", "query"])
    attributes = {attribute.name: attribute.value for attribute in pt.inspect.transformer_attributes(mono)}
    assert attributes == {
        "model": "webis/monoelectra-base",
        "revision": None,
        "local_files_only": False,
        "device": None,
        "dtype": "float32",
        "batch_tokens": None,
        "query_length": None,
        "doc_length": 128,
        "text_field": "body",
        "activation": None,
        "verbose": None,
    }


@pytest.mark.usefixtures("never_opened")
def test_schematic_has_a_short_label_and_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTerrier looks up the documentation of its own transformers on the net, here of `% 10`.
    monkeypatch.setattr("pyterrier.documentation.objects_inv", dict)
    mono = MonoElectra("webis/monoelectra-base")
    schematic = pt.schematic.transformer_schematic(mono, input_columns=COLUMNS)
    assert schematic["label"] == "MonoElectra base"
    assert "MonoElectra" in pt.schematic.draw(mono % 10 >> mono)


@pytest.mark.usefixtures("never_opened")
def test_schematic_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_up() -> None:
        raise AssertionError("PyTerrier looked for the documentation's address on the net: the schematic gives none")

    monkeypatch.setattr("pyterrier.documentation.objects_inv", looked_up)
    assert "MonoElectra" in pt.schematic.draw(MonoElectra("webis/monoelectra-base"))


@pytest.mark.usefixtures("never_opened")
def test_a_pipeline_is_validated_before_it_runs(topics: pd.DataFrame, frame: pd.DataFrame) -> None:
    without_text = pt.Transformer.from_df(frame.drop(columns=["text", "query"]).assign(score=1.0, rank=0))
    pipeline = without_text >> MonoElectra("webis/monoelectra-base")
    with pytest.raises(pt.validate.InputValidationError, match="text_loader"):
        pipeline(topics)


@pytest.mark.usefixtures("never_opened")
def test_making_copying_and_printing_open_nothing() -> None:
    mono = MonoElectra("webis/monoelectra-base")
    twins = [mono.clone(), pickle.loads(pickle.dumps(mono)), copy.deepcopy(mono)]
    assert {repr(twin) for twin in twins} == {repr(mono)}
    assert str(mono) == "MonoElectraReRanker('webis/monoelectra-base')"


TestPyTerrierContract = pt.testing.transformer_test_class(lambda: MonoElectra("webis/monoelectra-base"))


# --- saving ---


def test_save_writes_a_folder_that_ranks_equally(
    mono: MonoElectraReRanker, frame: pd.DataFrame, tmp_path: Path
) -> None:
    folder = mono.save(tmp_path / "saved", model_card="# Mine\n")
    assert_equal(MonoElectra(folder, device="cpu")(frame), mono(frame))
    assert (folder / "README.md").read_text() == "# Mine\n"


def test_save_writes_the_lengths_in_use(model: tiny.Tiny, tmp_path: Path) -> None:
    folder = MonoElectra(model.folder, doc_length=9, device="cpu").save(tmp_path / "saved")
    assert Checkpoint.open(folder).tokenizer.lengths.doc == 9


class FakeHub:
    def __init__(self) -> None:
        self.token: str | None = None
        self.made: list[dict[str, Any]] = []
        self.uploads: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    def __call__(self, token: str | None = None) -> FakeHub:
        self.token = token
        return self

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.made.append({"repo_id": repo_id, **options})

    def upload_folder(self, *, folder_path: Path, **options: Any) -> huggingface_hub.CommitInfo:
        self.files = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        self.uploads.append(options)
        return huggingface_hub.CommitInfo(
            commit_url="https://huggingface.co/owner/name/commit/0123abc", commit_message="", commit_description="",
            oid="0123abc",
        )  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", fake)
    return fake


def test_push_to_hub_uploads_what_save_writes(
    mono: MonoElectraReRanker, frame: pd.DataFrame, hub: FakeHub, tmp_path: Path
) -> None:
    address = mono.push_to_hub("owner/name", private=True, token="secret", model_card="# Mine\n")
    assert address == "https://huggingface.co/owner/name/commit/0123abc"
    assert hub.token == "secret"
    assert hub.made == [{"repo_id": "owner/name", "private": True, "exist_ok": True}]
    assert [upload["repo_id"] for upload in hub.uploads] == ["owner/name"]
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    assert hub.files["README.md"] == b"# Mine\n"
    assert_equal(MonoElectra(tmp_path, device="cpu")(frame), mono(frame))


def test_push_to_hub_in_the_format_of_transformers(
    mono: MonoElectraReRanker, frame: pd.DataFrame, hub: FakeHub, tmp_path: Path
) -> None:
    mono.push_to_hub("owner/name", format="transformers")
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    assert json.loads(hub.files["config.json"])["architectures"] == ["ElectraForSequenceClassification"]
    assert_equal(MonoElectra(tmp_path, device="cpu")(frame), mono(frame))


def test_push_to_hub_leaves_nothing_behind(
    mono: MonoElectraReRanker, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mono.push_to_hub("owner/name")
    assert "model.safetensors" in hub.files
    assert list(tmp_path.iterdir()) == []


# --- without a run ---


def test_rank_gives_a_frame_of_texts_best_first(mono: MonoElectraReRanker, model: tiny.Tiny) -> None:
    texts = ["The cat sat on the mat.", "Yeast makes bread rise.", "", "The cat sat on the mat."]
    out = mono.rank(BREAD, texts)
    assert list(out.columns) == ["docno", "text", "score", "rank"]
    assert [texts[docno] for docno in out["docno"]] == out["text"].tolist()
    assert out["rank"].tolist() == [0, 1, 2, 3]
    assert out["score"].is_monotonic_decreasing
    assert out["score"].tolist() == pytest.approx([model.score(BREAD, text) for text in out["text"]], abs=1e-5)
    assert_frame_equal(mono.rank(BREAD, tuple(texts)), out)
    assert_frame_equal(mono.rank(BREAD, pd.Series(texts)), out)
    assert_frame_equal(mono.rank(BREAD, np.array(texts, dtype=object)), out)


def test_rank_by_docno(mono: MonoElectraReRanker) -> None:
    texts = {"d7": "Yeast.", "d3": "The moon."}
    out = mono.clone(text_field="body").rank(BREAD, texts)
    assert list(out.columns) == ["docno", "body", "score", "rank"]
    assert dict(zip(out["docno"], out["body"], strict=True)) == texts


def test_rank_of_no_text_is_an_empty_frame(mono: MonoElectraReRanker) -> None:
    for nothing in ([], {}):
        out = mono.rank(BREAD, nothing)
        assert (list(out.columns), len(out)) == (["docno", "text", "score", "rank"], 0)


@pytest.mark.parametrize(
    ("query", "texts", "message"),
    [
        (BREAD, "one text", r"\.rank: texts must be a list of strings, or a dict .*got 'one text'"),
        (BREAD, None, "texts must be a list of strings"),
        (BREAD, ["sun", 3], "text of docno 1 .*not a string but 3"),
        (BREAD, ["sun", None], "text of docno 1 .*is missing"),
        (None, ["sun"], "query of docno 0 .*is missing"),
        (["a", "b"], ["sun", "moon"], r"query must be a string, got \['a', 'b'\]"),
    ],
)
def test_rank_of_what_is_no_text_is_an_error(mono: MonoElectraReRanker, query: Any, texts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mono.rank(query, texts)


# --- any cross-encoder ---


def test_a_cross_encoder_is_named(model: tiny.Tiny, frame: pd.DataFrame, mono: MonoElectraReRanker) -> None:
    with pytest.raises(
        ValueError, match="CrossEncoderReRanker: model must be a hub id, a folder, or an open Checkpoint"
    ):
        CrossEncoderReRanker()
    ours = CrossEncoderReRanker(model.folder, device="cpu")
    assert_equal(ours(frame), mono(frame))
    assert repr(ours) == f"CrossEncoderReRanker({str(model.folder)!r}, device='cpu')"
    assert repr(ours.clone(doc_length=3)) == f"CrossEncoderReRanker({str(model.folder)!r}, device='cpu', doc_length=3)"
    assert isinstance(mono, CrossEncoderReRanker)
    assert not isinstance(ours, MonoElectraReRanker)
    assert_equal(pickle.loads(pickle.dumps(ours))(frame), mono(frame))


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert-cls", "deberta-v2"])
def test_other_families_re_rank(name: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    folder = families.make(tmp_path, name)
    scores = families.scores(folder, list(zip(frame["query"], frame["text"], strict=True)))
    known = dict(zip(zip(frame["qid"], frame["docno"], strict=True), scores, strict=True))
    out = CrossEncoderReRanker(Checkpoint.open(folder), device="cpu")(frame)
    assert out["score"].tolist() == pytest.approx([known[row.qid, row.docno] for row in out.itertuples()], abs=2e-5)


TestContractOfAnyCrossEncoder = pt.testing.transformer_test_class(lambda: CrossEncoderReRanker("owner/name"))


def test_monoelectra_is_the_one_alias() -> None:
    assert pyterrier_rankdistillm.MonoElectra is pyterrier_rankdistillm.MonoElectraReRanker
