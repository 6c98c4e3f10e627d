"""A score cache that cannot be stale, since its keys include the model and the text."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import pyterrier as pt

from ..checks import first_no_text
from ..extras import require
from ..locks import Lock, hold, lock_of
from ..scratch import replacing_folder
from .atomic import write_json
from .digests import blake2b_of
from .kept import KeptWorkWarning
from .records import RECORD, model_identity, record

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
    name, so scores of CPU and GPU, which differ in the sixth digit, are mixed.

    One process at a time has a model's cache, from its first rows until ``close()`` or the end of the process, however
    it ends. Within that process any number of threads and of ``ScoreCache`` objects share it. A cache whose creation
    was interrupted is created again.

    Args:
        reranker: The re-ranker.
        folder: The folder of the caches of all models.

    Raises:
        ImportError: pyterrier-caching is not installed.
        TypeError: It is not a ``CrossEncoderReRanker``; for other scorers use pyterrier-caching's own ``ScorerCache``.
            Or it is a ``SetEncoderReRanker``, whose scores are not a pair's own.
        InUseError: From the first rows on: another process has this model's cache.
        OSError: From the first rows on: the cache cannot be read or written.
    """

    schematic: ClassVar[dict[str, str | None]] = {"label": "ScoreCache", "help_url": None}

    def __init__(self, reranker: CrossEncoderReRanker, folder: str | os.PathLike[str]) -> None:
        from ..reranker import CrossEncoderReRanker  # loads torch, which reading and writing runs does without
        from ..set_encoder import SetEncoderReRanker  # the same

        if not isinstance(reranker, CrossEncoderReRanker):
            raise TypeError(
                f"ScoreCache: reranker must be a MonoElectraReRanker or another CrossEncoderReRanker, whose model "
                f"it can tell, got {reranker!r}. Use pyterrier_caching.ScorerCache for others."
            )
        if isinstance(reranker, SetEncoderReRanker):
            raise TypeError(
                f"ScoreCache: reranker must give a (query, text) pair the same score in any list, got {reranker!r}, "
                f"whose scores depend on the query's other passages. Use it without a cache; or keep its run: "
                f"runs.write."
            )
        _caching()
        self.reranker = reranker
        self.folder = folder
        self._told = False
        self._opened: _Opened | None = None

    @property
    def path(self) -> Path:
        """The folder of this model's cache (opens the model)."""
        return self._open().place.path

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
        pairs = inp[needed].reset_index(drop=True)
        pairs[_KEY] = [blake2b_of(value) for value in pairs[text]]
        # The cache needs distinct pairs, and the re-ranker needs distinct docnos per query.
        distinct = pairs.drop_duplicates(["query", _KEY])
        opened = self._open()
        with opened.place.turn, _faults(opened.place.path):
            known = opened.cache.transform(distinct)
        scores = dict(zip(zip(known["query"], known[_KEY], strict=True), known["score"], strict=True))
        found = [scores[pair] for pair in zip(pairs["query"], pairs[_KEY], strict=True)]
        return ranked(inp, pd.Series(found, dtype="float64").to_numpy(dtype="float32"))

    def close(self) -> None:
        """Closes the file, and lets other processes have it; it is opened again when needed."""
        with _OPENING:
            if self._opened is not None and self._opened.process == os.getpid():
                with self._opened.place.turn:
                    self._opened.cache.close()
            self._opened = None

    def __enter__(self) -> ScoreCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ScoreCache({self.reranker!r}, {os.fspath(self.folder)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _open(self) -> _Opened:
        with _OPENING:
            # Settings of the re-ranker may have changed since; then it has opened another checkpoint.
            checkpoint = self.reranker.checkpoint
            settings = self.reranker.precision, self.reranker.activation
            opened = self._opened
            if opened is None or not opened.is_for(checkpoint, settings):
                self.close()
                identity = model_identity(self.reranker)
                path = Path(self.folder).expanduser().absolute() / _name(identity)
                self._told = self._told or _tell_of_others(path)
                place = _place(path)
                opened = self._opened = _Opened(checkpoint, settings, place, _cache(path, self.reranker, identity))
            return opened


class _Place:
    """A model's cache as this process has it: locked against others, its threads one after another.

    The lock goes with the last that uses it.
    """

    def __init__(self, path: Path, lock: Lock) -> None:
        self.path = path
        self.turn = threading.RLock()
        self.process = os.getpid()
        weakref.finalize(self, lock.release)


@dataclass(frozen=True, eq=False)
class _Opened:
    """What a ``ScoreCache`` has opened, and for which model."""

    checkpoint: Checkpoint
    settings: tuple[str, str | None]
    place: _Place
    cache: Any
    process: int = field(default_factory=os.getpid)

    def is_for(self, checkpoint: Checkpoint, settings: tuple[str, str | None]) -> bool:
        """Whether it serves; what a forked process inherited does not."""
        return self.checkpoint is checkpoint and self.settings == settings and self.process == os.getpid()


_OPENING = threading.RLock()
_PLACES: weakref.WeakValueDictionary[Path, _Place] = weakref.WeakValueDictionary()


def _place(path: Path) -> _Place:
    place = _PLACES.get(path)
    if place is None or place.process != os.getpid():
        lock = hold(
            lock_of(path),
            f"ScoreCache: {path}",
            "Call close() there, or end that process; or give another folder.",
        )
        place = _PLACES[path] = _Place(path, lock)
    return place


def _cache(path: Path, reranker: CrossEncoderReRanker, identity: dict[str, Any]) -> Any:
    """Pyterrier-caching's cache, made where there is none that was made to its end."""
    make, options = _caching().Sqlite3ScorerCache, {"group": "query", "key": _KEY, "value": "score"}
    with _faults(path):
        if not (path / "pt_meta.json").is_file():
            with replacing_folder(path) as new:
                new.rmdir()  # it makes its folder itself
                make(new, reranker, **options).close()
                settings = {name: identity[name] for name in ("dtype", "activation")}
                write_json(
                    new / RECORD, record("ScoreCache", settings=settings, models={"reranker": identity}, data={})
                )
        cache = make(path, reranker, **options)
        cache.db.close()
        cache.db = sqlite3.connect(path / "db.sqlite3", check_same_thread=False)  # they take turns
        return cache


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(
            f"ScoreCache: {path} cannot be read or written: {error}. Make room, or delete the folder: what it held is "
            f"scored again."
        ) from error


def _tell_of_others(path: Path) -> bool:
    """Tells of scores of a model that goes by the same name, but is another one by content; whether there are any."""
    name = path.name.rpartition("-")[0]
    others = [] if path.exists() else sorted(other.name for other in path.parent.glob(f"{name}-*") if other.is_dir())
    if others:
        warnings.warn(
            f"ScoreCache: {path.parent} holds scores of another {name.partition('@')[0]} ({others[0]}), with other "
            f"weights or another tokenizer. They are kept, and not used.",
            KeptWorkWarning,
            stacklevel=5,
        )
    return bool(others)


def _name(identity: dict[str, Any]) -> str:
    """A name such as ``webis-monoelectra-base@1a2b3c4d-q32-d256-float32-0123456789ab``."""
    model = re.sub(
        r"[^\w.]+", "-", Path(identity["model"]).name if os.sep == identity["model"][:1] else identity["model"]
    )
    revision = (identity["revision"] or "local")[:12]
    lengths = f"q{identity['query_length'] or 'all'}-d{identity['doc_length'] or 'all'}"
    activation = f"-{identity['activation']}" if identity["activation"] else ""
    digest = blake2b_of(json.dumps(identity, sort_keys=True))[:16]
    return f"{model.strip('-')[:60]}@{revision}-{lengths}-{identity['dtype']}{activation}-{digest}"


def _caching() -> Any:
    return require("pyterrier_caching", "ScoreCache")
