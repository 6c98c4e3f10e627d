"""Sampling: literal runs with literal lists, what is never drawn, and how often the rest is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import log2
from typing import Any, get_args

import numpy as np
import pytest

from pyterrier_rankdistillm.training.sampling import Draw, Sampling, Strategy, generator, near_duplicate

RUN = [f"d{rank}" for rank in range(10)]
# d2 and two documents that were not retrieved are relevant, d5 is judged not to be
LABELS = {"z": 1, "d2": 2, "x": 1, "d5": 0, "w": -1}


def draw(sampling: Sampling, labels: dict[str, int], seed: int = 42, epoch: int = 0, qid: str = "q1") -> Draw:
    return sampling.draw(RUN, labels, generator(seed, epoch, qid), elsewhere)


def elsewhere(rng: np.random.Generator) -> str:
    """A document of another query's ranking: one of 20, of which two are in this one and one is relevant here."""
    return ["d0", "d9", "z", *(f"e{n}" for n in range(17))][int(rng.bit_generator.random_raw() % 20)]


@pytest.mark.parametrize(
    ("sampling", "labels", "docnos", "spares"),
    [
        (Sampling(), {}, RUN, []),
        (Sampling(depth=3), {}, ["d0", "d1", "d2"], []),
        (Sampling(sample_size=3), {}, ["d0", "d1", "d2"], RUN[3:]),
        (Sampling(sample_size=3, depth=5), {}, ["d0", "d1", "d2"], ["d3", "d4"]),
        (Sampling(sample_size=20), {}, RUN, []),
        (Sampling(sample_size=3, negative_ranks=(4, 9)), {}, ["d4", "d5", "d6"], ["d7", "d8"]),
        # ranks part the others, not the relevant; relevant documents are no spares
        (Sampling(sample_size=3, negative_ranks=(4, 9)), LABELS, ["d2", "d4", "d5"], ["d6", "d7", "d8"]),
        (Sampling(depth=4), LABELS, ["d0", "d1", "d2", "d3", "x", "z"], []),
        (Sampling(depth=2), LABELS, ["d0", "d1", "d2", "x", "z"], []),
        (Sampling(depth=4, add_relevant=False), LABELS, ["d0", "d1", "d2", "d3"], []),
    ],
)
def test_the_first_documents(sampling: Sampling, labels: dict[str, int], docnos: list[str], spares: list[str]) -> None:
    assert draw(sampling, labels) == Draw(docnos, spares)


@pytest.mark.parametrize(
    ("sampling", "labels", "docnos", "spares"),
    [
        (Sampling("single_relevant", 4, 8), LABELS, "z d6 d3 d4", "d5 d1 d7 d0"),
        (Sampling("single_relevant", 4, 8, (3, 6)), LABELS, "z d5 d4 d3", ""),
        (Sampling("single_relevant", 4, 8, add_relevant=False), LABELS, "d2 d1 d5 d6", "d7 d4 d3 d0"),
        (Sampling("single_relevant", None, 8, add_relevant=False), LABELS, "d2 d1 d5 d6 d7 d4 d3 d0", ""),
        (Sampling("random", 4, 8), {}, "d2 d5 d6 d7", "d4 d3 d0 d1"),
        (Sampling("random", 4, 8), LABELS, "d2 d5 d6 x", "d7 d4 d3 d0 d1"),
        (Sampling("log_random", 4, 8), {}, "d0 d1 d2 d5", "d3 d4 d6 d7"),
        (Sampling("top_and_random", 5, 8), {}, "d0 d1 d2 d5 d7", "d6 d3 d4"),
    ],
)
def test_seeded_draws(sampling: Sampling, labels: dict[str, int], docnos: str, spares: str) -> None:
    """Pinned, since a training that is repeated must see the same lists."""
    drawn = draw(sampling, labels)
    assert (" ".join(drawn.docnos), " ".join(drawn.spares)) == (docnos, spares)


def test_random_bits_are_pinned() -> None:
    assert generator(42, 1, "q1").bit_generator.random_raw(2).tolist() == [15813451385907106625, 6018209792896954903]


ALL: list[Sampling] = [
    *(Sampling(strategy, 5, 8) for strategy in get_args(Strategy)),
    *(Sampling(strategy, 5, 8, (1, 8), add_relevant=False) for strategy in get_args(Strategy)),
    Sampling("single_relevant", 6, 8, random_negatives=0.5),
    Sampling("single_relevant", 6, 8, (3, 6), random_negatives=1.0),
]


@pytest.mark.parametrize("sampling", ALL)
@pytest.mark.parametrize("labels", [LABELS, {"d2": 1, "d3": 3}, {"d5": 0, "d4": 1}])
def test_what_every_draw_keeps_to(sampling: Sampling, labels: dict[str, int]) -> None:
    relevant = {docno for docno, label in labels.items() if label > 0}
    for seed in range(50):
        drawn = draw(sampling, labels, seed)
        everything = drawn.docnos + drawn.spares
        assert len(drawn.docnos) == sampling.sample_size
        assert len(set(everything)) == len(everything)
        assert not relevant & set(drawn.spares)
        if sampling.strategy == "single_relevant":
            assert drawn.docnos[0] in relevant
            assert not relevant & set(drawn.docnos[1:])
        else:
            assert drawn.docnos == [docno for docno in [*RUN[:8], "x", "z"] if docno in drawn.docnos]
        if not sampling.add_relevant:
            assert set(everything) <= set(RUN[:8])
        first, end = sampling.negative_ranks or (0, 8)
        assert {docno for docno in everything if docno in RUN} - relevant <= set(RUN[first:end])
        assert sampling.random_negatives > 0 or not any(docno.startswith("e") for docno in everything)


@pytest.mark.parametrize("sampling", ALL)
def test_a_list_follows_from_seed_epoch_and_query_alone(sampling: Sampling) -> None:
    def lists(keys: list[tuple[int, int, str]]) -> dict[tuple[int, int, str], Draw]:
        return {key: draw(sampling, LABELS, *key) for key in keys}

    keys = [(seed, epoch, qid) for seed in (1, 2) for epoch in (0, 1) for qid in ("q1", "q2", "1")]
    assert lists(keys) == lists(keys[::-1])
    if sampling.strategy != "top":
        assert len({str(drawn) for drawn in lists(keys).values()}) > len(keys) / 2
    shuffled = dict(sorted(LABELS.items()))
    assert draw(sampling, shuffled) == draw(sampling, LABELS)


def shares(sampling: Sampling, labels: dict[str, int], draws: int, run: list[str] = RUN) -> dict[str, float]:
    """How often each document is in a list."""
    counts: Counter[str] = Counter()
    for epoch in range(draws):
        counts.update(sampling.draw(run, labels, generator(0, epoch, "q"), elsewhere).docnos)
    return {docno: count / draws for docno, count in counts.items()}


def assert_even(found: dict[str, float], docnos: list[str], share: float, draws: int) -> None:
    """Chi-square of the shares, by its 99.9 % quantile."""
    quantile = {2: 13.8, 5: 20.5, 6: 22.5, 9: 27.9}[len(docnos) - 1]
    assert set(docnos) <= set(found)
    chi_square = sum((found[docno] - share) ** 2 for docno in docnos) * draws / share
    assert chi_square < quantile


def test_draws_are_even() -> None:
    found = shares(Sampling("random", 4), {}, 2000)
    assert_even(found, RUN, 4 / 10, 2000)
    found = shares(Sampling("single_relevant", 4, negative_ranks=(3, 9)), LABELS, 2000)
    assert_even(found, ["d2", "x", "z"], 1 / 3, 2000)
    assert_even(found, ["d3", "d4", "d5", "d6", "d7", "d8"], 3 / 6, 2000)
    assert set(found) == {"d2", "x", "z", "d3", "d4", "d5", "d6", "d7", "d8"}
    found = shares(Sampling("top_and_random", 5), {}, 2000)
    assert [found[docno] for docno in RUN[:3]] == [1, 1, 1]
    assert_even(found, RUN[3:], 2 / 7, 2000)


def test_log_random_prefers_the_top() -> None:
    """Of a list of two, the chance of each document is that of two draws by weight, the second without the first."""
    weights = {docno: 1 / log2(rank + 2) for rank, docno in enumerate(RUN[:4])}
    total = sum(weights.values())
    expected = {
        docno: weight / total
        + sum(first / total * weight / (total - first) for other, first in weights.items() if other != docno)
        for docno, weight in weights.items()
    }
    found = shares(Sampling("log_random", 2, 4), {}, 4000)
    assert found == pytest.approx(expected, abs=0.025)
    assert found["d0"] > found["d1"] > found["d2"] > found["d3"]


def test_random_negatives() -> None:
    found = shares(Sampling("single_relevant", 6, random_negatives=0.25), LABELS, 2000)
    foreign = {docno: share for docno, share in found.items() if docno.startswith("e")}
    assert sum(foreign.values()) == pytest.approx(5 * 0.25, abs=0.06)
    assert len(foreign) == 17
    found = shares(Sampling("single_relevant", 6, random_negatives=1.0), {"d2": 1}, 50)
    assert {docno for docno in found if docno in RUN} == {"d2"}


def test_where_other_rankings_have_nothing_else() -> None:
    sampling = Sampling("single_relevant", 4, random_negatives=1.0)
    drawn = sampling.draw(RUN, {"d2": 1, "y": 1}, generator(1, 1, "q"), lambda _: "y")
    assert (len(drawn.docnos), len(drawn.spares)) == (4, 6)
    assert set(drawn.docnos[1:]) < set(RUN)
    drawn = sampling.draw(RUN, {"d2": 1}, generator(1, 1, "q"), lambda _: "e")
    assert drawn.docnos.count("e") == 1
    assert len(drawn.docnos) == 4
    with pytest.raises(ValueError, match="others must be given with random_negatives, got None"):
        sampling.draw(RUN, LABELS, generator(1, 1, "q"))


@pytest.mark.parametrize(
    ("sampling", "run", "labels", "reason"),
    [
        (Sampling(), ["a"], {}, "have fewer than 2 documents to train on"),
        (Sampling(), [], {"x": 1}, "have fewer than 2 documents to train on"),
        (Sampling(negative_ranks=(9, 12)), RUN, {}, "have fewer than 2 documents to train on"),
        (Sampling("random", 2, add_relevant=False), ["a"], {"x": 1}, "have fewer than 2 documents to train on"),
        (Sampling("single_relevant"), RUN, {}, "have no relevant document"),
        (Sampling("single_relevant"), RUN, {"d1": 0, "x": -1}, "have no relevant document"),
        (
            Sampling("single_relevant", add_relevant=False),
            RUN,
            {"x": 1},
            "have no relevant document that was retrieved",
        ),
        (
            Sampling("single_relevant", depth=4, add_relevant=False),
            RUN,
            {"d4": 1},
            "have no relevant document that was retrieved",
        ),
        (Sampling("single_relevant"), ["a", "b"], {"a": 1, "b": 2}, "have no document that is not relevant"),
        (Sampling("single_relevant"), [], {"a": 1}, "have no document that is not relevant"),
        (Sampling("single_relevant", negative_ranks=(10, 12)), RUN, {"d1": 1}, "have no document that is not relevant"),
        (Sampling(), ["a"], {"x": 1}, None),
        (Sampling("single_relevant"), ["a"], {"x": 1}, None),
    ],
)
def test_unusable_rankings(sampling: Sampling, run: list[str], labels: dict[str, int], reason: str | None) -> None:
    assert sampling.unusable(run, labels) == reason
    if reason is None:
        assert len(sampling.draw(run, labels, generator(1, 1, "q")).docnos) == 2
    else:
        with pytest.raises(ValueError, match=f"no list can be drawn for queries that {reason}. Leave them out."):
            sampling.draw(run, labels, generator(1, 1, "q"))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"strategy": "best"}, "strategy must be one of single_relevant, top, .*, got 'best'"),
        ({"sample_size": 1}, "sample_size must be None or a number of documents, at least 2, got 1"),
        ({"sample_size": 2.0}, "sample_size must be None or a number of documents, at least 2, got 2.0"),
        ({"depth": 0}, "depth must be None or a number of documents, at least 1, got 0"),
        ({"depth": True}, "depth must be None or a number of documents, at least 1, got True"),
        (
            {"negative_ranks": (3, 3)},
            r"negative_ranks must be None or two ranks \(first, end\), 0 <= first < end, got \(3, 3\)",
        ),
        ({"negative_ranks": (-1, 3)}, r"negative_ranks must be None or two ranks .*, got \(-1, 3\)"),
        ({"negative_ranks": [1, 3]}, r"negative_ranks must be None or two ranks .*, got \[1, 3\]"),
        ({"random_negatives": 1.1}, "random_negatives must be a number from 0 to 1, got 1.1"),
        ({"random_negatives": float("nan")}, "random_negatives must be a number from 0 to 1, got nan"),
        ({"add_relevant": "no"}, "add_relevant must be True or False, got 'no'"),
        ({"strategy": "random"}, "sample_size must be given with strategy 'random', got None"),
        ({"random_negatives": 0.5}, "random_negatives must be 0 with strategy 'top', got 0.5"),
        ({"depth": 10, "negative_ranks": (5, 11)}, r"negative_ranks must end at depth, 10, at most, got \(5, 11\)"),
        ({"depth": 10, "sample_size": 11}, "sample_size must be at most the depth, 10, got 11"),
        ({"negative_ranks": (5, 8), "sample_size": 4}, "sample_size must be at most the number of ranks, 3, got 4"),
        (
            {"strategy": "single_relevant", "depth": 10, "sample_size": 12},
            "sample_size must be at most the depth, 10 plus 1 relevant, got 12",
        ),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match="Sampling: " + what):
        Sampling(**settings)


def test_settings_that_just_can_be() -> None:
    Sampling("single_relevant", 11, 10)
    Sampling("single_relevant", 4, 10, (7, 10))
    Sampling("single_relevant", 12, 10, random_negatives=0.2)
    Sampling("top", 10, 10)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"^Sampling: strategy must be .* sample_size must be .* depth must be"):
        Sampling("best", 0, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"random_negatives must be 0 .* negative_ranks must end"):
        Sampling("top", 2, 4, (0, 9), random_negatives=0.1)


WORDS = [f"word{n}" for n in range(62)]  # 60 runs of three


def as_text(words: list[str]) -> str:
    return " ".join(words)


def as_ids(words: list[str]) -> list[int]:
    return [int(word.removeprefix("word")) for word in words]


@pytest.mark.parametrize("form", [as_text, as_ids])
@pytest.mark.parametrize(
    ("words", "near"),
    [
        (WORDS, True),
        (WORDS[1:], True),  # 59 / 60
        ([*WORDS[:30], "word99", *WORDS[31:]], True),  # 57 shared, 63 in all
        ([*WORDS[:20], "word99", *WORDS[21:40], "word98", *WORDS[41:]], True),  # 54 / 66 = 0.82
        ([*WORDS[:20], "word99", *WORDS[21:40], "word98", *WORDS[41:61], "word97"], False),  # 53 / 67 = 0.79
        (WORDS[:50], True),  # 48 / 60 = 0.8
        (WORDS[:49], False),  # 47 / 60
        (WORDS[::-1], False),
        (WORDS[:2], False),
        ([], False),
    ],
)
def test_near_duplicates(form: Callable[[list[str]], Any], words: list[str], near: bool) -> None:
    assert near_duplicate(form(WORDS), form(words)) is near
    assert near_duplicate(form(words), form(WORDS)) is near


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("Why bread rises.", "why  bread RISES!", True),
        ("Cafe\u0301 \uff11", "caf\u00e9 1", True),
        ("bread", "bread rises", False),
        ("one two", "one three", False),
        ("...", "!", True),
    ],
)
def test_case_and_punctuation_do_not_count(one: str, other: str, near: bool) -> None:
    assert near_duplicate(one, other) is near
