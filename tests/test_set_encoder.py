"""The Set-Encoder: equal to Lightning IR's (0.0.6), independent of order and batches, in pipelines."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import tiny
import torch

from pyterrier_rankdistillm import (
    Checkpoint,
    CheckpointError,
    CrossEncoderReRanker,
    LongListWarning,
    MonoElectra,
    SetEncoderReRanker,
    cli,
    runs,
)
from pyterrier_rankdistillm.runs import ScoreCache
from pyterrier_rankdistillm.scoring.scorer import ListScorer, Scorer
from pyterrier_rankdistillm.scoring.sets import SetEncoder
from pyterrier_rankdistillm.set_encoder import of_its_kind

FIXTURE = Path(__file__).parent / "parity" / "set-encoder"  # see parity/make_set_fixture.py
KINDS = ("with-token", "without-token")
TOLERANCE = 2e-5

pytestmark = pytest.mark.filterwarnings("ignore::pyterrier_rankdistillm.TruncationWarning")


def frame_of(file: Path, scores: str) -> pd.DataFrame:
    """The lists of a file as a result frame, with the scores that Lightning IR gave."""
    lists = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [
        (f"q{number}", one["query"], f"d{place}", text, score)
        for number, one in enumerate(lists)
        for place, (text, score) in enumerate(zip(one["texts"], one[scores], strict=True))
    ]
    return pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "expected"])


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lists(kind: str) -> pd.DataFrame:
    return frame_of(FIXTURE / "lists.jsonl", kind)


def reranker(kind: str = "with-token", **settings: Any) -> SetEncoderReRanker:
    return SetEncoderReRanker(FIXTURE / kind, device="cpu", **settings)


def scores_of(result: pd.DataFrame) -> pd.Series:
    return result.set_index(["qid", "docno"])["score"].sort_index()


# --- scores ---


@pytest.mark.parametrize("batch_tokens", [None, 1, 300, 10**6])
def test_equals_lightning_ir(kind: str, lists: pd.DataFrame, batch_tokens: int | None) -> None:
    result = reranker(kind, batch_tokens=batch_tokens)(lists)
    assert np.ptp(lists["expected"]) > 2
    np.testing.assert_allclose(result["score"], result["expected"], rtol=0, atol=TOLERANCE)


@pytest.mark.shared
@pytest.mark.parametrize("batch_tokens", [None, 1, 10**6])
def test_equals_lightning_ir_on_ms_marco_lists(shared: Path, kind: str, batch_tokens: int | None) -> None:
    folder = shared / "reference" / "set-encoder-parity" / kind
    result = SetEncoderReRanker(folder, device="cpu", batch_tokens=batch_tokens)(
        frame_of(folder / "lists.jsonl", "scores")
    )
    assert result["qid"].nunique() == 6
    np.testing.assert_allclose(result["score"], result["expected"], rtol=0, atol=TOLERANCE)


def test_passages_matter_to_each_other(kind: str, lists: pd.DataFrame) -> None:
    """A list of one is scored as a cross-encoder of the same weights scores the pair; longer ones are not."""
    opened = Checkpoint.open(FIXTURE / kind)
    alone = reranker(kind)(lists.assign(qid=[f"{q}-{d}" for q, d in zip(lists["qid"], lists["docno"], strict=True)]))
    alone = scores_of(alone.assign(qid=alone["qid"].str.partition("-")[0]))
    together = scores_of(reranker(kind)(lists))
    np.testing.assert_allclose(alone["q0"], together["q0"], rtol=0, atol=1e-6)
    assert (alone["q3"] - together["q3"]).abs().max() > 0.05
    assert opened.encoder.sees_lists


@pytest.mark.parametrize("seed", range(3))
def test_order_index_other_queries_and_batches_do_not_matter(kind: str, lists: pd.DataFrame, seed: int) -> None:
    expected = scores_of(reranker(kind)(lists))
    shuffled = lists.sample(frac=1, random_state=seed).set_index(np.full(len(lists), 7))
    batch_tokens = (None, 40, 5_000)[seed]
    found = reranker(kind, batch_tokens=batch_tokens)(shuffled)
    np.testing.assert_allclose(scores_of(found), expected, rtol=0, atol=1e-5)
    alone = reranker(kind)(shuffled[shuffled["qid"] == "q2"])
    np.testing.assert_allclose(scores_of(alone), expected.loc[["q2"]], rtol=0, atol=1e-5)


def test_fewer_passages_change_the_scores_of_those_that_stay() -> None:
    lists = frame_of(FIXTURE / "lists.jsonl", "with-token").query("qid == 'q3'")
    lists = lists.assign(score=-np.arange(len(lists), dtype=float), rank=np.arange(len(lists)))
    cut = scores_of((pt.Transformer.from_df(lists) % 5 >> reranker())(lists[["qid", "query"]].head(1)))
    whole = scores_of(reranker()(lists))
    assert len(cut) == 5
    assert (cut - whole[cut.index]).abs().min() > 1e-4


def test_equal_texts_are_members_each() -> None:
    query, texts = "why does bread rise", ["yeast makes bread rise", "rain is water"]
    once, twice = reranker().rank(query, texts), reranker().rank(query, [*texts, texts[0]])
    assert len(twice) == 3
    changed = once.set_index("docno")["score"] - twice.set_index("docno")["score"]
    assert changed.abs().min() > 1e-4


def test_gradients_flow_from_a_passage_to_the_others(kind: str) -> None:
    """With layers computed again they are the same."""
    opened = Checkpoint.open(FIXTURE / kind)
    tokenizer = opened.tokenizer
    pairs = [tokenizer.join(*tokenizer.encode_docs(["bread", text])) for text in ("water and flour", "salt", "")]
    batches = [tuple(torch.from_numpy(array) for array in tokenizer.pad([pair])) for pair in pairs]
    gradients = []
    for recompute in (False, True):
        encoder = opened.encoder.copy(dropout=0.0).train()
        encoder.recompute_layers(recompute)
        encoder.together(batches)[0].backward()
        gradients.append({name: one.grad for name, one in encoder.named_parameters()})
    words = gradients[0]["embeddings.word_embeddings.weight"]
    assert words[pairs[1].ids[-2]].abs().max() > 0  # "salt", which is in another passage
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-6)


def test_a_thousand_passages_are_encoded_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    together = SetEncoder.together

    def note(self: SetEncoder, batches: Any) -> torch.Tensor:
        sizes.append([ids.numel() for ids, _, _ in batches])
        return together(self, batches)

    monkeypatch.setattr(SetEncoder, "together", note)
    texts = [f"bread {number} " + "water " * (number % 7) for number in range(1_000)]
    scores = []
    for batch_tokens in (None, 10**6):
        one = reranker(batch_tokens=batch_tokens)
        with pytest.warns(LongListWarning, match="got 1000 passages"):
            scores.append(one.rank("bread", texts).sort_values("docno")["score"])
    (small, (whole,)) = sizes
    assert max(small) <= 512
    assert whole >= sum(small)
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-5)


def test_memory_that_runs_out_halves_the_batches(lists: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    together = SetEncoder.together

    def small(self: SetEncoder, batches: Any) -> torch.Tensor:
        if max(len(ids) for ids, _, _ in batches) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return together(self, batches)

    def none(self: SetEncoder, batches: Any) -> torch.Tensor:
        del self, batches
        raise torch.OutOfMemoryError("out of memory")

    expected = scores_of(reranker()(lists))
    monkeypatch.setattr(SetEncoder, "together", small)
    limited = reranker(batch_tokens=10**6)
    np.testing.assert_allclose(scores_of(limited(lists)), expected, rtol=0, atol=1e-5)
    assert limited.scorer.batch_tokens < 10**6
    monkeypatch.setattr(SetEncoder, "together", none)
    with pytest.raises(MemoryError, match=r"with a list of 7 passages.*re-rank fewer documents per query"):
        reranker()(lists[lists["qid"] == "q2"])


@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=tiny.needs_bfloat16), "int8"])
def test_other_precisions_are_close(lists: pd.DataFrame, dtype: str) -> None:
    exact, rough = scores_of(reranker()(lists)), scores_of(reranker(dtype=dtype)(lists))
    assert 0 < (exact - rough).abs().max() < 0.5


# --- frames ---


def test_gives_what_the_other_rerankers_give(lists: pd.DataFrame) -> None:
    one = reranker()
    result = one(lists)
    assert list(result.columns) == [*lists.columns, "score", "rank"]
    assert result["rank"].tolist() == list(itertools.chain.from_iterable(map(range, result.groupby("qid").size())))
    assert one(lists.iloc[:0]).empty
    assert list(one.rank("bread", {"a": "water", "b": "flour"}).columns) == ["docno", "text", "score", "rank"]
    again = pickle.loads(pickle.dumps(one))
    pd.testing.assert_frame_equal(again(lists), result)
    pd.testing.assert_frame_equal(copy.deepcopy(one)(lists), result)


def test_two_queries_of_one_qid_are_told(lists: pd.DataFrame) -> None:
    mixed = lists[lists["qid"].isin(["q2", "q3"])].assign(qid="one")
    with pytest.raises(ValueError, match="SetEncoderReRanker: query must be the same in all rows of a qid"):
        reranker()(mixed)


def test_longer_lists_than_it_was_trained_with_are_scored_with_one_warning() -> None:
    one = reranker()
    texts = [f"bread and {number} onions" for number in range(21)]
    frame = pd.DataFrame({"qid": "1", "query": "bread", "docno": [str(n) for n in range(21)], "text": texts})
    with pytest.warns(LongListWarning, match=r"got 21 passages of one query, but .* at most 20") as caught:
        ranked = one.transform(frame)
    assert caught[0].filename == __file__
    assert np.ptp(ranked["score"]) > 0
    one(frame)  # said once
    reranker()(frame.head(20))


class TestContract(pt.testing.transformer_test_class(SetEncoderReRanker)):  # type: ignore[misc]
    pass


def test_pipelines_can_be_drawn_inspected_and_validated(lists: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyterrier.documentation.objects_inv", dict)  # PyTerrier looks up its own `% 3` on the net
    cascade = CrossEncoderReRanker("rankdistillm:demo") % 3 >> reranker()
    assert "SetEncoder" in pt.schematic.draw(cascade)
    pipeline = pt.Transformer.from_df(lists.assign(score=0.0, rank=0).drop(columns="expected")) >> cascade
    assert "score" in pt.inspect.transformer_outputs(pipeline, ["qid", "query"])
    with pytest.raises(pt.validate.InputValidationError, match=r"text_loader\(\)"):
        reranker()(lists.drop(columns="text"))
    assert pipeline(lists[["qid", "query"]].drop_duplicates()).groupby("qid").size().max() == 3


def test_default_model_and_repr() -> None:
    assert SetEncoderReRanker().model == "webis/set-encoder-base"
    assert repr(SetEncoderReRanker(dtype="int8")) == ("SetEncoderReRanker('webis/set-encoder-base', dtype='int8')")
    with pytest.raises(TypeError, match="SetEncoderReRanker: there is no batch_size"):
        SetEncoderReRanker(batch_size=3)


# --- checkpoints ---


def test_each_kind_is_opened_by_its_own_reranker(model: tiny.Tiny) -> None:
    with pytest.raises(CheckpointError, match=r"MonoElectraReRanker: .* Open it with SetEncoderReRanker"):
        MonoElectra(FIXTURE / "with-token").rank("bread", ["water"])
    with pytest.raises(CheckpointError, match=r"SetEncoderReRanker: .* is not a set encoder.*as_set_encoder"):
        SetEncoderReRanker(model.folder).rank("bread", ["water"])
    with pytest.raises(ValueError, match="Use ListScorer"):
        Scorer(Checkpoint.open(FIXTURE / "with-token"), device="cpu")
    with pytest.raises(ValueError, match="Use Scorer"):
        ListScorer(Checkpoint.open(model.folder), device="cpu")


def test_where_a_model_is_given_by_name_its_kind_is_found_out(model: tiny.Tiny) -> None:
    named = of_its_kind(MonoElectra(FIXTURE / "with-token", batch_tokens=7, doc_length=9))
    assert type(named) is SetEncoderReRanker
    assert (named.batch_tokens, named.doc_length, named.model) == (7, 9, FIXTURE / "with-token")
    assert type(of_its_kind(MonoElectra(Checkpoint.open(FIXTURE / "with-token")))) is SetEncoderReRanker
    plain = MonoElectra(model.folder)
    assert of_its_kind(plain) is plain


def test_saved_again_it_scores_the_same(kind: str, lists: pd.DataFrame, tmp_path: Path) -> None:
    folder = reranker(kind).save(tmp_path / "saved")
    result = SetEncoderReRanker(folder, device="cpu")(lists)
    np.testing.assert_allclose(result["score"], result["expected"], rtol=0, atol=TOLERANCE)
    ours, theirs = (json.loads((one / "config.json").read_text("utf-8")) for one in (folder, FIXTURE / kind))
    keys = ("model_type", "architectures", "depth", "add_extra_token", "sample_missing_docs", "linear_bias")
    assert {key: ours[key] for key in keys} == {key: theirs[key] for key in keys}
    assert 'SetEncoderReRanker("this/folder")' in (folder / "README.md").read_text("utf-8")
    with pytest.raises(ValueError, match="format 'transformers' cannot hold a set encoder"):
        reranker(kind).save(tmp_path / "other", format="transformers")


def changed(tmp_path: Path, drop: tuple[str, ...] = (), **config: Any) -> Path:
    folder = tiny.copy(FIXTURE / "with-token", tmp_path / "changed")
    tiny.change_config(folder, drop, **config)
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depth": 0}, "depth must be a whole number of at least 1, got 0"),
        ({"depth": None}, "depth must be a whole number of at least 1, got None"),
        ({"add_extra_token": "yes"}, "add_extra_token must be true or false, got 'yes'"),
        ({"backbone_model_type": "roberta"}, "must be one of electra, bert, got 'roberta'"),
        ({"vocab_size": 1405}, "wrong shape: embeddings.word_embeddings.weight"),
    ],
)
def test_configs_that_cannot_be_are_told(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(changed(tmp_path, **config))


def test_what_older_configs_leave_out_is_as_in_lightning_ir(tmp_path: Path) -> None:
    opened = Checkpoint.open(changed(tmp_path, ("depth", "sample_missing_docs")))
    assert isinstance(opened.encoder, SetEncoder)
    assert (opened.encoder.interaction.depth, opened.encoder.interaction.extra_token) == (100, True)


def test_the_extra_token_is_put_where_the_tokenizer_s_file_lacks_it(tmp_path: Path) -> None:
    """As Lightning IR does, whatever the file says."""
    lists = frame_of(FIXTURE / "lists.jsonl", "with-token")
    folder = changed(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[INT]"]
    content["post_processor"] = None
    tiny.write_json(folder / "tokenizer.json", content)
    result = SetEncoderReRanker(folder, device="cpu")(lists)
    np.testing.assert_allclose(result["score"], result["expected"], rtol=0, atol=TOLERANCE)
    (folder / "tokenizer.json").unlink()  # vocab.txt is left
    result = SetEncoderReRanker(folder, device="cpu")(lists)
    np.testing.assert_allclose(result["score"], result["expected"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("extra_token_seed", [None, 5])
def test_a_cross_encoder_becomes_a_set_encoder(model: tiny.Tiny, extra_token_seed: int | None, tmp_path: Path) -> None:
    opened = Checkpoint.open(model.folder)
    made = opened.as_set_encoder(depth=7, extra_token_seed=extra_token_seed)
    pair = ("why does bread rise", "the cat sat on mat")
    (score,) = SetEncoderReRanker(made).rank(pair[0], [pair[1]])["score"]
    if extra_token_seed is None:  # alone, a passage has nobody to see
        assert score == pytest.approx(model.score(*pair), abs=1e-5)
        assert made.encoder.encoder.layer[0].output.dense.weight is not None
    else:
        assert made.encoder.vocab_size == opened.encoder.vocab_size + 1
        assert made.tokenizer.lengths.special_tokens == 4
    with pytest.warns(LongListWarning, match="at most 7"):
        SetEncoderReRanker(made).rank("bread", ["cat"] * 8)
    texts = ["bread", "the sun and the moon", ""]
    again = SetEncoderReRanker(made.save(tmp_path / "saved"))
    pd.testing.assert_frame_equal(again.rank("sun", texts), SetEncoderReRanker(made).rank("sun", texts))
    with pytest.raises(ValueError, match="must be an ELECTRA or BERT that scores passages one by one"):
        made.as_set_encoder()
    with pytest.raises(ValueError, match="depth must be a whole number, at least 1, got 0"):
        opened.as_set_encoder(depth=0)


def test_heads_that_lightning_ir_does_not_know_do_not_become_set_encoders(checkpoint: Any) -> None:
    with pytest.raises(ValueError, match="classification head"):
        Checkpoint.open(checkpoint("classification-1").folder).as_set_encoder()


# --- what keeps or shares scores ---


def test_the_score_cache_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"same score in any list, got SetEncoderReRanker.*other passages"):
        ScoreCache(reranker(), tmp_path)


def test_the_command_line_looks_into_the_checkpoint(lists: pd.DataFrame, tmp_path: Path) -> None:
    runs.write(lists.assign(score=0.0, rank=lists.groupby("qid").cumcount()), tmp_path / "in.parquet")
    lists[["docno", "text"]].drop_duplicates("docno").to_parquet(tmp_path / "texts.parquet")
    cli.main(
        ["rerank", str(tmp_path / "in.parquet"), str(tmp_path / "out.run"), "--model", str(FIXTURE / "with-token"),
         "--device", "cpu", "--text", str(tmp_path / "texts.parquet")]
    )  # fmt: skip
    found = runs.read(tmp_path / "out.run")
    texts = lists.drop_duplicates("docno").set_index("docno")["text"]
    expected = reranker()(lists.assign(text=lists["docno"].map(texts)))
    np.testing.assert_allclose(scores_of(found), scores_of(expected), rtol=0, atol=1e-5)
    assert "setencoder" in (tmp_path / "out.run").read_text("utf-8")


def test_nothing_is_warned_of_where_nothing_is_odd(lists: pd.DataFrame) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reranker()(lists[lists["qid"] == "q1"])
