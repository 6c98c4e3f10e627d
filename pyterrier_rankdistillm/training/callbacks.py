"""Callbacks of a training: a progress bar, a guard, and what others bring."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..progress import bar
from ..runs.atomic import write_json
from ..runs.download import md5_of
from ..scoring.devices import one_core

_COMPLETE = "complete.json"
"""Written into a checkpoint last, with digests of its files: a process can be killed, and a disk can fail."""


class Guard(TrainerCallback):
    """Stops a training that has diverged, and marks checkpoints that are complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        loss = logs.get("loss", logs.get("train_loss", 0.0))  # the second, over all steps, is logged at the end
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The training loss is {loss} at step {state.global_step}. Lower learning_rate, or use "
                f"dtype='float32' instead of half precision."
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            checkpoint = self.folder / f"checkpoint-{state.global_step}"
            write_json(checkpoint / _COMPLETE, {"step": state.global_step, "files": _digests(checkpoint)})


class OneCore(TrainerCallback):
    """In a step, torch computes with one core in the caller's thread.

    What is added up there (a loss, the norm of gradients) shall not depend on the number of cores, and threads that
    share so little wait longer than they compute.

    Args:
        step: Entered when a step begins, and closed when it ends; whoever makes it closes it after an error.
    """

    def __init__(self, step: ExitStack) -> None:
        self.step = step

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.step.enter_context(one_core())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.step.close()


class ProgressBar(TrainerCallback):
    """A progress bar with the loss and the last validation."""

    def __init__(self, measure: str, verbose: bool | None = None) -> None:
        self.measure = measure
        self.verbose = verbose
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        steps = {"total": state.max_steps, "initial": state.global_step}
        self.bar = bar(self.verbose, **steps, desc="Training", unit=" steps")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        for key, name in (("loss", "loss"), (f"eval_{self.measure}", self.measure)):
            if logs and key in logs:
                self.shown[name] = f"{logs[key]:.4f}"
        self.bar.set_postfix(self.shown)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.close()


def checked(callbacks: Any, who: str) -> list[TrainerCallback]:
    """A user's callbacks.

    Raises:
        TypeError: Something is not a callback of transformers.
    """
    given = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
    odd = next((one for one in given if not isinstance(one, TrainerCallback)), None)
    if odd is not None:
        raise TypeError(
            f"{who}: callbacks must be a list of transformers.TrainerCallback objects, got {odd!r:.80}"
            f"{' (a class; call it)' if isinstance(odd, type) else ''}."
        )
    return given


def reporter(tracker: str, folder: Path) -> TrainerCallback:
    """Transformers' callback for a tracker, which must be installed."""
    # They are not needed unless they are asked for, and fail where the tracker is not installed.
    from transformers.integrations import integration_utils as integrations

    if tracker == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        return integrations.TensorBoardCallback(SummaryWriter(log_dir=str(folder / "tensorboard")))
    return cast(TrainerCallback, integrations.get_reporting_integration_callbacks(tracker)[0]())


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint whose files are as they were written; a warning names newer, damaged ones."""
    finished = [file.parent for file in folder.glob(f"checkpoint-*/{_COMPLETE}")]
    for checkpoint in sorted(finished, key=step_of, reverse=True):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        warnings.warn(
            f"{damage} is damaged: training continues not from {checkpoint.name} but from an older checkpoint, if "
            f"there is one.",
            stacklevel=2,
        )
    return None


def discard_newer(folder: Path, checkpoint: Path | None) -> None:
    """Removes checkpoints after the one that a training goes on from: half of one, or damaged."""
    for other in folder.glob("checkpoint-*[0-9]"):
        if checkpoint is None or step_of(other) > step_of(checkpoint):
            shutil.rmtree(other)


def _digests(checkpoint: Path) -> dict[str, str]:
    """The MD5 of each of its files, but for other processes' random states, which may come later."""
    files = (file for file in sorted(checkpoint.iterdir()) if not re.fullmatch(r"rng_state_\d+\.pth", file.name))
    return {file.name: md5_of(file) for file in files if file.is_file() and file.name != _COMPLETE}


def _damage(checkpoint: Path) -> Path | None:
    """A file of a finished checkpoint, or of that with the best weights until then, that is not as it was written."""
    try:
        written = json.loads((checkpoint / _COMPLETE).read_text(encoding="utf-8"))["files"]
        now = _digests(checkpoint)
        damaged = next((name for name, digest in written.items() if now.get(name) != digest), None)
        if damaged is not None:
            return checkpoint / str(damaged)
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        named = state["best_model_checkpoint"]
        best = None if named is None else checkpoint.with_name(Path(named).name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return checkpoint / _COMPLETE
    return None if best in (None, checkpoint) else _damage(best)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def stopped_early(checkpoint: Path, patience: int) -> bool:
    """Whether early stopping ended the training at this checkpoint."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    waited = state["stateful_callbacks"].get("EarlyStoppingCallback", {}).get("attributes", {})
    return bool(waited.get("early_stopping_patience_counter", 0) >= patience)
