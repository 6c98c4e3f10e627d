"""Which systems get passages' texts from ``reproduce``, and the texts that a first stage has by itself."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyterrier as pt
from pyterrier._ops import Compose  # as pt.inspect does not tell pipelines from sums

from ..checks import is_text
from ..identity.owners import owner_of
from ..runs.atomic import replacing

_GIVEN = ("qid", "query", "docno", "score", "rank")
_INSPECTED = ("python-terrier", "pyterrier", "pyterrier-rankdistillm", "pyterrier-caching", "pyterrier-pisa")
"""Distributions whose transformers say, on a frame without rows, which columns they read."""
_FUNCTIONS = "pyterrier.apply"
"""The modules of transformers that call a function, which may read whatever it finds."""


def wants_text(system: pt.Transformer) -> bool:
    """Whether a system gets texts: no where it is sure that it reads none, or brings its own before it reads any.

    What cannot be inspected (a function, a class of the user's) gets texts.
    """
    return _outputs(system, list(_GIVEN)) is None


def _outputs(part: pt.Transformer, columns: list[str]) -> list[str] | None:
    """The columns that a part of a pipeline gives; None where it may read texts that are not among its columns."""
    if "text" in columns:
        found: list[str] | None = columns  # the system's own texts, from here on
    elif isinstance(part, Compose):
        found = columns
        for one in part:
            if found is None:
                break
            found = _outputs(one, found)
    elif not _is_inspected(type(part)) or any(_outputs(one, columns) is None for one in _parts(part)):
        found = None
    else:
        found = pt.inspect.transformer_outputs(part, columns, strict=False)
    return found


def _is_inspected(kind: type) -> bool:
    owner = owner_of(kind.__module__)
    known = owner is not None and any(name in _INSPECTED for name in owner.split(", "))
    return known and not kind.__module__.startswith(_FUNCTIONS)


def _parts(part: pt.Transformer) -> Iterable[pt.Transformer]:
    if type(part).__module__.startswith(__package__.partition(".")[0]):
        return  # an estimator is not asked for its student: it may have texts of its own
    for found in pt.inspect.subtransformers(part).values():
        yield from found if isinstance(found, list | tuple) else [found]


class OwnTexts:
    """The texts that a first stage gives with its documents, kept beside its run.

    They are written shard by shard, each before its shard counts as finished: what a kill cuts off is found again.

    Args:
        run: The first stage's run file.
    """

    def __init__(self, run: Path) -> None:
        self.file = run.with_name(f"{run.name.partition('.')[0]}.texts.jsonl.gz")

    def add(self, found: pd.DataFrame) -> None:
        """Keeps the texts of a shard, if there are any."""
        if "text" not in found.columns or not all(map(is_text, found["text"])):
            return
        rows = found[["qid", "docno", "text"]].astype(str).to_dict(orient="records")
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        before = self.file.read_bytes() if self.file.exists() else b""
        with replacing(self.file) as scratch:
            scratch.write_bytes(before + gzip.compress(lines.encode("utf-8"), mtime=0))

    def of(self, run: pd.DataFrame) -> pd.DataFrame | None:
        """The run with its texts; None where not all of them are here."""
        if not self.file.exists():
            return None
        texts: dict[tuple[str, str], str] = {}
        with gzip.open(self.file, "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                texts[row["qid"], row["docno"]] = row["text"]
        pairs = list(zip(run["qid"], run["docno"], strict=True))
        if not all(pair in texts for pair in pairs):
            return None
        return run.assign(text=pd.Series([texts[pair] for pair in pairs], index=run.index, dtype=object))
