"""LLMs as teachers: rank_llm's re-rankers as stages of a PyTerrier pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt

from ..extras import require


class RankLlm(pt.Transformer):
    """Re-ranks with rank_llm: ``first_stage % 100 >> text >> RankLlm(ZephyrReranker(), model="castorini/...")``.

    A query's rows go to the LLM in the order of their ranks (of their scores where they have none). What comes back is
    an order: ``score`` is the negated rank, not a margin.

    Args:
        reranker: A re-ranker of rank_llm (``ZephyrReranker``, ``VicunaReranker``, ``Reranker``): anything with its
            ``rerank_batch``.
        model: What the LLM is called. Kept runs and records identify the teacher by it and by ``settings``, since
            the object that holds an LLM does not.
        settings: What else orders follow from, for the same purpose: ``{"window_size": 20, "stride": 10}``.
        text_field: The column with the texts.
        **options: Passed on to ``rerank_batch``.

    Raises:
        ImportError: rank_llm is not installed (raised while ranking).
        pt.validate.InputValidationError: The frame lacks a column.
    """

    schematic: ClassVar[dict[str, str]] = {"label": "RankLlm", "help_url": "https://github.com/castorini/rank_llm"}

    def __init__(
        self,
        reranker: Any,
        *,
        model: str,
        settings: Mapping[str, Any] | None = None,
        text_field: str = "text",
        **options: Any,
    ) -> None:
        self.reranker = reranker
        self.model = model
        self.settings = dict(settings or {})
        self.text_field = text_field
        self.options = options

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The documents that rank_llm gives back, in its order, with new ``score`` and ``rank``."""
        pt.validate.result_frame(inp, extra_columns=["query", self.text_field], context=self)
        if inp.empty:
            return inp.assign(score=pd.Series(dtype=float), rank=pd.Series(dtype=int))
        by, ascending = ("rank", True) if "rank" in inp.columns else ("score", False)
        ordered = inp.sort_values(by, ascending=ascending, kind="stable")
        requests = [self._request(rows) for _, rows in ordered.groupby("qid", sort=False)]
        found = []
        for length in sorted({len(request.candidates) for request in requests}):  # a batch of one length is required
            some = [request for request in requests if len(request.candidates) == length]
            results = self.reranker.rerank_batch(some, **{"rank_start": 0, "rank_end": length, **self.options})
            for request, result in zip(some, results, strict=True):
                docnos = [candidate.docid for candidate in result.candidates]
                found.append(pd.DataFrame({"qid": request.query.qid, "docno": docnos, "rank": range(len(docnos))}))
        ranking = pd.concat(found, ignore_index=True)
        ranking["rank"] += pt.model.FIRST_RANK
        rest = inp.drop(columns=["score", "rank"], errors="ignore")
        return ranking.assign(score=-ranking["rank"].astype(float)).merge(rest, on=["qid", "docno"], how="left")

    def _request(self, rows: pd.DataFrame) -> Any:
        data = require("rank_llm.data", "RankLlm")
        texts = zip(rows["docno"], rows[self.text_field], strict=True)
        return data.Request(
            query=data.Query(text=rows["query"].iloc[0], qid=rows["qid"].iloc[0]),
            candidates=[
                data.Candidate(docid=docno, score=1 / place, doc={"contents": text})
                for place, (docno, text) in enumerate(texts, start=1)
            ],
        )

    def results_depend_on(self) -> dict[str, Any]:
        """For kept work: the model by its name, and the settings."""
        return {
            "model": self.model, "settings": self.settings, "text_field": self.text_field, "options": self.options,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"RankLlm({self.model!r})"
