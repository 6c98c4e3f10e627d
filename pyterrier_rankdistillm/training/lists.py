"""The lists that a training consists of: the order of the queries, and their documents as token ids with targets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from numpy.typing import NDArray

from ..errors import TrainingDataError
from ..runs.rankings import Ranking, Rankings
from ..runs.text import texts_by
from ..scoring.tokenizer import Pair, PairTokenizer, Tokens
from .losses import Kind
from .sampling import Draw, Sampling, generator, near_duplicate

_KEPT_TOKENS = 64_000_000
"""Number of token ids of documents that are kept (256 MB). A smaller collection is tokenised only once."""


@dataclass(frozen=True)
class TrainingList:
    """A query with some documents.

    Args:
        qid: The query's id.
        pairs: Encoder inputs, one per document.
        targets: What a loss compares scores with, by kind; one number per document, shape (documents,).
    """

    qid: str
    pairs: list[Pair]
    targets: Mapping[Kind, NDArray[np.float32]]


class MissingTextError(KeyError):
    """Documents that have no text.

    Args:
        docnos: Which.
    """

    def __init__(self, docnos: Collection[str]) -> None:
        super().__init__(f"There is no text of document {min(docnos)!r}.")
        self.docnos = set(docnos)


@dataclass(frozen=True)
class Texts:
    """Texts by docno.

    Args:
        known: Texts that are already loaded.
        loader: Loads all other texts; None: there are no others.
    """

    known: Mapping[str, str] = field(default_factory=dict)
    loader: pt.Transformer | None = None

    def __contains__(self, docno: object) -> bool:
        return self.loader is not None or docno in self.known

    def of(self, docnos: Sequence[str]) -> list[str]:
        """The texts of some documents, fetched together.

        Raises:
            MissingTextError: There is none for a document.
        """
        unknown = [docno for docno in docnos if docno not in self.known]
        loaded = texts_by(self.loader, unknown) if unknown and self.loader is not None else {}
        missing = {docno for docno in unknown if docno not in loaded}
        if missing:
            raise MissingTextError(missing)
        return [loaded[docno] if docno in loaded else self.known[docno] for docno in docnos]


@dataclass(frozen=True)
class TrainingData:
    """The data to train on, wherever it is stored.

    Args:
        rankings: A teacher's, or a first stage's whose lower part gives negatives; one per query and run.
        members: The positions of the rankings that are used, shape (rankings used,).
        queries: Query texts by qid.
        texts: Document texts.
        relevance: Labels by qid and docno; empty if only the ranking counts.
        labelled: Whether the targets of every loss are the labels rather than the ranking.
    """

    rankings: Rankings
    members: NDArray[np.int64]
    queries: Mapping[str, str]
    texts: Texts
    relevance: Mapping[str, Mapping[str, int]]
    labelled: bool

    @cached_property
    def distinct(self) -> int:
        """The number of queries that are used; with several runs there are more rankings."""
        qids = self.rankings.qids[:]
        return len({qids[position] for position in self.members})


class Lists(torch.utils.data.Dataset[TrainingList]):
    """All lists of a training, from those of the first step to those of the last.

    List ``i`` depends on the data, the seed and ``i`` only, so a training can be resumed at any step, with any number
    of processes.

    Args:
        data: Queries and rankings.
        tokenizer: With the lengths to train with.
        sampling: Which documents of a ranking a list holds.
        total: Number of lists; beyond the number of rankings, these come again with other documents.
        seed: Of the order and the sampling.
        drop_near_duplicates: Whether negatives that nearly repeat a relevant passage are exchanged.
        kept_tokens: Token ids of documents that are kept in memory.
        on_unusable: What to do with a query that has a document without a text: an error, or draw the next query's
            list in its place.
        who: The estimator, for messages.
    """

    def __init__(
        self,
        data: TrainingData,
        tokenizer: PairTokenizer,
        sampling: Sampling,
        *,
        total: int,
        seed: int,
        drop_near_duplicates: bool = True,
        kept_tokens: int = _KEPT_TOKENS,
        on_unusable: Literal["error", "skip"] = "error",
        who: str = "Lists",
    ) -> None:
        self.data = data
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.total = total
        self.seed = seed
        self.drop_near_duplicates = drop_near_duplicates and data.labelled
        self.on_unusable = on_unusable
        self.who = who
        self.without_text: dict[str, str] = {}
        """A document without a text, by qid: of the queries that were left out so far."""
        qids = np.array(data.rankings.qids[:])
        self._members = data.members[np.argsort(qids[data.members], kind="stable")]  # whatever the run's order
        self._run_numbers = pd.Series(qids).groupby(qids).cumcount().to_numpy()  # of those that rank the query
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._queries: dict[str, Tokens] = {}
        self._documents = _DocumentTokens(tokenizer, data.texts, kept_tokens)

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> TrainingList:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[TrainingList]:
        """Several lists at once; their texts are fetched and tokenised together."""
        drawn = [self._draw(index) for index in indices]
        try:
            tokens = self._documents.of({docno for draw, _ in drawn for docno in draw.docnos})
            return [self._list(draw, ranking, tokens) for draw, ranking in drawn]
        except MissingTextError as missing:
            for draw, ranking in drawn:
                self._leave_out(ranking.qid, missing.docnos.intersection((*draw.docnos, *draw.spares)))
        return self.__getitems__(indices)  # with other queries in their places

    def _leave_out(self, qid: str, missing: Collection[str]) -> None:
        if not missing:
            return
        docno = min(missing)
        if self.on_unusable == "error":
            raise TrainingDataError(
                f"{self.who}: there is no text of docno {docno!r}, which is in the list of qid {qid!r}. Give its text, "
                f"or leave such queries out with on_unusable='skip'."
            )
        self.without_text[qid] = docno
        if len(self.without_text) == self.data.distinct:
            raise TrainingDataError(
                f"{self.who}: every query has a document without a text, such as docno {docno!r} (qid {qid!r}). No "
                f"query is left."
            )

    def _draw(self, index: int) -> tuple[Draw, Ranking]:
        """The list of an index; of a query that is left out, the next one's of that epoch."""
        epoch, place = divmod(index, len(self._members))
        order = self._ordered(epoch)
        while self.data.rankings.qids[int(order[place])] in self.without_text:
            place = (place + 1) % len(order)
        position = int(order[place])
        ranking = self.data.rankings[position]
        draw = self.sampling.draw(
            ranking.docnos,
            self.data.relevance.get(ranking.qid, {}) if self.data.labelled else {},
            generator(self.seed, epoch, ranking.qid, int(self._run_numbers[position])),
            self._any_docno,
        )
        return draw, ranking

    def _any_docno(self, rng: np.random.Generator) -> str:
        """A document of any ranking; documents that occur in more rankings are drawn more often."""
        rankings = self.data.rankings
        return rankings.docnos[int(rng.integers(rankings.rows))]

    def _ordered(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            draws = generator(self.seed, epoch, "").bit_generator.random_raw(len(self._members))
            self._order = epoch, self._members[np.argsort(draws, kind="stable")]
        return self._order[1]

    def _list(self, draw: Draw, ranking: Ranking, tokens: Mapping[str, Tokens]) -> TrainingList:
        relevance = self.data.relevance.get(ranking.qid, {})
        docnos = draw.docnos
        if self.drop_near_duplicates:
            docnos, tokens = self._without_near_duplicates(draw, relevance, tokens)
        query = self._query(ranking.qid)
        return TrainingList(
            ranking.qid,
            [self.tokenizer.join(query, tokens[docno]) for docno in docnos],
            self._targets(ranking, docnos, relevance),
        )

    def _without_near_duplicates(
        self, draw: Draw, relevance: Mapping[str, int], tokens: Mapping[str, Tokens]
    ) -> tuple[list[str], Mapping[str, Tokens]]:
        """Replaces unjudged near-duplicates of a relevant document of the list, since they are relevant too."""
        relevant = [tokens[docno].ids for docno in draw.docnos if relevance.get(docno, 0) > 0]
        known = dict(tokens)

        def tokens_of(docno: str) -> Tokens:
            if docno not in known:  # a spare
                known.update(self._documents.of([docno]))
            return known[docno]

        spares = iter(draw.spares)
        kept = []
        for docno in draw.docnos:
            candidate: str | None = docno
            while candidate is not None and candidate not in relevance:
                if not any(near_duplicate(tokens_of(candidate).ids, ids) for ids in relevant):
                    break
                candidate = next(spares, None)
            if candidate is not None:
                kept.append(candidate)
        return kept, {docno: tokens_of(docno) for docno in kept}

    def _targets(
        self, ranking: Ranking, docnos: Sequence[str], relevance: Mapping[str, int]
    ) -> dict[Kind, NDArray[np.float32]]:
        labels = np.array([relevance.get(docno, 0) for docno in docnos], dtype=np.float32)
        if self.data.labelled:
            return {"relevance": labels, "order": labels, "values": labels}
        row_of = {docno: row for row, docno in enumerate(ranking.docnos)}
        rows = np.array([row_of[docno] for docno in docnos])
        places = rows if ranking.scores is None else _ranks_of(ranking.scores)[rows]
        targets: dict[Kind, NDArray[np.float32]] = {"order": -places.astype(np.float32)}
        if self.data.relevance:
            targets["relevance"] = labels
        if ranking.scores is not None:
            targets["values"] = ranking.scores[rows].astype(np.float32)
        return targets

    def _query(self, qid: str) -> Tokens:
        if qid not in self._queries:
            self._queries[qid] = self.tokenizer.encode_queries([self.data.queries[qid]])[0]
        return self._queries[qid]


def _ranks_of(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """The place of each document of a ranking, from 0. Equal scores share one: the teacher did not tell them apart."""
    return np.append(0, np.cumsum(np.diff(scores) != 0))


class _DocumentTokens:
    """Token ids of documents; the most recently used are kept."""

    def __init__(self, tokenizer: PairTokenizer, texts: Texts, kept_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.texts = texts
        self.room = kept_tokens
        self._kept: OrderedDict[str, tuple[NDArray[np.int32], bool]] = OrderedDict()

    def of(self, docnos: Collection[str]) -> dict[str, Tokens]:
        found: dict[str, Tokens] = {}
        for docno in docnos:
            if docno in self._kept:
                self._kept.move_to_end(docno)
                ids, cut = self._kept[docno]
                found[docno] = Tokens(ids.tolist(), cut)
        self._add(found, sorted(set(docnos) - set(found)))
        return found

    def _add(self, found: dict[str, Tokens], docnos: Sequence[str]) -> None:
        if not docnos:
            return
        for docno, tokens in zip(docnos, self.tokenizer.encode_docs(self.texts.of(docnos)), strict=True):
            found[docno] = tokens
            self._kept[docno] = np.array(tokens.ids, dtype=np.int32), tokens.cut
            self.room -= len(tokens.ids)
        while self.room < 0 and self._kept:
            _, (ids, _) = self._kept.popitem(last=False)
            self.room += len(ids)


def as_relevance(qrels: pd.DataFrame, qids: Iterable[str]) -> dict[str, dict[str, int]]:
    """Labels by qid and docno, of some queries."""
    wanted = set(qids)
    relevance: dict[str, dict[str, int]] = {}
    used = qrels[qrels["qid"].isin(wanted)]
    for qid, docno, label in zip(used["qid"], used["docno"], used["label"], strict=True):
        relevance.setdefault(qid, {})[docno] = int(label)
    return relevance
