"""The measure that a student is watched by while it is trained."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import ir_measures
import pandas as pd
import pyterrier as pt

from ..errors import TrainingDataError
from ..reranker import CrossEncoderReRanker, TruncationWarning
from ..runs.frames import subsample
from ..runs.text import Dataset, add_text
from .settings import Settings


@dataclass(frozen=True)
class Validation:
    """Rankings of topics that are not trained on, and how they are judged.

    Args:
        run: Columns ``qid``, ``query``, ``docno``, ``text``, ``score``, ``rank``.
        qrels: ir-measures' columns ``query_id``, ``doc_id``, ``relevance``; of the run's topics only.
        measure: What is computed, the mean over the topics.
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
        qrels: pd.DataFrame | None,
        *,
        text: pt.Transformer | Dataset | None,
        text_field: str,
    ) -> Validation | None:
        """The validation that is asked for; None where there are no validation topics.

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
            for name, frame, wanted in (
                ("results", run, ["qid", "query", "docno", "score", *([text_field] if text is None else [])]),
                ("qrels", qrels, ["qid", "docno", "label"]),
            ):
                lacking = [column for column in wanted if column not in frame.columns]
                if lacking:
                    faults.append(f"The validation {name} have no column {', '.join(lacking)}.")
        if faults or run is None or qrels is None:
            raise TrainingDataError(f"{who}: " + " ".join(faults))
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
            run = add_text(run, text).rename(columns={"text": text_field})
        used = qrels[qrels["qid"].isin(set(run["qid"]))]
        used = used.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
        measure = ir_measures.parse_measure(settings.measure)
        return cls(run.reset_index(drop=True), used[["query_id", "doc_id", "relevance"]], measure)

    def __call__(self, reranker: CrossEncoderReRanker) -> float:
        """The measure of a re-ranker over the run."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # the settings say what is read
            ranking = reranker.transform(self.run)[["qid", "docno", "score"]]
        ranking = ranking.rename(columns={"qid": "query_id", "docno": "doc_id"})
        return float(ir_measures.calc_aggregate([self.measure], self.qrels, ranking)[self.measure])
