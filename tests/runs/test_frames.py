"""Sub-sampling, merging and removing duplicates."""

from __future__ import annotations

import pandas as pd
import pytest

from pyterrier_rankdistillm import runs


def ranking(qid: str, docnos: str, scores: list[float] | None = None) -> pd.DataFrame:
    scores = scores or [float(-n) for n in range(len(docnos))]
    return pd.DataFrame({"qid": qid, "docno": list(docnos), "score": scores, "rank": range(len(docnos))})


RUN = pd.concat([ranking(f"q{n}", "abcd") for n in range(20)], ignore_index=True)


def chosen(run: pd.DataFrame, queries: int, seed: int = 42) -> list[str]:
    return runs.subsample(run, queries=queries, seed=seed)["qid"].unique().tolist()


def test_the_same_queries_everywhere() -> None:
    # Literal, so that another choice in another version or on another machine does not go unseen.
    assert chosen(RUN, 3) == ["q1", "q2", "q18"]


def test_samples_are_nested_and_seeded() -> None:
    samples = [set(chosen(RUN, n)) for n in (1, 5, 12, 20)]
    assert [len(sample) for sample in samples] == [1, 5, 12, 20]
    assert samples[0] < samples[1] < samples[2] < samples[3]
    assert chosen(RUN, 5, seed=1) != chosen(RUN, 5, seed=2)


def test_the_choice_does_not_depend_on_the_rows() -> None:
    shuffled = RUN.sample(frac=1, random_state=0)
    assert set(chosen(shuffled, 5)) == set(chosen(RUN, 5))
    picked = set(chosen(RUN, 5))
    assert set(chosen(RUN[RUN["qid"].isin([*picked, "q0", "q1", "q2"])], 5)) == picked


def test_depth_takes_the_top_of_each_ranking() -> None:
    run = pd.concat([ranking("1", "abcd"), ranking("2", "xy"), ranking("3", "z")], ignore_index=True)
    top = runs.subsample(run, depth=2)
    assert top[["qid", "docno", "rank"]].to_numpy().tolist() == [
        ["1", "a", 0],
        ["1", "b", 1],
        ["2", "x", 0],
        ["2", "y", 1],
        ["3", "z", 0],
    ]
    backwards = runs.subsample(run.iloc[::-1], depth=2)
    assert backwards["docno"].tolist() == ["z", "y", "x", "b", "a"]
    assert backwards["rank"].tolist() == [0, 1, 0, 1, 0]


def test_depth_of_the_first_stage_keeps_the_teachers_order() -> None:
    teacher, first_stage = ranking("1", "dbca"), ranking("1", "abcd")
    part = runs.subsample(teacher, depth=3, first_stage=first_stage)
    assert part[["docno", "score", "rank"]].to_numpy().tolist() == [["b", -1.0, 0], ["c", -2.0, 1], ["a", -3.0, 2]]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"queries": 21}, "queries must be at most 20, as many as the run has, got 21"),
        ({"depth": 5}, "depth must be at most 4, as deep as the run is, got 5"),
        ({"depth": 5, "first_stage": RUN}, "as deep as the first stage is"),
        ({"queries": 0}, "queries must be None or at least 1, got 0"),
        ({"depth": 1.5}, "depth must be None or at least 1, got 1.5"),
        ({"first_stage": RUN}, "Give a depth"),
    ],
)
def test_what_cannot_be_sampled(arguments: dict[str, object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        runs.subsample(RUN, **arguments)  # type: ignore[arg-type]


def test_merged_runs_follow_each_other() -> None:
    merged = runs.merge([ranking("2", "ab"), ranking("1", "a")])
    assert merged[["qid", "docno", "rank"]].to_numpy().tolist() == [["2", "a", 0], ["2", "b", 1], ["1", "a", 0]]
    assert merged.index.tolist() == [0, 1, 2]


def test_overlapping_runs() -> None:
    with pytest.raises(ValueError, match=r"qid '1' is in several runs \(1 such queries\)"):
        runs.merge([ranking("1", "ab"), ranking("1", "c")])
    merged = runs.merge([ranking("1", "ab"), ranking("1", "c"), ranking("2", "d")], overlap="first")
    assert merged["docno"].tolist() == ["a", "b", "d"]
    with pytest.raises(ValueError, match=r"the same columns, got \['qid', 'docno', 'score', 'rank'\] and .*'text'"):
        runs.merge([ranking("1", "ab"), ranking("2", "c").assign(text="x")])
    with pytest.raises(ValueError, match="there are no runs"):
        runs.merge([])


def test_the_better_ranked_duplicate_stays() -> None:
    run = ranking("1", "abacb").assign(text=["1", "2", "3", "4", "5"])
    run["rank"] = [3, 1, 0, 4, 2]
    run["score"] = [-3.0, -1.0, 0.0, -4.0, -2.0]
    kept = runs.deduplicate(run)
    assert kept[["docno", "text", "rank"]].to_numpy().tolist() == [["b", "2", 1], ["a", "3", 0], ["c", "4", 2]]
    assert runs.deduplicate(kept).equals(kept)
    assert len(run) == 5


def test_a_frame_that_is_no_run() -> None:
    with pytest.raises(ValueError, match="deduplicate: a run has the columns qid, docno, score, got no docno, score"):
        runs.deduplicate(pd.DataFrame({"qid": ["1"]}))
