"""The validation of a student during training."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import ir_measures
import pandas as pd
import pyterrier as pt

from ..checks import is_text
from ..errors import TrainingDataError
from ..reranker import CrossEncoderReRanker, TruncationWarning
from ..runs.frames import subsample
from ..runs.given import Door, Qrels, Texts, checked_run, contradiction, qrels_of, texts_of
from ..runs.text import join_text
from ..set_encoder import LongListWarning
from .data import Problems
from .settings import Settings


@dataclass(frozen=True)
class Validation:
    """Rankings of the validation topics, their judgments, and the measure.

    Args:
        run: Columns ``qid``, ``query``, ``docno``, ``text``, ``score``, ``rank``.
        qrels: ir-measures' columns ``query_id``, ``doc_id``, ``relevance``; of the run's topics only.
        measure: The measure that is computed; the mean over the topics is used.
    """

    run: pd.DataFrame
    qrels: pd.DataFrame
    measure: Any

    @classmethod
    def of(
        cls,
        who: str,
        settings: Settings,
        run: pd.DataFrame | None,
        qrels: Qrels | None,
        *,
        text: Texts | None,
        text_field: str,
    ) -> Validation | None:
        """The validation that is asked for; None without validation topics.

        Raises:
            TrainingDataError: Something is missing.
        """
        if run is None and qrels is None:
            return None
        faults = []
        if run is None or qrels is None:
            there, missing = ("qrels", "topics") if run is None else ("topics", "qrels")
            faults.append(f"There are validation {there}, but no validation {missing}. Give both or neither.")
        else:
            wanted = ["qid", "query", "docno", "score", *([text_field] if text is None else [])]
            lacking = [column for column in wanted if column not in run.columns]
            if lacking:
                faults.append(f"The validation results have no column {', '.join(lacking)}.")
        if faults or run is None or qrels is None:
            raise TrainingDataError(f"{who}: " + " ".join(faults))
        problems = Problems(who)
        given, found = qrels, run
        labels = problems.read(lambda: qrels_of(given, who=who, argument="qrels_va"))
        door = Door(who, "topics_or_res_va", "the first stage's results as a frame")
        checked = problems.read(lambda: checked_run(found, door))
        odd = None if checked is None else contradiction(checked)
        if odd is not None:  # what the student is compared with is the first stage's own order
            problems.add(f"topics_or_res_va {odd}")
        if checked is not None:
            queries = {
                qid: query for qid, query in zip(checked["qid"], checked["query"], strict=True) if is_text(query)
            }
            problems.as_asked("topics_or_res_va", queries, checked.columns)
        if problems.faults or labels is None or checked is None:
            raise TrainingDataError(f"{who}: " + " ".join(problems.faults))
        qrels, run = labels, checked
        judged = set(qrels["qid"])
        run = run[run["qid"].isin(judged)]
        if run.empty:
            raise TrainingDataError(f"{who}: none of the validation topics has documents and qrels.")
        topics = run["qid"].nunique()
        if settings.valid_queries is not None and settings.valid_queries < topics:
            run = subsample(run, queries=settings.valid_queries, seed=settings.seed)
        if settings.depth is not None and "rank" in run.columns:
            run = run[run["rank"] < settings.depth + pt.model.FIRST_RANK]
        if text_field not in run.columns:
            assert text is not None
            run = join_text(run, texts_of(text, who=who, field=text_field)).rename(columns={"text": text_field})
        used = qrels[qrels["qid"].isin(set(run["qid"]))]
        used = used.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
        measure = ir_measures.parse_measure(settings.measure)
        return cls(run.reset_index(drop=True), used[["query_id", "doc_id", "relevance"]], measure)

    def __call__(self, reranker: CrossEncoderReRanker) -> float:
        """The measure of a re-ranker over the run."""
        with warnings.catch_warnings():
            for category in (TruncationWarning, LongListWarning):
                warnings.simplefilter("ignore", category)  # the settings say how much is read, and of how many
            ranking = reranker.transform(self.run)[["qid", "docno", "score"]]
        ranking = ranking.rename(columns={"qid": "query_id", "docno": "doc_id"})
        return float(ir_measures.calc_aggregate([self.measure], self.qrels, ranking)[self.measure])
