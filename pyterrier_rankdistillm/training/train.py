"""One training: from lists to weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..extras import check_installed
from ..reranker import CrossEncoderReRanker
from ..runs.atomic import write_json
from ..runs.records import differences, weights_digest
from ..scoring.checkpoint import Checkpoint
from ..scoring.encoder import PairEncoder
from .data import Sourced
from .lists import Lists, TrainingData
from .losses import Losses
from .record import Training
from .settings import Settings, Stage
from .validation import Validation

_WHO: dict[Stage, str] = {"finetune": "FineTuning", "distill": "Distillation"}
_RECORD = "training.json"
_FREE = ("resume", "verbose", "device", "memory_tokens", "batch_tokens", "tensorboard", "folder", "log_every")
"""Settings that may change when a training is resumed: they do not change its outcome."""


def train(
    stage: Stage,
    checkpoint: Checkpoint,
    sourced: Sourced,
    settings: Settings,
    *,
    folder: Path,
    validation: Validation | None,
    template: CrossEncoderReRanker,
) -> tuple[PairEncoder, Training]:
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
    check_installed("accelerate", "Training")
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
        on_unusable=settings.on_unusable,
        who=_WHO[stage],
    )
    encoder = checkpoint.encoder.copy(settings.dropout)

    def watched() -> CrossEncoderReRanker:
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
