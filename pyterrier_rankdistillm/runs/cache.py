"""A score cache that cannot be stale, since its keys include the model and the text."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import pyterrier as pt

from ..checks import first_no_text
from ..extras import require
from .atomic import write_json
from .records import model_identity

if TYPE_CHECKING:
    from ..reranker import CrossEncoderReRanker
    from ..scoring.checkpoint import Checkpoint

_KEY = "_text_digest"


class ScoreCache(pt.Transformer):
    """Keeps a re-ranker's scores on disk: ``first_stage >> ScoreCache(MonoElectra(), "scores")``.

    It gives exactly the results of the re-ranker. Each (query, text) pair is scored only once, also across processes.
    It is built on pyterrier-caching, with a separate cache for each model in ``folder``. The cache's name holds model,
    revision, lengths and precision, and a digest of the weights and of everything else that scores depend on. Keys are
    query and text, not docno, so another text under the same docno is another pair.

    The model is opened when the first rows arrive, since the cache's name depends on it. The device is not part of the
    name, so scores of CPU and GPU, which differ in the sixth digit, are mixed. Only one process at a time may write.

    Args:
        reranker: The re-ranker.
        folder: The folder of the caches of all models.

    Raises:
        ImportError: pyterrier-caching is not installed.
        TypeError: It is not a ``CrossEncoderReRanker``; for other scorers use pyterrier-caching's own ``ScorerCache``.
    """

    schematic: ClassVar[dict[str, str | None]] = {"label": "ScoreCache", "help_url": None}

    def __init__(self, reranker: CrossEncoderReRanker, folder: str | os.PathLike[str]) -> None:
        from ..reranker import CrossEncoderReRanker  # loads torch, which reading and writing runs does without

        if not isinstance(reranker, CrossEncoderReRanker):
            raise TypeError(
                f"ScoreCache: reranker must be a MonoElectraReRanker or another CrossEncoderReRanker, whose model "
                f"it can tell, got {reranker!r}. Use pyterrier_caching.ScorerCache for others."
            )
        _caching()
        self.reranker = reranker
        self.folder = folder
        self._opened: tuple[tuple[Checkpoint, str, str | None], Path, Any] | None = None

    @property
    def path(self) -> Path:
        """The folder of this model's cache (opens the model)."""
        return self._open()[0]

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Gives the re-ranker's result."""
        from ..reranker import ranked  # as above

        text = self.reranker.text_field
        needed = ["qid", "query", "docno", text]
        fits = all(name in inp.columns for name in needed) and inp.columns.is_unique
        if inp.empty or not fits:
            return self.reranker.transform(inp)
        strings = all(first_no_text(inp[name].tolist()) is None for name in ("query", text))
        if not strings or inp[["qid", "docno"]].isna().to_numpy().any():
            return self.reranker.transform(inp)  # raises an error that says what is wrong
        cache = self._open()[1]
        pairs = inp[needed].reset_index(drop=True)
        pairs[_KEY] = [_digest(value) for value in pairs[text]]
        # The cache needs distinct pairs, and the re-ranker needs distinct docnos per query.
        distinct = pairs.drop_duplicates(["query", _KEY])
        known = cache.transform(distinct)
        scores = dict(zip(zip(known["query"], known[_KEY], strict=True), known["score"], strict=True))
        found = [scores[pair] for pair in zip(pairs["query"], pairs[_KEY], strict=True)]
        return ranked(inp, pd.Series(found, dtype="float64").to_numpy(dtype="float32"))

    def close(self) -> None:
        """Closes the file; it is opened again when needed."""
        if self._opened is not None:
            self._opened[2].close()
            self._opened = None

    def __enter__(self) -> ScoreCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ScoreCache({self.reranker!r}, {os.fspath(self.folder)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _open(self) -> tuple[Path, Any]:
        # If settings of the re-ranker have changed since, it has opened another checkpoint.
        now = (self.reranker.checkpoint, self.reranker.dtype, self.reranker.activation)
        if self._opened is None or self._opened[0][0] is not now[0] or self._opened[0][1:] != now[1:]:
            self.close()
            identity = model_identity(self.reranker)
            path = Path(self.folder).expanduser().absolute() / _name(identity)
            path.parent.mkdir(parents=True, exist_ok=True)
            cache = _caching().Sqlite3ScorerCache(path, self.reranker, group="query", key=_KEY, value="score")
            if not (path / "identity.json").exists():
                write_json(path / "identity.json", identity)
            self._opened = now, path, cache
        return self._opened[1], self._opened[2]


def _name(identity: dict[str, Any]) -> str:
    """A name such as ``webis-monoelectra-base@1a2b3c4d-q32-d256-float32-0123456789ab``."""
    model = re.sub(
        r"[^\w.]+", "-", Path(identity["model"]).name if os.sep == identity["model"][:1] else identity["model"]
    )
    revision = (identity["revision"] or "local")[:12]
    lengths = f"q{identity['query_length'] or 'all'}-d{identity['doc_length'] or 'all'}"
    activation = f"-{identity['activation']}" if identity["activation"] else ""
    digest = _digest(json.dumps(identity, sort_keys=True))[:16]
    return f"{model.strip('-')[:60]}@{revision}-{lengths}-{identity['dtype']}{activation}-{digest}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _caching() -> Any:
    return require("pyterrier_caching", "ScoreCache")
