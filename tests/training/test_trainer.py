"""The loop: the recipe's optimiser, gradients that do not depend on how they are computed, and what is kept of it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import toy
import transformers
from torch import Tensor
from transformers import TrainerCallback

from pyterrier_rankdistillm import MonoElectra, MonoElectraReRanker, extras
from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
from pyterrier_rankdistillm.scoring.encoder import CrossEncoder
from pyterrier_rankdistillm.scoring.scorer import Scorer
from pyterrier_rankdistillm.training import callbacks, trainer
from pyterrier_rankdistillm.training.data import taught_data
from pyterrier_rankdistillm.training.lists import Lists
from pyterrier_rankdistillm.training.losses import Losses
from pyterrier_rankdistillm.training.settings import Settings
from pyterrier_rankdistillm.training.trainer import ListwiseTrainer, groups_within, quiet, tokens_of
from pyterrier_rankdistillm.training.validation import Validation

HERE = Path(__file__).parent

UNEVEN = toy.RUN[toy.RUN["rank"] < toy.RUN["qid"].map({qid: 3 + n % 4 for n, qid in enumerate(toy.QUERIES)})]
"""Rankings of three to six documents."""

LOGGED = 1e-5 if int(transformers.__version__.partition(".")[0]) >= 5 else 5.1e-5
"""How exact losses are in the log: transformers 4 keeps four decimals."""

Gradients = dict[str, Tensor]


@pytest.fixture(scope="module")
def student(model: tiny.Tiny) -> Checkpoint:
    return Checkpoint.open(model.folder)


def trainer_of(
    student: Checkpoint,
    folder: Path,
    run: pd.DataFrame = UNEVEN,
    qrels: pd.DataFrame | None = None,
    **changes: Any,
) -> ListwiseTrainer:
    settings = Settings.of("distill", **{**toy.QUICK, "steps": 1, **changes})
    data = taught_data("Test", settings, run, qrels).data
    steps = settings.total_steps(len(data.members))
    lists = Lists(
        data, student.tokenizer, settings.to_sampling(), total=steps * settings.batch_size, seed=settings.seed
    )
    encoder = student.encoder.copy(settings.dropout)
    return ListwiseTrainer(encoder, lists, settings, student.tokenizer, folder=folder, steps=steps)


def gradients(student: Checkpoint, folder: Path, run: pd.DataFrame = UNEVEN, **changes: Any) -> list[Gradients]:
    """The gradients of each step, of weights that hardly move."""
    noted = []

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
            noted.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    made = trainer_of(student, folder, run, **{"learning_rate": 1e-12, "dropout": 0.0, **changes})
    made.add_callback(Note())
    with quiet():
        made.train()
    return noted


def assert_equal(one: list[Gradients], other: list[Gradients]) -> None:
    """Equal to 1e-5, as seen from the largest gradient."""
    assert len(one) == len(other) > 0
    for mine, theirs in zip(one, other, strict=True):
        assert mine.keys() == theirs.keys()
        largest = max(gradient.abs().max().item() for gradient in mine.values())
        assert largest > 0.01
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-5 * max(1.0, largest), msg=name)


def differ(one: list[Gradients], other: list[Gradients]) -> bool:
    return any(not torch.allclose(one[0][name], other[0][name], rtol=0.01, atol=0.01) for name in one[0])


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Of each forward pass the number of pairs, and whether it is for gradients."""
    passes: list[tuple[int, bool]] = []
    forward = CrossEncoder.forward

    def noted(self: CrossEncoder, ids: Tensor, *rest: Any) -> Tensor:
        passes.append((len(ids), torch.is_grad_enabled()))
        return forward(self, ids, *rest)

    monkeypatch.setattr(CrossEncoder, "forward", noted)
    return passes


# --- the recipe ---


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_schedules(student: Checkpoint, tmp_path: Path, schedule: str, warmup: int) -> None:
    rates = []

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, optimizer: torch.optim.Optimizer, **__: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    trainer = trainer_of(student, tmp_path, steps=6, schedule=schedule, warmup_steps=warmup, batch_size=1)
    trainer.add_callback(Note())
    with quiet():
        trainer.train()
    after = {
        "constant": lambda _: 1.0,
        "linear": lambda done: 1 - done,
        "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    }[schedule]
    shares = [step / warmup if step < warmup else after((step - warmup) / (6 - warmup)) for step in range(6)]
    assert rates == pytest.approx([1e-3 * share for share in shares])


def test_the_recipes_optimiser(student: Checkpoint, tmp_path: Path) -> None:
    recipe = {name: getattr(Settings.of("distill"), name) for name in ("learning_rate", "weight_decay", "batch_size")}
    trainer = trainer_of(student, tmp_path, **recipe)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-5, 0.01)
    assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.9, 0.999), 1e-8, False)  # torch's
    assert {id(p) for p in group["params"]} == {id(p) for p in trainer.model.parameters()}
    assert len(group["params"]) == len(student.encoder.state_dict())
    assert trainer.args.max_grad_norm == 0
    assert trainer.args.label_smoothing_factor == 0
    assert trainer.args.per_device_train_batch_size == 32


def one_step_by_hand(student: Checkpoint, gradient: Gradients, *, scale: float = 1.0, **options: Any) -> Gradients:
    encoder = student.encoder.copy(0.0)
    for name, parameter in encoder.requires_grad_(True).named_parameters():
        parameter.grad = gradient[f"encoder.{name}"] * scale
    torch.optim.AdamW(encoder.parameters(), **options).step()
    return encoder.state_dict()


@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_a_step_is_adamws_with_clipping_only_where_it_is_asked_for(
    student: Checkpoint, tmp_path: Path, max_grad_norm: float | None
) -> None:
    (gradient,) = gradients(student, tmp_path, learning_rate=0.01)
    norm = torch.cat([one.flatten() for one in gradient.values()]).norm().item()
    assert norm > 1  # the Trainer's own default would clip it
    options = {"lr": 0.01, "weight_decay": 0.5}
    scale = 1.0 if max_grad_norm is None else max_grad_norm / norm
    expected = one_step_by_hand(student, gradient, scale=scale, **options)
    trainer = trainer_of(
        student, tmp_path, learning_rate=0.01, weight_decay=0.5, dropout=0.0, max_grad_norm=max_grad_norm
    )
    clipped = []

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
            clipped.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())

    trainer.add_callback(Note())
    with quiet():
        trainer.train()
    assert clipped[0].item() == pytest.approx(norm if max_grad_norm is None else max_grad_norm, rel=1e-4)
    for name, weight in trainer.model.encoder.state_dict().items():
        # These have no gradient but rounding, which AdamW blows up: no score, or all of them alike, depend on them.
        if not name.endswith(("key.bias", "layer.1.output.LayerNorm.bias")):
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-4)


# --- gradients ---


@pytest.fixture(scope="module")
def plain(student: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[Gradients]:
    """Of one pass over all lists of a step."""
    return gradients(student, tmp_path_factory.mktemp("plain"), steps=2, memory_tokens=10**6, batch_tokens=10**6)


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_tokens": 150},  # groups of one or two lists
        {"memory_tokens": 60},  # the larger lists with cached gradients
        {"memory_tokens": 1},  # all of them
        {"memory_tokens": 1, "batch_tokens": 1},
        {"memory_tokens": 10**6, "batch_tokens": 40},
        {"accumulation": 2},
        {"accumulation": 4, "memory_tokens": 60},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "memory_tokens": 1, "batch_tokens": 50},
    ],
    ids=str,
)
def test_gradients_do_not_depend_on_how_they_are_computed(
    student: Checkpoint, tmp_path: Path, plain: list[Gradients], changes: dict[str, Any]
) -> None:
    assert_equal(plain, gradients(student, tmp_path, steps=2, **changes))


def test_gradients_depend_on_the_lists(student: Checkpoint, tmp_path: Path, plain: list[Gradients]) -> None:
    """So that the test above could fail."""
    assert differ(plain, gradients(student, tmp_path, seed=1))
    assert differ(plain, gradients(student, tmp_path, batch_size=3))


def test_gradients_are_those_of_the_mean_of_the_lists_losses(
    student: Checkpoint, tmp_path: Path, plain: list[Gradients]
) -> None:
    trainer = trainer_of(student, tmp_path, dropout=0.0)
    encoder = trainer.model.encoder
    losses = []
    for one in trainer.train_dataset.__getitems__(range(4)):
        scores = torch.cat([encoder(*map(torch.from_numpy, student.tokenizer.pad([pair]))) for pair in one.pairs])
        pairs = [
            torch.nn.functional.softplus(scores[lower] - scores[higher])
            for higher in range(len(scores))
            for lower in range(higher + 1, len(scores))
        ]
        losses.append(torch.stack(pairs).mean())
    torch.stack(losses).mean().backward()
    by_hand = {f"encoder.{name}": p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    assert_equal(plain[:1], [by_hand])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_cached_gradients_draw_the_same_dropout_twice(student: Checkpoint, tmp_path: Path, checkpointing: bool) -> None:
    """With one list a step, the batches are the same with and without: so are gradients, also those of later steps."""
    options = {"steps": 3, "batch_size": 1, "dropout": 0.2, "batch_tokens": 40, "gradient_checkpointing": checkpointing}
    expected = gradients(student, tmp_path, memory_tokens=10**6, **options)
    assert_equal(expected, gradients(student, tmp_path, memory_tokens=1, **options))
    assert differ(expected, gradients(student, tmp_path, memory_tokens=1, **options | {"dropout": 0.0}))
    assert differ(expected, gradients(student, tmp_path, memory_tokens=1, **options, warmup_steps=0, seed=43))


def test_no_second_pass_is_paid_where_a_list_fits(
    student: Checkpoint, tmp_path: Path, forwards: list[tuple[int, bool]]
) -> None:
    lists = trainer_of(student, tmp_path).train_dataset.__getitems__(range(4))
    pairs = [len(one.pairs) for one in lists]
    largest = max(tokens_of([one]) for one in lists)
    gradients(student, tmp_path, memory_tokens=largest)
    assert all(with_gradients for _, with_gradients in forwards)
    assert sum(number for number, _ in forwards) == sum(pairs)

    forwards.clear()
    gradients(student, tmp_path, memory_tokens=largest - 1)  # one does not fit: it alone is paid twice
    too_large = [len(one.pairs) for one in lists if tokens_of([one]) == largest]
    assert sum(number for number, with_gradients in forwards if not with_gradients) == sum(too_large)
    assert sum(number for number, with_gradients in forwards if with_gradients) == sum(pairs)


def test_lists_are_prepared_while_the_step_before_is_computed(
    student: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, threads, seen = [], set(), []
    get = Lists.__getitems__

    def noted(self: Lists, indices: Any) -> Any:
        lists = get(self, indices)
        prepared.extend(indices)
        threads.add(threading.get_ident())
        return lists

    class Step(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            limit = time.monotonic() + 10
            while len(prepared) < min(2 * (len(seen) + 2), 8) and time.monotonic() < limit:
                time.sleep(0.005)  # until the next step's lists are there
            seen.append(len(prepared))

    monkeypatch.setattr(Lists, "__getitems__", noted)
    made = trainer_of(student, tmp_path, steps=4, batch_size=2)
    made.add_callback(Step())
    with quiet():
        made.train()
    assert len(seen) == 4
    assert all(there >= min(2 * (step + 2), 8) for step, there in enumerate(seen))
    assert prepared == list(range(8))
    assert threads != {threading.get_ident()}
    assert len(threads) == 1


def test_an_error_of_the_lists_ends_the_training_where_they_are_needed(
    student: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, steps = Lists.__getitems__, []

    def broken(self: Lists, indices: Any) -> Any:
        if 4 in indices:
            raise LookupError("no such text")
        return get(self, indices)

    class Step(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.append(1)

    monkeypatch.setattr(Lists, "__getitems__", broken)
    made = trainer_of(student, tmp_path, steps=4, batch_size=2)
    made.add_callback(Step())
    with quiet(), pytest.raises(LookupError, match="no such text"):
        made.train()
    assert len(steps) in (1, 2)  # accelerate looks one part ahead
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lists")]


def test_groups_within(student: Checkpoint, tmp_path: Path) -> None:
    lists = trainer_of(student, tmp_path).train_dataset.__getitems__(range(4))
    sizes = [tokens_of([one]) for one in lists]
    for budget in (1, *sizes, sizes[0] + sizes[1], sum(sizes) - 1, sum(sizes)):
        groups = list(groups_within(lists, budget))
        assert [one for group in groups for one in group] == lists
        assert all(tokens_of(group) <= budget or len(group) == 1 for group in groups)
        heads = [tokens_of([*group, following[0]]) for group, following in pairwise(groups)]
        assert all(tokens > budget for tokens in heads)
    assert len(list(groups_within(lists, sum(sizes)))) == 1


@pytest.mark.parametrize("loss", ["ranknet", ["adr_mse", {"name": "list_net", "weight": 0.5}]])
@pytest.mark.parametrize("changes", [{}, {"accumulation": 2}, {"memory_tokens": 50}], ids=str)
def test_the_loss_of_a_step_is_the_mean_of_its_lists_losses(
    student: Checkpoint, tmp_path: Path, loss: Any, changes: dict[str, Any]
) -> None:
    trainer = trainer_of(
        student, tmp_path, steps=2, learning_rate=1e-12, dropout=0.0, loss=loss, log_every=1, **changes
    )
    means = []
    scorer = Scorer(student, device="cpu")
    of = {text: docno for docno, text in toy.TEXTS.items()}
    assert len(of) == len(toy.TEXTS)
    for step in range(2):
        values = []
        for one in trainer.train_dataset.__getitems__(range(4 * step, 4 * step + 4)):
            ranking = UNEVEN[UNEVEN["qid"] == one.qid]
            scores = torch.from_numpy(scorer.score(ranking["query"].tolist(), ranking["text"].tolist()).scores)
            targets = {
                "order": -torch.arange(len(ranking), dtype=torch.float32),
                "values": torch.tensor(ranking["score"].to_numpy(), dtype=torch.float32),
            }
            mask = torch.ones(1, len(ranking), dtype=torch.bool)
            targets = {kind: target[None] for kind, target in targets.items()}
            values.append(Losses.of(loss)(scores[None], targets, mask).item())  # type: ignore[arg-type]
        means.append(np.mean(values))
    with quiet():
        trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert logged == pytest.approx(means, abs=LOGGED)


def test_half_precision_is_autocast(student: Checkpoint, tmp_path: Path, plain: list[Gradients]) -> None:
    (half,) = gradients(student, tmp_path, dtype="bfloat16")
    assert {gradient.dtype for gradient in half.values()} == {torch.float32}
    one, other = (torch.cat([g.flatten() for g in found.values()]) for found in (plain[0], half))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.98
    assert not one.equal(other)


# --- what is kept ---


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The values that validations will give, one after another, instead of the real ones."""
    values: list[float] = []
    monkeypatch.setattr(Validation, "__call__", lambda *_: values.pop(0))
    yield values
    assert not values


VALIDATED = (toy.TRAIN, None, toy.VALID, toy.QRELS)
KEPT_AS_IT_WAS = pytest.mark.filterwarnings("ignore:.*no validation was better than that before:UserWarning")


@pytest.mark.parametrize("best", [1, 2, 4])
def test_the_best_weights_are_kept(model: tiny.Tiny, scripted: list[float], best: int) -> None:
    scripted += [0.05, *(0.9 if step == best else 0.1 * step for step in (1, 2, 3, 4))]  # 0.05: before training
    watched = toy.distillation(model.folder, steps=4, valid_every=1)
    watched.fit(*VALIDATED)
    assert watched.training.best_step == best
    assert watched.training.steps == 4
    expected = toy.distillation(model.folder, steps=best)
    expected.fit(toy.TRAIN, None)
    assert expected.training.best_step is None
    assert toy.same(toy.weights(watched.reranker), toy.weights(expected.reranker))


def test_training_never_takes_cudnn_attention(model: tiny.Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = []
    forward = CrossEncoder.forward

    def watched(self: CrossEncoder, *args: Any) -> Tensor:
        allowed.append((torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()))
        return forward(self, *args)

    monkeypatch.setattr(CrossEncoder, "forward", watched)
    toy.distillation(model.folder, steps=1).fit(toy.TRAIN, None)
    assert set(allowed) == {(False, True)}
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_processes_wait_for_a_long_validation(tmp_path: Path) -> None:
    made = Settings.of("distill", steps=1, batch_size=1, device="cpu")
    arguments = trainer.training_arguments(made, folder=tmp_path, steps=1, validated=True, resumed=False)
    assert arguments.ddp_timeout_delta >= timedelta(days=1)  # torch's own patience is half an hour


NOTHING_BETTER = r"^Distillation: no validation was better than that before training \(nDCG@10 0.5000\), so the student"


def test_a_student_that_only_got_worse_comes_back_as_it_was(
    model: tiny.Tiny, scripted: list[float], tmp_path: Path
) -> None:
    scripted += [0.5, 0.4, 0.5, 0.3]  # no better than the start is no better
    given = MonoElectraReRanker(model.folder)
    for again in (False, True):  # taken up when it is complete, it says the same
        watched = toy.distillation(given, steps=3, valid_every=1, folder=tmp_path / "kept", resume=again)
        with pytest.warns(UserWarning, match=NOTHING_BETTER):
            watched.fit(*VALIDATED)
        assert (watched.training.best_step, watched.training.steps) == (0, 3)
        assert toy.same(toy.weights(watched.reranker), toy.weights(given))
        assert dict(watched.training.table.itertuples(index=False))["nDCG@10 best, kept"] == "0.5000 at step 0"
        assert watched.training.as_record()["validation"]["kept"] == 0.5


def test_patience_counts_from_the_start(model: tiny.Tiny, scripted: list[float]) -> None:
    scripted += [0.5, 0.4, 0.3]
    stopped = toy.distillation(model.folder, steps=9, valid_every=1, patience=2)
    with pytest.warns(UserWarning, match=NOTHING_BETTER):
        stopped.fit(*VALIDATED)
    assert (stopped.training.best_step, stopped.training.steps) == (0, 2)


def test_a_new_head_is_no_candidate(scripted: list[float], tmp_path: Path) -> None:
    backbone = tiny.backbone(tmp_path / "backbone")
    scripted += [0.5, 0.4, 0.1]
    watched = toy.distillation(backbone, steps=2, valid_every=1)
    watched.fit(*VALIDATED)
    assert watched.training.best_step == 1


def test_the_best_weights_are_kept_also_between_checkpoints(
    model: tiny.Tiny, scripted: list[float], tmp_path: Path
) -> None:
    scripted += [0.0, 0.1, 0.2, 0.9, 0.3, 0.3, 0.3]
    watched = toy.distillation(model.folder, steps=6, valid_every=1, save_every=2, folder=tmp_path / "kept")
    watched.fit(*VALIDATED)
    assert watched.training.best_step == 3
    assert {"checkpoint-3", "checkpoint-6"} < set(toy.names(tmp_path / "kept"))
    expected = toy.distillation(model.folder, steps=3)
    expected.fit(toy.TRAIN, None)
    assert toy.same(toy.weights(watched.reranker), toy.weights(expected.reranker))


def test_early_stopping(model: tiny.Tiny, scripted: list[float]) -> None:
    scripted += [0.0, 0.2, 0.3, 0.3, 0.1]
    stopped = toy.distillation(model.folder, steps=20, valid_every=2, patience=2)
    stopped.fit(*VALIDATED)
    assert (stopped.training.best_step, stopped.training.steps) == (4, 8)


@KEPT_AS_IT_WAS
@pytest.mark.parametrize("measure", ["nDCG@3", "RR(rel=1)", "P@1", "AP@4", "Bpref"])
def test_any_measure(model: tiny.Tiny, measure: str) -> None:
    watched = toy.distillation(model.folder, steps=2, valid_every=1, measure=measure)
    watched.fit(*VALIDATED)
    log = watched.training.log
    assert log["step"].tolist() == [0, 1, 2]
    qrels = toy.QRELS.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
    qrels = qrels[qrels["query_id"].isin(toy.VALID["qid"])]
    for step, value in zip(log["step"], log[measure], strict=True):
        reranker = MonoElectra(model.folder)
        if step:
            trained = toy.distillation(model.folder, steps=step)
            trained.fit(toy.TRAIN, None)
            reranker = trained.reranker
        ranking = reranker(toy.VALID).rename(columns={"qid": "query_id", "docno": "doc_id"})
        parsed = ir_measures.parse_measure(measure)
        assert value == pytest.approx(ir_measures.calc_aggregate([parsed], qrels, ranking)[parsed])


def test_validation_does_not_change_the_training(model: tiny.Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout is drawn as without it."""
    monkeypatch.setattr(Validation, "__call__", lambda *_: torch.rand(()).item())
    logs = []
    for data in (VALIDATED, VALIDATED[:2]):
        one = toy.distillation(model.folder, steps=4, log_every=1, valid_every=1)
        one.fit(*data)
        logs.append(one.training.log["loss"].dropna().tolist())
    assert logs[0] == logs[1]


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_training_that_diverges_is_an_error(model: tiny.Tiny, log_every: int) -> None:
    diverging = toy.distillation(model.folder, steps=4, learning_rate=1e30, log_every=log_every)
    with pytest.raises(FloatingPointError, match=r"The training loss is nan at step \d\. Lower learning_rate, or use"):
        diverging.fit(toy.TRAIN, None)
    with pytest.raises(RuntimeError, match="Call fit first"):
        _ = diverging.reranker


def test_no_such_device(model: tiny.Tiny) -> None:
    for device, found in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
        if not found.is_available():
            with pytest.raises(ValueError, match=f"device must be one that torch finds here, got '{device}'"):
                toy.distillation(model.folder, device=device).fit(toy.TRAIN, None)


@pytest.mark.parametrize(
    ("device", "cuda", "native", "dtype"),
    [
        (None, True, True, "bfloat16"),
        (None, True, False, "float16"),  # capability below 8.0: bfloat16 would be emulated
        ("cuda", True, False, "float16"),
        ("cpu", True, True, "float32"),
        ("mps", True, True, "float32"),
        (None, False, False, "float32"),
    ],
)
def test_the_precision_is_one_that_the_device_computes_in(
    monkeypatch: pytest.MonkeyPatch, device: Any, cuda: bool, native: bool, dtype: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: native or including_emulation)
    settings = Settings.of("distill", device=device)
    assert trainer.resolved_dtype(settings) == dtype
    assert trainer.resolved_dtype(dataclasses.replace(settings, dtype="float32")) == "float32"


def test_randomness_of_the_device_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Apple's GPUs too, where cached gradients draw their dropout from a generator of the device."""
    given: list[Any] = []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7]))
    monkeypatch.setattr(torch.mps, "set_rng_state", given.append)
    mps = torch.device("mps")
    state = trainer._random_state(mps)
    drawn = torch.rand(3)
    trainer._set_random_state(state, mps)
    assert torch.equal(torch.rand(3), drawn)
    assert [one.tolist() for one in given] == [[7]]


def test_validation_needs_no_tensor_on_the_device(student: Checkpoint, tmp_path: Path) -> None:
    """MPS has no float64."""
    made = trainer_of(student, tmp_path)
    made.validate = lambda: 0.1
    with pytest.MonkeyPatch.context() as patch:
        for name in ("zeros", "tensor"):
            patch.setattr(torch, name, None)
        patch.setattr(made, "log", lambda _: None)
        assert made.evaluate() == {"eval_nDCG@10": 0.1}


# --- folders: checkpoints, resuming ---


def test_what_a_folder_holds(model: tiny.Tiny, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one = toy.distillation(model.folder, steps=6, folder=tmp_path / "kept", save_every=2)
    one.fit(toy.TRAIN, None)
    held = toy.names(tmp_path / "kept")
    assert held == ["checkpoint-4", "checkpoint-6", "log.csv", "training.json", "training.png"]
    log = pd.read_csv(tmp_path / "kept" / "log.csv")
    pd.testing.assert_frame_equal(log, one.training.log)
    assert callbacks.last_checkpoint(tmp_path / "kept") == tmp_path / "kept" / "checkpoint-6"


def test_tensorboard(model: tiny.Tiny, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one = toy.distillation(model.folder, steps=3, folder=tmp_path, report_to="tensorboard", log_every=1)
    one.fit(toy.TRAIN, None)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(one.training.log["loss"].tolist())


class Recorder(TrainerCallback):
    """Notes what it is told, and asks for an end after some steps."""

    def __init__(self, last: int = 99) -> None:
        self.last = last
        self.logs: list[dict[str, float]] = []

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        self.logs.append(dict(logs or {}))

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        control.should_training_stop |= state.global_step >= self.last


def test_callbacks_are_called_and_may_stop(model: tiny.Tiny) -> None:
    recorder = Recorder(last=2)
    one = toy.distillation(model.folder, steps=4, log_every=1, valid_every=1, measure="nDCG@3", callbacks=[recorder])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no validation was better")
        one.fit(toy.TRAIN, None, toy.VALID, toy.QRELS)
    assert one.training.steps == 2
    logged = [log["loss"] for log in recorder.logs if "loss" in log]
    assert logged == pytest.approx(one.training.log["loss"].dropna().tolist())
    measured = [log["eval_nDCG@3"] for log in recorder.logs if "eval_nDCG@3" in log]
    assert measured == pytest.approx(one.training.log["nDCG@3"].dropna().tolist())
    for wrong, got in (([print], "print"), ([Recorder], r"a class; call it"), ("wandb", "'w'")):
        with pytest.raises(TypeError, match=rf"Distillation: callbacks must be a list of transformers\..*got .*{got}"):
            toy.distillation(model.folder, callbacks=wrong)


def test_callbacks_are_part_of_a_kept_training(model: tiny.Tiny, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 2, "folder": tmp_path / "kept", "resume": True}
    toy.distillation(model.folder, callbacks=[Recorder()], **options).fit(toy.TRAIN, None)
    again = toy.distillation(model.folder, callbacks=[Recorder()], **options)
    again.fit(toy.TRAIN, None)
    for others in ([], [Recorder(last=1)]):
        other = toy.distillation(model.folder, callbacks=others, **options)
        with pytest.raises(ValueError, match=r"holds another training: callbacks.*reuse=\['callbacks'\]"):
            other.fit(toy.TRAIN, None)
    other.fit(toy.TRAIN, None, reuse=["callbacks"])


def test_trackers_are_transformers_own(model: tiny.Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils

    made: list[Recorder] = []

    def callbacks_of(tracker: str) -> list[Callable[[], Recorder]]:
        assert tracker == "wandb"
        return [lambda: made.append(Recorder()) or made[-1]]  # type: ignore[func-returns-value]

    monkeypatch.setattr(extras, "find_spec", lambda name: name)
    monkeypatch.setattr(integration_utils, "get_reporting_integration_callbacks", callbacks_of)
    toy.distillation(model.folder, steps=1, report_to="wandb").fit(toy.TRAIN, None)
    (recorder,) = made
    assert any("loss" in log for log in recorder.logs)


FOLDER_OF_ANOTHER: list[tuple[dict[str, Any], pd.DataFrame, str]] = [
    ({"seed": 7}, toy.TRAIN, "settings.seed: 42, now 7"),
    ({"loss": "adr_mse"}, toy.TRAIN, "settings.loss: is another"),
    ({"steps": 8}, toy.TRAIN, "settings.steps: 4, now 8"),
    ({}, toy.RUN, "data.queries: 6, now 8"),
    ({}, toy.TRAIN[toy.TRAIN["rank"] < 5], "data.rows: 36, now 30"),
    ({}, toy.TRAIN.assign(rank=5 - toy.TRAIN["rank"], score=-toy.TRAIN["score"]), "data.rankings: "),
]


@pytest.mark.parametrize(("changes", "run", "complaint"), FOLDER_OF_ANOTHER, ids=lambda value: str(value)[:20])
def test_the_folder_of_another_training_is_refused(
    model: tiny.Tiny, tmp_path: Path, changes: dict[str, Any], run: pd.DataFrame, complaint: str
) -> None:
    options = {"steps": 4, "folder": tmp_path / "kept", "save_every": 2}
    toy.distillation(model.folder, **options).fit(toy.TRAIN, None)
    before = toy.names(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"holds another training: .*Choose another folder, or delete it") as caught:
        toy.distillation(model.folder, **options | changes, resume=True).fit(run, None)
    assert complaint in str(caught.value)
    assert toy.names(tmp_path / "kept") == before


def test_the_folder_of_another_student_is_refused(model: tiny.Tiny, copied: Any, tmp_path: Path) -> None:
    options = {"steps": 4, "folder": tmp_path / "kept", "save_every": 2}
    toy.distillation(model.folder, **options).fit(toy.TRAIN, None)
    toy.distillation(copied(), **options, resume=True).fit(toy.TRAIN, None)  # the same weights elsewhere
    other = copied("projection")
    with pytest.raises(ValueError, match=r"holds another training: .*student"):
        toy.distillation(other, **options, resume=True).fit(toy.TRAIN, None)


def test_checkpoints_are_not_overwritten_unasked(model: tiny.Tiny, tmp_path: Path) -> None:
    options = {"steps": 2, "folder": tmp_path / "kept"}
    toy.distillation(model.folder, **options).fit(toy.TRAIN, None)
    with pytest.raises(ValueError, match=r"holds checkpoints of this training. resume=True continues it; or delete"):
        toy.distillation(model.folder, **options).fit(toy.TRAIN, None)


def test_a_finished_training_is_not_trained_again(
    model: tiny.Tiny, tmp_path: Path, forwards: list[tuple[int, bool]]
) -> None:
    options = {"steps": 3, "folder": tmp_path / "kept", "save_every": 1, "resume": True}
    first = toy.distillation(model.folder, **options)
    first.fit(toy.TRAIN, None)
    forwards.clear()
    again = toy.distillation(model.folder, **options)
    again.fit(toy.TRAIN, None)
    assert not forwards
    assert toy.same(toy.weights(first.reranker), toy.weights(again.reranker))
    pd.testing.assert_frame_equal(first.training.log, again.training.log)


@KEPT_AS_IT_WAS
@pytest.mark.parametrize("resume", [False, True])
def test_what_is_said_of_before_is_of_before(model: tiny.Tiny, tmp_path: Path, resume: bool) -> None:
    one = toy.distillation(model.folder, steps=2, folder=tmp_path / "kept", resume=resume)
    one.fit(*VALIDATED)
    assert one.training.log["step"].tolist() == [0, 1, 2]
    assert one.training.log["loss"].isna().tolist() == [True, False, False]


SCRIPT = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import test_trainer
test_trainer.resumable(Path(sys.argv[3]), Path(sys.argv[4]), die=sys.argv[5])
"""
STEPS, EVERY = 12, 3


def resumable(model: Path, folder: Path, *, die: str = "", resume: bool = True, **changes: Any) -> Any:
    """Trains with dropout and validation; ``die``: where this process kills itself."""

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    class Dying(callbacks.Guard):
        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if die == "between" and state.global_step == 8:
                kill()

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if die == "half" and state.global_step == 6:
                (self.folder / "checkpoint-6" / "optimizer.pt").write_bytes(b"half")
                kill()
            super().on_save(args, state, control)

    with pytest.MonkeyPatch.context() as patch:
        if die:
            torch.set_num_threads(1)
            patch.setattr("pyterrier_rankdistillm.training.trainer.Guard", Dying)
        options = {"steps": STEPS, "valid_every": EVERY, "folder": folder, "resume": resume, "log_every": 1}
        one = toy.distillation(model, **options | changes)
        one.fit(toy.TRAIN, None, toy.TRAIN, toy.FIRST_TWO)  # it does get better
    return one


@pytest.fixture(scope="module")
def uninterrupted(model: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory) -> Any:
    whole = resumable(model.folder, tmp_path_factory.mktemp("whole") / "kept")
    assert whole.training.best_step > 0
    return whole


@pytest.mark.parametrize("die", [pytest.param("between", marks=pytest.mark.slow), "half"])
def test_killed_and_resumed_it_ends_with_the_same_weights(
    model: tiny.Tiny, tmp_path: Path, uninterrupted: Any, die: str
) -> None:
    folder = tmp_path / "kept"
    arguments = [str(HERE.parent), str(HERE), str(model.folder), str(folder), die]
    died = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert "checkpoint-6" in toy.names(folder)
    last = callbacks.last_checkpoint(folder)
    assert last is not None
    assert last.name == {"between": "checkpoint-6", "half": "checkpoint-3"}[die]
    resumed = resumable(model.folder, folder)
    assert toy.same(toy.weights(resumed.reranker), toy.weights(uninterrupted.reranker))
    pd.testing.assert_frame_equal(resumed.training.log, uninterrupted.training.log)
    assert resumed.training.best_step == uninterrupted.training.best_step
    last_weights = f"checkpoint-{STEPS}/model.safetensors"
    whole = uninterrupted.settings.folder / last_weights
    assert (folder / last_weights).read_bytes() == whole.read_bytes()


def test_interrupted_trainings_have_their_patience_back(
    model: tiny.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [0.1, 0.5, 0.4, 0.3, 0.2]

    def interrupted(*_: Any) -> float:
        if len(values) == 2:
            raise KeyboardInterrupt
        return values.pop(0)

    monkeypatch.setattr(Validation, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resumable(model.folder, tmp_path / "kept", patience=2)
    monkeypatch.setattr(Validation, "__call__", lambda *_: values.pop(0))
    resumed = resumable(model.folder, tmp_path / "kept", patience=2)
    assert (resumed.training.steps, resumed.training.best_step) == (9, 3)
    assert values == [0.2]
    # Early stopping has ended it: the same call has nothing more to do.
    again = resumable(model.folder, tmp_path / "kept", patience=2)
    assert values == [0.2]
    assert (again.training.steps, again.training.best_step) == (9, 3)
    assert toy.same(toy.weights(again.reranker), toy.weights(resumed.reranker))
    pd.testing.assert_frame_equal(again.training.log, resumed.training.log)


# --- several processes ---

PROCESSES = """
import json, os, sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import torch
torch.set_num_threads(1)
import test_trainer
test_trainer.one_of_two(Path(sys.argv[3]), Path(sys.argv[4]))
"""
SHARED_BATCH: dict[str, Any] = {
    "steps": 4, "batch_size": 4, "valid_every": 2, "log_every": 1, "dropout": 0.0, "learning_rate": 1e-4,
    "memory_tokens": 150,
}  # fmt: skip


BETTERED = (UNEVEN[UNEVEN["qid"] < "q6"], None, UNEVEN[UNEVEN["qid"] < "q6"], toy.FIRST_TWO)


def one_of_two(model: Path, folder: Path) -> None:
    """What each of two processes does."""
    calls = []
    measured = Validation.__call__

    def noted(self: Validation, reranker: Any) -> float:
        calls.append(measured(self, reranker))
        return calls[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "__call__", noted)
        one = toy.distillation(model, folder=folder / "kept", **SHARED_BATCH)
        one.fit(*BETTERED)
    told = {"validations": len(calls), "log": one.training.log.to_dict(orient="list"), "best": one.training.best_step}
    rank = os.environ["RANK"]
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    one.reranker.save(folder / f"student-{rank}")


@pytest.mark.slow
def test_two_processes_train_as_one(model: tiny.Tiny, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    arguments = [str(HERE.parent), str(HERE), str(model.folder), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in (0, 1))
    assert (first["validations"], second["validations"]) == (3, 0)
    assert first["log"]["nDCG@10"] == second["log"]["nDCG@10"]

    alone = toy.distillation(model.folder, **SHARED_BATCH)
    alone.fit(*BETTERED)
    log = alone.training.log
    np.testing.assert_allclose(first["log"]["loss"], log["loss"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(second["log"]["loss"], log["loss"], rtol=0, atol=1e-5)
    assert log["loss"].iloc[1:].nunique() == 4
    np.testing.assert_allclose(first["log"]["nDCG@10"], log["nDCG@10"], rtol=0, atol=1e-6)
    assert first["best"] == second["best"] == alone.training.best_step != 0
    trained = [toy.weights(MonoElectra(tmp_path / f"student-{rank}")) for rank in (0, 1)]
    assert toy.same(*trained)
    for name, weight in toy.weights(alone.reranker).items():
        # These have no gradient but rounding, which AdamW blows up: no score, or all of them alike, depend on them.
        if not name.endswith(("key.bias", "layer.1.output.LayerNorm.bias")):
            torch.testing.assert_close(trained[0][name], weight, rtol=0, atol=1e-5, msg=name)


def test_a_training_in_float32_after_one_in_bfloat16_is_in_float32(student: Checkpoint, tmp_path: Path) -> None:
    before = gradients(student, tmp_path / "1")
    assert trainer_of(student, tmp_path / "2", dtype="bfloat16").accelerator.mixed_precision == "bf16"
    assert trainer_of(student, tmp_path / "3").accelerator.mixed_precision == "no"
    assert_equal(gradients(student, tmp_path / "4"), before)
