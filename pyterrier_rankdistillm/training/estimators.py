"""``FineTuning`` and ``Distillation``: training as a stage of a PyTerrier pipeline."""

from __future__ import annotations

import inspect
import os
import tempfile
from abc import abstractmethod
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

import numpy as np
import pandas as pd
import pyterrier as pt

from ..extras import check_installed
from ..locks import hold, lock_in
from ..reranker import CrossEncoderReRanker, MonoElectraReRanker, ranked
from ..runs.given import RANKER, Door, Qrels, Ranker, Runs, Texts, Topics, ranker_of, texts_of
from ..runs.kinds import weights_digest
from ..runs.records import record
from ..runs.text import join_text
from ..scoring.card import public_name
from ..scoring.checkpoint import Checkpoint
from ..set_encoder import of_its_kind
from .data import Sourced, labelled_data, taught_data
from .launch import is_main_process, processes
from .losses import Losses
from .record import Training
from .settings import Settings, Stage
from .train import train
from .validation import Validation

if TYPE_CHECKING:
    from typing import Self

    from transformers import TrainerCallback

_DONE: dict[Stage, str] = {"finetune": "fine-tuned", "distill": "distilled"}

Student: TypeAlias = "str | os.PathLike[str] | Checkpoint | CrossEncoderReRanker | pt.Estimator"
_STUDENT = "a hub id, a folder, an open Checkpoint, a re-ranker, or an estimator that is fitted by then"


class _StudentEstimator(pt.Estimator):
    """What both estimators share: a student that is copied, trained, and then re-ranks."""

    stage: ClassVar[Stage]
    parts: ClassVar[tuple[str, ...]] = ("student", "recipe", "text", "callbacks")
    """The constructor's arguments that are not settings."""

    def __init__(
        self,
        student: Student,
        *,
        recipe: str | os.PathLike[str] | None = None,
        text: Texts | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        **settings: Any,
    ) -> None:
        who = type(self).__name__
        trains = isinstance(student, pt.Estimator) and hasattr(type(student), "reranker")
        if not trains and not isinstance(student, str | os.PathLike | Checkpoint | CrossEncoderReRanker):
            raise Door(who, "student", _STUDENT).refuse(student)
        self.student = student
        self.recipe = recipe
        self.text = text
        self.settings = Settings.of(self.stage, recipe, who=who, **settings)
        for tracker in self.settings.trackers:
            check_installed(tracker, f"{who} with report_to={self.settings.report_to!r}")
        check_installed("accelerate", who)
        self.callbacks = callbacks
        if callbacks:
            from .callbacks import checked  # imports most of transformers

            checked(callbacks, who)
        self._changes = settings
        self._forget()

    def _forget(self) -> None:
        """Makes the estimator one that is not fitted."""
        self._reranker: CrossEncoderReRanker | None = None
        self._training: Training | None = None
        self._loader: pt.Transformer | None = None

    def fit(
        self,
        topics_or_res_tr: Topics | None = None,
        qrels_tr: Qrels | None = None,
        topics_or_res_va: pd.DataFrame | None = None,
        qrels_va: Qrels | None = None,
        *,
        run: Runs | None = None,
        text: Texts | None = None,
        reuse: Collection[str] = (),
    ) -> None:
        """Trains a copy of the student; PyTerrier calls it from a pipeline's ``fit``.

        Args:
            topics_or_res_tr: The first stage's results for the training topics: ``qid``, ``query``, ``docno``, the
                text, ``rank`` or ``score``. With ``run``: the topics (``qid``, ``query``), unless the run has them.
            qrels_tr: Relevance labels: ``qid``, ``docno``, ``label`` (relevant above 0).
            topics_or_res_va: The first stage's results for the validation topics; requires ``qrels_va``.
            qrels_va: The relevance labels of the validation topics.
            run: Instead of results: a run file (TREC, Parquet, JSON lines) or a published run
                (``"rankdistillm:rankzephyr"``), which is not read into memory, or a frame. Or a list of several runs of
                the same topics: every ranking is a list to train on, in its own order; none is merged with another.
            text: A source for texts that are not in the frames: a text loader, or a dataset as for
                ``runs.text_loader``. Overrides the constructor's.
            reuse: Parts that differ from what made the training in ``folder`` (``"teacher"``, ``"texts"``, ...),
                although it is to be continued anyway. An error names them.

        Raises:
            KeptWorkError: ``folder`` holds another training, or another teacher's run.
            TrainingDataError: The data cannot be trained on. The message lists all problems.
            CheckpointError: The student cannot be opened.
            InUseError: Another process trains in the settings' folder.
        """
        with ExitStack() as stack:
            folder = self.settings.folder
            if folder is not None and is_main_process():
                stack.enter_context(hold(lock_in(folder), f"{type(self).__name__}: folder {os.fspath(folder)}"))
            self._fit(topics_or_res_tr, qrels_tr, topics_or_res_va, qrels_va, run=run, text=text, reuse=reuse)

    def _fit(
        self,
        topics_or_res_tr: Topics | None,
        qrels_tr: Qrels | None,
        topics_or_res_va: pd.DataFrame | None,
        qrels_va: Qrels | None,
        *,
        run: Runs | None,
        text: Texts | None,
        reuse: Collection[str],
    ) -> None:
        who = type(self).__name__
        if processes() > 1 and self.settings.folder is None:
            raise ValueError(f"{who}: with several processes folder must be given, got None. They share checkpoints.")
        text = self.text if text is None else text
        text_field = self._template().text_field
        sourced = self._sourced(topics_or_res_tr, qrels_tr, run=run, text=text, text_field=text_field, reuse=reuse)
        validation = Validation.of(who, self.settings, topics_or_res_va, qrels_va, text=text, text_field=text_field)
        checkpoint = self._opened_student()
        with ExitStack() as stack:
            folder = self.settings.folder or stack.enter_context(tempfile.TemporaryDirectory())
            encoder, self._training = train(
                self.stage,
                checkpoint,
                sourced,
                self.settings,
                folder=Path(folder),
                validation=validation,
                template=self._template_for(checkpoint),
                callbacks=self.callbacks,
                reuse=reuse,
                who=who,
            )
        made = self._record(checkpoint)
        trained = replace(checkpoint, encoder=encoder, source=self._source(checkpoint), revision=None, record=made)
        template = self._template_for(trained)
        self._reranker = template.clone(model=trained, revision=None, query_length=None, doc_length=None)
        self._loader = None if text is None else texts_of(text, who=who, field=text_field)

    @abstractmethod
    def _sourced(
        self,
        inp: Topics | None,
        qrels: Qrels | None,
        *,
        run: Runs | None,
        text: Texts | None,
        text_field: str,
        reuse: Collection[str] = (),
    ) -> Sourced: ...

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Re-ranks with the trained student; texts that the frame does not have come from where ``fit`` had them.

        Raises:
            RuntimeError: ``fit`` was not called.
        """
        inp = self._with_text(inp)
        if self._reranker is None:
            if inp.empty:  # inspection needs the columns
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

    def _with_text(self, inp: pd.DataFrame) -> pd.DataFrame:
        field = self._template().text_field
        if field in inp.columns or "docno" not in inp.columns:
            return inp
        if inp.empty:
            given = self._loader is not None or self.text is not None
            return inp.assign(**{field: pd.Series(dtype=object)}) if given else inp
        if self._loader is None:
            return inp
        return join_text(inp, self._loader).rename(columns={"text": field})

    # --- PyTerrier's inspection: an estimator is its student, its teacher, and the settings that were changed ---

    def attributes(self) -> list[pt.inspect.TransformerAttribute]:
        """The constructor's arguments, with those settings that were given."""
        # Of the method, since the class's is that of PyTerrier's __new__ before Python 3.11.4.
        defaults = {p.name: p.default for p in inspect.signature(type(self).__init__).parameters.values()}
        keyword, positional = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        told = [
            pt.inspect.TransformerAttribute(
                name, getattr(self, name), defaults[name], positional if name == "student" else keyword
            )
            for name in self.parts
        ]
        return told + [
            pt.inspect.TransformerAttribute(name, value, inspect.Parameter.empty, keyword)
            for name, value in self._changes.items()
        ]

    def apply_attributes(self, **changes: Any) -> Self:
        """A new estimator, not fitted, with other arguments or settings."""
        return type(self)(**{**{name: getattr(self, name) for name in self.parts}, **self._changes, **changes})

    def subtransformers(self) -> dict[str, pt.Transformer | list[pt.Transformer]]:
        """What drawings show in it: the student, and the teacher where it is a transformer."""
        shown: dict[str, pt.Transformer | list[pt.Transformer]] = {"student": self._template()}
        teacher = getattr(self, "teacher", None)
        if isinstance(teacher, pt.Transformer):
            shown["teacher"] = teacher
        return shown

    def get_parameter(self, name: str) -> Any:
        """An argument or a setting, by its name."""
        return getattr(self, name) if name in self.parts else getattr(self.settings, name)

    def set_parameter(self, name: str, value: Any) -> None:
        """Changes an argument or a setting. What was trained before is forgotten: the estimator has to be fitted anew.

        Raises:
            ValueError: There is no such argument or setting, or the value is out of its range.
        """
        changed = self.apply_attributes(**{name: value})
        self.__dict__.update(changed.__dict__)

    @property
    def losses(self) -> Losses:
        """The loss that is minimised."""
        return Losses.of(self.settings.loss)

    @property
    def training(self) -> Training:
        """The record of the last ``fit``: losses, validations, what was left out; with ``.table`` and ``.plot()``.

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
        if isinstance(student, pt.Estimator):
            return cast(Any, student).reranker  # type: ignore[no-any-return]
        return student if isinstance(student, CrossEncoderReRanker) else MonoElectraReRanker(student)

    def _template_for(self, checkpoint: Checkpoint) -> CrossEncoderReRanker:
        """The same, when it is known what the student is, which its name does not tell."""
        template = self._template()
        sees_lists = checkpoint.encoder.sees_lists
        return of_its_kind(template.clone(model=checkpoint, revision=None)) if sees_lists else template

    def _opened_student(self) -> Checkpoint:
        """The student's checkpoint, with the lengths to train with; its weights must not be changed."""
        student = cast(Any, self.student).reranker if isinstance(self.student, pt.Estimator) else self.student
        if isinstance(student, CrossEncoderReRanker):
            checkpoint = student.checkpoint
        elif isinstance(student, Checkpoint):
            checkpoint = student
        else:
            checkpoint = Checkpoint.open(student, new_head_seed=self.settings.seed)
        return checkpoint.with_lengths(query=self.settings.query_length, doc=self.settings.doc_length)

    def _record(self, student: Checkpoint) -> dict[str, Any]:
        """What made the trained student, to be kept and published beside its weights: it holds no local path."""
        training = self.training.as_record()
        model = {
            "model": public_name(student.source), "revision": student.revision, "weights": weights_digest(student)
        }  # fmt: skip
        earlier = {} if student.record is None else {"student's record": dict(student.record)}
        return record(
            type(self).__name__,
            settings=training.pop("settings"),
            models={"student": model},
            data=training.pop("data"),
            training=training,
            **earlier,
        )

    def _source(self, checkpoint: Checkpoint) -> str:
        revision = f" at revision {checkpoint.revision}" if checkpoint.revision else ""
        kept = f" ({'; '.join(self.training.notes)})" if self.training.notes else ""
        return f"{public_name(checkpoint.source)}{revision}, {_DONE[self.stage]} with {self.training.losses}{kept}"


class FineTuning(_StudentEstimator):
    """Trains a re-ranker on relevance labels and hard negatives: stage 1 of Rank-DistiLLM.

    ``(first_stage >> FineTuning("google/electra-base-discriminator")).fit(topics, qrels)``; then it re-ranks. Each
    training list is one relevant passage and some that the first stage found but that are not relevant.

    Args:
        student: What to start from; it is never changed. The hub id or folder of a backbone (ELECTRA, or BERT, whose
            encoder has the same shape; it gets a new head, drawn from the seed) or of a checkpoint; or an open
            ``Checkpoint``; or a re-ranker, whose settings the trained one takes over.
        recipe: ``"rank-distillm"`` (the default: softmax cross-entropy of one relevant passage against 7 of the top
            200, 20,000 steps of 32 lists), or a YAML file of settings.
        text: A source for texts that are not in the frames, such as those of relevant passages that were not
            retrieved: a text loader or a dataset. Without it, only relevant passages whose text is in the frame are
            used.
        callbacks: Objects of ``transformers.TrainerCallback``, which the Trainer calls while it trains.
        **settings: Settings that differ from the recipe; see ``Settings``.

    Raises:
        ValueError: Settings are unknown, out of range or contradict each other. The message names all of them.
        ImportError: accelerate (the extra ``train``) is not installed, or what ``report_to`` names.

    Method: Gao et al., Rethink Training of BERT Rerankers in Multi-Stage Retrieval Pipeline, ECIR 2021,
    https://arxiv.org/abs/2101.08751, as used by Schlatt et al., ECIR 2025, https://arxiv.org/abs/2405.07920.
    """

    schematic: ClassVar[dict[str, str]] = {"label": "FineTuning", "help_url": "https://arxiv.org/abs/2405.07920"}
    stage: ClassVar[Stage] = "finetune"

    def _sourced(
        self,
        inp: Topics | None,
        qrels: Qrels | None,
        *,
        run: Runs | None,
        text: Texts | None,
        text_field: str,
        reuse: Collection[str] = (),
    ) -> Sourced:
        del reuse  # nothing is kept before the training begins
        return labelled_data(type(self).__name__, self.settings, inp, qrels, run=run, text=text, text_field=text_field)


class Distillation(_StudentEstimator):
    """Trains a re-ranker to order passages as a teacher does: stage 2 of Rank-DistiLLM.

    ``(first_stage >> Distillation(stage1.reranker, teacher=rank_zephyr)).fit(topics, None)``; then it re-ranks.

    Args:
        student: What to start from, as for ``FineTuning``, or a ``FineTuning``, which must be fitted first.
        teacher: A re-ranker (any PyTerrier transformer), which ranks the first stage's top ``depth``; or the run of
            one: a frame, a run file, or a published run (``"rankdistillm:rankzephyr"``). None: the ranking passed to
            ``fit`` is the teacher's. As ``run=`` that is intended; as the first argument, where a pipeline passes its
            first stage's results, there is a ``TeacherWarning``.
        recipe: ``"rank-distillm"`` (the default: RankNet over 100 passages per query, 3 epochs, 32 lists per step), or
            a YAML file of settings.
        text: A source for texts that are not in the frames: a text loader or a dataset.
        callbacks: Objects of ``transformers.TrainerCallback``, which the Trainer calls while it trains.
        **settings: Settings that differ from the recipe; see ``Settings``.

    Raises:
        ValueError: Settings are unknown, out of range or contradict each other. The message names all of them.
        ImportError: accelerate (the extra ``train``) is not installed, or what ``report_to`` names.

    Method: Schlatt et al., Rank-DistiLLM, ECIR 2025, https://arxiv.org/abs/2405.07920.
    """

    schematic: ClassVar[dict[str, str]] = {"label": "Distillation", "help_url": "https://arxiv.org/abs/2405.07920"}
    stage: ClassVar[Stage] = "distill"
    parts: ClassVar[tuple[str, ...]] = ("student", "teacher", "recipe", "text", "callbacks")

    def __init__(
        self,
        student: Student,
        *,
        teacher: Ranker | None = None,
        recipe: str | os.PathLike[str] | None = None,
        text: Texts | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        **settings: Any,
    ) -> None:
        super().__init__(student, recipe=recipe, text=text, callbacks=callbacks, **settings)
        if isinstance(teacher, list | tuple):
            several = (
                "Several runs of the same topics are several lists: give them to fit as run=[...]. An ensemble is one "
                "pipeline: teacher=0.5 * a + 0.5 * b."
            )
            raise Door(type(self).__name__, "teacher", RANKER).refuse(teacher, several)
        if teacher is not None:  # what it is is found out now, and opened when it is used
            ranker_of(teacher, who=type(self).__name__, argument="teacher", look=False)
        self.teacher = teacher

    def _sourced(
        self,
        inp: Topics | None,
        qrels: Qrels | None,
        *,
        run: Runs | None,
        text: Texts | None,
        text_field: str,
        reuse: Collection[str] = (),
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
            reuse=reuse,
        )
