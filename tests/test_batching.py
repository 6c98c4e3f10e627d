import numpy as np
import pytest

from pyterrier_rankdistillm.scoring.batching import plan_batches


def plan(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    return [batch.tolist() for batch in plan_batches(np.array(lengths, dtype=np.int64), batch_tokens)]


def random_lengths(seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return [int(length) for length in rng.integers(1, 300, size=rng.integers(1, 200))]


def test_literal_example() -> None:
    # Budget 12: 10 alone; 6 + 6 (2 x 6); 4, 3, 3 (3 x 4); 1.
    assert plan([3, 10, 4, 6, 3, 6, 1], 12) == [[1], [3, 5], [2, 0, 4], [6]]


def test_no_pairs_no_batches() -> None:
    assert plan([], 100) == []


def test_a_pair_longer_than_the_budget_is_a_batch_by_itself() -> None:
    assert plan([50, 2, 60], 10) == [[2], [0], [1]]


def test_equal_lengths_keep_their_order() -> None:
    assert plan([5, 5, 5, 5], 10) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batch_tokens", [1, 64, 299, 2_048, 10**9])
def test_every_pair_is_in_exactly_one_batch(seed: int, batch_tokens: int) -> None:
    lengths = random_lengths(seed)
    positions = [position for batch in plan(lengths, batch_tokens) for position in batch]
    assert sorted(positions) == list(range(len(lengths)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batch_tokens", [1, 64, 299, 2_048])
def test_the_budget_is_kept_unless_a_pair_is_alone(seed: int, batch_tokens: int) -> None:
    lengths = random_lengths(seed)
    for batch in plan(lengths, batch_tokens):
        assert len(batch) == 1 or len(batch) * max(lengths[position] for position in batch) <= batch_tokens


@pytest.mark.parametrize("seed", range(5))
def test_the_longest_come_first(seed: int) -> None:
    lengths = random_lengths(seed)
    in_order = [lengths[position] for batch in plan(lengths, 2_048) for position in batch]
    assert in_order == sorted(lengths, reverse=True)


@pytest.mark.parametrize("seed", range(5))
def test_batches_are_as_full_as_the_budget_allows(seed: int) -> None:
    lengths = random_lengths(seed)
    for batch in plan(lengths, 1_000)[:-1]:
        longest = max(lengths[position] for position in batch)
        assert len(batch) == max(1, 1_000 // longest)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lanes", [2, 3, 16])
def test_lanes_get_equal_batches_and_equally_many(seed: int, lanes: int) -> None:
    lengths = np.array(random_lengths(seed))
    fewest = len(plan_batches(lengths, 1_000))
    wanted = -(-fewest // lanes) * lanes
    batches = plan_batches(lengths, 1_000, lanes)
    assert len(batches) <= wanted
    largest = max(len(batch) * lengths[batch].max() for batch in batches)
    assert largest <= max(1_000, lengths.max())
    assert len(plan_batches(lengths, int(largest) - 1)) > wanted or largest == lengths.max()  # none smaller does
    assert np.array_equal(np.concatenate(batches), np.argsort(-lengths, kind="stable"))


def test_two_lanes_share_few_pairs() -> None:
    lengths = np.full(9, 50, dtype=np.int64)
    assert [len(batch) for batch in plan_batches(lengths, 500, 2)] == [5, 4]  # 450 tokens would be one batch
    assert [len(batch) for batch in plan_batches(lengths, 200, 2)] == [3, 3, 3]  # four cannot be more equal than three
