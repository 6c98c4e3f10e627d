"""The Set-Encoder as a PyTerrier transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import ClassVar, cast

import numpy as np
import pandas as pd

from .errors import CheckpointError
from .reranker import CrossEncoderReRanker
from .scoring.checkpoint import Checkpoint
from .scoring.folders import locate, read_config
from .scoring.formats import interaction_of
from .scoring.scorer import ListScorer, Scored, Scorer
from .scoring.sets import SetEncoder


class LongListWarning(UserWarning):
    """A query has more passages than the set encoder was trained with."""


class SetEncoderReRanker(CrossEncoderReRanker):
    """Re-ranks a query's passages together: ``first_stage % 100 >> SetEncoderReRanker("webis/set-encoder-base")``.

    In every layer of the encoder each passage also attends to the interaction vectors of the query's other passages, so
    that scores depend on the set of passages, and not on their order: ``% k`` before it changes scores, also those of
    the passages that stay. It takes and returns frames as ``CrossEncoderReRanker`` does, and has the same arguments.
    The rows of a qid are one set. Each row is a member, equal texts too, so nothing is scored once for all. Order and
    index of the rows, other queries and batches do not matter.

    Passages are encoded in batches, layer by layer, so a list needs memory for its hidden states (1,000 passages of 100
    tokens at base size: 0.3 GB), whatever its length. Lists longer than the checkpoint's ``depth`` (100 by default) are
    scored too, with one ``LongListWarning``. Shorter ones are scored as they are: Lightning IR fills them up to
    ``depth`` with random vectors, so that their scores differ from call to call, unless the checkpoint's
    ``sample_missing_docs`` is false. That setting is not read here.

    Args:
        model: A Hugging Face hub id, the folder of a set encoder in Lightning IR's format, or an open ``Checkpoint``.
        revision: As for ``CrossEncoderReRanker``.
        local_files_only: As for ``CrossEncoderReRanker``.
        device: As for ``CrossEncoderReRanker``.
        dtype: As for ``CrossEncoderReRanker``.
        batch_tokens: As for ``CrossEncoderReRanker``; batches are of one query.
        query_length: As for ``CrossEncoderReRanker``.
        doc_length: As for ``CrossEncoderReRanker``.
        text_field: As for ``CrossEncoderReRanker``.
        activation: As for ``CrossEncoderReRanker``.
        verbose: As for ``CrossEncoderReRanker``.

    Raises:
        ValueError: As for ``CrossEncoderReRanker``; or a qid has more than one query.
        CheckpointError: The model cannot be opened, or is not a set encoder (raised while scoring).
        pt.validate.InputValidationError: The frame lacks a column.

    Method: Schlatt et al., Set-Encoder: Permutation-Invariant Inter-Passage Attention for Listwise Passage Re-Ranking
    with Cross-Encoders, ECIR 2025, https://arxiv.org/abs/2404.06912.
    """

    label: ClassVar[str] = "SetEncoder"
    paper: ClassVar[str] = "https://arxiv.org/abs/2404.06912"
    default_model: ClassVar[str | None] = "webis/set-encoder-base"

    def _scored(
        self, inp: pd.DataFrame, queries: list[str], texts: list[str], progress: Callable[[int], object]
    ) -> Scored:
        codes, qids = pd.factorize(inp["qid"])
        rows = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])  # of each query
        for qid, members in zip(qids, rows, strict=True):
            found = list(dict.fromkeys(queries[row] for row in members))
            if len(found) > 1:
                raise ValueError(
                    f"{type(self).__name__}: query must be the same in all rows of a qid, whose passages are scored "
                    f"together, got {found[0]!r:.80} and {found[1]!r:.80} for qid {qid!r}. Give each query its own qid."
                )
        self._warn_of_length(max(map(len, rows)))
        scored = cast(ListScorer, self.scorer).score_lists(
            [queries[members[0]] for members in rows],
            [[texts[row] for row in members] for members in rows],
            progress=progress,
        )
        scores = np.empty_like(scored.scores)
        scores[np.concatenate(rows)] = scored.scores
        return replace(scored, scores=scores)

    def _scorer_of(self, checkpoint: Checkpoint) -> Scorer:
        if not checkpoint.encoder.sees_lists:
            raise CheckpointError(
                f"{type(self).__name__}: {checkpoint.source} is not a set encoder, but scores each passage by itself. "
                f"Open it with CrossEncoderReRanker; Checkpoint.as_set_encoder makes one of it, to be trained."
            )
        return ListScorer(checkpoint, device=self.device, dtype=self.dtype, batch_tokens=self.batch_tokens)

    def _warn_of_length(self, longest: int) -> None:
        depth = cast(SetEncoder, self.checkpoint.encoder).interaction.depth
        if longest > depth:
            self._warn_once(
                LongListWarning,
                f"got {longest} passages of one query, but {self.checkpoint.source} was trained with at most {depth}. "
                f"They are scored together; `% {depth}` before it keeps to what it knows.",
                stacklevel=5,
            )


def of_its_kind(reranker: CrossEncoderReRanker) -> CrossEncoderReRanker:
    """The re-ranker itself, or a ``SetEncoderReRanker`` with its settings where its model is a set encoder.

    For models that are given by name, which does not say what they are. It looks into the checkpoint, which a hub id
    is downloaded for, but does not open it.

    Raises:
        CheckpointError: The checkpoint cannot be found or read.
    """
    model = reranker.model
    if isinstance(model, Checkpoint):
        sees_lists = model.encoder.sees_lists
    else:
        folder, _ = locate(model, revision=reranker.revision, local_files_only=reranker.local_files_only)
        sees_lists = interaction_of(read_config(folder), source=str(model)) is not None
    if not sees_lists or isinstance(reranker, SetEncoderReRanker):
        return reranker
    return SetEncoderReRanker(**{name: getattr(reranker, name) for name in signature(CrossEncoderReRanker).parameters})
