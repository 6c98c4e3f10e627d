"""``FineTuning`` and ``Distillation``: training as a stage of a PyTerrier pipeline."""

from __future__ import annotations

import os
import tempfile
from abc import abstractmethod
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from ..reranker import CrossEncoderReRanker, MonoElectraReRanker, ranked
from ..runs.text import Dataset
from ..scoring.checkpoint import Checkpoint
from .data import RunFile, Sourced, Teacher, labelled_data, taught_data
from .launch import processes
from .losses import Losses
from .record import Training
from .settings import Settings, Stage
from .train import train
from .validation import Validation

_DONE: dict[Stage, str] = {"finetune": "fine-tuned", "distill": "distilled"}

Student = str | os.PathLike[str] | Checkpoint | CrossEncoderReRanker


class _StudentEstimator(pt.Estimator):
    """What both estimators share: a student that is copied, trained, and then re-ranks."""

    stage: ClassVar[Stage]

    def __init__(
        self,
        student: Student | _StudentEstimator,
        *,
        recipe: str | os.PathLike[str] | None = None,
        text: pt.Transformer | Dataset | None = None,
        **settings: Any,
    ) -> None:
        self.student = student
        self.recipe = recipe
        self.text = text
        try:
            self.settings = Settings.of(self.stage, recipe, **settings)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from None
        self._changes = settings
        self._reranker: CrossEncoderReRanker | None = None
        self._training: Training | None = None

    def fit(
        self,
        topics_or_res_tr: pd.DataFrame | None = None,
        qrels_tr: pd.DataFrame | None = None,
        topics_or_res_va: pd.DataFrame | None = None,
        qrels_va: pd.DataFrame | None = None,
        *,
        run: RunFile | None = None,
        text: pt.Transformer | Dataset | None = None,
    ) -> None:
        """Trains a copy of the student; PyTerrier calls it from a pipeline's ``fit``.

        Args:
            topics_or_res_tr: The first stage's results for the training topics: ``qid``, ``query``, ``docno``, the
                text, ``rank`` or ``score``. With ``run``: the topics (``qid``, ``query``), where the run does not say
                them.
            qrels_tr: Relevance labels: ``qid``, ``docno``, ``label`` (relevant above 0).
            topics_or_res_va: The first stage's results for other topics, to validate on; with ``qrels_va``.
            qrels_va: Their relevance labels.
            run: Instead of results: a run file (TREC, Parquet, JSON lines) or a published run
                (``"rankdistillm:rankzephyr"``). It is not read into memory.
            text: Where texts come from that the frames do not have: a text loader, or a dataset as for
                ``runs.text_loader``. Overrules the constructor's.

        Raises:
            TrainingDataError: The data cannot be trained on; all that is wrong with it is in the message.
            CheckpointError: The student cannot be opened.
        """
        who = type(self).__name__
        if processes() > 1 and self.settings.folder is None:
            raise ValueError(f"{who}: with several processes folder must be given, got None. They share checkpoints.")
        text = self.text if text is None else text
        text_field = self._template().text_field
        sourced = self._sourced(topics_or_res_tr, qrels_tr, run=run, text=text, text_field=text_field)
        validation = Validation.of(who, self.settings, topics_or_res_va, qrels_va, text=text, text_field=text_field)
        checkpoint = self._student()
        with ExitStack() as stack:
            folder = self.settings.folder or stack.enter_context(tempfile.TemporaryDirectory())
            encoder, self._training = train(
                self.stage,
                checkpoint,
                sourced,
                self.settings,
                folder=Path(folder),
                validation=validation,
                template=self._template(),
            )
        trained = replace(checkpoint, encoder=encoder, source=self._source(checkpoint), revision=None)
        self._reranker = self._template().clone(model=trained, revision=None, query_length=None, doc_length=None)

    @abstractmethod
    def _sourced(
        self,
        inp: pd.DataFrame | None,
        qrels: pd.DataFrame | None,
        *,
        run: RunFile | None,
        text: pt.Transformer | Dataset | None,
        text_field: str,
    ) -> Sourced: ...

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Re-ranks with the trained student.

        Raises:
            RuntimeError: ``fit`` was not called.
        """
        if self._reranker is None:
            if inp.empty:  # inspection asks for the columns
                self._template().check_columns(inp)
                return ranked(inp, np.empty(0, dtype=np.float32))
            raise RuntimeError(f"{type(self).__name__}: there is nothing to re-rank with yet. Call fit first.")
        return self._reranker.transform(inp)

    @property
    def reranker(self) -> CrossEncoderReRanker:
        """The trained student.

        Raises:
            RuntimeError: ``fit`` was not called.
        """
        if self._reranker is None:
            raise RuntimeError(f"{type(self).__name__}: there is no trained re-ranker yet. Call fit first.")
        return self._reranker

    @property
    def losses(self) -> Losses:
        """What is minimised."""
        return Losses.of(self.settings.loss)

    @property
    def training(self) -> Training:
        """How the last ``fit`` went: losses, validations, what was left out; with ``.table`` and ``.plot()``.

        Raises:
            RuntimeError: ``fit`` was not called.
        """
        if self._training is None:
            raise RuntimeError(f"{type(self).__name__}: nothing was trained yet. Call fit first.")
        return self._training

    def __repr__(self) -> str:
        changes = "".join(f", {name}={value!r}" for name, value in self._changes.items())
        recipe = "" if self.recipe is None else f", recipe={os.fspath(self.recipe)!r}"
        return f"{type(self).__name__}({self.student!r}{recipe}{changes})"

    def _template(self) -> CrossEncoderReRanker:
        """The settings that the trained re-ranker takes over."""
        student = self.student
        if isinstance(student, _StudentEstimator):
            return student._template()
        return student if isinstance(student, CrossEncoderReRanker) else MonoElectraReRanker(student)

    def _student(self) -> Checkpoint:
        """The student's checkpoint, with the lengths to train with; its weights must not be changed."""
        student = self.student.reranker if isinstance(self.student, _StudentEstimator) else self.student
        if isinstance(student, CrossEncoderReRanker):
            checkpoint = student.checkpoint
        elif isinstance(student, Checkpoint):
            checkpoint = student
        else:
            checkpoint = Checkpoint.open(student, new_head_seed=self.settings.seed)
        return checkpoint.with_lengths(query=self.settings.query_length, doc=self.settings.doc_length)

    def _source(self, checkpoint: Checkpoint) -> str:
        revision = f" at revision {checkpoint.revision}" if checkpoint.revision else ""
        return f"{checkpoint.source}{revision}, {_DONE[self.stage]} with {self.training.losses}"


class FineTuning(_StudentEstimator):
    """Trains a re-ranker on relevance labels and hard negatives: stage 1 of Rank-DistiLLM.

    ``(first_stage >> FineTuning("google/electra-base-discriminator")).fit(topics, qrels)``; then it re-ranks. Each
    training list is one relevant passage and some that the first stage found but that are not relevant.

    Args:
        student: What to start from; never changed. A backbone's hub id or folder (ELECTRA, or BERT, whose encoder has
            the same shape; it gets a new head, drawn from the seed), a checkpoint's, an open ``Checkpoint``, or a
            re-ranker, whose settings the trained one takes over.
        recipe: ``"rank-distillm"`` (the default: softmax cross-entropy of one relevant passage against 7 of the top
            200, 20,000 steps of 32 lists), or a YAML file of settings.
        text: Where texts come from that the frames do not have, as those of relevant passages that were not retrieved:
            a text loader or a dataset. Without it, only relevant passages whose text is in the frame are used.
        **settings: What is to differ from the recipe; see ``Settings``.

    Raises:
        ValueError: Settings that are unknown, out of range or contradict each other: all at once.

    Method: Gao et al., Rethink Training of BERT Rerankers in Multi-Stage Retrieval Pipeline, ECIR 2021,
    https://arxiv.org/abs/2101.08751, as used by Schlatt et al., ECIR 2025, https://arxiv.org/abs/2405.07920.
    """

    schematic: ClassVar[dict[str, str]] = {"label": "FineTuning", "help_url": "https://arxiv.org/abs/2405.07920"}
    stage: ClassVar[Stage] = "finetune"

    def _sourced(
        self,
        inp: pd.DataFrame | None,
        qrels: pd.DataFrame | None,
        *,
        run: RunFile | None,
        text: pt.Transformer | Dataset | None,
        text_field: str,
    ) -> Sourced:
        return labelled_data(type(self).__name__, self.settings, inp, qrels, run=run, text=text, text_field=text_field)


class Distillation(_StudentEstimator):
    """Trains a re-ranker to order passages as a teacher does: stage 2 of Rank-DistiLLM.

    ``(first_stage >> Distillation(stage1.reranker, teacher=rank_zephyr)).fit(topics, None)``; then it re-ranks.

    Args:
        student: What to start from, as for ``FineTuning``; also a ``FineTuning`` that is fitted by then.
        teacher: A re-ranker (any PyTerrier transformer), which ranks the first stage's top ``depth``; or its run: a
            frame, a run file, or a published run (``"rankdistillm:rankzephyr"``). None: the ranking that is given to
            ``fit`` is the teacher's.
        recipe: ``"rank-distillm"`` (the default: RankNet over 100 passages a query, 3 epochs of steps of 32 lists), or
            a YAML file of settings.
        text: Where texts come from that the frames do not have: a text loader or a dataset.
        **settings: What is to differ from the recipe; see ``Settings``.

    Raises:
        ValueError: Settings that are unknown, out of range or contradict each other: all at once.

    Method: Schlatt et al., Rank-DistiLLM, ECIR 2025, https://arxiv.org/abs/2405.07920.
    """

    schematic: ClassVar[dict[str, str]] = {"label": "Distillation", "help_url": "https://arxiv.org/abs/2405.07920"}
    stage: ClassVar[Stage] = "distill"

    def __init__(
        self,
        student: Student | _StudentEstimator,
        *,
        teacher: Teacher | None = None,
        recipe: str | os.PathLike[str] | None = None,
        text: pt.Transformer | Dataset | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(student, recipe=recipe, text=text, **settings)
        self.teacher = teacher

    def _sourced(
        self,
        inp: pd.DataFrame | None,
        qrels: pd.DataFrame | None,
        *,
        run: RunFile | None,
        text: pt.Transformer | Dataset | None,
        text_field: str,
    ) -> Sourced:
        return taught_data(
            type(self).__name__,
            self.settings,
            inp,
            qrels,
            teacher=self.teacher,
            run=run,
            text=text,
            text_field=text_field,
        )
