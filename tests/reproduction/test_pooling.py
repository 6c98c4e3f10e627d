"""Pooling, worked out by hand.

nDCG@10 of one relevant document is 1 at rank 1, 1 / log2(3) = 0.6309 at rank 2, 1 / 2 at rank 3.
"""

from __future__ import annotations

from math import log2

import pandas as pd
import pytest
from ir_measures import AP, RR, P, nDCG

from pyterrier_rankdistillm.reproduction.evaluation import by_query, evaluate, geometric_mean, parse, with_relevance
from pyterrier_rankdistillm.reproduction.pooling import Mode, Part, Pool, pool

SECOND = 1 / log2(3)


def part(task: str, qrels: dict[str, str], run: dict[str, str], as_found: dict[str, str] | None = None) -> Part:
    """A task of one relevant document a topic, and a run of documents (letters) in their order."""
    judged = pd.DataFrame([(q, d, 1) for q, docs in qrels.items() for d in docs], columns=["qid", "docno", "label"])
    rows = [(q, d, float(-rank), rank) for q, docs in run.items() for rank, d in enumerate(docs)]
    frame = pd.DataFrame(rows, columns=["qid", "docno", "score", "rank"])
    topics = pd.DataFrame({"qid": list(qrels)})
    return Part(task, topics, judged, {"system": frame}, as_found or {})


def ndcg(parts: list[Part], mode: Mode) -> float:
    return float(evaluate(pool(parts, mode), (nDCG @ 10,))[0]["value"])


# The number 1 stands for two topics: "a" is second in the first task, "b" first in the other one.
SHARED_NUMBER = [part("one", {"1": "a"}, {"1": "xa"}), part("two", {"1": "b", "2": "c"}, {"1": "b", "2": "c"})]


def test_topics_that_share_a_number_are_kept_apart() -> None:
    assert ndcg(SHARED_NUMBER, "corrected") == pytest.approx((SECOND + 1 + 1) / 3)
    assert pool(SHARED_NUMBER, "corrected").topics["qid"].tolist() == ["one:1", "two:1", "two:2"]


def test_topics_that_share_a_number_fall_together_as_published() -> None:
    # Under 1 there are x (score 0), b (0) and a (-1); equal scores go by docno, descending: x, b, a.
    # DCG 1 / log2(3) + 1 / log2(4), ideal 1 + 1 / log2(3).
    mixed = (SECOND + 0.5) / (1 + SECOND)
    assert ndcg(SHARED_NUMBER, "as_published") == pytest.approx((mixed + 1) / 2)


# The topic 351 is in two tasks, whose runs differ: its document is second, then first.
REPEATED = [
    part("robust", {"351": "d", "301": "e"}, {"351": "yd", "301": "e"}),
    part("trec7", {"351": "d"}, {"351": "dy"}),
]


def test_a_repeated_topic_counts_for_each_task() -> None:
    assert ndcg(REPEATED, "corrected") == pytest.approx((SECOND + 1 + 1) / 3)


def test_a_repeated_topic_counts_once_as_published_and_as_it_was_the_last_time() -> None:
    assert ndcg(REPEATED, "as_published") == pytest.approx(1)
    assert len(pool(REPEATED, "as_published").topics) == 2


def test_concatenated_runs_are_read_as_ir_measures_reads_them() -> None:
    """What ``as_published`` drops is what ir-measures would have overwritten."""
    for parts in (SHARED_NUMBER, REPEATED):
        pooled = pool(parts, "as_published")
        joined = Pool(
            pooled.topics,
            pd.concat([p.qrels for p in parts], ignore_index=True),
            {"system": pd.concat([p.runs["system"] for p in parts], ignore_index=True)},
        )
        assert evaluate(pooled, (nDCG @ 10,))[0]["value"] == evaluate(joined, (nDCG @ 10,))[0]["value"]


def test_other_numbers_in_the_run() -> None:
    # The run calls the three topics 1, 3 and 4, so that what it says of 3 is judged as the third topic.
    found = part("cranfield", {"1": "a", "2": "b", "3": "c"}, {"1": "a", "2": "xb", "3": "c"}, {"2": "3", "3": "4"})
    assert ndcg([found], "corrected") == pytest.approx((1 + SECOND + 1) / 3)
    assert ndcg([found], "as_published") == pytest.approx((1 + 0) / 2)


def test_only_topics_that_every_run_has() -> None:
    one = part("one", {"1": "a", "2": "b"}, {"1": "a", "2": "b"})
    without = one.runs["system"][one.runs["system"]["qid"] == "1"]
    both = Part("one", one.topics, one.qrels, {**one.runs, "other": without})
    values = {row["system"]: row["value"] for row in evaluate(pool([both], "as_published"), (nDCG @ 10,))}
    assert values == {"system": 1, "other": 1}
    values = {row["system"]: row["value"] for row in evaluate(pool([both], "corrected"), (nDCG @ 10,))}
    assert values == {"system": 1, "other": 0.5}


def test_systems_that_differ_on_no_topic_are_not_significantly_different() -> None:
    """Without care p is NaN, and Holm's correction makes NaN significant."""
    one = part("one", {"1": "a", "2": "b"}, {"1": "a", "2": "b"})
    twins = Part("one", one.topics, one.qrels, {"a": one.runs["system"], "b": one.runs["system"]})
    rows = evaluate(pool([twins], "corrected"), (nDCG @ 10,), baseline="a")
    assert [(row["p_value"], row["significant"]) for row in rows[1:]] == [(1.0, False)]


def test_holm_s_correction_is_over_the_systems_of_the_call() -> None:
    from scipy.stats import ttest_rel

    qids = [str(n) for n in range(8)]
    ranks = {"base": [1] * 8, "b": [1, 2, 2, 2, 3, 2, 3, 1], "c": [1, 1, 1, 2, 1, 1, 1, 1]}
    runs = {
        name: part("one", dict.fromkeys(qids, "a"), {q: "xyz"[: r - 1] + "a" for q, r in zip(qids, of, strict=True)})
        for name, of in ranks.items()
    }
    first = runs["base"]
    pooled = pool([Part("one", first.topics, first.qrels, {n: p.runs["system"] for n, p in runs.items()})], "corrected")
    rows = {row["system"]: row for row in evaluate(pooled, (nDCG @ 10,), baseline="base")}
    values = {name: [1 / log2(rank + 1) for rank in of] for name, of in ranks.items()}
    p = {name: ttest_rel(values[name], values["base"]).pvalue for name in ("b", "c")}
    assert {name: rows[name]["p_value"] for name in p} == pytest.approx(p)
    assert p["b"] < p["c"]
    assert rows["b"]["p_value_corrected"] == pytest.approx(2 * p["b"])
    assert rows["c"]["p_value_corrected"] == pytest.approx(p["c"])
    assert (rows["b"]["significant"], rows["c"]["significant"]) == (True, False)
    assert (rows["b"]["better"], rows["b"]["worse"]) == (0, 6)
    assert rows["base"]["significant"] is None
    assert by_query(pooled, (nDCG @ 10,))["value"].mean() == pytest.approx(sum(map(sum, values.values())) / 24)


def test_means() -> None:
    assert geometric_mean([0.5, 0.125]) == pytest.approx(0.25)
    assert geometric_mean([0.5, 0.0]) == 0.0


def test_measures() -> None:
    assert [str(m) for m in parse(["RR@10", nDCG @ 10, P @ 5])] == ["nDCG@10", "RR@10", "P@5"]
    assert parse("AP@100") == (nDCG @ 10, AP @ 100)
    found = with_relevance((nDCG @ 10, RR @ 10, P(rel=1) @ 5), 2)
    assert [str(measure) for measure in found] == ["nDCG@10", "RR(rel=2)@10", "P@5"]
    with pytest.raises(ValueError, match="must be ir-measures' measures, got 'nDGC@10'"):
        parse(["nDGC@10"])
