"""Cores that take batches of their own: the same weights for any number of them, and the gradients of one pass."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import families
import pytest
import test_trainer
import tiny
import torch
import toy
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

from pyterrier_rankdistillm.scoring.automodel import TransformersEncoder
from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
from pyterrier_rankdistillm.scoring.encoder import CrossEncoder
from pyterrier_rankdistillm.training import lanes
from pyterrier_rankdistillm.training.losses import LOSSES

gradients, assert_equal, trainer_of = test_trainer.gradients, test_trainer.assert_equal, test_trainer.trainer_of


@pytest.fixture(scope="module")
def student(model: tiny.Tiny) -> Checkpoint:
    return Checkpoint.open(model.folder)


def with_cores(patch: pytest.MonkeyPatch, number: int) -> None:
    patch.setattr(lanes, "cores", lambda: number)


# --- the same weights ---


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"memory_tokens": 60, "max_grad_norm": 0.1},  # groups of lists, and lists whose batches are encoded twice
        {"accumulation": 2, "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_weights_do_not_depend_on_the_number_of_cores(
    model: tiny.Tiny, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    found = {}
    for number in (1, 2, 3, 7):
        with_cores(monkeypatch, number)
        one = toy.distillation(model.folder, steps=4, dropout=0.2, batch_tokens=30, log_every=1, **changes)
        one.fit(toy.TRAIN, None)
        found[number] = toy.weights(one.reranker), one.training.log["loss"].tolist()
    for number in (2, 3, 7):
        assert toy.same(found[1][0], found[number][0])
        assert found[1][1] == found[number][1]
    other = toy.distillation(model.folder, steps=4, dropout=0.0, batch_tokens=30, **changes)  # so that it could fail
    other.fit(toy.TRAIN, None)
    assert not toy.same(found[1][0], toy.weights(other.reranker))


def test_a_training_may_go_on_with_other_cores(
    model: tiny.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupt(TrainerCallback):
        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    options: dict[str, Any] = {"steps": 5, "save_every": 2, "dropout": 0.2, "batch_tokens": 30}
    with_cores(monkeypatch, 2)
    whole = toy.distillation(model.folder, folder=tmp_path / "whole", **options)
    whole.fit(toy.TRAIN, None)
    with pytest.raises(KeyboardInterrupt):
        toy.distillation(model.folder, folder=tmp_path / "half", callbacks=[Interrupt()], **options).fit(
            toy.TRAIN, None
        )
    with_cores(monkeypatch, 3)
    resumed = toy.distillation(model.folder, folder=tmp_path / "half", resume=True, **options)
    resumed.fit(toy.TRAIN, None, reuse=["callbacks"])
    assert toy.same(toy.weights(whole.reranker), toy.weights(resumed.reranker))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("memory_tokens", [10**6, 1])
def test_gradients_are_those_of_one_pass(
    student: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, memory_tokens: int
) -> None:
    """Also where the loss of a passage depends on all passages of its list."""
    options = {"loss": loss, "batch_tokens": 30, "qrels": toy.QRELS}
    mine = gradients(student, tmp_path, memory_tokens=memory_tokens, **options)
    shared(monkeypatch)
    assert_equal(gradients(student, tmp_path, memory_tokens=10**6, **options), mine)


def shared(patch: pytest.MonkeyPatch) -> None:
    """As on a GPU: batches of a group go through the encoder together."""
    patch.setattr(test_trainer.ListwiseTrainer, "_lanes", lambda _: None)


# --- dropout ---


@pytest.mark.parametrize("name", families.KINDS)
def test_dropout_of_every_family_is_drawn_from_a_batchs_own_seed(name: str, tmp_path: Path) -> None:
    opened = Checkpoint.open(families.make(tmp_path, name))
    encoder = opened.encoder.copy(0.3).train()
    assert lanes.suits(encoder)
    tokenizer = opened.tokenizer
    pairs = [
        tokenizer.join(tokenizer.encode_queries(["cat"])[0], doc)
        for doc in tokenizer.encode_docs(["sun", "the rain", "the cat sat"])
    ]
    batch = [torch.from_numpy(x) for x in tokenizer.pad(pairs)]

    def drawn(seed: int) -> Tensor:
        with torch.no_grad(), lanes._Draws(seed):
            return encoder(*batch)

    before = torch.get_rng_state()
    expected = {seed: drawn(seed) for seed in range(8)}
    with ThreadPoolExecutor(4) as pool:
        for seed, scores in zip(range(8), pool.map(drawn, range(8)), strict=True):
            assert scores.equal(expected[seed])
    assert torch.get_rng_state().equal(before)
    assert not any(one.equal(other) for one, other in itertools.combinations(expected.values(), 2))


def test_dropout_is_torchs_own() -> None:
    """The same numbers from the same seed, that of attention included."""
    x, bias = torch.randn(2, 3, 5, 8), torch.randn(5, 5)
    mask = torch.tensor([True, True, True, False, True]).expand(2, 1, 1, 5)
    for compute in (
        lambda: F.dropout(x, 0.4),
        lambda: F.dropout(x.clone(), 0.4, inplace=True),
        lambda: F.dropout(x, 0.4, training=False),
        lambda: F.scaled_dot_product_attention(x, x, x, dropout_p=0.4),
        lambda: F.scaled_dot_product_attention(x, x, x, attn_mask=mask, dropout_p=0.4),
        lambda: F.scaled_dot_product_attention(x, x, x, bias, 0.4),
        lambda: F.scaled_dot_product_attention(x, x, x, dropout_p=0.4, scale=0.1),
    ):
        torch.manual_seed(3)
        expected = compute()
        with lanes._Draws(3):
            torch.testing.assert_close(compute(), expected)


def test_an_encoder_that_draws_in_other_ways_shares_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Checkpoint.open(families.make(tmp_path / "model", "albert"))
    options: dict[str, Any] = {"query_length": None, "doc_length": None}
    assert trainer_of(student, tmp_path, **options).lanes is not None
    forward = TransformersEncoder.forward
    monkeypatch.setattr(TransformersEncoder, "forward", lambda self, *batch: forward(self, *batch) * torch.rand(()))
    before = torch.get_rng_state()
    assert not lanes.suits(student.encoder.copy().train())
    assert torch.get_rng_state().equal(before)
    assert trainer_of(student, tmp_path, **options).lanes is None


def test_what_is_one_whole_is_shared(student: Checkpoint, tmp_path: Path) -> None:
    assert trainer_of(student, tmp_path, gradient_checkpointing=True).lanes is None


# --- threads ---


def test_each_core_takes_batches_of_its_own(
    student: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_cores(monkeypatch, 3)
    seen: dict[tuple[int, bool], int] = {}
    together = threading.Barrier(3, timeout=20)
    forward = CrossEncoder.forward

    def noted(self: CrossEncoder, *batch: Any) -> Tensor:
        here = threading.get_ident(), torch.is_grad_enabled()
        if here not in seen:
            seen[here] = torch.get_num_threads()
            together.wait()  # all three are at work at the same time
        return forward(self, *batch)

    made = trainer_of(student, tmp_path, batch_tokens=1, memory_tokens=1)
    monkeypatch.setattr(CrossEncoder, "forward", noted)
    with test_trainer.quiet():
        made.train()
    assert len(seen) == 6  # in both passes
    assert set(seen.values()) == {1}
    assert threading.get_ident() not in {thread for thread, _ in seen}


@pytest.mark.parametrize("fails_in", ["forward", "backward"])
def test_an_error_ends_what_other_cores_compute(
    student: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    with_cores(monkeypatch, 2)
    forward, calls, running = CrossEncoder.forward, itertools.count(), []

    def failing(self: CrossEncoder, *batch: Any) -> Tensor:
        if torch.is_grad_enabled() == (fails_in == "backward"):
            running.append(1)
            try:
                if next(calls) == 4:
                    raise LookupError("the fifth batch")
                time.sleep(0.01)
                return forward(self, *batch)
            finally:
                running.pop()
        return forward(self, *batch)

    made = trainer_of(student, tmp_path, batch_tokens=1, memory_tokens=1, batch_size=8)
    monkeypatch.setattr(CrossEncoder, "forward", failing)
    with test_trainer.quiet(), pytest.raises(LookupError, match="the fifth batch"):
        made.train()
    assert not running
    assert next(calls) <= 8


def test_gradients_are_added_in_order_and_none_waits() -> None:
    numbers = [torch.tensor([10.0**n, -1.0]) for n in (8, 0, -8, 7, 1, 3)]  # sums of which depend on their order
    expected = numbers[0].clone()
    for number in numbers[1:]:
        expected += number
    for order in itertools.permutations(range(6)):
        used, unused = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
        total = lanes._Sum([used, unused])
        for number in order:
            total.add(number, [numbers[number].clone(), None])
        assert used.grad is not None
        assert used.grad.equal(expected)
        assert unused.grad is None


def test_the_caller_has_its_number_of_torch_threads_again(model: tiny.Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with_cores(monkeypatch, 2)
    inside, begun = [], []

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            inside.append(torch.get_num_threads())
            with ThreadPoolExecutor(1) as pool:  # a thread of the user's program that begins in a step
                begun.append(pool.submit(torch.get_num_threads).result())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            inside.append(torch.get_num_threads())

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        toy.distillation(model.folder, steps=2, callbacks=[Note()]).fit(toy.TRAIN, None)
        assert (inside, begun) == ([1, 5, 1, 5], [5, 5])
        assert torch.get_num_threads() == 5
        monkeypatch.setattr(CrossEncoder, "forward", broken)
        with pytest.raises(LookupError, match="a batch"):
            toy.distillation(model.folder, steps=2).fit(toy.TRAIN, None)
        assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(before)


def broken(*_: Any) -> Tensor:
    if torch.is_grad_enabled():
        raise LookupError("a batch")
    return torch.zeros(1)
