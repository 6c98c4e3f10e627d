"""Queries that were rewritten into Terrier's query language: retrieval reads it, a cross-encoder takes it for words.

RM3 and similar methods, the sequential dependence model, ``pt.rewrite.linear`` and match operators write such queries
into the column ``query``. What was asked then is in ``query_0``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_LANGUAGE = re.compile(
    r"\A\s*applypipeline:(?:on|off)(?!\S)"  # RM3, Bo1, KL
    r"|#combine(?::[^\s(]*)?\("  # the sequential dependence model, linear combinations
    r"|#base64\("  # a term that is not a word
    r"|#(?:1|uw\d+)\(\s*[^\s()]+\s+[^\s()]+\s*\)"  # a phrase, a window
    r"|\^\d+\.\d{6,}"  # weights as programs write them
)
_SHOWN = 60


class RewrittenQueryWarning(UserWarning):
    """A cross-encoder was given queries in Terrier's query language, which it reads as if they were words."""


def is_rewritten(query: str) -> bool:
    """Whether a query is in Terrier's query language, as programs write it and people do not."""
    return _LANGUAGE.search(query) is not None


def rewritten(queries: Iterable[tuple[str, str]]) -> str | None:
    """How many of some queries are in Terrier's query language, and one of them; None if none is.

    Args:
        queries: Pairs of qid and query; a qid counts once.
    """
    asked = dict(queries)
    odd = [qid for qid, query in asked.items() if is_rewritten(query)]
    if not odd:
        return None
    shown = asked[odd[0]]
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return f"{len(odd)} of {len(asked)} queries are in Terrier's query language, the first qid {odd[0]!r}: {shown!r}"


def remedy(columns: Collection[str]) -> str:
    """How to get the queries back as they were asked.

    Args:
        columns: Those of the frame with the queries.
    """
    if "query_0" in columns:
        return "Put pt.rewrite.reset() (one for each rewriting) between the rewriting and what reads the query."
    return "Give the queries as they were asked: runs.add_queries(run, topics)."
