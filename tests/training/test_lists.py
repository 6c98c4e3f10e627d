"""Training lists: literal contents, a seeded order, and nothing tokenised twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import toy

from pyterrier_rankdistillm.errors import TrainingDataError
from pyterrier_rankdistillm.runs import Rankings, write
from pyterrier_rankdistillm.runs.rankings import JoinedRankings
from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
from pyterrier_rankdistillm.scoring.tokenizer import PairTokenizer
from pyterrier_rankdistillm.training.lists import Lists, Texts, TrainingData, TrainingList, as_relevance
from pyterrier_rankdistillm.training.sampling import Sampling

QIDS = sorted(toy.QUERIES)
LIKE_THE_PAPER = Sampling(strategy="single_relevant", sample_size=4)


@pytest.fixture(scope="module")
def tokenizer(model: tiny.Tiny) -> PairTokenizer:
    return Checkpoint.open(model.folder).tokenizer


def data(
    run: pd.DataFrame = toy.RUN,
    qrels: pd.DataFrame = toy.QRELS,
    texts: Texts | None = None,
    *,
    labelled: bool = True,
    rankings: Rankings | None = None,
) -> TrainingData:
    rankings = rankings or Rankings.from_frame(run[[c for c in ("qid", "docno", "score", "rank") if c in run]])
    return TrainingData(
        rankings,
        np.arange(len(rankings)),
        toy.QUERIES,
        texts or Texts(toy.TEXTS),
        as_relevance(qrels, rankings.qids),
        labelled=labelled,
    )


def lists_of(tokenizer: PairTokenizer, sampling: Sampling = LIKE_THE_PAPER, **options: Any) -> Lists:
    given = options.pop("data", None) or data()
    return Lists(given, tokenizer, sampling, **{"total": 24, "seed": 1, "drop_near_duplicates": False, **options})


def plain(one: TrainingList) -> tuple[Any, ...]:
    return one.qid, [pair.ids for pair in one.pairs], {kind: target.tolist() for kind, target in one.targets.items()}


def docnos(tokenizer: PairTokenizer, one: TrainingList) -> list[str]:
    """Which documents a list has, by their texts."""
    of = {
        tuple(tokens.ids): docno
        for docno, tokens in zip(toy.TEXTS, tokenizer.encode_docs(list(toy.TEXTS.values())), strict=True)
    }
    return [of[tuple(pair.ids[pair.first_segment : -1])] for pair in one.pairs]


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All texts that are tokenised, queries too."""
    texts: list[str] = []
    encode = PairTokenizer._encode

    def noted(self: PairTokenizer, given: Sequence[str], length: int | None) -> Any:
        texts.extend(given)
        return encode(self, given, length)

    monkeypatch.setattr(PairTokenizer, "_encode", noted)
    return texts


# --- what a list holds ---


def test_a_taught_list(tokenizer: PairTokenizer) -> None:
    run = pd.DataFrame(
        {"qid": ["q1"] * 3, "docno": ["d03", "d01", "d02"], "score": [1.5, 9.25, -2.0], "rank": [1, 2, 0]}
    )
    qrels = pd.DataFrame({"qid": ["q1", "q2"], "docno": ["d01", "d03"], "label": [2, 1]})
    one = lists_of(tokenizer, Sampling(), data=data(run, qrels, labelled=False))[0]
    query, *texts = tokenizer.encode_queries([toy.QUERIES["q1"]]) + tokenizer.encode_docs(
        [toy.TEXTS[docno] for docno in ("d02", "d03", "d01")]
    )
    assert plain(one) == (
        "q1",
        [tokenizer.join(query, text).ids for text in texts],
        {"order": [0, -1, -2], "values": [-2.0, 1.5, 9.25], "relevance": [0, 0, 2]},
    )
    assert {target.dtype for target in one.targets.values()} == {np.dtype(np.float32)}


def test_targets_follow_the_documents_that_are_drawn(tokenizer: PairTokenizer) -> None:
    given = data(labelled=False)
    position = {ranking.qid: ranking for ranking in given.rankings}
    for one in lists_of(tokenizer, Sampling("random", sample_size=3), data=given).__getitems__(range(24)):
        ranking = position[one.qid]
        ranks = [ranking.docnos.index(docno) for docno in docnos(tokenizer, one)]
        assert ranks == sorted(ranks)
        assert one.targets["order"].tolist() == [-rank for rank in ranks]
        assert ranking.scores is not None
        assert one.targets["values"].tolist() == [ranking.scores[rank] for rank in ranks]
        assert one.targets["relevance"].tolist() == [float(rank in (1, 4)) for rank in ranks]


def test_a_run_without_scores_has_no_values(tokenizer: PairTokenizer) -> None:
    given = data(toy.RUN.drop(columns="score"), toy.QRELS[:0], labelled=False)
    assert lists_of(tokenizer, Sampling(), data=given)[0].targets.keys() == {"order"}


def test_a_labelled_list(tokenizer: PairTokenizer) -> None:
    for one in lists_of(tokenizer).__getitems__(range(24)):
        of_query = toy.RUN.loc[toy.RUN["qid"] == one.qid, "docno"].tolist()
        first, *rest = docnos(tokenizer, one)
        assert first in (of_query[1], of_query[4])
        assert len(set(rest)) == 3
        assert set(rest) < {of_query[rank] for rank in (0, 2, 3, 5)}
        for target in one.targets.values():
            assert target.tolist() == [1, 0, 0, 0]
        assert one.targets.keys() == {"relevance", "order", "values"}


def test_pairs_are_cut_to_the_lengths_that_are_trained_with(tokenizer: PairTokenizer) -> None:
    short = tokenizer.with_lengths(type(tokenizer.lengths)(query=2, doc=3, pair=48))
    one = lists_of(short)[0]
    assert max(len(pair.ids) for pair in one.pairs) == 2 + 3 + 3


# --- their order ---


def test_each_query_comes_once_an_epoch_in_a_seeded_order(tokenizer: PairTokenizer) -> None:
    qids = [one.qid for one in lists_of(tokenizer).__getitems__(range(24))]
    epochs = [qids[start : start + 8] for start in (0, 8, 16)]
    assert [sorted(epoch) for epoch in epochs] == [QIDS] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert QIDS not in epochs
    other = [one.qid for one in lists_of(tokenizer, seed=2).__getitems__(range(24))]
    assert sorted(other[:8]) == QIDS
    assert other != qids


def test_the_order_is_literal(tokenizer: PairTokenizer) -> None:
    """A training that is resumed under another version of numpy goes on with the same lists."""
    qids = [one.qid for one in lists_of(tokenizer).__getitems__(range(16))]
    assert qids == [f"q{n}" for n in (6, 1, 3, 0, 2, 7, 4, 5, 7, 5, 3, 1, 6, 4, 0, 2)]


def test_the_order_does_not_depend_on_the_runs(tokenizer: PairTokenizer) -> None:
    turned = lists_of(tokenizer, data=data(toy.RUN[::-1]))
    assert [plain(turned[index]) for index in range(24)] == [
        plain(one) for one in lists_of(tokenizer).__getitems__(range(24))
    ]


def test_only_members_are_used(tokenizer: PairTokenizer) -> None:
    whole = data()
    some = TrainingData(whole.rankings, np.array([1, 4, 6]), whole.queries, whole.texts, whole.relevance, labelled=True)
    qids = [one.qid for one in lists_of(tokenizer, data=some).__getitems__(range(6))]
    assert [sorted(qids[:3]), sorted(qids[3:])] == [["q1", "q4", "q6"]] * 2


def test_lists_follow_from_their_index_alone(tokenizer: PairTokenizer) -> None:
    lists = lists_of(tokenizer, Sampling("single_relevant", sample_size=4, random_negatives=0.5))
    expected = [plain(one) for one in lists.__getitems__(range(24))]
    assert len(lists) == 24
    assert [plain(lists[index]) for index in range(24)] == expected
    for seed in range(3):
        fresh = lists_of(tokenizer, Sampling("single_relevant", sample_size=4, random_negatives=0.5), kept_tokens=50)
        order = np.random.default_rng(seed).permutation(24).tolist()
        assert {index: plain(fresh[index]) for index in order} == dict(enumerate(expected))
        assert [plain(one) for one in fresh.__getitems__(order[:5])] == [expected[index] for index in order[:5]]


def test_a_query_gets_other_documents_in_each_epoch(tokenizer: PairTokenizer) -> None:
    drawn: dict[str, set[tuple[str, ...]]] = {}
    for one in lists_of(tokenizer).__getitems__(range(24)):
        drawn.setdefault(one.qid, set()).add(tuple(docnos(tokenizer, one)))
    assert all(len(lists) > 1 for lists in drawn.values())


def test_lists_do_not_depend_on_other_queries(tokenizer: PairTokenizer) -> None:
    """As where a run has grown: a query's documents of an epoch stay the same."""
    part = data(toy.RUN[toy.RUN["qid"].isin(["q2", "q5"])])
    small = {one.qid: plain(one) for one in lists_of(tokenizer, data=part).__getitems__(range(2))}
    whole = {one.qid: plain(one) for one in lists_of(tokenizer).__getitems__(range(8))}
    assert small == {qid: whole[qid] for qid in ("q2", "q5")}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_give_equal_lists(tokenizer: PairTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    write(toy.RUN[["qid", "docno", "score", "rank"]], tmp_path / "some.run")
    lists = lists_of(tokenizer, data=data(rankings=Rankings.from_file(tmp_path / "some.run"), texts=loaded()))
    loader = torch.utils.data.DataLoader(lists, batch_size=4, num_workers=2, collate_fn=list)
    given = [plain(one) for batch in loader for one in batch]
    assert given == [plain(lists[index]) for index in range(24)]
    assert given == [plain(one) for one in lists_of(tokenizer).__getitems__(range(24))]


# --- random negatives, near-duplicates, relevant documents that were not retrieved ---


def test_random_negatives_come_from_other_rankings(tokenizer: PairTokenizer) -> None:
    lists = lists_of(tokenizer, Sampling("single_relevant", sample_size=4, random_negatives=1.0))
    for one in lists.__getitems__(range(24)):
        of_query = set(toy.RUN.loc[toy.RUN["qid"] == one.qid, "docno"])
        first, *rest = docnos(tokenizer, one)
        assert first in of_query
        assert not of_query & set(rest)
        assert set(rest) <= set(toy.RUN["docno"])


REPEATING = {
    "rel": "the cat sat on the mat in the garden of the moon",
    "copy": "the cat sat on the mat in the garden of the moon",
    "near": "the cat sat on the mat in the garden of the moon .",
    "judged": "the cat sat on the mat in the garden of the moon",
    "far": "why does bread rise and not snow",
    "far2": "the onion is not the sun and not the water",
}


@pytest.fixture
def repeating() -> TrainingData:
    run = pd.DataFrame({"qid": "q1", "docno": ["copy", "rel", "judged", "near", "far", "far2"], "rank": range(6)})
    qrels = pd.DataFrame({"qid": "q1", "docno": ["rel", "judged"], "label": [1, 0]})
    return data(run, qrels, Texts(REPEATING))


def texts_of(tokenizer: PairTokenizer, lists: Lists) -> list[list[str]]:
    of = {
        tuple(tokens.ids): d
        for d, tokens in zip(REPEATING, tokenizer.encode_docs(list(REPEATING.values())), strict=True)
    }
    return [
        [of[tuple(pair.ids[pair.first_segment : -1])] for pair in lists[index].pairs] for index in range(len(lists))
    ]


def test_near_duplicates_of_a_relevant_document_are_exchanged(
    tokenizer: PairTokenizer, repeating: TrainingData
) -> None:
    ids = {docno: tokenizer.encode_docs([text])[0].ids for docno, text in REPEATING.items()}
    assert ids["rel"] == ids["copy"] == ids["judged"] != ids["near"]  # so rel, copy and judged read as "judged" below
    sampling = Sampling("single_relevant", sample_size=4)
    kept = texts_of(tokenizer, lists_of(tokenizer, sampling, data=repeating, total=30, drop_near_duplicates=False))
    assert any("near" in one for one in kept)
    exchanged = texts_of(tokenizer, lists_of(tokenizer, sampling, data=repeating, total=30, drop_near_duplicates=True))
    for one in exchanged:
        assert one[0] == "judged"  # the relevant one
        assert sorted(one[1:]) == ["far", "far2", "judged"]  # what is judged as not relevant stays


def test_without_spares_a_list_with_near_duplicates_is_shorter(
    tokenizer: PairTokenizer, repeating: TrainingData
) -> None:
    lists = lists_of(tokenizer, Sampling("single_relevant"), data=repeating, total=5, drop_near_duplicates=True)
    for index, texts in enumerate(texts_of(tokenizer, lists)):
        assert sorted(texts[1:]) == ["far", "far2", "judged"]
        assert lists[index].targets["relevance"].tolist() == [1, 0, 0, 0]


def test_a_near_duplicate_of_any_relevant_document_is_left_out(tokenizer: PairTokenizer) -> None:
    run = pd.DataFrame({"qid": "q1", "docno": ["copy", "rel", "near", "far", "far2"], "rank": range(5)})
    qrels = pd.DataFrame({"qid": "q1", "docno": ["rel", "far2"], "label": [1, 2]})
    given = data(run, qrels, Texts({docno: text for docno, text in REPEATING.items() if docno != "judged"}))
    one = lists_of(tokenizer, Sampling(), data=given, drop_near_duplicates=True)[0]
    assert one.targets["relevance"].tolist() == [1, 0, 2]  # rel, far, far2


def test_a_taught_list_keeps_its_near_duplicates(tokenizer: PairTokenizer, repeating: TrainingData) -> None:
    taught = TrainingData(
        repeating.rankings,
        repeating.members,
        repeating.queries,
        repeating.texts,
        repeating.relevance,
        labelled=False,
    )
    lists = lists_of(tokenizer, Sampling(), data=taught, total=1, drop_near_duplicates=True)
    assert len(lists[0].pairs) == 6


# --- tokenising ---


@pytest.mark.parametrize("drop_near_duplicates", [True, False])
def test_nothing_is_tokenised_twice(tokenizer: PairTokenizer, tokenised: list[str], drop_near_duplicates: bool) -> None:
    lists = lists_of(tokenizer, total=80, drop_near_duplicates=drop_near_duplicates)
    for start in range(0, 80, 4):
        lists.__getitems__(range(start, start + 4))
    assert len(tokenised) == len(set(tokenised))
    assert set(tokenised) == {*toy.QUERIES.values(), *toy.RUN["text"]}


def test_texts_are_fetched_once_and_a_batch_at_a_time(tokenizer: PairTokenizer) -> None:
    loader = toy.Texts()
    calls: list[int] = []
    transform = loader.transform
    loader.transform = lambda inp: calls.append(len(inp)) or transform(inp)  # type: ignore[func-returns-value, method-assign]
    lists = lists_of(tokenizer, Sampling(), total=16, data=data(texts=Texts(loader=loader)))
    for start in range(0, 16, 8):
        lists.__getitems__(range(start, start + 8))
    assert calls == [toy.RUN["docno"].nunique()]
    assert sorted(loader.asked) == sorted(set(toy.RUN["docno"]))


def test_kept_tokens_are_bounded(tokenizer: PairTokenizer, tokenised: list[str]) -> None:
    longest = max(len(tokens.ids) for tokens in tokenizer.encode_docs(list(toy.TEXTS.values())))
    tokenised.clear()
    lists = lists_of(tokenizer, Sampling(), total=80, kept_tokens=60)
    expected = lists_of(tokenizer, Sampling(), total=80)
    for index in range(80):
        assert plain(lists[index]) == plain(expected[index])
        kept = lists._documents._kept
        held = sum(len(ids) for ids, _ in kept.values())
        assert held <= 60
        assert lists._documents.room == 60 - held
    assert held > 60 - longest  # full, and not emptied at once
    assert len(tokenised) > 100  # so some came again


def test_the_documents_used_last_are_kept(tokenizer: PairTokenizer, tokenised: list[str]) -> None:
    size = [len(tokens.ids) for tokens in tokenizer.encode_docs([toy.TEXTS[d] for d in ("d00", "d01", "d02")])]
    documents = lists_of(tokenizer, kept_tokens=sum(size) - 1)._documents
    tokenised.clear()
    for docno in ("d00", "d01", "d00", "d02", "d00"):
        documents.of([docno])
    assert tokenised == [toy.TEXTS[docno] for docno in ("d00", "d01", "d02")]
    documents.of(["d01"])
    assert tokenised[3:] == [toy.TEXTS["d01"]]


# --- texts ---


def loaded() -> Texts:
    return Texts(loader=toy.Texts())


def test_texts_at_hand_and_loaded() -> None:
    texts = Texts({"d00": "here"}, toy.Texts({"d01": "there", "d00": "not asked for"}))
    assert texts.of(["d01", "d00"]) == ["there", "here"]
    assert "d05" in texts
    assert "d05" not in Texts({"d00": "here"})
    with pytest.raises(KeyError, match=r"There is no text of document 'd05'"):
        Texts({"d00": "here"}).of(["d00", "d05"])
    with pytest.raises(KeyError, match="There is no text of document 'd05'"):
        texts.of(["d05", "d00"])


def test_as_relevance() -> None:
    qrels = pd.DataFrame({"qid": ["a", "b", "a", "c"], "docno": ["x", "x", "y", "z"], "label": [1, 2, 0, -1]})
    assert as_relevance(qrels, ["a", "c", "d"]) == {"a": {"x": 1, "y": 0}, "c": {"z": -1}}


# --- several runs ---


def all_of(lists: Lists) -> list[TrainingList]:
    return lists.__getitems__(range(len(lists)))


def two_runs() -> TrainingData:
    upside_down = toy.RUN.assign(rank=5 - toy.RUN["rank"], score=-toy.RUN["score"])
    once, again = (Rankings.from_frame(run[["qid", "docno", "score", "rank"]]) for run in (toy.RUN, upside_down))
    return data(rankings=JoinedRankings([once, again]), labelled=False)


def test_the_rankings_of_several_runs_draw_independently(tokenizer: PairTokenizer) -> None:
    sampling = Sampling("random", sample_size=3)
    single = lists_of(tokenizer, sampling, data=data(labelled=False), total=8)
    both = lists_of(tokenizer, sampling, data=two_runs(), total=16)
    assert sorted(one.qid for one in all_of(both)) == sorted([*QIDS, *QIDS])  # an epoch has each ranking once
    drawn = {qid: [plain(one) for one in all_of(both) if one.qid == qid] for qid in QIDS}
    alone = {one.qid: plain(one) for one in all_of(single)}
    assert all(alone[qid] in drawn[qid] for qid in QIDS)  # the first run's are those that it has alone
    pairs = [[sorted(map(tuple, ids)) for _, ids, _ in drawn[qid]] for qid in QIDS]
    assert sum(one != other for one, other in pairs) > 4  # not the same documents twice


def test_a_query_that_is_left_out_is_so_in_all_runs(tokenizer: PairTokenizer) -> None:
    given = two_runs()
    one = given.rankings[0]
    known = {docno: text for docno, text in toy.TEXTS.items() if docno not in one.docnos}
    some = replace(given, texts=Texts(known), members=np.array([0, 8]))
    lists = lists_of(tokenizer, Sampling(), data=some, total=2, on_unusable="skip")
    with pytest.raises(TrainingDataError, match=f"every query has a document without a text.*{one.qid}"):
        lists[0]
    assert list(lists.without_text) == [one.qid]
