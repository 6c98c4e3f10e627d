"""A score cache that cannot be stale: it knows the model, and the text."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import pyterrier as pt

from ..extras import require
from .atomic import write_json
from .records import model_identity

if TYPE_CHECKING:
    from ..reranker import CrossEncoderReRanker
    from ..scoring.checkpoint import Checkpoint

_KEY = "_text_digest"


class ScoreCache(pt.Transformer):
    """Keeps a re-ranker's scores on disk: ``first_stage >> ScoreCache(MonoElectra(), "scores")``.

    Gives exactly what the re-ranker gives. Each (query, text) pair is scored once, ever: a second pass, also in another
    process, makes no forward pass. Built on pyterrier-caching, with a cache of its own for each model in ``folder``:
    its name carries model, revision, lengths and precision, and a digest of the weights and what else scores depend on.
    Pairs are known by query and text, not by docno, so that other texts under the same docno are other pairs.

    The model is opened when the first rows come, since its name and content are the cache's. The device is not part of
    the name: scores of CPU and GPU, which differ in the sixth digit, mix. One process at a time may write.

    Args:
        reranker: The re-ranker.
        folder: Where the caches of all models lie.

    Raises:
        ImportError: pyterrier-caching is not installed.
        TypeError: Not a ``CrossEncoderReRanker``; for other scorers use pyterrier-caching's own ``ScorerCache``.
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
        """As the re-ranker's."""
        from ..reranker import ranked  # as above

        text = self.reranker.text_field
        needed = ["qid", "query", "docno", text]
        fits = all(name in inp.columns for name in needed) and inp.columns.is_unique
        if inp.empty or not fits:
            return self.reranker.transform(inp)
        strings = all(isinstance(value, str) for name in ("query", text) for value in inp[name])
        if not strings or inp[["qid", "docno"]].isna().to_numpy().any():
            return self.reranker.transform(inp)  # which says what is wrong
        cache = self._open()[1]
        pairs = inp[needed].reset_index(drop=True)
        pairs[_KEY] = [_digest(value) for value in pairs[text]]
        # The cache wants each pair once, the re-ranker wants each docno of a query once.
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
        # Settings of the re-ranker may have changed since; then it has opened another checkpoint.
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
    """Such as ``webis-monoelectra-base@1a2b3c4d-q32-d256-float32-0123456789ab``."""
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
