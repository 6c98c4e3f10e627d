"""The training loop: ``transformers.Trainer`` on lists of pairs.

The Trainer handles devices, processes, precision, checkpoints and resuming. Three things are different here. A batch is
a number of lists. The loss is the mean over all lists of a step, whatever process or part they are in. And the backward
pass of a step is done in groups of lists that fit in memory.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ..scoring.batching import REDUCED_MULTIPLE, plan_batches, rounded_width
from ..scoring.devices import copied, padded_batch
from ..scoring.encoder import Batch, PairEncoder
from ..scoring.scorer import DType
from ..scoring.tokenizer import Pair, PairTokenizer
from .callbacks import Guard, OneCore, ProgressBar, reporter
from .lanes import Lanes, suits
from .lists import Lists, TrainingList
from .losses import Losses
from .settings import Settings

CPU_BATCH_TOKENS = 512
"""Measured (see benchmarks/README.md): larger batches do not fit in the processor's cache."""


_PATIENCE = 7 * 24 * 3600
"""Seconds that processes wait for each other: one validates, or fetches texts, while the others have nothing to do."""


class Student(nn.Module):
    """The module that the Trainer wraps and calls. It scores several batches of pairs in one forward pass."""

    def __init__(self, encoder: PairEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batches: Sequence[Batch]) -> Tensor:
        """Logits of all pairs, in the order of the batches, shape (pairs,); see ``PairEncoder.together``."""
        return self.encoder.together(batches)


class ListwiseTrainer(Trainer):
    """Trains a cross-encoder on lists.

    Args:
        encoder: The encoder to train; it is changed in place.
        lists: The lists to train on, ``steps * settings.batch_size`` of them.
        settings: All settings.
        tokenizer: The tokenizer, for padding.
        folder: Where checkpoints are written.
        steps: The number of optimiser steps.
        validate: Returns the validation measure of the current weights; called on one process.
        resumed: Whether training continues from a checkpoint.
        start_can_win: Whether the weights before training take part where the best ones are chosen.
        callbacks: The user's.
    """

    def __init__(
        self,
        encoder: PairEncoder,
        lists: Lists,
        settings: Settings,
        tokenizer: PairTokenizer,
        *,
        folder: Path,
        steps: int,
        validate: Callable[[], float] | None = None,
        resumed: bool = False,
        start_can_win: bool = True,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.settings = settings
        self.start_can_win = start_can_win
        self.losses = Losses.of(settings.loss)
        self.pad = tokenizer.pad
        self.encoder = encoder
        self.validate = validate
        self.ahead = _Ahead()
        self.step_cores = contextlib.ExitStack()
        encoder.recompute_layers(settings.gradient_checkpointing)
        args = training_arguments(settings, folder=folder, steps=steps, validated=validate is not None, resumed=resumed)
        super().__init__(
            model=Student(encoder.train().requires_grad_(True)),
            args=args,
            train_dataset=lists,
            # The Trainer requires one in order to evaluate; our ``evaluate`` does not read it.
            eval_dataset=lists if validate is not None else None,
            data_collator=_as_batch,
        )
        on_cpu = self.args.device.type == "cpu"
        self.batch_tokens = settings.batch_tokens or (CPU_BATCH_TOKENS if on_cpu else settings.memory_tokens)
        self.lanes = self._lanes() if on_cpu else None
        self.remove_callback(PrinterCallback)
        self.add_callback(Guard(folder))
        if self.lanes is not None:
            self.add_callback(OneCore(self.step_cores))
        if settings.verbose is not False and self.is_world_process_zero():
            self.add_callback(ProgressBar(settings.measure, settings.verbose))
        if settings.patience is not None and validate is not None:
            self.add_callback(EarlyStoppingCallback(settings.patience))
        for tracker in settings.trackers:
            self.add_callback(reporter(tracker, folder))
        for callback in callbacks:
            self.add_callback(callback)

    def train(self, *args: Any, **options: Any) -> Any:
        """Trains; see ``transformers.Trainer.train``."""
        try:
            return super().train(*args, **options)
        finally:
            self.ahead.close()
            self.step_cores.close()

    # --- where the recipe differs from the Trainer's defaults ---

    def create_optimizer(self, *_: Any, **__: Any) -> torch.optim.Optimizer:
        """AdamW with one group: the same weight decay on every parameter, as in the paper's code."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                cast(nn.Module, self.model).parameters(),
                lr=self.settings.learning_rate,
                weight_decay=self.settings.weight_decay,
                fused=True,  # the same update in one pass over the weights
            )
        return self.optimizer

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        return SequentialSampler(cast(Lists, self.train_dataset))  # the lists already are in a seeded order

    # --- lists ---

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The parts of a step on this process, and the number of lists of the step over all processes."""
        parts = self.ahead.take(epoch_iterator, num_batches)
        lists = torch.tensor(sum(len(part["lists"]) for part in parts), device=device)
        return parts, self.accelerator.gather(lists).sum()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Adds the gradients of this part of the step.

        Returns:
            This part's share of the step's loss, times the number of processes (which the Trainer divides by).
        """
        model.train()
        assert num_items_in_batch is not None
        share = self.args.world_size / num_items_in_batch  # processes' gradients are averaged
        # What sees lists is given one at a time.
        most = 0 if self.encoder.sees_lists else self.settings.memory_tokens
        groups = list(groups_within(inputs["lists"], most))
        total = torch.zeros((), device=self.args.device)
        for number, group in enumerate(groups, start=1):
            # Gradients are exchanged between processes once per step, with the last group.
            waiting = number < len(groups)
            with self.accelerator.no_sync(model) if waiting else contextlib.nullcontext():
                total += self._backward(model, group, share)
        return total

    def _lanes(self) -> Lanes | None:
        """On a CPU, cores with batches of their own; None where they have to share each batch.

        A set encoder's list is one whole, processes add their gradients as torch does it, and layers that are computed
        again draw from torch's generator.
        """
        shared = self.encoder.sees_lists or self.args.world_size > 1 or self.settings.gradient_checkpointing
        if shared or not suits(self.encoder):
            return None
        return Lanes(self.encoder, torch.bfloat16 if self.args.bf16 else None)

    def _backward(self, model: nn.Module, group: list[TrainingList], share: Tensor) -> Tensor:
        batches, order = self._batches([pair for one in group for pair in one.pairs])
        fits = tokens_of(group) <= self.settings.memory_tokens
        if self.lanes is not None:
            return self.lanes.backward(batches, lambda scores: self._loss(scores[order], group) * share, keep=fits)
        if self.encoder.sees_lists:  # no batch of a list can be gone through by itself, but each layer can
            self.encoder.recompute_layers(self.settings.gradient_checkpointing or not fits)
        elif not fits:
            return self._backward_cached(model, group, batches, order, share)
        loss = self._loss(model(batches)[order], group) * share
        self.accelerator.backward(loss)
        return loss.detach()

    def _backward_cached(
        self, model: nn.Module, group: list[TrainingList], batches: list[Batch], order: Tensor, share: Tensor
    ) -> Tensor:
        """For a list that does not fit: scores it without gradients, then again with gradients, batch by batch.

        The second pass needs only the gradient of the loss with respect to the scores. It uses the same dropout as the
        first.
        """
        randomness = []
        scores = []
        with torch.no_grad():
            for batch in batches:
                randomness.append(_random_state(self.args.device))
                scores.append(model([batch]).float())
        leaf = torch.cat(scores).requires_grad_(True)
        loss = self._loss(leaf[order], group) * share
        (gradient,) = torch.autograd.grad(loss, leaf)
        start = 0
        for number, (batch, state) in enumerate(zip(batches, randomness, strict=True), start=1):
            _set_random_state(state, self.args.device)
            with self.accelerator.no_sync(model) if number < len(batches) else contextlib.nullcontext():
                values = model([batch]).float()
                self.accelerator.backward((values * gradient[start : start + len(values)]).sum())
            start += len(values)
        return loss.detach()

    def _loss(self, scores: Tensor, group: list[TrainingList]) -> Tensor:
        """The sum of the lists' losses; scores in the order of their pairs, shape (pairs,)."""
        sizes = np.array([len(one.pairs) for one in group])
        real = np.arange(sizes.max()) < sizes[:, None]  # (lists, longest)
        targets = {}
        for kind in group[0].targets:
            padded = np.zeros(real.shape, dtype=np.float32)
            padded[real] = np.concatenate([one.targets[kind] for one in group])
            targets[kind] = copied(padded, scores.device)
        mask = copied(real, scores.device)
        by_list = torch.zeros(mask.shape, device=scores.device).masked_scatter(mask, scores.float())
        return self.losses(by_list, targets, mask).sum()

    def _batches(self, pairs: list[Pair]) -> tuple[list[Batch], Tensor]:
        """Batches of pairs of similar length, and the position of each pair's score in their concatenation."""
        lengths = np.fromiter((len(pair.ids) for pair in pairs), dtype=np.int64, count=len(pairs))
        # Four, not the number of cores: weights shall not depend on it.
        plan = plan_batches(lengths, self.batch_tokens, lanes=4 if self.lanes else 1)
        device = self.args.device
        multiple = REDUCED_MULTIPLE if device.type == "cpu" and self.args.bf16 else 1
        widths = [rounded_width(int(lengths[rows].max()), multiple, self.encoder.positions) for rows in plan]
        batches = [
            padded_batch(device, *self.pad([pairs[row] for row in rows], width))
            for rows, width in zip(plan, widths, strict=True)
        ]
        return batches, copied(np.argsort(np.concatenate(plan), kind="stable"), device)

    # --- validation ---

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The validation measure, computed on one process and sent to the others."""
        assert self.validate is not None
        randomness = _random_state(self.args.device)  # so that the validation does not change the training
        value = self.validate() if self.is_world_process_zero() else 0.0
        _set_random_state(randomness, self.args.device)
        if self.args.world_size > 1:
            shared = torch.tensor(value, dtype=torch.float64, device=self.args.device)
            torch.distributed.broadcast(shared, src=0)
            value = shared.item()
        cast(nn.Module, self.model).train()
        metrics = {f"eval_{self.settings.measure}": value}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.state.global_step == 0 and self.start_can_win:  # the Trainer lets it take no part
            self.state.best_metric, self.state.best_global_step = value, 0
        return metrics

    def _determine_best_metric(self, *args: Any, **options: Any) -> bool:
        """The best weights are taken from a checkpoint, so new best ones are saved whatever ``save_every`` is."""
        is_best: bool = super()._determine_best_metric(*args, **options)
        self.control.should_save |= is_best
        return is_best


def training_arguments(
    settings: Settings, *, folder: Path, steps: int, validated: bool, resumed: bool
) -> TrainingArguments:
    """The Trainer's arguments for our settings. Features that are not in the recipe are switched off."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if settings.device is not None and not found.get(settings.device, True):
        raise ValueError(f"Settings: device must be one that torch finds here, got {settings.device!r}. Use 'cpu'.")
    dtype = resolved_dtype(settings)
    valid_every = settings.valid_every or max(1, steps // 10)
    keeps = settings.folder is not None
    # transformers 4 leaves a training's half precision there, and accelerate takes it for the next one's.
    os.environ["ACCELERATE_MIXED_PRECISION"] = {"bfloat16": "bf16", "float16": "fp16"}.get(dtype, "no")
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,  # set below, when the number of processes is known
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm or 0.0,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        warmup_steps=settings.warmup_steps,
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16",
        use_cpu=_on_cpu(settings),
        seed=settings.seed,
        logging_strategy="steps",
        logging_steps=settings.log_every or max(1, steps // 100),
        logging_nan_inf_filter=False,  # it would hide a diverged training
        eval_strategy="steps" if validated else "no",
        eval_steps=valid_every if validated else None,
        eval_on_start=validated and not resumed,
        save_strategy="steps" if keeps or validated else "no",
        save_steps=settings.save_every or valid_every,
        save_total_limit=2,  # the last, and the best
        load_best_model_at_end=validated,
        restore_callback_states_from_checkpoint=True,  # the state of early stopping
        metric_for_best_model=f"eval_{settings.measure}" if validated else None,
        greater_is_better=True if validated else None,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
        ddp_find_unused_parameters=False,
        ddp_timeout=_PATIENCE,
    )
    processes = args.world_size * settings.accumulation
    if settings.batch_size % processes:
        raise ValueError(
            f"Settings: batch_size must be a multiple of processes x accumulation ({args.world_size} x "
            f"{settings.accumulation}), got {settings.batch_size}."
        )
    if args.n_gpu > 1:  # DataParallel splits tensors, which lists are not
        args._n_gpu = 1
    args.per_device_train_batch_size = settings.batch_size // processes
    return args


def resolved_dtype(settings: Settings) -> DType:
    """The precision to train in."""
    if settings.dtype is not None:
        return settings.dtype
    if settings.device == "mps" or _on_cpu(settings):
        return "float32"
    # Below capability 8.0 torch emulates bfloat16, slower than float32.
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def _on_cpu(settings: Settings) -> bool:
    # Apple's MPS is used on request only; the Trainer would use it by default.
    return settings.device == "cpu" if settings.device else not torch.cuda.is_available()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the Trainer's messages; our own progress bar and errors say what users need to know."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="mtime may not be reliable", category=UserWarning)
            yield
    finally:
        transformers.logging.set_verbosity(before)


def safe_attention() -> contextlib.AbstractContextManager[None]:
    """Attention without cuDNN's, whose gradients are NaN for some masks (pytorch#196678)."""
    return cast(
        contextlib.AbstractContextManager[None],
        sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]),
    )


def groups_within(lists: Sequence[TrainingList], memory_tokens: int) -> Iterator[list[TrainingList]]:
    """Consecutive lists that together have at most that many tokens; a larger list is a group by itself."""
    group: list[TrainingList] = []
    held = 0
    for one in lists:
        tokens = tokens_of([one])
        if group and held + tokens > memory_tokens:
            yield group
            group, held = [], 0
        group.append(one)
        held += tokens
    if group:
        yield group


def tokens_of(group: Sequence[TrainingList]) -> int:
    """Tokens of all pairs of some lists, without padding (pairs are batched by length, so there is little)."""
    return sum(len(pair.ids) for one in group for pair in one.pairs)


def _as_batch(lists: list[TrainingList]) -> dict[str, list[TrainingList]]:
    return {"lists": lists}


class _Ahead:
    """Draws, fetches and tokenises the lists of the next step in a thread, while this step is computed.

    What is drawn depends on the place in the training only, so nothing changes by it.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._iterator: Iterator[dict[str, Any]] | None = None
        self._parts: deque[Future[dict[str, Any] | None]] = deque()

    def take(self, iterator: Iterator[dict[str, Any]], number: int) -> list[dict[str, Any]]:
        """The next parts of a data loader, at most ``number``; as many more are begun."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="lists")
        if self._iterator is not iterator:
            self._iterator = iterator
            self._parts.clear()
        self._begin(number - len(self._parts))
        parts = [self._parts.popleft().result() for _ in range(number)]
        self._begin(number - len(self._parts))
        return [part for part in parts if part is not None]

    def close(self) -> None:
        """Ends the thread; what it has begun is thrown away."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = self._iterator = None
        self._parts.clear()

    def _begin(self, number: int) -> None:
        assert self._pool is not None
        assert self._iterator is not None
        self._parts.extend(self._pool.submit(_next, self._iterator) for _ in range(number))


def _next(iterator: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    return next(iterator, None)


@dataclass(frozen=True)
class _RandomState:
    cpu: Tensor
    device: Tensor | None


def _random_state(device: torch.device) -> _RandomState:
    """What dropout on this device is drawn from."""
    if device.type == "cuda":
        return _RandomState(torch.get_rng_state(), torch.cuda.get_rng_state(device))
    return _RandomState(torch.get_rng_state(), torch.mps.get_rng_state() if device.type == "mps" else None)


def _set_random_state(state: _RandomState, device: torch.device) -> None:
    torch.set_rng_state(state.cpu)
    if state.device is None:
        return
    if device.type == "mps":
        torch.mps.set_rng_state(state.device)
    else:
        torch.cuda.set_rng_state(state.device, device)
