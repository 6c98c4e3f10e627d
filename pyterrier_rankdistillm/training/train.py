"""One training: from lists to weights."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..reranker import CrossEncoderReRanker
from ..runs.atomic import write_json
from ..runs.kept import Record, Work, check_reuse
from ..runs.kinds import frame
from ..scoring.checkpoint import Checkpoint
from ..scoring.encoder import PairEncoder
from .data import Sourced
from .lists import Lists, TrainingData
from .losses import LOSSES, Losses
from .record import Training
from .settings import Settings, Stage
from .validation import Validation

if TYPE_CHECKING:
    from transformers import TrainerCallback

_RECORD = "training.json"
_FREE = ("resume", "verbose", "device", "memory_tokens", "batch_tokens", "report_to", "folder", "log_every")
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
    callbacks: Sequence[TrainerCallback] = (),
    reuse: Collection[str] = (),
    who: str,
) -> tuple[PairEncoder, Training]:
    """Trains a copy of a checkpoint's encoder.

    Args:
        stage: For the record.
        checkpoint: The checkpoint to start from, with the lengths to train with; it is not changed.
        sourced: The data to train on.
        settings: All settings.
        folder: Where checkpoints are written during training.
        validation: Chooses the weights that are kept, those before training included; None: the last ones are.
        template: The settings to re-rank with in the validation.
        callbacks: The user's.
        reuse: Parts of a kept training that may differ; see ``REUSABLE``.
        who: The estimator, for messages.

    Returns:
        The trained encoder, on the CPU, in evaluation mode; and a record of the training.

    Raises:
        KeptWorkError: The folder holds another training.
        ValueError: Settings do not fit the number of processes, or the folder holds checkpoints, and none is to resume.
        FloatingPointError: The loss became infinite or NaN.
    """
    from .callbacks import discard_newer, last_checkpoint, step_of, stopped_early
    from .trainer import ListwiseTrainer, quiet, resolved_dtype, safe_attention  # imports most of transformers

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
        who=who,
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
        resumed=resumed is not None,
        start_can_win=not checkpoint.encoder.has_new_head,
        callbacks=callbacks,
    )
    claim = None
    if settings.folder is not None and trainer.is_world_process_zero():
        continued = settings.resume and (folder / _RECORD).is_file()
        claim = _Claim(folder, stage, checkpoint, settings, data, validation, callbacks, reuse)
        if continued:
            discard_newer(folder, resumed)
    started = time.monotonic()
    try:
        with quiet(), safe_attention():
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    finally:
        if claim is not None:
            claim.ended()
    best = trainer.state.best_global_step if validation is not None else None
    if best == 0:  # the start has no checkpoint that the Trainer could load
        encoder = checkpoint.encoder.copy()
    record = Training(
        stage=stage,
        losses=str(Losses.of(settings.loss)),
        settings=settings,
        queries=data.distinct,
        lists=len(data.members),
        left_out=sourced.left_out,
        log=_log(trainer.state.log_history, {f"eval_{settings.measure}": settings.measure}),
        best_step=best,
        steps=trainer.state.global_step,
        seconds=time.monotonic() - started,
        about=sourced.about,
        notes=() if claim is None else claim.notes,
        student=checkpoint.source,
    )
    if trainer.is_world_process_zero():
        _report(record, folder)
        if best == 0:
            warnings.warn(
                f"{who}: no validation was better than that before training ({settings.measure} "
                f"{trainer.state.best_metric:.4f}), so the student is as it was. Lower learning_rate, or train longer.",
                stacklevel=4,
            )
    return encoder.cpu().eval().requires_grad_(False), record


REUSABLE = ("teacher", "first stage", "student", "texts", "loss", "validation", "callbacks")
"""The parts of a training that ``reuse`` may name; the first two are of the teacher's run."""


class _Claim:
    """Whose checkpoints a folder holds.

    Raises:
        KeptWorkError: They are another training's.
        ValueError: They are this one's, and it is not to be resumed.
    """

    def __init__(
        self,
        folder: Path,
        stage: Stage,
        student: Checkpoint,
        settings: Settings,
        data: TrainingData,
        validation: Validation | None,
        callbacks: Sequence[TrainerCallback],
        reuse: Collection[str],
    ) -> None:
        stated = {name: value for name, value in settings.as_dict().items() if name not in _FREE}
        given = {
            "data.queries": data.distinct, "data.rows": data.rankings.rows, "data.rankings": data.rankings,
            "data.members": data.members, "data.query texts": dict(data.queries), "data.labels": frame(_labels(data)),
            "stage": stage,
        }  # fmt: skip
        parts = {
            "student": student, **{f"settings.{name}": value for name, value in stated.items()}, **given,
            "texts": [dict(data.texts.known), data.texts.loader],
            "loss": [(LOSSES[t.name].function, t.weight, dict(t.options)) for t in Losses.of(settings.loss).terms],
            "validation": None if validation is None
            else [frame(validation.run), frame(validation.qrels), str(validation.measure)],
            "callbacks": list(callbacks),  # which can change what comes out
        }  # fmt: skip
        certain = [name for name in parts if name not in REUSABLE]
        reuse = check_reuse("fit", reuse, REUSABLE)
        self._work = Work(parts, certain=certain, reuse=reuse, who="fit")
        self._file = folder / _RECORD
        self._made_by = self._work.begun()
        self.notes: tuple[str, ...] = ()
        if any(folder.glob("checkpoint-*")):  # else nothing would be lost
            kept = _made_by(self._file)
            self._work.check(folder, kept, remedy="Choose another folder, or delete it.", what="holds another training")
            if not settings.resume:
                raise ValueError(
                    f"Settings: folder {folder} holds checkpoints of this training. resume=True continues it; or "
                    f"delete the folder."
                )
            self._made_by = self._work.going_on(kept)
            self._work.warn(stacklevel=5)
            self.notes = tuple(self._work.notes(self._made_by))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(self._file, {"stage": stage, "settings": json.loads(json.dumps(stated)), "made by": self._made_by})

    def ended(self) -> None:
        """Notes what the training changed of its own parts, such as a text loader's memory or a callback's counters."""
        changed = self._work.ended(self._made_by, ("texts", "callbacks"))
        if changed != self._made_by:
            stated = json.loads(self._file.read_text(encoding="utf-8"))
            write_json(self._file, {**stated, "made by": changed})


def _made_by(file: Path) -> Record:
    if not file.is_file():
        return {}
    made_by: Record = json.loads(file.read_text(encoding="utf-8")).get("made by") or {}
    return made_by


def _labels(data: TrainingData) -> pd.DataFrame:
    rows = [(qid, d, label) for qid, labels in sorted(data.relevance.items()) for d, label in sorted(labels.items())]
    return pd.DataFrame(rows, columns=["qid", "docno", "label"])


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
    if record.settings.verbose is not False:
        print(record)
