"""Draws the documents of a training list from a ranking: seeded, without texts and without torch."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ..checks import is_whole
from ..errors import InputError

Strategy = Literal["single_relevant", "top", "random", "log_random", "top_and_random"]

_TRIES = 20  # to draw a document of another query's ranking that is not in this one
_SHINGLE = 3
_SIMILAR = 0.8


@dataclass(frozen=True)
class Draw:
    """A training list before its texts are loaded.

    Args:
        docnos: Its documents. With ``"single_relevant"`` the relevant one is first; otherwise in the ranking's order.
        spares: Documents that are not known to be relevant and can replace one of the list, in the order of use.
    """

    docnos: list[str]
    spares: list[str]


@dataclass(frozen=True)
class Sampling:
    """How the documents of a training list are drawn from a ranking, without replacement.

    Documents with a label above 0 are relevant. All other documents, judged or not, are not known to be relevant.
    Without labels, as in distillation, that is every document.

    Args:
        strategy: How documents are chosen. ``"single_relevant"``: one of the relevant documents and some of the others,
            both drawn uniformly. The other strategies do not distinguish relevant documents from others. ``"top"``: the
            first ones. ``"random"``: drawn uniformly. ``"log_random"``: drawn with weight ``1 / log2(rank + 2)``, so
            that the first document is 6.7 times as likely as the 100th. ``"top_and_random"``: half of them (rounded up)
            are the first ones, and half are drawn uniformly from those below.
        sample_size: Number of documents per list, at least 2. If a ranking has fewer, the list is shorter. None: all
            (with ``"single_relevant"``: one relevant and all others); only for ``"single_relevant"`` and ``"top"``.
        depth: Number of documents per ranking that are used; None: all.
        negative_ranks: Ranks (from 0, end not included) that documents not known to be relevant come from; None: all.
            The top of a ranking often contains documents that are relevant but not judged.
        random_negatives: Probability, 0 to 1, with which each of the others of a ``"single_relevant"`` list is drawn
            from other queries' rankings instead.
        add_relevant: Whether relevant documents that are not in the ranking (down to ``depth``) are appended to it,
            ordered by docno.

    Raises:
        ValueError: Settings are out of range or contradict each other. The message names all of them.
    """

    strategy: Strategy = "top"
    sample_size: int | None = None
    depth: int | None = None
    negative_ranks: tuple[int, int] | None = None
    random_negatives: float = 0.0
    add_relevant: bool = True

    def __post_init__(self) -> None:
        problems = self._out_of_range() or self._contradictions()
        if problems:
            raise InputError("Sampling", " ".join(problems))

    def unusable(self, docnos: Sequence[str], relevance: Mapping[str, int]) -> str | None:
        """Why no list of at least two documents can be drawn, or None if one can.

        The reason completes the sentence "queries that ...", such as "have no relevant document".

        Args:
            docnos: The ranking, best first, without duplicates.
            relevance: Labels of the query by docno, retrieved or not; empty if only the ranking counts.
        """
        return self._reason(self._pool(docnos, relevance), relevance)

    def unlabelled(self, sizes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """How many documents can be drawn from rankings in which nothing is labelled.

        Args:
            sizes: Of the rankings, shape (rankings,).
        """
        first, end = self.negative_ranks or (0, np.iinfo(np.int64).max)
        last = end if self.depth is None else min(self.depth, end)
        drawn: NDArray[np.int64] = np.clip(sizes, first, max(first, last)) - first
        return drawn

    def draw(
        self,
        docnos: Sequence[str],
        relevance: Mapping[str, int],
        rng: np.random.Generator,
        others: Callable[[np.random.Generator], str] | None = None,
    ) -> Draw:
        """Draws a list. The result depends on the arguments only: the same generator state gives the same list.

        Args:
            docnos: The ranking, best first, without duplicates.
            relevance: Labels of the query by docno, retrieved or not; empty if only the ranking counts.
            rng: See ``generator``.
            others: Returns a document of another query's ranking; needed for ``random_negatives``. Documents that are
                relevant or in this ranking are drawn again. If no other is found, the ranking's own documents are used.

        Raises:
            ValueError: The ranking is ``unusable``, or ``others`` is missing.
        """
        pool = self._pool(docnos, relevance)
        reason = self._reason(pool, relevance)
        if reason is not None:
            raise ValueError(f"Sampling: no list can be drawn for queries that {reason}. Leave them out.")
        if self.strategy == "single_relevant":
            return self._single_relevant(pool, docnos, relevance, rng, others)
        size = len(pool) if self.sample_size is None else self.sample_size
        preferred = self._preferred(pool, size, rng)
        chosen = sorted(preferred[:size])
        spares = [candidate.docno for candidate in preferred[size:] if not candidate.relevant]
        return Draw([candidate.docno for candidate in chosen], spares)

    def _reason(self, pool: list[_Candidate], relevance: Mapping[str, int]) -> str | None:
        if self.strategy != "single_relevant":
            return None if len(pool) >= 2 else "have fewer than 2 documents to train on"
        if not any(known.relevant for known in pool):
            if any(label > 0 for label in relevance.values()):
                return "have no relevant document that was retrieved"
            return "have no relevant document"
        if all(known.relevant for known in pool):
            return "have no document that is not relevant"
        return None

    def _pool(self, docnos: Sequence[str], relevance: Mapping[str, int]) -> list[_Candidate]:
        """The documents that can be drawn, in the ranking's order."""
        seen = docnos[: self.depth]
        first, end = self.negative_ranks or (0, len(seen))
        candidates = [_Candidate(rank, docno, relevance.get(docno, 0) > 0) for rank, docno in enumerate(seen)]
        pool = [candidate for candidate in candidates if candidate.relevant or first <= candidate.rank < end]
        if self.add_relevant:
            missing = {docno for docno, label in relevance.items() if label > 0}.difference(seen)
            pool += [_Candidate(rank, docno, True) for rank, docno in enumerate(sorted(missing), len(seen))]
        return pool

    def _preferred(self, pool: list[_Candidate], size: int, rng: np.random.Generator) -> list[_Candidate]:
        """The pool in the order in which it is drawn."""
        if self.strategy == "random":
            return _shuffled(pool, rng)
        if self.strategy == "log_random":
            return _shuffled(pool, rng, [1 / math.log2(candidate.rank + 2) for candidate in pool])
        if self.strategy == "top_and_random":
            top = (size + 1) // 2
            return pool[:top] + _shuffled(pool[top:], rng)
        return pool

    def _single_relevant(
        self,
        pool: list[_Candidate],
        docnos: Sequence[str],
        relevance: Mapping[str, int],
        rng: np.random.Generator,
        others: Callable[[np.random.Generator], str] | None,
    ) -> Draw:
        relevant = _shuffled([candidate.docno for candidate in pool if candidate.relevant], rng)[0]
        hard = _shuffled([candidate.docno for candidate in pool if not candidate.relevant], rng)
        wanted = len(hard) if self.sample_size is None else self.sample_size - 1
        foreign: list[str] = []
        if self.random_negatives > 0:
            if others is None:
                raise ValueError("Sampling: others must be given with random_negatives, got None.")
            known = {*docnos, *(docno for docno, label in relevance.items() if label > 0)}
            for _ in range(int((_uniform(rng, wanted) < self.random_negatives).sum())):
                drawn = (others(rng) for _ in range(_TRIES))
                new = next((docno for docno in drawn if docno not in known), None)
                if new is not None:
                    known.add(new)
                    foreign.append(new)
        kept = wanted - len(foreign)
        return Draw([relevant, *hard[:kept], *foreign], hard[kept:])

    def _out_of_range(self) -> list[str]:
        problems = []
        if self.strategy not in get_args(Strategy):
            problems.append(f"strategy must be one of {', '.join(get_args(Strategy))}, got {self.strategy!r}.")
        for name, least in (("sample_size", 2), ("depth", 1)):
            value = getattr(self, name)
            if value is not None and not is_whole(value, least=least):
                problems.append(f"{name} must be None or a number of documents, at least {least}, got {value!r}.")
        ranks: Any = self.negative_ranks
        if ranks is not None and not (
            isinstance(ranks, tuple)
            and len(ranks) == 2
            and all(is_whole(rank, least=0) for rank in ranks)
            and ranks[0] < ranks[1]
        ):
            problems.append(f"negative_ranks must be None or two ranks (first, end), 0 <= first < end, got {ranks!r}.")
        share: Any = self.random_negatives
        if not (isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1):
            problems.append(f"random_negatives must be a number from 0 to 1, got {share!r}.")
        if not isinstance(self.add_relevant, bool):
            problems.append(f"add_relevant must be True or False, got {self.add_relevant!r}.")
        return problems

    def _contradictions(self) -> list[str]:
        problems = []
        single = self.strategy == "single_relevant"
        if self.sample_size is None and self.strategy in ("random", "log_random", "top_and_random"):
            problems.append(
                f"sample_size must be given with strategy {self.strategy!r}, got None. 'top' takes all documents."
            )
        if self.random_negatives > 0 and not single:
            problems.append(
                f"random_negatives must be 0 with strategy {self.strategy!r}, got {self.random_negatives!r}. Use "
                f"'single_relevant', which alone tells negatives from other documents."
            )
        if self.negative_ranks is not None and self.depth is not None and self.negative_ranks[1] > self.depth:
            problems.append(
                f"negative_ranks must end at depth, {self.depth}, at most, got {self.negative_ranks!r}. Raise depth, "
                f"or lower them."
            )
        limits = {
            "the depth": self.depth,
            "the number of ranks": None
            if self.negative_ranks is None
            else self.negative_ranks[1] - self.negative_ranks[0],
        }
        for name, limit in limits.items():
            if self.sample_size is not None and limit is not None and self.random_negatives == 0:
                most = limit + 1 if single else limit
                if self.sample_size > most:
                    more = " plus 1 relevant" if single else ""
                    problems.append(
                        f"sample_size must be at most {name}, {limit}{more}, got {self.sample_size}. Lower it, or "
                        f"look deeper."
                    )
        return problems


class _Candidate(NamedTuple):
    """A document that can be drawn.

    Args:
        rank: From 0; the ranks of relevant documents that were not retrieved follow that of the last retrieved one.
        docno: Its id.
        relevant: Whether it is known to be relevant.
    """

    rank: int
    docno: str
    relevant: bool


def generator(seed: int, epoch: int, qid: str, run: int = 0) -> np.random.Generator:
    """A generator that depends on these only, not on the order of queries, the processes or numpy's version.

    Args:
        seed: Of the training.
        epoch: From 0.
        qid: The query.
        run: The number of the ranking among the query's, which draw independently.
    """
    stated = f"{seed}\0{epoch}\0{qid}" + (f"\0{run}" if run else "")
    digest = hashlib.blake2b(stated.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def near_duplicate(one: str | Sequence[int], other: str | Sequence[int]) -> bool:
    """Whether two passages are equal or nearly equal.

    They are nearly equal if at least 80 % of the sequences of three words that occur in either occur in both (Jaccard
    similarity; Broder, 1997). Shorter passages must be equal.

    Args:
        one: A text, compared without case, punctuation and differences in Unicode encoding; or token ids.
        other: The other text, or its token ids.
    """
    first, second = _words(one), _words(other)
    if first == second:
        return True
    few, many = sorted((_shingles(first), _shingles(second)), key=len)
    if len(few) < _SIMILAR * len(many):  # also where one of them is empty; cheaper than what follows
        return False
    shared = len(few & many)
    return shared > 0 and shared >= _SIMILAR * (len(few) + len(many) - shared)


def _words(passage: str | Sequence[int]) -> list[object]:
    if isinstance(passage, str):
        return list(re.findall(r"\w+", unicodedata.normalize("NFKC", passage).casefold()))
    return list(passage)


def _shingles(words: list[object]) -> set[tuple[object, ...]]:
    return {tuple(words[start : start + _SHINGLE]) for start in range(len(words) - _SHINGLE + 1)}


def _uniform(rng: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers above 0 and below 1, from raw bits, which numpy promises to keep the same between versions."""
    bits = np.array(rng.bit_generator.random_raw(count), dtype=np.uint64)
    uniform: np.ndarray[Any, np.dtype[np.float64]] = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return uniform


def _shuffled(items: list[Any], rng: np.random.Generator, weights: Sequence[float] | None = None) -> list[Any]:
    """Items in the order in which they are drawn without replacement, by weight (Efraimidis and Spirakis, 2006)."""
    arrivals = -np.log(_uniform(rng, len(items))) / (1.0 if weights is None else np.array(weights))
    return [items[place] for place in np.argsort(arrivals, kind="stable")]
