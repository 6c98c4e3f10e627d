"""One training: from lists to weights, with a record of how it went."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from ..reranker import MonoElectraReRanker
from ..runs.records import weights_digest
from ..runs.shards import differences, write_json
from ..scoring.checkpoint import Checkpoint
from ..scoring.encoder import CrossEncoder
from .data import Sourced
from .lists import Lists, TrainingData
from .losses import Losses
from .settings import Settings, Stage
from .validation import Validation

_RECORD = "training.json"
_FREE = ("resume", "verbose", "device", "memory_tokens", "batch_tokens", "tensorboard", "folder", "log_every")
"""Settings that may change when a training is resumed: they do not change its outcome."""


@dataclass(frozen=True, repr=False)
class Training:
    """How a training went.

    Args:
        stage: ``"finetune"`` or ``"distill"``.
        losses: The loss or losses, in readable form.
        settings: All settings.
        queries: The number of queries that were trained on.
        left_out: The number of queries that were left out, by reason.
        log: Columns ``step``, ``loss`` (mean per list since the row before), ``learning_rate`` and, with a validation,
            the measure; NaN where a step has none.
        best_step: The step whose weights were kept; None without a validation.
        steps: The number of optimiser steps made.
        seconds: Wall-clock time of this process, from the first step to the last.
    """

    stage: Stage
    losses: str
    settings: Settings
    queries: int
    left_out: Mapping[str, int]
    log: pd.DataFrame
    best_step: int | None
    steps: int
    seconds: float

    @property
    def table(self) -> pd.DataFrame:
        """The summary: columns ``what`` and ``value``."""
        measure = self.settings.measure
        lines: list[tuple[str, Any]] = [("loss", self.losses), ("queries", self.queries)]
        lines += [(f"left out: {reason}", number) for reason, number in self.left_out.items()]
        lines += [("steps", self.steps), ("lists a step", self.settings.batch_size)]
        loss = self.log["loss"].dropna()
        if len(loss):
            lines += [("first loss", f"{loss.iloc[0]:.4f}"), ("last loss", f"{loss.iloc[-1]:.4f}")]
        if measure in self.log:
            values = self.log[["step", measure]].dropna()
            at = values["step"] == self.best_step
            lines += [
                (f"{measure} before", f"{values[measure].iloc[0]:.4f}"),
                (f"{measure} best, kept", f"{values.loc[at, measure].iloc[-1]:.4f} at step {self.best_step}"),
                (f"{measure} last", f"{values[measure].iloc[-1]:.4f} at step {values['step'].iloc[-1]}"),
            ]
        lines.append(("seconds", f"{self.seconds:.0f}"))
        return pd.DataFrame(lines, columns=["what", "value"])

    def plot(self) -> Any:
        """Plots the loss and, with a validation, the measure against steps.

        Returns:
            A matplotlib figure.

        Raises:
            ImportError: Without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("Plots need matplotlib: pip install 'pyterrier-rankdistillm[train]'.") from error
        curves = [("loss", "training loss")]
        if self.settings.measure in self.log:
            curves.append((self.settings.measure, f"validation {self.settings.measure}"))
        figure = Figure(figsize=(5 * len(curves), 3.2), layout="constrained")
        for place, (column, label) in enumerate(curves, start=1):
            axes = figure.add_subplot(1, len(curves), place)
            points = self.log[["step", column]].dropna()
            axes.plot(points["step"], points[column], marker="o" if column != "loss" else None, markersize=4)
            if column != "loss" and self.best_step is not None:
                axes.axvline(self.best_step, color="0.6", linestyle=":", label="kept")
                axes.legend(frameon=False)
            axes.set_xlabel("step")
            axes.set_ylabel(label)
            axes.grid(color="0.9")
            axes.spines[["top", "right"]].set_visible(False)
        return figure

    def __str__(self) -> str:
        return self.table.to_string(index=False, header=False)

    def __repr__(self) -> str:
        return f"Training({self.stage}, {self.losses}, {self.steps} steps)"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(str(what))}</td><td>{escape(str(value))}</td></tr>"
            for what, value in self.table.itertuples(index=False)
        )
        return f"<table>{rows}</table>"


def train(
    stage: Stage,
    checkpoint: Checkpoint,
    sourced: Sourced,
    settings: Settings,
    *,
    folder: Path,
    validation: Validation | None,
    template: MonoElectraReRanker,
) -> tuple[CrossEncoder, Training]:
    """Trains a copy of a checkpoint's encoder.

    Args:
        stage: For the record.
        checkpoint: The checkpoint to start from, with the lengths to train with; it is not changed.
        sourced: The data to train on.
        settings: All settings.
        folder: Where checkpoints are written during training.
        validation: Chooses the weights that are kept; None: the last ones are.
        template: The settings to re-rank with in the validation.

    Returns:
        The trained encoder, on the CPU, in evaluation mode; and a record of the training.

    Raises:
        ValueError: The folder holds another training, or settings do not fit the number of processes.
        FloatingPointError: The loss became infinite or NaN.
    """
    if find_spec("accelerate") is None:
        raise ImportError("Training needs accelerate: pip install 'pyterrier-rankdistillm[train]'.")
    from .callbacks import MEASURE, last_checkpoint, step_of, stopped_early
    from .trainer import ListwiseTrainer, quiet, resolved_dtype  # imports most of transformers

    data = sourced.data
    steps = settings.total_steps(len(data.members))
    resumed = last_checkpoint(folder) if settings.resume else None
    if resumed is not None and settings.patience is not None and stopped_early(resumed, settings.patience):
        steps = step_of(resumed)  # the training is complete: return the same student again
    lists = Lists(
        data,
        checkpoint.tokenizer,
        settings.to_sampling(),
        total=steps * settings.batch_size,
        seed=settings.seed,
        drop_near_duplicates=settings.drop_near_duplicates,
    )
    encoder = checkpoint.encoder.copy(settings.dropout)

    def watched() -> MonoElectraReRanker:
        """The student as a re-ranker with its current weights, which may be rearranged for scoring."""
        return template.clone(
            model=replace(checkpoint, encoder=encoder),
            revision=None,
            device=next(encoder.parameters()).device,
            dtype=resolved_dtype(settings),
            query_length=None,
            doc_length=None,
            activation=None,
            verbose=False,
        )

    def measure() -> float:
        assert validation is not None
        return validation(watched())

    trainer = ListwiseTrainer(
        encoder,
        lists,
        settings,
        checkpoint.tokenizer,
        folder=folder,
        steps=steps,
        validate=None if validation is None else measure,
    )
    if settings.folder is not None and trainer.is_world_process_zero():
        _claim(folder, stage, checkpoint, settings, data)
    started = time.monotonic()
    with quiet():
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    best = trainer.state.best_global_step if validation is not None else None
    record = Training(
        stage=stage,
        losses=str(Losses.of(settings.loss)),
        settings=settings,
        queries=len(data.members),
        left_out=sourced.left_out,
        log=_log(trainer.state.log_history, {f"eval_{MEASURE}": settings.measure}),
        best_step=best,
        steps=trainer.state.global_step,
        seconds=time.monotonic() - started,
    )
    if trainer.is_world_process_zero():
        _report(record, folder)
    return encoder.cpu().eval().requires_grad_(False), record


def _claim(folder: Path, stage: Stage, student: Checkpoint, settings: Settings, data: TrainingData) -> None:
    """Records in the folder which training it belongs to.

    Raises:
        ValueError: The folder belongs to another training, or holds checkpoints that are not to be resumed.
    """
    work = {
        "stage": stage,
        "student": weights_digest(student),
        "settings": {name: value for name, value in settings.as_dict().items() if name not in _FREE},
        "data": {
            "queries": len(data.members),
            "rows": data.rankings.rows,
            "qids": _digest(qid.encode() for qid in data.rankings.qids),
            "some rankings": _digest(_some_of(data)),
        },
    }
    file = folder / _RECORD
    work = json.loads(json.dumps(work))
    if file.exists():
        old = json.loads(file.read_text(encoding="utf-8"))
        changed = differences(old, work)
        if changed:
            raise ValueError(
                f"Settings: folder {folder} holds another training: {'; '.join(changed)}. Choose another folder, or "
                f"delete it."
            )
        if not settings.resume and any(folder.glob("checkpoint-*")):
            raise ValueError(
                f"Settings: folder {folder} holds checkpoints of this training. resume=True continues it; or delete "
                f"the folder."
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, work)


def _some_of(data: TrainingData) -> Iterator[bytes]:
    """About a hundred rankings, or all if there are fewer, with their labels."""
    for position in data.members[:: -(-len(data.members) // 100)]:
        ranking = data.rankings[int(position)]
        scores = None if ranking.scores is None else ranking.scores.tolist()
        yield repr((ranking.docnos, scores, sorted(data.relevance.get(ranking.qid, {}).items()))).encode()


def _digest(parts: Iterable[Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()


def _log(history: list[dict[str, Any]], names: Mapping[str, str]) -> pd.DataFrame:
    kept = ["step", "loss", "learning_rate", *names]
    rows = pd.DataFrame([{k: v for k, v in row.items() if k in kept} for row in history])
    rows = rows.reindex(columns=[k for k in kept if k in rows.columns or k in ("step", "loss", "learning_rate")])
    rows = rows.dropna(how="all", subset=[c for c in rows.columns if c != "step"])
    return rows.rename(columns=names).groupby("step", as_index=False).first()


def _report(record: Training, folder: Path) -> None:
    if record.settings.folder is not None:
        record.log.to_csv(folder / "log.csv", index=False)
        with contextlib.suppress(ImportError):
            record.plot().savefig(folder / "training.png", dpi=120)
    if record.settings.verbose:
        print(record)
